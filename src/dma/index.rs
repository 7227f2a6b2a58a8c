//! The regions in the order of their addresses: a B+-tree of two levels, a sorted
//! array of leaves, each a sorted array of region starts.
//!
//! Readers take no lock: the whole is a seqlock. What they read is atomic, has its
//! place until the index goes (its memory may go, which makes zeroes of it, and is
//! a change as any other), and whatever they read of a half-made change
//! is bounded by lengths of arrays; so the worst a change does to them is to lead
//! them astray. They see that from the sequence number and look again.

use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::shift::{insert, remove};
use super::sizes::{LEAF_CAPACITY, PATIENCE, POPULATED, TOP_CAPACITY};
use super::slots::Slot;
use super::sync::{AtomicPtr, AtomicU64, AtomicUsize, Mutex, MutexGuard, fence, spin_loop};
use super::zeroed::Zeroed;
use crate::memory;
use crate::wire::{Errno, Result};

/// As many leaves, of 4 KiB, as may well be in the processor's caches, beside much else.
const NEAR: usize = 64;

/// Entries of a leaf that may well have room in one beside it.
const SPARSE: usize = LEAF_CAPACITY / 4;

/// What follows the last start of a leaf.
const UNUSED: u64 = u64::MAX;

/// Region starts, ascending, with their slots: a B+-tree leaf. A search for one
/// region touches neither the length nor the rest of a cache line of slots.
#[repr(C, align(64))]
struct Leaf<T> {
    starts: [AtomicU64; LEAF_CAPACITY],
    slots: [AtomicPtr<T>; LEAF_CAPACITY],
    len: AtomicUsize,
    /// For writers: the unused leaf that follows this one, which is unused.
    next: AtomicPtr<Leaf<T>>,
}

/// The leaves in order: the first start of each (a leaf is never empty).
struct Top<T> {
    len: AtomicUsize,
    starts: Zeroed<AtomicU64>,
    leaves: Zeroed<AtomicPtr<Leaf<T>>>,
}

/// What only writers need: the owners of all that readers may be looking at.
struct Writer<T> {
    /// The sequence number.
    sequence: u64,
    tops: Vec<Owned<Top<T>>>,
    /// Each has twice as many leaves as the one before, the first has one.
    leaves: Vec<Zeroed<Leaf<T>>>,
    /// How many of these have been used since there were no regions.
    used: usize,
    /// The first of those that are not used any more, or null.
    unused: *mut Leaf<T>,
}

/// A `Box` that others may look into.
struct Owned<T>(*mut T);

/// The sorted array. It never looks into the slots, and hands out only those
/// that it was given, for as long as it is borrowed.
pub(super) struct Index<T = Slot> {
    /// Odd while a change is being made.
    sequence: AtomicU64,
    /// Null until the first region comes.
    top: AtomicPtr<Top<T>>,
    writer: Mutex<Writer<T>>,
}

/// A place in the index, from where it goes up region by region.
pub(super) struct Cursor<'a, T = Slot> {
    top: &'a Top<T>,
    position: usize,
    leaf: &'a Leaf<T>,
    entry: usize,
}

/// A change of the index in progress.
struct Change<'a, T> {
    index: &'a Index<T>,
    writer: MutexGuard<'a, Writer<T>>,
}

// SAFETY: it owns what it points to, and shares it as it would by reference.
unsafe impl<T: Send + Sync> Send for Owned<T> {}
// SAFETY: `unused` is one of `leaves`.
unsafe impl<T: Sync> Send for Writer<T> {}

