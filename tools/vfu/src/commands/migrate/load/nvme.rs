//! Work for an NVMe controller: writes, as many as the queues' depth at all
//! times, and some reads of what was written.
//!
//! It is driven by its interrupts alone: a completion counts once an interrupt
//! of its queue's vector has come. So one that gets lost in moving is noticed,
//! too.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use super::blocks::Blocks;
use super::{Record, Summary};
use crate::client::{Client, Deadline};
use crate::error::{Error, Result};
use crate::interrupts::Vectors;
use crate::nvme::{Command, Completion, Controller, NAMESPACE, PAGE, Prp, QueuePair};

/// I/O queue pairs, if the controller has as many.
const QUEUES: u16 = 2;
/// Entries of each queue.
const ENTRIES: u16 = 64;
/// Writes that are outstanding in each queue.
const WRITES: usize = 32;
/// Reads besides.
const READS: usize = 4;
/// Most pages of data of one command: enough that some need a list of them.
const MAX_PAGES: u64 = 4;
/// Bytes of the disk that are worked on, from its start.
const SPAN: u64 = 64 << 20;
/// Commands between two rings of the doorbell, about.
const RING_EVERY: usize = 8;
/// Fewest blocks of a disk: four for each write that is outstanding.
const FEWEST_BLOCKS: u64 = 4 * QUEUES as u64 * WRITES as u64;
/// The guest's memory is used from this page on: address 0 looks like a mistake.
const FIRST_PAGE: u64 = 1;
/// One write in so many goes where one has just been completed, so that at any
/// time some blocks have a newer write outstanding.
const AGAIN: usize = 3;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Writes, with this number.
    Write(u64),
    /// Reads.
    Read,
}

/// A command that the controller has.
struct Outstanding {
    slot: usize,
    range: Range<u64>,
    kind: Kind,
}

/// A queue and its commands.
struct Queue {
    pair: QueuePair,
    vector: usize,
    outstanding: HashMap<u16, Outstanding>,
    /// Buffers that no command has, of those for writes and those for reads.
    free_writes: Vec<usize>,
    free_reads: Vec<usize>,
    /// An interrupt has come whose completions were not taken in.
    signalled: bool,
}

/// A driver that always has something to write.
pub struct Load {
    controller: Controller,
    queues: Vec<Queue>,
    buffers: Buffers,
    blocks: Blocks,
    /// Blocks that the next writes shall go to again.
    again: Vec<Range<u64>>,
    rng: fastrand::Rng,
    verify: bool,
    submitted: u64,
    interrupts: u64,
    unfinished_at_stop: u64,
}

impl Load {
    /// Sets the controller up, with queues and data in `guest`, and looks at
    /// what is on the disk.
    pub fn start(
        client: &mut Client,
        guest: [(u64, u64); 2],
        vectors: &Vectors,
        verify: bool,
        run: u32,
    ) -> Result<Load> {
        let [(low, low_size), (high, high_size)] = guest;
        let page = |n: u64| low.saturating_add(FIRST_PAGE.saturating_add(n).saturating_mul(PAGE));
        let mut controller = Controller::start(client, page(0))?;
        let namespace = controller.namespace(client, vectors)?;
        let count = controller.number_of_queues(client, vectors, QUEUES)?;
        let mut queues = Vec::new();
        for n in 0..count {
            let place = Controller::PAGES.saturating_add(u64::from(n).saturating_mul(2));
            let last = vectors.count().saturating_sub(1);
            let vector = u32::from(n).saturating_add(1).min(last) as u16;
            let id = (n.saturating_add(1), ENTRIES, vector);
            let memory = (page(place), page(place.saturating_add(1)));
            let pair = controller.create_queues(client, vectors, id, memory)?;
            let first = usize::from(n).saturating_mul(WRITES + READS);
            let reads = first.saturating_add(WRITES);
            queues.push(Queue {
                pair,
                vector: vector.into(),
                outstanding: HashMap::new(),
                free_writes: (first..reads).collect(),
                free_reads: (reads..reads.saturating_add(READS)).collect(),
                signalled: false,
            });
        }
        let lists = Controller::PAGES.saturating_add(u64::from(count).saturating_mul(2));
        let slots = u64::from(count).saturating_mul((WRITES + READS) as u64);
        let end = FIRST_PAGE.saturating_add(lists).saturating_add(slots).saturating_mul(PAGE);
        let pages = (high_size / PAGE / slots.max(1)).min(MAX_PAGES).min(namespace.max_transfer / PAGE);
        if low_size < end || pages == 0 {
            return Err(Error::Usage("the guest's memory is too small for the load".into()));
        }
        let span = namespace.blocks.min(SPAN / namespace.block_size);
        if span < FEWEST_BLOCKS {
            return Err(Error::Unfit(format!("a disk of {span} blocks is too small for the load")));
        }
        let buffers = Buffers { lists: page(lists), data: high, slots, pages };
        let mut load = Load {
            controller,
            queues,
            buffers,
            blocks: Blocks::new(span, namespace.block_size, run),
            again: Vec::new(),
            rng: fastrand::Rng::with_seed(u64::from(run).saturating_add(1)),
            verify,
            submitted: 0,
            interrupts: 0,
            unfinished_at_stop: 0,
        };
        load.read_all(client, vectors)?;
        Ok(load)
    }

