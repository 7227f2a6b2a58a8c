//! `vfu read` and `vfu write`

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use pretty_hex::{HexConfig, config_hex};
use serde::Serialize;

use crate::args::{self, At};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::number;
use crate::output::{self, Format};

/// Largest access that a device sees as a register access, in bytes.
const LARGEST_REGISTER: usize = 8;

#[derive(Serialize)]
struct ReadResult {
    region: String,
    offset: u64,
    count: usize,
    /// The bytes in hexadecimal, in the order of their addresses.
    data: String,
    /// The number read, if it was one access.
    value: Option<u64>,
}

#[derive(Serialize)]
struct WriteResult {
    region: String,
    offset: u64,
    count: usize,
}

/// Reads and prints.
pub fn read(client: &mut Client, args: &args::Read, format: Format) -> Result<()> {
    let at = &args.at;
    let count = args.count.unwrap_or(at.width);
    client.expect_region(at.region)?;
    let mut bytes = Vec::new();
    let mut largest = 0;
    for size in accesses(client, at, count)? {
        let offset = at.offset.saturating_add(bytes.len() as u64);
        bytes.extend(client.region_read(at.region, offset, size)?);
        largest = size.max(largest);
    }
    if args.raw {
        return output::bytes(&bytes);
    }
    if format.is_json() {
        let data = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let region = at.region.to_string();
        let value = (largest == bytes.len()).then(|| one_number(&bytes)).flatten();
        return format.json(&ReadResult { region, offset: at.offset, count, data, value });
    }
    show(&bytes, at.offset, largest)
}

/// Prints `bytes`, which are at `offset` and were read by `width` bytes: as a
/// number if that is all, else as a dump.
pub fn show(bytes: &[u8], offset: u64, width: usize) -> Result<()> {
    match one_number(bytes).filter(|_| width == bytes.len()) {
        Some(value) => output::line(format!("{value:#0width$x}", width = 2 + 2 * bytes.len())),
        None => output::line(dump(bytes, offset)),
    }
}

fn one_number(bytes: &[u8]) -> Option<u64> {
    (1..=LARGEST_REGISTER).contains(&bytes.len()).then(|| number_of(bytes))
}

/// Writes `bytes`.
pub fn write(client: &mut Client, at: &At, bytes: &[u8], format: Format) -> Result<()> {
    client.expect_region(at.region)?;
    let mut rest = bytes;
    let mut offset = at.offset;
    for size in accesses(client, at, bytes.len())? {
        let Some((part, after)) = rest.split_at_checked(size) else { break };
        client.region_write(at.region, offset, part)?;
        offset = offset.saturating_add(size as u64);
        rest = after;
    }
    let written = WriteResult { region: at.region.to_string(), offset: at.offset, count: bytes.len() };
    format.result(&written, None::<&str>)
}

/// What the command line says to write.
pub fn bytes_to_write(args: &args::Write) -> Result<Vec<u8>> {
    if let Some(path) = &args.file {
        return file(path);
    }
    match args.values.as_slice() {
        [dash] if dash == "-" => file(Path::new("-")),
        values => {
            let parts = values.iter().map(|value| encode(value, args.at.width));
            Ok(parts.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}

/// A number of `width` bytes as a device sees it.
pub fn encode(text: &str, width: usize) -> Result<Vec<u8>> {
    let number: u64 = number::number(text).map_err(|e| Error::Usage(format!("{text}: {e}")))?;
    let bytes = number.to_le_bytes();
    match bytes.split_at_checked(width) {
        Some((low, high)) if high.iter().all(|byte| *byte == 0) => Ok(low.to_vec()),
        _ => Err(Error::Usage(format!("{text} does not fit {width} bytes"))),
    }
}

fn file(path: &Path) -> Result<Vec<u8>> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        }
        false => fs::read(path),
    };
    bytes.map_err(|e| Error::local(path.display(), e))
}

/// Sizes of the accesses that `count` bytes take: `--width` each, what is left
/// in ever smaller ones; or with `--block` what the server takes at a time.
fn accesses(client: &Client, at: &At, count: usize) -> Result<impl Iterator<Item = usize> + use<>> {
    if at.offset.checked_add(count as u64).is_none() {
        return Err(Error::Usage(format!("{count} bytes at {:#x} go beyond 64 bits", at.offset)));
    }
    let portion = if at.block { client.max_data_xfer_size() } else { at.width };
    Ok(portions(count, portion, at.block))
}

/// Cuts `count` bytes into portions; the last are powers of two, unless it may
/// be of `any_size`.
fn portions(count: usize, portion: usize, any_size: bool) -> impl Iterator<Item = usize> {
    let mut left = count;
    std::iter::from_fn(move || {
        let size = match left.min(portion) {
            size if any_size || size == portion => size,
            size => size.checked_ilog2().map_or(0, |n| 1 << n),
        };
        left = left.saturating_sub(size);
        (size > 0).then_some(size)
    })
}

/// The number that up to eight bytes are to a device.
pub fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn dump(bytes: &[u8], offset: u64) -> String {
    let display_offset = usize::try_from(offset).unwrap_or(0);
    config_hex(&bytes, HexConfig { title: false, display_offset, ..HexConfig::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_add_up() {
        for portion in [1, 2, 4, 8] {
            for count in 0..64 {
                let sizes: Vec<usize> = portions(count, portion, false).collect();
                assert_eq!(sizes.iter().sum::<usize>(), count);
                assert!(sizes.iter().all(|s| s.is_power_of_two() && *s <= portion), "{sizes:?}");
                assert!(sizes.len() <= count / portion + 3, "{sizes:?}");
                let blocks: Vec<usize> = portions(count, portion, true).collect();
                assert_eq!((blocks.iter().sum(), blocks.len()), (count, count.div_ceil(portion)));
            }
        }
    }

    #[test]
    fn numbers_are_little_endian_and_must_fit() {
        assert_eq!(encode("0x1234", 4).unwrap(), [0x34, 0x12, 0, 0]);
        assert_eq!(encode("255", 1).unwrap(), [255]);
        assert_eq!(encode("0xffffffffffffffff", 8).unwrap(), [255; 8]);
        assert!(matches!(encode("256", 1), Err(Error::Usage(_))));
        assert!(matches!(encode("-1", 1), Err(Error::Usage(_))));
        assert!(matches!(encode("beef", 2), Err(Error::Usage(_))));
        assert_eq!(number_of(&[0x34, 0x12, 0, 0]), 0x1234);
    }
}
