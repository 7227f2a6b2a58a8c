//! A region: what is known of it.

use std::ffi::c_void;
use std::ptr;

use bitflags::bitflags;

use super::bitmap::Name;
use super::file::SharedFile;
use super::guard::Watched;
use super::mapping::Mapping;

bitflags! {
    /// What the device may do with a region.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Prot: u32 {
        /// `PROT_READ`
        const READ = 1;
        /// `PROT_WRITE`
        const WRITE = 1 << 1;
    }
}

/// How the device reaches the memory of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    /// By `DMA_READ` and `DMA_WRITE` messages to the client.
    Message = 0,
    /// Through a mapping of the client's descriptor.
    Mmap = 1,
    /// By `pread` and `pwrite` on the client's descriptor.
    FileIo = 2,
}

/// Names a region until it is removed. A name that outlives its region names
/// nothing: it is never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionId {
    pub(super) handle: u32,
    pub(super) tag: u64,
}

/// `vfu_dma_info_t`: what the register and unregister callbacks are told.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmaInfo {
    /// First address in the client's space, and size in bytes.
    pub iova: libc::iovec,
    /// The region's first byte in this process; null unless it is mapped.
    pub vaddr: *mut c_void,
    /// The whole mapped range; null and 0 unless it is mapped.
    pub mapping: libc::iovec,
    /// Page size of the memory, in bytes.
    pub page_size: usize,
    /// [`Prot`] bits.
    pub prot: u32,
}

impl DmaInfo {
    pub(super) const EMPTY: DmaInfo = DmaInfo {
        iova: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
        vaddr: ptr::null_mut(),
        mapping: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
        page_size: 0,
        prot: 0,
    };
}

/// Protection and access mode in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes(pub(super) u32);

impl Attributes {
    pub(super) fn new(prot: Prot, access: Access) -> Attributes {
        Attributes(prot.bits() | (access as u32) << 2)
    }

    #[inline]
    pub(super) fn prot(self) -> Prot {
        Prot::from_bits_truncate(self.0)
    }

    #[inline]
    pub(super) fn access(self) -> Access {
        match self.0 >> 2 {
            0 => Access::Message,
            1 => Access::Mmap,
            _ => Access::FileIo,
        }
    }
}

/// A region as one thread saw it at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    /// Generation, see `Slot`.
    pub(super) tag: u64,
    pub(super) handle: u32,
    pub(super) attributes: Attributes,
    pub(super) start: u64,
    /// In bytes; never 0.
    pub(super) size: u64,
    pub(super) vaddr: usize,
    /// Its dirty bitmap, if it has one.
    pub(super) bitmap: Name,
}

impl Snapshot {
    /// Where `iova` lies in the region.
    #[inline]
    pub(super) fn offset_of(&self, iova: u64) -> Option<u64> {
        let offset = iova.wrapping_sub(self.start);
        (offset < self.size).then_some(offset)
    }

    /// The last address. No sum wraps: map refuses regions that would.
    #[inline]
    pub(super) fn last(&self) -> u64 {
        self.start.wrapping_add(self.size - 1)
    }

    pub(super) fn id(&self) -> RegionId {
        RegionId { handle: self.handle, tag: self.tag }
    }
}

/// What a region holds on to.
#[derive(Default)]
pub(super) struct Backing {
    /// If it is guarded. Dropped before the mapping.
    pub(super) watched: Option<Watched>,
    pub(super) mapping: Option<Mapping>,
    pub(super) file: Option<SharedFile>,
    /// Where the region starts in the file.
    pub(super) offset: u64,
}
