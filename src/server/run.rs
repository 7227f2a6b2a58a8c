//! The request loop: `vfu_run_ctx`.
//!
//! Receive, take the whole messages that are there one by one, execute each,
//! gather the replies, send. [`execute_next`](Context::execute_next) is the life of one
//! request.

use std::cell::Cell;

use nix::time::{ClockId, clock_gettime};

use super::describe::Described;
use super::loss::Ask;
use super::quiesce::Pending;
use super::step::{Event, Step};
use super::{Context, Device};
use crate::transport::{Connection, Message, Next, Outcome, Received, Reply, Sent, Wait};
use crate::wire::{Command, Errno, Header, Result};

/// How many requests one call in a non-blocking context executes at the most,
/// so that the caller's loop gets round.
const BATCH: usize = 256;

/// How long it goes on executing further ones, in nanoseconds of a clock that
/// may be as much as 10 ms late: with any of Linux' ticks less than 10 ms.
const BATCH_TIME: i64 = 8_000_000;

/// How many parts of one long reply are made and sent in a row.
const MAX_PARTS: usize = 4;

/// How far one call in a non-blocking context goes.
struct Batch {
    /// By the coarse clock.
    began: i64,
}

impl Batch {
    fn begin() -> Batch {
        Batch { began: coarse_time() }
    }

    /// Whether it is over, with so many executed.
    fn is_over(&self, executed: usize) -> bool {
        executed >= BATCH || coarse_time().saturating_sub(self.began) >= BATCH_TIME
    }
}

/// What became of one message.
pub(super) enum Turn {
    /// There was none.
    Nothing,
    /// It was executed, successfully or not.
    Executed,
    /// It was executed, is answered, and nothing else is to be done.
    Last,
    /// It was refused before that.
    Refused,
    /// It waits for the device to become quiet.
    Pending,
    /// The connection is lost.
    Lost,
}

/// Why a run of requests ended.
enum End {
    /// No whole message is left.
    Drained,
    /// As many as one call may execute were.
    Enough,
    /// A request waits for the device to become quiet.
    Pending,
    /// The socket takes no more replies.
    Stuck,
    /// The connection is lost.
    Lost,
}

/// Marks the context as busy while it lives.
pub(super) struct Busy<'a> {
    busy: &'a Cell<bool>,
    before: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.busy.set(self.before);
    }
}

/// Rules that a request broke before anybody looked at what it asks for.
const BAD_HEADER: &str = "no command, or a size that no such command has";
pub(super) const NOT_QUIET: &str = "the device did not quiesce";

