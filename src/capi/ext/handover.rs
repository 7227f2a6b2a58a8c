//! A device that goes on in another process: the one that has it.

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::capi::callbacks::HandOverFns;
use crate::capi::guard::Answer;
use crate::capi::{cast, guard, vfu_ctx_t};
use crate::wire::{Errno, Result};

/// Version of vfux_hand_over_callbacks_t.
pub const VFUX_HAND_OVER_CALLBACKS_VERSION: c_int = 1;

/// What a device has to do that goes to another process: argument of
/// vfux_setup_hand_over_callbacks().
#[repr(C)]
pub struct vfux_hand_over_callbacks_t {
    /// VFUX_HAND_OVER_CALLBACKS_VERSION
    pub version: c_int,
    /// In the process that has the device: gives all that the device in the other one
    /// has to know to vfux_put_state(). The device is quiesced, and stays so until
    /// handed_over. Returns 0, or -1 and sets errno: the device stays here.
    ///
    /// With NULL here and for load_state, what the device says when it migrates is
    /// taken, if it can.
    pub save_state: Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t) -> c_int>,
    /// In the process that is to have it: takes all of that. Configuration space and
    /// DMA regions are there; the device does not run before handed_over says so.
    /// migration_state is the VFIO_USER_DEVICE_STATE_* that the client has put it
    /// into. Returns 0, or -1 and sets errno: the device stays there.
    pub load_state: Option<
        unsafe extern "C" fn(
            vfu_ctx: *mut vfu_ctx_t,
            data: *const c_void,
            size: usize,
            migration_state: u32,
        ) -> c_int,
    >,
    /// It is decided who has the device, in either process, once for each attempt: with
    /// is_ours, this one, where it runs again, or at last; without, the other one, and
    /// this one touches nothing any more that both have. May be NULL.
    pub handed_over: Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, is_ours: bool)>,
}

/// Chooses what is called when the device goes to another process.
///
/// @vfu_ctx: the context
/// @callbacks: copied; NULL: none
///
/// The callbacks may call what a region callback may, but not DMA functions that ask
/// the client by messages: these fail with ENOTCONN, also in migration callbacks, until
/// the device is this process's. A device without internal state needs none of them; one
/// that migrates needs none if its migration state is all that matters. (It is not
/// where the device has to know what the client does not repeat, such as masks that it
/// was told of.) Both processes have to have the same: save_state and load_state, or
/// migration, or neither.
///
/// A device with save_state and load_state can be taken over in the migration state
/// PRE_COPY at any time; they have to carry what was saved so far along. One without
/// them can as long as its client has read no data there; then it goes from PRE_COPY to
/// STOP_COPY in one process, and by RUNNING to PRE_COPY in the other.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   another version; only one of save_state and load_state
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_hand_over_callbacks(
    vfu_ctx: *mut vfu_ctx_t,
    callbacks: *const vfux_hand_over_callbacks_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, callbacks NULL or
    // good for reads.
    unsafe {
        guard::enter(vfu_ctx, "vfux_setup_hand_over_callbacks", |ctx| {
            let functions = match callbacks.is_null() {
                true => HandOverFns::default(),
                false => functions(cast::reference(callbacks)?)?,
            };
            ctx.device().hand_over.set(functions);
            Ok(0)
        })
    }
}

fn functions(callbacks: &vfux_hand_over_callbacks_t) -> Result<HandOverFns> {
    let &vfux_hand_over_callbacks_t { version, save_state, load_state, handed_over } = callbacks;
    Errno::EINVAL.unless(version == VFUX_HAND_OVER_CALLBACKS_VERSION, "another version of the callbacks")?;
    let both = save_state.is_some() == load_state.is_some();
    Errno::EINVAL.unless(both, "one of save_state and load_state is missing")?;
    Ok(HandOverFns { save_state: save_state.zip(load_state), handed_over })
}

/// Adds to what the device says of its state: in save_state only, in as many calls as
/// one likes.
///
/// @vfu_ctx: the context
/// @data: the bytes; copied
/// @size: how many
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   save_state does not run; data is NULL
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_put_state(
    vfu_ctx: *mut vfu_ctx_t,
    data: *const c_void,
    size: usize,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, data NULL or good
    // for reads of size bytes.
    unsafe {
        guard::enter(vfu_ctx, "vfux_put_state", |ctx| {
            ctx.put_state(cast::array(data.cast::<u8>(), size)?).map(|()| 0)
        })
    }
}

/// Hands a descriptor of the device's own over with the device: an open file, a disk in
/// memory.
///
/// @vfu_ctx: the context
/// @name: what the other process asks for it by, see vfux_get_old_fd(); copied
/// @fd: stays the caller's, and has to stay open as long as the context
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EEXIST   there is a descriptor of this name already
///   EINVAL   name is NULL or empty
///   EBADF    fd is negative
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_add_hand_over_fd(
    vfu_ctx: *mut vfu_ctx_t,
    name: *const c_char,
    fd: c_int,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, name NULL or a string.
    unsafe {
        guard::enter(vfu_ctx, "vfux_add_hand_over_fd", |ctx| {
            let name = cast::string(name)?;
            Errno::EBADF.unless(fd >= 0, "the descriptor is negative")?;
            // SAFETY: C's promise: it stays open as long as the context.
            ctx.name_fd(name, BorrowedFd::borrow_raw(fd)).map(|()| 0)
        })
    }
}

