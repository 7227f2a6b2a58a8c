//! Files that hold the state of a stopped device.
//!
//! Numbers are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `VFUSTATE` |
//! | 4 | version of this format, 1 |
//! | 4 | size of the header |
//! | | the header, JSON: [`Header`] |
//! | 4 | size of the configuration space |
//! | | the configuration space |
//! | 4 | size of a piece of migration data; 0 behind the last one |
//! | | the piece |
//! | 4 | CRC-32 of everything before it |
//!
//! Nothing may follow.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::identity::Identity;

const MAGIC: &[u8; 8] = b"VFUSTATE";
const FORMAT: u32 = 1;
/// More than any header or configuration space has.
const MAX_HEAD: u32 = 1 << 20;
/// Largest piece of migration data, in bytes.
pub const MAX_PIECE: usize = 1 << 20;

/// What the file says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Header {
    /// The device whose state it is.
    pub device: Identity,
    /// Version of the program that has written the file.
    pub tool_version: String,
}

/// A file in the making. It has its name only once it is [whole](Self::finish).
pub struct Writer {
    file: BufWriter<NamedTempFile>,
    crc: crc32fast::Hasher,
    name: String,
}

impl Writer {
    /// Begins a file that will be at `path`.
    pub fn new(path: &Path, header: &Header, config: &[u8]) -> Result<Writer> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.display().to_string();
        let file = NamedTempFile::new_in(folder).map_err(|e| Error::local(&name, e))?;
        let mut writer = Writer { file: BufWriter::new(file), crc: crc32fast::Hasher::new(), name };
        writer.put(MAGIC)?;
        writer.put(&FORMAT.to_le_bytes())?;
        let header = serde_json::to_vec(header).map_err(|e| Error::local("JSON", e))?;
        writer.block(&header)?;
        writer.block(config)?;
        Ok(writer)
    }

    /// Adds migration data.
    pub fn data(&mut self, data: &[u8]) -> Result<()> {
        data.chunks(MAX_PIECE).try_for_each(|piece| self.block(piece))
    }

    /// Ends the file and puts it to its place, where it replaces what was there.
    pub fn finish(mut self, path: &Path) -> Result<()> {
        self.put(&0u32.to_le_bytes())?;
        let crc = self.crc.clone().finalize();
        self.put(&crc.to_le_bytes())?;
        let name = self.name;
        let file = self.file.into_inner().map_err(|e| Error::local(&name, e.into_error()))?;
        file.as_file().sync_all().map_err(|e| Error::local(&name, e))?;
        file.persist(path).map_err(|e| Error::local(&name, e.error))?;
        Ok(())
    }

    fn block(&mut self, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len());
        let size = size.map_err(|_| Error::local(&self.name, ErrorKind::FileTooLarge))?;
        self.put(&size.to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.file.write_all(bytes).map_err(|e| Error::local(&self.name, e))
    }
}

/// A file that has been found whole and unchanged.
pub struct Reader {
    parts: Parts,
    /// What the file says of itself.
    pub header: Header,
    /// The configuration space.
    pub config: Vec<u8>,
}

impl Reader {
    /// Opens the file at `path` and reads all of it, so that nothing that is
    /// wrong with it is found only later.
    pub fn open(path: &Path) -> Result<Reader> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::local(&name, e))?;
        let mut reader = Reader::start(Parts::new(file, name))?;
        while !reader.data()?.is_empty() {}
        let Parts { file, name, .. } = reader.parts;
        let mut file = file.into_inner();
        file.rewind().map_err(|e| Error::local(&name, e))?;
        Reader::start(Parts::new(file, name))
    }

    /// Reads everything before the migration data.
    fn start(mut parts: Parts) -> Result<Reader> {
        if parts.bytes(MAGIC.len())? != MAGIC {
            return Err(parts.broken("it is no saved device state"));
        }
        let format = parts.number()?;
        if format != FORMAT {
            return Err(parts.broken(&format!("format {format}, where {FORMAT} is known")));
        }
        let header = parts.block(MAX_HEAD)?;
        let header =
            serde_json::from_slice(&header).map_err(|_| parts.broken("its header is none of vfu's"))?;
        let config = parts.block(MAX_HEAD)?;
        Ok(Reader { parts, header, config })
    }

    /// The next piece of migration data; empty behind the last one, when the
    /// checksum has been found right.
    pub fn data(&mut self) -> Result<Vec<u8>> {
        let piece = self.parts.block(MAX_PIECE as u32)?;
        if piece.is_empty() {
            self.parts.end()?;
        }
        Ok(piece)
    }
}

