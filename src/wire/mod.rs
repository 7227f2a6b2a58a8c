//! The protocol as data: headers, payloads, flags and the capability JSON.
//!
//! Nothing here does I/O or knows what a message leads to. Every payload is a
//! `repr(C)` struct that is read from and written to bytes by `zerocopy`, in
//! host byte order, from any position in a buffer. Names are those of the
//! vfio-user specification and of `linux/vfio.h`. The rules that a structure has by
//! itself stand beside it, as its [`Request::check`].

pub mod capabilities;
mod command;
mod device;
mod dma;
mod errno;
mod feature;
mod header;
mod irq;
pub mod limits;
mod migration;
mod region;
mod request;
#[cfg(test)]
mod tests;

pub use command::{Command, may_carry_fds};
pub use device::{DeviceFlags, DeviceInfo};
pub use dma::{Bitmap, DmaAccess, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags, bitmap_size};
pub use errno::{Errno, Result};
pub use feature::{
    DeviceFeature, Feature, FeatureFlags, LoggingControl, LoggingRange, LoggingReport, MigState,
    MigrationFlags,
};
pub use header::{Header, HeaderFlags, MessageType};
pub use irq::{IrqAction, IrqData, IrqInfo, IrqInfoFlags, IrqSet, IrqSetFlags};
pub use migration::{DeviceState, MigData};
pub use region::{
    CapHeader, IoFdEntry, IoFdType, RegionAccess, RegionInfo, RegionInfoFlags, RegionIoFds, ShortAccess,
    SparseArea, SparseMmap, WriteMultiEntry, WriteMultiHead,
};
pub use request::Request;

use zerocopy::FromBytes;

/// Version of the protocol this library speaks.
pub const VERSION_MAJOR: u16 = 0;
/// Newest minor version this library speaks.
pub const VERSION_MINOR: u16 = 2;

/// Fixed part of the payload of a version message; the capability JSON and a
/// NUL follow.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
)]
#[repr(C)]
pub struct Version {
    /// Major version; 0.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl Request for Version {
    /// The capabilities behind it are for
    /// [`parse`](capabilities::ClientCapabilities::parse).
    fn check(&self, _capabilities: &[u8]) -> Result<()> {
        Errno::EINVAL.unless(self.major == VERSION_MAJOR, "another major version than 0")
    }
}

/// Takes a structure from the front of `bytes`: the structure and what follows
/// it, or `EINVAL` if `bytes` is too short to hold one.
pub fn take<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8])> {
    T::read_from_prefix(bytes).map_err(|_| Errno::EINVAL.because("the payload is too short"))
}
