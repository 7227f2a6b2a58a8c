//! Which region each thread used last.
//!
//! Thread-local variables of a shared library cost a call, and so much more
//! than a look; but the thread pointer, which those are found by, tells threads
//! apart as well. If two threads do share a lane, a search is made, no more.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::sizes::LANES_LOG2;
use super::slots::Slot;
use super::sync::{AtomicPtr, thread_pointer};

/// One per thread, alone in its cache line.
#[repr(align(64))]
pub(super) struct Lane(AtomicPtr<Slot>);

/// The hints of one address space. Hints only ever name slots of that space,
/// which live as long as it does, or `_nowhere`.
pub(super) struct Hints {
    lanes: [Lane; 1 << LANES_LOG2],
    /// A slot that never holds a region. (No `Box`, which would claim to be the
    /// only way to it.)
    _nowhere: Arc<Slot>,
}

impl Hints {
    pub(super) fn new() -> Hints {
        let nowhere = Arc::new(Slot::new(0));
        let hint = Arc::as_ptr(&nowhere).cast_mut();
        Hints { lanes: std::array::from_fn(|_| Lane(AtomicPtr::new(hint))), _nowhere: nowhere }
    }

    /// The calling thread's lane.
    #[inline(always)]
    pub(super) fn lane(&self) -> &Lane {
        // Thread pointers are as far apart as stacks are large; the
        // multiplication spreads all such distances evenly (Fibonacci hashing).
        let hash = (thread_pointer() as u32).wrapping_mul(0x9e37_79b1) >> (32 - LANES_LOG2);
        &self.lanes[hash as usize]
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
    #[inline]
    pub(super) fn set(&self, slot: &Slot) {
        let slot = ptr::from_ref(slot).cast_mut();
        // Lanes that are shared after all should at least not be written for
        // nothing.
        if self.0.load(Relaxed) != slot {
            self.0.store(slot, Release);
        }
    }
}
