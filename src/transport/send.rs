//! Sending: replies are gathered and go out together.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use zerocopy::IntoBytes;

use super::buffer::{Buffer, STANDARD};
use super::control;
use super::pool::Pool;
use super::reply::Reply;
use crate::memory;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Errno, Header, Result};

/// Replies up to this size are copied to those that wait already; larger ones
/// stay where they are and are sent from there.
const COPY_MAX: usize = 4096;

/// Once so many bytes wait they are sent, further requests or not.
const GATHER_MAX: usize = STANDARD;

/// How many pieces one send takes.
const PIECES: usize = 8;

/// Bytes to be sent.
#[derive(Debug)]
enum Segment {
    /// Replies one behind the other.
    Gathered { buffer: Buffer, len: usize },
    /// One reply, with the request's header to answer it another way if it
    /// can't be sent.
    Single { reply: Reply, request: Header, len: usize },
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Gathered { buffer, len } => buffer.range(0, *len),
            Segment::Single { reply, len, .. } => reply.sealed(*len),
        }
    }

    fn has_fds(&self) -> bool {
        matches!(self, Segment::Single { reply, .. } if reply.has_fds())
    }

    fn recycle(self, pool: &mut Pool) {
        match self {
            Segment::Gathered { buffer, .. } => pool.put(buffer),
            Segment::Single { reply, .. } => reply.recycle(pool),
        }
    }
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// The socket takes no more at the moment.
    Stuck,
    /// The peer is gone, or what was begun cannot be ended.
    Lost,
}

/// Replies that wait to be sent.
#[derive(Debug, Default)]
pub struct Sender {
    /// When nothing waits there may still be an empty segment, ready to be
    /// gathered in.
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent: usize,
    /// Bytes that wait.
    waiting: usize,
    /// What waits should go out now: because it is much, or because the last
    /// reply has descriptors and nobody knows yet whether the kernel passes
    /// them.
    full: bool,
    /// What the last reply that could not be sent was replaced by.
    replaced: Option<Errno>,
}

impl Sender {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether what waits should go out now.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What the client was told instead of a reply that could not be sent.
    pub fn take_replaced(&mut self) -> Option<Errno> {
        self.replaced.take()
    }

    /// Adds the reply to `request`.
    #[inline(always)]
    pub fn push(&mut self, request: &Header, reply: Reply, pool: &mut Pool) -> Result<()> {
        let header = request.reply(u32::try_from(reply.message_size()).unwrap_or(u32::MAX));
        match reply.small_payload() {
            Some(payload) if !reply.has_fds() => self.gather(&header, payload, pool),
            _ => self.push_large(request, header, reply, pool),
        }
    }

    fn push_large(
        &mut self,
        request: &Header,
        header: Header,
        mut reply: Reply,
        pool: &mut Pool,
    ) -> Result<()> {
        if reply.message_size() <= COPY_MAX && !reply.has_fds() {
            self.gather(&header, reply.payload_mut(), pool)?;
            reply.recycle(pool);
            return Ok(());
        }
        if self.is_empty() {
            self.segments.drain(..).for_each(|empty| empty.recycle(pool));
        }
        let len = reply.seal(&header, pool)?.len();
        let with_fds = reply.has_fds();
        memory::push_back(&mut self.segments, Segment::Single { reply, request: *request, len })?;
        self.waiting = self.waiting.saturating_add(len);
        self.full = with_fds || self.waiting >= GATHER_MAX;
        Ok(())
    }

    /// Adds a reply that says `errno`.
    pub fn push_error(&mut self, request: &Header, errno: Errno, pool: &mut Pool) -> Result<()> {
        self.gather(&request.error_reply(errno), &[], pool)
    }

