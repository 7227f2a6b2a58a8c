//! What executes the commands, a file for each family.

mod config;
mod dma;
mod feature;
mod info;
mod irq;
mod migration;
mod region;
