//! What the process has, exactly and whatever a sanitizer adds: bytes that Rust
//! code has allocated, and which pages of the anonymous memory that it has mapped
//! are there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes in use, and the most of them since the last [`reset_peak`].
static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// Anonymous memory that was mapped, by its address. Of what the C library and a
/// sanitizer map for themselves nothing is in here: they don't call by name.
static MAPPED: Mutex<BTreeMap<usize, Area>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy)]
struct Area {
    end: usize,
    is_private: bool,
}

const PAGE: usize = 0x1000;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes as isize, Ordering::Relaxed) + bytes as isize;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn discount(bytes: usize) {
    LIVE.fetch_sub(bytes as isize, Ordering::Relaxed);
}

// SAFETY: the system's allocator, whose calls are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let memory = unsafe { System.alloc(layout) };
        count(if memory.is_null() { 0 } else { layout.size() });
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let memory = unsafe { System.alloc_zeroed(layout) };
        count(if memory.is_null() { 0 } else { layout.size() });
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        discount(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(memory, layout, size) };
        if !moved.is_null() {
            discount(layout.size());
            count(size);
        }
        moved
    }
}

/// Forgets what is between `start` and `end`, or a part of it.
fn unmapped(mapped: &mut BTreeMap<usize, Area>, start: usize, end: usize) {
    let meets = |(from, area): (&usize, &Area)| (area.end > start).then_some((*from, *area));
    for (from, area) in mapped.range(..end).filter_map(meets).collect::<Vec<_>>() {
        mapped.remove(&from);
        if from < start {
            mapped.insert(from, Area { end: start, ..area });
        }
        if area.end > end {
            mapped.insert(end, area);
        }
    }
}

/// The C library's function, for all who call it by name.
///
/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let base = unsafe { libc::syscall(libc::SYS_mmap, address, length, prot, flags, fd, offset) };
    if base != -1 {
        let (start, end) = (base as usize, base as usize + length.next_multiple_of(PAGE));
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        unmapped(&mut mapped, start, end);
        if flags & libc::MAP_ANONYMOUS != 0 {
            mapped.insert(start, Area { end, is_private: flags & libc::MAP_PRIVATE != 0 });
        }
    }
    base as *mut c_void
}

/// The C library's function, for all who call it by name.
///
/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(address: *mut c_void, length: usize) -> c_int {
    let (start, end) = (address as usize, address as usize + length.next_multiple_of(PAGE));
    let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller's promise.
    let outcome = unsafe { libc::syscall(libc::SYS_munmap, address, length) };
    if outcome == 0 {
        unmapped(&mut mapped, start, end);
    }
    outcome as c_int
}

/// Bytes that are allocated.
pub fn allocated() -> isize {
    LIVE.load(Ordering::Relaxed)
}

/// The most that were allocated at a time since [`reset_peak`].
pub fn peak() -> isize {
    PEAK.load(Ordering::Relaxed)
}

/// Counts [`peak`] from here on.
pub fn reset_peak() {
    PEAK.store(allocated(), Ordering::Relaxed);
}

/// Mappings of anonymous memory that is shared: what stands in for the end of a
/// file that is too short.
pub fn shared() -> usize {
    let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    mapped.values().filter(|area| !area.is_private).count()
}

/// Bytes of private anonymous memory that was mapped and is there.
pub fn resident() -> isize {
    const STEP: usize = 1 << 28;
    let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pages = vec![0; STEP / PAGE];
    let mut resident = 0;
    for (start, area) in mapped.iter().filter(|(_, area)| area.is_private) {
        for at in (*start..area.end).step_by(STEP) {
            let length = (area.end - at).min(STEP);
            let pages = &mut pages[..length / PAGE];
            // SAFETY: a byte for each page.
            let outcome = unsafe { libc::mincore(at as *mut c_void, length, pages.as_mut_ptr()) };
            assert_eq!(outcome, 0, "mapped, but not there");
            resident += pages.iter().filter(|page| **page & 1 != 0).count() * PAGE;
        }
    }
    resident as isize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both in one, since the process is counted.
    #[test]
    fn what_is_touched_and_what_is_allocated_counts() {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let before = resident();
        // SAFETY: memory of our own, that is unmapped in two parts.
        unsafe {
            let base = mmap(std::ptr::null_mut(), 4 * PAGE, 3, anonymous, -1, 0);
            assert_eq!(resident(), before);
            base.byte_add(PAGE).cast::<u8>().write_volatile(1);
            base.byte_add(3 * PAGE).cast::<u8>().write_volatile(1);
            assert_eq!(resident(), before + 2 * PAGE as isize);
            assert_eq!(munmap(base.byte_add(PAGE), PAGE), 0);
            assert_eq!(resident(), before + PAGE as isize);
            assert_eq!(munmap(base, 4 * PAGE), 0);
        }
        assert_eq!(resident(), before);

        let before = allocated();
        let block = vec![1_u8; 1 << 20];
        assert!(allocated() >= before + (1 << 20));
        drop(std::hint::black_box(block));
        assert!(allocated() < before + (1 << 20) && peak() >= before + (1 << 20));
    }
}
