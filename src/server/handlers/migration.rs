//! Changing the migration state, and moving migration data.

use crate::server::log::log;
use crate::server::{Context, Device};
use crate::transport::{Message, Reply};
use crate::wire::{Errno, MigData, Request, Result};

impl<D: Device> Context<D> {
    /// Goes to another state, calling the device for each step.
    pub(super) fn set_device_state(&self, state: u32) -> Result<()> {
        self.check_migratable()?;
        let step = |next| {
            log!(self, LOG_DEBUG, "migration state {:?} to {next:?}", self.migration.state());
            self.device.transition(self, next)
        };
        self.migration.request(state, step, |from, to| self.probe_state_changed(from, to))
    }

    fn check_migratable(&self) -> Result<()> {
        Errno::EINVAL.unless(self.device.can_migrate(), "the device cannot migrate")
    }

    /// How many bytes a transfer of migration data asks for, if that is not too much.
    fn check_data(&self, message: &Message) -> Result<usize> {
        let (request, _) = MigData::parse(message.payload())?;
        let size = request.size as usize;
        Errno::EINVAL.unless(size <= self.client.get().max_data_xfer_size, "more than max_data_xfer_size")?;
        Ok(size)
    }

    /// `VFIO_USER_MIG_DATA_READ`: the device writes straight into the reply.
    pub(in crate::server) fn mig_data_read(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let size = self.check_data(message)?;
        self.check_migratable()?;
        let fixed = size_of::<MigData>();
        self.make_room(reply, fixed.saturating_add(size))?;
        reply.put(&MigData { argsz: 0, size: 0 })?;
        let buffer = reply.space(size)?;
        let count = self.migration.read(size, |_| self.device.migration_read(self, buffer))?;
        let whole = fixed.saturating_add(count);
        reply.truncate(whole);
        let head = MigData {
            argsz: u32::try_from(whole).map_err(|_| Errno::EINVAL)?,
            size: u32::try_from(count).map_err(|_| Errno::EINVAL)?,
        };
        let room = reply.payload_mut().get_mut(..fixed).ok_or(Errno::EINVAL)?;
        room.copy_from_slice(zerocopy::IntoBytes::as_bytes(&head));
        Ok(())
    }

    /// `VFIO_USER_MIG_DATA_WRITE`: the device reads straight from the request.
    pub(in crate::server) fn mig_data_write(&self, message: &mut Message) -> Result<()> {
        let size = self.check_data(message)?;
        self.check_migratable()?;
        let fixed = size_of::<MigData>();
        let data = message.payload_mut().get_mut(fixed..fixed.saturating_add(size));
        let data = data.ok_or_else(|| Errno::EINVAL.because("fewer bytes than size says"))?;
        self.migration.write(size, || self.device.migration_write(self, data))
    }
}
