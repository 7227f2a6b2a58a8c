//! `vfu`, a vfio-user client for people.

#![forbid(unsafe_code)]

mod args;
mod check;
mod client;
mod commands;
mod config;
mod container;
mod engine;
mod error;
mod identity;
mod interrupts;
mod number;
mod nvme;
mod output;
mod region;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use anstream::stderr;

use output::ERROR;

fn main() -> ExitCode {
    let cli = args::Cli::from_command_line();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(stderr(), "{ERROR}vfu:{ERROR:#} {}", e.line());
            ExitCode::from(e.exit_code())
        }
    }
}
