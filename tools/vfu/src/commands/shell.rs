//! `vfu completions` and `vfu man`: what a package installs beside the program.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::{Error, Result};
use crate::output;

/// Of this version, as meson.build has it for the pages of the library.
const RELEASE_DATE: &str = "2026-11-29";

/// Prints what completes command lines in a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vfu", &mut script);
    output::bytes(&script)
}

/// Writes the manual pages into a folder, which is made if it is not there.
pub fn manual(folder: &Path) -> Result<()> {
    let failed = |e| Error::local(folder.display(), e);
    fs::create_dir_all(folder).map_err(failed)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let source = format!("vfu {}", env!("CARGO_PKG_VERSION"));
    pages(&command, &source, folder).map_err(failed)
}

/// The page of a command, and those of its subcommands.
fn pages(command: &Command, source: &str, folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        pages(subcommand, source, folder)?;
    }
    let page =
        clap_mangen::Man::new(command.clone()).date(RELEASE_DATE).source(source).manual("User Commands");
    let mut text = Vec::new();
    page.render(&mut text)?;
    // An empty line and an end of line before and behind it are one thing too many.
    let text = String::from_utf8_lossy(&text).replace("\n.br\n\n.br\n", "\n.sp\n");
    fs::write(folder.join(page.get_filename()), text)
}
