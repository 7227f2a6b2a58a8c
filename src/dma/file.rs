//! Descriptors of the client's memory, shared by all regions of the process.
//!
//! A client sends a duplicate of the same few descriptors with every map. One
//! per open file description is kept, counted; the others are closed at once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::slice;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use nix::fcntl::{FcntlArg, fcntl};
use parking_lot::Mutex;

use super::facts::{Facts, Key};
use crate::descriptors::may_stay;
use crate::wire::{Errno, Result};
use crate::{memory, process};

/// A kept descriptor: one open file description of the client.
struct Kept {
    fd: OwnedFd,
    users: usize,
}

/// The kept descriptors of one inode, in the order of the kernel's kcmp(2), if
/// that works. Never empty.
struct Inode {
    key: Key,
    /// As of the last time that it was asked.
    facts: Facts,
    kept: Vec<Kept>,
}

/// All of them, in the order of their keys. Holds no memory while there are none.
static FILES: Mutex<Vec<Inode>> = Mutex::new(Vec::new());

/// A use of an open file description, which is closed when its last use goes.
pub(super) struct SharedFile(Name);

/// Names a kept descriptor. It keeps nothing itself.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    key: Key,
    fd: RawFd,
}

/// The kept descriptor that was used last: nearly always, the next one is of
/// the same open file description, and then the kernel is asked for no more.
#[derive(Default)]
pub(super) struct Recent(Option<Name>);

impl SharedFile {
    /// Takes over a descriptor: it is kept if the process has no other of the
    /// same open file description, and closed at once if it has. (It is closed
    /// on exec since it was received.) Says what is known of the file. `EMFILE`
    /// if to keep it would leave the process too few.
    pub(super) fn acquire(fd: OwnedFd, recent: &mut Recent) -> Result<(SharedFile, Facts)> {
        let (file, facts) = match SharedFile::acquire_again(&fd, recent) {
            Some(again) => again,
            None => return SharedFile::acquire_any(fd, recent),
        };
        drop(fd);
        Ok((file, facts))
    }

    /// Another use of the descriptor that was used last, if it is the same as
    /// this one.
    fn acquire_again(fd: &OwnedFd, recent: &Recent) -> Option<(SharedFile, Facts)> {
        let name = recent.0?;
        let mut files = FILES.lock();
        let (facts, kept) = name.find(&mut files)?;
        if !is_same(&kept.fd, fd)? {
            return None;
        }
        kept.users += 1;
        Some((SharedFile(name), facts))
    }

    fn acquire_any(fd: OwnedFd, recent: &mut Recent) -> Result<(SharedFile, Facts)> {
        let (key, facts) = Facts::of(&fd)?;
        let mut files = FILES.lock();
        let at = files.binary_search_by_key(&key, |inode| inode.key);
        let at = match at {
            Ok(at) => at,
            Err(_) if !may_stay(slice::from_ref(&fd)) => return Err(Errno::EMFILE),
            Err(at) => {
                let mut kept = Vec::new();
                memory::reserve(&mut kept, 1)?;
                // Last, since an empty list keeps its memory.
                memory::reserve(&mut files, 1)?;
                files.insert(at, Inode { key, facts, kept });
                at
            }
        };
        let inode = files.get_mut(at).ok_or(Errno::EINVAL)?;
        inode.facts = facts;
        let (kept, duplicate) = match find(&inode.kept, &fd) {
            Ok(at) => (inode.kept.get_mut(at), Some(fd)),
            // Not so for an inode that was put in just now.
            Err(_) if !inode.kept.is_empty() && !may_stay(slice::from_ref(&fd)) => return Err(Errno::EMFILE),
            Err(at) => {
                memory::reserve(&mut inode.kept, 1)?;
                inode.kept.insert(at, Kept { fd, users: 0 });
                (inode.kept.get_mut(at), None)
            }
        };
        let kept = kept.ok_or(Errno::EINVAL)?;
        kept.users += 1;
        let name = Name { key, fd: kept.fd.as_raw_fd() };
        *recent = Recent(Some(name));
        // Closed when the lock is free again.
        drop(files);
        drop(duplicate);
        Ok((SharedFile(name), facts))
    }

