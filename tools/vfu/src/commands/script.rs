//! `vfu script`

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};
use vfio_user::wire::DmaMapFlags;

use super::access::{encode, number_of, show};
use crate::args::{self, Cli, MemoryKind, SCRIPT_LINES, seconds, width};
use crate::client::{Backing, Client, Deadline, Segment};
use crate::error::{Error, Result};
use crate::number::number;
use crate::output::{self, Format};
use crate::region::Region;

/// A line that only scripts have; all others are lines as on the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Own {
    #[command(flatten)]
    Memory(Memory),
    Sleep {
        #[arg(value_parser = seconds)]
        time: Duration,
    },
    Expect {
        region: Region,
        #[arg(value_parser = number::<u64>)]
        offset: u64,
        #[arg(value_parser = number::<u64>)]
        value: u64,
        #[arg(long, value_parser = number::<u64>)]
        mask: Option<u64>,
        #[arg(long, default_value = "4", value_parser = width)]
        width: usize,
        #[arg(long, value_parser = seconds)]
        timeout: Option<Duration>,
    },
    Repeat {
        #[arg(value_parser = number::<u64>)]
        times: u64,
    },
    End,
    Help,
}

/// A line about memory.
#[derive(Debug, Subcommand)]
enum Memory {
    Map {
        #[arg(value_parser = number::<u64>)]
        addr: u64,
        #[arg(value_parser = number::<u64>)]
        size: u64,
        #[arg(long, value_enum, default_value = "memfd")]
        memory: MemoryKind,
        #[arg(long)]
        read_only: bool,
    },
    Unmap {
        #[arg(value_parser = number::<u64>)]
        addr: u64,
    },
    Fill {
        #[arg(value_parser = number::<u64>)]
        addr: u64,
        #[arg(value_parser = number::<u64>)]
        bytes: u64,
        #[arg(value_parser = number::<u8>)]
        value: u8,
    },
    Poke {
        #[arg(value_parser = number::<u64>)]
        addr: u64,
        #[arg(required = true)]
        values: Vec<String>,
        #[arg(long, default_value = "4", value_parser = width)]
        width: usize,
    },
    Peek {
        #[arg(value_parser = number::<u64>)]
        addr: u64,
        #[arg(long, default_value = "4", value_parser = width)]
        width: usize,
        #[arg(long, value_parser = number::<u64>)]
        count: Option<u64>,
    },
}

/// Blocks inside blocks, at the most.
const DEEPEST: usize = 16;

/// What a line says to do.
#[derive(Debug)]
enum Step {
    Memory(Memory),
    Sleep(Duration),
    Expect(Expectation),
    Help,
    Repeat(u64, Steps),
    Command(Box<Cli>),
}

/// Steps with the numbers of their lines.
type Steps = Vec<(usize, Step)>;

/// What a register shall come to be.
#[derive(Debug)]
struct Expectation {
    region: Region,
    offset: u64,
    value: u64,
    mask: u64,
    width: usize,
    timeout: Option<Duration>,
}

/// A block that is being read.
struct Block {
    line: usize,
    times: u64,
    steps: Steps,
}

/// A list of commands.
pub struct Script {
    steps: Steps,
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
        let mut blocks = Vec::new();
        let mut steps = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let wrong = |what: &str| at_line(number, Error::Usage(what.into()));
            match parse_line(&words, socket).map_err(|e| at_line(number, e))? {
                Line::Step(step) => steps.push((number, step)),
                Line::Repeat(_) if blocks.len() == DEEPEST => {
                    return Err(wrong("too many blocks inside blocks"));
                }
                Line::Repeat(times) => {
                    blocks.push(Block { line: number, times, steps: std::mem::take(&mut steps) });
                }
                Line::End => {
                    let block = blocks.pop().ok_or_else(|| wrong("end without repeat"))?;
                    let repeated = std::mem::replace(&mut steps, block.steps);
                    steps.push((block.line, Step::Repeat(block.times, repeated)));
                }
            }
        }
        match blocks.pop() {
            None => Ok(Script { steps }),
            Some(block) => Err(at_line(block.line, Error::Usage("repeat without end".into()))),
        }
    }

    /// Executes it. `timeout` and `json` are those of the command line.
    pub fn run(&self, client: &mut Client, timeout: Option<Duration>, json: bool) -> Result<()> {
        run_steps(&self.steps, client, timeout, json)
    }
}

