//! Tests of the room. The sentences of the specification stand as test names.

mod access;
mod find;
mod handlers;
mod header;
mod placement;
mod realize;
mod space;

use super::*;

/// Regions that were never set up.
pub const NO_BARS: [Bar; BARS] = [Bar { size: 0, mem: false, is_64: false, prefetch: false }; BARS];

pub const EXTENDED: i32 = CapFlags::EXTENDED.bits();
pub const CALLBACK: i32 = CapFlags::CALLBACK.bits();
pub const READONLY: i32 = CapFlags::READONLY.bits();

/// A device of this type with its space.
pub fn device(pci_type: PciType) -> Pci {
    let mut pci = Pci::new();
    pci.init(pci_type, 0, 0).unwrap();
    pci
}

/// Adds the capability in `bytes`; the test fails if a byte behind them is
/// asked for.
pub fn add(pci: &mut Pci, pos: usize, flags: i32, bytes: &[u8]) -> Result<usize> {
    pci.add_capability(pos, flags, true, &|i| bytes[i])
}

/// A capability with this id byte and size, the rest zero.
pub fn standard(id: u8, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[0] = id;
    bytes
}

pub fn pm() -> Vec<u8> {
    standard(0x01, 8)
}

/// A vendor capability whose bytes behind the header are 0xa0, 0xa1 and so on.
pub fn vendor(size: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size).map(|i| 0xa0_u8.wrapping_add(i.wrapping_sub(3))).collect();
    bytes[..3].copy_from_slice(&[0x09, 0, size]);
    bytes
}

pub fn serial_number() -> Vec<u8> {
    vec![0x03, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
}

/// An extended vendor capability, its id field `0x2345`, filled with 0xee.
pub fn extended_vendor(size: u16) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::from(size)];
    bytes[..4].copy_from_slice(&[0x0b, 0, 1, 0]);
    bytes[4..8].copy_from_slice(&(u32::from(size) << 20 | 0x1_2345).to_le_bytes());
    bytes
}

/// Executes an access as the server does, without a config callback that
/// would answer: pieces that belong to it fail with `ENOTSUP`.
pub fn write(pci: &Pci, offset: usize, data: &[u8]) -> Result<Effect> {
    write_with(pci, offset, data, &NO_BARS, 0)
}

/// A write that succeeds and leaves nothing to be done.
pub fn store(pci: &Pci, offset: usize, data: &[u8]) {
    assert_eq!(write(pci, offset, data), Ok(Effect::None));
}

/// The same with these regions.
pub fn store_with(pci: &Pci, offset: usize, data: &[u8], bars: &[Bar; BARS], rom_size: u64) {
    assert_eq!(write_with(pci, offset, data, bars, rom_size), Ok(Effect::None));
}

/// [`write`] with these regions.
pub fn write_with(
    pci: &Pci,
    mut offset: usize,
    mut data: &[u8],
    bars: &[Bar; BARS],
    rom_size: u64,
) -> Result<Effect> {
    let mut effect = Effect::None;
    while !data.is_empty() {
        let piece = pci.piece(offset, data.len(), Access::Write, false);
        let (now, later) = data.split_at(piece.len);
        if piece.kind == PieceKind::Callback {
            return Err(Errno::ENOTSUP);
        }
        let of_piece = pci.write_piece(&piece, now, bars, rom_size)?;
        effect = if of_piece == Effect::None { effect } else { of_piece };
        offset += piece.len;
        data = later;
    }
    Ok(effect)
}

pub fn bytes(pci: &Pci, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pci.space().unwrap().read(offset, &mut bytes).unwrap();
    bytes
}
