//! A received message.

use std::os::fd::OwnedFd;

use super::allowance::Cost;
use super::buffer::Buffer;
use crate::wire::{Errno, Header};

/// A whole message. It owns its bytes and its descriptors: nothing that is
/// received later moves or closes them.
#[derive(Debug)]
pub struct Message {
    /// Its header, as received.
    pub header: Header,
    /// Descriptors that came with it. They are closed when they are not taken.
    pub fds: Vec<OwnedFd>,
    /// Some of the descriptors that were sent are missing: what it is refused
    /// with. `EINVAL`: the kernel could not hand over all. `EMFILE`: they were
    /// more than may wait.
    pub missing_fds: Option<Errno>,
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Message {
    /// A message that is still to be filled in.
    pub(super) fn new(buffer: Buffer) -> Message {
        let header = Header { msg_id: 0, cmd: 0, msg_size: 0, flags: 0, error_no: 0 };
        Message { header, fds: Vec::new(), missing_fds: None, buffer, start: 0, end: 0 }
    }

    /// What follows the header. It starts at a multiple of 8.
    pub fn payload(&self) -> &[u8] {
        self.buffer.range(self.start, self.end)
    }

    /// What follows the header, for a callback that may write to it.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.buffer.range_mut(self.start, self.end)
    }

    /// What it takes to let it wait.
    pub(super) fn cost(&self) -> Cost {
        Cost { commands: 1, bytes: self.payload().len(), fds: self.fds.len() }
    }

    /// Moves to a buffer of just its size, to wait. (If there is no memory for
    /// that, it stays where it is.)
    pub(super) fn compact(&mut self) {
        let payload = self.buffer.range(self.start, self.end);
        if let Ok(mut small) = Buffer::new(payload.len()) {
            small.range_mut(0, payload.len()).copy_from_slice(payload);
            (self.start, self.end) = (0, payload.len());
            self.buffer = small;
        }
    }
}

/// What stands next in the stream.
#[derive(Debug)]
pub enum Next {
    /// A whole message.
    Message(Box<Message>),
    /// A header that is answered with `EINVAL`. The body that it announces is
    /// dropped as it arrives.
    Refused(Header),
    /// A header whose size is no size of a message, so that nothing is known
    /// of where the next one starts. It is answered, then the connection is
    /// lost.
    Unfollowable(Header),
    /// No whole message yet.
    Nothing,
}
