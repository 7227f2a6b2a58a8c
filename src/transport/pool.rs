//! What waits for its next use, so that requests allocate nothing.

use super::buffer::{Buffer, FIRST, SHORT, STANDARD};
use super::message::Message;
use crate::memory;
use crate::wire::{Result, limits};

/// Size of the buffers for large messages: any request, and any reply to a
/// transfer of the largest size, fits.
const LARGE: usize = limits::MAX_MESSAGE_SIZE + 64;

/// Buffers that wait for their next use, so that requests allocate nothing.
///
/// It belongs to one connection: what lies in a buffer was written by, or is
/// meant for, this client alone.
#[derive(Debug, Default)]
pub struct Pool {
    short: Vec<Buffer>,
    first: Vec<Buffer>,
    standard: Vec<Buffer>,
    large: Vec<Buffer>,
    /// How often there was nothing to do since one of the large ones was used last.
    idle: u32,
    /// With a short, a first or a standard buffer each. They go through many hands,
    /// hence as pointers.
    messages: [Option<Box<Message>>; KEEP_MESSAGES],
}

/// How many buffers of a kind are kept: one that is received into, one that a
/// request lies in, one that its reply is written to, and one for a request or
/// reply that another is nested in.
const KEEP_STANDARD: usize = 4;
const KEEP_LARGE: usize = 2;
/// So many times in a row there is nothing to do before the large ones are given
/// back to the system.
const IDLE: u32 = 1 << 14;

/// How many messages are kept: one that is handled, and one that is received
/// while the first is.
const KEEP_MESSAGES: usize = 2;

impl Pool {
    /// A buffer of at least `size` bytes; what it holds is of no meaning.
    pub fn take(&mut self, size: usize) -> Result<Buffer> {
        let (kept, capacity) = if size <= SHORT {
            (&mut self.short, SHORT)
        } else if size <= FIRST {
            (&mut self.first, FIRST)
        } else if size <= STANDARD {
            (&mut self.standard, STANDARD)
        } else if size <= LARGE {
            self.idle = 0;
            (&mut self.large, LARGE)
        } else {
            return Buffer::new(size);
        };
        match kept.pop() {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(capacity),
        }
    }

    /// Takes a buffer back. Those of unusual sizes are given back to the
    /// system, and so are those beyond the few that are kept.
    pub fn put(&mut self, buffer: Buffer) {
        let (kept, most) = match buffer.len() {
            SHORT => (&mut self.short, KEEP_STANDARD),
            FIRST => (&mut self.first, KEEP_STANDARD),
            STANDARD => (&mut self.standard, KEEP_STANDARD),
            n if n == LARGE.next_multiple_of(size_of::<u64>()) => (&mut self.large, KEEP_LARGE),
            _ => return,
        };
        if kept.len() < most {
            // Without room for it, it is given back, too.
            let _ = memory::push(kept, buffer);
        }
    }

    /// Says that there is nothing to do.
    #[inline(always)]
    pub fn rest(&mut self) {
        if !self.large.is_empty() {
            self.rest_longer();
        }
    }

    #[cold]
    fn rest_longer(&mut self) {
        self.idle = self.idle.saturating_add(1);
        if self.idle >= IDLE {
            self.large = Vec::new();
        }
    }

    /// A message to be filled in, with a buffer of any size and no descriptors.
    #[inline(always)]
    pub fn take_message(&mut self) -> Result<Box<Message>> {
        match self.messages.iter_mut().find_map(Option::take) {
            Some(message) => Ok(message),
            None => memory::boxed(Message::new(self.take(SHORT)?)),
        }
    }

    /// Takes back a message that has been handled.
    #[inline(always)]
    pub fn put_message(&mut self, mut message: Box<Message>) {
        message.fds.clear();
        if !matches!(message.buffer.len(), SHORT | FIRST | STANDARD) {
            let Ok(short) = self.take(SHORT) else { return };
            self.put(std::mem::replace(&mut message.buffer, short));
        }
        if let Some(place) = self.messages.iter_mut().find(|place| place.is_none()) {
            *place = Some(message);
        }
    }
}
