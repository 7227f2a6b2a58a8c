//! A context that has taken a device over, or tries to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use arbitrary::{Arbitrary, Result, Unstructured};
use vfio_user::capi::{self, vfu_dma_info_t};
use vfio_user::handover::Record;

use super::images::Offer;
use super::{TIMEOUT, failed_with};
use crate::peer::{Context, Handle};

#[allow(improper_ctypes, reason = "a context is opaque to those who have a pointer to it")]
unsafe extern "C" {
    fn vfu_setup_log(handle: Handle, log: capi::vfu_log_fn_t, level: c_int) -> c_int;
}

/// Interrupts, regions and the like that a device may have here. More are refused by whoever sets it up.
const MOST: u32 = 4096;
/// Calls that serve a client.
const CALLS: usize = 8;

/// What a device has, whose callbacks do what is asked.
#[derive(Default)]
pub struct Device {
    /// Registered regions, by the address of their info.
    regions: RefCell<BTreeSet<usize>>,
    /// What it was told of its state.
    state: RefCell<Vec<u8>>,
    /// How much of it was read by the migration callbacks.
    read: Cell<usize>,
    /// What was decided of it the last time.
    is_ours: Cell<Option<bool>>,
}

impl Device {
    /// Nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.regions.borrow().is_empty()
    }
}

/// A context with a device that is like the one of an offer, and its own.
pub struct Taken<'a> {
    context: Context,
    /// Its callbacks have it.
    _device: PhantomData<&'a Device>,
    /// What regions and the like are made of: open as long as the context.
    _fds: Vec<OwnedFd>,
}

