//! The regions in the order of their addresses: a sorted array of leaves, each
//! a sorted array of region starts.
//!
//! Readers take no lock. What they read is atomic, its memory stays until the
//! index goes, and whatever they read of a half-made change is bounded by
//! lengths of arrays; so the worst a change does to them is to lead them
//! astray. They see that from the sequence number and look again.

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, fence};

use parking_lot::{Mutex, MutexGuard};

use super::chunked::{Chunked, Handles};
use crate::wire::{Errno, Result};

const LEAF_CAPACITY: usize = 128;
/// Looks before a reader waits for the writer instead.
const PATIENCE: u32 = 64;

/// Region starts, ascending, with the handles of their slots.
struct Leaf {
    len: AtomicUsize,
    starts: [AtomicU64; LEAF_CAPACITY],
    slots: [AtomicU32; LEAF_CAPACITY],
}

/// The leaves in order: the first start of each (a leaf is never empty), and
/// its handle.
struct Top {
    starts: Box<[AtomicU64]>,
    leaves: Box<[AtomicU32]>,
}

/// What only writers need.
struct Writer {
    handles: Handles<0>,
}

/// Where the region with the greatest start up to an address is.
struct Place {
    /// Position in the top.
    leaf: usize,
    /// Position in the leaf.
    entry: usize,
}

pub(super) struct Index {
    /// Odd while a change is being made.
    sequence: AtomicU64,
    /// Number of the array in use; each holds twice as much as the one before.
    level: AtomicUsize,
    /// Leaves in use.
    len: AtomicUsize,
    tops: [OnceLock<Top>; 28],
    leaves: Chunked<Leaf, 0>,
    writer: Mutex<Writer>,
}

/// A change of the index in progress.
struct Change<'a> {
    index: &'a Index,
    writer: MutexGuard<'a, Writer>,
}

impl Leaf {
    fn new(_: u32) -> Leaf {
        Leaf {
            len: AtomicUsize::new(0),
            starts: [const { AtomicU64::new(0) }; LEAF_CAPACITY],
            slots: [const { AtomicU32::new(0) }; LEAF_CAPACITY],
        }
    }

    fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    fn start(&self, entry: usize) -> Option<u64> {
        self.starts.get(entry).map(|start| start.load(Relaxed))
    }

    fn slot(&self, entry: usize) -> Option<u32> {
        self.slots.get(entry).map(|slot| slot.load(Relaxed))
    }

    fn insert(&self, at: usize, start: u64, slot: u32) {
        let len = self.len();
        insert(&self.starts, len, at, start, AtomicU64::load, AtomicU64::store);
        insert(&self.slots, len, at, slot, AtomicU32::load, AtomicU32::store);
        self.len.store(len + 1, Relaxed);
    }

    fn remove(&self, at: usize) {
        let len = self.len();
        remove(&self.starts, len, at, AtomicU64::load, AtomicU64::store);
        remove(&self.slots, len, at, AtomicU32::load, AtomicU32::store);
        self.len.store(len - 1, Relaxed);
    }

