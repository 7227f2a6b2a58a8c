//! The client: what it sent, and what it may therefore expect.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vfio_user::wire::Header;
use zerocopy::FromBytes;

use super::budget;
use crate::peer::{self, HEADER};

const LARGEST_MESSAGE: u32 = (1 << 20) + 32;
/// How long nobody waits for a server that may wait for the client.
const PATIENCE_MS: u16 = 20;

/// A message that the client sent.
struct Sent {
    header: Header,
    is_first: bool,
    /// All of it was sent.
    is_whole: bool,
}

impl Sent {
    /// Whether it is not answered, whatever it is.
    fn is_silent(&self) -> bool {
        self.header.flags & 0x10 != 0 && !self.is_first
    }

    /// Whether it may go unanswered: what is no command can have been taken
    /// for the reply to a DMA message.
    fn is_optional(&self) -> bool {
        self.header.flags & 0xf != 0 || self.is_silent()
    }
}

pub struct Client {
    pub socket: UnixStream,
    twin: Option<UnixStream>,
    incoming: Vec<u8>,
    incoming_fds: Vec<OwnedFd>,
    twin_incoming: Vec<u8>,
    /// Start of the message being sent.
    header: Vec<u8>,
    body_left: usize,
    /// What was sent cannot be followed any more.
    pub is_lost: bool,
    /// It sends no more.
    pub has_ended: bool,
    /// Nothing more will come from the server.
    pub is_over: bool,
    /// The server has sent a command over the first socket.
    was_asked: bool,
    /// A command of the server was not answered, or in a way that makes the
    /// server give up.
    is_unhelpful: bool,
    /// The same, but the server goes on waiting.
    is_mute: bool,
    pub is_attached: bool,
    any_sent: bool,
    sent: VecDeque<Sent>,
    /// Which reply belongs to which message cannot be told any more.
    is_murky: bool,
    next_id: u16,
    /// Descriptors it takes with a message.
    pub max_fds: usize,
    /// How to answer the server's commands.
    pub answers: VecDeque<u8>,
}

impl Client {
    pub fn new(socket: UnixStream, answers: VecDeque<u8>) -> Client {
        Client {
            socket,
            twin: None,
            incoming: Vec::new(),
            incoming_fds: Vec::new(),
            twin_incoming: Vec::new(),
            header: Vec::new(),
            body_left: 0,
            is_lost: false,
            has_ended: false,
            is_over: false,
            was_asked: false,
            is_unhelpful: false,
            is_mute: false,
            is_attached: false,
            any_sent: false,
            sent: VecDeque::new(),
            is_murky: false,
            next_id: 0,
            max_fds: 1,
            answers,
        }
    }

    /// Ends the connection, one way or both. One that still reads goes on to
    /// answer the server's commands, if there is a second socket for that.
    pub fn end(&mut self, how: Shutdown) {
        self.has_ended = true;
        let _ = self.socket.shutdown(how);
        if how == Shutdown::Both {
            self.is_over = true;
            self.end_twin();
        }
    }

    fn end_twin(&mut self) {
        self.is_unhelpful = true;
        if let Some(twin) = &self.twin {
            let _ = twin.shutdown(Shutdown::Both);
        }
    }

