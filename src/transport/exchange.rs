//! Commands of ours to the client, and their answers.
//!
//! Nothing in here waits. Whoever asks sends what the socket takes, takes the
//! answers that have come, and waits for the sockets in between; it may stop at
//! any point and forget all about it. What is kept here is what the stream needs
//! to stay in step then: the rest of a command that was begun, and the ids of
//! those that are not answered, whose answers are dropped when they come.
//!
//! The body of an answer is received where it is wanted. Where that has to be sure
//! before, its first bytes are received by themselves, and say that it is one. On
//! the twin socket the next message is nearly always the answer, so the start of
//! its body is received with its head, and moved if it is none.

use std::os::fd::RawFd;
use std::ptr::NonNull;

use zerocopy::IntoBytes;

use super::channel::Channel;
use super::connection::{Connection, Received, Sent};
use super::control;
use super::data::{Data, Place};
use super::message::{Message, Next};
use super::send::Flushed;
use super::wait::Wait;
use crate::memory;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Errno, Header, HeaderFlags, MessageType, Result};

/// How many answers, or reads, are dropped in one go while nobody waits for them.
const TIDY_STEPS: usize = 64;

/// Bytes of the payload that an answer repeats.
const HEAD: usize = 16;
/// Up to this size, an answer's body is received with what is before it: to copy
/// it costs less than to receive twice.
const SMALL_BODY: usize = 8192;

/// What is wrong with the answer to one of our commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That transfer failed; the connection goes on.
    Failed(Errno),
    /// The connection is lost.
    Lost(Errno),
}

/// What a `recvmsg` by the caller is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expecting {
    /// The rest of a body.
    Bytes,
    /// The whole of an answer, or its start.
    Answer,
}

/// A command of ours: plain data, with nothing to drop.
#[derive(Clone, Copy, Debug)]
pub struct Outstanding<'a> {
    /// Its id, which no unanswered one has.
    pub msg_id: u16,
    /// Its number.
    pub cmd: u16,
    /// The start of its payload, and of its answer's.
    pub head: [u8; HEAD],
    /// What follows that, in the command or in its answer.
    pub data: Data<'a>,
}

impl Outstanding<'_> {
    /// Whether a header is that of an answer with all the data.
    fn is_answered_by(&self, header: &Header) -> bool {
        self.data.is_read() && self.is_completed_by(header)
    }

    /// The same, or of the answer that a write is done.
    fn is_completed_by(&self, header: &Header) -> bool {
        let body = if self.data.is_read() { self.data.len() } else { 0 };
        header.msg_id == self.msg_id
            && header.cmd == self.cmd
            && header.message_type() == Some(MessageType::Reply)
            && !header.flags().contains(HeaderFlags::ERROR)
            && header.msg_size as usize == HEADER_SIZE.saturating_add(HEAD).saturating_add(body)
    }
}

/// An answer to one of several commands, without the error bit.
#[derive(Debug)]
pub enum Answer {
    /// It repeats the head, and its data are where they are wanted.
    Data(u16),
    /// It has another size than an answer with data, or there are none in it.
    Message(Box<Message>),
}

/// Whether a header is that of an answer.
fn is_reply(header: &Header) -> bool {
    header.message_type() == Some(MessageType::Reply)
}

impl Connection {
    /// Nobody waits any longer for the answers that have not come.
    pub fn abandon_answers(&mut self) {
        self.body = None;
        self.check_answer();
    }

    /// If a thread was cancelled while it received, it is only known whether that
    /// took bytes from the twin socket, and not how many: then the stream is out of
    /// step. (Nearly always it was asleep, and took none.)
    fn check_answer(&mut self) {
        let has_missed = |twin: &Channel| twin.receiver.has_missed();
        if self.expecting.take().is_some() && self.twin.as_ref().is_some_and(has_missed) {
            self.set_lost();
        }
    }

    /// Whether a command with this id is not answered yet.
    pub fn is_unanswered(&self, msg_id: u16) -> bool {
        self.unanswered.has(msg_id)
    }

