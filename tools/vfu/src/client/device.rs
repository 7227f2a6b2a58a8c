//! Requests about the device: its information, its regions, its interrupts.

use std::os::fd::{BorrowedFd, OwnedFd};

use vfio_user::wire::{
    CapHeader, Command, DeviceInfo, IrqInfo, IrqSet, IrqSetFlags, RegionAccess, RegionInfo, RegionInfoFlags,
    SparseArea, SparseMmap, take,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Client;
use crate::error::{Error, Result};
use crate::region::{Irq, Region};

/// Largest region information that is asked for, in bytes: more areas than
/// anybody maps.
const MAX_REGION_INFO: u32 = 1 << 20;

/// Bytes of the largest region that is read register by register.
const MAX_REGISTERS: u64 = 1 << 20;

/// Bytes of an access to configuration space.
const CONFIG_ACCESS: usize = 4;

/// Size of the configuration space of PCI Express, in bytes.
const MAX_CONFIG_SPACE: u64 = 4096;

/// Everything the server says of a region.
#[derive(Debug)]
pub struct RegionDetails {
    /// The fixed part.
    pub info: RegionInfo,
    /// What may be mapped, if only parts of the region may.
    pub areas: Vec<SparseArea>,
    /// What to map.
    pub fd: Option<OwnedFd>,
}

impl RegionDetails {
    /// The flags as a set.
    pub fn flags(&self) -> RegionInfoFlags {
        RegionInfoFlags::from_bits_retain(self.info.flags)
    }
}

/// Takes the fixed part of a reply's payload.
fn fixed<'a, T: FromBytes>(what: &str, body: &'a [u8]) -> Result<(T, &'a [u8])> {
    take(body).map_err(|_| {
        let expected = size_of::<T>();
        Error::Protocol(format!("{what}: a reply with {} bytes of {expected}", body.len()))
    })
}

impl Client {
    /// `VFIO_USER_DEVICE_GET_INFO`
    pub fn device_info(&mut self) -> Result<DeviceInfo> {
        let what = "device information";
        let argsz = size_of::<DeviceInfo>() as u32;
        let request = DeviceInfo { argsz, flags: 0, num_regions: 0, num_irqs: 0 };
        let reply = self.request(Command::DeviceGetInfo, &what, &[request.as_bytes()], &[])?;
        Ok(fixed(what, &reply.body)?.0)
    }

    /// `VFIO_USER_DEVICE_GET_REGION_INFO`, asked again if the first answer
    /// says that there is more to tell.
    pub fn region_info(&mut self, region: Region) -> Result<RegionDetails> {
        let what = format!("information on {region}");
        let brief = size_of::<RegionInfo>() as u32;
        let first = self.ask_region_info(region, brief, &what)?;
        let full = first.info.argsz;
        if full <= brief {
            return Ok(first);
        }
        if full > MAX_REGION_INFO {
            return Err(Error::Protocol(format!("{what}: {full} bytes to tell")));
        }
        self.ask_region_info(region, full, &what)
    }

