//! Who an error is to be laid to.

use std::fmt;

use crate::error::{Error, Result};

/// One of the two servers, or this program between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The device that moves away.
    Source,
    /// The device that it becomes.
    Destination,
    /// Neither.
    Here,
}

impl Side {
    /// Its name in an error.
    pub fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Here => "migration",
        }
    }
}

/// An error and whose it is.
#[derive(Debug)]
pub struct Fault {
    /// Whose.
    pub side: Side,
    /// What.
    pub error: Error,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.side.name(), self.error)
    }
}

impl Fault {
    /// The error of the command.
    pub fn with_aftermath(self, aftermath: String) -> Error {
        Error::Migration { side: self.side.name(), source: Box::new(self.error), aftermath }
    }
}

/// For results of what was asked of one side.
pub trait On<T> {
    /// Says whose error it is, if it is one.
    fn on(self, side: Side) -> Result<T, Fault>;
}

impl<T> On<T> for Result<T> {
    fn on(self, side: Side) -> Result<T, Fault> {
        self.map_err(|error| Fault { side, error })
    }
}
