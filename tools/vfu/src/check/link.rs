//! A connection byte by byte: it sends whatever a check wants to send, and says of what comes back
//! no more than a check needs to judge by itself.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use vfio_user::wire::{Command, Errno, Header, HeaderFlags, MessageType, limits};
use zerocopy::IntoBytes;

use super::{Outcome, Stop};
use crate::client::stream::{Message, Received, Stream};
use crate::client::{Deadline, Memory, serve};
use crate::error::Error;

/// What ends a conversation with a server before its time.
#[derive(Debug)]
pub enum Trouble {
    /// Nothing came within the time.
    Silent(String),
    /// The server closed the connection.
    Gone(String),
    /// Nobody listens at the socket.
    Absent(String),
    /// What came is no message, or nothing that a server may send.
    Broken(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Silent(what) => write!(f, "{what}: no answer in time"),
            Trouble::Gone(what) => write!(f, "{what}: the server closed the connection"),
            Trouble::Absent(what) | Trouble::Broken(what) => f.write_str(what),
        }
    }
}

/// A reply to a command.
#[derive(Debug)]
pub struct Answer {
    /// What was asked for, to say so.
    pub what: String,
    /// The header.
    pub header: Header,
    /// The payload.
    pub body: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// Whether the command failed.
    pub fn is_error(&self) -> bool {
        self.header.flags().contains(HeaderFlags::ERROR)
    }

    /// The errno of a failed command; 0 where the server says none, as it may.
    pub fn errno(&self) -> u32 {
        if self.is_error() { self.header.error_no } else { 0 }
    }

    /// Fails the check unless the command was executed.
    pub fn done(self) -> Outcome<Answer> {
        match self.is_error() {
            true => Err(Stop::fail(format!("{}: refused with {}", self.what, errno_text(self.errno())))),
            false => Ok(self),
        }
    }

    /// Fails the check unless the command was refused: the errno.
    pub fn refused(&self) -> Outcome<u32> {
        match self.is_error() {
            true => Ok(self.errno()),
            false => Err(Stop::fail(format!("{}: answered with success", self.what))),
        }
    }

    /// The payload as a structure; fails the check where it is shorter.
    pub fn payload<T: zerocopy::FromBytes>(&self) -> Outcome<T> {
        T::read_from_prefix(&self.body).map(|(payload, _)| payload).map_err(|_| {
            Stop::fail(format!("{}: {} bytes of payload, not {}", self.what, self.body.len(), size_of::<T>()))
        })
    }
}

/// An errno for people.
pub fn errno_text(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(0) => "an error without errno".into(),
        Ok(n) => format!("'{}'", crate::error::reason(&std::io::Error::from_raw_os_error(n))),
        Err(_) => format!("errno {errno}"),
    }
}

/// A connection to a server.
pub struct Link {
    stream: Stream,
    timeout: Duration,
    /// The id of the next command.
    pub next_id: u16,
    /// What the server may reach by its own commands, which are answered.
    pub memory: Memory,
}

impl Link {
    /// Takes over a connected socket.
    pub fn new(socket: UnixStream, timeout: Duration) -> Outcome<Link> {
        Ok(Link { stream: Stream::new(socket)?, timeout, next_id: 1, memory: Memory::default() })
    }

    /// A command with the next id, as bytes.
    pub fn command(&mut self, cmd: u16, flags: u32, payload: &[u8]) -> (Header, Vec<u8>) {
        let size = payload.len().saturating_add(limits::HEADER_SIZE);
        let mut header = Header::command(self.next_id, cmd, u32::try_from(size).unwrap_or(u32::MAX));
        header.flags |= flags;
        self.next_id = self.next_id.wrapping_add(1);
        (header, [header.as_bytes(), payload].concat())
    }

