//! The listening socket.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::address::{Address, Identity};
use super::channel::close_gently;
use super::handed::set_nonblocking;
use super::replace::{Found, Turn};
use super::wait::Wait;
use crate::handover::{self, Descriptors, Outgoing};
use crate::memory::{self, Bytes};
use crate::process::Process;
use crate::wire::{Errno, Result};

/// What is added to a path for the socket that takes its place.
const NEW: &[u8] = b".new";

/// A listening UNIX stream socket. Dropping it removes its path, if that is still
/// the one that was bound here, and closes the connections that were not accepted
/// yet, as gently as others. In a child it only closes, and so one that was
/// [handed in](Listener::over).
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Where it was bound, by whom.
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    address: Address,
    /// What was bound; `None` if it has no path, or that was gone at once.
    bound: Option<Identity>,
    maker: Process,
}

impl Listener {
    /// The same as [`bind_replacing`](Self::bind_replacing) for whole messages, and
    /// without waiting: for [`Peer`](super::Peer)s.
    pub fn bind_control(path: &[u8]) -> Result<Listener> {
        Listener::bind_over(path, libc::SOCK_SEQPACKET, true)
    }

    /// Binds to `path`, at most 107 bytes, and listens. With `nonblocking`,
    /// accepting does not wait.
    ///
    /// The whole address is handed to the kernel, so that an empty path gives
    /// an (abstract) name of NULs.
    pub fn bind(path: &[u8], nonblocking: bool) -> Result<Listener> {
        Listener::bind_to(Address::new(path)?, libc::SOCK_STREAM, nonblocking)
    }

    fn bind_to(address: Address, kind: libc::c_int, nonblocking: bool) -> Result<Listener> {
        let socket = address.bind(kind, nonblocking)?;
        // At once: who waits for the path to appear connects as soon as it does.
        // SAFETY: no pointers.
        let listening = match unsafe { libc::listen(socket.as_raw_fd(), 0) } {
            0 => Ok(()),
            _ => Err(Errno::last()),
        };
        let found = if address.is_path() { address.find() } else { None };
        let bound = found.map(|found| found.identity);
        let place = Place { address, bound, maker: Process::current() };
        let listener = Listener { socket, place: Some(place) };
        listening?;
        Ok(listener)
    }

    /// The same; but the socket file of a process that is no more is replaced, in one
    /// step, so that there is one at any time. `EADDRINUSE` if anything else is there,
    /// or if another process is about to do the same. A path of 102 bytes at most,
    /// since there are files with longer names beside it meanwhile.
    pub fn bind_replacing(path: &[u8], nonblocking: bool) -> Result<Listener> {
        Listener::bind_over(path, libc::SOCK_STREAM, nonblocking)
    }

    fn bind_over(path: &[u8], kind: libc::c_int, nonblocking: bool) -> Result<Listener> {
        let address = Address::new(path)?;
        if !address.is_path() {
            return Listener::bind_to(address, kind, nonblocking);
        }
        let _turn = Turn::take(path)?;
        match Found::at(&address)? {
            Found::Nothing => Listener::bind_to(address, kind, nonblocking),
            Found::Stale => Listener::replace(address, Address::with_suffix(path, NEW)?, kind, nonblocking),
        }
    }

    /// Listens under another name, and moves that to where the old one is.
    fn replace(address: Address, new: Address, kind: libc::c_int, nonblocking: bool) -> Result<Listener> {
        if Found::at(&new)? == Found::Stale {
            // Of one who did not get further.
            new.unlink();
        }
        let mut listener = Listener::bind_to(new, kind, nonblocking)?;
        if let Some(place) = &mut listener.place {
            place.address.rename(&address)?;
            place.address = address;
        }
        Ok(listener)
    }

    /// Goes on with a listening UNIX stream socket that somebody else made, and may
    /// go on with, too: neither its path nor those who wait at it are touched when
    /// it goes.
    pub fn over(socket: OwnedFd) -> Listener {
        Listener { socket, place: None }
    }

    /// Goes on with one that another process has handed over, and with its path,
    /// if that is to go with it. It is this process's once [`own`](Self::own) says so.
    pub fn import(record: &handover::Listener, fds: &mut Descriptors<'_>) -> Result<Listener> {
        let socket = fds.take(record.fd)?;
        let bound = match &record.bound[..] {
            [dev, ino] if !record.path.is_empty() => Some(Identity::from_numbers(*dev, *ino)),
            _ => return Ok(Listener::over(socket)),
        };
        let address = Address::new(&record.path)?;
        Ok(Listener { socket, place: Some(Place { address, bound, maker: Process::NONE }) })
    }

    /// Writes it down, with the path that goes with it.
    pub fn export(&self, is_control: bool, out: &mut Outgoing) -> Result<()> {
        let (mut path, mut bound) = (Bytes::default(), Vec::new());
        if let Some(Place { address, bound: Some(identity), .. }) = &self.place {
            path.append(address.bytes())?;
            memory::reserve(&mut bound, 2)?;
            bound.extend(identity.numbers());
        }
        let fd = out.fd(self.socket())?;
        out.put(handover::Listener { is_control, fd, path: path.0, bound })
    }

    /// From now on it is this process's, which removes its path, and wants accepting to
    /// wait or not. The other process may have wanted it the other way.
    pub fn own(&mut self, nonblocking: bool) -> Result<()> {
        if let Some(place) = &mut self.place {
            place.maker = Process::current();
        }
        set_nonblocking(self.socket.as_fd(), nonblocking)
    }

    /// From now on another process has it, and its path.
    pub fn disown(&mut self) {
        self.place = None;
    }

    /// Gives the descriptor back to who handed it in.
    pub fn leak(self) {
        let mut listener = std::mem::ManuallyDrop::new(self);
        listener.place = None;
    }

    /// The socket.
    pub fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Waits for a client.
    pub fn wait_accept(&self) -> Wait {
        Wait::accept(self.socket())
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

impl Place {
    /// Removes the path if it is still what was bound here; whether nobody can find
    /// the socket any more, by that name or another.
    fn remove_path(&self) -> bool {
        match (self.bound, self.address.find()) {
            (Some(bound), Some(found)) if bound == found.identity => {
                self.address.unlink() && found.is_only_name
            }
            _ => false,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Without a name there are no new visitors, but for one who found it before
        // and is on the way, who has sent nothing that could lie unread. To accept
        // nobody costs as much as to make a socket.
        if let Some(place) = &self.place
            && place.maker.is_current()
            && !(place.remove_path() && self.is_unvisited())
        {
            self.close_unaccepted();
        }
    }
}
