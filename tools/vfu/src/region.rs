//! Names of regions and interrupt types.

use std::fmt;
use std::str::FromStr;

use crate::number::number;

/// Names of the regions of a PCI device, in the order of their numbers.
const REGIONS: [&str; 9] = ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA"];

/// Names of the interrupt types of a PCI device, in the order of their numbers.
const IRQS: [&str; 5] = ["INTx", "MSI", "MSI-X", "ERR", "REQ"];

/// A region of the device: by name if it has one, else by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region(pub u32);

impl Region {
    /// The first base address register.
    pub const BAR0: Region = Region(0);
    /// The configuration space.
    pub const CONFIG: Region = Region(7);
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(|n| REGIONS.get(n)) {
            Some(name) => f.write_str(name),
            None => write!(f, "region {}", self.0),
        }
    }
}

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Region, String> {
        if let Some(n) = REGIONS.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return u32::try_from(n).map(Region).map_err(|e| e.to_string());
        }
        number(text).map(Region).map_err(|_| format!("neither a number nor one of {}", REGIONS.join(", ")))
    }
}

/// An interrupt type of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq(pub u32);

impl Irq {
    /// The interrupt pin.
    pub const INTX: Irq = Irq(0);
    /// Message signalled interrupts.
    pub const MSI: Irq = Irq(1);
    /// Message signalled interrupts with a table.
    pub const MSIX: Irq = Irq(2);
}

impl fmt::Display for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(|n| IRQS.get(n)) {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

impl FromStr for Irq {
    type Err = String;

    fn from_str(text: &str) -> Result<Irq, String> {
        let plain = |s: &str| s.replace('-', "").to_ascii_lowercase();
        match IRQS.iter().position(|name| plain(name) == plain(text)) {
            Some(n) => u32::try_from(n).map(Irq).map_err(|e| e.to_string()),
            None => Err("none of intx, msi, msix, err, req".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_is_known_by_name_and_number() {
        for n in 0..9 {
            let name = Region(n).to_string();
            assert_eq!(name.parse(), Ok(Region(n)));
            assert_eq!(name.to_lowercase().parse(), Ok(Region(n)));
            assert_eq!(n.to_string().parse(), Ok(Region(n)));
            assert_eq!(format!("{n:#x}").parse(), Ok(Region(n)));
        }
        assert_eq!("12".parse(), Ok(Region(12)));
        assert!("BAR6".parse::<Region>().is_err());
        assert!("-1".parse::<Region>().is_err());
    }

    #[test]
    fn every_interrupt_type_is_known_by_name() {
        for (n, name) in ["intx", "msi", "msix", "err", "req"].iter().enumerate() {
            assert_eq!(name.parse(), Ok(Irq(n as u32)));
            assert_eq!(Irq(n as u32).to_string().parse(), Ok(Irq(n as u32)));
        }
        assert!("nmi".parse::<Irq>().is_err());
    }
}