    /// Whether another command may be sent before an answer has come.
    pub fn may_ask(&self) -> bool {
        !self.unanswered.is_full()
    }

    /// Sends the rest of a command that was begun on the twin socket, as far as
    /// that goes without waiting. It, and all replies, which the client may want
    /// before it answers, must be sent before a command is.
    #[inline(always)]
    pub fn flush_twin(&mut self) -> Sent {
        match self.twin_sender.is_empty() {
            true => Sent::All,
            false => self.send_rest_to_twin(),
        }
    }

    fn send_rest_to_twin(&mut self) -> Sent {
        let Some(twin) = &self.twin else { return Sent::All };
        match self.twin_sender.flush(twin.socket(), &mut self.pool) {
            Flushed::All | Flushed::More => Sent::All,
            Flushed::Stuck => Sent::Stuck,
            Flushed::Lost => {
                self.set_lost();
                Sent::Lost
            }
        }
    }

    /// Sends a command, when nothing waits to be sent: over the twin socket if that is
    /// [open](Self::open_twin). False if the socket takes nothing at the moment. If it
    /// takes a part, the rest is kept, and goes out with the replies or with
    /// [`flush_twin`](Self::flush_twin).
    pub fn send_command(&mut self, command: &Outstanding<'_>) -> Result<bool, Awaited> {
        let data = command.data.written();
        let size = HEADER_SIZE.saturating_add(HEAD).saturating_add(data.len());
        let header = Header::command(command.msg_id, command.cmd, u32::try_from(size).unwrap_or(u32::MAX));
        let mut start = [0; HEADER_SIZE + HEAD];
        let (first, second) = start.split_at_mut(HEADER_SIZE);
        first.copy_from_slice(header.as_bytes());
        second.copy_from_slice(&command.head);
        let socket = self.twin.as_ref().unwrap_or(&self.main).socket();
        let pieces = [&start, data].map(control::piece);
        let sent = loop {
            match control::send(socket, &pieces, &[], libc::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Ok(count) => break count,
                Err(_) => return Err(self.lose_connection(Errno::ENOTCONN)),
            }
        };
        self.unanswered.insert(command.msg_id);
        if sent < size {
            let rest = [
                start.get(sent..).unwrap_or_default(),
                data.get(sent.saturating_sub(start.len())..).unwrap_or_default(),
            ];
            let sender = if self.twin.is_some() { &mut self.twin_sender } else { &mut self.sender };
            if let Err(errno) = sender.push_rest(rest, &mut self.pool) {
                return Err(self.lose_connection(errno));
            }
        }
        Ok(true)
    }

    fn lose_connection(&mut self, errno: Errno) -> Awaited {
        self.set_lost();
        Awaited::Lost(errno)
    }

