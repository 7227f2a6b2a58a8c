//! One direction of a socket, passed on.
//!
//! What one `recvmsg()` gives goes out with one `sendmsg()`: the same bytes,
//! and the same descriptors with the same byte. While that has not gone out
//! whole, nothing more is received, so that who doesn't read holds up who
//! writes, as without anything in between.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg,
};
use vfio_user::wire::limits;

/// Bytes that are received at a time; more than a socket holds by default.
pub const PIECE: usize = 256 << 10;

/// What came with one receive.
#[derive(Debug, Default)]
pub struct Piece {
    /// The bytes, at least one.
    pub bytes: Vec<u8>,
    /// The descriptors that were sent with the first of them.
    pub fds: Vec<OwnedFd>,
}

/// What [`Pipe::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// Something, in the order in which it is to be passed on.
    Pieces(Vec<Piece>),
    /// Nothing at the moment.
    Nothing,
    /// The sender will send no more.
    End,
}

/// One direction: from one socket to another.
#[derive(Debug, Default)]
pub struct Pipe {
    /// What has been received and not gone out whole.
    waiting: VecDeque<Piece>,
    /// Bytes of the first that have.
    sent: usize,
    /// Nothing more will be received.
    has_ended: bool,
    /// Nor will anything be sent.
    is_over: bool,
}

impl Pipe {
    /// Whether it can receive.
    pub fn wants(&self) -> bool {
        self.waiting.is_empty() && !self.has_ended
    }

    /// Whether something waits to be sent.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether it has nothing to do any more.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Receives once.
    pub fn receive(&mut self, from: impl AsFd, room: &mut [u8]) -> Result<Received, Errno> {
        match receive(from.as_fd(), room) {
            Ok(pieces) if !pieces.is_empty() => Ok(Received::Pieces(pieces)),
            // With what it has not read still there, a peer that closes resets the connection.
            Ok(_) | Err(Errno::CONNRESET) => {
                self.has_ended = true;
                Ok(Received::End)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(e) => Err(e),
        }
    }

    /// What is to be sent, behind what waits.
    pub fn put(&mut self, piece: Piece) {
        self.waiting.push_back(piece);
    }

    /// Sends what waits, as far as there is room for it, and then passes on the end of the
    /// stream, if that has come. An error is one of this program; that a peer has gone is none.
    pub fn send(&mut self, from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
        while let Some(piece) = self.waiting.front_mut() {
            let rest = piece.bytes.get(self.sent..).unwrap_or_default();
            match send(to.as_fd(), rest, &piece.fds) {
                Ok(count) => {
                    // They have gone with the first byte.
                    piece.fds.clear();
                    self.sent = self.sent.saturating_add(count);
                    if self.sent >= piece.bytes.len() {
                        self.waiting.pop_front();
                        self.sent = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.abandon(from);
                    return Ok(());
                }
                Err(e) => {
                    self.abandon(from);
                    return Err(e);
                }
            }
        }
        if self.has_ended && !self.is_over {
            self.is_over = true;
            // The peer may have gone.
            let _ = rustix::net::shutdown(to, Shutdown::Write);
        }
        Ok(())
    }

    /// The receiver has gone: the sender gets to know when it sends, as it would from the
    /// receiver itself.
    pub fn abandon(&mut self, from: impl AsFd) {
        self.waiting.clear();
        if !self.is_over {
            self.has_ended = true;
            self.is_over = true;
            // The sender may have gone, too.
            let _ = rustix::net::shutdown(from, Shutdown::Read);
        }
    }
}

/// The next piece, or two; none at the end of the stream.
///
/// One receive can give what was sent in several sends, the last of them with descriptors, and
/// doesn't say with which byte those were sent. So there is a look first, which finds descriptors
/// that are ahead, however far: Linux goes on to the next send even when a look has no room left.
/// Then the bytes come one by one until they are there. Most of the time that is the first.
fn receive(from: BorrowedFd<'_>, room: &mut [u8]) -> Result<Vec<Piece>, Errno> {
    let (ahead, fds) = receive_some(from, room, RecvFlags::PEEK)?;
    if fds.is_empty() {
        let piece = exactly(from, room, ahead)?;
        return Ok(if piece.bytes.is_empty() { vec![] } else { vec![piece] });
    }
    drop(fds);
    let (mut pieces, mut without) = (Vec::new(), Piece::default());
    while without.bytes.len() < ahead {
        let mut piece = exactly(from, room, 1)?;
        if piece.fds.is_empty() {
            if piece.bytes.is_empty() {
                break;
            }
            without.bytes.append(&mut piece.bytes);
            continue;
        }
        // The look has not gone beyond the send that they came with.
        let rest = ahead.saturating_sub(without.bytes.len()).saturating_sub(1);
        if rest > 0 {
            piece.bytes.append(&mut exactly(from, room, rest)?.bytes);
        }
        pieces.push(piece);
        break;
    }
    if !without.bytes.is_empty() {
        pieces.insert(0, without);
    }
    Ok(pieces)
}

/// Receives bytes that are known to be there.
fn exactly(from: BorrowedFd<'_>, room: &mut [u8], count: usize) -> Result<Piece, Errno> {
    let room = room.get_mut(..count).unwrap_or_default();
    let (count, fds) = receive_some(from, room, RecvFlags::empty())?;
    Ok(Piece { bytes: room.get(..count).unwrap_or_default().to_vec(), fds })
}

fn receive_some(
    from: BorrowedFd<'_>,
    room: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(room)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // There is room for all that one send can carry, so the kernel cuts them only where this
    // process may not have that many.
    match got.flags.contains(ReturnFlags::CTRUNC) {
        true => Err(Errno::MFILE),
        false => Ok((got.bytes, fds)),
    }
}

fn send(to: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> Result<usize, Errno> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let rights = SendAncillaryMessage::ScmRights(&fds);
    let mut space = vec![MaybeUninit::uninit(); if fds.is_empty() { 0 } else { rights.size() }];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(rights) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}
