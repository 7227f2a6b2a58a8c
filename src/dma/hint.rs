//! Which region each thread used last.
//!
//! Thread-local variables of a shared library cost a call, and so much more
//! than a look; but the thread pointer, which those are found by, tells threads
//! apart as well. If two threads do share a lane, a search is made, no more.

use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::slots::{NOWHERE, Slot};

const LANES_LOG2: u32 = 8;

/// One per thread, alone in its cache line.
#[repr(align(64))]
pub(super) struct Lane(AtomicPtr<Slot>);

/// The hints of one address space. Hints only ever name slots of that space,
/// which live as long as it does, or [`NOWHERE`].
pub(super) struct Hints([Lane; 1 << LANES_LOG2]);

impl Hints {
    pub(super) fn new() -> Hints {
        let nowhere = ptr::from_ref(&NOWHERE).cast_mut();
        Hints(std::array::from_fn(|_| Lane(AtomicPtr::new(nowhere))))
    }

    /// The calling thread's lane.
    #[inline(always)]
    pub(super) fn lane(&self) -> &Lane {
        // Thread pointers are as far apart as stacks are large; the
        // multiplication spreads all such distances evenly (Fibonacci hashing).
        let hash = (thread_pointer() as u32).wrapping_mul(0x9e37_79b1) >> (32 - LANES_LOG2);
        &self.0[hash as usize]
    }
}

/// A number that each thread has for itself.
#[inline(always)]
fn thread_pointer() -> usize {
    let pointer: usize;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the ABI says that the thread pointer is there; it is constant in
    // a thread, so that the read may be left out or repeated.
    unsafe {
        std::arch::asm!("mov {}, fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        // Each thread has its own stack, which is large.
        let local = 0_u8;
        pointer = (&raw const local).addr() & !0xf_ffff;
    }
    pointer
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
