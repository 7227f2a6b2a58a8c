//! What kind of device a server has, as far as its state depends on it.

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::region::Region;

/// More regions than any device has.
const MAX_REGIONS: u32 = 256;

/// The identity of a device: equal for devices that can take each other's
/// state.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Vendor.
    pub vendor_id: u16,
    /// Device of that vendor.
    pub device_id: u16,
    /// Vendor of the subsystem.
    pub subsystem_vendor_id: u16,
    /// Subsystem.
    pub subsystem_id: u16,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Sizes of the regions in bytes, in their order.
    pub region_sizes: Vec<u64>,
}

impl Identity {
    /// Asks the server; with the configuration space, which has told most of it.
    pub fn read(client: &mut Client) -> Result<(Identity, Vec<u8>)> {
        let num_regions = client.device_info()?.num_regions;
        if num_regions > MAX_REGIONS {
            return Err(Error::Protocol(format!("device information: {num_regions} regions")));
        }
        let sizes = (0..num_regions).map(|n| Ok(client.region_info(Region(n))?.info.size));
        let region_sizes: Vec<u64> = sizes.collect::<Result<_>>()?;
        let config = client.config_space()?;
        let word = |at: usize| {
            let bytes = config.get(at..).and_then(<[u8]>::first_chunk).copied();
            bytes.map(u16::from_le_bytes).ok_or_else(|| {
                Error::Unfit(format!("a configuration space of {} bytes has no header", config.len()))
            })
        };
        let [interface, _] = word(0x09)?.to_le_bytes();
        let [sub, base] = word(0x0a)?.to_le_bytes();
        let identity = Identity {
            vendor_id: word(0x00)?,
            device_id: word(0x02)?,
            subsystem_vendor_id: word(0x2c)?,
            subsystem_id: word(0x2e)?,
            class: [base, sub, interface],
            region_sizes,
        };
        Ok((identity, config))
    }

    /// How `other` differs, in a few words; `None` if it doesn't.
    pub fn difference(&self, other: &Identity) -> Option<String> {
        let ids = |i: &Identity| {
            let Identity { vendor_id, device_id, subsystem_vendor_id, subsystem_id, .. } = i;
            format!("{vendor_id:04x}:{device_id:04x} ({subsystem_vendor_id:04x}:{subsystem_id:04x})")
        };
        let class = |i: &Identity| i.class.map(|byte| format!("{byte:02x}")).concat();
        if ids(self) != ids(other) {
            return Some(format!("device {} is not {}", ids(other), ids(self)));
        }
        if self.class != other.class {
            return Some(format!("class {} is not {}", class(other), class(self)));
        }
        let count = self.region_sizes.len().max(other.region_sizes.len());
        let size = |i: &Identity, n: usize| i.region_sizes.get(n).copied().unwrap_or(0);
        let at = (0..count).find(|n| size(self, *n) != size(other, *n))?;
        let region = Region(u32::try_from(at).unwrap_or(u32::MAX));
        Some(format!("{region} has {:#x} bytes, not {:#x}", size(other, at), size(self, at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_identity_counts() {
        let one = Identity {
            vendor_id: 1,
            device_id: 2,
            subsystem_vendor_id: 3,
            subsystem_id: 4,
            class: [5, 6, 7],
            region_sizes: vec![8, 0],
        };
        assert_eq!(one.difference(&one), None);
        let others = [
            (Identity { vendor_id: 9, ..one.clone() }, "0009:0002"),
            (Identity { device_id: 9, ..one.clone() }, "0001:0009"),
            (Identity { subsystem_vendor_id: 9, ..one.clone() }, "(0009:0004)"),
            (Identity { subsystem_id: 9, ..one.clone() }, "(0003:0009)"),
            (Identity { class: [5, 6, 8], ..one.clone() }, "class 050608 is not 050607"),
            (Identity { region_sizes: vec![8, 1], ..one.clone() }, "BAR1 has 0x1 bytes, not 0x0"),
            (Identity { region_sizes: vec![], ..one.clone() }, "BAR0 has 0x0 bytes, not 0x8"),
        ];
        for (other, text) in others {
            let found = one.difference(&other).unwrap();
            assert!(found.contains(text), "{found}");
        }
        // Regions of no size needn't be listed.
        assert_eq!(one.difference(&Identity { region_sizes: vec![8], ..one.clone() }), None);
    }
}
