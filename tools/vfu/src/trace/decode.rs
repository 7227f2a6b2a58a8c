//! What a message says.
//!
//! Of every command, and every reply, all that stands in it is told by the
//! names of the specification. A message that is too short for what it claims
//! to be is told as far as it goes, with a word about that.

use bitflags::Flags;
use vfio_user::wire::{
    Bitmap, CapHeader, Command, DeviceFeature, DeviceFlags, DeviceInfo, DeviceState, DmaAccess, DmaMap,
    DmaMapFlags, DmaUnmap, DmaUnmapFlags, Feature, FeatureFlags, Header, HeaderFlags, IoFdEntry, IrqInfo,
    IrqInfoFlags, IrqSet, IrqSetFlags, LoggingControl, LoggingRange, LoggingReport, MessageType, MigData,
    MigrationFlags, RegionAccess, RegionInfo, RegionInfoFlags, RegionIoFds, SparseArea, SparseMmap, Version,
    WriteMultiEntry, WriteMultiHead, take,
};
use zerocopy::FromBytes;

use super::field::{Fields, Value};
use super::registers::Registers;
use crate::client::state_name;
use crate::region::{Irq, Region};

/// Entries of a list that are shown.
const LISTED: usize = 8;

/// A write to a region that wants no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u64,
}

/// What a message says.
#[derive(Debug)]
pub struct Decoded {
    /// Its fields.
    pub fields: Fields,
    /// The writes in it that want no reply.
    pub posted: Vec<Posted>,
}

/// The name of a command; of one that is unknown, its number.
pub fn command_name(number: u16) -> String {
    Command::from_number(number).map_or_else(|| format!("command {number}"), |command| command.to_string())
}

/// Reads a message's payload; `size` bytes of it have been sent.
pub fn decode(header: &Header, payload: &[u8], size: u64, registers: &mut Registers) -> Decoded {
    let mut it = Decoder { fields: Fields::default(), posted: Vec::new(), registers, size };
    let is_command = header.message_type() == Some(MessageType::Command);
    let is_error = !is_command && header.flags().contains(HeaderFlags::ERROR);
    let known = match Command::from_number(header.cmd) {
        // An error has a header only.
        _ if is_error && payload.is_empty() => Some(()),
        Some(command) if is_command => it.command(command, header, payload),
        Some(command) => it.reply(command, payload),
        None => {
            it.rest("payload", payload);
            Some(())
        }
    };
    if known.is_none() {
        it.fields.text("malformed", format!("{size} bytes of payload are too few"));
    }
    Decoded { fields: it.fields, posted: it.posted }
}

/// Names of flags in lower case, unknown ones in hexadecimal.
fn flags<F: Flags>(flags: F) -> Value
where
    F::Bits: Into<u64>,
{
    let unknown = flags.bits().into() & !F::all().bits().into();
    let known = flags.iter_names().map(|(name, _)| name.to_lowercase());
    Value::words(known.chain((unknown != 0).then(|| format!("{unknown:#x}"))))
}

struct Decoder<'a> {
    fields: Fields,
    posted: Vec<Posted>,
    registers: &'a mut Registers,
    size: u64,
}

