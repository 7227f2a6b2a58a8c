//! Copying by address, for callers that hold no entries and whose regions may be
//! removed at any time.

use std::mem::MaybeUninit;
use std::ptr;

use super::region::{Access, Prot, RegionId};
use super::sgl::{SgEntry, Translation};
use super::space::AddressSpace;
use crate::wire::{Errno, Result};

/// How many entries are looked up at a time.
const PIECES: usize = 8;

/// A region of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRegion {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do.
    pub prot: Prot,
    /// How it gets there.
    pub access: Access,
}

impl AddressSpace {
    /// Calls `each` with the entries for `length` bytes from `iova` on, in
    /// order, until it fails.
    ///
    /// # Errors
    /// As [`AddressSpace::translate`], and what `each` returns.
    pub fn for_each_piece(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        mut each: impl FnMut(&SgEntry) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            let mut entries = [MaybeUninit::new(SgEntry::ZERO); PIECES];
            let from = iova.checked_add(done).ok_or(Errno::ENOENT)?;
            let count = match self.translate(from, length - done, prot, &mut entries)? {
                Translation::Filled(count) | Translation::TooSmall(count) => count,
            };
            for entry in entries.iter().take(count) {
                // SAFETY: all of them were made with a value.
                let entry = unsafe { entry.assume_init_ref() };
                each(entry)?;
                done += entry.length();
            }
        }
        Ok(())
    }

    /// A region, while it is there.
    pub fn describe(&self, region: RegionId) -> Option<DmaRegion> {
        let found = self.slots.get(region.handle.into())?.region(region.tag)?;
        Some(DmaRegion {
            iova: found.start,
            size: found.size,
            prot: found.attributes.prot(),
            access: found.attributes.access(),
        })
    }

    /// Reads `data.len()` bytes from `iova` on. A region that another thread
    /// removes stays until it has been read.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`: as [`AddressSpace::translate`]; `EFAULT`: a region is
    /// reached by messages; `EIO`: a file cannot be read there, or has lost memory.
    pub fn copy_from(&self, iova: u64, data: &mut [u8]) -> Result<()> {
        let mut rest = data;
        self.for_each_piece(iova, rest.len() as u64, Prot::READ, |entry| {
            let length = usize::try_from(entry.length()).map_err(|_| Errno::EINVAL)?;
            let (part, behind) =
                std::mem::take(&mut rest).split_at_mut_checked(length).ok_or(Errno::EINVAL)?;
            rest = behind;
            match self.range_of(entry)?.access {
                Access::Mmap => self.with_mapped(entry, |memory| {
                    // SAFETY: the memory is as long as the entry, and so is the part.
                    unsafe { ptr::copy_nonoverlapping(memory.cast_const(), part.as_mut_ptr(), length) }
                }),
                // SAFETY: the part is as long as the entry; no mapping is used,
                // and the file stays open whatever becomes of the region.
                _ => unsafe { self.read(entry, part.as_mut_ptr()) },
            }
        })
    }

    /// Writes bytes from `iova` on and marks their pages dirty.
    ///
    /// # Errors
    /// As [`AddressSpace::copy_from`].
    pub fn copy_to(&self, iova: u64, data: &[u8]) -> Result<()> {
        let mut rest = data;
        self.for_each_piece(iova, data.len() as u64, Prot::WRITE, |entry| {
            let length = usize::try_from(entry.length()).map_err(|_| Errno::EINVAL)?;
            let (part, behind) = rest.split_at_checked(length).ok_or(Errno::EINVAL)?;
            rest = behind;
            match self.range_of(entry)?.access {
                Access::Mmap => {
                    let written = self.with_mapped(entry, |memory| {
                        // SAFETY: as in `copy_from`, the other way round.
                        unsafe { ptr::copy_nonoverlapping(part.as_ptr(), memory, length) }
                    });
                    self.mark_dirty(entry);
                    written
                }
                // SAFETY: as in `copy_from`.
                _ => unsafe { self.write(entry, part.as_ptr()) },
            }
        })
    }

    /// Gives `copy` the memory of a good entry, which stays mapped meanwhile.
    fn with_mapped(&self, entry: &SgEntry, copy: impl FnOnce(*mut u8)) -> Result<()> {
        let region = self.range_of(entry)?.region;
        let copied = self.slots.with_backing(region.handle, |backing| {
            // A region's slot loses the tag, then the mapping, the latter under
            // the lock that is held here: an entry that is good now stays good.
            let memory = backing.mapping.as_ref().and_then(|_| self.get(entry).ok());
            memory.map(|memory| copy(memory.iov_base.cast()))
        });
        copied.flatten().ok_or(Errno::EINVAL)?;
        self.check_kept(entry)
    }
}
