//! The process, in a program that forks.
//!
//! Sockets, eventfds and their like are shared with a child of fork(2), which may do
//! nothing to its parent's but close its own descriptors of them. So what has such
//! remembers the process that made it.

use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};

/// The process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(libc::pid_t);

impl Process {
    /// No process: whatever is of it is not this one's.
    pub const NONE: Process = Process(0);

    /// The process that this runs in.
    pub fn current() -> Process {
        Process(id())
    }

    /// Whether it is the process that this runs in.
    pub fn is_current(self) -> bool {
        self == Process::current()
    }
}

/// Where the id is kept; null before it is asked for. No lock, which a thread might
/// hold while another forks.
static KEPT: AtomicPtr<AtomicI32> = AtomicPtr::new(ptr::null_mut());

/// The id of this process, which the kernel is asked for once. It is kept where a
/// child of fork(2) finds zero.
pub fn id() -> libc::pid_t {
    let mut kept = KEPT.load(Acquire);
    if kept.is_null() {
        kept = keep();
    }
    // SAFETY: null or what `keep` has left there, which stays. It is used for this
    // only, and zero is a valid value.
    match unsafe { kept.as_ref() } {
        Some(kept) => match kept.load(Relaxed) {
            0 => {
                let id = ask();
                kept.store(id, Relaxed);
                id
            }
            id => id,
        },
        None => ask(),
    }
}

fn ask() -> libc::pid_t {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

/// No advice of madvise(2).
const NO_ADVICE: libc::c_int = -1;

/// Makes a place for the id, for good; null if the kernel has none.
#[cold]
fn keep() -> *mut AtomicI32 {
    /// The kernel does not know of such memory.
    static REFUSED: AtomicBool = AtomicBool::new(false);
    if REFUSED.load(Relaxed) {
        return ptr::null_mut();
    }
    let size = size_of::<AtomicI32>();
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let page = unsafe { libc::mmap(ptr::null_mut(), size, prot, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let made = page.cast::<AtomicI32>();
    // SAFETY: advice on memory that nobody else knows of, for children only.
    let takes = |advice| unsafe { libc::madvise(page, size, advice) } == 0;
    // Who takes one that there is not takes none: QEMU's user mode, before it knew of this one.
    let is_wiped = !takes(NO_ADVICE) && takes(libc::MADV_WIPEONFORK);
    let kept = match is_wiped {
        true => KEPT.compare_exchange(ptr::null_mut(), made, AcqRel, Acquire).err(),
        false => {
            REFUSED.store(true, Relaxed);
            Some(ptr::null_mut())
        }
    };
    match kept {
        None => made,
        Some(other) => {
            // SAFETY: the page that was made here, which nobody else has heard of.
            unsafe { libc::munmap(page, size) };
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_of_fork_knows_its_own_id() {
        let parent = Process::current();
        let is_own = || id() == ask();
        assert!(is_own() && parent.is_current());
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_right = !parent.is_current() && is_own() && is_own();
            // SAFETY: it ends this process at once.
            unsafe { libc::_exit(i32::from(!is_right)) }
        }
        let mut status = -1;
        // SAFETY: `status` is there to be written to.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(is_own() && parent.is_current());
    }
}
