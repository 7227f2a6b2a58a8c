//! What the library's `zeroed` has, of elements that are made one by one.

use crate::wire::Result;

pub(super) struct Zeroed<T>(Box<[T]>);

impl<T> Zeroed<T> {
    /// # Safety
    /// None: what `make` returns need not be of zero bytes here.
    pub(super) unsafe fn new(count: usize, make: fn() -> T) -> Result<Zeroed<T>> {
        Ok(Zeroed((0..count).map(|_| make()).collect()))
    }

    pub(super) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr().cast_mut()
    }
}
