//! Whole messages over a socket, with their descriptors, before a deadline.
//!
//! A message is read by its header's size and never beyond, so descriptors
//! always belong to the message that they arrive with.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vfio_user::wire::{Header, limits, take};

use super::deadline::Deadline;
use super::tap::Wire;
use crate::error::{Error, Result};

/// Descriptors that this client takes with one message.
pub const MAX_MSG_FDS: usize = 16;

/// Messages that are kept while the server doesn't read what is sent to it.
const MAX_WAITING: usize = 16;

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its header; `msg_size` is the size of header and body.
    pub header: Header,
    /// What follows the header.
    pub body: Vec<u8>,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// What [`Stream::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Nothing, or a message that isn't whole yet.
    Nothing,
    /// The other side has closed the connection.
    End,
}

/// A message that is being received.
#[derive(Default)]
struct Partial {
    head: [u8; limits::HEADER_SIZE],
    header: Option<Header>,
    body: Vec<u8>,
    /// Bytes received of the head or, once there is a header, of the body.
    have: usize,
    fds: Vec<OwnedFd>,
}

impl Partial {
    fn is_empty(&self) -> bool {
        self.header.is_none() && self.have == 0
    }

    /// The room for the bytes to come, and the place for descriptors.
    fn room(&mut self) -> (&mut [u8], &mut Vec<OwnedFd>) {
        let whole = if self.header.is_some() { &mut self.body[..] } else { &mut self.head[..] };
        (whole.get_mut(self.have..).unwrap_or_default(), &mut self.fds)
    }

    /// Takes note of `count` bytes that were put into the room. Messages above
    /// `largest` bytes are refused before there is memory for them.
    fn filled(&mut self, count: usize, largest: usize) -> Result<()> {
        self.have = self.have.saturating_add(count);
        if self.header.is_some() || self.have < limits::HEADER_SIZE {
            return Ok(());
        }
        let (header, _) = take::<Header>(&self.head).map_err(|e| Error::Protocol(e.to_string()))?;
        let size = usize::try_from(header.msg_size).unwrap_or(usize::MAX);
        let Some(body) = size.checked_sub(limits::HEADER_SIZE).filter(|_| size <= largest) else {
            return Err(match as_text(&self.head) {
                Some(text) => Error::Stranger(format!(
                    "what answers is no vfio-user server: it begins with '{text}'; is this the right socket?"
                )),
                None => Error::Protocol(format!("a header that says the message has {size} bytes")),
            });
        };
        self.header = Some(header);
        self.body = vec![0; body];
        self.have = 0;
        Ok(())
    }

    /// The message, if it is whole; then this is ready for the next one.
    fn take_whole(&mut self) -> Option<Message> {
        let header = self.header.filter(|_| self.have == self.body.len())?;
        let Partial { body, fds, .. } = std::mem::take(self);
        Some(Message { header, body, fds })
    }
}

/// The bytes as text, if they are the beginning of one: other protocols that are spoken over
/// sockets in the same folders, as QMP or HTTP, are made of it.
fn as_text(bytes: &[u8]) -> Option<&str> {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    std::str::from_utf8(bytes).ok().filter(|_| bytes.iter().all(is_text)).map(str::trim)
}

/// One end of a connection.
pub struct Stream {
    socket: UnixStream,
    /// Which one it is, to those who look on.
    wire: Option<Wire>,
    partial: Partial,
    waiting: VecDeque<Message>,
    /// Bytes of the largest message that is received.
    largest: usize,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// Talks over `socket`, which becomes non-blocking.
    pub fn new(socket: UnixStream) -> Result<Stream> {
        Stream::on(Wire::new(), socket)
    }

    /// The same for the second socket of this connection.
    pub fn twin(&self, socket: UnixStream) -> Result<Stream> {
        Stream::on(self.wire.map(|wire| Wire { is_twin: true, ..wire }), socket)
    }

    fn on(wire: Option<Wire>, socket: UnixStream) -> Result<Stream> {
        socket.set_nonblocking(true).map_err(|e| Error::local("socket", e))?;
        let largest = limits::MAX_MESSAGE_SIZE;
        Ok(Stream { socket, wire, partial: Partial::default(), waiting: VecDeque::new(), largest })
    }

    /// From now on takes messages whose body has up to `body` bytes, and those
    /// that are always taken.
    pub fn expect(&mut self, body: usize) {
        self.largest = body.saturating_add(limits::HEADER_SIZE).max(limits::MAX_MESSAGE_SIZE);
    }