/// The parts of a file one after the other, with the checksum so far.
struct Parts {
    file: BufReader<File>,
    crc: crc32fast::Hasher,
    name: String,
}

impl Parts {
    fn new(file: File, name: String) -> Parts {
        Parts { file: BufReader::new(file), crc: crc32fast::Hasher::new(), name }
    }

    fn broken(&self, what: &str) -> Error {
        Error::Unfit(format!("{}: {what}", self.name))
    }

    fn end(&mut self) -> Result<()> {
        let crc = self.crc.clone().finalize();
        if self.number()? != crc {
            return Err(self.broken("the checksum is wrong"));
        }
        match self.file.read(&mut [0]).map_err(|e| Error::local(&self.name, e))? {
            0 => Ok(()),
            _ => Err(self.broken("something follows its end")),
        }
    }

    fn number(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(bytes.first_chunk().copied().map_or(0, u32::from_le_bytes))
    }

    fn block(&mut self, largest: u32) -> Result<Vec<u8>> {
        let size = self.number()?;
        if size > largest {
            return Err(self.broken(&format!("a part of {size} bytes")));
        }
        self.bytes(size as usize)
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => {
                self.crc.update(&bytes);
                Ok(bytes)
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(self.broken("it is cut short")),
            Err(e) => Err(Error::local(&self.name, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let device = Identity {
            vendor_id: 0x1234,
            device_id: 1,
            subsystem_vendor_id: 2,
            subsystem_id: 3,
            class: [8, 1, 0],
            region_sizes: vec![4096, 0],
        };
        Header { device, tool_version: "0".into() }
    }

    fn write(path: &Path, config: &[u8], data: &[Vec<u8>]) {
        let mut writer = Writer::new(path, &header(), config).unwrap();
        data.iter().for_each(|d| writer.data(d).unwrap());
        writer.finish(path).unwrap();
    }

    fn read(path: &Path) -> Result<(Header, Vec<u8>, Vec<u8>)> {
        let mut reader = Reader::open(path)?;
        let mut all = vec![];
        loop {
            match reader.data()? {
                piece if piece.is_empty() => return Ok((reader.header, reader.config, all)),
                piece => all.extend(piece),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn what_was_written_is_read(
            config in proptest::collection::vec(any::<u8>(), 0..300),
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            write(&path, &config, &data);
            prop_assert_eq!(read(&path).unwrap(), (header(), config, data.concat()));
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    /// Every cut and every changed bit is noticed by opening alone.
    #[test]
    fn damage_is_noticed_before_anything_is_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, b"config", &[b"migration".to_vec(), b"data".to_vec()]);
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            matches!(Reader::open(&path), Err(Error::Unfit(_)))
        };
        for len in 0..whole.len() {
            assert!(refused(&whole[..len]), "{len} bytes");
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[len] ^= 1 << bit;
                assert!(refused(&changed), "bit {bit} of byte {len}");
            }
        }
        assert!(refused(&[&whole[..], b"x"].concat()));
        assert!(!refused(&whole));
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut writer = Writer::new(&path, &header(), b"").unwrap();
        writer.data(&vec![7; 3 * MAX_PIECE]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn data_larger_than_a_piece_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let data = vec![9; 2 * MAX_PIECE + 1];
        write(&path, b"", std::slice::from_ref(&data));
        assert_eq!(read(&path).unwrap().2, data);
    }
}
