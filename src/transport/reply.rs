//! A reply in the making.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use zerocopy::{Immutable, IntoBytes};

use super::buffer::Buffer;
use super::pool::Pool;
use crate::memory;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Errno, Header, Result, ShortAccess};

/// A reply with a payload up to this size holds it itself: nearly all do.
const INLINE: usize = 32;

/// A reply: payload and descriptors. The payload starts at a multiple of 8 and
/// is written in place.
#[derive(Debug)]
pub struct Reply {
    body: Body,
    /// Bytes of payload.
    len: usize,
    /// Bytes of payload that follow later.
    more: usize,
    fds: Option<Box<Fds>>,
}

/// Where the payload is.
#[derive(Debug)]
enum Body {
    Inline(Inline),
    /// Behind room for the header.
    Buffer(Buffer),
}

/// i686 by itself would align these to 4.
#[derive(Debug)]
#[repr(align(8))]
struct Inline([u64; INLINE / size_of::<u64>()]);

// What devices read goes there, and they are promised it.
const _: () = assert!(align_of::<Inline>() == 8 && align_of::<ShortAccess>() == 8);

/// Descriptors that go with a reply.
#[derive(Debug, Default)]
struct Fds {
    lent: Vec<RawFd>,
    own: Vec<OwnedFd>,
}

impl Reply {
    /// A reply without payload, and with room for a small one.
    #[inline(always)]
    pub fn empty() -> Reply {
        Reply { body: Body::Inline(Inline([0; INLINE / size_of::<u64>()])), len: 0, more: 0, fds: None }
    }

    /// Whether a payload of this size needs no buffer.
    #[inline(always)]
    pub fn is_small(capacity: usize) -> bool {
        capacity <= INLINE
    }

    /// Gives an empty reply room for `capacity` bytes of payload.
    pub(super) fn make_room(&mut self, capacity: usize, pool: &mut Pool) -> Result<()> {
        if !Reply::is_small(capacity) {
            self.body = Body::Buffer(pool.take(capacity.checked_add(HEADER_SIZE).ok_or(Errno::ENOMEM)?)?);
        }
        Ok(())
    }

    /// Appends a structure.
    pub fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<()> {
        self.put_bytes(value.as_bytes())
    }

    /// Appends bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.space(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Appends `count` bytes of no particular value, to be written to.
    /// `ENOMEM` if the reply was not made for so many.
    pub fn space(&mut self, count: usize) -> Result<&mut [u8]> {
        let (start, end) = (self.len, self.len.checked_add(count).ok_or(Errno::ENOMEM)?);
        let space = self.body.bytes_mut().get_mut(start..end).ok_or(Errno::ENOMEM)?;
        self.len = end;
        Ok(space)
    }

    /// The payload so far.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.body.bytes_mut().get_mut(..self.len).unwrap_or_default()
    }

    /// Cuts the payload to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Sends descriptors along that others own, and keep open until they are
    /// sent.
    pub fn lend_fds(&mut self, fds: Vec<RawFd>) -> Result<()> {
        if !fds.is_empty() {
            self.with_fds()?.lent = fds;
        }
        Ok(())
    }

    /// Sends a descriptor along, and closes it once it is sent.
    pub fn give_fd(&mut self, fd: OwnedFd) -> Result<()> {
        memory::push(&mut self.with_fds()?.own, fd)
    }

    fn with_fds(&mut self) -> Result<&mut Fds> {
        if self.fds.is_none() {
            self.fds = Some(memory::boxed(Fds::default())?);
        }
        self.fds.as_deref_mut().ok_or(Errno::ENOMEM)
    }

    /// Whether descriptors go with it.
    pub fn has_fds(&self) -> bool {
        self.fds.is_some()
    }

    /// Every descriptor that goes with it.
    pub fn fds(&self) -> Result<Vec<RawFd>> {
        let mut all = Vec::new();
        if let Some(fds) = &self.fds {
            memory::reserve(&mut all, fds.lent.len().saturating_add(fds.own.len()))?;
            all.extend(fds.own.iter().map(AsRawFd::as_raw_fd).chain(fds.lent.iter().copied()));
        }
        Ok(all)
    }

    /// Size of the whole message.
    pub fn message_size(&self) -> usize {
        HEADER_SIZE.saturating_add(self.len).saturating_add(self.more)
    }

    /// Says that so many bytes of payload follow later, when what is there is
    /// sent: see [`Connection::push_more`](super::Connection::push_more). It has
    /// no small payload.
    pub fn announce(&mut self, more: usize) {
        self.more = more;
    }

    /// Bytes of payload that follow later.
    pub fn more(&self) -> usize {
        self.more
    }

    /// The payload, if it needs no buffer.
    pub(super) fn small_payload(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Inline(Inline(words)) => words.as_bytes().get(..self.len),
            Body::Buffer(_) => None,
        }
    }

    /// Writes the header before the payload, wherever that is: the whole
    /// message, now in a buffer. `ENOMEM` if there is none for it.
    pub(super) fn seal(&mut self, header: &Header, pool: &mut Pool) -> Result<&[u8]> {
        if let Body::Inline(Inline(words)) = self.body {
            let mut buffer = pool.take(HEADER_SIZE + INLINE)?;
            buffer.range_mut(HEADER_SIZE, HEADER_SIZE + INLINE).copy_from_slice(words.as_bytes());
            self.body = Body::Buffer(buffer);
        }
        let size = HEADER_SIZE.saturating_add(self.len);
        let Body::Buffer(buffer) = &mut self.body else { return Err(Errno::ENOMEM) };
        buffer.range_mut(0, HEADER_SIZE).copy_from_slice(header.as_bytes());
        Ok(buffer.range(0, size))
    }

    /// The first `len` bytes of the sealed message.
    pub(super) fn sealed(&self, len: usize) -> &[u8] {
        match &self.body {
            Body::Buffer(buffer) => buffer.range(0, len),
            Body::Inline(_) => &[],
        }
    }

    /// A message that was [sealed](Self::seal) in another process, with its
    /// descriptors.
    pub(super) fn sealed_already(message: &[u8], fds: Vec<OwnedFd>, pool: &mut Pool) -> Result<Reply> {
        let mut buffer = pool.take(message.len())?;
        buffer.range_mut(0, message.len()).copy_from_slice(message);
        let len = message.len().saturating_sub(HEADER_SIZE);
        let mut reply = Reply { body: Body::Buffer(buffer), len, more: 0, fds: None };
        if !fds.is_empty() {
            reply.with_fds()?.own = fds;
        }
        Ok(reply)
    }

    /// Gives the buffer, if it has one, back for its next use.
    #[inline(always)]
    pub(super) fn recycle(&mut self, pool: &mut Pool) {
        if let Body::Buffer(buffer) = &mut self.body {
            pool.put(std::mem::take(buffer));
        }
    }
}

impl Body {
    /// Room for the payload.
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Body::Inline(Inline(words)) => words.as_mut_bytes(),
            Body::Buffer(buffer) => buffer.range_mut(HEADER_SIZE, usize::MAX),
        }
    }
}
