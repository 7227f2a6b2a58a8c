//! The standard header: the first 64 bytes.

use std::fmt;

use pci_ids::FromId;
use serde::Serialize;

use super::space::{Space, names};

const COMMAND_BITS: [(u32, &str); 10] = [
    (1 << 0, "I/O"),
    (1 << 1, "memory"),
    (1 << 2, "bus master"),
    (1 << 3, "special cycles"),
    (1 << 4, "memory write and invalidate"),
    (1 << 5, "VGA palette snoop"),
    (1 << 6, "parity error response"),
    (1 << 8, "SERR#"),
    (1 << 9, "fast back-to-back"),
    (1 << 10, "INTx disabled"),
];

const STATUS_BITS: [(u32, &str); 10] = [
    (1 << 3, "INTx pending"),
    (1 << 4, "capability list"),
    (1 << 5, "66 MHz"),
    (1 << 7, "fast back-to-back"),
    (1 << 8, "master data parity error"),
    (1 << 11, "signaled target abort"),
    (1 << 12, "received target abort"),
    (1 << 13, "received master abort"),
    (1 << 14, "signaled system error"),
    (1 << 15, "detected parity error"),
];

/// A register and the names of the bits that are set in it.
#[derive(Debug, Serialize)]
pub struct Bits {
    /// The register.
    pub value: u16,
    /// The bits.
    pub set: Vec<&'static str>,
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.value)?;
        if !self.set.is_empty() {
            write!(f, " ({})", self.set.join(", "))?;
        }
        Ok(())
    }
}

/// What kind of device it is.
#[derive(Debug, Serialize)]
pub struct Class {
    /// Base class.
    pub base: u8,
    /// Subclass.
    pub sub: u8,
    /// Programming interface.
    pub prog_if: u8,
    /// The most telling name of all three.
    pub name: String,
}

impl Class {
    fn new(base: u8, sub: u8, prog_if: u8) -> Class {
        let subclass = pci_ids::Subclass::from_cid_sid(base, sub);
        let interface = subclass.and_then(|s| s.prog_ifs().find(|p| p.id() == prog_if));
        let name = match (subclass, interface) {
            (Some(s), Some(p)) => format!("{} [{}]", s.name(), p.name()),
            (Some(s), None) => s.name().to_string(),
            (None, _) => pci_ids::Class::from_id(base)
                .map_or_else(|| format!("class {base:02x}{sub:02x}"), |c| c.name().to_string()),
        };
        Class { base, sub, prog_if, name }
    }
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; the next register is the upper half.
    Memory64,
}

/// A base address register.
#[derive(Debug, Serialize)]
pub struct Bar {
    /// Its number.
    pub index: usize,
    /// What it decodes.
    pub kind: BarKind,
    /// Reading has no side effects.
    pub prefetchable: bool,
    /// The address in it.
    pub address: u64,
    /// Bytes, as the region of the same number has.
    pub size: u64,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BarKind::Io => "I/O ports",
            BarKind::Memory32 => "memory, 32 bits",
            BarKind::Memory64 => "memory, 64 bits",
        };
        let prefetchable = if self.prefetchable { ", prefetchable" } else { "" };
        write!(f, "BAR{}: {kind}{prefetchable}, at {:#x}, {:#x} bytes", self.index, self.address, self.size)
    }
}

/// The expansion ROM's base address register.
#[derive(Debug, Serialize)]
pub struct Rom {
    /// The address in it.
    pub address: u64,
    /// Bytes, as the ROM region has.
    pub size: u64,
    /// Decoding is on.
    pub enabled: bool,
}

/// The standard header.
#[derive(Debug, Serialize)]
pub struct Header {
    /// Vendor.
    pub vendor_id: u16,
    /// Its name, if known.
    pub vendor: Option<&'static str>,
    /// Device.
    pub device_id: u16,
    /// Its name, if known.
    pub device: Option<&'static str>,
    /// Subsystem vendor.
    pub subsystem_vendor_id: u16,
    /// Subsystem.
    pub subsystem_id: u16,
    /// What kind of device it is.
    pub class: Class,
    /// Revision.
    pub revision: u8,
    /// Command register.
    pub command: Bits,
    /// Status register.
    pub status: Bits,
    /// Layout of the header, without the bit for several functions.
    pub header_type: u8,
    /// The device has several functions.
    pub multifunction: bool,
    /// The interrupt pin: 0 none, 1 INTA to 4 INTD.
    pub interrupt_pin: u8,
    /// Where the pin leads.
    pub interrupt_line: u8,
    /// Base address registers with something behind them.
    pub bars: Vec<Bar>,
    /// Expansion ROM.
    pub rom: Option<Rom>,
}

impl Header {
    /// Decodes the header; `None` if there are not even 64 bytes.
    pub fn decode(space: Space<'_>, region_sizes: &[u64; 7]) -> Option<Header> {
        let vendor_id = space.u16(0)?;
        let device_id = space.u16(2)?;
        let command = space.u16(4)?;
        let status = space.u16(6)?;
        let header_type = space.u8(0x0e)?;
        let interrupt_line = space.u8(0x3c)?;
        let rom_size = region_sizes[6];
        let rom = space.u32(0x30).filter(|_| rom_size > 0);
        Some(Header {
            vendor_id,
            vendor: pci_ids::Vendor::from_id(vendor_id).map(|v| v.name()),
            device_id,
            device: pci_ids::Device::from_vid_pid(vendor_id, device_id).map(|d| d.name()),
            subsystem_vendor_id: space.u16(0x2c)?,
            subsystem_id: space.u16(0x2e)?,
            class: Class::new(space.u8(0x0b)?, space.u8(0x0a)?, space.u8(0x09)?),
            revision: space.u8(8)?,
            command: Bits { value: command, set: names(command.into(), &COMMAND_BITS) },
            status: Bits { value: status, set: names(status.into(), &STATUS_BITS) },
            header_type: header_type & 0x7f,
            multifunction: header_type & 0x80 != 0,
            interrupt_pin: space.u8(0x3d)?,
            interrupt_line,
            bars: bars(space, region_sizes),
            rom: rom.map(|r| Rom { address: (r & !0x7ff).into(), size: rom_size, enabled: r & 1 != 0 }),
        })
    }
}

/// The BARs that have a region behind them.
fn bars(space: Space<'_>, region_sizes: &[u64; 7]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut upper_half = false;
    for (index, size) in region_sizes.iter().copied().enumerate().take(6) {
        if std::mem::take(&mut upper_half) || size == 0 {
            continue;
        }
        let register = 0x10 + 4 * index;
        let Some(low) = space.u32(register) else { break };
        let kind = match low & 7 {
            bits if bits & 1 != 0 => BarKind::Io,
            4 => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        upper_half = kind == BarKind::Memory64;
        let high = space.u32(register + 4).filter(|_| upper_half && index < 5).unwrap_or(0);
        let flags = if kind == BarKind::Io { 3 } else { 0xf };
        bars.push(Bar {
            index,
            kind,
            prefetchable: kind != BarKind::Io && low & 8 != 0,
            address: u64::from(high) << 32 | u64::from(low & !flags),
            size,
        });
    }
    bars
}
