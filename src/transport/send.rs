//! Sending: replies are gathered and go out together.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use zerocopy::IntoBytes;

use super::buffer::{Buffer, Pool, STANDARD};
use super::control;
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

    fn into_buffer(self) -> Buffer {
        match self {
            Segment::Gathered { buffer, .. } => buffer,
            Segment::Single { reply, .. } => reply.into_buffer(),
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
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent: usize,
    /// Bytes that wait.
    waiting: usize,
    /// What the last reply that could not be sent was replaced by.
    replaced: Option<Errno>,
}

impl Sender {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether what waits should go out now: because it is much, or because
    /// the last reply has descriptors and nobody knows yet whether the kernel
    /// passes them.
    pub fn is_full(&self) -> bool {
        self.waiting >= GATHER_MAX || self.segments.back().is_some_and(Segment::has_fds)
    }

    /// What the client was told instead of a reply that could not be sent.
    pub fn take_replaced(&mut self) -> Option<Errno> {
        self.replaced.take()
    }

    /// Adds the reply to `request`.
    pub fn push(&mut self, request: &Header, mut reply: Reply, pool: &mut Pool) -> Result<()> {
        let with_fds = reply.has_fds();
        let (bytes, header) = reply.seal(request);
        if bytes.is_empty() {
            self.gather(header.as_bytes(), pool)?;
        } else if bytes.len() <= COPY_MAX && !with_fds {
            self.gather(bytes, pool)?;
        } else {
            let len = bytes.len();
            memory::push_back(&mut self.segments, Segment::Single { reply, request: *request, len })?;
            self.waiting = self.waiting.saturating_add(len);
            return Ok(());
        }
        pool.put(reply.into_buffer());
        Ok(())
    }

    /// Adds a reply that says `errno`.
    pub fn push_error(&mut self, request: &Header, errno: Errno, pool: &mut Pool) -> Result<()> {
        self.gather(request.error_reply(errno).as_bytes(), pool)
    }

    fn gather(&mut self, bytes: &[u8], pool: &mut Pool) -> Result<()> {
        let count = bytes.len();
        if let Some(Segment::Gathered { buffer, len }) = self.segments.back_mut() {
            let end = len.saturating_add(count);
            if let Some(room) = buffer.bytes_mut().get_mut(*len..end) {
                room.copy_from_slice(bytes);
                *len = end;
                self.waiting = self.waiting.saturating_add(count);
                return Ok(());
            }
        }
        let mut buffer = pool.take(STANDARD)?;
        let room = buffer.bytes_mut().get_mut(..count).ok_or(Errno::ENOMEM)?;
        room.copy_from_slice(bytes);
        memory::push_back(&mut self.segments, Segment::Gathered { buffer, len: count })?;
        self.waiting = self.waiting.saturating_add(count);
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it without waiting. Goes
    /// on after a signal.
    pub fn flush(&mut self, socket: RawFd, pool: &mut Pool) -> Flushed {
        while !self.segments.is_empty() {
            match self.send_some(socket) {
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
        while let Some(segment) = self.segments.front() {
            let len = segment.bytes().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(segment) = self.segments.pop_front() {
                pool.put(segment.into_buffer());
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
            pool.put(unsent.into_buffer());
        }
        self.replaced = Some(errno);
        true
    }
}