    /// Sends as much as the socket takes.
    pub fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut rest = bytes;
        let mut control = Some(control);
        while !rest.is_empty() {
            let part = [IoSlice::new(rest)];
            let control = control.take().unwrap_or_default();
            let Ok(count) = sendmsg::<()>(self.socket.as_raw_fd(), &part, control, flags, None) else {
                return;
            };
            budget::note_bytes(count);
            self.note_sent(&rest[..count]);
            rest = &rest[count..];
        }
    }

    /// Sends a message, or the start of one, that has an id like no other's.
    pub fn send_new(&mut self, mut bytes: Vec<u8>, fds: &[RawFd]) {
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id.to_ne_bytes();
        bytes.iter_mut().zip(id).for_each(|(byte, id)| *byte = id);
        self.send(&bytes, fds);
    }

    fn note_sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_lost {
            let wanted = if self.body_left > 0 { self.body_left } else { HEADER - self.header.len() };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.body_left > 0 {
                self.body_left -= now.len();
                if let (0, Some(last)) = (self.body_left, self.sent.back_mut()) {
                    last.is_whole = true;
                }
                continue;
            }
            self.header.extend_from_slice(now);
            if self.header.len() < HEADER {
                continue;
            }
            let header = Header::read_from_bytes(&self.header).expect("its size");
            self.header.clear();
            budget::note_message();
            self.is_lost = !(HEADER as u32..=LARGEST_MESSAGE).contains(&header.msg_size);
            self.body_left = (header.msg_size as usize).saturating_sub(HEADER);
            let is_first = !std::mem::replace(&mut self.any_sent, true);
            self.sent.push_back(Sent { header, is_first, is_whole: self.body_left == 0 || self.is_lost });
        }
    }

    /// Whether more of a message that was begun has to come.
    pub fn is_amid(&self) -> bool {
        self.body_left > 0 || !self.header.is_empty()
    }

    /// Whether the server may be waiting for an answer that never comes.
    pub fn keeps_waiting(&self) -> bool {
        self.was_asked && self.is_amid() || self.is_mute
    }

    /// Whether the server, left alone, has to answer something, or to hang up.
    pub fn expects(&self) -> bool {
        let is_awaited = |sent: &Sent| sent.is_whole && !sent.is_optional();
        let is_sure = !self.is_murky && !self.keeps_waiting();
        !self.is_over && is_sure && (self.is_lost || self.sent.iter().any(is_awaited))
    }

    /// Reads what there is, and checks it. Says whether there was anything.
    pub fn receive(&mut self) -> bool {
        let mut any = false;
        let mut buffer = vec![0; 0x8000];
        loop {
            let mut control = nix::cmsg_space!([RawFd; 64]);
            let mut part = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let Ok(received) = recvmsg::<()>(self.socket.as_raw_fd(), &mut part, Some(&mut control), flags)
            else {
                // There is nothing; if it is over there never will be.
                self.is_over |= Errno::last() != Errno::EAGAIN;
                break;
            };
            let count = received.bytes;
            for message in received.cmsgs().expect("room for descriptors") {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    // SAFETY: just received.
                    self.incoming_fds.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                }
            }
            assert!(
                self.incoming_fds.len() <= self.max_fds.max(1),
                "{} descriptors",
                self.incoming_fds.len()
            );
            if count == 0 {
                self.is_over = true;
                break;
            }
            any = true;
            budget::note_bytes(count);
            self.incoming.extend_from_slice(&buffer[..count]);
            self.take_messages();
        }
        if let Some(twin) = &self.twin {
            let before = self.twin_incoming.len();
            peer::drain(twin, &mut self.twin_incoming);
            budget::note_bytes(self.twin_incoming.len() - before);
            any |= self.twin_incoming.len() > before;
            while let Some((header, payload)) = peer::take_message(&mut self.twin_incoming) {
                self.answer(&header, &payload, true);
            }
        }
        any
    }

    fn take_messages(&mut self) {
        while let Some((header, payload)) = peer::take_message(&mut self.incoming) {
            match header.flags & 0xf {
                0 => self.answer(&header, &payload, false),
                _ => self.check_reply(&header, &payload),
            }
            self.incoming_fds.clear();
        }
    }

    /// A reply is one to the next message that has to have one.
    fn check_reply(&mut self, header: &Header, payload: &[u8]) {
        let is_error = header.flags == 0x21;
        assert!(is_error || header.flags == 1, "flags {:#x}", header.flags);
        assert_eq!(is_error, header.error_no != 0);
        assert!(!is_error || payload.is_empty());
        let sent = loop {
            let sent = self.sent.pop_front().unwrap_or_else(|| panic!("a reply to nothing: {header:?}"));
            let is_it = |sent: &Sent| (sent.header.msg_id, sent.header.cmd) == (header.msg_id, header.cmd);
            if is_it(&sent) && !sent.is_silent() {
                self.is_murky |= sent.is_optional() && self.sent.iter().any(is_it);
                break sent;
            }
            if !sent.is_optional() && !self.is_murky {
                panic!("{:?} was not answered, but {header:?}", sent.header);
            }
        };
        assert!(sent.is_whole || is_error, "{header:?} before all of the request");
        if self.is_murky {
            return;
        }
        if sent.header.flags & 0xf != 0 || sent.header.msg_size < HEADER as u32 {
            assert!(is_error, "no command, but a success: {header:?}");
        }
        if sent.is_first {
            self.is_attached = !is_error;
            self.is_lost |= is_error;
            if !self.incoming_fds.is_empty() {
                let twin = UnixStream::from(self.incoming_fds.remove(0));
                twin.set_nonblocking(true).expect("a socket");
                self.twin = Some(twin);
            }
        } else if !is_error {
            check_payload(header.cmd, payload);
        }
    }

    /// Answers a command of the server, in one of many ways.
    fn answer(&mut self, header: &Header, payload: &[u8], is_twin: bool) {
        assert!(matches!(header.cmd, 11 | 12), "a command of the server: {header:?}");
        assert_eq!((header.flags, header.error_no), (0, 0));
        let (addr, rest) = payload.split_at(8);
        let count = u64::from_ne_bytes(rest[..8].try_into().expect("eight"));
        assert!((1..=128 << 10).contains(&count));
        assert_eq!(rest.len() as u64 - 8, if header.cmd == 12 { count } else { 0 });
        self.was_asked |= !is_twin;
        self.is_unhelpful |= self.has_ended && !is_twin;
        let kind = self.answers.pop_front().unwrap_or(0);
        let (mut id, mut cmd, mut flags) = (header.msg_id, header.cmd, 1);
        let mut body = [addr, &count.to_ne_bytes()].concat();
        if header.cmd == 11 {
            body.resize(16 + count as usize, kind);
        }
        match kind % 24 {
            1 => id = id.wrapping_add(1),
            2 => cmd ^= 7,
            3 => body.truncate(body.len() - 1),
            4 => body.extend([1, 2, 3]),
            5 => flags = 0x21,
            6 => body[0] ^= 1,
            7 => body[8] ^= 1,
            8 => body.truncate(12),
            9 => flags = 2,
            10 => body.clear(),
            _ => {}
        }
        let mut bytes = peer::message(id, cmd, flags, &body);
        match kind % 24 {
            5 => bytes[12..16].copy_from_slice(&[[0, 5, 0xff][usize::from(kind / 24) % 3], 0x0f, 0, 0]),
            11 => bytes[4..8].copy_from_slice(&3_u32.to_ne_bytes()),
            12 => bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes()),
            13 => bytes.extend(peer::message(77, 13, 0, &[])),
            14 => {
                // Commands that cross, one of them with descriptors.
                let crossing =
                    [peer::message(78, 4, 0, &peer::words(&[16, 0, 0, 0])), peer::message(79, 13, 0x10, &[])];
                bytes = [crossing.concat(), bytes].concat();
            }
            15 => bytes = [bytes.clone(), bytes].concat(),
            16 => return self.end(Shutdown::Both),
            17 => {
                self.is_unhelpful = true;
                self.is_mute = is_twin;
                return self.end(Shutdown::Write);
            }
            18 => bytes.truncate(bytes.len() / 2),
            // A late one, then the right one.
            21 => bytes = [peer::message(id.wrapping_sub(1), cmd, flags, &body), bytes].concat(),
            22 if is_twin => return self.end_twin(),
            // None at all.
            22 => {
                self.is_mute = true;
                return;
            }
            _ => {}
        }
        // Over the wrong socket.
        let is_astray = is_twin && kind % 24 == 23;
        self.is_unhelpful |= is_twin && matches!(kind % 24, 11 | 12);
        self.is_mute |= is_astray || is_twin && kind % 24 == 18;
        let is_twin = is_twin && !is_astray;
        if !is_twin {
            let (first, second) = bytes.split_at(if kind % 24 == 19 { 7 } else { 0 });
            let fds = [self.socket.as_raw_fd()];
            self.send(first, &[]);
            return self.send(second, if kind % 24 == 20 { &fds } else { &[] });
        }
        let twin = self.twin.as_ref().expect("it came from there");
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(twin.as_raw_fd(), &[IoSlice::new(&bytes)], &[], flags, None);
        budget::note_bytes(bytes.len());
        self.is_mute |= sent != Ok(bytes.len());
    }

    /// The connection is no more: if all that the client did was to say that it
    /// sends no more, everything before that was answered.
    pub fn assert_served(&self) {
        let gave_up = self.is_unhelpful || self.keeps_waiting();
        if self.is_attached && self.has_ended && !self.is_lost && !gave_up {
            self.assert_answered();
        }
    }

    /// Duplicates of the sockets that something may come from.
    pub fn open_sockets(&self) -> Vec<OwnedFd> {
        let (main, twin) = (self.socket.as_fd(), self.twin.as_ref().map(AsFd::as_fd));
        let open = [Some(main), twin].into_iter().flatten().filter(|_| !self.is_over);
        open.map(|socket| socket.try_clone_to_owned().expect("descriptors")).collect()
    }

    /// Nothing that had to be answered is left, if the server has nothing left
    /// to do.
    pub fn assert_answered(&self) {
        let left = self.sent.iter().find(|sent| sent.is_whole && !sent.is_optional());
        assert!(left.is_none() || self.is_murky, "{:?} was not answered", left.map(|sent| sent.header));
        assert!(self.incoming.is_empty(), "half a message");
    }
}

