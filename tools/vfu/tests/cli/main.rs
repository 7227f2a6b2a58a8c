//! The `vfu` program against a scripted server whose bytes are written by
//! hand here, so that both sides don't share a mistake.

mod access;
mod check;
mod config;
mod device;
mod dma;
mod errors;
mod info;
mod irq;
mod migratable;
mod migrate;
mod peer;
mod saved;
mod script;
mod shell;
mod terminal;
mod trace;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a run of `vfu` gave.
struct Run {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Run {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap()
    }

    /// Asserts success, with nothing on standard error.
    #[track_caller]
    fn ok(self) -> Run {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        self
    }

    /// Asserts failure with this exit code and exactly one line, which
    /// contains `part`.
    #[track_caller]
    fn fails(self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{}", self.err);
        assert!(self.err.starts_with("vfu: ") && self.err.contains(part), "{}", self.err);
        assert_eq!((self.err.lines().count(), self.err.ends_with('\n')), (1, true), "{}", self.err);
        assert!(self.out.is_empty(), "{}", self.text());
    }

    /// Asserts that the command line was refused, with a message that contains `part`.
    #[track_caller]
    fn usage(self, part: &str) {
        assert_eq!(self.code, 2, "{}", self.err);
        assert!(self.err.starts_with("error: ") && self.err.contains(part), "{}", self.err);
    }
}

/// Runs `vfu COMMAND SOCKET ARGUMENTS…` with `input` on standard input.
fn vfu_with_input(command: &str, socket: &Path, arguments: &[&str], input: &[u8]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfu"))
        .arg(command)
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that doesn't want the input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Run { code: status.code().unwrap(), out: stdout, err: String::from_utf8(stderr).unwrap() }
}

fn vfu(command: &str, socket: &Path, arguments: &[&str]) -> Run {
    vfu_with_input(command, socket, arguments, b"")
}
