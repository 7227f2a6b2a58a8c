//! Descriptors, of which a process can open so many and no more.
//!
//! What a client sends and the library keeps must not be the last of them: other
//! clients could not be accepted then, and the device could open nothing. What waits
//! (for the rest of its message, for an answer) leaves the whole reserve; what stays,
//! as memory or as an eventfd, leaves half of it, so that a client which makes much
//! wait does not keep those of others from being served. The kernel gives the lowest
//! number that is free, so it is told by its number that few are left.

use std::os::fd::{AsRawFd, OwnedFd};

/// The reserve: an eighth of the descriptors that the process may open, but no less
/// and no more than this many.
const RESERVE: (usize, usize) = (16, 128);

/// Whether these may wait in the process.
pub fn may_wait(fds: &[OwnedFd]) -> bool {
    fds.is_empty() || {
        let end = Reserve::now().whole();
        fds.iter().all(|fd| is_below(fd, end))
    }
}

/// Whether these may stay in the process.
pub fn may_stay(fds: &[OwnedFd]) -> bool {
    fds.is_empty() || {
        let end = Reserve::now().half();
        fds.iter().all(|fd| is_below(fd, end))
    }
}

/// Closes those that may not wait.
pub fn retain_waiting(fds: &mut Vec<OwnedFd>) {
    let end = Reserve::now().whole();
    fds.retain(|fd| is_below(fd, end));
}

fn is_below(fd: &OwnedFd, end: usize) -> bool {
    usize::try_from(fd.as_raw_fd()).is_ok_and(|number| number < end)
}

/// The last descriptors that the process can open.
#[derive(Clone, Copy, Debug)]
struct Reserve {
    limit: usize,
    size: usize,
}

impl Reserve {
    /// By the process's limit, which may change at any time.
    fn now() -> Reserve {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a whole rlimit to be filled in. (If it is not, there is no limit.)
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        Reserve::of(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Reserve {
        Reserve { limit, size: (limit / 8).clamp(RESERVE.0, RESERVE.1) }
    }

    /// Its first number.
    fn whole(self) -> usize {
        self.limit.saturating_sub(self.size)
    }

    /// The first number of its second half.
    fn half(self) -> usize {
        self.limit.saturating_sub(self.size / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_limit_some_are_left() {
        for (limit, whole, half) in
            [(0, 0, 0), (16, 0, 8), (64, 48, 56), (1024, 896, 960), (20000, 19872, 19936)]
        {
            let reserve = Reserve::of(limit);
            assert_eq!((reserve.whole(), reserve.half()), (whole, half));
        }
        assert_eq!(Reserve::of(usize::MAX).whole(), usize::MAX - RESERVE.1);
    }

    #[test]
    fn low_numbers_may_wait_and_stay() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut fds: Vec<OwnedFd> = vec![file.into()];
        assert!(may_wait(&fds) && may_stay(&fds) && may_wait(&[]) && may_stay(&[]));
        retain_waiting(&mut fds);
        assert_eq!(fds.len(), 1);
    }
}
