//! What a client learns of the device, its regions and its interrupts.

use std::os::fd::AsRawFd;

use crate::irq::IrqType;
use crate::memory;
use crate::server::regions;
use crate::server::regions::{Memory, RegionFlags};
use crate::server::{Context, Device};
use crate::transport::{Message, Reply};
use crate::wire::{
    CapHeader, DeviceFlags, DeviceInfo, Errno, IrqInfo, IrqInfoFlags, RegionInfo, RegionInfoFlags, Request,
    Result, SparseArea, SparseMmap,
};

impl<D: Device> Context<D> {
    /// `VFIO_USER_DEVICE_GET_INFO`
    pub(in crate::server) fn device_get_info(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        DeviceInfo::parse(message.payload())?;
        let size = size_of::<DeviceInfo>();
        self.make_room(reply, size)?;
        reply.put(&DeviceInfo {
            argsz: size as u32,
            flags: (DeviceFlags::RESET | DeviceFlags::PCI).bits(),
            num_regions: regions::COUNT as u32,
            num_irqs: IrqType::COUNT as u32,
        })
    }

    /// `VFIO_USER_DEVICE_GET_REGION_INFO`
    pub(in crate::server) fn device_get_region_info(
        &self,
        message: &Message,
        reply: &mut Reply,
    ) -> Result<()> {
        let (request, _) = RegionInfo::parse(message.payload())?;
        let fixed = size_of::<RegionInfo>();
        let argsz = request.argsz as usize;
        let regions = self.regions.borrow();
        let region = regions.get(request.index)?;
        // A client that takes no descriptors can't map anything.
        let mappable = region.memory.is_some() && self.client.get().max_msg_fds > 0;
        let areas: &[SparseArea] = if mappable { &region.areas } else { &[] };
        let full = match areas.len() {
            0 => fixed,
            count => fixed + size_of::<SparseMmap>() + count.saturating_mul(size_of::<SparseArea>()),
        };
        let with_areas = full > fixed && argsz >= full;

        let mut flags = RegionInfoFlags::empty();
        flags.set(RegionInfoFlags::READ, region.flags.contains(RegionFlags::READ));
        flags.set(RegionInfoFlags::WRITE, region.flags.contains(RegionFlags::WRITE));
        flags.set(RegionInfoFlags::MMAP, mappable);
        flags.set(RegionInfoFlags::CAPS, with_areas);
        self.make_room(reply, if with_areas { full } else { fixed })?;
        reply.put(&RegionInfo {
            argsz: u32::try_from(full).map_err(|_| Errno::EINVAL)?,
            flags: flags.bits(),
            index: request.index,
            cap_offset: if with_areas { fixed as u32 } else { 0 },
            size: region.size,
            offset: region.offset,
        })?;
        if with_areas {
            reply.put(&SparseMmap {
                header: CapHeader { id: CapHeader::SPARSE_MMAP, version: 1, next: 0 },
                nr_areas: u32::try_from(areas.len()).map_err(|_| Errno::EINVAL)?,
                reserved: 0,
            })?;
            for area in areas {
                reply.put(area)?;
            }
            match &region.memory {
                // The region may be set up anew before the reply is sent.
                Some(Memory::Owned(fd)) => reply.give_fd(fd.try_clone()?)?,
                Some(Memory::Borrowed(fd)) => {
                    let mut fds = Vec::new();
                    memory::push(&mut fds, fd.as_raw_fd())?;
                    reply.lend_fds(fds)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`
    pub(in crate::server) fn device_get_irq_info(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let (request, _) = IrqInfo::parse(message.payload())?;
        let size = size_of::<IrqInfo>();
        let kind = IrqType::from_index(request.index)?;
        let mut flags = IrqInfoFlags::EVENTFD;
        if kind == IrqType::Intx && self.irqs.is_latching() {
            flags |= IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
        }
        self.make_room(reply, size)?;
        reply.put(&IrqInfo {
            argsz: size as u32,
            flags: flags.bits(),
            index: request.index,
            count: self.irqs.count(kind),
        })
    }
}
