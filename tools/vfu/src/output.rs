//! What goes to standard output.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stdout};

use anstream::AutoStream;
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::error::{Error, Result};

/// Writes `bytes`. A reader that has seen enough, such as `head`, is no error,
/// and nobody is left to go on for.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::local("standard output", e)),
        Ok(()) => Ok(()),
    }
}

/// Writes `text` and ends the line.
pub fn line(text: impl Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// How errors begin.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Writes `text`, in which there may be styles, and ends the line; the styles are left out where
/// they are not wanted.
pub fn styled(text: impl Display) -> Result<()> {
    let mut plain = AutoStream::new(Vec::new(), AutoStream::choice(&stdout()));
    plain.write_all(format!("{text}\n").as_bytes()).map_err(|e| Error::local("standard output", e))?;
    bytes(&plain.into_inner())
}

/// Lays a table of words out for the terminal that it is printed on, if it is for one: what does
/// not fit goes on below in its column.
pub fn fit(table: &mut Table) {
    let size = stdout().is_terminal().then(|| tcgetwinsize(stdout()).ok()).flatten();
    if let Some(columns) = size.map(|size| size.ws_col).filter(|columns| *columns > 0) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    }
}

/// In what form results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// As JSON, laid out for people to read as well.
    Json,
    /// As JSON in one line each.
    JsonLines,
}

impl Format {
    /// Whether results are JSON.
    pub fn is_json(self) -> bool {
        self != Format::Text
    }

    /// Writes a value as JSON, in the form asked for.
    pub fn json(self, value: &impl Serialize) -> Result<()> {
        let text = match self {
            Format::JsonLines => serde_json::to_string(value),
            _ => serde_json::to_string_pretty(value),
        };
        line(text.map_err(|e| Error::local("JSON", e))?)
    }

    /// Writes a result: the value as JSON, or what is said of it to people, if anything.
    pub fn result(self, value: &impl Serialize, text: Option<impl Display>) -> Result<()> {
        match (self, text) {
            (Format::Text, Some(text)) => line(text),
            (Format::Text, None) => Ok(()),
            _ => self.json(value),
        }
    }
}

/// A table without lines, whose columns named in `numbers` are aligned right.
pub fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
