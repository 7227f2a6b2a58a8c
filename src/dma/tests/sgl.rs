//! Entries: translating, using, outliving.

use std::mem::{MaybeUninit, transmute};
use std::os::unix::fs::FileExt;

use super::*;
use crate::dma::slots::Slot;

const RW: Prot = Prot::READ.union(Prot::WRITE);

#[test]
fn the_layout_is_the_documented_one() {
    let space = AddressSpace::new();
    map_message(&space, 0x1122_3344_5566_7000, 0x1000).unwrap();
    let entry = entry(&space, 0x1122_3344_5566_7010, 0x20, Prot::WRITE);
    // SAFETY: five numbers are forty bytes.
    let bytes: [u8; 40] = unsafe { transmute(entry) };
    let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!((number(0), number(16), number(24)), (0x1122_3344_5566_7000, 0x20, 0x10));
    assert_ne!(number(8) as u32, 0);
    assert_eq!(bytes[32], 1);
    assert_ne!(bytes[33..], [0; 7]);
}

#[test]
fn one_entry_per_region() {
    let space = AddressSpace::new();
    for i in 1..=3 {
        map_message(&space, i << 12, 1 << 12).unwrap();
    }
    let (list, translation) = entries(&space, 0x1800, 0x2000, RW, 3).unwrap();
    assert_eq!(translation, Translation::Filled(3));
    let ranges: Vec<_> = list.iter().map(|e| (e.offset(), e.length())).collect();
    assert_eq!(ranges, [(0x800, 0x800), (0, 0x1000), (0, 0x800)]);
    for max in 0..3 {
        let (list, translation) = entries(&space, 0x1800, 0x2000, RW, max).unwrap();
        assert_eq!((list.len(), translation), (max, Translation::TooSmall(3)));
    }
    assert_eq!(entries(&space, 0x3800, 0x801, RW, 9), Err(Errno::ENOENT));
    assert_eq!(entries(&space, 0xfff, 2, RW, 9), Err(Errno::ENOENT));
    assert_eq!(entries(&space, 0x99999, 0, RW, 0).unwrap().1, Translation::Filled(0));
    let mut raw = [MaybeUninit::uninit(); 2];
    assert_eq!(space.translate(0x1800, 0x2000, RW, &mut raw), Ok(Translation::TooSmall(3)));
    // SAFETY: the entries that fit are filled in.
    assert_eq!(unsafe { raw[1].assume_init() }.length(), 0x1000);
}

#[test]
fn permissions_of_the_entries_that_fit() {
    let space = AddressSpace::new();
    let with = |iova, prot| space.map(MapRequest { prot, ..request(iova, 0x1000, Access::Message, None) });
    with(0x0000, RW).unwrap();
    with(0x1000, Prot::READ).unwrap();
    with(0x2000, Prot::WRITE).unwrap();
    with(0x3000, Prot::empty()).unwrap();
    let ask = |iova, prot| entries(&space, iova, 1, prot, 1).map(|_| ());
    for (iova, allowed) in [(0, RW), (0x1000, Prot::READ), (0x2000, Prot::WRITE), (0x3000, Prot::empty())] {
        for prot in [Prot::empty(), Prot::READ, Prot::WRITE, RW] {
            // Twice: by search and by hint.
            for _ in 0..2 {
                let expected = if allowed.contains(prot) { Ok(()) } else { Err(Errno::EACCES) };
                assert_eq!(ask(iova, prot), expected);
            }
        }
    }
    assert_eq!(entries(&space, 0, 0x2000, Prot::WRITE, 1).unwrap().1, Translation::TooSmall(2));
    assert_eq!(entries(&space, 0, 0x2000, Prot::WRITE, 2), Err(Errno::EACCES));
    assert!(entry(&space, 0, 1, Prot::WRITE).is_writeable());
    assert!(!entry(&space, 0, 1, Prot::READ).is_writeable());
}

#[test]
fn hints_do_not_wrap() {
    let space = AddressSpace::new();
    map_message(&space, 0x1000, 0x1000).unwrap();
    entry(&space, 0x1000, 1, Prot::READ);
    for (iova, length) in [
        (u64::MAX, 2),
        (u64::MAX - 8, u64::MAX),
        (0x1008, u64::MAX),
        (0x1fff, 2),
        (0x1000, 0x1001),
        (0xfff, 1),
    ] {
        assert_eq!(entries(&space, iova, length, Prot::READ, 1), Err(Errno::ENOENT));
    }
}

#[test]
fn only_mapped_regions_can_be_got() {
    let space = AddressSpace::new();
    map_message(&space, 0, 0x1000).unwrap();
    space.map(request(0x10000, page(), Access::FileIo, Some(&memory(page())))).unwrap();
    let mapped = map_memory(&space, 0x100000, page());
    // SAFETY: the region is there.
    let vaddr = unsafe { *space.info(mapped) }.vaddr as usize;
    let got = space.get(&entry(&space, 0x100010, 0x20, RW)).unwrap();
    assert_eq!((got.iov_base as usize, got.iov_len), (vaddr + 0x10, 0x20));
    for iova in [0, 0x10000] {
        let entry = entry(&space, iova, 1, Prot::READ);
        assert_eq!(space.get(&entry).unwrap_err(), Errno::EFAULT);
        assert!(!space.is_mappable(&entry));
    }
    assert!(space.is_mappable(&entry(&space, 0x100000, 1, Prot::READ)));
    let error = space.get(&SgEntry::ZERO).unwrap_err();
    assert_eq!(error, Errno::EINVAL);
    assert!(!space.is_mappable(&SgEntry::ZERO));
    space.mark_dirty(&SgEntry::ZERO);
}

