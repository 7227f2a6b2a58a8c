//! Dirty logging: which pages the server wrote to.

use vfio_user::wire::{
    Bitmap, Command, DmaUnmap, DmaUnmapFlags, Feature, FeatureFlags, LoggingControl, LoggingRange,
    LoggingReport, limits, take,
};
use zerocopy::IntoBytes;

use super::{Client, Pages};
use crate::error::{Error, Result};

/// Largest unmap with a bitmap that servers take, as its `argsz` says.
const MAX_UNMAP: u64 = 1 << 20;

impl Client {
    /// Starts logging of writes to `ranges`, pairs of address and size; to
    /// everything if there are none. The page size that the server chose.
    pub fn logging_start(&mut self, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64> {
        let what = "starting dirty logging";
        let num_ranges =
            u32::try_from(ranges.len()).map_err(|_| Error::Usage(format!("{what}: too many ranges")))?;
        let control = LoggingControl { page_size, num_ranges, reserved: 0 };
        let ranges = ranges.iter().map(|(iova, length)| LoggingRange { iova: *iova, length: *length });
        let ranges: Vec<u8> = ranges.flat_map(|range| range.as_bytes().to_vec()).collect();
        let operation = (Feature::DmaLoggingStart, FeatureFlags::SET);
        let data = self.feature(what, operation, &[control.as_bytes(), &ranges], 0)?;
        match take::<LoggingControl>(&data) {
            Ok((echo, _)) if echo.page_size.is_power_of_two() => Ok(echo.page_size),
            Ok((echo, _)) => Err(Error::Protocol(format!("{what}: a page size of {}", echo.page_size))),
            Err(_) => Err(Error::Protocol(format!("{what}: the reply does not repeat the request"))),
        }
    }

    /// Stops logging.
    pub fn logging_stop(&mut self) -> Result<()> {
        let operation = (Feature::DmaLoggingStop, FeatureFlags::SET);
        self.feature("stopping dirty logging", operation, &[], 0)?;
        Ok(())
    }

    /// The pages that were written to since they were reported last.
    pub fn logging_report(&mut self, iova: u64, length: u64, page_size: u64) -> Result<Pages> {
        let what = format!("dirty pages of {length:#x} bytes at {iova:#x}");
        let expected = Pages::bitmap_size(length, page_size);
        if expected > limits::MAX_BITMAP_SIZE {
            return Err(Error::Usage(format!("{what}: a bitmap of {expected} bytes")));
        }
        let request = LoggingReport { iova, length, page_size };
        let room = expected.saturating_add(size_of::<LoggingReport>() as u64);
        let operation = (Feature::DmaLoggingReport, FeatureFlags::GET);
        let data = self.feature(&what, operation, &[request.as_bytes()], room)?;
        match take::<LoggingReport>(&data) {
            Ok((echo, bitmap)) if echo == request && bitmap.len() as u64 == expected => {
                Ok(Pages::from_bitmap(length, page_size, bitmap))
            }
            Ok((echo, bitmap)) if echo == request => {
                Err(Error::Protocol(format!("{what}: a bitmap of {} bytes of {expected}", bitmap.len())))
            }
            _ => Err(Error::Protocol(format!("{what}: the reply does not repeat the range"))),
        }
    }

    /// Takes the segment that starts at `addr` back, with the pages that were
    /// written to since they were reported last. `None` for pages that don't
    /// fit such a request; then the segment stays.
    pub fn dma_unmap_dirty(&mut self, addr: u64, size: u64, page_size: u64) -> Result<Option<Pages>> {
        let what = format!("DMA unmap of {size:#x} bytes at {addr:#x} with its dirty pages");
        let bitmap = Bitmap { pgsize: page_size, size: Pages::bitmap_size(size, page_size) };
        let fixed = size_of::<DmaUnmap>().saturating_add(size_of::<Bitmap>());
        let all = bitmap.size.saturating_add(fixed as u64);
        let Ok(argsz) = u32::try_from(all.min(u32::MAX.into())) else { return Ok(None) };
        if all > MAX_UNMAP {
            return Ok(None);
        }
        let flags = DmaUnmapFlags::GET_DIRTY_BITMAP.bits();
        let unmap = DmaUnmap { argsz, flags, addr, size };
        let reply = self.request(Command::DmaUnmap, &what, &[unmap.as_bytes(), bitmap.as_bytes()], &[])?;
        self.memory.remove(addr);
        let wrong = || Error::Protocol(format!("{what}: the reply is about something else"));
        let (echo, rest): (DmaUnmap, _) = take(&reply.body).map_err(|_| wrong())?;
        let (head, bits): (Bitmap, _) = take(rest).map_err(|_| wrong())?;
        match (echo.addr, echo.size, head, bits.len() as u64) == (addr, size, bitmap, bitmap.size) {
            true => Ok(Some(Pages::from_bitmap(size, page_size, bits))),
            false => Err(wrong()),
        }
    }
}
