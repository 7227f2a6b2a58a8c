//! `VFIO_USER_DEVICE_FEATURE`

use crate::dma::bitmap_size;
use crate::memory;
use crate::server::{Context, Device};
use crate::transport::{Connection, Message, Reply};
use crate::wire::{
    DeviceFeature, Errno, Feature, FeatureFlags, LoggingControl, LoggingRange, LoggingReport, MigrationFlags,
    Result, take,
};

/// Bytes of a report's bitmap that are made at once; the others follow as the
/// client reads. A multiple of 8.
const REPORT_PART: usize = 1 << 20;

/// The data of "device state": a state and a descriptor that vfio-user has no
/// use for.
type StateData = [u32; 2];

impl<D: Device> Context<D> {
    /// `VFIO_USER_DEVICE_FEATURE`
    pub(in crate::server) fn device_feature(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let payload = message.payload();
        let (request, data) = take::<DeviceFeature>(payload)?;
        let feature = self.known_feature(&request)?;
        match FeatureFlags::from_bits_retain(request.flags & !Feature::MASK) {
            operation if operation.contains(FeatureFlags::PROBE) => {
                Errno::EINVAL.unless(request.argsz as usize >= payload.len(), "argsz is too small")?;
                self.echo(payload, reply)
            }
            FeatureFlags::GET => self.feature_get(feature, &request, data, reply),
            FeatureFlags::SET => self.feature_set(payload, reply),
            _ => Err(Errno::EINVAL.because("not one of GET, SET and PROBE")),
        }
    }

    /// The feature, if the device has it and it has the operations asked for.
    fn known_feature(&self, request: &DeviceFeature) -> Result<Feature> {
        const UNKNOWN: &str = "the device does not have this feature, or it cannot be used like that";
        let unknown = || Errno::EINVAL.because(UNKNOWN);
        let feature = Feature::from_number(request.flags & Feature::MASK).ok_or_else(unknown)?;
        let operations = FeatureFlags::from_bits(request.flags & !Feature::MASK).ok_or_else(unknown)?;
        let possible = feature.operations() | FeatureFlags::PROBE;
        match self.device.can_migrate() && possible.contains(operations) {
            true => Ok(feature),
            false => Err(unknown()),
        }
    }

    fn echo(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        self.make_room(reply, payload.len())?;
        reply.put_bytes(payload)
    }

    fn feature_get(
        &self,
        feature: Feature,
        request: &DeviceFeature,
        data: &[u8],
        reply: &mut Reply,
    ) -> Result<()> {
        let value = match feature {
            Feature::Migration => (MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY).bits(),
            Feature::MigDeviceState => self.migration.state() as u64,
            Feature::DmaLoggingReport => return self.logging_report(request, data, reply),
            Feature::DmaLoggingStart | Feature::DmaLoggingStop => return Err(Errno::EINVAL),
        };
        let size = size_of::<DeviceFeature>() + size_of::<u64>();
        Errno::EINVAL.unless(request.argsz as usize >= size, "argsz is too small")?;
        self.make_room(reply, size)?;
        reply.put(&DeviceFeature { argsz: size as u32, ..*request })?;
        match feature {
            Feature::MigDeviceState => reply.put::<StateData>(&[value as u32, 0]),
            _ => reply.put(&value),
        }
    }

    /// Checks a request to set something, before the device is asked to
    /// quiesce for it.
    pub(in crate::server) fn check_feature_set(&self, payload: &[u8]) -> Result<()> {
        let (request, data) = take::<DeviceFeature>(payload)?;
        Errno::EINVAL.unless(request.argsz as usize >= payload.len(), "argsz is too small")?;
        match self.known_feature(&request)? {
            Feature::MigDeviceState => take::<StateData>(data).map(drop),
            Feature::DmaLoggingStart => logging_ranges(data).map(drop),
            _ => Ok(()),
        }
    }

