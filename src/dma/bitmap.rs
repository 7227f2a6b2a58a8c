//! Memory for dirty bitmaps.
//!
//! A thread may be about to set a bit while the bitmap's region goes, so
//! bitmaps are not unmapped but kept for other regions (a bit set too much only
//! makes a page dirty that isn't), without their contents. They take up memory
//! where bits were set, not where they could be; and nothing tells of them but
//! their names.

use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ptr;
use std::slice;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::mapping::host_page_size;
use super::sizes::GROUP_WORDS;
use super::sync::AtomicU64;
use super::zeroed::Zeroed;
use crate::memory;
use crate::wire::{Errno, Result};

/// Bits in the words that are scanned in one go.
pub(super) const GROUP_BITS: u64 = GROUP_WORDS as u64 * 64;
/// Log2 of the words in a group.
const GROUP_CLASS: u32 = GROUP_WORDS.ilog2();
/// Least number of blocks of one size that are made at once, if they are small.
/// Further ones are as many as there are.
const BATCH: usize = 64;
/// Most address space that is mapped for these, in bytes.
const MAX_BATCH: usize = 4 << 20;
/// Most address space that the bitmaps of one guest may take: enough for 32 PiB
/// of 4 KiB pages, and little enough to leave room for everything else.
const MAX_RESERVED: u64 = 1 << 40;

/// Bits of a name that say the class: as many as processors look at in shifts, which
/// is what it is for.
const CLASS_BITS: u32 = 6;
const CLASSES: u32 = 32;

/// Where a bitmap is and how large: its address and its class in one number, so
/// that who reads it has both of the same bitmap. 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(pub(super) u64);

/// One bitmap, of 2^class words. Behind them is a bit for each group that may have
/// bits set, unless there is one group only.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    name: NonZeroU64,
    life: PhantomData<&'a AtomicU64>,
}

impl Name {
    pub(super) const NONE: Name = Name(0);

    /// Of a bitmap of 2^class words at this address; none for addresses that are
    /// larger than any.
    pub(super) fn new(words: *const AtomicU64, class: u32) -> Option<Name> {
        let address = words.expose_provenance() as u64;
        let fits = address.leading_zeros() >= CLASS_BITS && class < CLASSES;
        fits.then_some(Name(address << CLASS_BITS | u64::from(class)))
    }

    /// The bitmap of this name.
    ///
    /// # Safety
    /// The name is none, or that of words that are there for `'a`, with those that
    /// note their groups, and are atomics to everyone else.
    #[inline(always)]
    pub(super) unsafe fn block<'a>(self) -> Option<Block<'a>> {
        Some(Block { name: NonZeroU64::new(self.0)?, life: PhantomData })
    }
}

/// How many words note the groups of a bitmap.
#[inline(always)]
const fn notes(class: u32) -> usize {
    if class <= GROUP_CLASS { 0 } else { (1_usize << (class - GROUP_CLASS)).div_ceil(64) }
}

/// How many words a bitmap has with those that note its groups.
pub(super) const fn all_words(class: u32) -> usize {
    (1 << class) + notes(class)
}

impl<'a> Block<'a> {
    /// The first word.
    #[inline(always)]
    fn first(&self) -> *const AtomicU64 {
        ptr::with_exposed_provenance((self.name.get() >> CLASS_BITS) as usize)
    }

    #[inline(always)]
    fn class(&self) -> u32 {
        self.name.get() as u32 % (1 << CLASS_BITS)
    }

