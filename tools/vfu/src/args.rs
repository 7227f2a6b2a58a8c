//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use vfio_user::wire::DeviceState;

use crate::check::Group;
use crate::client::Options;
use crate::error::EXIT_CODES;
use crate::number::number;
use crate::region::{Irq, Region};
use crate::trace::{Arguments, TRACE_HELP};

/// Look at, drive and test a vfio-user device server.
///
/// Numbers are decimal, or hexadecimal after 0x; K, M or G may follow. Regions are numbers or one of
/// BAR0 to BAR5, ROM, CONFIG, VGA.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub struct Cli {
    /// How long to wait for each answer of the server [default: 5]
    ///
    /// For irq also how long to wait for interrupts [default: for ever].
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Ask for a second socket for the commands of the server
    #[arg(long, global = true)]
    pub twin_socket: bool,
    /// Print JSON: one value, or for irq and script a line for each
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// How to connect.
    pub fn options(&self) -> Options {
        const TIMEOUT: Duration = Duration::from_secs(5);
        Options { timeout: self.timeout.unwrap_or(TIMEOUT), twin_socket: self.twin_socket }
    }
}

/// What to do with a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the device, its regions, its interrupts, and what was negotiated
    Info(Info),
    /// Show the PCI configuration space
    Config(Config),
    /// Read a region
    Read(Read),
    /// Write to a region
    Write(Write),
    /// Wait for interrupts and print each
    ///
    /// MSI and MSI-X are switched on in the configuration space meanwhile, as a
    /// driver would do.
    Irq(IrqArgs),
    /// Make the example device dma-engine move memory
    ///
    /// The client's memory is mapped, the device told what to do, its interrupt
    /// waited for, and the memory taken back.
    Dma(Dma),
    /// Reset the device
    Reset(Reset),
    /// Move a running device from one server to another
    ///
    /// As a virtual machine monitor does: the guest's memory, which this
    /// program has for each side, is copied by dirty bitmaps, in rounds, while
    /// the device runs; then the device stops, and the rest follows. Afterwards
    /// the source stays stopped. If anything fails, the source runs again, and
    /// the destination is reset.
    Migrate(Migrate),
    /// Save the device's state to a file
    ///
    /// The device stops meanwhile.
    Save(Save),
    /// Load a device's state from a file
    ///
    /// Files that are damaged, or of another kind of device, are refused before
    /// the device is touched. If the device refuses the state, it is reset.
    Load(Load),
    /// Show the migration state, and set it
    State(State),
    /// Execute a list of commands on one connection, with memory for the device
    ///
    /// What a client gives a device, its memory and its interrupts, goes when it
    /// leaves, and most devices are reset then: what belongs together has to
    /// happen on one connection. It ends with the first command that fails.
    #[command(after_help = SCRIPT_LINES)]
    Script(Script),
    /// Check whether a server keeps to the protocol
    ///
    /// Each check names the section of the vfio-user specification that it
    /// rests on, or 'robustness' for what that leaves open. The device is left
    /// as it was. A server that dies or hangs is a finding; the rest goes on if
    /// it can be reached again. Any failed check makes the exit code 1.
    Check(Check),
    /// Show what a client and a server say to each other
    ///
    /// Stands between the two and passes on every byte and descriptor as it comes, also on the
    /// second socket. It ends at a signal (Ctrl-C), with a table: of each command how many, errors,
    /// bytes, and times to the reply.
    #[command(after_help = TRACE_HELP)]
    Trace(Arguments),
    /// Print what completes command lines of vfu in a shell
    ///
    /// For example in bash: source <(vfu completions bash)
    Completions(Completions),
    /// Write the manual pages to a folder
    Man(Man),
}

/// What a script consists of, for its `--help`.
pub const SCRIPT_LINES: &str = "\
Each line is a command as on the command line, without the socket (read, write, irq, reset, config, info,
dma, save, load, state), or one about the memory that the device reaches:

  map ADDR SIZE       give the device memory, all zero; --memory message: not as
                      a file, so that it has to send messages; --read-only
  unmap ADDR          take it back
  fill ADDR BYTES N   fill a part of it with the byte N
  poke ADDR N...      write numbers to it; --width as for write
  peek ADDR           print it; --width and --count as for read

or one for the script itself:

  sleep SECONDS       wait; the device's messages are answered meanwhile
  expect REGION OFFSET VALUE
                      read until the value is there; --mask: the bits that count;
                      --width as for read; --timeout: how long at the most
  repeat N            do what follows, up to the line 'end', N times
  help                print this

# begins a comment.";

impl Command {
    /// The socket that the command is about, if it needs one.
    pub fn socket(&self) -> Option<&PathBuf> {
        Some(match self {
            Command::Info(a) => &a.socket,
            Command::Config(a) => &a.socket,
            Command::Read(a) => &a.at.socket,
            Command::Write(a) => &a.at.socket,
            Command::Irq(a) => &a.socket,
            Command::Dma(a) => &a.socket,
            Command::Reset(a) => &a.socket,
            Command::Migrate(a) => &a.source,
            Command::Save(a) => &a.socket,
            Command::Load(a) => &a.socket,
            Command::State(a) => &a.socket,
            Command::Script(a) => &a.socket,
            Command::Check(a) => return a.socket.as_ref(),
            Command::Trace(_) | Command::Completions(_) | Command::Man(_) => return None,
        })
    }
}

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Args, Debug)]
pub struct Man {
    /// The folder, which is made if it is not there
    pub folder: PathBuf,
}

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

/// Arguments of `reset`.
#[derive(Args, Debug)]
pub struct Reset {
    /// The server's UNIX socket
    pub socket: PathBuf,
}

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

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// The server's UNIX socket
    #[arg(required_unless_present = "list")]
    pub socket: Option<PathBuf>,
    /// Only the checks of these groups
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    pub group: Vec<Group>,
    /// Only the checks of these names, as framing/ids
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Also checks by which the device may lose data: it is reset, loads a
    /// state, and moves memory
    #[arg(long)]
    pub destructive: bool,
    /// A shell command that starts the server: at first if nobody listens, and
    /// again when the server has ended or hangs
    ///
    /// What it started, in the foreground, is ended in the end.
    #[arg(long, value_name = "COMMAND")]
    pub restart: Option<String>,
    /// Write the results to a file in the form of JUnit, too
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Print what checks there are
    #[arg(long)]
    pub list: bool,
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

/// The width of an access.
pub fn width(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(n @ (1 | 2 | 4 | 8)) => Ok(n),
        _ => Err("none of 1, 2, 4, 8".into()),
    }
}

fn dma_size(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(n) if n <= 1 << 30 => Ok(n),
        _ => Err("not a number up to 1 GiB".into()),
    }
}

/// A time, in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a number of seconds above 0".into()),
    }
}
