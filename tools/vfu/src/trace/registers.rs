//! Names of the registers in configuration space.
//!
//! Those of the header are always the same. Where the capabilities are is
//! learned from what the client reads.

use crate::config::{capability_name, extended_capability_name};

/// Bytes of a configuration space.
const SPACE: usize = 4096;
/// Registers that are named in one line.
const NAMED: usize = 4;

/// Offset, bytes and name of each register of the header.
const HEADER: [(usize, usize, &str); 25] = [
    (0x00, 2, "Vendor ID"),
    (0x02, 2, "Device ID"),
    (0x04, 2, "Command"),
    (0x06, 2, "Status"),
    (0x08, 1, "Revision ID"),
    (0x09, 3, "Class Code"),
    (0x0c, 1, "Cache Line Size"),
    (0x0d, 1, "Latency Timer"),
    (0x0e, 1, "Header Type"),
    (0x0f, 1, "BIST"),
    (0x10, 4, "BAR0"),
    (0x14, 4, "BAR1"),
    (0x18, 4, "BAR2"),
    (0x1c, 4, "BAR3"),
    (0x20, 4, "BAR4"),
    (0x24, 4, "BAR5"),
    (0x28, 4, "Cardbus CIS Pointer"),
    (0x2c, 2, "Subsystem Vendor ID"),
    (0x2e, 2, "Subsystem ID"),
    (0x30, 4, "Expansion ROM"),
    (0x34, 1, "Capabilities Pointer"),
    (0x3c, 1, "Interrupt Line"),
    (0x3d, 1, "Interrupt Pin"),
    (0x3e, 1, "Min_Gnt"),
    (0x3f, 1, "Max_Lat"),
];

/// The same of capabilities, from their start on; what follows has no name of its own.
fn capability_registers(id: u8) -> &'static [(usize, usize, &'static str)] {
    match id {
        0x01 => &[(2, 2, "Capabilities"), (4, 2, "Control/Status")],
        0x05 => &[(2, 2, "Message Control")],
        0x10 => &[
            (0x02, 2, "Capabilities"),
            (0x04, 4, "Device Capabilities"),
            (0x08, 2, "Device Control"),
            (0x0a, 2, "Device Status"),
            (0x0c, 4, "Link Capabilities"),
            (0x10, 2, "Link Control"),
            (0x12, 2, "Link Status"),
            (0x24, 4, "Device Capabilities 2"),
            (0x28, 2, "Device Control 2"),
        ],
        0x11 => &[(2, 2, "Message Control"), (4, 4, "Table Offset"), (8, 4, "PBA Offset")],
        _ => &[],
    }
}

/// What is known of a configuration space.
pub struct Registers {
    bytes: Vec<Option<u8>>,
}

impl Default for Registers {
    fn default() -> Registers {
        Registers { bytes: vec![None; SPACE] }
    }
}

impl Registers {
    /// The device has these bytes.
    pub fn learn(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(SPACE);
        for (known, byte) in self.bytes.iter_mut().skip(start).zip(data) {
            *known = Some(*byte);
        }
    }

    /// Names of the registers that an access reaches; the last is an ellipsis if there are more.
    pub fn names(&self, offset: u64, count: u64) -> Vec<String> {
        let end = offset.saturating_add(count).min(SPACE as u64);
        let Ok(mut at) = usize::try_from(offset.min(SPACE as u64)) else { return Vec::new() };
        let mut names: Vec<String> = Vec::new();
        while (at as u64) < end {
            let (next, name) = self.register(at);
            if let Some(name) = name.filter(|name| names.last() != Some(name)) {
                if names.len() == NAMED {
                    names.push("…".into());
                    break;
                }
                names.push(name);
            }
            at = next.max(at.saturating_add(1));
        }
        names
    }

    fn u8(&self, at: usize) -> Option<u8> {
        *self.bytes.get(at)?
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let byte = |n: usize| self.u8(at.checked_add(n)?);
        Some(u32::from_le_bytes([byte(0)?, byte(1)?, byte(2)?, byte(3)?]))
    }

    /// The register at a place: where the next one begins, and its name.
    fn register(&self, at: usize) -> (usize, Option<String>) {
        match at {
            0..0x40 => match find(&HEADER, at) {
                Some((end, name)) => (end, Some(name.to_string())),
                None => (at.saturating_add(1), None),
            },
            0x40..0x100 => self.capability(at).unwrap_or((at.saturating_add(1), None)),
            _ => self.extended(at).unwrap_or((at.saturating_add(4), None)),
        }
    }

