//! Dirty logging: start, stop, report.

use std::ops::Range;

use super::bitmap::{Block, Name};
use super::dirty::{Kept, mask};
use super::region::{Access, Snapshot};
use super::report::{Part, Reply};
use super::sizes::GROUP_WORDS;
use super::space::{AddressSpace, State};
use crate::memory::Words;
use crate::wire::{Errno, LoggingRange, Result, bitmap_size};

/// Logging in progress.
pub(super) struct Logging {
    pub(super) page_shift: u32,
    /// First and last addresses of the first `count` of these, ascending, apart from
    /// each other; none if everything is logged.
    pub(super) words: Words,
    pub(super) count: usize,
}

impl Logging {
    /// First and last addresses of all ranges; none if everything is logged.
    pub(super) fn all_ranges(&self) -> &[[u64; 2]] {
        self.words.as_chunks().0.get(..self.count).unwrap_or_default()
    }

    /// The ranges that have addresses between `first` and `last`.
    fn ranges(&self, first: u64, last: u64) -> &[[u64; 2]] {
        const EVERYTHING: &[[u64; 2]] = &[[0, u64::MAX]];
        let all = self.all_ranges();
        if all.is_empty() {
            return EVERYTHING;
        }
        let from = all.partition_point(|range| range[1] < first);
        let to = all.partition_point(|range| range[0] <= last);
        all.get(from..to).unwrap_or_default()
    }
}

/// Checks and sorts the ranges of a request and joins those that overlap: how many
/// these are then.
fn sorted(ranges: &[LoggingRange]) -> Result<(Words, usize)> {
    let mut words = Words::zeroed(ranges.len().saturating_mul(2))?;
    let pairs = words.as_chunks_mut::<2>().0;
    for (pair, range) in pairs.iter_mut().zip(ranges) {
        *pair = [range.iova, range.last()?];
    }
    pairs.sort_unstable();
    let mut count = 0_usize;
    for number in 0..pairs.len() {
        let Some(next) = pairs.get(number).copied() else { break };
        let before = count.checked_sub(1).and_then(|last| pairs.get_mut(last));
        match before.filter(|before| next[0] <= before[1]) {
            Some(joined) => joined[1] = joined[1].max(next[1]),
            None => {
                pairs.get_mut(count).into_iter().for_each(|pair| *pair = next);
                count = count.saturating_add(1);
            }
        }
    }
    Ok((words, count))
}

const NO_PAGE_SIZE: &str = "the page size is no power of two";

impl AddressSpace {
    /// Starts logging of writes to regions that have a descriptor, those that
    /// will be mapped included. Writes outside of all `ranges` are not
    /// reported, unless there are none. Returns the page size used, in bytes:
    /// the one asked for, or the host's if that is larger.
    ///
    /// If logging is active already, nothing changes: the page size in use
    /// succeeds.
    ///
    /// # Errors
    /// `EINVAL`: a page size that is no power of two or, while logging is
    /// active, not the one in use; a range that is empty or wraps. `ENOMEM`: no
    /// room for the bitmaps; logging is off then.
    pub fn logging_start(&self, page_size: u64, ranges: &[LoggingRange]) -> Result<u64> {
        Errno::EINVAL.unless(page_size.is_power_of_two(), NO_PAGE_SIZE)?;
        let (words, count) = sorted(ranges)?;
        let mut state = self.state.lock();
        if let Some(logging) = &state.logging {
            let in_use = 1 << logging.page_shift;
            let rule = "pages are logged already, of another size";
            return Errno::EINVAL.unless(page_size == in_use, rule).map(|()| in_use);
        }
        let page_size = page_size.max(super::mapping::host_page_size());
        self.begin(&mut state, Logging { page_shift: page_size.ilog2(), words, count })?;
        Ok(page_size)
    }

    pub(super) fn begin(&self, state: &mut State, logging: Logging) -> Result<()> {
        let page_shift = logging.page_shift;
        state.logging = Some(logging);
        if let Err(e) = self.give_bitmaps(state) {
            self.stop(state);
            return Err(e);
        }
        self.dirty.set_page_shift(page_shift);
        Ok(())
    }

    /// Stops logging and forgets what was logged. Nothing happens if it isn't
    /// active.
    pub fn logging_stop(&self) {
        self.stop(&mut self.state.lock());
    }

    /// The page size of logging in bytes, none if it isn't active.
    pub fn logging_page_size(&self) -> Option<u64> {
        match self.dirty.page_shift() {
            0 => None,
            shift => Some(1 << shift),
        }
    }

