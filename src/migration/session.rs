//! The state that a device is in.

use std::cell::Cell;

use super::fsm;
use crate::wire::{DeviceState, Errno, Result};

const NO_WAY: &str = "no way leads there from the state that the device is in";

/// A device's migration state. It is held by value and never borrowed, so a
/// callback may look at it, or change it, while a path is walked.
#[derive(Debug)]
pub struct Session {
    state: Cell<DeviceState>,
    /// Data were read since PRE_COPY was entered.
    has_said: Cell<bool>,
}

impl Default for Session {
    /// A device runs.
    fn default() -> Session {
        Session { state: Cell::new(DeviceState::Running), has_said: Cell::new(false) }
    }
}

impl Session {
    /// The state.
    pub fn state(&self) -> DeviceState {
        self.state.get()
    }

    /// Whether the client has read data in PRE_COPY, which the device can count on.
    pub fn has_said(&self) -> bool {
        self.has_said.get()
    }

    /// Migration was set up: the device runs.
    pub fn begin(&self) {
        self.state.set(DeviceState::Running);
    }

    /// The device was in this state in another process, and nothing was read in it.
    pub fn restore(&self, state: DeviceState) {
        self.state.set(state);
        self.has_said.set(false);
    }

    /// The device was reset: it runs. In PRE_COPY it did so before, and goes on
    /// with the session: a guest resets its devices also while it is moved, of
    /// which it knows nothing. `changed` is told, as by [`request`](Self::request).
    pub fn reset(&self, changed: impl Fn(DeviceState, DeviceState)) {
        if !matches!(self.state.get(), DeviceState::PreCopy | DeviceState::Running) {
            changed(self.state.replace(DeviceState::Running), DeviceState::Running);
        }
    }

    /// Goes to the state with this number. `step` is called for each state on
    /// the way and brings the device there; after that the step counts as
    /// done, and `changed` is told from which state to which that led.
    ///
    /// `EINVAL` if there is no way, without a step. If a step fails its errno
    /// is the result and the state is that of the last step that was done,
    /// except that `ENOTRECOVERABLE` says that the device cannot be brought
    /// back into any valid state: that is ERROR, which only a reset leaves.
    pub fn request(
        &self,
        number: u32,
        mut step: impl FnMut(DeviceState) -> Result<()>,
        changed: impl Fn(DeviceState, DeviceState),
    ) -> Result<()> {
        let target = DeviceState::from_number(number)
            .ok_or_else(|| Errno::EINVAL.because("there is no such state"))?;
        let path = fsm::path(self.state.get(), target).ok_or_else(|| Errno::EINVAL.because(NO_WAY))?;
        for state in path {
            match step(*state) {
                Ok(()) => {
                    self.has_said.set(self.has_said.get() && *state != DeviceState::PreCopy);
                    changed(self.state.replace(*state), *state);
                }
                Err(errno) => {
                    if errno == Errno::ENOTRECOVERABLE {
                        changed(self.state.replace(DeviceState::Error), DeviceState::Error);
                    }
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// Reads migration data: `read` is given the number of bytes wanted, and
    /// says how many there are. `EINVAL` unless state is being saved, or if it
    /// claims to have more than was asked for.
    pub fn read(&self, size: usize, read: impl FnOnce(usize) -> Result<usize>) -> Result<usize> {
        let is_saving = fsm::is_saving(self.state.get());
        Errno::EINVAL.unless(is_saving, "the migration state is neither PRE_COPY nor STOP_COPY")?;
        match read(size)? {
            count if count <= size => {
                self.has_said.set(self.has_said.get() || count > 0);
                Ok(count)
            }
            _ => Err(Errno::EINVAL.because("the device has more than was asked for")),
        }
    }

    /// Writes migration data: `write` is given all of it and says how many
    /// bytes it took. `EINVAL` unless the device is resuming, or if it did not
    /// take everything.
    pub fn write(&self, size: usize, write: impl FnOnce() -> Result<usize>) -> Result<()> {
        let is_resuming = self.state.get() == DeviceState::Resuming;
        Errno::EINVAL.unless(is_resuming, "the migration state is not RESUMING")?;
        match write()? {
            count if count == size => Ok(()),
            _ => Err(Errno::EINVAL.because("the device took a part of it only")),
        }
    }
}
