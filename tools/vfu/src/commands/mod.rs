//! The commands, one file each.

mod access;
mod config;
mod dma;
mod info;
mod irq;
mod migrate;
mod saved;
mod script;

use std::time::Duration;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::container::Reader;
use crate::error::{Error, Result};

/// A command that is ready to be executed on a connection.
type Action<'a> = Box<dyn FnOnce(&mut Client) -> Result<()> + 'a>;

/// Executes the command line.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Migrate(args) => migrate::run(args, cli.options()),
        Command::Script(args) => {
            let script = script::Script::read(args)?;
            script.run(&mut connect(cli)?, cli.timeout)
        }
        command => {
            let action = prepare(command, cli.timeout)?;
            action(&mut connect(cli)?)
        }
    }
}

/// What can be wrong with the arguments shows here, before the device is touched.
fn prepare(command: &Command, timeout: Option<Duration>) -> Result<Action<'_>> {
    Ok(match command {
        Command::Write(args) => {
            let bytes = access::bytes_to_write(args)?;
            Box::new(move |client| access::write(client, &args.at, &bytes))
        }
        Command::Irq(args) => {
            let poke = irq::Poke::new(args)?;
            Box::new(move |client| irq::run(client, args, poke, timeout))
        }
        Command::Load(args) => {
            let mut file = Reader::open(&args.file)?;
            Box::new(move |client| saved::load(client, &mut file))
        }
        Command::Info(args) => Box::new(|client| info::run(client, args)),
        Command::Config(args) => Box::new(|client| config::run(client, args)),
        Command::Read(args) => Box::new(|client| access::read(client, args)),
        Command::Dma(args) => Box::new(|client| dma::run(client, args)),
        Command::Save(args) => Box::new(|client| saved::save(client, args)),
        Command::State(args) => Box::new(|client| saved::state(client, args)),
        Command::Reset(_) => Box::new(Client::reset),
        Command::Migrate(_) | Command::Script(_) => {
            return Err(Error::Usage("this command has connections of its own".into()));
        }
    })
}

fn connect(cli: &Cli) -> Result<Client> {
    Client::connect(cli.command.socket(), cli.options())
}
