//! A context and the life of one request: receive, check, quiesce, handle,
//! reply.
//!
//! [`Context`] holds the state. [`run`] is the request loop, [`attach`] what
//! comes before it and [`loss`] what comes after; [`dispatch`] leads from a
//! command to one of the [`handlers`]. The functions that C calls between
//! requests are in [`setup`], [`sgl`] and [`transfer`].
//!
//! A [`Device`] is what a context serves. [`blocking`] is how one in Rust is
//! served, and a [`Guest`] what its threads may use.

mod attach;
mod blocking;
mod context;
mod describe;
mod device;
mod dispatch;
mod guest;
pub(crate) mod handover;

mod handlers;
mod io_fds;
mod log;
mod loss;
mod oddities;
mod poll;
mod probes;
mod quiesce;
mod refusals;
pub mod regions;
mod reset;
mod run;
mod setup;
mod sgl;
mod short;
mod step;
mod transfer;

#[cfg(test)]
mod tests;

pub use context::Context;
pub use device::{Device, ResetType};
pub use guest::Guest;
pub(crate) use refusals::IrqCall;
pub use regions::{Memory, RegionConfig, RegionFlags};
pub(crate) use short::Polled;
pub(crate) use step::{Event, Step};
pub(crate) use transfer::SglAccess;
