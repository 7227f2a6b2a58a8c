//! Traces in files, as pcapng.
//!
//! Each message is a packet of link type `USER0` (147): a pseudo header that
//! says what is not in the message, then the message as it was sent. The
//! pseudo header, little-endian as the rest of the file:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | flags: 1 the server sent it, 2 on the twin socket, 4 it is no message, but bytes of a stream that is not vfio-user |
//! | 2 | 2 | number of descriptors |
//! | 4 | 4 | number of the connection, from 1 on |
//! | 8 | 4 | size of the pseudo header with the descriptors: where the message begins |
//! | 12 | 4 | zero |
//! | 16 | | for each descriptor: its kind (1 byte; 0 other, 1 memfd, 2 file, 3 eventfd, 4 socket, 5 pipe, 6 device), the length of its name (1 byte), its size (8 bytes), its name |
//!
//! `tools/wireshark/vfio-user.lua` reads the same.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use pcap_parser::pcapng::{Block, EnhancedPacketBlock, InterfaceDescriptionBlock, SectionHeaderBlock};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Linktype, OptionCode, PcapBlockOwned, PcapError, PcapNGOption, PcapNGReader, ToVec};
use vfio_user::wire::take;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assemble::KEPT;
use super::descriptor::{Descriptor, Kind};
use super::{Peer, Place, Record, Socket};
use crate::error::{Error, Result};

/// `LINKTYPE_USER0`
const USER0: Linktype = Linktype(147);
const VERSION: u8 = 1;
const FROM_SERVER: u8 = 1;
const TWIN: u8 = 2;
const NO_MESSAGE: u8 = 4;
/// Timestamps are in nanoseconds, as a power of ten.
const NANOSECONDS: u8 = 9;
/// Room for the largest packet: names of all descriptors a message can have, and what is kept of it.
const LARGEST: usize = KEPT + (1 << 17);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    version: u8,
    flags: u8,
    descriptors: U16,
    connection: U32,
    size: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DescriptorHead {
    kind: u8,
    name: u8,
    size: U64,
}

