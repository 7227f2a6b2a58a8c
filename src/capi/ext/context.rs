//! Other ways to make a context.

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::capi::callbacks::Callbacks;
use crate::capi::{LIBVFIO_USER_FLAG_ATTACH_NB, RawDevType, cast, guard, vfu_ctx_t, vfu_dev_type_t};
use crate::server::Context;
use crate::wire::{Errno, Result};

/// Makes a context as vfu_create_ctx() does, but in the place of a server that is no
/// more.
///
/// @path: where to make the UNIX socket, at most 102 bytes; copied
/// @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
/// @pvt: for the device's use, see vfu_get_private(); may be NULL
/// @dev_type: VFU_DEV_TYPE_PCI
///
/// A server that was killed leaves its socket behind. If that is what is at path, and
/// no process has the socket any more, it is replaced, in one step: clients find the
/// old one or the new one. Anything else is left alone. A server that is there is not
/// disturbed by being looked for.
///
/// While this runs there are path.lock, which keeps two servers from replacing the
/// same one, and perhaps path.new. If the process is killed meanwhile they stay, and
/// do no harm.
///
/// Threads: any, at any time.
///
/// Returns the context, which vfu_destroy_ctx() releases, or NULL and sets errno:
///
///   EINVAL         an unknown flag; path is NULL
///   ENOTSUP        another type of device
///   ENAMETOOLONG   path is too long
///   EADDRINUSE     something else is at path; another process is about to
///                  replace what is there
///   EACCES         the process may not connect to what is there, or not make files
///                  beside it
///   others         as socket(), bind(), listen(), connect(), open() and rename() set it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_create_ctx_replacing(
    path: *const c_char,
    flags: c_int,
    pvt: *mut c_void,
    dev_type: RawDevType,
) -> *mut vfu_ctx_t {
    guard::enter_without_context(|| {
        let nonblocking = check(flags, dev_type)?;
        // SAFETY: C's promise for path: NULL or a string.
        let path = unsafe { cast::string(path) }?;
        let path = Path::new(OsStr::from_bytes(path));
        Context::create_replacing(path, nonblocking, Callbacks::new(pvt)).map(cast::into_handle)
    })
}

/// Makes a context over a socket that the process was given.
///
/// @fd: a UNIX stream socket that listens, or one that is connected to a client; the
///      context's from then on if this succeeds
/// @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
/// @pvt: for the device's use, see vfu_get_private(); may be NULL
/// @dev_type: VFU_DEV_TYPE_PCI
///
/// For programs that somebody else opens the socket for: systemd (socket activation:
/// the first is descriptor 3), a supervisor that lets them do nothing themselves, or
/// a VMM that passes one end of a socketpair().
///
/// A socket that listens serves one client after the other, as ever. It belongs to
/// who made it, too, so vfu_destroy_ctx() closes it, and removes no path. Whether
/// accepting waits (O_NONBLOCK) is set as flags say, for all who have the socket.
///
/// With a connected socket, vfu_attach_ctx() takes on its client, who begins with
/// the version message as any other. There is never another one: once it has gone,
/// vfu_attach_ctx() fails with ENOTCONN.
///
/// The descriptor will not be passed on to programs that are executed (FD_CLOEXEC).
///
/// Threads: any, at any time.
///
/// Returns the context, which vfu_destroy_ctx() releases, or NULL and sets errno; the
/// descriptor is the caller's then, as before:
///
///   EINVAL     an unknown flag
///   ENOTSUP    another type of device; a socket of another kind
///   EBADF      fd is no open descriptor
///   ENOTSOCK   it is no socket
///   ENOTCONN   it neither listens nor is it connected
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_create_ctx_over_fd(
    fd: c_int,
    flags: c_int,
    pvt: *mut c_void,
    dev_type: RawDevType,
) -> *mut vfu_ctx_t {
    guard::enter_without_context(|| {
        let nonblocking = check(flags, dev_type)?;
        // SAFETY: C's promise: if this succeeds, the descriptor is the context's.
        unsafe { Context::create_over(fd, nonblocking, Callbacks::new(pvt)) }.map(cast::into_handle)
    })
}

/// Whether the context is non-blocking.
pub(super) fn check(flags: c_int, dev_type: RawDevType) -> Result<bool> {
    if flags & !LIBVFIO_USER_FLAG_ATTACH_NB != 0 {
        return Err(Errno::EINVAL);
    }
    if dev_type != vfu_dev_type_t::VFU_DEV_TYPE_PCI as u32 {
        return Err(Errno::ENOTSUP);
    }
    Ok(flags & LIBVFIO_USER_FLAG_ATTACH_NB != 0)
}
