//! The device's callbacks: what C calls them, and calling them.
//!
//! A callback may call back into the library with the same context. So no
//! borrow of a part of the context may be alive where one is called, and what
//! is called with is copied before.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};

use libc::{off64_t, size_t, ssize_t};

use super::Context;
use crate::dma::DmaInfo;
use crate::wire::{DeviceState, Errno, Result};

/// Reads or writes a region: `vfu_region_access_cb_t`.
pub type RegionAccessFn = unsafe extern "C" fn(*mut Context, *mut c_char, size_t, off64_t, bool) -> ssize_t;
/// Resets the device: `vfu_reset_cb_t`.
pub type ResetFn = unsafe extern "C" fn(*mut Context, u32) -> c_int;
/// Quiesces the device: `vfu_device_quiesce_cb_t`.
pub type QuiesceFn = unsafe extern "C" fn(*mut Context) -> c_int;
/// Tells of a DMA region: `vfu_dma_register_cb_t`, `vfu_dma_unregister_cb_t`.
pub type DmaFn = unsafe extern "C" fn(*mut Context, *mut DmaInfo);
/// Masks or unmasks interrupts: `vfu_dev_irq_state_cb_t`.
pub type IrqStateFn = unsafe extern "C" fn(*mut Context, u32, u32, bool);
/// Takes a line of log: `vfu_log_fn_t`.
pub type LogFn = unsafe extern "C" fn(*mut Context, c_int, *const c_char);
/// Changes the migration state.
pub type TransitionFn = unsafe extern "C" fn(*mut Context, u32) -> c_int;
/// Reads migration data.
pub type ReadDataFn = unsafe extern "C" fn(*mut Context, *mut c_void, u64) -> ssize_t;
/// Writes migration data.
pub type WriteDataFn = unsafe extern "C" fn(*mut Context, *mut c_void, u64) -> ssize_t;

/// Why the device is reset: `vfu_reset_type_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetType {
    /// `VFU_RESET_DEVICE`: the client asked for it.
    Device = 0,
    /// `VFU_RESET_LOST_CONN`: the client has gone.
    LostConn = 1,
    /// `VFU_RESET_PCI_FLR`: a function level reset.
    PciFlr = 2,
}

/// The callbacks for migration.
#[derive(Clone, Copy, Debug)]
pub struct MigrationCallbacks {
    /// Called for each step from state to state.
    pub transition: TransitionFn,
    /// Called for data in the saving states.
    pub read_data: ReadDataFn,
    /// Called with data while resuming.
    pub write_data: WriteDataFn,
}

/// All callbacks that concern the device as a whole.
#[derive(Debug, Default)]
pub struct Callbacks {
    /// Resets the device.
    pub reset: Cell<Option<ResetFn>>,
    /// Asked to make the device quiet.
    pub quiesce: Cell<Option<QuiesceFn>>,
    /// Told of new DMA regions.
    pub dma_register: Cell<Option<DmaFn>>,
    /// Told of DMA regions that go.
    pub dma_unregister: Cell<Option<DmaFn>>,
    /// Told of masks, by interrupt type.
    pub irq_state: [Cell<Option<IrqStateFn>>; crate::irq::IrqType::COUNT],
    /// There if the device can migrate.
    pub migration: Cell<Option<MigrationCallbacks>>,
}

/// Clears `errno`, so that what a callback leaves there is its own.
fn clear_errno() {
    // SAFETY: errno of the calling thread is always there.
    unsafe { *libc::__errno_location() = 0 };
}

/// What a callback that failed put into `errno`; `EINVAL` if it didn't.
fn callback_errno() -> Errno {
    Errno::last()
}

/// The result of a callback that returns a number of bytes, of which `most`
/// are possible. -1 means `errno`, also from a function that returns a 32-bit
/// int in place of the `ssize_t`; every other impossible number is `EINVAL`.
fn byte_count(returned: ssize_t, most: usize) -> Result<usize> {
    const MINUS_ONE_AS_INT: ssize_t = u32::MAX as ssize_t;
    match usize::try_from(returned) {
        Ok(count) if count <= most => Ok(count),
        _ if returned == -1 || returned == MINUS_ONE_AS_INT => Err(callback_errno()),
        _ => Err(Errno::EINVAL),
    }
}

impl Context {
    /// What C knows this context as.
    pub(super) fn as_vfu_ctx(&self) -> *mut Context {
        std::ptr::from_ref(self).cast_mut()
    }

