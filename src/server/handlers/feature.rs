//! `VFIO_USER_DEVICE_FEATURE`

use zerocopy::{FromBytes, IntoBytes};

use crate::memory::Words;
use crate::server::context::ReportRest;
use crate::server::{Context, Device};
use crate::transport::{Connection, Message, Reply};
use crate::wire::{
    DeviceFeature, Errno, Feature, FeatureFlags, LoggingControl, LoggingRange, LoggingReport, MigState,
    MigrationFlags, Request, Result, take,
};

/// Bytes of a report's bitmap that are made at once; the others follow as the
/// client reads. A multiple of 8.
const REPORT_PART: usize = 1 << 20;

const NO_DMA: &str = "the device does no DMA";

impl<D: Device> Context<D> {
    /// `VFIO_USER_DEVICE_FEATURE`
    pub(in crate::server) fn device_feature(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let payload = message.payload();
        let (request, data) = self.check_feature(payload)?;
        match request.operation() {
            FeatureFlags::GET => self.feature_get(&request, data, reply),
            FeatureFlags::SET => self.feature_set(payload, reply),
            // What else there is asks whether it could be done.
            _ => self.echo(payload, reply),
        }
    }

    /// Checks a request, as is done before the device is asked to quiesce for it.
    pub(in crate::server) fn check_feature<'a>(
        &self,
        payload: &'a [u8],
    ) -> Result<(DeviceFeature, &'a [u8])> {
        // All of the features are about migration.
        let checked = DeviceFeature::parse(payload)?;
        Errno::EINVAL.unless(self.device.can_migrate(), DeviceFeature::UNKNOWN)?;
        Ok(checked)
    }

    fn echo(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        self.make_room(reply, payload.len())?;
        reply.put_bytes(payload)
    }

    fn feature_get(&self, request: &DeviceFeature, data: &[u8], reply: &mut Reply) -> Result<()> {
        let feature = request.feature()?;
        let value = match feature {
            Feature::Migration => (MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY).bits(),
            Feature::MigDeviceState => self.migration.state() as u64,
            Feature::DmaLoggingReport => return self.logging_report(request, data, reply),
            Feature::DmaLoggingStart | Feature::DmaLoggingStop => return Err(Errno::EINVAL),
        };
        let size = DeviceFeature::WITH_VALUE;
        self.make_room(reply, size)?;
        reply.put(&DeviceFeature { argsz: size as u32, ..*request })?;
        match feature {
            Feature::MigDeviceState => reply.put(&MigState { device_state: value as u32, data_fd: 0 }),
            _ => reply.put(&value),
        }
    }

    fn feature_set(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        let (request, data) = take::<DeviceFeature>(payload)?;
        match request.feature()? {
            Feature::MigDeviceState => {
                let (MigState { device_state, .. }, _) = take(data)?;
                self.set_device_state(device_state)?;
                self.echo(payload, reply)
            }
            Feature::DmaLoggingStart => {
                let (control, rest) = take::<LoggingControl>(data)?;
                Errno::EINVAL.unless(self.dma_is_ready(), NO_DMA)?;
                let bytes = (control.num_ranges as usize).saturating_mul(size_of::<LoggingRange>());
                let bytes = rest.get(..bytes).ok_or(Errno::EINVAL)?;
                let mut words = Words::zeroed(bytes.len() / size_of::<u64>())?;
                words.as_mut_bytes().copy_from_slice(bytes);
                let ranges = <[LoggingRange]>::ref_from_bytes(words.as_bytes()).map_err(|_| Errno::EINVAL)?;
                let page_size = self.dma.logging_start(control.page_size, ranges)?;
                self.make_room(reply, payload.len())?;
                reply.put(&request)?;
                reply.put(&LoggingControl { page_size, ..control })?;
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
        Errno::EINVAL.unless(self.dma_is_ready(), NO_DMA)?;
        let bitmap = report.bitmap_size()?;
        let fixed = DeviceFeature::WITH_REPORT;
        let size = bitmap.saturating_add(fixed as u64);
        let bitmap = usize::try_from(bitmap).map_err(|_| Errno::EINVAL)?;
        self.dma.check_report(report.iova, report.length, report.page_size)?;
        let first = bitmap.min(REPORT_PART);
        self.make_room(reply, fixed.saturating_add(first))?;
        reply.put(&DeviceFeature { argsz: u32::try_from(size).map_err(|_| Errno::EINVAL)?, ..*request })?;
        reply.put(&report)?;
        reply.announce(bitmap.saturating_sub(first));
        let mut rest = ReportRest { report, told: false };
        let outcome = self.report_next(&mut rest, reply.space(first)?);
        self.report_rest.set(rest);
        outcome
    }

    /// Makes the next part of a long report, when what is before it is sent: so one
    /// that is not read does not fill the memory.
    pub(in crate::server) fn report_more(&self, connection: &mut Connection) -> Result<()> {
        let mut rest = self.report_rest.get();
        let len = connection.more().min(REPORT_PART);
        connection.push_more(len, |bitmap| self.report_next(&mut rest, bitmap))?;
        self.report_rest.set(rest);
        Ok(())
    }

    /// Makes a part of a report, and leaves what is behind it.
    fn report_next(&self, rest: &mut ReportRest, bitmap: &mut [u8]) -> Result<()> {
        let report = &mut rest.report;
        let covered = (bitmap.len() as u64).saturating_mul(8).saturating_mul(report.page_size);
        let length = covered.min(report.length);
        rest.told = self.dma.report_part(report.iova, length, report.page_size, bitmap, rest.told)?;
        report.iova = report.iova.saturating_add(length);
        report.length = report.length.saturating_sub(length);
        Ok(())
    }
}
