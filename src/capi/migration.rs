//! Live migration.

use std::ffi::c_int;

use super::callbacks::Migration;
use super::{VFU_MIGR_CALLBACKS_VERS, cast, guard, vfu_ctx_t, vfu_migration_callbacks_t};
use crate::wire::Errno;

/// Says that the device can be migrated. Without this call the client is told
/// that it cannot.
///
/// @vfu_ctx: the context
/// @callbacks: what the device does for it, all of them; copied
///
/// The migration state becomes RUNNING. Calling it again replaces the callbacks.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   another version than VFU_MIGR_CALLBACKS_VERS; a callback is NULL
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_device_migration_callbacks(
    vfu_ctx: *mut vfu_ctx_t,
    callbacks: *const vfu_migration_callbacks_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, callbacks NULL
    // or a structure.
    unsafe {
        guard::enter(vfu_ctx, "vfu_setup_device_migration_callbacks", |ctx| {
            let c = cast::reference(callbacks)?;
            let (VFU_MIGR_CALLBACKS_VERS, Some(transition), Some(read_data), Some(write_data)) =
                (c.version, c.transition, c.read_data, c.write_data)
            else {
                return Err(
                    Errno::EINVAL.because("version is not VFU_MIGR_CALLBACKS_VERS, or a callback is NULL")
                );
            };
            ctx.device().migration.set(Some(Migration { transition, read_data, write_data }));
            ctx.setup_migration();
            Ok(0)
        })
    }
}
