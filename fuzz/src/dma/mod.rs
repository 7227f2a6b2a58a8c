//! Maps, translations, dirty pages and reports, against an address space that
//! is looked at byte range by byte range.

mod model;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::slice;

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_user::dma::{Access, AddressSpace, MapRequest, Prot, SgEntry, Translation};
use vfio_user::wire::{Errno, LoggingRange, bitmap_size};

use model::{Attributes, Model};

/// Sizes and addresses are multiples of this most of the time.
const UNIT: u64 = 512;
/// Addresses that are used, in units.
const SPACE: u64 = 2048;
/// The largest bitmap that is made, in bytes: there is no more to be seen in
/// larger ones.
const LARGEST_BITMAP: u64 = 1 << 14;
/// Bytes that are marked dirty at a time; the model goes from page to page.
const LONGEST_MARK: u64 = 1 << 24;
/// Size of each file in bytes.
const FILE_SIZES: [u64; 3] = [0x1000, 0x8800, 0x100000];

pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(mut both) = Both::new(&mut u) else { return };
    while !u.is_empty() && both.step(&mut u).is_ok() {}
    both.finish();
}

/// The address space and its model, and what goes with them.
struct Both {
    space: AddressSpace,
    model: Model,
    /// Where the addresses start.
    base: u64,
    files: [File; 3],
    /// Entries with the start of their region and the region's number in the
    /// model, good or not.
    entries: Vec<(SgEntry, u64)>,
}

fn memory(size: u64) -> File {
    let file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("memory"));
    file.set_len(size).expect("memory");
    file
}

/// The bytes of an entry that can be mapped.
fn bytes_of(space: &AddressSpace, entry: &SgEntry) -> Option<&'static mut [u8]> {
    let found = space.get(entry).ok()?;
    // SAFETY: the region is mapped as long as the entry is good, and the slice
    // does not outlive the step; nobody else uses the memory.
    Some(unsafe { slice::from_raw_parts_mut(found.iov_base.cast(), found.iov_len) })
}

impl Both {
    fn new(u: &mut Unstructured) -> Result<Both> {
        let top = 0_u64.wrapping_sub(SPACE * UNIT);
        let base = *u.choose(&[0, 7 * UNIT, 1 << 40, top, top + 1])?;
        let files = FILE_SIZES.map(memory);
        Ok(Both { space: AddressSpace::new(), model: Model::default(), base, files, entries: Vec::new() })
    }

    fn at(&self, u: &mut Unstructured) -> Result<u64> {
        Ok(match u8::arbitrary(u)? {
            0..8 => u64::arbitrary(u)?,
            8..16 => self.base.wrapping_add(u.int_in_range(0..=SPACE * UNIT)?),
            16..120 => self.model.nth(u.arbitrary()?).map_or(self.base, |(start, region)| {
                let units = region.size / UNIT;
                start.wrapping_add(u.int_in_range(0..=units.min(SPACE)).unwrap_or(0) * UNIT)
            }),
            _ => self.base.wrapping_add(u.int_in_range(0..=SPACE - 1)? * UNIT),
        })
    }

    fn length(&self, u: &mut Unstructured) -> Result<u64> {
        Ok(match u8::arbitrary(u)? {
            0..4 => u64::arbitrary(u)?,
            4..8 => (8 << 40) - 1 + u64::from(u8::arbitrary(u)? % 3),
            8..32 => u.int_in_range(0..=64 * UNIT)?,
            32..128 => u.int_in_range(1..=40)? * UNIT,
            128..160 => u.int_in_range(1..=16)? * 8 * UNIT,
            _ => u.int_in_range(1..=600)? * UNIT,
        })
    }

