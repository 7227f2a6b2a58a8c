//! The connection to a client.

mod handover;

use std::collections::VecDeque;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout};
use nix::sys::socket::{UnixCredentials, getsockopt, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use zerocopy::FromBytes;

use super::allowance::Allowance;
use super::channel::{Channel, Socket};
use super::control;
use super::exchange::Expecting;
use super::message::{Message, Next};
use super::pool::Pool;
use super::receive::{MayCarryFds, Receiver, is_end};
use super::reply::Reply;
use super::send::{Flushed, Sender};
use super::unanswered::MessageIds;
use super::wait::Wait;
use crate::wire::{Errno, Header, Result};

pub use handover::ConnectionRecords;

/// How long an answer is waited for on the twin socket alone, in milliseconds:
/// longer waits watch the main socket, too. With a limit, any signal ends the wait.
const ANSWER_WAIT: i64 = 100;

/// What one attempt to receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, or the end of the stream.
    Something,
    /// Nothing is there.
    Nothing,
}

/// Whether replies still wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All are sent.
    All,
    /// All that is there is sent; bytes of the last reply are to be added.
    More,
    /// The socket takes no more at the moment.
    Stuck,
    /// The connection is lost.
    Lost,
}

/// A connected client.
#[derive(Debug)]
pub struct Connection {
    // Both declared, and so dropped, before the main channel.
    /// The twin socket until a command goes over it: for most devices none does.
    new_twin: Option<Socket>,
    pub(super) twin: Option<Channel>,
    pub(super) main: Channel,
    pub(super) sender: Sender,
    /// The rest of a command of ours that the twin socket did not take at once.
    pub(super) twin_sender: Sender,
    /// Commands of ours that are not answered yet. What the client still says
    /// to one that nobody waits for any longer is dropped.
    pub(super) unanswered: MessageIds,
    /// The command whose answer's bytes are being received.
    pub(super) body: Option<u16>,
    /// What the caller receives on the twin socket, while it does.
    pub(super) expecting: Option<Expecting>,
    /// Whether it is known how long that waits at the most.
    has_answer_wait: bool,
    /// Commands that arrived while the answer to one of ours was awaited.
    pub(super) queue: VecDeque<Box<Message>>,
    pub(super) allowance: Allowance,
    pub(super) pool: Pool,
    may_carry_fds: MayCarryFds,
    lost: bool,
    /// The caller sends, and nobody knows how far it is.
    sending: bool,
    /// The caller receives, and has not told what came of it.
    receiving: bool,
}

impl Connection {
    /// A connection over a connected stream socket. `may_carry_fds` says of a
    /// message whether it may come with descriptors.
    pub fn new(socket: OwnedFd, may_carry_fds: MayCarryFds) -> Result<Connection> {
        // From here on, it is closed gently.
        let socket = Socket::new(socket);
        let mut pool = Pool::default();
        Ok(Connection {
            main: Channel::new(socket, Receiver::new(&mut pool, may_carry_fds)?),
            new_twin: None,
            twin: None,
            sender: Sender::default(),
            twin_sender: Sender::default(),
            unanswered: MessageIds::default(),
            body: None,
            expecting: None,
            has_answer_wait: false,
            queue: VecDeque::new(),
            allowance: Allowance::default(),
            pool,
            may_carry_fds,
            lost: false,
            sending: false,
            receiving: false,
        })
    }

    /// The main socket.
    pub fn socket(&self) -> RawFd {
        self.main.socket()
    }

    /// Who connected, which the kernel knows as long as the socket is open.
    pub fn credentials(&self) -> Result<UnixCredentials> {
        Ok(getsockopt(self.main.fd(), PeerCredentials)?)
    }

    /// From now on our commands go over `socket`.
    pub fn set_twin(&mut self, socket: OwnedFd) {
        self.new_twin = Some(Socket::new(socket));
    }

