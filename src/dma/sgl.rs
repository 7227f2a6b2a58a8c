//! Scatter-gather entries: the 40 opaque bytes that C code holds.
//!
//! An entry names its region's slot and the generation that the slot had (it is a
//! generational index), so that one that outlived its region, or was never filled
//! in, is found out.

use std::ffi::c_void;
use std::fmt;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::guard;
use super::region::{Access, Prot, RegionId, Snapshot};
use super::slots::Slot;
use super::space::AddressSpace;
use crate::wire::{Errno, Result};

/// `dma_sg_t`. Any bytes are a value; whether it is good is seen when used.
///
/// C code keeps entries wherever it likes, at odd addresses, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed)]
pub struct SgEntry {
    /// First address of the region.
    iova: u64,
    /// The slot's handle, below 2^32 and never 0.
    region: u64,
    length: u64,
    /// From the region's start.
    offset: u64,
    /// Lowest byte (in memory the first, on every machine): writeable. The
    /// other seven: the generation.
    tail: u64,
}

const _: () = assert!(
    size_of::<SgEntry>() == 40
        && offset_of!(SgEntry, region) == 8
        && offset_of!(SgEntry, length) == 16
        && offset_of!(SgEntry, offset) == 24
        && offset_of!(SgEntry, tail) == 32
);

impl fmt::Display for SgEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SgEntry { iova, length, offset, .. } = *self;
        write!(f, "{length:#x} bytes at {offset:#x} of the region at {iova:#x}")
    }
}

impl SgEntry {
    /// What memory that was never filled in may hold.
    pub const ZERO: SgEntry = SgEntry { iova: 0, region: 0, length: 0, offset: 0, tail: 0 };

    /// An entry for these bytes, if they all are in the region that is in this
    /// slot, which allows `prot`.
    #[inline(always)]
    fn new(slot: &Slot, iova: u64, length: u64, prot: Prot) -> Option<SgEntry> {
        let (tag, handle, start, offset) = slot.covers(iova, length, prot)?;
        Some(SgEntry::made(tag, handle, start, offset, length, prot))
    }

    #[inline(always)]
    fn made(tag: u64, handle: u32, start: u64, offset: u64, length: u64, prot: Prot) -> SgEntry {
        let writeable = u64::from(prot.bits() >> 1);
        let tail = tag.wrapping_sub(0xff).wrapping_add(writeable);
        SgEntry { iova: start, region: handle.into(), length, offset, tail: tail.to_le() }
    }

    /// Where its bytes are, if the region in this slot is the one it is of, and
    /// mapped.
    #[inline(always)]
    fn get_from(&self, slot: &Slot) -> Option<libc::iovec> {
        let address = slot.address(self.tag(), self.offset, self.length)?;
        Some(libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut::<c_void>(address),
            iov_len: self.length as usize,
        })
    }

    /// Whether it was made for writing.
    #[inline]
    pub fn is_writeable(&self) -> bool {
        u64::from_le(self.tail) & 0xff != 0
    }

    /// Bytes.
    #[inline]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Distance from the region's start, in bytes.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The first and the last page, from the region's start; of an entry that
    /// is good and not empty.
    #[inline(always)]
    fn pages(&self, page_shift: u32) -> (u64, u64) {
        let last = self.offset.wrapping_add(self.length).wrapping_sub(1);
        // (The shift is below 64: so no panic.)
        (self.offset >> (page_shift % 64), last >> (page_shift % 64))
    }

    #[inline]
    fn tag(&self) -> u64 {
        u64::from_le(self.tail) | 0xff
    }
}

const STALE: &str = "vfu_addr_to_sgl() has not filled the entry in, or its region has gone";

/// What [`AddressSpace::translate`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// This many entries were filled in.
    Filled(usize),
    /// There was no room for so many entries; those that fit are filled in.
    TooSmall(usize),
}

/// What a good entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgRange {
    /// Its region.
    pub region: RegionId,
    /// How the device gets there.
    pub access: Access,
    /// What it may do there.
    pub prot: Prot,
    /// First address, in the client's space.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

