//! Guest memory for device code: `vfu_addr_to_sgl` and most of `vfu_sgl_*`.

use std::mem::MaybeUninit;

use super::{Context, Device};
use crate::dma::{Access, AddressSpace, Prot, SgEntry, Translation};
use crate::wire::{Errno, Result};

const NO_DMA: &str = "vfu_setup_device_dma() has not been called";

impl<D: Device> Context<D> {
    /// See `vfu_addr_to_sgl`. Any thread may call this.
    pub(crate) fn addr_to_sgl(
        &self,
        addr: u64,
        len: u64,
        out: &mut [MaybeUninit<SgEntry>],
        prot: i32,
    ) -> Result<Translation> {
        Errno::EINVAL.unless(self.dma_is_ready(), NO_DMA)?;
        self.dma.translate(addr, len, rights(prot), out)
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &AddressSpace {
        &self.dma
    }

    /// See `vfux_get_dma_access`. Any thread may call this.
    pub fn dma_access(&self, addr: u64) -> Result<Access> {
        self.dma.access_at(addr).ok_or(Errno::ENOENT)
    }

    /// The short way to what [`addr_to_sgl`](Context::addr_to_sgl) does: the
    /// entry, if one is enough and its region is the one that the thread used
    /// last. `len` is not 0. None says nothing. Cannot panic, nor can the next two.
    #[inline(always)]
    pub(crate) fn recent_entry(&self, addr: u64, len: u64, prot: i32) -> Option<SgEntry> {
        // There is no such region before DMA has been set up, nor in a broken
        // context.
        self.dma.translate_recent(addr, len, rights(prot))
    }

    /// The next: the entry, if one is enough. `len` is not 0.
    #[inline(always)]
    pub(crate) fn one_entry(&self, addr: u64, len: u64, prot: i32) -> Option<SgEntry> {
        if self.is_broken() { None } else { self.dma.translate_one(addr, len, rights(prot)) }
    }

    /// The next: what one look into the table finds; how many entries were given
    /// to `put`.
    #[inline(always)]
    pub(crate) fn entries_at_once(
        &self,
        addr: u64,
        len: u64,
        prot: i32,
        max: usize,
        put: impl FnMut(usize, SgEntry),
    ) -> Option<usize> {
        if self.is_broken() || !self.dma_is_ready() {
            return None;
        }
        self.dma.translate_at_once(addr, len, rights(prot), max, put)
    }

    /// The short way to what [`sgl_get`](Context::sgl_get) does for one entry,
    /// if its region is the one that the thread used last. None says nothing.
    /// Cannot panic, nor can the next.
    #[inline(always)]
    pub fn recent_memory_of(&self, entry: &SgEntry) -> Option<libc::iovec> {
        if self.is_gettable() { self.dma.get_recent(entry) } else { None }
    }

    /// The next: whatever its region is.
    #[inline(always)]
    pub(crate) fn memory_of(&self, entry: &SgEntry) -> Option<libc::iovec> {
        if self.is_gettable() { self.dma.try_get(entry) } else { None }
    }

    /// Whether [`sgl_mark_dirty`](Context::sgl_mark_dirty) has nothing (more) to
    /// do, as far as one look tells. `entry` returns the only entry, if there is
    /// one only. Cannot panic.
    #[inline(always)]
    pub(crate) fn needs_no_marks<'a>(&self, entry: impl FnOnce() -> Option<&'a SgEntry>) -> bool {
        match self.dma.page_shift() {
            0 => true,
            page_shift => match entry() {
                // (In a broken context nothing is left to be done either way.)
                Some(entry) => self.dma.is_marked(entry, page_shift),
                None => false,
            },
        }
    }

    /// Does what [`sgl_mark_dirty`](Context::sgl_mark_dirty) does for some
    /// entries, if no report is at the same pages: else false, and they may be
    /// marked or not. Cannot panic.
    #[inline(always)]
    pub fn try_mark_dirty(&self, sgl: &[SgEntry]) -> bool {
        let page_shift = self.dma.page_shift();
        !self.is_broken() && (page_shift == 0 || sgl.iter().all(|entry| self.dma.try_mark(entry, page_shift)))
    }

    /// See `vfu_sgl_get`; `put` is given what to put where. Any thread may call
    /// this.
    pub(crate) fn sgl_get(
        &self,
        sgl: &[SgEntry],
        flags: i32,
        mut put: impl FnMut(usize, libc::iovec),
    ) -> Result<()> {
        Errno::EINVAL.unless(flags == 0, "flags is not 0")?;
        Errno::EINVAL.unless(self.dma_is_ready(), NO_DMA)?;
        if !self.is_gettable() {
            self.warn_of_unmaps();
        }
        for (number, entry) in sgl.iter().enumerate() {
            put(number, self.dma.get(entry)?);
        }
        Ok(())
    }

    /// See `vfu_sgl_put`, `vfu_sgl_mark_dirty`. Any thread may call this.
    pub(crate) fn sgl_mark_dirty(&self, sgl: &[SgEntry]) {
        for entry in sgl {
            self.dma.mark_dirty(entry);
        }
    }

    /// See `vfux_sg_is_lost`. Any thread may call this.
    pub fn sg_is_lost(&self, entry: &SgEntry) -> bool {
        self.dma.is_lost(entry)
    }

    /// See `vfu_sg_is_mappable`. Any thread may call this.
    pub(crate) fn sg_is_mappable(&self, entry: &SgEntry) -> bool {
        self.dma.is_mappable(entry)
    }
}

/// What the device wants to do, of what C calls `prot`.
#[inline(always)]
fn rights(prot: i32) -> Prot {
    Prot::from_bits_truncate(prot.cast_unsigned())
}