    /// Makes the twin socket, if there is one, ready to receive on: before anything is
    /// sent or waited for on behalf of a command, since its answer comes there.
    /// `ENOMEM`: as before.
    #[inline(always)]
    pub fn open_twin(&mut self) -> Result<()> {
        if self.new_twin.is_some() {
            let receiver = Receiver::new(&mut self.pool, self.may_carry_fds)?;
            self.twin = self.new_twin.take().map(|socket| Channel::new(socket, receiver));
        }
        Ok(())
    }

    /// Makes receiving on the twin socket end after [`ANSWER_WAIT`], if it does not
    /// yet; whether it does.
    pub(super) fn limit_answer_wait(&mut self) -> bool {
        if !self.has_answer_wait
            && let Some(twin) = &self.twin
        {
            let limit = TimeVal::milliseconds(ANSWER_WAIT);
            self.has_answer_wait = setsockopt(twin.fd(), ReceiveTimeout, &limit).is_ok();
        }
        self.has_answer_wait
    }

    /// Whether a second socket carries our commands.
    pub fn has_twin(&self) -> bool {
        self.twin.is_some() || self.new_twin.is_some()
    }

    /// Whether the connection was found lost.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// The connection is lost, whoever found that.
    pub fn set_lost(&mut self) {
        self.lost = true;
    }

    /// Whether the client has ended its side.
    pub fn ended(&self) -> bool {
        self.main.receiver.ended()
    }

    /// Whether nothing of the next message has arrived.
    pub fn at_boundary(&self) -> bool {
        self.main.receiver.at_boundary()
    }

    /// See [`Receiver::partial`](super::receive::Receiver::partial).
    pub fn partial(&self) -> (usize, Option<usize>) {
        self.main.receiver.partial()
    }

    /// Receives once, without waiting.
    #[inline(always)]
    pub fn receive(&mut self) -> Result<Received> {
        if !self.main.receiver.is_hungry() {
            return Ok(Received::Nothing);
        }
        let socket = self.main.socket();
        if !self.main.receiver.receive(socket, libc::MSG_DONTWAIT)? {
            self.pool.rest();
            return Ok(Received::Nothing);
        }
        if self.main.receiver.is_outgrown() {
            self.receive_rest()?;
        }
        Ok(Received::Something)
    }

    /// Whether nothing is unfinished in either direction, and the client is there:
    /// as at the start of nearly every call.
    #[inline(always)]
    pub fn is_calm(&self) -> bool {
        self.main.receiver.is_calm()
            && self.queue.is_empty()
            && self.sender.is_empty()
            && self.late_socket().is_none()
            && self.expecting.is_none()
            && !self.lost
    }

    /// Receives like [`receive`](Self::receive), only when
    /// [`is_calm`](Self::is_calm): without a cancellation point.
    #[inline(always)]
    pub fn receive_calm(&mut self) -> Result<Received> {
        if !self.main.receiver.receive_calm(self.main.socket())? {
            self.pool.rest();
            return Ok(Received::Nothing);
        }
        if self.main.receiver.is_outgrown() {
            self.receive_rest()?;
        }
        Ok(Received::Something)
    }

    /// More came than the first buffer holds: goes on with a larger one.
    #[cold]
    fn receive_rest(&mut self) -> Result<()> {
        self.main.receiver.grow(&mut self.pool)?;
        if self.main.receiver.is_hungry() {
            self.main.receiver.receive(self.main.socket(), libc::MSG_DONTWAIT)?;
        }
        Ok(())
    }

    /// Makes ready for a `recvmsg`, whose outcome
    /// [`finish_receive`](Self::finish_receive) is to be told.
    pub fn wait_receive(&mut self) -> Wait {
        self.pool.rest();
        self.receiving = true;
        Wait::receive(self.main.socket(), self.main.receiver.prepare())
    }

