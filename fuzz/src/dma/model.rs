//! What an address space with dirty logging does, said as simply as possible.

use std::collections::{BTreeMap, BTreeSet};

use vfio_user::dma::{Access, MAX_REGION_SIZE, Prot};
use vfio_user::wire::{Errno, LoggingRange};

/// All of what makes a map the same as another one, besides its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub prot: Prot,
    pub access: Access,
    /// Number of the open file.
    pub file: Option<usize>,
    pub offset: u64,
}

pub struct Region {
    /// Unlike those of all other regions there ever were.
    id: u64,
    pub size: u64,
    pub attributes: Attributes,
    /// Numbers of the dirty logging pages.
    dirty: BTreeSet<u64>,
}

/// Part of a region.
pub struct Part {
    pub id: u64,
    pub offset: u64,
    pub length: u64,
}

pub struct Model {
    pub regions: BTreeMap<u64, Region>,
    pub limit: u64,
    next_id: u64,
    /// Page size, and first and last addresses of ranges.
    logging: Option<(u64, Vec<(u64, u64)>)>,
}

impl Default for Model {
    fn default() -> Model {
        Model { regions: BTreeMap::new(), limit: u64::MAX, next_id: 1, logging: None }
    }
}

/// Last address of a range.
fn last(start: u64, length: u64) -> Option<u64> {
    start.checked_add(length.checked_sub(1)?)
}

pub fn bitmap_size(length: u64, page_size: u64) -> Result<u64, Errno> {
    if page_size == 0 || page_size > length {
        return Err(Errno::EINVAL);
    }
    let bits = u128::from(length).div_ceil(page_size.into());
    let bytes = bits.div_ceil(64) * 8;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= 256 << 20).ok_or(Errno::EINVAL)
}

impl Model {
    /// Whether a map is a new one, or the same again.
    pub fn can_map(&self, iova: u64, size: u64, attributes: Attributes) -> Result<bool, Errno> {
        if size > MAX_REGION_SIZE {
            return Err(Errno::ENOSPC);
        }
        let end = last(iova, size).ok_or(Errno::EINVAL)?;
        let mut others = self
            .regions
            .iter()
            .filter(|(start, region)| **start <= end && iova <= last(**start, region.size).expect("checked"));
        match others.next() {
            Some((start, old)) if (*start, old.size, old.attributes) == (iova, size, attributes) => Ok(false),
            Some(_) => Err(Errno::EEXIST),
            None if self.regions.len() as u64 >= self.limit => Err(Errno::EINVAL),
            None => Ok(true),
        }
    }

    pub fn add(&mut self, iova: u64, size: u64, attributes: Attributes) {
        let region = Region { id: self.next_id, size, attributes, dirty: BTreeSet::new() };
        self.next_id += 1;
        self.regions.insert(iova, region);
    }

    pub fn remove(&mut self, start: u64) {
        self.regions.remove(&start);
    }

    pub fn nth(&self, number: usize) -> Option<(u64, &Region)> {
        let number = number.checked_rem(self.regions.len())?;
        self.regions.iter().nth(number).map(|(start, region)| (*start, region))
    }

    pub fn by_id(&self, id: u64) -> Option<(u64, &Region)> {
        self.regions.iter().find(|(_, region)| region.id == id).map(|(start, region)| (*start, region))
    }

    fn around(&self, address: u64) -> Option<(u64, &Region)> {
        let (start, region) = self.regions.range(..=address).next_back()?;
        (address - start < region.size).then_some((*start, region))
    }

    pub fn translate(&self, iova: u64, length: u64, prot: Prot, max: usize) -> Result<Vec<Part>, Errno> {
        let mut parts = Vec::new();
        if length == 0 {
            return Ok(parts);
        }
        let end = last(iova, length).ok_or(Errno::ENOENT)?;
        let mut from = iova;
        loop {
            let (start, region) = self.around(from).ok_or(Errno::ENOENT)?;
            if parts.len() < max && !region.attributes.prot.contains(prot) {
                return Err(Errno::EACCES);
            }
            let to = last(start, region.size).expect("checked").min(end);
            parts.push(Part { id: region.id, offset: from - start, length: to - from + 1 });
            if to == end {
                return Ok(parts);
            }
            from = to + 1;
        }
    }

