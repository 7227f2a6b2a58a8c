//! The functions that the C library does not have: `libvfio-user-ext.h`.
//!
//! Their names start with `vfux_`, so that nothing that the C library may add
//! one day collides with them; their symbols have a version node of their own.

#![allow(non_camel_case_types, reason = "these are the names of the C interface")]

mod client;
mod context;
mod dma;
mod handover;
mod irq;
mod lost;
mod takeover;

pub use client::*;
pub use context::*;
pub use dma::*;
pub use handover::*;
pub use irq::*;
pub use lost::*;
pub use takeover::*;