    /// Takes over what that `recvmsg` brought.
    pub fn finish_receive(&mut self, outcome: Result<usize>) -> Result<()> {
        self.receiving = false;
        match outcome {
            Ok(count) => {
                self.main.receiver.finish(count);
                if self.main.receiver.is_outgrown() {
                    self.main.receiver.grow(&mut self.pool)?;
                }
            }
            Err(errno) if is_end(errno) => self.main.receiver.fail(),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// To be called when a call begins: if the thread of the one before was cancelled
    /// while it received, it is only known whether that took bytes from the socket,
    /// and not how many. Then the stream is out of step, and descriptors that came are
    /// nobody's. (Nearly always it was asleep, and took none.)
    #[inline(always)]
    pub fn check_receipt(&mut self) {
        if self.receiving {
            self.check_cancelled();
        }
    }

    #[cold]
    fn check_cancelled(&mut self) {
        self.receiving = false;
        if self.main.receiver.drop_missed() {
            self.set_lost();
        }
    }

    /// Whether nothing has arrived that is not used, nothing waits to be sent,
    /// and the client is there.
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.queue.is_empty()
            && self.main.receiver.is_at_rest()
            && self.sender.is_empty()
            && self.late_socket().is_none()
            && !self.lost
    }

    /// Whether nothing has arrived, not even a part of a message, that the
    /// request loop would have to look at.
    #[inline(always)]
    pub fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.main.receiver.at_boundary() && !self.lost
    }

    /// Whether [`next`](Self::next) would give something.
    pub fn has_next(&self, admit: impl Fn(&Header) -> bool) -> bool {
        !self.queue.is_empty() || self.main.receiver.has_next(admit)
    }

    /// The next command: those that were queued first, then what was received.
    /// `admit` judges the headers of the latter.
    pub fn next(&mut self, admit: impl Fn(&Header) -> bool) -> Result<Next> {
        if let Some(message) = self.queue.pop_front() {
            self.allowance.give_back(message.cost());
            return Ok(Next::Message(message));
        }
        loop {
            let next = self.main.receiver.next(&mut self.pool, &admit)?;
            if self.unanswered.is_empty() || !self.is_late(&next) {
                return Ok(next);
            }
        }
    }

    /// Takes what [`next`](Self::next) would give, as a copy, if it is a short
    /// command without descriptors that is wanted.
    #[inline(always)]
    pub fn next_short<T: FromBytes>(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        match self.lost || !self.queue.is_empty() {
            true => None,
            false => self.main.receiver.next_short(is_wanted),
        }
    }

    /// The same, after [`receive_calm`](Self::receive_calm), if that brought one
    /// message and nothing else.
    #[inline(always)]
    pub fn next_single<T: FromBytes>(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        self.main.receiver.next_single(is_wanted)
    }

    /// Sends a short reply at once, if nothing is to be done before others follow
    /// it; else it goes out with these.
    #[inline(always)]
    pub fn answer_short(&mut self, reply: &[u8]) {
        let sent = match self.sender.is_empty() && !self.sending && self.is_drained() {
            true => control::send_bytes(self.main.socket(), reply, libc::MSG_DONTWAIT),
            false => Ok(0),
        };
        if sent != Ok(reply.len()) && !self.lost {
            self.keep_unsent(reply, sent);
        }
    }

    /// Of a short reply, this came of sending it.
    #[inline(never)]
    fn keep_unsent(&mut self, reply: &[u8], sent: Result<usize>) {
        let rest = match sent {
            Ok(count) => reply.get(count..),
            Err(Errno::EINTR | Errno::EAGAIN) => Some(reply),
            Err(_) => None,
        };
        let kept = rest.ok_or(Errno::EPIPE).and_then(|rest| self.sender.push_bytes(rest, &mut self.pool));
        self.lost |= kept.is_err();
    }

    /// Takes back a message that has been handled.
    #[inline]
    pub fn recycle(&mut self, message: Box<Message>) {
        self.pool.put_message(message);
    }

