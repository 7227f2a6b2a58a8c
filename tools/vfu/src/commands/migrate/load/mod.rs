//! Work for a device while it moves, and the proof that none of it got lost.

mod blocks;
mod engine;
mod nvme;

use serde::Serialize;

use crate::client::Client;
use crate::error::Result;
use crate::identity::Identity;
use crate::interrupts::Vectors;

/// A driver that always has something to do.
///
/// It is asked of the source until that stops, and from then on, once it has
/// [moved](Self::moved), of the destination.
pub trait Load {
    /// Takes in what is done, and gives the device as much again.
    fn pump(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()>;

    /// The same, right before the device is asked to stop: it shall have as much
    /// as possible left to do.
    fn before_stop(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.pump(client, vectors)
    }

    /// The device has been asked to stop, and hasn't answered: what a guest's
    /// processor may do at that moment.
    fn at_stop(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes in the interrupts that the source has sent until it stopped. The
    /// device is not touched.
    fn stopped(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()>;

    /// The device is at the destination from now on, and runs.
    fn moved(&mut self, client: &mut Client) -> Result<()>;

    /// Waits until all is done that was given to the device.
    fn settle(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()>;

    /// Gives the device `count` more pieces of work, and waits until all is
    /// done.
    fn work_on(&mut self, client: &mut Client, vectors: &Vectors, count: u64) -> Result<()>;

    /// Fails unless all is as it must be after the work so far. For a device
    /// that has [settled](Self::settle).
    fn check(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()>;

    /// What it came to.
    fn summary(&self) -> Summary;

    /// What a disk must look like after the work so far, if the device is one.
    fn record(&self) -> Option<Record>;
}

/// What a load came to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    /// Descriptors or commands that were given to the device, on both sides.
    pub submitted: u64,
    /// Interrupts that came of them.
    pub interrupts: u64,
    /// How many of them the device had not done when the source stopped.
    pub unfinished_at_stop: u64,
}

impl Summary {
    /// What two loads came to, one after the other, of which only the last saw
    /// the stop.
    pub fn after(self, before: Summary) -> Summary {
        Summary {
            submitted: before.submitted.saturating_add(self.submitted),
            interrupts: before.interrupts.saturating_add(self.interrupts),
            ..self
        }
    }
}

/// What a disk must look like.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Bytes of a block.
    pub block_size: u64,
    /// The number of the write that came last, for each block from the first
    /// on; 0 where none did.
    pub sequences: Vec<u64>,
}

/// Whether there is work for such a device.
pub fn is_known(identity: &Identity) -> bool {
    crate::engine::is_known(identity.vendor_id, identity.device_id) || crate::nvme::is_known(identity.class)
}

/// Sets the device up for work on `guest`, the guest's memory as addresses and
/// sizes. What is checked at the end takes memory and time: without `verify`
/// the work is only done. `run` counts the loads of this device, from 0 on: no
/// two do the same, so that what one of them left is not taken for another's.
pub fn start(
    client: &mut Client,
    identity: &Identity,
    guest: [(u64, u64); 2],
    vectors: &Vectors,
    verify: bool,
    run: u32,
) -> Result<Box<dyn Load>> {
    match crate::nvme::is_known(identity.class) {
        true => Ok(Box::new(nvme::Load::start(client, guest, vectors, verify, run)?)),
        false => Ok(Box::new(engine::Load::start(client, guest, vectors.count(), verify, run)?)),
    }
}
