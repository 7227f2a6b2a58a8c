//! Device states and migration data.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request::check_argsz;
use super::{Request, Result};

/// `enum vfio_device_mig_state`: the states of the device migration FSM, with
/// their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum DeviceState {
    /// The device has failed and must be reset.
    Error = 0,
    /// The device changes neither internal nor external state.
    Stop = 1,
    /// The device runs normally.
    Running = 2,
    /// The device is stopped and its state can be read out.
    StopCopy = 3,
    /// The device is stopped and loads a new state.
    Resuming = 4,
    /// Not used in vfio-user.
    RunningP2p = 5,
    /// The device runs, tracks changes of its state, and its state can be read.
    PreCopy = 6,
    /// Not used in vfio-user.
    PreCopyP2p = 7,
}

impl DeviceState {
    /// Every state, by number.
    pub const ALL: [DeviceState; 8] = [
        DeviceState::Error,
        DeviceState::Stop,
        DeviceState::Running,
        DeviceState::StopCopy,
        DeviceState::Resuming,
        DeviceState::RunningP2p,
        DeviceState::PreCopy,
        DeviceState::PreCopyP2p,
    ];

    /// The state with this number, if there is one.
    pub fn from_number(number: u32) -> Option<DeviceState> {
        DeviceState::ALL.into_iter().find(|s| *s as u32 == number)
    }
}

/// Fixed part of `VFIO_USER_MIG_DATA_READ` and `VFIO_USER_MIG_DATA_WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MigData {
    /// Size of this structure with its data.
    pub argsz: u32,
    /// Bytes of data.
    pub size: u32,
}

impl Request for MigData {
    fn check(&self, _data: &[u8]) -> Result<()> {
        check_argsz(self.argsz, size_of::<Self>().saturating_add(self.size as usize))
    }
}
