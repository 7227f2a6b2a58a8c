//! Which memory is guarded: a table of all mapped regions of the process, which
//! the handler searches by address.
//!
//! Entries are never freed. The handler pins the one that it works on: a hazard
//! pointer, but as a count at the entry (announced, then looked at again, as hazard
//! pointers are), and whoever removes one waits for the pins: so no memory
//! is replaced that is not the region's any more, and what the entry points to is
//! there. That wait is bounded: only faults in that region pin the entry, and
//! each for three system calls at the most.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

use parking_lot::Mutex;

use super::super::chunked::{Chunked, Handles};
use super::super::index::Index;
use super::super::region::Prot;
use super::super::sizes::HANDLE_BASE;
use super::super::slots::Slot;
use super::news::News;
use crate::wire::{Errno, Result};

/// How many pages of a region are replaced one by one. After these, all of it is:
/// a client could otherwise use up the mappings that the process may have (each
/// page splits one), and make each access to a large region fault.
const SINGLE_PAGES: usize = 3;

/// How often the handler searches the index while others change it. Then it goes
/// through the whole table, which always ends.
const SEARCHES: u32 = 64;

/// A guarded region. One cache line.
#[repr(C, align(64))]
struct Watch {
    base: AtomicUsize,
    /// 0: there is none. Set last and cleared first.
    length: AtomicUsize,
    vaddr: AtomicUsize,
    slot: AtomicPtr<Slot>,
    news: AtomicPtr<News>,
    /// Binary logarithm of the page size, and protection: see [`form`].
    form: AtomicU32,
    /// Handlers that look at it.
    pins: AtomicU32,
    /// Numbers of the pages that were replaced, plus one.
    pages: [AtomicU32; SINGLE_PAGES],
    /// 1: all of it was replaced.
    whole: AtomicU32,
}

struct Table {
    by_address: Index<Watch>,
    entries: Chunked<Watch, HANDLE_BASE>,
    /// Where the handles end that ever were.
    end: AtomicU32,
    writer: Mutex<Writer>,
}

struct Writer {
    handles: Handles<HANDLE_BASE>,
    process: u32,
}

static TABLE: OnceLock<Table> = OnceLock::new();

/// Memory to guard.
pub(in crate::dma) struct Range {
    /// All that is mapped, in bytes.
    pub(in crate::dma) base: usize,
    pub(in crate::dma) length: usize,
    /// Where the region starts in it.
    pub(in crate::dma) vaddr: usize,
    /// Bytes from there that are the file's; there are zeroes behind its end.
    pub(in crate::dma) of_file: u64,
    /// What can be replaced by itself, in bytes: a power of two.
    pub(in crate::dma) page_size: u64,
    pub(in crate::dma) prot: Prot,
}

/// A region's entry in the table, which goes when this is dropped.
pub(in crate::dma) struct Watched {
    handle: u32,
    /// How many pages are the file's, with the one that its end is in.
    of_file: u32,
    watch: &'static Watch,
}

/// To be called before anything else here.
pub(super) fn make() {
    TABLE.get_or_init(|| Table {
        by_address: Index::new(),
        entries: Chunked::new(),
        end: AtomicU32::new(1 << HANDLE_BASE),
        writer: Mutex::new(Writer { handles: Handles::new(), process: std::process::id() }),
    });
}

/// Guards a range from now on.
///
/// # Safety
///
/// The range is mapped, and it, `slot` and `news` are there until the result has
/// been dropped.
pub(in crate::dma) unsafe fn watch(range: &Range, slot: &Slot, news: &News) -> Result<Watched> {
    TABLE.get().ok_or(Errno::EINVAL)?.add(range, slot, news)
}

/// The handler's work: puts zeroed memory where the fault was. False if that is
/// in no region, or cannot be done.
pub(super) fn mend(address: usize) -> bool {
    TABLE.get().and_then(|table| table.find(address)).is_some_and(|pinned| pinned.0.mend(address))
}

impl Table {
    fn add(&'static self, range: &Range, slot: &Slot, news: &News) -> Result<Watched> {
        let mut writer = self.writer.lock();
        self.forget_parent(&mut writer);
        let handle = writer.handles.take()?;
        let watch = match self.entries.get_or_make(handle, |_| Watch::vacant()) {
            Ok(watch) => watch,
            Err(errno) => {
                writer.handles.give_back(handle);
                return Err(errno);
            }
        };
        self.end.fetch_max(handle.saturating_add(1), Release);
        watch.fill(range, slot, news);
        if let Err(errno) = self.by_address.insert(range.base as u64, watch) {
            watch.length.store(0, SeqCst);
            writer.handles.give_back(handle);
            return Err(errno);
        }
        let before = if range.of_file == 0 { 0 } else { range.vaddr.saturating_sub(range.base) as u64 };
        let of_file = range.of_file.saturating_add(before);
        // More than there can be of a region is all of it.
        let of_file = u32::try_from(of_file.div_ceil(range.page_size)).unwrap_or(u32::MAX);
        Ok(Watched { handle, of_file, watch })
    }

