//! DMA regions, which go ahead of the state: to map them takes a while, for which the
//! client of a quiet device would wait.
//!
//! The old process remembers which regions it has told of, and says with the state which
//! of them are still there. So the new one may have mapped what its client has unmapped
//! since; it unmaps it then, and has not used it.

use std::os::fd::RawFd;

use crate::dma::{Access, DmaRegion, KnownFile, MapRequest, Prot, RegionId, RegionParts};
use crate::handover::{self, Descriptors, Incoming, NO_FD, Outgoing, Record};
use crate::memory;
use crate::server::{Context, Device};
use crate::wire::{Errno, Result};

const NO_REGIONS: &str = "what it says of its DMA regions does not go together";

/// The regions that another process was told of, in ascending order of their addresses.
#[derive(Debug)]
pub struct Told(Vec<(u64, RegionId)>);

impl<D: Device> Context<D> {
    /// The image of all DMA regions, and of what is logged, with its descriptors.
    pub(super) fn export_ahead(&self) -> Result<(Vec<u8>, Vec<RawFd>, Told)> {
        let mut out = Outgoing::new()?;
        let mut told = Vec::new();
        let mut files = Vec::new();
        self.put_logging(&mut out)?;
        self.dma.visit_regions(|region| {
            memory::push(&mut told, (region.iova, region.id))?;
            put_region(&region, &mut files, &mut out)
        })?;
        let (image, fds) = out.finish()?;
        Ok((image, fds, Told(told)))
    }

    /// DMA regions, as far as the other process has not been told of them, and what is
    /// known of writes to them.
    pub(super) fn export_memory(&self, told: Option<&Told>, out: &mut Outgoing) -> Result<()> {
        self.put_logging(out)?;
        let mut news = Vec::new();
        let mut kept = told.map(Kept::new);
        self.dma.visit_regions(|region| {
            let is_told = match &mut kept {
                Some(kept) => kept.add(region.iova, region.id)?,
                None => false,
            };
            if is_told { Ok(()) } else { memory::push(&mut news, region) }
        })?;
        if let Some(kept) = kept {
            out.put(handover::Kept { regions: kept.regions })?;
        }
        let mut files = Vec::new();
        news.iter().try_for_each(|region| put_region(region, &mut files, out))?;
        self.dma.visit_lost(|iova, offset| out.put(handover::Lost { iova, offset }))?;
        self.dma.visit_dirty(|iova, first, words| {
            let mut copy = Vec::new();
            memory::reserve(&mut copy, words.len())?;
            copy.extend_from_slice(words);
            out.put(handover::Dirty { iova, first, words: copy })
        })
    }

    fn put_logging(&self, out: &mut Outgoing) -> Result<()> {
        let mut ranges = Vec::new();
        let logged = self.dma.visit_logging(|first, last| {
            memory::reserve(&mut ranges, 2)?;
            ranges.extend([first, last]);
            Ok(())
        })?;
        logged.map_or(Ok(()), |page_size| out.put(handover::Logging { page_size, ranges }))
    }

    /// Maps what the other process has told of, in this order.
    pub(super) fn import_ahead(&self, image: &mut Incoming) -> Result<Vec<RegionId>> {
        let mut regions = Vec::new();
        let mut files = Vec::new();
        let (records, mut fds) = image.parts()?;
        for record in records {
            match record? {
                Record::Logging(record) => self.import_logging(&record)?,
                Record::DmaRegion(record) => {
                    memory::reserve(&mut regions, 1)?;
                    regions.push(self.import_region(&record, &mut files, &mut fds)?);
                }
                _ => return Err(Errno::EPROTO.because("a record that does not belong there")),
            }
        }
        Ok(regions)
    }

    /// Unmaps those regions that are not there any more.
    pub(super) fn keep_regions(&self, ahead: &[RegionId], kept: &[u64]) -> Result<()> {
        let no_regions = || Errno::EPROTO.because(NO_REGIONS);
        let mut rest = ahead;
        for pair in kept.chunks(2) {
            let [first, count] = pair else { return Err(no_regions()) };
            let place = ahead.len().saturating_sub(rest.len());
            let gone = usize::try_from(*first).ok().and_then(|first| first.checked_sub(place));
            let (gone, from) = gone.and_then(|gone| rest.split_at_checked(gone)).ok_or_else(no_regions)?;
            let count = usize::try_from(*count).map_err(|_| no_regions())?;
            gone.iter().for_each(|region| self.remove_dma_region(*region));
            rest = from.get(count..).ok_or_else(no_regions)?;
        }
        rest.iter().for_each(|region| self.remove_dma_region(*region));
        Ok(())
    }

