//! A blocking client: one connection to a server, one request at a time.
//!
//! Commands of the server that arrive while this client waits for a reply, or
//! for anything else, are answered from its [`Memory`]. Several clients can
//! live side by side; nothing is shared between them.
//!
//! Every reply is checked before its contents are believed: identity, type,
//! and each size against what the request asked for.

mod deadline;
mod device;
mod dma;
mod logging;
mod memory;
mod migration;
mod pages;
pub(crate) mod stream;
mod tap;
mod version;

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use vfio_user::wire::{Command, Errno, Header, HeaderFlags, MessageType, limits};
use zerocopy::IntoBytes;

pub use deadline::Deadline;
pub use device::RegionDetails;
pub(crate) use dma::serve;
pub use memory::{Backing, Memory, Segment, Traffic};
pub use migration::state_name;
pub use pages::Pages;
pub use tap::{Tap, Wire, is_watched, look_on};
pub use version::{Negotiated, parse as parse_version, proposal};

use crate::error::{Error, Result, reason};
use stream::{Message, Received, Stream};

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long to wait for each answer.
    pub timeout: Duration,
    /// Ask for a second socket for the server's commands.
    pub twin_socket: bool,
}

/// A connection on which the version is negotiated.
pub struct Client {
    main: Stream,
    twin: Option<Stream>,
    timeout: Duration,
    next_id: u16,
    /// Messages that go out together with the next one.
    held: Vec<u8>,
    memory: Memory,
    negotiated: Negotiated,
}

/// A successful reply.
struct Reply {
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What ended a wait.
enum Event {
    /// A message on the main connection.
    Message(Message),
    /// A command on the second socket, which is answered already.
    Answered,
    /// Some of the descriptors given are readable: which.
    Ready(Vec<usize>),
    /// The server closed the main connection.
    HungUp,
    /// The deadline.
    Timeout,
}

impl Client {
    /// Connects to the server that listens at `path` and negotiates.
    pub fn connect(path: &Path, options: Options) -> Result<Client> {
        let main = Stream::new(open(path, options.timeout)?)?;
        let negotiated = version::parse(&[0; 4])?;
        let timeout = options.timeout;
        let mut client = Client {
            main,
            twin: None,
            timeout,
            next_id: 0,
            held: Vec::new(),
            memory: Memory::default(),
            negotiated,
        };
        let proposal = version::proposal(options.twin_socket)?;
        let reply = client.request(Command::Version, &"version negotiation", &[&proposal], &[]);
        let mut reply = reply.map_err(|e| match e {
            Error::Silent { what, seconds } => Error::Silent { what: format!("{what} ({BUSY})"), seconds },
            e => e,
        })?;
        client.negotiated = version::parse(&reply.body)?;
        let twin = client.negotiated.capabilities.twin_socket.filter(|t| t.supported && options.twin_socket);
        if let Some(twin) = twin {
            if twin.fd_index >= reply.fds.len() {
                return Err(Error::Protocol("the second socket was promised but did not come".into()));
            }
            let socket = UnixStream::from(reply.fds.swap_remove(twin.fd_index));
            client.twin = Some(client.main.twin(socket)?);
        }
        Ok(client)
    }

    /// What was negotiated.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Whether the server uses a second socket.
    pub fn has_twin_socket(&self) -> bool {
        self.twin.is_some()
    }

    /// How long each answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Largest transfer in one message, in bytes: what the server takes and
    /// this client receives.
    pub fn max_data_xfer_size(&self) -> usize {
        let server = usize::try_from(self.negotiated.capabilities.max_data_xfer_size);
        server.unwrap_or(usize::MAX).min(limits::MAX_DATA_XFER_SIZE)
    }

    /// Most descriptors the server takes with one message.
    pub fn max_msg_fds(&self) -> usize {
        let server = usize::try_from(self.negotiated.capabilities.max_msg_fds);
        server.unwrap_or(usize::MAX).min(limits::SCM_MAX_FD)
    }

