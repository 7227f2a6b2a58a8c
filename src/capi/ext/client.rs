//! Who the client is.

use std::ffi::c_int;

use libc::{gid_t, pid_t, uid_t};

use crate::capi::{cast, guard, vfu_ctx_t};

/// Who connected, as the kernel saw it at that moment (SO_PEERCRED).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vfux_credentials_t {
    /// The process, by its number in this process' namespace; 0 if it has none there.
    pub pid: pid_t,
    /// Its effective user.
    pub uid: uid_t,
    /// Its effective group.
    pub gid: gid_t,
}

/// Says who the client is: the process that called connect(), and what user and
/// group it had then. What it does afterwards, even leaving the connection to
/// another process, changes nothing.
///
/// @vfu_ctx: the context
/// @credentials: filled in
///
/// May be called from callbacks, too, those included that the loss of the client
/// brings.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   ENOTCONN   no client is attached
///   EINVAL     credentials is NULL
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_client_credentials(
    vfu_ctx: *mut vfu_ctx_t,
    credentials: *mut vfux_credentials_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, credentials
    // NULL or good for writes.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_client_credentials", |ctx| {
            let place = cast::place(credentials)?;
            let client = ctx.client_credentials()?;
            place.write(vfux_credentials_t { pid: client.pid(), uid: client.uid(), gid: client.gid() });
            Ok(0)
        })
    }
}
