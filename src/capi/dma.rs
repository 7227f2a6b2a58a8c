//! Looking up the client's memory.
//!
//! Translating, getting and putting an entry takes a few nanoseconds, as long as
//! it would take to set up the guard against panics. So these functions first try
//! the short ways, on which nothing can panic, outside of it: the region that the
//! thread used last, then one look without a lock. Otherwise, and for every error,
//! they go on in functions of their own.

use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{iovec, size_t};

use super::guard::Answer;
use super::{
    cast, dma_sg_t, guard, vfu_ctx_t, vfu_dma_addr_t, vfu_dma_register_cb_t, vfu_dma_unregister_cb_t,
};
use crate::dma::Translation;
use crate::wire::Errno;

/// An element of an array that C code may have anywhere: to refuse one at an odd
/// address takes longer than to fill it in.
#[repr(C, packed)]
struct Unaligned(iovec);

/// Entries that a caller passed, for the log: how many, and of the first, if there
/// is one, which bytes it says it is.
pub(super) struct Entries(pub(super) *mut dma_sg_t, pub(super) size_t);

impl fmt::Display for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.1)?;
        // SAFETY: C's promises for what it passes: NULL or an array of so many.
        match unsafe { cast::array(self.0, self.1.min(1)) } {
            Ok([first, ..]) => write!(f, ", the first of {first}"),
            _ => Ok(()),
        }
    }
}

/// Says that the device uses DMA. Without this call the library disregards what
/// memory the client offers.
///
/// @vfu_ctx: the context
/// @max_regions: how many DMA regions the client may have at a time;
///               LIBVFIO_USER_MAX_DMA_REGIONS is a good value
/// @dma_register: told of each region that the client adds; may be NULL
/// @dma_unregister: told of each region that goes; may be NULL, but a device that
///                  uses vfu_sgl_get() needs it: its pointers into a region are
///                  good until then (it is warned once)
///
/// Calling it again replaces all three.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EEXIST   set up already, and there are regions
///   EINVAL   the client that is attached has offered memory before, which has been
///            disregarded
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_device_dma(
    vfu_ctx: *mut vfu_ctx_t,
    max_regions: size_t,
    dma_register: vfu_dma_register_cb_t,
    dma_unregister: vfu_dma_unregister_cb_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_setup_device_dma", |ctx| {
            ctx.setup_dma(max_regions, dma_unregister.is_some())?;
            ctx.device().dma_register.set(dma_register);
            ctx.device().dma_unregister.set(dma_unregister);
            Ok(0)
        })
    }
}

/// Returns the size of a dma_sg_t in bytes.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn dma_sg_size() -> size_t {
    size_of::<dma_sg_t>()
}