impl<T> Owned<T> {
    fn new(value: T) -> Result<Owned<T>> {
        Ok(Owned(Box::into_raw(memory::boxed(value)?)))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box. It is dropped with the index,
        // when nobody can be looking.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl<T> Writer<T> {
    fn new() -> Writer<T> {
        Writer { sequence: 0, tops: Vec::new(), leaves: Vec::new(), used: 0, unused: ptr::null_mut() }
    }

    /// An empty leaf.
    fn take_leaf(&mut self) -> Result<&Leaf<T>> {
        // SAFETY: null, or a leaf that lives as long as the index.
        if let Some(leaf) = unsafe { self.unused.as_ref() } {
            self.unused = leaf.next.load(Relaxed);
            return Ok(leaf);
        }
        let number = self.used.saturating_add(1);
        let (chunk, first) = (number.ilog2() as usize, 1 << number.ilog2());
        if chunk >= self.leaves.len() {
            memory::reserve(&mut self.leaves, 1)?;
            // SAFETY: a cleared leaf is zeroes.
            self.leaves.push(unsafe { Zeroed::new(first, Leaf::cleared) }?);
        }
        let chunk = self.leaves.get(chunk).ok_or(Errno::ENOMEM)?;
        let at = number ^ first;
        let leaf = chunk.as_slice().get(at).ok_or(Errno::ENOMEM)?;
        // A sixteenth of them more, but few pages, so that nobody waits.
        let together = (first / 16).min(POPULATED);
        if together > 0 && at.is_multiple_of(together) {
            chunk.populate(at..at + together);
        }
        self.used = number;
        leaf.starts.iter().for_each(|start| start.store(UNUSED, Relaxed));
        Ok(leaf)
    }

    /// Takes back a leaf that is empty.
    fn give_back(&mut self, leaf: &Leaf<T>) {
        leaf.next.store(self.unused, Relaxed);
        self.unused = ptr::from_ref(leaf).cast_mut();
    }
}

impl<T> Leaf<T> {
    fn cleared() -> Leaf<T> {
        Leaf {
            starts: std::array::from_fn(|_| AtomicU64::new(0)),
            slots: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            len: AtomicUsize::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Makes zeroes of it. Who is in it finds no slots, whatever else.
    fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(ptr::null_mut(), Relaxed));
        self.starts.iter().for_each(|start| start.store(0, Relaxed));
        self.len.store(0, Relaxed);
        self.next.store(ptr::null_mut(), Relaxed);
    }

    fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    fn start(&self, entry: usize) -> Option<u64> {
        self.starts.get(entry).map(|start| start.load(Relaxed))
    }

    /// Asks the processor for all of it at once. To be waited for one after the
    /// other, as a search and a change come to them, its lines take many times as
    /// long where they come from memory.
    #[inline]
    fn prefetch(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in (0..size_of::<Self>()).step_by(64) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which touches nothing.
            unsafe { _mm_prefetch(ptr::from_ref(self).cast::<i8>().wrapping_add(line), _MM_HINT_T0) };
        }
    }

    /// How many starts are at most `address`. Always the same steps, none of
    /// them a branch, and few that have to wait for each other: each finds the
    /// quarter to go on in.
    #[inline(always)]
    fn count_up_to(&self, address: u64) -> usize {
        // The mask changes nothing but spares a bounds check.
        let is_up_to =
            |entry: usize| usize::from(self.starts[entry % LEAF_CAPACITY].load(Relaxed) <= address);
        let mut count = 0;
        let mut quarter = LEAF_CAPACITY / 4;
        while quarter > 0 {
            let quarters = is_up_to(count + quarter - 1)
                + is_up_to(count + 2 * quarter - 1)
                + is_up_to(count + 3 * quarter - 1);
            count += quarters * quarter;
            quarter /= 4;
        }
        count += is_up_to(count);
        // No unused entry was counted.
        if address == UNUSED { count.min(self.len()) } else { count }
    }

    fn insert(&self, at: usize, start: u64, slot: *mut T) {
        let len = self.len();
        insert(&self.starts, len, at, start, AtomicU64::load, AtomicU64::store);
        insert(&self.slots, len, at, slot, AtomicPtr::load, AtomicPtr::store);
        self.len.store(len + 1, Relaxed);
    }

    fn remove(&self, at: usize) {
        let len = self.len();
        remove(&self.starts, len, at, AtomicU64::load, AtomicU64::store);
        remove(&self.slots, len, at, AtomicPtr::load, AtomicPtr::store);
        self.truncate(len - 1);
    }

    fn truncate(&self, len: usize) {
        for start in self.starts.iter().take(self.len()).skip(len) {
            start.store(UNUSED, Relaxed);
        }
        self.len.store(len, Relaxed);
    }

    /// Moves the entries from `from` on to another leaf, where they go to `at` and
    /// end it.
    fn move_to(&self, from: usize, to: &Leaf<T>, at: usize) {
        let len = self.len();
        let starts = to.starts.iter().skip(at).zip(self.starts.iter().take(len).skip(from));
        starts.for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
        let slots = to.slots.iter().skip(at).zip(self.slots.iter().take(len).skip(from));
        slots.for_each(|(to, from)| to.store(from.load(Relaxed), Release));
        to.len.store(at + len - from, Relaxed);
        self.truncate(from);
    }
}

