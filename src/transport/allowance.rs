//! What one client may make the library keep.
//!
//! A [`Connection`](super::Connection) has one [`Allowance`]. Whatever grows at
//! the client's word asks it first, and gives back what it took; it goes, with
//! all that was kept, when the connection goes. Where it says no, the request is
//! refused if it can be answered, else the connection is lost.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::wire::limits::SCM_MAX_FD;

/// Commands that may wait while the answer to one of ours is awaited.
const COMMANDS: usize = 4096;
/// Bytes of their payloads.
const BYTES: usize = 16 << 20;
/// Descriptors that wait with them.
const FDS: usize = 1024;

/// Descriptors that one message may have, in how many parts so ever it comes; so
/// many wait for one that is not whole.
pub const MESSAGE_FDS: usize = SCM_MAX_FD;

/// An eighth of the descriptors that the process may open, but no less and no
/// more than this many, is left to whoever does not wait: who accepts a client,
/// say.
const RESERVE: (usize, usize) = (16, 128);

/// What something that waits takes of an allowance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Commands.
    pub commands: usize,
    /// Bytes that are kept.
    pub bytes: usize,
    /// Open descriptors.
    pub fds: usize,
}

/// How much of it is used.
#[derive(Debug, Default)]
pub struct Allowance {
    used: Cost,
}

impl Allowance {
    /// Takes all of `cost`, or nothing and says so.
    pub fn take(&mut self, cost: Cost) -> bool {
        let Cost { commands, bytes, fds } = cost;
        let sum = Cost {
            commands: self.used.commands.saturating_add(commands),
            bytes: self.used.bytes.saturating_add(bytes),
            fds: self.used.fds.saturating_add(fds),
        };
        let fits = sum.commands <= COMMANDS && sum.bytes <= BYTES && sum.fds <= FDS;
        if fits {
            self.used = sum;
        }
        fits
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, cost: Cost) {
        self.used.commands = self.used.commands.saturating_sub(cost.commands);
        self.used.bytes = self.used.bytes.saturating_sub(cost.bytes);
        self.used.fds = self.used.fds.saturating_sub(cost.fds);
    }
}

/// Closes those of `fds` that a client's unfinished business must not keep: what
/// is beyond the first `most`, and what stands among the last numbers of the
/// process. (The kernel gives the lowest number that is free, so one of the last
/// says that few are left.) Whether it closed any.
pub fn close_surplus(fds: &mut Vec<OwnedFd>, most: usize) -> bool {
    let before = fds.len();
    fds.truncate(most);
    let end = first_of_the_reserve();
    fds.retain(|fd| usize::try_from(fd.as_raw_fd()).is_ok_and(|number| number < end));
    fds.len() < before
}

/// The first descriptor number that nothing which waits may have.
fn first_of_the_reserve() -> usize {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a whole rlimit to be filled in. (If it is not, there is no limit.)
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let limit = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX);
    limit.saturating_sub((limit / 8).clamp(RESERVE.0, RESERVE.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing_and_given_back() {
        let mut allowance = Allowance::default();
        let one = Cost { commands: 1, bytes: 10, fds: 2 };
        for _ in 0..FDS / 2 {
            assert!(allowance.take(one));
        }
        let used = allowance.used;
        assert!(!allowance.take(one));
        assert!(!allowance.take(Cost { fds: usize::MAX, ..one }));
        assert_eq!(allowance.used, used, "nothing was taken");
        assert!(allowance.take(Cost { fds: 0, ..one }));
        allowance.give_back(Cost { fds: 0, ..one });
        for _ in 0..FDS / 2 {
            allowance.give_back(one);
        }
        assert_eq!(allowance.used, Cost::default());
    }

    #[test]
    fn each_part_has_its_bound() {
        for most in [
            Cost { commands: COMMANDS, ..Cost::default() },
            Cost { bytes: BYTES, ..Cost::default() },
            Cost { fds: FDS, ..Cost::default() },
        ] {
            let mut allowance = Allowance::default();
            assert!(allowance.take(most));
            let Cost { commands, bytes, fds } = most;
            assert!(!allowance.take(Cost {
                commands: commands.min(1),
                bytes: bytes.min(1),
                fds: fds.min(1)
            }));
        }
    }

    #[test]
    fn what_is_beyond_the_most_is_closed() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut fds: Vec<OwnedFd> = (0..5).map(|_| file.try_clone().unwrap().into()).collect();
        assert!(!close_surplus(&mut fds, 5));
        assert!(close_surplus(&mut fds, 3));
        assert_eq!(fds.len(), 3);
        assert!(close_surplus(&mut fds, 0));
    }
}
