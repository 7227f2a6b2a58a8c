//! The whole address space, by what C code calls.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use super::{explore, spawn};
use crate::dma::region::{Access, Prot, RegionId};
use crate::dma::sgl::{SgEntry, Translation};
use crate::dma::space::{AddressSpace, MapRequest};
use crate::wire::Errno;

const PAGE: u64 = 0x1000;

/// A region: first address, pages, and where it lies in the file, which is in
/// the low bits of its address in the process, too.
type Place = (u64, u64, u64);

fn memory() -> OwnedFd {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        // SAFETY: the name is a string.
        let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(16 * PAGE).unwrap();
        file
    });
    file.try_clone().unwrap().into()
}

fn map(space: &AddressSpace, (iova, pages, offset): Place) -> RegionId {
    let (prot, access, file) = (Prot::READ | Prot::WRITE, Access::Mmap, Some(memory()));
    space.map(MapRequest { iova, size: pages * PAGE, prot, access, file, offset }).unwrap().region
}

fn translate(space: &AddressSpace, iova: u64) -> Result<SgEntry, Errno> {
    let mut entry = SgEntry::ZERO;
    space.translate_with(iova, LENGTH, Prot::WRITE, 1, |_, found| entry = found)?;
    Ok(entry)
}

/// The one of the places that an entry for `iova` leads to, if it can be used.
fn check(space: &AddressSpace, entry: &SgEntry, iova: u64, places: &[Place]) -> Option<Place> {
    let found = space.get(entry).ok()?;
    let (start, base) = (iova - entry.offset(), found.iov_base as u64 - entry.offset());
    assert_eq!(found.iov_len as u64, LENGTH);
    let place = *places.iter().find(|place| (place.0, place.2) == (start, base % PAGE)).unwrap();
    Some(place)
}

const LENGTH: u64 = 8;
const IOVA: u64 = 0x2800;
const OLD: Place = (0x2000, 1, 0x100);
const NEW: Place = (0x1000, 4, 0x200);

/// A way to translate [`IOVA`].
type Way = fn(&AddressSpace) -> Option<SgEntry>;

fn recent(space: &AddressSpace) -> Option<SgEntry> {
    space.translate_recent(IOVA, LENGTH, Prot::WRITE)
}

fn one(space: &AddressSpace) -> Option<SgEntry> {
    space.translate_one(IOVA, LENGTH, Prot::WRITE)
}

fn at_once(space: &AddressSpace) -> Option<SgEntry> {
    let mut entry = None;
    space.translate_at_once(IOVA, LENGTH, Prot::WRITE, 1, |_, found| entry = Some(found))?;
    entry
}

/// A thread translates, one way only, and gets, while a region goes and another one comes to
/// the same slot: an entry that was made in the middle of the change is of no region, and
/// can't be used either. In between, the memory that told of the old one may go back to the
/// system, which makes zeroes of it.
fn an_entry_is_of_one_region(preemptions: usize, way: Way, between: fn(&AddressSpace)) {
    explore(preemptions, move || {
        let space = Arc::new(AddressSpace::new());
        let region = map(&space, OLD);
        let old = translate(&space, IOVA).unwrap();
        assert!(space.get(&old).is_ok());
        let writer = {
            let space = Arc::clone(&space);
            spawn(move || {
                space.remove(region);
                assert!(space.get(&old).is_err(), "the entry is stale after the remove");
                between(&space);
                map(&space, NEW);
            })
        };
        if let Some(entry) = way(&space)
            && check(&space, &entry, IOVA, &[OLD, NEW]) == Some(NEW)
        {
            assert_eq!(space.get(&old).err(), Some(Errno::EINVAL));
        }
        writer.join().unwrap();
        assert!(space.get(&old).is_err());
        let entry = translate(&space, IOVA).unwrap();
        assert_eq!(check(&space, &entry, IOVA, &[OLD, NEW]), Some(NEW));
    });
}

#[test]
fn an_entry_of_the_region_used_last() {
    an_entry_is_of_one_region(2, recent, |_| ());
}

#[test]
fn an_entry_of_one_search() {
    an_entry_is_of_one_region(1, one, |_| ());
}

#[test]
fn an_entry_of_one_look() {
    an_entry_is_of_one_region(1, at_once, |_| ());
}

#[test]
fn an_entry_of_the_region_used_last_while_memory_goes() {
    an_entry_is_of_one_region(1, recent, AddressSpace::give_back);
}

#[test]
fn an_entry_of_one_search_while_memory_goes() {
    an_entry_is_of_one_region(1, one, AddressSpace::give_back);
}

/// Alone, the region goes, and nothing comes for it: with both, this one model takes as long as all
/// others together, and what comes to a slot that was given back is looked for above.
#[test]
fn an_entry_of_one_look_while_memory_goes() {
    explore(1, || {
        let space = Arc::new(AddressSpace::new());
        let region = map(&space, OLD);
        let old = translate(&space, IOVA).unwrap();
        let writer = {
            let space = Arc::clone(&space);
            spawn(move || {
                space.remove(region);
                assert!(space.get(&old).is_err(), "the entry is stale after the remove");
                space.give_back();
            })
        };
        if let Some(entry) = at_once(&space) {
            check(&space, &entry, IOVA, &[OLD]);
        }
        writer.join().unwrap();
        assert!(space.get(&old).is_err());
        assert!(translate(&space, IOVA).is_err());
    });
}

