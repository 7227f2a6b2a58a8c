//! Byte buffers that start at a multiple of 8.

use zerocopy::IntoBytes;

use crate::memory::Words;
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

/// Where in a page those start that are larger than [`FIRST`]. What is copied to or from
/// them starts at a page, as a rule, and their payload a few bytes behind their own
/// start: the processor takes a load for one of what was stored just before if the
/// two differ in the page alone ("4K aliasing"), and a copy from a page's start to
/// another's 24th byte takes six times as long as to its middle. And that is a
/// multiple of a cache line: from malloc's memory, aligned to 16, to its own
/// pages the kernel copies a third slower.
const PLACE: usize = PAGE / 2;
const PAGE: usize = 4096;

/// A fixed piece of memory, aligned to 8 bytes at least, that was zero once.
#[derive(Debug, Default)]
pub struct Buffer {
    words: Words,
    /// Words before it.
    skipped: usize,
    /// In words. Invariant: so many are behind those skipped.
    count: usize,
}

impl Buffer {
    /// A buffer of at least `size` bytes, or `ENOMEM`.
    pub fn new(size: usize) -> Result<Buffer> {
        let count = size.div_ceil(size_of::<u64>());
        if size <= FIRST {
            return Ok(Buffer { words: Words::zeroed(count)?, skipped: 0, count });
        }
        let spare = PAGE / size_of::<u64>() - 1;
        let words = Words::zeroed(count.saturating_add(spare))?;
        // Words start at multiples of 8: at most those spare are skipped.
        let skipped = PLACE.wrapping_sub(words.as_ptr().addr()) % PAGE / size_of::<u64>();
        Ok(Buffer { words, skipped, count })
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether it has no bytes at all.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its bytes.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        let (start, end) = (self.skipped, self.skipped.wrapping_add(self.count));
        // SAFETY: within the words, by the invariant.
        unsafe { self.words.get_unchecked(start..end) }.as_bytes()
    }

    /// Its bytes.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.skipped, self.skipped.wrapping_add(self.count));
        // SAFETY: within the words, by the invariant.
        unsafe { self.words.get_unchecked_mut(start..end) }.as_mut_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_than_the_first_starts_in_the_middle_of_a_page() {
        for size in [FIRST + 1, STANDARD, STANDARD + 1, 1 << 20, (1 << 20) + 72] {
            for mut buffer in (0..8).map(|_| Buffer::new(size).unwrap()) {
                assert_eq!(buffer.bytes().as_ptr().addr() % 4096, 2048);
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
