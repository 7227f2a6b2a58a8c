//! The standard capabilities.

use std::fmt;

use serde::Serialize;

use super::express::Express;
use super::space::{Space, names};

/// First byte where a capability may be.
const FIRST: usize = 0x40;
/// End of the space that has standard capabilities.
const END: usize = 0x100;

/// A capability of the list.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// Its identity.
    pub id: u8,
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub offset: usize,
    /// What is in it, if it is of a kind that is decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// What is in a capability.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Details {
    /// Power management.
    Power(Power),
    /// Message signalled interrupts.
    Msi(Msi),
    /// The same with a table.
    MsiX(MsiX),
    /// PCI Express.
    Express(Express),
    /// Vendor specific.
    Vendor(Vendor),
}

/// Power management.
#[derive(Debug, Serialize)]
pub struct Power {
    /// Version of the specification, as its number in the register.
    pub version: u16,
    /// Sleep states supported.
    pub states: Vec<&'static str>,
    /// States that PME# can be signalled from.
    pub pme: Vec<&'static str>,
    /// The state the device is in: D0 to D3.
    pub state: u16,
    /// Going from D3 to D0 doesn't reset the device.
    pub no_soft_reset: bool,
    /// PME# is enabled.
    pub pme_enabled: bool,
}

/// Message signalled interrupts.
#[derive(Debug, Serialize)]
pub struct Msi {
    /// On.
    pub enabled: bool,
    /// Vectors the device can use.
    pub vectors: u32,
    /// Vectors it was given.
    pub vectors_enabled: u32,
    /// Addresses of 64 bits.
    pub address64: bool,
    /// A mask bit for each vector.
    pub maskable: bool,
    /// Where messages go.
    pub address: u64,
    /// What they say.
    pub data: u16,
}

/// Message signalled interrupts with a table.
#[derive(Debug, Serialize)]
pub struct MsiX {
    /// On.
    pub enabled: bool,
    /// All vectors are masked.
    pub masked: bool,
    /// Vectors in the table.
    pub vectors: u32,
    /// BAR and offset of the table.
    pub table: Place,
    /// BAR and offset of the pending bits.
    pub pba: Place,
}

/// A place in a BAR.
#[derive(Debug, Serialize)]
pub struct Place {
    /// The BAR.
    pub bar: u32,
    /// Bytes from its start.
    pub offset: u32,
}

/// Vendor specific.
#[derive(Debug, Serialize)]
pub struct Vendor {
    /// Size with the header, in bytes.
    pub length: u8,
    /// What follows the header, in hexadecimal.
    pub data: String,
}

/// The name of a capability.
pub fn name(id: u8) -> &'static str {
    match id {
        0x01 => "Power Management",
        0x02 => "AGP",
        0x03 => "Vital Product Data",
        0x04 => "Slot Identification",
        0x05 => "MSI",
        0x06 => "CompactPCI Hot Swap",
        0x07 => "PCI-X",
        0x08 => "HyperTransport",
        0x09 => "Vendor Specific",
        0x0a => "Debug port",
        0x0b => "CompactPCI Central Resource Control",
        0x0c => "Hot-Plug",
        0x0d => "Bridge subsystem",
        0x0e => "AGP 8x",
        0x0f => "Secure Device",
        0x10 => "PCI Express",
        0x11 => "MSI-X",
        0x12 => "SATA",
        0x13 => "Advanced Features",
        0x14 => "Enhanced Allocation",
        _ => "unknown",
    }
}

/// Walks the list. It ends at a link that leads back or out of the space.
pub fn decode(space: Space<'_>) -> Vec<Capability> {
    const HAS_LIST: u16 = 1 << 4;
    let mut found: Vec<Capability> = Vec::new();
    if space.u16(6).is_none_or(|status| status & HAS_LIST == 0) {
        return found;
    }
    let mut link = space.u8(0x34);
    while let Some(offset) = link.map(|l| usize::from(l & !3)).filter(|at| (FIRST..END).contains(at)) {
        let Some(id) = space.u8(offset).filter(|_| found.iter().all(|c| c.offset != offset)) else { break };
        found.push(Capability { id, name: name(id), offset, details: details(space, id, offset) });
        link = space.u8(offset + 1);
    }
    found
}

