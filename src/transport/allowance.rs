//! What one client may make the library keep.
//!
//! A [`Connection`](super::Connection) has one [`Allowance`]. Whatever grows at
//! the client's word asks it first, and gives back what it took; it goes, with
//! all that was kept, when the connection goes. Where it says no, the request is
//! refused if it can be answered, else the connection is lost.
//!
//! Descriptors are the process's, too, on which all connections draw: see
//! [`descriptors`].

use std::os::fd::OwnedFd;

use crate::descriptors;
use crate::wire::limits::{MAX_MESSAGE_SIZE, SCM_MAX_FD};
use crate::wire::{Errno, Result};

/// Commands that may wait while the answer to one of ours is awaited.
const COMMANDS: usize = 4096;
/// Bytes of their payloads.
const BYTES: usize = 16 << 20;
/// Descriptors that wait with them.
const FDS: usize = 1024;

/// Bytes that wait to be sent: the largest reply, or part of one that is made as it
/// is sent, the largest command, and what can be gathered beside them.
const UNSENT: usize = 4 * MAX_MESSAGE_SIZE;

/// Descriptors that one message may have, in how many parts so ever it comes; so
/// many wait for one that is not whole.
pub const MESSAGE_FDS: usize = SCM_MAX_FD;

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

    /// The same for something that waits with these descriptors: none of the
    /// process's reserve.
    pub fn take_with(&mut self, cost: Cost, fds: &[OwnedFd]) -> bool {
        descriptors::may_wait(fds) && self.take(cost)
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, cost: Cost) {
        self.used.commands = self.used.commands.saturating_sub(cost.commands);
        self.used.bytes = self.used.bytes.saturating_sub(cost.bytes);
        self.used.fds = self.used.fds.saturating_sub(cost.fds);
    }
}

/// Whether so many bytes may wait to be sent, `more` of them new; else `ENOMEM`.
pub fn ask_unsent(waiting: usize, more: usize) -> Result<()> {
    match waiting.saturating_add(more) <= UNSENT {
        true => Ok(()),
        false => Err(Errno::ENOMEM),
    }
}

/// Closes those of `fds` that a client's unfinished business must not keep: what
/// is beyond the first `most`, and what is of the process's reserve. Whether it
/// closed any.
pub fn close_surplus(fds: &mut Vec<OwnedFd>, most: usize) -> bool {
    let before = fds.len();
    fds.truncate(most);
    descriptors::retain_waiting(fds);
    fds.len() < before
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
    fn so_much_waits_to_be_sent_and_no_more() {
        assert_eq!(ask_unsent(0, UNSENT), Ok(()));
        assert_eq!(ask_unsent(UNSENT, 0), Ok(()));
        assert_eq!(ask_unsent(UNSENT, 1), Err(Errno::ENOMEM));
        assert_eq!(ask_unsent(usize::MAX, usize::MAX), Err(Errno::ENOMEM));
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
