//! Arrays in pages of their own, which come from the system and go back there at
//! once, whatever the allocator would do.
//!
//! The models in `tests/loom` have another module in the place of this one,
//! since loom's atomics aren't made of bytes.

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::slice;

use super::mapping::{Mapping, host_page_size};
use crate::wire::{Errno, Result};

/// An array that starts as zero bytes, and that others may look into: what
/// nobody writes to takes up no memory.
pub(super) struct Zeroed<T> {
    mapping: Mapping,
    elements: PhantomData<T>,
}

/// An array that is filled from the start.
pub(super) struct Pages<T> {
    mapping: Mapping,
    elements: PhantomData<T>,
}

// SAFETY: it owns its elements.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Zeroed<T> {}
// SAFETY: it owns its elements.
unsafe impl<T: Send> Send for Pages<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Pages<T> {}

fn pages<T>(count: usize) -> Result<Mapping> {
    const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
    let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
    Mapping::zeroed(bytes.ok_or(Errno::ENOMEM)?)
}

impl<T> Zeroed<T> {
    /// So many elements (at least one), of which `_make` says what they are;
    /// `ENOMEM` if there is no room.
    ///
    /// # Safety
    /// What `_make` returns consists of zero bytes, all of it of atomics, and
    /// needs no drop.
    pub(super) unsafe fn new(count: usize, _make: fn() -> T) -> Result<Zeroed<T>> {
        const { assert!(!std::mem::needs_drop::<T>()) };
        Ok(Zeroed { mapping: pages::<T>(count)?, elements: PhantomData })
    }

    /// The first element; the others follow.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.mapping.base().cast()
    }

    #[inline(always)]
    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: it was made of so many elements, which zero bytes are.
        unsafe { slice::from_raw_parts(self.as_ptr(), self.mapping.length() / size_of::<T>()) }
    }

    /// Has memory put behind these elements now, rather than page by page as each is
    /// written to (twice, if it is read first). They are what they were.
    pub(super) fn populate(&self, elements: Range<usize>) {
        let Some(wanted) = self.as_slice().get(elements) else { return };
        let range = wanted.as_ptr_range();
        // Whole pages: those of the ends as well, which are the mapping's.
        let page = usize::try_from(host_page_size()).unwrap_or(4096);
        let start = range.start.map_addr(|start| start & !(page - 1));
        let length = range.end.addr() - start.addr();
        // SAFETY: it changes no contents. Kernels that don't know it refuse (Linux
        // before 5.14), and those without memory fail: then it comes as it is needed.
        let _ = unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_POPULATE_WRITE) };
    }

    /// Makes all elements zero, while others may be looking at them, and gives
    /// their memory back. `clear` does the former with one.
    pub(super) fn discard(&self, clear: impl Fn(&T)) {
        // SAFETY: zero is a value of the atomics that are there; that they have
        // it is a store as any other to those who look.
        if unsafe { self.mapping.discard() }.is_err() {
            // As for a process that locks its memory.
            self.as_slice().iter().for_each(clear);
        }
    }
}

impl<T> Pages<T> {
    /// These elements, at least one. `ENOMEM` if there is no room.
    pub(super) fn collect(elements: impl ExactSizeIterator<Item = T>) -> Result<Pages<T>> {
        let count = elements.len();
        let mapping = pages::<T>(count)?;
        let first: *mut T = mapping.base().cast();
        let mut filled = 0;
        for element in elements.take(count) {
            // SAFETY: there is room for so many.
            unsafe { first.add(filled).write(element) };
            filled += 1;
        }
        assert!(filled == count);
        Ok(Pages { mapping, elements: PhantomData })
    }
}

impl<T> Deref for Pages<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: it was filled with so many elements.
        unsafe { slice::from_raw_parts(self.mapping.base().cast(), self.mapping.length() / size_of::<T>()) }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        let elements = std::ptr::slice_from_raw_parts_mut(self.mapping.base().cast::<T>(), self.len());
        // SAFETY: nobody looks any more; they are not dropped again.
        unsafe { std::ptr::drop_in_place(elements) };
    }
}
