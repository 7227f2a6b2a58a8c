//! `VFIO_USER_DEVICE_FEATURE`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request::{SMALL_ARGSZ, check_argsz};
use super::{Errno, Request, Result, bitmap_size, take};

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

impl Request for DeviceFeature {
    /// Of what is to be set, the data are held to their rules, too; so are those
    /// that say what to report.
    fn check(&self, data: &[u8]) -> Result<()> {
        let feature = self.feature()?;
        let operation = self.operation();
        let whole = size_of::<Self>().saturating_add(data.len());
        match operation {
            _ if operation.contains(FeatureFlags::PROBE) => check_argsz(self.argsz, whole),
            FeatureFlags::GET => match feature {
                Feature::DmaLoggingReport => {
                    let (report, _) = LoggingReport::parse(data)?;
                    let room = report.bitmap_size()?.saturating_add(Self::WITH_REPORT as u64);
                    Errno::EINVAL.unless(u64::from(self.argsz) >= room, SMALL_ARGSZ)
                }
                _ => check_argsz(self.argsz, Self::WITH_VALUE),
            },
            FeatureFlags::SET => {
                check_argsz(self.argsz, whole)?;
                match feature {
                    Feature::MigDeviceState => take::<MigState>(data).map(drop),
                    Feature::DmaLoggingStart => LoggingControl::parse(data).map(drop),
                    _ => Ok(()),
                }
            }
            _ => Err(Errno::EINVAL.because("not one of GET, SET and PROBE")),
        }
    }
}

impl DeviceFeature {
    /// What is said of a feature that is not known, or that has no such operation.
    pub const UNKNOWN: &str = "the device does not have this feature, or it cannot be used like that";
    /// Bytes of a reply with one value of 8 bytes.
    pub const WITH_VALUE: usize = size_of::<DeviceFeature>() + size_of::<u64>();
    /// Bytes of a reply to [`Feature::DmaLoggingReport`] before the bitmap.
    pub const WITH_REPORT: usize = size_of::<DeviceFeature>() + size_of::<LoggingReport>();

    /// The feature, if it is a known one and has the operations asked for.
    ///
    /// # Errors
    /// `EINVAL`: it isn't, or hasn't.
    pub fn feature(&self) -> Result<Feature> {
        let known = Feature::from_number(self.flags & Feature::MASK);
        let operations = FeatureFlags::from_bits(self.flags & !Feature::MASK);
        match (known, operations) {
            (Some(feature), Some(asked)) if (feature.operations() | FeatureFlags::PROBE).contains(asked) => {
                Ok(feature)
            }
            _ => Err(Errno::EINVAL.because(Self::UNKNOWN)),
        }
    }

    /// What is asked for.
    pub fn operation(&self) -> FeatureFlags {
        FeatureFlags::from_bits_retain(self.flags & !Feature::MASK)
    }
}

/// Data of [`Feature::MigDeviceState`]: `struct vfio_device_feature_mig_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MigState {
    /// Number of a [`DeviceState`](super::DeviceState).
    pub device_state: u32,
    /// A descriptor, which vfio-user has no use for.
    pub data_fd: u32,
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

impl Request for LoggingControl {
    fn check(&self, ranges: &[u8]) -> Result<()> {
        let room = ranges.len() / size_of::<LoggingRange>();
        Errno::EINVAL.unless(self.num_ranges as usize <= room, "fewer ranges than num_ranges")?;
        Errno::EINVAL.unless(self.page_size.is_power_of_two(), "page_size is no power of two")?;
        self.ranges(ranges).try_for_each(|range| range.last().map(drop))
    }
}

impl LoggingControl {
    /// The ranges at the front of the `data` that follow it.
    pub fn ranges<'a>(&self, data: &'a [u8]) -> impl Iterator<Item = LoggingRange> + use<'a> {
        let ranges = data.chunks_exact(size_of::<LoggingRange>());
        ranges.take(self.num_ranges as usize).filter_map(|bytes| LoggingRange::read_from_bytes(bytes).ok())
    }
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

impl LoggingRange {
    /// Its last address.
    ///
    /// # Errors
    /// `EINVAL`: it is empty or wraps.
    pub fn last(&self) -> Result<u64> {
        let last = self.length.checked_sub(1).and_then(|more| self.iova.checked_add(more));
        last.ok_or_else(|| Errno::EINVAL.because("a range that is empty, or without an end"))
    }
}

/// Data of [`Feature::DmaLoggingReport`]; in the reply the bitmap follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LoggingReport {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that one bit of the bitmap stands for.
    pub page_size: u64,
}

impl Request for LoggingReport {
    fn check(&self, _data: &[u8]) -> Result<()> {
        self.bitmap_size().map(drop)
    }
}

impl LoggingReport {
    /// Bytes of the bitmap.
    ///
    /// # Errors
    /// See [`bitmap_size`].
    pub fn bitmap_size(&self) -> Result<u64> {
        bitmap_size(self.length, self.page_size)
    }
}
