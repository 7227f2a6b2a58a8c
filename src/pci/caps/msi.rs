//! Message signalled interrupts (`PCI_CAP_ID_MSI`), in the layout with a
//! 64-bit address and per-vector masks.

use super::super::space::ConfigSpace;
use super::{ByteRule, byte_for, write_by_rules};
use crate::wire::{Errno, Result};

/// Low byte of message control.
const CONTROL: usize = 2;
const ADDRESS: usize = 4;
const UPPER_ADDRESS: usize = 8;
const DATA: usize = 12;
const MASK: usize = 16;
const SIZE: usize = 24;

/// MSI enable, bit 0 of message control.
const ENABLE: u8 = 1;
/// Multiple message enable, bits 6:4 of message control.
const MULTIPLE_MESSAGE_ENABLE: u8 = 0x70;
/// The largest number of messages that can be enabled, 32, as a power of two.
const MAX_MESSAGES_LOG2: u8 = 5;

const RULES: [ByteRule; SIZE] = {
    let mut rules = [ByteRule::READ_ONLY; SIZE];
    rules[CONTROL] = ByteRule::stored(ENABLE | MULTIPLE_MESSAGE_ENABLE);
    let mut i = 0;
    while i < 4 {
        rules[ADDRESS + i] = ByteRule::stored(0xff);
        rules[UPPER_ADDRESS + i] = ByteRule::stored(0xff);
        rules[MASK + i] = ByteRule::stored(0xff);
        i += 1;
    }
    // Messages are 32-bit writes: bits 1:0 of the address are zero.
    rules[ADDRESS] = ByteRule::stored(0xfc);
    rules[DATA] = ByteRule::stored(0xff);
    rules[DATA + 1] = ByteRule::stored(0xff);
    rules
};

/// Merges any bytes. `EINVAL`, with nothing changed, for a change to more
/// messages than the device is capable of or than there can be.
pub fn write(space: &ConfigSpace, base: usize, at: usize, data: &[u8]) -> Result<()> {
    if let Some(written) = byte_for(CONTROL, at, data) {
        let old = space.read_u8(base + CONTROL)?;
        let (capable, enabled) = (old >> 1 & 7, old >> 4 & 7);
        let enable = written >> 4 & 7;
        if enable != enabled && (enable > MAX_MESSAGES_LOG2 || enable > capable) {
            return Err(Errno::EINVAL.because("more vectors of MSI enabled than it has"));
        }
    }
    write_by_rules(space, base, at, data, &RULES)
}
