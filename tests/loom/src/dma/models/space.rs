//! The whole address space, by what C code calls.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use super::{explore, spawn};
use crate::dma::region::{Access, Prot, RegionId};
use crate::dma::sgl::SgEntry;
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
    space.translate_with(iova, 8, Prot::WRITE, 1, |_, found| entry = found)?;
    Ok(entry)
}

/// The one of the places that an entry for `iova` leads to, if it can be used.
fn check(space: &AddressSpace, entry: &SgEntry, iova: u64, places: &[Place]) -> Option<Place> {
    let found = space.get(entry).ok()?;
    let start = iova - entry.offset();
    let place = *places.iter().find(|place| place.0 == start).unwrap();
    let base = found.iov_base as u64 - entry.offset();
    assert_eq!((base % PAGE, found.iov_len), (place.2, 8));
    Some(place)
}

const IOVA: u64 = 0x2800;
const OLD: Place = (0x2000, 1, 0x100);
const NEW: Place = (0x1000, 4, 0x200);

/// A thread translates and gets while the region is removed and another one
/// comes to the same slot.
#[test]
fn an_entry_is_of_one_region() {
    explore(1, || {
        let space = Arc::new(AddressSpace::new());
        let region = map(&space, OLD);
        let old = translate(&space, IOVA).unwrap();
        assert!(space.get(&old).is_ok());
        let writer = {
            let space = Arc::clone(&space);
            spawn(move || {
                space.remove(region);
                assert!(space.get(&old).is_err(), "the entry is stale after the remove");
                map(&space, NEW);
            })
        };
        if let Ok(entry) = translate(&space, IOVA) {
            // One that was made in the middle of the change is of no region,
            // and can't be used either.
            let place = check(&space, &entry, IOVA, &[OLD, NEW]);
            if place == Some(NEW) {
                assert_eq!(space.get(&old).err(), Some(Errno::EINVAL));
            }
        }
        writer.join().unwrap();
        assert!(space.get(&old).is_err());
        let entry = translate(&space, IOVA).unwrap();
        assert_eq!(check(&space, &entry, IOVA, &[OLD, NEW]), Some(NEW));
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
