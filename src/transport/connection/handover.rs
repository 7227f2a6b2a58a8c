//! A connection that leaves the process, or comes into it.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use zerocopy::IntoBytes;

use super::Connection;
use crate::handover::{self, Descriptors, Outgoing, Queued, Record, Unanswered};
use crate::memory::{self, Bytes};
use crate::transport::allowance::Allowance;
use crate::transport::buffer::Buffer;
use crate::transport::channel::{Channel, Socket};
use crate::transport::message::Message;
use crate::transport::pool::Pool;
use crate::transport::receive::{MayCarryFds, Receiver};
use crate::transport::send::Sender;
use crate::transport::unanswered::MessageIds;
use crate::wire::{Errno, Header, Result, take};

/// What was written down of a connection, as it is read record by record.
#[derive(Debug, Default)]
pub struct ConnectionRecords {
    channels: Vec<(handover::Channel, Vec<handover::Parcel>)>,
    queued: Vec<Queued>,
    unsent: Vec<handover::Unsent>,
    unanswered: Unanswered,
    more: u64,
}

impl ConnectionRecords {
    /// Takes a record if it is one of a connection; whether it was.
    pub fn add(&mut self, record: &mut Record) -> Result<bool> {
        use std::mem::take;
        match record {
            Record::Channel(channel) => memory::push(&mut self.channels, (take(channel), Vec::new()))?,
            Record::Parcel(parcel) => match self.channels.last_mut() {
                Some((_, parcels)) => memory::push(parcels, take(parcel))?,
                None => return Err(Errno::EPROTO),
            },
            Record::Queued(queued) => memory::push(&mut self.queued, take(queued))?,
            Record::Unsent(unsent) => memory::push(&mut self.unsent, take(unsent))?,
            Record::Unanswered(ids) => self.unanswered = take(ids),
            // The rest of it is the server's.
            Record::Report(report) => {
                self.more = report.more;
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether there is a connection.
    pub fn is_some(&self) -> bool {
        !self.channels.is_empty()
    }
}

impl Connection {
    /// Writes all of it down: nothing of it changes, but that nobody waits for an
    /// answer any longer. The descriptors stay its own.
    ///
    /// `EBUSY` if it is lost.
    pub fn export(&mut self, out: &mut Outgoing) -> Result<()> {
        self.abandon_answers();
        if self.lost || self.sending || self.receiving && self.main.receiver.has_missed() {
            return Err(Errno::EBUSY.because("the client is lost"));
        }
        self.main.receiver.export(self.main.socket(), out)?;
        if let Some(twin) = &self.twin {
            twin.receiver.export(twin.socket(), out)?;
        } else if let Some(socket) = &self.new_twin {
            let fd = out.fd(socket.fd())?;
            out.put(handover::Channel { fd, ..handover::Channel::default() })?;
        }
        for message in &self.queue {
            let queued = export_message(message, out)?;
            out.put(queued)?;
        }
        self.sender.export(false, out)?;
        self.twin_sender.export(true, out)?;
        let mut ids = Vec::new();
        memory::reserve(&mut ids, self.unanswered.iter().len())?;
        ids.extend(self.unanswered.iter());
        out.put(Unanswered { ids })
    }

    /// The same connection, in this process: its own once [`own`](Self::own) says so.
    pub fn import(
        records: ConnectionRecords,
        fds: &mut Descriptors<'_>,
        may_carry_fds: MayCarryFds,
    ) -> Result<Connection> {
        let mut pool = Pool::default();
        let mut channels = records.channels.into_iter();
        let mut import = |fds: &mut Descriptors<'_>, pool: &mut Pool| -> Result<Option<Channel>> {
            let Some((channel, parcels)) = channels.next() else { return Ok(None) };
            let receiver = Receiver::import(&channel, &parcels, fds, pool, may_carry_fds)?;
            Ok(Some(Channel::new(Socket::elsewhere(fds.take(channel.fd)?), receiver)))
        };
        let main = import(fds, &mut pool)?.ok_or(Errno::EPROTO)?;
        let twin = import(fds, &mut pool)?;
        let mut connection = Connection {
            new_twin: None,
            twin,
            main,
            sender: Sender::default(),
            twin_sender: Sender::default(),
            unanswered: MessageIds::of(&records.unanswered.ids),
            body: None,
            expecting: None,
            has_answer_wait: false,
            queue: VecDeque::new(),
            allowance: Allowance::default(),
            pool,
            may_carry_fds,
            lost: false,
            sending: false,
            receiving: false,
        };
        for queued in &records.queued {
            let message = import_message(queued, fds)?;
            let may_wait = connection.allowance.take(message.cost());
            Errno::EPROTO.unless(may_wait, "more commands wait than may")?;
            memory::push_back(&mut connection.queue, message)?;
        }
        for unsent in &records.unsent {
            let sender = if unsent.is_twin { &mut connection.twin_sender } else { &mut connection.sender };
            sender.import(unsent, fds, &mut connection.pool)?;
        }
        connection.sender.expect_more(usize::try_from(records.more).map_err(|_| Errno::EPROTO)?);
        Ok(connection)
    }

    /// It is this process's from now on, which ends it when it drops it.
    pub fn own(&mut self) {
        self.main.own();
        if let Some(twin) = &mut self.twin {
            twin.own();
        }
    }

    /// It is another process's: closing our descriptors is all that is left to do.
    pub fn disown(&mut self) {
        self.main.disown();
        if let Some(twin) = &mut self.twin {
            twin.disown();
        }
        if let Some(socket) = &mut self.new_twin {
            socket.disown();
        }
    }
}

fn export_message(message: &Message, out: &mut Outgoing) -> Result<Queued> {
    let fds = out.fds(message.fds.iter().map(AsRawFd::as_raw_fd))?;
    let mut bytes = Bytes::default();
    bytes.append(message.header.as_bytes())?;
    bytes.append(message.payload())?;
    let missing = message.missing_fds.map(|errno| errno.number().unsigned_abs());
    Ok(Queued { message: bytes.0, fds, missing })
}

fn import_message(queued: &Queued, fds: &mut Descriptors<'_>) -> Result<Box<Message>> {
    let (header, payload) = take::<Header>(&queued.message).map_err(|_| Errno::EPROTO)?;
    let mut buffer = Buffer::new(payload.len())?;
    buffer.range_mut(0, payload.len()).copy_from_slice(payload);
    let mut message = memory::boxed(Message::new(buffer))?;
    message.header = header;
    message.end = payload.len();
    message.fds = fds.take_all(&queued.fds)?;
    message.missing_fds = queued.missing.map(|number| Errno::new(i32::try_from(number).unwrap_or(0)));
    Ok(message)
}
