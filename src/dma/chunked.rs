//! Storage whose elements never move and are freed only with the whole, so
//! that threads may look at an element while its owner reuses it: a segmented
//! vector, of which each segment is twice as large as the one before.

use super::sync::OnceLock;
use super::zeroed::Pages;
use crate::memory;
use crate::wire::{Errno, Result};

/// Elements named by handles from `1 << BASE` up. Chunk k holds the handles
/// that have their highest bit at position `BASE + k`.
pub(super) struct Chunked<T, const BASE: u32> {
    /// Made with the first element: most contexts of ten thousand never have one.
    chunks: OnceLock<Box<Chunks<T>>>,
}

type Chunks<T> = [OnceLock<Pages<T>>; 32];

impl<T, const BASE: u32> Chunked<T, BASE> {
    pub(super) fn new() -> Self {
        Chunked { chunks: OnceLock::new() }
    }

    /// The element of a handle; any number may be asked for.
    #[inline]
    pub(super) fn get(&self, handle: u64) -> Option<&T> {
        let top_bit = handle.checked_ilog2()?;
        let chunk = self.chunks.get()?.get(top_bit.wrapping_sub(BASE) as usize)?.get()?;
        chunk.get((handle ^ (1 << top_bit)) as usize)
    }

    /// The element of a handle, made with its whole chunk if it isn't there
    /// yet. `ENOMEM` if there is no memory for it.
    pub(super) fn get_or_make(&self, handle: u32, make: impl Fn(u32) -> T) -> Result<&T> {
        let top_bit = handle.checked_ilog2().ok_or(Errno::ENOMEM)?;
        if self.chunks.get().is_none() {
            // Whoever came first wins; they are alike.
            let _ = self.chunks.set(memory::boxed(std::array::from_fn(|_| OnceLock::new()))?);
        }
        let chunks = self.chunks.get().ok_or(Errno::ENOMEM)?;
        let chunk = chunks.get(top_bit.wrapping_sub(BASE) as usize).ok_or(Errno::ENOMEM)?;
        if chunk.get().is_none() {
            let count = 1_u32 << top_bit;
            let elements = Pages::collect((0..count).map(|number| make(count | number)))?;
            // Whoever came first wins; the elements are alike.
            let _ = chunk.set(elements);
        }
        self.get(handle.into()).ok_or(Errno::ENOMEM)
    }
}

/// Hands out the handles of a [`Chunked`], the last returned first.
pub(super) struct Handles<const BASE: u32> {
    free: Vec<u32>,
    next: u32,
}

impl<const BASE: u32> Handles<BASE> {
    pub(super) const fn new() -> Self {
        Handles { free: Vec::new(), next: 1 << BASE }
    }

    /// A handle that nobody has, `ENOMEM` if all 2^32 are in use.
    pub(super) fn take(&mut self) -> Result<u32> {
        if let Some(handle) = self.free.pop() {
            return Ok(handle);
        }
        let handle = self.next;
        // Room for all that there are, so that to take one back never fails.
        memory::reserve(&mut self.free, handle.saturating_sub((1 << BASE) - 1) as usize)?;
        self.next = handle.checked_add(1).ok_or(Errno::ENOMEM)?;
        Ok(handle)
    }

    /// Takes a handle back.
    pub(super) fn give_back(&mut self, handle: u32) {
        self.free.push(handle);
    }
}