    /// Asks the device to stop what it is doing. With no callback it needs no
    /// asking. Only a negative result is a failure.
    pub(super) fn call_quiesce(&self) -> Result<()> {
        let Some(quiesce) = self.callbacks.quiesce.get() else {
            return Ok(());
        };
        clear_errno();
        // SAFETY: the function and its context were given by the program for
        // this use; nothing of the context is borrowed.
        match unsafe { quiesce(self.as_vfu_ctx()) } {
            0.. => Ok(()),
            _ => Err(callback_errno()),
        }
    }

    /// Resets the device. With no callback that succeeds. Only a negative result
    /// is a failure.
    pub(super) fn call_reset(&self, kind: ResetType) -> Result<()> {
        let Some(reset) = self.callbacks.reset.get() else {
            return Ok(());
        };
        clear_errno();
        // SAFETY: as for quiesce.
        match unsafe { reset(self.as_vfu_ctx(), kind as u32) } {
            0.. => Ok(()),
            _ => Err(callback_errno()),
        }
    }

    /// Tells the device of a region, or that one goes.
    pub(super) fn call_dma(&self, callback: Option<DmaFn>, info: *mut DmaInfo) {
        if let Some(callback) = callback {
            // SAFETY: as for quiesce; the info stays in place until the region
            // has been removed, which is after the unregister callback.
            unsafe { callback(self.as_vfu_ctx(), info) };
        }
    }

    /// Masks or unmasks `count` vectors.
    pub(super) fn call_irq_state(&self, callback: IrqStateFn, start: u32, count: u32, mask: bool) {
        // SAFETY: as for quiesce.
        unsafe { callback(self.as_vfu_ctx(), start, count, mask) };
    }

    /// Has `buffer` filled from, or written to, a region. Returns how many
    /// bytes were, at most its length.
    pub(super) fn call_region(
        &self,
        callback: RegionAccessFn,
        buffer: RawBytes,
        offset: u64,
        is_write: bool,
    ) -> Result<usize> {
        clear_errno();
        let offset = off64_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: as for quiesce; the buffer is as long as is said, and its
        // owner keeps it until the callback has returned.
        let returned = unsafe {
            callback(self.as_vfu_ctx(), buffer.start.cast::<c_char>(), buffer.len, offset, is_write)
        };
        byte_count(returned, buffer.len)
    }

    /// Brings the device to `state`. Any result but 0 is a failure.
    pub(super) fn call_transition(&self, callbacks: &MigrationCallbacks, state: DeviceState) -> Result<()> {
        let number = match state {
            DeviceState::Stop => 0,
            DeviceState::Running => 1,
            DeviceState::StopCopy => 2,
            DeviceState::PreCopy => 3,
            DeviceState::Resuming => 4,
            DeviceState::Error | DeviceState::RunningP2p | DeviceState::PreCopyP2p => {
                return Err(Errno::EINVAL);
            }
        };
        clear_errno();
        // SAFETY: as for quiesce.
        match unsafe { (callbacks.transition)(self.as_vfu_ctx(), number) } {
            0 => Ok(()),
            ..0 => Err(callback_errno()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Reads or writes migration data: how many bytes were moved.
    pub(super) fn call_data(
        &self,
        callback: unsafe extern "C" fn(*mut Context, *mut c_void, u64) -> ssize_t,
        buffer: RawBytes,
    ) -> Result<usize> {
        clear_errno();
        // SAFETY: as for a region.
        let returned =
            unsafe { callback(self.as_vfu_ctx(), buffer.start.cast::<c_void>(), buffer.len as u64) };
        byte_count(returned, buffer.len)
    }
}

/// Memory that a callback is given. A pointer and not a slice, because the
/// callback may do with it what it likes while it runs.
#[derive(Clone, Copy, Debug)]
pub struct RawBytes {
    start: *mut u8,
    len: usize,
}

impl RawBytes {
    /// The memory of `bytes`, which must stay in place, and not be looked at,
    /// while the callback that is given it runs.
    pub fn of(bytes: &mut [u8]) -> RawBytes {
        RawBytes { start: bytes.as_mut_ptr(), len: bytes.len() }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// How many bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// The part from `skip` on, `len` bytes of it at the most.
    pub fn part(self, skip: usize, len: usize) -> RawBytes {
        let skip = skip.min(self.len);
        // wrapping_add needs no proof: skip is within the memory.
        RawBytes { start: self.start.wrapping_add(skip), len: len.min(self.len - skip) }
    }

    /// The bytes, between callbacks.
    ///
    /// # Safety
    ///
    /// Nobody else may use the memory while the result is alive.
    pub unsafe fn as_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: start and len come from a slice that the caller keeps.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}
