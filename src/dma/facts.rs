//! What is asked of the client's files.
//!
//! The client may be the file system itself (FUSE), and never answer. So
//! nothing here waits for one: attributes are those that the kernel remembers,
//! and more is asked only of what the kernel keeps in its own memory.

use std::ffi::CStr;
use std::fmt::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::SFlag;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};

use super::mapping::host_page_size;
use crate::memory::Bytes;
use crate::wire::{Errno, Result};

/// Names an inode: device and number.
pub(super) type Key = (u64, u64);

/// What is known of a file. Only its size can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    kind: SFlag,
    /// Page size of its memory: the larger of the host's and the block size,
    /// which is the huge page size on hugetlbfs.
    pub(super) page_size: u64,
    /// In bytes, when it was asked.
    size: u64,
    /// Which device it is, if it is one.
    device: (u32, u32),
}

impl Facts {
    /// Asks the kernel which file this is, and what it knows of it.
    pub(super) fn of(fd: impl AsFd) -> Result<(Key, Facts)> {
        const NO_PATH: &CStr = c"";
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        let wanted = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_SIZE;
        let mut answer = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the descriptor is open, the path ends in NUL, and there is
        // room for the answer.
        let asked = unsafe {
            libc::statx(fd.as_fd().as_raw_fd(), NO_PATH.as_ptr(), flags, wanted, answer.as_mut_ptr())
        };
        if asked < 0 {
            return Err(Errno::last());
        }
        // SAFETY: it consists of numbers, which are all initialised.
        let answer = unsafe { answer.assume_init() };
        let device = u64::from(answer.stx_dev_major) << 32 | u64::from(answer.stx_dev_minor);
        let facts = Facts {
            kind: SFlag::from_bits_truncate(u32::from(answer.stx_mode) & SFlag::S_IFMT.bits()),
            page_size: page_size(answer.stx_blksize.into()),
            size: answer.stx_size,
            device: (answer.stx_rdev_major, answer.stx_rdev_minor),
        };
        Ok(((device, answer.stx_ino), facts))
    }

    /// Whether pread(2) and pwrite(2) do what they are called for here, at once.
    /// Character devices may wait for ever, or have no offsets.
    pub(super) fn is_for_file_io(&self) -> bool {
        matches!(self.kind, SFlag::S_IFREG | SFlag::S_IFBLK)
    }

    /// Whether the file had an end, and it was before this offset.
    pub(super) fn ends_before(&self, offset: u64) -> bool {
        self.kind == SFlag::S_IFREG && self.size < offset
    }

    /// The first offset, a multiple of `unit`, at or behind the file's end.
    pub(super) fn end(&self, unit: u64) -> Option<u64> {
        self.size.checked_next_multiple_of(unit)
    }
}

/// Whether a file's memory is of a kind that is not taken away while it is mapped.
///
/// Seals are for ever, so that what is true now stays so. They rule it out for a
/// memfd of ordinary pages, whose holes are filled when they are touched. Not so for
/// huge pages, which are taken all the same, since guests that have them often have
/// nothing else: who has the file can truncate it, if it is not sealed, or punch a
/// hole, which gives the page back to a pool that others may empty. Against that
/// there is the guard. Of devices, device DAX has memory that is always there; others
/// may let their pages come and go.
pub(super) fn is_lasting(fd: impl AsFd, facts: &Facts) -> bool {
    match facts.kind {
        SFlag::S_IFREG => {
            let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap_or(0);
            seals & libc::F_SEAL_SHRINK != 0 || is_hugetlbfs(fd)
        }
        SFlag::S_IFCHR => is_of_subsystem(facts.device, "dax"),
        _ => false,
    }
}

/// What sysfs, which is the kernel's own, says of a character device.
fn is_of_subsystem((major, minor): (u32, u32), name: &str) -> bool {
    let mut path = Bytes::default();
    if write!(path, "/sys/dev/char/{major}:{minor}/subsystem\0").is_err() {
        return false;
    }
    let mut found = [0_u8; 256];
    // SAFETY: a text that ends with a NUL, and an array good for writes of so many bytes.
    let length = unsafe { libc::readlink(path.0.as_ptr().cast(), found.as_mut_ptr().cast(), found.len()) };
    // One that fills the array may go on.
    let found =
        usize::try_from(length).ok().filter(|length| *length < found.len()).and_then(|n| found.get(..n));
    found.is_some_and(|path| path.rsplit(|byte| *byte == b'/').next() == Some(name.as_bytes()))
}

/// The larger of the host's page size and a block size. Block sizes that no
/// page could have don't count.
fn page_size(block: u64) -> u64 {
    let host = host_page_size();
    if block.is_power_of_two() { block.max(host) } else { host }
}

/// Whether a file's memory consists of huge pages only. The file systems that
/// know of seals, tmpfs and hugetlbfs, have nobody behind them who could keep
/// us waiting; so they can be asked which of the two they are.
pub(super) fn is_hugetlbfs(fd: impl AsFd) -> bool {
    fcntl(&fd, FcntlArg::F_GET_SEALS).is_ok()
        && fstatfs(fd).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC)
}

/// What of a file's memory can be replaced by itself, in bytes. Block sizes of
/// network file systems are larger than what is mapped at once; only huge pages
/// are really indivisible.
pub(super) fn indivisible(fd: impl AsFd, facts: &Facts) -> u64 {
    let host = host_page_size();
    if facts.page_size > host && is_hugetlbfs(fd) { facts.page_size } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_tells_the_subsystem_of_a_device() {
        let null = (1, 3);
        assert!(is_of_subsystem(null, "mem"));
        assert!(!is_of_subsystem(null, "dax"));
        assert!(!is_of_subsystem((4095, 3), "mem"));
    }
}
