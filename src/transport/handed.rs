//! Sockets that somebody else made and handed to us.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::Listener;
use crate::wire::{Errno, Result};

/// A UNIX socket that was handed in.
#[derive(Debug)]
pub enum Handed {
    /// It listens.
    Listener(Listener),
    /// It is connected to a client.
    Client(OwnedFd),
}

impl Handed {
    /// Looks what a descriptor is, and makes it fit for use here: it does not survive
    /// `exec`, and accepting waits or does not, as is wanted. (That is common to all
    /// who have the socket.)
    ///
    /// `EBADF` and `ENOTSOCK` for what is no socket, `ENOTSUP` for one of another kind,
    /// `ENOTCONN` if it neither listens nor is connected. If it fails, the descriptor
    /// is the caller's as before.
    ///
    /// # Safety
    ///
    /// `fd` is no descriptor that somebody else closes, if this succeeds.
    pub unsafe fn new(fd: RawFd, nonblocking: bool) -> Result<Handed> {
        // SAFETY: the caller's promise.
        unsafe { Handed::of_type(fd, libc::SOCK_STREAM, nonblocking) }
    }

    /// The same for whole messages, and without waiting: for [`Peer`](super::Peer)s.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new).
    pub unsafe fn control(fd: RawFd) -> Result<Handed> {
        // SAFETY: the caller's promise.
        unsafe { Handed::of_type(fd, libc::SOCK_SEQPACKET, true) }
    }

    /// # Safety
    ///
    /// As for [`new`](Self::new).
    unsafe fn of_type(fd: RawFd, kind: c_int, nonblocking: bool) -> Result<Handed> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        let is_known = option(fd, libc::SO_DOMAIN)? == libc::AF_UNIX && option(fd, libc::SO_TYPE)? == kind;
        Errno::ENOTSUP.unless(is_known, "it is no UNIX socket, or one of another type")?;
        let listens = option(fd, libc::SO_ACCEPTCONN)? != 0;
        if !listens {
            check_connected(fd)?;
        }
        // SAFETY: it is open, as the calls above have shown; only used in here.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        set_nonblocking(borrowed, listens && nonblocking)?;
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the caller's promise.
        let socket = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        Ok(match listens {
            true => Handed::Listener(Listener::over(socket)),
            false => Handed::Client(socket),
        })
    }
}

/// Whether calls on a socket wait. A connected socket that is to be waited at is one that
/// waits.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> Result<()> {
    let before = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if before.contains(OFlag::O_NONBLOCK) != nonblocking {
        let mut flags = before;
        flags.set(OFlag::O_NONBLOCK, nonblocking);
        fcntl(fd, FcntlArg::F_SETFL(flags))?;
    }
    Ok(())
}

fn check_connected(fd: RawFd) -> Result<()> {
    // SAFETY: zeros are a valid sockaddr_un.
    let mut peer: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: good for writes of that size.
    match unsafe { libc::getpeername(fd, (&raw mut peer).cast(), &mut size) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// A number that a socket says of itself.
fn option(fd: RawFd, name: c_int) -> Result<c_int> {
    let mut value: c_int = 0;
    let mut size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: good for writes of that size.
    match unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut size)
    } {
        0 => Ok(value),
        _ => Err(Errno::last()),
    }
}
