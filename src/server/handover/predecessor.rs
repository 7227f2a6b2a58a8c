//! What the new process knows of the device before it has it.

use std::os::fd::OwnedFd;

use crate::handover::{self, Incoming, NO_FD, Record};
use crate::irq::IrqType;
use crate::memory;
use crate::server::{Context, Device};
use crate::wire::{Errno, Result};

/// What the process that has the device says that this is.
#[derive(Debug)]
pub struct Predecessor {
    image: Incoming,
    pub device: handover::Device,
    pub regions: Vec<handover::Region>,
    pub capabilities: Vec<handover::Capability>,
    config: Vec<u8>,
    pub io_eventfds: Vec<handover::IoEventfd>,
    named: Vec<handover::NamedFd>,
}

/// A region of the predecessor's.
#[derive(Debug)]
pub struct OldRegion {
    /// Bytes.
    pub size: u64,
    /// `VFU_REGION_FLAG_*`
    pub flags: u32,
    /// What the client may map, and has mapped perhaps; a duplicate.
    pub memory: Option<OwnedFd>,
    /// Where the region starts in it, in bytes.
    pub offset: u64,
}

/// An eventfd for writes to a region.
#[derive(Debug)]
pub struct OldIoEventfd {
    /// The eventfd; a duplicate.
    pub fd: Option<OwnedFd>,
    /// Where in the region.
    pub gpa_offset: u64,
    /// Bytes.
    pub size: u32,
    /// As the predecessor gave it.
    pub flags: u32,
    /// As the predecessor gave it.
    pub datamatch: u64,
}

impl Predecessor {
    pub fn new(mut image: Incoming) -> Result<Predecessor> {
        let mut device = None;
        let (mut regions, mut capabilities, mut config) = (Vec::new(), Vec::new(), None);
        let (mut io_eventfds, mut named) = (Vec::new(), Vec::new());
        for record in image.parts()?.0 {
            match record? {
                Record::Device(record) => device = Some(record),
                Record::Region(record) => memory::push(&mut regions, record)?,
                Record::Capability(record) => memory::push(&mut capabilities, record)?,
                Record::Config(record) => config = Some(record.bytes),
                Record::IoEventfd(record) => memory::push(&mut io_eventfds, record)?,
                Record::NamedFd(record) => memory::push(&mut named, record)?,
                _ => return Err(Errno::EPROTO.because("a record that does not belong there")),
            }
        }
        let missing = || Errno::EPROTO.because("it does not say what the device is");
        let (device, config) = (device.ok_or_else(missing)?, config.ok_or_else(missing)?);
        Ok(Predecessor { image, device, regions, capabilities, config, io_eventfds, named })
    }

    pub fn duplicate(&self, name: u32) -> Result<Option<OwnedFd>> {
        if name == NO_FD {
            return Ok(None);
        }
        let fd = self.image.fd(name).ok_or(Errno::EPROTO)?;
        fd.try_clone_to_owned()
            .map(Some)
            .map_err(|error| Errno::new(error.raw_os_error().unwrap_or(libc::EMFILE)))
    }
}

impl<D: Device> Context<D> {
    fn with_predecessor<T>(&self, f: impl FnOnce(&Predecessor) -> Result<T>) -> Result<T> {
        match &self.handover.borrow().predecessor {
            Some(asked) => f(&asked.1),
            None => Err(Errno::EINVAL.because("there is no process to be taken over from (any more)")),
        }
    }

    /// A region of the process that is to be taken over from. `ENOENT` if it was not
    /// set up there.
    pub fn old_region(&self, index: u32) -> Result<OldRegion> {
        self.with_predecessor(|old| {
            let region = old.regions.iter().find(|region| region.index == index).ok_or(Errno::ENOENT)?;
            let memory = old.duplicate(region.fd)?;
            Ok(OldRegion { size: region.size, flags: region.flags, memory, offset: region.offset })
        })
    }

    /// How many interrupts of a type it has.
    pub fn old_irqs(&self, kind: IrqType) -> Result<u32> {
        self.with_predecessor(|old| old.device.irq_counts.get(kind as usize).copied().ok_or(Errno::EINVAL))
    }

    /// Its configuration space, as it was when this context was made: bytes from
    /// `offset` on. `EINVAL` beyond its end.
    pub fn old_config(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.with_predecessor(|old| {
            let end = offset.checked_add(bytes.len());
            let part = end.and_then(|end| old.config.get(offset..end));
            let beyond = || Errno::EINVAL.because("the bytes are not within configuration space");
            bytes.copy_from_slice(part.ok_or_else(beyond)?);
            Ok(())
        })
    }

    /// The n-th eventfd for writes to one of its regions. `ENOENT` if there are not so
    /// many.
    pub fn old_io_eventfd(&self, region: u32, n: usize) -> Result<OldIoEventfd> {
        self.with_predecessor(|old| {
            let entry = old.io_eventfds.iter().filter(|entry| entry.region == region).nth(n);
            let entry = entry.ok_or(Errno::ENOENT)?;
            Ok(OldIoEventfd {
                fd: old.duplicate(entry.fd)?,
                gpa_offset: entry.gpa_offset,
                size: entry.size,
                flags: entry.flags,
                datamatch: entry.datamatch,
            })
        })
    }

    /// A duplicate of a descriptor that its device has named. `ENOENT` if there is none
    /// of this name.
    pub fn old_fd(&self, name: &[u8]) -> Result<OwnedFd> {
        self.with_predecessor(|old| {
            let found = old.named.iter().find(|named| named.name == name).ok_or(Errno::ENOENT)?;
            old.duplicate(found.fd)?.ok_or(Errno::ENOENT)
        })
    }
}
