//! Configuration space, decoded.
//!
//! One description serves both the text for people and the JSON. A space that
//! makes no sense is shown as far as it goes.

mod capability;
mod express;
mod extended;
mod header;
pub mod restore;
mod space;

use serde::Serialize;

pub use capability::{Capability, name as capability_name};
pub use extended::{ExtendedCapability, name as extended_capability_name};
pub use header::Header;

use space::Space;

/// Everything that is decoded.
#[derive(Debug, Serialize)]
pub struct Config {
    /// The standard header.
    #[serde(flatten)]
    pub header: Header,
    /// The capabilities in the order of their links.
    pub capabilities: Vec<Capability>,
    /// The extended capabilities in the order of their links.
    pub extended_capabilities: Vec<ExtendedCapability>,
}

impl Config {
    /// Decodes `bytes`; `region_sizes` are those of the BARs and the ROM, in
    /// bytes, 0 where there is none. `None` if not even a header is there.
    pub fn decode(bytes: &[u8], region_sizes: &[u64; 7]) -> Option<Config> {
        let space = Space(bytes);
        Some(Config {
            header: Header::decode(space, region_sizes)?,
            capabilities: capability::decode(space),
            extended_capabilities: extended::decode(space),
        })
    }

    /// What `lspci -F` reads: the function's address and name, then lines of
    /// 16 bytes.
    pub fn dump(&self, bytes: &[u8]) -> String {
        let Header { class, vendor_id, device_id, .. } = &self.header;
        let mut text = format!("00:00.0 {}: {vendor_id:04x}:{device_id:04x}\n", class.name);
        for (n, line) in bytes.chunks(16).enumerate() {
            let hex: String = line.iter().map(|byte| format!(" {byte:02x}")).collect();
            text.push_str(&format!("{:02x}:{hex}\n", n.saturating_mul(16)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Spaces whose lists lead anywhere, themselves included.
    fn spaces() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(any::<u8>(), 0..4097), any::<bool>()).prop_map(|(mut bytes, list)| {
            if let (Some(status), true) = (bytes.get_mut(6), list) {
                *status |= 1 << 4;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded(bytes in spaces(), sizes in any::<[u64; 7]>()) {
            let config = Config::decode(&bytes, &sizes);
            prop_assert_eq!(config.is_some(), bytes.len() >= 0x3e);
            let Some(config) = config else { return Ok(()) };
            let offsets = config.capabilities.iter().map(|c| c.offset);
            let all: std::collections::BTreeSet<usize> = offsets.clone().collect();
            prop_assert_eq!(all.len(), offsets.count(), "no capability comes twice");
            prop_assert!(all.iter().all(|at| (0x40..0x100).contains(at) && at % 4 == 0));
            let extended = config.extended_capabilities.iter().map(|c| c.offset);
            let all: std::collections::BTreeSet<usize> = extended.clone().collect();
            prop_assert_eq!(all.len(), extended.count(), "no extended capability comes twice");
            prop_assert!(all.iter().all(|at| *at >= 0x100 && at % 4 == 0));
            prop_assert!(serde_json::to_string(&config).is_ok());
            prop_assert_eq!(config.dump(&bytes).lines().count(), 1 + bytes.len().div_ceil(16));
        }
    }
}
