//! A device in C: what the program's functions are, and calling them.
//!
//! A program may choose a function at any time, also while one runs, so each is
//! copied from its cell before it is called.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use libc::{off64_t, ssize_t};
use parking_lot::RwLock;

use super::{
    RawMigrState, vfu_ctx_t, vfu_dev_irq_state_cb_t, vfu_device_quiesce_cb_t, vfu_dma_register_cb_t,
    vfu_dma_unregister_cb_t, vfu_log_fn_t, vfu_migr_state_t, vfu_region_access_cb_t, vfu_reset_cb_t,
    vfux_dma_lost_cb_t,
};
use crate::dma::RegionId;
use crate::irq::IrqType;
use crate::server::regions::COUNT;
use crate::server::{Context, Device, ResetType};
use crate::wire::{DeviceState, Errno, Result};

const FAILED: &str = "the device's callback failed";

type TransitionFn = unsafe extern "C" fn(*mut vfu_ctx_t, RawMigrState) -> c_int;
type DataFn = unsafe extern "C" fn(*mut vfu_ctx_t, *mut c_void, u64) -> ssize_t;

/// The functions of `vfu_migration_callbacks_t`, all of which are there.
#[derive(Clone, Copy)]
pub(super) struct Migration {
    pub(super) transition: TransitionFn,
    pub(super) read_data: DataFn,
    pub(super) write_data: DataFn,
}

type SaveFn = unsafe extern "C" fn(*mut vfu_ctx_t) -> c_int;
type LoadFn = unsafe extern "C" fn(*mut vfu_ctx_t, *const c_void, usize, u32) -> c_int;
type HandedOverFn = unsafe extern "C" fn(*mut vfu_ctx_t, bool);

/// The functions of `vfux_hand_over_callbacks_t`.
#[derive(Clone, Copy, Default)]
pub(super) struct HandOverFns {
    pub(super) save_state: Option<(SaveFn, LoadFn)>,
    pub(super) handed_over: Option<HandedOverFn>,
}

/// A device in C: its functions, `None` where there is none, and its pointer.
pub struct Callbacks {
    pub(super) private: *mut c_void,
    pub(super) regions: [Cell<vfu_region_access_cb_t>; COUNT],
    pub(super) reset: Cell<vfu_reset_cb_t>,
    pub(super) quiesce: Cell<vfu_device_quiesce_cb_t>,
    pub(super) dma_register: Cell<vfu_dma_register_cb_t>,
    pub(super) dma_unregister: Cell<vfu_dma_unregister_cb_t>,
    /// What the register callback that runs has decided; `None`: none runs.
    registering: Cell<Option<Result<()>>>,
    pub(super) dma_lost: Cell<vfux_dma_lost_cb_t>,
    /// By interrupt type.
    pub(super) irq_state: [Cell<vfu_dev_irq_state_cb_t>; IrqType::COUNT],
    pub(super) migration: Cell<Option<Migration>>,
    pub(super) hand_over: Cell<HandOverFns>,
    /// Called on any thread.
    pub(super) log: RwLock<vfu_log_fn_t>,
}

impl Callbacks {
    pub(super) fn new(private: *mut c_void) -> Callbacks {
        Callbacks {
            private,
            regions: Default::default(),
            reset: Cell::default(),
            quiesce: Cell::default(),
            dma_register: Cell::default(),
            dma_unregister: Cell::default(),
            registering: Cell::default(),
            dma_lost: Cell::default(),
            irq_state: Default::default(),
            migration: Cell::default(),
            hand_over: Cell::default(),
            log: RwLock::default(),
        }
    }

    /// The register callback that runs refuses its region; false: none runs.
    pub(super) fn refuse_dma_region(&self, errno: Errno) -> bool {
        let runs = self.registering.get().is_some();
        if runs {
            self.registering.set(Some(Err(errno)));
        }
        runs
    }

