//! `vfu completions` and `vfu man`: what a package installs beside the program.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::{Error, Result};
use crate::output;

/// Prints what completes command lines in a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vfu", &mut script);
    output::bytes(&script)
}

/// Writes the manual pages into a folder, which is made if it is not there.
pub fn manual(folder: &Path) -> Result<()> {
    let failed = |e| Error::local(folder.display(), e);
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)
}
