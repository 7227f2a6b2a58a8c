//! Every write of 1 to 8 bytes that starts in the header, against a table of
//! what each bit does.

use super::*;

/// What a bit does when its register is written.
#[derive(Clone, Copy, PartialEq)]
enum Bit {
    /// It stays as it is.
    Kept,
    /// It takes the written value.
    Stored,
    /// It becomes zero, whatever part of its register is written.
    Zero,
    /// Writing 1 clears it.
    Cleared,
}
use Bit::*;

struct Model {
    bits: [Bit; 512],
    /// First and last byte of the register that a byte belongs to.
    register: [(usize, usize); 64],
}

impl Model {
    fn new(bars: &[Bar; BARS], rom_size: u64) -> Model {
        let mut model = Model { bits: [Kept; 512], register: std::array::from_fn(|i| (i, i)) };
        model.command_and_status();
        for byte in [0x0c, 0x0d, 0x3c] {
            model.bits[byte * 8..byte * 8 + 8].fill(Stored);
        }
        for n in 0..6 {
            let first = 0x10 + 4 * n;
            model.register[first..first + 4].fill((first, first + 3));
            for bit in 0..32 {
                model.bits[first * 8 + bit] = bar_bit(bars, n, bit);
            }
        }
        model.register[0x30..0x34].fill((0x30, 0x33));
        for bit in 0..32 {
            let stored = rom_size != 0 && (bit == 0 || bit >= 11 && 1 << bit >= rom_size);
            model.bits[0x30 * 8 + bit] = if stored { Stored } else { Zero };
        }
        model
    }

    fn command_and_status(&mut self) {
        self.register[4..6].fill((4, 5));
        for bit in 0..16 {
            let stored = matches!(bit, 0 | 1 | 2 | 4 | 6 | 8 | 9 | 10);
            self.bits[4 * 8 + bit] = if stored { Stored } else { Zero };
            if matches!(bit, 8 | 11 | 12 | 13 | 14 | 15) {
                self.bits[6 * 8 + bit] = Cleared;
            }
        }
    }

    fn write(&self, space: &mut [u8; 64], offset: usize, data: &[u8]) {
        let touched = offset..(offset + data.len()).min(64);
        for byte in 0..64 {
            let (first, last) = self.register[byte];
            if last < touched.start || first >= touched.end {
                continue;
            }
            for bit in 0..8 {
                let mask = 1 << bit;
                let written = touched.contains(&byte).then(|| data[byte - offset] & mask);
                match (self.bits[byte * 8 + bit], written) {
                    (Stored, Some(value)) => space[byte] = space[byte] & !mask | value,
                    (Cleared, Some(value)) => space[byte] &= !value,
                    (Zero, _) => space[byte] &= !mask,
                    _ => {}
                }
            }
        }
    }
}

/// A bit of a BAR: an address bit is free if it is worth the size or more.
fn bar_bit(bars: &[Bar; BARS], n: usize, bit: usize) -> Bit {
    let upper = n % 2 == 1 && bars[n - 1].is_64;
    let (bar, address_bit) = if upper { (bars[n - 1], bit + 32) } else { (bars[n], bit) };
    let flag_bits = if upper {
        0
    } else if bar.mem {
        4
    } else {
        2
    };
    if bit < flag_bits {
        Kept
    } else if bar.size != 0 && 1_u64 << address_bit >= bar.size {
        Stored
    } else {
        Zero
    }
}

/// Patterns that differ in every byte, and the extremes.
fn patterns() -> [[u8; 64]; 5] {
    let mixed = |factor: usize, add: usize| std::array::from_fn(|i| ((i * factor + add) >> 2) as u8);
    [[0; 64], [0xff; 64], mixed(401, 77), mixed(1021, 3), [0x96; 64]]
}

fn check_all(bars: &[Bar; BARS], rom_size: u64) {
    let model = Model::new(bars, rom_size);
    let pci = device(PciType::Conventional);
    for (offset, len) in (0..64).flat_map(|offset| (1..=8).map(move |len| (offset, len))) {
        for before in patterns() {
            for data in patterns() {
                let len = len.min(64 - offset);
                let data = &data[offset..offset + len];
                pci.space().unwrap().write(0, &before).unwrap();
                let mut expected = before;
                model.write(&mut expected, offset, data);
                assert_eq!(write_with(&pci, offset, data, bars, rom_size), Ok(Effect::None));
                assert_eq!(bytes(&pci, 0, 64), expected, "{len} bytes at {offset:#x}: {data:x?}");
            }
        }
    }
    assert_eq!(bytes(&pci, 64, 192), [0; 192]);
}

#[test]
fn every_write_without_regions() {
    check_all(&NO_BARS, 0);
}

#[test]
fn every_write_with_32_bit_bars_and_a_rom() {
    let memory = |size| Bar { size, mem: true, ..Bar::default() };
    let io = |size| Bar { size, ..Bar::default() };
    let bars = [memory(16), memory(0x1000), memory(1 << 31), io(4), io(0x100), memory(1 << 32)];
    check_all(&bars, 0x10000);
}

#[test]
fn every_write_with_64_bit_bars() {
    let memory_64 = |size| Bar { size, mem: true, is_64: true, prefetch: true };
    let none = Bar::default();
    check_all(&[memory_64(1 << 33), none, memory_64(0x4000), none, memory_64(1 << 32), none], 0x800);
    check_all(&[memory_64(0), none, none, none, memory_64(1 << 63), none], 0x1000_0000);
}

#[test]
fn read_only_registers_ignore_writes() {
    let pci = device(PciType::Express);
    pci.set_id(1, 2, 3, 4).unwrap();
    for offset in [0, 0x0e, 0x0f, 0x28, 0x2c, 0x34, 0x35, 0x3b] {
        let before = bytes(&pci, 0, 64);
        assert_eq!(write(&pci, offset, &[0xff]), Ok(Effect::None));
        assert_eq!(bytes(&pci, 0, 64), before);
    }
}
