//! A device that uses every feature. What its callbacks do is up to the input.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_void};

use libc::iovec;
use vfio_user::capi::{self, dma_sg_t, vfu_dma_info_t};

use super::client::{Shared, while_answering};
use crate::peer::{Handle, set_errno};

const LOST_CONN: u32 = 1;

#[derive(Default)]
pub struct Device {
    /// What its callbacks are to do.
    pub script: RefCell<VecDeque<u8>>,
    pub client: Shared,
    /// Somebody answers the server's commands already.
    pub is_answered: Cell<bool>,
    /// Registered regions, by the address of their info.
    pub regions: RefCell<BTreeMap<usize, (u64, u64)>>,
    /// Entries, good or not.
    entries: RefCell<Vec<dma_sg_t>>,
    pub lost_resets: Cell<usize>,
    /// A region was mapped.
    pub was_mapped: Cell<bool>,
    /// How deep callbacks are nested.
    depth: Cell<usize>,
    pub is_quiescing: Cell<bool>,
}

/// # Safety
///
/// The context is one whose private pointer is a device.
unsafe fn device_of<'a>(handle: Handle) -> &'a Device {
    // SAFETY: the caller's promise; the device outlives the context.
    unsafe { &*capi::vfu_get_private(handle).cast::<Device>() }
}

impl Device {
    pub fn decide(&self) -> u8 {
        self.script.borrow_mut().pop_front().unwrap_or(0)
    }

    /// Runs what may wait for the client.
    pub fn answered<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.is_answered.replace(true) {
            return f();
        }
        let result = while_answering(&self.client, f);
        self.is_answered.set(false);
        result
    }

    /// Uses memory of the client, if there is any.
    pub fn use_memory(&self, handle: Handle) {
        let (which, how, length) = (self.decide(), self.decide(), self.decide());
        let regions = self.regions.borrow();
        let nth = usize::from(which).checked_rem(regions.len());
        let region = nth.and_then(|nth| regions.values().nth(nth).copied());
        drop(regions);
        let (start, size) = region.unwrap_or((0x1000, 0x1000));
        let length = u64::from(length) << (how & 7) >> 3;
        let offset = if how & 8 != 0 { size.saturating_sub(length / 2) } else { u64::from(which) };
        let prot = if how & 16 != 0 { 3 } else { 1 };
        let mut list = [const { std::mem::MaybeUninit::<dma_sg_t>::zeroed() }; 3];
        let list_at = list.as_mut_ptr().cast::<dma_sg_t>();
        let at = start.wrapping_add(offset) as *mut c_void;
        // SAFETY: the context is there, and the list as long as is said.
        let found = unsafe { capi::vfu_addr_to_sgl(handle, at, length as usize, list_at, 3, prot) };
        assert!(found <= 3);
        if found < 1 {
            return;
        }
        // SAFETY: that many were filled in.
        let entries = unsafe { std::slice::from_raw_parts_mut(list_at, found as usize) };
        for entry in entries.iter_mut() {
            self.use_entry(handle, entry, how, prot == 3);
        }
        let mut kept = self.entries.borrow_mut();
        kept.extend_from_slice(entries);
        let more = kept.len().saturating_sub(16);
        kept.drain(..more);
    }

    /// Uses an entry of before, whose region may be gone.
    pub fn use_old_entry(&self, handle: Handle) {
        let (which, how) = (self.decide(), self.decide());
        let entries = self.entries.borrow();
        let nth = usize::from(which).checked_rem(entries.len());
        let entry = nth.and_then(|nth| entries.get(nth).copied());
        drop(entries);
        if let Some(mut entry) = entry {
            self.use_entry(handle, &mut entry, how, false);
        }
    }

    fn use_entry(&self, handle: Handle, entry: &mut dma_sg_t, how: u8, writes: bool) {
        let mut iov = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let length = entry.length();
        // SAFETY: the context is there, and one entry each.
        unsafe {
            let is_mappable = capi::vfu_sg_is_mappable(handle, entry);
            let outcome = capi::vfu_sgl_get(handle, entry, &mut iov, 1, 0);
            assert_eq!(outcome == 0, is_mappable);
            if outcome == 0 && length > 0 {
                assert_eq!(iov.iov_len as u64, length);
                let (first, last) =
                    (iov.iov_base.cast::<u8>(), iov.iov_base.cast::<u8>().add(iov.iov_len - 1));
                if writes {
                    first.write_volatile(how);
                    last.write_volatile(how);
                } else if how & 32 != 0 {
                    capi::vfu_sgl_mark_dirty(handle, entry, 1);
                }
                capi::vfu_sgl_put(handle, entry, &mut iov, 1);
            }
            if length > 0x1000 || how & 64 == 0 {
                return;
            }
            let mut data = [how; 0x1000];
            let data = data.as_mut_ptr().cast();
            // Direct, or with a flag that there is not.
            let flags = if how & 15 == 15 { 2 } else { c_int::from(how & 128 != 0) };
            let outcome = self.answered(|| match writes {
                true => capi::vfu_sgl_write(handle, entry, 1, data, flags),
                false => capi::vfu_sgl_read(handle, entry, 1, data, flags),
            });
            assert!(matches!(outcome, 0 | -1));
        }
    }

    /// Calls back into the library, allowed or not.
    fn reenter(&self, handle: Handle) {
        if self.depth.get() > 2 {
            return;
        }
        // SAFETY: the context is there; destroying it is refused in here.
        unsafe {
            match self.decide() % 10 {
                0 => assert_eq!(capi::vfu_run_ctx(handle), -1),
                1 => assert_eq!(capi::vfu_attach_ctx(handle), -1),
                2 => capi::vfu_destroy_ctx(handle),
                3 => drop(capi::vfu_device_quiesced(handle, c_int::from(self.decide() % 2))),
                4 => drop(capi::vfu_get_poll_fd(handle)),
                5 => drop(capi::vfu_irq_trigger(handle, u32::from(self.decide() % 8))),
                6 => drop(capi::vfu_create_ioeventfd(handle, 2, -1, 0, 4, 0, 0, -1, 0)),
                7 => drop(capi::vfu_pci_find_next_capability(handle, self.decide() > 8, 0x40, 9)),
                8 => self.use_old_entry(handle),
                _ => drop(capi::vfu_setup_device_dma(handle, 16, Some(register), Some(unregister))),
            }
        }
    }

    /// What any callback may do.
    fn act(&self, handle: Handle) {
        self.depth.set(self.depth.get() + 1);
        match self.decide() % 16 {
            1 | 2 => self.use_memory(handle),
            3 => self.use_old_entry(handle),
            4 => self.reenter(handle),
            _ => {}
        }
        self.depth.set(self.depth.get() - 1);
    }

    /// A return value: mostly `good`, or some failure.
    fn outcome(&self, good: i64) -> i64 {
        let (errno, value) = match self.decide() % 24 {
            1 => (libc::EIO, -1),
            2 => (0xbeef, -1),
            3 => (0, -1),
            4 => (libc::ENOTRECOVERABLE, -1),
            5 => (libc::EIO, 0),
            6 => (libc::EIO, good + 1),
            7 => (libc::EIO, good / 2),
            8 => (libc::EIO, u32::MAX.into()),
            9 => (libc::EBUSY, -1),
            10 => (libc::EIO, i64::MIN),
            _ => (0, good),
        };
        set_errno(errno);
        value
    }
}

