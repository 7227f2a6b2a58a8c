//! Receiving: bytes come in as many at a time as there are, messages go out
//! one by one.
//!
//! Bytes are read into one standard buffer. A small message is copied out of
//! it, so that the next ones can go on being read behind it; a middling one
//! takes the whole buffer along if that moves fewer bytes; one that doesn't fit
//! is collected in a buffer of its own, into which the kernel then writes
//! directly.
//!
//! Descriptors belong to the message that holds the last byte of the read that
//! they came with: the kernel ends a read behind the send that carried them.

use std::collections::VecDeque;
use std::os::fd::{OwnedFd, RawFd};

use super::buffer::{Buffer, STANDARD};
use super::control::{self, Header as SocketHeader};
use super::message::{Message, Next};
use super::pool::Pool;
use crate::memory;
use crate::wire::limits::{HEADER_SIZE, MAX_MESSAGE_SIZE, MAX_WAITING_FDS};
use crate::wire::{Errno, Header, Result, take};

/// Messages up to this size are always copied: that costs next to nothing.
const SMALL: usize = 256;

/// Descriptors of one read.
#[derive(Debug)]
struct Batch {
    /// Position in the stream of the last byte of that read.
    at: u64,
    fds: Vec<OwnedFd>,
    cut: bool,
}

/// A message that is too large for the buffer.
#[derive(Debug)]
struct Large {
    header: Header,
    /// Bytes of it, header included, that have arrived: they stand in
    /// `buffer`, the payload at its start.
    have: usize,
    buffer: Buffer,
}

