//! Configuration space: capabilities that are added, accesses by the client,
//! finds, and a device that writes behind the library's back, against a table
//! of what each bit does.

mod model;

use arbitrary::{Arbitrary, Result, Unstructured};
use vfio_user::pci::{Access, BARS, Bar, Effect, Pci, PciType, PieceKind};
use vfio_user::wire::Errno;

use model::{Answer, Model};

pub const EXTENDED: i32 = 1;
pub const CALLBACK: i32 = 2;
pub const READONLY: i32 = 4;

pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(mut both) = Both::new(&mut u) else { return };
    while !u.is_empty() && both.step(&mut u).is_ok() {}
}

struct Both {
    pci: Pci,
    model: Model,
    bars: [Bar; BARS],
    rom_size: u64,
    has_callback: bool,
}

fn bars(u: &mut Unstructured) -> Result<[Bar; BARS]> {
    let mut bars = [Bar::default(); BARS];
    for n in 0..BARS {
        let above_64_bits = n % 2 == 1 && bars[n - 1].is_64;
        let mem = bool::arbitrary(u)?;
        if above_64_bits || bool::arbitrary(u)? {
            continue;
        }
        let is_64 = mem && n % 2 == 0 && bool::arbitrary(u)?;
        let lowest = if mem { 4 } else { 2 };
        let size = 1 << u.int_in_range(lowest..=if is_64 { 63 } else { 33 })?;
        bars[n] = Bar { size, mem, is_64, prefetch: mem && bool::arbitrary(u)? };
    }
    Ok(bars)
}

impl Both {
    fn new(u: &mut Unstructured) -> Result<Both> {
        let mut pci = Pci::new();
        let number = u.int_in_range(0..=4)?;
        let (size, is_extended) = match PciType::from_number(number) {
            Some(pci_type) => {
                assert_eq!(pci.init(pci_type, 1, 0), Err(Errno::EINVAL));
                assert_eq!(pci.init(pci_type, 0, 7), Ok(()));
                assert_eq!(pci.init(pci_type, 0, 0), Err(Errno::EEXIST));
                (if number < 2 { 256 } else { 4096 }, number >= 2)
            }
            None => {
                let size = *u.choose(&[0, 256, 257, 4096])?;
                let expected = if size > 256 { 4096 } else { 256 };
                assert_eq!(pci.ensure_space(size), Ok(expected));
                (expected, false)
            }
        };
        let bars = bars(u)?;
        let rom_size = *u.choose(&[0, 0, 0x800, 0x10000, 0x3000, 4, u64::MAX])?;
        let has_callback = bool::arbitrary(u)?;
        let mut both = Both { pci, model: Model::new(size, is_extended), bars, rom_size, has_callback };
        if bool::arbitrary(u)? {
            let ids = <[u16; 4]>::arbitrary(u)?;
            assert_eq!(both.pci.set_id(ids[0], ids[1], ids[2], ids[3]), Ok(()));
            both.model.set_id(ids);
            let class = <[u8; 3]>::arbitrary(u)?;
            assert_eq!(both.pci.set_class(class[0], class[1], class[2]), Ok(()));
            both.model.set_class(class);
        }
        Ok(both)
    }

    fn step(&mut self, u: &mut Unstructured) -> Result<()> {
        match u8::arbitrary(u)? % 32 {
            0..6 => self.add(u)?,
            6 if !self.model.realized => {
                let vectors = u32::from(u8::arbitrary(u)? % 2);
                assert_eq!(self.pci.realize(&self.bars, vectors), Ok(()));
                self.model.realize(&self.bars, vectors);
            }
            6 | 7 => self.poke(u)?,
            8..11 => self.find(u)?,
            11..16 => self.read(u)?,
            _ => self.write(u)?,
        }
        self.compare();
        Ok(())
    }

    fn bytes(&self) -> Vec<u8> {
        let space = self.pci.space().expect("made");
        let mut bytes = vec![0; space.len()];
        space.read(0, &mut bytes).expect("its size");
        bytes
    }

