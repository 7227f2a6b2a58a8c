//! An eventfd that belongs to a client.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;

use crate::wire::{Errno, Result};

/// An eventfd to add 1 to. Closed when dropped.
#[derive(Debug)]
pub struct Eventfd {
    fd: OwnedFd,
    /// `O_NONBLOCK` is set. We must not set it: the flag is shared with the
    /// client.
    nonblocking: bool,
}

impl Eventfd {
    /// Takes a descriptor; `EINVAL` if it is no eventfd, whose mark it is to
    /// have no file type. A pipe or socket would raise `SIGPIPE` or keep the
    /// other end open.
    pub fn new(fd: OwnedFd) -> Result<Eventfd> {
        let mode = fstat(&fd)?.st_mode;
        if mode & SFlag::S_IFMT.bits() != 0 {
            return Err(Errno::EINVAL);
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        Ok(Eventfd { fd, nonblocking: flags.contains(OFlag::O_NONBLOCK) })
    }

    /// Adds 1. `EAGAIN` if the counter is full; never waits.
    pub fn trigger(&self) -> Result<()> {
        if !self.nonblocking && !self.has_room()? {
            return Err(Errno::EAGAIN);
        }
        loop {
            match write(&self.fd, &1u64.to_ne_bytes()) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn has_room(&self) -> Result<bool> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(ready) => return Ok(ready > 0),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
