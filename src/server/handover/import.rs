//! The state of a context, made this one's. Nothing of it is used before it is known
//! that it is: see [`Context::own`].

use crate::dma::{KnownFile, RegionId};
use crate::handover::{self, Descriptors, Incoming, Record};
use crate::irq::IrqType;
use crate::memory;
use crate::server::context::{Phase, ReportRest};
use crate::server::{Context, Device};
use crate::transport::{Connection, ConnectionRecords, Listener};
use crate::wire::capabilities::ClientCapabilities;
use crate::wire::{self, DeviceState, Errno, LoggingReport, Result};

use super::give::Control;

const NO_CONTEXT: &str = "what it says of its state does not go together";

/// What is put together from several records.
#[derive(Default)]
struct Gathered {
    client: Option<handover::Client>,
    connection: ConnectionRecords,
    /// DMA regions that were mapped before, until it is known which of them are still there.
    ahead: Option<Vec<RegionId>>,
    is_logged: bool,
    /// Files of DMA regions, by the names of their descriptors.
    files: Vec<(u32, KnownFile)>,
    migration: Option<DeviceState>,
    device_data: Vec<u8>,
}

impl<D: Device> Context<D> {
    /// Makes all of an image this context's; it is not used yet. `ahead` are the regions
    /// that it may leave out, if such were asked for.
    pub(super) fn import(&self, image: &mut Incoming, ahead: Option<Vec<RegionId>>) -> Result<()> {
        let mut gathered = Gathered { ahead, ..Gathered::default() };
        let (records, mut fds) = image.parts()?;
        for record in records {
            self.import_record(record?, &mut gathered, &mut fds)?;
        }
        let Gathered { client, connection, migration, device_data, ahead, is_logged, .. } = gathered;
        if !is_logged {
            self.dma.logging_stop();
        }
        // It has to be known what has become of each of them.
        let ahead = ahead.filter(|regions| !regions.is_empty());
        let (Some(client), Some(state), None) = (client, migration, ahead) else {
            return Err(Errno::EPROTO.because(NO_CONTEXT));
        };
        self.import_client(&client, connection, &mut fds)?;
        self.update_irqs();
        self.migration.restore(state);
        self.load_device(state, device_data)
    }

    fn import_record(
        &self,
        mut record: Record,
        gathered: &mut Gathered,
        fds: &mut Descriptors<'_>,
    ) -> Result<()> {
        if gathered.connection.add(&mut record)? {
            return Ok(());
        }
        match record {
            Record::Config(record) => {
                let pci = self.pci.borrow();
                let space = pci.space().filter(|space| space.len() == record.bytes.len());
                space.ok_or_else(|| Errno::EPROTO.because(NO_CONTEXT))?.write(0, &record.bytes)
            }
            Record::Listener(record) => self.import_listener(&record, fds),
            Record::Client(record) => {
                gathered.client = Some(record);
                Ok(())
            }
            Record::Report(handover::Report { more, iova, length, page_size }) => {
                // What the page that it begins in was told as, if any, is not handed over: it may be told of again.
                self.report_rest
                    .set(ReportRest { report: LoggingReport { iova, length, page_size }, told: false });
                // What is still to be made is the bitmap of that, however small it is.
                let is_rest = page_size.is_power_of_two()
                    && length.div_ceil(page_size).div_ceil(64).checked_mul(8) == Some(more);
                Errno::EPROTO.unless(more == 0 || is_rest, NO_CONTEXT)
            }
            Record::Kept(record) => {
                let ahead = gathered.ahead.take().ok_or_else(|| Errno::EPROTO.because(NO_CONTEXT))?;
                self.keep_regions(&ahead, &record.regions)
            }
            Record::DmaRegion(record) => {
                self.import_region(&record, &mut gathered.files, fds).map(|_region| ())
            }
            Record::Logging(record) => {
                let is_first = !std::mem::replace(&mut gathered.is_logged, true);
                Errno::EPROTO.unless(is_first, NO_CONTEXT)?;
                self.import_logging(&record)
            }
            Record::Lost(record) => self.dma.lose(record.iova, record.offset),
            Record::Dirty(record) => self.dma.mark_pages(record.iova, record.first, &record.words),
            Record::Vector(record) => {
                let kind = IrqType::from_index(record.kind).map_err(|_| Errno::EPROTO.because(NO_CONTEXT))?;
                let fd = fds.take_optional(record.fd)?;
                self.irqs.restore(kind, record.number, fd, (record.masked, record.pending))
            }
            Record::Migration(record) => {
                gathered.migration = DeviceState::from_number(record.state);
                Ok(())
            }
            Record::DeviceData(record) => {
                memory::reserve(&mut gathered.device_data, record.bytes.len())?;
                gathered.device_data.extend(record.bytes);
                Ok(())
            }
            _ => Err(Errno::EPROTO.because("a record that does not belong there")),
        }
    }

    fn import_listener(&self, record: &handover::Listener, fds: &mut Descriptors<'_>) -> Result<()> {
        let listener = Listener::import(record, fds)?;
        match record.is_control {
            false => *self.listener.borrow_mut() = Some(listener),
            true if self.handover.borrow().control.is_none() => {
                let control = memory::boxed(Control::over(listener)?)?;
                self.handover.borrow_mut().control = Some(control);
            }
            // The program has made another one.
            true => {}
        }
        Ok(())
    }

    fn import_client(
        &self,
        client: &handover::Client,
        connection: ConnectionRecords,
        fds: &mut Descriptors<'_>,
    ) -> Result<()> {
        let has_connection = connection.is_some();
        Errno::EPROTO.unless(has_connection || !client.is_attached, NO_CONTEXT)?;
        if has_connection {
            let connection = Connection::import(connection, fds, wire::may_carry_fds)?;
            *self.connection.borrow_mut() = Some(memory::boxed(connection)?);
        }
        self.phase.set(match (client.is_attached, has_connection) {
            (true, _) => Phase::Attached,
            (false, true) => Phase::Negotiating,
            (false, false) => Phase::Idle,
        });
        self.loss_unreported.set(client.loss_unreported);
        self.memory_disregarded.set(client.memory_disregarded);
        let size = usize::try_from(client.max_data_xfer_size).map_err(|_| Errno::EPROTO)?;
        self.client.set(ClientCapabilities {
            max_msg_fds: client.max_msg_fds,
            max_io_fds: client.max_io_fds,
            max_data_xfer_size: size.clamp(1, wire::limits::MAX_DATA_XFER_SIZE),
            migration_pgsize: client.migration_pgsize.map(u64::cast_signed),
            twin_socket: client.twin_socket,
            pgsizes: client.pgsizes,
            max_dma_maps: client.max_dma_maps.map(u64::cast_signed),
            write_multiple: client.write_multiple,
        });
        Ok(())
    }

    /// The device takes its own part; it does not run yet.
    fn load_device(&self, state: DeviceState, mut data: Vec<u8>) -> Result<()> {
        if self.device.has_own_state() {
            return self.device.load_state(self, &data, state);
        }
        if !self.device.can_migrate() {
            return Ok(());
        }
        self.take_device_to(DeviceState::Stop)?;
        self.take_device_to(DeviceState::Resuming)?;
        for piece in data.chunks_mut(wire::limits::MAX_DATA_XFER_SIZE) {
            let size = piece.len();
            let taken = self.device.migration_write(self, piece)?;
            Errno::EINVAL.unless(taken == size, "the device does not take all of its state")?;
        }
        self.take_device_to(DeviceState::Stop)
    }
}