/// Translates a range of the client's memory: finds the parts of DMA regions
/// that it consists of. This is the first step of every DMA.
///
/// @vfu_ctx: the context
/// @dma_addr: start of the range
/// @len: its length in bytes
/// @sgl: where to put the entries, one for each region in the range, in order;
///       the caller's
/// @max_nr_sgs: how many entries sgl has room for
/// @prot: what the device is going to do: PROT_READ, PROT_WRITE or both, of
///        <sys/mman.h>
///
/// May be called from any thread while the device is not quiesced. An entry is
/// good until the unregister callback of its region has returned; used later, it
/// makes the functions that are given it fail.
///
/// ENOENT and EACCES are answers, which a guest brings about at will: they are not
/// logged.
///
/// Returns the number of entries filled in, 0 if len is 0. If n entries are
/// needed and there is room for less, the first max_nr_sgs of them are filled
/// in, and the function returns -n - 1 and sets errno to 0. Otherwise it returns
/// -1 and sets errno:
///
///   ENOENT   part of the range is in no DMA region
///   EACCES   the client doesn't allow what prot says
///   EINVAL   vfu_setup_device_dma() has not been called; sgl is NULL
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_addr_to_sgl(
    vfu_ctx: *mut vfu_ctx_t,
    dma_addr: vfu_dma_addr_t,
    len: size_t,
    sgl: *mut dma_sg_t,
    max_nr_sgs: size_t,
    prot: c_int,
) -> c_int {
    // What else there may be in it is of no interest. (So it need not be kept.)
    let prot = prot & (libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: C's promises: the handle is NULL or a live context, sgl an array
    // of max_nr_sgs that is the caller's alone.
    unsafe {
        if max_nr_sgs > 0
            && len > 0
            && !sgl.is_null()
            && let Ok(ctx) = cast::context(vfu_ctx)
        {
            if let Some(entry) = ctx.recent_entry(dma_addr.addr() as u64, len as u64, prot) {
                sgl.write(entry);
                return 1;
            }
            return addr_to_one(ctx, dma_addr, len, sgl, max_nr_sgs, prot);
        }
        addr_to_sgl(vfu_ctx, dma_addr, len, sgl, max_nr_sgs, prot)
    }
}

/// The same in another region than the one used last, without the guard.
///
/// # Safety
///
/// As C promises for that, and nothing is NULL or 0.
#[inline(never)]
unsafe extern "C-unwind" fn addr_to_one(
    ctx: &vfu_ctx_t,
    dma_addr: vfu_dma_addr_t,
    len: size_t,
    sgl: *mut dma_sg_t,
    max_nr_sgs: size_t,
    prot: c_int,
) -> c_int {
    // SAFETY: the caller's promises.
    unsafe {
        match ctx.one_entry(dma_addr.addr() as u64, len as u64, prot) {
            Some(entry) => {
                sgl.write(entry);
                1
            }
            None => addr_to_several(ctx, dma_addr, len, sgl, max_nr_sgs, prot),
        }
    }
}

/// The same in several regions, without the guard.
///
/// # Safety
///
/// As for [`addr_to_one`].
#[inline(never)]
unsafe extern "C-unwind" fn addr_to_several(
    ctx: &vfu_ctx_t,
    dma_addr: vfu_dma_addr_t,
    len: size_t,
    sgl: *mut dma_sg_t,
    max_nr_sgs: size_t,
    prot: c_int,
) -> c_int {
    // SAFETY: the caller's promises; the numbers are below max_nr_sgs.
    unsafe {
        let put = |number, entry| sgl.add(number).write(entry);
        if let Some(count) = ctx.entries_at_once(dma_addr.addr() as u64, len as u64, prot, max_nr_sgs, put)
            && let Ok(count) = c_int::try_from(count)
        {
            return count;
        }
        addr_to_sgl(ptr::from_ref(ctx).cast_mut(), dma_addr, len, sgl, max_nr_sgs, prot)
    }
}

/// The whole of [`vfu_addr_to_sgl`].
///
/// # Safety
///
/// As C promises for that.
#[inline(never)]
unsafe extern "C-unwind" fn addr_to_sgl(
    vfu_ctx: *mut vfu_ctx_t,
    dma_addr: vfu_dma_addr_t,
    len: size_t,
    sgl: *mut dma_sg_t,
    max_nr_sgs: size_t,
    prot: c_int,
) -> c_int {
    let room = max_nr_sgs.min(isize::MAX as usize / size_of::<dma_sg_t>());
    // SAFETY: C's promises: the handle is NULL or a live context, sgl an array
    // of max_nr_sgs that is the caller's alone.
    unsafe {
        let call = format_args!("vfu_addr_to_sgl: {len:#x} bytes at {:#x}, prot {prot}", dma_addr.addr());
        guard::enter_lean(vfu_ctx, "vfu_addr_to_sgl", call, |ctx| {
            let sgl = cast::array_mut(sgl.cast::<MaybeUninit<dma_sg_t>>(), room)?;
            Ok(match ctx.addr_to_sgl(dma_addr.addr() as u64, len as u64, sgl, prot) {
                Ok(Translation::Filled(count)) => c_int::try_from(count).unwrap_or(c_int::MAX).into(),
                Ok(Translation::TooSmall(needed)) => {
                    let needed = c_int::try_from(needed).unwrap_or(c_int::MAX);
                    Answer { value: -1 - needed, errno: Some(0) }
                }
                // That is how a device learns what a guest may have it do.
                Err(errno @ (Errno::ENOENT | Errno::EACCES)) => Answer::no(errno),
                Err(errno) => return Err(errno),
            })
        })
    }
}

/// Says whether vfu_sgl_get() can make an entry accessible as memory.
///
/// @vfu_ctx: the context
/// @sg: the entry
///
/// Regions that the client shares as a file to map are; the others can be
/// reached with vfu_sgl_read() and vfu_sgl_write() only. May be called from any
/// thread while the device is not quiesced.
///
/// Returns true or false; false, too, for an entry whose region has gone.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sg_is_mappable(vfu_ctx: *mut vfu_ctx_t, sg: *mut dma_sg_t) -> bool {
    // SAFETY: C's promises: the handle is NULL or a live context, sg NULL or an entry.
    unsafe {
        let call = format_args!("vfu_sg_is_mappable");
        guard::enter_lean(vfu_ctx, "vfu_sg_is_mappable", call, |ctx| {
            Ok(ctx.sg_is_mappable(cast::reference(sg)?))
        })
    }
}