impl<D: Device> Context<D> {
    /// From now on, until the result is dropped, the context is busy.
    pub(super) fn mark_busy(&self) -> Busy<'_> {
        Busy { busy: &self.busy, before: self.busy.replace(true) }
    }

    /// See `vfu_run_ctx`.
    pub(crate) fn run_step(&self, event: Event) -> Step {
        if self.busy.get() {
            return Step::Fail(Errno::EBUSY.because("called in a callback of the context"));
        }
        let _busy = self.mark_busy();
        let step = match event {
            Event::Start => self.run_start(),
            Event::Received(outcome) => {
                self.last_errno.set(None);
                outcome.map_or_else(Step::Fail, |()| self.execute_batch(0))
            }
            Event::Waited(Outcome::Moved(outcome)) if self.is_sending() => self.run_sent(outcome),
            Event::Waited(Outcome::Moved(outcome)) => self.run_received(outcome),
            Event::Waited(Outcome::Ready(Ok(_))) => self.run_ready(),
            // What is unsent is kept.
            Event::Waited(Outcome::Ready(Err(errno))) => Step::Fail(errno),
            // It was not asked for.
            Event::Waited(Outcome::Accepted(_)) => Step::Fail(Errno::EINVAL),
        };
        if !matches!(step, Step::Wait(_)) {
            self.update_poller();
        }
        step
    }

    fn run_start(&self) -> Step {
        if !self.realized.get() {
            return Step::Fail(Errno::EINVAL.because("vfu_realize_ctx() has not been called"));
        }
        self.tell_losses();
        self.poll_from_now_on();
        self.tell_noted_refusal();
        if self.pending.borrow().is_some() {
            return Step::Fail(Errno::EBUSY);
        }
        if !self.attached() {
            return self.report_loss();
        }
        self.with_connection(Connection::check_receipt);
        if self.is_lost() {
            return self.lose_and_report();
        }
        self.last_errno.set(None);
        match self.flush_small() {
            Sent::Lost => self.lose_in_call(0),
            Sent::Stuck | Sent::More => self.wait_writable(),
            Sent::All if self.nonblocking => match self.receive() {
                Ok(true) => self.execute_batch(0),
                Ok(false) => self.executed(0),
                Err(errno) => Step::Fail(errno),
            },
            Sent::All => self.execute_all(),
        }
    }

    fn is_sending(&self) -> bool {
        self.with_connection(|connection| connection.is_sending()).unwrap_or(false)
    }

    /// A blocking context has sent a large reply, or a part of it.
    fn run_sent(&self, outcome: Result<usize>) -> Step {
        let is_all = self.with_connection(|connection| connection.finish_send(outcome.unwrap_or(0)));
        if let Err(Errno::EINTR) = outcome {
            return Step::Fail(Errno::EINTR);
        }
        match (self.flush(), is_all) {
            (Sent::Lost, _) => self.lose_in_call(0),
            (Sent::All, _) => self.execute_all(),
            (Sent::Stuck | Sent::More, Some(true)) => self.wait_writable(),
            // The call would have waited for room: a signal ended it.
            (Sent::Stuck | Sent::More, _) => Step::Fail(Errno::EINTR),
        }
    }

    /// A blocking context has waited for a socket to be ready.
    fn run_ready(&self) -> Step {
        match self.flush_small() {
            Sent::Lost => self.lose_in_call(0),
            Sent::Stuck | Sent::More => self.wait_writable(),
            Sent::All => match self.receive() {
                Ok(_) | Err(Errno::EINTR) => self.execute_all(),
                Err(errno) => Step::Fail(errno),
            },
        }
    }

    /// A blocking context has received.
    fn run_received(&self, outcome: Result<usize>) -> Step {
        match self.with_connection(|connection| connection.finish_receive(outcome)) {
            Some(Ok(())) => self.execute_all(),
            Some(Err(errno)) => Step::Fail(errno),
            None => Step::Fail(Errno::ENOTCONN),
        }
    }

    /// Non-blocking: goes on after the first request, which came alone. The time of
    /// the others counts from here on.
    #[cold]
    #[inline(never)]
    pub(super) fn run_rest(&self, executed: usize) -> Step {
        let step = self.execute_batch(executed);
        self.update_poller();
        step
    }

    /// Non-blocking: executes what is there.
    fn execute_batch(&self, mut executed: usize) -> Step {
        match self.execute_messages(Some(Batch::begin()), &mut executed) {
            End::Pending => Step::Fail(Errno::EBUSY),
            End::Lost => self.lose_in_call(executed),
            End::Drained if executed == 0 && self.has_ended() => self.lose_and_report(),
            End::Drained | End::Enough | End::Stuck => self.executed(executed),
        }
    }

    /// Blocking: executes what is there, then waits for more.
    fn execute_all(&self) -> Step {
        let mut executed = 0;
        match self.execute_messages(None, &mut executed) {
            End::Pending => Step::Fail(Errno::EBUSY),
            End::Lost => self.lose_and_report(),
            End::Stuck => self.wait_writable(),
            End::Drained | End::Enough if self.has_ended() => self.lose_and_report(),
            End::Drained | End::Enough => self.wait_readable(),
        }
    }

    /// Executes messages, as many as there are or a batch has, and sends the
    /// replies.
    #[inline(always)]
    fn execute_messages(&self, batch: Option<Batch>, executed: &mut usize) -> End {
        let end = loop {
            match self.execute_next() {
                Turn::Nothing => break End::Drained,
                Turn::Last => {
                    *executed = executed.saturating_add(1);
                    return End::Drained;
                }
                Turn::Executed => *executed = executed.saturating_add(1),
                Turn::Refused => {}
                Turn::Pending => break End::Pending,
                Turn::Lost => return End::Lost,
            }
            let state =
                self.with_connection(|connection| (connection.should_flush(), connection.is_drained()));
            let (full, is_drained) = state.unwrap_or((false, false));
            if full {
                match self.flush_small() {
                    Sent::All => {}
                    Sent::Stuck | Sent::More => return End::Stuck,
                    Sent::Lost => return End::Lost,
                }
            }
            if is_drained {
                break End::Drained;
            }
            if batch.as_ref().is_some_and(|batch| batch.is_over(*executed)) {
                break End::Enough;
            }
        };
        self.tell_losses();
        self.tell_noted_refusal();
        match (self.flush_small(), end) {
            (Sent::Lost, End::Drained | End::Enough | End::Stuck) => End::Lost,
            (Sent::Stuck | Sent::More, End::Drained | End::Enough) => End::Stuck,
            (_, end) => end,
        }
    }

    /// The life of one request.
    #[inline(always)]
    fn execute_next(&self) -> Turn {
        match self.execute_next_short() {
            Some(turn) => turn,
            None => self.execute_next_long(),
        }
    }

    /// The life of one that is not among the frequent ones.
    #[inline(never)]
    fn execute_next_long(&self) -> Turn {
        let next = match self.connection.borrow_mut().as_mut() {
            Some(connection) if !connection.lost() => connection.next(Header::is_request),
            _ => return Turn::Lost,
        };
        match next {
            Ok(Next::Message(message)) => self.handle_message(message),
            Ok(Next::Refused(header)) => {
                self.probe_received(&header);
                self.refuse_request(&header, &[], Errno::EINVAL.because(BAD_HEADER))
            }
            Ok(Next::Unfollowable(header)) => {
                self.probe_received(&header);
                self.refuse_request(
                    &header,
                    &[],
                    Errno::EINVAL.because("nobody can tell where the next message begins"),
                );
                self.flush();
                self.with_connection(|connection| connection.set_lost());
                Turn::Lost
            }
            Ok(Next::Nothing) => Turn::Nothing,
            Err(_) => Turn::Lost,
        }
    }

    /// Checks a whole message, asks the device to quiesce if it has to be, and
    /// executes it.
    fn handle_message(&self, message: Box<Message>) -> Turn {
        let header = message.header;
        self.probe_received(&header);
        if let Some(errno) = message.missing_fds {
            let rule = "descriptors came with it that could not be taken";
            return self.refuse_request(&header, message.payload(), errno.because(rule));
        }
        if !header.is_request() {
            return self.refuse_request(&header, message.payload(), Errno::EINVAL.because(BAD_HEADER));
        }
        let command = Command::from_number(header.cmd);
        if self.asks_quiesce(command, &message) {
            match self.device.quiesce(self) {
                Ok(()) => {}
                Err(Errno::EBUSY) => {
                    *self.pending.borrow_mut() = Some(Pending::Message(message));
                    return Turn::Pending;
                }
                Err(errno) => {
                    return self.refuse_request(&header, message.payload(), errno.because(NOT_QUIET));
                }
            }
        }
        self.execute(command, message);
        Turn::Executed
    }

    fn refuse_request(&self, header: &Header, payload: &[u8], errno: Errno) -> Turn {
        self.probe_executed(header, &Err::<(), _>(errno));
        self.log_failed_request(header, payload, errno);
        self.answer_error(header, errno);
        Turn::Refused
    }

    /// One line for each request that is refused or fails. That an unmap finds nothing
    /// is worth less: clients do that where they cannot know.
    #[cold]
    #[inline(never)]
    pub(super) fn log_failed_request(&self, header: &Header, payload: &[u8], errno: Errno) {
        let rule = errno.take_rule().unwrap_or_else(|| errno.general_rule());
        let is_unmap_of_nothing = header.cmd == Command::DmaUnmap as u16 && errno == Errno::ENOENT;
        let level = if is_unmap_of_nothing { libc::LOG_WARNING } else { libc::LOG_ERR };
        if self.log_enabled(level) {
            self.log_format(level, format_args!("{}: {rule}: {errno}", Described { header, payload }));
        }
    }

    /// Executes a request and answers it.
    pub(super) fn execute(&self, command: Option<Command>, mut message: Box<Message>) {
        let mut reply = Reply::empty();
        let outcome = self.dispatch(command, &mut message, &mut reply);
        self.probe_executed(&message.header, &outcome);
        if let Err(errno) = &outcome {
            self.log_failed_request(&message.header, message.payload(), *errno);
            self.last_errno.set(Some(*errno));
        }
        // Descriptors that were not taken are closed before the answer.
        message.fds.clear();
        if let Some(connection) = self.connection.borrow_mut().as_mut() {
            connection.answer(&message.header, outcome.map(|()| &mut reply));
            if !message.header.no_reply() {
                self.probe_replied(&message.header, &outcome);
            }
            connection.recycle(message);
        }
    }

    /// Answers a request with an errno, unless no answer is wanted.
    pub(super) fn answer_error(&self, header: &Header, errno: Errno) {
        self.last_errno.set(Some(errno));
        self.with_connection(|connection| connection.answer(header, Err(errno)));
        if !header.no_reply() {
            self.probe_replied(header, &Err::<(), _>(errno));
        }
    }

    /// Sends what waits, as far as that goes without waiting.
    pub(super) fn flush(&self) -> Sent {
        let outcome = self
            .with_connection(|connection| (self.flush_connection(connection), connection.take_replaced()));
        let (sent, replaced) = outcome.unwrap_or((Sent::Lost, None));
        if let Some(errno) = replaced {
            // The client was told so in place of its reply.
            self.last_errno.set(Some(errno));
        }
        sent
    }

    /// Sends what waits, and goes on with a reply that is made as it is sent.
    #[inline(always)]
    pub(super) fn flush_connection(&self, connection: &mut Connection) -> Sent {
        match connection.has_unsent() || connection.lost() {
            false => Sent::All,
            true => self.flush_what_waits(connection),
        }
    }

    fn flush_what_waits(&self, connection: &mut Connection) -> Sent {
        for _ in 0..MAX_PARTS {
            match connection.flush() {
                Sent::More if self.report_more(connection).is_err() => {
                    // What was begun cannot be ended.
                    connection.set_lost();
                    return Sent::Lost;
                }
                Sent::More => {}
                sent => return sent,
            }
        }
        // More of it when others have had their turn.
        Sent::Stuck
    }

    /// The same, but a blocking context leaves what takes waiting anyway to
    /// [`wait_writable`](Self::wait_writable).
    fn flush_small(&self) -> Sent {
        let is_large = |connection: &mut Connection| connection.has_large_unsent() && !connection.lost();
        match !self.nonblocking && !self.is_sending() && self.with_connection(is_large).unwrap_or(false) {
            true => Sent::Stuck,
            false => self.flush(),
        }
    }

    /// Receives what is there; whether there is anything to do then.
    fn receive(&self) -> Result<bool> {
        let received = self.with_connection(|connection| {
            connection.tidy_twin();
            let received = connection.receive()?;
            Ok(received == Received::Something || !connection.is_at_rest())
        });
        received.unwrap_or(Err(Errno::ENOTCONN))
    }

    /// Whether the client has ended its side. Not a loss before everything
    /// that it sent has been executed and answered.
    fn has_ended(&self) -> bool {
        self.with_connection(|connection| connection.ended()).unwrap_or(true)
    }

    pub(super) fn executed(&self, count: usize) -> Step {
        Step::Return { value: i32::try_from(count).unwrap_or(i32::MAX), errno: self.last_errno.get() }
    }

    fn wait_writable(&self) -> Step {
        if self.nonblocking {
            return self.executed(0);
        }
        let wait = self.with_connection(|connection| {
            let of_large = if connection.has_large_unsent() { connection.wait_send() } else { None };
            of_large.unwrap_or_else(|| Wait::ready([(connection.socket(), libc::POLLOUT), (-1, 0)]))
        });
        wait.map_or(Step::Fail(Errno::ENOTCONN), Step::Wait)
    }

    fn wait_readable(&self) -> Step {
        let wait = self.with_connection(|connection| match connection.late_socket() {
            None => connection.wait_receive(),
            Some((twin, stuck)) => {
                let room = if stuck { libc::POLLOUT } else { 0 };
                Wait::ready([(connection.socket(), libc::POLLIN), (twin, libc::POLLIN | room)])
            }
        });
        wait.map_or(Step::Fail(Errno::ENOTCONN), Step::Wait)
    }

    /// The connection was lost while `executed` requests were answered: the
    /// call reports success, the next one the loss. (A blocking one goes on,
    /// and so reports it at once.)
    fn lose_in_call(&self, executed: usize) -> Step {
        match self.lose_client(Ask::Yes) {
            Err(errno) => Step::Fail(errno),
            Ok(()) if self.nonblocking => self.executed(executed),
            Ok(()) => self.report_loss(),
        }
    }

    fn lose_and_report(&self) -> Step {
        match self.lose_client(Ask::Yes) {
            Err(errno) => Step::Fail(errno),
            Ok(()) => self.report_loss(),
        }
    }

    fn report_loss(&self) -> Step {
        self.loss_unreported.set(false);
        Step::Fail(Errno::ENOTCONN)
    }
}

/// A time in nanoseconds, by a clock that costs no system call.
fn coarse_time() -> i64 {
    // Every kernel has it.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
        #[allow(clippy::useless_conversion, reason = "both have 32 bits on many 32-bit machines")]
        let (seconds, rest) = (i64::from(now.tv_sec()), i64::from(now.tv_nsec()));
        seconds.saturating_mul(1_000_000_000).saturating_add(rest)
    })
}
