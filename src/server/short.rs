//! The frequent requests: reads and writes of a few bytes of a region.
//!
//! Such a request is copied to the stack, is executed there, becomes its own reply
//! and is sent from there, if it came alone. What stands in the general way for
//! everything else (a pooled message, descriptors, asking the device to quiesce)
//! does not concern it.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::run::Turn;
use super::step::{Event, Step};
use super::{Context, Device, regions};
use crate::transport::{Connection, Received};
use crate::wire::{Errno, Result, ShortAccess};

/// What the start of a call in a non-blocking context found.
pub(crate) enum Polled {
    /// Nothing: the call is over, with 0.
    Nothing,
    /// One of the frequent requests and nothing else, for
    /// [`Context::run_short`].
    Short(ShortAccess),
    /// Something, or it has to be looked for with more care: the event to go on
    /// with, [`Context::run_step`].
    Go(Event),
}

impl<D: Device> Context<D> {
    /// With what `vfu_run_ctx` begins: in a non-blocking context of which nothing is
    /// unfinished, it receives. Calls nothing back, and contains no cancellation
    /// point.
    #[inline(always)]
    pub(crate) fn poll(&self) -> Polled {
        let is_ready = self.polls.load(Ordering::Relaxed) && !self.busy.get() && self.attached();
        if !is_ready || self.dma.has_losses() {
            return Polled::Go(Event::Start);
        }
        let mut connection = self.connection.borrow_mut();
        let connection = match connection.as_mut() {
            Some(connection) if connection.is_calm() && self.is_quiet(connection) => connection,
            _ => return Polled::Go(Event::Start),
        };
        match connection.receive_calm() {
            Ok(Received::Nothing) => Polled::Nothing,
            Ok(Received::Something) => match connection.next_single(is_short) {
                Some(request) => Polled::Short(request),
                None => Polled::Go(Event::Received(Ok(()))),
            },
            Err(errno) => Polled::Go(Event::Received(Err(errno))),
        }
    }

    /// Whether nothing waits for the device to become quiet, and the poller, if
    /// there is one, waits for the client's next message alone.
    #[inline(always)]
    fn is_quiet(&self, connection: &Connection) -> bool {
        let is_set = match &*self.poller.borrow() {
            Some(poller) => poller.is_set_to_read(connection.socket()),
            None => true,
        };
        is_set && self.pending.borrow().is_none()
    }

    /// Executes and answers the request that [`poll`](Self::poll) found. If nothing
    /// is to be done then, all is as `poll` found it, so the poller need not be set.
    #[inline(always)]
    pub(crate) fn run_short(&self, request: ShortAccess) -> Step {
        let _busy = self.mark_busy();
        self.last_errno.set(None);
        match self.finish_short(request) {
            Turn::Last => self.executed(1),
            _ => self.run_rest(1),
        }
    }

    /// Executes and answers the next request if it is such a one.
    #[inline(always)]
    pub(super) fn execute_next_short(&self) -> Option<Turn> {
        let next = match self.connection.borrow_mut().as_mut() {
            Some(connection) => connection.next_short(is_short),
            None => None,
        };
        Some(self.finish_short(next?))
    }

    #[inline(always)]
    fn finish_short(&self, mut request: ShortAccess) -> Turn {
        self.probe_received(&request.header);
        let outcome = self.execute_short(&mut request);
        self.probe_executed(&request.header, &outcome);
        match outcome {
            Ok(size) => self.answer_short(&mut request, size),
            Err(errno) => self.fail_short(&request, errno),
        }
    }

    /// Executes the request, to which the reply is written: size of the reply.
    #[inline(always)]
    fn execute_short(&self, request: &mut ShortAccess) -> Result<usize> {
        let is_write = request.is_write();
        let access = request.access;
        let count = access.count as usize;
        let region = self.check_access(&access, is_write.then_some(count))?;
        if !is_write {
            request.data = Default::default();
        }
        let data = request.data.get_mut(..count).ok_or(Errno::EINVAL)?;
        let done = self.access_region(&access, region, data, is_write)?;
        request.access.count = u32::try_from(done).map_err(|_| Errno::EINVAL)?;
        Ok(if is_write { ShortAccess::FIXED } else { ShortAccess::FIXED.saturating_add(done) })
    }

    #[inline(always)]
    fn answer_short(&self, request: &mut ShortAccess, size: usize) -> Turn {
        match self.connection.borrow_mut().as_mut() {
            Some(connection) => {
                if !request.header.no_reply() {
                    request.header = request.header.reply(size as u32);
                    connection.answer_short(request.as_bytes().get(..size).unwrap_or_default());
                    self.probe_replied(&request.header, &Ok(()));
                }
                if connection.is_calm() { Turn::Last } else { Turn::Executed }
            }
            None => Turn::Lost,
        }
    }

    #[cold]
    #[inline(never)]
    fn fail_short(&self, request: &ShortAccess, errno: Errno) -> Turn {
        let header = &request.header;
        let message = request.as_bytes().get(..header.msg_size as usize).unwrap_or_default();
        self.log_failed_request(header, message.get(size_of_val(header)..).unwrap_or_default(), errno);
        self.answer_error(header, errno);
        Turn::Executed
    }
}

/// Whether a message is one that is executed here. Writes to configuration space
/// may have to wait for the device to become quiet.
#[inline(always)]
fn is_short(message: &ShortAccess) -> bool {
    message.is_command() && message.access.region as usize != regions::CONFIG
}
