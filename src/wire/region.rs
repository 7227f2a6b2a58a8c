//! Regions: information, access, and the descriptors behind them.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::limits::MAX_DATA_XFER_SIZE;
use super::request::check_argsz;
use super::{Command, Errno, Header, MessageType, Request, Result};

bitflags! {
    /// Flags of [`RegionInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionInfoFlags: u32 {
        /// `VFIO_REGION_INFO_FLAG_READ`
        const READ = 1;
        /// `VFIO_REGION_INFO_FLAG_WRITE`
        const WRITE = 2;
        /// `VFIO_REGION_INFO_FLAG_MMAP`: a descriptor comes with the reply.
        const MMAP = 4;
        /// `VFIO_REGION_INFO_FLAG_CAPS`: a capability list follows.
        const CAPS = 8;
    }
}

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// Room for the reply; in the reply, the room that a full one takes.
    pub argsz: u32,
    /// [`RegionInfoFlags`].
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// Offset of the first capability in the reply, or 0.
    pub cap_offset: u32,
    /// Size of the region in bytes.
    pub size: u64,
    /// Where the region starts in the descriptor sent with the reply.
    pub offset: u64,
}

impl Request for RegionInfo {
    fn check(&self, _data: &[u8]) -> Result<()> {
        check_argsz(self.argsz, size_of::<Self>())
    }
}

/// `struct vfio_info_cap_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CapHeader {
    /// Which capability.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Offset of the next one, or 0.
    pub next: u32,
}

impl CapHeader {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`
    pub const SPARSE_MMAP: u16 = 1;
}

/// `struct vfio_region_info_cap_sparse_mmap` without its areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SparseMmap {
    /// Id [`CapHeader::SPARSE_MMAP`].
    pub header: CapHeader,
    /// How many areas follow.
    pub nr_areas: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct vfio_region_sparse_mmap_area`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SparseArea {
    /// Offset from the start of the region in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Fixed part of `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset into the region in bytes.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

impl Request for RegionAccess {
    #[inline(always)]
    fn check(&self, _data: &[u8]) -> Result<()> {
        Errno::EINVAL.unless(self.count as usize <= MAX_DATA_XFER_SIZE, "more than max_data_xfer_size")?;
        let end = self.offset.checked_add(u64::from(self.count));
        // No region reaches as far as the last byte that an offset can name.
        Errno::EINVAL.unless(end.is_some() && self.offset != u64::MAX, Self::BEYOND)
    }
}

impl RegionAccess {
    /// The rule that an access to what is no part of a region breaks.
    pub const BEYOND: &str = "it ends beyond the region";

    /// Whether a write comes with the `data` bytes that it says.
    ///
    /// # Errors
    /// `EINVAL`: it comes with more, or fewer.
    #[inline(always)]
    pub fn check_written(&self, data: usize) -> Result<()> {
        Errno::EINVAL.unless(data == self.count as usize, "count is not the length of the data")
    }

    /// The offset behind the access, which [`check`](Request::check) has found to
    /// be there.
    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.offset.wrapping_add(u64::from(self.count))
    }
}

/// A whole `VFIO_USER_REGION_READ` or `VFIO_USER_REGION_WRITE` that is short, or its
/// reply: as much of it as its header says.
///
/// Devices get the data where they are, and may take them for numbers of 8 bytes, which
/// i686 by itself would align to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct ShortAccess {
    /// Header of the message.
    pub header: Header,
    /// What is accessed.
    pub access: RegionAccess,
    /// The bytes that are written or were read.
    pub data: [u8; 32],
}

impl ShortAccess {
    /// Bytes of the message before the data.
    pub const FIXED: usize = size_of::<Header>() + size_of::<RegionAccess>();

    /// Whether this is such a command, its size right, and some data.
    #[inline(always)]
    pub fn is_command(&self) -> bool {
        let Header { cmd, msg_size, .. } = self.header;
        let (size, count) = (msg_size as usize, self.access.count as usize);
        let is_right = match cmd {
            READ => size == Self::FIXED,
            WRITE => size == Self::FIXED.saturating_add(count),
            _ => false,
        };
        let is_short = (1..=self.data.len()).contains(&count);
        is_right && is_short && self.header.message_type() == Some(MessageType::Command)
    }

    /// Whether it is the command to write.
    #[inline(always)]
    pub fn is_write(&self) -> bool {
        self.header.cmd == WRITE
    }
}

const READ: u16 = Command::RegionRead as u16;
const WRITE: u16 = Command::RegionWrite as u16;

/// Head of a `VFIO_USER_REGION_WRITE_MULTI`; also its whole reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WriteMultiHead {
    /// Number of entries; in the reply, of writes done.
    pub wr_cnt: u64,
}

impl Request for WriteMultiHead {
    fn check(&self, entries: &[u8]) -> Result<()> {
        let expected = self.wr_cnt.checked_mul(size_of::<WriteMultiEntry>() as u64);
        Errno::EINVAL.unless(expected == Some(entries.len() as u64), "wr_cnt is not the number of entries")
    }
}

/// One write of a `VFIO_USER_REGION_WRITE_MULTI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WriteMultiEntry {
    /// Offset into the region in bytes.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes, 8 at the most.
    pub count: u32,
    /// The bytes, the rest unused.
    pub data: [u8; 8],
}

impl Request for WriteMultiEntry {
    fn check(&self, _data: &[u8]) -> Result<()> {
        let most = size_of_val(&self.data);
        Errno::EINVAL.unless(self.count as usize <= most, "a write of more than 8 bytes")?;
        self.access().check(&[])
    }
}

impl WriteMultiEntry {
    /// The same write by itself.
    pub fn access(&self) -> RegionAccess {
        RegionAccess { offset: self.offset, region: self.region, count: self.count }
    }
}

/// Request, and head of the reply, of `VFIO_USER_DEVICE_GET_REGION_IO_FDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionIoFds {
    /// Room for the reply; in the reply, the room that a full one takes.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// Zero; in the reply, the number of entries of the region.
    pub count: u32,
}

impl Request for RegionIoFds {
    fn check(&self, _data: &[u8]) -> Result<()> {
        Errno::EINVAL.unless((self.flags, self.count) == (0, 0), "flags and count are not 0")?;
        let in_range = (size_of::<Self>()..=MAX_DATA_XFER_SIZE).contains(&(self.argsz as usize));
        Errno::EINVAL.unless(in_range, "argsz is out of range")
    }
}

/// Kinds of [`IoFdEntry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFdType {
    /// An eventfd that a write to the region's range signals.
    Ioeventfd = 0,
    /// The same with a shadow of the written value in memory.
    IoeventfdShadow = 2,
}

/// `vfio_user_sub_region_ioeventfd_t`: one entry of the reply to
/// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`, 48 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IoFdEntry {
    /// Offset into the region in bytes.
    pub gpa_offset: u64,
    /// Bytes.
    pub size: u64,
    /// Which of the reply's descriptors; `u32::MAX` for none.
    pub fd_index: u32,
    /// An [`IoFdType`].
    pub kind: u32,
    /// `KVM_IOEVENTFD_FLAG_*`.
    pub flags: u32,
    /// Which of the reply's descriptors holds the shadow.
    pub shadow_mem_fd_index: u32,
    /// Where in it.
    pub shadow_offset: u64,
    /// The value that signals, with `KVM_IOEVENTFD_FLAG_DATAMATCH`.
    pub datamatch: u64,
}

impl IoFdEntry {
    /// [`fd_index`](Self::fd_index) of an entry whose descriptor doesn't come
    /// with the reply.
    pub const NO_FD: u32 = u32::MAX;
}
