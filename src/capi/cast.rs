//! Where C handles become Rust references. Nothing else in this room follows a
//! pointer that came from C.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::slice;

use super::vfu_ctx_t;
use crate::wire::{Errno, Result};

const NULL: &str = "a pointer that is needed is NULL";
/// Bytes of the largest array that there can be.
const MAX_LEN: usize = isize::MAX as usize;
const MISALIGNED: &str = "a pointer is misaligned";

/// Gives a context to C: the handle stays good until `into_context`.
pub(super) fn into_handle(context: Box<vfu_ctx_t>) -> *mut vfu_ctx_t {
    Box::into_raw(context)
}

/// Takes a context back from C; `None` for NULL.
///
/// # Safety
///
/// `handle` is NULL or came from `into_handle`, is not used again, and no call
/// on it is in progress.
pub(super) unsafe fn into_context(handle: *mut vfu_ctx_t) -> Option<Box<vfu_ctx_t>> {
    if handle.is_null() {
        return None;
    }
    // SAFETY: not NULL, so it came from Box::into_raw; the caller gives it up.
    Some(unsafe { Box::from_raw(handle) })
}

/// The context behind a handle; `EINVAL` for NULL.
///
/// # Safety
///
/// `handle` is NULL or came from `into_handle` and outlives `'a`. It is only
/// ever taken as shared: callbacks come back with the same handle.
pub(super) unsafe fn context<'a>(handle: *mut vfu_ctx_t) -> Result<&'a vfu_ctx_t> {
    // SAFETY: NULL or a live context, which nothing borrows exclusively.
    unsafe { handle.as_ref() }.ok_or(Errno::EINVAL)
}

/// What `ptr` points to; `EINVAL` for NULL.
///
/// # Safety
///
/// `ptr` is NULL or points to a `T` that nobody changes during `'a`.
pub(super) unsafe fn reference<'a, T>(ptr: *const T) -> Result<&'a T> {
    Errno::EINVAL.unless(ptr.is_aligned(), MISALIGNED)?;
    // SAFETY: aligned, and NULL or good for reads during 'a.
    unsafe { ptr.as_ref() }.ok_or_else(|| Errno::EINVAL.because(NULL))
}

/// Where a `T` is to be put; `EINVAL` for NULL.
///
/// # Safety
///
/// `ptr` is NULL or good for writes of a `T` during `'a`, which nobody else uses.
pub(super) unsafe fn place<'a, T>(ptr: *mut T) -> Result<&'a mut MaybeUninit<T>> {
    Errno::EINVAL.unless(ptr.is_aligned(), MISALIGNED)?;
    // SAFETY: aligned, and NULL or good for writes; it may be uninitialised.
    unsafe { ptr.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| Errno::EINVAL.because(NULL))
}

/// An array that C describes by pointer and length. `EINVAL` if it cannot be
/// one: NULL with a length, misaligned, or longer than an address space.
///
/// # Safety
///
/// `ptr` is NULL or points to `len` elements that nobody changes during `'a`.
pub(super) unsafe fn array<'a, T>(ptr: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check_array(ptr, len)?;
    // SAFETY: not NULL, aligned, in bounds of an allocation, good for reads.
    Ok(unsafe { slice::from_raw_parts(ptr, len) })
}

/// Like [`array`], for one that is to be filled in: for `T` that may be
/// uninitialised, such as `MaybeUninit`.
///
/// # Safety
///
/// `ptr` is NULL or points to `len` elements that nobody else uses during `'a`.
pub(super) unsafe fn array_mut<'a, T>(ptr: *mut T, len: usize) -> Result<&'a mut [T]> {
    if len == 0 {
        return Ok(&mut []);
    }
    check_array(ptr, len)?;
    // SAFETY: not NULL, aligned, in bounds of an allocation, not shared.
    Ok(unsafe { slice::from_raw_parts_mut(ptr, len) })
}

/// The same for bytes, for who must not say why: `None` if it cannot be one.
///
/// # Safety
///
/// As for [`array_mut`].
pub(super) unsafe fn bytes_mut<'a>(ptr: *mut c_char, len: usize) -> Option<&'a mut [u8]> {
    match len {
        0 => Some(&mut []),
        1..=MAX_LEN if !ptr.is_null() => {
            // SAFETY: not NULL, in bounds of an allocation, not shared.
            Some(unsafe { slice::from_raw_parts_mut(ptr.cast(), len) })
        }
        _ => None,
    }
}

fn check_array<T>(ptr: *const T, len: usize) -> Result<()> {
    let fits = len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= MAX_LEN);
    Errno::EINVAL.unless(!ptr.is_null(), NULL)?;
    Errno::EINVAL.unless(ptr.is_aligned(), MISALIGNED)?;
    Errno::EINVAL.unless(fits, "an array is longer than memory is")
}

/// A C string without its NUL; `EINVAL` for NULL.
///
/// # Safety
///
/// `text` is NULL or NUL-terminated, and nobody changes it during `'a`.
pub(super) unsafe fn string<'a>(text: *const c_char) -> Result<&'a [u8]> {
    Errno::EINVAL.unless(!text.is_null(), NULL)?;
    // SAFETY: not NULL, NUL-terminated, unchanged during 'a.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// The bytes that follow `data`, as many as the reader asks for; `EINVAL` for
/// NULL.
///
/// # Safety
///
/// `data` is NULL or points to as many bytes as are asked for, which nobody
/// changes meanwhile.
pub(super) unsafe fn bytes(data: *const c_void) -> Result<impl Fn(usize) -> u8> {
    Errno::EINVAL.unless(!data.is_null(), NULL)?;
    // SAFETY: not NULL and, by the caller's promise, long enough.
    Ok(move |at| unsafe { data.cast::<u8>().add(at).read() })
}
