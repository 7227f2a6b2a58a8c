//! A context leaves its process, and goes on in another: [`give`] is the side that has
//! it, [`take`] the one that is to have it.
//!
//! There are two phases. In the first, the new process learns what the device is
//! ([`describe`]), makes one like it and is compared with it ([`fit`]); nobody waits
//! for that; and it maps the DMA regions ([`ahead`]). In the second, the old one makes the device quiet and writes its state
//! down ([`export`]), and the new one makes that its own ([`import`]). The old one
//! goes on as if nothing had happened, unless it has said "yours", and heard "taken".
//!
//! Whatever dies, at most one of them goes on, and one does if one is there: the old
//! one never executes anything between what it wrote down and its refusal, and the new
//! one nothing before it has said "taken". If the new one has said that it has
//! everything, and the old one ends without a word, the device is the new one's. So
//! the old one takes care to say no before it goes on.

mod ahead;
mod describe;
mod export;
mod fit;
mod give;
mod import;
mod predecessor;
mod take;

use std::os::fd::RawFd;

use give::Control;
use predecessor::Predecessor;

use crate::memory::Bytes;
use crate::transport::Peer;
use crate::wire::DeviceState;

/// What a context keeps for that. Nearly always there is nothing.
#[derive(Debug, Default)]
pub struct HandOver {
    /// Descriptors of the device's own, with their names.
    named: Vec<(Vec<u8>, RawFd)>,
    /// Where processes come from that want to take over.
    control: Option<Box<Control>>,
    /// What the device says of its state, while it does.
    saving: Option<Bytes>,
    /// Where its migration callbacks have taken it for that: not where its client knows it to be.
    taken_to: Option<DeviceState>,
    /// The process that is to be taken over from.
    predecessor: Option<Box<(Peer, Predecessor)>>,
}
