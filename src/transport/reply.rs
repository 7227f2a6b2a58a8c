//! A reply in the making.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use zerocopy::{Immutable, IntoBytes};

use super::buffer::{Buffer, Pool};
use crate::memory;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Errno, Header, Result};

/// A reply: header, payload and descriptors. The payload starts at a multiple
/// of 8 and is written in place.
#[derive(Debug, Default)]
pub struct Reply {
    /// Room for the header, then the payload. Empty for a bare header.
    buffer: Buffer,
    /// Bytes of payload.
    len: usize,
    /// Descriptors that others own, which must stay open until they are sent.
    pub lent_fds: Vec<RawFd>,
    /// A descriptor that is closed once sent.
    pub own_fd: Option<OwnedFd>,
}

impl Reply {
    /// A reply without payload.
    pub fn empty() -> Reply {
        Reply::default()
    }

    /// A reply with room for `capacity` bytes of payload and none yet.
    pub fn with_capacity(capacity: usize, pool: &mut Pool) -> Result<Reply> {
        let buffer = pool.take(capacity.checked_add(HEADER_SIZE).ok_or(Errno::ENOMEM)?)?;
        Ok(Reply { buffer, ..Reply::default() })
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
        let start = HEADER_SIZE.saturating_add(self.len);
        let end = start.checked_add(count).ok_or(Errno::ENOMEM)?;
        let space = self.buffer.bytes_mut().get_mut(start..end).ok_or(Errno::ENOMEM)?;
        self.len = self.len.saturating_add(count);
        Ok(space)
    }

    /// The payload so far.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.buffer.range_mut(HEADER_SIZE, HEADER_SIZE.saturating_add(self.len))
    }

    /// Cuts the payload to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether descriptors go with it.
    pub fn has_fds(&self) -> bool {
        !self.lent_fds.is_empty() || self.own_fd.is_some()
    }

    /// Every descriptor that goes with it.
    pub fn fds(&self) -> Result<Vec<RawFd>> {
        let own = self.own_fd.as_ref().map(AsRawFd::as_raw_fd);
        let mut fds = Vec::new();
        memory::reserve(&mut fds, self.lent_fds.len().saturating_add(1))?;
        fds.extend(own.iter().chain(&self.lent_fds));
        Ok(fds)
    }

    /// Size of the whole message.
    pub fn message_size(&self) -> usize {
        HEADER_SIZE.saturating_add(self.len)
    }

    /// Writes the header of the reply to `request`. The result holds the whole
    /// message in its first [`message_size`](Self::message_size) bytes, or is
    /// empty for a bare header, which is then the second part of the result.
    pub(super) fn seal(&mut self, request: &Header) -> (&[u8], Header) {
        let size = self.message_size();
        let header = request.reply(u32::try_from(size).unwrap_or(u32::MAX));
        match self.buffer.bytes_mut().get_mut(..HEADER_SIZE) {
            Some(room) => room.copy_from_slice(header.as_bytes()),
            None => return (&[], header),
        }
        (self.buffer.range(0, size), header)
    }

    /// The first `len` bytes of the sealed message.
    pub(super) fn sealed(&self, len: usize) -> &[u8] {
        self.buffer.range(0, len)
    }

    /// The buffer, for its next use.
    pub(super) fn into_buffer(self) -> Buffer {
        self.buffer
    }
}
