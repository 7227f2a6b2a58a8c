//! Memory for dirty bitmaps.
//!
//! A thread may be about to set a bit while the bitmap's region goes, so
//! bitmaps are not unmapped but kept for other regions (a bit set too much only
//! makes a page dirty that isn't), without their contents. They take up memory
//! where bits were set, not where they could be.

use std::slice;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::chunked::Chunked;
use super::mapping::{Mapping, host_page_size};
use super::sizes::GROUP_WORDS;
use super::sync::{AtomicU64, OnceLock};
use crate::memory;
use crate::wire::{Errno, Result};

/// Bits in the words that are scanned in one go.
pub(super) const GROUP_BITS: u64 = GROUP_WORDS as u64 * 64;
/// Blocks of one size that are made at once, if they are small.
const BATCH: usize = 64;
/// Most address space that is mapped for these, in bytes.
const MAX_BATCH: usize = 256 << 10;
/// Most address space that the bitmaps of one guest may take: enough for 32 PiB
/// of 4 KiB pages, and little enough to leave room for everything else.
const MAX_RESERVED: u64 = 1 << 40;

/// One bitmap, of 2^class words.
pub(super) struct Block {
    words: *const AtomicU64,
    count: usize,
    class: u32,
    /// A bit for each group that may have bits set. Empty if there is one
    /// group only.
    summary: Box<[AtomicU64]>,
}

// SAFETY: `words` points to atomics that live as long as the block.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// All blocks that ever were; handle 0 is none.
pub(super) struct Blocks(Chunked<OnceLock<Block>, 0>);

impl Blocks {
    pub(super) fn new() -> Blocks {
        Blocks(Chunked::new())
    }

    #[inline]
    pub(super) fn get(&self, handle: u32) -> Option<&Block> {
        self.0.get(handle.into())?.get()
    }

    pub(super) fn add(&self, handle: u32, block: Block) -> Result<()> {
        let _ = self.0.get_or_make(handle, |_| OnceLock::new())?.set(block);
        Ok(())
    }
}

impl Block {
    /// A bitmap of 2^class words, all bits clear.
    ///
    /// # Safety
    /// The words are there as long as the block is, are atomics to everyone
    /// else, and no other block's.
    pub(super) unsafe fn new(words: *const AtomicU64, class: u32) -> Result<Block> {
        let groups = (1_usize << class).div_ceil(GROUP_WORDS);
        let notes = if groups > 1 { groups.div_ceil(64) } else { 0 };
        let summary = memory::collect((0..notes).map(|_| AtomicU64::new(0)))?;
        Ok(Block { words, count: 1 << class, class, summary })
    }

    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: by the contract of `new`.
        unsafe { slice::from_raw_parts(self.words, self.count) }
    }

    /// Whether a bit is set; any number may be asked for.
    #[inline(always)]
    pub(super) fn has(&self, bit: u64) -> bool {
        let word = self.words().get((bit / 64) as usize);
        word.is_some_and(|word| word.load(Relaxed) >> (bit % 64) & 1 != 0)
    }

    /// A number that no other group of any block has: its address.
    #[inline(always)]
    pub(super) fn name_of_group(&self, group: u64) -> u64 {
        (self.words.addr() as u64).wrapping_add(group.wrapping_mul(GROUP_BITS / 8))
    }

    /// Whether it has been said that a group may have bits set, and no harvest
    /// took note of that yet.
    #[inline(always)]
    pub(super) fn is_noted(&self, group: u64) -> bool {
        if self.summary.is_empty() {
            return true;
        }
        let word = self.summary.get((group / 64) as usize);
        word.is_some_and(|word| word.load(SeqCst) >> (group % 64) & 1 != 0)
    }

    /// Says that a group may have bits set.
    #[inline]
    pub(super) fn note(&self, group: usize) {
        let mask = 1 << (group % 64);
        if let Some(word) = self.summary.get(group / 64)
            && word.load(SeqCst) & mask == 0
        {
            word.fetch_or(mask, SeqCst);
        }
    }

    /// Says so if it has.
    pub(super) fn note_if_dirty(&self, group: usize) {
        let words = self.words().chunks(GROUP_WORDS).nth(group).unwrap_or_default();
        if words.iter().any(|word| word.load(Relaxed) != 0) {
            self.note(group);
        }
    }

    /// Which of the 64 groups from `64 * word` on may have bits set, of those
    /// in `mask`; these are taken for clean from here on.
    pub(super) fn take_notes(&self, word: usize, mask: u64) -> u64 {
        match self.summary.get(word) {
            Some(notes) if notes.load(SeqCst) & mask != 0 => notes.fetch_and(!mask, SeqCst) & mask,
            Some(_) => 0,
            None => mask,
        }
    }

    fn bytes(&self) -> usize {
        8 << self.class
    }

    /// Makes all bits zero before the block has a new region.
    fn clear(&self, page_size: usize) {
        for notes in &self.summary {
            notes.store(0, Relaxed);
        }
        // Whole pages are zero already, see `discard`.
        if self.bytes() < page_size {
            self.clear_words();
        }
    }

    fn clear_words(&self) {
        for word in self.words() {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
    }

    /// Gives the memory back to the system, and keeps its address.
    fn discard(&self, page_size: usize) {
        if self.bytes() >= page_size {
            // SAFETY: the range is the block's own, whole pages of private
            // anonymous memory, which read as zero afterwards; all that is
            // there are atomics, for which zero is as good as any value.
            let advised =
                unsafe { libc::madvise(self.words.cast_mut().cast(), self.bytes(), libc::MADV_DONTNEED) };
            if advised < 0 {
                // As for a process that locks its memory.
                self.clear_words();
            }
        }
    }
}

