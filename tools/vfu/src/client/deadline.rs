//! How long to wait.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use crate::error::{Error, Result};

/// A point in time, or never.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No end of waiting.
    pub const NEVER: Deadline = Deadline(None);

    /// `length` from now; never, if that is beyond what the clock can say.
    pub fn after(length: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(length))
    }

    /// Whether the time has come.
    pub fn is_over(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// Waits until one of `fds` is ready, as their `revents` then say; false
    /// if the time has come first.
    pub fn wait(self, fds: &mut [PollFd<'_>]) -> Result<bool> {
        loop {
            let left = self.0.map(|at| at.saturating_duration_since(Instant::now()));
            // Time that doesn't fit the kernel's type is as good as for ever.
            let timespec = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(fds, timespec.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::local("poll", e)),
            }
        }
    }
}
