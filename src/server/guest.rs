//! What a device in Rust may use of its context: guest memory and interrupts.

use super::{Context, Device};
use crate::dma::{Access, AddressSpace, DmaRegion, Prot, RegionId};
use crate::irq::Irqs;
use crate::transport::Data;
use crate::wire::{Errno, Result};

/// The parts of a context that any thread may use, also while it serves its
/// client: guest memory that is reached without messages, and interrupts.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    dma: &'a AddressSpace,
    irqs: &'a Irqs,
}

const _: () = {
    const fn for_any_thread<T: Send + Sync>() {}
    for_any_thread::<Guest<'_>>();
};

impl Guest<'_> {
    /// Reads guest memory from `iova` on. A region that the client removes
    /// meanwhile stays until it has been read.
    ///
    /// # Errors
    /// `ENOENT`: an address is in no region; `EACCES`: a region must not be read;
    /// `EFAULT`: one is reached by messages, see [`Context::read_memory`];
    /// `EIO`: its file cannot be read.
    pub fn read_memory(&self, iova: u64, data: &mut [u8]) -> Result<()> {
        self.dma.copy_from(iova, data)
    }

    /// Writes guest memory from `iova` on, and marks its pages dirty.
    ///
    /// # Errors
    /// As [`read_memory`](Guest::read_memory); regions before the one that
    /// fails have been written.
    pub fn write_memory(&self, iova: u64, data: &[u8]) -> Result<()> {
        self.dma.copy_to(iova, data)
    }

    /// Triggers a vector of the interrupt type that the client uses.
    ///
    /// # Errors
    /// `EINVAL`: there is no such vector; `ENOENT`: the client has not assigned
    /// an eventfd to it; `EAGAIN`: the eventfd's counter is full.
    pub fn trigger(&self, vector: u32) -> Result<()> {
        self.irqs.trigger(vector)
    }
}

impl<D: Device> Context<D> {
    /// What other threads may use meanwhile, those of a
    /// [`thread::scope`](std::thread::scope) round [`run`](Context::run).
    pub fn guest(&self) -> Guest<'_> {
        Guest { dma: &self.dma, irqs: &self.irqs }
    }

    /// A DMA region, while it is there.
    pub fn dma_region(&self, region: RegionId) -> Option<DmaRegion> {
        self.dma.describe(region)
    }

    /// Reads guest memory from `iova` on, by messages to the client where it
    /// cannot be reached otherwise. In a method that serves a request, a client
    /// such as QEMU answers messages only after it has got its reply.
    ///
    /// # Errors
    /// As [`Guest::read_memory`], but for `EFAULT`; `ENOTCONN`: no client is
    /// there to be asked; others as the client answers.
    pub fn read_memory(&self, iova: u64, data: &mut [u8]) -> Result<()> {
        let mut rest = data;
        self.dma.for_each_piece(iova, rest.len() as u64, Prot::READ, |entry| {
            let length = usize::try_from(entry.length()).map_err(|_| Errno::EINVAL)?;
            let (part, behind) =
                std::mem::take(&mut rest).split_at_mut_checked(length).ok_or(Errno::EINVAL)?;
            rest = behind;
            let target = self.dma.range_of(entry)?;
            match target.access {
                Access::Message => self.move_by_messages(entry, Data::read(part)),
                _ => self.dma.copy_from(target.iova, part),
            }
        })
    }

    /// Writes guest memory from `iova` on, as [`read_memory`](Context::read_memory)
    /// reads it.
    ///
    /// # Errors
    /// As [`read_memory`](Context::read_memory).
    pub fn write_memory(&self, iova: u64, data: &[u8]) -> Result<()> {
        let mut rest = data;
        self.dma.for_each_piece(iova, data.len() as u64, Prot::WRITE, |entry| {
            let length = usize::try_from(entry.length()).map_err(|_| Errno::EINVAL)?;
            let (part, behind) = rest.split_at_checked(length).ok_or(Errno::EINVAL)?;
            rest = behind;
            let target = self.dma.range_of(entry)?;
            match target.access {
                Access::Message => self.move_by_messages(entry, Data::write(part)),
                _ => self.dma.copy_to(target.iova, part),
            }
        })
    }
}
