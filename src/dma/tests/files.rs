//! Sharing of descriptors.

use std::fs;
use std::os::fd::OwnedFd;

use super::*;

/// How many descriptors of this process are open on memory of this name.
fn open_count(name: &str) -> usize {
    let wanted = format!("/memfd:{name} (deleted)");
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter(|link| link.as_os_str() == &*wanted)
        .count()
}

#[test]
fn one_descriptor_is_kept_for_all_regions_of_a_file() {
    let (space, other) = (AddressSpace::new(), AddressSpace::new());
    let fd = named_memory("dma-shared", 1 << 20);
    let mut regions = Vec::new();
    for i in 0..1000 {
        let access = if i % 2 == 0 { Access::Mmap } else { Access::FileIo };
        regions.push(space.map(request(i * page(), page(), access, Some(&fd))).unwrap().region);
    }
    assert_eq!(open_count("dma-shared"), 2);
    other.map(request(0, page(), Access::Mmap, Some(&fd))).unwrap();
    // The same again, and refused ones.
    assert!(!other.map(request(0, page(), Access::Mmap, Some(&fd))).unwrap().fresh);
    assert!(other.map(request(0, 2 * page(), Access::Mmap, Some(&fd))).is_err());
    assert_eq!(open_count("dma-shared"), 2);
    drop(fd);
    assert_eq!(open_count("dma-shared"), 1);
    for region in regions {
        assert_eq!(open_count("dma-shared"), 1);
        space.remove(region);
    }
    assert_eq!(open_count("dma-shared"), 1);
    drop(other);
    assert_eq!(open_count("dma-shared"), 0);
}

#[test]
fn files_opened_twice_are_two() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(page()).unwrap();
    let open = || OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap());
    let fds: Vec<_> = (0..20).map(|_| open()).collect();
    let space = AddressSpace::new();
    for (i, fd) in fds.iter().enumerate() {
        let request = |fd| request(i as u64 * page(), page(), Access::FileIo, Some(fd));
        assert!(space.map(request(fd)).unwrap().fresh);
        assert!(!space.map(request(fd)).unwrap().fresh);
        assert_eq!(space.map(request(&fds[(i + 1) % 20])).unwrap_err(), Errno::EEXIST);
    }
}

#[test]
fn a_failed_map_keeps_nothing() {
    let space = AddressSpace::new();
    let fd = named_memory("dma-failed", page());
    let wraps = MapRequest { offset: u64::MAX - 1, ..request(0, page(), Access::Mmap, Some(&fd)) };
    assert!(space.map(wraps).is_err());
    assert_eq!(open_count("dma-failed"), 1);
}
