//! What each bit of configuration space does.

use std::collections::BTreeSet;
use std::ops::Range;

use vfio_user::pci::{Access, BARS, Bar};
use vfio_user::wire::Errno;

use super::{CALLBACK, EXTENDED, READONLY};

pub type Answer<T> = std::result::Result<T, Errno>;

pub struct Capability {
    pub id: u16,
    pub offset: usize,
    pub size: usize,
    flags: i32,
}

impl Capability {
    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.size
    }

    fn is_extended(&self) -> bool {
        self.flags & EXTENDED != 0
    }

    fn is_express(&self) -> bool {
        !self.is_extended() && self.id == 0x10
    }

    fn header_length(&self) -> usize {
        match (self.is_extended(), self.id) {
            (false, 9) => 3,
            (true, 3) => 4,
            (true, _) => 8,
            _ => 2,
        }
    }
}

pub struct Model {
    pub bytes: Vec<u8>,
    is_extended: bool,
    pub realized: bool,
    pub capabilities: Vec<Capability>,
}

/// What a write comes to.
pub struct Written {
    pub outcome: Answer<()>,
    pub resets: usize,
    /// What the callback is given.
    pub calls: BTreeSet<usize>,
}

/// What a bit does when its register is written.
#[derive(Clone, Copy, PartialEq)]
enum Bit {
    Kept,
    Stored,
    /// It becomes zero, whatever part of its register is written.
    Zero,
    /// Writing 1 clears it.
    Cleared,
}
use Bit::*;

impl Model {
    pub fn new(size: usize, is_extended: bool) -> Model {
        Model { bytes: vec![0; size], is_extended, realized: false, capabilities: Vec::new() }
    }

    pub fn set_id(&mut self, ids: [u16; 4]) {
        for (at, id) in [0, 2, 0x2c, 0x2e].into_iter().zip(ids) {
            self.bytes[at..at + 2].copy_from_slice(&id.to_le_bytes());
        }
    }

    pub fn set_class(&mut self, [base, sub, interface]: [u8; 3]) {
        self.bytes[9..12].copy_from_slice(&[interface, sub, base]);
    }

    pub fn realize(&mut self, bars: &[Bar; BARS], vectors: u32) {
        for n in 0..BARS {
            if n % 2 == 0 || !bars[n - 1].is_64 {
                let bar = &bars[n];
                let kind = u8::from(!bar.mem) | u8::from(bar.is_64) << 2 | u8::from(bar.prefetch) << 3;
                self.bytes[0x10 + 4 * n] |= kind;
            }
        }
        if vectors != 0 {
            self.bytes[0x3d] = 1;
        }
        self.realized = true;
        self.note_capabilities();
    }

    fn note_capabilities(&mut self) {
        if self.realized && self.capabilities.iter().any(|c| !c.is_extended()) {
            self.bytes[6] |= 0x10;
        }
    }

