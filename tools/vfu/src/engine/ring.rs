//! Descriptors in a ring in the guest's memory, as many as fit at a time.

use std::collections::VecDeque;

use zerocopy::{FromBytes, IntoBytes};

use super::{Descriptor, get, register, set};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::region::Region;

/// The ring of a device that is enabled.
pub struct Ring {
    base: u64,
    entries: u32,
    /// The first entry that is not known to be done.
    head: u32,
    /// The first entry that is free.
    tail: u32,
    /// What stands between the two.
    waiting: VecDeque<Descriptor>,
}

impl Ring {
    /// Gives the device a ring of `entries` descriptors at `base`.
    pub fn set_up(client: &mut Client, base: u64, entries: u32) -> Result<Ring> {
        set(client, register::RING_SIZE, 0)?;
        client.region_write(Region::BAR0, register::RING_BASE, &base.to_le_bytes())?;
        set(client, register::RING_SIZE, entries)?;
        Ok(Ring { base, entries, head: 0, tail: 0, waiting: VecDeque::new() })
    }

    /// Bytes that a ring takes.
    pub fn size(entries: u32) -> u64 {
        u64::from(entries).saturating_mul(size_of::<Descriptor>() as u64)
    }

    /// Descriptors that aren't known to be done.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn after(&self, entry: u32) -> u32 {
        let next = entry.saturating_add(1);
        if next >= self.entries { 0 } else { next }
    }

    fn address(&self, entry: u32) -> u64 {
        self.base.saturating_add(Ring::size(entry))
    }

    /// Puts a descriptor into the ring, if there is room; false if not. The
    /// device learns of it by [`ring`](Self::ring).
    pub fn put(&mut self, client: &mut Client, descriptor: Descriptor) -> Result<bool> {
        let next = self.after(self.tail);
        if next == self.head {
            return Ok(false);
        }
        let address = self.address(self.tail);
        client.memory().write(address, descriptor.as_bytes()).map_err(Error::memory)?;
        self.waiting.push_back(descriptor);
        self.tail = next;
        Ok(true)
    }

    /// Tells the device how far the ring is filled.
    pub fn ring(&self, client: &mut Client) -> Result<()> {
        set(client, register::RING_TAIL, self.tail)
    }

    /// The descriptors that the device has done since, as it left them. It is
    /// asked how far it has come: while it writes an entry, that may be half
    /// written. Fails if it has lost or failed one.
    pub fn done(&mut self, client: &mut Client) -> Result<Vec<Descriptor>> {
        let head = get(client, register::RING_HEAD)?;
        let mut done = Vec::new();
        while self.head != head {
            let Some(given) = self.waiting.pop_front() else {
                return Err(Error::Unfit(format!("the DMA engine's ring has gone to entry {head}")));
            };
            let mut bytes = [0; size_of::<Descriptor>()];
            client.memory().read(self.address(self.head), &mut bytes).map_err(Error::memory)?;
            let found = Descriptor::read_from_bytes(&bytes).unwrap_or(given);
            found.check()?;
            if found != (Descriptor { status: found.status, result: found.result, ..given }) {
                return Err(Error::Unfit("the DMA engine has changed a descriptor".into()));
            }
            done.push(found);
            self.head = self.after(self.head);
        }
        Ok(done)
    }
}
