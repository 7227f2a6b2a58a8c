//! A device on the server of the `vfio_user` crate, which shares no code with this project's library:
//! something for `vfu check` to look at. A configuration space, a BAR of memory, and interrupts.
//!
//!     vfio-user-crate SOCKET
//!
//! It serves one client after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user_crate::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

/// Sizes of the nine regions of a PCI device, and counts of its five interrupt types.
const REGIONS: [usize; 9] = [0x1000, 0, 0, 0, 0, 0, 0, 0x1000, 0];
const IRQS: [u32; 5] = [1, 0, 4, 0, 0];

const CONFIG: usize = 7;

struct Device {
    regions: Vec<Vec<u8>>,
    eventfds: BTreeMap<(u32, u32), File>,
    maps: BTreeMap<u64, u64>,
}

fn refused() -> Error {
    Error::from(ErrorKind::InvalidInput)
}

impl Device {
    fn new() -> Device {
        let mut regions: Vec<Vec<u8>> = REGIONS.iter().map(|size| vec![0; *size]).collect();
        regions[CONFIG][..4].copy_from_slice(&[0x36, 0x1b, 0x42, 0]);
        Device { regions, eventfds: BTreeMap::new(), maps: BTreeMap::new() }
    }

    fn part(&mut self, region: u32, offset: u64, len: usize) -> Result<&mut [u8]> {
        let start = usize::try_from(offset).map_err(|_| refused())?;
        let end = start.checked_add(len).ok_or_else(refused)?;
        self.regions.get_mut(region as usize).and_then(|r| r.get_mut(start..end)).ok_or_else(refused)
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        data.copy_from_slice(self.part(region, offset, data.len())?);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.part(region, offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, _: u64, addr: u64, size: u64, _: Option<File>) -> Result<()> {
        let end = addr.checked_add(size).filter(|_| size > 0).ok_or_else(refused)?;
        match self.maps.range(..end).next_back() {
            Some((start, size)) if start + size > addr => Err(Error::from(ErrorKind::AlreadyExists)),
            _ => {
                self.maps.insert(addr, size);
                Ok(())
            }
        }
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, addr: u64, size: u64) -> Result<()> {
        match self.maps.get(&addr) {
            Some(mapped) if *mapped == size => {
                self.maps.remove(&addr);
                Ok(())
            }
            _ => Err(Error::from(ErrorKind::NotFound)),
        }
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> Result<()> {
        const TRIGGER_NONE: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
        const TRIGGER_EVENTFD: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        let end = start.checked_add(count).filter(|end| *end <= IRQS[index as usize]).ok_or_else(refused)?;
        match flags {
            TRIGGER_NONE if count == 0 => self.eventfds.retain(|(kind, _), _| *kind != index),
            TRIGGER_NONE => {
                for (_, eventfd) in self.eventfds.range_mut((index, start)..(index, end)) {
                    eventfd.write_all(&1u64.to_ne_bytes())?;
                }
            }
            TRIGGER_EVENTFD if fds.is_empty() => {
                self.eventfds.retain(|(kind, vector), _| *kind != index || !(start..end).contains(vector));
            }
            TRIGGER_EVENTFD if fds.len() == count as usize => {
                self.eventfds.extend((start..end).map(|vector| (index, vector)).zip(fds));
            }
            _ => return Err(refused()),
        }
        Ok(())
    }
}

fn main() {
    let path = std::env::args().nth(1).expect("the path of a socket");
    let irq = |(index, count): (usize, &u32)| IrqInfo {
        index: index as u32,
        flags: VFIO_IRQ_INFO_EVENTFD,
        count: *count,
    };
    let region = |(index, size): (usize, &usize)| ServerRegion {
        region_info: vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: if *size > 0 { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE } else { 0 },
            index: index as u32,
            size: *size as u64,
            ..Default::default()
        },
        sparse_areas: vec![],
        mmap_fd: None,
    };
    let irqs = IRQS.iter().enumerate().map(irq).collect();
    let regions = REGIONS.iter().enumerate().map(region).collect();
    let server = Server::new(Path::new(&path), true, irqs, regions).expect("a server");
    let mut device = Device::new();
    loop {
        // An error is a client that the server gives up, and which is gone then.
        let _ = server.run(&mut device);
        device.maps.clear();
        device.eventfds.clear();
    }
}