    #[inline(always)]
    fn region(
        &self,
        context: &vfu_ctx_t,
        region: u32,
        offset: u64,
        data: &mut [u8],
        is_write: bool,
    ) -> Result<usize> {
        let callback = self.regions.get(region as usize).and_then(Cell::get);
        let callback = callback.ok_or_else(|| Errno::EINVAL.because("the region has no callback"))?;
        let offset = off64_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        clear_errno();
        // SAFETY: the program gave the function for this use; the bytes are as
        // many as is said, and nobody else uses them meanwhile.
        let returned = unsafe {
            callback(handle(context), data.as_mut_ptr().cast::<c_char>(), data.len(), offset, is_write)
        };
        byte_count(returned, data.len())
    }

    fn data(&self, context: &vfu_ctx_t, callback: Option<DataFn>, data: &mut [u8]) -> Result<usize> {
        let callback = callback.ok_or(Errno::EINVAL)?;
        clear_errno();
        // SAFETY: as for a region.
        let returned =
            unsafe { callback(handle(context), data.as_mut_ptr().cast::<c_void>(), data.len() as u64) };
        byte_count(returned, data.len())
    }
}

impl Device for Callbacks {
    #[inline(always)]
    fn region_read(&self, context: &vfu_ctx_t, region: u32, offset: u64, data: &mut [u8]) -> Result<usize> {
        self.region(context, region, offset, data, false)
    }

    #[inline(always)]
    fn region_write(&self, context: &vfu_ctx_t, region: u32, offset: u64, data: &mut [u8]) -> Result<usize> {
        self.region(context, region, offset, data, true)
    }

    fn quiesce(&self, context: &vfu_ctx_t) -> Result<()> {
        let Some(quiesce) = self.quiesce.get() else {
            return Ok(());
        };
        clear_errno();
        // SAFETY: the program gave the function for this use.
        match unsafe { quiesce(handle(context)) } {
            // No failure, which would be logged: the device needs time.
            ..0 if Errno::last() == Errno::EBUSY => Err(Errno::EBUSY),
            returned => failed_if_negative(returned),
        }
    }

    fn reset(&self, context: &vfu_ctx_t, kind: ResetType) -> Result<()> {
        let Some(reset) = self.reset.get() else {
            return Ok(());
        };
        clear_errno();
        // SAFETY: as for quiesce.
        failed_if_negative(unsafe { reset(handle(context), kind as u32) })
    }

    fn can_reset(&self) -> bool {
        self.reset.get().is_some()
    }

    fn dma_register(&self, context: &vfu_ctx_t, region: RegionId) -> Result<()> {
        let Some(callback) = self.dma_register.get() else {
            return Ok(());
        };
        self.registering.set(Some(Ok(())));
        // SAFETY: as for quiesce; the info stays in place until the region
        // has been removed, which is after the unregister callback, or if this
        // one refuses it.
        unsafe { callback(handle(context), context.memory().info(region)) };
        self.registering.take().unwrap_or(Ok(()))
    }

    fn dma_unregister(&self, context: &vfu_ctx_t, region: RegionId) {
        if let Some(callback) = self.dma_unregister.get() {
            // SAFETY: as for dma_register.
            unsafe { callback(handle(context), context.memory().info(region)) };
        }
    }

    fn dma_lost(&self, context: &vfu_ctx_t, region: RegionId, offset: u64) {
        if let Some(callback) = self.dma_lost.get() {
            // SAFETY: as for dma_register.
            unsafe { callback(handle(context), context.memory().info(region), offset) };
        }
    }

    fn irq_state(&self, context: &vfu_ctx_t, kind: IrqType, start: u32, count: u32, mask: bool) {
        if let Some(callback) = self.irq_state.get(kind as usize).and_then(Cell::get) {
            // SAFETY: as for quiesce.
            unsafe { callback(handle(context), start, count, mask) };
        }
    }

    fn can_migrate(&self) -> bool {
        self.migration.get().is_some()
    }