    fn ask_region_info(&mut self, region: Region, argsz: u32, what: &str) -> Result<RegionDetails> {
        let request = RegionInfo { argsz, flags: 0, index: region.0, cap_offset: 0, size: 0, offset: 0 };
        let mut reply = self.request(Command::DeviceGetRegionInfo, &what, &[request.as_bytes()], &[])?;
        let (info, _): (RegionInfo, _) = fixed(what, &reply.body)?;
        if info.index != region.0 {
            return Err(Error::Protocol(format!("{what}: the answer is about {}", Region(info.index))));
        }
        let caps = RegionInfoFlags::from_bits_retain(info.flags).contains(RegionInfoFlags::CAPS);
        let areas = match caps {
            true => sparse_areas(&reply.body, info.cap_offset)
                .ok_or_else(|| Error::Protocol(format!("{what}: the list of capabilities leads nowhere")))?,
            false => Vec::new(),
        };
        let fd = (!reply.fds.is_empty()).then(|| reply.fds.swap_remove(0));
        Ok(RegionDetails { info, areas, fd })
    }

    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`
    pub fn irq_info(&mut self, irq: Irq) -> Result<IrqInfo> {
        let what = format!("information on {irq} interrupts");
        let argsz = size_of::<IrqInfo>() as u32;
        let request = IrqInfo { argsz, flags: 0, index: irq.0, count: 0 };
        let reply = self.request(Command::DeviceGetIrqInfo, &what, &[request.as_bytes()], &[])?;
        let (info, _): (IrqInfo, _) = fixed(&what, &reply.body)?;
        match info.index == irq.0 {
            true => Ok(info),
            false => Err(Error::Protocol(format!("{what}: the answer is about {}", Irq(info.index)))),
        }
    }

    /// `VFIO_USER_REGION_READ` of `count` bytes in one access.
    pub fn region_read(&mut self, region: Region, offset: u64, count: usize) -> Result<Vec<u8>> {
        let what = format!("read of {count} bytes of {region} at {offset:#x}");
        let (request, done, reply) = self.access(Command::RegionRead, &what, region, offset, count, &[])?;
        let data = reply.get(size_of::<RegionAccess>()..).unwrap_or_default();
        match data.len() == done {
            _ if done != count => Err(short(&what, &request, done)),
            true => Ok(data.to_vec()),
            false => Err(Error::Protocol(format!("{what}: {done} bytes promised, {} sent", data.len()))),
        }
    }

    /// Lets the device decode its memory BARs and start transfers, as a driver
    /// does.
    pub fn enable_memory_and_bus_master(&mut self) -> Result<()> {
        const COMMAND: u64 = 4;
        const MEMORY_AND_BUS_MASTER: u8 = 6;
        let command = self.region_read(Region::CONFIG, COMMAND, 2)?;
        let [low, high] = *command.first_chunk().unwrap_or(&[0; 2]);
        self.region_write(Region::CONFIG, COMMAND, &[low | MEMORY_AND_BUS_MASTER, high])
    }

    /// The configuration space, read as drivers and VMMs do: some servers take no other
    /// accesses.
    pub fn config_space(&mut self) -> Result<Vec<u8>> {
        let size = self.region_info(Region::CONFIG)?.info.size.min(MAX_CONFIG_SPACE);
        self.region_pieces(Region::CONFIG, size, CONFIG_ACCESS)
    }

    /// The first `size` bytes of a region, in as few accesses as the server
    /// allows. Where it refuses large ones, as those of registers do, in accesses
    /// of 8 bytes, else of 4.
    pub fn region_bytes(&mut self, region: Region, size: u64) -> Result<Vec<u8>> {
        let mut outcome = self.region_pieces(region, size, self.max_data_xfer_size());
        for piece in [8, 4] {
            if size > MAX_REGISTERS || !matches!(outcome, Err(Error::Device { .. } | Error::Unfit(_))) {
                break;
            }
            outcome = self.region_pieces(region, size, piece);
        }
        outcome
    }

    fn region_pieces(&mut self, region: Region, size: u64, piece: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut offset = 0;
        while offset < size {
            let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            let count = left.min(piece);
            bytes.extend(self.region_read(region, offset, count)?);
            offset = offset.saturating_add(count as u64);
        }
        Ok(bytes)
    }

    /// Fails if the device has no such region, before it is asked for what is in it.
    pub fn expect_region(&mut self, region: Region) -> Result<()> {
        let device = self.device_info()?;
        if region.0 >= device.num_regions {
            let text = format!("the device has no {region}: it has {} regions", device.num_regions);
            return Err(Error::Unfit(text));
        }
        match self.region_info(region)?.info.size {
            0 => Err(Error::Unfit(format!("the device has no {region}"))),
            _ => Ok(()),
        }
    }

    /// `VFIO_USER_REGION_WRITE` in one access.
    pub fn region_write(&mut self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        let what = format!("write of {} bytes to {region} at {offset:#x}", data.len());
        let (request, done, _) =
            self.access(Command::RegionWrite, &what, region, offset, data.len(), data)?;
        match done == data.len() {
            true => Ok(()),
            false => Err(short(&what, &request, done)),
        }
    }

    /// `VFIO_USER_REGION_WRITE` that the server doesn't answer, and that reaches it
    /// together with the next request.
    pub fn region_post(&mut self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        let what = format!("posted write of {} bytes to {region} at {offset:#x}", data.len());
        let request = RegionAccess { offset, region: region.0, count: data.len() as u32 };
        self.hold(Command::RegionWrite, &what, &[request.as_bytes(), data])
    }

    /// One access: what was asked for, the bytes that the server did, and the
    /// reply's payload.
    fn access(
        &mut self,
        command: Command,
        what: &str,
        region: Region,
        offset: u64,
        count: usize,
        data: &[u8],
    ) -> Result<(RegionAccess, usize, Vec<u8>)> {
        let largest = self.max_data_xfer_size();
        if count > largest {
            return Err(Error::Usage(format!("{what}: the server takes {largest} bytes at a time")));
        }
        let request = RegionAccess { offset, region: region.0, count: count as u32 };
        let reply = self.request(command, &what, &[request.as_bytes(), data], &[])?;
        let (echo, _): (RegionAccess, _) = fixed(what, &reply.body)?;
        if (echo.offset, echo.region) != (offset, region.0) || echo.count > request.count {
            return Err(Error::Protocol(format!("{what}: the reply is about something else")));
        }
        Ok((request, echo.count as usize, reply.body))
    }

    /// `VFIO_USER_DEVICE_SET_IRQS` without boolean data.
    pub fn set_irqs(
        &mut self,
        irq: Irq,
        flags: IrqSetFlags,
        start: u32,
        count: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let what = format!("setting {irq} interrupts");
        let argsz = size_of::<IrqSet>() as u32;
        let request = IrqSet { argsz, flags: flags.bits(), index: irq.0, start, count };
        self.request(Command::DeviceSetIrqs, &what, &[request.as_bytes()], eventfds)?;
        Ok(())
    }

    /// `VFIO_USER_DEVICE_RESET`
    pub fn reset(&mut self) -> Result<()> {
        self.request(Command::DeviceReset, &"reset", &[], &[])?;
        Ok(())
    }
}

fn short(what: &str, request: &RegionAccess, done: usize) -> Error {
    Error::Unfit(format!("{what}: the device did {done} bytes of {}", request.count))
}

/// The areas of the sparse mmap capability in the reply `body`, whose first
/// capability is at `first`; `None` if a link or a list leads out of it. Links
/// only ever lead forward, so that the walk ends.
fn sparse_areas(body: &[u8], first: u32) -> Option<Vec<SparseArea>> {
    let mut at = usize::try_from(first).ok()?;
    if at < size_of::<RegionInfo>() {
        return None;
    }
    loop {
        let (header, _): (CapHeader, _) = take(body.get(at..)?).ok()?;
        if header.id == CapHeader::SPARSE_MMAP {
            let (sparse, list): (SparseMmap, _) = take(body.get(at..)?).ok()?;
            let size = usize::try_from(sparse.nr_areas).ok()?.checked_mul(size_of::<SparseArea>())?;
            let (areas, []) = list.get(..size)?.as_chunks::<{ size_of::<SparseArea>() }>() else {
                return None;
            };
            return areas.iter().map(|area| SparseArea::read_from_bytes(area).ok()).collect();
        }
        match usize::try_from(header.next).ok()? {
            0 => return Some(Vec::new()),
            next if next > at => at = next,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_areas(nr_areas: u32, present: u64, next: u32) -> Vec<u8> {
        let header = CapHeader { id: 1, version: 1, next };
        let mut body = vec![0; 32];
        body.extend_from_slice(SparseMmap { header, nr_areas, reserved: 0 }.as_bytes());
        for n in 0..present {
            body.extend_from_slice(SparseArea { offset: n << 12, size: 1 << 12 }.as_bytes());
        }
        body
    }

    #[test]
    fn areas_are_found() {
        let areas = sparse_areas(&with_areas(2, 2, 0), 32).unwrap();
        assert_eq!(areas.iter().map(|a| a.offset).collect::<Vec<_>>(), [0, 0x1000]);
    }

    #[test]
    fn lists_that_lead_nowhere_are_refused() {
        assert!(sparse_areas(&with_areas(3, 2, 0), 32).is_none());
        assert!(sparse_areas(&with_areas(u32::MAX, 2, 0), 32).is_none());
        for next in [1, 32, 60, u32::MAX] {
            let mut other = with_areas(1, 1, next);
            other[32] = 2;
            assert!(sparse_areas(&other, 32).is_none());
        }
        assert!(sparse_areas(&with_areas(1, 1, 0), 0).is_none());
        assert!(sparse_areas(&with_areas(1, 1, 0), 60).is_none());
        assert!(sparse_areas(&with_areas(1, 1, 0), u32::MAX).is_none());
    }
}
