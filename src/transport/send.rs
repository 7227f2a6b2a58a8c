//! Sending: replies are gathered and go out together.

mod handover;

use std::collections::VecDeque;
use std::os::fd::RawFd;

use zerocopy::IntoBytes;

use super::allowance::ask_unsent;
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

/// A piece that is longer than a socket takes at once.
const LARGE_PIECE: usize = 128 << 10;

/// How many pieces one send takes.
const PIECES: usize = 8;

/// Replies that go out before those gathered last.
#[derive(Debug)]
enum Segment {
    /// Replies one behind the other.
    Gathered(Gathered),
    /// One reply, with the request's header to answer it another way if it
    /// can't be sent.
    Single { reply: Reply, request: Header, len: usize },
}

/// Replies one behind the other.
#[derive(Debug, Default)]
struct Gathered {
    buffer: Buffer,
    len: usize,
}

impl Gathered {
    fn bytes(&self) -> &[u8] {
        self.buffer.range(0, self.len)
    }

    /// Room for a reply, which counts as there from now on.
    #[inline(always)]
    fn space(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.len.saturating_add(count);
        let space = self.buffer.bytes_mut().get_mut(self.len..end)?;
        self.len = end;
        Some(space)
    }
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Gathered(gathered) => gathered.bytes(),
            Segment::Single { reply, len, .. } => reply.sealed(*len),
        }
    }

    fn has_fds(&self) -> bool {
        matches!(self, Segment::Single { reply, .. } if reply.has_fds())
    }

    fn recycle(self, pool: &mut Pool) {
        match self {
            Segment::Gathered(gathered) => pool.put(gathered.buffer),
            Segment::Single { mut reply, .. } => reply.recycle(pool),
        }
    }
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// Nothing is left of what is there, but bytes of the last reply are to come.
    More,
    /// The socket takes no more at the moment.
    Stuck,
    /// The peer is gone, or what was begun cannot be ended.
    Lost,
}

