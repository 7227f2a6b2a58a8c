//! The memory that the server may reach: what a guest's RAM is to a virtual
//! machine.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vfio_user::wire::{DmaMapFlags, Errno};

/// Where the bytes of a [`Segment`] are.
#[derive(Debug)]
pub enum Backing {
    /// In this process only; the server sends messages to reach them.
    Private(Vec<u8>),
    /// In a file that the server has the descriptor of.
    Shared(File, u64),
}

impl Backing {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Backing::Private(bytes) => bytes.len() as u64,
            Backing::Shared(_, size) => *size,
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match self {
            Backing::Private(bytes) => {
                let from = part(offset, into.len()).and_then(|r| bytes.get(r)).ok_or(Errno::EFAULT)?;
                into.copy_from_slice(from);
                Ok(())
            }
            Backing::Shared(file, _) => Ok(file.read_exact_at(into, offset)?),
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        match self {
            Backing::Private(bytes) => {
                let into = part(offset, from.len()).and_then(|r| bytes.get_mut(r)).ok_or(Errno::EFAULT)?;
                into.copy_from_slice(from);
                Ok(())
            }
            Backing::Shared(file, _) => Ok(file.write_all_at(from, offset)?),
        }
    }
}

fn part(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}

/// A range of addresses with memory behind it.
#[derive(Debug)]
pub struct Segment {
    /// First address.
    pub addr: u64,
    /// What the server may do with it.
    pub access: DmaMapFlags,
    /// The bytes.
    pub backing: Backing,
}

/// How often the server used messages to reach the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Number of `VFIO_USER_DMA_READ` commands.
    pub reads: u64,
    /// Number of `VFIO_USER_DMA_WRITE` commands.
    pub writes: u64,
}

/// All segments.
#[derive(Debug, Default)]
pub struct Memory {
    segments: Vec<Segment>,
    /// What the server did by messages.
    pub traffic: Traffic,
}

impl Memory {
    /// Adds a segment.
    pub fn add(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    /// Takes the segment that starts at `addr` away.
    pub fn remove(&mut self, addr: u64) -> Option<Segment> {
        let at = self.segments.iter().position(|s| s.addr == addr)?;
        Some(self.segments.swap_remove(at))
    }

    /// Reads for this side.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), Errno> {
        let (n, offset) = self.find(addr, into.len())?;
        self.segments.get(n).ok_or(Errno::EFAULT)?.backing.read(offset, into)
    }

    /// Writes for this side.
    pub fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), Errno> {
        let (n, offset) = self.find(addr, from.len())?;
        self.segments.get_mut(n).ok_or(Errno::EFAULT)?.backing.write(offset, from)
    }

    /// Reads for the server, if it may. `EFAULT` where there is no memory,
    /// `EACCES` where it may not.
    pub fn serve_read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.traffic.reads = self.traffic.reads.saturating_add(1);
        self.allow(addr, into.len(), DmaMapFlags::READ)?;
        self.read(addr, into)
    }

    /// Writes for the server, if it may; errors as for reading.
    pub fn serve_write(&mut self, addr: u64, from: &[u8]) -> Result<(), Errno> {
        self.traffic.writes = self.traffic.writes.saturating_add(1);
        self.allow(addr, from.len(), DmaMapFlags::WRITE)?;
        self.write(addr, from)
    }

    fn allow(&self, addr: u64, len: usize, access: DmaMapFlags) -> Result<(), Errno> {
        let (n, _) = self.find(addr, len)?;
        match self.segments.get(n) {
            Some(segment) if segment.access.contains(access) => Ok(()),
            _ => Err(Errno::EACCES),
        }
    }

    /// The segment that holds all of the range, and the range's offset in it.
    fn find(&self, addr: u64, len: usize) -> Result<(usize, u64), Errno> {
        let inside = |s: &Segment| {
            let offset = addr.checked_sub(s.addr)?;
            let end = offset.checked_add(len as u64)?;
            (end <= s.backing.size()).then_some(offset)
        };
        let mut found = self.segments.iter().enumerate().filter_map(|(n, s)| Some((n, inside(s)?)));
        found.next().ok_or(Errno::EFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        memory.add(Segment { addr: 0x1000, access, backing: Backing::Private(vec![7; 16]) });
        memory.add(Segment {
            addr: 0x2000,
            access: DmaMapFlags::READ,
            backing: Backing::Private(vec![9; 16]),
        });
        memory
    }

    #[test]
    fn ranges_must_lie_in_one_segment() {
        let mut memory = memory();
        assert_eq!(memory.serve_read(0x1000, &mut [0; 16]), Ok(()));
        assert_eq!(memory.serve_read(0x100f, &mut [0; 1]), Ok(()));
        assert_eq!(memory.serve_read(0x100f, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(memory.serve_read(0xfff, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(memory.serve_read(u64::MAX, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(memory.traffic, Traffic { reads: 5, writes: 0 });
    }

    #[test]
    fn the_server_writes_where_it_may() {
        let mut memory = memory();
        assert_eq!(memory.serve_write(0x1004, &[1, 2]), Ok(()));
        assert_eq!(memory.serve_write(0x2004, &[1, 2]), Err(Errno::EACCES));
        let mut bytes = [0; 4];
        memory.read(0x1003, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 1, 2, 7]);
        assert!(memory.remove(0x1000).is_some());
        assert!(memory.remove(0x1000).is_none());
        assert_eq!(memory.serve_write(0x1004, &[1]), Err(Errno::EFAULT));
    }
}
