//! Resetting the device.

use super::log::log;
use super::{Context, Device, ResetType};
use crate::wire::Result;

impl<D: Device> Context<D> {
    /// Resets the device. A reset that the client asked for is also the way
    /// out of every migration state but PRE_COPY, to RUNNING; a function level
    /// reset leaves that alone.
    pub(super) fn reset_device(&self, kind: ResetType) -> Result<()> {
        self.device.reset(self, kind)?;
        self.irqs.clear_all_pending();
        self.update_irqs();
        if kind == ResetType::Device {
            self.migration.reset(|from, to| self.probe_state_changed(from, to));
        }
        Ok(())
    }

    /// `VFIO_USER_DEVICE_RESET`. A payload is not looked at.
    pub(super) fn device_reset(&self) -> Result<()> {
        log!(self, LOG_INFO, "device reset by the client");
        self.reset_device(ResetType::Device)
    }
}
