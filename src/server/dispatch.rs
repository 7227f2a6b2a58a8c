//! From a command to what executes it.

use super::Context;
use crate::transport::{Message, Reply};
use crate::wire::{Command, Errno, Result};

impl Context {
    /// Executes a request. Descriptors that it came with may be taken from the
    /// message; the others are closed by the caller.
    pub(super) fn dispatch(&self, command: Option<Command>, message: &mut Message) -> Result<Reply> {
        match command.ok_or(Errno::EINVAL)? {
            Command::RegionRead => self.region_read(message),
            Command::RegionWrite => self.region_write(message),
            Command::RegionWriteMulti => self.region_write_multi(message),
            Command::DmaMap => self.dma_map(message),
            Command::DmaUnmap => self.dma_unmap(message),
            Command::DeviceGetInfo => self.device_get_info(message),
            Command::DeviceGetRegionInfo => self.device_get_region_info(message),
            Command::DeviceGetRegionIoFds => self.device_get_region_io_fds(message),
            Command::DeviceGetIrqInfo => self.device_get_irq_info(message),
            Command::DeviceSetIrqs => self.device_set_irqs(message),
            Command::DeviceReset => self.device_reset(),
            Command::DeviceFeature => self.device_feature(message),
            Command::MigDataRead => self.mig_data_read(message),
            Command::MigDataWrite => self.mig_data_write(message),
            // Negotiation is over; the last two are the server's to send.
            Command::Version | Command::DmaRead | Command::DmaWrite => Err(Errno::EINVAL),
        }
    }

    /// A reply with room for `capacity` bytes of payload.
    pub(super) fn new_reply(&self, capacity: usize) -> Result<Reply> {
        if Reply::is_small(capacity) {
            return Ok(Reply::empty());
        }
        match self.with_connection(|connection| connection.new_reply(capacity)) {
            Some(reply) => reply,
            None => Err(Errno::ENOTCONN),
        }
    }
}
