//! The commands, one file each.

mod access;
mod config;
mod dma;
mod info;
mod irq;
mod migrate;
mod saved;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::container::Reader;
use crate::error::Result;

/// Executes the command line.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        // What can be wrong with the arguments shows before the device is touched.
        Command::Write(args) => {
            let bytes = access::bytes_to_write(args)?;
            access::write(&mut connect(cli)?, &args.at, &bytes)
        }
        Command::Irq(args) => {
            let poke = irq::Poke::new(args)?;
            irq::run(&mut connect(cli)?, args, poke, cli.timeout)
        }
        Command::Info(args) => info::run(&mut connect(cli)?, args),
        Command::Config(args) => config::run(&mut connect(cli)?, args),
        Command::Read(args) => access::read(&mut connect(cli)?, args),
        Command::Dma(args) => dma::run(&mut connect(cli)?, args),
        Command::Migrate(args) => migrate::run(args, cli.options()),
        Command::Save(args) => saved::save(&mut connect(cli)?, args),
        Command::Load(args) => {
            let mut file = Reader::open(&args.file)?;
            saved::load(&mut connect(cli)?, &mut file)
        }
        Command::State(args) => saved::state(&mut connect(cli)?, args),
        Command::Reset(_) => connect(cli)?.reset(),
    }
}

fn connect(cli: &Cli) -> Result<Client> {
    Client::connect(cli.command.socket(), cli.options())
}
