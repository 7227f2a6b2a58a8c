//! Memory that the client takes away while it is used.

use std::ffi::c_int;

use crate::capi::{cast, dma_sg_t, guard, vfu_ctx_t, vfu_dma_info_t};
use crate::dma::install_guard;
use crate::wire::Errno;

/// Policy of vfux_setup_dma_policy(): any memory, as without the call.
pub const VFUX_DMA_POLICY_ANY: c_int = 0;
/// Policy of vfux_setup_dma_policy(): only memory that the client cannot take away.
pub const VFUX_DMA_POLICY_LASTING: c_int = 1;

/// Chooses which memory of the client is mapped.
///
/// @vfu_ctx: the context
/// @policy: VFUX_DMA_POLICY_ANY or VFUX_DMA_POLICY_LASTING
///
/// A client that truncates the file behind a DMA region takes memory away that the
/// device may be using: the next access ends the process by SIGBUS. With
/// VFUX_DMA_POLICY_LASTING, DMA_MAP takes only:
///
/// - a memfd sealed with F_SEAL_SHRINK; QEMU's memory-backend-memfd is, unless told
///   otherwise;
/// - huge pages: files on hugetlbfs, and memfds made with MFD_HUGETLB;
/// - device DAX (/dev/dax*).
///
/// Everything else that is to be mapped is refused with EPERM, and a line in the
/// log says so. Nothing is asked of the client's file system for that. Regions
/// reached by messages or by file I/O are taken as ever: there, memory that has gone
/// is an error.
///
/// Of these, huge pages can still go: without the seal their owner can truncate the
/// file, and with it punch a hole and leave no huge page that could fill it. A
/// program whose clients it does not trust with that calls vfux_guard_dma(), too.
///
/// What no policy can help against: that the machine has no memory left for a page
/// that is touched for the first time, where it is set up to refuse rather than to
/// overcommit (vm.overcommit_memory is 2). vfux_guard_dma() does.
///
/// To be called before the client attaches.
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such policy
///   EEXIST   there are DMA regions
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_dma_policy(vfu_ctx: *mut vfu_ctx_t, policy: c_int) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_setup_dma_policy", |ctx| {
            let lasting = match policy {
                VFUX_DMA_POLICY_ANY => false,
                VFUX_DMA_POLICY_LASTING => true,
                _ => return Err(Errno::EINVAL.because("no such policy")),
            };
            ctx.set_lasting_memory_only(lasting).map(|()| 0)
        })
    }
}

/// Installs a handler of SIGBUS, for the whole process and for good, that keeps
/// memory which a client takes away from ending the process.
///
/// DMA regions of all contexts that are mapped from then on are guarded: call it
/// before clients attach. When an access to one faults, because its client has
/// truncated the file, or the file system has no room for a page that is touched
/// for the first time, or a disk cannot be read:
///
/// - Zeroed memory takes the place of the page (a huge page as a whole), and of all
///   of the region from the fourth page on. The client does not share it; what the
///   device writes to it takes up this process's memory until the region goes.
/// - The access goes on, and reads zeroes. vfu_sgl_read() and vfu_sgl_write() with
///   VFU_SGL_DIRECT_ACCESS fail with EIO, then and later. A device that uses
///   vfu_sgl_get() asks vfux_sg_is_lost() when it has used the memory, before it
///   acts on what it has read or tells the guest that it is done.
/// - The context's poll descriptor becomes readable, and the next vfu_run_ctx() (one
///   that is blocked: after the next request) says so in a line at LOG_ERR, once for
///   a region, and calls the function of vfux_setup_dma_lost_cb().
/// - No other context notices anything.
///
/// A system call that is given such memory (read(), io_uring, ...) does not raise
/// the signal, but fails with EFAULT: that is no loss to the library.
///
/// Every other SIGBUS goes to the handler that was there before, with its mask and
/// flags, or does what it would have done without one: memory that the machine has
/// lost (BUS_MCEERR_AR, BUS_MCEERR_AO), kill(), and faults outside of DMA regions.
/// A program that handles SIGBUS itself installs its handler first; one that it
/// installs later takes the place of the guard, unless it passes on to it what is
/// not its own. Once called, the library must not be unloaded (dlclose()).
///
/// A handler beside an unmap is safe: the library does not give a region's
/// addresses back while one works on it. Memory that the program itself has put
/// over a region's addresses is not told apart from the region.
///
/// It belongs to no context, and so has no log.
///
/// Threads: any, at any time. Calling it again does nothing.
///
/// Returns 0, or -1 and sets errno:
///
///   others   as sigaction() sets it
#[unsafe(no_mangle)]
pub extern "C-unwind" fn vfux_guard_dma() -> c_int {
    guard::enter_without_context(|| install_guard().map(|()| 0))
}

/// Told of a DMA region that has lost memory, see vfux_guard_dma().
///
/// @vfu_ctx: the context
/// @info: the region; the library's, valid until its unregister callback returns
/// @offset: where that was noticed first: bytes from the region's start
///
/// Called once for a region, by vfu_run_ctx() or before its unregister callback; and
/// once more in a process that has taken the device over (vfux_take_over()).
/// The device is not quiesced, and the region stays until the client unmaps it. A
/// device would stop what relies on it: fail the queue that lies there, set its
/// error bit, interrupt the guest. May call what a region callback may.
pub type vfux_dma_lost_cb_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, info: *mut vfu_dma_info_t, offset: u64)>;

/// Chooses who is told of DMA regions that have lost memory.
///
/// @vfu_ctx: the context
/// @dma_lost: told of each; NULL: nobody is
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno: EINVAL if vfu_ctx is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_dma_lost_cb(
    vfu_ctx: *mut vfu_ctx_t,
    dma_lost: vfux_dma_lost_cb_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_setup_dma_lost_cb", |ctx| {
            ctx.device().dma_lost.set(dma_lost);
            Ok(0)
        })
    }
}

/// Says whether the region of an entry has lost memory, see vfux_guard_dma(): what
/// was read there before may be zeroes, and what was written there lost.
///
/// @vfu_ctx: the context
/// @sg: the entry
///
/// May be called from any thread while the device is not quiesced. It takes no lock
/// and never waits.
///
/// Returns true if it has; false also for an entry whose region is not there.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_sg_is_lost(vfu_ctx: *mut vfu_ctx_t, sg: *const dma_sg_t) -> bool {
    // SAFETY: C's promises: the handle is NULL or a live context, sg NULL or an entry.
    unsafe {
        let call = format_args!("vfux_sg_is_lost");
        guard::enter_lean(vfu_ctx, "vfux_sg_is_lost", call, |ctx| Ok(ctx.sg_is_lost(cast::reference(sg)?)))
    }
}
