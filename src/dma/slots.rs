//! The slots that regions live in, from where other threads read them: a
//! generational arena, each slot of which is a seqlock with the generation as its
//! sequence number.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::bitmap::{Block, Name};
use super::chunked::Chunked;
use super::file::SharedFile;
use super::region::{Access, Attributes, Backing, DmaInfo, Prot, Snapshot};
use super::sizes::HANDLE_BASE;
use super::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Mutex, RwLock, fence};
use super::zeroed::Zeroed;
use crate::memory;
use crate::wire::{Errno, Result};

#[cfg(test)]
thread_local! {
    /// How often this thread has looked which region is in a slot.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Room for one region. Slots are never freed while threads can look (their memory
/// may go, which makes zeroes of them), so all that they read is atomic, and the
/// tag tells whether what was read belongs together and to the region that was
/// meant.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// See [`tag`]; [`Slot::VACANT`] when there is no region.
    tag: AtomicU64,
    start: AtomicU64,
    /// 0 when there is no region.
    size: AtomicU64,
    vaddr: AtomicUsize,
    /// The size again if the region is mapped, else 0.
    mapped: AtomicU64,
    attributes: AtomicU32,
    /// Bits of `Prot` that the region doesn't allow, [`Slot::LOST`] and [`Slot::TOLD`].
    denied: AtomicU32,
    handle: AtomicU32,
    /// The name of the region's dirty bitmap.
    bitmap: AtomicU64,
}

