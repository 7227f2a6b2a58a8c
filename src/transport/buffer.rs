//! Byte buffers that start at a multiple of 8.

use std::ptr::NonNull;
use std::slice;

use crate::memory;
use crate::wire::{Result, limits};

/// Size of the shortest buffers, in bytes: what the version message and nearly all
/// requests and replies fit into.
pub const SHORT: usize = 512;

/// Size of the buffers in which messages are first received and replies gathered, in
/// bytes: for most clients there are never larger ones.
pub const FIRST: usize = 4096;

/// Size of the ordinary buffers, in bytes: what is received ahead at the most.
/// Also what a message that is not large fits into.
/// An access of 64 KiB is among those, with its header and its region access
/// structure, and with the part that only a [held](super::waiting) message needs.
pub const STANDARD: usize = (64 << 10) + limits::HEADER_SIZE + 16 + MARGIN;

/// Bytes at the end of a buffer that are received into only while a message is
/// held: what says of the next one whether it may carry descriptors fits in there.
pub const MARGIN: usize = 32;

/// Where those that are larger than [`FIRST`] start: at a multiple of this. The kernel
/// copies from and to pages of its own, and where the two sides are not aligned to
/// each other that takes a third longer.
const LINE: usize = 64;

/// A fixed piece of heap memory, aligned to 8 bytes at least, that was zero once.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    /// Bytes from there on, which are all in `memory`.
    len: usize,
    /// From a box, and to be made one again.
    memory: NonNull<[u64]>,
}

// SAFETY: it owns its memory, and hands it out as it is borrowed itself.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of at least `size` bytes, or `ENOMEM`.
    pub fn new(size: usize) -> Result<Buffer> {
        let count = size.div_ceil(size_of::<u64>());
        let spare = if size > FIRST { LINE / size_of::<u64>() - 1 } else { 0 };
        Ok(Buffer::within(memory::zeroed(count.saturating_add(spare))?, spare))
    }

    /// Of all of this memory but `spare` words.
    fn within(memory: Box<[u64]>, spare: usize) -> Buffer {
        let len = memory.len().saturating_sub(spare).saturating_mul(size_of::<u64>());
        let memory = NonNull::from(Box::leak(memory));
        let first: NonNull<u8> = memory.cast();
        let skip = if spare > 0 { first.addr().get().wrapping_neg() % LINE } else { 0 };
        // SAFETY: words start at multiples of 8, so this skips 7 of them at the most,
        // and there are so many to spare.
        Buffer { start: unsafe { first.add(skip) }, len, memory }
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: they are in its memory, and initialised.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Its bytes.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: they are in its memory, and initialised.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Bytes `start..end`, cut to what there is.
    #[inline(always)]
    pub fn range(&self, start: usize, end: usize) -> &[u8] {
        let end = end.min(self.len());
        self.bytes().get(start.min(end)..end).unwrap_or_default()
    }

    /// Bytes `start..end`, cut to what there is.
    #[inline(always)]
    pub fn range_mut(&mut self, start: usize, end: usize) -> &mut [u8] {
        let end = end.min(self.len());
        self.bytes_mut().get_mut(start.min(end)..end).unwrap_or_default()
    }
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::within(Box::default(), 0)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and nobody uses it any more.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_than_the_first_starts_at_a_cache_line() {
        for size in [FIRST + 1, STANDARD, STANDARD + 1, 1 << 20, (1 << 20) + 72] {
            for mut buffer in (0..8).map(|_| Buffer::new(size).unwrap()) {
                assert!(buffer.bytes().as_ptr().addr().is_multiple_of(LINE));
                assert_eq!(buffer.len(), size.next_multiple_of(8));
                assert!(buffer.bytes().iter().all(|byte| *byte == 0));
                buffer.bytes_mut().fill(0xff);
            }
        }
        assert_eq!(Buffer::new(FIRST).unwrap().len(), FIRST);
        assert!(Buffer::new(0).unwrap().is_empty());
        assert!(Buffer::default().bytes().is_empty());
    }
}
