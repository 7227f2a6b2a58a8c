//! A driver for NVMe controllers: what the specification, version 1.4, asks of
//! a host to move blocks. Memory pages are 4 KiB.

mod command;
mod queue;
mod stamp;

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::client::{Client, Deadline};
use crate::error::{Error, Result};
use crate::interrupts::Vectors;
use crate::region::Region;

use command::Identify;
pub use command::{Command, Completion, Prp};
pub use queue::{Doorbells, QueuePair};
pub use stamp::Stamp;

/// Bytes of a memory page.
pub const PAGE: u64 = 4096;
/// The namespace that is used.
pub const NAMESPACE: u32 = 1;

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 16;

/// Offsets of the registers in BAR0.
mod register {
    pub const CAP: u64 = 0x00;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1c;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
}

/// Controller Configuration: enabled, pages of 4 KiB, entries of the I/O queues
/// of 64 and 16 bytes.
const CC_ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
/// Controller Status: ready, and fatal.
const CSTS_RDY: u32 = 1;
const CSTS_CFS: u32 = 2;

/// Base class, subclass and programming interface of these controllers.
const CLASS: [u8; 3] = [0x01, 0x08, 0x02];

/// Whether a device of this class is an NVMe controller.
pub fn is_known(class: [u8; 3]) -> bool {
    class == CLASS
}

/// A controller that is enabled.
pub struct Controller {
    stride: u64,
    doorbells: Doorbells,
    admin: QueuePair,
    /// A page for the data of admin commands.
    page: u64,
}

/// What a namespace is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Most bytes of one command.
    pub max_transfer: u64,
}

impl Controller {
    /// Pages that the driver needs for itself.
    pub const PAGES: u64 = 3;

    /// Resets the controller and enables it, with its admin queues in the
    /// [`PAGES`](Self::PAGES) from `memory` on.
    pub fn start(client: &mut Client, memory: u64) -> Result<Controller> {
        client.enable_memory_and_bus_master()?;
        let low = get(client, register::CAP)?;
        let high = get(client, register::CAP + 4)?;
        let entries = (low & 0xffff).saturating_add(1);
        if entries < u32::from(ADMIN_ENTRIES) {
            return Err(Error::Unfit(format!("the controller has queues of {entries} entries only")));
        }
        if high >> 16 & 0xf != 0 {
            return Err(Error::Unfit("the controller has no memory pages of 4 KiB".into()));
        }
        let stride = 4 << (high & 0xf);
        let [submission, completion, page] = [0, 1, 2].map(|n| memory.saturating_add(n * PAGE));
        let admin = QueuePair::new(0, ADMIN_ENTRIES, submission, completion);
        admin.clear(client)?;
        set(client, register::CC, 0)?;
        wait_ready(client, false)?;
        let size = u32::from(ADMIN_ENTRIES - 1);
        set(client, register::AQA, size << 16 | size)?;
        for (register, addr) in [(register::ASQ, submission), (register::ACQ, completion)] {
            set(client, register, addr as u32)?;
            set(client, register.saturating_add(4), (addr >> 32) as u32)?;
        }
        set(client, register::CC, CC_ENABLE)?;
        wait_ready(client, true)?;
        let doorbells = Doorbells::new(client, stride)?;
        Ok(Controller { stride, doorbells, admin, page })
    }

    /// The doorbells.
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// The controller has moved to where `client` leads.
    pub fn moved(&mut self, client: &mut Client) -> Result<()> {
        self.doorbells = Doorbells::new(client, self.stride)?;
        Ok(())
    }

    /// What the namespace is like.
    pub fn namespace(&mut self, client: &mut Client, vectors: &Vectors) -> Result<Namespace> {
        let controller = self.identify(client, vectors, Identify::Controller)?;
        let namespace = self.identify(client, vectors, Identify::Namespace(NAMESPACE))?;
        namespace_of(&controller, &namespace)
            .ok_or_else(|| Error::Unfit(format!("namespace {NAMESPACE} has no blocks that can be used")))
    }

    fn identify(&mut self, client: &mut Client, vectors: &Vectors, what: Identify) -> Result<Vec<u8>> {
        self.execute(client, vectors, "Identify", Command::identify(what, self.page))?;
        let mut bytes = vec![0; PAGE as usize];
        client.memory().read(self.page, &mut bytes).map_err(Error::memory)?;
        Ok(bytes)
    }

    /// Asks for `pairs` I/O queue pairs: how many there are, up to that.
    pub fn number_of_queues(&mut self, client: &mut Client, vectors: &Vectors, pairs: u16) -> Result<u16> {
        let command = Command::number_of_queues(pairs);
        let result = self.execute(client, vectors, "Set Features", command)?.result;
        let [submission, completion] = [result & 0xffff, result >> 16].map(|n| n.saturating_add(1));
        Ok(submission.min(completion).min(pairs.into()) as u16)
    }