    pub fn page_size(&self) -> Option<u64> {
        self.logging.as_ref().map(|logging| logging.0)
    }

    pub fn start(&mut self, page_size: u64, ranges: &[LoggingRange]) -> Result<u64, Errno> {
        if page_size.count_ones() != 1 {
            return Err(Errno::EINVAL);
        }
        let pair = |range: &LoggingRange| Some((range.iova, last(range.iova, range.length)?));
        let ranges = ranges.iter().map(pair).collect::<Option<Vec<_>>>().ok_or(Errno::EINVAL)?;
        match self.page_size() {
            Some(in_use) if in_use == page_size => Ok(in_use),
            Some(_) => Err(Errno::EINVAL),
            None => {
                let page_size = page_size.max(4096);
                self.logging = Some((page_size, ranges));
                Ok(page_size)
            }
        }
    }

    pub fn stop(&mut self) {
        self.logging = None;
        self.regions.values_mut().for_each(|region| region.dirty.clear());
    }

    pub fn mark(&mut self, id: u64, offset: u64, length: u64) {
        let Some(page_size) = self.page_size() else { return };
        let region = self.regions.values_mut().find(|region| region.id == id).expect("it is there");
        if region.attributes.access != Access::Message && length != 0 {
            region.dirty.extend(offset / page_size..=(offset + length - 1) / page_size);
        }
    }

    /// Removes the regions in a range that cuts through none. How many.
    pub fn remove_range(&mut self, first: u64, last_of_range: u64) -> Result<u64, Errno> {
        let end = |start: &u64, region: &Region| last(*start, region.size).expect("checked");
        let touched: Vec<_> = (self.regions.iter())
            .filter(|(start, region)| **start <= last_of_range && end(start, region) >= first)
            .map(|(start, region)| (*start, *start >= first && end(start, region) <= last_of_range))
            .collect();
        match touched.as_slice() {
            [] => Err(Errno::ENOENT),
            _ if !touched.iter().all(|(_, whole)| *whole) => Err(Errno::EINVAL),
            _ => {
                touched.iter().for_each(|(start, _)| self.remove(*start));
                Ok(touched.len() as u64)
            }
        }
    }

    pub fn report(&mut self, iova: u64, length: u64, page_size: u64) -> Result<Vec<u8>, Errno> {
        let size = bitmap_size(length, page_size)?;
        let end = last(iova, length).ok_or(Errno::ENOENT)?;
        let mut region_end = None;
        let mut from = iova;
        while region_end.is_none_or(|region_end| region_end < end) {
            let (start, region) = self.around(from).ok_or(Errno::ENOENT)?;
            let found = last(start, region.size).expect("checked");
            region_end = Some(found);
            from = found.wrapping_add(1);
        }
        let (logged, ranges) = self.logging.clone().ok_or(Errno::EINVAL)?;
        if page_size.count_ones() != 1 {
            return Err(Errno::EINVAL);
        }
        let (start, _) = self.around(iova).expect("checked");
        if !(iova - start).is_multiple_of(logged) {
            return Err(Errno::ENOTSUP);
        }
        // The reply goes as far as its bits and the last region.
        let bits_end = u128::from(iova) + u128::from(size) * 8 * u128::from(page_size) - 1;
        let end = u64::try_from(bits_end).unwrap_or(u64::MAX).min(region_end.expect("set"));
        let mut bitmap = vec![0; size as usize];
        for (start, region) in self.regions.range_mut(..=end) {
            let last_of_region = last(*start, region.size).expect("checked");
            region.dirty.retain(|number| {
                let first = start + number * logged;
                let last = u128::from(first) + u128::from(logged) - 1;
                let last = u64::try_from(last).unwrap_or(u64::MAX).min(last_of_region);
                let (from, to) = (first.max(iova), last.min(end));
                let is_logged = ranges.is_empty() || ranges.iter().any(|r| r.0 <= last && first <= r.1);
                if from > to || !is_logged {
                    return true;
                }
                for bit in (from - iova) / page_size..=(to - iova) / page_size {
                    bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
                }
                last > end
            });
        }
        Ok(bitmap)
    }
}
