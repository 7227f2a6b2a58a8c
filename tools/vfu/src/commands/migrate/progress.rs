//! What a migration says while it runs: a line that changes, where there is a
//! terminal; a line for each step elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::client::is_watched;

/// Bytes that were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Of the guest's memory.
    pub memory: u64,
    /// Of the device's state.
    pub device: u64,
}

impl Moved {
    /// Both.
    pub fn bytes(self) -> u64 {
        self.memory.saturating_add(self.device)
    }

    /// What has come since then.
    pub fn since(self, before: Moved) -> Moved {
        Moved {
            memory: self.memory.saturating_sub(before.memory),
            device: self.device.saturating_sub(before.device),
        }
    }

    /// Bytes in a second.
    pub fn rate(self, time: Duration) -> f64 {
        self.bytes() as f64 / time.as_secs_f64().max(1e-6)
    }
}

/// Says how far a migration is.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    start: Instant,
    phase: String,
}

impl Progress {
    /// To standard error, if anything is to be said.
    pub fn new(quiet: bool) -> Progress {
        // Messages between would tear the line that changes.
        let bar = (!quiet && !is_watched() && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, quiet, start: Instant::now(), phase: String::new() }
    }

    /// The moving begins: rates count from here.
    pub fn begin(&mut self) {
        self.start = Instant::now();
    }

    /// A new phase begins.
    pub fn phase(&mut self, name: impl Into<String>) {
        self.phase = name.into();
        match &self.bar {
            Some(bar) => bar.set_message(self.phase.clone()),
            None => self.line(&self.phase),
        }
    }

    /// Something was moved.
    pub fn moved(&self, moved: Moved, pages_left: u64) {
        if let Some(bar) = &self.bar {
            let rate = HumanBytes(moved.rate(self.start.elapsed()) as u64);
            let bytes = HumanBytes(moved.bytes());
            bar.set_message(format!("{:<18} {bytes}, {rate}/s, {pages_left} pages left", self.phase));
            bar.tick();
        }
    }

    /// A round is over.
    pub fn round(&self, number: u32, moved: Moved, time: Duration, pages_left: u64) {
        if self.bar.is_none() {
            self.line(&format!(
                "round {number}: {} of memory, {} of device data, {:.1} ms, {pages_left} dirty pages left",
                HumanBytes(moved.memory),
                HumanBytes(moved.device),
                time.as_secs_f64() * 1000.0,
            ));
        }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            // Where standard error is closed, there is nobody to tell.
            let _ = writeln!(stderr(), "vfu: {text}");
        }
    }

    /// Leaves the terminal to what follows.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
