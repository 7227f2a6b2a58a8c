//! Arrays that start as zero bytes, in pages that come so from the system: what
//! nobody writes to takes up no memory.
//!
//! The models in `tests/loom` have another module in the place of this one,
//! since loom's atomics aren't made of bytes.

use std::marker::PhantomData;

use super::mapping::Mapping;
use crate::wire::{Errno, Result};

/// An array that others may look into, by its address.
pub(super) struct Zeroed<T> {
    mapping: Mapping,
    elements: PhantomData<T>,
}

// SAFETY: it owns its elements, and hands them out by pointer only.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

impl<T> Zeroed<T> {
    /// So many elements, of which `_make` says what they are; `ENOMEM` if there
    /// is no room.
    ///
    /// # Safety
    /// What `_make` returns consists of zero bytes and needs no drop.
    pub(super) unsafe fn new(count: usize, _make: fn() -> T) -> Result<Zeroed<T>> {
        const { assert!(align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>()) };
        let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
        let mapping = Mapping::zeroed(bytes.ok_or(Errno::ENOMEM)?)?;
        Ok(Zeroed { mapping, elements: PhantomData })
    }

    /// The first element; the others follow.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.mapping.base().cast()
    }
}
