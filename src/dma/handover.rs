//! The address space of a device that goes on in another process: what is to be
//! known of it there, and making it anew here.

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;

use super::dirty::mask;
use super::facts::{Facts, indivisible};
use super::file::SharedFile;
use super::logging::Logging;
use super::region::{Access, Backing, Prot, RegionId, Snapshot};
use super::sizes::GROUP_WORDS;
use super::space::{AddressSpace, MAX_REGION_SIZE, MapRequest, Mapped};
use crate::memory::Words;
use crate::wire::{Errno, Result};

const NO_SPACE: &str = "memory that cannot be that of a client";

/// What there is of a region.
#[derive(Clone, Copy, Debug)]
pub struct RegionParts {
    /// Its name in this process.
    pub id: RegionId,
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do.
    pub prot: Prot,
    /// How it gets there.
    pub access: Access,
    /// The descriptor, the same one for regions of the same open file.
    pub fd: Option<RawFd>,
    /// Where the region starts in the file, in bytes.
    pub offset: u64,
}

/// A file that regions are made of.
pub struct KnownFile(SharedFile, Facts);

impl AddressSpace {
    /// Goes through the regions in ascending order, until `visit` fails.
    pub fn visit_regions(&self, mut visit: impl FnMut(RegionParts) -> Result<()>) -> Result<()> {
        let _state = self.state.lock();
        let mut outcome = Ok(());
        self.for_each_region(|region, _| {
            let backing = self.slots.with_backing(region.handle, |backing| {
                (backing.file.as_ref().map(|file| file.as_fd().as_raw_fd()), backing.offset)
            });
            let (fd, offset) = backing.unwrap_or_default();
            let (prot, access) = (region.attributes.prot(), region.attributes.access());
            if outcome.is_ok() {
                let (id, iova, size) = (region.id(), region.start, region.size);
                outcome = visit(RegionParts { id, iova, size, prot, access, fd, offset });
            }
        });
        outcome
    }

    /// Goes through the regions that have lost memory, until `visit` fails: the first
    /// address of each, and where that was noticed first, in bytes from there. Those
    /// that have lost it and nobody has noticed are among them: behind the end of the
    /// file, another process would not notice either.
    pub fn visit_lost(&self, mut visit: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let _state = self.state.lock();
        let mut outcome = Ok(());
        // Mostly the next region is of the same file, and the client waits: it is asked once.
        let mut asked = None;
        self.for_each_region(|region, slot| {
            if outcome.is_err() {
                return;
            }
            let lost = match slot.is_lost(region.tag) {
                true => Some(self.first_lost(&region)),
                false => {
                    let cut_off = |backing: &mut Backing| cut_off(backing, &region, &mut asked);
                    self.slots.with_backing(region.handle, cut_off).flatten()
                }
            };
            if let Some(offset) = lost {
                outcome = visit(region.start, offset);
            }
        });
        outcome
    }

    /// A region has lost memory in another process, as [`visit_lost`](Self::visit_lost)
    /// tells of it. `EPROTO` if there is none that can have.
    pub fn lose(&self, iova: u64, offset: u64) -> Result<()> {
        let _state = self.state.lock();
        let is_it = |region: &Snapshot| {
            region.start == iova && offset < region.size && region.attributes.access() == Access::Mmap
        };
        let region = self.region_around(iova).filter(is_it).ok_or_else(|| Errno::EPROTO.because(NO_SPACE))?;
        let lose =
            |backing: &mut Backing| backing.watched.as_ref().is_some_and(|watched| watched.lose(offset));
        if self.slots.with_backing(region.handle, lose) != Some(true)
            && let Some(slot) = self.slots.get(region.handle.into())
        {
            // Nobody is told of what this process does not guard against.
            slot.set_lost();
        }
        Ok(())
    }

    /// A file for several regions.
    pub fn know_file(&self, fd: OwnedFd) -> Result<KnownFile> {
        let (file, facts) = SharedFile::acquire(fd, &mut self.state.lock().recent)?;
        Ok(KnownFile(file, facts))
    }

    /// Maps a region that another process had. As [`map`](Self::map), but that the
    /// file is known already; `EPROTO` for what no process can have had.
    pub fn map_known(&self, request: MapRequest, file: Option<&KnownFile>) -> Result<Mapped> {
        let no_space = || Errno::EPROTO.because(NO_SPACE);
        let last = request.size.checked_sub(1).and_then(|more| request.iova.checked_add(more));
        let last = last.filter(|_| request.size <= MAX_REGION_SIZE).ok_or_else(no_space)?;
        let mut state = self.state.lock();
        let below = self.region_up_to(last);
        if below.is_some_and(|region| region.last() >= request.iova) || state.count >= self.limit() {
            return Err(no_space());
        }
        let file = file.map(|KnownFile(file, facts)| (file.clone(), *facts));
        self.map_new(&mut state, request, file)
    }

    /// The page size of logging in bytes, and its ranges, by `visit` of first and last
    /// address; none if everything is logged. `None` if nothing is.
    pub fn visit_logging(&self, mut visit: impl FnMut(u64, u64) -> Result<()>) -> Result<Option<u64>> {
        let state = self.state.lock();
        let Some(logging) = &state.logging else { return Ok(None) };
        logging.all_ranges().iter().try_for_each(|[first, last]| visit(*first, *last))?;
        Ok(Some(1 << logging.page_shift))
    }