    fn compare(&self) {
        let bytes = self.bytes();
        if bytes != self.model.bytes {
            let at = bytes.iter().zip(&self.model.bytes).position(|(a, b)| a != b);
            let at = at.expect("the same size");
            panic!("at {at:#x}: {:#x}, not {:#x}", bytes[at], self.model.bytes[at]);
        }
    }

    fn offset(&self, u: &mut Unstructured) -> Result<usize> {
        let size = self.model.bytes.len();
        Ok(match u8::arbitrary(u)? {
            0..64 => u.int_in_range(0..=0x47)?,
            64..80 => u.int_in_range(0..=size - 1)?,
            80..84 => size - 1 - usize::from(u8::arbitrary(u)? % 16),
            _ if self.model.capabilities.is_empty() => usize::from(u8::arbitrary(u)?),
            _ => {
                let cap = u.choose(&self.model.capabilities)?;
                (cap.offset + u.int_in_range(0..=cap.size + 6)?).saturating_sub(3).min(size - 1)
            }
        })
    }

    fn length(&self, u: &mut Unstructured, offset: usize) -> Result<usize> {
        let room = self.model.bytes.len() - offset;
        let wanted = match u8::arbitrary(u)? {
            0..16 => u.int_in_range(1..=room)?,
            16..64 => u.int_in_range(1..=100)?,
            other => [1, 2, 4, 4, 2, 8][usize::from(other % 6)],
        };
        Ok(wanted.min(room))
    }

    fn add(&mut self, u: &mut Unstructured) -> Result<()> {
        let flags = match u8::arbitrary(u)? {
            0 => i32::arbitrary(u)?,
            other => i32::from(other % 8),
        };
        let mut data = vec![0; 4096];
        u.fill_buffer(&mut data[..60])?;
        if u8::arbitrary(u)? > 8 {
            let id = if flags & EXTENDED != 0 {
                u.choose(&[0x03, 0x0b])?
            } else {
                u.choose(&[1, 5, 9, 0x10, 0x11])?
            };
            (data[0], data[1]) = (*id, if flags & EXTENDED != 0 { 0 } else { data[1] });
            match id {
                9 if data[2] > 60 => data[2] %= 40,
                0x0b => data[7] &= 0x0f,
                _ => {}
            }
        }
        let pos = match u8::arbitrary(u)? {
            0..100 => 0,
            100..180 if flags & EXTENDED != 0 => 0x100 + 4 * u.int_in_range(0..=80)?,
            100..180 => 0x40 + 4 * u.int_in_range(0..=50)?,
            180 => usize::arbitrary(u)?,
            _ => self.offset(u)?,
        };
        let place = self.pci.add_capability(pos, flags, self.has_callback, &|i| data[i]);
        let chain = self.model.chain(flags & EXTENDED != 0);
        self.model.add(pos, flags, self.has_callback, &data, place, chain);
        Ok(())
    }

    /// The device writes to its space.
    fn poke(&mut self, u: &mut Unstructured) -> Result<()> {
        let offset = self.offset(u)?;
        let length = self.length(u, offset)?.min(16);
        let mut data = vec![0; length];
        u.fill_buffer(&mut data)?;
        let space = self.pci.space().expect("made");
        for (number, byte) in data.iter().enumerate() {
            // SAFETY: inside the space; nobody else uses it now.
            unsafe { space.as_ptr().add(offset + number).write(*byte) };
        }
        self.model.bytes[offset..offset + length].copy_from_slice(&data);
        Ok(())
    }

