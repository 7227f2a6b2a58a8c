//! `dma`, and what the client's memory may be.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::number::number;

/// What a DMA engine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Copy one range to another
    Copy,
    /// Fill a range with the low byte of --value
    Fill,
    /// Fill a range with bytes that count up from --value
    Pattern,
    /// Sum up a range
    Checksum,
}

/// What the client's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryKind {
    /// A file that the server gets the descriptor of
    Memfd,
    /// Private to this process: the server must send messages
    Message,
}

/// How the device reaches the client's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// Mapped where possible
    Auto,
    /// By messages, even where it is mapped
    Message,
    /// Through the library, without messages where possible
    Direct,
}

/// Arguments of `dma`.
#[derive(Args, Debug)]
pub struct Dma {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// What the engine shall do
    pub operation: Operation,
    /// Bytes to move, up to 1 GiB
    #[arg(long, default_value = "4096", value_parser = dma_size)]
    pub bytes: usize,
    /// What the client's memory is made of
    #[arg(long, value_enum, default_value = "memfd")]
    pub memory: MemoryKind,
    /// How the device reaches it
    #[arg(long, value_enum, default_value = "auto")]
    pub access: Access,
    /// First address of the client's memory, a multiple of the page size
    #[arg(long, default_value = "0x100000000", value_parser = number::<u64>)]
    pub addr: u64,
    /// The number that fill and pattern need
    #[arg(long, default_value = "0x5a", value_parser = number::<u64>)]
    pub value: u64,
    /// The interrupt vector that tells of the end
    #[arg(long, default_value = "0", value_parser = number::<u32>)]
    pub vector: u32,
    /// Check every byte of the memory, or the sum, afterwards
    #[arg(long)]
    pub verify: bool,
}

fn dma_size(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(n) if n <= 1 << 30 => Ok(n),
        _ => Err("not a number up to 1 GiB".into()),
    }
}
