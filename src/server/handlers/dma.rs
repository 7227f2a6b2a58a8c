//! Mapping and unmapping the client's memory.

use std::sync::atomic::Ordering;

use crate::dma::{Access, DmaRegion, Loss, MapRequest, Prot, RegionId};
use crate::server::log::log;
use crate::server::{Context, Device};
use crate::transport::{Message, Reply};
use crate::wire::{Bitmap, DmaMap, DmaMapFlags, DmaUnmap, Errno, Request, Result, take};

/// Says why there is no room in the address space, where that has not been said.
fn with_map_rule(errno: Errno) -> Errno {
    errno.because(match (errno.take_rule(), errno) {
        (Some(rule), _) => rule,
        (None, Errno::EMFILE) => "the process has few descriptors left",
        (None, Errno::ENOMEM) => "there is no memory for it",
        (None, _) => "the system refuses to map it",
    })
}

impl<D: Device> Context<D> {
    /// Whether the device does DMA at all.
    pub(in crate::server) fn dma_is_ready(&self) -> bool {
        self.dma_ready.load(Ordering::Acquire)
    }

    /// `VFIO_USER_DMA_MAP`. Without DMA it succeeds and does nothing.
    pub(in crate::server) fn dma_map(&self, message: &mut Message) -> Result<()> {
        if !self.dma_is_ready() {
            self.memory_disregarded.set(true);
            return Ok(());
        }
        let (request, _) = DmaMap::parse(message.payload())?;
        request.check_fds(message.fds.len())?;
        let flags = request.flags();
        let file = message.fds.drain(..).next();
        let access = match file {
            None => Access::Message,
            Some(_) if flags.contains(DmaMapFlags::FILE_IO) => Access::FileIo,
            Some(_) => Access::Mmap,
        };
        let mut prot = Prot::empty();
        prot.set(Prot::READ, flags.contains(DmaMapFlags::READ));
        prot.set(Prot::WRITE, flags.contains(DmaMapFlags::WRITE));
        let DmaMap { addr: iova, size, offset, .. } = request;
        log!(self, LOG_DEBUG, "DMA map of {size:#x} bytes at {iova:#x}, {access:?}");
        let mapped =
            self.dma.map(MapRequest { iova, size, prot, access, file, offset }).map_err(with_map_rule)?;
        if let Some(beyond) = mapped.beyond_file {
            log!(
                self,
                LOG_WARNING,
                "DMA region at {iova:#x}: its last {beyond:#x} bytes are beyond the end of the file and are not shared"
            );
        }
        if access == Access::Message && prot.contains(Prot::WRITE) {
            self.warn_of_messages(iova, size);
        }
        self.watch_losses();
        if mapped.fresh
            && let Err(errno) = self.device.dma_register(self, mapped.region)
        {
            self.dma.remove(mapped.region);
            return Err(errno.because("the device refuses the region"));
        }
        self.probe_dma_mapped(&DmaRegion { iova, size, prot, access });
        Ok(())
    }

    /// `VFIO_USER_DMA_UNMAP`. Without DMA it succeeds and does nothing.
    pub(in crate::server) fn dma_unmap(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        if !self.dma_is_ready() {
            return self.unmap_nothing(message.payload(), reply);
        }
        let (request, rest) = DmaUnmap::parse(message.payload())?;
        let DmaUnmap { flags, addr, size, .. } = request;
        log!(self, LOG_DEBUG, "DMA unmap of {size:#x} bytes at {addr:#x}, flags {flags}");
        if request.with_bitmap() {
            let (bitmap, _) = take::<Bitmap>(rest)?;
            return self.unmap_with_bitmap(&request, &bitmap, reply);
        }
        if request.is_all() {
            self.remove_dma_regions(0, u64::MAX);
        } else {
            self.unmap_range(addr, size)?;
        }
        self.make_room(reply, size_of::<DmaUnmap>())?;
        reply.put(&request)
    }

    /// Repeats the request, or what there is of it.
    fn unmap_nothing(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        let mut echo = [0; size_of::<DmaUnmap>()];
        echo.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
        self.make_room(reply, echo.len())?;
        reply.put_bytes(&echo)
    }

    /// Removes all regions in a range that cuts through none, in ascending
    /// order. Clients have to unmap what they mapped, but behind a guest's
    /// IOMMU some unmap large ranges instead, as Linux' own VFIO allows.
    fn unmap_range(&self, addr: u64, size: u64) -> Result<()> {
        if let Some(region) = self.dma.find_exact(addr, size) {
            self.remove_dma_region(region);
            return Ok(());
        }
        // In a range that is empty, or wraps, there is no region.
        let last = size.checked_sub(1).and_then(|more| addr.checked_add(more)).ok_or(Errno::ENOENT);
        last.and_then(|last| self.dma.check_uncut(addr, last)).map_err(|errno| match errno {
            Errno::ENOENT => errno.because("no region is there"),
            _ => errno.because("it cuts through a region"),
        })?;
        self.remove_dma_regions(addr, last?);
        Ok(())
    }

    fn unmap_with_bitmap(&self, request: &DmaUnmap, bitmap: &Bitmap, reply: &mut Reply) -> Result<()> {
        // Looked for first, so that no bit is cleared for nothing.
        let region = self.find_dma_region(request.addr, request.size)?;
        bitmap.check_range(request.size)?;
        let size = usize::try_from(bitmap.size).map_err(|_| Errno::EINVAL)?;
        self.make_room(reply, DmaUnmap::WITH_BITMAP.saturating_add(size))?;
        reply.put(request)?;
        reply.put(bitmap)?;
        self.dma.report(request.addr, request.size, bitmap.pgsize, reply.space(size)?)?;
        self.remove_dma_region(region);
        Ok(())
    }

    fn find_dma_region(&self, iova: u64, size: u64) -> Result<RegionId> {
        let found = self.dma.find_exact(iova, size);
        found.ok_or_else(|| Errno::ENOENT.because("no region is exactly that"))
    }

    /// Removes every region that lies between two addresses (both included), in
    /// ascending order.
    pub(in crate::server) fn remove_dma_regions(&self, first: u64, last: u64) {
        // Looked for anew each time: nothing is assumed of what callbacks do.
        while let Some(region) = self.dma.first_within(first, last) {
            self.remove_dma_region(region);
        }
    }

    /// Tells the device of the regions that have lost memory since it was told
    /// last.
    #[inline(always)]
    pub(in crate::server) fn tell_losses(&self) {
        if self.dma.has_losses() {
            self.tell_all_losses();
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_all_losses(&self) {
        let mut losses = [Loss::NONE; 16];
        loop {
            let count = self.dma.take_losses(&mut losses);
            for Loss { region, iova, offset } in losses.iter().take(count) {
                log!(
                    self,
                    LOG_ERR,
                    "DMA region at {iova:#x}: the client has taken memory away, seen first at its byte \
                     {offset:#x}; zeroes are there now, which are not shared"
                );
                self.device.dma_lost(self, *region, *offset);
            }
            if count < losses.len() {
                break;
            }
        }
    }

    /// Tells the device that a region goes, while the region can still be
    /// used, then removes it.
    pub(in crate::server) fn remove_dma_region(&self, region: RegionId) {
        self.tell_losses();
        self.device.dma_unregister(self, region);
        if let Some(region) = self.dma.describe(region) {
            self.probe_dma_unmapped(&region);
        }
        self.dma.remove(region);
    }
}
