//! Models of what threads see of the DMA table and of interrupt vectors, for
//! `cargo test`.
//!
//! Loom runs a model again and again until it has tried the orders in which its
//! threads may run, and for each load the values that the memory orders allow.
//! What runs is the library's own source: `dma`, and of `irq` what threads meet
//! at, are compiled once more, with atomics and locks of loom.
//!
//! What loom can't show:
//! - To it, a `SeqCst` load or store is no more than `Acquire` and `Release`.
//!   So what the source needs to be in one order for all it says by fences,
//!   which loom knows.
//! - Such a fence orders all that its thread did before, also for those who
//!   only read plain memory. Processors do that; the language promises it for
//!   atomics.
//! - It lets a store come between an atomic 'or' and the value that this was
//!   made from, which cannot be. After one more change of the word, a bit may
//!   seem to be lost by that; so where two threads mark one word beside a
//!   harvest, they start with it clear, and are stopped twice at most.
//! - It remembers the last access to an atomic only. A thread that loads it and
//!   then stores to it hides from loom that others had loaded it before, and
//!   some of the orders are not tried. The harvest does so; the index does so at
//!   every step, and so has no model here but those of the whole table.
//! - Every model has a bound: how often a thread may be stopped in the middle.

pub use vfio_user::{descriptors, memory, process, wire};

#[allow(dead_code)]
mod dma;
#[cfg(test)]
mod explore;
#[allow(dead_code)]
mod irq;
