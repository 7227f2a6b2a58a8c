//! Byte buffers that start at a multiple of 8, and a pool of them.

use zerocopy::IntoBytes;

use crate::memory;
use crate::wire::{Errno, Result, limits};

/// Size of the ordinary buffers, in bytes: what is received ahead at the most.
/// Also what a message that is not large fits into.
pub const STANDARD: usize = 64 << 10;

/// Size of the buffers for large messages: any request, and any reply to a
/// transfer of the largest size, fits.
const LARGE: usize = limits::MAX_MESSAGE_SIZE + 64;

/// A fixed piece of heap memory, aligned to 8 bytes, that was zero once.
#[derive(Debug, Default)]
pub struct Buffer {
    words: Vec<u64>,
}

impl Buffer {
    /// A buffer of at least `size` bytes, or `ENOMEM`.
    pub fn new(size: usize) -> Result<Buffer> {
        let count = size.div_ceil(size_of::<u64>());
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        words.resize(count, 0);
        Ok(Buffer { words })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.words.len().saturating_mul(size_of::<u64>())
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

/// Buffers that wait for their next use, so that requests allocate nothing.
///
/// It belongs to one connection: what lies in a buffer was written by, or is
/// meant for, this client alone.
#[derive(Debug, Default)]
pub struct Pool {
    standard: Vec<Buffer>,
    large: Vec<Buffer>,
}

/// How many buffers of a kind are kept: one that is received into, one that a
/// request lies in, one that its reply is written to, and one for a request or
/// reply that another is nested in.
const KEEP_STANDARD: usize = 4;
const KEEP_LARGE: usize = 2;

impl Pool {
    /// A buffer of at least `size` bytes; what it holds is of no meaning.
    pub fn take(&mut self, size: usize) -> Result<Buffer> {
        let (kept, capacity) = if size <= STANDARD {
            (&mut self.standard, STANDARD)
        } else if size <= LARGE {
            (&mut self.large, LARGE)
        } else {
            return Buffer::new(size);
        };
        match kept.pop() {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(capacity),
        }
    }

    /// Takes a buffer back. Those of unusual sizes are given back to the
    /// system, and so are those beyond the few that are kept.
    pub fn put(&mut self, buffer: Buffer) {
        let (kept, most) = match buffer.len() {
            STANDARD => (&mut self.standard, KEEP_STANDARD),
            n if n == LARGE.next_multiple_of(size_of::<u64>()) => (&mut self.large, KEEP_LARGE),
            _ => return,
        };
        if kept.len() < most {
            // Without room for it, it is given back, too.
            let _ = memory::push(kept, buffer);
        }
    }
}
