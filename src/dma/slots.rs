//! The slots that regions live in, from where other threads read them.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::chunked::Chunked;
use super::file::SharedFile;
use super::region::{Access, Attributes, Backing, DmaInfo, Prot, Snapshot};
use super::sizes::{CHUNK_SLOTS, CHUNKS};
use super::sync::{AtomicU32, AtomicU64, AtomicUsize, Mutex, OnceLock, fence};
use crate::wire::{Errno, Result};

/// The lowest handle of a slot is 2 to this.
pub(super) const HANDLE_BASE: u32 = 6;

#[cfg(test)]
thread_local! {
    /// How often this thread has looked which region is in a slot.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Room for one region. Slots are never freed while threads can look, so all
/// that they read is atomic, and the tag tells whether what was read belongs
/// together and to the region that was meant.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The region's generation, times 256, so that it fits beside a byte in an
    /// [`super::SgEntry`]; [`Slot::VACANT`] when there is no region.
    tag: AtomicU64,
    start: AtomicU64,
    /// 0 when there is no region.
    size: AtomicU64,
    vaddr: AtomicUsize,
    /// The size again if the region is mapped, else 0.
    mapped: AtomicU64,
    attributes: AtomicU32,
    /// Bits of `Prot` that the region doesn't allow.
    denied: AtomicU32,
    block: AtomicU32,
    handle: u32,
}

/// What threads don't read along with a slot.
struct Cold {
    info: UnsafeCell<DmaInfo>,
    backing: Mutex<Backing>,
}

// SAFETY: only `info` is neither atomic nor locked, and the library touches it
// through the pointer that `Slots::info` returns only: in `AddressSpace::map`,
// under the lock of all changes, before the region can be found.
unsafe impl Sync for Cold {}
// SAFETY: the pointers in `info` are plain numbers to the library; the rest is
// `Send`.
unsafe impl Send for Cold {}

impl Slot {
    /// No entry's tag: the low byte of those is clear.
    const VACANT: u64 = 1;

    pub(super) fn new(handle: u32) -> Slot {
        Slot {
            tag: AtomicU64::new(Slot::VACANT),
            start: AtomicU64::new(0),
            size: AtomicU64::new(0),
            vaddr: AtomicUsize::new(0),
            mapped: AtomicU64::new(0),
            attributes: AtomicU32::new(0),
            denied: AtomicU32::new(0),
            block: AtomicU32::new(0),
            handle,
        }
    }

    fn publish(&self, region: &Snapshot) {
        // Pairs with the fence of `is_still`: who sees one of the stores below
        // also sees that the old tag has gone.
        fence(Release);
        self.start.store(region.start, Relaxed);
        self.size.store(region.size, Relaxed);
        self.vaddr.store(region.vaddr, Relaxed);
        let is_mapped = region.attributes.access() == Access::Mmap;
        self.mapped.store(if is_mapped { region.size } else { 0 }, Relaxed);
        self.attributes.store(region.attributes.0, Relaxed);
        self.denied.store((!region.attributes.prot()).bits(), Relaxed);
        self.block.store(region.block, Relaxed);
        self.tag.store(region.tag, Release);
    }

    fn retire(&self) {
        self.tag.store(Slot::VACANT, Relaxed);
        fence(Release);
        self.size.store(0, Relaxed);
    }

    /// The region that is here now. None if there is none, or if it changed
    /// while being looked at.
    #[inline]
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        let tag = self.tag.load(Acquire);
        if tag == Slot::VACANT { None } else { self.region(tag) }
    }

    /// The region of this tag, if it is (still) here. The tag comes from an
    /// earlier look, so what is read cannot be older than it.
    #[inline]
    pub(super) fn region(&self, tag: u64) -> Option<Snapshot> {
        let region = Snapshot {
            tag,
            handle: self.handle,
            attributes: Attributes(self.attributes.load(Relaxed)),
            start: self.start.load(Relaxed),
            size: self.size.load(Relaxed),
            vaddr: self.vaddr.load(Relaxed),
            block: self.block.load(Relaxed),
        };
        self.is_still(tag).then_some(region)
    }

    /// What an entry for these bytes has to hold, if they all are in the region
    /// that is here now, which allows `prot`: tag, handle, region's start,
    /// offset. (If the region is just being removed, the tag may be that of a
    /// stale entry.)
    #[inline(always)]
    pub(super) fn covers(&self, iova: u64, length: u64, prot: Prot) -> Option<(u64, u32, u64, u64)> {
        let tag = self.tag.load(Acquire);
        let start = self.start.load(Relaxed);
        let size = self.size.load(Relaxed);
        let is_allowed = self.denied.load(Relaxed) & prot.bits() == 0;
        let offset = iova.wrapping_sub(start);
        // Length 0 wraps, and is too much for any region.
        let covers = offset < size && length.wrapping_sub(1) < size.wrapping_sub(offset);
        (covers && is_allowed && self.is_still(tag)).then_some((tag, self.handle, start, offset))
    }

    /// The address of bytes in the region of this tag, if that is (still) here,
    /// mapped, and large enough.
    #[inline(always)]
    pub(super) fn address(&self, tag: u64, offset: u64, length: u64) -> Option<usize> {
        let mapped = self.mapped.load(Relaxed);
        let vaddr = self.vaddr.load(Relaxed);
        if offset.checked_add(length)? > mapped || !self.is_still(tag) {
            return None;
        }
        // No sum wraps: the region is mapped.
        Some(vaddr.wrapping_add(offset as usize))
    }

    #[inline(always)]
    fn is_still(&self, tag: u64) -> bool {
        fence(Acquire);
        self.tag.load(Relaxed) == tag
    }

    /// Gives the region a dirty bitmap, or takes it away (0).
    pub(super) fn set_block(&self, block: u32) {
        self.block.store(block, Relaxed);
    }
}

