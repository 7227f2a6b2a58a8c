//! A device that goes on in another process: the one that is to have it.

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::size_t;

use super::context::check;
use super::handover::duration;
use crate::capi::callbacks::Callbacks;
use crate::capi::guard::Answer;
use crate::capi::{RawDevType, RawIrqType, cast, guard, vfu_ctx_t};
use crate::irq::IrqType;
use crate::server::Context;
use crate::wire::Errno;

/// A region of the device that is to be taken over, see vfux_get_old_region().
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vfux_old_region_t {
    /// Bytes.
    pub size: u64,
    /// Where the region starts in fd, in bytes.
    pub offset: u64,
    /// VFU_REGION_FLAG_*
    pub flags: u32,
    /// What the client may map, and may have mapped: the caller's to close; or -1.
    pub fd: c_int,
}

/// An eventfd of the device that is to be taken over, see vfux_get_old_ioeventfd().
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vfux_old_ioeventfd_t {
    /// Offset in the region.
    pub gpa_offset: u64,
    /// As it was given to vfu_create_ioeventfd().
    pub datamatch: u64,
    /// Bytes.
    pub size: u32,
    /// As it was given to vfu_create_ioeventfd().
    pub flags: u32,
    /// The eventfd: the caller's to close; or -1.
    pub fd: c_int,
    /// Not used.
    pub reserved: u32,
}

/// Makes a context for a device that another process has, in order to take it over.
///
/// @path: where that process lets others take over, see vfux_setup_hand_over()
/// @timeout: milliseconds to wait for its answer, more than 0
/// @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
/// @pvt: for the device's use, see vfu_get_private(); may be NULL
/// @dev_type: VFU_DEV_TYPE_PCI
///
/// What takes the place of vfu_create_ctx() in a program that goes on with a device. It
/// sets the device up as ever, up to vfu_realize_ctx(), and calls vfux_take_over() in the
/// place of the first vfu_attach_ctx(). What it needs for that of the other one, it gets
/// from vfux_get_old_region() (the memory of BARs that the client has mapped),
/// vfux_get_old_ioeventfd(), vfux_get_old_irq_count(), vfux_get_old_config_space() and
/// vfux_get_old_fd(). Meanwhile the other process goes on to serve the client.
///
/// Threads: any, at any time.
///
/// Returns the context, which vfu_destroy_ctx() releases (the other process then keeps
/// the device), or NULL and sets errno:
///
///   EINVAL       an unknown flag; path is NULL; timeout is not more than 0
///   ENOTSUP      another type of device
///   ETIMEDOUT    no answer
///   ECONNRESET   the other process has gone
///   EPERM        it runs as another user
///   EPROTO       it is not what it should be
///   EPROTONOSUPPORT   it has another version of this
///   others       as socket() and connect() set it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_create_ctx_taking_over(
    path: *const c_char,
    timeout: c_int,
    flags: c_int,
    pvt: *mut c_void,
    dev_type: RawDevType,
) -> *mut vfu_ctx_t {
    guard::enter_without_context(|| {
        let nonblocking = check(flags, dev_type)?;
        // SAFETY: C's promise for path: NULL or a string.
        let path = Path::new(OsStr::from_bytes(unsafe { cast::string(path) }?));
        Context::create_taking_over(path, nonblocking, duration(timeout)?, Callbacks::new(pvt))
            .map(cast::into_handle)
    })
}

