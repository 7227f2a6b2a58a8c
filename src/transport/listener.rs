//! The listening socket.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::channel::close_gently;
use super::process::Process;
use crate::wire::{Errno, Result};

/// A listening UNIX stream socket. Dropping it closes the connections that were
/// not accepted yet, as gently as others, and removes its path, if that is still
/// the one that was bound here. In a child it only closes.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    maker: Process,
    // Held for what it does when it goes.
    _path: Option<BoundPath>,
}

#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    dev: u64,
    ino: u64,
    maker: Process,
}

impl Listener {
    /// Binds to `path`, at most 107 bytes, and listens. With `nonblocking`,
    /// accepting does not wait.
    ///
    /// The whole address is handed to the kernel, so that an empty path gives
    /// an (abstract) name of NULs.
    pub fn bind(path: &[u8], nonblocking: bool) -> Result<Listener> {
        // SAFETY: zeros are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if path.len() >= address.sun_path.len() {
            return Err(Errno::ENAMETOOLONG);
        }
        for (to, from) in address.sun_path.iter_mut().zip(path) {
            *to = *from as libc::c_char;
        }
        let nonblock = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | nonblock, 0) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: just made, and nobody else knows of it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: address is a whole sockaddr_un of that size.
        if unsafe { libc::bind(fd, (&raw const address).cast(), size) } < 0 {
            return Err(Errno::last());
        }
        // At once: who waits for the path to appear connects as soon as it does.
        // SAFETY: no pointers.
        let listening = match unsafe { libc::listen(fd, 0) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        };
        let path = (!path.is_empty()).then(|| BoundPath::new(Path::new(OsStr::from_bytes(path))));
        let listener = Listener { socket, maker: Process::current(), _path: path.flatten() };
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
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.maker.is_current() {
            return;
        }
        // From now on nobody can connect, and accepting does not wait.
        // SAFETY: no pointers.
        if unsafe { libc::shutdown(self.socket(), libc::SHUT_RDWR) } == 0 {
            while let Ok(socket) = self.accept() {
                close_gently(&socket);
            }
        }
    }
}

impl BoundPath {
    fn new(path: &Path) -> Option<BoundPath> {
        let found = std::fs::symlink_metadata(path).ok()?;
        let path = path.to_owned();
        Some(BoundPath { path, dev: found.dev(), ino: found.ino(), maker: Process::current() })
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let same = |found: std::fs::Metadata| found.dev() == self.dev && found.ino() == self.ino;
        if self.maker.is_current() && std::fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Nobody is there to be told of a failure.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
