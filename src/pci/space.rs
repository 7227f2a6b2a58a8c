//! The live buffer of configuration space.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::mem;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed};

use crate::wire::{Errno, Result};

/// What the address of a space is a multiple of, so that C may lay a structure
/// over it and an aligned register is one unit in memory.
const ALIGN: usize = 16;

/// Configuration space as it stands in memory: `len` bytes, zeroed at first,
/// whose address stays the same for the life of the value.
///
/// The device's C code reads and writes the buffer through
/// [`as_ptr`](ConfigSpace::as_ptr) at any time, so its contents are never kept
/// as a slice and nothing is remembered of them: every access goes to memory,
/// register by register, and an aligned register of 1, 2 or 4 bytes is never
/// seen half written. Numbers are little-endian, as PCI has them.
///
/// Every access outside the buffer fails with `EINVAL`.
#[derive(Debug)]
pub struct ConfigSpace {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer belongs to the value and isn't bound to a thread; the
// library itself only touches it through atomics.
unsafe impl Send for ConfigSpace {}
// SAFETY: as above: what a shared reference allows is atomic.
unsafe impl Sync for ConfigSpace {}

/// A naturally aligned piece of the buffer.
enum Unit<'a> {
    Byte(&'a AtomicU8),
    Half(&'a AtomicU16),
    Word(&'a AtomicU32),
}

impl ConfigSpace {
    /// A zeroed space of `len` bytes. `EINVAL` if `len` is 0, `ENOMEM` if there
    /// is no memory for it.
    pub fn new(len: usize) -> Result<ConfigSpace> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        Ok(ConfigSpace { base: NonNull::new(base).ok_or(Errno::ENOMEM)?, layout })
    }

    /// The buffer for C: valid until the value is dropped.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size of the space in bytes; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Copies what stands at `offset` into `into`.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        let (mut offset, mut rest) = (offset, into);
        while !rest.is_empty() {
            let before = rest.len();
            let now = mem::take(&mut rest);
            rest = match self.unit(offset, before)? {
                Unit::Byte(b) => put(now, b.load(Relaxed).to_ne_bytes()),
                Unit::Half(h) => put(now, h.load(Relaxed).to_ne_bytes()),
                Unit::Word(w) => put(now, w.load(Relaxed).to_ne_bytes()),
            };
            offset += before - rest.len();
        }
        Ok(())
    }

    /// Writes `from` at `offset`, all of it or, outside the buffer, nothing.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        let (mut offset, mut rest) = (offset, from);
        while !rest.is_empty() {
            let before = rest.len();
            rest = match self.unit(offset, before)? {
                Unit::Byte(b) => take(rest, |v| b.store(u8::from_ne_bytes(v), Relaxed)),
                Unit::Half(h) => take(rest, |v| h.store(u16::from_ne_bytes(v), Relaxed)),
                Unit::Word(w) => take(rest, |v| w.store(u32::from_ne_bytes(v), Relaxed)),
            };
            offset += before - rest.len();
        }
        Ok(())
    }

    /// The byte at `offset`.
    pub fn read_u8(&self, offset: usize) -> Result<u8> {
        self.read_array(offset).map(u8::from_le_bytes)
    }

    /// The 16-bit number at `offset`.
    pub fn read_u16(&self, offset: usize) -> Result<u16> {
        self.read_array(offset).map(u16::from_le_bytes)
    }

    /// The 32-bit number at `offset`.
    pub fn read_u32(&self, offset: usize) -> Result<u32> {
        self.read_array(offset).map(u32::from_le_bytes)
    }

    /// Writes a byte at `offset`.
    pub fn write_u8(&self, offset: usize, value: u8) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes a 16-bit number at `offset`.
    pub fn write_u16(&self, offset: usize, value: u16) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes a 32-bit number at `offset`.
    pub fn write_u32(&self, offset: usize, value: u32) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    fn read_array<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The widest aligned unit at `offset` that is no longer than `len`.
    fn unit(&self, offset: usize, len: usize) -> Result<Unit<'_>> {
        let width = match (offset % 4, len) {
            (0, 4..) => 4,
            (0 | 2, 2..) => 2,
            _ => 1,
        };
        self.check(offset, width)?;
        // SAFETY: `check` found `offset + width` inside the allocation, which
        // lives as long as `self`, is initialised and starts at a multiple of
        // 16; `offset` is a multiple of `width`. No plain reference to the
        // buffer is ever made.
        unsafe {
            let at = self.base.as_ptr().add(offset);
            Ok(match width {
                4 => Unit::Word(AtomicU32::from_ptr(at.cast())),
                2 => Unit::Half(AtomicU16::from_ptr(at.cast())),
                _ => Unit::Byte(AtomicU8::from_ptr(at)),
            })
        }
    }
}

impl Drop for ConfigSpace {
    fn drop(&mut self) {
        // SAFETY: `base` was allocated in `new` with this layout, and nobody
        // else frees it.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Puts `bytes` at the front of `into`; what is behind them.
fn put<const N: usize>(into: &mut [u8], bytes: [u8; N]) -> &mut [u8] {
    match into.split_first_chunk_mut() {
        Some((front, rest)) => {
            *front = bytes;
            rest
        }
        None => &mut [],
    }
}

/// Hands the front of `from` to `store`; what is behind it.
fn take<const N: usize>(from: &[u8], store: impl FnOnce([u8; N])) -> &[u8] {
    match from.split_first_chunk() {
        Some((front, rest)) => {
            store(*front);
            rest
        }
        None => &[],
    }
}