/// Makes a context as vfux_create_ctx_taking_over() does, over a socket that is connected
/// already.
///
/// @fd: a connected UNIX socket of type SOCK_SEQPACKET; the context's, or closed, from
///      then on, unless this fails with EINVAL, EBADF, ENOTSOCK, ENOTSUP or ENOTCONN
/// @timeout: milliseconds to wait for an answer, more than 0
/// @flags: LIBVFIO_USER_FLAG_ATTACH_NB or 0
/// @pvt: for the device's use, see vfu_get_private(); may be NULL
/// @dev_type: VFU_DEV_TYPE_PCI
///
/// Threads: any, at any time.
///
/// Returns the context, or NULL and sets errno as vfux_create_ctx_taking_over() does, or
/// to EBADF, ENOTSOCK, ENOTSUP or ENOTCONN for a descriptor that is no such socket.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_create_ctx_taking_over_fd(
    fd: c_int,
    timeout: c_int,
    flags: c_int,
    pvt: *mut c_void,
    dev_type: RawDevType,
) -> *mut vfu_ctx_t {
    guard::enter_without_context(|| {
        let nonblocking = check(flags, dev_type)?;
        let timeout = duration(timeout)?;
        // SAFETY: C's promise: if this takes it, the descriptor is the context's.
        unsafe { Context::create_taking_over_fd(fd, nonblocking, timeout, Callbacks::new(pvt)) }
            .map(cast::into_handle)
    })
}

/// Says what a region is in the process that is to be taken over from.
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over()
/// @region_idx: the region
/// @region: filled in
///
/// A region over memory has to be set up over region->fd, with the same offset and areas:
/// the client may have mapped it.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h; before
/// vfux_take_over().
///
/// Returns 0, or -1 and sets errno:
///
///   ENOENT   it is not set up there
///   EINVAL   region is NULL; there is no other process (any more)
///   EMFILE   too many open descriptors
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_old_region(
    vfu_ctx: *mut vfu_ctx_t,
    region_idx: u32,
    region: *mut vfux_old_region_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, region NULL or good
    // for writes.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_old_region", |ctx| {
            let place = cast::place(region)?;
            let old = match ctx.old_region(region_idx) {
                Err(Errno::ENOENT) => return Ok(Answer::no(Errno::ENOENT)),
                old => old?,
            };
            let fd = old.memory.map_or(-1, IntoRawFd::into_raw_fd);
            place.write(vfux_old_region_t { size: old.size, offset: old.offset, flags: old.flags, fd });
            Ok(Answer::from(0))
        })
    }
}

/// Says which eventfds there are for writes to a region in the process that is to be
/// taken over from.
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over()
/// @region_idx: the region
/// @n: 0 for the first, and so on
/// @ioeventfd: filled in
///
/// The client's hypervisor may signal them. So the device creates the same ones by
/// vfu_create_ioeventfd(), in the same order, over ioeventfd->fd.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h; before
/// vfux_take_over().
///
/// Returns 0, or -1 and sets errno:
///
///   ENOENT   there are not so many
///   EINVAL   ioeventfd is NULL; there is no other process (any more)
///   EMFILE   too many open descriptors
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_old_ioeventfd(
    vfu_ctx: *mut vfu_ctx_t,
    region_idx: u32,
    n: u32,
    ioeventfd: *mut vfux_old_ioeventfd_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, ioeventfd NULL or good
    // for writes.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_old_ioeventfd", |ctx| {
            let place = cast::place(ioeventfd)?;
            let old = match ctx.old_io_eventfd(region_idx, n as usize) {
                Err(Errno::ENOENT) => return Ok(Answer::no(Errno::ENOENT)),
                old => old?,
            };
            place.write(vfux_old_ioeventfd_t {
                gpa_offset: old.gpa_offset,
                datamatch: old.datamatch,
                size: old.size,
                flags: old.flags,
                fd: old.fd.map_or(-1, IntoRawFd::into_raw_fd),
                reserved: 0,
            });
            Ok(Answer::from(0))
        })
    }
}

/// Says how many interrupts of a type the device has in the process that is to be taken
/// over from.
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over()
/// @type: enum vfu_dev_irq_type
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h; before
/// vfux_take_over().
///
/// Returns the number, or -1 and sets errno:
///
///   EINVAL   no such type; there is no other process (any more)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_old_irq_count(vfu_ctx: *mut vfu_ctx_t, r#type: RawIrqType) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_old_irq_count", |ctx| {
            let count = ctx.old_irqs(IrqType::from_index(r#type)?)?;
            Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
        })
    }
}