    fn find(&self, u: &mut Unstructured) -> Result<()> {
        let extended = bool::arbitrary(u)?;
        let id = match u8::arbitrary(u)? {
            0..16 => i32::arbitrary(u)?,
            _ => *u.choose(&[1, 5, 9, 0x10, 0x11, 3, 0xb, 0])?,
        };
        let pos = match u8::arbitrary(u)? {
            0..128 => 0,
            128..140 => usize::arbitrary(u)?,
            140..150 => self.model.bytes.len() - 8 + usize::from(u8::arbitrary(u)? % 16),
            _ => self.offset(u)?,
        };
        let expected = self.model.find(extended, pos, id);
        assert_eq!(self.pci.find_next_capability(extended, pos, id), expected);
        if pos == 0 {
            assert_eq!(self.pci.find_capability(extended, id), expected);
        }
        Ok(())
    }

    /// Goes through the pieces of an access as the server does: `each` is given
    /// one that is the library's own; what the callback does is up to `short`.
    fn pieces(
        &self,
        mut offset: usize,
        length: usize,
        access: Access,
        short: u8,
        mut each: impl FnMut(&vfio_user::pci::Piece, usize) -> Answer<()>,
    ) -> (Answer<()>, Vec<(usize, usize)>) {
        let (mut done, mut calls) = (0, Vec::new());
        while done < length {
            let piece = self.pci.piece(offset, length - done, access, self.has_callback);
            assert!(piece.offset == offset && piece.len > 0 && piece.len <= length - done);
            let mut moved = piece.len;
            if piece.kind == PieceKind::Callback {
                if !self.has_callback {
                    return (Err(Errno::EINVAL), calls);
                }
                calls.push((offset, piece.len));
                // A callback that takes fewer bytes is called for the rest.
                moved = piece.len.min(usize::from(short % 8) + 1);
            } else if let Err(errno) = each(&piece, done) {
                return (Err(errno), calls);
            }
            offset += moved;
            done += moved;
        }
        (Ok(()), calls)
    }

    fn read(&self, u: &mut Unstructured) -> Result<()> {
        let offset = self.offset(u)?;
        let length = self.length(u, offset)?;
        let short = u8::arbitrary(u)?;
        let mut bytes = vec![0xee; length];
        let (outcome, calls) = self.pieces(offset, length, Access::Read, short, |piece, done| {
            self.pci.read_piece(piece, &mut bytes[done..done + piece.len])
        });
        assert_eq!(outcome, Ok(()));
        for (at, byte) in (offset..).zip(&bytes) {
            let to_callback = self.model.is_for_callback(at, Access::Read, self.has_callback);
            assert_eq!(to_callback, calls.iter().any(|call| (call.0..call.0 + call.1).contains(&at)));
            assert_eq!(*byte, if to_callback { 0xee } else { self.model.bytes[at] }, "{at:#x}");
        }
        Ok(())
    }

    fn write(&mut self, u: &mut Unstructured) -> Result<()> {
        let offset = self.offset(u)?;
        let length = self.length(u, offset)?;
        let short = u8::arbitrary(u)?;
        let mut data = vec![0; length];
        match u8::arbitrary(u)? % 4 {
            0 => data.fill(0xff),
            1 => data.fill(u8::arbitrary(u)?),
            _ => u.fill_buffer(&mut data)?,
        }
        let is_reset = self.model.asks_quiesce(offset, &data);
        assert_eq!(self.pci.asks_quiesce(offset, &data), is_reset);
        let mut resets = 0;
        let (outcome, calls) = self.pieces(offset, length, Access::Write, short, |piece, done| {
            let data = &data[done..done + piece.len];
            let effect = self.pci.write_piece(piece, data, &self.bars, self.rom_size)?;
            resets += usize::from(effect == Effect::FunctionLevelReset);
            Ok(())
        });
        let expected = self.model.write(offset, &data, &self.bars, self.rom_size, self.has_callback);
        assert_eq!((outcome, resets), (expected.outcome, expected.resets));
        let called = |at: usize| calls.iter().any(|call| (call.0..call.0 + call.1).contains(&at));
        for at in offset..offset + length {
            assert_eq!(called(at), expected.calls.contains(&at), "{at:#x}");
        }
        // A reset is never done without having asked.
        assert!(resets == 0 || is_reset);
        Ok(())
    }
}
