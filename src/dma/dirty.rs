//! Setting and harvesting dirty bits.
//!
//! Any number of threads set bits while one harvests. An atomic exchange for
//! each word would cost several times what copying it does. So the harvester
//! reads and clears words plainly, but says before and after which group of
//! words it is at, and those who set bits look whether that changed meanwhile.
//! If it did, or if it is their group, their bits may have been overwritten:
//! they set them again, this time with the harvester locked out. So the harvest is
//! a seqlock the other way round, in which those that write to memory do the
//! reading.

use std::slice;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::bitmap::{Block, GROUP_BITS};
use super::sizes::{GROUP_WORDS, LINE_WORDS};
use super::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, full_fence, or_and_fence};

/// What harvester and setters tell each other; in cache lines of its own. (Room on
/// both sides sees to that. Aligned it would make the whole context so, and to allocate
/// that takes far longer.)
#[repr(C)]
struct Progress {
    _before: Apart,
    /// Odd while a group is being harvested.
    sequence: AtomicU64,
    /// Which one.
    group: AtomicU64,
    /// Held while a group is being harvested.
    lock: Mutex<()>,
    _after: Apart,
}

/// Room of two cache lines, which processors fetch together.
type Apart = [u64; 16];

/// Which of the first and the last bit of a harvest are looked at, and stay set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// The page shift of an address space that is not to be used any more.
pub(super) const CLOSED: u32 = u32::MAX;

/// The dirty bitmaps of an address space.
pub(super) struct Dirty {
    /// 0 if nothing is logged, else the logging page size's shift, or `CLOSED`.
    page_shift: AtomicU32,
    progress: Progress,
}

/// The bits first to last of a word.
pub(super) fn mask(first: u64, last: u64) -> u64 {
    (!0 << (first % 64)) & (!0 >> (63 - last % 64))
}

impl Dirty {
    pub(super) fn new() -> Dirty {
        Dirty {
            page_shift: AtomicU32::new(0),
            progress: Progress {
                _before: [0; 16],
                sequence: AtomicU64::new(0),
                group: AtomicU64::new(0),
                lock: Mutex::new(()),
                _after: [0; 16],
            },
        }
    }

    /// Log2 of the logging page size, 0 if nothing is logged, [`CLOSED`].
    #[inline]
    pub(super) fn page_shift(&self) -> u32 {
        self.page_shift.load(Acquire)
    }

    /// Switches logging on, or off (0).
    pub(super) fn set_page_shift(&self, shift: u32) {
        self.page_shift.store(shift, Release);
    }

    /// Sets the bits `first` to `last` (both included) of a block.
    pub(super) fn set(&self, block: Block<'_>, first: u64, last: u64) {
        let mut from = first;
        loop {
            let end = from | (GROUP_BITS - 1);
            self.set_in_group(block, from, end.min(last));
            if last <= end {
                return;
            }
            from = end + 1;
        }
    }

    /// Whether a bit is set and no harvest can have taken it yet: then it stands
    /// for all that the calling thread wrote to guest memory so far, as if it had
    /// been set now. False says nothing.
    #[inline(always)]
    pub(super) fn is_set(&self, block: Block<'_>, bit: u64) -> bool {
        let before = self.progress.sequence.load(Acquire);
        if before & 1 == 1 || !block.has_noted(bit) {
            return false;
        }
        // As in `set_bits`.
        full_fence();
        self.progress.sequence.load(Relaxed) == before
    }

    /// Sets the bits `first` to `last` (both included) of a block, if they are
    /// bits of one group and no harvest is beside: false if they may not be set
    /// (any more). Neither waits nor panics.
    #[inline(always)]
    pub(super) fn try_set(&self, block: Block<'_>, first: u64, last: u64) -> bool {
        let group = first / GROUP_BITS;
        let before = self.progress.sequence.load(Acquire);
        let is_ours = || before & 1 == 1 && self.progress.group.load(Acquire) == block.name_of_group(group);
        if last / GROUP_BITS != group || is_ours() {
            return false;
        }
        set_bits(block, first, last);
        if self.progress.sequence.load(Relaxed) != before {
            return false;
        }
        // After the bits, so that a harvester that takes the note finds them.
        block.note(group as usize);
        true
    }

    /// The same with harvests locked out where needed.
    fn set_in_group(&self, block: Block<'_>, first: u64, last: u64) {
        if !self.try_set(block, first, last) {
            let no_harvest = self.progress.lock.lock();
            set_bits(block, first, last);
            drop(no_harvest);
            block.note((first / GROUP_BITS) as usize);
        }
    }

