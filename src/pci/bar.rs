//! Base address registers: what they read as, and what a write leaves in them.

/// How many base address registers a type 0 header has.
pub const BARS: usize = 6;

/// Bit 0 of a BAR that stands for I/O ports.
const IO: u32 = 0x1;
/// Bits 2:1 of a memory BAR whose address has 64 bits.
const MEM_64: u32 = 0x4;
/// Bit 3 of a prefetchable memory BAR.
const PREFETCH: u32 = 0x8;

/// What the registers need to know of the region behind a BAR. The default is
/// a region that was never set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// Size of the region in bytes, a power of two; 0 if there is none.
    pub size: u64,
    /// It is memory, not I/O ports.
    pub mem: bool,
    /// Its address takes this BAR and the next.
    pub is_64: bool,
    /// It is prefetchable.
    pub prefetch: bool,
}

/// What BAR `n` is.
#[derive(PartialEq, Eq)]
enum Half {
    /// A 32-bit BAR, or the lower half of a 64-bit one.
    Lower(Bar),
    /// The upper half of this 64-bit BAR.
    Upper(Bar),
}

fn half(bars: &[Bar; BARS], n: usize) -> Half {
    let below = if n % 2 == 1 { n.checked_sub(1).and_then(|b| bars.get(b)) } else { None };
    match below {
        Some(lower) if lower.is_64 => Half::Upper(*lower),
        _ => Half::Lower(bars.get(n).copied().unwrap_or_default()),
    }
}

/// The type bits which realizing the device ORs into BAR `n`. A BAR that was
/// never set up isn't memory, so it reads as unassigned I/O.
pub fn type_bits(bars: &[Bar; BARS], n: usize) -> u32 {
    match half(bars, n) {
        Half::Upper(_) => 0,
        Half::Lower(bar) => {
            let io = if bar.mem { 0 } else { IO };
            let mem_64 = if bar.is_64 { MEM_64 } else { 0 };
            let prefetch = if bar.prefetch { PREFETCH } else { 0 };
            io | mem_64 | prefetch
        }
    }
}

/// What BAR `n` holds after `written` was written to it while it held `old`:
/// the address bits that the size leaves free, and the type bits as they were.
pub fn after_write(bars: &[Bar; BARS], n: usize, old: u32, written: u32) -> u32 {
    match half(bars, n) {
        Half::Lower(bar) => {
            let flag_bits = if bar.mem { 0xf } else { 0x3 };
            (written & lower_32(address_mask(bar.size))) | (old & flag_bits)
        }
        Half::Upper(bar) => written & lower_32(address_mask(bar.size) >> 32),
    }
}

/// What BAR `n` holds once the regions are no longer those that they were, while
/// it held `old`: the type bits, and the address as far as the size leaves it
/// free, unless that is one of another kind.
pub fn after_setup(before: &[Bar; BARS], bars: &[Bar; BARS], n: usize, old: u32) -> u32 {
    let kind = |bars| match half(bars, n) {
        Half::Lower(bar) => (bar.mem, bar.is_64, false),
        Half::Upper(bar) => (bar.mem, bar.is_64, true),
    };
    if half(before, n) == half(bars, n) {
        return old;
    }
    let address = if kind(before) == kind(bars) { old } else { 0 };
    after_write(bars, n, type_bits(bars, n), address)
}

/// What the expansion ROM register holds after `written` was written to it:
/// the address from bit 11 up, as far as `size` (0 without a ROM) leaves it
/// free, and the enable bit.
pub fn rom_after_write(size: u64, written: u32) -> u32 {
    const ADDRESS: u32 = 0xffff_f800;
    const ENABLE: u32 = 1;
    match size {
        0 => 0,
        _ => written & (lower_32(address_mask(size)) & ADDRESS | ENABLE),
    }
}

/// The bits of a 64-bit address that a region of this size leaves free. A size
/// that is no power of two, which only a ROM can have, counts as the next one.
fn address_mask(size: u64) -> u64 {
    match size {
        0 => 0,
        _ => size.checked_next_power_of_two().map_or(0, u64::wrapping_neg),
    }
}

fn lower_32(value: u64) -> u32 {
    (value & u64::from(u32::MAX)) as u32
}