/// Copies configuration space of the process that is to be taken over from.
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over()
/// @buf: filled in
/// @count: number of bytes
/// @offset: of the first byte
///
/// As it was when the context was made. vfux_take_over() brings it up to date by itself,
/// all of it.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h; before
/// vfux_take_over().
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   the bytes are not within it; buf is NULL; there is no other process
///            (any more)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_old_config_space(
    vfu_ctx: *mut vfu_ctx_t,
    buf: *mut c_void,
    count: size_t,
    offset: size_t,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, buf NULL or good for
    // writes of count bytes, which nobody else uses.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_old_config_space", |ctx| {
            let buffer = cast::array_mut(buf.cast::<u8>(), count)?;
            ctx.old_config(offset, buffer).map(|()| 0)
        })
    }
}

/// Returns a descriptor that the device of the process that is to be taken over from has
/// named, see vfux_add_hand_over_fd().
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over()
/// @name: its name
///
/// It is a duplicate (of the same open file, with its offset), and the caller's to close.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h; before
/// vfux_take_over().
///
/// Returns the descriptor, or -1 and sets errno:
///
///   ENOENT   there is none of this name
///   EINVAL   name is NULL; there is no other process (any more)
///   EMFILE   too many open descriptors
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_old_fd(vfu_ctx: *mut vfu_ctx_t, name: *const c_char) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, name NULL or a string.
    unsafe {
        guard::enter(vfu_ctx, "vfux_get_old_fd", |ctx| match ctx.old_fd(cast::string(name)?) {
            Err(Errno::ENOENT) => Ok(Answer::no(Errno::ENOENT)),
            fd => fd.map(|fd| Answer::from(fd.into_raw_fd())),
        })
    }
}

/// Takes the device over: from here on it is this process's, and so is its client.
///
/// @vfu_ctx: a context of vfux_create_ctx_taking_over(), set up like the device of the
///           other process, and realized
/// @timeout: milliseconds, more than 0: how long to wait for each of three answers
///
/// The device has to be the same in all that the client has been told: regions with
/// their sizes, flags and areas, over the same memory; numbers of interrupts;
/// capabilities; ioeventfds. It may allow more DMA regions. Configuration space, DMA
/// regions (their register callbacks run), eventfds, the log of writes and the state of
/// the device (load_state, or the migration callbacks: STOP, RESUMING, the data, STOP)
/// come from the other process, and the socket where clients connect, with its path.
///
/// The DMA regions come first, while the other process still serves its client; for those
/// that the client takes away before the rest has come the unregister callbacks run.
///
/// Once this has succeeded the device runs (the migration callback with RUNNING, if the
/// client has it run; handed_over), and the descriptor of vfu_get_poll_fd() is readable if
/// there is something to do.
///
/// If it fails, the other process goes on, and this context can only be destroyed: the
/// unregister callbacks run, the reset callback does not.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h. Not from
/// callbacks.
///
/// Returns 1: a client is attached, vfu_run_ctx() serves it; 0: there is none (yet),
/// vfu_attach_ctx() takes one on; or -1 and sets errno, a line in the log says why:
///
///   EINVAL       the device is not like the one of the other process; there is no
///                other process (any more); timeout is not more than 0;
///                vfu_realize_ctx() has not been called
///   EBUSY        it cannot be had at the moment, see vfux_hand_over(): try again later,
///                with a new context
///   ETIMEDOUT    the other process takes too long
///   ECONNRESET   it has gone
///   EPROTO, EPROTONOSUPPORT   what it says cannot be understood
///   others       as the other process says, the callbacks, or the system
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_take_over(vfu_ctx: *mut vfu_ctx_t, timeout: c_int) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_take_over", |ctx| ctx.take_over(duration(timeout)?).map(c_int::from))
    }
}
