//! What a dma-engine does to memory, done here: what the memory must be in
//! the end.

use super::{Descriptor, flag};

/// 64-bit FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Memory as it is when every descriptor so far is done.
pub struct Model {
    /// The guest's memory: first addresses and bytes.
    pub guest: Vec<(u64, Vec<u8>)>,
    /// All of BAR2.
    pub device: Vec<u8>,
}

impl Model {
    /// Executes a descriptor: what its result must be; `None` if there is no
    /// memory where it says.
    pub fn execute(&mut self, descriptor: &Descriptor) -> Option<u64> {
        let Descriptor { op, src, dst, len, value, .. } = *descriptor;
        let len = usize::try_from(len).ok()?;
        let bytes = match op {
            1 => self.find(src, len, descriptor.flags & flag::SRC_LOCAL != 0)?.to_vec(),
            2 => vec![value as u8; len],
            3 => (0..len as u64).map(|i| value.wrapping_add(i) as u8).collect(),
            4 => return Some(checksum(self.find(src, len, descriptor.flags & flag::SRC_LOCAL != 0)?)),
            _ => return None,
        };
        self.find(dst, len, descriptor.flags & flag::DST_LOCAL != 0)?.copy_from_slice(&bytes);
        Some(0)
    }

    /// The bytes at an address of the guest's, or an offset of the device's.
    pub fn find(&mut self, addr: u64, len: usize, local: bool) -> Option<&mut [u8]> {
        let part = |bytes: &mut Vec<u8>, base: u64| {
            let start = usize::try_from(addr.checked_sub(base)?).ok()?;
            let end = start.checked_add(len).filter(|end| *end <= bytes.len())?;
            Some(start..end)
        };
        if local {
            let range = part(&mut self.device, 0)?;
            return self.device.get_mut(range);
        }
        self.guest.iter_mut().find_map(|(base, bytes)| {
            let range = part(bytes, *base)?;
            bytes.get_mut(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Access, Operation};

    #[test]
    fn the_checksum_is_fnv_1a() {
        // Values from the description of the algorithm.
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn descriptors_move_memory() {
        let mut model = Model { guest: vec![(0x1000, vec![1; 8]), (0x2000, vec![2; 8])], device: vec![3; 8] };
        let new = |operation, src, dst| Descriptor::new(operation, Access::Auto, (src, dst, 4), 0x1fe, 0);
        assert_eq!(model.execute(&new(Operation::Copy, 0x1000, 0x2002)), Some(0));
        assert_eq!(model.guest[1].1, [2, 2, 1, 1, 1, 1, 2, 2]);
        assert_eq!(model.execute(&new(Operation::Pattern, 0, 0x1004)), Some(0));
        assert_eq!(model.guest[0].1, [1, 1, 1, 1, 0xfe, 0xff, 0, 1]);
        assert_eq!(model.execute(&new(Operation::Fill, 0, 1).local(false, true)), Some(0));
        assert_eq!(model.device, [3, 0xfe, 0xfe, 0xfe, 0xfe, 3, 3, 3]);
        assert_eq!(model.execute(&new(Operation::Copy, 4, 0x1000).local(true, false)), Some(0));
        assert_eq!(model.guest[0].1[..4], [0xfe, 3, 3, 3]);
        let sum = model.execute(&new(Operation::Checksum, 4, 0).local(true, false));
        assert_eq!(sum, Some(checksum(&[0xfe, 3, 3, 3])));
        for outside in [0x1005, 0xfff, 0x3000, u64::MAX] {
            assert_eq!(model.execute(&new(Operation::Fill, 0, outside)), None);
        }
        assert_eq!(model.execute(&new(Operation::Fill, 0, 5).local(false, true)), None);
    }
}