    fn capability(&self, at: usize) -> Option<(usize, Option<String>)> {
        const HAS_LIST: u8 = 1 << 4;
        self.u8(6).filter(|status| status & HAS_LIST != 0)?;
        let (mut link, mut best) = (self.u8(0x34), None);
        // More than fit would be a list that leads back.
        for _ in 0..48 {
            let Some(offset) = link.map(|l| usize::from(l & !3)).filter(|o| *o >= 0x40) else { break };
            if offset <= at && best.is_none_or(|b| offset > b) {
                best = Some(offset);
            }
            link = self.u8(offset.saturating_add(1));
        }
        let start = best?;
        let id = self.u8(start)?;
        let within = at.checked_sub(start)?;
        Some(named(start, within, capability_name(id), capability_registers(id), 2))
    }

    fn extended(&self, at: usize) -> Option<(usize, Option<String>)> {
        let (mut offset, mut best) = (0x100, None);
        for _ in 0..SPACE / 4 {
            let Some(head) = self.u32(offset).filter(|head| *head != 0) else { break };
            if offset <= at && best.is_none_or(|(b, _)| offset > b) {
                best = Some((offset, (head & 0xffff) as u16));
            }
            offset = (head >> 20) as usize & !3;
            if offset < 0x100 {
                break;
            }
        }
        let (start, id) = best?;
        let within = at.checked_sub(start)?;
        Some(named(start, within, extended_capability_name(id), &[], 4))
    }
}

/// A register of a capability that begins at `start` with a header of so many bytes.
fn named(
    start: usize,
    within: usize,
    capability: &str,
    registers: &[(usize, usize, &'static str)],
    header: usize,
) -> (usize, Option<String>) {
    let (end, name) = match find(registers, within) {
        _ if within < header => (header, capability.to_string()),
        Some((end, name)) => (end, format!("{capability} {name}")),
        // The rest of its double word.
        None => ((within | 3).saturating_add(1), format!("{capability} +{:#x}", within & !3)),
    };
    (start.saturating_add(end), Some(name))
}

fn find(registers: &[(usize, usize, &'static str)], at: usize) -> Option<(usize, &'static str)> {
    let end = |(start, size, _): &(usize, usize, &str)| start.saturating_add(*size);
    let register = registers.iter().find(|register| (register.0..end(register)).contains(&at))?;
    Some((end(register), register.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(registers: &Registers, offset: u64, count: u64) -> String {
        registers.names(offset, count).join("; ")
    }

    #[test]
    fn the_header_is_known_from_the_start() {
        let registers = Registers::default();
        assert_eq!(names(&registers, 0, 4), "Vendor ID; Device ID");
        assert_eq!(names(&registers, 0x3c, 1), "Interrupt Line");
        assert_eq!(names(&registers, 0x0a, 1), "Class Code");
        assert_eq!(names(&registers, 0, 64), "Vendor ID; Device ID; Command; Status; …");
        for (offset, count) in [(0x40, 4), (0x100, 4), (4096, 4), (u64::MAX, 4), (0, 0)] {
            assert_eq!(names(&registers, offset, count), "", "{offset:#x}");
        }
    }

    /// MSI-X at 0x50, then PCI Express at 0x40; a serial number at 0x100, something else at 0x140.
    #[test]
    fn capabilities_are_learned() {
        let mut registers = Registers::default();
        registers.learn(6, &[0x10]);
        registers.learn(0x34, &[0x50]);
        registers.learn(0x50, &[0x11, 0x40]);
        registers.learn(0x40, &[0x10, 0]);
        assert_eq!(names(&registers, 0x50, 4), "MSI-X; MSI-X Message Control");
        assert_eq!(names(&registers, 0x52, 2), "MSI-X Message Control");
        assert_eq!(names(&registers, 0x5c, 4), "MSI-X +0xc");
        assert_eq!(names(&registers, 0x48, 2), "PCI Express Device Control");
        registers.learn(0x100, &[3, 0, 1, 0x14]);
        registers.learn(0x140, &[0xff, 0x7f, 1, 0]);
        assert_eq!(names(&registers, 0x104, 4), "Device Serial Number +0x4");
        assert_eq!(names(&registers, 0x148, 4), format!("{} +0x8", extended_capability_name(0x7fff)));
    }

    #[test]
    fn lists_that_lead_back_end() {
        let mut registers = Registers::default();
        registers.learn(0, &[0xff; SPACE]);
        registers.learn(0x34, &[0x40]);
        registers.learn(0x40, &[5, 0x40]);
        registers.learn(0x100, &[3, 0, 1, 0x10]);
        assert_eq!(names(&registers, 0x42, 2), "MSI Message Control");
        assert_eq!(names(&registers, 0x108, 4), "Device Serial Number +0x8");
        registers.names(0, SPACE as u64);
        registers.learn(u64::MAX, &[1]);
    }
}
