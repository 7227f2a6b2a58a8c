//! DMA: mapping the client's memory, and reaching it by messages.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Flags of [`DmaMap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaMapFlags: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The descriptor is to be mapped.
        const MMAP = 1 << 2;
        /// The descriptor is to be reached by pread and pwrite.
        const FILE_IO = 1 << 3;
    }

    /// Flags of [`DmaUnmap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaUnmapFlags: u32 {
        /// `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`: a [`Bitmap`] header follows.
        const GET_DIRTY_BITMAP = 1;
        /// `VFIO_DMA_UNMAP_FLAG_ALL`: remove every region.
        const ALL = 2;
    }
}

/// Request of `VFIO_USER_DMA_MAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaMap {
    /// Size of the request.
    pub argsz: u32,
    /// [`DmaMapFlags`].
    pub flags: u32,
    /// Where the region starts in the descriptor that came along.
    pub offset: u64,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
}

/// Request, and start of the reply, of `VFIO_USER_DMA_UNMAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaUnmap {
    /// Size of the request, and of the bitmap to come.
    pub argsz: u32,
    /// [`DmaUnmapFlags`].
    pub flags: u32,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
}

/// `struct vfio_bitmap` as vfio-user sends it: the bits follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Bitmap {
    /// Bytes that one bit stands for.
    pub pgsize: u64,
    /// Size of the bitmap in bytes.
    pub size: u64,
}

/// Fixed part of `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, requests and
/// replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaAccess {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub count: u64,
}
