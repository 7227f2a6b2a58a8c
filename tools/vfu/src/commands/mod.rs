//! The commands, one file each.

mod access;
mod check;
mod config;
mod dma;
mod info;
mod irq;
mod migrate;
mod saved;
mod script;
mod shell;
mod trace;

use std::time::Duration;

use serde::Serialize;

use crate::args::{Cli, Command};
use crate::client::{self, Client};
use crate::container::Reader;
use crate::error::{Error, Result};
use crate::output::Format;
use crate::trace::Verbose;

/// A command that is ready to be executed on a connection.
type Action<'a> = Box<dyn FnOnce(&mut Client) -> Result<()> + 'a>;

/// Executes the command line.
pub fn run(cli: &Cli) -> Result<()> {
    let format = if cli.json { Format::Json } else { Format::Text };
    if cli.verbose {
        client::look_on(Box::new(Verbose::new(cli.json)));
    }
    match &cli.command {
        Command::Migrate(args) => migrate::run(args, cli.options(), format),
        Command::Check(args) => check::run(args, cli.options(), format),
        Command::Trace(args) => trace::run(args, format),
        Command::Completions(args) => shell::completions(args.shell),
        Command::Man(args) => shell::manual(&args.folder),
        Command::Script(args) => {
            let script = script::Script::read(args)?;
            script.run(&mut connect(cli)?, cli.timeout, cli.json)
        }
        command => {
            let action = prepare(command, cli.timeout, format)?;
            action(&mut connect(cli)?)
        }
    }
}

/// What can be wrong with the arguments shows here, before the device is touched.
fn prepare(command: &Command, timeout: Option<Duration>, format: Format) -> Result<Action<'_>> {
    Ok(match command {
        Command::Write(args) => {
            let bytes = access::bytes_to_write(args)?;
            Box::new(move |client| access::write(client, &args.at, &bytes, format))
        }
        Command::Irq(args) => {
            let poke = irq::Poke::new(args)?;
            Box::new(move |client| irq::run(client, args, poke, timeout, format))
        }
        Command::Load(args) => {
            let mut file = Reader::open(&args.file)?;
            Box::new(move |client| saved::load(client, &mut file, format))
        }
        Command::Read(args) if args.raw && format.is_json() => return Err(one_of("--raw")),
        Command::Config(args) if args.dump && format.is_json() => return Err(one_of("--dump")),
        Command::Info(_) => Box::new(move |client| info::run(client, format)),
        Command::Config(args) => Box::new(move |client| config::run(client, args, format)),
        Command::Read(args) => Box::new(move |client| access::read(client, args, format)),
        Command::Dma(args) => Box::new(move |client| dma::run(client, args, format)),
        Command::Save(args) => Box::new(move |client| saved::save(client, args, format)),
        Command::State(args) => Box::new(move |client| saved::state(client, args, format)),
        Command::Reset(_) => Box::new(move |client| reset(client, format)),
        Command::Migrate(_) | Command::Script(_) | Command::Check(_) | Command::Trace(_) => {
            return Err(Error::Usage("this command has connections of its own".into()));
        }
        Command::Completions(_) | Command::Man(_) => {
            return Err(Error::Usage("this command has nothing to do with a server".into()));
        }
    })
}

/// Whether a command makes connections of its own.
fn needs_connections(command: &Command) -> bool {
    matches!(command, Command::Migrate(_) | Command::Script(_) | Command::Check(_) | Command::Trace(_))
}

fn one_of(option: &str) -> Error {
    Error::Usage(format!("{option} and --json exclude each other"))
}

fn reset(client: &mut Client, format: Format) -> Result<()> {
    #[derive(Serialize)]
    struct Done {
        reset: bool,
    }
    client.reset()?;
    format.result(&Done { reset: true }, None::<&str>)
}

fn connect(cli: &Cli) -> Result<Client> {
    let socket = cli.command.socket().ok_or_else(|| Error::Usage("which socket?".into()))?;
    Client::connect(socket, cli.options())
}