    fn feature_set(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        self.check_feature_set(payload)?;
        let (request, data) = take::<DeviceFeature>(payload)?;
        match self.known_feature(&request)? {
            Feature::MigDeviceState => {
                let ([state, _data_fd], _) = take::<StateData>(data)?;
                self.set_device_state(state)?;
                self.echo(payload, reply)
            }
            Feature::DmaLoggingStart => {
                let (control, ranges) = logging_ranges(data)?;
                if !self.dma_is_ready() {
                    return Err(Errno::EINVAL);
                }
                let page_size = self.dma.logging_start(control.page_size, &ranges)?;
                self.make_room(reply, payload.len())?;
                reply.put(&request)?;
                reply.put(&LoggingControl { page_size, ..control })?;
                let rest = data.get(size_of::<LoggingControl>()..).unwrap_or_default();
                reply.put_bytes(rest)
            }
            Feature::DmaLoggingStop => {
                self.dma.logging_stop();
                self.echo(payload, reply)
            }
            Feature::Migration | Feature::DmaLoggingReport => Err(Errno::EINVAL),
        }
    }

    fn logging_report(&self, request: &DeviceFeature, data: &[u8], reply: &mut Reply) -> Result<()> {
        let (report, _) = take::<LoggingReport>(data)?;
        if !self.dma_is_ready() {
            return Err(Errno::EINVAL);
        }
        let bitmap = bitmap_size(report.length, report.page_size)?;
        let fixed = size_of::<DeviceFeature>() + size_of::<LoggingReport>();
        let size = bitmap.saturating_add(fixed as u64);
        Errno::EINVAL.unless(u64::from(request.argsz) >= size, "argsz is too small")?;
        let bitmap = usize::try_from(bitmap).map_err(|_| Errno::EINVAL)?;
        self.dma.check_report(report.iova, report.length, report.page_size)?;
        let first = bitmap.min(REPORT_PART);
        self.make_room(reply, fixed.saturating_add(first))?;
        reply.put(&DeviceFeature { argsz: u32::try_from(size).map_err(|_| Errno::EINVAL)?, ..*request })?;
        reply.put(&report)?;
        reply.announce(bitmap.saturating_sub(first));
        let mut report = report;
        let outcome = self.report_next(&mut report, reply.space(first)?);
        self.report_rest.set(report);
        outcome
    }

    /// Makes the next part of a long report, when what is before it is sent: so one
    /// that is not read does not fill the memory.
    pub(in crate::server) fn report_more(&self, connection: &mut Connection) -> Result<()> {
        let mut report = self.report_rest.get();
        let len = connection.more().min(REPORT_PART);
        connection.push_more(len, |bitmap| self.report_next(&mut report, bitmap))?;
        self.report_rest.set(report);
        Ok(())
    }

    /// Makes a part of a report, and leaves what is behind it.
    fn report_next(&self, report: &mut LoggingReport, bitmap: &mut [u8]) -> Result<()> {
        let covered = (bitmap.len() as u64).saturating_mul(8).saturating_mul(report.page_size);
        let length = covered.min(report.length);
        self.dma.report_part(report.iova, length, report.page_size, bitmap)?;
        report.iova = report.iova.saturating_add(length);
        report.length = report.length.saturating_sub(length);
        Ok(())
    }
}

/// The data of "logging start": what is asked for, and the ranges, all of
/// which must be there.
fn logging_ranges(data: &[u8]) -> Result<(LoggingControl, Vec<LoggingRange>)> {
    let (control, mut rest) = take::<LoggingControl>(data)?;
    let room = rest.len() / size_of::<LoggingRange>();
    let count = control.num_ranges as usize;
    Errno::EINVAL.unless(count <= room, "fewer ranges than num_ranges")?;
    let mut ranges = Vec::new();
    memory::reserve(&mut ranges, count)?;
    for _ in 0..count {
        let (range, behind) = take::<LoggingRange>(rest)?;
        ranges.push(range);
        rest = behind;
    }
    Ok((control, ranges))
}
