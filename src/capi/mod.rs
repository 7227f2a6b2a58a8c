//! The C interface: every function that the shared library exports.
//!
//! One file for each group of functions, in the order of the header. Each
//! function checks what C gave it, converts it, makes one call down into the
//! server room and converts the result back. `callbacks` is
//! the device whose methods are the functions of the C program, `types` holds what
//! cbindgen prints as C types, `cast` is the one place where C handles become Rust references,
//! `guard` stands round every entry point, and `wait` drives the functions that
//! wait, and that a program may be cancelled in. The header's text is the doc comments
//! here, put into the order of `header/libvfio-user.h.in`. `ext` is what the C
//! library does not have, and has a header of its own.
//!
//! Every function is `extern "C-unwind"`, not to let panics out (the guard keeps
//! them in) but because the cancellation of a thread unwinds its stack, and may
//! do so where a function waits or where the guard allows cancellation again.

#![allow(
    clippy::missing_safety_doc,
    rustdoc::invalid_html_tags,
    reason = "the doc comments are the text of the C header, which states the rules for every pointer"
)]
#![allow(clippy::too_many_arguments, reason = "the prototypes are what they are")]

mod callbacks;
mod cast;
mod context;
mod dma;
mod ext;
mod guard;
mod ioeventfd;
mod irq;
mod log;
mod migration;
mod pci;
mod region;
mod transfer;
mod types;
mod wait;

pub use context::*;
pub use dma::*;
pub use ext::*;
pub use ioeventfd::*;
pub use irq::*;
#[cfg(not(vfu_log_in_c))]
pub use log::vfu_log;
pub use migration::*;
pub use pci::*;
pub use region::*;
pub use transfer::*;
pub use types::*;
