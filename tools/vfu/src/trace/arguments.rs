//! The command line of `vfu trace`.

use std::path::PathBuf;

use clap::Args;

use super::Filter;

/// Arguments of `trace`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The UNIX socket to make, for the client to connect to
    #[arg(required_unless_present = "read", conflicts_with = "read")]
    pub listen: Option<PathBuf>,
    /// The server's UNIX socket
    #[arg(required_unless_present = "read", conflicts_with = "read")]
    pub connect: Option<PathBuf>,
    /// Show what a file has that --write made
    #[arg(long, value_name = "FILE")]
    pub read: Option<PathBuf>,
    /// Write all messages to a pcapng file, for Wireshark and for --read
    #[arg(long, value_name = "FILE", conflicts_with = "read")]
    pub write: Option<PathBuf>,
    /// Show only messages for which all of these conditions hold
    ///
    /// Given several times, a message is shown if one of them lets it through. The file and the
    /// table at the end have everything all the same.
    #[arg(long, value_name = "CONDITION[,...]")]
    pub filter: Vec<Filter>,
    /// Show no messages, only the table at the end
    #[arg(long, short)]
    pub quiet: bool,
    /// End when the first client has gone
    #[arg(long, conflicts_with = "read")]
    pub once: bool,
}

/// What filters consist of and lines show, for `--help`.
pub const TRACE_HELP: &str = "\
Each line has the time in seconds, > for what the client sends and < for what the server sends ('twin' on the
second socket), the command, its id, for a reply the time since its command, what is in it, and the
descriptors in brackets.

Conditions are a command (REGION_READ), command, reply, error, posted, descriptors, client, server, main,
twin, or NAME=VALUE for what a line shows or, of a reply, its command's line: region=BAR0. A ! in front
negates one.";
