//! The state of a context, written down. Nothing of it changes by that.

use std::os::fd::RawFd;

use super::ahead::Told;
use crate::handover::{self, NO_FD, Outgoing};
use crate::memory::{self, Bytes};
use crate::migration::fsm;
use crate::server::context::Phase;
use crate::server::log::log;
use crate::server::{Context, Device};
use crate::transport::Listener;
use crate::wire::limits::MAX_DATA_XFER_SIZE;
use crate::wire::{DeviceState, Errno, Result};

/// Bytes that a device is asked for at first when it says its state: more for each time
/// that it has as many. Memory that is not needed takes time, too.
const FIRST_PIECE: usize = 16 << 10;

impl<D: Device> Context<D> {
    /// The image of the state, the device's own part included, with its descriptors.
    /// `control` is where processes like the new one come from, `told` what that one
    /// knows of DMA regions.
    pub(super) fn export(
        &self,
        device_data: &[u8],
        control: Option<&Listener>,
        told: Option<&Told>,
    ) -> Result<(Vec<u8>, Vec<RawFd>)> {
        let mut out = Outgoing::new()?;
        self.put_config(&mut out)?;
        if let Some(listener) = &*self.listener.borrow() {
            listener.export(false, &mut out)?;
        }
        if let Some(listener) = control {
            listener.export(true, &mut out)?;
        }
        self.export_client(&mut out)?;
        self.export_memory(told, &mut out)?;
        self.irqs.visit(|vector| {
            let fd = vector.fd.map(|fd| out.fd(fd)).transpose()?.unwrap_or(NO_FD);
            let (kind, number) = (vector.kind as u32, vector.number);
            out.put(handover::Vector { kind, number, fd, masked: vector.masked, pending: vector.pending })
        })?;
        out.put(handover::Migration { state: self.migration.state() as u32 })?;
        for piece in device_data.chunks(MAX_DATA_XFER_SIZE) {
            let mut bytes = Bytes::default();
            bytes.append(piece)?;
            out.put(handover::DeviceData { bytes: bytes.0 })?;
        }
        out.finish()
    }

    fn export_client(&self, out: &mut Outgoing) -> Result<()> {
        let client = self.client.get();
        out.put(handover::Client {
            is_attached: self.phase.get() == Phase::Attached,
            loss_unreported: self.loss_unreported.get(),
            memory_disregarded: self.memory_disregarded.get(),
            max_msg_fds: client.max_msg_fds,
            max_io_fds: client.max_io_fds,
            max_data_xfer_size: client.max_data_xfer_size as u64,
            migration_pgsize: client.migration_pgsize.map(i64::cast_unsigned),
            twin_socket: client.twin_socket,
            pgsizes: client.pgsizes,
            max_dma_maps: client.max_dma_maps.map(i64::cast_unsigned),
            write_multiple: client.write_multiple,
        })?;
        let mut connection = self.connection.borrow_mut();
        let Some(connection) = connection.as_mut() else { return Ok(()) };
        connection.export(out)?;
        let rest = self.report_rest.get().report;
        out.put(handover::Report {
            more: connection.more() as u64,
            iova: rest.iova,
            length: rest.length,
            page_size: rest.page_size,
        })
    }

    /// What the device, which is quiet, says of its own state; with its migration it
    /// is stopped then.
    pub(super) fn save_device(&self) -> Result<Vec<u8>> {
        if self.device.has_own_state() {
            self.handover.borrow_mut().saving = Some(Bytes::default());
            let saved = self.device.save_state(self);
            let data = self.handover.borrow_mut().saving.take().unwrap_or_default();
            return saved.map(|()| data.0);
        }
        let mut data = Vec::new();
        let mut room = FIRST_PIECE;
        if !self.device.can_migrate() {
            return Ok(data);
        }
        if self.migration.state() == DeviceState::Running {
            self.take_device_to(DeviceState::Stop)?;
        }
        self.take_device_to(DeviceState::StopCopy)?;
        loop {
            let start = data.len();
            memory::reserve(&mut data, room)?;
            data.resize(start.saturating_add(room), 0);
            let piece = data.get_mut(start..).unwrap_or_default();
            let count = self.device.migration_read(self, piece)?;
            data.truncate(start.saturating_add(count));
            match count {
                0 => return Ok(data),
                _ if count == room => room = room.saturating_mul(2).min(MAX_DATA_XFER_SIZE),
                _ => {}
            }
        }
    }

    /// Brings the device to a state that its client does not know of, and remembers it.
    pub(super) fn take_device_to(&self, state: DeviceState) -> Result<()> {
        let outcome = self.device.transition(self, state);
        match outcome {
            Ok(()) => self.handover.borrow_mut().taken_to = Some(state),
            Err(Errno::ENOTRECOVERABLE) => self.handover.borrow_mut().taken_to = Some(DeviceState::Error),
            // It is where it was.
            Err(_) => {}
        }
        outcome
    }

    /// The device adds to what it says of its state. `EINVAL` unless it is asked to.
    pub fn put_state(&self, bytes: &[u8]) -> Result<()> {
        let mut handover = self.handover.borrow_mut();
        let saving = handover.saving.as_mut();
        saving.ok_or_else(|| Errno::EINVAL.because("the device is not asked for its state"))?.append(bytes)
    }

    /// Brings the device back from where a hand-over has taken it to where it was for its
    /// client, if it has. If that fails, it is in no state that its client knows of.
    pub(super) fn run_as_it_was(&self) -> Result<()> {
        let Some(taken_to) = self.handover.borrow_mut().taken_to.take() else { return Ok(()) };
        let outcome = self.go_back(taken_to);
        if outcome.is_err() {
            self.fail_migration();
        }
        outcome
    }

    fn go_back(&self, from: DeviceState) -> Result<()> {
        if from == DeviceState::Error {
            return Err(Errno::ENOTRECOVERABLE);
        }
        // No way leads from STOP_COPY to PRE_COPY, but by STOP.
        let arcs = [(from, DeviceState::Stop), (DeviceState::Stop, self.migration.state())];
        let steps = arcs.into_iter().flat_map(|(from, to)| fsm::path(from, to).unwrap_or_default());
        steps.copied().try_for_each(|state| self.device.transition(self, state))
    }

    /// The device is in no state that its client knows of: only a reset helps.
    fn fail_migration(&self) {
        let before = self.migration.state();
        self.migration.restore(DeviceState::Error);
        self.probe_state_changed(before, DeviceState::Error);
    }

    /// The device goes on in this process after all.
    pub(super) fn resume_device(&self) {
        if let Err(errno) = self.run_as_it_was() {
            log!(self, LOG_ERR, "the device does not go on after a hand-over that failed: {errno}");
        }
        self.device.handed_over(self, true);
    }
}
