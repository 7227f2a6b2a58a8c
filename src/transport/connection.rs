//! The connection to a client.

use std::collections::VecDeque;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixCredentials, getsockopt};
use zerocopy::IntoBytes;

use super::channel::Channel;
use super::control;
use super::message::{Message, Next};
use super::pool::Pool;
use super::receive::is_end;
use super::reply::Reply;
use super::send::{Flushed, Sender};
use crate::memory;
use crate::wire::limits::{HEADER_SIZE, MAX_ERRNO, MAX_WAITING_FDS};
use crate::wire::{Errno, Header, HeaderFlags, MessageType, Result};

/// Commands that may wait while the answer to one of ours is awaited; a client
/// that sends more without answering is cut off.
const QUEUE_MAX: usize = 4096;
/// The same in bytes.
const QUEUE_BYTES_MAX: usize = 16 << 20;

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
    /// The socket takes no more at the moment.
    Stuck,
    /// The connection is lost.
    Lost,
}

/// What is wrong with the answer to one of our commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That transfer failed; the connection goes on.
    Failed(Errno),
    /// The connection is lost.
    Lost(Errno),
}

/// A connected client.
#[derive(Debug)]
pub struct Connection {
    // Declared, and so dropped, before the main channel.
    twin: Option<Channel>,
    main: Channel,
    sender: Sender,
    /// Commands that arrived while the answer to one of ours was awaited.
    queue: VecDeque<Box<Message>>,
    queued_bytes: usize,
    queued_fds: usize,
    pool: Pool,
    lost: bool,
}