/// The pseudo header of a record.
fn pseudo_header(record: &Record) -> Option<Vec<u8>> {
    let mut descriptors = Vec::new();
    for descriptor in &record.descriptors {
        let name = descriptor.name.as_bytes();
        let head = DescriptorHead {
            kind: descriptor.kind as u8,
            name: u8::try_from(name.len()).ok()?,
            size: descriptor.size.into(),
        };
        descriptors.extend_from_slice(head.as_bytes());
        descriptors.extend_from_slice(name);
    }
    let mut flags = 0;
    for (flag, is_set) in [
        (FROM_SERVER, record.place.from == Peer::Server),
        (TWIN, record.place.socket == Socket::Twin),
        (NO_MESSAGE, !record.is_message),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    let size = size_of::<Head>().checked_add(descriptors.len())?;
    let head = Head {
        version: VERSION,
        flags,
        descriptors: u16::try_from(record.descriptors.len()).ok()?.into(),
        connection: record.place.connection.into(),
        size: u32::try_from(size).ok()?.into(),
        reserved: 0.into(),
    };
    Some([head.as_bytes(), &descriptors].concat())
}

/// The record of a packet that was sent with `size` bytes; `None` if it is none of ours.
fn record(at: Duration, packet: &[u8], size: u32) -> Option<Record> {
    let (head, mut rest): (Head, _) = take(packet).ok()?;
    if head.version != VERSION {
        return None;
    }
    let start = usize::try_from(head.size.get()).ok()?;
    let bytes = packet.get(start..)?.to_vec();
    let mut descriptors = Vec::new();
    for _ in 0..head.descriptors.get() {
        let (descriptor, name): (DescriptorHead, _) = take(rest).ok()?;
        let (name, next) = name.split_at_checked(descriptor.name.into())?;
        rest = next;
        descriptors.push(Descriptor {
            kind: Kind::from_number(descriptor.kind),
            name: String::from_utf8_lossy(name).into_owned(),
            size: descriptor.size.get(),
        });
    }
    let has = |flag: u8| head.flags & flag != 0;
    let place = Place {
        connection: head.connection.get(),
        socket: if has(TWIN) { Socket::Twin } else { Socket::Main },
        from: if has(FROM_SERVER) { Peer::Server } else { Peer::Client },
    };
    let size = u64::from(size.checked_sub(head.size.get())?);
    Some(Record { at, place, is_message: !has(NO_MESSAGE), size, bytes, descriptors })
}

/// A file that is being written.
pub struct Writer {
    path: String,
    file: BufWriter<File>,
}

impl Writer {
    /// Makes the file, or takes the place of one.
    pub fn create(path: &Path) -> Result<Writer> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|e| Error::local(&name, e))?;
        let mut writer = Writer { path: name, file: BufWriter::new(file) };
        let application = concat!("vfu ", env!("CARGO_PKG_VERSION"));
        writer.block(&mut SectionHeaderBlock {
            block_type: 0,
            block_len1: 0,
            bom: 0,
            major_version: 0,
            minor_version: 0,
            section_len: -1,
            options: vec![option(OptionCode::ShbUserAppl, application)],
            block_len2: 0,
        })?;
        writer.block(&mut InterfaceDescriptionBlock {
            block_type: 0,
            block_len1: 0,
            linktype: USER0,
            reserved: 0,
            snaplen: 0,
            options: vec![option(OptionCode::IfName, "vfio-user")],
            block_len2: 0,
            if_tsresol: NANOSECONDS,
            if_tsoffset: 0,
        })?;
        Ok(writer)
    }

    fn block(&mut self, block: &mut impl ToVec) -> Result<()> {
        let bytes = block.to_vec().map_err(|e| self.failed(std::io::Error::other(e.to_string())))?;
        self.file.write_all(&bytes).map_err(|e| self.failed(e))
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::local(&self.path, e)
    }

    /// Writes a record; when it reaches the file is for [`flush`](Self::flush) to say.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        let too_large = || std::io::Error::other("a message too large for the file");
        let mut data = pseudo_header(record).ok_or_else(|| self.failed(too_large()))?;
        let size = record.size.saturating_add(data.len() as u64);
        data.extend_from_slice(&record.bytes);
        let (Ok(caplen), Ok(origlen)) = (u32::try_from(data.len()), u32::try_from(size)) else {
            return Err(self.failed(too_large()));
        };
        let nanoseconds = u64::try_from(record.at.as_nanos()).unwrap_or(u64::MAX);
        self.block(&mut EnhancedPacketBlock {
            block_type: 0,
            block_len1: 0,
            if_id: 0,
            ts_high: (nanoseconds >> 32) as u32,
            ts_low: nanoseconds as u32,
            caplen,
            origlen,
            data: &data,
            options: vec![],
            block_len2: 0,
        })
    }

    /// What has been written is in the file.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| self.failed(e))
    }
}

fn option(code: OptionCode, text: &'static str) -> PcapNGOption<'static> {
    PcapNGOption { code, len: u16::try_from(text.len()).unwrap_or(0), value: text.as_bytes().into() }
}

/// A file that is being read.
pub struct Reader {
    path: String,
    packets: PcapNGReader<BufReader<File>>,
    /// Of each interface, units of time in a second; `None` for one of another link type.
    interfaces: Vec<Option<(u64, i64)>>,
}

impl Reader {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Reader> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::local(&name, e))?;
        let packets = PcapNGReader::new(LARGEST, BufReader::new(file)).map_err(|e| broken(&name, &e))?;
        Ok(Reader { path: name, packets, interfaces: Vec::new() })
    }

    /// The next record; none at the end.
    pub fn next(&mut self) -> Result<Option<Record>> {
        // Where nothing comes in any more, a packet that is not whole never will be.
        let mut is_refilled = false;
        loop {
            let found = match self.packets.next() {
                Ok((size, PcapBlockOwned::NG(block))) => {
                    let found = take_block(&mut self.interfaces, &block);
                    self.packets.consume(size);
                    found
                }
                Ok((size, _)) => {
                    self.packets.consume(size);
                    Ok(None)
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) if !is_refilled => {
                    self.packets.refill().map_err(|e| broken(&self.path, &e))?;
                    is_refilled = true;
                    continue;
                }
                Err(e) => return Err(broken(&self.path, &e)),
            };
            is_refilled = false;
            match found {
                Ok(None) => {}
                Ok(record) => return Ok(record),
                Err(what) => return Err(Error::Unfit(format!("{}: {what}", self.path))),
            }
        }
    }
}

