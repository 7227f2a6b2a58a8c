//! A submission and a completion queue in the guest's memory, and the
//! doorbells that tell the controller how far they are filled and emptied.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

use vfio_user::wire::RegionInfoFlags;
use zerocopy::{FromBytes, IntoBytes};

use super::command::{Command, Completion};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::region::Region;

/// Where the doorbells begin in BAR0.
const DOORBELLS: u64 = 0x1000;

/// How the controller learns of a doorbell.
enum Way {
    /// By a write to the region.
    Message,
    /// It looks at a file now and then: the file, and where BAR0 begins in it.
    File(File, u64),
}

/// The doorbells of one controller.
pub struct Doorbells {
    way: Way,
    stride: u64,
}

impl Doorbells {
    /// Those of the controller behind `client`, `stride` bytes each: in memory
    /// if it lets its first page of them be mapped.
    pub fn new(client: &mut Client, stride: u64) -> Result<Doorbells> {
        let page = rustix::param::page_size() as u64;
        let details = client.region_info(Region::BAR0)?;
        let whole = details.areas.is_empty();
        let covered = details.areas.iter().any(|area| {
            let end = area.offset.saturating_add(area.size);
            area.offset <= DOORBELLS && end >= DOORBELLS.saturating_add(page)
        });
        let mapped = details.flags().contains(RegionInfoFlags::MMAP) && (whole || covered);
        let offset = details.info.offset;
        let way = match details.fd.filter(|_| mapped) {
            Some(fd) => Way::File(File::from(fd), offset),
            None => Way::Message,
        };
        Ok(Doorbells { way, stride })
    }

    fn write(&self, client: &mut Client, doorbell: u64, value: u16) -> Result<()> {
        let offset = self.offset(doorbell);
        match &self.way {
            Way::Message => client.region_write(Region::BAR0, offset, &u32::from(value).to_le_bytes()),
            Way::File(file, start) => store(file, start.saturating_add(offset), value),
        }
    }

    /// Where a doorbell is in BAR0.
    fn offset(&self, doorbell: u64) -> u64 {
        DOORBELLS.saturating_add(self.stride.saturating_mul(doorbell))
    }
}

/// Writes a doorbell that the controller looks at.
fn store(file: &File, offset: u64, value: u16) -> Result<()> {
    // What the queue was given comes first. The bytes may arrive one by one:
    // queues are so small that only the first ever changes.
    fence(Ordering::SeqCst);
    file.write_all_at(&u32::from(value).to_le_bytes(), offset).map_err(|e| Error::local("doorbell", e))
}

/// The number of a submission queue's doorbell.
fn tail_doorbell(queue: u16) -> u64 {
    u64::from(queue).saturating_mul(2)
}

/// A pair of queues of the same number, and what their driver knows of them.
pub struct QueuePair {
    id: u16,
    /// Entries of either.
    entries: u16,
    submission: u64,
    completion: u64,
    tail: u16,
    /// The tail that the controller knows.
    rung: u16,
    /// The first completion that was not taken.
    head: u16,
    phase: bool,
    next_cid: u16,
}

impl QueuePair {
    /// Most entries: numbers of entries have to fit into a byte.
    pub const MOST_ENTRIES: u16 = 256;

    /// Queues that are empty, at these addresses.
    pub fn new(id: u16, entries: u16, submission: u64, completion: u64) -> QueuePair {
        let entries = entries.min(QueuePair::MOST_ENTRIES);
        QueuePair { id, entries, submission, completion, tail: 0, rung: 0, head: 0, phase: true, next_cid: 0 }
    }

    /// Empties the completion queue, which the controller doesn't know yet: no
    /// entry looks new.
    pub fn clear(&self, client: &mut Client) -> Result<()> {
        let bytes = vec![0; usize::from(self.entries).saturating_mul(size_of::<Completion>())];
        client.memory().write(self.completion, &bytes).map_err(Error::memory)
    }

    fn after(&self, entry: u16) -> u16 {
        let next = entry.saturating_add(1);
        if next >= self.entries { 0 } else { next }
    }

