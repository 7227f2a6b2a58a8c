//! `VFIO_USER_DEVICE_FEATURE`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Bits of [`DeviceFeature::flags`] above the feature's number.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureFlags: u32 {
        /// `VFIO_DEVICE_FEATURE_GET`
        const GET = 1 << 16;
        /// `VFIO_DEVICE_FEATURE_SET`
        const SET = 1 << 17;
        /// `VFIO_DEVICE_FEATURE_PROBE`
        const PROBE = 1 << 18;
    }

    /// What `VFIO_DEVICE_FEATURE_MIGRATION` says a device can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MigrationFlags: u64 {
        /// `VFIO_MIGRATION_STOP_COPY`
        const STOP_COPY = 1;
        /// `VFIO_MIGRATION_P2P`
        const P2P = 2;
        /// `VFIO_MIGRATION_PRE_COPY`
        const PRE_COPY = 4;
    }
}

/// A device feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Feature {
    /// `VFIO_DEVICE_FEATURE_MIGRATION`: [`MigrationFlags`].
    Migration = 1,
    /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`
    MigDeviceState = 2,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`
    DmaLoggingStart = 6,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`
    DmaLoggingStop = 7,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`
    DmaLoggingReport = 8,
}

impl Feature {
    /// `VFIO_DEVICE_FEATURE_MASK`: the bits of the flags that hold the number.
    pub const MASK: u32 = 0xffff;

    /// The feature with this number, if it is a known one.
    pub fn from_number(number: u32) -> Option<Feature> {
        match number {
            1 => Some(Feature::Migration),
            2 => Some(Feature::MigDeviceState),
            6 => Some(Feature::DmaLoggingStart),
            7 => Some(Feature::DmaLoggingStop),
            8 => Some(Feature::DmaLoggingReport),
            _ => None,
        }
    }

    /// The operations it has besides probing.
    pub fn operations(self) -> FeatureFlags {
        match self {
            Feature::Migration | Feature::DmaLoggingReport => FeatureFlags::GET,
            Feature::MigDeviceState => FeatureFlags::GET | FeatureFlags::SET,
            Feature::DmaLoggingStart | Feature::DmaLoggingStop => FeatureFlags::SET,
        }
    }
}

/// `struct vfio_device_feature` without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceFeature {
    /// Room for the reply's payload; in the reply its size, in bytes.
    pub argsz: u32,
    /// The feature's number and [`FeatureFlags`].
    pub flags: u32,
}

/// Data of [`Feature::DmaLoggingStart`]; the ranges follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LoggingControl {
    /// Granularity wanted; in the reply, granularity used, in bytes.
    pub page_size: u64,
    /// Number of ranges; none means everything.
    pub num_ranges: u32,
    /// Zero.
    pub reserved: u32,
}

/// A range of addresses to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LoggingRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// Data of [`Feature::DmaLoggingReport`]; in the reply the bitmap follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LoggingReport {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that one bit of the bitmap stands for.
    pub page_size: u64,
}