    /// Whether both are the same open file description.
    pub(super) fn is_same(&self, other: &SharedFile) -> bool {
        self.0 == other.0
    }

    /// Asks the kernel anew what it knows of the file.
    pub(super) fn look_again(&self) -> Result<Facts> {
        let (key, facts) = Facts::of(self)?;
        let mut files = FILES.lock();
        if let Ok(at) = files.binary_search_by_key(&key, |inode| inode.key)
            && let Some(inode) = files.get_mut(at)
        {
            inode.facts = facts;
        }
        Ok(facts)
    }
}

impl Clone for SharedFile {
    /// Another use, beyond the life of the region.
    fn clone(&self) -> SharedFile {
        if let Some((_, kept)) = self.0.find(&mut FILES.lock()) {
            kept.users += 1;
        }
        SharedFile(self.0)
    }
}

impl Name {
    /// The kept descriptor of this name, and what is known of its file.
    fn find(self, files: &mut [Inode]) -> Option<(Facts, &mut Kept)> {
        let at = files.binary_search_by_key(&self.key, |inode| inode.key).ok()?;
        let inode = files.get_mut(at)?;
        let kept = inode.kept.iter_mut().find(|kept| kept.fd.as_raw_fd() == self.fd)?;
        Some((inode.facts, kept))
    }

    /// Ends a use. The descriptor, if it was the last.
    fn release(self) -> Option<Kept> {
        let mut files = FILES.lock();
        let at = files.binary_search_by_key(&self.key, |inode| inode.key).ok()?;
        let inode = files.get_mut(at)?;
        let place = inode.kept.iter().position(|kept| kept.fd.as_raw_fd() == self.fd)?;
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
        unsafe { BorrowedFd::borrow_raw(self.0.fd) }
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // Closed when the lock is free again.
        drop(self.0.release());
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

/// Whether both are the same open file description; none if the kernel can't tell.
///
/// It is asked by `F_DUPFD_QUERY` (Linux 6.10), which looks at two pointers; kcmp(2)
/// looks for a process first, and takes a lock of it: ten times as long.
fn is_same(a: &OwnedFd, b: &OwnedFd) -> Option<bool> {
    const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
    static IS_KNOWN: AtomicBool = AtomicBool::new(true);
    if IS_KNOWN.load(Relaxed) {
        // SAFETY: fcntl takes three numbers here and touches no memory of ours.
        match unsafe { libc::fcntl(a.as_raw_fd(), F_DUPFD_QUERY, b.as_raw_fd()) } {
            0 => return Some(false),
            1 => return Some(true),
            _ if Errno::last() == Errno::EINVAL => IS_KNOWN.store(false, Relaxed),
            _ => {}
        }
    }
    compare(a, b).map(|order| order == std::cmp::Ordering::Equal)
}

/// Compares open file descriptions, in the kernel's order; none if the kernel
/// can't tell.
fn compare(a: &OwnedFd, b: &OwnedFd) -> Option<std::cmp::Ordering> {
    const KCMP_FILE: libc::c_int = 0;
    // In a child of fork(2) its own: to take the parent's descriptors for its own would
    // be to map the wrong file.
    let pid = process::id();
    // SAFETY: kcmp takes five numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a.as_raw_fd(), b.as_raw_fd()) } {
        0 => Some(std::cmp::Ordering::Equal),
        1 => Some(std::cmp::Ordering::Less),
        2 => Some(std::cmp::Ordering::Greater),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_file_descriptions_are_told_apart() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (one, other) = (open(), open());
        assert_eq!(is_same(&one, &one.try_clone().unwrap()), Some(true));
        assert_eq!(is_same(&one, &other), Some(false));
    }
}