/// With both: six minutes, so only where it is asked for, in `tests/loom`, by
/// `cargo test a_region_comes -- --ignored`.
#[test]
#[ignore = "takes six minutes"]
fn an_entry_of_one_look_while_memory_goes_and_a_region_comes() {
    an_entry_is_of_one_region(1, at_once, AddressSpace::give_back);
}

/// A thread translates a range over two regions that touch, with one look: what it finds if
/// nothing changes meanwhile.
fn across(space: &AddressSpace, entries: &mut [SgEntry; 2]) -> Option<Result<Translation, Errno>> {
    let mut put = |number: usize, found| entries[number] = found;
    space.index.try_read(|| space.walk(LOWER.0 + PAGE - 8, 16, Prot::WRITE, 2, &mut put))
}

/// Neighbours.
const LOWER: Place = (0x8000, 1, 0x100);
const UPPER: Place = (0x9000, 1, 0x200);

/// The entries of two neighbours, found while something is done that moves one of them or
/// both in the index, are of the two, in order.
fn neighbours_stay_in_order(
    prepare: fn(&AddressSpace) -> Option<RegionId>,
    change: fn(&AddressSpace, Option<RegionId>),
) {
    explore(1, move || {
        let space = Arc::new(AddressSpace::new());
        let region = prepare(&space);
        let writer = {
            let space = Arc::clone(&space);
            spawn(move || change(&space, region))
        };
        let mut entries = [SgEntry::ZERO; 2];
        let during = across(&space, &mut entries).map(|found| (found, entries));
        writer.join().unwrap();
        let after = across(&space, &mut entries).map(|found| (found, entries));
        assert!(after.is_some());
        for (found, [lower, upper]) in during.into_iter().chain(after) {
            assert_eq!(found, Ok(Translation::Filled(2)));
            assert_eq!((lower.offset(), upper.offset(), lower.length(), upper.length()), (PAGE - 8, 0, 8, 8));
            assert_eq!(check(&space, &lower, LOWER.0 + PAGE - 8, &[LOWER]), Some(LOWER));
            assert_eq!(check(&space, &upper, UPPER.0, &[UPPER]), Some(UPPER));
        }
    });
}

/// A third region below them, which moves both.
#[test]
fn neighbours_stay_in_order_while_a_region_comes_and_goes() {
    const BELOW: Place = (0, 1, 0x300);
    let prepare = |space: &AddressSpace| {
        map(space, LOWER);
        map(space, UPPER);
        None
    };
    neighbours_stay_in_order(prepare, |space, _| space.remove(map(space, BELOW)));
}

/// Maps both, each the only one of its leaf but for others that are given back: those below and
/// one above.
fn in_two_leaves(space: &AddressSpace) -> ([RegionId; 3], RegionId) {
    let below = [(0, 1, 0x300), (0x2000, 1, 0x400), (0x4000, 1, 0x500)].map(|place| map(space, place));
    map(space, LOWER);
    map(space, UPPER);
    (below, map(space, (0xb000, 1, 0x600)))
}

fn remove(space: &AddressSpace, region: Option<RegionId>) {
    space.remove(region.unwrap());
}

/// The upper one's leaf is made one with the lower one's.
#[test]
fn neighbours_stay_in_order_while_the_leaf_above_goes() {
    let prepare = |space: &AddressSpace| {
        let (below, above) = in_two_leaves(space);
        let [last, others @ ..] = below;
        others.into_iter().chain([above]).for_each(|region| space.remove(region));
        Some(last)
    };
    neighbours_stay_in_order(prepare, remove);
}

/// The same, found from the other side: it is the leaf that something goes of which goes.
#[test]
fn neighbours_stay_in_order_while_the_leaf_goes() {
    let prepare = |space: &AddressSpace| {
        let (below, above) = in_two_leaves(space);
        below.into_iter().for_each(|region| space.remove(region));
        Some(above)
    };
    neighbours_stay_in_order(prepare, remove);
}

/// Two threads that share a hint find each its own region.
#[test]
fn a_hint_of_two_threads() {
    const OTHER: Place = (0x8000, 2, 0x300);
    explore(2, || {
        let space = Arc::new(AddressSpace::new());
        map(&space, OLD);
        map(&space, OTHER);
        let other = {
            let space = Arc::clone(&space);
            spawn(move || {
                for _ in 0..2 {
                    let entry = translate(&space, 0x8100).unwrap();
                    assert_eq!(check(&space, &entry, 0x8100, &[OTHER]), Some(OTHER));
                }
            })
        };
        for _ in 0..2 {
            let entry = translate(&space, IOVA).unwrap();
            assert_eq!(check(&space, &entry, IOVA, &[OLD]), Some(OLD));
        }
        other.join().unwrap();
    });
}