    /// Creates I/O queues with a page each.
    pub fn create_queues(
        &mut self,
        client: &mut Client,
        vectors: &Vectors,
        (id, entries, vector): (u16, u16, u16),
        (submission, completion): (u64, u64),
    ) -> Result<QueuePair> {
        let queue = QueuePair::new(id, entries, submission, completion);
        queue.clear(client)?;
        let command = Command::create_completion_queue(id, completion, entries, vector);
        self.execute(client, vectors, "Create I/O Completion Queue", command)?;
        let command = Command::create_submission_queue(id, submission, entries);
        self.execute(client, vectors, "Create I/O Submission Queue", command)?;
        Ok(queue)
    }

    /// Executes an admin command.
    fn execute(
        &mut self,
        client: &mut Client,
        vectors: &Vectors,
        what: &str,
        command: Command,
    ) -> Result<Completion> {
        let cid = self.admin.put(client, command)?;
        self.admin.ring(client, &self.doorbells)?;
        let (start, timeout) = (Instant::now(), client.timeout());
        let completion = loop {
            if let Some(completion) = self.admin.take(client)? {
                break completion;
            }
            if start.elapsed() > timeout {
                let what = format!("{what} was not completed");
                return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
            }
            vectors.wait(client, Deadline::after(Duration::from_millis(10).min(timeout)))?;
        };
        self.admin.free(client, &self.doorbells)?;
        match (completion.cid == cid, completion.status()) {
            (true, 0) => Ok(completion),
            (true, status) => Err(Error::Unfit(format!("{what}: status {status:#05x}"))),
            (false, _) => Err(Error::Unfit(format!("{what}: another command was completed"))),
        }
    }
}

/// Takes apart what Identify tells; `None` if it makes no sense.
fn namespace_of(controller: &[u8], namespace: &[u8]) -> Option<Namespace> {
    const MDTS: usize = 77;
    const FLBAS: usize = 26;
    const LBAF: usize = 128;
    let blocks = namespace.first_chunk().copied().map(u64::from_le_bytes).filter(|n| *n > 0)?;
    let format = usize::from(namespace.get(FLBAS)? & 0xf);
    let lbads = *namespace.get(LBAF.saturating_add(format.saturating_mul(4)).saturating_add(2))?;
    let block_size = 1u64.checked_shl(lbads.into()).filter(|size| (512..=PAGE).contains(size))?;
    let max_transfer = match *controller.get(MDTS)? {
        0 => u64::MAX,
        shift => PAGE.saturating_mul(1u64.checked_shl(shift.into()).unwrap_or(u64::MAX)),
    };
    Some(Namespace { blocks, block_size, max_transfer })
}

fn get(client: &mut Client, offset: u64) -> Result<u32> {
    let bytes = client.region_read(Region::BAR0, offset, 4)?;
    bytes.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(|| Error::local("register", Errno::IO))
}

fn set(client: &mut Client, offset: u64, value: u32) -> Result<()> {
    client.region_write(Region::BAR0, offset, &value.to_le_bytes())
}

fn wait_ready(client: &mut Client, ready: bool) -> Result<()> {
    let (start, timeout) = (Instant::now(), client.timeout());
    loop {
        let status = get(client, register::CSTS)?;
        if status & CSTS_CFS != 0 && ready {
            return Err(Error::Unfit("the controller reports a fatal error".into()));
        }
        if (status & CSTS_RDY != 0) == ready {
            return Ok(());
        }
        if start.elapsed() > timeout {
            let what = format!("the controller did not become {}ready", if ready { "" } else { "un" });
            return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_without_sense_are_refused() {
        let (mut controller, mut namespace) = (vec![0; 4096], vec![0; 4096]);
        assert_eq!(namespace_of(&controller, &namespace), None);
        namespace[1] = 1;
        assert_eq!(namespace_of(&controller, &namespace), None);
        namespace[26] = 1;
        namespace[128 + 4 + 2] = 9;
        controller[77] = 5;
        let good = Namespace { blocks: 256, block_size: 512, max_transfer: 128 << 10 };
        assert_eq!(namespace_of(&controller, &namespace), Some(good));
        controller[77] = 0;
        assert_eq!(namespace_of(&controller, &namespace).unwrap().max_transfer, u64::MAX);
        namespace[128 + 4 + 2] = 200;
        assert_eq!(namespace_of(&controller, &namespace), None);
        assert_eq!(namespace_of(&[], &[]), None);
    }
}