    #[inline]
    pub(super) fn words(&self) -> &'a [AtomicU64] {
        // SAFETY: by the contract of `Name::block`.
        unsafe { slice::from_raw_parts(self.first(), 1 << self.class()) }
    }

    /// A bit for each group that may have bits set. Empty if there is one group
    /// only.
    #[inline(always)]
    fn summary(&self) -> &'a [AtomicU64] {
        // SAFETY: by the contract of `Name::block`; behind the words.
        unsafe { slice::from_raw_parts(self.first().add(1 << self.class()), notes(self.class())) }
    }

    /// Whether a bit is set and it has been said that its group may have bits set, of
    /// which no harvest took note yet; any number may be asked for.
    #[inline(always)]
    pub(super) fn has_noted(&self, bit: u64) -> bool {
        let at = bit / 64;
        // The class is what a shift looks at of a name.
        let words = 1_u64.wrapping_shl(self.name.get() as u32);
        if at >= words {
            return false;
        }
        // SAFETY: one of the 2^class words that are there by the contract of
        // `Name::block`.
        let word = unsafe { &*self.first().add(at as usize) };
        if word.load(Relaxed) >> (bit % 64) & 1 == 0 {
            return false;
        }
        if words <= GROUP_WORDS as u64 {
            return true;
        }
        let group = bit / GROUP_BITS;
        // SAFETY: the words have this group, whose notes are behind them by the contract
        // of `Name::block`.
        let notes = unsafe { &*self.first().add(words as usize).add((group / 64) as usize) };
        notes.load(SeqCst) >> (group % 64) & 1 != 0
    }

    /// A number that no other group of any block has: its address.
    #[inline(always)]
    pub(super) fn name_of_group(&self, group: u64) -> u64 {
        (self.first().addr() as u64).wrapping_add(group.wrapping_mul(GROUP_BITS / 8))
    }

    /// Whether it has been said that a group may have bits set, and no harvest
    /// took note of that yet.
    #[inline]
    pub(super) fn is_noted(&self, group: u64) -> bool {
        let summary = self.summary();
        match summary.get((group / 64) as usize) {
            Some(notes) => notes.load(SeqCst) >> (group % 64) & 1 != 0,
            None => summary.is_empty(),
        }
    }

    /// Says that a group may have bits set.
    #[inline]
    pub(super) fn note(&self, group: usize) {
        let mask = 1 << (group % 64);
        if let Some(word) = self.summary().get(group / 64)
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
        match self.summary().get(word) {
            Some(notes) if notes.load(SeqCst) & mask != 0 => notes.fetch_and(!mask, SeqCst) & mask,
            Some(_) => 0,
            None => mask,
        }
    }

    /// Makes all of it zero.
    fn clear(&self) {
        for word in self.words().iter().chain(self.summary()) {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
    }
}

/// A stack of names, in pages of its own: an allocator would keep the memory of a
/// long one.
struct Names {
    room: Option<Zeroed<AtomicU64>>,
    len: usize,
}

impl Names {
    const EMPTY: Names = Names { room: None, len: 0 };

    fn slice(&self) -> &[AtomicU64] {
        self.room.as_ref().map_or(&[], Zeroed::as_slice)
    }

    /// Makes room for so many.
    fn reserve(&mut self, count: usize, page_words: usize) -> Result<()> {
        if self.slice().len() < count {
            let most = count.max(page_words).checked_next_power_of_two().ok_or(Errno::ENOMEM)?;
            // SAFETY: the number is zeroes.
            let room = unsafe { Zeroed::new(most, || AtomicU64::new(0)) }?;
            let names = room.as_slice().iter().zip(self.slice().iter().take(self.len));
            names.for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
            self.room = Some(room);
        }
        Ok(())
    }

    fn push(&mut self, name: Name) {
        if let Some(place) = self.slice().get(self.len) {
            place.store(name.0, Relaxed);
            self.len = self.len.saturating_add(1);
        }
    }

    fn pop(&mut self) -> Option<Name> {
        self.len = self.len.checked_sub(1)?;
        self.slice().get(self.len).map(|place| Name(place.load(Relaxed)))
    }
}

/// Blocks of one size.
struct Class {
    /// Those that were used and are not any more, with room for all that are.
    free: Names,
    /// How many are used or free.
    made: usize,
    /// Where they lie, one behind the other; behind those that are made there is
    /// room for more.
    mappings: Vec<Zeroed<AtomicU64>>,
    /// The next of them: in which mapping, and its first word there.
    next: (usize, usize),
}

/// Where blocks come from.
pub(super) struct Pool {
    /// Those up to the largest that was ever wanted.
    classes: Vec<Class>,
    reserved: u64,
    page_words: usize,
}

impl Class {
    const EMPTY: Class = Class { free: Names::EMPTY, made: 0, mappings: Vec::new(), next: (0, 0) };
}

impl Pool {
    pub(super) fn new() -> Pool {
        let page_size = usize::try_from(host_page_size()).unwrap_or(4096);
        Pool { classes: Vec::new(), reserved: 0, page_words: page_size / size_of::<u64>() }
    }