    fn number(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn is_outside(&self, extended: bool, at: usize) -> bool {
        at.saturating_add(if extended { 4 } else { 1 }) >= self.bytes.len()
    }

    fn id(&self, extended: bool, at: usize) -> u16 {
        if extended { self.number(at) } else { self.bytes[at].into() }
    }

    /// The capabilities of a list as they are linked, and whether it ends well.
    pub fn chain(&self, extended: bool) -> (Vec<usize>, Answer<()>) {
        let mut at = match extended {
            false => self.bytes[0x34].into(),
            true if self.bytes.len() == 256 || self.bytes[0x100..0x104] == [0; 4] => 0,
            true => 0x100,
        };
        let mut seen = Vec::new();
        while at >= if extended { 0x100 } else { 0x40 } {
            if self.is_outside(extended, at) {
                return (seen, Err(Errno::EINVAL));
            }
            if seen.contains(&at) {
                break;
            }
            seen.push(at);
            at = if extended { (self.number(at + 2) >> 4).into() } else { self.bytes[at + 1].into() };
        }
        (seen, Ok(()))
    }

    pub fn find(&self, extended: bool, pos: usize, id: i32) -> Answer<usize> {
        if self.is_outside(extended, pos) {
            return Err(Errno::EINVAL);
        }
        let (chain, end) = self.chain(extended);
        let from = if pos == 0 { Some(0) } else { chain.iter().position(|at| *at == pos).map(|n| n + 1) };
        let found =
            from.and_then(|from| chain[from..].iter().find(|at| i32::from(self.id(extended, **at)) == id));
        match found {
            Some(at) => Ok(*at),
            None => end.and(Err(Errno::ENOENT)),
        }
    }

    /// Judges where a capability was put, and puts it there.
    pub fn add(
        &mut self,
        pos: usize,
        flags: i32,
        has_callback: bool,
        data: &[u8],
        place: Answer<usize>,
        chain: (Vec<usize>, Answer<()>),
    ) {
        let extended = flags & EXTENDED != 0;
        let size = match self.check(pos, flags, has_callback, data) {
            Ok(size) => size,
            Err(errno) => return assert_eq!(place, Err(errno)),
        };
        if let (_, Err(errno)) = chain {
            return assert_eq!(place, Err(errno));
        }
        let (start, end) = if extended { (0x100, self.bytes.len()) } else { (0x40, 256) };
        let linked: Vec<_> = chain.0.iter().map(|at| self.occupied(extended, *at)).collect();
        let added: Vec<_> = self.capabilities.iter().map(Capability::range).collect();
        let fits = |at: usize| {
            let in_room = at >= start && at.is_multiple_of(4) && at + size <= end;
            in_room && linked.iter().chain(&added).all(|taken| at + size <= taken.start || taken.end <= at)
        };
        let must_start = extended && linked.is_empty();
        let all: Vec<_> = if must_start { vec![start] } else { (start..end).step_by(4).collect() };
        let at = match place {
            Err(errno) if pos != 0 => {
                assert!(pos > end || !fits(pos) || must_start && pos != start, "{pos:#x} is free");
                return assert_eq!(errno, Errno::EINVAL);
            }
            Err(errno) => {
                assert!(!all.into_iter().any(fits), "there is room");
                return assert_eq!(errno, Errno::ENOSPC);
            }
            Ok(at) => at,
        };
        assert!(fits(at) && (pos == 0 || pos == at) && (!must_start || at == start));
        // Behind the last one, if there is room.
        if let (0, Some(last)) = (pos, linked.last()) {
            let next = last.end.next_multiple_of(4);
            assert!(at == next || !fits(next));
        }
        self.bytes[at..at + size].copy_from_slice(&data[..size]);
        self.link(extended, at, 0);
        match chain.0.last() {
            Some(last) => self.link(extended, *last, at),
            None if !extended => self.bytes[0x34] = at as u8,
            None => {}
        }
        let id = u16::from_le_bytes([data[0], if extended { data[1] } else { 0 }]);
        self.capabilities.push(Capability { id, offset: at, size, flags });
        if !extended {
            self.note_capabilities();
        }
    }

    /// Links from one capability to the next.
    fn link(&mut self, extended: bool, at: usize, next: usize) {
        if extended {
            let link = (next as u16) << 4 | self.number(at + 2) & 0xf;
            self.bytes[at + 2..at + 4].copy_from_slice(&link.to_le_bytes());
        } else {
            self.bytes[at + 1] = next as u8;
        }
    }

    /// The size of a capability, or what is wrong with it whatever its place.
    fn check(&self, pos: usize, flags: i32, has_callback: bool, data: &[u8]) -> Answer<usize> {
        let extended = flags & EXTENDED != 0;
        if flags & !7 != 0 || flags & CALLBACK != 0 && !has_callback || extended && !self.is_extended {
            return Err(Errno::EINVAL);
        }
        if self.capabilities.iter().filter(|c| c.is_extended() == extended).count() >= 128 {
            return Err(Errno::ENOSPC);
        }
        let (size, header) = size_of(extended, data).ok_or(Errno::ENOTSUP)?;
        if size < header || pos.checked_add(size).is_none_or(|end| end > self.bytes.len()) {
            return Err(Errno::EINVAL);
        }
        Ok(size)
    }

    /// What a linked capability takes, which the device may have put there.
    fn occupied(&self, extended: bool, at: usize) -> Range<usize> {
        if let Some(known) = self.capabilities.iter().find(|c| c.offset == at) {
            return known.range();
        }
        let mut bytes = self.bytes[at..].to_vec();
        bytes.resize(bytes.len() + 8, 0);
        match size_of(extended, &bytes) {
            Some((size, header)) if size >= header => at..at + size,
            _ => at..at + 4,
        }
    }

    fn capability_at(&self, at: usize) -> Option<&Capability> {
        self.capabilities.iter().find(|c| at >= 0x40 && c.range().contains(&at))
    }

    /// Whether a byte is the callback's.
    pub fn is_for_callback(&self, at: usize, access: Access, has_callback: bool) -> bool {
        match self.capability_at(at) {
            _ if at < 0x40 => false,
            None => has_callback,
            Some(c) => c.flags & CALLBACK != 0 && (access == Access::Read || c.flags & READONLY == 0),
        }
    }

    pub fn asks_quiesce(&self, offset: usize, data: &[u8]) -> bool {
        let written = |at: usize| at.checked_sub(offset).and_then(|at| data.get(at)).copied().unwrap_or(0);
        self.capabilities.iter().any(|c| c.is_express() && written(c.offset + 9) & 0x80 != 0)
    }

    pub fn write(
        &mut self,
        offset: usize,
        data: &[u8],
        bars: &[Bar; BARS],
        rom_size: u64,
        has_callback: bool,
    ) -> Written {
        let mut written = Written { outcome: Ok(()), resets: 0, calls: BTreeSet::new() };
        let mut at = offset;
        let end = offset + data.len();
        while at < end {
            let same = |other: usize| {
                let both = (self.capability_at(at), self.capability_at(other));
                at < 0x40 && other < 0x40
                    || at >= 0x40 && other >= 0x40 && both.0.map(|c| c.offset) == both.1.map(|c| c.offset)
            };
            let to = (at..end).find(|other| !same(*other)).unwrap_or(end);
            let part = &data[at - offset..to - offset];
            if self.is_for_callback(at, Access::Write, has_callback) {
                written.calls.extend(at..to);
                at = to;
                continue;
            }
            let outcome = match self.capability_at(at).map(|c| (c.offset, c.id)) {
                _ if at < 0x40 => {
                    self.write_header(at, part, bars, rom_size);
                    Ok(false)
                }
                Some((base, _)) => self.write_capability(base, at - base, part),
                None => Err(Errno::EINVAL),
            };
            match outcome {
                Ok(is_reset) => written.resets += usize::from(is_reset),
                Err(errno) => {
                    written.outcome = Err(errno);
                    break;
                }
            }
            at = to;
        }
        written
    }

    fn write_header(&mut self, offset: usize, data: &[u8], bars: &[Bar; BARS], rom_size: u64) {
        let end = offset + data.len();
        for byte in 0..0x40 {
            let register = match byte {
                4 | 5 => 4..6,
                0x10..0x28 | 0x30..0x34 => byte & !3..(byte & !3) + 4,
                _ => byte..byte + 1,
            };
            if register.end <= offset || end <= register.start {
                continue;
            }
            for bit in 0..8 {
                let written = (offset..end).contains(&byte).then(|| data[byte - offset]);
                self.write_bit(byte, bit, header_bit(byte, bit, bars, rom_size), written);
            }
        }
    }

    fn write_bit(&mut self, byte: usize, bit: usize, rule: Bit, written: Option<u8>) {
        let mask = 1 << bit;
        let old = self.bytes[byte];
        self.bytes[byte] = match (rule, written) {
            (Stored, Some(value)) => old & !mask | value & mask,
            (Cleared, Some(value)) => old & !(value & mask),
            (Zero, _) => old & !mask,
            _ => old,
        };
    }

    /// Whether it initiates a reset.
    fn write_capability(&mut self, base: usize, at: usize, data: &[u8]) -> Answer<bool> {
        let capability = self.capability_at(base).expect("it is there");
        let (extended, id) = (capability.is_extended(), capability.id);
        if capability.flags & READONLY != 0 || at < capability.header_length() {
            return Err(Errno::EPERM);
        }
        match (extended, id) {
            (true, 3) => return Err(Errno::EPERM),
            (false, 1) => {
                return match (at, data.len()) {
                    (4, 2 | 4) => {
                        self.bytes[base + 4..base + 6].copy_from_slice(&data[..2]);
                        Ok(false)
                    }
                    (2, 2) | (6 | 7, 1) => Err(Errno::ENOTSUP),
                    _ => Err(Errno::EINVAL),
                };
            }
            (false, 5) if at <= 2 => {
                let (wanted, enabled) = (data[2 - at] >> 4 & 7, self.bytes[base + 2] >> 4 & 7);
                if wanted != enabled && wanted > 5.min(self.bytes[base + 2] >> 1 & 7) {
                    return Err(Errno::EINVAL);
                }
            }
            (false, 0x10) => {
                let is_register = |i: &usize| !matches!(i, 2..8 | 0xc..0x10 | 0x14..0x18 | 0x1e..0x20 | 0x24..0x28 | 0x2c..0x30 | 0x34..0x38);
                if !(at..at + data.len()).any(|i| is_register(&i)) {
                    return Err(Errno::EINVAL);
                }
            }
            _ => {}
        }
        for (i, written) in (at..).zip(data) {
            for bit in 0..8 {
                self.write_bit(base + i, bit, capability_bit(extended, id, i, bit), Some(*written));
            }
        }
        let resets = (extended, id) == (false, 0x10)
            && at <= 9
            && data.get(9 - at).is_some_and(|byte| byte & 0x80 != 0);
        if resets && self.bytes[base + 7] & 0x10 == 0 { Err(Errno::EINVAL) } else { Ok(resets) }
    }
}

/// Size and length of the header of a capability that is known.
fn size_of(extended: bool, data: &[u8]) -> Option<(usize, usize)> {
    match (extended, data[0], data[1]) {
        (false, 1, _) => Some((8, 2)),
        (false, 5, _) => Some((24, 2)),
        (false, 9, _) => Some((data[2].into(), 3)),
        (false, 0x10, _) => Some((60, 2)),
        (false, 0x11, _) => Some((12, 2)),
        (true, 3, 0) => Some((12, 4)),
        (true, 0xb, 0) => Some((usize::from(data[6] >> 4) | usize::from(data[7]) << 4, 8)),
        _ => None,
    }
}

fn header_bit(byte: usize, bit: usize, bars: &[Bar; BARS], rom_size: u64) -> Bit {
    match byte {
        4 => [Stored, Stored, Stored, Zero, Stored, Zero, Stored, Zero][bit],
        5 => [Stored, Stored, Stored, Zero, Zero, Zero, Zero, Zero][bit],
        7 => [Cleared, Kept, Kept, Cleared, Cleared, Cleared, Cleared, Cleared][bit],
        0xc | 0xd | 0x3c => Stored,
        0x10..0x28 => bar_bit(bars, (byte - 0x10) / 4, byte % 4 * 8 + bit),
        0x30..0x34 => {
            let bit = (byte - 0x30) * 8 + bit;
            let is_free = bit == 0 || bit >= 11 && 1_u128 << bit >= rom_size.into();
            if rom_size != 0 && is_free { Stored } else { Zero }
        }
        _ => Kept,
    }
}

/// A bit of a BAR: an address bit is free if it is worth the size or more.
fn bar_bit(bars: &[Bar; BARS], n: usize, bit: usize) -> Bit {
    let is_upper = n % 2 == 1 && bars[n - 1].is_64;
    let (bar, address_bit) = if is_upper { (bars[n - 1], bit + 32) } else { (bars[n], bit) };
    let flag_bits = match (is_upper, bar.mem) {
        (true, _) => 0,
        (false, true) => 4,
        (false, false) => 2,
    };
    if bit < flag_bits {
        Kept
    } else if bar.size != 0 && 1_u64 << address_bit >= bar.size {
        Stored
    } else {
        Zero
    }
}

fn capability_bit(extended: bool, id: u16, byte: usize, bit: usize) -> Bit {
    let by = |stored: u8, cleared: u8| match (stored >> bit & 1, cleared >> bit & 1) {
        (1, _) => Stored,
        (_, 1) => Cleared,
        _ => Kept,
    };
    match (extended, id, byte) {
        (false, 9, _) | (true, 0xb, _) => Stored,
        (false, 5, 2) => by(0x71, 0),
        (false, 5, 4) => by(0xfc, 0),
        (false, 5, 5..14 | 16..20) => Stored,
        (false, 0x11, 3) => by(0xc0, 0),
        (false, 0x10, 9) => by(0x7f, 0),
        (false, 0x10, 8 | 0x10 | 0x11 | 0x18 | 0x19 | 0x1c | 0x1d | 0x28 | 0x29 | 0x30 | 0x31) => Stored,
        (false, 0x10, 0x0a) => by(0, 0x4f),
        (false, 0x10, 0x13) => by(0, 0xc0),
        (false, 0x10, 0x1a) => by(0, 0x1f),
        (false, 0x10, 0x1b) => by(0, 1),
        (false, 0x10, 0x22) => by(0, 1),
        (false, 0x10, 0x32) => by(0, 0x20),
        (false, 0x10, 0x33) => by(0, 0x80),
        _ => Kept,
    }
}
