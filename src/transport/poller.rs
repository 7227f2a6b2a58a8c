//! The descriptor that a caller may poll.
//!
//! An epoll descriptor, which is itself readable when one of the sockets is
//! ready, or when the eventfd says that something was left behind which no
//! socket tells of: messages that were received and not executed, a lost
//! connection that no call has reported.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollOp};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::process::Process;
use crate::wire::{Errno, Result};

/// What makes the descriptor readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// A socket, and whether room to write is meant instead of something to
    /// read.
    pub socket: Option<(RawFd, bool)>,
    /// A second socket, that something may come on, and whether room to write is
    /// meant, too.
    pub twin: Option<(RawFd, bool)>,
    /// It is readable in any case.
    pub left_behind: bool,
}

/// The descriptor, and what it is set to. Setting it to what it is set to
/// already costs nothing.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    event: EventFd,
    set: Interest,
    /// See [`Poller::watch_also`].
    watches_also: bool,
    maker: Process,
}

impl Poller {
    /// A descriptor that is not readable.
    pub fn new() -> Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Poller { epoll, event, set: Interest::default(), watches_also: false, maker: Process::current() })
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Whether it is readable when this socket is, and only then.
    #[inline(always)]
    pub fn is_set_to_read(&self, socket: RawFd) -> bool {
        self.set.socket == Some((socket, false)) && self.set.twin.is_none() && !self.set.left_behind
    }

    /// Makes it readable for `interest`. The socket it was set to before, if
    /// it is another one, must still be open.
    ///
    /// If the kernel has no memory to watch the socket, the descriptor is
    /// readable until it has: whoever polls comes back and tries again.
    pub fn set(&mut self, interest: Interest) -> Result<()> {
        let watched = self.watch(interest);
        let left_behind = interest.left_behind || watched.is_err();
        if left_behind != self.set.left_behind {
            match left_behind {
                true => self.event.write(1).map(drop)?,
                false => self.event.read().map(drop)?,
            }
            self.set.left_behind = left_behind;
        }
        watched
    }

    /// From now on it is readable, too, when this descriptor is, whatever the
    /// interest. For one descriptor only; what comes after the first time costs
    /// nothing.
    pub fn watch_also(&mut self, fd: RawFd) -> Result<()> {
        if !self.watches_also {
            self.control(EpollOp::EpollCtlAdd, fd, EpollFlags::EPOLLIN)?;
            self.watches_also = true;
        }
        Ok(())
    }

    fn watch(&mut self, interest: Interest) -> Result<()> {
        if interest.socket != self.set.socket {
            let flags = |write| if write { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            let old = self.set.socket.take();
            self.replace(old.map(|(fd, _)| fd), interest.socket.map(|(fd, write)| (fd, flags(write))))?;
            self.set.socket = interest.socket;
        }
        if interest.twin != self.set.twin {
            let flags =
                |write| EpollFlags::EPOLLIN | if write { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let old = self.set.twin.take();
            self.replace(old.map(|(fd, _)| fd), interest.twin.map(|(fd, write)| (fd, flags(write))))?;
            self.set.twin = interest.twin;
        }
        Ok(())
    }

    /// Watches one socket instead of another.
    fn replace(&self, old: Option<RawFd>, new: Option<(RawFd, EpollFlags)>) -> Result<()> {
        match (old, new) {
            (Some(old), Some((fd, flags))) if old == fd => self.control(EpollOp::EpollCtlMod, fd, flags),
            (old, new) => {
                if let Some(fd) = old {
                    self.forget(fd);
                }
                new.map_or(Ok(()), |(fd, flags)| self.control(EpollOp::EpollCtlAdd, fd, flags))
            }
        }
    }

    /// The sockets are about to be closed.
    pub fn forget_sockets(&mut self) {
        let sockets = [self.set.socket.take(), self.set.twin.take()];
        for (fd, _) in sockets.into_iter().flatten() {
            self.forget(fd);
        }
    }

    fn forget(&self, fd: RawFd) {
        // What a child takes out of the set, its parent does not hear of any more.
        if !self.maker.is_current() {
            return;
        }
        // SAFETY: the descriptor is open, or epoll refuses it, which is all the
        // same here; it is only used for this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = self.epoll.delete(fd);
    }

    fn control(&self, op: EpollOp, fd: RawFd, flags: EpollFlags) -> Result<()> {
        let mut event = libc::epoll_event { events: flags.bits() as u32, u64: 1 };
        // SAFETY: event is valid for the call; a descriptor that is not open
        // is refused by the kernel.
        let done = unsafe { libc::epoll_ctl(self.epoll.0.as_fd().as_raw_fd(), op as i32, fd, &mut event) };
        if done < 0 { Err(Errno::last()) } else { Ok(()) }
    }
}