    /// Fills the queues. The doorbell is rung every so many commands, about;
    /// without, not at all.
    fn fill(&mut self, client: &mut Client, ring_every: Option<usize>) -> Result<()> {
        for n in 0..self.queues.len() {
            while self.queues.get(n).is_some_and(|queue| !queue.free_writes.is_empty()) {
                if self.rng.usize(..=WRITES / READS) == 0 {
                    let range = self.pick();
                    self.read(client, n, range)?;
                } else {
                    let range = self.again.pop().unwrap_or_else(|| self.pick());
                    self.write(client, n, range)?;
                }
                if ring_every.is_some_and(|every| self.rng.usize(..every) == 0) {
                    self.ring(client, n)?;
                }
            }
            if ring_every.is_some() {
                self.ring(client, n)?;
            }
        }
        Ok(())
    }

    /// Some blocks: so few that most of the disk is free, however many commands
    /// are outstanding.
    fn pick(&mut self) -> Range<u64> {
        let all = self.blocks.count();
        let most = self.most_blocks().min(all / FEWEST_BLOCKS).max(1);
        let count = self.rng.u64(1..=most);
        let start = self.rng.u64(..=all.saturating_sub(count));
        start..start.saturating_add(count)
    }

    /// Most blocks of one command.
    fn most_blocks(&self) -> u64 {
        (self.buffers.size() / self.blocks.bytes(1).max(1) as u64).max(1)
    }

    /// Puts a write to these blocks into a queue, if it has a buffer and nobody
    /// else has the blocks; false if not.
    fn write(&mut self, client: &mut Client, queue: usize, range: Range<u64>) -> Result<bool> {
        let Some(queue) = self.queues.get_mut(queue) else { return Ok(false) };
        let Some(&slot) = queue.free_writes.last() else { return Ok(false) };
        if !self.blocks.take(&range) {
            return Ok(false);
        }
        queue.free_writes.pop();
        let (sequence, bytes) = self.blocks.fill(&range);
        self.buffers.write(client, slot, &bytes)?;
        let prp = self.buffers.describe(client, slot, bytes.len() as u64)?;
        let count = range.end.saturating_sub(range.start);
        let command = Command::write(NAMESPACE, range.start, count, prp);
        queue.give(client, command, Outstanding { slot, range, kind: Kind::Write(sequence) })?;
        self.submitted = self.submitted.saturating_add(1);
        Ok(true)
    }

    /// The same for a read. Its buffer is filled first: what isn't written there
    /// shows.
    fn read(&mut self, client: &mut Client, queue: usize, range: Range<u64>) -> Result<bool> {
        const NOTHING: u8 = 0xa5;
        let Some(queue) = self.queues.get_mut(queue) else { return Ok(false) };
        let Some(&slot) = queue.free_reads.last() else { return Ok(false) };
        if !self.blocks.take(&range) {
            return Ok(false);
        }
        queue.free_reads.pop();
        let count = range.end.saturating_sub(range.start);
        let bytes = self.blocks.bytes(count);
        self.buffers.write(client, slot, &vec![NOTHING; bytes])?;
        let prp = self.buffers.describe(client, slot, bytes as u64)?;
        let command = Command::read(NAMESPACE, range.start, count, prp);
        queue.give(client, command, Outstanding { slot, range, kind: Kind::Read })?;
        self.submitted = self.submitted.saturating_add(1);
        Ok(true)
    }

    fn ring(&mut self, client: &mut Client, queue: usize) -> Result<()> {
        match self.queues.get_mut(queue) {
            Some(queue) => queue.pair.ring(client, self.controller.doorbells()),
            None => Ok(()),
        }
    }

    /// Takes in interrupts, waiting for them until the deadline: whether any came.
    fn listen(&mut self, client: &mut Client, vectors: &Vectors, deadline: Deadline) -> Result<bool> {
        let fired = vectors.wait(client, deadline)?;
        for (vector, count) in &fired {
            self.interrupts = self.interrupts.saturating_add(*count);
            self.queues.iter_mut().filter(|queue| queue.vector == *vector).for_each(|q| q.signalled = true);
        }
        Ok(!fired.is_empty())
    }

