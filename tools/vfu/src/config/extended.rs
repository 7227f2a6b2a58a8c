//! The extended capabilities, from 0x100 on.

use std::fmt;

use serde::Serialize;

use super::space::Space;

/// Where the list starts.
const FIRST: usize = 0x100;

/// An extended capability of the list.
#[derive(Debug, Serialize)]
pub struct ExtendedCapability {
    /// Its identity.
    pub id: u16,
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: u8,
    /// Where it is.
    pub offset: usize,
    /// What is in it, if it is of a kind that is decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<ExtendedDetails>,
}

/// What is in an extended capability.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ExtendedDetails {
    /// Device serial number.
    Serial {
        /// In the form that lspci prints.
        serial: String,
    },
    /// Vendor specific.
    Vendor {
        /// Which of the vendor's.
        vsec_id: u16,
        /// Its revision.
        revision: u8,
        /// Size with the headers, in bytes.
        length: u16,
        /// What follows the headers, in hexadecimal.
        data: String,
    },
}

impl fmt::Display for ExtendedDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtendedDetails::Serial { serial } => f.write_str(serial),
            ExtendedDetails::Vendor { vsec_id, revision, length, data } => {
                write!(f, "id {vsec_id:#06x}, revision {revision}, {length} bytes: {data}")
            }
        }
    }
}

/// The name of an extended capability.
pub fn name(id: u16) -> &'static str {
    match id {
        0x01 => "Advanced Error Reporting",
        0x02 | 0x09 => "Virtual Channel",
        0x03 => "Device Serial Number",
        0x04 => "Power Budgeting",
        0x0b => "Vendor Specific",
        0x0d => "Access Control Services",
        0x0e => "Alternative Routing-ID Interpretation",
        0x0f => "Address Translation Service",
        0x10 => "Single Root I/O Virtualization",
        0x12 => "Multicast",
        0x13 => "Page Request Interface",
        0x15 => "Resizable BAR",
        0x16 => "Dynamic Power Allocation",
        0x17 => "TPH Requester",
        0x18 => "Latency Tolerance Reporting",
        0x19 => "Secondary PCI Express",
        0x1b => "Process Address Space ID",
        0x1d => "Downstream Port Containment",
        0x1e => "L1 PM Substates",
        0x1f => "Precision Time Measurement",
        0x23 => "Designated Vendor-Specific",
        0x24 => "VF Resizable BAR",
        0x25 => "Data Link Feature",
        0x26 => "Physical Layer 16.0 GT/s",
        0x27 => "Lane Margining",
        0x2e => "Data Object Exchange",
        _ => "unknown",
    }
}

/// Walks the list. It ends at a link that leads back or out of the space.
pub fn decode(space: Space<'_>) -> Vec<ExtendedCapability> {
    let mut found: Vec<ExtendedCapability> = Vec::new();
    let mut offset = FIRST;
    while let Some(header) = space.u32(offset).filter(|h| *h != 0 && *h != u32::MAX) {
        if offset < FIRST || found.iter().any(|c| c.offset == offset) {
            break;
        }
        let id = (header & 0xffff) as u16;
        let version = (header >> 16 & 0xf) as u8;
        found.push(ExtendedCapability {
            id,
            name: name(id),
            version,
            offset,
            details: details(space, id, offset),
        });
        offset = (header >> 20 & 0xffc) as usize;
    }
    found
}

fn details(space: Space<'_>, id: u16, at: usize) -> Option<ExtendedDetails> {
    match id {
        0x03 => {
            let number = space.u64(at + 4)?.to_be_bytes();
            let serial: Vec<String> = number.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(ExtendedDetails::Serial { serial: serial.join("-") })
        }
        0x0b => {
            let header = space.u32(at + 4)?;
            let length = header >> 20;
            let data = space.0.get(at + 8..at + length as usize)?;
            Some(ExtendedDetails::Vendor {
                vsec_id: (header & 0xffff) as u16,
                revision: (header >> 16 & 0xf) as u8,
                length: length as u16,
                data: data.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        }
        _ => None,
    }
}
