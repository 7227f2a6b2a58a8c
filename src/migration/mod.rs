//! Live migration: the device's states, the ways between them, and the data
//! that moves.
//!
//! [`fsm`] is pure: states, arcs, paths. A [`Session`] holds the state that a
//! device is in and walks it along a path, calling the device at each step.

pub mod fsm;
mod session;

pub use session::Session;