/// Makes entries accessible as memory.
///
/// @vfu_ctx: the context
/// @sgl: entries that vfu_addr_to_sgl() filled in
/// @iov: filled in with the memory of each entry; the caller's
/// @cnt: number of entries
/// @flags: 0
///
/// The memory is the client's own. It may be used until vfu_sgl_put(), which has
/// to follow, and at most until the unregister callback of its region returns.
/// The client, and with it the guest, can change it at any time: copy what is to be
/// checked, then check the copy. And it can take it away: an access to a page that
/// its file has lost (truncated, or a hole that a full file system has no room for)
/// ends the process by SIGBUS, and all contexts with it. Who serves clients that are
/// not trusted so far calls vfux_guard_dma() or vfux_setup_dma_policy(), see
/// libvfio-user-ext.h, or uses vfu_sgl_read() and vfu_sgl_write() by messages.
/// These with VFU_SGL_DIRECT_ACCESS touch the same memory.
///
/// May be called from any thread while the device is not quiesced.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   an entry that vfu_addr_to_sgl() has not filled in, or whose region
///            has gone; flags is not 0; vfu_setup_device_dma() was not called
///   EFAULT   an entry that is not mappable, see vfu_sg_is_mappable(): an answer, which
///            is not logged
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sgl_get(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
    cnt: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, sgl and iov
    // arrays of cnt.
    unsafe {
        if cnt != 1 || flags != 0 {
            return sgl_get_any(vfu_ctx, sgl, iov, cnt, flags);
        }
        if let Ok(ctx) = cast::context(vfu_ctx)
            && !iov.is_null()
            && let Ok(entry) = cast::reference(sgl)
            && let Some(memory) = ctx.recent_memory_of(entry)
        {
            iov.write_unaligned(memory);
            return 0;
        }
        sgl_get_one(vfu_ctx, sgl, iov)
    }
}

/// The same for one entry of whatever region. (Of few arguments, so that few have to
/// be kept.)
///
/// # Safety
///
/// As C promises for that.
#[inline(never)]
unsafe extern "C-unwind" fn sgl_get_one(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
) -> c_int {
    // SAFETY: as above.
    unsafe { sgl_get_any(vfu_ctx, sgl, iov, 1, 0) }
}

/// The same for any number of entries of whatever regions, without the guard.
///
/// # Safety
///
/// As C promises for that.
#[inline(never)]
unsafe extern "C-unwind" fn sgl_get_any(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
    cnt: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        if flags == 0
            && let Ok(ctx) = cast::context(vfu_ctx)
            && let Ok(entries) = cast::array(sgl, cnt)
            && let Ok(iov) = cast::array_mut(iov.cast::<MaybeUninit<Unaligned>>(), cnt)
            && entries.iter().zip(iov).all(|(entry, iov)| match ctx.memory_of(entry) {
                Some(memory) => {
                    iov.write(Unaligned(memory));
                    true
                }
                None => false,
            })
        {
            return 0;
        }
        sgl_get(vfu_ctx, sgl, iov, cnt, flags)
    }
}

/// The whole of [`vfu_sgl_get`].
///
/// # Safety
///
/// As C promises for that.
#[inline(never)]
unsafe extern "C-unwind" fn sgl_get(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
    cnt: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let call = format_args!("vfu_sgl_get: {}, flags {flags:#x}", Entries(sgl, cnt));
        guard::enter_lean(vfu_ctx, "vfu_sgl_get", call, |ctx| {
            let sgl = cast::array(sgl, cnt)?;
            let iov = cast::array_mut(iov.cast::<MaybeUninit<Unaligned>>(), cnt)?;
            let put = |number: usize, memory| {
                if let Some(iov) = iov.get_mut(number) {
                    iov.write(Unaligned(memory));
                }
            };
            Ok(match ctx.sgl_get(sgl, flags, put) {
                Ok(()) => 0.into(),
                // That is how a device learns that messages are needed.
                Err(errno @ Errno::EFAULT) => Answer::no(errno),
                Err(errno) => return Err(errno),
            })
        })
    }
}

