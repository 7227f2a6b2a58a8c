//! What the device is, for a process that wants to make one like it.

use std::os::fd::{AsRawFd, RawFd};

use crate::handover::{self, NO_FD, Outgoing};
use crate::irq::IrqType;
use crate::memory::{self, Bytes};
use crate::pci::{CapFlags, ConfigSpace};
use crate::server::regions::{self, Memory, Region};
use crate::server::{Context, Device};
use crate::wire::{Errno, Result};

/// An image, and the descriptors that it names.
pub type Description = (Vec<u8>, Vec<RawFd>);

impl<D: Device> Context<D> {
    /// The image of what the device is, with its descriptors.
    pub(super) fn describe(&self) -> Result<Description> {
        self.describe_with(true)
    }

    /// The same without what its client changes.
    pub(super) fn describe_set_up(&self) -> Result<Description> {
        self.describe_with(false)
    }

    fn describe_with(&self, config: bool) -> Result<Description> {
        let mut out = Outgoing::new()?;
        out.put(self.device_record()?)?;
        for index in 0..regions::COUNT as u32 {
            if let Some((mut record, fd)) = self.region_record(index)? {
                if let Some(fd) = fd {
                    record.fd = out.fd(fd)?;
                }
                out.put(record)?;
            }
        }
        for record in self.capability_records()? {
            out.put(record)?;
        }
        if config {
            self.put_config(&mut out)?;
        }
        for (mut record, fd) in self.io_eventfd_records()? {
            if let Some(fd) = fd {
                record.fd = out.fd(fd)?;
            }
            out.put(record)?;
        }
        for (name, fd) in &self.handover.borrow().named {
            let mut copy = Bytes::default();
            copy.append(name)?;
            let fd = out.fd(*fd)?;
            out.put(handover::NamedFd { fd, name: copy.0 })?;
        }
        out.finish()
    }

    pub(super) fn device_record(&self) -> Result<handover::Device> {
        let mut irq_counts = Vec::new();
        for kind in [IrqType::Intx, IrqType::Msi, IrqType::Msix, IrqType::Err, IrqType::Req] {
            memory::push(&mut irq_counts, self.irqs.count(kind))?;
        }
        Ok(handover::Device {
            config_size: self.pci.borrow().space().map_or(0, ConfigSpace::len) as u64,
            irq_counts,
            keeps_irqs: self.irqs.is_latching(),
            does_dma: self.dma_is_ready(),
            max_dma_regions: self.dma.limit(),
            can_migrate: self.device.can_migrate(),
            has_own_state: self.device.has_own_state(),
        })
    }

    /// A region that was set up, and what the client may map of it.
    pub(super) fn region_record(&self, index: u32) -> Result<Option<(handover::Region, Option<RawFd>)>> {
        let regions = self.regions.borrow();
        let Region { size, flags, areas, memory, offset, .. } = regions.get(index)?;
        if flags.is_empty() {
            return Ok(None);
        }
        let fd = memory.as_ref().map(|memory| match memory {
            Memory::Owned(fd) => fd.as_raw_fd(),
            Memory::Borrowed(fd) => fd.as_raw_fd(),
        });
        let mut bounds = Vec::new();
        memory::reserve(&mut bounds, areas.len().saturating_mul(2))?;
        bounds.extend(areas.iter().flat_map(|area| [area.offset, area.size]));
        let (size, offset, flags) = (*size, *offset, flags.bits());
        Ok(Some((handover::Region { index, size, flags, fd: NO_FD, offset, areas: bounds }, fd)))
    }

    /// The capabilities, by their place.
    pub(super) fn capability_records(&self) -> Result<Vec<handover::Capability>> {
        let pci = self.pci.borrow();
        let space = pci.space().ok_or(Errno::EINVAL)?;
        let mut records = Vec::new();
        for capability in pci.capabilities() {
            let id = match capability.flags.contains(CapFlags::EXTENDED) {
                true => space.read_u16(capability.offset)?.into(),
                false => space.read_u8(capability.offset)?.into(),
            };
            let (offset, size) = (capability.offset as u64, capability.size as u64);
            let flags = capability.flags.bits().cast_unsigned();
            memory::push(&mut records, handover::Capability { offset, size, id, flags })?;
        }
        records.sort_unstable_by_key(|record| record.offset);
        Ok(records)
    }

    pub(super) fn put_config(&self, out: &mut Outgoing) -> Result<()> {
        let pci = self.pci.borrow();
        let space = pci.space().ok_or(Errno::EINVAL)?;
        let mut bytes = Vec::new();
        memory::reserve(&mut bytes, space.len())?;
        bytes.resize(space.len(), 0);
        space.read(0, &mut bytes)?;
        out.put(handover::Config { bytes })
    }
}