    /// Sends `message` whole, `fds` with its first byte. False if the deadline
    /// comes first. If the server has hung up, that is for the next
    /// [`receive`](Self::receive) to tell: its last answer may wait there.
    pub fn send(&mut self, message: &[u8], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<bool> {
        let mut rest = message;
        let mut fds = fds;
        while !rest.is_empty() {
            match send_some(&self.socket, rest, fds) {
                Ok(sent) => {
                    let (gone, left) = rest.split_at_checked(sent).unwrap_or((rest, &[]));
                    if let Some(wire) = self.wire {
                        wire.piece(true, gone, fds);
                    }
                    rest = left;
                    fds = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait_for_room(deadline)? {
                        return Ok(false);
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(true),
                Err(e) => return Err(Error::local("sendmsg", e)),
            }
        }
        Ok(true)
    }

    /// Waits for room to send, taking in what the server sends in the meantime:
    /// it may not read before it has got rid of that.
    fn wait_for_room(&mut self, deadline: Deadline) -> Result<bool> {
        let mut events = PollFlags::OUT;
        if self.waiting.len() < MAX_WAITING {
            events |= PollFlags::IN;
        }
        let mut polled = [PollFd::new(&self.socket, events)];
        if !deadline.wait(&mut polled)? {
            return Ok(false);
        }
        let readable = polled.iter().any(|p| p.revents().contains(PollFlags::IN));
        if readable && let Received::Message(message) = self.receive_new()? {
            self.waiting.push_back(message);
        }
        Ok(true)
    }

    /// The next message, without waiting.
    pub fn receive(&mut self) -> Result<Received> {
        match self.waiting.pop_front() {
            Some(message) => Ok(Received::Message(message)),
            None => self.receive_new(),
        }
    }

    fn receive_new(&mut self) -> Result<Received> {
        loop {
            if let Some(message) = self.partial.take_whole() {
                return Ok(Received::Message(message));
            }
            let (room, fds) = self.partial.room();
            let before = fds.len();
            let got = match receive_some(&self.socket, room, fds) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => 0,
                Err(e) => return Err(Error::local("recvmsg", e)),
            };
            if let Some(wire) = self.wire.filter(|_| got > 0) {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().skip(before).map(AsFd::as_fd).collect();
                wire.piece(false, room.get(..got).unwrap_or_default(), &fds);
            }
            if self.partial.fds.len() > MAX_MSG_FDS {
                let text = format!("more than the agreed {MAX_MSG_FDS} descriptors with a message");
                return Err(Error::Protocol(text));
            }
            if got == 0 {
                // Shorter than any message of this protocol.
                let begun = self.partial.head.get(..self.partial.have);
                if self.partial.header.is_none()
                    && self.partial.have > 0
                    && let Some(text) = begun.and_then(as_text)
                {
                    return Err(Error::Stranger(format!(
                        "what answers is no vfio-user server: it says '{text}'; is this the right socket?"
                    )));
                }
                return match self.partial.is_empty() {
                    true => Ok(Received::End),
                    false => Err(Error::Gone("in the middle of a message".into())),
                };
            }
            self.partial.filled(got, self.largest)?;
        }
    }
}

fn send_some(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let rights = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(rights) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// Receives what there is, `room.len()` bytes at the most; 0 at the end.
fn receive_some(socket: &UnixStream, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // There is room for all that one message can carry, so the kernel cuts
    // them only where this process may not open that many.
    match got.flags.contains(ReturnFlags::CTRUNC) {
        true => Err(Errno::MFILE),
        false => Ok(got.bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use zerocopy::IntoBytes;

    use super::*;

    /// Sends a message with so many bytes behind its header to a stream that
    /// expects up to `expected`: the size of the body it gets.
    fn receive(body: usize, expected: usize) -> Result<usize> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(ours)?;
        stream.expect(expected);
        let sender = std::thread::spawn(move || {
            let header = Header::command(1, 16, (body + limits::HEADER_SIZE) as u32);
            // The other side may have left after the header.
            let _ = theirs.write_all(&[header.as_bytes(), &vec![7; body]].concat());
        });
        let received = loop {
            match stream.receive() {
                Ok(Received::Message(message)) => break Ok(message.body.len()),
                Ok(Received::End) => break Ok(0),
                Ok(Received::Nothing) => {
                    let mut polled = [PollFd::new(&stream, PollFlags::IN)];
                    assert!(Deadline::after(Duration::from_secs(30)).wait(&mut polled)?);
                }
                Err(e) => break Err(e),
            }
        };
        drop(stream);
        sender.join().unwrap();
        received
    }

    #[test]
    fn only_what_is_expected_may_be_large() {
        let usual = limits::MAX_MESSAGE_SIZE - limits::HEADER_SIZE;
        for (body, expected) in [(0, 0), (usual, 0), (usual, 9), (5 << 20, 5 << 20)] {
            assert_eq!(receive(body, expected).unwrap(), body);
        }
        for (body, expected) in [(usual + 1, 0), ((5 << 20) + 1, 5 << 20), (300 << 20, 0)] {
            assert!(matches!(receive(body, expected), Err(Error::Protocol(_))), "{body}");
        }
    }
}