impl AddressSpace {
    /// Splits `length` bytes from `iova` on into entries, one per region, in
    /// order, and gives them to `put` with their numbers, `max` at the most; again
    /// from the first on if regions come or go meanwhile.
    /// `WRITE` in `prot` makes them writeable. Length 0 needs none.
    ///
    /// # Errors
    /// `ENOENT`: an address is in no region. `EACCES`: a region of an entry that
    /// fits doesn't allow `prot`.
    #[inline(always)]
    pub fn translate_with(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        max: usize,
        mut put: impl FnMut(usize, SgEntry),
    ) -> Result<Translation> {
        let one = || self.translate_recent(iova, length, prot);
        if max > 0
            && length > 0
            && let Some(entry) = one().or_else(|| self.translate_one(iova, length, prot))
        {
            put(0, entry);
            return Ok(Translation::Filled(1));
        }
        self.index.read(|| self.walk(iova, length, prot, max, &mut put))
    }

    /// The entry for these bytes, if they all are in the region that this
    /// thread used last, which allows `prot`. The short way to what
    /// [`AddressSpace::translate_with`] finds. At least one byte. Cannot panic.
    #[inline(always)]
    pub fn translate_recent(&self, iova: u64, length: u64, prot: Prot) -> Option<SgEntry> {
        // SAFETY: lanes are only set to slots of this space, which go when it
        // goes.
        SgEntry::new(unsafe { self.hints.lane()?.get() }, iova, length, prot)
    }

    /// The entry for these bytes, if they all are in one region, which allows
    /// `prot`, and is the next hint. At least one byte. Cannot panic.
    #[inline(always)]
    pub fn translate_one(&self, iova: u64, length: u64, prot: Prot) -> Option<SgEntry> {
        let slot = self.index.up_to(iova)?;
        let entry = SgEntry::new(slot, iova, length, prot)?;
        if let Some(lane) = self.hints.lane() {
            lane.set(slot);
        }
        Some(entry)
    }

    /// What [`AddressSpace::translate_with`] finds with one look: how many entries
    /// were filled in. None says nothing. Cannot panic.
    #[inline(always)]
    pub fn translate_at_once(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        max: usize,
        mut put: impl FnMut(usize, SgEntry),
    ) -> Option<usize> {
        match self.index.try_read(|| self.walk(iova, length, prot, max, &mut put))? {
            Ok(Translation::Filled(count)) => Some(count),
            _ => None,
        }
    }

    /// As [`AddressSpace::translate_with`], into memory that need not be
    /// initialised.
    pub fn translate(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        out: &mut [MaybeUninit<SgEntry>],
    ) -> Result<Translation> {
        self.translate_with(iova, length, prot, out.len(), |number, entry| {
            if let Some(place) = out.get_mut(number) {
                place.write(entry);
            }
        })
    }

    /// Goes from region to region; for [`Index::read`](super::index::Index::read).
    #[inline(always)]
    pub(super) fn walk(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        max: usize,
        put: &mut impl FnMut(usize, SgEntry),
    ) -> Result<Translation> {
        let Some(mut more) = length.checked_sub(1) else { return Ok(Translation::Filled(0)) };
        iova.checked_add(more).ok_or(Errno::ENOENT)?;
        let mut regions = self.index.cursor(iova).ok_or(Errno::ENOENT)?;
        let (mut from, mut count) = (iova, 0_usize);
        loop {
            let slot = regions.slot().ok_or(Errno::ENOENT)?;
            let (tag, handle, start, size, is_allowed) = slot.parts(prot);
            let offset = from.wrapping_sub(start);
            if offset >= size {
                return Err(Errno::ENOENT);
            }
            let room = size.wrapping_sub(offset);
            let length = if more < room { more.wrapping_add(1) } else { room };
            if count < max {
                if !is_allowed {
                    return Err(Errno::EACCES);
                }
                put(count, SgEntry::made(tag, handle, start, offset, length, prot));
            }
            count = count.wrapping_add(1);
            if more < room {
                break;
            }
            // More bytes than there is room for, so no sum wraps.
            (from, more) = (from.wrapping_add(room), more.wrapping_sub(room));
            regions.advance().ok_or(Errno::ENOENT)?;
        }
        Ok(if count <= max { Translation::Filled(count) } else { Translation::TooSmall(count) })
    }

    /// The region of an entry, if the entry is good.
    #[inline]
    fn resolve(&self, entry: &SgEntry) -> Option<Snapshot> {
        let region = self.slots.get(entry.region)?.region(entry.tag())?;
        let room = region.size.checked_sub(entry.offset)?;
        (entry.length <= room).then_some(region)
    }