/// What a block adds; other protocols' packets are passed over.
fn take_block(
    interfaces: &mut Vec<Option<(u64, i64)>>,
    block: &Block<'_>,
) -> Result<Option<Record>, &'static str> {
    match block {
        Block::SectionHeader(_) => interfaces.clear(),
        Block::InterfaceDescription(interface) => {
            let clock = interface.ts_resolution().map(|units| (units, interface.ts_offset()));
            interfaces.push(clock.filter(|_| interface.linktype == USER0));
        }
        Block::EnhancedPacket(packet) => {
            let interface = usize::try_from(packet.if_id).ok().and_then(|id| interfaces.get(id));
            if let Some((units, offset)) = interface.copied().flatten() {
                let at = time(packet, units, offset);
                let found = record(at, packet.packet_data(), packet.origlen);
                return found.map(Some).ok_or("a packet of another kind than vfu trace writes");
            }
        }
        _ => {}
    }
    Ok(None)
}

fn time(packet: &EnhancedPacketBlock<'_>, units: u64, offset: i64) -> Duration {
    let ticks = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
    let nanoseconds = ticks.saturating_mul(1_000_000_000) / u128::from(units.max(1));
    let at = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
    let shift = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 { at.saturating_sub(shift) } else { at.saturating_add(shift) }
}

fn broken<T>(path: &str, e: &PcapError<T>) -> Error {
    let what = match e {
        PcapError::Eof | PcapError::UnexpectedEof | PcapError::Incomplete(_) => "it ends within a packet",
        PcapError::ReadError => "it cannot be read",
        _ => "it is no pcapng file, or damaged",
    };
    Error::Unfit(format!("{path}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let descriptors = vec![
            Descriptor { kind: Kind::Memfd, name: "ram".into(), size: 1 << 40 },
            Descriptor { kind: Kind::Eventfd, name: String::new(), size: 0 },
        ];
        let place = |connection, socket, from| Place { connection, socket, from };
        vec![
            Record {
                at: Duration::new(1_800_000_000, 123_456_789),
                place: place(1, Socket::Main, Peer::Client),
                is_message: true,
                size: 21,
                bytes: vec![5; 21],
                descriptors,
            },
            Record {
                at: Duration::new(1_800_000_001, 1),
                place: place(7, Socket::Twin, Peer::Server),
                is_message: true,
                size: 300 << 20,
                bytes: vec![6; KEPT],
                descriptors: vec![],
            },
            Record {
                at: Duration::new(1_800_000_001, 2),
                place: place(8, Socket::Main, Peer::Server),
                is_message: false,
                size: 4,
                bytes: b"HTTP".to_vec(),
                descriptors: vec![],
            },
        ]
    }

    fn written() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = Writer::create(file.path()).unwrap();
        records().iter().for_each(|record| writer.record(record).unwrap());
        writer.flush().unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_back() {
        let file = written();
        let mut reader = Reader::open(file.path()).unwrap();
        for expected in records() {
            let got = reader.next().unwrap().unwrap();
            assert_eq!(format!("{got:?}"), format!("{expected:?}"));
        }
        assert!(reader.next().unwrap().is_none());
    }

    /// Wherever a file ends, what is whole is read, and the rest said to be missing.
    #[test]
    fn files_that_are_cut_short_are_an_error() {
        let file = written();
        let all = std::fs::read(file.path()).unwrap();
        for end in (0..400).chain(all.len() - 200..all.len()) {
            std::fs::write(file.path(), &all[..end]).unwrap();
            let mut count = 0;
            let result = Reader::open(file.path()).and_then(|mut reader| {
                while reader.next()?.is_some() {
                    count += 1;
                }
                Ok(())
            });
            // Between two packets there is nothing to see of it.
            assert!(result.is_err() || count < 3, "{end} of {}", all.len());
        }
    }

    #[test]
    fn damaged_files_never_panic() {
        let file = written();
        let all = std::fs::read(file.path()).unwrap();
        for at in 0..400 {
            for bit in [1, 0x80] {
                let mut bytes = all.clone();
                bytes[at] ^= bit;
                std::fs::write(file.path(), &bytes[..500]).unwrap();
                if let Ok(mut reader) = Reader::open(file.path()) {
                    while let Ok(Some(_)) = reader.next() {}
                }
            }
        }
    }
}