    fn transition(&self, context: &vfu_ctx_t, state: DeviceState) -> Result<()> {
        let transition = self.migration.get().ok_or(Errno::EINVAL)?.transition;
        let state = match state {
            DeviceState::Stop => vfu_migr_state_t::VFU_MIGR_STATE_STOP,
            DeviceState::Running => vfu_migr_state_t::VFU_MIGR_STATE_RUNNING,
            DeviceState::StopCopy => vfu_migr_state_t::VFU_MIGR_STATE_STOP_AND_COPY,
            DeviceState::PreCopy => vfu_migr_state_t::VFU_MIGR_STATE_PRE_COPY,
            DeviceState::Resuming => vfu_migr_state_t::VFU_MIGR_STATE_RESUME,
            DeviceState::Error | DeviceState::RunningP2p | DeviceState::PreCopyP2p => {
                return Err(Errno::EINVAL);
            }
        };
        clear_errno();
        // SAFETY: as for quiesce.
        match unsafe { transition(handle(context), state as u32) } {
            0 => Ok(()),
            ..0 => Err(Errno::last().because(FAILED)),
            _ => Err(Errno::EINVAL.because("the device's callback returned a number above 0")),
        }
    }

    fn migration_read(&self, context: &vfu_ctx_t, data: &mut [u8]) -> Result<usize> {
        self.data(context, self.migration.get().map(|migration| migration.read_data), data)
    }

    fn migration_write(&self, context: &vfu_ctx_t, data: &mut [u8]) -> Result<usize> {
        self.data(context, self.migration.get().map(|migration| migration.write_data), data)
    }

    fn has_own_state(&self) -> bool {
        self.hand_over.get().save_state.is_some()
    }

    fn save_state(&self, context: &vfu_ctx_t) -> Result<()> {
        let (save, _) = self.hand_over.get().save_state.ok_or(Errno::EINVAL)?;
        clear_errno();
        // SAFETY: as for quiesce.
        failed_if_negative(unsafe { save(handle(context)) })
    }

    fn load_state(&self, context: &vfu_ctx_t, data: &[u8], state: DeviceState) -> Result<()> {
        let (_, load) = self.hand_over.get().save_state.ok_or(Errno::EINVAL)?;
        clear_errno();
        // SAFETY: as for quiesce; the bytes are as many as is said.
        failed_if_negative(unsafe {
            load(handle(context), data.as_ptr().cast::<c_void>(), data.len(), state as u32)
        })
    }

    fn handed_over(&self, context: &vfu_ctx_t, is_ours: bool) {
        if let Some(handed_over) = self.hand_over.get().handed_over {
            // SAFETY: as for quiesce.
            unsafe { handed_over(handle(context), is_ours) };
        }
    }

    /// `errno` is the same afterwards. On any thread.
    fn log(&self, context: &vfu_ctx_t, level: i32, line: &CStr) {
        let function = *self.log.read();
        if let Some(function) = function {
            let errno = nix::errno::Errno::last_raw();
            // SAFETY: as for quiesce; the text ends in NUL.
            unsafe { function(handle(context), level, line.as_ptr()) };
            nix::errno::Errno::set_raw(errno);
        }
    }
}

/// What C knows a context as.
fn handle(context: &Context<Callbacks>) -> *mut vfu_ctx_t {
    ptr::from_ref(context).cast_mut()
}

/// So that what a callback leaves in `errno` is its own.
#[inline(always)]
fn clear_errno() {
    nix::errno::Errno::clear();
}

/// The result of quiesce and reset. The errno of one that set none is `EINVAL`.
fn failed_if_negative(returned: c_int) -> Result<()> {
    if returned < 0 { Err(Errno::last().because(FAILED)) } else { Ok(()) }
}

/// The result of a callback that returns a number of bytes, of which `most`
/// are possible. -1 means `errno`, also from a function that returns a 32-bit
/// int in place of the `ssize_t`; every other impossible number is `EINVAL`.
#[inline(always)]
fn byte_count(returned: ssize_t, most: usize) -> Result<usize> {
    match usize::try_from(returned) {
        Ok(count) if count <= most => Ok(count),
        _ => Err(impossible_count(returned)),
    }
}

#[cold]
fn impossible_count(returned: ssize_t) -> Errno {
    // Where a ssize_t has 32 bits itself, that is -1 as well.
    const MINUS_ONE_AS_INT: ssize_t = u32::MAX as ssize_t;
    if returned == -1 || returned == MINUS_ONE_AS_INT {
        Errno::last().because(FAILED)
    } else {
        Errno::EINVAL.because("the device's callback returned a number of bytes that cannot be")
    }
}
