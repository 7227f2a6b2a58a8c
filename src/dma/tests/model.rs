//! What an address space with dirty logging does, said as simply as possible:
//! page by page, in units of [`UNIT`] bytes.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::wire::LoggingRange;

/// All sizes and addresses of the model are multiples of this.
pub(super) const UNIT: u64 = 512;

pub(super) struct Region {
    pub(super) size: u64,
    pub(super) prot: Prot,
    pub(super) access: Access,
    /// Numbers of the dirty logging pages.
    dirty: BTreeSet<u64>,
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) regions: BTreeMap<u64, Region>,
    logging: Option<(u64, Vec<LoggingRange>)>,
}

impl Model {
    pub(super) fn map(&mut self, iova: u64, size: u64, prot: Prot, access: Access) -> Result<bool> {
        if let Some(old) = self.regions.get(&iova)
            && (old.size, old.prot, old.access) == (size, prot, access)
        {
            return Ok(false);
        }
        if self.regions.iter().any(|(start, region)| *start < iova + size && iova < start + region.size) {
            return Err(Errno::EEXIST);
        }
        self.regions.insert(iova, Region { size, prot, access, dirty: BTreeSet::new() });
        Ok(true)
    }

    /// Removes the regions in a range that cuts through none. How many.
    pub(super) fn unmap(&mut self, first: u64, last: u64) -> Result<u64> {
        let touches = |start: &u64, region: &Region| *start <= last && start + (region.size - 1) >= first;
        let is_within = |start: &u64, region: &Region| *start >= first && start + (region.size - 1) <= last;
        let touched: Vec<_> = self.regions.iter().filter(|(start, region)| touches(start, region)).collect();
        if touched.is_empty() {
            return Err(Errno::ENOENT);
        }
        if !touched.iter().all(|(start, region)| is_within(start, region)) {
            return Err(Errno::EINVAL);
        }
        let count = touched.len() as u64;
        self.regions.retain(|start, region| !touches(start, region));
        Ok(count)
    }

    /// Start of the region around an address.
    pub(super) fn around(&self, address: u64) -> Option<(u64, &Region)> {
        let (start, region) = self.regions.range(..=address).next_back()?;
        (address - start < region.size).then_some((*start, region))
    }

    /// Offset and length of each entry, or the error.
    pub(super) fn translate(
        &self,
        iova: u64,
        length: u64,
        prot: Prot,
        max: usize,
    ) -> Result<Vec<(u64, u64)>> {
        let mut entries = Vec::new();
        let mut from = iova;
        while from < iova + length {
            let (start, region) = self.around(from).ok_or(Errno::ENOENT)?;
            if entries.len() < max && !region.prot.contains(prot) {
                return Err(Errno::EACCES);
            }
            let end = (start + region.size).min(iova + length);
            entries.push((from - start, end - from));
            from = end;
        }
        Ok(entries)
    }

    pub(super) fn start(&mut self, page_size: u64, ranges: &[LoggingRange]) -> Result<u64> {
        if let Some((in_use, _)) = &self.logging {
            return if *in_use == page_size { Ok(page_size) } else { Err(Errno::EINVAL) };
        }
        let page_size = page_size.max(page());
        self.logging = Some((page_size, ranges.to_vec()));
        Ok(page_size)
    }

    pub(super) fn stop(&mut self) {
        self.logging = None;
        self.regions.values_mut().for_each(|region| region.dirty.clear());
    }

    /// Marks bytes of regions dirty.
    pub(super) fn mark(&mut self, iova: u64, length: u64) {
        let Some((page_size, _)) = self.logging else { return };
        for address in (iova..iova + length).step_by(UNIT as usize) {
            let start = self.around(address).unwrap().0;
            let region = self.regions.get_mut(&start).unwrap();
            if region.access != Access::Message {
                region.dirty.insert((address - start) / page_size);
            }
        }
    }

    /// First and last byte of a logging page.
    fn extent(start: u64, region: &Region, number: u64, page_size: u64) -> (u64, u64) {
        let first = start + number * page_size;
        (first, (first + page_size - 1).min(start + region.size - 1))
    }

    pub(super) fn report(&mut self, iova: u64, length: u64, page_size: u64) -> Result<Vec<u64>> {
        if page_size > length {
            return Err(Errno::EINVAL);
        }
        let words = length.div_ceil(page_size).div_ceil(64);
        let mut from = iova;
        while from < iova + length {
            let (start, region) = self.around(from).ok_or(Errno::ENOENT)?;
            from = start + region.size;
        }
        let (logged, ranges) = self.logging.clone().ok_or(Errno::EINVAL)?;
        let start = self.around(iova).unwrap().0;
        if !(iova - start).is_multiple_of(logged) {
            return Err(Errno::ENOTSUP);
        }
        // `from` is the end of the region that the range ends in.
        let end = from.min(iova + words * 64 * page_size);
        let mut bits = vec![0_u64; words as usize];
        let mut reported = BTreeSet::new();
        for address in (iova..end).step_by(UNIT as usize) {
            let (start, region) = self.around(address).unwrap();
            let number = (address - start) / logged;
            let (first, last) = Self::extent(start, region, number, logged);
            let is_in = |r: &LoggingRange| r.iova <= last && first < r.iova + r.length;
            if region.dirty.contains(&number) && (ranges.is_empty() || ranges.iter().any(is_in)) {
                for bit in (address - iova) / page_size..=(address + UNIT - 1 - iova) / page_size {
                    bits[(bit / 64) as usize] |= 1 << (bit % 64);
                }
                reported.insert((start, number));
            }
        }
        for (start, number) in reported {
            let region = self.regions.get_mut(&start).unwrap();
            if Self::extent(start, region, number, logged).1 < end {
                region.dirty.remove(&number);
            }
        }
        Ok(bits)
    }
}