    /// Sends bytes as they are, descriptors with the first of them. That the server has closed the
    /// connection is for the next receive to tell.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Outcome {
        match self.stream.send(bytes, fds, Deadline::after(self.timeout))? {
            true => Ok(()),
            false => Err(Trouble::Silent("the server does not read what is sent".into()).into()),
        }
    }

    /// The next message that is not a command of the server's own; `None` at the end of the connection.
    pub fn receive(&mut self, what: &str) -> Outcome<Option<Message>> {
        let deadline = Deadline::after(self.timeout);
        loop {
            match self.stream.receive()? {
                Received::Message(message) if message.header.message_type() == Some(MessageType::Command) => {
                    let reply = serve(&mut self.memory, &message)?;
                    if !message.header.no_reply() {
                        self.send(&reply, &[])?;
                    }
                }
                Received::Message(message) => return Ok(Some(message)),
                Received::End => return Ok(None),
                Received::Nothing => {
                    if !deadline.wait(&mut [PollFd::new(&self.stream, PollFlags::IN)])? {
                        return Err(Trouble::Silent(what.to_string()).into());
                    }
                }
            }
        }
    }

    /// The reply to a command that was sent, as it must look: id, command and type. `None` at the
    /// end of the connection.
    pub fn reply_or_end(&mut self, sent: &Header, what: &str) -> Outcome<Option<Answer>> {
        let Some(Message { header, body, fds }) = self.receive(what)? else { return Ok(None) };
        let fail = |text: String| Err(Stop::fail(format!("{what}: {text}")));
        if header.message_type() != Some(MessageType::Reply) {
            return fail(format!("a message of type {}", header.flags & HeaderFlags::TYPE_MASK.bits()));
        }
        if header.msg_id != sent.msg_id {
            return fail(format!("a reply with id {} to id {}", header.msg_id, sent.msg_id));
        }
        if header.cmd != sent.cmd {
            return fail(format!("a reply with command {} to command {}", header.cmd, sent.cmd));
        }
        Ok(Some(Answer { what: what.to_string(), header, body, fds }))
    }

    /// As [`reply_or_end`](Self::reply_or_end), where the end is trouble.
    pub fn reply(&mut self, sent: &Header, what: &str) -> Outcome<Answer> {
        self.reply_or_end(sent, what)?.ok_or_else(|| Trouble::Gone(what.to_string()).into())
    }

    /// Sends a command and waits for its reply.
    pub fn request(&mut self, cmd: Command, payload: &[u8], what: &str) -> Outcome<Answer> {
        self.request_with(cmd, payload, &[], what)
    }

    /// As [`request`](Self::request), with descriptors.
    pub fn request_with(
        &mut self,
        cmd: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        what: &str,
    ) -> Outcome<Answer> {
        let (header, bytes) = self.command(cmd as u16, 0, payload);
        self.send(&bytes, fds)?;
        self.reply(&header, what)
    }

    /// As [`request`](Self::request), for a reply with up to `room` bytes of payload.
    pub fn request_large(
        &mut self,
        cmd: Command,
        payload: &[u8],
        room: usize,
        what: &str,
    ) -> Outcome<Answer> {
        self.stream.expect(room);
        let answer = self.request(cmd, payload, what);
        self.stream.expect(0);
        answer
    }

    /// Whether the next reply is that to a command sent now: an answer that nobody asked for, or
    /// bytes that were left, would come first.
    pub fn in_step(&mut self, after: &str) -> Outcome {
        let what = format!("DEVICE_GET_INFO after {after}");
        let answer = self.request(Command::DeviceGetInfo, &super::words(&[16, 0, 0, 0]), &what)?;
        answer.done().map(|_| ())
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        Stop::Trouble(trouble)
    }
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        match e {
            Error::Local { .. } | Error::Usage(_) => Stop::Local(e),
            Error::Gone(what) => Trouble::Gone(what).into(),
            Error::Connect { .. } => Trouble::Absent(e.to_string()).into(),
            Error::Silent { what, .. } => Trouble::Silent(what).into(),
            e => Trouble::Broken(e.to_string()).into(),
        }
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Local(Error::memory(errno))
    }
}
