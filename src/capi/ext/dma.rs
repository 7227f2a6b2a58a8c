//! How the client's memory is reached, and refusing it.

use std::ffi::c_int;

use crate::capi::{guard, vfu_ctx_t, vfu_dma_addr_t};
use crate::dma::Access;
use crate::wire::Errno;

/// The greatest errno that the kernel returns.
const MAX_ERRNO: c_int = 4095;

/// How the device reaches memory of the client's.
#[repr(C)]
pub enum vfux_dma_access {
    /// By messages: the client gave no descriptor. vfu_sgl_read() and
    /// vfu_sgl_write() ask the client each time; vfu_sgl_get() fails with EFAULT.
    VFUX_DMA_ACCESS_MESSAGE = 0,
    /// It is mapped: vfu_sgl_get() works.
    VFUX_DMA_ACCESS_MMAP = 1,
    /// By pread() and pwrite() on the client's descriptor, as the client asked:
    /// vfu_sgl_read() and vfu_sgl_write() do so; vfu_sgl_get() fails with EFAULT.
    VFUX_DMA_ACCESS_FILE_IO = 2,
}

/// Says how the device reaches the DMA region around an address.
///
/// @vfu_ctx: the context
/// @dma_addr: an address of the client's; in the callbacks of
///            vfu_setup_device_dma(), info->iova.iov_base
///
/// It is the same for all of a region, and does not change while the region is
/// there.
///
/// May be called from any thread while the device is not quiesced, and in
/// callbacks, those included that register and unregister the region. It takes
/// no lock unless regions come or go meanwhile.
///
/// Returns enum vfux_dma_access, or -1 and sets errno:
///
///   ENOENT   the address is in no DMA region
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_get_dma_access(
    vfu_ctx: *mut vfu_ctx_t,
    dma_addr: vfu_dma_addr_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfux_get_dma_access", |ctx| {
            let access = match ctx.dma_access(dma_addr.addr() as u64)? {
                Access::Message => vfux_dma_access::VFUX_DMA_ACCESS_MESSAGE,
                Access::Mmap => vfux_dma_access::VFUX_DMA_ACCESS_MMAP,
                Access::FileIo => vfux_dma_access::VFUX_DMA_ACCESS_FILE_IO,
            };
            Ok(access as c_int)
        })
    }
}

/// Refuses the DMA region that the register callback is being told of: once the
/// callback has returned, the region goes, and the client's request fails.
///
/// @vfu_ctx: the context
/// @err: the errno that the client is told
///
/// For a device that could not work with the region: one that is not mapped, say,
/// where the device has to have pointers (see vfux_get_dma_access()). Clients
/// take it for an error of the mapping: QEMU does not start, or does not add the
/// memory.
///
/// Until the callback returns the region can be used, and vfu_addr_to_sgl() finds
/// it, for other threads, too. Afterwards it is as if it had never been: info is
/// no longer good, its entries are stale, pointers into it lead nowhere, and the
/// unregister callback is not called. If this is called more than once, the last
/// err counts; it cannot be taken back.
///
/// Threads: on the thread that uses the context, and there in the register
/// callback of vfu_setup_device_dma() only.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no register callback of the context is running; err is not from 1
///            to 4095
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_refuse_dma_region(vfu_ctx: *mut vfu_ctx_t, err: c_int) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfux_refuse_dma_region", |ctx| {
            Errno::EINVAL.unless((1..=MAX_ERRNO).contains(&err), "err is not from 1 to 4095")?;
            let refused = ctx.device().refuse_dma_region(Errno::new(err));
            Errno::EINVAL.unless(refused, "no register callback is running")?;
            Ok(0)
        })
    }
}
