//! Addresses of UNIX sockets, and what is in the file system there.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zerocopy::IntoBytes;

use crate::wire::{Errno, Result};

/// Of a file: which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    pub fn of(found: &libc::stat64) -> Identity {
        Identity { dev: found.st_dev, ino: found.st_ino }
    }

    /// Device and inode.
    pub fn numbers(self) -> [u64; 2] {
        [self.dev, self.ino]
    }

    pub fn from_numbers(dev: u64, ino: u64) -> Identity {
        Identity { dev, ino }
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundFile {
    pub identity: Identity,
    pub is_socket: bool,
    /// It has no other name.
    pub is_only_name: bool,
}

/// An address whose path, if it is not empty, ends in NUL.
pub struct Address(libc::sockaddr_un);

impl Address {
    /// `ENAMETOOLONG` for more than 107 bytes.
    pub fn new(path: &[u8]) -> Result<Address> {
        Address::with_suffix(path, &[])
    }

    /// The same, of both together.
    pub fn with_suffix(path: &[u8], suffix: &[u8]) -> Result<Address> {
        // SAFETY: zeros are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        // The last byte stays NUL.
        let [bytes @ .., _] = &mut address.sun_path;
        let mut room = bytes.as_mut_bytes();
        for part in [path, suffix] {
            let (to, rest) = room.split_at_mut_checked(part.len()).ok_or(Errno::ENAMETOOLONG)?;
            to.copy_from_slice(part);
            room = rest;
        }
        Ok(Address(address))
    }

    pub fn is_path(&self) -> bool {
        matches!(self.0.sun_path, [first, ..] if first != 0)
    }

    /// The path.
    pub fn bytes(&self) -> &[u8] {
        let path: &[u8] = zerocopy::IntoBytes::as_bytes(&self.0.sun_path);
        path.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The path as C has it.
    pub fn path(&self) -> *const libc::c_char {
        self.0.sun_path.as_ptr()
    }

    /// A socket of a type, bound here.
    pub fn bind(&self, kind: libc::c_int, nonblocking: bool) -> Result<OwnedFd> {
        let socket = socket(kind, nonblocking)?;
        let (address, size) = self.for_kernel();
        // SAFETY: address is a whole sockaddr_un of that size.
        match unsafe { libc::bind(socket.as_raw_fd(), address, size) } {
            0 => Ok(socket),
            _ => Err(Errno::last()),
        }
    }

    /// Connects a socket.
    pub fn connect(&self, socket: &OwnedFd) -> Result<()> {
        let (address, size) = self.for_kernel();
        // SAFETY: address is a whole sockaddr_un of that size.
        match unsafe { libc::connect(socket.as_raw_fd(), address, size) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }

    fn for_kernel(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.0).cast(), size_of_val(&self.0) as libc::socklen_t)
    }

    /// What is at the path now; `None` if nothing is, or nobody can tell.
    pub fn find(&self) -> Option<FoundFile> {
        self.look().ok().flatten()
    }

    /// What is at the path now, if anything is.
    pub fn look(&self) -> Result<Option<FoundFile>> {
        // SAFETY: zeros are a valid stat.
        let mut found: libc::stat64 = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends in NUL; found is good for writes.
        if unsafe { libc::lstat64(self.path(), &mut found) } != 0 {
            return match Errno::last() {
                Errno::ENOENT => Ok(None),
                errno => Err(errno),
            };
        }
        Ok(Some(FoundFile {
            identity: Identity::of(&found),
            is_socket: found.st_mode & libc::S_IFMT == libc::S_IFSOCK,
            is_only_name: found.st_nlink == 1,
        }))
    }

    pub fn unlink(&self) -> bool {
        // SAFETY: the path ends in NUL.
        unsafe { libc::unlink(self.path()) == 0 }
    }

    /// Moves what is here to where the other is, in its place.
    pub fn rename(&self, to: &Address) -> Result<()> {
        // SAFETY: both paths end in NUL.
        match unsafe { libc::rename(self.path(), to.path()) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Address")
    }
}

/// A UNIX socket of a type.
pub fn socket(kind: libc::c_int, nonblocking: bool) -> Result<OwnedFd> {
    let nonblock = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: no pointers.
    match unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC | nonblock, 0) } {
        // SAFETY: just made, and nobody else knows of it.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::last()),
    }
}
