//! Numbers of the commands.

use super::{Header, IrqSet, MessageType};

/// A command of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)] // the names are those of the specification
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetRegionIoFds = 6,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
    RegionWriteMulti = 15,
    DeviceFeature = 16,
    MigDataRead = 17,
    MigDataWrite = 18,
}

impl std::fmt::Display for Command {
    /// By the specification's name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Version => "VERSION",
            Command::DmaMap => "DMA_MAP",
            Command::DmaUnmap => "DMA_UNMAP",
            Command::DeviceGetInfo => "DEVICE_GET_INFO",
            Command::DeviceGetRegionInfo => "DEVICE_GET_REGION_INFO",
            Command::DeviceGetRegionIoFds => "DEVICE_GET_REGION_IO_FDS",
            Command::DeviceGetIrqInfo => "DEVICE_GET_IRQ_INFO",
            Command::DeviceSetIrqs => "DEVICE_SET_IRQS",
            Command::RegionRead => "REGION_READ",
            Command::RegionWrite => "REGION_WRITE",
            Command::DmaRead => "DMA_READ",
            Command::DmaWrite => "DMA_WRITE",
            Command::DeviceReset => "DEVICE_RESET",
            Command::RegionWriteMulti => "REGION_WRITE_MULTI",
            Command::DeviceFeature => "DEVICE_FEATURE",
            Command::MigDataRead => "MIG_DATA_READ",
            Command::MigDataWrite => "MIG_DATA_WRITE",
        })
    }
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 17] = [
        Command::Version,
        Command::DmaMap,
        Command::DmaUnmap,
        Command::DeviceGetInfo,
        Command::DeviceGetRegionInfo,
        Command::DeviceGetRegionIoFds,
        Command::DeviceGetIrqInfo,
        Command::DeviceSetIrqs,
        Command::RegionRead,
        Command::RegionWrite,
        Command::DmaRead,
        Command::DmaWrite,
        Command::DeviceReset,
        Command::RegionWriteMulti,
        Command::DeviceFeature,
        Command::MigDataRead,
        Command::MigDataWrite,
    ];

    /// The command with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Command> {
        // As a table: every request comes by here.
        const BY_NUMBER: [Option<Command>; 19] = {
            let mut table = [None; 19];
            let mut next = 0;
            while next < Command::ALL.len() {
                table[Command::ALL[next] as usize] = Some(Command::ALL[next]);
                next += 1;
            }
            table
        };
        BY_NUMBER.get(usize::from(number)).copied().flatten()
    }
}

/// Whether a message may come with descriptors; `start` is what there is of its
/// payload. None: too little of it is there to tell.
pub fn may_carry_fds(header: &Header, start: &[u8]) -> Option<bool> {
    match Command::from_number(header.cmd) {
        _ if header.message_type() != Some(MessageType::Command) => Some(false),
        Some(Command::DmaMap) => Some(true),
        Some(Command::DeviceSetIrqs) => IrqSet::may_carry_fds(start),
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_messages_may_carry_descriptors() {
        let eventfd = [20, 4];
        let start = zerocopy::IntoBytes::as_bytes(&eventfd);
        for cmd in 0..=u16::MAX {
            let header = Header::command(1, cmd, 36);
            let expected = cmd == 2 || cmd == 8;
            assert_eq!(may_carry_fds(&header, start), Some(expected), "{cmd}");
            assert_eq!(may_carry_fds(&header.reply(36), start), Some(false), "{cmd}");
        }
        assert_eq!(may_carry_fds(&Header::command(1, 2, 48), &[]), Some(true));
        assert_eq!(may_carry_fds(&Header::command(1, 8, 36), &[]), None);
    }
}
