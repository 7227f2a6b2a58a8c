//! `vfu info`

use serde::Serialize;
use vfio_user::wire::{DeviceFlags, IrqInfo, IrqInfoFlags, RegionInfoFlags};

use crate::client::{Client, Negotiated, RegionDetails};
use crate::error::{Error, Result};
use crate::output::{self, Format};
use crate::region::{Irq, Region};

/// More regions or interrupt types than any device has.
const MAX_KINDS: u32 = 256;

#[derive(Serialize)]
struct Info {
    version: Version,
    capabilities: Capabilities,
    device: Device,
    regions: Vec<RegionRow>,
    irqs: Vec<IrqRow>,
}

#[derive(Serialize)]
struct Version {
    major: u16,
    minor: u16,
}

#[derive(Serialize)]
struct Capabilities {
    max_msg_fds: u32,
    max_data_xfer_size: u32,
    pgsizes: Option<u64>,
    max_dma_maps: Option<u64>,
    write_multiple: bool,
    migration_pgsize: Option<u64>,
    twin_socket: bool,
}

#[derive(Serialize)]
struct Device {
    flags: Vec<String>,
    num_regions: u32,
    num_irqs: u32,
}

#[derive(Serialize)]
struct RegionRow {
    index: u32,
    name: String,
    size: u64,
    offset: u64,
    flags: Vec<String>,
    descriptor: bool,
    mmap_areas: Vec<Area>,
}

#[derive(Serialize)]
struct Area {
    offset: u64,
    size: u64,
}

#[derive(Serialize)]
struct IrqRow {
    index: u32,
    name: String,
    count: u32,
    flags: Vec<String>,
}

/// Names of flags in lower case, unknown ones in hexadecimal.
fn flag_names<F: bitflags::Flags<Bits = u32>>(flags: F) -> Vec<String> {
    let unknown = flags.bits() & !F::all().bits();
    let known = flags.iter_names().map(|(name, _)| name.to_lowercase());
    known.chain((unknown != 0).then(|| format!("{unknown:#x}"))).collect()
}

impl Info {
    fn gather(client: &mut Client) -> Result<Info> {
        let device = client.device_info()?;
        for (number, kind) in [(device.num_regions, "regions"), (device.num_irqs, "interrupt types")] {
            if number > MAX_KINDS {
                return Err(Error::Protocol(format!("device information: {number} {kind}")));
            }
        }
        let regions = (0..device.num_regions).map(|n| client.region_info(Region(n)).map(RegionRow::new));
        let regions = regions.collect::<Result<_>>()?;
        let irqs = (0..device.num_irqs).map(|n| client.irq_info(Irq(n)).map(IrqRow::new));
        let irqs = irqs.collect::<Result<_>>()?;
        let Negotiated { major, minor, capabilities } = *client.negotiated();
        Ok(Info {
            version: Version { major, minor },
            capabilities: Capabilities {
                max_msg_fds: capabilities.max_msg_fds,
                max_data_xfer_size: capabilities.max_data_xfer_size,
                pgsizes: capabilities.pgsizes,
                max_dma_maps: capabilities.max_dma_maps,
                write_multiple: capabilities.write_multiple,
                migration_pgsize: capabilities.migration.map(|m| m.pgsize),
                twin_socket: client.has_twin_socket(),
            },
            device: Device {
                flags: flag_names(DeviceFlags::from_bits_retain(device.flags)),
                num_regions: device.num_regions,
                num_irqs: device.num_irqs,
            },
            regions,
            irqs,
        })
    }

    fn print(&self) -> Result<()> {
        let Info { version, capabilities: caps, device, .. } = self;
        output::line(format!("protocol    {}.{}", version.major, version.minor))?;
        output::line(format!("device      {}", device.flags.join(", ")))?;
        output::line(format!("server      {caps}"))?;
        output::line("")?;
        let mut table = output::table(&["region", "size", "flags", "mappable"], &[1]);
        for row in self.regions.iter().filter(|r| r.size > 0) {
            table.add_row([
                row.name.clone(),
                format!("{:#x}", row.size),
                row.flags.join(" "),
                row.mappable(),
            ]);
        }
        output::fit(&mut table);
        output::line(table.trim_fmt())?;
        output::line("")?;
        let mut table = output::table(&["interrupt", "vectors", "flags"], &[1]);
        for row in &self.irqs {
            table.add_row([row.name.clone(), row.count.to_string(), row.flags.join(" ")]);
        }
        output::line(table.trim_fmt())
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "max_msg_fds {}, max_data_xfer_size {}", self.max_msg_fds, self.max_data_xfer_size)?;
        let numbers = [
            ("pgsizes", self.pgsizes),
            ("max_dma_maps", self.max_dma_maps),
            ("migration pgsize", self.migration_pgsize),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                write!(f, ", {name} {number}")?;
            }
        }
        for (name, set) in [("write_multiple", self.write_multiple), ("twin_socket", self.twin_socket)] {
            if set {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

impl RegionRow {
    fn new(details: RegionDetails) -> RegionRow {
        let info = details.info;
        let areas = details.areas.iter().map(|a| Area { offset: a.offset, size: a.size });
        RegionRow {
            index: info.index,
            name: Region(info.index).to_string(),
            size: info.size,
            offset: info.offset,
            flags: flag_names(details.flags()),
            descriptor: details.fd.is_some(),
            mmap_areas: areas.collect(),
        }
    }

    /// Which parts can be mapped.
    fn mappable(&self) -> String {
        let mmap = RegionInfoFlags::MMAP;
        let can = flag_names(mmap).iter().all(|name| self.flags.contains(name));
        let areas = self.mmap_areas.iter().map(|a| format!("{:#x}+{:#x}", a.offset, a.size));
        let areas: Vec<String> = areas.collect();
        match (can, areas.is_empty(), self.descriptor) {
            (false, ..) => "-".into(),
            (true, false, _) => areas.join(" "),
            (true, true, true) => "all".into(),
            (true, true, false) => "no descriptor sent".into(),
        }
    }
}

impl IrqRow {
    fn new(info: IrqInfo) -> IrqRow {
        IrqRow {
            index: info.index,
            name: Irq(info.index).to_string(),
            count: info.count,
            flags: flag_names(IrqInfoFlags::from_bits_retain(info.flags)),
        }
    }
}

/// Shows what the server tells of itself.
pub fn run(client: &mut Client, format: Format) -> Result<()> {
    let info = Info::gather(client)?;
    match format.is_json() {
        true => format.json(&info),
        false => info.print(),
    }
}
