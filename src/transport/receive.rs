//! Receiving: bytes come in as many at a time as there are, messages go out
//! one by one.
//!
//! Bytes are read into one buffer, which is small until a message or a burst
//! needs more. A small message is copied out of it, so that the next ones can go
//! on being read behind it; a middling one takes the whole buffer along if that
//! moves fewer bytes; one that doesn't fit is collected in a buffer of its own,
//! into which the kernel then writes directly.

mod body;
mod handover;
mod short;

use std::os::fd::RawFd;

use super::buffer::{Buffer, FIRST, MARGIN, SHORT, STANDARD};
use super::control::{self, Header as SocketHeader};
use super::message::{Message, Next};
use super::pool::Pool;
use super::waiting::{Seen, Waiting};
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Errno, Header, Result, take};

/// Messages up to this size are always copied: that costs next to nothing, and any
/// buffer has room for them.
const SMALL: usize = 256;
const _: () = assert!(SMALL <= SHORT);

/// Says whether a message may carry descriptors, by its header and what there is
/// of its payload. None: not enough of it is there.
pub type MayCarryFds = fn(&Header, &[u8]) -> Option<bool>;

/// A message that is too large for the buffer.
#[derive(Debug)]
struct Large {
    header: Header,
    /// Bytes of it, header included, that have arrived: they stand at the start of
    /// `buffer`, aligned as in the memory of who sent them and of the socket.
    have: usize,
    buffer: Buffer,
}

impl Large {
    fn size(&self) -> usize {
        self.header.msg_size as usize
    }

    fn is_whole(&self) -> bool {
        self.have >= self.size()
    }
}

/// One direction of a socket: what came in and is not used yet.
#[derive(Debug)]
pub struct Receiver {
    buffer: Buffer,
    /// Bytes `head..tail` of the buffer have arrived and are not used.
    head: usize,
    tail: usize,
    large: Option<Large>,
    /// Bytes of a message that are still to come and that nobody gets as one:
    /// it was refused, or its payload is taken by [`take_body`](Self::take_body).
    /// What nobody takes is dropped.
    skip: usize,
    /// Of these, how many the kernel may write where they are wanted.
    offered: usize,
    /// Position in the stream of the next byte to be used.
    used: u64,
    waiting: Waiting,
    /// The peer will send no more.
    ended: bool,
    may_carry_fds: MayCarryFds,
    socket_header: Box<SocketHeader>,
}

impl Receiver {
    pub fn new(pool: &mut Pool, may_carry_fds: MayCarryFds) -> Result<Receiver> {
        Ok(Receiver {
            buffer: pool.take(FIRST)?,
            head: 0,
            tail: 0,
            large: None,
            skip: 0,
            offered: 0,
            used: 0,
            waiting: Waiting::default(),
            ended: false,
            may_carry_fds,
            socket_header: SocketHeader::new()?,
        })
    }

    /// Whether the peer has ended its side, or the socket failed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether nothing of the next message has arrived.
    pub fn at_boundary(&self) -> bool {
        self.large.is_none() && self.skip == 0 && self.head == self.tail
    }

    /// Whether nothing that has arrived is unused, and the peer has not ended.
    #[inline(always)]
    pub fn is_at_rest(&self) -> bool {
        self.head == self.tail && self.large.is_none() && !self.ended
    }

    /// Bytes of the next message that have arrived, and that message's size if
    /// its header has.
    pub fn partial(&self) -> (usize, Option<usize>) {
        match &self.large {
            Some(large) => (large.have, Some(large.size())),
            None => (self.tail.saturating_sub(self.head), self.peek().map(|header| header.msg_size as usize)),
        }
    }

    /// Whether a call of [`next`](Self::next) would give something.
    pub fn has_next(&self, admit: impl Fn(&Header) -> bool) -> bool {
        if self.waiting.holds(self.used) {
            return false;
        }
        if let Some(large) = &self.large {
            return large.is_whole();
        }
        if self.head == self.tail || self.skip > 0 {
            return false;
        }
        match self.peek() {
            None => false,
            Some(header) => {
                let size = header.msg_size as usize;
                // One that is refused is so before its body has come.
                header.size().is_err() || !admit(&header) || size <= self.tail.saturating_sub(self.head)
            }
        }
    }

    /// Whether to receive. Not if there is no room: the buffer is full of whole
    /// messages, or full behind a large one that is whole. (Nothing would be
    /// received, and that is how the end looks.) And not if descriptors wait for
    /// messages that can be executed first: those that come would be added.
    pub fn is_hungry(&self) -> bool {
        let large_has_room = self.large.as_ref().is_some_and(|large| !large.is_whole());
        let has_room = large_has_room || self.head > 0 || self.tail < self.end_of_room();
        has_room && !self.ended && (self.waiting.is_empty() || !self.has_next(|_| true))
    }

