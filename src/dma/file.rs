//! Descriptors of the client's memory, shared by all regions of the process.
//!
//! A client sends a duplicate of the same few descriptors with every map. One
//! per open file description is kept, counted; the others are closed at once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{FileStat, fstat};
use parking_lot::Mutex;

use crate::memory;
use crate::wire::{Errno, Result};

/// Device and inode.
type Key = (u64, u64);

/// A kept descriptor: one open file description of the client.
struct Kept {
    fd: OwnedFd,
    users: usize,
}

/// The kept descriptors of one inode, in the order of the kernel's kcmp(2), if
/// that works. Never empty.
struct Inode {
    key: Key,
    kept: Vec<Kept>,
}

/// All of them, in the order of their keys. Holds no memory while there are none.
static FILES: Mutex<Vec<Inode>> = Mutex::new(Vec::new());

/// A use of an open file description, which is closed when its last use goes.
pub(super) struct SharedFile {
    key: Key,
    fd: RawFd,
}

impl SharedFile {
    /// Takes over a descriptor, `stat` being what fstat(2) says of it: it is
    /// kept if the process has no other of the same open file description. (It
    /// is closed on exec since it was received.)
    pub(super) fn acquire(fd: OwnedFd, stat: &FileStat) -> Result<SharedFile> {
        let key = (stat.st_dev, stat.st_ino);
        let mut files = FILES.lock();
        let inode = match files.binary_search_by_key(&key, |inode| inode.key) {
            Ok(at) => files.get_mut(at).ok_or(Errno::EINVAL)?,
            Err(at) => {
                let first = Kept::new(fd);
                let raw = first.fd.as_raw_fd();
                let mut kept = Vec::new();
                memory::push(&mut kept, first)?;
                memory::reserve(&mut files, 1)?;
                files.insert(at, Inode { key, kept });
                return Ok(SharedFile { key, fd: raw });
            }
        };
        let shared = match find(&inode.kept, &fd) {
            Ok(at) => {
                let kept = inode.kept.get_mut(at).ok_or(Errno::EINVAL)?;
                kept.users += 1;
                SharedFile { key, fd: kept.fd.as_raw_fd() }
            }
            Err(at) => {
                let new = Kept::new(fd);
                let raw = new.fd.as_raw_fd();
                memory::reserve(&mut inode.kept, 1)?;
                inode.kept.insert(at, new);
                return Ok(SharedFile { key, fd: raw });
            }
        };
        drop(files);
        drop(fd);
        Ok(shared)
    }

    /// Whether both are the same open file description.
    pub(super) fn is_same(&self, other: &SharedFile) -> bool {
        self.fd == other.fd
    }
}

impl Clone for SharedFile {
    /// Another use, beyond the life of the region.
    fn clone(&self) -> SharedFile {
        let mut files = FILES.lock();
        if let Some((inode, kept)) = self.place(&files)
            && let Some(kept) = files.get_mut(inode).and_then(|inode| inode.kept.get_mut(kept))
        {
            kept.users += 1;
        }
        SharedFile { key: self.key, fd: self.fd }
    }
}

impl SharedFile {
    /// Where it is kept; it always is.
    fn place(&self, files: &[Inode]) -> Option<(usize, usize)> {
        let at = files.binary_search_by_key(&self.key, |inode| inode.key).ok()?;
        let kept = files.get(at)?.kept.iter().position(|kept| kept.fd.as_raw_fd() == self.fd)?;
        Some((at, kept))
    }

    /// Ends this use. The descriptor, if it was the last.
    fn release(&self) -> Option<Kept> {
        let mut files = FILES.lock();
        let (at, place) = self.place(&files)?;
        let inode = files.get_mut(at)?;
        let kept = inode.kept.get_mut(place)?;
        kept.users -= 1;
        if kept.users > 0 {
            return None;
        }
        let kept = inode.kept.remove(place);
        if inode.kept.is_empty() {
            files.remove(at);
        }
        if files.is_empty() {
            *files = Vec::new();
        }
        Some(kept)
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is kept open as long as there is a use of it, as this one.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // Closed when the lock is free again.
        drop(self.release());
    }
}

impl Kept {
    /// A descriptor with one user. (It was received close-on-exec.)
    fn new(fd: OwnedFd) -> Kept {
        Kept { fd, users: 1 }
    }
}

/// Where `fd`'s open file description stands in the list, or where it belongs.
fn find(kept: &[Kept], fd: &OwnedFd) -> std::result::Result<usize, usize> {
    let mut comparable = true;
    let found = kept.binary_search_by(|kept| {
        compare(&kept.fd, fd).unwrap_or_else(|| {
            comparable = false;
            std::cmp::Ordering::Less
        })
    });
    if comparable {
        return found;
    }
    // The next best: the same inode, opened with the same flags.
    let flags = fcntl(fd, FcntlArg::F_GETFL);
    let same = |kept: &Kept| flags.is_ok() && fcntl(&kept.fd, FcntlArg::F_GETFL) == flags;
    kept.iter().position(same).ok_or(kept.len())
}

/// Compares open file descriptions, in the kernel's order; none if the kernel
/// can't tell.
fn compare(a: &OwnedFd, b: &OwnedFd) -> Option<std::cmp::Ordering> {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: getpid has no preconditions.
    let pid = unsafe { libc::getpid() };
    // SAFETY: kcmp takes five numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a.as_raw_fd(), b.as_raw_fd()) } {
        0 => Some(std::cmp::Ordering::Equal),
        1 => Some(std::cmp::Ordering::Less),
        2 => Some(std::cmp::Ordering::Greater),
        _ => None,
    }
}

/// fstat(2).
pub(super) fn stat(fd: impl AsFd) -> Result<FileStat> {
    Ok(fstat(fd)?)
}
