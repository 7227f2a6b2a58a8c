//! What is written to a block, so that it can be told later which write it was
//! that came last.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `VFUSTAMP` |
//! | 8 | the block's address, in blocks |
//! | 8 | the number of the write |
//! | | the other 8 bytes each, counted from the block's start, so from 3 on: the number of the write times [`FACTOR`], plus the count |
//! | 4 | 0, in place of the last one of these |
//! | 4 | CRC-32 of everything before it |
//!
//! Numbers are little-endian.

const MAGIC: &[u8; 8] = b"VFUSTAMP";
/// Makes the bytes of one write look unlike those of the next.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const CRC: usize = 4;

/// Whose bytes a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Address of the block.
    pub lba: u64,
    /// Number of the write.
    pub sequence: u64,
}

impl Stamp {
    /// Fills a block, of a multiple of 8 bytes.
    pub fn write(self, block: &mut [u8]) {
        let first = self.sequence.wrapping_mul(FACTOR);
        for (n, word) in (0..).zip(block.chunks_mut(8)) {
            let value = match n {
                0 => *MAGIC,
                1 => self.lba.to_le_bytes(),
                2 => self.sequence.to_le_bytes(),
                n => first.wrapping_add(n).to_le_bytes(),
            };
            word.copy_from_slice(value.get(..word.len()).unwrap_or_default());
        }
        if let Some((start, crc)) = block.split_last_chunk_mut::<CRC>() {
            if let Some(zero) = start.last_chunk_mut::<CRC>() {
                zero.fill(0);
            }
            *crc = crc32fast::hash(start).to_le_bytes();
        }
    }

    /// What the block says of itself; `None` if no write left it as it is.
    pub fn read(block: &[u8]) -> Option<Stamp> {
        let number = |at: usize| block.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
        let (start, crc) = block.split_last_chunk::<CRC>()?;
        let stamp = Stamp { lba: number(8)?, sequence: number(16)? };
        let whole = block.starts_with(MAGIC) && crc32fast::hash(start).to_le_bytes() == *crc;
        whole.then_some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_and_damage_is_noticed() {
        let stamp = Stamp { lba: 0x1_0000_0007, sequence: 99 };
        for size in [512, 4096] {
            let mut block = vec![0xaa; size];
            stamp.write(&mut block);
            assert_eq!(Stamp::read(&block), Some(stamp));
            for at in [0, 9, 17, 100, size - 6, size - 1] {
                let mut damaged = block.clone();
                damaged[at] ^= 0x10;
                assert_eq!(Stamp::read(&damaged), None, "byte {at}");
            }
        }
        assert_eq!(Stamp::read(&[0; 512]), None);
        assert_eq!(Stamp::read(&[]), None);
    }
}