    /// How far the buffer may be filled at the moment.
    #[inline(always)]
    fn end_of_room(&self) -> usize {
        let margin = if self.waiting.is_open() { 0 } else { MARGIN };
        self.buffer.len().saturating_sub(margin)
    }

    /// Makes ready for a `recvmsg` by somebody else, whose outcome
    /// [`finish`](Self::finish) is to be told. Until then, nothing else may be
    /// done with the receiver.
    #[inline(always)]
    pub fn prepare(&mut self) -> *mut libc::msghdr {
        self.prepare_most(usize::MAX)
    }

    /// The same, for at most `most` bytes if no large message is being received.
    fn prepare_most(&mut self, most: usize) -> *mut libc::msghdr {
        self.offered = 0;
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        } else if self.head > 0 && self.tail >= self.end_of_room() {
            self.compact();
        }
        let end = self.end_of_room().min(self.tail.saturating_add(most));
        let rest = control::piece_mut(self.buffer.range_mut(self.tail, end));
        match &mut self.large {
            None => self.socket_header.prepare(rest, None),
            Some(large) => {
                let first = control::piece_mut(large.buffer.range_mut(large.have, large.size()));
                self.socket_header.prepare(first, Some(rest))
            }
        }
    }

    /// Takes over what a `recvmsg` brought: `count` bytes, 0 for the end.
    #[inline(always)]
    pub fn finish(&mut self, count: usize) {
        let is_plain = count > 0 && self.large.is_none() && self.skip == 0 && self.waiting.is_empty();
        if is_plain && self.socket_header.has_no_control() {
            self.tail = self.tail.saturating_add(count).min(self.buffer.len());
        } else {
            self.finish_with_care(count);
        }
    }

    /// The whole of [`finish`](Self::finish).
    #[inline(never)]
    fn finish_with_care(&mut self, count: usize) {
        let mut fds = Vec::new();
        let is_cut = self.socket_header.collect(&mut fds);
        self.ended |= count == 0;
        let start = self.received();
        let mut rest = count;
        let taken = rest.min(self.offered);
        self.offered = 0;
        self.skip = self.skip.saturating_sub(taken);
        self.used = self.used.saturating_add(taken as u64);
        rest = rest.saturating_sub(taken);
        if let Some(large) = &mut self.large {
            let part = rest.min(large.size().saturating_sub(large.have));
            large.have = large.have.saturating_add(part);
            rest = rest.saturating_sub(part);
        }
        self.tail = self.tail.saturating_add(rest).min(self.buffer.len());
        let read = (start, self.received());
        self.drop_skipped();
        let mut waiting = std::mem::take(&mut self.waiting);
        let settled = waiting.settle(self.ended, self.seen());
        let added = match fds.is_empty() && !is_cut {
            true => Ok(()),
            false => waiting.add(read, fds, is_cut.then_some(Errno::EINVAL), self.seen()),
        };
        let received = self.received();
        if !waiting.is_empty()
            && let Some(last) = self.seen().last().filter(|last| last.end > received)
        {
            waiting.limit_unfinished(last.at);
        }
        self.waiting = waiting;
        if settled.and(added).is_err() {
            self.give_up_stream();
        }
    }

    /// Position in the stream behind the last byte that has arrived.
    fn received(&self) -> u64 {
        let large = self.large.as_ref().map_or(0, |large| large.have);
        let arrived = large.saturating_add(self.tail.saturating_sub(self.head));
        self.used.saturating_add(arrived as u64)
    }

    /// The messages of which bytes have arrived, but for one that was refused.
    fn seen(&self) -> impl Iterator<Item = Seen> {
        let mut at = self.used;
        let large = self.large.as_ref().map(|large| {
            let end = at.saturating_add(large.size() as u64);
            let arrived = large.buffer.range(HEADER_SIZE, large.have);
            let carries = (self.may_carry_fds)(&large.header, arrived).or(large.is_whole().then_some(false));
            Seen { at: std::mem::replace(&mut at, end), end, carries }
        });
        let mut rest = match self.skip {
            0 => self.buffer.range(self.head, self.tail),
            _ => &[],
        };
        let buffered = std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let start = at;
            let (size, carries) = match take::<Header>(rest) {
                Err(_) => (HEADER_SIZE, None),
                Ok((header, arrived)) => match header.size() {
                    // Nothing is known of what follows.
                    Err(_) => (rest.len(), Some(false)),
                    Ok(size) => {
                        let payload = size.saturating_sub(HEADER_SIZE);
                        let start = arrived.get(..payload.min(arrived.len())).unwrap_or_default();
                        let is_whole = payload <= arrived.len();
                        (size, (self.may_carry_fds)(&header, start).or(is_whole.then_some(false)))
                    }
                },
            };
            at = at.saturating_add(size as u64);
            rest = rest.get(size..).unwrap_or_default();
            Some(Seen { at: start, end: at, carries })
        });
        large.into_iter().chain(buffered)
    }

    /// Descriptors had to be dropped, and there is no telling whose: nothing of
    /// what has arrived can be executed.
    fn give_up_stream(&mut self) {
        (self.head, self.tail) = (0, 0);
        self.large = None;
        self.waiting.clear();
        self.ended = true;
    }

    /// The socket failed in a way that ends the connection.
    pub fn fail(&mut self) {
        self.ended = true;
        let mut waiting = std::mem::take(&mut self.waiting);
        let settled = waiting.settle(true, self.seen());
        self.waiting = waiting;
        if settled.is_err() {
            self.give_up_stream();
        }
    }

    /// Receives once: `Ok(true)` if bytes or the end came, `Ok(false)` if the
    /// call would have had to wait (which it does without `MSG_DONTWAIT` in
    /// `flags`).
    pub fn receive(&mut self, socket: RawFd, flags: libc::c_int) -> Result<bool> {
        let message = self.prepare();
        // SAFETY: the header that `prepare` made, and all it points to, belong
        // to self, which nobody else can touch during the call.
        unsafe { self.receive_prepared(socket, message, flags) }
    }

    /// The same without waiting, for at most `most` bytes if no large message is
    /// being received.
    pub fn receive_most(&mut self, socket: RawFd, most: usize) -> Result<bool> {
        let message = self.prepare_most(most);
        // SAFETY: as in `receive`.
        unsafe { self.receive_prepared(socket, message, libc::MSG_DONTWAIT) }
    }

    /// # Safety
    ///
    /// `message` is what was prepared just now, and good for `recvmsg`.
    unsafe fn receive_prepared(
        &mut self,
        socket: RawFd,
        message: *mut libc::msghdr,
        flags: libc::c_int,
    ) -> Result<bool> {
        // SAFETY: the caller's promise.
        let outcome = unsafe { control::receive(socket, message, flags) };
        self.finish_outcome(outcome)
    }

    /// Takes over what came of a `recvmsg`. As [`receive`](Self::receive).
    fn finish_outcome(&mut self, outcome: Result<usize>) -> Result<bool> {
        match outcome {
            Ok(count) => self.finish(count),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(errno) if is_end(errno) => self.fail(),
            Err(errno) => return Err(errno),
        }
        Ok(true)
    }

    /// The next thing in the stream. `admit` judges headers whose size makes
    /// sense; what it refuses is dropped, body and descriptors.
    #[inline(always)]
    pub fn next(&mut self, pool: &mut Pool, admit: impl Fn(&Header) -> bool) -> Result<Next> {
        if self.head == self.tail && self.large.is_none() && self.tail < self.end_of_room() {
            return Ok(Next::Nothing);
        }
        self.next_of_some(pool, admit)
    }

    fn next_of_some(&mut self, pool: &mut Pool, admit: impl Fn(&Header) -> bool) -> Result<Next> {
        if self.waiting.holds(self.used) {
            return Ok(Next::Nothing);
        }
        if let Some(large) = &self.large {
            return if large.is_whole() { self.take_large(pool) } else { Ok(Next::Nothing) };
        }
        if self.skip > 0 {
            return Ok(Next::Nothing);
        }
        let Some(header) = self.peek() else {
            return self.make_room(HEADER_SIZE, pool);
        };
        let size = match header.size() {
            Err(_) => return Ok(Next::Unfollowable(header)),
            Ok(size) => size,
        };
        if !admit(&header) {
            self.skip = size;
            drop(self.waiting.take(self.used));
            self.drop_skipped();
            return Ok(Next::Refused(header));
        }
        let have = self.tail.saturating_sub(self.head);
        if size <= have {
            return self.take_whole(header, size, pool).map(Next::Message);
        }
        if size > STANDARD - MARGIN {
            self.start_large(header, size, pool)?;
            return Ok(Next::Nothing);
        }
        self.make_room(size, pool)
    }

    /// Makes room for the whole of the next message, which is `size` bytes, and
    /// for more if as much came as there was room for.
    fn make_room(&mut self, size: usize, pool: &mut Pool) -> Result<Next> {
        let room = self.end_of_room();
        if self.head.saturating_add(size) <= room && self.tail < room {
            return Ok(Next::Nothing);
        }
        if self.buffer.len() < STANDARD {
            self.grow(pool)?;
        } else {
            self.compact();
        }
        Ok(Next::Nothing)
    }

    /// Whether the first buffer is full: more may have come than it holds.
    #[inline(always)]
    pub fn is_outgrown(&self) -> bool {
        self.tail >= self.end_of_room() && self.buffer.len() < STANDARD
    }

    /// Takes a buffer of ordinary size in place of the first one.
    pub fn grow(&mut self, pool: &mut Pool) -> Result<()> {
        let mut buffer = pool.take(STANDARD)?;
        copy(&mut buffer, self.buffer.range(self.head, self.tail));
        pool.put(std::mem::replace(&mut self.buffer, buffer));
        (self.head, self.tail) = (0, self.tail.saturating_sub(self.head));
        Ok(())
    }

    /// The next header, if the whole of it has arrived.
    fn peek(&self) -> Option<Header> {
        let (header, _) = take::<Header>(self.buffer.range(self.head, self.tail)).ok()?;
        Some(header)
    }

    /// Takes a whole message of `size` bytes from the buffer.
    #[inline(always)]
    fn take_whole(&mut self, header: Header, size: usize, pool: &mut Pool) -> Result<Box<Message>> {
        let mut message = pool.take_message()?;
        message.header = header;
        let (start, end) = (self.head.saturating_add(HEADER_SIZE), self.head.saturating_add(size));
        if size > SMALL {
            self.take_middling(&mut message, start, end, pool)?;
        } else {
            copy(&mut message.buffer, self.buffer.range(start, end));
            (message.start, message.end) = (0, end.saturating_sub(start));
            self.head = end;
        }
        self.hand_over(&mut message, size);
        Ok(message)
    }

    /// Copies bytes `start..end`; or leaves them where they are and gives the
    /// buffer to the message, in exchange for its own, if to move what follows is
    /// cheaper.
    fn take_middling(
        &mut self,
        message: &mut Message,
        start: usize,
        end: usize,
        pool: &mut Pool,
    ) -> Result<()> {
        let size = end.saturating_sub(start);
        if message.buffer.len() < self.buffer.len() {
            let larger = pool.take(self.buffer.len())?;
            pool.put(std::mem::replace(&mut message.buffer, larger));
        }
        let is_aligned = start.is_multiple_of(size_of::<u64>());
        if is_aligned && self.tail.saturating_sub(end) < size {
            std::mem::swap(&mut self.buffer, &mut message.buffer);
            copy(&mut self.buffer, message.buffer.range(end, self.tail));
            (self.head, self.tail) = (0, self.tail.saturating_sub(end));
            (message.start, message.end) = (start, end);
        } else {
            copy(&mut message.buffer, self.buffer.range(start, end));
            (message.start, message.end) = (0, size);
            self.head = end;
        }
        Ok(())
    }

    /// From now on the message at `head` is collected in a buffer of its own.
    fn start_large(&mut self, header: Header, size: usize, pool: &mut Pool) -> Result<()> {
        let mut buffer = pool.take(size)?;
        copy(&mut buffer, self.buffer.range(self.head, self.tail));
        let have = self.tail.saturating_sub(self.head);
        (self.head, self.tail) = (0, 0);
        self.large = Some(Large { header, have, buffer });
        Ok(())
    }

    fn take_large(&mut self, pool: &mut Pool) -> Result<Next> {
        let mut message = pool.take_message()?;
        let Some(large) = self.large.take() else {
            return Ok(Next::Nothing);
        };
        let size = large.size();
        message.header = large.header;
        pool.put(std::mem::replace(&mut message.buffer, large.buffer));
        (message.start, message.end) = (HEADER_SIZE, size);
        self.hand_over(&mut message, size);
        Ok(Next::Message(message))
    }

    /// `size` bytes, which are this message, are used; its descriptors go with it.
    #[inline(always)]
    fn hand_over(&mut self, message: &mut Message, size: usize) {
        message.missing_fds = None;
        if !self.waiting.is_empty() {
            (message.fds, message.missing_fds) = self.waiting.take(self.used);
        }
        self.used = self.used.saturating_add(size as u64);
    }

    /// Drops what has arrived of a refused message, with its descriptors.
    #[inline]
    fn drop_skipped(&mut self) {
        if self.skip == 0 {
            return;
        }
        let part = self.skip.min(self.tail.saturating_sub(self.head));
        self.skip = self.skip.saturating_sub(part);
        self.head = self.head.saturating_add(part);
        self.used = self.used.saturating_add(part as u64);
    }

    /// Moves what is there to the start of the buffer.
    fn compact(&mut self) {
        let (head, tail) = (self.head, self.tail.min(self.buffer.len()));
        if head <= tail {
            self.buffer.bytes_mut().copy_within(head..tail, 0);
            (self.head, self.tail) = (0, tail - head);
        }
    }
}

/// Whether a failure to receive means that the connection is at its end.
pub fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::ECONNRESET | Errno::ENOTCONN)
}

/// Copies `from` to the start of `to`.
fn copy(to: &mut Buffer, from: &[u8]) {
    if let Some(to) = to.bytes_mut().get_mut(..from.len()) {
        to.copy_from_slice(from);
    }
}
