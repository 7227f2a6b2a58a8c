//! Regions of the device.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use libc::{iovec, size_t};

use super::{cast, guard, vfu_ctx_t, vfu_region_access_cb_t};
use crate::memory;
use crate::server::{Memory, RegionConfig, RegionFlags};
use crate::wire::{Errno, Result, SparseArea};

/// Sets up a region of the device. A region that is not set up has size 0 and
/// cannot be accessed.
///
/// @vfu_ctx: the context
/// @region_idx: which region, VFU_PCI_DEV_*_REGION_IDX
/// @size: in bytes. A BAR's is a power of two, at least 16 (memory) or 4 (I/O);
///        0 clears the region. That of the configuration space is ignored after
///        vfu_pci_init().
/// @region_access: reads and writes the region; may be NULL, then accesses fail
///                 with EINVAL. For the configuration space: accesses to what
///                 the library does not handle itself
/// @flags: VFU_REGION_FLAG_*; READ or WRITE at least, both for the configuration
///         space. What the client is not allowed to do is answered EPERM.
/// @mmap_areas: parts of the region that the client may map, each an offset in
///              the region (iov_base) and a length in bytes (iov_len); copied.
///              NULL: all of the region, if there is a descriptor
/// @nr_mmap_areas: number of mmap_areas, 0 for NULL
/// @fd: descriptor of a file that holds the region, which the client maps; -1:
///      none. Borrowed: the library neither duplicates nor closes it, so it has
///      to stay open as long as the context lives.
/// @offset: where in the file the region starts, in bytes
///
/// Setting up a region again replaces all of the above. After vfu_realize_ctx() the
/// BAR's register, or that of the ROM, follows: it keeps the address that a driver
/// gave it as far as that is one for the new region. A client that has asked for
/// the region already does not learn of it.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno; nothing has changed then:
///
///   EINVAL   no such region; an unknown flag, or neither READ nor WRITE;
///            VFU_REGION_FLAG_ALWAYS_CB without a callback; areas without a
///            descriptor, without a number, or beyond the region; a size that a
///            BAR cannot have; a 64-bit BAR that is odd or whose upper half is in
///            use; flags that the configuration space cannot have
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_region(
    vfu_ctx: *mut vfu_ctx_t,
    region_idx: c_int,
    size: size_t,
    region_access: vfu_region_access_cb_t,
    flags: c_int,
    mmap_areas: *mut iovec,
    nr_mmap_areas: u32,
    fd: c_int,
    offset: u64,
) -> c_int {
    // SAFETY: C's promises: the handle is NULL or a live context, mmap_areas
    // NULL or an array of nr_mmap_areas.
    unsafe {
        let call = format_args!("vfu_setup_region: region {region_idx}, size {size:#x}, flags {flags:#x}");
        guard::enter_saying(vfu_ctx, "vfu_setup_region", call, |ctx| {
            let agree = mmap_areas.is_null() == (nr_mmap_areas == 0);
            Errno::EINVAL.unless(agree, "mmap_areas and nr_mmap_areas contradict each other")?;
            let no_region = |_| Errno::EINVAL.because("there is no such region");
            let index = u32::try_from(region_idx).map_err(no_region)?;
            let flags = u32::try_from(flags).ok().and_then(RegionFlags::from_bits);
            let areas = sparse_areas(cast::array(mmap_areas, nr_mmap_areas as usize)?)?;
            // It stays open as long as the context lives: C's promise.
            let memory = (fd != -1).then(|| Memory::Borrowed(BorrowedFd::borrow_raw(fd)));
            let config = RegionConfig {
                size: size as u64,
                has_callback: region_access.is_some(),
                flags: flags.ok_or_else(|| Errno::EINVAL.because("an unknown flag"))?,
                memory,
                areas: &areas,
                offset,
            };
            ctx.setup_region(index, config)?;
            ctx.device().regions.get(index as usize).ok_or(Errno::EINVAL)?.set(region_access);
            Ok(0)
        })
    }
}

fn sparse_areas(areas: &[iovec]) -> Result<Box<[SparseArea]>> {
    let area = |area: &iovec| SparseArea { offset: area.iov_base.addr() as u64, size: area.iov_len as u64 };
    memory::collect(areas.iter().map(area))
}