impl<T> Top<T> {
    /// Room for this many leaves, with those of another.
    fn new(capacity: usize, old: Option<&Top<T>>) -> Result<Top<T>> {
        // SAFETY: the number is zeroes.
        let starts = unsafe { Zeroed::new(capacity, || AtomicU64::new(0)) }?;
        // SAFETY: so is null.
        let leaves = unsafe { Zeroed::new(capacity, || AtomicPtr::new(ptr::null_mut())) }?;
        let top = Top { len: AtomicUsize::new(old.map_or(0, Top::len)), starts, leaves };
        if let Some(old) = old {
            let starts = top.starts.as_slice().iter().zip(old.starts.as_slice());
            starts.for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
            let leaves = top.leaves.as_slice().iter().zip(old.leaves.as_slice());
            leaves.for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
        }
        Ok(top)
    }

    /// Gives its memory back. Who is in it finds no leaves.
    fn discard(&self) {
        self.len.store(0, Relaxed);
        self.leaves.discard(|leaf| leaf.store(ptr::null_mut(), Relaxed));
        self.starts.discard(|start| start.store(0, Relaxed));
    }

    fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    fn leaf(&self, position: usize) -> Option<&Leaf<T>> {
        // SAFETY: null, or a leaf that the index of this top owns until it goes,
        // and the top with it.
        unsafe { self.leaves.as_slice().get(position)?.load(Acquire).as_ref() }
    }

    /// Position of the leaf that the region with the greatest start up to
    /// `address` is in.
    #[inline(always)]
    fn position(&self, address: u64) -> Option<usize> {
        let starts = self.starts.as_slice().get(..self.len())?;
        starts.partition_point(|start| start.load(Relaxed) <= address).checked_sub(1)
    }

    /// The same, position of that region in the leaf, and the leaf.
    #[inline(always)]
    fn place(&self, address: u64) -> Option<(usize, usize, &Leaf<T>)> {
        let position = self.position(address)?;
        let leaf = self.leaf(position)?;
        Some((position, leaf.count_up_to(address).checked_sub(1)?, leaf))
    }
}

impl<'a, T> Cursor<'a, T> {
    /// The region's slot. None beyond the last region, or if a change is being
    /// made.
    #[inline(always)]
    pub(super) fn slot(&self) -> Option<&'a T> {
        // SAFETY: null, or a slot that `insert` was given.
        unsafe { self.leaf.slots.get(self.entry)?.load(Acquire).as_ref() }
    }

    /// Goes on to the next region; None if there is none.
    #[inline(always)]
    pub(super) fn advance(&mut self) -> Option<()> {
        self.entry = self.entry.wrapping_add(1);
        if self.entry >= self.leaf.len() {
            self.position = self.position.wrapping_add(1);
            if self.position >= self.top.len() {
                return None;
            }
            (self.leaf, self.entry) = (self.top.leaf(self.position)?, 0);
        }
        Some(())
    }
}

impl<T> Index<T> {
    pub(super) fn new() -> Index<T> {
        Index {
            sequence: AtomicU64::new(0),
            top: AtomicPtr::new(ptr::null_mut()),
            writer: Mutex::new(Writer::new()),
        }
    }

    #[inline(always)]
    fn top(&self) -> Option<&Top<T>> {
        // SAFETY: null, or a top that is owned until the index goes.
        unsafe { self.top.load(Acquire).as_ref() }
    }

    /// The slot of the region with the greatest start up to `address`; to be
    /// called when nobody changes the index, or to be checked.
    #[inline(always)]
    pub(super) fn up_to(&self, address: u64) -> Option<&T> {
        let (_, entry, leaf) = self.top()?.place(address)?;
        // SAFETY: null, or a slot that `insert` was given.
        unsafe { leaf.slots.get(entry)?.load(Acquire).as_ref() }
    }

    /// The same where the index is about to be changed.
    pub(super) fn up_to_for_change(&self, address: u64) -> Option<&T> {
        let top = self.top()?;
        if top.len() > NEAR {
            top.leaf(top.position(address)?)?.prefetch();
        }
        self.up_to(address)
    }

    /// The slot of the region with the lowest start from `address` on; to be
    /// called when nobody changes the index.
    pub(super) fn from(&self, address: u64) -> Option<&T> {
        let top = self.top()?;
        let before = address.checked_sub(1).and_then(|before| top.place(before));
        let (position, entry) = match before {
            None => (0, 0),
            Some((position, entry, leaf)) if entry + 1 < leaf.len() => (position, entry + 1),
            // A leaf is never empty.
            Some((position, ..)) => (position + 1, 0),
        };
        if position >= top.len() {
            return None;
        }
        // SAFETY: null, or a slot that `insert` was given.
        unsafe { top.leaf(position)?.slots.get(entry)?.load(Acquire).as_ref() }
    }