    /// Takes in the completions that interrupts have told of: all of them, also
    /// when one is wrong, so that it can be gone on with afterwards.
    fn take_in(&mut self, client: &mut Client) -> Result<()> {
        let mut outcome = Ok(());
        for n in 0..self.queues.len() {
            let Some(queue) = self.queues.get_mut(n).filter(|queue| queue.signalled) else { continue };
            queue.signalled = false;
            let mut done = Vec::new();
            while let Some(completion) = queue.pair.take(client)? {
                done.push(queue.take_back(&completion));
            }
            if !done.is_empty() {
                queue.pair.free(client, self.controller.doorbells())?;
            }
            for outstanding in done {
                outcome = outcome.and(outstanding.and_then(|what| self.completed(client, n, what)));
            }
        }
        outcome
    }

    fn completed(&mut self, client: &mut Client, queue: usize, done: Outstanding) -> Result<()> {
        let Outstanding { slot, range, kind } = done;
        let Some(queue) = self.queues.get_mut(queue) else { return Ok(()) };
        match kind {
            Kind::Write(sequence) => {
                self.blocks.written(&range, sequence);
                queue.free_writes.push(slot);
                if self.rng.usize(..AGAIN) == 0 {
                    self.again.push(range);
                }
                Ok(())
            }
            Kind::Read => {
                queue.free_reads.push(slot);
                self.blocks.put_back(&range);
                let count = range.end.saturating_sub(range.start);
                let mut bytes = vec![0; self.blocks.bytes(count)];
                self.buffers.read(client, slot, &mut bytes)?;
                self.blocks.check(&range, &bytes)
            }
        }
    }

    fn outstanding(&self) -> usize {
        self.queues.iter().map(|queue| queue.outstanding.len()).sum()
    }

    /// Completions that were not taken in.
    fn waiting(&self, client: &mut Client) -> Result<u64> {
        self.queues.iter().try_fold(0, |sum: u64, queue| Ok(sum.saturating_add(queue.pair.waiting(client)?)))
    }

    /// Waits for an interrupt and takes in what it tells of.
    fn wait(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        let timeout = client.timeout();
        // One that has come before the device moved tells of something already.
        let told = self.queues.iter().any(|queue| queue.signalled);
        if !told && !self.listen(client, vectors, Deadline::after(timeout))? {
            let (left, done) = (self.outstanding(), self.waiting(client)?);
            let what = format!("no interrupt came for {left} commands ({done} of them completed)");
            return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
        }
        self.take_in(client)
    }

    /// Reads the whole disk, or as much of it as is worked on, and compares.
    fn read_all(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        let most = self.most_blocks();
        let mut start = 0;
        while start < self.blocks.count() {
            let end = start.saturating_add(most).min(self.blocks.count());
            match self.read(client, 0, start..end)? {
                true => start = end,
                false => {
                    self.ring(client, 0)?;
                    self.wait(client, vectors)?;
                }
            }
        }
        self.ring(client, 0)?;
        super::Load::settle(self, client, vectors)
    }
}

impl super::Load for Load {
    fn pump(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.listen(client, vectors, Deadline::after(Duration::ZERO))?;
        self.take_in(client)?;
        self.fill(client, Some(RING_EVERY))
    }

    fn before_stop(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.listen(client, vectors, Deadline::after(Duration::ZERO))?;
        self.take_in(client)?;
        self.fill(client, None)?;
        let doorbells = self.controller.doorbells();
        self.queues.iter_mut().try_for_each(|queue| queue.pair.ring_early(client, doorbells))
    }

    fn at_stop(&mut self) -> Result<()> {
        let doorbells = self.controller.doorbells();
        self.queues.iter_mut().try_for_each(|queue| queue.pair.ring_late(doorbells))
    }

    fn stopped(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.listen(client, vectors, Deadline::after(Duration::ZERO))?;
        self.unfinished_at_stop = (self.outstanding() as u64).saturating_sub(self.waiting(client)?);
        Ok(())
    }

    fn moved(&mut self, client: &mut Client) -> Result<()> {
        self.controller.moved(client)
    }

    fn settle(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        while self.outstanding() > 0 {
            self.wait(client, vectors)?;
        }
        Ok(())
    }

    fn work_on(&mut self, client: &mut Client, vectors: &Vectors, count: u64) -> Result<()> {
        let enough = self.submitted.saturating_add(count);
        while self.submitted < enough {
            self.fill(client, Some(RING_EVERY))?;
            self.wait(client, vectors)?;
        }
        self.settle(client, vectors)
    }

    fn check(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        match self.verify {
            true => self.read_all(client, vectors),
            false => Ok(()),
        }
    }

    fn summary(&self) -> Summary {
        let Load { submitted, interrupts, unfinished_at_stop, .. } = *self;
        Summary { submitted, interrupts, unfinished_at_stop }
    }

