//! The listening socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::channel::close_gently;
use super::process::Process;
use crate::wire::{Errno, Result};

/// A listening UNIX stream socket. Dropping it removes its path, if that is still
/// the one that was bound here, and closes the connections that were not accepted
/// yet, as gently as others. In a child it only closes.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    /// What was bound; `None` if it has no path, or that was gone at once.
    bound: Option<Identity>,
    maker: Process,
}

/// Of a file: which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    dev: libc::dev_t,
    ino: libc::ino_t,
}

/// An address whose path, if it is not empty, ends in NUL.
struct Address(libc::sockaddr_un);

impl Address {
    /// `ENAMETOOLONG` for more than 107 bytes.
    fn new(path: &[u8]) -> Result<Address> {
        // SAFETY: zeros are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if path.len() >= address.sun_path.len() {
            return Err(Errno::ENAMETOOLONG);
        }
        for (to, from) in address.sun_path.iter_mut().zip(path) {
            *to = *from as libc::c_char;
        }
        Ok(Address(address))
    }

    fn is_path(&self) -> bool {
        matches!(self.0.sun_path, [first, ..] if first != 0)
    }

    /// What is at the path now, and whether that is its only name.
    fn find(&self) -> Option<(Identity, bool)> {
        // SAFETY: zeros are a valid stat.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends in NUL; found is good for writes.
        let outcome = unsafe { libc::lstat(self.0.sun_path.as_ptr(), &mut found) };
        let identity = Identity { dev: found.st_dev, ino: found.st_ino };
        (outcome == 0).then_some((identity, found.st_nlink == 1))
    }

    fn unlink(&self) -> bool {
        // SAFETY: the path ends in NUL.
        unsafe { libc::unlink(self.0.sun_path.as_ptr()) == 0 }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Address")
    }
}

impl Listener {
    /// Binds to `path`, at most 107 bytes, and listens. With `nonblocking`,
    /// accepting does not wait.
    ///
    /// The whole address is handed to the kernel, so that an empty path gives
    /// an (abstract) name of NULs.
    pub fn bind(path: &[u8], nonblocking: bool) -> Result<Listener> {
        let address = Address::new(path)?;
        let nonblock = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | nonblock, 0) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: just made, and nobody else knows of it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = size_of_val(&address.0) as libc::socklen_t;
        // SAFETY: address is a whole sockaddr_un of that size.
        if unsafe { libc::bind(fd, (&raw const address.0).cast(), size) } < 0 {
            return Err(Errno::last());
        }
        // At once: who waits for the path to appear connects as soon as it does.
        // SAFETY: no pointers.
        let listening = match unsafe { libc::listen(fd, 0) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        };
        let found = if address.is_path() { address.find() } else { None };
        let bound = found.map(|(identity, _)| identity);
        let listener = Listener { socket, address, bound, maker: Process::current() };
        listening?;
        Ok(listener)
    }

    /// The socket.
    pub fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Accepts a client that waits; `EAGAIN` if the socket is non-blocking and
    /// none does.
    pub fn accept(&self) -> Result<OwnedFd> {
        // SAFETY: null pointers: the peer's address is not wanted.
        let fd = unsafe {
            libc::accept4(self.socket(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        match fd {
            // SAFETY: just made, and nobody else knows of it.
            0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(Errno::last()),
        }
    }

    /// Removes the path if it is still what was bound here; whether nobody can find
    /// the socket any more, by that name or another.
    fn remove_path(&self) -> bool {
        match (self.bound, self.address.find()) {
            (Some(bound), Some((found, is_only))) if bound == found => self.address.unlink() && is_only,
            _ => false,
        }
    }

    /// Whether nobody waits to be accepted.
    fn is_unvisited(&self) -> bool {
        let mut socket = libc::pollfd { fd: self.socket(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, good for reads and writes.
        unsafe { libc::poll(&mut socket, 1, 0) == 0 }
    }

    /// Closes the connections that were not accepted.
    fn close_unaccepted(&self) {
        // From now on nobody can connect, and accepting does not wait.
        // SAFETY: no pointers.
        if unsafe { libc::shutdown(self.socket(), libc::SHUT_RDWR) } == 0 {
            while let Ok(socket) = self.accept() {
                close_gently(&socket);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Without a name there are no new visitors, but for one who found it before
        // and is on the way, who has sent nothing that could lie unread. To accept
        // nobody costs as much as to make a socket.
        if self.maker.is_current() && !(self.remove_path() && self.is_unvisited()) {
            self.close_unaccepted();
        }
    }
}