/// Ends the use of memory from vfu_sgl_get(), and marks the pages of entries
/// that were translated for writing as dirty if the client logs that. (Memory
/// without a descriptor is never dirty here: the client itself writes there.)
///
/// @vfu_ctx: the context
/// @sgl: the entries
/// @iov: what vfu_sgl_get() filled in
/// @cnt: number of entries
///
/// May be called from any thread while the device is not quiesced. Entries whose
/// region has gone are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sgl_put(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
    cnt: size_t,
) {
    // SAFETY: C's promises: the handle is NULL or a live context, sgl an array of cnt.
    unsafe {
        if !needs_no_marks(vfu_ctx, sgl, cnt) {
            sgl_put(vfu_ctx, sgl, iov, cnt);
        }
    }
}

/// The short way of [`vfu_sgl_put`] and [`vfu_sgl_mark_dirty`]: whether there is
/// nothing to mark (any more).
///
/// # Safety
///
/// As for [`mark`].
#[inline(always)]
unsafe fn needs_no_marks(vfu_ctx: *mut vfu_ctx_t, sgl: *mut dma_sg_t, cnt: size_t) -> bool {
    // SAFETY: the caller's promises.
    unsafe {
        match cast::context(vfu_ctx) {
            Ok(ctx) if !sgl.is_null() => {
                ctx.needs_no_marks(|| if cnt == 1 { cast::reference(sgl).ok() } else { None })
            }
            _ => false,
        }
    }
}

/// [`vfu_sgl_put`] with marks to be made, with its arguments where they are.
///
/// # Safety
///
/// As for [`mark`].
#[inline(never)]
unsafe extern "C-unwind" fn sgl_put(
    vfu_ctx: *mut vfu_ctx_t,
    sgl: *mut dma_sg_t,
    iov: *mut iovec,
    cnt: size_t,
) {
    // The addresses say nothing that the entries do not.
    let _ = iov;
    // SAFETY: the caller's promises.
    unsafe { mark(vfu_ctx, "vfu_sgl_put", sgl, cnt) };
}

/// Makes the marks of [`vfu_sgl_put`] and [`vfu_sgl_mark_dirty`], without the
/// guard if it can be.
///
/// # Safety
///
/// The handle is NULL or a live context, sgl an array of cnt.
#[inline(never)]
unsafe fn mark(vfu_ctx: *mut vfu_ctx_t, name: &'static str, sgl: *mut dma_sg_t, cnt: size_t) {
    // SAFETY: the caller's promises.
    unsafe {
        if let Ok(ctx) = cast::context(vfu_ctx)
            && let Ok(entries) = cast::array(sgl, cnt)
            && ctx.try_mark_dirty(entries)
        {
            return;
        }
        mark_guarded(vfu_ctx, name, sgl, cnt);
    }
}

/// The whole of [`mark`].
///
/// # Safety
///
/// As for that.
#[inline(never)]
unsafe fn mark_guarded(vfu_ctx: *mut vfu_ctx_t, name: &'static str, sgl: *mut dma_sg_t, cnt: size_t) {
    // SAFETY: the caller's promises.
    unsafe {
        guard::enter_lean(vfu_ctx, name, format_args!("{name}: {}", Entries(sgl, cnt)), |ctx| {
            ctx.sgl_mark_dirty(cast::array(sgl, cnt)?);
            Ok(())
        })
    }
}

/// Marks the pages of entries that were translated for writing as dirty, if the
/// client logs that, and leaves the memory in use: for a device that keeps
/// writing to memory from vfu_sgl_get(). To be called after writing.
///
/// @vfu_ctx: the context
/// @sgl: the entries
/// @cnt: number of entries
///
/// May be called from any thread while the device is not quiesced. Entries whose
/// region has gone are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_sgl_mark_dirty(vfu_ctx: *mut vfu_ctx_t, sgl: *mut dma_sg_t, cnt: size_t) {
    // SAFETY: C's promises: the handle is NULL or a live context, sgl an array of cnt.
    unsafe {
        if !needs_no_marks(vfu_ctx, sgl, cnt) {
            mark(vfu_ctx, "vfu_sgl_mark_dirty", sgl, cnt);
        }
    }
}