    /// Gives the slots of all regions to `visit`, ascending; to be called when
    /// nobody changes the index.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&T)) {
        let Some(top) = self.top() else { return };
        for leaf in (0..top.len()).map_while(|position| top.leaf(position)) {
            for slot in leaf.slots.iter().take(leaf.len()) {
                // SAFETY: null, or a slot that `insert` was given.
                if let Some(slot) = unsafe { slot.load(Acquire).as_ref() } {
                    visit(slot);
                }
            }
        }
    }

    /// The region with the greatest start up to `address`, and those above it; to
    /// be used within [`Index::read`] or when nobody changes the index.
    #[inline(always)]
    pub(super) fn cursor(&self, address: u64) -> Option<Cursor<'_, T>> {
        let top = self.top()?;
        let (position, entry, leaf) = top.place(address)?;
        Some(Cursor { top, position, leaf, entry })
    }

    /// What `look` finds, unless the index was changed meanwhile. As slots are
    /// filled before they are inserted, and emptied after they are removed, those
    /// that `look` found did not change either.
    #[inline(always)]
    pub(super) fn try_read<R>(&self, look: impl FnOnce() -> R) -> Option<R> {
        let before = self.sequence.load(Acquire);
        let found = look();
        self.is_unchanged(before).then_some(found)
    }

    /// The same, again and again until nobody changes the index meanwhile.
    pub(super) fn read<R>(&self, mut look: impl FnMut() -> R) -> R {
        for _ in 0..PATIENCE {
            if let Some(found) = self.try_read(&mut look) {
                return found;
            }
            spin_loop();
        }
        let _no_change = self.writer.lock();
        look()
    }

    #[inline(always)]
    fn is_unchanged(&self, before: u64) -> bool {
        fence(Acquire);
        before & 1 == 0 && self.sequence.load(Relaxed) == before
    }

    fn change(&self) -> Change<'_, T> {
        let mut writer = self.writer.lock();
        writer.sequence = writer.sequence.wrapping_add(1);
        self.sequence.store(writer.sequence, Relaxed);
        // Who sees one of the stores to come sees that number, too.
        fence(Release);
        Change { index: self, writer }
    }

    /// Adds a region, which overlaps no other, by a slot that must live as long
    /// as the index. `ENOMEM` if there is no room.
    pub(super) fn insert(&self, start: u64, slot: &T) -> Result<()> {
        self.change().insert(start, ptr::from_ref(slot).cast_mut())
    }

    /// Gives the memory of an index without regions back to the system.
    pub(super) fn discard(&self) {
        self.change().discard();
    }

    /// Removes the region that starts exactly here, if there is one.
    pub(super) fn remove(&self, start: u64) {
        self.change().remove(start);
    }
}

impl<T> Drop for Change<'_, T> {
    fn drop(&mut self) {
        self.writer.sequence = self.writer.sequence.wrapping_add(1);
        self.index.sequence.store(self.writer.sequence, Release);
    }
}

impl<'a, T> Change<'a, T> {
    fn insert(&mut self, start: u64, slot: *mut T) -> Result<()> {
        let index = self.index;
        let Some(top) = index.top().filter(|top| top.len() > 0) else {
            self.add_leaf(0, start, slot)?;
            return Ok(());
        };
        // Below everything: at the front of the first leaf.
        let place = top.place(start);
        let (position, entry) = place.map_or((0, 0), |(position, entry, _)| (position, entry + 1));
        let leaf = top.leaf(position).ok_or(Errno::EINVAL)?;
        if leaf.len() < LEAF_CAPACITY {
            leaf.insert(entry, start, slot);
        } else if entry == LEAF_CAPACITY {
            // Regions often come in ascending order, which should leave full
            // leaves behind.
            self.add_leaf(position + 1, start, slot)?;
        } else {
            let middle = LEAF_CAPACITY / 2;
            let first = leaf.start(middle).ok_or(Errno::EINVAL)?;
            // The new leaf starts with an entry that the split overwrites.
            let upper = self.add_leaf(position + 1, first, ptr::null_mut())?;
            leaf.move_to(middle, upper, 0);
            match entry.checked_sub(middle) {
                Some(entry) if entry > 0 => upper.insert(entry, start, slot),
                _ => leaf.insert(entry, start, slot),
            }
        }
        self.note_first(position);
        Ok(())
    }

