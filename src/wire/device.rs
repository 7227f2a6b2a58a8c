//! `VFIO_USER_DEVICE_GET_INFO`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request::check_argsz;
use super::{Request, Result};

bitflags! {
    /// Flags of [`DeviceInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// The device can be reset by `VFIO_USER_DEVICE_RESET`.
        const RESET = 1;
        /// The device is a PCI device.
        const PCI = 2;
    }
}

/// Request and reply of `VFIO_USER_DEVICE_GET_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Room for the reply, in the reply its size, in bytes.
    pub argsz: u32,
    /// [`DeviceFlags`].
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of interrupt types.
    pub num_irqs: u32,
}

impl Request for DeviceInfo {
    fn check(&self, _data: &[u8]) -> Result<()> {
        check_argsz(self.argsz, size_of::<Self>())
    }
}
