//! `vfu trace`: what a client and a server say to each other.
//!
//! A [`relay`] stands between the two and passes on what it receives, piece by
//! piece. A copy of each piece goes to the [`report`], in a thread of its own,
//! where pieces become messages again ([`assemble`]), messages become words
//! ([`decode`], [`registers`]), and all of it a line, a number in the table at
//! the end ([`summary`]) and a packet in a file ([`capture`]). Whatever goes
//! wrong there, the relay goes on.

mod arguments;
mod assemble;
mod capture;
mod decode;
mod descriptor;
mod field;
mod filter;
mod pipe;
mod registers;
mod relay;
mod report;
mod summary;
mod verbose;

use std::time::Duration;

use serde::Serialize;

pub use arguments::{Arguments, TRACE_HELP};
pub use capture::{Reader, Writer};
pub use filter::Filter;
pub use relay::Relay;
pub use report::{Options, Report};
pub use verbose::Verbose;

use descriptor::Descriptor;

/// One of the two that talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// The one that connects: a virtual machine monitor.
    Client,
    /// The one that has the device.
    Server,
}

impl Peer {
    /// The one that it talks to.
    pub fn other(self) -> Peer {
        match self {
            Peer::Client => Peer::Server,
            Peer::Server => Peer::Client,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Client => "client",
            Peer::Server => "server",
        }
    }
}

/// A socket of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Socket {
    /// The one that the client has connected.
    Main,
    /// The one that came with the reply to VERSION, for the server's commands.
    Twin,
}

/// A stream of bytes: one direction of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which connection, from 1 on.
    pub connection: u32,
    /// Which of its sockets.
    pub socket: Socket,
    /// Who sends.
    pub from: Peer,
}

/// What has been passed on.
#[derive(Debug)]
pub enum Event {
    /// Some bytes, with descriptors.
    Piece {
        /// When it was received, since 1970.
        at: Duration,
        /// Where.
        place: Place,
        /// What.
        bytes: Vec<u8>,
        /// The descriptors that came along.
        descriptors: Vec<Descriptor>,
    },
    /// The sender will send no more.
    End {
        /// When that was seen, since 1970.
        at: Duration,
        /// Where.
        place: Place,
    },
}

/// A message, or bytes in a stream that is none of messages.
#[derive(Debug)]
pub struct Record {
    /// When its last byte was received, since 1970.
    pub at: Duration,
    /// Where.
    pub place: Place,
    /// Whether it is a message, header first.
    pub is_message: bool,
    /// Bytes that it has, of which there may be fewer in `bytes`.
    pub size: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came along.
    pub descriptors: Vec<Descriptor>,
}