/// The methods return nothing if the payload is too short.
impl Decoder<'_> {
    fn take<'b, T: FromBytes>(&self, bytes: &'b [u8]) -> Option<(T, &'b [u8])> {
        take(bytes).ok()
    }

    fn command(&mut self, command: Command, header: &Header, payload: &[u8]) -> Option<()> {
        match command {
            Command::Version => self.version(payload),
            Command::DmaMap => {
                let (map, _): (DmaMap, _) = self.take(payload)?;
                self.fields.hex("address", map.addr);
                self.fields.hex("size", map.size);
                self.fields.hex("offset", map.offset);
                self.fields.add("flags", flags(DmaMapFlags::from_bits_retain(map.flags)));
                Some(())
            }
            Command::DmaUnmap => self.unmap(payload),
            Command::DeviceGetInfo => {
                let (argsz, _): (u32, _) = self.take(payload)?;
                self.fields.number("argsz", argsz);
                Some(())
            }
            Command::DeviceGetRegionInfo => {
                let (info, _): (RegionInfo, _) = self.take(payload)?;
                self.fields.text("region", Region(info.index));
                self.fields.number("argsz", info.argsz);
                Some(())
            }
            Command::DeviceGetRegionIoFds => {
                let (request, _): (RegionIoFds, _) = self.take(payload)?;
                self.fields.text("region", Region(request.index));
                self.fields.number("argsz", request.argsz);
                Some(())
            }
            Command::DeviceGetIrqInfo => {
                let (info, _): (IrqInfo, _) = self.take(payload)?;
                self.fields.text("irq", Irq(info.index));
                self.fields.number("argsz", info.argsz);
                Some(())
            }
            Command::DeviceSetIrqs => self.set_irqs(payload),
            Command::RegionRead => self.access(payload).map(|_| ()),
            Command::RegionWrite => {
                let (access, data) = self.access(payload)?;
                self.data(data, access.count.into());
                if header.no_reply() {
                    self.posted.push(Posted { region: access.region, count: access.count.into() });
                }
                Some(())
            }
            Command::RegionWriteMulti => self.write_multi(payload, header.no_reply()),
            Command::DmaRead => self.dma(payload).map(|_| ()),
            Command::DmaWrite => {
                let (access, data) = self.dma(payload)?;
                self.data(data, access.count);
                Some(())
            }
            Command::DeviceReset => Some(()),
            Command::DeviceFeature => self.feature(payload, false),
            Command::MigDataRead => self.mig_data(payload).map(|_| ()),
            Command::MigDataWrite => {
                let (head, data) = self.mig_data(payload)?;
                self.data(data, head.size.into());
                Some(())
            }
        }
    }

    fn reply(&mut self, command: Command, payload: &[u8]) -> Option<()> {
        match command {
            Command::Version => self.version(payload),
            Command::DmaUnmap => self.unmap(payload),
            Command::DeviceGetInfo => {
                let (info, _): (DeviceInfo, _) = self.take(payload)?;
                self.fields.add("flags", flags(DeviceFlags::from_bits_retain(info.flags)));
                self.fields.number("num_regions", info.num_regions);
                self.fields.number("num_irqs", info.num_irqs);
                Some(())
            }
            Command::DeviceGetRegionInfo => self.region_info(payload),
            Command::DeviceGetRegionIoFds => self.io_fds(payload),
            Command::DeviceGetIrqInfo => {
                let (info, _): (IrqInfo, _) = self.take(payload)?;
                self.fields.text("irq", Irq(info.index));
                self.fields.number("count", info.count);
                self.fields.add("flags", flags(IrqInfoFlags::from_bits_retain(info.flags)));
                Some(())
            }
            Command::RegionRead => {
                let (access, data) = self.access(payload)?;
                if Region(access.region) == Region::CONFIG {
                    self.registers.learn(access.offset, data);
                }
                self.data(data, access.count.into());
                Some(())
            }
            Command::RegionWrite => self.access(payload).map(|_| ()),
            Command::RegionWriteMulti => {
                let (head, _): (WriteMultiHead, _) = self.take(payload)?;
                self.fields.number("wr_cnt", head.wr_cnt);
                Some(())
            }
            Command::DmaRead => {
                let (access, data) = self.dma(payload)?;
                self.data(data, access.count);
                Some(())
            }
            Command::DmaWrite => self.dma(payload).map(|_| ()),
            Command::DeviceFeature => self.feature(payload, true),
            Command::MigDataRead => {
                let (head, data) = self.mig_data(payload)?;
                self.data(data, head.size.into());
                Some(())
            }
            // These have a header only; some servers send more.
            Command::DmaMap | Command::DeviceSetIrqs | Command::DeviceReset | Command::MigDataWrite => {
                if !payload.is_empty() {
                    self.rest("payload", payload);
                }
                Some(())
            }
        }
    }

    /// Data of `count` bytes, if the message has as many.
    fn data(&mut self, data: &[u8], count: u64) {
        let count_here = usize::try_from(count).unwrap_or(usize::MAX);
        self.fields.add("data", Value::data(data.get(..count_here).unwrap_or(data), count));
        if self.size < count {
            self.fields.text("malformed", format!("{count} bytes of data are promised"));
        }
    }

    fn rest(&mut self, name: &'static str, bytes: &[u8]) {
        self.fields.add(name, Value::data(bytes, self.size));
    }

    fn version(&mut self, payload: &[u8]) -> Option<()> {
        let (Version { major, minor }, text) = self.take(payload)?;
        self.fields.text("version", format!("{major}.{minor}"));
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        match serde_json::from_slice(text) {
            Ok(serde_json::Value::Object(mut all)) if all.len() == 1 && all.contains_key("capabilities") => {
                let capabilities = all.remove("capabilities").unwrap_or_default();
                self.fields.add("capabilities", Value::Json(capabilities));
            }
            Ok(all) => self.fields.add("json", Value::Json(all)),
            Err(_) if text.is_empty() => {}
            Err(_) => self.fields.text("no_json", String::from_utf8_lossy(text)),
        }
        Some(())
    }

    fn unmap(&mut self, payload: &[u8]) -> Option<()> {
        let (unmap, rest): (DmaUnmap, _) = self.take(payload)?;
        let unmap_flags = DmaUnmapFlags::from_bits_retain(unmap.flags);
        self.fields.hex("address", unmap.addr);
        self.fields.hex("size", unmap.size);
        self.fields.add("flags", flags(unmap_flags));
        if unmap_flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
            let (bitmap, bits): (Bitmap, _) = self.take(rest)?;
            self.fields.hex("pgsize", bitmap.pgsize);
            self.fields.hex("bitmap_size", bitmap.size);
            self.dirty(bits);
        }
        Some(())
    }

    /// How many pages are dirty, if there is a bitmap.
    fn dirty(&mut self, bits: &[u8]) {
        if !bits.is_empty() {
            let ones = bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            self.fields.number("dirty_pages", ones);
        }
    }

    fn region_info(&mut self, payload: &[u8]) -> Option<()> {
        let (info, _): (RegionInfo, _) = self.take(payload)?;
        self.fields.text("region", Region(info.index));
        self.fields.hex("size", info.size);
        self.fields.hex("offset", info.offset);
        self.fields.add("flags", flags(RegionInfoFlags::from_bits_retain(info.flags)));
        self.fields.number("argsz", info.argsz);
        let mut at = usize::try_from(info.cap_offset).ok()?;
        // More than fit would be a list that leads back.
        for _ in 0..payload.len() / size_of::<CapHeader>() {
            let Some(bytes) = payload.get(at..).filter(|_| at > 0) else { break };
            let (head, _): (CapHeader, _) = self.take(bytes)?;
            if head.id == CapHeader::SPARSE_MMAP {
                let (sparse, rest): (SparseMmap, _) = self.take(bytes)?;
                let areas = list(rest, sparse.nr_areas.into(), |area: SparseArea| {
                    format!("{:#x}+{:#x}", area.offset, area.size)
                });
                self.fields.add("areas", areas);
            } else {
                self.fields.number("capability", head.id);
            }
            at = usize::try_from(head.next).ok()?;
        }
        Some(())
    }

    fn io_fds(&mut self, payload: &[u8]) -> Option<()> {
        let (head, rest): (RegionIoFds, _) = self.take(payload)?;
        self.fields.text("region", Region(head.index));
        self.fields.number("count", head.count);
        let entries = list(rest, head.count.into(), |entry: IoFdEntry| {
            let fd = match entry.fd_index {
                IoFdEntry::NO_FD => "no fd".to_string(),
                index => format!("fd {index}"),
            };
            let kind = if entry.kind == 0 { "ioeventfd" } else { "shadow ioeventfd" };
            format!("{:#x}+{:#x} {kind} {fd}", entry.gpa_offset, entry.size)
        });
        self.fields.add("entries", entries);
        Some(())
    }

    fn set_irqs(&mut self, payload: &[u8]) -> Option<()> {
        let (set, rest): (IrqSet, _) = self.take(payload)?;
        self.fields.text("irq", Irq(set.index));
        self.fields.number("start", set.start);
        self.fields.number("count", set.count);
        let set_flags = IrqSetFlags::from_bits_retain(set.flags);
        self.fields.add("flags", flags(set_flags));
        if set_flags.contains(IrqSetFlags::DATA_BOOL) {
            let vectors = rest.iter().zip(u64::from(set.start)..).filter(|(byte, _)| **byte != 0);
            let vectors: Vec<u64> = vectors.map(|(_, vector)| vector).collect();
            self.fields.add("vectors", Value::words(vectors));
        }
        Some(())
    }

    fn access<'b>(&mut self, payload: &'b [u8]) -> Option<(RegionAccess, &'b [u8])> {
        let (access, data): (RegionAccess, _) = self.take(payload)?;
        self.place(access.region, access.offset, access.count);
        Some((access, data))
    }

    fn place(&mut self, region: u32, offset: u64, count: u32) {
        self.fields.text("region", Region(region));
        self.fields.hex("offset", offset);
        self.fields.number("count", count);
        if Region(region) == Region::CONFIG {
            let names = self.registers.names(offset, count.into());
            if !names.is_empty() {
                self.fields.add("registers", Value::Words(names));
            }
        }
    }

    fn write_multi(&mut self, payload: &[u8], is_posted: bool) -> Option<()> {
        let (head, mut rest): (WriteMultiHead, _) = self.take(payload)?;
        self.fields.number("wr_cnt", head.wr_cnt);
        let writes = list(rest, head.wr_cnt, |write: WriteMultiEntry| {
            let count = write.count as usize;
            let data = write.data.get(..count).unwrap_or(&write.data);
            format!("{} {:#x}={}", Region(write.region), write.offset, Value::data(data, count as u64))
        });
        self.fields.add("writes", writes);
        while let Some((write, next)) = self.take::<WriteMultiEntry>(rest).filter(|_| is_posted) {
            self.posted.push(Posted { region: write.region, count: write.count.into() });
            rest = next;
        }
        Some(())
    }

    fn dma<'b>(&mut self, payload: &'b [u8]) -> Option<(DmaAccess, &'b [u8])> {
        let (access, data): (DmaAccess, _) = self.take(payload)?;
        self.fields.hex("address", access.addr);
        self.fields.number("count", access.count);
        Some((access, data))
    }

    fn mig_data<'b>(&mut self, payload: &'b [u8]) -> Option<(MigData, &'b [u8])> {
        let (head, data): (MigData, _) = self.take(payload)?;
        self.fields.number("size", head.size);
        Some((head, data))
    }

    fn feature(&mut self, payload: &[u8], is_reply: bool) -> Option<()> {
        let (head, data): (DeviceFeature, _) = self.take(payload)?;
        let number = head.flags & Feature::MASK;
        let feature = Feature::from_number(number);
        match feature {
            Some(feature) => self.fields.text("feature", feature_name(feature)),
            None => self.fields.number("feature", number),
        }
        let operations = FeatureFlags::from_bits_retain(head.flags & !Feature::MASK);
        self.fields.add("flags", flags(operations));
        self.fields.number("argsz", head.argsz);
        let is_set = operations.contains(FeatureFlags::SET);
        if operations.contains(FeatureFlags::PROBE) {
            return Some(());
        }
        match feature {
            Some(Feature::Migration) if is_reply => {
                let (can, _): (u64, _) = self.take(data)?;
                self.fields.add("migration", flags(MigrationFlags::from_bits_retain(can)));
            }
            Some(Feature::MigDeviceState) if is_set || is_reply => {
                let (state, _): (u32, _) = self.take(data)?;
                match DeviceState::from_number(state) {
                    Some(state) => self.fields.text("device_state", state_name(state)),
                    None => self.fields.number("device_state", state),
                }
            }
            Some(Feature::DmaLoggingStart) => {
                let (control, rest): (LoggingControl, _) = self.take(data)?;
                self.fields.hex("page_size", control.page_size);
                let ranges = list(rest, control.num_ranges.into(), |range: LoggingRange| {
                    format!("{:#x}+{:#x}", range.iova, range.length)
                });
                self.fields.add("ranges", ranges);
            }
            Some(Feature::DmaLoggingReport) => {
                let (report, bits): (LoggingReport, _) = self.take(data)?;
                self.fields.hex("iova", report.iova);
                self.fields.hex("length", report.length);
                self.fields.hex("page_size", report.page_size);
                self.dirty(bits);
            }
            None if !data.is_empty() => self.rest("payload", data),
            _ => {}
        }
        Some(())
    }
}

/// Up to `count` entries in words, the last an ellipsis if there are more.
fn list<T: FromBytes>(mut bytes: &[u8], count: u64, words: impl Fn(T) -> String) -> Value {
    let mut found = Vec::new();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    while found.len() < count
        && let Ok((entry, rest)) = take::<T>(bytes)
    {
        if found.len() == LISTED {
            found.push("…".to_string());
            break;
        }
        found.push(words(entry));
        bytes = rest;
    }
    Value::Words(found)
}

/// The specification's name of a feature.
fn feature_name(feature: Feature) -> &'static str {
    match feature {
        Feature::Migration => "MIGRATION",
        Feature::MigDeviceState => "MIG_DEVICE_STATE",
        Feature::DmaLoggingStart => "DMA_LOGGING_START",
        Feature::DmaLoggingStop => "DMA_LOGGING_STOP",
        Feature::DmaLoggingReport => "DMA_LOGGING_REPORT",
    }
}
