//! Which region each thread used last.
//!
//! Thread-local variables of a shared library cost a call; the address of a
//! local variable tells threads apart as well, since each has its own stack.
//! If two threads do share a lane, or one changes lanes, a search is made, no
//! more.

use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::region::Slot;

/// Stacks are at least this far apart, as a power of two.
const STACK_SHIFT: u32 = 16;
const LANES_LOG2: u32 = 7;

/// One per thread, alone in its cache line.
#[repr(align(64))]
pub(super) struct Lane(AtomicPtr<Slot>);

/// The hints of one address space. Hints only ever name slots of that space,
/// which live as long as it does.
pub(super) struct Hints([Lane; 1 << LANES_LOG2]);

impl Hints {
    pub(super) const fn new() -> Hints {
        Hints([const { Lane(AtomicPtr::new(ptr::null_mut())) }; 1 << LANES_LOG2])
    }

    /// The calling thread's lane.
    #[inline(always)]
    pub(super) fn lane(&self) -> &Lane {
        let local = 0_u8;
        let stack = (&raw const local).addr() as u64 >> STACK_SHIFT;
        // Spreads stacks that follow each other evenly (Fibonacci hashing).
        let hash = stack.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - LANES_LOG2);
        &self.0[hash as usize]
    }
}

impl Lane {
    /// The slot used last.
    ///
    /// # Safety
    /// Every slot that was given to [`Lane::set`] is still alive, and is for as
    /// long as the result is used.
    #[inline(always)]
    pub(super) unsafe fn get(&self) -> Option<&Slot> {
        // SAFETY: the pointer is null or was made from a reference to a slot,
        // alive by this function's contract; slots are only ever shared.
        unsafe { self.0.load(Acquire).as_ref() }
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
