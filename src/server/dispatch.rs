//! From a command to what executes it.

use super::{Context, Device};
use crate::transport::{Message, Reply};
use crate::wire::{Command, Errno, Result};

const NO_COMMAND: &str = "not a command that a client sends here";

impl<D: Device> Context<D> {
    /// Executes a command; what it has to say goes into the reply, which is empty.
    /// Descriptors that it came with may be taken from the message; the others are
    /// closed by the caller.
    #[inline(always)]
    pub(super) fn dispatch(
        &self,
        command: Option<Command>,
        message: &mut Message,
        reply: &mut Reply,
    ) -> Result<()> {
        match command {
            Some(Command::RegionRead) => self.region_read(message, reply),
            Some(Command::RegionWrite) => self.region_write(message, reply),
            Some(other) => self.dispatch_seldom(other, message, reply),
            None => Err(Errno::EINVAL.because(NO_COMMAND)),
        }
    }

    /// By themselves, so that the frequent ones are found without a jump table.
    #[inline(never)]
    fn dispatch_seldom(&self, command: Command, message: &mut Message, reply: &mut Reply) -> Result<()> {
        match command {
            Command::RegionWriteMulti => self.region_write_multi(message, reply),
            Command::DmaMap => self.dma_map(message),
            Command::DmaUnmap => self.dma_unmap(message, reply),
            Command::DeviceGetInfo => self.device_get_info(message, reply),
            Command::DeviceGetRegionInfo => self.device_get_region_info(message, reply),
            Command::DeviceGetRegionIoFds => self.device_get_region_io_fds(message, reply),
            Command::DeviceGetIrqInfo => self.device_get_irq_info(message, reply),
            Command::DeviceSetIrqs => self.device_set_irqs(message),
            Command::DeviceReset => self.device_reset(),
            Command::DeviceFeature => self.device_feature(message, reply),
            Command::MigDataRead => self.mig_data_read(message, reply),
            Command::MigDataWrite => self.mig_data_write(message),
            // Negotiation is over; the next two are the server's to send; the last two are above.
            Command::Version
            | Command::DmaRead
            | Command::DmaWrite
            | Command::RegionRead
            | Command::RegionWrite => Err(Errno::EINVAL.because(NO_COMMAND)),
        }
    }

    /// Gives an empty reply room for `capacity` bytes of payload.
    #[inline(always)]
    pub(super) fn make_room(&self, reply: &mut Reply, capacity: usize) -> Result<()> {
        if Reply::is_small(capacity) {
            return Ok(());
        }
        let made = self.with_connection(|connection| connection.make_room(reply, capacity));
        made.unwrap_or(Err(Errno::ENOTCONN))
    }
}
