//! Mapping and unmapping.

use std::os::fd::OwnedFd;
use std::slice;

use super::super::slots::LOOKS;
use super::*;

fn error(result: Result<Mapped>) -> Errno {
    result.unwrap_err()
}

#[test]
fn sizes_are_checked_in_order() {
    let space = AddressSpace::new();
    assert_eq!(error(map_message(&space, 0, MAX_REGION_SIZE + 1)), Errno::ENOSPC);
    assert_eq!(error(map_message(&space, u64::MAX, MAX_REGION_SIZE + 1)), Errno::ENOSPC);
    assert_eq!(error(map_message(&space, 0, 0)), Errno::EINVAL);
    let fd = memory(page());
    assert_eq!(error(space.map(request(0, 0, Access::Mmap, Some(&fd)))), Errno::EINVAL);
    assert_eq!(error(map_message(&space, u64::MAX, 2)), Errno::EINVAL);
    assert!(space.is_empty());
    assert!(map_message(&space, 0, MAX_REGION_SIZE).is_ok());
}

#[test]
fn the_topmost_page_is_like_any_other() {
    let space = AddressSpace::new();
    let start = u64::MAX - 4095;
    let mapped = map_message(&space, start, 4096).unwrap();
    assert_eq!(space.find_exact(start, 4096), Some(mapped.region));
    let entry = entry(&space, u64::MAX, 1, Prot::WRITE);
    assert_eq!(space.range_of(&entry).unwrap().iova, u64::MAX);
    assert_eq!(error(map_message(&space, start - 1, 2)), Errno::EEXIST);
    assert_eq!(entries(&space, u64::MAX, 2, Prot::READ, 1).unwrap_err(), Errno::ENOENT);
    assert_eq!(entries(&space, start + 8, u64::MAX, Prot::READ, 1).unwrap_err(), Errno::ENOENT);
    space.remove(mapped.region);
    assert!(space.is_empty() && space.first_within(0, u64::MAX).is_none());
}

#[test]
fn overlaps_are_refused_and_change_nothing() {
    let space = AddressSpace::new();
    space.set_limit(2);
    let one = map_message(&space, 0x4000, 0x4000).unwrap();
    map_message(&space, 0xc000, 0x4000).unwrap();
    for (iova, size) in [(0x4000, 0x1000), (0x7fff, 1), (0x3000, 0x1001), (0, 0x10000), (0x5000, 0x1000)] {
        assert_eq!(error(map_message(&space, iova, size)), Errno::EEXIST, "{iova:x} {size:x}");
    }
    // Overlaps are looked for before the limit.
    assert_eq!(error(map_message(&space, 0, 0x1000)), Errno::EINVAL);
    assert_eq!(space.len(), 2);
    space.remove(one.region);
    assert!(map_message(&space, 0, 0x1000).is_ok());
}

#[test]
fn the_same_map_again_succeeds() {
    let space = AddressSpace::new();
    let (fd, other) = (memory(0x4000), memory(0x4000));
    let first = space.map(request(0, 0x2000, Access::Mmap, Some(&fd))).unwrap();
    assert!(first.fresh);
    let again = space.map(request(0, 0x2000, Access::Mmap, Some(&fd))).unwrap();
    assert!(!again.fresh && again.region == first.region);
    let differing = [
        request(0, 0x2000, Access::FileIo, Some(&fd)),
        request(0, 0x2000, Access::Mmap, Some(&other)),
        request(0, 0x2000, Access::Message, None),
        MapRequest { prot: Prot::READ, ..request(0, 0x2000, Access::Mmap, Some(&fd)) },
        MapRequest { offset: 0x1000, ..request(0, 0x2000, Access::Mmap, Some(&fd)) },
        request(0, 0x1000, Access::Mmap, Some(&fd)),
    ];
    for request in differing {
        assert_eq!(error(space.map(request)), Errno::EEXIST);
    }
    assert!(map_message(&space, 0x8000, 1).unwrap().fresh);
    assert!(!map_message(&space, 0x8000, 1).unwrap().fresh);
}

