//! The PCI Express capability.

use std::fmt;

use serde::Serialize;

use super::space::{Space, names};

/// PCI Express.
#[derive(Debug, Serialize)]
pub struct Express {
    /// Version of the capability.
    pub version: u16,
    /// What kind of port or endpoint it is.
    pub port_type: &'static str,
    /// Largest payload it can take, in bytes.
    pub max_payload_supported: u32,
    /// Largest payload it may send, in bytes.
    pub max_payload: u32,
    /// Largest read it may ask for, in bytes.
    pub max_read_request: u32,
    /// It can be reset by function level reset.
    pub flr: bool,
    /// Bits set in Device Control.
    pub device_control: Vec<&'static str>,
    /// Bits set in Device Status.
    pub device_status: Vec<&'static str>,
    /// Generation of the fastest link it has; 0 for none.
    pub link_speed_supported: u32,
    /// Lanes it has.
    pub link_width_supported: u32,
    /// Generation of the link in use.
    pub link_speed: u16,
    /// Lanes in use.
    pub link_width: u16,
}

const CONTROL_BITS: [(u32, &str); 8] = [
    (1 << 0, "report correctable"),
    (1 << 1, "report non-fatal"),
    (1 << 2, "report fatal"),
    (1 << 3, "report unsupported"),
    (1 << 4, "relaxed ordering"),
    (1 << 8, "extended tag"),
    (1 << 10, "aux power"),
    (1 << 11, "no snoop"),
];

const STATUS_BITS: [(u32, &str); 6] = [
    (1 << 0, "correctable error"),
    (1 << 1, "non-fatal error"),
    (1 << 2, "fatal error"),
    (1 << 3, "unsupported request"),
    (1 << 4, "aux power"),
    (1 << 5, "transactions pending"),
];

fn port_type(number: u16) -> &'static str {
    match number {
        0 => "Endpoint",
        1 => "Legacy Endpoint",
        4 => "Root Port",
        5 => "Upstream Switch Port",
        6 => "Downstream Switch Port",
        7 => "PCI Express to PCI Bridge",
        8 => "PCI to PCI Express Bridge",
        9 => "Root Complex Integrated Endpoint",
        10 => "Root Complex Event Collector",
        _ => "unknown",
    }
}

impl Express {
    /// Decodes the capability at `at`.
    pub fn decode(space: Space<'_>, at: usize) -> Option<Express> {
        let caps = space.u16(at + 2)?;
        let device_caps = space.u32(at + 4)?;
        let control = space.u16(at + 8)?;
        let status = space.u16(at + 10)?;
        let link_caps = space.u32(at + 12)?;
        let link_status = space.u16(at + 18)?;
        Some(Express {
            version: caps & 0xf,
            port_type: port_type(caps >> 4 & 0xf),
            max_payload_supported: 128 << (device_caps & 7),
            max_payload: 128 << (control >> 5 & 7),
            max_read_request: 128 << (control >> 12 & 7),
            flr: device_caps & 1 << 28 != 0,
            device_control: names(control.into(), &CONTROL_BITS),
            device_status: names(status.into(), &STATUS_BITS),
            link_speed_supported: link_caps & 0xf,
            link_width_supported: link_caps >> 4 & 0x3f,
            link_speed: link_status & 0xf,
            link_width: link_status >> 4 & 0x3f,
        })
    }
}

impl fmt::Display for Express {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}, {}", self.version, self.port_type)?;
        write!(f, "; payload {} of {} bytes", self.max_payload, self.max_payload_supported)?;
        write!(f, ", reads {} bytes", self.max_read_request)?;
        let (width, all) = (self.link_width, self.link_width_supported);
        write!(f, "; link generation {} of {}", self.link_speed, self.link_speed_supported)?;
        write!(f, ", {width} of {all} lanes")?;
        if self.flr {
            f.write_str("; function level reset")?;
        }
        for (name, bits) in [("control", &self.device_control), ("status", &self.device_status)] {
            if !bits.is_empty() {
                write!(f, "; {name}: {}", bits.join(", "))?;
            }
        }
        Ok(())
    }
}
