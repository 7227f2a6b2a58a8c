//! The system calls in which a thread waits for the client.
//!
//! A program may cancel a thread that waits here, and then unwinding passes
//! through this frame and through all above it: they have nothing to drop. That is
//! why a [`Wait`] is plain data that somebody else performs, after the connection
//! that it is about has been let go of. What it points to belongs to that
//! connection, or to who moves the bytes, and is not touched before the outcome is
//! there.

use std::ffi::{c_int, c_short, c_void};
use std::mem::needs_drop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t};

use crate::wire::{Errno, Result};

const _: () = assert!(!needs_drop::<Wait>() && !needs_drop::<Outcome>());

// The C library's, declared as functions that may unwind.
unsafe extern "C-unwind" {
    fn accept4(socket: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    fn recvmsg(socket: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t;
    fn send(socket: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
}

/// A system call that waits.
#[derive(Clone, Copy, Debug)]
pub struct Wait(Call);

#[derive(Clone, Copy, Debug)]
enum Call {
    Accept(RawFd),
    Receive { fd: RawFd, message: *mut msghdr },
    Send { fd: RawFd, bytes: *const u8, len: usize },
    Ready([pollfd; 2]),
}

/// What came of a [`Wait`]. With `EINTR`, a signal arrived.
#[derive(Debug)]
pub enum Outcome {
    /// Somebody was accepted.
    Accepted(Result<Accepted>),
    /// So many bytes were received or sent: with a signal, perhaps not all.
    Moved(Result<usize>),
    /// What each of the two sockets is ready for.
    Ready(Result<[c_short; 2]>),
}

/// A socket that nobody owns yet. It stays open if nobody does, as where the thread
/// is cancelled.
#[derive(Debug)]
pub struct Accepted(RawFd);

impl Accepted {
    /// The socket.
    pub fn into_socket(self) -> OwnedFd {
        // SAFETY: it was made by `accept4`, and there is no copy of this.
        unsafe { OwnedFd::from_raw_fd(self.0) }
    }
}

impl Wait {
    /// For somebody who connects.
    pub(super) fn accept(listener: RawFd) -> Wait {
        Wait(Call::Accept(listener))
    }

    /// For a message on a socket.
    pub(super) fn receive(fd: RawFd, message: *mut msghdr) -> Wait {
        Wait(Call::Receive { fd, message })
    }

    /// For a socket to take bytes.
    pub(super) fn send(fd: RawFd, bytes: &[u8]) -> Wait {
        Wait(Call::Send { fd, bytes: bytes.as_ptr(), len: bytes.len() })
    }

    /// For one of two sockets to be ready for what is said with it, or to lose its
    /// peer. A descriptor of -1 is none.
    pub fn ready(sockets: [(RawFd, c_short); 2]) -> Wait {
        Wait(Call::Ready(sockets.map(|(fd, events)| pollfd { fd, events, revents: 0 })))
    }

    /// Waits.
    ///
    /// # Safety
    ///
    /// Since the wait was asked for, nothing was done with the connection, and it is
    /// still there; so are the bytes that a transfer moves.
    pub unsafe fn perform(self) -> Outcome {
        let moved = match self.0 {
            Call::Accept(fd) => {
                // SAFETY: no address is wanted.
                let fd = unsafe { accept4(fd, ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC) };
                return Outcome::Accepted(if fd < 0 { Err(Errno::last()) } else { Ok(Accepted(fd)) });
            }
            Call::Ready(mut sockets) => {
                // SAFETY: two entries, good for reads and writes.
                return Outcome::Ready(match unsafe { poll(sockets.as_mut_ptr(), 2, -1) } {
                    0.. => Ok(sockets.map(|socket| socket.revents)),
                    _ => Err(Errno::last()),
                });
            }
            // SAFETY: the caller's promise.
            Call::Receive { fd, message } => unsafe { recvmsg(fd, message, libc::MSG_CMSG_CLOEXEC) },
            // SAFETY: the caller's promise.
            Call::Send { fd, bytes, len } => unsafe { send(fd, bytes.cast(), len, libc::MSG_NOSIGNAL) },
        };
        Outcome::Moved(usize::try_from(moved).map_err(|_| Errno::last()))
    }
}