    /// Puts a command behind the others: its identifier. The caller never has
    /// as many outstanding as there are entries. Identifiers come again as late
    /// as possible, so that a completion that comes twice is known for one.
    pub fn put(&mut self, client: &mut Client, command: Command) -> Result<u16> {
        let cid = self.next_cid;
        // 0xffff stands for no command at all.
        self.next_cid = if cid >= u16::MAX - 1 { 0 } else { cid.saturating_add(1) };
        let addr = entry_address::<Command>(self.submission, self.tail);
        client.memory().write(addr, command.with_cid(cid).as_bytes()).map_err(Error::memory)?;
        self.tail = self.after(self.tail);
        Ok(cid)
    }

    /// Tells the controller of what was put, if it doesn't know.
    pub fn ring(&mut self, client: &mut Client, doorbells: &Doorbells) -> Result<()> {
        if self.rung == self.tail {
            return Ok(());
        }
        self.rung = self.tail;
        doorbells.write(client, tail_doorbell(self.id), self.tail)
    }

    /// The same together with the next request, where the doorbell is a message;
    /// else it is left to [`ring_late`](Self::ring_late).
    pub fn ring_early(&mut self, client: &mut Client, doorbells: &Doorbells) -> Result<()> {
        match &doorbells.way {
            Way::Message if self.rung != self.tail => {
                self.rung = self.tail;
                let offset = doorbells.offset(tail_doorbell(self.id));
                client.region_post(Region::BAR0, offset, &u32::from(self.tail).to_le_bytes())
            }
            _ => Ok(()),
        }
    }

    /// Rings a doorbell that is no message, as a processor does that knows
    /// nothing of the messages that are on their way.
    pub fn ring_late(&mut self, doorbells: &Doorbells) -> Result<()> {
        match &doorbells.way {
            Way::File(file, start) if self.rung != self.tail => {
                self.rung = self.tail;
                store(file, start.saturating_add(doorbells.offset(tail_doorbell(self.id))), self.tail)
            }
            _ => Ok(()),
        }
    }

    /// The next completion, if there is one. The controller learns that its
    /// entry is free by [`free`](Self::free).
    pub fn take(&mut self, client: &mut Client) -> Result<Option<Completion>> {
        let Some(completion) = self.peek(client, self.head, self.phase)? else { return Ok(None) };
        if completion.sq_id != self.id || completion.sq_head >= self.entries {
            return Err(Error::Unfit(format!(
                "completion queue {}: an entry of submission queue {} with head {}",
                self.id, completion.sq_id, completion.sq_head
            )));
        }
        self.head = self.after(self.head);
        self.phase ^= self.head == 0;
        Ok(Some(completion))
    }

    /// Completions that were not taken.
    pub fn waiting(&self, client: &mut Client) -> Result<u64> {
        let (mut entry, mut phase, mut count) = (self.head, self.phase, 0);
        while count < u64::from(self.entries) && self.peek(client, entry, phase)?.is_some() {
            count = count.saturating_add(1);
            entry = self.after(entry);
            phase ^= entry == 0;
        }
        Ok(count)
    }

    /// An entry, if it is new. It is read again once it is seen to be: while it
    /// is being written, a part of what was read may be old.
    fn peek(&self, client: &mut Client, entry: u16, phase: bool) -> Result<Option<Completion>> {
        let addr = entry_address::<Completion>(self.completion, entry);
        let mut bytes = [0; size_of::<Completion>()];
        let mut found = None;
        for _ in 0..2 {
            client.memory().read(addr, &mut bytes).map_err(Error::memory)?;
            fence(Ordering::SeqCst);
            found = Completion::read_from_bytes(&bytes).ok().filter(|c| c.phase() == phase);
            if found.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// Tells the controller of what was taken.
    pub fn free(&self, client: &mut Client, doorbells: &Doorbells) -> Result<()> {
        doorbells.write(client, tail_doorbell(self.id).saturating_add(1), self.head)
    }
}

fn entry_address<T>(base: u64, entry: u16) -> u64 {
    base.saturating_add(u64::from(entry).saturating_mul(size_of::<T>() as u64))
}
