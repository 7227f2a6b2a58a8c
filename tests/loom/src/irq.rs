//! The library's `irq::vector`; `eventfd` and `sync` are here.

mod eventfd;
mod sync;
#[path = "../../../src/irq/vector.rs"]
mod vector;

#[cfg(test)]
mod models;