    /// In a child of fork(2) there are no handlers but its own.
    fn forget_parent(&self, writer: &mut Writer) {
        let process = std::process::id();
        if writer.process != process {
            writer.process = process;
            self.all().for_each(|watch| watch.pins.store(0, SeqCst));
        }
    }

    fn all(&self) -> impl Iterator<Item = &Watch> {
        (1 << HANDLE_BASE..self.end.load(Acquire)).filter_map(|handle| self.entries.get(handle.into()))
    }

    fn find(&self, address: usize) -> Option<Pinned<'_>> {
        for _ in 0..SEARCHES {
            if let Some(found) = self.by_address.try_read(|| self.by_address.up_to(address as u64)) {
                return found?.pin(address);
            }
        }
        self.search_all(address)
    }

    fn search_all(&self, address: usize) -> Option<Pinned<'_>> {
        self.all().find_map(|watch| watch.pin(address))
    }
}

impl Watch {
    fn vacant() -> Watch {
        Watch {
            base: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            vaddr: AtomicUsize::new(0),
            slot: AtomicPtr::default(),
            news: AtomicPtr::default(),
            form: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            pages: [const { AtomicU32::new(0) }; SINGLE_PAGES],
            whole: AtomicU32::new(0),
        }
    }

    /// Of a vacant one.
    fn fill(&self, range: &Range, slot: &Slot, news: &News) {
        self.base.store(range.base, Relaxed);
        self.vaddr.store(range.vaddr, Relaxed);
        self.slot.store(std::ptr::from_ref(slot).cast_mut(), Relaxed);
        self.news.store(std::ptr::from_ref(news).cast_mut(), Relaxed);
        self.form.store(form(range), Relaxed);
        self.pages.iter().for_each(|page| page.store(0, Relaxed));
        self.whole.store(0, Relaxed);
        self.length.store(range.length, SeqCst);
    }

    fn contains(&self, address: usize) -> bool {
        let length = self.length.load(SeqCst);
        address.wrapping_sub(self.base.load(Relaxed)) < length
    }

    /// Keeps the region that it is of now, if the address is in that.
    fn pin(&self, address: usize) -> Option<Pinned<'_>> {
        if !self.contains(address) {
            return None;
        }
        // Dekker's: either this is seen by who removes the region, or that has
        // cleared the length.
        self.pins.fetch_add(1, SeqCst);
        let pinned = Pinned(self);
        self.contains(address).then_some(pinned)
    }

    /// Of a pinned one.
    fn mend(&self, address: usize) -> bool {
        let shift = self.form.load(Relaxed) >> 8;
        let page = address.wrapping_sub(self.base.load(Relaxed)) >> shift;
        let Ok(number) = u32::try_from(page.wrapping_add(1)) else { return false };
        for claimed in &self.pages {
            match claimed.compare_exchange(0, number, SeqCst, SeqCst) {
                Ok(_) => {
                    self.tell();
                    // If there can be no more mappings, the whole takes none.
                    let is_mended = self.replace(page << shift, 1 << shift) || self.replace_all();
                    if !is_mended {
                        claimed.store(0, SeqCst);
                    }
                    return is_mended;
                }
                // Another thread is at it, or was: what it puts there is not to
                // be replaced once more. The access is repeated, and faults
                // again as long as it has to.
                Err(other) if other == number => return true,
                Err(_) => {}
            }
        }
        if self.whole.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
            return true;
        }
        let is_mended = self.replace_all();
        if !is_mended {
            self.whole.store(0, SeqCst);
        }
        is_mended
    }

    /// Before the zeroes can be seen: who has read them and then asks whether the
    /// region is lost, is told so.
    fn tell(&self) {
        // SAFETY: both are there while the entry is pinned.
        let (slot, news) = unsafe { (self.slot.load(Relaxed).as_ref(), self.news.load(Relaxed).as_ref()) };
        if let (Some(slot), Some(news)) = (slot, news)
            && slot.set_lost()
        {
            news.tell();
        }
    }

    fn replace_all(&self) -> bool {
        self.replace(0, self.length.load(Relaxed))
    }

    /// Puts zeroed private memory over a part; it takes up room where it is
    /// written only.
    fn replace(&self, offset: usize, length: usize) -> bool {
        let address = std::ptr::with_exposed_provenance_mut(self.base.load(Relaxed).wrapping_add(offset));
        let prot = (self.form.load(Relaxed) & 0xff).cast_signed();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: all of it is the region's mapping, which stays while the entry
        // is pinned, and which nobody but other threads of the device may be
        // looking at, who cannot rely on what the client may change anyway.
        unsafe { libc::mmap(address, length, prot, flags, -1, 0) != libc::MAP_FAILED }
    }
}

fn form(range: &Range) -> u32 {
    // The values of Prot are those of PROT_READ and PROT_WRITE.
    range.page_size.trailing_zeros() << 8 | range.prot.bits()
}

/// An entry that stays what it is.
struct Pinned<'a>(&'a Watch);

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Release);
    }
}