impl Large {
    fn size(&self) -> usize {
        self.header.msg_size as usize
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
    /// Bytes received and bytes used since the connection began.
    received: u64,
    used: u64,
    batches: VecDeque<Batch>,
    /// The peer will send no more.
    ended: bool,
    socket_header: Box<SocketHeader>,
}

impl Receiver {
    pub fn new(pool: &mut Pool) -> Result<Receiver> {
        Ok(Receiver {
            buffer: pool.take(STANDARD)?,
            head: 0,
            tail: 0,
            large: None,
            skip: 0,
            offered: 0,
            received: 0,
            used: 0,
            batches: VecDeque::new(),
            ended: false,
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
        if let Some(large) = &self.large {
            return large.have >= large.size();
        }
        if self.head == self.tail || self.skip > 0 {
            return false;
        }
        match self.peek() {
            None => false,
            Some(header) => {
                let size = header.msg_size as usize;
                // One that is refused is so before its body has come.
                judge(&header).is_err() || !admit(&header) || size <= self.tail.saturating_sub(self.head)
            }
        }
    }

    /// Whether there is room to receive into. There always is, unless the
    /// buffer is full of whole messages, or full behind a large one that is
    /// whole. (Without room, nothing would be received, and that is how the
    /// end looks.)
    pub fn has_room(&self) -> bool {
        let large_has_room = self.large.as_ref().is_some_and(|large| large.have < large.size());
        !self.ended && (large_has_room || self.head > 0 || self.tail < self.buffer.len())
    }

    /// Makes ready for a `recvmsg` by somebody else, whose outcome
    /// [`finish`](Self::finish) is to be told. Until then, nothing else may be
    /// done with the receiver.
    pub fn prepare(&mut self) -> *mut libc::msghdr {
        self.prepare_most(usize::MAX)
    }

    /// The same, for at most `most` bytes if no large message is being received.
    fn prepare_most(&mut self, most: usize) -> *mut libc::msghdr {
        self.offered = 0;
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        } else if self.head > 0 && self.tail == self.buffer.len() {
            self.compact();
        }
        let capacity = self.buffer.len();
        let end = capacity.min(self.tail.saturating_add(most));
        let rest = control::piece_mut(self.buffer.range_mut(self.tail, end));
        match &mut self.large {
            Some(large) => {
                let (from, to) =
                    (large.have.saturating_sub(HEADER_SIZE), large.size().saturating_sub(HEADER_SIZE));
                let first = control::piece_mut(large.buffer.range_mut(from, to));
                self.socket_header.prepare(first, Some(rest))
            }
            None => self.socket_header.prepare(rest, None),
        }
    }

    /// Takes over what a `recvmsg` brought: `count` bytes, 0 for the end.
    #[inline(always)]
    pub fn finish(&mut self, count: usize) {
        let is_plain = count > 0 && self.large.is_none() && self.skip == 0;
        if is_plain && self.socket_header.has_no_control() {
            self.received = self.received.saturating_add(count as u64);
            self.tail = self.tail.saturating_add(count).min(self.buffer.len());
        } else {
            self.finish_with_care(count);
        }
    }

    /// The whole of [`finish`](Self::finish).
    #[inline(never)]
    fn finish_with_care(&mut self, count: usize) {
        let mut fds = Vec::new();
        let mut cut = self.socket_header.collect(&mut fds);
        let waiting: usize = self.batches.iter().map(|batch| batch.fds.len()).sum();
        if waiting.saturating_add(fds.len()) > MAX_WAITING_FDS {
            // A message that is never whole would take all that the process can open.
            fds.clear();
            cut = true;
        }
        if count == 0 {
            self.ended = true;
            return;
        }
        self.received = self.received.saturating_add(count as u64);
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
        if !fds.is_empty() || cut {
            let batch = Batch { at: self.received.saturating_sub(1), fds, cut };
            if memory::push_back(&mut self.batches, batch).is_err() {
                return self.give_up();
            }
        }
        if taken > 0 {
            drop(self.take_fds());
        }
        self.drop_skipped();
    }

    /// Descriptors had to be dropped, and there is no telling whose: nothing of
    /// what has arrived can be executed.
    fn give_up(&mut self) {
        (self.head, self.tail) = (0, 0);
        self.large = None;
        self.ended = true;
    }

    /// The socket failed in a way that ends the connection.
    pub fn fail(&mut self) {
        self.ended = true;
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

    /// Receives, without waiting, what is next of the body of a message whose
    /// head was taken, and then at most `most` bytes more. Nothing of it lies
    /// here untaken.
    ///
    /// # Safety
    ///
    /// At `to` there is room for `len` bytes, which nobody else refers to.
    pub unsafe fn receive_body(
        &mut self,
        socket: RawFd,
        to: *mut u8,
        len: usize,
        most: usize,
    ) -> Result<bool> {
        if self.head < self.tail {
            return Ok(true);
        }
        (self.head, self.tail) = (0, 0);
        self.offered = len.min(self.skip);
        let first = libc::iovec { iov_base: to.cast(), iov_len: self.offered };
        let rest = control::piece_mut(self.buffer.range_mut(0, most));
        let message = self.socket_header.prepare(first, Some(rest));
        // SAFETY: as in `receive`; the first piece is the caller's promise.
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
        let count = unsafe { libc::recvmsg(socket, message, flags | libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(count) {
            Ok(count) => self.finish(count),
            Err(_) => match Errno::last() {
                Errno::EAGAIN => return Ok(false),
                errno if is_end(errno) => self.fail(),
                errno => return Err(errno),
            },
        }
        Ok(true)
    }

    /// The next thing in the stream. `admit` judges headers whose size makes
    /// sense; what it refuses is dropped, body and descriptors.
    pub fn next(&mut self, pool: &mut Pool, admit: impl Fn(&Header) -> bool) -> Result<Next> {
        if let Some(large) = &self.large {
            if large.have < large.size() {
                return Ok(Next::Nothing);
            }
            return self.take_large(pool);
        }
        if self.skip > 0 {
            return Ok(Next::Nothing);
        }
        let Some(header) = self.peek() else {
            return Ok(Next::Nothing);
        };
        let size = match judge(&header) {
            Err(_) => return Ok(Next::Unfollowable(header)),
            Ok(size) => size,
        };
        if !admit(&header) {
            self.skip = size;
            self.drop_skipped();
            return Ok(Next::Refused(header));
        }
        let have = self.tail.saturating_sub(self.head);
        if size <= have {
            return self.take_whole(header, size, pool).map(Next::Message);
        }
        if size > self.buffer.len() {
            self.start_large(header, size, pool)?;
        } else if self.head.saturating_add(size) > self.buffer.len() {
            self.compact();
        }
        Ok(Next::Nothing)
    }

    /// The header that stands next in the stream, if it has arrived and nothing
    /// of its message has been taken.
    pub fn next_header(&self) -> Option<Header> {
        match self.skip == 0 && self.large.is_none() {
            true => self.peek().filter(|header| judge(header).is_ok()),
            false => None,
        }
    }

    /// Takes the next message's header and the first `N` bytes of its payload,
    /// once they have arrived. The rest of it is its body.
    pub fn take_head<const N: usize>(&mut self) -> Option<[u8; N]> {
        let size = self.next_header()?.msg_size as usize;
        let from = self.head.saturating_add(HEADER_SIZE);
        let head = *self.buffer.range(from, self.tail).first_chunk::<N>()?;
        let taken = HEADER_SIZE.saturating_add(N);
        self.skip = size.checked_sub(taken)?;
        self.head = self.head.saturating_add(taken);
        self.used = self.used.saturating_add(taken as u64);
        Some(head)
    }

    /// How many bytes of the body have not been taken.
    pub fn body_left(&self) -> usize {
        self.skip
    }

    /// Takes what lies here of the body, up to `len` bytes; how many that were.
    ///
    /// # Safety
    ///
    /// At `to` there is room for `len` bytes, which nobody else refers to.
    pub unsafe fn take_body(&mut self, to: *mut u8, len: usize) -> usize {
        let end = self.head.saturating_add(len.min(self.skip)).min(self.tail);
        let bytes = self.buffer.range(self.head, end);
        let count = bytes.len();
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count) };
        self.head = self.head.saturating_add(count);
        self.used = self.used.saturating_add(count as u64);
        self.skip = self.skip.saturating_sub(count);
        drop(self.take_fds());
        count
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
        if size > SMALL && self.head.is_multiple_of(size_of::<u64>()) && self.tail.saturating_sub(end) < size
        {
            self.take_along(&mut message, start, end);
        } else {
            copy(&mut message.buffer, self.buffer.range(start, end));
            (message.start, message.end) = (0, end.saturating_sub(start));
            self.head = end;
        }
        self.hand_over(&mut message, size);
        Ok(message)
    }

    /// Leaves bytes `start..end` where they are and gives the buffer to the
    /// message, in exchange for its own: to move what follows is cheaper.
    fn take_along(&mut self, message: &mut Message, start: usize, end: usize) {
        std::mem::swap(&mut self.buffer, &mut message.buffer);
        copy(&mut self.buffer, message.buffer.range(end, self.tail));
        (self.head, self.tail) = (0, self.tail.saturating_sub(end));
        (message.start, message.end) = (start, end);
    }

    /// From now on the message at `head` is collected in a buffer of its own.
    fn start_large(&mut self, header: Header, size: usize, pool: &mut Pool) -> Result<()> {
        let mut buffer = pool.take(size)?;
        let arrived = self.buffer.range(self.head.saturating_add(HEADER_SIZE), self.tail);
        copy(&mut buffer, arrived);
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
        (message.start, message.end) = (0, size.saturating_sub(HEADER_SIZE));
        self.hand_over(&mut message, size);
        Ok(Next::Message(message))
    }

    /// `size` bytes, which are this message, have been used: its descriptors
    /// are those that came with them.
    #[inline]
    fn hand_over(&mut self, message: &mut Message, size: usize) {
        self.used = self.used.saturating_add(size as u64);
        message.fds_cut = false;
        if !self.batches.is_empty() {
            (message.fds, message.fds_cut) = self.take_fds();
        }
    }

    /// Descriptors that belong to what has been used.
    fn take_fds(&mut self) -> (Vec<OwnedFd>, bool) {
        let (mut fds, mut cut) = (Vec::new(), false);
        while self.batches.front().is_some_and(|batch| batch.at < self.used) {
            if let Some(batch) = self.batches.pop_front() {
                cut |= batch.cut;
                if fds.is_empty() {
                    fds = batch.fds;
                } else if memory::reserve(&mut fds, batch.fds.len()).is_ok() {
                    fds.extend(batch.fds);
                } else {
                    cut = true;
                }
            }
        }
        (fds, cut)
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
        drop(self.take_fds());
    }

    /// Moves what is there to the start of the buffer.
    fn compact(&mut self) {
        let (head, tail) = (self.head, self.tail.min(self.buffer.len()));
        if head <= tail {
            self.buffer.bytes_mut().copy_within(head..tail, 0);
            (self.head, self.tail) = (0, tail - head);
        }
    }

    /// Takes everything out of the socket, up to `most` bytes, and drops it
    /// with its descriptors, so that closing does not reset the peer. Never
    /// waits.
    pub fn drain(&mut self, socket: RawFd, most: usize) {
        let mut taken = 0usize;
        while taken < most {
            self.batches.clear();
            self.large = None;
            self.skip = 0;
            (self.head, self.tail) = (0, 0);
            match self.receive(socket, libc::MSG_DONTWAIT) {
                Ok(true) if !self.ended => taken = taken.saturating_add(self.tail.max(1)),
                Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        self.batches.clear();
        self.ended = true;
    }
}

/// Whether a failure to receive means that the connection is at its end.
pub fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::ECONNRESET | Errno::ENOTCONN)
}

/// The size of a message, if it can be one.
fn judge(header: &Header) -> Result<usize> {
    match header.msg_size as usize {
        size @ HEADER_SIZE..=MAX_MESSAGE_SIZE => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

/// Copies `from` to the start of `to`.
fn copy(to: &mut Buffer, from: &[u8]) {
    if let Some(to) = to.bytes_mut().get_mut(..from.len()) {
        to.copy_from_slice(from);
    }
}
