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
const LOWER: Place = (0x1000, 1, 0x100);
const UPPER: Place = (0x2000, 1, 0x200);

/// The entries of two neighbours, found while a third region below them comes or goes, which
/// moves both in the index, are of the two, in order.
#[test]
fn neighbours_stay_in_order() {
    const BELOW: Place = (0, 1, 0x300);
    explore(1, || {
        let space = Arc::new(AddressSpace::new());
        map(&space, LOWER);
        map(&space, UPPER);
        let writer = {
            let space = Arc::clone(&space);
            spawn(move || space.remove(map(&space, BELOW)))
        };
        let mut entries = [SgEntry::ZERO; 2];
        if let Some(found) = across(&space, &mut entries) {
            assert_eq!(found, Ok(Translation::Filled(2)));
            let [lower, upper] = entries;
            assert_eq!((lower.offset(), upper.offset(), lower.length(), upper.length()), (PAGE - 8, 0, 8, 8));
            assert_eq!(check(&space, &lower, LOWER.0 + PAGE - 8, &[LOWER]), Some(LOWER));
            assert_eq!(check(&space, &upper, UPPER.0, &[UPPER]), Some(UPPER));
        }
        writer.join().unwrap();
    });
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
