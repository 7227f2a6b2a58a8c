//! The guest's memory: two files, one for each side, and the pages in which
//! they may differ.

use vfio_user::wire::DmaMapFlags;

use super::side::{Fault, On, Side};
use crate::client::{Backing, Client, Pages, Segment};
use crate::error::{Error, Result};

/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;
/// Where the upper part of the memory begins, as in a PC.
const HIGH: u64 = 4 << 30;

/// A part of the guest's memory that has both addresses and a file of its own.
pub struct Ram {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// The pages that the destination hasn't got as they are.
    pub pending: Pages,
}

/// All of the guest's memory, in two parts.
pub struct Guest {
    /// The parts.
    pub ram: [Ram; 2],
    page_size: u64,
}

impl Guest {
    /// Memory of `size` bytes in all. No part may be smaller than a page of the
    /// dirty bitmaps.
    pub fn new(size: u64, page_size: u64) -> Result<Guest> {
        let low = (size / 2).next_multiple_of(rustix::param::page_size() as u64).min(HIGH);
        let high = size.saturating_sub(low);
        if low.min(high) < page_size {
            let text = format!("{size:#x} bytes of memory are too little for pages of {page_size:#x}");
            return Err(Error::Usage(text));
        }
        let ram = |addr, size| Ram { addr, size, pending: Pages::none(size, page_size) };
        Ok(Guest { ram: [ram(0, low), ram(HIGH, high)], page_size })
    }

    /// Addresses and sizes.
    pub fn ranges(&self) -> [(u64, u64); 2] {
        [&self.ram[0], &self.ram[1]].map(|ram| (ram.addr, ram.size))
    }

    /// Bytes of a page of the dirty bitmaps.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Maps it, in files of its own for this side.
    pub fn map(&self, client: &mut Client) -> Result<()> {
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        self.ram.iter().try_for_each(|ram| {
            let backing = Backing::memfd(ram.size)?;
            client.dma_map(Segment { addr: ram.addr, access, backing })
        })
    }

    /// Writes bytes in which a page that was not copied shows.
    pub fn fill(&self, client: &mut Client) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut bytes = vec![0; PIECE as usize];
        for ram in &self.ram {
            for (offset, len) in pieces(0..ram.size) {
                let part = bytes.get_mut(..len).unwrap_or_default();
                rng.fill(part);
                let addr = ram.addr.saturating_add(offset);
                client.memory().write(addr, part).map_err(Error::memory)?;
            }
        }
        Ok(())
    }

    /// Starts the source's logging, and that of what it or this side writes
    /// without its knowledge. From then on every page counts as dirty once.
    pub fn start_logging(&mut self, src: &mut Client) -> Result<()> {
        self.page_size = src.logging_start(self.page_size, &self.ranges())?;
        src.memory().track(self.page_size);
        for ram in &mut self.ram {
            ram.pending = Pages::all(ram.size, self.page_size);
        }
        Ok(())
    }

    /// Takes in which pages the source has become different in.
    pub fn fetch_dirty(&mut self, src: &mut Client) -> Result<()> {
        for ram in &mut self.ram {
            ram.pending.merge(&src.logging_report(ram.addr, ram.size, self.page_size)?);
            if let Some(written) = src.memory().take_written(ram.addr) {
                ram.pending.merge(&written);
            }
        }
        Ok(())
    }

    /// Pages to copy.
    pub fn pending(&self) -> u64 {
        self.ram.iter().map(|ram| ram.pending.count()).sum()
    }

    /// Takes out the ranges to copy, as addresses and lengths of up to
    /// [`PIECE`] bytes.
    pub fn take_pending(&mut self) -> Vec<(u64, usize)> {
        let mut ranges = Vec::new();
        for ram in &mut self.ram {
            for run in ram.pending.take().runs() {
                ranges.extend(pieces(run).map(|(offset, len)| (ram.addr.saturating_add(offset), len)));
            }
        }
        ranges
    }

    /// Fails if the memory of the two sides differs in a single byte.
    pub fn compare(&self, src: &mut Client, dst: &mut Client) -> Result<(), Fault> {
        for ram in &self.ram {
            for (offset, len) in pieces(0..ram.size) {
                let addr = ram.addr.saturating_add(offset);
                let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
                src.memory().read(addr, &mut ours).map_err(Error::memory).on(Side::Here)?;
                dst.memory().read(addr, &mut theirs).map_err(Error::memory).on(Side::Here)?;
                if let Some(at) = ours.iter().zip(&theirs).position(|(a, b)| a != b) {
                    let at = addr.saturating_add(at as u64);
                    let text = format!("the guest's memory differs from that of the source at {at:#x}");
                    return Err(Error::Unfit(text)).on(Side::Destination);
                }
            }
        }
        Ok(())
    }
}

/// Copies `len` bytes of the guest's memory to the other side.
pub fn copy(src: &mut Client, dst: &mut Client, addr: u64, len: usize) -> Result<(), Fault> {
    let mut bytes = vec![0; len];
    src.memory().read(addr, &mut bytes).map_err(Error::memory).on(Side::Here)?;
    dst.memory().write(addr, &bytes).map_err(Error::memory).on(Side::Here)
}

/// Cuts a range into offsets and lengths of up to [`PIECE`] bytes.
fn pieces(range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let len = range.end.checked_sub(start).filter(|left| *left > 0)?.min(PIECE);
        let piece = (start, usize::try_from(len).ok()?);
        start = start.saturating_add(len);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_laid_out_without_overlap() {
        for size in [1 << 20, (1 << 20) + 4096, 1 << 30, 64 << 30] {
            let [(low, low_size), (high, high_size)] = Guest::new(size, 4096).unwrap().ranges();
            assert_eq!(low_size + high_size, size);
            assert!(low + low_size <= high && low_size > 0 && high_size > 0);
            assert!(low_size.is_multiple_of(4096) && high_size.is_multiple_of(4096));
        }
        assert!(Guest::new(1 << 20, 1 << 19).is_ok());
        assert!(matches!(Guest::new(1 << 20, 1 << 20), Err(Error::Usage(_))));
    }

    #[test]
    fn dirty_pages_are_handed_out_once() {
        let mut guest = Guest::new(8 << 20, 4096).unwrap();
        guest.ram[0].pending = Pages::all(4 << 20, 4096);
        guest.ram[1].pending.mark(4096, 1);
        assert_eq!(guest.pending(), 1025);
        let ranges = guest.take_pending();
        let expected: Vec<_> = (0..4).map(|n| (n << 20, 1 << 20)).chain([((4 << 30) + 4096, 4096)]).collect();
        assert_eq!(ranges, expected);
        assert_eq!((guest.pending(), guest.take_pending()), (0, vec![]));
    }
}
