//! Power management (`PCI_CAP_ID_PM`).

use super::super::space::ConfigSpace;
use super::READ_ONLY;
use crate::wire::{Errno, Result};

const PMC: usize = 2;
const PMCSR: usize = 4;
const BRIDGE_EXTENSIONS: usize = 6;
const DATA: usize = 7;

/// Control and status (PMCSR) is replaced by the two bytes written, read-only
/// and write-one-to-clear bits taken as they come, which devices built for the
/// original library expect. With four bytes at the register the last two, for
/// the bridge extensions and data, are dropped.
///
/// `ENOTSUP` for the read-only registers by their own width, `EINVAL` for all
/// else.
pub fn write(space: &ConfigSpace, base: usize, at: usize, data: &[u8]) -> Result<()> {
    match (at, data) {
        (PMCSR, [low, high] | [low, high, _, _]) => space.write(base + PMCSR, &[*low, *high]),
        (PMC, [_, _]) | (BRIDGE_EXTENSIONS | DATA, [_]) => Err(Errno::ENOTSUP.because(READ_ONLY)),
        _ => Err(Errno::EINVAL.because("of power management, PMCSR is written, as a whole")),
    }
}
