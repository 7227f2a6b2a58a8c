//! Tests of the address space as its users see it.

mod bitmap;
mod files;
mod index;
mod logging;
mod map;
mod model;
mod parts;
mod random;
mod reports;
mod sgl;
mod threads;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::*;
use crate::wire::{Errno, Result, bitmap_size};

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// One to three regions of up to so many pages and a bit, from address 0 on, one behind the other: start and size
/// of each, and where they end.
fn some_regions(random: &mut Random, pages: u64) -> (AddressSpace, Vec<(u64, u64)>, u64) {
    let (space, file, mut end) = (AddressSpace::new(), memory(page()), 0);
    let mut regions = Vec::new();
    for _ in 0..=random.below(3) {
        let size = (1 + random.below(pages)) * page() + random.below(2) * 512;
        space.map(request(end, size, Access::FileIo, Some(&file))).unwrap();
        regions.push((end, size));
        end += size;
    }
    (space, regions, end)
}

/// The host's page size.
fn page() -> u64 {
    super::mapping::host_page_size()
}

/// Memory of this many bytes.
fn memory(size: u64) -> OwnedFd {
    named_memory("dma-test", size)
}

fn named_memory(name: &str, size: u64) -> OwnedFd {
    let fd = memfd_create(CString::new(name).unwrap().as_c_str(), MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, i64::try_from(size).unwrap()).unwrap();
    fd
}

/// A map for reading and writing.
fn request(iova: u64, size: u64, access: Access, file: Option<&OwnedFd>) -> MapRequest {
    MapRequest {
        iova,
        size,
        prot: Prot::READ | Prot::WRITE,
        access,
        file: file.map(|fd| fd.as_fd().try_clone_to_owned().unwrap()),
        offset: 0,
    }
}

/// Maps for access by messages.
fn map_message(space: &AddressSpace, iova: u64, size: u64) -> Result<Mapped> {
    space.map(request(iova, size, Access::Message, None))
}

/// Maps new memory.
fn map_memory(space: &AddressSpace, iova: u64, size: u64) -> RegionId {
    space.map(request(iova, size, Access::Mmap, Some(&memory(size)))).unwrap().region
}

/// The one entry of these bytes.
fn entry(space: &AddressSpace, iova: u64, length: u64, prot: Prot) -> SgEntry {
    let entries = entries(space, iova, length, prot, 1).unwrap();
    assert_eq!(entries.1, Translation::Filled(1));
    entries.0[0]
}

/// The entries of these bytes, and what translate says.
fn entries(
    space: &AddressSpace,
    iova: u64,
    length: u64,
    prot: Prot,
    max: usize,
) -> Result<(Vec<SgEntry>, Translation)> {
    let mut entries = Vec::new();
    let translation = space.translate_with(iova, length, prot, max, |number, entry| {
        // They come again where the table changed meanwhile.
        entries.truncate(number);
        assert_eq!(number, entries.len());
        entries.push(entry);
    })?;
    Ok((entries, translation))
}

/// Removes the regions of a range, if it cuts through none. Returns how many.
fn remove_range(space: &AddressSpace, first: u64, last: u64) -> Result<u64> {
    space.check_uncut(first, last)?;
    let mut count = 0;
    let mut before = 0;
    while let Some(region) = space.first_within(first, last) {
        // SAFETY: the region is there.
        let start = unsafe { *space.info(region) }.iova.iov_base as u64;
        assert!(count == 0 || start > before);
        before = start;
        space.remove(region);
        count += 1;
    }
    Ok(count)
}

/// Marks bytes of one region dirty.
fn mark(space: &AddressSpace, iova: u64, length: u64) {
    space.mark_dirty(&entry(space, iova, length, Prot::WRITE));
}

/// A report, as words.
fn report(space: &AddressSpace, iova: u64, length: u64, page_size: u64) -> Result<Vec<u64>> {
    let mut bitmap = vec![0xa5; usize::try_from(bitmap_size(length, page_size)?).unwrap()];
    space.report(iova, length, page_size, &mut bitmap)?;
    Ok(bitmap.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect())
}
