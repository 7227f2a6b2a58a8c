//! The life of a context: making, serving, destroying it.

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::callbacks::Callbacks;
use super::guard::Hold;
use super::{
    LIBVFIO_USER_FLAG_ATTACH_NB, RawDevType, RawTrans, cast, guard, vfu_ctx_t, vfu_dev_type_t,
    vfu_device_quiesce_cb_t, vfu_reset_cb_t, vfu_trans_t, wait,
};
use crate::server::{Context, Event, Polled, Step};
use crate::wire::Errno;

/// Makes a context: a device that listens at a socket.
///
/// @trans: VFU_TRANS_SOCK
/// @path: where to make the UNIX socket, at most 107 bytes; copied. Nothing may
///        be there: an old socket is not removed. An empty path makes a socket
///        without a place in the file system.
/// @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
/// @pvt: for the device's use, see vfu_get_private(); may be NULL
/// @dev_type: VFU_DEV_TYPE_PCI
///
/// The socket is made and listens at once; a client can connect, and waits for
/// vfu_attach_ctx(). At first there are no regions, no DMA, no migration, one
/// ERR and one REQ interrupt, and no log.
///
/// There is nowhere to log to yet: errno alone says why it fails. So it is in all
/// functions where there is no context (vfu_ctx is NULL).
///
/// Threads: any, at any time.
///
/// Returns the context, which vfu_destroy_ctx() releases, or NULL and sets
/// errno:
///
///   EINVAL         an unknown flag; path is NULL
///   ENOTSUP        another transport, another type of device
///   ENAMETOOLONG   path is too long
///   EADDRINUSE     something is there at path
///   others         as socket(), bind() and listen() set it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_create_ctx(
    trans: RawTrans,
    path: *const c_char,
    flags: c_int,
    pvt: *mut c_void,
    dev_type: RawDevType,
) -> *mut vfu_ctx_t {
    guard::enter_without_context(|| {
        if flags & !LIBVFIO_USER_FLAG_ATTACH_NB != 0 {
            return Err(Errno::EINVAL);
        }
        if trans != vfu_trans_t::VFU_TRANS_SOCK as u32 {
            return Err(Errno::ENOTSUP);
        }
        if dev_type != vfu_dev_type_t::VFU_DEV_TYPE_PCI as u32 {
            return Err(Errno::ENOTSUP);
        }
        // SAFETY: C's promise for path: NULL or a string.
        let path = unsafe { cast::string(path) }?;
        let nonblocking = flags & LIBVFIO_USER_FLAG_ATTACH_NB != 0;
        Context::create(Path::new(OsStr::from_bytes(path)), nonblocking, Callbacks::new(pvt))
            .map(cast::into_handle)
    })
}

/// Returns the pvt that was given to vfu_create_ctx().
///
/// @vfu_ctx: the context; for NULL, NULL is returned and errno is EINVAL
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_get_private(vfu_ctx: *mut vfu_ctx_t) -> *mut c_void {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { guard::enter_silent(vfu_ctx, "vfu_get_private", |ctx| Ok(ctx.device().private)) }
}

/// Chooses the function that resets the device.
///
/// @vfu_ctx: the context
/// @reset: the function; NULL: a reset does nothing and succeeds
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_device_reset_cb(
    vfu_ctx: *mut vfu_ctx_t,
    reset: vfu_reset_cb_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_setup_device_reset_cb", |ctx| {
            ctx.device().reset.set(reset);
            Ok(0)
        })
    }
}

/// Chooses the function that quiesces the device.
///
/// @vfu_ctx: the context
/// @quiesce_cb: the function; NULL: the device is never asked, and counts as
///              quiesced whenever a callback runs
///
/// Threads: on the thread that uses the context, see the top of this file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_device_quiesce_cb(
    vfu_ctx: *mut vfu_ctx_t,
    quiesce_cb: vfu_device_quiesce_cb_t,
) {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_setup_device_quiesce_cb", |ctx| {
            ctx.device().quiesce.set(quiesce_cb);
            Ok(())
        })
    }
}

/// Finishes the set-up of a device: to be called once, before vfu_attach_ctx().
///
/// @vfu_ctx: the context
///
/// Makes the configuration space if vfu_pci_init() has not, and fills in what
/// follows from the set-up: the types of the BARs, the interrupt pin, the
/// presence of capabilities. Regions, capabilities and callbacks can still be
/// set up afterwards. Calling it again does nothing.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_realize_ctx(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { guard::enter(vfu_ctx, "vfu_realize_ctx", |ctx| ctx.realize().map(|()| 0)) }
}

