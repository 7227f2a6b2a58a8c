//! The bytes of a configuration space, little-endian as PCI has them.

/// A configuration space, or what there is of it. Registers beyond its end
/// are `None`.
#[derive(Clone, Copy)]
pub struct Space<'a>(pub &'a [u8]);

impl Space<'_> {
    fn bytes<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    /// The byte at `offset`.
    pub fn u8(self, offset: usize) -> Option<u8> {
        self.bytes(offset).map(u8::from_le_bytes)
    }

    /// The word at `offset`.
    pub fn u16(self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    /// The double word at `offset`.
    pub fn u32(self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    /// The quad word at `offset`.
    pub fn u64(self, offset: usize) -> Option<u64> {
        self.bytes(offset).map(u64::from_le_bytes)
    }
}

/// The names of the bits that are set in `value`.
pub fn names(value: u32, bits: &[(u32, &'static str)]) -> Vec<&'static str> {
    bits.iter().filter(|(bit, _)| value & bit != 0).map(|(_, name)| *name).collect()
}
