//! Drop-in replacement for the C library libvfio-user.
//!
//! C device code calls in through a thin C skin; bytes come in through one
//! transport; everything between is plain Rust that knows neither sockets nor
//! C. The rooms, from the street to the cellar; each uses only those below it.

pub mod capi;
pub mod dma;
pub mod irq;
pub mod memory;
pub mod migration;
pub mod pci;
pub mod server;
pub mod transport;
pub mod wire;