/// What tells the region of this generation from all others: seven bytes, so that
/// they fit beside a byte of something else in an [`super::SgEntry`], and a last
/// one that is not zero, so that memory that was never written to is no tag.
pub(super) const fn tag(generation: u64) -> u64 {
    generation << 8 | 0xff
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
    /// No region's tag.
    const VACANT: u64 = 0;
    /// Bits of `denied` that are none of `Prot`: memory of the region was lost, and
    /// its address space knows that.
    const LOST: u32 = 1 << 31;
    const TOLD: u32 = 1 << 30;

    pub(super) fn vacant() -> Slot {
        Slot {
            tag: AtomicU64::new(Slot::VACANT),
            start: AtomicU64::new(0),
            size: AtomicU64::new(0),
            vaddr: AtomicUsize::new(0),
            mapped: AtomicU64::new(0),
            attributes: AtomicU32::new(0),
            denied: AtomicU32::new(0),
            handle: AtomicU32::new(0),
            bitmap: AtomicU64::new(Name::NONE.0),
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
        self.handle.store(region.handle, Relaxed);
        self.set_bitmap(region.bitmap);
        self.tag.store(region.tag, Release);
    }

    fn retire(&self) {
        self.tag.store(Slot::VACANT, Relaxed);
        fence(Release);
        self.size.store(0, Relaxed);
    }

    /// Makes it as new.
    fn clear(&self) {
        self.retire();
        self.start.store(0, Relaxed);
        self.vaddr.store(0, Relaxed);
        self.mapped.store(0, Relaxed);
        self.attributes.store(0, Relaxed);
        self.denied.store(0, Relaxed);
        self.handle.store(0, Relaxed);
        self.set_bitmap(Name::NONE);
    }

    /// What follows this slot in the list of vacant ones. It takes the place of
    /// the start, which says nothing without a size.
    fn next(&self) -> u32 {
        self.start.load(Relaxed) as u32
    }

    fn set_next(&self, handle: u32) {
        self.start.store(handle.into(), Relaxed);
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
            handle: self.handle.load(Relaxed),
            attributes: Attributes(self.attributes.load(Relaxed)),
            start: self.start.load(Relaxed),
            size: self.size.load(Relaxed),
            vaddr: self.vaddr.load(Relaxed),
            bitmap: Name(self.bitmap.load(Acquire)),
        };
        self.is_still(tag).then_some(region)
    }

    /// What an entry for these bytes (at least one) has to hold, if they all are in the region
    /// that is here now, which allows `prot`: tag, handle, region's start,
    /// offset.
    #[inline(always)]
    pub(super) fn covers(&self, iova: u64, length: u64, prot: Prot) -> Option<(u64, u32, u64, u64)> {
        let tag = self.tag.load(Acquire);
        // A slot that is filled is vacant to the last: its size may be the new region's
        // and its start still the next vacant handle, at which another region may be.
        if tag == Slot::VACANT || self.denied.load(Relaxed) & prot.bits() != 0 {
            return None;
        }
        let offset = iova.wrapping_sub(self.start.load(Relaxed));
        let size = self.size.load(Relaxed);
        if offset >= size {
            return None;
        }
        // Loading this again takes less than keeping it.
        let start = self.start.load(Relaxed);
        if size.wrapping_sub(offset) < length || !self.is_still(tag) {
            return None;
        }
        // The handle never changes, but where the tag goes too.
        Some((tag, self.handle.load(Relaxed), start, offset))
    }

    /// The region that is here now and its rights, for who makes sure by other
    /// means that it is, and has been all the time: tag, handle, start, size, and
    /// whether it allows `prot`.
    #[inline(always)]
    pub(super) fn parts(&self, prot: Prot) -> (u64, u32, u64, u64, bool) {
        let is_allowed = self.denied.load(Relaxed) & prot.bits() == 0;
        let (start, size) = (self.start.load(Relaxed), self.size.load(Relaxed));
        (self.tag.load(Acquire), self.handle.load(Relaxed), start, size, is_allowed)
    }

    /// The dirty bitmap of the region of this tag, if that is (still) here and
    /// has one.
    #[inline(always)]
    pub(super) fn bitmap(&self, tag: u64) -> Option<Block<'_>> {
        let name = Name(self.bitmap.load(Acquire));
        // SAFETY: a block of this address space, all of which live as long as it,
        // and the slot with it.
        let block = unsafe { name.block() }?;
        self.is_still(tag).then_some(block)
    }

    /// The same, if these bytes are in the region, and at least one.
    #[inline(always)]
    pub(super) fn bitmap_within(&self, tag: u64, offset: u64, length: u64) -> Option<Block<'_>> {
        let last = offset.checked_add(length.checked_sub(1)?)?;
        if last >= self.size.load(Relaxed) { None } else { self.bitmap(tag) }
    }

    /// The address of bytes in the region of this tag, if that is (still) here,
    /// mapped, and large enough.
    #[inline(always)]
    pub(super) fn address(&self, tag: u64, offset: u64, length: u64) -> Option<usize> {
        if offset.checked_add(length)? > self.mapped.load(Relaxed) {
            return None;
        }
        // No sum wraps: the region is mapped.
        let address = self.vaddr.load(Relaxed).wrapping_add(offset as usize);
        self.is_still(tag).then_some(address)
    }

    /// The region has lost memory; whether that is new. For signal handlers,
    /// while the region stays.
    pub(super) fn set_lost(&self) -> bool {
        self.denied.fetch_or(Slot::LOST, AcqRel) & Slot::LOST == 0
    }

    /// Whether the region has lost memory, and this is the first time that it is
    /// asked for.
    pub(super) fn take_loss(&self) -> bool {
        let is_lost = self.denied.load(Acquire) & Slot::LOST != 0;
        is_lost && self.denied.fetch_or(Slot::TOLD, Relaxed) & Slot::TOLD == 0
    }

    /// Whether the region of this tag is here, and has lost memory.
    pub(super) fn is_lost(&self, tag: u64) -> bool {
        let is_lost = self.denied.load(Acquire) & Slot::LOST != 0;
        is_lost && self.is_still(tag)
    }

    #[inline(always)]
    fn is_still(&self, tag: u64) -> bool {
        fence(Acquire);
        self.tag.load(Relaxed) == tag
    }

    /// Gives the region a dirty bitmap, or takes it away.
    pub(super) fn set_bitmap(&self, bitmap: Name) {
        self.bitmap.store(bitmap.0, Release);
    }
}

/// All slots that ever were, by handle, in memory that is made as it is needed:
/// chunk k holds the slots whose handles have bit k as their highest.
pub(super) struct Slots {
    /// Where the slot of handle 0 would be if each chunk had all from there on;
    /// null if there is no such chunk (yet).
    chunks: [AtomicPtr<Slot>; 64],
    /// Changed as a whole only when there are no regions: then all of it goes. With
    /// the space, it goes before the slots, which handlers may look at until
    /// regions are guarded no more.
    cold: RwLock<Chunked<Cold, HANDLE_BASE>>,
    owned: Mutex<Vec<Zeroed<Slot>>>,
}

/// Which handles have no region: those from `next` on, and a list that starts
/// with `free` and goes through the slots; 0 ends it.
pub(super) struct Vacant {
    free: u32,
    next: u32,
}

impl Vacant {
    pub(super) const fn new() -> Vacant {
        Vacant { free: 0, next: 1 << HANDLE_BASE }
    }

