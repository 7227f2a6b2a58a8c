//! PCI Express (`PCI_CAP_ID_EXP`).

use super::super::Effect;
use super::super::space::ConfigSpace;
use super::{ByteRule, byte_for, write_by_rules};
use crate::wire::{Errno, Result};

const DEVICE_CAPABILITIES: usize = 0x04;
const DEVICE_CONTROL: usize = 0x08;
const DEVICE_STATUS: usize = 0x0a;
const LINK_CONTROL: usize = 0x10;
const LINK_STATUS: usize = 0x12;
const SLOT_CONTROL: usize = 0x18;
const SLOT_STATUS: usize = 0x1a;
const ROOT_CONTROL: usize = 0x1c;
const ROOT_STATUS: usize = 0x20;
const DEVICE_CONTROL_2: usize = 0x28;
const DEVICE_STATUS_2: usize = 0x2a;
const LINK_CONTROL_2: usize = 0x30;
const LINK_STATUS_2: usize = 0x32;
const SLOT_CONTROL_2: usize = 0x38;
const SLOT_STATUS_2: usize = 0x3a;
const SIZE: usize = 0x3c;

/// Device capabilities: the function can be reset by itself.
const FLR_CAPABLE: u32 = 1 << 28;
/// Initiate function level reset, in the high byte of device control.
const INITIATE_FLR: u8 = 0x80;

/// The control and status registers with their sizes. A write that touches
/// none of them is refused; beside them, capability registers may be written
/// over, to no effect.
const WRITABLE: [(usize, usize); 14] = [
    (DEVICE_CONTROL, 2),
    (DEVICE_STATUS, 2),
    (LINK_CONTROL, 2),
    (LINK_STATUS, 2),
    (SLOT_CONTROL, 2),
    (SLOT_STATUS, 2),
    (ROOT_CONTROL, 2),
    (ROOT_STATUS, 4),
    (DEVICE_CONTROL_2, 2),
    (DEVICE_STATUS_2, 2),
    (LINK_CONTROL_2, 2),
    (LINK_STATUS_2, 2),
    (SLOT_CONTROL_2, 2),
    (SLOT_STATUS_2, 2),
];

const RULES: [ByteRule; SIZE] = {
    const STORED: [usize; 6] =
        [DEVICE_CONTROL, LINK_CONTROL, SLOT_CONTROL, ROOT_CONTROL, DEVICE_CONTROL_2, LINK_CONTROL_2];
    let mut rules = [ByteRule::READ_ONLY; SIZE];
    let mut i = 0;
    while i < STORED.len() {
        rules[STORED[i]] = ByteRule::stored(0xff);
        rules[STORED[i] + 1] = ByteRule::stored(0xff);
        i += 1;
    }
    rules[DEVICE_CONTROL + 1] = ByteRule::stored(!INITIATE_FLR);
    // Correctable, non-fatal, fatal error, unsupported request detected (bits
    // 0 to 3), emergency power reduction detected (6).
    rules[DEVICE_STATUS] = ByteRule::write_one_to_clear(0x4f);
    // Link bandwidth management (14) and autonomous bandwidth status (15).
    rules[LINK_STATUS + 1] = ByteRule::write_one_to_clear(0xc0);
    // Attention button, power fault, MRL sensor, presence detect, command
    // completed (0 to 4), data link layer state changed (8).
    rules[SLOT_STATUS] = ByteRule::write_one_to_clear(0x1f);
    rules[SLOT_STATUS + 1] = ByteRule::write_one_to_clear(0x01);
    // PME status (16).
    rules[ROOT_STATUS + 2] = ByteRule::write_one_to_clear(0x01);
    // Link equalization request (5), DRS message received (15).
    rules[LINK_STATUS_2] = ByteRule::write_one_to_clear(0x20);
    rules[LINK_STATUS_2 + 1] = ByteRule::write_one_to_clear(0x80);
    rules
};

/// Whether a write of `data` at `offset` of configuration space sets the bit
/// that initiates a function level reset, in the capability at `base`.
pub fn initiates_reset(base: usize, offset: usize, data: &[u8]) -> bool {
    byte_for(base + DEVICE_CONTROL + 1, offset, data).is_some_and(|byte| byte & INITIATE_FLR != 0)
}

/// Merges any bytes. `EINVAL` if they touch no control or status register, and
/// if they initiate a reset of a function that can't be reset by itself; in
/// that case the other bits are stored all the same.
pub fn write(space: &ConfigSpace, base: usize, at: usize, data: &[u8]) -> Result<Effect> {
    let end = at + data.len();
    if !WRITABLE.iter().any(|(register, size)| at < register + size && *register < end) {
        return Err(Errno::EINVAL.because("of PCI Express, control and status are written only"));
    }
    write_by_rules(space, base, at, data, &RULES)?;
    if !initiates_reset(base, base + at, data) {
        Ok(Effect::None)
    } else if space.read_u32(base + DEVICE_CAPABILITIES)? & FLR_CAPABLE != 0 {
        Ok(Effect::FunctionLevelReset)
    } else {
        Err(Errno::EINVAL.because("the function cannot be reset by itself"))
    }
}