    /// Goes on logging as another process does. If that is how it is done already, what is
    /// marked stays; else nothing is marked. `EPROTO` if none can do so.
    pub fn resume_logging(&self, page_size: u64, ranges: Vec<(u64, u64)>) -> Result<()> {
        let is_sorted = ranges.windows(2).all(|two| matches!(two, [(_, last), (next, _)] if last < next));
        let is_sound = is_sorted
            && ranges.iter().all(|(first, last)| first <= last)
            && page_size.is_power_of_two()
            && page_size >= super::mapping::host_page_size();
        Errno::EPROTO.unless(is_sound, "a log of writes that cannot be")?;
        let mut state = self.state.lock();
        if let Some(logging) = &state.logging {
            let is_same = |([first, last], other): (&[u64; 2], &(u64, u64))| (*first, *last) == *other;
            let all = logging.all_ranges();
            if page_size == 1 << logging.page_shift
                && all.len() == ranges.len()
                && all.iter().zip(&ranges).all(is_same)
            {
                return Ok(());
            }
            self.stop(&mut state);
        }
        let mut words = Words::zeroed(ranges.len().saturating_mul(2))?;
        let pairs = words.as_chunks_mut::<2>().0.iter_mut();
        pairs.zip(&ranges).for_each(|(pair, (first, last))| *pair = [*first, *last]);
        self.begin(&mut state, Logging { page_shift: page_size.ilog2(), words, count: ranges.len() })
    }

    /// Goes through the pages that are marked as written to, and leaves them so: the
    /// first address of their region, the number of the first page from there, and a
    /// bit for each page from that on. Until `visit` fails.
    pub fn visit_dirty(&self, mut visit: impl FnMut(u64, u64, &[u64]) -> Result<()>) -> Result<()> {
        let state = self.state.lock();
        let Some(shift) = state.logging.as_ref().map(|logging| logging.page_shift) else { return Ok(()) };
        let mut outcome = Ok(());
        self.for_each_region(|region, _| {
            let Some(block) = self.bitmap(&region) else { return };
            let last_page = (region.size - 1) >> shift;
            for (group, words) in block.words().chunks(GROUP_WORDS).enumerate() {
                if outcome.is_err() || !block.is_noted(group as u64) {
                    continue;
                }
                let mut found = [0; GROUP_WORDS];
                found.iter_mut().zip(words).for_each(|(to, from)| *to = from.load(Relaxed));
                let first = (group * GROUP_WORDS) as u64 * 64;
                // A thread may have been about to set a bit for a larger region that had
                // the bitmap before.
                for (number, word) in (first / 64..).zip(&mut found) {
                    match number.cmp(&(last_page / 64)) {
                        Ordering::Less => {}
                        Ordering::Equal => *word &= mask(0, last_page),
                        Ordering::Greater => *word = 0,
                    }
                }
                let len = found.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
                if len > 0 {
                    outcome = visit(region.start, first, found.get(..len).unwrap_or_default());
                }
            }
        });
        outcome
    }

    /// Marks pages, as [`visit_dirty`](Self::visit_dirty) tells of them. `EPROTO` for
    /// pages that are in no region, or in one that is not logged.
    pub fn mark_pages(&self, iova: u64, first: u64, words: &[u64]) -> Result<()> {
        let no_pages = || Errno::EPROTO.because("pages that nobody can have written to");
        let state = self.state.lock();
        let shift = state.logging.as_ref().map(|logging| logging.page_shift).ok_or_else(no_pages)?;
        let region = self.region_around(iova).filter(|region| region.start == iova).ok_or_else(no_pages)?;
        let block = self.bitmap(&region).ok_or_else(no_pages)?;
        let pages = ((region.size - 1) >> shift) + 1;
        for (number, word) in (0_u64..).zip(words) {
            let at = number.checked_mul(64).and_then(|more| first.checked_add(more));
            let mut bits = *word;
            while bits != 0 {
                let page = at.and_then(|at| at.checked_add(bits.trailing_zeros().into()));
                let page = page.filter(|page| *page < pages);
                let page = page.ok_or_else(no_pages)?;
                self.dirty.set(block, page, page);
                bits &= bits - 1;
            }
        }
        Ok(())
    }
}

/// Where the file of a guarded region ends by now, in bytes from the region's start, if
/// it did not when it was mapped. `asked`: the file that was asked last, by the descriptor
/// that is kept of it, and what came of that.
fn cut_off(backing: &mut Backing, region: &Snapshot, asked: &mut Option<(RawFd, Facts)>) -> Option<u64> {
    let (watched, file) = (backing.watched.as_ref()?, backing.file.as_ref()?);
    let mapped = watched.of_file().min(region.size);
    let fd = file.as_fd().as_raw_fd();
    let now = match *asked {
        Some((known, facts)) if known == fd => facts,
        _ => file.look_again().ok()?,
    };
    *asked = Some((fd, now));
    if !now.ends_before(backing.offset.checked_add(mapped)?) {
        return None;
    }
    let end = now.end(indivisible(file, &now))?.saturating_sub(backing.offset);
    (end < mapped).then_some(end)
}