    /// Log2 of the page size of logging, 0 if it isn't active and nothing has to
    /// be marked.
    #[inline(always)]
    pub fn page_shift(&self) -> u32 {
        self.dirty.page_shift()
    }

    pub(super) fn stop(&self, state: &mut State) {
        self.dirty.set_page_shift(0);
        state.logging = None;
        self.for_each_region(|region, slot| {
            slot.set_bitmap(Name::NONE);
            state.pool.give_back(region.bitmap);
        });
    }

    fn give_bitmaps(&self, state: &mut State) -> Result<()> {
        let mut result = Ok(());
        self.for_each_region(|region, slot| {
            if result.is_ok() {
                match self.bitmap_for(state, &region) {
                    Ok(bitmap) => slot.set_bitmap(bitmap),
                    Err(e) => result = Err(e),
                }
            }
        });
        result
    }

    /// A region's bitmap, if it has one.
    pub(super) fn bitmap(&self, region: &Snapshot) -> Option<Block<'_>> {
        // SAFETY: a block of the pool, all of which live as long as `self`.
        unsafe { region.bitmap.block() }
    }

    /// A bitmap for a region, if it needs one.
    pub(super) fn bitmap_for(&self, state: &mut State, region: &Snapshot) -> Result<Name> {
        let Some(logging) = &state.logging else { return Ok(Name::NONE) };
        let has_file = region.attributes.access() != Access::Message;
        if !has_file || logging.ranges(region.start, region.last()).is_empty() {
            return Ok(Name::NONE);
        }
        let pages = ((region.size - 1) >> logging.page_shift) + 1;
        state.pool.take(pages)
    }

    /// Moves the dirty bits of `length` bytes from `iova` on to `bitmap`, which
    /// must have the size that [`bitmap_size`] says. Bit i stands for the i-th
    /// `page_size` bytes from `iova` on, lowest bit of the first byte first. Bits
    /// beyond the range are reported as far as the bitmap and the region in
    /// which the range ends go, and zero beyond. A logged bit is cleared only if
    /// the bitmap covers all that it stands for. Memory without a descriptor is
    /// never dirty: only the client itself writes there, and knows.
    ///
    /// # Errors
    /// In this order: `EINVAL` from [`bitmap_size`] or for a bitmap of another
    /// size; `ENOENT` if an address is in no region; `EINVAL` if logging isn't
    /// active or the page size is no power of two; `ENOTSUP` if `iova` is no
    /// multiple of the logging page size from the start of its region.
    pub fn report(&self, iova: u64, length: u64, page_size: u64, bitmap: &mut [u8]) -> Result<()> {
        if bitmap.len() as u64 != bitmap_size(length, page_size)? {
            return Err(Errno::EINVAL);
        }
        self.check_report(iova, length, page_size)?;
        self.report_part(iova, length, page_size, bitmap, false).map(drop)
    }

    /// Whether [`report`](Self::report) would succeed, with a bitmap of the right
    /// size.
    pub fn check_report(&self, iova: u64, length: u64, page_size: u64) -> Result<()> {
        bitmap_size(length, page_size)?;
        let state = self.state.lock();
        let mapped = iova.checked_add(length - 1).ok_or(Errno::ENOENT);
        let mapped = mapped.and_then(|last| self.check_mapped(iova, last));
        mapped.map_err(|errno| errno.because("an address is in no region"))?;
        let logging = state.logging.as_ref().ok_or_else(|| Errno::EINVAL.because("pages are not logged"))?;
        Errno::EINVAL.unless(page_size.is_power_of_two(), NO_PAGE_SIZE)?;
        let region = self.region_around(iova).ok_or(Errno::ENOENT)?;
        let offset = (iova - region.start) & ((1 << logging.page_shift) - 1);
        Errno::ENOTSUP.unless(offset == 0, "it does not start at a page of the region's")
    }

    /// Moves the dirty bits of a part of what was checked: it starts a multiple of
    /// 64 reported pages after the start, and is as long, or goes to the end. The
    /// parts make up the whole, bit by bit.
    ///
    /// Returns whether the page that it ends in the middle of was dirty, and told of by all
    /// parts that have some of it so far: `told` of the part that begins there. If it was
    /// not, and is dirty when that part is made, a part before has not told of what was
    /// written: its bit stays set, for the next report.
    pub fn report_part(
        &self,
        iova: u64,
        length: u64,
        page_size: u64,
        bitmap: &mut [u8],
        told: bool,
    ) -> Result<bool> {
        let state = self.state.lock();
        let last = iova.checked_add(length.saturating_sub(1)).ok_or(Errno::ENOENT)?;
        let end_region = self.check_mapped(iova, last)?;
        let logging = state.logging.as_ref().ok_or(Errno::EINVAL)?;
        let page_shift = page_size.checked_ilog2().ok_or(Errno::EINVAL)?;
        let bits = bitmap.len() as u128 * 8;
        let covered = u128::from(iova) + (bits << page_shift) - 1;
        let covered_last = u64::try_from(covered).unwrap_or(u64::MAX).min(end_region.last());
        let mut reply = Reply::new(bitmap, iova, page_shift);
        let mut buffer = [0; GROUP_WORDS];
        let mut from = iova;
        let mut is_told = told;
        while let Some(region) = self.region_around(from) {
            let is_new = from > region.start && !is_told;
            is_told =
                self.report_region(logging, &region, (from, covered_last), is_new, &mut reply, &mut buffer);
            if region.last() >= covered_last {
                break;
            }
            from = region.last() + 1;
        }
        reply.finish();
        Ok(is_told)
    }

    /// The region that the addresses end in; `ENOENT` if one is in none.
    fn check_mapped(&self, first: u64, last: u64) -> Result<Snapshot> {
        let mut region = self.region_around(first).ok_or(Errno::ENOENT)?;
        while region.last() < last {
            region = self.region_around(region.last() + 1).ok_or(Errno::ENOENT)?;
        }
        Ok(region)
    }

    /// Moves the bits of a region from the address `from` on to the reply, as
    /// far as this goes. `is_new`: what is before it of its page was not told of.
    /// Returns whether the page that it ends in the middle of was.
    fn report_region(
        &self,
        logging: &Logging,
        region: &Snapshot,
        (from, covered_last): (u64, u64),
        is_new: bool,
        reply: &mut Reply<'_>,
        buffer: &mut [u64; GROUP_WORDS],
    ) -> bool {
        let page_shift = logging.page_shift;
        let (start, last) = (region.start, region.last());
        let covered_last = covered_last.min(last);
        let part = Part { start, covered_last, page_shift };
        // Pages are counted from the region's start, and belong to a range that has any
        // of their bytes, whichever of these are in this part.
        let first_page = (from - start) >> page_shift;
        let last_page = (covered_last - start) >> page_shift;
        let page_end = u128::from(start) + (u128::from(last_page + 1) << page_shift);
        let whole_first = start + (first_page << page_shift);
        let whole_last = u64::try_from(page_end - 1).unwrap_or(u64::MAX).min(last);
        let ranges = logging.ranges(whole_first, whole_last);
        let (Some(lowest), Some(highest)) = (ranges.first(), ranges.last()) else { return false };
        let Some(bitmap) = self.bitmap(region) else { return false };
        let page = |address: u64| (address.clamp(whole_first, whole_last) - start) >> page_shift;
        let (first, end) = (page(lowest[0]), page(highest[1]));
        let kept = Kept {
            first: is_new && from > whole_first && first == first_page,
            last: covered_last < whole_last && end == last_page,
        };
        // What no part before this one has told of, this one does not tell of whole.
        let may_tell = kept.last && !(kept.first && first == end);
        let mut is_told = false;
        // Each group of words is taken once, however many ranges it has. What
        // was set between them is of no interest to anybody.
        self.dirty.harvest(bitmap, (first, end), kept, buffer, |word, words| {
            let last_word = (end / 64).checked_sub(word).and_then(|at| words.get(at as usize));
            is_told |= may_tell && last_word.is_some_and(|word| word & mask(end, end) != 0);
            if let [_, _, ..] = ranges {
                let of_group = |page: u64| start + (page.clamp(first, end) << page_shift);
                let pages = word * 64..(word + words.len() as u64) * 64;
                let last = if pages.end > end { whole_last } else { of_group(pages.end) - 1 };
                let ranges = logging.ranges(of_group(pages.start), last);
                keep_pages(words, &pages, ranges.iter().map(|range| (page(range[0]), page(range[1]))));
            }
            reply.add(&part, word, words);
        });
        is_told
    }
}

/// Clears the bits of all pages but the given ones, first and last of each run,
/// in words with a bit for each of `pages`.
fn keep_pages(words: &mut [u64], pages: &Range<u64>, kept: impl Iterator<Item = (u64, u64)>) {
    let mut masks = [0; GROUP_WORDS];
    for (first, last) in kept {
        let (first, last) = (first.max(pages.start) - pages.start, last.min(pages.end - 1) - pages.start);
        for word in first / 64..=last / 64 {
            let bits = mask(first.max(word * 64), last.min(word * 64 + 63));
            if let Some(mask) = masks.get_mut(word as usize) {
                *mask |= bits;
            }
        }
    }
    words.iter_mut().zip(masks).for_each(|(word, mask)| *word &= mask);
}