    /// Receives without waiting where answers come, when the socket has
    /// something: straight into the memory of the command that is answered.
    pub fn receive_answer(&mut self, awaited: &[Outstanding<'_>]) -> Result<(), Awaited> {
        let expects_large = awaited.iter().any(|one| one.data.is_read() && one.data.len() > SMALL_BODY);
        let body = self.body.and_then(|id| awaited.iter().find(|one| one.msg_id == id));
        let channel = self.twin.as_mut().unwrap_or(&mut self.main);
        let (socket, receiver) = (channel.socket(), &mut channel.receiver);
        // So much at once that no body gets into the buffer.
        let start = HEADER_SIZE + HEAD;
        let most = match receiver.next_header() {
            _ if !expects_large => usize::MAX,
            Some(header) if !awaited.iter().any(|one| one.is_answered_by(&header)) => usize::MAX,
            _ => receiver.body_left().saturating_add(start).saturating_sub(receiver.partial().0).max(1),
        };
        let left = receiver.body_left();
        let outcome = match body.and_then(|one| one.data.rest_to_read(left)) {
            Some((to, left)) => {
                let most = if expects_large { start } else { usize::MAX };
                // SAFETY: there is room for so many bytes, as `Data` promises.
                unsafe { receiver.receive_body(socket, to, left, most) }
            }
            _ if !receiver.is_hungry() => Ok(false),
            _ => receiver.receive_most(socket, most),
        };
        match outcome {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(self.lose_connection(Errno::ENOTCONN)),
        }
    }

    /// Makes ready for one `recvmsg` on the twin socket, which waits
    /// for some time, and whose outcome [`finish_answer`](Self::finish_answer) is
    /// to be told. None if something else is to be waited for, too, or what comes
    /// may be something else: see [`answer_interest`](Self::answer_interest).
    pub fn wait_answer(&mut self, awaited: &[Outstanding<'_>]) -> Option<Wait> {
        let [Outstanding { msg_id, data, .. }] = awaited else { return None };
        if self.has_unsent() || !self.twin_sender.is_empty() || self.unanswered.len() > 1 {
            return None;
        }
        if !self.limit_answer_wait() {
            return None;
        }
        let twin = self.twin.as_mut()?;
        let receiver = &mut twin.receiver;
        let left = receiver.body_left();
        let (expecting, message) = match (data.rest_to_read(left), data.place()) {
            (Some((to, left)), _) if self.body == Some(*msg_id) => {
                (Expecting::Bytes, receiver.prepare_body(to, left, HEADER_SIZE + HEAD))
            }
            _ if self.body.is_some() || !receiver.can_split() => return None,
            (_, Place::Read(to)) => (Expecting::Answer, receiver.prepare_split::<HEAD>(to, data.len())),
            (_, Place::Write(_)) => {
                (Expecting::Answer, receiver.prepare_split::<HEAD>(NonNull::dangling().as_ptr(), 0))
            }
        };
        self.expecting = Some(expecting);
        Some(Wait::receive(twin.socket(), message))
    }

    /// Takes over what that `recvmsg` brought. False if its time was over.
    /// `awaited` are the same.
    pub fn finish_answer(
        &mut self,
        awaited: &[Outstanding<'_>],
        outcome: Result<usize>,
    ) -> Result<bool, Awaited> {
        let expecting = self.expecting.take();
        let count = match outcome {
            Ok(count) => count,
            Err(Errno::EAGAIN) => return Ok(false),
            Err(_) => return Err(self.lose_connection(Errno::ENOTCONN)),
        };
        let Some(twin) = &mut self.twin else { return Ok(true) };
        let expected = match (expecting, awaited) {
            (Some(Expecting::Answer), [one]) => {
                let nowhere = (NonNull::dangling().as_ptr(), 0);
                Some((one, one.data.rest_to_read(usize::MAX).unwrap_or(nowhere)))
            }
            _ => None,
        };
        let Some((one, (to, room))) = expected else {
            twin.receiver.finish(count);
            return Ok(true);
        };
        if count > room.saturating_add(HEADER_SIZE + HEAD) {
            return Err(self.lose_connection(Errno::ENOTCONN));
        }
        let is_answer = |header: &Header, head: &_| one.is_completed_by(header) && *head == one.head;
        // SAFETY: it is what `wait_answer` was told, and the kernel wrote no more there
        // than there is room for.
        match unsafe { twin.receiver.finish_split::<HEAD>(count, to, is_answer, &mut self.pool) } {
            Ok(true) => {
                self.unanswered.remove(one.msg_id);
                self.body = Some(one.msg_id);
            }
            Ok(false) => {}
            Err(errno) => return Err(self.lose_connection(errno)),
        }
        Ok(true)
    }

    /// The next answer to one of the commands, if it has come. On the main
    /// socket, commands that come between are queued.
    #[inline(always)]
    pub fn take_answer(&mut self, awaited: &[Outstanding<'_>]) -> Result<Option<Answer>, Awaited> {
        // As nearly always when a command has just been sent.
        if self.body.is_none() && self.twin.as_ref().unwrap_or(&self.main).receiver.is_at_rest() {
            return Ok(None);
        }
        self.take_answer_of_some(awaited)
    }

    fn take_answer_of_some(&mut self, awaited: &[Outstanding<'_>]) -> Result<Option<Answer>, Awaited> {
        let taken = self.try_take_answer(awaited);
        if let Err(Awaited::Lost(_)) = taken {
            self.set_lost();
        }
        taken
    }

    fn try_take_answer(&mut self, awaited: &[Outstanding<'_>]) -> Result<Option<Answer>, Awaited> {
        loop {
            let over_twin = self.twin.is_some();
            let receiver = &mut self.twin.as_mut().unwrap_or(&mut self.main).receiver;
            if let Some(msg_id) = self.body {
                let left = receiver.body_left();
                let command = awaited.iter().find(|one| one.msg_id == msg_id);
                if let Some((to, left)) = command.and_then(|one| one.data.rest_to_read(left)) {
                    // SAFETY: as in `receive_answer`.
                    unsafe { receiver.take_body(to, left) };
                }
                if receiver.body_left() > 0 {
                    return self.nothing_yet();
                }
                self.body = None;
                return Ok(Some(Answer::Data(msg_id)));
            }
            if let Some(header) = receiver.next_header()
                && let Some(command) = awaited.iter().find(|one| one.is_answered_by(&header))
            {
                let Some(head) = receiver.take_head() else { return self.nothing_yet() };
                self.unanswered.remove(command.msg_id);
                if head != command.head {
                    return Err(Awaited::Failed(Errno::EINVAL));
                }
                self.body = Some(command.msg_id);
                continue;
            }
            let unanswered = &self.unanswered;
            let is_late = |header: &Header| {
                is_reply(header)
                    && unanswered.has(header.msg_id)
                    && awaited.iter().all(|one| one.msg_id != header.msg_id)
            };
            match receiver.next(&mut self.pool, |header| !is_late(header)) {
                Ok(Next::Message(message)) if is_late(&message.header) => {
                    self.unanswered.remove(message.header.msg_id);
                    self.recycle(message);
                }
                Ok(Next::Message(message))
                    if !over_twin && message.header.message_type() == Some(MessageType::Command) =>
                {
                    self.enqueue(message)?;
                }
                Ok(Next::Message(message)) => {
                    return self.judge_answer(message, awaited).map(|message| Some(Answer::Message(message)));
                }
                Ok(Next::Refused(header)) => {
                    self.unanswered.remove(header.msg_id);
                }
                Ok(Next::Unfollowable(_)) => return Err(Awaited::Lost(Errno::EINVAL)),
                Ok(Next::Nothing) => return self.nothing_yet(),
                Err(errno) => return Err(Awaited::Lost(errno)),
            }
        }
    }

    /// No answer is there: either it will come, or the connection is lost.
    fn nothing_yet(&self) -> Result<Option<Answer>, Awaited> {
        match self.twin.as_ref().unwrap_or(&self.main).receiver.ended() {
            true => Err(Awaited::Lost(Errno::ENOTCONN)),
            false => Ok(None),
        }
    }

    /// Judges a whole message that should be an answer. Descriptors that came
    /// with it are closed, as if they had not come.
    fn judge_answer(
        &mut self,
        mut message: Box<Message>,
        awaited: &[Outstanding<'_>],
    ) -> Result<Box<Message>, Awaited> {
        message.fds.clear();
        let header = message.header;
        let errno = match awaited.iter().find(|one| one.msg_id == header.msg_id) {
            None => {
                // It stands where the answer to the oldest one should.
                if let Some(oldest) = awaited.first() {
                    self.unanswered.remove(oldest.msg_id);
                }
                Errno::EPROTO
            }
            Some(command) => {
                self.unanswered.remove(command.msg_id);
                if !is_reply(&header) || header.cmd != command.cmd {
                    Errno::EINVAL
                } else if let Some(errno) = header.failure() {
                    errno
                } else {
                    return Ok(message);
                }
            }
        };
        self.recycle(message);
        Err(Awaited::Failed(errno))
    }

    /// Takes what has come on the main socket while a command waits for room on
    /// the twin one: a client may be unable to read there before it has written
    /// here. A reply is none that anybody asked for; it is left for the request
    /// loop to refuse.
    pub fn queue_commands(&mut self) -> Result<(), Awaited> {
        match self.receive() {
            Ok(Received::Something | Received::Nothing) | Err(Errno::EINTR) => {}
            Err(_) => return Err(self.lose_connection(Errno::ENOTCONN)),
        }
        loop {
            let queued = match self.main.receiver.next(&mut self.pool, |_| true) {
                Ok(Next::Message(message)) => self.enqueue(message),
                Ok(Next::Nothing) => return Ok(()),
                _ => Err(Awaited::Lost(Errno::EINVAL)),
            };
            if queued.is_err() {
                self.set_lost();
                return queued;
            }
        }
    }

    fn enqueue(&mut self, mut message: Box<Message>) -> Result<(), Awaited> {
        if !self.allowance.take_with(message.cost(), &message.fds) {
            return Err(Awaited::Lost(Errno::ENOTCONN));
        }
        // What waits long should not hold a large buffer that is mostly unused.
        message.compact();
        memory::push_back(&mut self.queue, message).map_err(Awaited::Lost)
    }

    /// What to wait for: the socket with the answers, then the main one if that
    /// is another (else none). Their hanging up is always told. `blocked`: the
    /// first has not taken a command.
    pub fn answer_interest(&self, blocked: bool) -> Wait {
        let room = |wanted| if wanted { libc::POLLOUT } else { 0 };
        let Some(twin) = &self.twin else {
            let blocked = blocked || self.has_unsent();
            return Wait::ready([(self.main.socket(), libc::POLLIN | room(blocked)), (-1, 0)]);
        };
        let stuck = self.has_unsent();
        let blocked = !stuck && (blocked || !self.twin_sender.is_empty());
        // At its end, the main socket has no news, and would tell so for ever.
        let reads = (stuck || blocked) && !self.ended();
        let main = room(stuck) | if reads { libc::POLLIN } else { 0 };
        Wait::ready([(twin.socket(), libc::POLLIN | room(blocked)), (self.main.socket(), main)])
    }

    /// Whether what stands next on the main socket is an answer that nobody
    /// waits for any longer. It is taken off the list.
    pub(super) fn is_late(&mut self, next: &Next) -> bool {
        let header = match next {
            Next::Message(message) => &message.header,
            Next::Refused(header) => header,
            _ => return false,
        };
        self.twin.is_none() && is_reply(header) && self.unanswered.remove(header.msg_id)
    }

    /// The twin socket, if something is unfinished there that
    /// [`tidy_twin`](Self::tidy_twin) should go on with while nobody asks
    /// anything; and whether that waits for room.
    #[inline(always)]
    pub fn late_socket(&self) -> Option<(RawFd, bool)> {
        self.twin.as_ref().and_then(|twin| self.unfinished(twin))
    }

    fn unfinished(&self, twin: &Channel) -> Option<(RawFd, bool)> {
        let is_late = !self.unanswered.is_empty() || twin.receiver.body_left() > 0;
        (is_late && !twin.receiver.ended()).then(|| (twin.socket(), !self.twin_sender.is_empty()))
    }

    /// Goes on with what is unfinished on the twin socket while nobody asks
    /// anything there, some steps far: sends the rest of a command, and drops
    /// what comes.
    pub fn tidy_twin(&mut self) {
        self.check_answer();
        for _ in 0..TIDY_STEPS {
            if self.late_socket().is_none() || self.flush_twin() == Sent::Lost {
                return;
            }
            let Some(twin) = &mut self.twin else { return };
            match twin.receiver.next(&mut self.pool, |_| false) {
                Ok(Next::Refused(header)) => {
                    self.unanswered.remove(header.msg_id);
                }
                Ok(Next::Message(message)) => {
                    self.unanswered.remove(message.header.msg_id);
                    self.recycle(message);
                }
                Ok(Next::Nothing) => match twin.receiver.receive(twin.socket(), libc::MSG_DONTWAIT) {
                    Ok(true) => {}
                    _ => return,
                },
                _ => return self.set_lost(),
            }
        }
    }
}
