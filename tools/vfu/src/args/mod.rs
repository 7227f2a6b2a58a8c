//! The command line: here what holds for all commands, and which there are.

mod access;
mod check;
mod dma;
mod migration;
mod shell;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

pub use access::{At, Config, Info, IrqArgs, Read, Reset, Script, Write};
pub use check::Check;
pub use dma::{Access, Dma, MemoryKind, Operation};
pub use migration::{Load, Migrate, Save, State};
pub use shell::{Completions, Man};

use crate::client::Options;
use crate::error::EXIT_CODES;
use crate::number::number;
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
    /// Print the messages on standard error, as `vfu trace` shows them
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// Color verdicts and errors; auto: on terminals, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The one that this program was called with; ends the program where it makes no sense. What
    /// is wrong with it is said in colors, too, if those are wanted, which it says itself.
    pub fn from_command_line() -> Cli {
        color(std::env::args_os()).write_global();
        Cli::parse()
    }

    /// How to connect.
    pub fn options(&self) -> Options {
        const TIMEOUT: Duration = Duration::from_secs(5);
        Options { timeout: self.timeout.unwrap_or(TIMEOUT), twin_socket: self.twin_socket }
    }
}

/// When something is colored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On terminals
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    fn write_global(self) {
        let choice = match self {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}

/// What `--color` says on a command line that may make no sense.
fn color(words: impl Iterator<Item = OsString>) -> Color {
    let mut words = words.map(|word| word.to_string_lossy().into_owned());
    let mut color = Color::Auto;
    while let Some(word) = words.next() {
        let value = match word.split_once('=') {
            Some(("--color", value)) => Some(value.to_string()),
            _ if word == "--color" => words.next(),
            _ => None,
        };
        color = value.and_then(|value| Color::from_str(&value, false).ok()).unwrap_or(color);
    }
    color
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

/// The width of an access.
pub fn width(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(n @ (1 | 2 | 4 | 8)) => Ok(n),
        _ => Err("none of 1, 2, 4, 8".into()),
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
