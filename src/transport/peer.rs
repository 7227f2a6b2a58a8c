//! The other process of a hand-over: messages of a few bytes, with descriptors, over a
//! UNIX socket that keeps messages whole (`SOCK_SEQPACKET`).
//!
//! Nothing waits here but [`wait`](Peer::wait), which has an end.

use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixCredentials, getsockopt};
use zerocopy::IntoBytes;

use super::address::{Address, socket};
use super::control::{self, Header as SocketHeader};
use crate::handover::{Incoming, Kind, Message};
use crate::memory;
use crate::wire::limits::SCM_MAX_FD;
use crate::wire::{Errno, Result};

/// What became of an attempt to receive.
#[derive(Debug)]
pub enum Heard {
    /// A message, and the descriptors that came with it.
    Message(Message, Vec<OwnedFd>),
    /// Nothing has come.
    Nothing,
    /// The other process has closed its end, or is no more.
    End,
}

/// The other process.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    header: Box<SocketHeader>,
}

impl Peer {
    /// Over a connected socket.
    pub fn new(socket: OwnedFd) -> Result<Peer> {
        Ok(Peer { socket, header: SocketHeader::new()? })
    }

    /// Over one that was handed in, which stays open if this fails.
    pub fn handed(socket: OwnedFd) -> Result<Peer> {
        match SocketHeader::new() {
            Ok(header) => Ok(Peer { socket, header }),
            Err(errno) => {
                let _ = socket.into_raw_fd();
                Err(errno)
            }
        }
    }

    /// Gives the descriptor back to who handed it in.
    pub fn leak(self) {
        let _ = self.socket.into_raw_fd();
    }

    /// Connects to the one that listens at a path.
    pub fn connect(path: &[u8]) -> Result<Peer> {
        let socket = socket(libc::SOCK_SEQPACKET, true)?;
        Address::new(path)?.connect(&socket)?;
        Peer::new(socket)
    }

    /// The socket.
    pub fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Who connected, or who listened.
    pub fn credentials(&self) -> Result<UnixCredentials> {
        Ok(getsockopt(&self.socket, PeerCredentials)?)
    }

    /// Says something. `EPIPE` and the like if nobody is there.
    pub fn say(&self, message: &Message) -> Result<()> {
        self.send(message, &[])
    }

    fn send(&self, message: &Message, fds: &[RawFd]) -> Result<()> {
        let pieces = [control::piece(message.as_bytes())];
        loop {
            match control::send(self.socket(), &pieces, fds, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends an image, and the descriptors that it names.
    pub fn send_image(&self, kind: Kind, image: &[u8], fds: &[RawFd]) -> Result<()> {
        let file = File::from(memfd_create(
            "vfio-user-hand-over",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?);
        file.write_all_at(image, 0).map_err(from_io)?;
        // So that who reads it need not fear that it changes.
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let mut message = Message::with_image(kind, image.len(), fds.len());
        let mut rest = fds;
        let mut first = Some(file.as_raw_fd());
        loop {
            let room = SCM_MAX_FD.saturating_sub(usize::from(first.is_some()));
            let (now, later) = rest.split_at(rest.len().min(room));
            let mut part = Vec::new();
            memory::reserve(&mut part, SCM_MAX_FD)?;
            part.extend(first.take());
            part.extend_from_slice(now);
            self.send(&message, &part)?;
            rest = later;
            message = Message::plain(Kind::More);
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Receives a message, if there is one.
    pub fn hear(&mut self) -> Result<Heard> {
        // One byte more than any message has, so that a longer one shows.
        let mut bytes = [0; Message::SIZE + 1];
        // Who goes while something lies unread resets the connection, and of a socket of
        // this type that is told before what it has said last.
        let mut is_reset = false;
        let received = loop {
            let message = self.header.prepare(control::piece_mut(&mut bytes), None);
            // SAFETY: the header and the bytes stay in place during the call.
            match unsafe { control::receive(self.socket.as_raw_fd(), message, libc::MSG_DONTWAIT) } {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Err(Errno::ECONNRESET) if !is_reset => is_reset = true,
                Err(Errno::ECONNRESET) => return Ok(Heard::End),
                Err(errno) => return Err(errno),
                Ok(count) => break count,
            }
        };
        let mut fds = Vec::new();
        let is_cut = self.header.collect(&mut fds);
        if received == 0 {
            return Ok(Heard::End);
        }
        Errno::EMFILE.unless(!is_cut, "descriptors of the other process could not be taken")?;
        let whole = bytes.get(..received).filter(|bytes| bytes.len() == Message::SIZE);
        let message = Message::read(whole.unwrap_or_default())?;
        Ok(Heard::Message(message, fds))
    }

    /// Waits for a message until a deadline: `ETIMEDOUT` then. A refusal comes as its
    /// errno, and the end as `ECONNRESET`.
    pub fn expect(&mut self, kind: Kind, deadline: Instant) -> Result<(Message, Vec<OwnedFd>)> {
        loop {
            match self.hear()? {
                Heard::Nothing => self.wait(deadline)?,
                Heard::End => return Err(Errno::ECONNRESET.because("the other process has gone")),
                Heard::Message(message, fds) => match message.kind()? {
                    Kind::No => return Err(message.errno().because("the other process refuses")),
                    found if found == kind => return Ok((message, fds)),
                    _ => return Err(Errno::EPROTO.because("a message that does not belong here")),
                },
            }
        }
    }

    /// Waits until something can be heard, or until a deadline: `ETIMEDOUT` then.
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::ETIMEDOUT.because("the other process takes too long"));
        }
        let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
        let mut socket = libc::pollfd { fd: self.socket(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, good for reads and writes.
        match unsafe { libc::poll(&mut socket, 1, millis) } {
            0.. => Ok(()),
            _ => match Errno::last() {
                Errno::EINTR => Ok(()),
                errno => Err(errno),
            },
        }
    }

    /// Waits for an image of a kind, with all the descriptors that it names.
    pub fn expect_image(&mut self, kind: Kind, deadline: Instant) -> Result<Incoming> {
        let (message, mut fds) = self.expect(kind, deadline)?;
        let (size, count) = message.image()?;
        if fds.is_empty() {
            return Err(Errno::EPROTO.because("an image is missing"));
        }
        let file = File::from(fds.remove(0));
        while fds.len() < count {
            let (_, mut more) = self.expect(Kind::More, deadline)?;
            Errno::EPROTO.unless(!more.is_empty(), "descriptors are missing")?;
            memory::reserve(&mut fds, more.len())?;
            fds.append(&mut more);
        }
        Errno::EPROTO.unless(fds.len() == count, "there are more descriptors than are named")?;
        Incoming::new(read_image(&file, size)?, fds)
    }

    /// From now on nothing that the other process says arrives.
    pub fn stop_listening(&self) {
        // SAFETY: no pointers.
        unsafe { libc::shutdown(self.socket(), libc::SHUT_RD) };
    }
}

/// What a file in memory holds, which does not change any more.
fn read_image(file: &File, size: usize) -> Result<Vec<u8>> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    let is_sealed = seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE);
    let length = file.metadata().map_err(from_io)?.len();
    Errno::EPROTO.unless(is_sealed && length == size as u64, "an image is not as large as it should be")?;
    let mut image = Vec::new();
    memory::reserve(&mut image, size)?;
    image.resize(size, 0);
    file.read_exact_at(&mut image, 0).map_err(from_io)?;
    Ok(image)
}

fn from_io(error: std::io::Error) -> Errno {
    Errno::new(error.raw_os_error().unwrap_or(libc::EIO))
}
