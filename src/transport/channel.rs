//! One socket of a connection with what came in on it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::control;
use super::receive::Receiver;
use crate::process::Process;

/// How much unread data is taken out of a socket before it is closed.
const DRAIN_MAX: usize = 16 << 20;

/// A connected socket, which is closed gently.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    maker: Process,
}

impl Socket {
    pub fn new(fd: OwnedFd) -> Socket {
        Socket { fd, maker: Process::current() }
    }

    /// One that another process has, still.
    pub fn elsewhere(fd: OwnedFd) -> Socket {
        Socket { fd, maker: Process::NONE }
    }

    /// From now on it is this process's.
    pub fn own(&mut self) {
        self.maker = Process::current();
    }

    /// From now on another process has it: it is only closed here.
    pub fn disown(&mut self) {
        self.maker = Process::NONE;
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Socket {
    /// In a child, the connection and what lies in it are still the parent's.
    fn drop(&mut self) {
        if self.maker.is_current() {
            close_gently(&self.fd);
        }
    }
}

/// A socket and its receiver.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    /// What came in.
    pub receiver: Receiver,
}

impl Channel {
    pub fn new(socket: Socket, receiver: Receiver) -> Channel {
        Channel { socket, receiver }
    }

    /// See [`Socket::own`].
    pub fn own(&mut self) {
        self.socket.own();
    }

    /// See [`Socket::disown`].
    pub fn disown(&mut self) {
        self.socket.disown();
    }

    pub fn socket(&self) -> RawFd {
        self.socket.fd.as_raw_fd()
    }

    /// The socket as something to borrow.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket.fd
    }
}

/// What is to be done before a socket is closed. A server that closes it while
/// something lies unread resets the peer (and QEMU then aborts), so that is taken
/// out; and nothing may come any more that nobody would take out.
pub fn close_gently(socket: &OwnedFd) {
    let socket = socket.as_raw_fd();
    // SAFETY: no pointers. A failure leaves it to what comes in the meantime.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
    control::drain(socket, DRAIN_MAX);
}
