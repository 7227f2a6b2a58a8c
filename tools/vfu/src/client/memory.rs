//! The memory that the server may reach: what a guest's RAM is to a virtual
//! machine.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vfio_user::wire::{DmaMapFlags, Errno};

use super::Pages;
use crate::error;

/// Where the bytes of a [`Segment`] are.
#[derive(Debug)]
pub enum Backing {
    /// In this process only; the server sends messages to reach them.
    Private(Vec<u8>),
    /// In a file that the server has the descriptor of.
    Shared(File, u64),
}

impl Backing {
    /// A new file in memory of `size` bytes, all zero.
    pub fn memfd(size: u64) -> error::Result<Backing> {
        let failed = |e: std::io::Error| error::Error::local("memfd", e);
        let fd = memfd_create("vfu", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let file = File::from(fd);
        file.set_len(size).map_err(failed)?;
        Ok(Backing::Shared(file, size))
    }

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
    /// What was written through here since tracking began, by the first
    /// address of each segment.
    written: Vec<(u64, Pages)>,
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

    /// Tracks from now on what is written through here: by this side, and by
    /// the server in messages. What the server writes to a file of its own is
    /// for its dirty logging to tell.
    pub fn track(&mut self, page_size: u64) {
        let pages = |s: &Segment| (s.addr, Pages::none(s.backing.size(), page_size));
        self.written = self.segments.iter().map(pages).collect();
    }

    /// What was written to the segment that starts at `addr` since this was
    /// asked last; `None` if it is not tracked.
    pub fn take_written(&mut self, addr: u64) -> Option<Pages> {
        let (_, pages) = self.written.iter_mut().find(|(start, _)| *start == addr)?;
        Some(pages.take())
    }

    /// Reads for this side.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), Errno> {
        let (n, offset) = self.find(addr, into.len())?;
        self.segments.get(n).ok_or(Errno::EFAULT)?.backing.read(offset, into)
    }

    /// Writes for this side.
    pub fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), Errno> {
        let (n, offset) = self.find(addr, from.len())?;
        let segment = self.segments.get_mut(n).ok_or(Errno::EFAULT)?;
        segment.backing.write(offset, from)?;
        if let Some((_, pages)) = self.written.iter_mut().find(|(start, _)| *start == segment.addr) {
            pages.mark(offset, from.len() as u64);
        }
        Ok(())
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
    fn what_is_written_is_tracked_once() {
        let mut memory = memory();
        memory.write(0x1000, &[1]).unwrap();
        memory.track(4);
        assert_eq!(memory.serve_write(0x1003, &[1, 2]), Ok(()));
        assert_eq!(memory.write(0x100f, &[1]), Ok(()));
        assert_eq!(memory.write(0x100f, &[1, 2]), Err(Errno::EFAULT));
        let runs: Vec<_> = memory.take_written(0x1000).unwrap().runs().collect();
        assert_eq!(runs, [0..8, 12..16]);
        assert_eq!(memory.take_written(0x1000).unwrap().count(), 0);
        assert_eq!(memory.take_written(0x2000).unwrap().count(), 0);
        assert!(memory.take_written(0x3000).is_none());
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
