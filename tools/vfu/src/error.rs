//! What can go wrong, and the exit code each of it has.

use std::fmt::Display;
use std::io;

use vfio_user::wire::Errno;

/// What every fallible function of the tool returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed. Displayed in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device answered a request with an errno.
    #[error("{what}: the device answered: {}", reason(&io::Error::from_raw_os_error(errno.number())))]
    Device {
        /// The request.
        what: String,
        /// What the reply said.
        errno: Errno,
    },
    /// The device answered by the rules, yet didn't do what it should.
    #[error("{0}")]
    Unfit(String),
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no server at this path.
    #[error("cannot connect to {path}: {why}")]
    Connect {
        /// The socket's path.
        path: String,
        /// Why not.
        why: String,
    },
    /// What answers at the socket speaks another protocol.
    #[error("{0}")]
    Stranger(String),
    /// The server ended the connection.
    #[error("{0}: the server hung up")]
    Gone(String),
    /// The server is there but says nothing.
    #[error("{what} within {seconds} s")]
    Silent {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: f64,
    },
    /// The server broke the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A migration failed.
    #[error("{side}: {source}; {aftermath}")]
    Migration {
        /// Whose fault it is.
        side: &'static str,
        /// What went wrong.
        source: Box<Error>,
        /// What has become of the two devices.
        aftermath: String,
    },
    /// A line of a script failed.
    #[error("line {line}: {source}")]
    Script {
        /// Its number, from 1 on.
        line: usize,
        /// What went wrong.
        source: Box<Error>,
    },
    /// Something failed on this side.
    #[error("{what}: {}", reason(source))]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// The table of exit codes for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the device answered with an error, or did not do what it was asked
  2  the command line makes no sense
  3  cannot connect to the socket
  4  the server is silent: nothing came within --timeout
  5  the server broke the protocol, speaks another one, or hung up
  6  something failed on this side (a file, memory, a descriptor)";

/// What the system says of a failure, without the number that Rust puts behind it.
pub fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_string(),
        None => text,
    }
}

impl Error {
    /// The exit code of the process, as [`EXIT_CODES`] lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Device { .. } | Error::Unfit(_) => 1,
            Error::Usage(_) => 2,
            Error::Connect { .. } => 3,
            Error::Silent { .. } => 4,
            Error::Protocol(_) | Error::Stranger(_) | Error::Gone(_) => 5,
            Error::Local { .. } => 6,
            Error::Migration { source, .. } | Error::Script { source, .. } => source.exit_code(),
        }
    }

    /// A failure on this side.
    pub fn local(what: impl Display, source: impl Into<io::Error>) -> Error {
        Error::Local { what: what.to_string(), source: source.into() }
    }

    /// A failure to reach the memory that the device has been given.
    pub fn memory(errno: Errno) -> Error {
        Error::local("memory", io::Error::from_raw_os_error(errno.number()))
    }

    /// The message in one line, of bounded length: what a server sent may be
    /// quoted in it.
    pub fn line(&self) -> String {
        const LONGEST: usize = 300;
        let text = self.to_string();
        let mut line: String =
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
        if line.len() < text.len() {
            line.push('…');
        }
        line
    }
}
