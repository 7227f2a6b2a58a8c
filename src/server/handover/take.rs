//! The process that is to have the device: asks for it, and goes on with it.

use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::predecessor::Predecessor;
use crate::handover::{Kind, Message};
use crate::memory;
use crate::server::log::log;
use crate::server::{Context, Device};
use crate::transport::{Handed, Peer};
use crate::wire::{Errno, Result};

impl<D: Device> Context<D> {
    /// Makes a context for a device that another process has, which is asked at the
    /// socket at `path` what it is. Waits for the answer, `timeout` at the most. The
    /// device is set up like that one then, and [`take_over`](Self::take_over) does the
    /// rest.
    ///
    /// # Errors
    /// `ETIMEDOUT`; `ECONNRESET`: that process has gone; `EPROTO`: it is none of these,
    /// `EPROTONOSUPPORT`: one of another version; `EPERM`: not ours to have; others as connect(2).
    pub fn create_taking_over(
        path: &Path,
        nonblocking: bool,
        timeout: Duration,
        device: D,
    ) -> Result<Box<Context<D>>> {
        let peer = Peer::connect(path.as_os_str().as_bytes())?;
        Context::ask_predecessor(peer, nonblocking, timeout, device)
    }

    /// The same over a connected UNIX socket of type `SOCK_SEQPACKET`.
    ///
    /// # Safety
    ///
    /// Nobody else closes the descriptor if this succeeds, or fails with anything but
    /// `EBADF`, `ENOTSOCK`, `ENOTSUP`, `ENOTCONN`.
    pub unsafe fn create_taking_over_fd(
        fd: RawFd,
        nonblocking: bool,
        timeout: Duration,
        device: D,
    ) -> Result<Box<Context<D>>> {
        // SAFETY: the caller's promise.
        match unsafe { Handed::control(fd) }? {
            Handed::Client(socket) => {
                Context::ask_predecessor(Peer::new(socket)?, nonblocking, timeout, device)
            }
            Handed::Listener(listener) => {
                listener.leak();
                Err(Errno::ENOTCONN)
            }
        }
    }

    fn ask_predecessor(
        mut peer: Peer,
        nonblocking: bool,
        timeout: Duration,
        device: D,
    ) -> Result<Box<Context<D>>> {
        let deadline = Instant::now().checked_add(timeout).ok_or(Errno::EINVAL)?;
        peer.say(&Message::plain(Kind::Hello)).map_err(gone)?;
        let image = peer.expect_image(Kind::Device, deadline);
        let predecessor = match image.and_then(Predecessor::new) {
            Ok(predecessor) => predecessor,
            Err(errno) => {
                let _ = peer.say(&Message::no(errno));
                return Err(errno);
            }
        };
        let context = Context::bare(nonblocking, device);
        context.is_elsewhere.set(true);
        context.handover.borrow_mut().predecessor = Some(memory::boxed((peer, predecessor))?);
        Ok(context)
    }

    /// Takes the device over that [`create_taking_over`](Self::create_taking_over) has
    /// asked for, as it is now set up. Waits for the other process, `timeout` at the most
    /// for each of three answers. True: its client is attached.
    ///
    /// # Errors
    /// The other process goes on, and this context is only good for being destroyed.
    /// `EINVAL`: the device is not like that one, which a line in the log explains;
    /// `EBUSY`: it cannot be had at the moment; `ETIMEDOUT`, `ECONNRESET`; others as the
    /// device's methods say, or the system. If that is all right and the device fails to
    /// run here, its state of migration is ERROR.
    pub fn take_over(&self, timeout: Duration) -> Result<bool> {
        if self.busy.get() {
            return Err(Errno::EBUSY.because("not from inside a callback"));
        }
        let _busy = self.mark_busy();
        Errno::EINVAL.unless(self.realized.get(), "vfu_realize_ctx() has not been called")?;
        let predecessor = self.handover.borrow_mut().predecessor.take();
        let (mut peer, old) = *predecessor
            .ok_or_else(|| Errno::EINVAL.because("there is no process to be taken over from (any more)"))?;
        if let Err(errno) = self.check_fit(&old).and_then(|()| self.take_state(&mut peer, timeout)) {
            let rule = errno.take_rule().unwrap_or("the device, or the system, failed");
            let _ = peer.say(&Message::no(errno));
            self.give_up();
            return Err(errno.because(rule));
        }
        drop((peer, old));
        self.own();
        Ok(self.attached())
    }

    fn take_state(&self, peer: &mut Peer, timeout: Duration) -> Result<()> {
        let deadline = || Instant::now().checked_add(timeout).ok_or(Errno::EINVAL);
        let ahead = match self.dma_is_ready() {
            true => {
                peer.say(&Message::plain(Kind::Memory)).map_err(gone)?;
                Some(self.import_ahead(&mut peer.expect_image(Kind::Memory, deadline()?)?)?)
            }
            false => None,
        };
        peer.say(&Message::plain(Kind::Ready)).map_err(gone)?;
        let mut image = peer.expect_image(Kind::State, deadline()?)?;
        self.import(&mut image, ahead)?;
        peer.say(&Message::plain(Kind::Have)).map_err(gone)?;
        match peer.expect(Kind::Yours, deadline()?) {
            // It has said neither yes nor no, and is no more: it would have said no
            // before it had gone on.
            Ok(_) | Err(Errno::ECONNRESET) => {}
            Err(errno) => return Err(errno),
        }
        // The other one goes on if it does not hear that before we go; unless it is no
        // more, or does not listen any more.
        match peer.say(&Message::plain(Kind::Taken)).map_err(gone) {
            Ok(()) | Err(Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// What was imported is this context's.
    fn own(&self) {
        self.is_elsewhere.set(false);
        self.with_connection(|connection| connection.own());
        let listens = self.listener.borrow_mut().as_mut().map_or(Ok(()), |it| it.own(self.nonblocking));
        let is_open = self.handover.borrow_mut().control.as_mut().map_or(Ok(()), |it| it.own());
        if let Err(errno) = listens.and(is_open) {
            log!(self, LOG_ERR, "whether accepting waits is as the other process had it: {errno}");
        }
        if let Err(errno) = self.run_as_it_was() {
            log!(self, LOG_ERR, "the device that was taken over does not run: {errno}");
        }
        self.device.handed_over(self, true);
        self.irqs.deliver_all();
        self.watch_losses();
        self.update_poller();
        log!(self, LOG_INFO, "taken over from another process");
    }

    /// What was imported is not this context's.
    fn give_up(&self) {
        self.remove_dma_regions(0, u64::MAX);
        self.dma.logging_stop();
        self.irqs.close_all();
        self.phase.set(crate::server::context::Phase::Idle);
        drop(self.connection.borrow_mut().take());
        drop(self.listener.borrow_mut().take());
        if let Some(control) = &mut self.handover.borrow_mut().control {
            control.disown();
        }
        self.device.handed_over(self, false);
    }
}

/// Whoever does not hear is not there.
fn gone(errno: Errno) -> Errno {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => Errno::ECONNRESET.because("the other process has gone"),
        errno => errno,
    }
}