    /// What an entry stands for. `EINVAL` if it was never filled in, or its
    /// region is gone.
    pub fn range_of(&self, entry: &SgEntry) -> Result<SgRange> {
        let region = self.resolve(entry).ok_or_else(|| Errno::EINVAL.because(STALE))?;
        Ok(SgRange {
            region: region.id(),
            access: region.attributes.access(),
            prot: region.attributes.prot(),
            iova: region.start.wrapping_add(entry.offset),
            length: entry.length,
        })
    }

    /// Where an entry is in this process's memory; good until its region is
    /// removed.
    ///
    /// # Errors
    /// `EINVAL` as [`AddressSpace::range_of`]; `EFAULT` if the region isn't
    /// mapped.
    #[inline]
    pub fn get(&self, entry: &SgEntry) -> Result<libc::iovec> {
        match self.try_get(entry) {
            Some(found) => Ok(found),
            // Not mapped, or not good.
            None if self.resolve(entry).is_some() => Err(Errno::EFAULT.because("the region is not mapped")),
            None => Err(Errno::EINVAL.because(STALE)),
        }
    }

    /// What [`AddressSpace::get`] returns if the entry is of the region that this
    /// thread used last, as it mostly is: the entry has only just been written
    /// then, and to look for its slot would have to wait for that. Cannot panic.
    #[inline(always)]
    pub fn get_recent(&self, entry: &SgEntry) -> Option<libc::iovec> {
        // SAFETY: as in `translate_recent`.
        entry.get_from(unsafe { self.hints.lane()?.get() })
    }

    /// What [`AddressSpace::get`] returns, if that is no error. Cannot panic.
    #[inline(always)]
    pub fn try_get(&self, entry: &SgEntry) -> Option<libc::iovec> {
        self.slots.with(entry.region, |slot| entry.get_from(slot))
    }

    /// How the device reaches the memory around an address, if there is any.
    pub fn access_at(&self, iova: u64) -> Option<Access> {
        let region = self.index.read(|| self.index.up_to(iova)?.snapshot())?;
        region.offset_of(iova).map(|_| region.attributes.access())
    }

    /// Whether an entry can be used with [`AddressSpace::get`].
    pub fn is_mappable(&self, entry: &SgEntry) -> bool {
        self.resolve(entry).is_some_and(|region| region.attributes.access() == Access::Mmap)
    }

    /// Marks the pages of an entry dirty, if dirty pages are logged and the
    /// entry is writeable and good.
    #[inline]
    pub fn mark_dirty(&self, entry: &SgEntry) {
        let page_shift = self.dirty.page_shift();
        if page_shift != 0 && !self.try_mark(entry, page_shift) {
            self.mark(entry, page_shift);
        }
    }

    /// Whether [`AddressSpace::mark_dirty`] has nothing (more) to do while this
    /// is [`AddressSpace::page_shift`], as far as one look tells. Cannot panic.
    #[inline(always)]
    pub fn is_marked(&self, entry: &SgEntry, page_shift: u32) -> bool {
        if !entry.is_writeable() {
            return true;
        }
        let (page, last) = entry.pages(page_shift);
        if last != page {
            return false;
        }
        let bitmap = self.slots.with(entry.region, |slot| slot.bitmap(entry.tag()));
        bitmap.is_some_and(|bitmap| self.dirty.is_set(bitmap, page))
    }

    /// The short way of [`AddressSpace::mark_dirty`] while this, not 0, is
    /// [`AddressSpace::page_shift`]: whether that was all, or false if it takes a
    /// lock, or the entry is not good. Cannot panic.
    #[inline(always)]
    pub fn try_mark(&self, entry: &SgEntry, page_shift: u32) -> bool {
        if !entry.is_writeable() {
            return true;
        }
        let found =
            self.slots.with(entry.region, |slot| slot.bitmap_within(entry.tag(), entry.offset, entry.length));
        let (page, last) = entry.pages(page_shift);
        found.is_some_and(|bitmap| self.dirty.try_set(bitmap, page, last))
    }

    #[inline(never)]
    fn mark(&self, entry: &SgEntry, page_shift: u32) {
        let Some(region) = self.resolve(entry) else { return };
        let Some(bitmap) = self.bitmap(&region) else { return };
        if entry.length > 0 {
            let (page, last) = entry.pages(page_shift);
            self.dirty.set(bitmap, page, last);
        }
    }

