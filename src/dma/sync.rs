//! What threads share is made of, and how they are told apart.
//!
//! The models in `tests/loom` compile the sources of this folder with another
//! module in the place of this one, whose atomics and locks try all that
//! threads can see of each other.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::OnceLock;
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};

pub(super) use parking_lot::{Mutex, MutexGuard, RwLock};

/// A `SeqCst` fence.
#[inline(always)]
pub(super) fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: it changes nothing of what is at the top of the stack. Every locked
    // instruction is a full fence, and takes half as long as the MFENCE that
    // rustc makes.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack));
    }
    #[cfg(any(miri, not(target_arch = "x86_64")))]
    fence(std::sync::atomic::Ordering::SeqCst);
}

/// Sets bits, then a `SeqCst` fence.
#[inline(always)]
pub(super) fn or_and_fence(word: &AtomicU64, bits: u64) {
    use std::sync::atomic::Ordering::SeqCst;
    word.fetch_or(bits, SeqCst);
    // On x86 that is a locked instruction, and so a full fence.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    std::sync::atomic::compiler_fence(SeqCst);
    #[cfg(any(miri, not(target_arch = "x86_64")))]
    fence(SeqCst);
}

/// A number that each thread has for itself.
#[inline(always)]
pub(super) fn thread_pointer() -> usize {
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