    pub(super) fn import_logging(&self, record: &handover::Logging) -> Result<()> {
        let mut ranges = Vec::new();
        memory::reserve(&mut ranges, record.ranges.len())?;
        for pair in record.ranges.chunks(2) {
            let [first, last] = pair else { return Err(Errno::EPROTO.because(NO_REGIONS)) };
            ranges.push((*first, *last));
        }
        self.dma.resume_logging(record.page_size, ranges)
    }

    /// Maps a region, of a new file or of one of `files`, which are known by the names of
    /// their descriptors.
    pub(super) fn import_region(
        &self,
        record: &handover::DmaRegion,
        files: &mut Vec<(u32, KnownFile)>,
        fds: &mut Descriptors<'_>,
    ) -> Result<RegionId> {
        let no_regions = || Errno::EPROTO.because(NO_REGIONS);
        Errno::EPROTO.unless(self.dma_is_ready(), NO_REGIONS)?;
        let access = match record.access {
            0 => Access::Message,
            1 => Access::Mmap,
            2 => Access::FileIo,
            _ => return Err(no_regions()),
        };
        let prot = Prot::from_bits(record.prot).ok_or_else(no_regions)?;
        let is_known = |(name, _): &&(u32, KnownFile)| *name == record.fd;
        if record.fd != NO_FD && files.iter().rev().find(is_known).is_none() {
            let fd = fds.take(record.fd)?;
            memory::push(files, (record.fd, self.dma.know_file(fd)?))?;
        }
        let file = files.iter().rev().find(is_known).map(|(_, file)| file);
        let (iova, size, offset) = (record.iova, record.size, record.offset);
        let request = MapRequest { iova, size, prot, access, file: None, offset };
        let mapped = self.dma.map_known(request, file)?;
        if let Err(errno) = self.device.dma_register(self, mapped.region) {
            self.dma.remove(mapped.region);
            return Err(errno.because("the device refuses a DMA region"));
        }
        self.probe_dma_mapped(&DmaRegion { iova, size, prot, access });
        Ok(mapped.region)
    }
}

/// Writes a region down. Its file is sent along, unless it is one of `files`, which
/// are known by their descriptors here.
fn put_region(region: &RegionParts, files: &mut Vec<(RawFd, u32)>, out: &mut Outgoing) -> Result<()> {
    let fd = match region.fd {
        None => NO_FD,
        Some(fd) => match files.iter().rev().find(|(other, _)| *other == fd) {
            Some((_, name)) => *name,
            None => {
                let name = out.fd(fd)?;
                memory::push(files, (fd, name))?;
                name
            }
        },
    };
    out.put(handover::DmaRegion {
        iova: region.iova,
        size: region.size,
        prot: region.prot.bits(),
        access: match region.access {
            Access::Message => 0,
            Access::Mmap => 1,
            Access::FileIo => 2,
        },
        fd,
        offset: region.offset,
    })
}

/// Finds regions again of which another process was told.
struct Kept<'a> {
    /// Those above the last one that was looked for.
    rest: &'a [(u64, RegionId)],
    count: usize,
    /// Those found: place and how many from there on.
    regions: Vec<u64>,
}

impl<'a> Kept<'a> {
    fn new(told: &'a Told) -> Kept<'a> {
        Kept { rest: &told.0, count: told.0.len(), regions: Vec::new() }
    }

    /// Whether it was told of the region. To be asked in ascending order of addresses.
    fn add(&mut self, iova: u64, id: RegionId) -> Result<bool> {
        let below = self.rest.iter().take_while(|(other, _)| *other < iova).count();
        let from = self.rest.get(below..).unwrap_or_default();
        let Some(((_, other), rest)) = from.split_first().filter(|((other, _), _)| *other == iova) else {
            self.rest = from;
            return Ok(false);
        };
        self.rest = rest;
        if *other != id {
            return Ok(false);
        }
        let place = self.count.saturating_sub(from.len()) as u64;
        if let [.., first, count] = self.regions.as_mut_slice()
            && first.checked_add(*count) == Some(place)
        {
            *count = count.saturating_add(1);
            return Ok(true);
        }
        memory::reserve(&mut self.regions, 2)?;
        self.regions.extend([place, 1]);
        Ok(true)
    }
}