    /// The memory that the server reaches.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Waits until some of `fds` are readable, answering the server's commands
    /// in the meantime: the places of those in `fds`; none if the deadline
    /// comes first.
    pub fn wait_readable(&mut self, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<Vec<usize>> {
        loop {
            match self.next_event(fds, deadline)? {
                Event::Ready(places) => return Ok(places),
                Event::Answered => {}
                Event::Timeout => return Ok(Vec::new()),
                Event::HungUp => return Err(Error::Gone("while waiting".into())),
                Event::Message(message) => match message.header.message_type() {
                    Some(MessageType::Command) => self.answer(&message, false)?,
                    _ => return Err(unasked(&message.header)),
                },
            }
        }
    }

    /// As [`request`](Self::request), for a reply whose payload may have
    /// `room` bytes, which may be more than other messages have.
    fn request_large(
        &mut self,
        command: Command,
        what: &dyn std::fmt::Display,
        parts: &[&[u8]],
        room: usize,
    ) -> Result<Reply> {
        self.main.expect(room);
        let reply = self.request(command, what, parts, &[]);
        self.main.expect(0);
        reply
    }

    /// Sends a command whose payload is `parts` one after the other, and
    /// returns the reply. `what` says in an error what was asked for.
    fn request(
        &mut self,
        command: Command,
        what: &dyn std::fmt::Display,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply> {
        let header = self.send(command, what, parts, fds)?;
        self.wait_reply(&header, what)
    }

    /// Sends a command, behind those that were [held](Self::hold): its header.
    fn send(
        &mut self,
        command: Command,
        what: &dyn std::fmt::Display,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Header> {
        let (header, message) = self.message(command, HeaderFlags::empty(), what, parts)?;
        let messages = [std::mem::take(&mut self.held), message].concat();
        match self.main.send(&messages, fds, Deadline::after(self.timeout))? {
            true => Ok(header),
            false => Err(self.silent(format!("{what}: the server did not read the request"))),
        }
    }

    /// Sends a command that has no reply together with the next one that has.
    fn hold(&mut self, command: Command, what: &dyn std::fmt::Display, parts: &[&[u8]]) -> Result<()> {
        let (_, message) = self.message(command, HeaderFlags::NO_REPLY, what, parts)?;
        self.held.extend(message);
        Ok(())
    }

    fn message(
        &mut self,
        command: Command,
        flags: HeaderFlags,
        what: &dyn std::fmt::Display,
        parts: &[&[u8]],
    ) -> Result<(Header, Vec<u8>)> {
        let payload: usize = parts.iter().map(|p| p.len()).sum();
        let size = u32::try_from(payload.saturating_add(limits::HEADER_SIZE));
        let size = size.map_err(|_| Error::Usage(format!("{what}: too large for a message")))?;
        let mut header = Header::command(self.next_id, command as u16, size);
        header.flags |= flags.bits();
        self.next_id = self.next_id.wrapping_add(1);
        Ok((header, [header.as_bytes(), &parts.concat()].concat()))
    }

    /// The reply to a command that was sent last of those that have one.
    fn wait_reply(&mut self, header: &Header, what: &dyn std::fmt::Display) -> Result<Reply> {
        loop {
            let message = match self.next_event(&[], Deadline::after(self.timeout))? {
                Event::Message(message) => message,
                Event::Answered => continue,
                Event::HungUp => return Err(Error::Gone(what.to_string())),
                Event::Timeout | Event::Ready(_) => {
                    return Err(self.silent(format!("{what}: no answer from the server")));
                }
            };
            match message.header.message_type() {
                Some(MessageType::Command) => self.answer(&message, false)?,
                _ => return check_reply(header, message, what),
            }
        }
    }

    fn silent(&self, what: String) -> Error {
        Error::Silent { what, seconds: self.timeout.as_secs_f64() }
    }

    /// The next thing that happens.
    fn next_event(&mut self, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<Event> {
        loop {
            match self.main.receive()? {
                Received::Message(message) => return Ok(Event::Message(message)),
                Received::End => return Ok(Event::HungUp),
                Received::Nothing => {}
            }
            match self.twin.as_mut().map_or(Ok(Received::Nothing), Stream::receive)? {
                Received::Message(message) => {
                    self.answer(&message, true)?;
                    return Ok(Event::Answered);
                }
                Received::End => self.twin = None,
                Received::Nothing => {}
            }
            let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            polled.push(PollFd::new(&self.main, PollFlags::IN));
            polled.extend(self.twin.as_ref().map(|twin| PollFd::new(twin, PollFlags::IN)));
            if !deadline.wait(&mut polled)? {
                return Ok(Event::Timeout);
            }
            let ready = polled.iter().take(fds.len()).enumerate();
            let places: Vec<usize> =
                ready.filter(|(_, p)| !p.revents().is_empty()).map(|(place, _)| place).collect();
            if !places.is_empty() {
                return Ok(Event::Ready(places));
            }
        }
    }

    /// Executes a command of the server and answers on the socket it came on.
    fn answer(&mut self, command: &Message, on_twin: bool) -> Result<()> {
        let reply = dma::serve(&mut self.memory, command)?;
        if command.header.no_reply() {
            return Ok(());
        }
        let stream = match self.twin.as_mut().filter(|_| on_twin) {
            Some(twin) => twin,
            None => &mut self.main,
        };
        match stream.send(&reply, &[], Deadline::after(self.timeout))? {
            true => Ok(()),
            false => Err(self.silent("the server did not read the answer to its command".into())),
        }
    }
}

/// Connects, within the time given: with another client attached, a server's
/// queue may be full.
pub fn open(path: &Path, timeout: Duration) -> Result<UnixStream> {
    let cannot = |e: io::Error| Error::Connect { path: path.display().to_string(), why: why_not(path, &e) };
    let address = SocketAddrUnix::new(path).map_err(|e| cannot(e.into()))?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|e| Error::local("socket", e))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))
        .map_err(|e| Error::local("socket", e))?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let what = format!("{}: the server did not accept the connection ({BUSY})", path.display());
                return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
            }
            Err(e) => return Err(cannot(e.into())),
        }
    }
}

