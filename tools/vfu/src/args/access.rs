//! What is asked of a device: `info`, `config`, `read`, `write`, `irq`, `reset`, `script`.

use std::path::PathBuf;

use clap::Args;

use super::width;
use crate::number::number;
use crate::region::{Irq, Region};

/// Arguments of `info`.
#[derive(Args, Debug)]
pub struct Info {
    /// The server's UNIX socket
    pub socket: PathBuf,
}

/// Arguments of `config`.
#[derive(Args, Debug)]
pub struct Config {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// Print the bytes as `lspci -F` reads them
    #[arg(long)]
    pub dump: bool,
}

/// Where in the device, and in what portions.
#[derive(Args, Debug)]
pub struct At {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// The region, by number or name
    pub region: Region,
    /// Bytes from the region's start
    #[arg(value_parser = number::<u64>)]
    pub offset: u64,
    /// Bytes in one access: 1, 2, 4 or 8
    #[arg(long, default_value = "4", value_parser = width)]
    pub width: usize,
    /// Use accesses as large as the server takes
    #[arg(long, conflicts_with = "width")]
    pub block: bool,
}

/// Arguments of `read`.
#[derive(Args, Debug)]
pub struct Read {
    /// Where
    #[command(flatten)]
    pub at: At,
    /// Bytes to read in all [default: one access]
    #[arg(long, value_parser = number::<usize>)]
    pub count: Option<usize>,
    /// Write the bytes as they are
    #[arg(long)]
    pub raw: bool,
}

/// Arguments of `write`.
#[derive(Args, Debug)]
pub struct Write {
    /// Where
    #[command(flatten)]
    pub at: At,
    /// Numbers of --width bytes each, written one behind the other; or - for
    /// bytes from standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub values: Vec<String>,
    /// Take the bytes from a file; - for standard input
    #[arg(long)]
    pub file: Option<PathBuf>,
}

/// Arguments of `irq`.
#[derive(Args, Debug)]
pub struct IrqArgs {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// Interrupt type: intx, msi, msix, err or req [default: the first of
    /// msix, msi, intx that the device has]
    #[arg(long = "type")]
    pub irq: Option<Irq>,
    /// How many vectors to arm, from the first on [default: all]
    #[arg(long, value_parser = number::<u32>)]
    pub vectors: Option<u32>,
    /// Stop after so many interrupts; without, listen until --timeout
    #[arg(long, value_parser = number::<u64>)]
    pub count: Option<u64>,
    /// Once armed, let the server trigger every vector by itself
    #[arg(long)]
    pub trigger: bool,
    /// Once armed, write a number to a region, as `vfu write` does
    #[arg(long, num_args = 3, value_names = ["REGION", "OFFSET", "VALUE"])]
    pub write: Vec<String>,
    /// Bytes of the number that --write writes: 1, 2, 4 or 8
    #[arg(long, default_value = "4", value_parser = width, requires = "write")]
    pub width: usize,
}

/// Arguments of `reset`.
#[derive(Args, Debug)]
pub struct Reset {
    /// The server's UNIX socket
    pub socket: PathBuf,
}

/// Arguments of `script`.
#[derive(Args, Debug)]
pub struct Script {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// The commands; - for standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
}
