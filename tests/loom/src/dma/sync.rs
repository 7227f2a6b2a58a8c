//! What the library's `sync` has, of loom.

pub(super) use loom::hint::spin_loop;
pub(super) use loom::sync::MutexGuard;
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};

use loom::sync::atomic::AtomicBool;
use loom::sync::{RwLockReadGuard, RwLockWriteGuard};
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};

/// A lock that can't be poisoned.
pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// Likewise.
pub(super) struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(super) fn new(value: T) -> RwLock<T> {
        RwLock(loom::sync::RwLock::new(value))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
}

/// The standard library's, which loom can't see into, with what it promises
/// said to loom: who finds the value sees what was done before it was set.
pub(super) struct OnceLock<T> {
    is_set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(super) fn new() -> OnceLock<T> {
        OnceLock { is_set: AtomicBool::new(false), value: std::sync::OnceLock::new() }
    }

    pub(super) fn get(&self) -> Option<&T> {
        if self.is_set.load(Acquire) { self.value.get() } else { None }
    }

    pub(super) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Release);
        Ok(())
    }
}

pub(super) fn full_fence() {
    fence(SeqCst);
}

pub(super) fn or_and_fence(word: &AtomicU64, bits: u64) {
    word.fetch_or(bits, SeqCst);
    fence(SeqCst);
}

/// All threads share a lane of the hints.
pub(super) fn thread_pointer() -> usize {
    0
}