#[test]
fn info_says_what_the_callbacks_are_to_know() {
    let space = AddressSpace::new();
    let fd = memory(8 * page());
    let message = map_message(&space, 0x1000, 0x3000).unwrap().region;
    let mapped = MapRequest { offset: page() + 16, ..request(0x10000, 2 * page(), Access::Mmap, Some(&fd)) };
    let mapped = space.map(mapped).unwrap().region;
    let file_io = space.map(request(0x100000, page(), Access::FileIo, Some(&fd))).unwrap().region;
    // SAFETY: the regions are there, so their information is.
    let info = |region| unsafe { *space.info(region) };
    let information = info(message);
    assert_eq!((information.iova.iov_base as usize, information.iova.iov_len), (0x1000, 0x3000));
    for info in [information, info(file_io)] {
        assert!(info.vaddr.is_null() && info.mapping.iov_base.is_null());
        assert_eq!((info.mapping.iov_len, info.prot), (0, 3));
        assert_eq!(info.page_size as u64, page());
    }
    let info = info(mapped);
    assert_eq!(info.vaddr as usize, info.mapping.iov_base as usize + 16);
    // The part of a page before the region is mapped, too.
    assert_eq!(info.mapping.iov_len as u64, 3 * page());
    space.remove(mapped);
    assert!(space.info(mapped).is_null() && !space.info(message).is_null());
    assert_eq!(std::mem::size_of::<DmaInfo>(), 56);
}

#[test]
fn descriptors_are_checked() {
    let space = AddressSpace::new();
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = OwnedFd::from(socket);
    for fd in [&pipe, &socket] {
        assert_eq!(error(space.map(request(0, page(), Access::FileIo, Some(fd)))), Errno::EINVAL);
        let mmap = MapRequest { prot: Prot::READ, ..request(0, page(), Access::Mmap, Some(fd)) };
        let mmap = error(space.map(mmap));
        assert_eq!(mmap.number(), libc::ENODEV);
    }
    let read_only = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    assert_eq!(error(space.map(request(0, page(), Access::Mmap, Some(&read_only)))), Errno::EACCES);
    let zero = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
    assert_eq!(error(space.map(request(0, page(), Access::FileIo, Some(&zero)))), Errno::EINVAL);
    assert!(
        space.map(MapRequest { prot: Prot::READ, ..request(0, page(), Access::Mmap, Some(&zero)) }).is_ok()
    );
    assert_eq!(error(space.map(request(page(), page(), Access::FileIo, None))), Errno::EINVAL);
    let wraps =
        MapRequest { offset: u64::MAX - 1, ..request(page(), page(), Access::Mmap, Some(&memory(1))) };
    assert_eq!(error(space.map(wraps)), Errno::EINVAL);
    assert_eq!(space.len(), 1);
}

#[test]
fn pages_beyond_the_file_are_harmless() {
    let space = AddressSpace::new();
    let fd = memory(2 * page() + 5);
    let mapped = space.map(request(0, 8 * page(), Access::Mmap, Some(&fd))).unwrap();
    assert_eq!(mapped.beyond_file, Some(5 * page()));
    let iov = space.get(&entry(&space, 0, 8 * page(), Prot::WRITE)).unwrap();
    // SAFETY: the region is mapped and nobody else uses it.
    let bytes = unsafe { slice::from_raw_parts_mut(iov.iov_base.cast::<u8>(), iov.iov_len) };
    bytes.fill(1);
    assert!(bytes.iter().all(|byte| *byte == 1));
    let stat = nix::sys::stat::fstat(&fd).unwrap();
    assert_eq!(stat.st_size as u64, 2 * page() + 5);
    // Wholly beyond, and beyond within the last page.
    let beyond = MapRequest { offset: 4 * page() + 1, ..request(1 << 40, page(), Access::Mmap, Some(&fd)) };
    assert_eq!(space.map(beyond).unwrap().beyond_file, Some(page()));
    let within = request(1 << 41, 3 * page(), Access::Mmap, Some(&fd));
    assert_eq!(space.map(within).unwrap().beyond_file, None);
    let empty = request(1 << 42, page(), Access::Mmap, Some(&memory(0)));
    assert_eq!(space.map(empty).unwrap().beyond_file, Some(page()));
}