fn check_payload(cmd: u16, payload: &[u8]) {
    let size = payload.len();
    let word = |at: usize| u32::from_ne_bytes(payload[at..at + 4].try_into().expect("four"));
    match cmd {
        2 | 8 | 13 | 18 => assert_eq!(size, 0),
        3 => assert!(size == 0 || size == 24 || size >= 48 && size.is_multiple_of(8)),
        4 => assert_eq!(payload, peer::words(&[16, 3, 9, 5])),
        5 => assert!(size >= 32),
        6 => assert!((size - 16).is_multiple_of(48)),
        7 => assert_eq!((size, word(0)), (16, 16)),
        9 => assert_eq!(size, if size == 0 { 0 } else { 16 + word(12) as usize }),
        10 => assert!(size == 16 || size == 0),
        15 => assert_eq!(size, 8),
        16 => assert!(size >= 8),
        17 => assert_eq!((word(0) as usize, word(4) as usize), (size, size - 8)),
        _ => panic!("command {cmd} cannot succeed"),
    }
}

/// The client, for this thread and the one that answers.
pub type Shared = Mutex<Option<Client>>;

pub fn lock(client: &Shared) -> MutexGuard<'_, Option<Client>> {
    client.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what may wait for the client, which meanwhile, on another thread,
/// answers the server's commands and takes its replies. If nothing moves any
/// more the client goes: nobody waits for ever.
pub fn while_answering<R>(client: &Shared, f: impl FnOnce() -> R) -> R {
    let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("descriptors");
    if let Some(client) = lock(client).as_mut() {
        client.was_asked = false;
    }
    std::thread::scope(|scope| {
        let done = &done;
        let helper = scope.spawn(move || {
            loop {
                let sockets = lock(client).as_mut().map_or_else(Vec::new, |client| {
                    while client.receive() {}
                    if client.keeps_waiting() {
                        client.end(Shutdown::Both);
                    }
                    client.open_sockets()
                });
                let mut fds = vec![PollFd::new(done.as_fd(), PollFlags::POLLIN)];
                fds.extend(sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
                let ready = poll(&mut fds, PollTimeout::from(PATIENCE_MS));
                if fds[0].any() == Some(true) {
                    return;
                }
                if ready == Ok(0)
                    && let Some(client) = lock(client).as_mut()
                {
                    client.receive();
                    client.end(Shutdown::Both);
                }
            }
        });
        let result = f();
        done.write(1).expect("room for one");
        if let Err(panic) = helper.join() {
            std::panic::resume_unwind(panic);
        }
        result
    })
}

/// A socket error that says nothing of the library.
pub fn is_refused(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused)
}