    /// Takes the bits `first` to `last` (both included) out of a block and
    /// hands those groups that have some to `sink`, by way of `buffer`, with the
    /// number of the first word. One harvester at a time: the caller sees to it.
    pub(super) fn harvest(
        &self,
        block: Block<'_>,
        (first, last): (u64, u64),
        kept: Kept,
        buffer: &mut [u64; GROUP_WORDS],
        mut sink: impl FnMut(u64, &mut [u64]),
    ) {
        let (first_group, last_group) = (first / GROUP_BITS, last / GROUP_BITS);
        for notes in first_group / 64..=last_group / 64 {
            let wanted = mask(first_group.max(notes * 64), last_group.min(notes * 64 + 63));
            let mut dirty = block.take_notes(notes as usize, wanted);
            while dirty != 0 {
                let group = notes * 64 + u64::from(dirty.trailing_zeros());
                dirty &= dirty - 1;
                let all_bits = group * GROUP_BITS..=group * GROUP_BITS + (GROUP_BITS - 1);
                let bits = first.max(*all_bits.start())..=last.min(*all_bits.end());
                let keep = |is_kept, bit| if is_kept { mask(bit, bit) } else { 0 };
                let keep_head = keep(kept.first && group == first_group, first);
                let keep_tail = keep(kept.last && group == last_group, last);
                let (word, end) = (*bits.start() / 64, *bits.end() / 64);
                let Some(found) = buffer.get_mut(..(end - word + 1) as usize) else { continue };
                let Some(words) = block.words().get(word as usize..=end as usize) else { continue };
                let progress = self.progress.begin_harvest(block.name_of_group(group));
                let (head, tail) = (mask(*bits.start(), 63), mask(0, *bits.end()));
                let any = take_bits(words, found, (head, keep_head), (tail, keep_tail));
                drop(progress);
                if bits != all_bits || keep_head | keep_tail != 0 {
                    block.note_if_dirty(group as usize);
                }
                if any {
                    sink(word, found);
                }
            }
        }
    }
}

#[cfg(test)]
impl Dirty {
    /// How many groups have been harvested.
    pub(super) fn harvested(&self) -> u64 {
        self.progress.sequence.load(Relaxed) / 2
    }
}

/// A group being harvested.
struct Harvest<'a> {
    progress: &'a Progress,
    _lock: MutexGuard<'a, ()>,
    sequence: u64,
}

impl Progress {
    fn begin_harvest(&self, group: u64) -> Harvest<'_> {
        let lock = self.lock.lock();
        let sequence = self.sequence.load(Relaxed).wrapping_add(1);
        self.group.store(group, Release);
        self.sequence.store(sequence, Release);
        // A Dekker fence: one of two comes first, this or that of `set_bits`.
        // Either the words that are read next have the bits of the setter, and
        // what it wrote can be seen, or the setter sees that number.
        full_fence();
        Harvest { progress: self, _lock: lock, sequence }
    }
}

impl Drop for Harvest<'_> {
    fn drop(&mut self) {
        self.progress.sequence.store(self.sequence.wrapping_add(1), Release);
    }
}

/// Sets bits of one group, so that they, and what the thread has written to
/// guest memory, come before whatever the caller reads next from
/// `Progress::sequence`. A bit that was set already stands for these writes too
/// if no harvest of its group begins before that.
fn set_bits(block: Block<'_>, first: u64, last: u64) {
    let words = block.words().get((first / 64) as usize..=(last / 64) as usize).unwrap_or_default();
    match words {
        [] => full_fence(),
        [word] => match mask(first, last) {
            bits if word.load(Relaxed) & bits == bits => full_fence(),
            bits => or_and_fence(word, bits),
        },
        [head, middle @ .., tail] => {
            set_in_word(head, mask(first, 63));
            let (lines, rest) = middle.as_chunks::<LINE_WORDS>();
            lines.iter().for_each(|words| fill(words));
            rest.iter().for_each(|word| fill(slice::from_ref(word)));
            set_in_word(tail, mask(0, last));
            full_fence();
        }
    }
}

/// Sets all bits of a few words, unless they are set.
#[inline(always)]
fn fill(words: &[AtomicU64]) {
    if words.iter().fold(!0, |all, word| all & word.load(Relaxed)) != !0 {
        words.iter().for_each(|word| word.store(!0, Relaxed));
    }
}

/// Sets bits of a word, unless they are set: so threads that write to the same
/// pages all the time do not take the word out of each other's cache.
#[inline(always)]
fn set_in_word(word: &AtomicU64, bits: u64) {
    if word.load(Relaxed) & bits != bits {
        word.fetch_or(bits, Relaxed);
    }
}

/// Moves the bits of `words` to `found`, of the first word and of the last only
/// those wanted, of which those kept stay set, too. Returns whether there were any.
fn take_bits(words: &[AtomicU64], found: &mut [u64], first: (u64, u64), last: (u64, u64)) -> bool {
    match (words, found) {
        ([word], [found]) => {
            *found = take_word(word, first.0 & last.0, first.1 | last.1);
            *found != 0
        }
        ([head, words @ .., tail], [found_head, found @ .., found_tail]) => {
            *found_head = take_word(head, first.0, first.1);
            *found_tail = take_word(tail, last.0, last.1);
            let mut any = *found_head | *found_tail;
            let (lines, rest) = words.as_chunks::<LINE_WORDS>();
            let (found_lines, found_rest) = found.as_chunks_mut::<LINE_WORDS>();
            for (words, found) in lines.iter().zip(found_lines) {
                any |= take_line(words, found);
            }
            for (word, found) in rest.iter().zip(found_rest) {
                *found = take_word(word, !0, 0);
                any |= *found;
            }
            any != 0
        }
        _ => false,
    }
}

fn take_word(word: &AtomicU64, wanted: u64, keep: u64) -> u64 {
    let bits = word.load(Relaxed);
    if bits & wanted & !keep != 0 {
        word.store(bits & !wanted | bits & keep, Relaxed);
    }
    bits & wanted
}

/// Moves all bits of a few words, and returns whether there were any.
#[inline(always)]
fn take_line(words: &[AtomicU64; LINE_WORDS], found: &mut [u64; LINE_WORDS]) -> u64 {
    let mut any = 0;
    for (word, found) in words.iter().zip(found) {
        *found = word.load(Relaxed);
        any |= *found;
    }
    if any != 0 {
        for word in words {
            word.store(0, Relaxed);
        }
    }
    any
}