impl Connection {
    /// A connection over a connected stream socket.
    pub fn new(socket: OwnedFd) -> Result<Connection> {
        let mut pool = Pool::default();
        Ok(Connection {
            main: Channel::new(socket, &mut pool)?,
            twin: None,
            sender: Sender::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_fds: 0,
            pool,
            lost: false,
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
    pub fn set_twin(&mut self, socket: OwnedFd) -> Result<()> {
        self.twin = Some(Channel::new(socket, &mut self.pool)?);
        Ok(())
    }

    /// Whether a second socket carries our commands.
    pub fn has_twin(&self) -> bool {
        self.twin.is_some()
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
        if !self.main.receiver.has_room() {
            return Ok(Received::Nothing);
        }
        let socket = self.main.socket();
        match self.main.receiver.receive(socket, libc::MSG_DONTWAIT)? {
            true => Ok(Received::Something),
            false => Ok(Received::Nothing),
        }
    }

    /// Makes ready for a `recvmsg` by the caller; see
    /// [`Receiver::prepare`](super::receive::Receiver::prepare).
    pub fn prepare_receive(&mut self) -> *mut libc::msghdr {
        self.main.receiver.prepare()
    }

    /// Takes over what that `recvmsg` brought.
    pub fn finish_receive(&mut self, outcome: Result<usize>) -> Result<()> {
        match outcome {
            Ok(count) => self.main.receiver.finish(count),
            Err(errno) if is_end(errno) => self.main.receiver.fail(),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Whether nothing has arrived that is not used, nothing waits to be sent,
    /// and the client is there.
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.queue.is_empty() && self.main.receiver.is_at_rest() && self.sender.is_empty() && !self.lost
    }

    /// Whether [`next`](Self::next) would give something.
    pub fn has_next(&self, admit: impl Fn(&Header) -> bool) -> bool {
        !self.queue.is_empty() || self.main.receiver.has_next(admit)
    }

    /// The next command: those that were queued first, then what was received.
    /// `admit` judges the headers of the latter.
    pub fn next(&mut self, admit: impl Fn(&Header) -> bool) -> Result<Next> {
        if let Some(message) = self.queue.pop_front() {
            self.queued_bytes = self.queued_bytes.saturating_sub(message.payload().len());
            self.queued_fds = self.queued_fds.saturating_sub(message.fds.len());
            return Ok(Next::Message(message));
        }
        self.main.receiver.next(&mut self.pool, admit)
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
            Ok(reply) => self.reply(request, reply),
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
        match self.sender.flush(self.main.socket(), &mut self.pool) {
            Flushed::All => Sent::All,
            Flushed::Stuck => Sent::Stuck,
            Flushed::Lost => {
                self.lost = true;
                Sent::Lost
            }
        }
    }

    /// Sends a command to the client and waits for its answer, with no time
    /// limit, whether the connection otherwise waits or not. What else arrives
    /// meanwhile is queued.
    ///
    /// `parts` are the payload. The result is an answer of the right id, type
    /// and command without the error bit.
    pub fn exchange(&mut self, msg_id: u16, cmd: u16, parts: [&[u8]; 2]) -> Result<Box<Message>, Awaited> {
        if self.lost {
            return Err(Awaited::Failed(Errno::ENOTCONN));
        }
        let outcome = self.send_all_replies().and_then(|()| self.send_command(msg_id, cmd, parts));
        let outcome = outcome.and_then(|()| self.await_answer(msg_id, cmd));
        if let Err(Awaited::Lost(_)) = outcome {
            self.lost = true;
        }
        outcome
    }

    /// The client may want its replies before it answers a command.
    fn send_all_replies(&mut self) -> Result<(), Awaited> {
        loop {
            match self.flush() {
                Sent::All => return Ok(()),
                Sent::Lost => return Err(Awaited::Lost(Errno::ENOTCONN)),
                Sent::Stuck => self.wait_writable(false)?,
            }
        }
    }

    fn send_command(&mut self, msg_id: u16, cmd: u16, parts: [&[u8]; 2]) -> Result<(), Awaited> {
        let [first, second] = parts;
        let size = HEADER_SIZE.saturating_add(first.len()).saturating_add(second.len());
        let header = Header::command(msg_id, cmd, u32::try_from(size).unwrap_or(u32::MAX));
        let mut pieces = [header.as_bytes(), first, second];
        let over_twin = self.twin.is_some();
        let socket = self.twin.as_ref().unwrap_or(&self.main).socket();
        while pieces.iter().any(|piece| !piece.is_empty()) {
            match control::send(socket, &pieces.map(control::piece), &[], libc::MSG_DONTWAIT) {
                Ok(mut count) => {
                    for piece in &mut pieces {
                        let part = count.min(piece.len());
                        *piece = piece.get(part..).unwrap_or_default();
                        count -= part;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_writable(over_twin)?,
                Err(_) => return Err(Awaited::Lost(Errno::ENOTCONN)),
            }
        }
        Ok(())
    }

    /// Waits until a socket takes bytes. Commands that arrive on the main one
    /// meanwhile are queued: a client may be unable to read before it has
    /// written.
    fn wait_writable(&mut self, twin: bool) -> Result<(), Awaited> {
        let socket = match (&self.twin, twin) {
            (Some(twin), true) => twin.socket(),
            _ => self.main.socket(),
        };
        // Once it is at its end it has no news, and would tell so for ever.
        let main = if self.ended() { -1 } else { self.main.socket() };
        let mut fds = [
            libc::pollfd { fd: socket, events: libc::POLLOUT, revents: 0 },
            libc::pollfd { fd: main, events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: an array of two pollfd, valid for the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 && Errno::last() != Errno::EINTR {
            return Err(Awaited::Lost(Errno::ENOTCONN));
        }
        if fds[1].revents & libc::POLLIN != 0 {
            match self.receive() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Err(Awaited::Lost(Errno::ENOTCONN)),
            }
            self.queue_commands()?;
        }
        Ok(())
    }

    /// Queues the whole commands that have arrived on the main socket. Nothing
    /// is awaited yet, so a reply among them is one that nobody asked for; it
    /// is left for the request loop to refuse.
    fn queue_commands(&mut self) -> Result<(), Awaited> {
        loop {
            match self.main.receiver.next(&mut self.pool, |_| true) {
                Ok(Next::Message(message)) => self.enqueue(message)?,
                Ok(Next::Nothing) => return Ok(()),
                _ => return Err(Awaited::Lost(Errno::EINVAL)),
            }
        }
    }

    fn enqueue(&mut self, mut message: Box<Message>) -> Result<(), Awaited> {
        self.queued_bytes = self.queued_bytes.saturating_add(message.payload().len());
        self.queued_fds = self.queued_fds.saturating_add(message.fds.len());
        if self.queue.len() >= QUEUE_MAX
            || self.queued_bytes > QUEUE_BYTES_MAX
            || self.queued_fds > MAX_WAITING_FDS
        {
            return Err(Awaited::Lost(Errno::ENOTCONN));
        }
        // What waits long should not hold a large buffer that is mostly unused.
        message.compact();
        memory::push_back(&mut self.queue, message).map_err(Awaited::Lost)
    }

    fn await_answer(&mut self, msg_id: u16, cmd: u16) -> Result<Box<Message>, Awaited> {
        let over_twin = self.twin.is_some();
        loop {
            let channel = self.twin.as_mut().unwrap_or(&mut self.main);
            match channel.receiver.next(&mut self.pool, |_| true) {
                Ok(Next::Message(message)) => {
                    if !over_twin && message.header.message_type() == Some(MessageType::Command) {
                        self.enqueue(message)?;
                        continue;
                    }
                    return self.judge(message, msg_id, cmd);
                }
                Ok(Next::Unfollowable(_)) => return Err(Awaited::Lost(Errno::EINVAL)),
                Ok(Next::Refused(_) | Next::Nothing) => {}
                Err(errno) => return Err(Awaited::Lost(errno)),
            }
            if channel.receiver.ended() {
                return Err(Awaited::Lost(Errno::ENOTCONN));
            }
            let socket = channel.socket();
            match channel.receiver.receive(socket, 0) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Err(Awaited::Lost(Errno::ENOTCONN)),
            }
        }
    }

    /// Judges a whole message that should be the answer. Descriptors that came
    /// with it are closed, as if they had not come.
    fn judge(&mut self, mut message: Box<Message>, msg_id: u16, cmd: u16) -> Result<Box<Message>, Awaited> {
        message.fds.clear();
        let header = message.header;
        let errno = if header.msg_id != msg_id {
            Errno::EPROTO
        } else if header.message_type() != Some(MessageType::Reply) || header.cmd != cmd {
            Errno::EINVAL
        } else if header.flags().contains(HeaderFlags::ERROR) {
            match header.error_no {
                1..=MAX_ERRNO => Errno::new(i32::try_from(header.error_no).unwrap_or(libc::EINVAL)),
                _ => Errno::EINVAL,
            }
        } else {
            return Ok(message);
        };
        self.recycle(message);
        Err(Awaited::Failed(errno))
    }
}