/// The blocks of one size.
#[derive(Default)]
struct Class {
    /// Handles of those that are unused; with room for all there are.
    free: Vec<u32>,
    /// How many there are.
    count: usize,
}

/// Classes that there may be.
const CLASSES: u32 = 32;

/// Where blocks come from.
pub(super) struct Pool {
    /// The handle of the next block that is made.
    next: u32,
    /// By class; those up to the largest that was ever wanted.
    classes: Vec<Class>,
    mappings: Vec<Mapping>,
    reserved: u64,
    page_size: usize,
}

impl Pool {
    pub(super) fn new() -> Pool {
        Pool {
            next: 1,
            classes: Vec::new(),
            mappings: Vec::new(),
            reserved: 0,
            page_size: usize::try_from(host_page_size()).unwrap_or(4096),
        }
    }

    /// A block for this many bits, all clear.
    pub(super) fn take(&mut self, blocks: &Blocks, bits: u64) -> Result<u32> {
        let words = usize::try_from(bits.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let class = words.checked_next_power_of_two().ok_or(Errno::ENOMEM)?.ilog2();
        let mut free = self.free(class).and_then(Vec::pop);
        if free.is_none() {
            self.grow(blocks, class)?;
            free = self.free(class).and_then(Vec::pop);
        }
        let handle = free.ok_or(Errno::ENOMEM)?;
        if let Some(block) = blocks.get(handle) {
            block.clear(self.page_size);
        }
        Ok(handle)
    }

    /// Takes a block back.
    pub(super) fn give_back(&mut self, blocks: &Blocks, handle: u32) {
        let Some(block) = blocks.get(handle) else { return };
        block.discard(self.page_size);
        if let Some(free) = self.free(block.class) {
            free.push(handle);
        }
    }

    fn free(&mut self, class: u32) -> Option<&mut Vec<u32>> {
        self.classes.get_mut(class as usize).map(|class| &mut class.free)
    }

    /// A class, which is made if need be.
    fn class(classes: &mut Vec<Class>, class: u32) -> Result<&mut Class> {
        while class < CLASSES && classes.len() <= class as usize {
            memory::push(classes, Class::default())?;
        }
        classes.get_mut(class as usize).ok_or(Errno::ENOMEM)
    }

    /// Makes more blocks of a class.
    fn grow(&mut self, blocks: &Blocks, class: u32) -> Result<()> {
        let size = 8_usize << class;
        let length = size.saturating_mul(BATCH).min(MAX_BATCH).max(size).max(self.page_size);
        let reserved = self.reserved.saturating_add(length as u64);
        if reserved > MAX_RESERVED {
            return Err(Errno::ENOMEM);
        }
        let Class { free, count } = Pool::class(&mut self.classes, class)?;
        memory::reserve(&mut self.mappings, 1)?;
        // None is free, so this makes room for all of them.
        memory::reserve(free, count.saturating_add(length / size))?;
        let mapping = Mapping::zeroed(length)?;
        let base = mapping.base();
        self.mappings.push(mapping);
        self.reserved = reserved;
        for at in (0..length).step_by(size) {
            let handle = self.next;
            self.next = handle.checked_add(1).ok_or(Errno::ENOMEM)?;
            let words = base.wrapping_byte_add(at).cast_const().cast();
            // SAFETY: the words lie in a mapping of the pool, which is dropped
            // together with its blocks; this is the only one of them that has
            // this part of it. Zeroed memory and every other is a valid atomic.
            blocks.add(handle, unsafe { Block::new(words, class) }?)?;
            free.push(handle);
            *count = count.saturating_add(1);
        }
        Ok(())
    }
}
