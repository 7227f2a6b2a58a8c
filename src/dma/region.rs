//! A region: what is known of it, and the slot that other threads read it
//! from.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, fence};

use bitflags::bitflags;
use parking_lot::Mutex;

use super::file::{OpenFile, SharedFile};
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
    const EMPTY: DmaInfo = DmaInfo {
        iova: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
        vaddr: ptr::null_mut(),
        mapping: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
        page_size: 0,
        prot: 0,
    };
}

/// Protection and access mode in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes(u32);

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

    #[inline]
    pub(super) fn allows(self, wanted: Prot) -> bool {
        wanted.bits() & !self.0 == 0
    }
}

/// A region as one thread saw it at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    /// Generation, see [`Slot::tag`].
    pub(super) tag: u64,
    pub(super) handle: u32,
    pub(super) attributes: Attributes,
    pub(super) start: u64,
    /// In bytes; never 0.
    pub(super) size: u64,
    pub(super) vaddr: usize,
    /// Its dirty bitmap's handle, 0 if it has none.
    pub(super) block: u32,
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
    pub(super) mapping: Option<Mapping>,
    pub(super) file: Option<SharedFile>,
    /// Where the region starts in the file.
    pub(super) offset: u64,
}

/// Room for one region. Slots are never freed while threads can look, so all
/// that they read is atomic, and the tag tells whether what was read belongs
/// together and to the region that was meant.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The region's generation, times 256, so that it fits beside a byte in an
    /// [`super::SgEntry`]; [`Slot::VACANT`] when there is no region.
    tag: AtomicU64,
    start: AtomicU64,
    size: AtomicU64,
    vaddr: AtomicUsize,
    attributes: AtomicU32,
    block: AtomicU32,
    pub(super) handle: u32,
    info: UnsafeCell<DmaInfo>,
    backing: Mutex<Backing>,
}

// SAFETY: only `info` is neither atomic nor locked, and the library touches it
// through the pointer that `info` returns only: in `AddressSpace::map`, under
// the lock of all changes, before the region can be found.
unsafe impl Sync for Slot {}
// SAFETY: the pointers in `info` are plain numbers to the library; the rest is
// `Send`.
unsafe impl Send for Slot {}

impl Slot {
    /// No entry's tag: the low byte of those is clear.
    const VACANT: u64 = 1;

    pub(super) fn new(handle: u32) -> Slot {
        Slot {
            tag: AtomicU64::new(Slot::VACANT),
            start: AtomicU64::new(0),
            size: AtomicU64::new(0),
            vaddr: AtomicUsize::new(0),
            attributes: AtomicU32::new(0),
            block: AtomicU32::new(0),
            handle,
            info: UnsafeCell::new(DmaInfo::EMPTY),
            backing: Mutex::new(Backing::default()),
        }
    }

    /// Puts a region into a vacant slot; the caller excludes other writers.
    pub(super) fn publish(&self, region: &Snapshot, backing: Backing) {
        *self.backing.lock() = backing;
        // Pairs with the fence of `snapshot`: who sees one of the stores below
        // also sees that the old tag has gone.
        fence(Release);
        self.start.store(region.start, Relaxed);
        self.size.store(region.size, Relaxed);
        self.vaddr.store(region.vaddr, Relaxed);
        self.attributes.store(region.attributes.0, Relaxed);
        self.block.store(region.block, Relaxed);
        self.tag.store(region.tag, Release);
    }

    /// Makes every entry and name of the region stale; the caller excludes
    /// other writers. What the region held is the caller's to drop.
    pub(super) fn retire(&self) -> Backing {
        self.tag.store(Slot::VACANT, Relaxed);
        std::mem::take(&mut *self.backing.lock())
    }

    /// The region that is here now. None if there is none, or if it changed
    /// while being looked at.
    #[inline]
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let tag = self.tag.load(Acquire);
        let region = self.fields(tag);
        (self.is_still(tag) && tag != Slot::VACANT).then_some(region)
    }

    /// The region of this tag, if it is (still) here. The tag comes from an
    /// earlier snapshot, so what is read cannot be older than it.
    #[inline]
    pub(super) fn region(&self, tag: u64) -> Option<Snapshot> {
        let region = self.fields(tag);
        self.is_still(tag).then_some(region)
    }

    #[inline]
    fn fields(&self, tag: u64) -> Snapshot {
        Snapshot {
            tag,
            handle: self.handle,
            attributes: Attributes(self.attributes.load(Relaxed)),
            start: self.start.load(Relaxed),
            size: self.size.load(Relaxed),
            vaddr: self.vaddr.load(Relaxed),
            block: self.block.load(Relaxed),
        }
    }

    #[inline]
    fn is_still(&self, tag: u64) -> bool {
        fence(Acquire);
        self.tag.load(Relaxed) == tag
    }

    /// Gives the region a dirty bitmap, or takes it away (0).
    pub(super) fn set_block(&self, block: u32) {
        self.block.store(block, Relaxed);
    }

    /// Where the callbacks' information lies; see [`DmaInfo`].
    pub(super) fn info(&self) -> *mut DmaInfo {
        self.info.get()
    }

    /// The file of the region with this tag and where it starts there. The
    /// file stays open while the result lives, whatever becomes of the region.
    pub(super) fn open_file(&self, tag: u64) -> Option<(Arc<OpenFile>, u64)> {
        let backing = self.backing.lock();
        if self.tag.load(Relaxed) != tag {
            return None;
        }
        backing.file.as_ref().map(|file| (file.open_file(), backing.offset))
    }

    /// Looks at what the region holds.
    pub(super) fn with_backing<R>(&self, look: impl FnOnce(&Backing) -> R) -> R {
        look(&self.backing.lock())
    }
}
