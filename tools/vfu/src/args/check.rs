//! `check`.

use std::path::PathBuf;

use clap::Args;

use crate::check::Group;

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// The server's UNIX socket
    #[arg(required_unless_present = "list")]
    pub socket: Option<PathBuf>,
    /// Only the checks of these groups
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    pub group: Vec<Group>,
    /// Only the checks of these names, as framing/ids
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Also checks by which the device may lose data: it is reset, loads a
    /// state, and moves memory
    #[arg(long)]
    pub destructive: bool,
    /// A shell command that starts the server: at first if nobody listens, and
    /// again when the server has ended or hangs
    ///
    /// What it started, in the foreground, is ended in the end.
    #[arg(long, value_name = "COMMAND")]
    pub restart: Option<String>,
    /// Write the results to a file in the form of JUnit, too
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Print what checks there are
    #[arg(long)]
    pub list: bool,
}
