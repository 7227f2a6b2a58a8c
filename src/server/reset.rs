//! Resetting the device.

use super::Context;
use super::callbacks::ResetType;
use super::log::log;
use crate::wire::Result;

impl Context {
    /// Resets the device. A reset that the client asked for is also the way
    /// out of every migration state, to RUNNING; a function level reset leaves
    /// that alone.
    pub(super) fn reset_device(&self, kind: ResetType) -> Result<()> {
        self.call_reset(kind)?;
        if kind == ResetType::Device {
            self.migration.reset();
        }
        Ok(())
    }

    /// `VFIO_USER_DEVICE_RESET`. A payload is not looked at.
    pub(super) fn device_reset(&self) -> Result<()> {
        log!(self, LOG_INFO, "device reset by the client");
        self.reset_device(ResetType::Device)
    }
}
