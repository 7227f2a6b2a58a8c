//! The table of regions: map, find, remove.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::bitmap::{Name, Pool};
use super::dirty::{CLOSED, Dirty};
use super::facts::{Facts, indivisible, is_lasting};
use super::file::{Recent, SharedFile};
use super::guard::{self, Mailbox, Range, Watched};
use super::hint::Hints;
use super::index::Index;
use super::logging::Logging;
use super::mapping::{host_page_size, map_file};
use super::region::{Access, Attributes, Backing, DmaInfo, Prot, RegionId, Snapshot};
use super::sizes::KEPT;
use super::slots::{Slot, Slots, Vacant, tag};
use super::sync::{AtomicU64, Mutex};
use crate::wire::{Errno, Result};

/// Largest region, in bytes.
pub const MAX_REGION_SIZE: u64 =
    if cfg!(any(target_arch = "x86_64", target_arch = "powerpc64")) { 8 << 40 } else { 0xffff_ffff };

/// Generations of all address spaces of the process, so that an entry is no
/// good in another context either. At one map per microsecond the 2^56 that an
/// entry holds last for two thousand years.
static GENERATION: atomic::AtomicU64 = atomic::AtomicU64::new(1);

/// What to map.
#[derive(Debug)]
pub struct MapRequest {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do.
    pub prot: Prot,
    /// How it gets there.
    pub access: Access,
    /// The descriptor; to be there unless access is by messages. It is closed
    /// if the map fails.
    pub file: Option<OwnedFd>,
    /// Where the region starts in the file, in bytes.
    pub offset: u64,
}

/// A successful map.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    /// The region.
    pub region: RegionId,
    /// False if this very region was mapped before.
    pub fresh: bool,
    /// Bytes at the region's end that lie beyond the end of the file, where
    /// zeroed memory that is not shared with the client was mapped instead.
    pub beyond_file: Option<u64>,
}

/// What is changed by one thread at a time.
pub(super) struct State {
    vacant: Vacant,
    pub(super) count: u64,
    pub(super) recent: Recent,
    pub(super) logging: Option<Logging>,
    pub(super) pool: Pool,
}

/// The guest's address space: which regions there are, and which of their pages
/// were written. All methods may be called on any thread at any time.
pub struct AddressSpace {
    limit: AtomicU64,
    pub(super) dirty: Dirty,
    pub(super) slots: Slots,
    pub(super) index: Index,
    pub(super) state: Mutex<State>,
    pub(super) hints: Hints,
    /// Only memory that stays is taken.
    lasting: AtomicBool,
    /// Of lost memory. Goes after the slots.
    losses: Mailbox,
}

/// A region about to be made.
struct NewRegion {
    backing: Backing,
    vaddr: usize,
    page_size: u64,
    beyond_file: Option<u64>,
    /// What of its memory can be replaced by itself, if it is guarded.
    unit: Option<u64>,
}

/// A region that has lost memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The region.
    pub region: RegionId,
    /// Its first address.
    pub iova: u64,
    /// Bytes from there to the page where it was noticed.
    pub offset: u64,
}

impl Loss {
    /// Room for one.
    pub const NONE: Loss = Loss { region: RegionId { handle: 0, tag: 0 }, iova: 0, offset: 0 };
}

impl Default for AddressSpace {
    fn default() -> Self {
        AddressSpace::new()
    }
}

impl AddressSpace {
    /// An empty address space, for any number of regions.
    pub fn new() -> AddressSpace {
        AddressSpace {
            limit: AtomicU64::new(u64::MAX),
            dirty: Dirty::new(),
            slots: Slots::new(),
            index: Index::new(),
            state: Mutex::new(State {
                vacant: Vacant::new(),
                count: 0,
                recent: Recent::default(),
                logging: None,
                pool: Pool::new(),
            }),
            hints: Hints::new(),
            lasting: AtomicBool::new(false),
            losses: Mailbox::new(),
        }
    }

    /// From here on, [`AddressSpace::translate_recent`] finds nothing, and
    /// [`AddressSpace::page_shift`] is not 0. Nothing else may be called.
    pub fn close(&self) {
        self.hints.end();
        self.dirty.set_page_shift(CLOSED);
    }

    /// Sets how many regions there may be. Those that there are stay.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Chooses whether only memory is mapped that its owner cannot take away, see
    /// [`AddressSpace::map`]. Regions that there are stay.
    pub fn set_lasting_only(&self, lasting: bool) {
        self.lasting.store(lasting, Relaxed);
    }

