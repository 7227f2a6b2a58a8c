//! `vfu script`

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use clap::{Parser, error::ErrorKind};
use clap_num::maybe_hex;
use vfio_user::wire::DmaMapFlags;

use super::access::{encode, show};
use crate::args::{self, Cli, MemoryKind, size, width};
use crate::client::{Backing, Client, Segment};
use crate::error::{Error, Result};

/// A line about memory; all others are lines as on the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Memory {
    Map {
        #[arg(value_parser = maybe_hex::<u64>)]
        addr: u64,
        #[arg(value_parser = size)]
        size: u64,
        #[arg(long, value_enum, default_value = "memfd")]
        memory: MemoryKind,
        #[arg(long)]
        read_only: bool,
    },
    Unmap {
        #[arg(value_parser = maybe_hex::<u64>)]
        addr: u64,
    },
    Fill {
        #[arg(value_parser = maybe_hex::<u64>)]
        addr: u64,
        #[arg(value_parser = size)]
        bytes: u64,
        #[arg(value_parser = maybe_hex::<u8>)]
        value: u8,
    },
    Poke {
        #[arg(value_parser = maybe_hex::<u64>)]
        addr: u64,
        #[arg(required = true)]
        values: Vec<String>,
        #[arg(long, default_value = "4", value_parser = width)]
        width: usize,
    },
    Peek {
        #[arg(value_parser = maybe_hex::<u64>)]
        addr: u64,
        #[arg(long, default_value = "4", value_parser = width)]
        width: usize,
        #[arg(long, value_parser = size)]
        count: Option<u64>,
    },
}

/// What a line says to do.
#[derive(Debug)]
enum Step {
    Memory(Memory),
    Command(Cli),
}

/// A list of commands.
pub struct Script {
    /// With the numbers of their lines.
    steps: Vec<(usize, Step)>,
}

impl Script {
    /// Reads the file that the command line names. Lines that make no sense show
    /// here, before the device is touched.
    pub fn read(args: &args::Script) -> Result<Script> {
        let text = match args.file == Path::new("-") {
            true => io::read_to_string(io::stdin()),
            false => fs::read_to_string(&args.file),
        };
        let text = text.map_err(|e| Error::local(args.file.display(), e))?;
        Script::parse(&text, &args.socket)
    }

    fn parse(text: &str, socket: &Path) -> Result<Script> {
        let mut steps = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if !words.is_empty() {
                steps.push((number, step(&words, socket).map_err(|e| at_line(number, e))?));
            }
        }
        Ok(Script { steps })
    }

    /// Executes it. `timeout` is that of the command line.
    pub fn run(&self, client: &mut Client, timeout: Option<Duration>) -> Result<()> {
        for (number, step) in &self.steps {
            let done = match step {
                Step::Memory(line) => line.run(client),
                Step::Command(cli) => {
                    super::prepare(&cli.command, cli.timeout.or(timeout)).and_then(|action| action(client))
                }
            };
            done.map_err(|e| at_line(*number, e))?;
        }
        Ok(())
    }
}

fn at_line(line: usize, e: Error) -> Error {
    Error::Script { line, source: Box::new(e) }
}

/// What the words of a line say. The socket, which the line leaves out, goes
/// behind the command's name.
fn step(words: &[&str], socket: &Path) -> Result<Step> {
    let memory = Memory::try_parse_from(words);
    if !memory.as_ref().is_err_and(|e| e.kind() == ErrorKind::InvalidSubcommand) {
        return memory.map(Step::Memory).map_err(|e| usage(&e));
    }
    let (name, rest) = words.split_at(1);
    let line = name.iter().map(OsStr::new);
    let line = line.chain([socket.as_os_str()]).chain(rest.iter().map(OsStr::new));
    let cli = Cli::try_parse_from([OsStr::new("vfu")].into_iter().chain(line)).map_err(|e| usage(&e))?;
    Ok(Step::Command(cli))
}

/// The first line of what clap says, which has the reason.
fn usage(e: &clap::Error) -> Error {
    let text = e.to_string();
    let line = text.lines().next().unwrap_or_default();
    Error::Usage(line.trim_start_matches("error: ").into())
}

impl Memory {
    fn run(&self, client: &mut Client) -> Result<()> {
        match self {
            Memory::Map { addr, size, memory, read_only } => {
                let access = match read_only {
                    true => DmaMapFlags::READ,
                    false => DmaMapFlags::READ | DmaMapFlags::WRITE,
                };
                let backing = match memory {
                    MemoryKind::Message => Backing::Private(zeros(*size)?),
                    MemoryKind::Memfd => Backing::memfd(*size)?,
                };
                client.dma_map(Segment { addr: *addr, access, backing })
            }
            Memory::Unmap { addr } => client.dma_unmap(*addr),
            Memory::Fill { addr, bytes, value } => {
                let mut bytes = zeros(*bytes)?;
                bytes.fill(*value);
                client.memory().write(*addr, &bytes).map_err(Error::memory)
            }
            Memory::Poke { addr, values, width } => {
                let bytes = values.iter().map(|value| encode(value, *width)).collect::<Result<Vec<_>>>()?;
                client.memory().write(*addr, &bytes.concat()).map_err(Error::memory)
            }
            Memory::Peek { addr, width, count } => {
                let mut bytes = zeros(count.unwrap_or(*width as u64))?;
                client.memory().read(*addr, &mut bytes).map_err(Error::memory)?;
                show(&bytes, *addr, *width)
            }
        }
    }
}

/// Room for `size` bytes, if there is any.
fn zeros(size: u64) -> Result<Vec<u8>> {
    let no_room = || Error::Usage(format!("{size:#x} bytes are too many"));
    let size = usize::try_from(size).map_err(|_| no_room())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| no_room())?;
    bytes.resize(size, 0);
    Ok(bytes)
}
