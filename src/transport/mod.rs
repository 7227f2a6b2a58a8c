//! The transport: listening, accepting, framing, descriptors, gathering of
//! replies, and the second socket for the server's own commands.
//!
//! It knows headers and sizes, not what a command means. A [`Connection`] is
//! a main [`Channel`](channel::Channel) with a [`Sender`](send::Sender) for
//! replies, and perhaps a twin channel. Bytes are received ahead into one
//! reusable buffer; a message that is taken from it owns its payload, so that
//! whatever a callback makes the connection do meanwhile cannot move the bytes
//! that the callback looks at.

mod address;
mod allowance;
mod buffer;
mod channel;
mod connection;
mod control;
mod data;
mod exchange;
mod handed;
mod listener;
mod message;
mod peer;
mod poller;
mod pool;
mod receive;
mod replace;
mod reply;
mod send;
mod unanswered;
mod wait;
mod waiting;

#[cfg(test)]
mod tests;

pub use buffer::Buffer;
pub use connection::{Connection, ConnectionRecords, Received, Sent};
pub use data::{Data, Place};
pub use exchange::{Answer, Awaited, Outstanding};
pub use handed::Handed;
pub use listener::Listener;
pub use message::{Message, Next};
pub use peer::{Heard, Peer};
pub use poller::{Interest, Poller};
pub use pool::Pool;
pub use reply::Reply;
pub use wait::{Accepted, Outcome, Wait};