#[test]
fn a_slot_is_one_cache_line() {
    assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (64, 64));
}

#[test]
fn garbage_is_refused() {
    let space = AddressSpace::new();
    map_memory(&space, 0, page());
    space.logging_start(page(), &[]).unwrap();
    // SAFETY: any five numbers are an entry.
    let made = |numbers: [u64; 5]| unsafe { transmute::<[u64; 5], SgEntry>(numbers) };
    // SAFETY: as above.
    let good = unsafe { transmute::<SgEntry, [u64; 5]>(entry(&space, 0, page(), RW)) };
    assert!(space.get(&made(good)).is_ok());
    for field in 1..5 {
        for value in [0, 1, 63, 64, 127, 1 << 20, 1 << 32, u64::MAX, !good[field]] {
            let mut bad = good;
            bad[field] = value;
            let entry = made(bad);
            space.mark_dirty(&entry);
            // It may be for fewer bytes of its region.
            let may_pass = bad == good || field == 2 && value <= page() || field == 3 && value == 0;
            assert_eq!(space.is_mappable(&entry), may_pass);
            assert_eq!(space.get(&entry).is_ok(), may_pass, "{field} {value:x}");
            // The tag tells; the handle is not asked for.
            assert_eq!(space.get_recent(&entry).is_some(), may_pass || field == 1, "{field} {value:x}");
        }
    }
}

#[test]
fn entries_that_outlive_their_region_fail() {
    let (space, other) = (AddressSpace::new(), AddressSpace::new());
    let region = map_memory(&space, 0x1000, page());
    map_memory(&other, 0x1000, page());
    space.logging_start(page(), &[]).unwrap();
    let old = entry(&space, 0x1000, 8, RW);
    assert!(other.get(&old).is_err(), "entries of another address space");
    space.remove(region);
    let check = || {
        assert_eq!(space.get(&old).unwrap_err(), Errno::EINVAL);
        assert!(space.get_recent(&old).is_none());
        assert_eq!(space.range_of(&old).unwrap_err(), Errno::EINVAL);
        // SAFETY: eight bytes are asked for.
        assert_eq!(unsafe { space.read(&old, [0; 8].as_mut_ptr()) }.unwrap_err(), Errno::EINVAL);
        // SAFETY: eight bytes are offered.
        assert_eq!(unsafe { space.write(&old, [0; 8].as_ptr()) }.unwrap_err(), Errno::EINVAL);
        assert!(!space.is_mappable(&old));
        space.mark_dirty(&old);
    };
    check();
    assert_eq!(entries(&space, 0x1000, 8, RW, 1), Err(Errno::ENOENT), "by a stale hint");
    // The same addresses, and the same slot.
    let again = map_memory(&space, 0x1000, page());
    assert_eq!(again.handle, region.handle);
    check();
    assert_eq!(report(&space, 0x1000, page(), page()).unwrap(), [0]);
    assert!(space.info(region).is_null());
    space.remove(region);
    assert_eq!(space.len(), 1);
    let new = entry(&space, 0x1000, 8, RW);
    assert!(space.get(&new).is_ok() && space.get_recent(&new).is_some() && new != old);
}

#[test]
fn direct_access_moves_bytes_and_marks_writes() {
    let fd = memory(4 * page());
    let file = std::fs::File::from(fd.try_clone().unwrap());
    for access in [Access::Mmap, Access::FileIo] {
        let space = AddressSpace::new();
        space.map(MapRequest { offset: page(), ..request(0, 3 * page(), access, Some(&fd)) }).unwrap();
        space.logging_start(page(), &[]).unwrap();
        let at = entry(&space, page() + 3, 5, RW);
        // SAFETY: five bytes are offered.
        unsafe { space.write(&at, b"hello".as_ptr()) }.unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 2 * page() + 3).unwrap();
        assert_eq!(&bytes, b"hello");
        file.write_all_at(b"world", 2 * page() + 3).unwrap();
        // SAFETY: five bytes are asked for.
        unsafe { space.read(&at, bytes.as_mut_ptr()) }.unwrap();
        assert_eq!(&bytes, b"world");
        assert_eq!(report(&space, 0, 3 * page(), page()).unwrap(), [2]);
    }
}

#[test]
fn file_errors_are_eio() {
    let space = AddressSpace::new();
    space.map(request(0, 2 * page(), Access::FileIo, Some(&memory(page())))).unwrap();
    let mut bytes = [0; 16];
    let across_the_end = entry(&space, page() - 8, 16, RW);
    // SAFETY: sixteen bytes are asked for.
    assert_eq!(unsafe { space.read(&across_the_end, bytes.as_mut_ptr()) }, Err(Errno::EIO));
    let far = MapRequest { offset: u64::MAX - 8, ..request(1 << 40, 16, Access::FileIo, Some(&memory(1))) };
    space.map(far).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { space.read(&entry(&space, 1 << 40, 16, RW), bytes.as_mut_ptr()) }, Err(Errno::EIO));
    map_message(&space, 1 << 50, 16).unwrap();
    // SAFETY: as above.
    let by_message = unsafe { space.read(&entry(&space, 1 << 50, 16, RW), bytes.as_mut_ptr()) };
    assert_eq!(by_message, Err(Errno::EFAULT));
}
