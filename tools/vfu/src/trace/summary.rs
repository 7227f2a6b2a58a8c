//! The table at the end of a trace.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::decode::{Posted, command_name};
use super::{Peer, Place};
use crate::output;
use crate::region::Region;

/// What is counted of a command.
struct Count {
    commands: u64,
    posted: u64,
    errors: u64,
    bytes: u64,
    /// In nanoseconds, to three digits.
    latency: Histogram<u64>,
}

impl Count {
    fn new() -> Option<Count> {
        let latency = Histogram::new(3).ok()?;
        Some(Count { commands: 0, posted: 0, errors: 0, bytes: 0, latency })
    }
}

/// Everything that is counted.
#[derive(Default)]
pub struct Summary {
    /// By who sends the command, and its number.
    commands: BTreeMap<(Peer, u16), Count>,
    /// Writes that want no reply, and their bytes, by region.
    posted: BTreeMap<u32, (u64, u64)>,
}

/// A row for JSON.
#[derive(Serialize)]
struct Row {
    command: String,
    from: Peer,
    count: u64,
    posted: u64,
    errors: u64,
    bytes: u64,
    /// Seconds; null where nothing was answered.
    median: Option<f64>,
    p99: Option<f64>,
}

#[derive(Serialize)]
struct PostedRow {
    region: String,
    writes: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Rows {
    commands: Vec<Row>,
    posted_writes: Vec<PostedRow>,
}

impl Summary {
    fn count(&mut self, from: Peer, command: u16) -> Option<&mut Count> {
        match self.commands.entry((from, command)) {
            std::collections::btree_map::Entry::Occupied(entry) => Some(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => Some(entry.insert(Count::new()?)),
        }
    }

    /// Counts a command.
    pub fn command(&mut self, place: Place, command: u16, size: u64, is_posted: bool) {
        if let Some(count) = self.count(place.from, command) {
            count.commands = count.commands.saturating_add(1);
            count.posted = count.posted.saturating_add(is_posted.into());
            count.bytes = count.bytes.saturating_add(size);
        }
    }

    /// Counts a reply; `latency` if its command was seen.
    pub fn reply(
        &mut self,
        place: Place,
        command: u16,
        size: u64,
        is_error: bool,
        latency: Option<Duration>,
    ) {
        if let Some(count) = self.count(place.from.other(), command) {
            count.errors = count.errors.saturating_add(is_error.into());
            count.bytes = count.bytes.saturating_add(size);
            if let Some(latency) = latency {
                let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                // It grows as far as is needed.
                let _ = count.latency.record(nanoseconds);
            }
        }
    }

    /// Counts writes that want no reply.
    pub fn posted(&mut self, writes: &[Posted]) {
        for write in writes {
            let (count, bytes) = self.posted.entry(write.region).or_default();
            *count = count.saturating_add(1);
            *bytes = bytes.saturating_add(write.count);
        }
    }

    fn rows(&self) -> Rows {
        let row = |((from, command), count): (&(Peer, u16), &Count)| {
            let at = |quantile: f64| {
                let nanoseconds = count.latency.value_at_quantile(quantile);
                (!count.latency.is_empty()).then(|| Duration::from_nanos(nanoseconds).as_secs_f64())
            };
            Row {
                command: command_name(*command),
                from: *from,
                count: count.commands,
                posted: count.posted,
                errors: count.errors,
                bytes: count.bytes,
                median: at(0.5),
                p99: at(0.99),
            }
        };
        let posted = |(region, (writes, bytes)): (&u32, &(u64, u64))| PostedRow {
            region: Region(*region).to_string(),
            writes: *writes,
            bytes: *bytes,
        };
        Rows {
            commands: self.commands.iter().map(row).collect(),
            posted_writes: self.posted.iter().map(posted).collect(),
        }
    }

    /// As a line of JSON.
    pub fn json(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Line {
            summary: Rows,
        }
        Line { summary: self.rows() }
    }

    /// As tables for people, each line ended.
    pub fn text(&self) -> String {
        let rows = self.rows();
        if rows.commands.is_empty() {
            return "no messages\n".into();
        }
        let head = ["command", "from", "count", "posted", "errors", "bytes", "median", "99 %"];
        let mut table = output::table(&head, &[2, 3, 4, 5, 6, 7]);
        for row in rows.commands {
            let seconds = |seconds: Option<f64>| match seconds {
                Some(seconds) => time(Duration::from_secs_f64(seconds)),
                None => "-".into(),
            };
            table.add_row([
                row.command,
                row.from.name().into(),
                row.count.to_string(),
                row.posted.to_string(),
                row.errors.to_string(),
                row.bytes.to_string(),
                seconds(row.median),
                seconds(row.p99),
            ]);
        }
        let mut text = format!("\n{}\n", table.trim_fmt());
        if !rows.posted_writes.is_empty() {
            let mut table = output::table(&["posted writes", "count", "bytes"], &[1, 2]);
            for row in rows.posted_writes {
                table.add_row([row.region, row.writes.to_string(), row.bytes.to_string()]);
            }
            text.push_str(&format!("\n{}\n", table.trim_fmt()));
        }
        text
    }
}

/// A time in the unit that suits it, to three digits or more.
pub fn time(time: Duration) -> String {
    let nanoseconds = time.as_nanos() as f64;
    match nanoseconds {
        n if n < 1e3 => format!("{n} ns"),
        n if n < 1e5 => format!("{:.1} µs", n / 1e3),
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e8 => format!("{:.1} ms", n / 1e6),
        n if n < 1e9 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_their_units() {
        for (nanoseconds, shown) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1234, "1.2 µs"),
            (234_567, "235 µs"),
            (12_345_678, "12.3 ms"),
            (999_000_000, "999 ms"),
            (61_500_000_000, "61.50 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanoseconds)), shown);
        }
    }
}
