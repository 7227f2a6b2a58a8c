//! Byte buffers that start at a multiple of 8.

use zerocopy::IntoBytes;

use crate::memory;
use crate::wire::{Result, limits};

/// Size of the first buffers of a connection, in bytes: for most clients there
/// are never others, and ten thousand of them cost a page or two each.
pub const FIRST: usize = 4096;

/// Size of the ordinary buffers, in bytes: what is received ahead at the most.
/// Also what a message that is not large fits into.
/// An access of 64 KiB is among those, with its header and its region access
/// structure, and with the part that only a [held](super::waiting) message needs.
pub const STANDARD: usize = (64 << 10) + limits::HEADER_SIZE + 16 + MARGIN;

/// Bytes at the end of a buffer that are received into only while a message is
/// held: what says of the next one whether it may carry descriptors fits in there.
pub const MARGIN: usize = 32;

/// A fixed piece of heap memory, aligned to 8 bytes, that was zero once.
#[derive(Debug, Default)]
pub struct Buffer {
    words: Box<[u64]>,
}

impl Buffer {
    /// A buffer of at least `size` bytes, or `ENOMEM`.
    pub fn new(size: usize) -> Result<Buffer> {
        Ok(Buffer { words: memory::zeroed(size.div_ceil(size_of::<u64>()))? })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.words.as_bytes()
    }

    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.words.as_mut_bytes()
    }

    /// Bytes `start..end`, cut to what there is.
    pub fn range(&self, start: usize, end: usize) -> &[u8] {
        let end = end.min(self.len());
        self.bytes().get(start.min(end)..end).unwrap_or_default()
    }

    /// Bytes `start..end`, cut to what there is.
    pub fn range_mut(&mut self, start: usize, end: usize) -> &mut [u8] {
        let end = end.min(self.len());
        self.bytes_mut().get_mut(start.min(end)..end).unwrap_or_default()
    }
}
