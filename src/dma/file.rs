//! Descriptors of the client's memory, shared by all regions of the process.
//!
//! A client sends a duplicate of the same few descriptors with every map. One
//! per open file description is kept, counted; the others are closed at once.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{FileStat, fstat};
use parking_lot::Mutex;

use crate::wire::Result;

/// Device and inode.
type Key = (u64, u64);

/// A kept descriptor.
struct Kept {
    file: Arc<OpenFile>,
    users: usize,
}

/// All kept descriptors. Those of one inode are in the order of the kernel's
/// kcmp(2), if that works. Holds no memory while there are none.
static FILES: Mutex<BTreeMap<Key, Vec<Kept>>> = Mutex::new(BTreeMap::new());

/// One open file description of the client.
pub(super) struct OpenFile {
    fd: OwnedFd,
    key: Key,
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A use of an open file description, which is closed when its last use goes.
pub(super) struct SharedFile(Arc<OpenFile>);

impl SharedFile {
    /// Takes over a descriptor, `stat` being what fstat(2) says of it: it is
    /// kept if the process has no other of the same open file description. (It
    /// is closed on exec since it was received.)
    pub(super) fn acquire(fd: OwnedFd, stat: &FileStat) -> Result<SharedFile> {
        let key = (stat.st_dev, stat.st_ino);
        let mut files = FILES.lock();
        let kept = files.entry(key).or_default();
        let place = match find(kept, &fd) {
            Ok(place) => place,
            Err(place) => {
                let file = Arc::new(OpenFile { fd, key });
                kept.insert(place, Kept { file: Arc::clone(&file), users: 1 });
                return Ok(SharedFile(file));
            }
        };
        let shared = kept.get_mut(place).map(|kept| {
            kept.users += 1;
            SharedFile(Arc::clone(&kept.file))
        });
        drop(files);
        drop(fd);
        shared.ok_or(crate::wire::Errno::EINVAL)
    }

    /// The description, to be used beyond the life of the region.
    pub(super) fn open_file(&self) -> Arc<OpenFile> {
        Arc::clone(&self.0)
    }

    /// Whether both are the same open file description.
    pub(super) fn is_same(&self, other: &SharedFile) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        let mut files = FILES.lock();
        let Some(kept) = files.get_mut(&self.0.key) else { return };
        let Some(place) = kept.iter().position(|kept| Arc::ptr_eq(&kept.file, &self.0)) else { return };
        let Some(mine) = kept.get_mut(place) else { return };
        mine.users -= 1;
        if mine.users == 0 {
            // Not the last reference: `self` has one, and closes it below,
            // after the lock has gone.
            kept.remove(place);
            if kept.is_empty() {
                files.remove(&self.0.key);
            }
        }
    }
}

/// Where `fd`'s open file description stands in the list, or where it belongs.
fn find(kept: &[Kept], fd: &OwnedFd) -> std::result::Result<usize, usize> {
    let mut comparable = true;
    let found = kept.binary_search_by(|kept| {
        compare(&kept.file.fd, fd).unwrap_or_else(|| {
            comparable = false;
            std::cmp::Ordering::Less
        })
    });
    if comparable {
        return found;
    }
    // The next best: the same inode, opened with the same flags.
    let flags = fcntl(fd, FcntlArg::F_GETFL);
    let same = |kept: &Kept| flags.is_ok() && fcntl(&kept.file.fd, FcntlArg::F_GETFL) == flags;
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