/// Lets another process take the device over, with its client, who does not notice.
///
/// @vfu_ctx: the context
/// @path: where to make a UNIX socket for that, at most 102 bytes; copied. A stale
///        one is replaced, as by vfux_create_ctx_replacing()
///
/// The other process has to run as the same user, or as root. Nothing happens before
/// vfux_hand_over() is called. The socket goes over with the device, so that the next
/// process can be taken over from at the same path.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EEXIST         there is such a socket already
///   EINVAL         path is NULL
///   ENAMETOOLONG   path is too long
///   EADDRINUSE     something is there that is no stale socket
///   others         as vfux_create_ctx_replacing() sets it, and epoll_create1()
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_hand_over(vfu_ctx: *mut vfu_ctx_t, path: *const c_char) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, path NULL or a string.
    unsafe {
        guard::enter(vfu_ctx, "vfux_setup_hand_over", |ctx| {
            let path = cast::string(path)?;
            ctx.setup_hand_over(Path::new(OsStr::from_bytes(path))).map(|()| 0)
        })
    }
}

/// Lets another process take the device over, as vfux_setup_hand_over() does, over a
/// socket that the process was given.
///
/// @vfu_ctx: the context
/// @fd: a UNIX socket of type SOCK_SEQPACKET that listens, or one that is connected to
///      the process that wants to take over; the context's from then on if this succeeds
///
/// A socket that listens goes over with the device; its path, if it has one, is left to
/// who made it. One that is connected is for one attempt: if that fails, there can be
/// another socket, and the descriptor of vfux_get_hand_over_fd() stays the same.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EEXIST     there is such a socket already, and somebody can still come by it
///   EBADF, ENOTSOCK, ENOTSUP, ENOTCONN   as vfux_create_ctx_over_fd() sets it
///   others     as epoll_create1() sets it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_hand_over_fd(vfu_ctx: *mut vfu_ctx_t, fd: c_int) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context; if this succeeds, the
    // descriptor is the context's.
    unsafe { guard::enter(vfu_ctx, "vfux_setup_hand_over_fd", |ctx| ctx.setup_hand_over_fd(fd).map(|()| 0)) }
}

/// Returns a descriptor that is readable when vfux_hand_over() has something to do.
///
/// @vfu_ctx: the context
///
/// It is for poll(), select() and epoll only; it is the library's, must not be closed,
/// and stays the same until vfux_hand_over() has returned 1.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns the descriptor, or -1 and sets errno:
///
///   ENOENT   no socket for taking over was set up
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_hand_over_fd(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_hand_over_fd", |ctx| match ctx.hand_over_fd() {
            Ok(fd) => Ok(Answer::from(fd)),
            // Main loops ask for it in each turn: that there is none is no refusal.
            Err(errno) => Ok(Answer { value: -1, errno: Some(errno.number()) }),
        })
    }
}

/// Answers a process that wants to take the device over.
///
/// @vfu_ctx: the context
/// @timeout: milliseconds, more than 0
///
/// To be called when the descriptor of vfux_get_hand_over_fd() is readable; a program
/// whose vfu_run_ctx() waits gets out of there by a signal first. At first the other
/// process only learns what the device is, and makes its own. That takes as long as it
/// takes; nobody waits, and this returns 0 at once.
///
/// Then, in a later call, the device is made quiet (the quiesce callback), says what
/// its state is (save_state, or its migration callbacks), and everything is handed
/// over: the client's connection with what was received and not executed, and what is
/// unsent; DMA regions, eventfds, configuration space, the log of writes. The call waits
/// for the other process to have taken all of that, for timeout at the most, and as
/// long once more for it to say that it goes on. Whatever it does otherwise, or if it is
/// killed, the device goes on here, as if nothing had happened (the migration callbacks
/// bring it back to where it was; handed_over is called).
///
/// After 1 there is no client, nor will there be: the program may vfu_destroy_ctx() the
/// context and exit, or just exit. The unregister callbacks run, the reset callback does
/// not. What the device has in common with the other process (a disk, the memory of a
/// BAR) is no longer its own.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h. Not
/// from callbacks.
///
/// Returns 1: the device is the other process's; 0: nothing to be done, or done; or -1
/// and sets errno: an attempt has failed, a line in the log says why:
///
///   EBUSY        from inside a callback; something waits for the device to become
///                quiet; the client is lost; the device is in the migration state
///                STOP_COPY or RESUMING, or, without save_state, in ERROR, or in
///                PRE_COPY when the client has read data; it was set up otherwise
///                since the other process has asked what it is.
///                Or its quiesce callback said so: then this is to be called again
///                when vfu_device_quiesced() has been, and vfu_run_ctx() fails
///                with EBUSY until then
///   EPERM        the other process runs as another user
///   ETIMEDOUT    it takes too long
///   ECONNRESET   it has gone
///   EINVAL       timeout is not more than 0; or the other process says that the
///                device does not fit
///   ENOENT       no socket for taking over was set up
///   others       as the other process says, the callbacks, or the system
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_hand_over(vfu_ctx: *mut vfu_ctx_t, timeout: c_int) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter_saying(
            vfu_ctx,
            "vfux_hand_over",
            format_args!("vfux_hand_over: not handed over"),
            |ctx| ctx.hand_over(duration(timeout)?).map(c_int::from),
        )
    }
}

/// Milliseconds, more than 0.
pub(super) fn duration(millis: c_int) -> Result<Duration> {
    let millis = u64::try_from(millis).unwrap_or(0);
    Errno::EINVAL.unless(millis > 0, "timeout is not more than 0")?;
    Ok(Duration::from_millis(millis))
}
