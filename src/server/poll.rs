//! The descriptor that callers poll.

use std::os::fd::RawFd;

use nix::sys::socket::UnixCredentials;

use super::context::Phase;
use super::log::log;
use super::{Context, Device};
use crate::transport::{Interest, Poller};
use crate::wire::{Errno, Header, Result};

impl<D: Device> Context<D> {
    /// See `vfu_get_poll_fd`. The descriptor is made at the first call and
    /// stays the same.
    ///
    /// In a callback, where nobody sets up an event loop, it is the client's
    /// socket: programs ask it who the client is (`SO_PEERCRED`), which they
    /// could always do in the C library.
    pub fn poll_fd(&self) -> Result<RawFd> {
        if self.busy.get()
            && let Some(socket) = self.with_connection(|connection| connection.socket())
        {
            return Ok(socket);
        }
        if self.poller.borrow().is_none() {
            *self.poller.borrow_mut() = Some(Poller::new()?);
        }
        self.watch_losses();
        self.update_poller();
        self.poller.borrow().as_ref().map(Poller::fd).ok_or(Errno::EBADF)
    }

    /// See `vfux_get_client_credentials`.
    pub fn client_credentials(&self) -> Result<UnixCredentials> {
        match self.attached() {
            true => self.with_connection(|connection| connection.credentials()).ok_or(Errno::ENOTCONN)?,
            false => Err(Errno::ENOTCONN.because("no client is attached")),
        }
    }

    /// Makes the descriptor tell of lost memory, too, once there can be such.
    pub(super) fn watch_losses(&self) {
        let Some(event) = self.dma.loss_descriptor() else { return };
        if let Some(poller) = self.poller.borrow_mut().as_mut()
            && let Err(errno) = poller.watch_also(event)
        {
            log!(self, LOG_ERR, "the poll descriptor will not tell of lost memory: {errno}");
        }
    }

    /// Makes the descriptor say what a call would have to do. Costs nothing if
    /// that is what it says already.
    pub(super) fn update_poller(&self) {
        let outcome = match self.poller.borrow_mut().as_mut() {
            Some(poller) if !self.is_at_rest(poller) => poller.set(self.interest()),
            _ => Ok(()),
        };
        if let Err(errno) = outcome {
            log!(self, LOG_ERR, "the poll descriptor cannot be set: {errno}");
        }
    }

    /// Whether the poller waits for the client's next message, and there is
    /// nothing else to wait for: as nearly always.
    #[inline(always)]
    fn is_at_rest(&self, poller: &Poller) -> bool {
        let resting = self.with_connection(|connection| {
            connection.is_at_rest() && poller.is_set_to_read(connection.socket())
        });
        resting == Some(true) && self.attached() && self.pending.borrow().is_none()
    }

    fn has_handed_client(&self) -> bool {
        let client = self.handed_client.take();
        let has = client.is_some();
        self.handed_client.set(client);
        has
    }

    fn interest(&self) -> Interest {
        let connection = self.connection.borrow();
        let (Some(connection), Phase::Attached | Phase::Negotiating) =
            (connection.as_ref(), self.phase.get())
        else {
            let socket = self.listener.borrow().as_ref().map(|listener| (listener.socket(), false));
            // A client that was handed in is taken on at once.
            let left_behind = self.loss_unreported.get() || self.has_handed_client();
            return Interest { socket, twin: None, left_behind };
        };
        if self.pending.borrow().is_some() {
            // Nothing is done before the device says that it is quiet.
            return Interest::default();
        }
        let stuck = connection.has_unsent();
        let left_behind = connection.lost()
            || !stuck && self.attached() && (connection.has_next(Header::is_request) || connection.ended());
        Interest { socket: Some((connection.socket(), stuck)), twin: connection.late_socket(), left_behind }
    }
}
