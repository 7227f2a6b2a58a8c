//! Moving bytes from and to the client's memory.

use std::ffi::{c_int, c_void};

use libc::size_t;

use super::dma::Entries;
use super::{cast, dma_sg_t, vfu_ctx_t, wait};
use crate::server::{Event, SglAccess, Step};
use crate::transport::{Data, Place};
use crate::wire::Errno;

/// Reads memory of the client.
///
/// @vfu_ctx: the context
/// @sg: the entry to read, all of it
/// @sg_cnt: 1
/// @data: where to put the bytes; the caller's
/// @flags: VFU_SGL_DIRECT_ACCESS: if the client shares the region as a file,
///         take the bytes from there; 0: always ask the client by messages
///
/// Messages wait for the client's answers, without a timeout and with
/// LIBVFIO_USER_FLAG_ATTACH_NB, too. Any signal that is caught ends the wait,
/// inside of callbacks, too; what the client still answers then is dropped, also
/// where the thread is cancelled (pthread_cancel()) outside of callbacks. Do not
/// use messages inside a region access callback: see there.
///
/// With a second socket (twin_socket) a message moves as much as the client allows,
/// 1 MiB at the most; over one socket 128 KiB at the most. There, a longer entry
/// is moved by messages of 64 KiB, two at a time, if the client allows so much.
///
/// Threads: on the thread that uses the context. The functions that any thread may
/// call may run beside it, see the top of this file.
///
/// Returns 0, or -1 and sets errno; data may have been written to then:
///
///   EINVAL     an unknown flag; an entry that is not filled in or whose region
///              has gone; a reply that makes no sense
///   ENOTSUP    sg_cnt is not 1
///   EPERM      the client does not allow it
///   ENOTCONN   no client, or it went
///   EINTR      a signal arrived while waiting for the client
///   EIO        the client's file cannot be read, or is too short, or its memory
///              has gone, see vfux_guard_dma()
///   EPROTO     a reply to something else
///   others     what the client answered
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sgl_read(
    vfu_ctx: *mut vfu_ctx_t,
    sg: *mut dma_sg_t,
    sg_cnt: size_t,
    data: *mut c_void,
    flags: c_int,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, sg an array of
    // sg_cnt, and at data there is room for the entry.
    unsafe { move_bytes(vfu_ctx, "vfu_sgl_read", sg, sg_cnt, Place::Read(data.cast()), flags) }
}

/// Writes memory of the client.
///
/// @vfu_ctx: the context
/// @sg: the entry to write, all of it; translated with PROT_WRITE
/// @sg_cnt: 1
/// @data: the bytes; the caller's
/// @flags: as for vfu_sgl_read()
///
/// As vfu_sgl_read(). Pages written directly are marked as dirty if the client
/// logs that; for those written by messages that is up to the client.
///
/// Threads: on the thread that uses the context. The functions that any thread may
/// call may run beside it, see the top of this file.
///
/// Returns 0, or -1 and sets errno as vfu_sgl_read(); part of the bytes may have
/// been written then.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sgl_write(
    vfu_ctx: *mut vfu_ctx_t,
    sg: *mut dma_sg_t,
    sg_cnt: size_t,
    data: *mut c_void,
    flags: c_int,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, sg an array of
    // sg_cnt, and at data are the entry's bytes.
    unsafe { move_bytes(vfu_ctx, "vfu_sgl_write", sg, sg_cnt, Place::Write(data.cast_const().cast()), flags) }
}

/// # Safety
///
/// The handle is NULL or a live context, sg an array of cnt, and data is NULL or
/// points at as many bytes as its entry is long.
unsafe fn move_bytes(
    vfu_ctx: *mut vfu_ctx_t,
    name: &'static str,
    sg: *mut dma_sg_t,
    cnt: size_t,
    place: Place,
    flags: c_int,
) -> c_int {
    let mut transfer = None;
    let mut step = |ctx: &vfu_ctx_t, event| {
        // More than the first entry is never looked at.
        // SAFETY: the caller's promise.
        let sgl = unsafe { cast::array(sg, cnt.min(1)) }
            .and_then(|sgl| Errno::EINVAL.unless(!place.is_null(), "data is NULL").map(|()| sgl));
        let step = match sgl {
            Ok(sgl) => {
                let len =
                    sgl.first().map_or(0, |entry| usize::try_from(entry.length()).unwrap_or(usize::MAX));
                // SAFETY: the caller's promise.
                let data = unsafe { Data::at(place, len) };
                ctx.sgl_step(SglAccess { sgl, cnt, data, flags }, &mut transfer, event)
            }
            Err(errno) => Step::Fail(errno),
        };
        match step {
            Step::Fail(errno) => {
                let call = format_args!("{name}: {}, flags {flags:#x}", Entries(sg, cnt));
                ctx.log_refusal_once(name, call, errno);
                Step::Return { value: -1, errno: Some(errno) }
            }
            step => step,
        }
    };
    // SAFETY: the caller's promise.
    unsafe { wait::drive(vfu_ctx, name, Event::Start, &mut step) }
}
