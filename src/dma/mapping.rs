//! Mapping the client's files into the process.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::facts::{Facts, indivisible};
use super::file::SharedFile;
use super::region::Prot;
use crate::wire::{Errno, Result};

/// The host's page size in bytes.
pub(super) fn host_page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Mapped memory of this process; unmapped on drop.
pub(super) struct Mapping {
    base: *mut c_void,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; only its
// address is read through a shared reference.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// mmap(2) at an address of the kernel's choice. (By the name under which 32-bit
    /// C libraries take 64-bit offsets.)
    fn new(
        length: usize,
        prot: libc::c_int,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: i64,
    ) -> Result<Mapping> {
        // SAFETY: without MAP_FIXED no existing mapping is touched.
        let base = unsafe { libc::mmap64(ptr::null_mut(), length, prot, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Mapping { base, length })
    }

    /// Zeroed memory that takes room only where it is written.
    pub(super) fn zeroed(length: usize) -> Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = Mapping::new(length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)?;
        // A huge page for every written bit would be far too much. Kernels
        // without huge pages refuse, rightly.
        // SAFETY: advice on memory that nobody else knows of; it changes no
        // contents.
        let _ = unsafe { libc::madvise(mapping.base, length, libc::MADV_NOHUGEPAGE) };
        Ok(mapping)
    }

    /// Gives the memory back to the system, and keeps its address. Private
    /// anonymous memory reads as zero from then on.
    ///
    /// # Safety
    /// Zero is a value of what is there, to all who look.
    pub(super) unsafe fn discard(&self) -> Result<()> {
        // SAFETY: the range is the mapping's; the rest is the caller's to see to.
        let advised = unsafe { libc::madvise(self.base, self.length, libc::MADV_DONTNEED) };
        if advised < 0 { Err(Errno::last()) } else { Ok(()) }
    }

    pub(super) fn base(&self) -> *mut c_void {
        self.base
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Puts zeroed anonymous memory over everything from byte `from` on.
    fn cover(&self, from: usize, prot: libc::c_int) -> Result<()> {
        let length = self.length.checked_sub(from).ok_or(Errno::EINVAL)?;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: from + length is the end of this mapping, which was made for
        // a region that nobody has been told of yet.
        let address = unsafe { libc::mmap(self.base.byte_add(from), length, prot, flags, -1, 0) };
        if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; its user promised that nothing in it is
        // used any more when it dropped it.
        unsafe { libc::munmap(self.base, self.length) };
    }
}

/// A mapped region.
pub(super) struct MappedRegion {
    pub(super) mapping: Mapping,
    /// Address of the region's first byte.
    pub(super) vaddr: usize,
    /// Bytes beyond the end of the file, if there are any whole pages of such.
    pub(super) beyond_file: Option<u64>,
}

/// Maps `size` bytes of a file from `offset` on, whatever the page size. Whole
/// pages beyond the end of a regular file would kill the process when touched,
/// so they are covered with zeroed memory.
pub(super) fn map_file(
    file: &SharedFile,
    facts: &Facts,
    offset: u64,
    size: u64,
    prot: Prot,
) -> Result<MappedRegion> {
    let page_size = facts.page_size;
    let delta = offset & (page_size - 1);
    let base_offset = offset - delta;
    let end = offset.checked_add(size).ok_or(Errno::EINVAL)?;
    let length = end.checked_next_multiple_of(page_size).ok_or(Errno::EINVAL)? - base_offset;
    let length = usize::try_from(length).map_err(|_| Errno::ENOMEM)?;
    let file_offset = i64::try_from(base_offset).map_err(|_| Errno::EINVAL)?;
    // The values of Prot are those of PROT_READ and PROT_WRITE.
    let prot = prot.bits().cast_signed();
    let mapping = Mapping::new(length, prot, libc::MAP_SHARED, file.as_fd().as_raw_fd(), file_offset)?;
    let mut beyond_file = None;
    if let Some(covered) = end_of_file(file, facts, end)? {
        let from = covered.saturating_sub(base_offset);
        mapping.cover(usize::try_from(from).map_err(|_| Errno::EINVAL)?, prot)?;
        beyond_file = Some(end - covered.max(offset));
    }
    // SAFETY: advice on our own mapping; it only keeps it out of core dumps.
    let _ = unsafe { libc::madvise(mapping.base(), length, libc::MADV_DONTDUMP) };
    let delta = usize::try_from(delta).map_err(|_| Errno::EINVAL)?;
    let vaddr = (mapping.base() as usize).checked_add(delta).ok_or(Errno::EINVAL)?;
    Ok(MappedRegion { mapping, vaddr, beyond_file })
}

/// Where the first whole page beyond the end of a regular file starts, if that
/// is before `end`. To be called after mmap(2): hugetlbfs grows the file then.
///
/// A size that was large enough is believed: a file that shrinks while regions
/// of it are mapped takes their memory away, too.
fn end_of_file(file: &SharedFile, before: &Facts, end: u64) -> Result<Option<u64>> {
    if !before.ends_before(end) {
        return Ok(None);
    }
    let now = file.look_again()?;
    if !now.ends_before(end) {
        return Ok(None);
    }
    let first = now.end(indivisible(file, &now)).ok_or(Errno::EINVAL)?;
    Ok((first < end).then_some(first))
}
