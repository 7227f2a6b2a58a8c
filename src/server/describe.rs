//! What a request asks for, in words for the log.

use std::fmt;

use crate::wire::{
    Command, DeviceFeature, DmaMap, DmaUnmap, Header, IrqInfo, IrqSet, MigData, RegionAccess, RegionInfo,
    RegionIoFds, take,
};

/// A request: the command, and what of the payload tells which region, range or
/// vectors it is about.
pub struct Described<'a> {
    pub header: &'a Header,
    /// Empty where there is none (yet).
    pub payload: &'a [u8],
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Header { cmd, msg_size, .. } = *self.header;
        let Some(command) = Command::from_number(cmd) else {
            return write!(f, "command {cmd} of {msg_size} bytes");
        };
        write!(f, "{command}")?;
        match self.details(f, command) {
            Some(written) => written,
            None => write!(f, " of {msg_size} bytes"),
        }
    }
}

impl Described<'_> {
    fn details(&self, f: &mut fmt::Formatter<'_>, command: Command) -> Option<fmt::Result> {
        let payload = self.payload;
        Some(match command {
            Command::RegionRead | Command::RegionWrite => {
                let (RegionAccess { offset, region, count }, _) = take(payload).ok()?;
                write!(f, " of region {region}, {count:#x} bytes at {offset:#x}")
            }
            Command::DmaMap => {
                let (DmaMap { flags, offset, addr, size, .. }, _) = take(payload).ok()?;
                write!(f, " of {size:#x} bytes at {addr:#x}, offset {offset:#x}, flags {flags:#x}")
            }
            Command::DmaUnmap => {
                let (DmaUnmap { flags, addr, size, .. }, _) = take(payload).ok()?;
                write!(f, " of {size:#x} bytes at {addr:#x}, flags {flags:#x}")
            }
            Command::DeviceGetRegionInfo => {
                let (RegionInfo { argsz, index, .. }, _) = take(payload).ok()?;
                write!(f, " of region {index}, argsz {argsz}")
            }
            Command::DeviceGetRegionIoFds => {
                let (RegionIoFds { argsz, index, .. }, _) = take(payload).ok()?;
                write!(f, " of region {index}, argsz {argsz}")
            }
            Command::DeviceGetIrqInfo => {
                let (IrqInfo { argsz, index, .. }, _) = take(payload).ok()?;
                write!(f, " of type {index}, argsz {argsz}")
            }
            Command::DeviceSetIrqs => {
                let (IrqSet { argsz, flags, index, start, count }, _) = take(payload).ok()?;
                write!(f, " of type {index}, {count} vectors from {start}, flags {flags:#x}, argsz {argsz}")
            }
            Command::DeviceFeature => {
                let (DeviceFeature { argsz, flags }, _) = take(payload).ok()?;
                write!(f, " {}, flags {flags:#x}, argsz {argsz}", flags & 0xffff)
            }
            Command::MigDataRead | Command::MigDataWrite => {
                let (MigData { argsz, size }, _) = take(payload).ok()?;
                write!(f, " of {size:#x} bytes, argsz {argsz}")
            }
            _ => return None,
        })
    }
}