    /// How many regions there may be.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// How many regions there are.
    pub fn len(&self) -> u64 {
        self.state.lock().count
    }

    /// Whether there are no regions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Maps a region. From its success on it can be found and used.
    ///
    /// # Errors
    /// In this order: `ENOSPC` for a size above [`MAX_REGION_SIZE`]; `EINVAL` for
    /// size 0 or a range that wraps; `EEXIST` if it overlaps a region, unless it
    /// is equal to it in everything; `EINVAL` if there are as many as there may
    /// be, or if a file for access by I/O is no regular file or block device; `EPERM` if
    /// only memory that stays is taken (a memfd with `F_SEAL_SHRINK`, huge pages,
    /// device DAX) and this may go; the errno of mmap(2).
    pub fn map(&self, request: MapRequest) -> Result<Mapped> {
        let MapRequest { iova, size, .. } = request;
        Errno::ENOSPC.unless(size <= MAX_REGION_SIZE, "it is larger than a region may be")?;
        let last = size.checked_sub(1).and_then(|more| iova.checked_add(more));
        let last = last.ok_or_else(|| Errno::EINVAL.because("it is empty, or has no end"))?;
        let mut state = self.state.lock();
        if let Some(region) = self.index.up_to_for_change(last).and_then(Slot::snapshot)
            && region.last() >= iova
        {
            return self.map_again(&mut state, &region, request);
        }
        Errno::EINVAL.unless(state.count < self.limit(), "there are as many regions as there may be")?;
        let mut request = request;
        let file = request.file.take().map(|fd| SharedFile::acquire(fd, &mut state.recent)).transpose()?;
        self.map_new(&mut state, request, file)
    }

    /// Maps a region where none is.
    pub(super) fn map_new(
        &self,
        state: &mut State,
        request: MapRequest,
        file: Option<(SharedFile, Facts)>,
    ) -> Result<Mapped> {
        let MapRequest { iova, size, prot, access, .. } = request;
        let new = NewRegion::make(request, file, self.lasting.load(Relaxed))?;
        self.hints.begin()?;
        let handle = self.slots.take(&mut state.vacant)?;
        let tag = tag(GENERATION.fetch_add(1, Relaxed));
        let attributes = Attributes::new(prot, access);
        let mut region =
            Snapshot { tag, handle, attributes, start: iova, size, vaddr: new.vaddr, bitmap: Name::NONE };
        let beyond_file = new.beyond_file;
        if let Err(e) = self.add(state, &mut region, new) {
            state.pool.give_back(region.bitmap);
            self.slots.give_back(&mut state.vacant, handle);
            return Err(e);
        }
        state.count += 1;
        Ok(Mapped { region: region.id(), fresh: true, beyond_file })
    }

    fn add(&self, state: &mut State, region: &mut Snapshot, new: NewRegion) -> Result<()> {
        region.bitmap = self.bitmap_for(state, region)?;
        let info = new.info(region)?;
        let range = new.range(region);
        let slot = self.slots.publish(region, info, new.backing)?;
        let watched = range.map_or(Ok(()), |range| self.watch(&range, slot, region.handle));
        if let Err(e) = watched.and_then(|()| self.index.insert(region.start, slot)) {
            drop(self.slots.retire(region.handle));
            return Err(e);
        }
        Ok(())
    }

    /// Guards a region that nobody has found yet.
    #[cold]
    fn watch(&self, range: &Range, slot: &Slot, handle: u32) -> Result<()> {
        let news = self.losses.get_or_make()?;
        // SAFETY: all is there until the backing has been dropped: `retire` drops
        // what is watched first, and so does the end of the address space.
        let watched = unsafe { guard::watch(range, slot, news) }?;
        self.slots.with_backing(handle, |backing| backing.watched = Some(watched));
        Ok(())
    }

    /// What becomes readable when memory is lost (see [`install_guard`]), if there
    /// can be such; it stays the same.
    ///
    /// [`install_guard`]: super::install_guard
    pub fn loss_descriptor(&self) -> Option<RawFd> {
        self.losses.descriptor()
    }

    /// Whether [`AddressSpace::take_losses`] may have something.
    #[inline(always)]
    pub fn has_losses(&self) -> bool {
        guard::is_on() && self.losses.are_pending()
    }

