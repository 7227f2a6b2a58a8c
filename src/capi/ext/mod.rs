//! The functions that the C library does not have: `libvfio-user-ext.h`.
//!
//! Their names start with `vfux_`, so that nothing that the C library may add
//! one day collides with them; their symbols have a version node of their own.

mod client;
mod dma;
mod irq;

pub use client::*;
pub use dma::*;
pub use irq::*;