/// Why a server says nothing to a new client, most of the time.
const BUSY: &str = "a server serves one client at a time: another may be connected";

/// Why there is no connecting to a path. The system refuses whatever is no socket with the same
/// words as a socket where nobody listens.
fn why_not(path: &Path, e: &io::Error) -> String {
    if e.kind() == io::ErrorKind::ConnectionRefused
        && let Ok(metadata) = fs::metadata(path)
    {
        let kind = metadata.file_type();
        return if kind.is_socket() {
            "nobody listens there: the server that made this socket has ended".into()
        } else if kind.is_dir() {
            "it is a folder; the path of the socket in it is needed".into()
        } else {
            "it is a file, but no socket".into()
        };
    }
    match e.kind() {
        io::ErrorKind::NotFound => "there is no such socket; is the server running?".into(),
        _ => reason(e),
    }
}

fn unasked(header: &Header) -> Error {
    Error::Protocol(format!("an unasked reply, id {}, command {}", header.msg_id, header.cmd))
}

fn check_reply(request: &Header, reply: Message, what: &dyn std::fmt::Display) -> Result<Reply> {
    let header = reply.header;
    let wrong = |text: String| Err(Error::Protocol(format!("{what}: {text}")));
    if header.message_type() != Some(MessageType::Reply) {
        return wrong(format!("a message of type {}", header.flags & HeaderFlags::TYPE_MASK.bits()));
    }
    if (header.msg_id, header.cmd) != (request.msg_id, request.cmd) {
        return wrong(format!(
            "a reply with id {} to command {}, where id {} and command {} were due",
            header.msg_id, header.cmd, request.msg_id, request.cmd
        ));
    }
    if !header.flags().contains(HeaderFlags::ERROR) {
        return Ok(Reply { body: reply.body, fds: reply.fds });
    }
    match i32::try_from(header.error_no) {
        // Some servers know no errno for what went wrong.
        Ok(0) => Err(Error::Unfit(format!("{what}: the device answered with an error, but no errno"))),
        Ok(n) => Err(Error::Device { what: what.to_string(), errno: Errno::new(n) }),
        Err(_) => wrong(format!("an error reply with errno {}", header.error_no)),
    }
}