    /// Regions that have lost memory, each once; all of them if there is room for
    /// more. Says how many.
    pub fn take_losses(&self, out: &mut [Loss]) -> usize {
        self.losses.take();
        let _state = self.state.lock();
        let mut places = out.iter_mut();
        let mut count = 0;
        self.for_each_region(|region, slot| {
            if places.len() > 0
                && slot.take_loss()
                && let Some(place) = places.next()
            {
                let offset = self.first_lost(&region);
                *place = Loss { region: region.id(), iova: region.start, offset };
                count += 1;
            }
        });
        count
    }

    /// Where it was noticed first that a region has lost memory, in bytes from its start.
    pub(super) fn first_lost(&self, region: &Snapshot) -> u64 {
        let first = |backing: &mut Backing| backing.watched.as_ref().map(Watched::first_lost);
        self.slots.with_backing(region.handle, first).flatten().unwrap_or(0)
    }

    /// Maps what overlaps a region: fine if it is the same again.
    fn map_again(&self, state: &mut State, region: &Snapshot, request: MapRequest) -> Result<Mapped> {
        let MapRequest { iova, size, prot, access, file, offset } = request;
        let is_same = (region.start, region.size) == (iova, size)
            && region.attributes == Attributes::new(prot, access)
            && self
                .slots
                .with_backing(region.handle, |backing| backing.is_same(file, offset, &mut state.recent))
                .unwrap_or(false);
        Errno::EEXIST.unless(is_same, "it overlaps another region")?;
        Ok(Mapped { region: region.id(), fresh: false, beyond_file: None })
    }

    /// The region with exactly these addresses.
    pub fn find_exact(&self, iova: u64, size: u64) -> Option<RegionId> {
        let _state = self.state.lock();
        // To unmap it, nearly always.
        let region = self.index.up_to_for_change(iova)?.snapshot()?;
        ((region.start, region.size) == (iova, size)).then(|| region.id())
    }

    /// The region with the lowest addresses of those that lie between `first`
    /// and `last` (both included) as a whole. Looks at no other.
    pub fn first_within(&self, first: u64, last: u64) -> Option<RegionId> {
        let _state = self.state.lock();
        let region = self.region_from(first)?;
        (region.last() <= last).then(|| region.id())
    }

