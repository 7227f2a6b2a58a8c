//! Writes by the client to the standard header.
//!
//! Every write succeeds, as PCI has it: a write of any width at any offset is
//! merged into the registers which it touches, and what can't be written is
//! left as it is.

use super::bar::{self, Bar};
use super::space::ConfigSpace;
use crate::wire::Result;

/// Size of the standard header in bytes.
pub const SIZE: usize = 0x40;

/// Vendor id.
pub const VENDOR_ID: usize = 0x00;
/// Device id.
pub const DEVICE_ID: usize = 0x02;
/// Command register.
pub const COMMAND: usize = 0x04;
/// Status register.
pub const STATUS: usize = 0x06;
/// Programming interface, the lowest byte of the class code.
pub const CLASS_PROG: usize = 0x09;
/// Sub-class.
pub const CLASS_SUB: usize = 0x0a;
/// Base class.
pub const CLASS_BASE: usize = 0x0b;
/// First base address register.
pub const BAR_0: usize = 0x10;
/// Subsystem vendor id.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem id.
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Offset of the first capability.
pub const CAPABILITY_LIST: usize = 0x34;
/// Interrupt pin.
pub const INTERRUPT_PIN: usize = 0x3d;

/// Bit of the status register: there is a capability list.
pub const STATUS_CAP_LIST: u16 = 1 << 4;

const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const ROM_ADDRESS: usize = 0x30;
const INTERRUPT_LINE: usize = 0x3c;

/// I/O, memory, bus master, memory write and invalidate, parity, SERR, fast
/// back-to-back, INTx disable. The others read as zero.
const COMMAND_WRITABLE: u32 = 0x0757;
/// Upper byte of the status register: master data parity error, the aborts,
/// system error, parity error.
const STATUS_HIGH_CLEARABLE: u32 = 0xf9;

/// What a write does to a register.
enum Rule {
    /// Keeps these bits of what was written; the others become zero.
    Stored(u32),
    /// Clears those of these bits that are written as 1.
    WriteOneToClear(u32),
    /// Base address register with this number.
    Bar(usize),
    /// Expansion ROM base address.
    Rom,
}

struct Register {
    offset: usize,
    width: usize,
    rule: Rule,
}

const fn register(offset: usize, width: usize, rule: Rule) -> Register {
    Register { offset, width, rule }
}

/// The registers that a client can change; all others ignore writes.
const REGISTERS: [Register; 12] = [
    register(COMMAND, 2, Rule::Stored(COMMAND_WRITABLE)),
    // Only this half of the status register, so that a device that changes
    // the interrupt status in the other at that moment isn't overwritten.
    register(STATUS + 1, 1, Rule::WriteOneToClear(STATUS_HIGH_CLEARABLE)),
    register(CACHE_LINE_SIZE, 1, Rule::Stored(0xff)),
    register(LATENCY_TIMER, 1, Rule::Stored(0xff)),
    register(bar_offset(0), 4, Rule::Bar(0)),
    register(bar_offset(1), 4, Rule::Bar(1)),
    register(bar_offset(2), 4, Rule::Bar(2)),
    register(bar_offset(3), 4, Rule::Bar(3)),
    register(bar_offset(4), 4, Rule::Bar(4)),
    register(bar_offset(5), 4, Rule::Bar(5)),
    register(ROM_ADDRESS, 4, Rule::Rom),
    register(INTERRUPT_LINE, 1, Rule::Stored(0xff)),
];

/// Where BAR `n` stands.
pub const fn bar_offset(n: usize) -> usize {
    BAR_0 + 4 * n
}

/// Writes `data` at `offset` of the header. `rom_size` is the size of the ROM
/// region, 0 without one. Bytes beyond the header are ignored.
pub fn write(
    space: &ConfigSpace,
    offset: usize,
    data: &[u8],
    bars: &[Bar; bar::BARS],
    rom_size: u64,
) -> Result<()> {
    for register in &REGISTERS {
        let (written, touched) = register.part_of(offset, data);
        if touched == 0 {
            continue;
        }
        let old = register.read(space)?;
        let merged = (old & !touched) | written;
        let new = match register.rule {
            Rule::Stored(bits) => merged & bits,
            Rule::WriteOneToClear(bits) => old & !(written & bits),
            Rule::Bar(n) => bar::after_write(bars, n, old, merged),
            Rule::Rom => bar::rom_after_write(rom_size, merged),
        };
        if new != old {
            register.write(space, new)?;
        }
    }
    Ok(())
}

/// Adapts the registers to regions that are no longer those that they were. What
/// did not change stays as it is.
pub fn adapt(
    space: &ConfigSpace,
    before: (&[Bar; bar::BARS], u64),
    (bars, rom_size): (&[Bar; bar::BARS], u64),
) -> Result<()> {
    for n in 0..bar::BARS {
        let old = space.read_u32(bar_offset(n))?;
        let new = bar::after_setup(before.0, bars, n, old);
        if new != old {
            space.write_u32(bar_offset(n), new)?;
        }
    }
    if rom_size != before.1 {
        space.write_u32(ROM_ADDRESS, bar::rom_after_write(rom_size, space.read_u32(ROM_ADDRESS)?))?;
    }
    Ok(())
}

impl Register {
    /// The bits that `data`, written at `offset`, brings to the register, and
    /// the mask of the bits that it covers.
    fn part_of(&self, offset: usize, data: &[u8]) -> (u32, u32) {
        let (mut written, mut touched) = (0, 0);
        for i in 0..self.width {
            let at = (self.offset + i).checked_sub(offset);
            if let Some(byte) = at.and_then(|at| data.get(at)) {
                written |= u32::from(*byte) << (8 * i);
                touched |= 0xff << (8 * i);
            }
        }
        (written, touched)
    }

    fn read(&self, space: &ConfigSpace) -> Result<u32> {
        match self.width {
            1 => space.read_u8(self.offset).map(u32::from),
            2 => space.read_u16(self.offset).map(u32::from),
            _ => space.read_u32(self.offset),
        }
    }

    fn write(&self, space: &ConfigSpace, value: u32) -> Result<()> {
        let bytes = value.to_le_bytes();
        space.write(self.offset, bytes.get(..self.width).unwrap_or(&bytes))
    }
}
