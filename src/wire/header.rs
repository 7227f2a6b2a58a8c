//! The header that every message starts with.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::limits::{HEADER_SIZE, MAX_ERRNO, MAX_MESSAGE_SIZE};
use super::{Command, Errno, Result};

bitflags! {
    /// Bits of [`Header::flags`] above the message type.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HeaderFlags: u32 {
        /// The low four bits, which hold the message type.
        const TYPE_MASK = 0xf;
        /// The sender of this command wants no reply, not even for an error.
        const NO_REPLY = 1 << 4;
        /// This reply reports a failure; `error_no` says which.
        const ERROR = 1 << 5;
        const _ = !0;
    }
}

/// Type of a message, the low four bits of its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// A request.
    Command = 0,
    /// The answer to one.
    Reply = 1,
}

/// Header of every message, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command and repeated in its reply.
    pub msg_id: u16,
    /// The command, repeated in its reply.
    pub cmd: u16,
    /// Size of the whole message in bytes, header included.
    pub msg_size: u32,
    /// Type and [`HeaderFlags`].
    pub flags: u32,
    /// Errno of a failed command; 0 otherwise.
    pub error_no: u32,
}

impl Header {
    /// The flags as a set.
    pub fn flags(&self) -> HeaderFlags {
        HeaderFlags::from_bits_retain(self.flags)
    }

    /// The message type, if it is a known one.
    pub fn message_type(&self) -> Option<MessageType> {
        match self.flags & HeaderFlags::TYPE_MASK.bits() {
            0 => Some(MessageType::Command),
            1 => Some(MessageType::Reply),
            _ => None,
        }
    }

    /// Size of the whole message in bytes.
    ///
    /// # Errors
    /// `EINVAL`: no message has this size, so nobody can tell where the next begins.
    #[inline(always)]
    pub fn size(&self) -> Result<usize> {
        match self.msg_size as usize {
            size @ HEADER_SIZE..=MAX_MESSAGE_SIZE => Ok(size),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether it is one of a request. Only a reset has no payload.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.message_type() == Some(MessageType::Command)
            && (self.msg_size as usize > HEADER_SIZE || self.cmd == Command::DeviceReset as u16)
    }

    /// What went wrong, if that is what this reply says; `EINVAL` stands for a
    /// number that is no errno.
    pub fn failure(&self) -> Option<Errno> {
        let is_error = self.flags().contains(HeaderFlags::ERROR);
        is_error.then(|| match (self.error_no, i32::try_from(self.error_no)) {
            (1..=MAX_ERRNO, Ok(number)) => Errno::new(number),
            _ => Errno::EINVAL,
        })
    }

    /// Whether the sender of this command wants no reply.
    pub fn no_reply(&self) -> bool {
        self.flags().contains(HeaderFlags::NO_REPLY)
    }

    /// Header of a command of `msg_size` bytes, itself included.
    pub fn command(msg_id: u16, cmd: u16, msg_size: u32) -> Header {
        Header { msg_id, cmd, msg_size, flags: MessageType::Command as u32, error_no: 0 }
    }

    /// Header of a successful reply of `msg_size` bytes, itself included.
    pub fn reply(&self, msg_size: u32) -> Header {
        Header { msg_size, flags: MessageType::Reply as u32, error_no: 0, ..*self }
    }

    /// Header that is, by itself, a reply reporting `errno`.
    pub fn error_reply(&self, errno: Errno) -> Header {
        Header {
            msg_size: size_of::<Header>() as u32,
            flags: MessageType::Reply as u32 | HeaderFlags::ERROR.bits(),
            error_no: errno.number() as u32,
            ..*self
        }
    }
}
