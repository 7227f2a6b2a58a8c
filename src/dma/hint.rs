//! Which region each thread used last: a direct-mapped cache, by thread, of one
//! region a line.
//!
//! Thread-local variables of a shared library cost a call, and so much more
//! than a look; but the thread pointer, which those are found by, tells threads
//! apart as well. If two threads do share a lane, a search is made, no more.

use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::sizes::LANES_LOG2;
use super::slots::Slot;
use super::sync::{AtomicPtr, OnceLock, thread_pointer};
use crate::memory;
use crate::wire::Result;

/// One per thread. Those that are next to each other share a cache line; but
/// there are so many that few are.
pub(super) struct Lane(AtomicPtr<Slot>);

/// The hints of one address space. Hints only ever name slots of that space,
/// which live as long as it does, or `_nowhere`.
pub(super) struct Hints {
    /// Null where there are no hints (yet, or any longer).
    lanes: AtomicPtr<Lane>,
    made: OnceLock<Made>,
}

struct Made {
    lanes: Box<[Lane]>,
    _nowhere: Nowhere,
}

/// A slot that never holds a region. (No `Box`, which would claim to be the
/// only way to it.)
struct Nowhere(NonNull<Slot>);

// SAFETY: a slot may be looked at by any thread, and is only freed by the last.
unsafe impl Send for Nowhere {}
// SAFETY: as above.
unsafe impl Sync for Nowhere {}

impl Nowhere {
    fn new() -> Result<Nowhere> {
        Ok(Nowhere(NonNull::from(Box::leak(memory::boxed(Slot::vacant())?))))
    }
}

impl Drop for Nowhere {
    fn drop(&mut self) {
        // SAFETY: made of a box; lanes that name it go with it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Hints {
    pub(super) fn new() -> Hints {
        Hints { lanes: AtomicPtr::new(ptr::null_mut()), made: OnceLock::new() }
    }

    /// Makes lanes, if there never were any; the caller excludes others that
    /// do. `ENOMEM` if there is no room.
    pub(super) fn begin(&self) -> Result<()> {
        if self.made.get().is_some() {
            return Ok(());
        }
        let nowhere = Nowhere::new()?;
        let hint = nowhere.0.as_ptr();
        let lanes = memory::collect((0..1 << LANES_LOG2).map(|_: usize| Lane(AtomicPtr::new(hint))))?;
        let _ = self.made.set(Made { lanes, _nowhere: nowhere });
        if let Some(made) = self.made.get() {
            self.lanes.store(made.lanes.as_ptr().cast_mut(), Release);
        }
        Ok(())
    }

    /// From here on there are no hints.
    pub(super) fn end(&self) {
        self.lanes.store(ptr::null_mut(), Relaxed);
    }

    /// The calling thread's lane.
    #[inline(always)]
    pub(super) fn lane(&self) -> Option<&Lane> {
        let lanes = self.lanes.load(Acquire);
        if lanes.is_null() {
            return None;
        }
        // Thread pointers are as far apart as stacks are large; the
        // multiplication spreads all such distances evenly (Fibonacci hashing).
        let hash = (thread_pointer() as u32).wrapping_mul(0x9e37_79b1) >> (32 - LANES_LOG2);
        // SAFETY: there are 2^LANES_LOG2 of them, until `self` goes.
        Some(unsafe { &*lanes.add(hash as usize) })
    }
}

impl Lane {
    /// The slot used last.
    ///
    /// # Safety
    /// Every slot that was given to [`Lane::set`] is still alive, and is for as
    /// long as the result is used.
    #[inline(always)]
    pub(super) unsafe fn get(&self) -> &Slot {
        // SAFETY: the pointer was made from a reference to a slot, alive by this
        // function's contract; slots are only ever shared.
        unsafe { &*self.0.load(Acquire) }
    }

    /// Notes the slot used last.
    #[inline(always)]
    pub(super) fn set(&self, slot: &Slot) {
        let slot = ptr::from_ref(slot).cast_mut();
        // Lanes that are shared after all should at least not be written for
        // nothing.
        if self.0.load(Relaxed) != slot {
            self.0.store(slot, Release);
        }
    }
}