pub unsafe extern "C" fn log(_: Handle, level: c_int, text: *const c_char) {
    assert!((0..=7).contains(&level));
    // SAFETY: a string of the library.
    let text = unsafe { CStr::from_ptr(text) };
    assert!(text.to_str().is_ok() && text.to_bytes().len() < 8192);
    assert!(!text.to_bytes().ends_with(b"\n"));
}

pub unsafe extern "C" fn access(
    handle: Handle,
    buffer: *mut c_char,
    count: usize,
    offset: i64,
    is_write: bool,
) -> isize {
    assert!(count > 0 && count <= 1 << 20 && offset >= 0);
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    // SAFETY: the library's buffer, the device's while it runs.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count) };
    let before: Vec<u8> = bytes.iter().copied().take(64).collect();
    device.act(handle);
    // Whatever went on meanwhile, the request is as it was.
    assert_eq!(before, bytes[..before.len()]);
    if !is_write {
        bytes.fill(offset as u8);
    }
    device.outcome(count as i64) as isize
}

pub unsafe extern "C" fn register(handle: Handle, info: *mut vfu_dma_info_t) {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    // SAFETY: the library's info.
    let (region, vaddr) = unsafe { ((*info).iova, (*info).vaddr) };
    device.was_mapped.set(device.was_mapped.get() || !vaddr.is_null());
    let old =
        device.regions.borrow_mut().insert(info as usize, (region.iov_base as u64, region.iov_len as u64));
    assert_eq!(old, None, "registered already");
    device.act(handle);
}

pub unsafe extern "C" fn unregister(handle: Handle, info: *mut vfu_dma_info_t) {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    device.act(handle);
    // SAFETY: the library's info.
    let region = unsafe { (*info).iova };
    let old = device.regions.borrow_mut().remove(&(info as usize));
    assert_eq!(old, Some((region.iov_base as u64, region.iov_len as u64)), "not registered");
}

pub unsafe extern "C" fn reset(handle: Handle, kind: u32) -> c_int {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    if kind == LOST_CONN {
        device.lost_resets.set(device.lost_resets.get() + 1);
        assert!(device.regions.borrow().is_empty(), "regions outlive their client");
    }
    device.act(handle);
    device.outcome(0) as c_int
}

pub unsafe extern "C" fn quiesce(handle: Handle) -> c_int {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    assert!(!device.is_quiescing.replace(false), "asked while it is quiescing");
    device.act(handle);
    match device.decide() % 16 {
        1..4 => {
            device.is_quiescing.set(true);
            set_errno(libc::EBUSY);
            -1
        }
        4 => {
            set_errno(libc::ENOTTY);
            -1
        }
        _ => 0,
    }
}

pub unsafe extern "C" fn irq_state(handle: Handle, _start: u32, count: u32, _mask: bool) {
    assert!(count > 0);
    // SAFETY: a context of ours.
    unsafe { device_of(handle) }.act(handle);
}

pub unsafe extern "C" fn transition(handle: Handle, state: u32) -> c_int {
    assert!(state < 5);
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    device.act(handle);
    device.outcome(0) as c_int
}

pub unsafe extern "C" fn data(handle: Handle, buffer: *mut c_void, count: u64) -> isize {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    // SAFETY: the library's buffer.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count as usize) };
    device.act(handle);
    bytes.fill(7);
    device.outcome(count as i64) as isize
}
