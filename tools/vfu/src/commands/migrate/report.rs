//! What a migration came to.

use indicatif::HumanBytes;
use serde::Serialize;

use super::history::{Round, Stretch};
use super::load::Summary;
use super::progress::Moved;
use super::verify::LeftOut;
use crate::error::Result;
use crate::output::{self, Format};

/// The summary.
#[derive(Debug, Serialize)]
pub struct Report {
    /// From the start of logging until the destination ran, or something failed.
    pub total_seconds: f64,
    /// While neither ran; nothing where the source was not stopped.
    pub downtime_seconds: Option<f64>,
    /// Rounds before the stop.
    pub rounds: u32,
    /// Resets in the middle of rounds.
    pub resets: u32,
    /// The rest could be moved within the downtime allowed.
    pub converged: bool,
    /// Bytes of a page of the dirty bitmaps.
    pub page_size: u64,
    /// Bytes moved.
    pub moved: Moved,
    /// What the load came to.
    pub load: Option<Summary>,
    /// The two sides were compared.
    pub verified: bool,
    /// Regions that could not be compared.
    pub not_compared: Vec<LeftOut>,
    /// The rounds.
    pub history: Vec<Round>,
    /// The round in which it failed, if it did in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken_off: Option<Stretch>,
    /// What came after them: neither device ran.
    pub stop: Option<Stretch>,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Report {
    /// To standard output.
    pub fn print(&self, format: Format) -> Result<()> {
        if format.is_json() {
            return format.json(self);
        }
        let seconds = |seconds: f64| format!("{:.3} ms", seconds * 1000.0);
        let rate = HumanBytes((self.moved.bytes() as f64 / self.total_seconds.max(1e-6)) as u64);
        let mut table = output::table(&["migration", ""], &[]);
        table.add_row(["total", &seconds(self.total_seconds)]);
        table.add_row(["downtime", &seconds(self.downtime_seconds.unwrap_or_default())]);
        let how = if self.converged { "" } else { ", not converged" };
        table.add_row(["rounds", &format!("{}{how}", self.rounds)]);
        if self.resets > 0 {
            table.add_row(["resets", &self.resets.to_string()]);
        }
        table.add_row(["memory", &format!("{} bytes, {}", self.moved.memory, HumanBytes(self.moved.memory))]);
        table.add_row(["device data", &format!("{} bytes", self.moved.device)]);
        table.add_row(["rate", &format!("{rate}/s")]);
        if let Some(Summary { submitted, interrupts, unfinished_at_stop }) = self.load {
            let text = format!("{submitted} given, {unfinished_at_stop} unfinished at the stop");
            table.add_row(["load", &format!("{text}, {interrupts} interrupts")]);
        }
        let verified = match (self.verified, self.not_compared.as_slice()) {
            (false, _) => "no".into(),
            (true, []) => "yes".into(),
            (true, regions) => {
                let regions: Vec<String> = regions.iter().map(LeftOut::to_string).collect();
                format!("yes, except {}", regions.join(", "))
            }
        };
        table.add_row(["verified", &verified]);
        output::fit(&mut table);
        output::line(table.trim_fmt())
    }
}