fn run_steps(steps: &Steps, client: &mut Client, timeout: Option<Duration>, json: bool) -> Result<()> {
    for (number, step) in steps {
        let done = match step {
            Step::Memory(line) => line.run(client),
            Step::Sleep(time) => client.wait_readable(&[], Deadline::after(*time)).map(drop),
            Step::Expect(expectation) => expectation.wait(client),
            Step::Help => output::line(SCRIPT_LINES),
            Step::Repeat(times, steps) => {
                // The lines inside say their own numbers.
                (0..*times).try_for_each(|_| run_steps(steps, client, timeout, json))?;
                continue;
            }
            Step::Command(cli) => {
                let format = if json || cli.json { Format::JsonLines } else { Format::Text };
                super::prepare(&cli.command, cli.timeout.or(timeout), format)
                    .and_then(|action| action(client))
            }
        };
        done.map_err(|e| at_line(*number, e))?;
    }
    Ok(())
}

impl Expectation {
    /// Reads the register until it is as expected, or the time is over; the memory is served
    /// meanwhile.
    fn wait(&self, client: &mut Client) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(1);
        client.expect_region(self.region)?;
        let time = self.timeout.unwrap_or(client.timeout());
        let deadline = Deadline::after(time);
        loop {
            let bytes = client.region_read(self.region, self.offset, self.width)?;
            let found = number_of(&bytes);
            if (found ^ self.value) & self.mask == 0 {
                return Ok(());
            }
            if deadline.is_over() {
                return Err(Error::Unfit(format!(
                    "{} at {:#x} is {found:#x} and did not become {:#x} within {} s",
                    self.region,
                    self.offset,
                    self.value,
                    time.as_secs_f64()
                )));
            }
            client.wait_readable(&[], Deadline::after(PAUSE))?;
        }
    }
}

fn at_line(line: usize, e: Error) -> Error {
    Error::Script { line, source: Box::new(e) }
}

/// A line that is understood.
enum Line {
    Step(Step),
    Repeat(u64),
    End,
}

/// What the words of a line say. The socket, which the line leaves out, goes
/// behind the command's name.
fn parse_line(words: &[&str], socket: &Path) -> Result<Line> {
    match Own::try_parse_from(words) {
        Ok(own) => own.into_line(),
        Err(e) if e.kind() == ErrorKind::InvalidSubcommand => {
            let (name, rest) = words.split_at(1);
            let line = name.iter().map(OsStr::new);
            let line = line.chain([socket.as_os_str()]).chain(rest.iter().map(OsStr::new));
            let cli = Cli::try_parse_from([OsStr::new("vfu")].into_iter().chain(line));
            let cli = cli.map_err(|e| usage(&e, name))?;
            match super::needs_connections(&cli.command) {
                true => Err(Error::Usage(format!("{} is no command for a script", name.concat()))),
                false => Ok(Line::Step(Step::Command(Box::new(cli)))),
            }
        }
        Err(e) => Err(usage(&e, words)),
    }
}

impl Own {
    fn into_line(self) -> Result<Line> {
        Ok(Line::Step(match self {
            Own::Memory(line) => Step::Memory(line),
            Own::Sleep { time } => Step::Sleep(time),
            Own::Expect { region, offset, value, mask, width, timeout } => {
                let mask = mask.unwrap_or(u64::MAX);
                let bits = u64::MAX >> (64_usize.saturating_sub(width.saturating_mul(8)) % 64);
                if value & mask & !bits != 0 {
                    return Err(Error::Usage(format!("{value:#x} does not fit {width} bytes")));
                }
                if value & !mask != 0 {
                    return Err(Error::Usage(format!("{value:#x} has bits that the mask {mask:#x} has not")));
                }
                Step::Expect(Expectation { region, offset, value, mask: mask & bits, width, timeout })
            }
            Own::Help => Step::Help,
            Own::Repeat { times } => return Ok(Line::Repeat(times)),
            Own::End => return Ok(Line::End),
        }))
    }
}

/// What is wrong with a line, in one line: all that clap says of it, but for the synopsis, which
/// is that of the command line.
fn usage(e: &clap::Error, words: &[&str]) -> Error {
    if e.kind() == ErrorKind::InvalidSubcommand {
        let name = words.first().copied().unwrap_or_default();
        let similar = e.get(ContextKind::SuggestedSubcommand).map(|similar| format!("; is it {similar}?"));
        let similar = similar.unwrap_or_default();
        return Error::Usage(format!("no command '{name}'{similar} (help lists them)"));
    }
    let text = e.to_string();
    let lines = text.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let line = lines.collect::<Vec<_>>().join(" ");
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