    fn step(&mut self, u: &mut Unstructured) -> Result<()> {
        match u8::arbitrary(u)? % 32 {
            0..8 => self.map(u)?,
            8..10 => self.map_again(u)?,
            10..12 => self.remove(u)?,
            12..16 => self.translate(u)?,
            16..21 => self.mark(u)?,
            21..24 => self.logging_start(u)?,
            24 => {
                self.space.logging_stop();
                self.model.stop();
            }
            25 => {
                let limit = u64::from(u8::arbitrary(u)? % 40);
                self.space.set_limit(limit);
                self.model.limit = limit;
            }
            26..29 => {
                let (at, length, page_size) = (self.at(u)?, self.length(u)?, page_size(u)?);
                self.report(at, length, page_size);
            }
            29 | 30 => self.report_region(u)?,
            _ => self.touch_entry(u)?,
        }
        assert_eq!(self.space.len(), self.model.regions.len() as u64);
        assert_eq!(self.space.is_empty(), self.model.regions.is_empty());
        assert_eq!(self.space.logging_page_size(), self.model.page_size());
        Ok(())
    }

    fn map(&mut self, u: &mut Unstructured) -> Result<()> {
        let (iova, mut size) = (self.at(u)?, self.length(u)?);
        let access =
            *u.choose(&[Access::Message, Access::Mmap, Access::Mmap, Access::FileIo, Access::FileIo])?;
        let offset = match u8::arbitrary(u)? {
            0 => u64::arbitrary(u)?,
            1..32 => u.int_in_range(0..=0x9000)?,
            other => u64::from(other % 16) * UNIT,
        };
        let attributes = Attributes {
            prot: Prot::from_bits_truncate(u8::arbitrary(u)?.into()),
            access,
            file: (access != Access::Message).then_some(u.choose_index(3)?),
            offset,
        };
        if access == Access::Mmap && size <= 8 << 40 {
            // What lies beyond a file is real memory.
            size = size.min(1 << 24);
        }
        self.map_with(iova, size, attributes);
        Ok(())
    }

    /// A region that there is, or nearly so.
    fn map_again(&mut self, u: &mut Unstructured) -> Result<()> {
        let Some((start, region)) = self.model.nth(u.arbitrary()?) else { return Ok(()) };
        let (mut size, mut attributes) = (region.size, region.attributes);
        match u8::arbitrary(u)? % 16 {
            0 => size += 1,
            1 => size -= 1,
            2 => attributes.prot ^= Prot::READ,
            3 => attributes.offset ^= UNIT,
            4 => attributes.file = attributes.file.map(|file| (file + 1) % 3),
            5 if attributes.access != Access::Message => attributes.access = Access::FileIo,
            6 => (attributes.access, attributes.file) = (Access::Message, None),
            _ => {}
        }
        self.map_with(start, size, attributes);
        Ok(())
    }

    fn map_with(&mut self, iova: u64, size: u64, attributes: Attributes) {
        let Attributes { prot, access, file, offset } = attributes;
        let file = file.map(|n| OwnedFd::from(self.files[n].try_clone().expect("descriptors")));
        let outcome = self.space.map(MapRequest { iova, size, prot, access, file, offset });
        let expected = self.model.can_map(iova, size, attributes);
        if access == Access::Mmap && expected == Ok(true) && outcome.is_err() {
            // The kernel's own opinion of offsets and sizes.
            return;
        }
        assert_eq!(outcome.map(|mapped| mapped.fresh), expected);
        if expected != Ok(true) {
            return;
        }
        self.model.add(iova, size, attributes);
        let region = self.space.find_exact(iova, size).expect("it was mapped");
        // SAFETY: the region is there.
        let info = unsafe { *self.space.info(region) };
        assert_eq!((info.iova.iov_base as u64, info.iova.iov_len as u64), (iova, size));
        assert_eq!(info.prot, prot.bits());
        assert_eq!(info.vaddr.is_null(), access != Access::Mmap);
        assert_eq!(info.mapping.iov_base.is_null(), access != Access::Mmap);
        if access == Access::Mmap {
            let before = info.vaddr as u64 - info.mapping.iov_base as u64;
            assert!(before + size <= info.mapping.iov_len as u64);
        }
    }

    /// Removes what lies in a range, as an unmap of the client does.
    fn remove_range(&mut self, first: u64, last: u64) {
        let mut count = 0;
        let outcome = self.space.check_uncut(first, last).map(|()| {
            while let Some(region) = self.space.first_within(first, last) {
                self.space.remove(region);
                count += 1;
            }
            count
        });
        assert_eq!(outcome, self.model.remove_range(first, last));
    }