    /// How many handles there were at a time, at the most.
    pub(super) fn peak(&self) -> u32 {
        self.next - (1 << HANDLE_BASE)
    }
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots {
            chunks: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            cold: RwLock::new(Chunked::new()),
            owned: Mutex::new(Vec::new()),
        }
    }

    /// The chunk that a handle is in.
    #[inline(always)]
    fn chunk(&self, handle: u64) -> &AtomicPtr<Slot> {
        // There is no chunk for 1, nor for 0.
        &self.chunks[(handle | 1).ilog2() as usize]
    }

    /// The slot of a handle; any number may be asked for.
    #[inline(always)]
    pub(super) fn get(&self, handle: u64) -> Option<&Slot> {
        self.with(handle, Some)
    }

    /// What `look` finds in the slot of a handle. (Takes less than a look into
    /// what `get` returns.)
    #[inline(always)]
    pub(super) fn with<'a, R>(&'a self, handle: u64, look: impl FnOnce(&'a Slot) -> Option<R>) -> Option<R> {
        let origin = self.chunk(handle).load(Acquire);
        if origin.is_null() {
            return None;
        }
        // SAFETY: the chunk has slots for all handles with this highest bit,
        // which live as long as `self`.
        look(unsafe { &*origin.wrapping_add(handle as usize) })
    }

    /// A handle that no region has, the last returned first; `ENOMEM` if all 2^32
    /// are in use. The caller excludes other writers.
    pub(super) fn take(&self, vacant: &mut Vacant) -> Result<u32> {
        if let Some(slot) = self.get(vacant.free.into()) {
            return Ok(std::mem::replace(&mut vacant.free, slot.next()));
        }
        let handle = vacant.next;
        vacant.next = handle.checked_add(1).ok_or(Errno::ENOMEM)?;
        Ok(handle)
    }

    /// Takes a handle back. The caller excludes other writers.
    pub(super) fn give_back(&self, vacant: &mut Vacant, handle: u32) {
        match self.get(handle.into()) {
            Some(slot) => slot.set_next(std::mem::replace(&mut vacant.free, handle)),
            // There was no memory for it, so it is the last one.
            None => vacant.next = handle,
        }
    }

    /// Gives all memory back to the system; there is no region, and the caller
    /// excludes other writers. Readers that are in a slot, by an entry that is
    /// stale or by a hint, see that it is vacant, as it was before.
    pub(super) fn discard(&self, vacant: &mut Vacant) {
        *vacant = Vacant::new();
        self.owned.lock().iter().for_each(|chunk| chunk.discard(Slot::clear));
        // Nobody has a way into what is not locked of it: `info` is the callbacks'
        // of a region.
        let old = std::mem::replace(&mut *self.cold.write(), Chunked::new());
        drop(old);
    }

    /// The caller excludes other writers.
    fn get_or_make(&self, handle: u32) -> Result<&Slot> {
        let chunk = self.chunk(handle.into());
        if chunk.load(Relaxed).is_null() {
            let first = 1_usize << (handle | 1).ilog2();
            let mut owned = self.owned.lock();
            memory::reserve(&mut owned, 1)?;
            // SAFETY: a vacant slot is zeroes.
            let made = unsafe { Zeroed::new(first, Slot::vacant) }?;
            chunk.store(made.as_ptr().wrapping_sub(first), Release);
            owned.push(made);
        }
        self.get(handle.into()).ok_or(Errno::ENOMEM)
    }

    /// Puts a region into the vacant slot of its handle; the caller excludes
    /// other writers. `ENOMEM` if there is no memory for the slot.
    pub(super) fn publish(&self, region: &Snapshot, info: DmaInfo, backing: Backing) -> Result<&Slot> {
        let slot = self.get_or_make(region.handle)?;
        let make =
            |_| Cold { info: UnsafeCell::new(DmaInfo::EMPTY), backing: Mutex::new(Backing::default()) };
        let all = self.cold.read();
        let cold = all.get_or_make(region.handle, make)?;
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
        let mut backing = self.with_backing(handle, std::mem::take).unwrap_or_default();
        // While the slot is nobody else's.
        backing.watched = None;
        backing
    }

    /// Where the callbacks' information lies, as long as there are regions; see
    /// [`DmaInfo`].
    pub(super) fn info(&self, handle: u32) -> *mut DmaInfo {
        self.cold.read().get(handle.into()).map_or(std::ptr::null_mut(), |cold| cold.info.get())
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
        self.cold.read().get(handle.into()).map(|cold| look(&mut cold.backing.lock()))
    }
}