    /// Reads the bytes of an entry without a message.
    ///
    /// # Errors
    /// `EINVAL` as [`AddressSpace::range_of`]; `EFAULT` if the region is reached
    /// by messages; `EIO` if its file can't be read there, or has lost memory.
    ///
    /// # Safety
    /// `data` is good for writing `entry.length()` bytes, and the region is not
    /// removed meanwhile.
    pub unsafe fn read(&self, entry: &SgEntry, data: *mut u8) -> Result<()> {
        let region = self.resolve(entry).ok_or_else(|| Errno::EINVAL.because(STALE))?;
        match region.attributes.access() {
            Access::Message => Err(Errno::EFAULT),
            Access::Mmap => {
                let from = self.get(entry)?;
                // SAFETY: `from` lies in the region's mapping, which stays by
                // this function's contract, as `data` is good for as much. The
                // device may hand us a buffer in the region itself, hence no
                // assumption that they don't overlap.
                unsafe { ptr::copy(from.iov_base.cast_const().cast(), data, from.iov_len) };
                self.check_kept(entry)
            }
            Access::FileIo => self.transfer(&region, entry, |file, done, left, offset| {
                // SAFETY: `done + left` is the entry's length, for which `data`
                // is good.
                unsafe { libc::pread64(file, data.add(done).cast(), left, offset) }
            }),
        }
    }

    /// Writes the bytes of an entry without a message, then marks its pages
    /// dirty. Whether the entry is writeable is the caller's to check.
    ///
    /// # Errors
    /// As [`AddressSpace::read`].
    ///
    /// # Safety
    /// `data` is good for reading `entry.length()` bytes, and the region is not
    /// removed meanwhile.
    pub unsafe fn write(&self, entry: &SgEntry, data: *const u8) -> Result<()> {
        let region = self.resolve(entry).ok_or(Errno::EINVAL)?;
        let result = match region.attributes.access() {
            Access::Message => return Err(Errno::EFAULT),
            Access::Mmap => {
                let to = self.get(entry)?;
                // SAFETY: as in `read`, the other way round.
                unsafe { ptr::copy(data, to.iov_base.cast(), to.iov_len) };
                self.check_kept(entry)
            }
            Access::FileIo => self.transfer(&region, entry, |file, done, left, offset| {
                // SAFETY: as in `read`.
                unsafe { libc::pwrite64(file, data.add(done).cast(), left, offset) }
            }),
        };
        // Not before, or a report in between would lose the pages. After a
        // failure some of them may have been written.
        self.mark_dirty(entry);
        result
    }

    /// Whether the region of an entry is there and has lost memory that was mapped:
    /// some of what is read there is zeroes, and of what is written lost.
    pub fn is_lost(&self, entry: &SgEntry) -> bool {
        let lost = self.slots.with(entry.region, |slot| slot.is_lost(entry.tag()).then_some(()));
        lost.is_some()
    }

    /// After an access to an entry's memory.
    #[inline(always)]
    pub(super) fn check_kept(&self, entry: &SgEntry) -> Result<()> {
        let is_kept = !guard::is_on() || !self.is_lost(entry);
        Errno::EIO.unless(is_kept, "the client has taken its memory away")
    }

    /// Calls `step` with a descriptor, bytes done, bytes left and file offset
    /// until all is done.
    fn transfer(
        &self,
        region: &Snapshot,
        entry: &SgEntry,
        step: impl Fn(libc::c_int, usize, usize, i64) -> isize,
    ) -> Result<()> {
        let (file, start) =
            self.slots.open_file(region.handle, region.tag).ok_or_else(|| Errno::EINVAL.because(STALE))?;
        let start = start.checked_add(entry.offset).ok_or(Errno::EIO)?;
        let length = usize::try_from(entry.length).map_err(|_| Errno::EIO)?;
        let mut done = 0;
        while done < length {
            let offset = start.checked_add(done as u64).and_then(|offset| i64::try_from(offset).ok());
            let moved = step(file.as_fd().as_raw_fd(), done, length - done, offset.ok_or(Errno::EIO)?);
            match usize::try_from(moved) {
                Ok(0) => return Err(Errno::EIO.because("the client's file is too short")),
                Ok(moved) => done += moved,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(Errno::EIO.because("the client's file cannot be read or written")),
            }
        }
        Ok(())
    }
}
