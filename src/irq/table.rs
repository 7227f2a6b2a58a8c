//! The vectors of one type of interrupt: a segmented vector, which grows while others
//! look into it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::vector::Vector;
use crate::wire::{Errno, Result};

/// Vectors in the first block. Each block has twice as many as the one before,
/// so that the table grows and nothing in it ever moves.
const FIRST: usize = 64;
/// As many as 32 bits can count to take.
const BLOCKS: usize = 27;
const _: () = assert!(BLOCKS <= u32::BITS as usize);

/// The vectors, in blocks that are made when they are first needed and stay as
/// long as the table.
#[derive(Debug)]
pub struct Table {
    /// How many vectors the type has.
    count: AtomicU32,
    /// How many of them have an eventfd.
    pub assigned: AtomicU32,
    /// A bit for each block that has been made.
    made: AtomicU32,
    blocks: [AtomicPtr<Vector>; BLOCKS],
}

impl Default for Table {
    fn default() -> Table {
        Table {
            count: AtomicU32::new(0),
            assigned: AtomicU32::new(0),
            made: AtomicU32::new(0),
            blocks: [const { AtomicPtr::new(ptr::null_mut()) }; BLOCKS],
        }
    }
}

/// The block of a vector, and the first vector of that block.
fn block_of(vector: u32) -> (usize, usize) {
    let block = (vector as usize / FIRST + 1).ilog2() as usize;
    (block, start_of(block))
}

fn start_of(block: usize) -> usize {
    FIRST * ((1 << block) - 1)
}

fn layout(block: usize) -> Result<Layout> {
    Layout::array::<Vector>(FIRST << block).map_err(|_| Errno::ENOMEM)
}

/// The numbers of the bits that are set.
fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lowest < u32::BITS).then_some(lowest as usize)
    })
}

impl Table {
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn set_count(&self, count: u32) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// A vector whose block has been made.
    pub fn get(&self, vector: u32) -> Option<&Vector> {
        let (block, start) = block_of(vector);
        let vectors = self.blocks.get(block)?.load(Ordering::Acquire);
        if vectors.is_null() {
            return None;
        }
        // SAFETY: the block has that many vectors, all zeros at first, which is
        // a valid vector; it stays as long as the table.
        Some(unsafe { &*vectors.add(vector as usize - start) })
    }

    /// One of the first vectors, which are nearly all that is ever triggered.
    #[inline(always)]
    pub fn get_first(&self, vector: u32) -> Option<&Vector> {
        let [block, ..] = &self.blocks;
        let vectors = block.load(Ordering::Acquire);
        if vectors.is_null() || vector as usize >= FIRST {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { &*vectors.add(vector as usize) })
    }

    /// A vector, whose block is made if need be.
    pub fn make(&self, vector: u32) -> Result<&Vector> {
        if self.get(vector).is_none() {
            let (block, _) = block_of(vector);
            let (place, layout) = (self.blocks.get(block).ok_or(Errno::EINVAL)?, layout(block)?);
            // SAFETY: the size is not zero.
            let new = unsafe { alloc_zeroed(layout) }.cast::<Vector>();
            if new.is_null() {
                return Err(Errno::ENOMEM);
            }
            match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.made.fetch_or(1 << block, Ordering::Release);
                }
                // SAFETY: made just now, and nobody else has it.
                Err(_) => unsafe { dealloc(new.cast(), layout) },
            }
        }
        self.get(vector).ok_or(Errno::ENOMEM)
    }

    /// The first vector behind the block of this one.
    pub fn end_of_block(&self, vector: u32) -> u32 {
        let (block, start) = block_of(vector);
        u32::try_from(start + (FIRST << block)).unwrap_or(u32::MAX)
    }

    /// The vectors of a range, as far as they have been made, with their numbers.
    pub fn range(&self, range: Range<u32>) -> impl Iterator<Item = (u32, &Vector)> {
        bits(self.made.load(Ordering::Acquire)).flat_map(move |block| {
            let end = u32::try_from(start_of(block) + (FIRST << block)).unwrap_or(u32::MAX);
            let start = u32::try_from(start_of(block)).unwrap_or(u32::MAX).max(range.start);
            (start..end.min(range.end)).filter_map(|vector| Some((vector, self.get(vector)?)))
        })
    }

    /// All vectors that have been made.
    pub fn all(&self) -> impl Iterator<Item = &Vector> {
        self.range(0..u32::MAX).map(|(_, vector)| vector)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.all().for_each(|vector| {
            vector.replace(None);
        });
        for block in bits(*self.made.get_mut()) {
            if let (Some(vectors), Ok(layout)) = (self.blocks.get_mut(block), layout(block)) {
                // SAFETY: made with this layout; a vector needs no drop once it
                // has no eventfd.
                unsafe { dealloc(vectors.get_mut().cast(), layout) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_without_a_gap() {
        assert_eq!(block_of(0), (0, 0));
        for block in 0..BLOCKS - 1 {
            let next = u32::try_from(start_of(block + 1)).unwrap();
            assert_eq!(block_of(next - 1).0, block);
            assert_eq!(block_of(next), (block + 1, next as usize));
            assert_eq!(start_of(block) + (FIRST << block), next as usize);
        }
        assert_eq!(block_of(u32::MAX).0, BLOCKS - 1);
    }

    #[test]
    fn a_vector_stays_where_it_is_when_the_table_grows() {
        let table = Table::default();
        assert!(table.get(5).is_none());
        let first = ptr::from_ref(table.make(5).unwrap());
        table.make(100_000).unwrap();
        assert_eq!(ptr::from_ref(table.get(5).unwrap()), first);
        assert!(table.get(200).is_none());
        let seen: Vec<u32> = table.range(60..70).map(|(number, _)| number).collect();
        assert_eq!(seen, [60, 61, 62, 63]);
    }
}