    /// Adds a message to those that are gathered, and so to the last segment
    /// if there is room.
    fn gather(&mut self, header: &Header, payload: &[u8], pool: &mut Pool) -> Result<()> {
        let count = HEADER_SIZE.saturating_add(payload.len());
        match self.segments.back() {
            Some(Segment::Gathered { buffer, len }) if buffer.len().saturating_sub(*len) >= count => {}
            _ => {
                let empty = Segment::Gathered { buffer: pool.take(STANDARD)?, len: 0 };
                memory::push_back(&mut self.segments, empty)?;
            }
        }
        if let Some(Segment::Gathered { buffer, len }) = self.segments.back_mut() {
            let room = buffer.range_mut(*len, len.saturating_add(count));
            let (head, body) = room.split_at_mut_checked(HEADER_SIZE).ok_or(Errno::ENOMEM)?;
            head.copy_from_slice(header.as_bytes());
            body.copy_from_slice(payload);
            *len = len.saturating_add(count);
        }
        self.waiting = self.waiting.saturating_add(count);
        self.full = self.waiting >= GATHER_MAX;
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it without waiting. Goes
    /// on after a signal.
    pub fn flush(&mut self, socket: RawFd, pool: &mut Pool) -> Flushed {
        while !self.is_empty() {
            let outcome = match self.segments.front() {
                // As it nearly always is: bytes, and nothing else.
                Some(segment) if self.segments.len() == 1 && !segment.has_fds() => {
                    let rest = segment.bytes().get(self.sent..).unwrap_or_default();
                    control::send_bytes(socket, rest, libc::MSG_DONTWAIT)
                }
                _ => self.send_some(socket),
            };
            match outcome {
                Ok(count) => self.advance(count, pool),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Flushed::Stuck,
                Err(errno) => {
                    if !self.replace_first(errno, pool) {
                        return Flushed::Lost;
                    }
                }
            }
        }
        self.full = false;
        Flushed::All
    }

    /// One send: of the first segments up to one with descriptors, which have
    /// to go with the first byte of a send.
    fn send_some(&self, socket: RawFd) -> Result<usize> {
        let mut pieces = [control::piece(&[]); PIECES];
        let mut count = 0;
        let mut fds = Vec::new();
        for (segment, piece) in self.segments.iter().zip(pieces.iter_mut()) {
            let mut bytes = segment.bytes();
            if count == 0 {
                bytes = bytes.get(self.sent..).unwrap_or_default();
                if let Segment::Single { reply, .. } = segment
                    && self.sent == 0
                    && reply.has_fds()
                {
                    fds = reply.fds()?;
                }
            } else if segment.has_fds() {
                break;
            }
            *piece = control::piece(bytes);
            count += 1;
        }
        control::send(socket, pieces.get(..count).unwrap_or_default(), &fds, libc::MSG_DONTWAIT)
    }

    /// Takes `count` sent bytes off the front.
    fn advance(&mut self, count: usize, pool: &mut Pool) {
        self.waiting = self.waiting.saturating_sub(count);
        self.sent = self.sent.saturating_add(count);
        if let (1, Some(Segment::Gathered { len, .. })) = (self.segments.len(), self.segments.front_mut())
            && self.waiting == 0
        {
            (self.sent, *len) = (0, 0);
            return;
        }
        while let Some(segment) = self.segments.front() {
            let len = segment.bytes().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(segment) = self.segments.pop_front() {
                segment.recycle(pool);
            }
        }
        self.sent = 0;
    }

    /// Puts an error reply in the place of a reply that can't be sent, if it
    /// is one that stands by itself and none of it has gone out.
    fn replace_first(&mut self, errno: Errno, pool: &mut Pool) -> bool {
        if matches!(errno, Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) || self.sent > 0 {
            return false;
        }
        let Some(Segment::Single { request, len, .. }) = self.segments.front() else {
            return false;
        };
        let (header, len) = (request.error_reply(errno), *len);
        let Ok(mut buffer) = pool.take(STANDARD) else {
            return false;
        };
        buffer.range_mut(0, HEADER_SIZE).copy_from_slice(header.as_bytes());
        self.waiting = self.waiting.saturating_sub(len).saturating_add(HEADER_SIZE);
        let unsent = self.segments.pop_front();
        self.segments.push_front(Segment::Gathered { buffer, len: HEADER_SIZE });
        if let Some(unsent) = unsent {
            unsent.recycle(pool);
        }
        self.replaced = Some(errno);
        true
    }
}
