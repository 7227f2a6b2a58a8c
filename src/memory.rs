//! Memory that may not be there.
//!
//! What the standard library's containers do without it is to end the process,
//! which is not ours to end. So everything that a request makes grow goes
//! through here and fails with `ENOMEM` instead.

use std::alloc::Layout;
use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

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

/// Bytes from which on memory comes from the system itself. The allocator would keep
/// what was used once, and the more of it the larger it was.
const LARGE: usize = 32 << 10;

/// Words that were zero once.
#[derive(Debug)]
pub struct Words {
    first: NonNull<u64>,
    count: usize,
}

// SAFETY: it owns its words.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// `count` words that are zero. Many take no memory before they are written to,
    /// and give it back to the system when they go.
    pub fn zeroed(count: usize) -> Result<Words> {
        let layout = layout_of(count).ok_or(Errno::ENOMEM)?;
        let first = match layout.size() {
            0 => NonNull::dangling(),
            1..LARGE => {
                // SAFETY: the layout's size is not zero.
                let first = unsafe { std::alloc::alloc_zeroed(layout) };
                NonNull::new(first).ok_or(Errno::ENOMEM)?.cast()
            }
            size => map(size)?.cast(),
        };
        Ok(Words { first, count })
    }
}

/// That of so many words, which start at a multiple of 8 on i686, too.
fn layout_of(count: usize) -> Option<Layout> {
    Layout::array::<u64>(count).and_then(|layout| layout.align_to(8)).ok()
}

/// Zeroed pages of an address of the system's choice.
fn map(size: usize) -> Result<NonNull<libc::c_void>> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED no memory is touched that is there.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(Errno::ENOMEM) } else { NonNull::new(address).ok_or(Errno::ENOMEM) }
}

impl Default for Words {
    fn default() -> Words {
        Words { first: NonNull::dangling(), count: 0 }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // There is one: it was allocated with that.
        let Some(layout) = layout_of(self.count) else { return };
        match layout.size() {
            0 => {}
            // SAFETY: allocated with this layout, and nobody's from here on.
            1..LARGE => unsafe { std::alloc::dealloc(self.first.as_ptr().cast(), layout) },
            size => {
                // SAFETY: mapped with this size, and nobody's from here on.
                unsafe { libc::munmap(self.first.as_ptr().cast(), size) };
            }
        }
    }
}

impl Deref for Words {
    type Target = [u64];

    #[inline(always)]
    fn deref(&self) -> &[u64] {
        // SAFETY: so many words of its own, which were zero once.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl DerefMut for Words {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: so many words of its own, which were zero once.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
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
        let whole = LARGE / size_of::<u64>();
        for count in [0, 1, 512, whole - 1, whole, whole + 1, 1 << 20] {
            let mut words = Words::zeroed(count).unwrap();
            assert_eq!(words[..], vec![0; count][..]);
            words.fill(1);
        }
        assert!(Words::default().is_empty());
        for count in [usize::MAX, usize::MAX >> 5] {
            assert_eq!(Words::zeroed(count).map(|words| words.len()), Err(Errno::ENOMEM));
        }
    }

    #[test]
    fn too_much_is_an_error() {
        let mut list = vec![0_u64];
        assert_eq!(reserve(&mut list, usize::MAX / 16), Err(Errno::ENOMEM));
        assert_eq!(list, [0]);
    }
}