#[test]
fn a_hundred_thousand_regions() {
    const COUNT: u64 = 100_000;
    let space = AddressSpace::new();
    let fd = memory(page());
    // Neither ascending nor descending.
    let order = || (0..COUNT).map(|i| i * 7919 % COUNT);
    for i in order() {
        space.map(request(i * 0x2000, 0x1000, Access::FileIo, Some(&fd))).unwrap();
    }
    assert_eq!(space.len(), COUNT);
    for i in order() {
        let entry = entry(&space, i * 0x2000 + 0xfff, 1, Prot::READ);
        assert_eq!(space.range_of(&entry).unwrap().iova, i * 0x2000 + 0xfff);
        assert_eq!(entries(&space, i * 0x2000 + 0x1000, 1, Prot::READ, 1), Err(Errno::ENOENT));
    }
    for i in order().filter(|i| i % 3 != 0) {
        space.remove(space.find_exact(i * 0x2000, 0x1000).unwrap());
    }
    for i in 0..COUNT {
        let found = space.find_exact(i * 0x2000, 0x1000);
        assert_eq!(found.is_some(), i % 3 == 0);
    }
    let mut last = 0;
    while let Some(region) = space.first_within(0, u64::MAX) {
        // SAFETY: the region is there.
        let start = unsafe { *space.info(region) }.iova.iov_base as u64;
        assert!(start >= last);
        last = start;
        space.remove(region);
    }
    assert_eq!((last, space.len()), ((COUNT - 1) / 3 * 3 * 0x2000, 0));
}

#[test]
fn a_range_is_found_without_looking_at_all_regions() {
    const COUNT: u64 = 100_000;
    let space = AddressSpace::new();
    for i in 0..COUNT {
        map_message(&space, i * 0x2000, 0x1000).unwrap();
    }
    let looks = |f: &dyn Fn()| {
        let before = LOOKS.get();
        f();
        LOOKS.get() - before
    };
    for i in [1, 255, 256, 257, COUNT / 2, COUNT - 1] {
        let start = i * 0x2000;
        let nothing = || assert_eq!(space.check_uncut(start - 0x1000, start - 1), Err(Errno::ENOENT));
        let cut = || assert_eq!(space.check_uncut(start - 1, start), Err(Errno::EINVAL));
        let in_part = || assert_eq!(space.check_uncut(start, start), Err(Errno::EINVAL));
        assert!([looks(&nothing), looks(&cut), looks(&in_part)].iter().all(|count| *count <= 3));
    }
    // Two for each that goes, of which one finds it, and a few at the ends.
    let some = || assert_eq!(remove_range(&space, 0x2000 * 500, 0x2000 * 1500 - 1), Ok(1000));
    assert!(looks(&some) <= 2010);
    let rest = || assert_eq!(remove_range(&space, 0, u64::MAX), Ok(COUNT - 1000));
    assert!(looks(&rest) <= 2 * COUNT);
    assert!(space.is_empty());
}

#[test]
fn ranges_end_where_addresses_do() {
    let space = AddressSpace::new();
    let top = u64::MAX - 4095;
    map_message(&space, 0, 4096).unwrap();
    map_message(&space, top, 4096).unwrap();
    assert_eq!(space.check_uncut(1, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(space.check_uncut(0, u64::MAX - 1), Err(Errno::EINVAL));
    assert_eq!(space.check_uncut(4096, top - 1), Err(Errno::ENOENT));
    assert_eq!(remove_range(&space, 4096, u64::MAX), Ok(1));
    assert_eq!(space.check_uncut(4096, u64::MAX), Err(Errno::ENOENT));
    assert_eq!(remove_range(&space, 0, 4095), Ok(1));
    assert_eq!(space.check_uncut(0, u64::MAX), Err(Errno::ENOENT));
}
