//! Requests about device features: migration state and migration data.

use vfio_user::wire::{
    Command, DeviceFeature, DeviceState, Errno, Feature, FeatureFlags, MigData, MigrationFlags, take,
};
use zerocopy::IntoBytes;

use super::Client;
use crate::error::{Error, Result};

/// A device state as it stands behind the feature's head.
#[derive(
    Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable,
)]
#[repr(C)]
struct StateData {
    device_state: u32,
    /// Not used in vfio-user.
    data_fd: u32,
}

/// The specification's name of a state.
pub fn state_name(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Error => "ERROR",
        DeviceState::Stop => "STOP",
        DeviceState::Running => "RUNNING",
        DeviceState::StopCopy => "STOP_COPY",
        DeviceState::Resuming => "RESUMING",
        DeviceState::RunningP2p => "RUNNING_P2P",
        DeviceState::PreCopy => "PRE_COPY",
        DeviceState::PreCopyP2p => "PRE_COPY_P2P",
    }
}

impl Client {
    /// `VFIO_USER_DEVICE_FEATURE`: the data of the reply, which may have up to
    /// `room` bytes.
    pub(super) fn feature(
        &mut self,
        what: &str,
        (feature, operation): (Feature, FeatureFlags),
        data: &[&[u8]],
        room: u64,
    ) -> Result<Vec<u8>> {
        let head = size_of::<DeviceFeature>();
        let sent: usize = data.iter().map(|d| d.len()).sum();
        let room = usize::try_from(room).unwrap_or(usize::MAX).max(sent).saturating_add(head);
        let argsz = u32::try_from(room).map_err(|_| Error::Usage(format!("{what}: too much at a time")))?;
        let request = DeviceFeature { argsz, flags: feature as u32 | operation.bits() };
        let parts = [&[request.as_bytes()], data].concat();
        let reply = self.request_large(Command::DeviceFeature, &what, &parts, room)?;
        let wrong = |text: String| Error::Protocol(format!("{what}: {text}"));
        let (echo, data): (DeviceFeature, _) =
            take(&reply.body).map_err(|_| wrong(format!("a reply with {} bytes", reply.body.len())))?;
        match echo.flags == request.flags && reply.body.len() <= room {
            true => Ok(data.to_vec()),
            false => Err(wrong("the reply is about something else".into())),
        }
    }

    /// Whether the device has a feature with these operations.
    pub fn has_feature(&mut self, feature: Feature, operations: FeatureFlags) -> Result<bool> {
        let what = format!("probe of feature {}", feature as u32);
        match self.feature(&what, (feature, operations | FeatureFlags::PROBE), &[], 0) {
            Ok(_) => Ok(true),
            Err(Error::Device { errno, .. }) if unsupported(errno) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What the device can do about migration; `None` if it can't.
    pub fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        let what = "migration feature";
        let data = match self.feature(what, (Feature::Migration, FeatureFlags::GET), &[], 8) {
            Ok(data) => data,
            Err(Error::Device { errno, .. }) if unsupported(errno) => return Ok(None),
            Err(e) => return Err(e),
        };
        let flags = data.first_chunk().copied().map(u64::from_le_bytes);
        let flags = flags.ok_or_else(|| Error::Protocol(format!("{what}: a reply without flags")))?;
        Ok(Some(MigrationFlags::from_bits_retain(flags)))
    }

    /// The state the device is in.
    pub fn device_state(&mut self) -> Result<DeviceState> {
        let what = "device state";
        let data = self.feature(what, (Feature::MigDeviceState, FeatureFlags::GET), &[], 8)?;
        let (StateData { device_state, .. }, _) =
            take(&data).map_err(|_| Error::Protocol(format!("{what}: a reply without a state")))?;
        DeviceState::from_number(device_state)
            .ok_or_else(|| Error::Protocol(format!("{what}: there is no state {device_state}")))
    }

    /// Takes the device to another state. When this returns the device is
    /// there, or in the last state on the way that it has reached.
    pub fn set_device_state(&mut self, state: DeviceState) -> Result<()> {
        let what = format!("going to {}", state_name(state));
        let data = StateData { device_state: state as u32, data_fd: 0 };
        self.feature(&what, (Feature::MigDeviceState, FeatureFlags::SET), &[data.as_bytes()], 0)?;
        Ok(())
    }

    /// The same, and once the server has been asked, but before it has answered,
    /// `meanwhile` happens.
    pub fn set_device_state_and(
        &mut self,
        state: DeviceState,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let what = format!("going to {}", state_name(state));
        let data = StateData { device_state: state as u32, data_fd: 0 };
        let argsz = (size_of::<DeviceFeature>() + size_of::<StateData>()) as u32;
        let flags = Feature::MigDeviceState as u32 | FeatureFlags::SET.bits();
        let head = DeviceFeature { argsz, flags };
        let header = self.send(Command::DeviceFeature, &what, &[head.as_bytes(), data.as_bytes()], &[])?;
        let done = meanwhile();
        self.wait_reply(&header, &what)?;
        done
    }

    /// `VFIO_USER_MIG_DATA_READ` of up to `size` bytes. Less means that there
    /// is no more; in `PRE_COPY`, none for now.
    pub fn mig_data_read(&mut self, size: usize) -> Result<Vec<u8>> {
        let what = "reading migration data";
        let request = mig_data(what, size)?;
        let reply = self.request(Command::MigDataRead, &what, &[request.as_bytes()], &[])?;
        let wrong = |text: String| Error::Protocol(format!("{what}: {text}"));
        let (head, data): (MigData, _) =
            take(&reply.body).map_err(|_| wrong(format!("a reply with {} bytes", reply.body.len())))?;
        if head.size > request.size {
            return Err(wrong(format!("{} bytes where {size} were asked for", head.size)));
        }
        // Some servers pad what they send to the size that was asked for.
        match usize::try_from(head.size).ok().and_then(|size| data.get(..size)) {
            Some(data) => Ok(data.to_vec()),
            None => Err(wrong(format!("{} bytes promised, {} sent", head.size, data.len()))),
        }
    }

    /// `VFIO_USER_MIG_DATA_WRITE` of all of `data`, in as many requests as the
    /// server needs.
    pub fn mig_data_write(&mut self, data: &[u8]) -> Result<()> {
        let what = "writing migration data";
        for part in data.chunks(self.max_data_xfer_size()) {
            let request = mig_data(what, part.len())?;
            self.request(Command::MigDataWrite, &what, &[request.as_bytes(), part], &[])?;
        }
        Ok(())
    }
}

fn mig_data(what: &str, size: usize) -> Result<MigData> {
    let too_much = || Error::Usage(format!("{what}: too much at a time"));
    let size = u32::try_from(size).map_err(|_| too_much())?;
    let argsz = size.checked_add(size_of::<MigData>() as u32).ok_or_else(too_much)?;
    Ok(MigData { argsz, size })
}

/// What servers answer that don't know a feature.
fn unsupported(errno: Errno) -> bool {
    [Errno::EINVAL, Errno::ENOTTY, Errno::ENOTSUP].contains(&errno)
}
