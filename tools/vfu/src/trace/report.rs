//! Lines, packets and numbers out of what has been passed on.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use serde::Serialize;
use vfio_user::wire::{Header, HeaderFlags, MessageType, take};

use super::assemble::{Assembler, why_not};
use super::decode::{Decoded, command_name, decode};
use super::descriptor::Descriptor;
use super::field::Fields;
use super::filter::{Filter, Subject};
use super::registers::Registers;
use super::summary::{Summary, time};
use super::{Event, Peer, Place, Record, Socket, Writer};
use crate::error::{Error, Result, reason};

/// What is printed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Lines of JSON.
    pub json: bool,
    /// Only the table at the end.
    pub quiet: bool,
    /// Only messages that match one of them; all, if there are none.
    pub filters: Vec<Filter>,
}

/// A command that has no reply yet.
struct Pending {
    command: u16,
    at: Duration,
    /// What it said, where a filter may ask.
    fields: Option<Fields>,
}

/// Who has sent a command, and its id.
type Asked = (u32, Socket, Peer, u16);

/// Where lines go.
type Lines = BufWriter<Box<dyn Write + Send>>;

/// Standard output, or error, until nobody reads it any more.
struct Out {
    out: Lines,
    is_open: bool,
}

impl Out {
    fn write(&mut self, text: &str) -> Result<()> {
        self.attempt(|out| out.write_all(text.as_bytes()))
    }

    fn flush(&mut self) -> Result<()> {
        self.attempt(Lines::flush)
    }

    fn attempt(&mut self, what: impl FnOnce(&mut Lines) -> io::Result<()>) -> Result<()> {
        if !self.is_open {
            return Ok(());
        }
        let done = what(&mut self.out);
        self.is_open = done.is_ok();
        match done {
            // A reader that has seen enough, such as `head`.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(|e| Error::local("standard output", e)),
        }
    }
}

/// Makes a trace of what it is told.
pub struct Report {
    options: Options,
    out: Out,
    file: Option<Writer>,
    streams: HashMap<Place, Assembler>,
    /// Streams that have turned out to be something else.
    strange: HashSet<Place>,
    pending: HashMap<Asked, Pending>,
    /// The configuration space of each connection's device.
    registers: HashMap<u32, Registers>,
    summary: Summary,
    /// When the first message came: times are from there on.
    start: Option<Duration>,
    /// The first failure of the report itself.
    failure: Option<Error>,
}

/// A message as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    connection: u32,
    socket: Socket,
    from: Peer,
    #[serde(rename = "type")]
    kind: &'static str,
    command: &'a str,
    id: u16,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_reply: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<f64>,
    fields: &'a Fields,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    descriptors: &'a [Descriptor],
}

/// Something about a stream, as JSON.
#[derive(Serialize)]
struct Note<'a> {
    time: f64,
    connection: u32,
    socket: Socket,
    from: Peer,
    note: &'a str,
}

impl Report {
    /// Prints as `options` say to standard output, and writes everything to `file`.
    pub fn new(options: Options, file: Option<Writer>) -> Report {
        Report::to(Box::new(io::stdout()), options, file)
    }

    /// The same, to `out`.
    pub fn to(out: Box<dyn Write + Send>, options: Options, file: Option<Writer>) -> Report {
        Report {
            options,
            out: Out { out: BufWriter::new(out), is_open: true },
            file,
            streams: HashMap::new(),
            strange: HashSet::new(),
            pending: HashMap::new(),
            registers: HashMap::new(),
            summary: Summary::default(),
            start: None,
            failure: None,
        }
    }