fn details(space: Space<'_>, id: u8, at: usize) -> Option<Details> {
    match id {
        0x01 => power(space, at).map(Details::Power),
        0x05 => msi(space, at).map(Details::Msi),
        0x09 => vendor(space, at).map(Details::Vendor),
        0x10 => Express::decode(space, at).map(Details::Express),
        0x11 => msix(space, at).map(Details::MsiX),
        _ => None,
    }
}

fn power(space: Space<'_>, at: usize) -> Option<Power> {
    let pmc = space.u16(at + 2)?;
    let pmcsr = space.u16(at + 4)?;
    let pme = [(1 << 11, "D0"), (1 << 12, "D1"), (1 << 13, "D2"), (1 << 14, "D3hot"), (1 << 15, "D3cold")];
    Some(Power {
        version: pmc & 7,
        states: names(pmc.into(), &[(1 << 9, "D1"), (1 << 10, "D2")]),
        pme: names(pmc.into(), &pme),
        state: pmcsr & 3,
        no_soft_reset: pmcsr & 1 << 3 != 0,
        pme_enabled: pmcsr & 1 << 8 != 0,
    })
}

fn msi(space: Space<'_>, at: usize) -> Option<Msi> {
    let control = space.u16(at + 2)?;
    let address64 = control & 1 << 7 != 0;
    let (address, data) = match address64 {
        true => (space.u64(at + 4)?, space.u16(at + 12)?),
        false => (space.u32(at + 4)?.into(), space.u16(at + 8)?),
    };
    Some(Msi {
        enabled: control & 1 != 0,
        vectors: 1 << (control >> 1 & 7),
        vectors_enabled: 1 << (control >> 4 & 7),
        address64,
        maskable: control & 1 << 8 != 0,
        address,
        data,
    })
}

fn msix(space: Space<'_>, at: usize) -> Option<MsiX> {
    let control = space.u16(at + 2)?;
    let place = |register: u32| Place { bar: register & 7, offset: register & !7 };
    Some(MsiX {
        enabled: control & 1 << 15 != 0,
        masked: control & 1 << 14 != 0,
        vectors: u32::from(control & 0x7ff) + 1,
        table: place(space.u32(at + 4)?),
        pba: place(space.u32(at + 8)?),
    })
}

fn vendor(space: Space<'_>, at: usize) -> Option<Vendor> {
    let length = space.u8(at + 2)?;
    let data = space.0.get(at + 3..at + usize::from(length))?;
    Some(Vendor { length, data: data.iter().map(|byte| format!("{byte:02x}")).collect() })
}

/// `yes` or nothing, with a comma.
fn also(condition: bool, text: &'static str) -> &'static str {
    if condition { text } else { "" }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Details::Power(p) => p.fmt(f),
            Details::Msi(m) => m.fmt(f),
            Details::MsiX(m) => m.fmt(f),
            Details::Express(e) => e.fmt(f),
            Details::Vendor(v) => write!(f, "{} bytes: {}", v.length, v.data),
        }
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[&str]| if names.is_empty() { "none".to_string() } else { names.join(" ") };
        write!(f, "version {}, in D{}", self.version, self.state)?;
        write!(f, "; sleep states {}; PME# from {}", list(&self.states), list(&self.pme))?;
        let reset = also(self.no_soft_reset, "; no soft reset");
        write!(f, "{reset}{}", also(self.pme_enabled, "; PME# enabled"))
    }
}

impl fmt::Display for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = if self.enabled { "on" } else { "off" };
        write!(f, "{on}, {} of {} vectors", self.vectors_enabled, self.vectors)?;
        let address64 = also(self.address64, ", 64 bits");
        write!(f, "{address64}{}", also(self.maskable, ", maskable"))?;
        write!(f, ", address {:#x}, data {:#x}", self.address, self.data)
    }
}

impl fmt::Display for MsiX {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = if self.enabled { "on" } else { "off" };
        write!(f, "{on}{}, {} vectors", also(self.masked, ", masked"), self.vectors)?;
        let (table, pba) = (&self.table, &self.pba);
        write!(f, "; table BAR{} at {:#x}", table.bar, table.offset)?;
        write!(f, "; pending bits BAR{} at {:#x}", pba.bar, pba.offset)
    }
}
