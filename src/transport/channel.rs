//! One socket of a connection with what came in on it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::control;
use super::pool::Pool;
use super::process::Process;
use super::receive::{MayCarryFds, Receiver};
use crate::wire::Result;

/// How much unread data is taken out of a socket before it is closed.
const DRAIN_MAX: usize = 16 << 20;

/// A socket and its receiver.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// What came in.
    pub receiver: Receiver,
    maker: Process,
}

impl Channel {
    pub fn new(socket: OwnedFd, pool: &mut Pool, may_carry_fds: MayCarryFds) -> Result<Channel> {
        let receiver = Receiver::new(pool, may_carry_fds)?;
        Ok(Channel { socket, receiver, maker: Process::current() })
    }

    /// Another channel of the same process.
    pub fn beside(&self, socket: OwnedFd, pool: &mut Pool, may_carry_fds: MayCarryFds) -> Result<Channel> {
        let receiver = Receiver::new(pool, may_carry_fds)?;
        Ok(Channel { socket, receiver, maker: self.maker })
    }

    pub fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The socket as something to borrow.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Drop for Channel {
    /// In a child, the connection and what lies in it are still the parent's.
    fn drop(&mut self) {
        if self.maker.is_current() {
            close_gently(&self.socket);
        }
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