    /// Reports until the sender has gone. What can be seen is up to date whenever nothing more is
    /// to be reported at the moment.
    pub fn follow(&mut self, events: &Receiver<Event>) {
        loop {
            let event = match events.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Empty) => {
                    self.flush();
                    let Ok(event) = events.recv() else { break };
                    event
                }
                Err(TryRecvError::Disconnected) => break,
            };
            self.event(event);
        }
    }

    /// Takes in what was passed on.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Piece { at, place, bytes, descriptors } => {
                let stream = self.streams.entry(place).or_default();
                for record in stream.piece(at, place, &bytes, descriptors) {
                    self.record(&record);
                }
            }
            Event::End { at, place } => {
                if let Some(what) = self.streams.remove(&place).and_then(|stream| stream.end()) {
                    self.note(at, place, &what);
                }
                let back = Place { from: place.from.other(), ..place };
                if place.socket == Socket::Main && !self.streams.contains_key(&back) {
                    self.registers.remove(&place.connection);
                    self.pending.retain(|(connection, ..), _| *connection != place.connection);
                }
            }
        }
    }

    /// Reports one record.
    pub fn record(&mut self, record: &Record) {
        self.start.get_or_insert(record.at);
        if let Some(file) = &mut self.file
            && let Err(e) = file.record(record)
        {
            self.file = None;
            self.fail(e);
        }
        let message = take::<Header>(&record.bytes).ok().filter(|_| record.is_message);
        match message {
            Some((header, payload)) => self.message(record, &header, payload),
            None => {
                if self.strange.insert(record.place) {
                    let what = format!("{}; passed on, but no longer decoded", why_not(&record.bytes));
                    self.note(record.at, record.place, &what);
                }
            }
        }
    }

    fn message(&mut self, record: &Record, header: &Header, payload: &[u8]) {
        let place = record.place;
        let size = record.size.saturating_sub(size_of::<Header>() as u64);
        let registers = self.registers.entry(place.connection).or_default();
        let Decoded { fields, posted } = decode(header, payload, size, registers);
        let is_command = header.message_type() == Some(MessageType::Command);
        let asked = match is_command {
            true => None,
            false => self
                .pending
                .remove(&(place.connection, place.socket, place.from.other(), header.msg_id))
                .filter(|pending| pending.command == header.cmd),
        };
        let latency = asked.as_ref().map(|pending| record.at.saturating_sub(pending.at));
        if is_command {
            self.summary.command(place, header.cmd, record.size, header.no_reply());
            self.summary.posted(&posted);
        } else {
            let is_error = header.flags().contains(HeaderFlags::ERROR);
            self.summary.reply(place, header.cmd, record.size, is_error, latency);
        }
        let subject = Subject {
            place,
            header,
            has_descriptors: !record.descriptors.is_empty(),
            fields: &fields,
            asked: asked.as_ref().and_then(|pending| pending.fields.as_ref()),
        };
        let is_shown = self.options.filters.is_empty()
            || self.options.filters.iter().any(|filter| filter.matches(&subject));
        if is_shown && !self.options.quiet {
            let line = match self.options.json {
                true => self.json(record, header, &fields, latency),
                false => Ok(self.text(record, header, &fields, latency)),
            };
            self.print(line);
        }
        if is_command && !header.no_reply() {
            let fields = (!self.options.filters.is_empty()).then_some(fields);
            let key = (place.connection, place.socket, place.from, header.msg_id);
            self.pending.insert(key, Pending { command: header.cmd, at: record.at, fields });
        }
    }

    /// Seconds since the first message.
    fn since_start(&self, at: Duration) -> f64 {
        at.saturating_sub(self.start.unwrap_or(at)).as_secs_f64()
    }

    /// The beginning of each line: when, where, in which direction.
    fn head(&self, at: Duration, place: Place) -> String {
        let connection = match place.connection {
            1 => String::new(),
            n => format!("[{n}] "),
        };
        let arrow = match place.from {
            Peer::Client => '>',
            Peer::Server => '<',
        };
        let twin = if place.socket == Socket::Twin { " twin" } else { "" };
        format!("{:>11.6} {connection}{arrow}{twin}", self.since_start(at))
    }

    fn text(&self, record: &Record, header: &Header, fields: &Fields, latency: Option<Duration>) -> String {
        let name = command_name(header.cmd);
        let is_command = header.message_type() == Some(MessageType::Command);
        let outcome = match header.error_no {
            _ if is_command && header.no_reply() => " posted".to_string(),
            _ if is_command => String::new(),
            _ if !header.flags().contains(HeaderFlags::ERROR) => " ok".into(),
            0 => " failed".into(),
            errno => {
                let e = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(i32::MAX));
                format!(" failed ({errno}: {})", reason(&e))
            }
        };
        let latency = match latency {
            Some(latency) => format!(" {}", time(latency)),
            None if is_command => String::new(),
            None => " unasked".into(),
        };
        let descriptors = match &record.descriptors[..] {
            [] => String::new(),
            all => {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                format!(" [{}]", all.join(", "))
            }
        };
        let head = self.head(record.at, record.place);
        format!("{head} {name} #{}{outcome}{latency}{fields}{descriptors}\n", header.msg_id)
    }

    fn json(
        &self,
        record: &Record,
        header: &Header,
        fields: &Fields,
        latency: Option<Duration>,
    ) -> Result<String> {
        let is_command = header.message_type() == Some(MessageType::Command);
        let is_error = !is_command && header.flags().contains(HeaderFlags::ERROR);
        json_line(&Line {
            time: self.since_start(record.at),
            connection: record.place.connection,
            socket: record.place.socket,
            from: record.place.from,
            kind: if is_command { "command" } else { "reply" },
            command: &command_name(header.cmd),
            id: header.msg_id,
            size: record.size,
            no_reply: is_command.then_some(header.no_reply()),
            errno: is_error.then_some(header.error_no),
            latency: latency.map(|latency| latency.as_secs_f64()),
            fields,
            descriptors: &record.descriptors,
        })
    }

    /// Says something about a stream.
    fn note(&mut self, at: Duration, place: Place, what: &str) {
        self.strange.insert(place);
        let line = match self.options.json {
            true => json_line(&Note {
                time: self.since_start(at),
                connection: place.connection,
                socket: place.socket,
                from: place.from,
                note: what,
            }),
            false => Ok(format!("{} the {}: {what}\n", self.head(at, place), place.from.name())),
        };
        self.print(line);
    }

    fn print(&mut self, line: Result<String>) {
        let done = line.and_then(|line| self.out.write(&line));
        if let Err(e) = done {
            self.fail(e);
        }
    }

    /// The report goes on without what has failed; that it did is told in the end.
    fn fail(&mut self, e: Error) {
        self.failure.get_or_insert(e);
    }

    /// Has everything seen that is known.
    pub fn flush(&mut self) {
        if let Err(e) = self.out.flush() {
            self.fail(e);
        }
        if let Some(Err(e)) = self.file.as_mut().map(Writer::flush) {
            self.file = None;
            self.fail(e);
        }
    }

    /// Prints the table, and says what has failed.
    pub fn finish(mut self) -> Result<()> {
        let table = match self.options.json {
            true => json_line(&self.summary.json()),
            false => Ok(self.summary.text()),
        };
        self.print(table);
        self.flush();
        self.failure.map_or(Ok(()), Err)
    }
}

fn json_line(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|e| Error::local("JSON", e))?;
    Ok(text + "\n")
}
