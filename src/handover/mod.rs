//! What belongs to a context, as records that another process can read: pure data,
//! no I/O.
//!
//! A context leaves its process in two images. The first says what the device is
//! ([`Record::Device`] to [`Record::NamedFd`]), so that another process can make one
//! like it; the second is the state: connection, memory, interrupts, and what the
//! device itself has to say. Another one, of the DMA regions, may go ahead of the second,
//! which then tells only what has become of them. [`codec`] is the format, [`record`] what there is to be
//! written in it. Descriptors go beside an image, which names them by their position.
//!
//! An image of a version that is the same or older can be read. A record or a field
//! that a later version adds is skipped, unless it is marked as one that has to be
//! understood.

mod codec;
mod descriptors;
mod message;
mod record;

#[cfg(test)]
mod tests;

pub use codec::{Image, Records, VERSION};
pub use descriptors::{Descriptors, Incoming, Outgoing};
pub use message::{Kind, Message};
pub use record::*;
