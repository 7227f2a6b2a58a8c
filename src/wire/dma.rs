//! DMA: mapping the client's memory, and reaching it by messages.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::limits::{MAX_BITMAP_SIZE, MAX_DATA_XFER_SIZE};
use super::request::{SMALL_ARGSZ, check_argsz};
use super::{Errno, Request, Result, take};

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

impl Request for DmaMap {
    fn check(&self, _data: &[u8]) -> Result<()> {
        check_argsz(self.argsz, size_of::<Self>())?;
        Errno::EINVAL.unless(DmaMapFlags::from_bits(self.flags).is_some(), "an unknown flag")
    }
}

impl DmaMap {
    /// The flags, of which [`check`](Request::check) has found none unknown.
    pub fn flags(&self) -> DmaMapFlags {
        DmaMapFlags::from_bits_truncate(self.flags)
    }

    /// Whether the flags go together with the descriptor that came along, or its
    /// absence: only one that came can be reached, and in one way.
    ///
    /// # Errors
    /// `EINVAL`: they don't.
    pub fn check_fds(&self, count: usize) -> Result<()> {
        let how = self.flags() & (DmaMapFlags::MMAP | DmaMapFlags::FILE_IO);
        let fits = how.is_empty() || count > 0 && how != DmaMapFlags::MMAP | DmaMapFlags::FILE_IO;
        Errno::EINVAL.unless(fits, "the flags do not go together with the descriptor, or its absence")
    }
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

impl Request for DmaUnmap {
    fn check(&self, data: &[u8]) -> Result<()> {
        let DmaUnmap { argsz, addr, size, .. } = *self;
        let is_known = self.is_plain() || self.with_bitmap() || self.is_all() && (addr, size) == (0, 0);
        Errno::EINVAL.unless(is_known, "flags that do not go together, or all with a range")?;
        let in_range = (size_of::<Self>()..=MAX_DATA_XFER_SIZE).contains(&(argsz as usize));
        Errno::EINVAL.unless(in_range, "argsz is out of range")?;
        if self.with_bitmap() {
            let (bitmap, _) = take::<Bitmap>(data)?;
            let whole = bitmap.size.saturating_add(Self::WITH_BITMAP as u64);
            Errno::EINVAL.unless(u64::from(argsz) >= whole, SMALL_ARGSZ)?;
        }
        Ok(())
    }
}

impl DmaUnmap {
    /// Bytes before the bits of a reply with a bitmap.
    pub const WITH_BITMAP: usize = size_of::<DmaUnmap>() + size_of::<Bitmap>();

    fn is_plain(&self) -> bool {
        self.flags == 0
    }

    /// Whether every region is to go.
    pub fn is_all(&self) -> bool {
        self.flags == DmaUnmapFlags::ALL.bits()
    }

    /// Whether a [`Bitmap`] follows, and in the reply its bits.
    pub fn with_bitmap(&self) -> bool {
        self.flags == DmaUnmapFlags::GET_DIRTY_BITMAP.bits()
    }
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

impl Bitmap {
    /// Whether it is that of a range of `length` bytes.
    ///
    /// # Errors
    /// `EINVAL`: it isn't, or such a range has none: [`bitmap_size`].
    pub fn check_range(&self, length: u64) -> Result<()> {
        let is_whole = self.size == bitmap_size(length, self.pgsize)?;
        Errno::EINVAL.unless(is_whole, "the size of the bitmap is not that of the range")
    }
}

/// Bytes of the bitmap that a report of `length` bytes has at this page size,
/// always a multiple of 8.
///
/// # Errors
/// `EINVAL`: the page size is 0 or above the length, or the bitmap larger than a
/// reply may be.
pub fn bitmap_size(length: u64, page_size: u64) -> Result<u64> {
    let has_pages = page_size != 0 && page_size <= length;
    Errno::EINVAL.unless(has_pages, "pages of no size, or larger than the range")?;
    // At most 2^58 words.
    let size = length.div_ceil(page_size).div_ceil(64) * 8;
    Errno::EINVAL.unless(size <= MAX_BITMAP_SIZE, "the bitmap is larger than one may be")?;
    Ok(size)
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

impl DmaAccess {
    /// Whether `payload` is that of the answer to such a write: it repeats address
    /// and count. The specification's table has a count of four bytes, its C
    /// structure one of eight; both are understood.
    pub fn is_echoed(&self, payload: &[u8]) -> bool {
        match take::<DmaAccess>(payload) {
            Ok((echo, rest)) => echo == *self && rest.is_empty(),
            Err(_) => match take::<u64>(payload) {
                Ok((addr, rest)) => {
                    let count = take::<u32>(rest);
                    addr == self.addr
                        && count.is_ok_and(|(n, rest)| rest.is_empty() && u64::from(n) == self.count)
                }
                Err(_) => false,
            },
        }
    }
}
