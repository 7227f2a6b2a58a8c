//! What the fuzz targets do. Each is a function of the input alone, so that
//! `cargo test` can replay a corpus without a fuzzer; it panics where the
//! library does something else than the target's model.
//!
//! * [`capabilities`]: the JSON of the version message against a judge of any
//!   JSON text.
//! * [`config_space`]: capabilities, accesses and finds against a table of what
//!   each bit does.
//! * [`dma`]: maps, translations, dirty pages and reports against an address
//!   space of units.
//! * [`migration`]: device states and migration data over the wire against a
//!   search through the arcs of the specification.
//! * [`context`]: a client that sends anything to a device that uses everything,
//!   beside a neighbour that must not notice, within budgets of memory,
//!   descriptors and processor time.
//! * [`hand_over`]: a process that hands its device over and says anything; what a
//!   context says that has taken it, another one takes, and says again.

pub mod capabilities;
pub mod config_space;
pub mod context;
pub mod dma;
pub mod hand_over;
mod ledger;
pub mod migration;
mod peer;