    /// Gives an empty reply room for `capacity` bytes of payload.
    pub fn make_room(&mut self, reply: &mut Reply, capacity: usize) -> Result<()> {
        reply.make_room(capacity, &mut self.pool)
    }

    /// Queues the answer to `request`, unless none is wanted or can be sent.
    #[inline(always)]
    pub fn answer(&mut self, request: &Header, outcome: Result<&mut Reply>) {
        let queued = match outcome {
            _ if self.lost => Ok(()),
            Ok(reply) if request.no_reply() => {
                reply.recycle(&mut self.pool);
                Ok(())
            }
            Ok(reply) => match self.reply(request, reply) {
                // Nothing of it waits; a header takes next to nothing.
                Err(Errno::ENOMEM) => self.reply_error(request, Errno::ENOMEM),
                queued => queued,
            },
            Err(_) if request.no_reply() => Ok(()),
            Err(errno) => self.reply_error(request, errno),
        };
        if queued.is_err() {
            // No memory for sixteen bytes: the client can't be told.
            self.lost = true;
        }
    }

    /// Queues the reply to `request`.
    #[inline]
    pub fn reply(&mut self, request: &Header, reply: &mut Reply) -> Result<()> {
        self.sender.push(request, reply, &mut self.pool)
    }

    /// Queues a reply that says `errno`.
    pub fn reply_error(&mut self, request: &Header, errno: Errno) -> Result<()> {
        self.sender.push_error(request, errno, &mut self.pool)
    }

    /// Whether replies wait.
    pub fn has_unsent(&self) -> bool {
        !self.sender.is_empty()
    }

    /// See [`Sender::take_replaced`].
    pub fn take_replaced(&mut self) -> Option<Errno> {
        self.sender.take_replaced()
    }

    /// Whether what waits should go out now.
    pub fn should_flush(&self) -> bool {
        self.sender.is_full()
    }

    /// Whether all that waits is one piece that is better sent by a call that
    /// waits.
    #[inline(always)]
    pub fn has_large_unsent(&self) -> bool {
        self.sender.large_piece().is_some()
    }

    /// Makes ready for one `send` of that piece, which waits, and whose outcome
    /// [`finish_send`](Self::finish_send) is to be told. If it is not (the thread
    /// was cancelled), nobody knows what the client got: the connection is lost.
    pub fn wait_send(&mut self) -> Option<Wait> {
        self.sending = true;
        self.sender.large_piece().map(|piece| Wait::send(self.main.socket(), piece))
    }

    /// Whether the caller is to tell what came of its `send`.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Takes over how much that `send` has sent; whether it was all.
    pub fn finish_send(&mut self, count: usize) -> bool {
        let is_all = self.sender.large_piece().is_some_and(|piece| piece.len() == count);
        self.sending = false;
        self.sender.finish_piece(count, &mut self.pool);
        is_all
    }

    /// Bytes of the last reply that are still to be added.
    pub fn more(&self) -> usize {
        self.sender.more()
    }

    /// Adds the next bytes of the last reply, when the others are sent: so many,
    /// written by `fill`.
    pub fn push_more(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut buffer = self.pool.take(len)?;
        fill(buffer.range_mut(0, len))?;
        self.sender.push_more(buffer, len)
    }

    /// Sends what waits, as far as the socket takes it without waiting.
    #[inline(always)]
    pub fn flush(&mut self) -> Sent {
        match self.lost {
            true => Sent::Lost,
            false if self.sender.is_empty() => Sent::All,
            false => self.send_waiting(),
        }
    }

    fn send_waiting(&mut self) -> Sent {
        if self.sending {
            self.lost = true;
            return Sent::Lost;
        }
        match self.sender.flush(self.main.socket(), &mut self.pool) {
            Flushed::All => Sent::All,
            Flushed::More => Sent::More,
            Flushed::Stuck => Sent::Stuck,
            Flushed::Lost => {
                self.lost = true;
                Sent::Lost
            }
        }
    }
}
