//! Drop-in replacement for the C library libvfio-user: serves an emulated PCI
//! device over the vfio-user protocol.
//!
//! Programs in C use the functions of `libvfio-user.h`, which `capi` exports. A
//! device in Rust implements [`Device`] and serves its client with a
//! [`Context`]; `examples/ram.rs` is one.
//!
//! C device code calls in through a thin C skin; bytes come in through one
//! transport; everything between is plain Rust that knows neither sockets nor
//! C. The rooms, from the street to the cellar; each uses only those below it.

#![allow(rustdoc::private_intra_doc_links, reason = "what is said of a room speaks to who reads its source")]
// A library has no business ending the program that uses it.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

// Messages are structures in memory as they are on the wire, and the bit-fields of
// the C headers are registers of PCI; both are little-endian.
#[cfg(target_endian = "big")]
compile_error!(
    "libvfio-user needs a little-endian machine: vfio-user messages and PCI registers are used in memory as they are"
);
#[cfg(not(target_os = "linux"))]
compile_error!(
    "libvfio-user needs Linux: it is made of memory mappings, eventfds and descriptors sent over sockets"
);

pub mod capi;
pub mod descriptors;
pub mod dma;
pub mod handover;
pub mod irq;
pub mod memory;
pub mod migration;
pub mod pci;
pub mod process;
pub mod server;
pub mod transport;
pub mod wire;

pub use server::{Context, Device};
