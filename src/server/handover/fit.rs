//! Whether the device of the new process is like that of the old one: all that the
//! client has been told of it, and what its state is made for.

use std::os::fd::{AsRawFd, RawFd};

use super::predecessor::Predecessor;
use crate::handover::{self, NO_FD};
use crate::memory;
use crate::server::regions;
use crate::server::{Context, Device};
use crate::wire::{Errno, Result};

impl<D: Device> Context<D> {
    /// `EINVAL` if it is not, and says in what.
    pub(super) fn check_fit(&self, old: &Predecessor) -> Result<()> {
        let differs = |is_same: bool, rule: &'static str| Errno::EINVAL.unless(is_same, rule);
        let (new, was) = (self.device_record()?, &old.device);
        differs(new.config_size == was.config_size, "configuration space is of another size there")?;
        differs(new.irq_counts == was.irq_counts, "there are other numbers of interrupts there")?;
        differs(
            new.keeps_irqs == was.keeps_irqs,
            "only one of both keeps interrupts (vfux_setup_pending_irqs)",
        )?;
        differs(new.does_dma == was.does_dma, "only one of both does DMA")?;
        differs(new.max_dma_regions >= was.max_dma_regions, "fewer DMA regions than there")?;
        differs(new.can_migrate == was.can_migrate, "only one of both can migrate")?;
        differs(new.has_own_state == was.has_own_state, "only one of both has hand-over callbacks")?;
        for index in 0..regions::COUNT as u32 {
            let was = old.regions.iter().find(|region| region.index == index);
            self.check_region(old, was, index)?;
        }
        differs(self.capability_records()? == old.capabilities, "there are other capabilities there")?;
        let mut entries = Vec::new();
        for (entry, _) in self.io_eventfd_records()? {
            memory::push(&mut entries, entry)?;
        }
        let is_same = |(new, was): (&handover::IoEventfd, &handover::IoEventfd)| {
            handover::IoEventfd { fd: NO_FD, ..new.clone() }
                == handover::IoEventfd { fd: NO_FD, ..was.clone() }
        };
        let are_same =
            entries.len() == old.io_eventfds.len() && entries.iter().zip(&old.io_eventfds).all(is_same);
        differs(are_same, "there are other ioeventfds there")
    }

    fn check_region(&self, old: &Predecessor, was: Option<&handover::Region>, index: u32) -> Result<()> {
        let differs =
            || Errno::EINVAL.because("a region is another one there, in size, flags or what may be mapped");
        let (new, was) = match (self.region_record(index)?, was) {
            (None, None) => return Ok(()),
            (Some(new), Some(was)) => (new, was),
            _ => return Err(differs()),
        };
        let (record, fd) = new;
        if (handover::Region { fd: was.fd, ..record }) != *was || fd.is_some() != (was.fd != NO_FD) {
            return Err(differs());
        }
        let Some(fd) = fd else { return Ok(()) };
        match old.duplicate(was.fd)? {
            // The client may have mapped it already.
            Some(old) if is_same_file(fd, old.as_raw_fd())? => Ok(()),
            _ => {
                Err(Errno::EINVAL.because("a region is not over the memory that the client may have mapped"))
            }
        }
    }
}

fn is_same_file(one: RawFd, other: RawFd) -> Result<bool> {
    let identity = |fd: RawFd| {
        // SAFETY: zeros are a valid stat.
        let mut found: libc::stat64 = unsafe { std::mem::zeroed() };
        // SAFETY: good for writes.
        match unsafe { libc::fstat64(fd, &mut found) } {
            0 => Ok((found.st_dev, found.st_ino)),
            _ => Err(Errno::last()),
        }
    };
    Ok(identity(one)? == identity(other)?)
}