    fn record(&self) -> Option<Record> {
        Some(self.blocks.record())
    }
}

impl Queue {
    fn give(&mut self, client: &mut Client, command: Command, what: Outstanding) -> Result<()> {
        let cid = self.pair.put(client, command)?;
        match self.outstanding.insert(cid, what) {
            None => Ok(()),
            Some(_) => Err(Error::Unfit(format!("command {cid} was never completed"))),
        }
    }

    /// The command that was completed, which must be outstanding.
    fn take_back(&mut self, completion: &Completion) -> Result<Outstanding> {
        let cid = completion.cid;
        match (self.outstanding.remove(&cid), completion.status()) {
            (Some(what), 0) => Ok(what),
            (Some(what), status) => {
                let blocks = format!("blocks {:?}: {:?}", what.range, what.kind);
                Err(Error::Unfit(format!("a command failed with status {status:#05x} ({blocks})")))
            }
            (None, _) => Err(Error::Unfit(format!("command {cid} was completed, but is not outstanding"))),
        }
    }
}

/// The memory for data. The pages of a command are scattered, so that the list
/// of them matters.
struct Buffers {
    /// A page for each command, for its list of pages.
    lists: u64,
    data: u64,
    slots: u64,
    /// Pages of each.
    pages: u64,
}

impl Buffers {
    /// Bytes that fit into each.
    fn size(&self) -> u64 {
        self.pages.saturating_mul(PAGE)
    }

    fn page(&self, slot: usize, page: u64) -> u64 {
        let number = page.saturating_mul(self.slots).saturating_add(slot as u64);
        self.data.saturating_add(number.saturating_mul(PAGE))
    }

    fn write(&self, client: &mut Client, slot: usize, bytes: &[u8]) -> Result<()> {
        for (n, part) in (0..).zip(bytes.chunks(PAGE as usize)) {
            client.memory().write(self.page(slot, n), part).map_err(Error::memory)?;
        }
        Ok(())
    }

    fn read(&self, client: &mut Client, slot: usize, bytes: &mut [u8]) -> Result<()> {
        for (n, part) in (0..).zip(bytes.chunks_mut(PAGE as usize)) {
            client.memory().read(self.page(slot, n), part).map_err(Error::memory)?;
        }
        Ok(())
    }

    /// The PRP entries for the first `bytes` bytes.
    fn describe(&self, client: &mut Client, slot: usize, bytes: u64) -> Result<Prp> {
        let first = self.page(slot, 0);
        match bytes.div_ceil(PAGE) {
            0 | 1 => Ok(Prp(first, 0)),
            2 => Ok(Prp(first, self.page(slot, 1))),
            pages => {
                let list = self.lists.saturating_add((slot as u64).saturating_mul(PAGE));
                let entries: Vec<u8> = (1..pages).flat_map(|n| self.page(slot, n).to_le_bytes()).collect();
                client.memory().write(list, &entries).map_err(Error::memory)?;
                Ok(Prp(first, list))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    fn queue() -> Queue {
        let what = Outstanding { slot: 0, range: 0..8, kind: Kind::Write(3) };
        Queue {
            pair: QueuePair::new(1, ENTRIES, 0x1000, 0x2000),
            vector: 1,
            outstanding: HashMap::from([(7, what)]),
            free_writes: vec![],
            free_reads: vec![],
            signalled: false,
        }
    }

    fn completion(cid: u8, status: u8) -> Completion {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, cid, 0, status << 1 | 1, 0];
        Completion::read_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn a_command_is_completed_once() {
        let mut queue = queue();
        let text = |result: Result<Outstanding>| result.err().unwrap().to_string();
        assert!(text(queue.take_back(&completion(6, 0))).contains("command 6 was completed, but is not"));
        assert_eq!(queue.take_back(&completion(7, 0)).unwrap().kind, Kind::Write(3));
        assert!(text(queue.take_back(&completion(7, 0))).contains("command 7 was completed, but is not"));
    }

    #[test]
    fn a_failed_command_is_told_with_its_blocks() {
        let failed = queue().take_back(&completion(7, 0x20)).err().unwrap().to_string();
        assert_eq!(failed, "a command failed with status 0x020 (blocks 0..8: Write(3))");
    }

    #[test]
    fn buffers_do_not_overlap() {
        let buffers = Buffers { lists: 0x1000, data: 0x10_0000, slots: 5, pages: 3 };
        let mut pages: Vec<u64> = (0..5).flat_map(|slot| [0, 1, 2].map(|n| buffers.page(slot, n))).collect();
        pages.sort_unstable();
        assert_eq!(pages, (0..15).map(|n| 0x10_0000 + n * PAGE).collect::<Vec<_>>());
    }
}