impl Watched {
    /// Where the first fault was, in bytes from the region's start.
    pub(in crate::dma) fn first_lost(&self) -> u64 {
        let watch = self.watch;
        let page = watch.pages.first().map_or(0, |page| page.load(Relaxed)).saturating_sub(1) as usize;
        let address = watch.base.load(Relaxed).wrapping_add(page << (watch.form.load(Relaxed) >> 8));
        address.saturating_sub(watch.vaddr.load(Relaxed)) as u64
    }

    /// Bytes from the region's start that were the file's when it was mapped.
    pub(in crate::dma) fn of_file(&self) -> u64 {
        let bytes = u64::from(self.of_file) << (self.watch.form.load(Relaxed) >> 8);
        let before = self.watch.vaddr.load(Relaxed).saturating_sub(self.watch.base.load(Relaxed));
        bytes.saturating_sub(before as u64)
    }

    /// The page at so many bytes from the region's start has been lost in another
    /// process: as if it had been here. False if that cannot be.
    pub(in crate::dma) fn lose(&self, offset: u64) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        let address = self.watch.vaddr.load(Relaxed).wrapping_add(offset);
        self.watch.pin(address).is_some_and(|pinned| pinned.0.mend(address))
    }

    /// No handler touches the region from now on.
    fn end(&self) {
        self.watch.length.store(0, SeqCst);
        // SAFETY: there until this has been dropped.
        let is_ours = unsafe { self.watch.news.load(Relaxed).as_ref() }.is_some_and(News::is_of_this_process);
        // Those that a child of fork(2) finds here run in its parent only.
        while is_ours && self.watch.pins.load(SeqCst) != 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(table) = TABLE.get() else { return };
        table.by_address.remove(self.watch.base.load(Relaxed) as u64);
        self.end();
        table.writer.lock().handles.give_back(self.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    const PAGE: usize = 4096;

    fn range(base: usize, pages: usize) -> Range {
        let (length, page_size) = (pages * PAGE, PAGE as u64);
        Range { base, length, vaddr: base, of_file: length as u64, page_size, prot: Prot::READ }
    }

    /// Whether both ways of searching find a region here, and the same.
    fn found(address: usize) -> Option<usize> {
        let table = TABLE.get().unwrap();
        let base = |pinned: Pinned<'_>| pinned.0.base.load(Relaxed);
        let both = [table.find(address).map(base), table.search_all(address).map(base)];
        assert_eq!(both[0], both[1]);
        both[0]
    }

    /// Nothing is mapped there: it is only searched.
    fn watch_at(base: usize, pages: usize, slot: &Slot, news: &News) -> Watched {
        // SAFETY: nobody faults there.
        unsafe { watch(&range(base, pages), slot, news) }.unwrap()
    }

    #[test]
    fn an_address_is_found_in_its_region_only() {
        make();
        let (slot, news) = (Slot::vacant(), News::new().unwrap());
        let bases: Vec<usize> = (1..200).map(|n| 0x10_0000 + n * 4 * PAGE).collect();
        let mut all: Vec<Watched> = bases.iter().map(|base| watch_at(*base, 3, &slot, &news)).collect();
        for round in 0..2 {
            for (n, base) in bases.iter().enumerate() {
                let is_there = (round == 0 || n % 2 == 1).then_some(*base);
                for address in [*base, base + PAGE, base + 3 * PAGE - 1] {
                    assert_eq!(found(address), is_there);
                }
                assert_eq!(found(base + 3 * PAGE), None);
                assert_eq!(found(base - 1), None);
            }
            let mut n = 0;
            all.retain(|_| {
                n += 1;
                n % 2 == 0 || round == 1
            });
        }
        drop(all);
        assert_eq!(found(bases[1]), None);
    }

    #[test]
    fn a_pinned_region_is_not_given_back() {
        make();
        let (slot, news) = (Slot::vacant(), News::new().unwrap());
        let (slot, news) = (&slot, &news);
        let (base, is_gone) = (0x8000_0000, AtomicBool::new(false));
        for _ in 0..100 {
            is_gone.store(false, SeqCst);
            let watched = watch_at(base, 1, slot, news);
            let pinned = TABLE.get().unwrap().find(base).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    drop(watched);
                    is_gone.store(true, SeqCst);
                });
                while TABLE.get().unwrap().find(base).is_some() {
                    std::thread::yield_now();
                }
                assert!(!is_gone.load(SeqCst));
                assert_eq!(pinned.0.base.load(Relaxed), base);
                drop(pinned);
            });
            assert!(is_gone.load(SeqCst));
        }
    }

    #[test]
    fn the_first_fault_is_told_of_in_bytes_from_the_region_s_start() {
        make();
        let (slot, news) = (Slot::vacant(), News::new().unwrap());
        let base = 0x9000_0000;
        let mut inside = range(base, 4);
        inside.vaddr = base + 100;
        // SAFETY: nobody faults there.
        let watched = unsafe { watch(&inside, &slot, &news) }.unwrap();
        watched.watch.pages[0].store(3, Relaxed);
        assert_eq!(watched.first_lost(), 2 * PAGE as u64 - 100);
        watched.watch.pages[0].store(1, Relaxed);
        assert_eq!(watched.first_lost(), 0);
    }
}
