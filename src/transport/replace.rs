//! Taking the place of a server that is no more.
//!
//! A server that was killed leaves its socket file, which nobody can connect to,
//! nor bind to again. Who replaces such files has the turn at a path: a lock on a
//! file beside it, which goes with the turn, so that of two who start at once one
//! replaces, and the other finds that it has been.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::address::{Address, Identity, socket};
use crate::wire::{Errno, Result};

/// What is added to a path for the file that is locked.
const LOCK: &[u8] = b".lock";

/// How often the file that was locked may have been another's, who was just done.
const TRIES: usize = 8;

/// The right to replace what is at a path. Given back when dropped.
#[derive(Debug)]
pub struct Turn {
    /// The lock goes with it.
    _file: OwnedFd,
    address: Address,
}

impl Turn {
    /// `EADDRINUSE` if another process has it. Never waits.
    pub fn take(path: &[u8]) -> Result<Turn> {
        let address = Address::with_suffix(path, LOCK)?;
        for _ in 0..TRIES {
            let file = open(&address)?;
            // SAFETY: no pointers.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                return Err(match Errno::last() {
                    Errno::EAGAIN => Errno::EADDRINUSE,
                    errno => errno,
                });
            }
            // Who had it before may have removed it meanwhile.
            if address.look()?.map(|found| found.identity) == Some(identity(&file)?) {
                return Ok(Turn { _file: file, address });
            }
        }
        Err(Errno::EADDRINUSE)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // While it is locked. If that fails it stays, and does no harm.
        self.address.unlink();
    }
}

fn open(address: &Address) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the path ends in NUL.
    match unsafe { libc::open(address.path(), flags, 0o600) } {
        // SAFETY: just made, and nobody else knows of it.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::last()),
    }
}

fn identity(file: &OwnedFd) -> Result<Identity> {
    // SAFETY: zeros are a valid stat.
    let mut found: libc::stat64 = unsafe { std::mem::zeroed() };
    // SAFETY: found is good for writes.
    match unsafe { libc::fstat64(file.as_raw_fd(), &mut found) } {
        0 => Ok(Identity::of(&found)),
        _ => Err(Errno::last()),
    }
}

/// What is where a socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A socket file that nobody has the socket of any more.
    Stale,
}

impl Found {
    /// `EADDRINUSE` for anything else.
    ///
    /// The kernel is asked for the socket by an attempt to connect a socket of
    /// another type, which fails either way: for want of a socket, or of one of that
    /// type. So the server that may be there notices nothing; and one that has bound
    /// its socket and does not listen yet is there, too.
    pub fn at(address: &Address) -> Result<Found> {
        match address.look()? {
            None => return Ok(Found::Nothing),
            Some(found) if !found.is_socket => return Err(Errno::EADDRINUSE),
            Some(_) => {}
        }
        match address.connect(&socket(libc::SOCK_DGRAM, true)?) {
            Err(Errno::ECONNREFUSED) => Ok(Found::Stale),
            Err(Errno::ENOENT) => Ok(Found::Nothing),
            Ok(()) | Err(Errno::EPROTOTYPE) => Err(Errno::EADDRINUSE),
            Err(errno) => Err(errno),
        }
    }
}
