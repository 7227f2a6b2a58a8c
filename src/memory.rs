//! Memory that may not be there.
//!
//! What the standard library's containers do without it is to end the process,
//! which is not ours to end. So everything that a request makes grow goes
//! through here and fails with `ENOMEM` instead.

use std::alloc::Layout;
use std::collections::VecDeque;
use std::fmt;

use crate::wire::{Errno, Result};

/// Appends to a list.
#[inline]
pub fn push<T>(list: &mut Vec<T>, value: T) -> Result<()> {
    reserve(list, 1)?;
    list.push(value);
    Ok(())
}

/// Makes room for `more` elements, so that to append them cannot fail.
#[inline]
pub fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<()> {
    list.try_reserve(more).map_err(|_| Errno::ENOMEM)
}

/// Appends to a queue.
pub fn push_back<T>(queue: &mut VecDeque<T>, value: T) -> Result<()> {
    queue.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    queue.push_back(value);
    Ok(())
}

/// As many elements as there are, no room left.
pub fn collect<T>(elements: impl ExactSizeIterator<Item = T>) -> Result<Box<[T]>> {
    let mut list = Vec::new();
    list.try_reserve_exact(elements.len()).map_err(|_| Errno::ENOMEM)?;
    list.extend(elements);
    Ok(list.into_boxed_slice())
}

/// `count` words that are zero. They come so from the system where they can, and
/// take no memory before they are written to.
pub fn zeroed(count: usize) -> Result<Box<[u64]>> {
    if count == 0 {
        return Ok(Box::default());
    }
    let layout = Layout::array::<u64>(count).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: the layout's size is not zero.
    let words = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<u64>();
    if words.is_null() {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: of the layout of a boxed slice of so many words, which are zero, and
    // nobody else has the pointer.
    Ok(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(words, count)) })
}

/// A box.
pub fn boxed<T>(value: T) -> Result<Box<T>> {
    let list = Box::into_raw(collect([value].into_iter())?);
    // SAFETY: a boxed slice of one element has the layout of that element, in
    // size and in alignment, and nobody else has the pointer.
    Ok(unsafe { Box::from_raw(list.cast::<T>()) })
}

/// A copy of a text.
pub fn string(text: &str) -> Result<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| Errno::ENOMEM)?;
    copy.push_str(text);
    Ok(copy)
}

/// Bytes to be written to, as text or not.
#[derive(Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        reserve(&mut self.0, bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl fmt::Write for Bytes {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_of_any_size_and_alignment() {
        #[repr(align(128))]
        struct Aligned([u8; 300]);
        let aligned = boxed(Aligned([7; 300])).unwrap();
        assert_eq!((&raw const *aligned).addr() % 128, 0);
        assert_eq!(aligned.0, [7; 300]);
        assert_eq!(*boxed(()).unwrap(), ());
        assert_eq!(*boxed(String::from("text")).unwrap(), "text");
    }

    #[test]
    fn words_that_are_zero() {
        for count in [0, 1, 512, 1 << 20] {
            assert_eq!(zeroed(count).unwrap()[..], vec![0; count][..]);
        }
        assert_eq!(zeroed(usize::MAX), Err(Errno::ENOMEM));
        assert_eq!(zeroed(usize::MAX >> 5), Err(Errno::ENOMEM));
    }

    #[test]
    fn too_much_is_an_error() {
        let mut list = vec![0_u64];
        assert_eq!(reserve(&mut list, usize::MAX / 16), Err(Errno::ENOMEM));
        assert_eq!(list, [0]);
    }
}
