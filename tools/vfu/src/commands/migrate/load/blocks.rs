//! The blocks of a disk: what each must hold, and which are being worked on.

use std::ops::Range;

use super::Record;
use crate::error::{Error, Result};
use crate::nvme::Stamp;

/// A block that is not being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// What was there at the start, as a checksum; `None` until it was read.
    Initial(Option<u32>),
    /// What this write put there.
    Write(u64),
}

/// Blocks from the first one of a disk on.
pub struct Blocks {
    block_size: usize,
    contents: Vec<Content>,
    busy: Vec<bool>,
    next_sequence: u64,
}

impl Blocks {
    /// `count` blocks of which nothing is known. Each `run` has its own numbers
    /// for writes.
    pub fn new(count: u64, block_size: u64, run: u32) -> Blocks {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let block_size = usize::try_from(block_size).unwrap_or(usize::MAX);
        let contents = vec![Content::Initial(None); count];
        Blocks { block_size, contents, busy: vec![false; count], next_sequence: u64::from(run) << 32 | 1 }
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.contents.len() as u64
    }

    /// Bytes that so many blocks have.
    pub fn bytes(&self, blocks: u64) -> usize {
        usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(self.block_size)
    }

    /// Takes blocks, so that nobody else works on them; false if somebody does.
    pub fn take(&mut self, range: &Range<u64>) -> bool {
        match self.busy.get_mut(places(range)) {
            Some(busy) if !busy.contains(&true) => {
                busy.fill(true);
                true
            }
            _ => false,
        }
    }

    /// Puts them back as they were.
    pub fn put_back(&mut self, range: &Range<u64>) {
        self.busy.get_mut(places(range)).unwrap_or_default().fill(false);
    }

    /// Puts them back as a write left them.
    pub fn written(&mut self, range: &Range<u64>, sequence: u64) {
        self.contents.get_mut(places(range)).unwrap_or_default().fill(Content::Write(sequence));
        self.put_back(range);
    }

    /// The bytes for the next write to these blocks, and its number.
    pub fn fill(&mut self, range: &Range<u64>) -> (u64, Vec<u8>) {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        let mut bytes = vec![0; self.bytes(range.end.saturating_sub(range.start))];
        for (lba, block) in range.clone().zip(bytes.chunks_mut(self.block_size)) {
            Stamp { lba, sequence }.write(block);
        }
        (sequence, bytes)
    }

    /// Fails unless these blocks, as they were read, are what they must be.
    /// What is not known yet is taken as it is, and writes are numbered from
    /// behind what a stamp there says: an older run's never look like this one's.
    pub fn check(&mut self, range: &Range<u64>, bytes: &[u8]) -> Result<()> {
        let contents = self.contents.get_mut(places(range)).unwrap_or_default();
        for ((lba, content), block) in range.clone().zip(contents).zip(bytes.chunks(self.block_size)) {
            let stamp = Stamp::read(block);
            let (right, expected) = match *content {
                Content::Initial(None) => {
                    *content = Content::Initial(Some(crc32fast::hash(block)));
                    let sequence = stamp.map_or(0, |stamp| stamp.sequence);
                    self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
                    continue;
                }
                Content::Initial(Some(crc)) => {
                    (crc32fast::hash(block) == crc, "what it held at the start".to_string())
                }
                Content::Write(sequence) => {
                    (stamp == Some(Stamp { lba, sequence }), format!("that of write {sequence}"))
                }
            };
            if !right {
                let found = match stamp {
                    Some(Stamp { lba, sequence }) => format!("that of write {sequence} to block {lba}"),
                    None => "no stamp".into(),
                };
                return Err(Error::Unfit(format!("block {lba} holds {found}, not {expected}")));
            }
        }
        Ok(())
    }

    /// What the disk must look like.
    pub fn record(&self) -> Record {
        let sequence = |content: &Content| match content {
            Content::Initial(_) => 0,
            Content::Write(sequence) => *sequence,
        };
        let sequences = self.contents.iter().map(sequence).collect();
        Record { block_size: self.block_size as u64, sequences }
    }
}

fn places(range: &Range<u64>) -> Range<usize> {
    let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    place(range.start)..place(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_once_and_their_contents_told_apart() {
        let mut blocks = Blocks::new(8, 512, 0);
        assert!(blocks.take(&(2..5)));
        assert!(!blocks.take(&(4..6)) && !blocks.take(&(7..9)));
        let (first, old) = blocks.fill(&(2..5));
        blocks.written(&(2..5), first);
        assert!(blocks.check(&(2..5), &old).is_ok());
        assert!(blocks.take(&(4..6)));
        let (second, new) = blocks.fill(&(4..6));
        blocks.written(&(4..6), second);
        assert_eq!(blocks.record().sequences, [0, 0, first, first, second, second, 0, 0]);
        assert!(blocks.check(&(4..6), &new).is_ok());
        let stale = blocks.check(&(2..5), &old).unwrap_err().to_string();
        assert_eq!(stale, "block 4 holds that of write 1 to block 4, not that of write 2");
        let elsewhere = blocks.check(&(4..5), &new[512..]).unwrap_err().to_string();
        assert!(elsewhere.contains("write 2 to block 5"), "{elsewhere}");
        assert!(blocks.check(&(4..5), &[0; 512]).unwrap_err().to_string().contains("no stamp"));
    }

    #[test]
    fn what_was_there_at_the_start_stays() {
        let mut blocks = Blocks::new(4, 512, 0);
        let mut bytes = vec![7; 1024];
        Stamp { lba: 1, sequence: 41 }.write(&mut bytes[512..]);
        assert!(blocks.check(&(0..2), &bytes).is_ok());
        assert!(blocks.check(&(0..2), &bytes).is_ok());
        assert_eq!(blocks.fill(&(3..4)).0, 42);
        bytes[3] ^= 1;
        assert!(blocks.check(&(0..2), &bytes).unwrap_err().to_string().contains("at the start"));
    }
}
