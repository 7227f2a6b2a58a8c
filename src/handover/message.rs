//! What the two processes say to each other: messages of one size, each with the
//! descriptors that go with it.
//!
//! | from | kind | with |
//! | --- | --- | --- |
//! | new | [`Kind::Hello`] | |
//! | old | [`Kind::Device`] | the image of what the device is |
//! | new | [`Kind::Memory`] | |
//! | old | [`Kind::Memory`] | the image of its DMA regions as they are now; it serves its client all the while |
//! | new | [`Kind::Ready`] | |
//! | old | [`Kind::State`] | the image of its state; the device is quiet from here on |
//! | new | [`Kind::Have`] | |
//! | old | [`Kind::Yours`] | |
//! | new | [`Kind::Taken`] | |
//!
//! The new one may leave out to ask for the DMA regions ahead: all of them come with the
//! state then.
//!
//! Either says [`Kind::No`], with an errno, in place of what the other waits for.
//! An image is a file in memory, the first descriptor of its message; what it names
//! follows it, in further messages ([`Kind::More`]) where it is too many for one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{Errno, Result, take};

const MAGIC: u32 = u32::from_le_bytes(*b"vfuh");
/// Of the messages. Both sides have to have the same; images have their own.
const VERSION: u32 = 1;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above says it")]
pub enum Kind {
    Hello = 1,
    Device = 2,
    Ready = 3,
    State = 4,
    More = 5,
    Have = 6,
    Yours = 7,
    Taken = 8,
    No = 9,
    Memory = 10,
}

/// A message as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Message {
    magic: u32,
    version: u32,
    kind: u32,
    /// The errno of a refusal.
    error: u32,
    /// Bytes of an image.
    size: u64,
    /// How many descriptors an image names.
    fds: u64,
}

impl Message {
    /// Bytes of one.
    pub const SIZE: usize = size_of::<Message>();

    /// A message that needs no more.
    pub fn plain(kind: Kind) -> Message {
        Message { magic: MAGIC, version: VERSION, kind: kind as u32, error: 0, size: 0, fds: 0 }
    }

    /// One that comes with an image of so many bytes, which names so many descriptors.
    pub fn with_image(kind: Kind, size: usize, fds: usize) -> Message {
        Message { size: size as u64, fds: fds as u64, ..Message::plain(kind) }
    }

    /// A refusal.
    pub fn no(errno: Errno) -> Message {
        Message { error: errno.number().unsigned_abs(), ..Message::plain(Kind::No) }
    }

    /// What was received. `EPROTO` if it is no message, `EPROTONOSUPPORT` if it is one of
    /// another version.
    pub fn read(bytes: &[u8]) -> Result<Message> {
        let (message, _) = take::<Message>(bytes)
            .map_err(|_| Errno::EPROTO.because("what is at the other end does not speak this protocol"))?;
        let is_ours = message.magic == MAGIC;
        Errno::EPROTO.unless(is_ours, "what is at the other end does not speak this protocol")?;
        Errno::EPROTONOSUPPORT
            .unless(message.version == VERSION, "the other process has another version of this")?;
        Ok(message)
    }

    /// What it says. `EPROTO` if nobody knows.
    pub fn kind(&self) -> Result<Kind> {
        use Kind::{Device, Have, Hello, Memory, More, No, Ready, State, Taken, Yours};
        let kinds = [Hello, Device, Ready, State, More, Have, Yours, Taken, No, Memory];
        let found = kinds.into_iter().find(|kind| *kind as u32 == self.kind);
        found.ok_or_else(|| Errno::EPROTO.because("a message that is not known"))
    }

    /// Why it is a refusal.
    pub fn errno(&self) -> Errno {
        Errno::new(i32::try_from(self.error).unwrap_or(0))
    }

    /// Bytes of the image that comes with it, and how many descriptors that names.
    pub fn image(&self) -> Result<(usize, usize)> {
        let number = |value| usize::try_from(value).map_err(|_| Errno::EPROTO);
        Ok((number(self.size)?, number(self.fds)?))
    }
}
