//! Eventfds that stand for writes to a region.

use std::ffi::c_int;

use libc::size_t;

use super::{guard, vfu_ctx_t};

/// Offers the client an eventfd for writes to a part of a region: a client on
/// KVM has the kernel signal it, without a message.
///
/// @vfu_ctx: the context
/// @region_idx: the region, VFU_PCI_DEV_*_REGION_IDX; set up already
/// @fd: the eventfd; -1: none, the part is only described. Borrowed: the library
///      neither duplicates nor closes it, so it has to stay open as long as the
///      context lives.
/// @gpa_offset: where the part starts in the region
/// @size: of the write, in bytes; 0: any
/// @flags: as in struct kvm_ioeventfd of <linux/kvm.h>
/// @datamatch: value whose write signals, if flags ask for that
/// @shadow_fd: -1: shadow memory is not supported
/// @shadow_offset: not used
///
/// It stays until the context is destroyed; while the region is set up so that the
/// part is not inside, the client is not told of it.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such region, or not set up; the part is not inside the region;
///            shadow_fd is not -1
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_create_ioeventfd(
    vfu_ctx: *mut vfu_ctx_t,
    region_idx: u32,
    fd: c_int,
    gpa_offset: size_t,
    size: u32,
    flags: u32,
    datamatch: u64,
    shadow_fd: c_int,
    shadow_offset: size_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        let call =
            format_args!("vfu_create_ioeventfd: region {region_idx}, {size:#x} bytes at {gpa_offset:#x}");
        guard::enter_saying(vfu_ctx, "vfu_create_ioeventfd", call, |ctx| {
            ctx.create_ioeventfd(region_idx, fd, gpa_offset, size, flags, datamatch, shadow_fd, shadow_offset)
                .map(|()| 0)
        })
    }
}
