//! What moves a device, or its state: `migrate`, `save`, `load`, `state`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vfio_user::wire::DeviceState;

use crate::number::number;

/// Arguments of `migrate`.
#[derive(Args, Debug)]
pub struct Migrate {
    /// The UNIX socket of the server whose device moves
    pub source: PathBuf,
    /// The UNIX socket of the server that it moves to
    pub destination: PathBuf,
    /// Bytes of the guest's memory, from 1 MiB on, a multiple of 64 KiB
    #[arg(long, default_value = "64M", value_parser = memory_size)]
    pub memory: u64,
    /// Bytes of a page of the dirty bitmaps; a power of two from 4096 on
    #[arg(long, default_value = "4096", value_parser = page_size)]
    pub page_size: u64,
    /// Most rounds before the device is stopped
    #[arg(long, default_value = "30", value_parser = number::<u32>)]
    pub rounds: u32,
    /// Stop the device once the rest can be moved in so many milliseconds
    #[arg(long, default_value = "20", value_name = "MILLISECONDS", value_parser = milliseconds)]
    pub max_downtime: Duration,
    /// Keep the device busy until it stops, and again when it has moved
    ///
    /// Known for dma-engine and for NVMe controllers; other devices move
    /// without. An NVMe disk loses what is in its first 64 MiB.
    #[arg(long)]
    pub load: bool,
    /// Write to a file what the load has left on an NVMe disk
    ///
    /// JSON: block_size, and in sequences, for each block from the first on,
    /// the number of the write that came last, which stands in the block, too; 0
    /// where there was none, or none after the last reset.
    #[arg(long, requires = "load", value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Write to a file how the rounds went: a picture for a name that ends in .svg, JSON for .json
    ///
    /// What each round moved and left, what would have fit into --max-downtime, and the downtime.
    #[arg(long, value_name = "FILE.svg|.json", value_parser = report_file)]
    pub report: Option<PathBuf>,
    /// Reset the device in the middle of the first NUMBER rounds
    ///
    /// As a guest does that reboots while it is moved: the device stays in
    /// PRE_COPY, and what was read of it before the reset and after it has to
    /// come to its state after it. A load begins anew each time.
    #[arg(long, default_value = "0", value_name = "NUMBER", value_parser = number::<u32>)]
    pub reset_during: u32,
    /// Compare all memory and all regions of the two sides
    ///
    /// With --load also whether the memory, or the disk, is what all work comes
    /// to; for a dma-engine this program needs that memory a third time.
    #[arg(long)]
    pub verify: bool,
}

/// Arguments of `save`.
#[derive(Args, Debug)]
pub struct Save {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// The file, which is replaced if it exists
    pub file: PathBuf,
}

/// Arguments of `load`.
#[derive(Args, Debug)]
pub struct Load {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// The file
    pub file: PathBuf,
}

/// Arguments of `state`.
#[derive(Args, Debug)]
pub struct State {
    /// The server's UNIX socket
    pub socket: PathBuf,
    /// Go to another state first
    #[arg(long, value_enum)]
    pub set: Option<StateName>,
}

/// The states that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateName {
    /// The device stands still
    Stop,
    /// The device runs
    Running,
    /// The device stands still and its state can be read
    StopCopy,
    /// The device loads a state
    Resuming,
    /// The device runs and its state can be read
    PreCopy,
}

impl From<StateName> for DeviceState {
    fn from(name: StateName) -> DeviceState {
        match name {
            StateName::Stop => DeviceState::Stop,
            StateName::Running => DeviceState::Running,
            StateName::StopCopy => DeviceState::StopCopy,
            StateName::Resuming => DeviceState::Resuming,
            StateName::PreCopy => DeviceState::PreCopy,
        }
    }
}

fn memory_size(text: &str) -> Result<u64, String> {
    const UNIT: u64 = 64 << 10;
    const SMALLEST: u64 = 1 << 20;
    match number::<u64>(text) {
        Ok(size) if size >= SMALLEST && size.is_multiple_of(UNIT) => Ok(size),
        _ => Err("not a multiple of 64 KiB from 1 MiB on".into()),
    }
}

fn report_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|end| end.to_str()) {
        Some("svg" | "json") => Ok(path),
        _ => Err("the name has to end in .svg or .json".into()),
    }
}

fn page_size(text: &str) -> Result<u64, String> {
    const SMALLEST: u64 = 4096;
    match number::<u64>(text) {
        Ok(size) if size.is_power_of_two() && size >= SMALLEST => Ok(size),
        _ => Err("not a power of two from 4096 on".into()),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    number::<u64>(text).map(Duration::from_millis).map_err(|_| "not a number of milliseconds".into())
}
