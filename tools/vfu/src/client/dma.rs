//! Memory for the device: mapping, unmapping, and answering the server's
//! commands.

use std::os::fd::AsFd;

use vfio_user::wire::{Command, DmaAccess, DmaMap, DmaMapFlags, DmaUnmap, Errno, limits, take};
use zerocopy::IntoBytes;

use super::stream::Message;
use super::{Backing, Client, Memory, Segment};
use crate::error::{Error, Result};

impl Client {
    /// Lets the server reach `segment`; one with a file is sent along.
    pub fn dma_map(&mut self, segment: Segment) -> Result<()> {
        let size = segment.backing.size();
        let what = format!("DMA map of {size:#x} bytes at {:#x}", segment.addr);
        let (fds, kind) = match &segment.backing {
            Backing::Private(_) => (vec![], DmaMapFlags::empty()),
            Backing::Shared(file, _) => (vec![file.as_fd()], DmaMapFlags::MMAP),
        };
        let map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: (segment.access | kind).bits(),
            offset: 0,
            addr: segment.addr,
            size,
        };
        self.request(Command::DmaMap, &what, &[map.as_bytes()], &fds)?;
        drop(fds);
        self.memory.add(segment);
        Ok(())
    }

    /// Takes back the segment that starts at `addr`.
    pub fn dma_unmap(&mut self, addr: u64) -> Result<()> {
        let Some(segment) = self.memory.remove(addr) else {
            return Err(Error::Usage(format!("nothing is mapped at {addr:#x}")));
        };
        let size = segment.backing.size();
        // The server may use the memory until it has answered.
        self.memory.add(segment);
        let unmap = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, addr, size };
        let what = format!("DMA unmap of {size:#x} bytes at {addr:#x}");
        let reply = self.request(Command::DmaUnmap, &what, &[unmap.as_bytes()], &[])?;
        self.memory.remove(addr);
        match take::<DmaUnmap>(&reply.body) {
            // A device that doesn't do DMA answers without a payload.
            Err(_) if reply.body.is_empty() => Ok(()),
            Ok((echo, _)) if (echo.addr, echo.size) == (addr, size) => Ok(()),
            _ => Err(Error::Protocol(format!("{what}: the reply does not repeat the range"))),
        }
    }
}

/// Executes a command of the server: the reply as bytes. Commands that a
/// server may not send, or whose sizes don't agree, are protocol violations.
pub(crate) fn serve(memory: &mut Memory, command: &Message) -> Result<Vec<u8>> {
    let header = &command.header;
    let outcome = match Command::from_number(header.cmd) {
        Some(Command::DmaRead) => {
            let (access, count, _) = parse(command)?;
            let mut data = vec![0; count];
            memory.serve_read(access.addr, &mut data).map(|()| [access.as_bytes(), &data].concat())
        }
        Some(Command::DmaWrite) => {
            let (access, count, data) = parse(command)?;
            if data.len() != count {
                let text = format!("a DMA write of {count} bytes that carries {}", data.len());
                return Err(Error::Protocol(text));
            }
            memory.serve_write(access.addr, data).map(|()| access.as_bytes().to_vec())
        }
        _ => return Err(Error::Protocol(format!("the server sent command {}", header.cmd))),
    };
    Ok(match outcome {
        Ok(body) => {
            let size = body.len().saturating_add(limits::HEADER_SIZE);
            let size = u32::try_from(size).map_err(|_| Error::Protocol("an oversized DMA read".into()))?;
            [header.reply(size).as_bytes(), &body].concat()
        }
        Err(errno) => header.error_reply(errno).as_bytes().to_vec(),
    })
}

/// Address and count, the count in bytes as far as this client allows it, and
/// the data that follow.
fn parse(command: &Message) -> Result<(DmaAccess, usize, &[u8])> {
    let (access, data): (DmaAccess, _) = take(&command.body).map_err(|_: Errno| {
        Error::Protocol(format!("a DMA command with {} bytes of payload", command.body.len()))
    })?;
    match usize::try_from(access.count) {
        Ok(count) if count <= limits::MAX_DATA_XFER_SIZE => Ok((access, count, data)),
        _ => Err(Error::Protocol(format!("a DMA command for {} bytes", access.count))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_user::wire::{Header, HeaderFlags};

    fn memory() -> Memory {
        let access = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let mut memory = Memory::default();
        memory.add(Segment { addr: 0x1000, access, backing: Backing::Private((0..16).collect()) });
        memory
    }

    fn command(cmd: u16, addr: u64, count: u64, data: &[u8]) -> Message {
        let body = [DmaAccess { addr, count }.as_bytes(), data].concat();
        let header = Header::command(77, cmd, body.len() as u32 + 16);
        Message { header, body, fds: vec![] }
    }

    #[test]
    fn a_read_is_answered_with_the_bytes() {
        let reply = serve(&mut memory(), &command(11, 0x1002, 3, &[])).unwrap();
        let (header, body) = take::<Header>(&reply).unwrap();
        assert_eq!((header.msg_id, header.cmd, header.msg_size, header.flags), (77, 11, 35, 1));
        assert_eq!(body, [DmaAccess { addr: 0x1002, count: 3 }.as_bytes(), &[2, 3, 4]].concat());
    }

    #[test]
    fn a_write_lands_in_memory() {
        let mut memory = memory();
        let reply = serve(&mut memory, &command(12, 0x1002, 2, &[8, 9])).unwrap();
        assert_eq!(reply.len(), 32);
        let mut bytes = [0; 4];
        memory.read(0x1001, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 8, 9, 4]);
    }

    #[test]
    fn an_address_without_memory_is_an_error_reply() {
        let reply = serve(&mut memory(), &command(11, 0x100f, 2, &[])).unwrap();
        let (header, body) = take::<Header>(&reply).unwrap();
        assert!(header.flags().contains(HeaderFlags::ERROR) && body.is_empty());
        assert_eq!(header.error_no, Errno::EFAULT.number() as u32);
    }

    #[test]
    fn nonsense_is_a_protocol_violation() {
        let cases = [
            command(11, 0x1000, 1 << 20 | 1, &[]),
            command(11, 0x1000, u64::MAX, &[]),
            command(12, 0x1000, 2, &[1]),
            command(12, 0x1000, 2, &[1, 2, 3]),
            command(13, 0, 0, &[]),
            command(0, 0, 0, &[]),
            Message { body: vec![0; 15], ..command(11, 0, 0, &[]) },
        ];
        for case in cases {
            assert!(matches!(serve(&mut memory(), &case), Err(Error::Protocol(_))), "{case:?}");
        }
    }
}