/// Replies that wait to be sent.
#[derive(Debug, Default)]
pub struct Sender {
    /// What goes out first. Nearly always there is nothing.
    segments: VecDeque<Segment>,
    /// What goes out then, and where small replies are added.
    last: Gathered,
    /// Bytes of what is first that are sent.
    sent: usize,
    /// Bytes that wait.
    waiting: usize,
    /// Bytes of the last reply that are still to be added.
    more: usize,
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
        self.waiting == 0 && self.more == 0
    }

    /// Bytes of the last reply that are still to be added.
    pub fn more(&self) -> usize {
        self.more
    }

    /// Adds the next `len` bytes of the last reply, once the others are sent.
    pub fn push_more(&mut self, buffer: Buffer, len: usize) -> Result<()> {
        ask_unsent(self.waiting, len)?;
        memory::push_back(&mut self.segments, Segment::Gathered(Gathered { buffer, len }))?;
        self.waiting = self.waiting.saturating_add(len);
        self.more = self.more.saturating_sub(len);
        Ok(())
    }

    /// Whether what waits should go out now.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What the client was told instead of a reply that could not be sent.
    pub fn take_replaced(&mut self) -> Option<Errno> {
        self.replaced.take()
    }

    /// Adds the reply to `request`, and leaves an empty one.
    #[inline(always)]
    pub fn push(&mut self, request: &Header, reply: &mut Reply, pool: &mut Pool) -> Result<()> {
        let header = request.reply(u32::try_from(reply.message_size()).unwrap_or(u32::MAX));
        match reply.small_payload() {
            Some(payload) if !reply.has_fds() => self.gather(&header, payload, pool),
            _ => self.push_large(request, header, std::mem::replace(reply, Reply::empty()), pool),
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
        if self.more > 0 {
            return Err(Errno::EBUSY);
        }
        ask_unsent(self.waiting, reply.message_size().saturating_sub(reply.more()))?;
        if self.last.len > 0 {
            self.close_last(pool)?;
        }
        let len = reply.seal(&header, pool)?.len();
        self.more = reply.more();
        let with_fds = reply.has_fds();
        memory::push_back(&mut self.segments, Segment::Single { reply, request: *request, len })?;
        self.waiting = self.waiting.saturating_add(len);
        self.full = with_fds || self.waiting >= GATHER_MAX || self.more > 0;
        Ok(())
    }

    /// Adds a whole message, or the rest of one of which some was sent when nothing
    /// waited.
    #[inline(always)]
    pub fn push_bytes(&mut self, message: &[u8], pool: &mut Pool) -> Result<()> {
        self.gathered_space(message.len(), pool)?.copy_from_slice(message);
        Ok(())
    }

    /// Adds a reply that says `errno`.
    pub fn push_error(&mut self, request: &Header, errno: Errno, pool: &mut Pool) -> Result<()> {
        self.gather(&request.error_reply(errno), &[], pool)
    }

    /// Keeps the rest of a message that was begun when nothing waited.
    pub fn push_rest(&mut self, parts: [&[u8]; 2], pool: &mut Pool) -> Result<()> {
        let [first, second] = parts;
        let len = first.len().saturating_add(second.len());
        ask_unsent(self.waiting, len)?;
        let mut buffer = pool.take(len)?;
        buffer.range_mut(0, first.len()).copy_from_slice(first);
        buffer.range_mut(first.len(), len).copy_from_slice(second);
        memory::push_back(&mut self.segments, Segment::Gathered(Gathered { buffer, len }))?;
        self.waiting = self.waiting.saturating_add(len);
        Ok(())
    }

    /// Adds a message to those that are gathered.
    #[inline(always)]
    fn gather(&mut self, header: &Header, payload: &[u8], pool: &mut Pool) -> Result<()> {
        let space = self.gathered_space(HEADER_SIZE.saturating_add(payload.len()), pool)?;
        let (head, body) = space.split_at_mut_checked(HEADER_SIZE).ok_or(Errno::ENOMEM)?;
        head.copy_from_slice(header.as_bytes());
        body.copy_from_slice(payload);
        Ok(())
    }

    /// Room for `count` bytes behind those that are gathered, which count as there
    /// from now on.
    #[inline(always)]
    fn gathered_space(&mut self, count: usize, pool: &mut Pool) -> Result<&mut [u8]> {
        if self.more > 0 {
            // They would stand in the middle of the last reply.
            return Err(Errno::EBUSY);
        }
        if self.last.buffer.len().saturating_sub(self.last.len) < count {
            self.make_room(count, pool)?;
        }
        self.waiting = self.waiting.saturating_add(count);
        self.full = self.waiting >= GATHER_MAX;
        self.last.space(count).ok_or(Errno::ENOMEM)
    }

    /// From here on, replies are gathered in another buffer.
    #[cold]
    fn close_last(&mut self, pool: &mut Pool) -> Result<()> {
        ask_unsent(self.waiting, STANDARD)?;
        let next = Gathered { buffer: pool.take(self.last.buffer.len())?, len: 0 };
        memory::push_back(&mut self.segments, Segment::Gathered(std::mem::replace(&mut self.last, next)))
    }

    /// Makes room for `count` bytes more where replies are gathered. The first
    /// buffer is short; what has more than that goes on in larger ones.
    #[cold]
    fn make_room(&mut self, count: usize, pool: &mut Pool) -> Result<()> {
        let Gathered { buffer, len } = &mut self.last;
        if buffer.len() >= STANDARD && *len > 0 {
            return self.close_last(pool);
        }
        let mut larger = pool.take(len.saturating_add(count))?;
        larger.range_mut(0, *len).copy_from_slice(buffer.range(0, *len));
        pool.put(std::mem::replace(buffer, larger));
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it without waiting. Goes
    /// on after a signal.
    pub fn flush(&mut self, socket: RawFd, pool: &mut Pool) -> Flushed {
        while self.waiting > 0 {
            let outcome = match self.only_bytes() {
                Some(bytes) => control::send_bytes(socket, bytes, libc::MSG_DONTWAIT),
                None => self.send_some(socket),
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
        if self.more > 0 {
            return Flushed::More;
        }
        self.full = false;
        Flushed::All
    }

    /// All that waits if it is one piece without descriptors, as nearly always.
    #[inline(always)]
    fn only_bytes(&self) -> Option<&[u8]> {
        match self.segments.front() {
            None => self.last.bytes().get(self.sent..),
            Some(first) if self.segments.len() == 1 && self.last.len == 0 && !first.has_fds() => {
                first.bytes().get(self.sent..)
            }
            Some(_) => None,
        }
    }

    /// All that waits, if it is one piece without descriptors, and so long that to
    /// send it takes waiting.
    #[inline(always)]
    pub fn large_piece(&self) -> Option<&[u8]> {
        match self.waiting > LARGE_PIECE {
            true => self.only_bytes(),
            false => None,
        }
    }

    /// Somebody else has sent `count` bytes of the large piece.
    pub fn finish_piece(&mut self, count: usize, pool: &mut Pool) {
        self.advance(count, pool);
        self.full = !self.is_empty();
    }

    /// One send: of what is first up to a reply with descriptors, which have to
    /// go with the first byte of a send.
    fn send_some(&self, socket: RawFd) -> Result<usize> {
        let mut pieces = [control::piece(&[]); PIECES];
        let mut count = 0;
        let mut fds = Vec::new();
        let first = self.segments.front();
        if let Some(Segment::Single { reply, .. }) = first
            && self.sent == 0
            && reply.has_fds()
        {
            fds = reply.fds()?;
        }
        let more = self.segments.iter().skip(1).take_while(|segment| !segment.has_fds());
        let with_last = more.clone().count().saturating_add(1) >= self.segments.len();
        let all = first.into_iter().chain(more).map(Segment::bytes);
        for (bytes, piece) in all.chain(with_last.then(|| self.last.bytes())).zip(pieces.iter_mut()) {
            let skip = if count == 0 { self.sent } else { 0 };
            *piece = control::piece(bytes.get(skip..).unwrap_or_default());
            count += 1;
        }
        control::send(socket, pieces.get(..count).unwrap_or_default(), &fds, libc::MSG_DONTWAIT)
    }

    /// Takes `count` sent bytes off the front.
    #[inline(always)]
    fn advance(&mut self, count: usize, pool: &mut Pool) {
        self.waiting = self.waiting.saturating_sub(count);
        self.sent = self.sent.saturating_add(count);
        if !self.segments.is_empty() {
            self.drop_sent(pool);
        }
        if self.waiting == 0 {
            (self.sent, self.last.len) = (0, 0);
        }
    }

    /// Drops the segments that are sent.
    fn drop_sent(&mut self, pool: &mut Pool) {
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
        let Ok(mut buffer) = pool.take(HEADER_SIZE) else {
            return false;
        };
        buffer.range_mut(0, HEADER_SIZE).copy_from_slice(header.as_bytes());
        let answer = Gathered { buffer, len: HEADER_SIZE };
        self.waiting = self.waiting.saturating_sub(len).saturating_add(HEADER_SIZE);
        self.more = 0;
        let unsent = self.segments.pop_front();
        self.segments.push_front(Segment::Gathered(answer));
        if let Some(unsent) = unsent {
            unsent.recycle(pool);
        }
        self.replaced = Some(errno);
        true
    }
}
