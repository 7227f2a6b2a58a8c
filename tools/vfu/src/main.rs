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

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(stderr(), "vfu: {}", e.line());
            ExitCode::from(e.exit_code())
        }
    }
}
