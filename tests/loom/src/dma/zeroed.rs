//! What the library's `zeroed` has, of elements that are made one by one.

use std::ops::{Deref, Range};

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

    pub(super) fn as_slice(&self) -> &[T] {
        &self.0
    }

    pub(super) fn populate(&self, _elements: Range<usize>) {}

    pub(super) fn discard(&self, clear: impl Fn(&T)) {
        self.0.iter().for_each(clear);
    }
}

pub(super) struct Pages<T>(Box<[T]>);

impl<T> Pages<T> {
    pub(super) fn collect(elements: impl ExactSizeIterator<Item = T>) -> Result<Pages<T>> {
        Ok(Pages(elements.collect()))
    }
}

impl<T> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