/// Takes on a client: accepts its connection and agrees on the protocol version.
///
/// @vfu_ctx: the context
///
/// Waits for a client and its first message; with LIBVFIO_USER_FLAG_ATTACH_NB
/// it does what can be done at once and fails with EAGAIN: call it again when
/// the descriptor of vfu_get_poll_fd() is readable. A thread that waits here may
/// be cancelled (pthread_cancel()), and the context be destroyed thereafter. A
/// signal ends the wait if its handler was set without SA_RESTART, by sigaction();
/// after a handler that was set by signal(), the thread goes on waiting.
///
/// Threads: on the thread that uses the context. The functions that any thread may
/// call may run beside it, see the top of this file.
///
/// Returns 0, or -1 and sets errno; the context can attach again after all of
/// these:
///
///   EAGAIN       no client yet, or its message is not complete yet
///   EINTR        a signal arrived; what the client has sent is kept
///   EINVAL       there is a client already; or the client's version message
///                cannot be agreed to: it has been told so, and is disconnected
///   ENOMSG       the client left before its message
///   ECONNRESET   the client left in the middle of its message
///   others       as accept(), recvmsg() and sendmsg() set it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_attach_ctx(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { wait::drive(vfu_ctx, "vfu_attach_ctx", Event::Start, &mut |ctx, event| ctx.attach_step(event)) }
}

/// Returns a descriptor that is readable when vfu_attach_ctx() (before a client
/// is attached) or vfu_run_ctx() has something to do.
///
/// @vfu_ctx: the context
///
/// The descriptor is for poll(), select() and epoll only; it is the library's
/// and must not be closed. Ask again after vfu_attach_ctx() succeeded and after
/// vfu_run_ctx() failed with ENOTCONN: it may be another one then.
///
/// Called in a callback it returns the client's connected socket instead, also in
/// the callbacks that the loss of the client brings: for getsockopt(SO_PEERCRED)
/// and the like, not to read, write or close.
///
/// Returns the descriptor, or -1 and sets errno:
///
///   EMFILE, ENFILE, ENOMEM   it cannot be made
///
/// Threads: on the thread that uses the context, see the top of this file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_get_poll_fd(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { guard::enter(vfu_ctx, "vfu_get_poll_fd", |ctx| ctx.poll_fd()) }
}

/// Serves the client: reads its requests, executes and answers them.
///
/// @vfu_ctx: the context
///
/// With LIBVFIO_USER_FLAG_ATTACH_NB it executes the requests that are there and
/// returns without waiting. It stops after 256 of them, and when 10 ms have gone by
/// since it began; the descriptor of vfu_get_poll_fd() is readable then. Without the flag it goes on serving
/// until one of the errors below. All callbacks run in here, on the calling
/// thread. A thread that waits here, for a request or for a client that does not
/// read its replies, may be cancelled (pthread_cancel()), and the context be
/// destroyed thereafter; a callback is never cut short by a cancellation. A signal
/// ends the wait, too; the wait for a request only if the handler was set without
/// SA_RESTART, as sigaction() does and signal() does not. What was received or is
/// unsent then is kept, and the next call goes on with it. (Of a reply that is
/// longer than a socket takes at once, a cancellation may leave unknown what the
/// client got, as with a glibc older than 2.41: the next call finds the connection
/// lost then.)
///
/// Callbacks have to return: one that calls pthread_exit(), throws, or leaves by
/// longjmp() ends the process, or leaves the context unusable.
///
/// A request that is refused or fails is answered with an error, and is no
/// failure of this function. errno is then what the client was sent for the
/// last one that failed in this call.
///
/// Threads: on the thread that uses the context. The functions that any thread may
/// call may run beside it, see the top of this file.
///
/// Returns the number of requests executed, 0 if there were none, or -1 and sets
/// errno:
///
///   EINVAL     vfu_realize_ctx() has not been called
///   ENOTCONN   there is no client: none has attached yet, or it has gone; its
///              DMA regions and interrupts are released, and the device has been
///              reset (VFU_RESET_LOST_CONN). vfu_attach_ctx() takes on another
///   EBUSY      the device is asked to quiesce and has not said yet that it did,
///              see vfu_device_quiesced()
///   EINTR      a signal arrived while waiting
///   others     as recvmsg() sets it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_run_ctx(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    match unsafe { cast::context(vfu_ctx) } {
        // SAFETY: a live context.
        Ok(context) if !context.is_nonblocking() => unsafe { run_for_ever(vfu_ctx) },
        // SAFETY: as above.
        _ => unsafe { run_what_is_there(vfu_ctx) },
    }
}