impl<'a> Taken<'a> {
    /// Takes over what is offered. `None`: that has failed, as it may.
    pub fn over([ours, theirs]: [OwnedFd; 2], offer: &Offer, device: &'a Device) -> Option<Taken<'a>> {
        let private = (&raw const *device).cast_mut().cast();
        let flags = capi::LIBVFIO_USER_FLAG_ATTACH_NB;
        // SAFETY: the descriptor is the context's, or closed; private is what the callbacks expect.
        let handle =
            unsafe { capi::vfux_create_ctx_taking_over_fd(theirs.into_raw_fd(), TIMEOUT, flags, private, 0) };
        if handle.is_null() {
            failed_with();
            return None;
        }
        let context = Context(handle);
        let fds = set_up(handle, &offer.images[0].records());
        // SAFETY: the context is there.
        let outcome = unsafe { capi::vfux_take_over(handle, TIMEOUT) };
        context.assert_whole();
        if outcome < 0 {
            failed_with();
            assert_ne!(device.is_ours.get(), Some(true));
            assert!(device.is_empty(), "what was not taken is kept");
        } else {
            assert!(outcome <= 1);
        }
        drop(ours);
        let taken = Taken { context, _device: PhantomData, _fds: fds };
        (outcome >= 0).then_some(taken)
    }

    pub fn handle(&self) -> Handle {
        self.context.0
    }

    /// Serves whoever is there, and uses memory and interrupts.
    pub fn use_it(&self, u: &mut Unstructured) -> Result<()> {
        let handle = self.handle();
        for _ in 0..CALLS {
            // SAFETY: the context is there. It never waits.
            unsafe {
                assert!(capi::vfu_get_poll_fd(handle) >= 0);
                if capi::vfu_run_ctx(handle) < 0 && failed_with() == libc::ENOTCONN {
                    capi::vfu_attach_ctx(handle);
                }
            }
            let (how, address) = (u8::arbitrary(u)?, u64::from(u8::arbitrary(u)? % 24) * 0x1_0000);
            // SAFETY: as above.
            unsafe { capi::vfu_irq_trigger(handle, u32::from(how % 9)) };
            use_memory(handle, address);
            self.context.assert_whole();
        }
        Ok(())
    }

    /// The context goes.
    pub fn end(mut self) {
        self.context.assert_whole();
        self.context.destroy();
    }
}

/// Looks an address up, and marks it as written to.
fn use_memory(handle: Handle, address: u64) {
    let mut entry = std::mem::MaybeUninit::<capi::dma_sg_t>::zeroed();
    let mut iov = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    // SAFETY: the context is there, and room for one entry. What is found is not touched: its file may be
    // shorter.
    unsafe {
        if capi::vfu_addr_to_sgl(handle, address as *mut c_void, 0x800, entry.as_mut_ptr(), 1, 3) == 1
            && capi::vfu_sgl_get(handle, entry.as_mut_ptr(), &mut iov, 1, 0) == 0
        {
            capi::vfu_sgl_mark_dirty(handle, entry.as_mut_ptr(), 1);
            capi::vfu_sgl_put(handle, entry.as_mut_ptr(), &mut iov, 1);
        }
    }
}

/// Sets a device up like the one that is described, as far as one can. Returns what it is made of.
fn set_up(handle: Handle, records: &[Record]) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    let mut keep = |fd: c_int| {
        if fd >= 0 {
            // SAFETY: it was given to us.
            fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        fd
    };
    // SAFETY: the context is there, and what is passed is what is asked for.
    unsafe {
        assert_eq!(vfu_setup_log(handle, Some(log), 7), 0);
        for record in records {
            match record {
                Record::Device(device) => set_up_device(handle, device),
                Record::Region(region) => {
                    let mut old = std::mem::zeroed::<capi::vfux_old_region_t>();
                    if capi::vfux_get_old_region(handle, region.index, &mut old) < 0 {
                        continue;
                    }
                    let fd = keep(old.fd);
                    set_up_region(handle, region, &old, fd);
                }
                Record::NamedFd(named) => {
                    let name: Vec<u8> = named.name.iter().copied().chain([0]).collect();
                    let name = CStr::from_bytes_until_nul(&name).expect("its end");
                    let fd = keep(capi::vfux_get_old_fd(handle, name.as_ptr()));
                    if fd >= 0 {
                        capi::vfux_add_hand_over_fd(handle, name.as_ptr(), fd);
                    }
                }
                _ => {}
            }
        }
        capi::vfu_setup_device_reset_cb(handle, Some(reset));
        assert_eq!(capi::vfu_realize_ctx(handle), 0);
        let mut old = std::mem::zeroed::<capi::vfux_old_ioeventfd_t>();
        let mut n = 0;
        while n < 4 && capi::vfux_get_old_ioeventfd(handle, 0, n, &mut old) == 0 {
            let (fd, size, at) = (keep(old.fd), old.size as usize, old.gpa_offset as usize);
            capi::vfu_create_ioeventfd(handle, 0, fd, at, size as u32, old.flags, old.datamatch, -1, 0);
            n += 1;
        }
        let mut config = [0_u8; 64];
        capi::vfux_get_old_config_space(handle, config.as_mut_ptr().cast(), config.len(), 0);
    }
    fds
}

/// # Safety
///
/// The context is there, and the descriptor is open as long as it.
unsafe fn set_up_region(
    handle: Handle,
    region: &vfio_user::handover::Region,
    old: &capi::vfux_old_region_t,
    fd: c_int,
) {
    let mut areas: Vec<_> = region.areas.chunks_exact(2).map(area).collect();
    let (count, areas) = (areas.len() as u32, areas.as_mut_ptr());
    let (index, size, flags) = (region.index as c_int, old.size as usize, old.flags as c_int);
    // SAFETY: the caller's promise; so many areas.
    unsafe {
        capi::vfu_setup_region(handle, index, size, Some(access), flags, areas, count, fd, old.offset);
    }
}

fn area(pair: &[u64]) -> libc::iovec {
    libc::iovec { iov_base: pair[0] as *mut c_void, iov_len: pair[1] as usize }
}

/// # Safety
///
/// The context is there.
unsafe fn set_up_device(handle: Handle, device: &vfio_user::handover::Device) {
    // SAFETY: the caller's promise.
    unsafe {
        if device.keeps_irqs {
            capi::vfux_setup_pending_irqs(handle);
        }
        if device.config_size > 256 {
            capi::vfu_pci_init(handle, 3, 0, 0);
        }
        for (kind, count) in (0..5).zip(&device.irq_counts) {
            capi::vfux_get_old_irq_count(handle, kind);
            if *count <= MOST {
                capi::vfu_setup_device_nr_irqs(handle, kind, *count);
            }
        }
        if device.does_dma {
            let most = device.max_dma_regions as usize;
            capi::vfu_setup_device_dma(handle, most, Some(register), Some(unregister));
        }
        if device.can_migrate {
            let callbacks = capi::vfu_migration_callbacks_t {
                version: 2,
                transition: Some(transition),
                read_data: Some(read),
                write_data: Some(write),
            };
            capi::vfu_setup_device_migration_callbacks(handle, &callbacks);
        }
        let (save_state, load_state) =
            if device.has_own_state { (Some(save as _), Some(load as _)) } else { (None, None) };
        let callbacks = capi::vfux_hand_over_callbacks_t {
            version: capi::VFUX_HAND_OVER_CALLBACKS_VERSION,
            save_state,
            load_state,
            handed_over: Some(handed_over),
        };
        capi::vfux_setup_hand_over_callbacks(handle, &callbacks);
    }
}

/// # Safety
///
/// The context is one whose private pointer is a device.
unsafe fn device_of<'a>(handle: Handle) -> &'a Device {
    // SAFETY: the caller's promise; the device outlives the context.
    unsafe { &*capi::vfu_get_private(handle).cast::<Device>() }
}

unsafe extern "C" fn log(_: Handle, level: c_int, text: *const c_char) {
    assert!((0..=7).contains(&level));
    // SAFETY: a string of the library.
    assert!(unsafe { CStr::from_ptr(text) }.to_str().is_ok());
}

unsafe extern "C" fn access(_: Handle, buffer: *mut c_char, count: usize, at: i64, is_write: bool) -> isize {
    assert!(count > 0 && count <= 1 << 20 && at >= 0);
    if !is_write {
        // SAFETY: the library's buffer, the device's while it runs.
        unsafe { buffer.write_bytes(at as u8, count) };
    }
    count as isize
}

unsafe extern "C" fn register(handle: Handle, info: *mut vfu_dma_info_t) {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    assert!(device.regions.borrow_mut().insert(info as usize), "registered already");
}

unsafe extern "C" fn unregister(handle: Handle, info: *mut vfu_dma_info_t) {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    assert!(device.regions.borrow_mut().remove(&(info as usize)), "not registered");
}

unsafe extern "C" fn reset(_: Handle, _kind: u32) -> c_int {
    0
}

unsafe extern "C" fn transition(handle: Handle, state: u32) -> c_int {
    assert!(state < 5);
    // SAFETY: a context of ours.
    unsafe { device_of(handle) }.read.set(0);
    0
}

unsafe extern "C" fn read(handle: Handle, buffer: *mut c_void, count: u64) -> isize {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    let state = device.state.borrow();
    let rest = &state[device.read.get().min(state.len())..];
    let part = &rest[..rest.len().min(count as usize)];
    // SAFETY: the library's buffer has room for count bytes.
    unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), buffer.cast(), part.len()) };
    device.read.set(device.read.get() + part.len());
    part.len() as isize
}

