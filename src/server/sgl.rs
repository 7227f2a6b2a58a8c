//! Guest memory for device code: `vfu_addr_to_sgl` and most of `vfu_sgl_*`.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use super::{Context, Device};
use crate::dma::{DmaInfo, Prot, RegionId, SgEntry, Translation};
use crate::wire::{Errno, Result};

impl<D: Device> Context<D> {
    /// See `vfu_addr_to_sgl`. Any thread may call this.
    pub fn addr_to_sgl(
        &self,
        addr: u64,
        len: u64,
        out: &mut [MaybeUninit<SgEntry>],
        prot: c_int,
    ) -> Result<Translation> {
        if !self.dma_is_ready() {
            return Err(Errno::EINVAL);
        }
        let prot = Prot::from_bits_truncate(prot.unsigned_abs());
        self.dma.translate(addr, len, prot, out)
    }

    /// What C's DMA callbacks are told of a region; good until it is removed.
    pub fn dma_info(&self, region: RegionId) -> *mut DmaInfo {
        self.dma.info(region)
    }

    /// The short way to what [`addr_to_sgl`](Context::addr_to_sgl) does: the
    /// entry, if one is enough and its region is the one that the thread used
    /// last. None says nothing. Cannot panic.
    #[inline(always)]
    pub fn recent_entry(&self, addr: u64, len: u64, prot: c_int) -> Option<SgEntry> {
        // There is no such region before DMA has been set up.
        if self.is_broken() {
            return None;
        }
        self.dma.translate_recent(addr, len, Prot::from_bits(prot.cast_unsigned())?)
    }

    /// The short way to what [`sgl_get`](Context::sgl_get) does for one entry.
    /// None says nothing. Cannot panic.
    #[inline(always)]
    pub fn recent_memory(&self, entry: &SgEntry, flags: c_int) -> Option<libc::iovec> {
        if flags != 0 || !self.is_gettable() {
            return None;
        }
        self.dma.get_recent(entry)
    }

    /// Whether [`sgl_mark_dirty`](Context::sgl_mark_dirty) has nothing to do.
    #[inline(always)]
    pub fn needs_no_marks(&self) -> bool {
        !self.is_broken() && !self.dma.is_logging()
    }

    /// See `vfu_sgl_get`; `iov` must have room for as many as there are
    /// entries. Any thread may call this.
    pub fn sgl_get(&self, sgl: &[SgEntry], iov: &mut [MaybeUninit<libc::iovec>], flags: c_int) -> Result<()> {
        if flags != 0 || self.is_broken() || !self.dma_is_ready() {
            return Err(Errno::EINVAL);
        }
        if !self.is_gettable() {
            self.warn_of_unmaps();
        }
        for (entry, iov) in sgl.iter().zip(iov) {
            iov.write(self.dma.get(entry)?);
        }
        Ok(())
    }

    /// See `vfu_sgl_put`, `vfu_sgl_mark_dirty`. Any thread may call this.
    pub fn sgl_mark_dirty(&self, sgl: &[SgEntry]) {
        for entry in sgl {
            self.dma.mark_dirty(entry);
        }
    }

    /// See `vfu_sg_is_mappable`. Any thread may call this.
    pub fn sg_is_mappable(&self, entry: &SgEntry) -> bool {
        self.dma.is_mappable(entry)
    }
}