    /// Says whether all regions that have addresses between `first` and `last`
    /// (both included) lie there as a whole. Looks at the outermost only.
    ///
    /// # Errors
    /// `EINVAL` if one has other addresses, too; `ENOENT` if there is none.
    pub fn check_uncut(&self, first: u64, last: u64) -> Result<()> {
        let _state = self.state.lock();
        let lowest = self.region_around(first).or_else(|| self.region_from(first));
        let lowest = lowest.filter(|region| region.start <= last).ok_or(Errno::ENOENT)?;
        let highest = self.region_up_to(last).ok_or(Errno::ENOENT)?;
        if lowest.start < first || highest.last() > last { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// What the callbacks are told about a region; null if it is gone. The
    /// pointer is good until the region is removed.
    pub fn info(&self, region: RegionId) -> *mut DmaInfo {
        match self.slots.get(region.handle.into()) {
            Some(slot) if slot.region(region.tag).is_some() => self.slots.info(region.handle),
            _ => std::ptr::null_mut(),
        }
    }

    /// Removes a region: nothing finds it any more, entries of it are stale, it
    /// is unmapped, its use of its file and its dirty bits are gone. Nothing
    /// happens if it was removed already.
    pub fn remove(&self, region: RegionId) {
        let mut state = self.state.lock();
        let Some(slot) = self.slots.get(region.handle.into()) else { return };
        let Some(region) = slot.region(region.tag) else { return };
        self.index.remove(region.start);
        let backing = self.slots.retire(region.handle);
        state.pool.give_back(region.bitmap);
        self.slots.give_back(&mut state.vacant, region.handle);
        state.count -= 1;
        if state.vacant.peak() > KEPT {
            self.discard(&mut state);
        }
        drop(state);
        drop(backing);
    }

    /// Gives the memory that told of regions back to the system, if there are none:
    /// for when their client has gone. (Else a few regions are soon followed by
    /// others, and the memory for few is kept.)
    pub fn give_back(&self) {
        self.discard(&mut self.state.lock());
    }

    /// Does so. Threads may be looking for regions; they go on to find none.
    fn discard(&self, state: &mut State) {
        if state.count == 0 && state.vacant.peak() > 0 {
            self.index.discard();
            self.slots.discard(&mut state.vacant);
            state.pool.discard();
        }
    }

    /// The region with the greatest start up to `address`. Under the lock of
    /// all changes.
    pub(super) fn region_up_to(&self, address: u64) -> Option<Snapshot> {
        self.index.up_to(address)?.snapshot()
    }

    /// The region with the lowest start from `address` on. Under the lock of
    /// all changes.
    fn region_from(&self, address: u64) -> Option<Snapshot> {
        self.index.from(address)?.snapshot()
    }

    /// The region around `address`. Under the lock of all changes.
    pub(super) fn region_around(&self, address: u64) -> Option<Snapshot> {
        self.region_up_to(address).filter(|region| region.offset_of(address).is_some())
    }

    /// Goes through the regions in ascending order. Under the lock of all
    /// changes; `visit` must not change which there are.
    pub(super) fn for_each_region(&self, mut visit: impl FnMut(Snapshot, &Slot)) {
        self.index.for_each(|slot| {
            if let Some(region) = slot.snapshot() {
                visit(region, slot);
            }
        });
    }
}

impl Backing {
    fn is_same(&self, file: Option<OwnedFd>, offset: u64, recent: &mut Recent) -> bool {
        if self.offset != offset {
            return false;
        }
        match (&self.file, file) {
            (None, None) => true,
            (Some(mine), Some(other)) => {
                SharedFile::acquire(other, recent).is_ok_and(|(other, _)| other.is_same(mine))
            }
            _ => false,
        }
    }
}

const GOES: &str = "its memory can be taken away, and only a memfd with F_SEAL_SHRINK or device DAX is taken";

impl NewRegion {
    fn make(request: MapRequest, file: Option<(SharedFile, Facts)>, lasting: bool) -> Result<NewRegion> {
        let MapRequest { size, prot, access, offset, .. } = request;
        let Some((file, facts)) = file else {
            if access != Access::Message {
                return Err(Errno::EINVAL);
            }
            let backing = Backing { offset, ..Backing::default() };
            return Ok(NewRegion {
                backing,
                vaddr: 0,
                page_size: host_page_size(),
                beyond_file: None,
                unit: None,
            });
        };
        let is_for_it = access == Access::Mmap || access == Access::FileIo && facts.is_for_file_io();
        Errno::EINVAL.unless(is_for_it, "FILE_IO takes regular files and block devices")?;
        let mut backing = Backing { offset, ..Backing::default() };
        let (mut vaddr, mut beyond_file, mut unit) = (0, None, None);
        if access == Access::Mmap {
            Errno::EPERM.unless(!lasting || is_lasting(&file, &facts), GOES)?;
            unit = guard::is_on().then(|| indivisible(&file, &facts));
            let mapped = map_file(&file, &facts, offset, size, prot)?;
            (vaddr, beyond_file) = (mapped.vaddr, mapped.beyond_file);
            backing.mapping = Some(mapped.mapping);
        }
        backing.file = Some(file);
        Ok(NewRegion { backing, vaddr, page_size: facts.page_size, beyond_file, unit })
    }

    /// What is to be guarded of it.
    fn range(&self, region: &Snapshot) -> Option<Range> {
        let mapping = self.backing.mapping.as_ref()?;
        Some(Range {
            base: mapping.base().addr(),
            length: mapping.length(),
            vaddr: self.vaddr,
            of_file: region.size.saturating_sub(self.beyond_file.unwrap_or(0)),
            page_size: self.unit?,
            prot: region.attributes.prot(),
        })
    }

    fn info(&self, region: &Snapshot) -> Result<DmaInfo> {
        const TOO_FAR: &str = "its addresses do not fit into this machine's pointers";
        let number = |value| usize::try_from(value).map_err(|_| Errno::EINVAL.because(TOO_FAR));
        let mapping = self.backing.mapping.as_ref();
        Ok(DmaInfo {
            iova: libc::iovec {
                iov_base: std::ptr::without_provenance_mut(number(region.start)?),
                iov_len: number(region.size)?,
            },
            vaddr: std::ptr::with_exposed_provenance_mut(region.vaddr),
            mapping: libc::iovec {
                iov_base: mapping.map_or(std::ptr::null_mut(), |mapping| mapping.base()),
                iov_len: mapping.map_or(0, |mapping| mapping.length()),
            },
            page_size: number(self.page_size)?,
            prot: region.attributes.prot().bits(),
        })
    }
}