    /// Moves the entries from `from` on to an empty leaf.
    fn split(&self, from: usize, to: &Leaf) {
        let len = self.len();
        for (to, from) in to.starts.iter().zip(self.starts.iter().take(len).skip(from)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        for (to, from) in to.slots.iter().zip(self.slots.iter().take(len).skip(from)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        to.len.store(len - from, Relaxed);
        self.len.store(from, Relaxed);
    }
}

type Load<A, V> = fn(&A, std::sync::atomic::Ordering) -> V;
type Store<A, V> = fn(&A, V, std::sync::atomic::Ordering);

/// Makes room at `at` in the first `len` elements, and fills it.
#[inline(always)]
fn insert<A, V>(array: &[A], len: usize, at: usize, value: V, load: Load<A, V>, store: Store<A, V>) {
    let Some(moved) = array.get(at..=len) else { return };
    let mut carried = value;
    for element in moved {
        let next = load(element, Relaxed);
        store(element, carried, Relaxed);
        carried = next;
    }
}

/// Closes the gap at `at` in the first `len` elements.
#[inline(always)]
fn remove<A, V>(array: &[A], len: usize, at: usize, load: Load<A, V>, store: Store<A, V>) {
    let Some(moved) = array.get(at..len) else { return };
    for (to, from) in moved.iter().zip(moved.iter().skip(1)) {
        store(to, load(from, Relaxed), Relaxed);
    }
}

impl Top {
    /// Room for this many leaves.
    fn new(capacity: usize) -> Result<Top> {
        let mut starts = Vec::new();
        let mut leaves = Vec::new();
        starts.try_reserve_exact(capacity).map_err(|_| Errno::ENOMEM)?;
        leaves.try_reserve_exact(capacity).map_err(|_| Errno::ENOMEM)?;
        starts.resize_with(capacity, || AtomicU64::new(0));
        leaves.resize_with(capacity, || AtomicU32::new(0));
        Ok(Top { starts: starts.into_boxed_slice(), leaves: leaves.into_boxed_slice() })
    }

    /// Leaves that the arrays of a level hold.
    const fn capacity(level: usize) -> usize {
        16 << level
    }
}

/// How many of the first `len` starts are at most `address`.
#[inline]
fn count_up_to(starts: &[AtomicU64], len: usize, address: u64) -> Option<usize> {
    Some(starts.get(..len)?.partition_point(|start| start.load(Relaxed) <= address))
}

impl Index {
    pub(super) const fn new() -> Index {
        Index {
            sequence: AtomicU64::new(0),
            level: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            tops: [const { OnceLock::new() }; 28],
            leaves: Chunked::new(),
            writer: Mutex::new(Writer { handles: Handles::new() }),
        }
    }

    fn top(&self) -> Option<&Top> {
        self.tops.get(self.level.load(Relaxed))?.get()
    }

    fn leaf(&self, top: &Top, position: usize) -> Option<&Leaf> {
        self.leaves.get(top.leaves.get(position)?.load(Relaxed).into())
    }

    fn place(&self, address: u64) -> Option<(Place, &Leaf)> {
        let top = self.top()?;
        let leaf = count_up_to(&top.starts, self.len.load(Relaxed), address)?.checked_sub(1)?;
        let entries = self.leaf(top, leaf)?;
        let entry = count_up_to(&entries.starts, entries.len(), address)?.checked_sub(1)?;
        Some((Place { leaf, entry }, entries))
    }

    /// The slot of the region with the greatest start up to `address`; to be
    /// called when nobody changes the index.
    pub(super) fn up_to(&self, address: u64) -> Option<u32> {
        let (place, leaf) = self.place(address)?;
        leaf.slot(place.entry)
    }

    /// The slot of the region with the lowest start; to be called when nobody
    /// changes the index.
    pub(super) fn first(&self) -> Option<u32> {
        if self.len.load(Relaxed) == 0 {
            return None;
        }
        self.leaf(self.top()?, 0)?.slot(0)
    }

    /// Gives the slots of all regions to `visit`, ascending; to be called when
    /// nobody changes the index.
    pub(super) fn for_each(&self, mut visit: impl FnMut(u32)) {
        let Some(top) = self.top() else { return };
        for position in 0..self.len.load(Relaxed) {
            let Some(leaf) = self.leaf(top, position) else { return };
            leaf.slots.iter().take(leaf.len()).for_each(|slot| visit(slot.load(Relaxed)));
        }
    }

    /// Looks for the region around `address` while others may be changing the
    /// index. `look` is given slots and says whether one is right; what it
    /// returns is believed, what it doesn't find is looked for again until no
    /// change can be the reason.
    #[inline]
    pub(super) fn find<R>(&self, address: u64, mut look: impl FnMut(u32) -> Option<R>) -> Option<R> {
        for _ in 0..PATIENCE {
            let before = self.sequence.load(Acquire);
            if let Some(found) = self.up_to(address).and_then(&mut look) {
                return Some(found);
            }
            fence(Acquire);
            if before & 1 == 0 && self.sequence.load(Relaxed) == before {
                return None;
            }
            spin_loop();
        }
        let _no_change = self.writer.lock();
        self.up_to(address).and_then(look)
    }

    /// The top, grown if need be to hold this many leaves; for writers.
    fn top_for(&self, len: usize) -> Result<&Top> {
        let mut level = self.level.load(Relaxed);
        if len > Top::capacity(level) {
            level += 1;
        }
        let place = self.tops.get(level).ok_or(Errno::ENOMEM)?;
        if place.get().is_none() {
            let new = Top::new(Top::capacity(level))?;
            if let Some(old) = self.top() {
                for (to, from) in new.starts.iter().zip(&old.starts) {
                    to.store(from.load(Relaxed), Relaxed);
                }
                for (to, from) in new.leaves.iter().zip(&old.leaves) {
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
            let _ = place.set(new);
        }
        self.level.store(level, Relaxed);
        place.get().ok_or(Errno::ENOMEM)
    }

    fn change(&self) -> Change<'_> {
        let writer = self.writer.lock();
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        // Who sees one of the stores to come sees that number, too.
        fence(Release);
        Change { index: self, writer }
    }

    /// Adds a region, which overlaps no other. `ENOMEM` if there is no room.
    pub(super) fn insert(&self, start: u64, slot: u32) -> Result<()> {
        self.change().insert(start, slot)
    }

    /// Removes the region that starts exactly here, if there is one.
    pub(super) fn remove(&self, start: u64) {
        self.change().remove(start);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let sequence = self.index.sequence.load(Relaxed);
        self.index.sequence.store(sequence.wrapping_add(1), Release);
    }
}

impl Change<'_> {
    fn insert(&mut self, start: u64, slot: u32) -> Result<()> {
        let index = self.index;
        let Some(top) = index.top().filter(|_| index.len.load(Relaxed) > 0) else {
            return self.add_leaf(0, start, slot);
        };
        // Below everything: at the front of the first leaf.
        let (position, entry) = match index.place(start) {
            Some((place, _)) => (place.leaf, place.entry + 1),
            None => (0, 0),
        };
        let leaf = index.leaf(top, position).ok_or(Errno::EINVAL)?;
        if leaf.len() == LEAF_CAPACITY {
            return self.insert_full(leaf, position, entry, start, slot);
        }
        leaf.insert(entry, start, slot);
        self.note_first(position);
        Ok(())
    }

    /// Inserts into a leaf that is full.
    fn insert_full(
        &mut self,
        leaf: &Leaf,
        position: usize,
        entry: usize,
        start: u64,
        slot: u32,
    ) -> Result<()> {
        // Regions often come in ascending order, which should leave full
        // leaves behind.
        if entry == LEAF_CAPACITY {
            return self.add_leaf(position + 1, start, slot);
        }
        let middle = LEAF_CAPACITY / 2;
        let first = leaf.start(middle).ok_or(Errno::EINVAL)?;
        // The new leaf starts with an entry that the split overwrites.
        self.add_leaf(position + 1, first, 0)?;
        let top = self.index.top().ok_or(Errno::EINVAL)?;
        let upper = self.index.leaf(top, position + 1).ok_or(Errno::EINVAL)?;
        leaf.split(middle, upper);
        if entry > middle {
            upper.insert(entry - middle, start, slot);
        } else {
            leaf.insert(entry, start, slot);
        }
        self.note_first(position);
        Ok(())
    }

    /// Puts a new leaf with one entry at a position of the top.
    fn add_leaf(&mut self, position: usize, start: u64, slot: u32) -> Result<()> {
        let index = self.index;
        let len = index.len.load(Relaxed);
        let top = index.top_for(len + 1)?;
        let handle = self.writer.handles.take()?;
        let leaf = match index.leaves.get_or_make(handle, Leaf::new) {
            Ok(leaf) => leaf,
            Err(e) => {
                self.writer.handles.give_back(handle);
                return Err(e);
            }
        };
        leaf.len.store(0, Relaxed);
        leaf.insert(0, start, slot);
        insert(&top.starts, len, position, start, AtomicU64::load, AtomicU64::store);
        insert(&top.leaves, len, position, handle, AtomicU32::load, AtomicU32::store);
        index.len.store(len + 1, Relaxed);
        Ok(())
    }

    /// Keeps the top's copy of a leaf's first start true.
    fn note_first(&self, position: usize) {
        let first = self.index.top().and_then(|top| {
            let first = self.index.leaf(top, position)?.start(0)?;
            Some((top.starts.get(position)?, first))
        });
        if let Some((copy, first)) = first {
            copy.store(first, Relaxed);
        }
    }

    fn remove(&mut self, start: u64) {
        let Some((place, leaf)) = self.index.place(start) else { return };
        if leaf.start(place.entry) != Some(start) {
            return;
        }
        leaf.remove(place.entry);
        if leaf.len() == 0 {
            self.remove_leaf(place.leaf);
        } else {
            self.note_first(place.leaf);
        }
    }

    fn remove_leaf(&mut self, position: usize) {
        let Some(top) = self.index.top() else { return };
        let Some(handle) = top.leaves.get(position).map(|handle| handle.load(Relaxed)) else { return };
        let len = self.index.len.load(Relaxed);
        remove(&top.starts, len, position, AtomicU64::load, AtomicU64::store);
        remove(&top.leaves, len, position, AtomicU32::load, AtomicU32::store);
        self.index.len.store(len - 1, Relaxed);
        self.writer.handles.give_back(handle);
    }
}
