//! MSI-X (`PCI_CAP_ID_MSIX`).

use super::super::space::ConfigSpace;
use super::{ByteRule, write_by_rules};
use crate::wire::Result;

/// High byte of message control.
const CONTROL_HIGH: usize = 3;
/// Enable (bit 15 of message control) and function mask (bit 14).
const ENABLE_AND_MASK: u8 = 0xc0;
const SIZE: usize = 12;

const RULES: [ByteRule; SIZE] = {
    let mut rules = [ByteRule::READ_ONLY; SIZE];
    rules[CONTROL_HIGH] = ByteRule::stored(ENABLE_AND_MASK);
    rules
};

/// Merges any bytes; table size, table and pending bits stay.
pub fn write(space: &ConfigSpace, base: usize, at: usize, data: &[u8]) -> Result<()> {
    write_by_rules(space, base, at, data, &RULES)
}
