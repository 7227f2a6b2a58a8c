//! Vendor-specific capabilities (`PCI_CAP_ID_VNDR`, `PCI_EXT_CAP_ID_VNDR`).

use super::super::space::ConfigSpace;
use crate::wire::Result;

/// Stores the bytes: only the device knows what they mean.
pub fn write(space: &ConfigSpace, base: usize, at: usize, data: &[u8]) -> Result<()> {
    space.write(base + at, data)
}