    fn remove(&mut self, u: &mut Unstructured) -> Result<()> {
        let near = u8::arbitrary(u)?;
        let Some((start, region)) = self.model.nth(u.arbitrary()?) else { return Ok(()) };
        let size = region.size;
        if near >= 192 {
            let more = u64::from(near) % 4 * 4096;
            let first = start.saturating_sub(more);
            self.remove_range(first, start.saturating_add(size - 1).saturating_add(self.length(u)?));
            return Ok(());
        }
        if near < 16 {
            assert!(self.space.find_exact(start, size.wrapping_add(1)).is_none());
            assert!(self.space.find_exact(start.wrapping_add(1), size).is_none());
        }
        let first = self.space.first_within(0, u64::MAX).expect("there is one");
        // SAFETY: the region is there.
        let lowest = unsafe { *self.space.info(first) }.iova.iov_base as u64;
        assert_eq!(Some(lowest), self.model.nth(0).map(|(start, _)| start));
        let region = self.space.find_exact(start, size).expect("it is there");
        self.space.remove(region);
        self.space.remove(region);
        assert!(self.space.info(region).is_null());
        self.model.remove(start);
        Ok(())
    }

    fn translate(&mut self, u: &mut Unstructured) -> Result<()> {
        let (at, length) = (self.at(u)?, self.length(u)?);
        let prot = Prot::from_bits_truncate(u8::arbitrary(u)?.into());
        let max = usize::from(u8::arbitrary(u)? % 6);
        let mut found = Vec::new();
        let outcome = self.space.translate_with(at, length, prot, max, |number, entry| {
            assert_eq!(number, found.len());
            found.push(entry);
        });
        let expected = match self.model.translate(at, length, prot, max) {
            Ok(expected) => expected,
            Err(errno) => {
                assert_eq!(outcome, Err(errno));
                return Ok(());
            }
        };
        let translation =
            if expected.len() <= max { Translation::Filled } else { Translation::TooSmall }(expected.len());
        assert_eq!(outcome, Ok(translation));
        let parts: Vec<_> = found.iter().map(|entry| (entry.offset(), entry.length())).collect();
        let wanted: Vec<_> = expected.iter().map(|part| (part.offset, part.length)).collect();
        assert_eq!(parts, wanted[..max.min(wanted.len())]);
        for (entry, part) in found.iter().zip(&expected) {
            assert_eq!(entry.is_writeable(), prot.contains(Prot::WRITE));
            self.entries.push((*entry, part.id));
            self.check_entry(entry, part.id);
        }
        if self.entries.len() > 64 {
            self.entries.drain(..32);
        }
        Ok(())
    }

    /// An entry is as good as its region.
    fn check_entry(&self, entry: &SgEntry, id: u64) {
        let Some((start, region)) = self.model.by_id(id) else {
            assert_eq!(self.space.get(entry).map(drop), Err(Errno::EINVAL));
            assert_eq!(self.space.range_of(entry).map(drop), Err(Errno::EINVAL));
            assert!(!self.space.is_mappable(entry));
            self.space.mark_dirty(entry);
            return;
        };
        let attributes = region.attributes;
        let range = self.space.range_of(entry).expect("the region is there");
        assert_eq!((range.iova, range.length), (start + entry.offset(), entry.length()));
        assert_eq!((range.access, range.prot), (attributes.access, attributes.prot));
        assert_eq!(self.space.is_mappable(entry), attributes.access == Access::Mmap);
        let Some(file) = attributes.file.filter(|_| attributes.access == Access::Mmap) else {
            assert_eq!(self.space.get(entry).map(drop), Err(Errno::EFAULT));
            return;
        };
        // The first byte is the file's, if it has one there.
        let memory = bytes_of(&self.space, entry).expect("it is mapped");
        assert_eq!(memory.len() as u64, entry.length());
        let at = attributes.offset + entry.offset();
        if attributes.prot != Prot::READ | Prot::WRITE || memory.is_empty() {
            return;
        }
        memory[0] ^= 0x5a;
        let last = memory.len() - 1;
        memory[last] ^= 0xff;
        for (at, byte) in [(at, memory[0]), (at + last as u64, memory[last])] {
            if at < FILE_SIZES[file] {
                let mut there = [0];
                self.files[file].read_exact_at(&mut there, at).expect("inside the file");
                assert_eq!(there[0], byte, "{at:#x}");
            }
        }
    }