/// `vfu_run_ctx` of a context that waits. Out of line so that of the other nothing is
/// saved and restored for it.
///
/// # Safety
///
/// As for `vfu_run_ctx`.
#[inline(never)]
unsafe fn run_for_ever(handle: *mut vfu_ctx_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { wait::drive(handle, "vfu_run_ctx", Event::Start, &mut |ctx, event| ctx.run_step(event)) }
}

/// `vfu_run_ctx` of a context that does not wait. A call that finds nothing to do is
/// over before the thread is kept from being cancelled, which costs more than all else.
///
/// # Safety
///
/// `handle` is NULL or a live context.
#[inline(never)]
unsafe fn run_what_is_there(handle: *mut vfu_ctx_t) -> c_int {
    let first = |ctx: &vfu_ctx_t, hold: &mut Hold| match ctx.poll() {
        Polled::Nothing => Step::Return { value: 0, errno: None },
        Polled::Short(request) => {
            hold.hold();
            ctx.run_short(request)
        }
        Polled::Go(event) => {
            hold.hold();
            ctx.run_step(event)
        }
    };
    // SAFETY: the caller's promise; only what waits may be called by a thread whose
    // cancellation type is asynchronous.
    unsafe { wait::drive_late(handle, "vfu_run_ctx", first, &mut |ctx, event| ctx.run_step(event)) }
}

/// Tells that the device has quiesced, after its quiesce callback failed with
/// EBUSY.
///
/// @vfu_ctx: the context
/// @quiesce_errno: 0: the device is quiesced; else an errno: it failed to
///
/// With 0, what waited for it is done in here, with its callbacks and its reply
/// to the client, and the device runs again when the function returns. With an
/// errno, the client is sent that errno and the device is reset
/// (VFU_RESET_DEVICE). If the client has gone meanwhile, its resources are
/// released in either case.
///
/// Threads: on the thread that uses the context. The functions that any thread may
/// call may run beside it, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   nothing waits for the device, or it has no quiesce callback; so,
///            too, inside the quiesce callback
///   EBUSY    the client went while it was answered, and the device has been
///            asked to quiesce for that
///   others   the client could not be answered
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_device_quiesced(vfu_ctx: *mut vfu_ctx_t, quiesce_errno: c_int) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_device_quiesced", |ctx| {
            // The callback may be gone by now, and the device still be waited for.
            let is_asked = ctx.device().quiesce.get().is_some();
            let outcome = ctx.device_quiesced(quiesce_errno).map(|()| 0);
            outcome.map_err(|errno| match errno {
                Errno::EINVAL if !is_asked => errno.because("the device has no quiesce callback"),
                errno => errno,
            })
        })
    }
}

/// Destroys a context.
///
/// @vfu_ctx: the context; NULL is ignored
///
/// The DMA regions are removed, with their unregister callbacks; the reset
/// callback runs with VFU_RESET_LOST_CONN; the quiesce callback does not. Then
/// the client is disconnected, the socket's path removed, and all that the
/// library owns released. Descriptors that the device passed in, of regions and
/// ioeventfds, stay open.
///
/// In a child of fork() the callbacks run, descriptors are closed and memory is
/// freed; the client, who is the parent's, notices nothing, and the path stays.
///
/// No other function may run on the context meanwhile, on any thread, but those
/// that the callbacks call.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_destroy_ctx(vfu_ctx: *mut vfu_ctx_t) {
    guard::enter_without_context(|| {
        // SAFETY: C's promise: NULL or a live context.
        let Ok(context) = (unsafe { cast::context(vfu_ctx) }) else {
            return Ok(());
        };
        // A bug of ours in there must not keep the context from going.
        let may_go = catch_unwind(AssertUnwindSafe(|| context.tear_down())).unwrap_or(true);
        if may_go {
            // SAFETY: C's promise for this function: the last use of the context,
            // whose callbacks are over.
            drop(unsafe { cast::into_context(vfu_ctx) });
        }
        Ok(())
    })
}