    /// Whether blocks of this class have pages for themselves.
    fn has_pages(&self, class: u32) -> bool {
        1 << class >= self.page_words
    }

    /// Words from one block of a class to the next.
    fn stride(&self, class: u32) -> usize {
        let words = all_words(class);
        if self.has_pages(class) { words.next_multiple_of(self.page_words) } else { words }
    }

    /// A block for this many bits, all clear.
    pub(super) fn take(&mut self, bits: u64) -> Result<Name> {
        let words = usize::try_from(bits.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let number = words.checked_next_power_of_two().ok_or(Errno::ENOMEM)?.ilog2();
        let has_pages = self.has_pages(number);
        while number < CLASSES && self.classes.len() <= number as usize {
            memory::push(&mut self.classes, Class::EMPTY)?;
        }
        let class = self.classes.get_mut(number as usize).ok_or(Errno::ENOMEM)?;
        let name = match class.free.pop() {
            Some(name) => name,
            None => self.make(number)?,
        };
        // Whole pages are zero already, see `give_back`.
        if !has_pages
            // SAFETY: a block of the pool.
            && let Some(block) = unsafe { name.block() }
        {
            block.clear();
        }
        Ok(name)
    }

    /// Takes a block of the pool back. Those that have pages for themselves give
    /// their memory back to the system.
    pub(super) fn give_back(&mut self, name: Name) {
        // SAFETY: a block of the pool.
        let Some(block) = (unsafe { name.block() }) else { return };
        if self.has_pages(block.class()) {
            let bytes = self.stride(block.class()).saturating_mul(size_of::<u64>());
            // SAFETY: the range is the block's own, whole pages of private
            // anonymous memory, which read as zero afterwards; all that is
            // there are atomics, for which zero is as good as any value.
            let advised =
                unsafe { libc::madvise(block.first().cast_mut().cast(), bytes, libc::MADV_DONTNEED) };
            if advised < 0 {
                // As for a process that locks its memory.
                block.clear();
            }
        }
        if let Some(class) = self.classes.get_mut(block.class() as usize) {
            class.free.push(name);
        }
    }

    /// Gives all memory back to the system, when all blocks were given back. The
    /// addresses are kept: threads may be about to set bits there.
    pub(super) fn discard(&mut self) {
        for class in &mut self.classes {
            (class.free, class.made, class.next) = (Names::EMPTY, 0, (0, 0));
            class.mappings.iter().for_each(|mapping| mapping.discard(|word| word.store(0, Relaxed)));
        }
    }

    /// One more block of a class that has none free.
    fn make(&mut self, number: u32) -> Result<Name> {
        let stride = self.stride(number);
        let class = self.classes.get_mut(number as usize).ok_or(Errno::ENOMEM)?;
        class.free.reserve(class.made.saturating_add(1), self.page_words)?;
        loop {
            let (mapping, first) = class.next;
            let Some(mapped) = class.mappings.get(mapping) else { break };
            let end = first.checked_add(stride).ok_or(Errno::ENOMEM)?;
            if let Some(words) = mapped.as_slice().get(first..end) {
                let name = Name::new(words.as_ptr(), number).ok_or(Errno::ENOMEM)?;
                (class.made, class.next) = (class.made.saturating_add(1), (mapping, end));
                return Ok(name);
            }
            class.next = (mapping.saturating_add(1), 0);
        }
        self.grow(number)?;
        self.make(number)
    }

    /// Room for more blocks of a class: at least one.
    fn grow(&mut self, number: u32) -> Result<()> {
        let stride = self.stride(number);
        let class = self.classes.get_mut(number as usize).ok_or(Errno::ENOMEM)?;
        let most = (MAX_BATCH / size_of::<u64>() / stride).max(1);
        let count = class.made.max(BATCH).min(most).saturating_mul(stride).next_multiple_of(self.page_words);
        let reserved = self.reserved.saturating_add(count as u64 * size_of::<u64>() as u64);
        if reserved > MAX_RESERVED {
            return Err(Errno::ENOMEM);
        }
        memory::reserve(&mut class.mappings, 1)?;
        // SAFETY: a clear word is zero.
        class.mappings.push(unsafe { Zeroed::new(count, || AtomicU64::new(0)) }?);
        self.reserved = reserved;
        Ok(())
    }
}
