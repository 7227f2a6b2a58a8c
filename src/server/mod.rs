//! A context and the life of one request: receive, check, quiesce, handle,
//! reply.
//!
//! [`Context`] holds the state. [`run`] is the request loop, [`attach`] what
//! comes before it and [`loss`] what comes after; [`dispatch`] leads from a
//! command to one of the [`handlers`]. The functions that C calls between
//! requests are in [`setup`], [`sgl`] and [`transfer`].

mod attach;
mod context;
mod device;
mod dispatch;
mod handlers;
mod io_fds;
mod log;
mod loss;
mod poll;
mod quiesce;
pub mod regions;
mod reset;
mod run;
mod setup;
mod sgl;
pub mod step;
mod transfer;

pub use context::Context;
pub use device::{Device, ResetType};
pub use regions::RegionConfig;
pub use step::{Event, Step, Wait};
pub use transfer::{SglAccess, Transfer};