/// All slots that ever were, by handle.
pub(super) struct Slots {
    hot: Box<[OnceLock<Box<[Slot]>>]>,
    cold: Chunked<Cold, HANDLE_BASE>,
}

impl Slots {
    pub(super) fn new() -> Slots {
        let hot = std::iter::repeat_with(OnceLock::new).take(CHUNKS).collect();
        Slots { hot, cold: Chunked::new() }
    }

    /// The slot of a handle; any number may be asked for.
    #[inline(always)]
    pub(super) fn get(&self, handle: u64) -> Option<&Slot> {
        let chunk = self.hot.get((handle / CHUNK_SLOTS as u64) as usize)?.get()?;
        chunk.get((handle % CHUNK_SLOTS as u64) as usize)
    }

    fn get_or_make(&self, handle: u32) -> Result<(&Slot, &Cold)> {
        let first = handle - handle % CHUNK_SLOTS as u32;
        let chunk = self.hot.get(first as usize / CHUNK_SLOTS).ok_or(Errno::ENOMEM)?;
        if chunk.get().is_none() {
            let mut slots = Vec::new();
            slots.try_reserve_exact(CHUNK_SLOTS).map_err(|_| Errno::ENOMEM)?;
            slots.extend((first..).take(CHUNK_SLOTS).map(Slot::new));
            // Whoever came first wins; the slots are alike.
            let _ = chunk.set(slots.into_boxed_slice());
        }
        let make =
            |_| Cold { info: UnsafeCell::new(DmaInfo::EMPTY), backing: Mutex::new(Backing::default()) };
        let cold = self.cold.get_or_make(handle, make)?;
        Ok((self.get(handle.into()).ok_or(Errno::ENOMEM)?, cold))
    }

    /// Puts a region into the vacant slot of its handle; the caller excludes
    /// other writers. `ENOMEM` if there is no memory for the slot.
    pub(super) fn publish(&self, region: &Snapshot, info: DmaInfo, backing: Backing) -> Result<&Slot> {
        let (slot, cold) = self.get_or_make(region.handle)?;
        // SAFETY: the slot is vacant, so no region's callbacks can hold the
        // pointer any more, and other writers are excluded.
        unsafe { cold.info.get().write(info) };
        *cold.backing.lock() = backing;
        slot.publish(region);
        Ok(slot)
    }

    /// Makes every entry and name of the region in a slot stale; the caller
    /// excludes other writers. What the region held is the caller's to drop.
    pub(super) fn retire(&self, handle: u32) -> Backing {
        if let Some(slot) = self.get(handle.into()) {
            slot.retire();
        }
        self.with_backing(handle, std::mem::take).unwrap_or_default()
    }

    /// Where the callbacks' information lies; see [`DmaInfo`].
    pub(super) fn info(&self, handle: u32) -> *mut DmaInfo {
        self.cold.get(handle.into()).map_or(std::ptr::null_mut(), |cold| cold.info.get())
    }

    /// The file of the region with this tag and where it starts there. The
    /// file stays open while the result lives, whatever becomes of the region.
    pub(super) fn open_file(&self, handle: u32, tag: u64) -> Option<(SharedFile, u64)> {
        let slot = self.get(handle.into())?;
        // A slot loses its tag first, then what it holds, and gains them in the
        // other order.
        self.with_backing(handle, |backing| {
            let file = backing.file.as_ref()?;
            (slot.tag.load(Relaxed) == tag).then(|| (file.clone(), backing.offset))
        })?
    }

    /// Looks at what the region in a slot holds.
    pub(super) fn with_backing<R>(&self, handle: u32, look: impl FnOnce(&mut Backing) -> R) -> Option<R> {
        self.cold.get(handle.into()).map(|cold| look(&mut cold.backing.lock()))
    }
}