    /// Puts a new leaf with one entry at a position of the top.
    fn add_leaf(&mut self, position: usize, start: u64, slot: *mut T) -> Result<&'a Leaf<T>> {
        let top = self.top_with_room()?;
        let new = ptr::from_ref(self.writer.take_leaf()?).cast_mut();
        let len = top.len();
        insert(top.starts.as_slice(), len, position, start, AtomicU64::load, AtomicU64::store);
        insert(top.leaves.as_slice(), len, position, new, AtomicPtr::load, AtomicPtr::store);
        top.len.store(len + 1, Relaxed);
        let leaf = top.leaf(position).ok_or(Errno::ENOMEM)?;
        leaf.insert(0, start, slot);
        Ok(leaf)
    }

    /// The top, grown if need be for one more leaf.
    fn top_with_room(&mut self) -> Result<&'a Top<T>> {
        let index = self.index;
        let old = index.top();
        let is_full = old.is_none_or(|old| old.len() == old.leaves.as_slice().len());
        if is_full {
            let capacity = old.map_or(TOP_CAPACITY, |old| old.leaves.as_slice().len() * 2);
            let new = Owned::new(Top::new(capacity, old)?)?;
            let pointer = new.0;
            memory::push(&mut self.writer.tops, new)?;
            index.top.store(pointer, Release);
        }
        index.top().ok_or(Errno::ENOMEM)
    }

    /// Keeps the top's copy of a leaf's first start true.
    fn note_first(&self, position: usize) {
        if let Some(top) = self.index.top()
            && let Some(first) = top.leaf(position).and_then(|leaf| leaf.start(0))
            && let Some(copy) = top.starts.as_slice().get(position)
        {
            copy.store(first, Relaxed);
        }
    }

    fn remove(&mut self, start: u64) {
        let Some(top) = self.index.top() else { return };
        let Some((position, entry, leaf)) = top.place(start) else { return };
        if leaf.start(entry) != Some(start) {
            return;
        }
        leaf.remove(entry);
        let len = leaf.len();
        if len > 0 {
            self.note_first(position);
            if len <= SPARSE && top.len() > 1 {
                self.join(top, position, leaf);
            }
            return;
        }
        self.remove_leaf(top, position, leaf);
    }

    /// Takes an empty leaf out of the top.
    fn remove_leaf(&mut self, top: &Top<T>, position: usize, leaf: &Leaf<T>) {
        let len = top.len();
        self.writer.give_back(leaf);
        remove(top.starts.as_slice(), len, position, AtomicU64::load, AtomicU64::store);
        remove(top.leaves.as_slice(), len, position, AtomicPtr::load, AtomicPtr::store);
        top.len.store(len - 1, Relaxed);
    }

    /// Makes one leaf of one with few entries and of one beside it, if there is much room
    /// left in that then: a client that maps many regions, and unmaps all but one of each
    /// leaf, would otherwise have a leaf for each region.
    #[inline(never)]
    fn join(&mut self, top: &Top<T>, position: usize, leaf: &Leaf<T>) {
        let fits = |other: &&Leaf<T>| leaf.len() + other.len() <= LEAF_CAPACITY / 2;
        let (above, below) = (position + 1, position.wrapping_sub(1));
        let neighbour = |at: usize| if at < top.len() { top.leaf(at).filter(fits) } else { None };
        if let Some(other) = neighbour(above) {
            other.move_to(0, leaf, leaf.len());
            self.remove_leaf(top, above, other);
        } else if let Some(other) = neighbour(below) {
            leaf.move_to(0, other, other.len());
            self.remove_leaf(top, position, leaf);
        }
    }

    fn discard(&mut self) {
        let Writer { tops, leaves, used, unused, .. } = &mut *self.writer;
        // SAFETY: tops live as long as the index.
        tops.iter().for_each(|top| unsafe { &*top.0 }.discard());
        leaves.iter().for_each(|chunk| chunk.discard(Leaf::clear));
        (*used, *unused) = (0, ptr::null_mut());
    }
}

#[cfg(test)]
impl<T> Index<T> {
    /// How many leaves there are, and have been at a time.
    pub(super) fn leaves(&self) -> (usize, usize) {
        (self.top().map_or(0, Top::len), self.writer.lock().used)
    }
}
