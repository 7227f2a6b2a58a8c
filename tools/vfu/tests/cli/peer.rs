//! One end of a connection, byte by byte.

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const RESET: u16 = 13;

/// A message of the client.
pub struct Request {
    pub id: u16,
    pub cmd: u16,
    pub flags: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Request {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.body[at..at + 8].try_into().unwrap())
    }
}

/// The numbers one after the other, as 32 bits each.
pub fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The numbers one after the other, as 64 bits each.
pub fn quads(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A message with its header.
pub fn message(id: u16, cmd: u16, flags: u32, errno: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), cmd.to_le_bytes()].concat();
    bytes.extend(words(&[16 + body.len() as u32, flags, errno]));
    bytes.extend_from_slice(body);
    bytes
}

pub struct Conn {
    pub stream: UnixStream,
}

impl Conn {
    /// The next message; `None` when the client has gone.
    pub fn next(&mut self) -> Option<Request> {
        let mut fds = Vec::new();
        let head = self.exactly(16, &mut fds)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (id, cmd) = ((word(0) & 0xffff) as u16, (word(0) >> 16) as u16);
        let body = self.exactly(word(4) as usize - 16, &mut fds)?;
        Some(Request { id, cmd, flags: word(8), body, fds })
    }

    /// So many bytes, and the descriptors that come with them; `None` at the end of the stream.
    pub fn exactly(&mut self, count: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut have = 0;
        while have < count {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let room = &mut [IoSliceMut::new(&mut bytes[have..])];
            have += match recvmsg(&self.stream, room, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) if got.bytes > 0 => got.bytes,
                _ => return None,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
        }
        Some(bytes)
    }

    /// Sends bytes as they are. The client may have left.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_with_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    pub fn reply(&mut self, request: &Request, body: &[u8]) {
        self.send(&message(request.id, request.cmd, 1, 0, body));
    }

    pub fn error(&mut self, request: &Request, errno: i32) {
        self.send(&message(request.id, request.cmd, 0x21, errno as u32, &[]));
    }

    /// Answers the version message, after a look at it.
    pub fn negotiate(&mut self, json: &str) {
        let request = self.next().unwrap();
        assert_eq!((request.cmd, request.flags, request.body[..4].to_vec()), (VERSION, 0, vec![0, 0, 2, 0]));
        let body = [&[0, 0, 2, 0], json.as_bytes(), &[0]].concat();
        self.reply(&request, &body);
    }

    /// Reads to the end, so that closing does not reset the connection.
    pub fn drain(mut self) {
        while self.next().is_some() {}
    }
}

/// A server for one connection in its own thread.
pub struct Peer<T> {
    dir: tempfile::TempDir,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Peer<T> {
    /// Listens, and runs `script` with the first connection.
    pub fn new(script: impl FnOnce(Conn) -> T + Send + 'static) -> Peer<T> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            script(Conn { stream })
        });
        Peer { dir, thread }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// What the script returned.
    pub fn done(self) -> T {
        self.thread.join().unwrap()
    }
}

/// Adds one to an eventfd.
pub fn signal(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// A path in a folder of its own where nobody listens.
pub fn nowhere() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = dir.path();
    let path = path.join("nobody");
    (dir, path)
}