unsafe extern "C" fn write(handle: Handle, buffer: *mut c_void, count: u64) -> isize {
    // SAFETY: a context of ours, and a buffer of the library's.
    let (device, data) =
        unsafe { (device_of(handle), std::slice::from_raw_parts(buffer.cast::<u8>(), count as usize)) };
    device.state.borrow_mut().extend(data);
    count as isize
}

unsafe extern "C" fn save(handle: Handle) -> c_int {
    // SAFETY: a context of ours.
    let device = unsafe { device_of(handle) };
    let state = device.state.borrow();
    // SAFETY: the context is there, and the bytes.
    unsafe { capi::vfux_put_state(handle, state.as_ptr().cast(), state.len()) }
}

unsafe extern "C" fn load(handle: Handle, data: *const c_void, size: usize, state: u32) -> c_int {
    assert!(state < 8);
    // SAFETY: a context of ours, and bytes of the library's.
    let (device, data) = unsafe { (device_of(handle), std::slice::from_raw_parts(data.cast::<u8>(), size)) };
    *device.state.borrow_mut() = data.to_vec();
    0
}

unsafe extern "C" fn handed_over(handle: Handle, is_ours: bool) {
    // SAFETY: a context of ours.
    unsafe { device_of(handle) }.is_ours.set(Some(is_ours));
}