    fn touch_entry(&mut self, u: &mut Unstructured) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let (entry, id) = self.entries[u.choose_index(self.entries.len())?];
        self.check_entry(&entry, id);
        if entry.is_writeable() && entry.length() <= LONGEST_MARK && self.model.by_id(id).is_some() {
            self.space.mark_dirty(&entry);
            self.model.mark(id, entry.offset(), entry.length());
        }
        Ok(())
    }

    fn mark(&mut self, u: &mut Unstructured) -> Result<()> {
        let (at, length) = (self.at(u)?, self.length(u)?);
        if length > LONGEST_MARK {
            return Ok(());
        }
        let mut found = Vec::new();
        let outcome =
            self.space.translate_with(at, length, Prot::WRITE, 100, |_, entry| found.push(entry)).map(drop);
        match self.model.translate(at, length, Prot::WRITE, 100) {
            Err(errno) => assert_eq!(outcome, Err(errno)),
            Ok(parts) => {
                for (part, entry) in parts.iter().zip(found) {
                    self.space.mark_dirty(&entry);
                    self.model.mark(part.id, part.offset, part.length);
                }
            }
        }
        Ok(())
    }

    fn logging_start(&mut self, u: &mut Unstructured) -> Result<()> {
        let page_size = page_size(u)?;
        let mut ranges = Vec::new();
        for _ in 0..(u8::arbitrary(u)? % 16).saturating_sub(12) {
            ranges.push(LoggingRange { iova: self.at(u)?, length: self.length(u)? });
        }
        // Regions of terabytes with small pages have bitmaps that are too large here.
        let largest = self.model.regions.values().map(|region| region.size).max().unwrap_or(0);
        if largest / page_size.max(4096) > 1 << 20 {
            return Ok(());
        }
        assert_eq!(self.space.logging_start(page_size, &ranges), self.model.start(page_size, &ranges));
        Ok(())
    }

    fn report_region(&mut self, u: &mut Unstructured) -> Result<()> {
        let Some((start, region)) = self.model.nth(u.arbitrary()?) else { return Ok(()) };
        let size = region.size;
        let logged = self.model.page_size().unwrap_or(4096);
        let skipped = u64::from(u8::arbitrary(u)? % 8);
        let from = start.wrapping_add(logged.saturating_mul(skipped));
        let (length, page_size) = (self.length(u)?, page_size(u)?);
        self.report(from, length, page_size);
        self.report(start, size, page_size);
        Ok(())
    }

    fn report(&mut self, at: u64, length: u64, page_size: u64) {
        let size = bitmap_size(length, page_size);
        assert_eq!(size, model::bitmap_size(length, page_size));
        let Ok(size) = size else { return };
        if size > LARGEST_BITMAP {
            return;
        }
        let mut bitmap = vec![0xa5; size as usize];
        let outcome = self.space.report(at, length, page_size, &mut bitmap).map(|()| bitmap);
        assert_eq!(outcome, self.model.report(at, length, page_size));
    }

    /// Everything that was marked is in a last report, and goes with the regions.
    fn finish(&mut self) {
        let all: Vec<_> = self.model.regions.iter().map(|(start, region)| (*start, region.size)).collect();
        for (start, size) in all {
            if let Some(page_size) = self.model.page_size() {
                self.report(start, size, page_size);
            }
            self.space.remove(self.space.find_exact(start, size).expect("it is there"));
            self.model.remove(start);
        }
        assert!(self.space.first_within(0, u64::MAX).is_none());
        for (entry, id) in &self.entries {
            self.check_entry(entry, *id);
        }
        let again = self.files.each_ref().map(|file| file.as_fd().try_clone_to_owned().is_ok());
        assert_eq!(again, [true; 3]);
    }
}

fn page_size(u: &mut Unstructured) -> Result<u64> {
    Ok(match u8::arbitrary(u)? {
        0 => 0,
        1..8 => u64::arbitrary(u)? >> (u8::arbitrary(u)? % 64),
        8..32 => 1 << u.int_in_range(0..=63)?,
        _ => 1 << u.int_in_range(9..=18)?,
    })
}
