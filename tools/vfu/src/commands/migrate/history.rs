//! How a migration went: its rounds over time, as JSON or as a picture.

use std::ops::Range;
use std::path::Path;

use indicatif::HumanBytes;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use serde::Serialize;

use super::progress::Moved;
use super::report::Report;
use crate::error::{Error, Result};

/// A round, while the device runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// When it began, from the start of logging on.
    pub start_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// What was moved in it.
    pub moved: Moved,
    /// Pages that were dirty after it.
    pub dirty_pages: u64,
    /// Bytes that are left: those pages, and as much of the device's state as this round has brought.
    pub left_bytes: u64,
    /// Bytes that could be moved within the downtime allowed, at the rate so far.
    pub fitting_bytes: u64,
}

/// A stretch of time: that in which neither device ran, or a round that was broken off.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stretch {
    /// When it began, from the start of logging on.
    pub start_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// What was moved in it.
    pub moved: Moved,
}

impl Stretch {
    fn end(&self) -> f64 {
        self.start_seconds + self.seconds
    }
}

/// Writes a report to a file: JSON, or a picture for a name that ends in `.svg`.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let text = match path.extension().is_some_and(|end| end == "svg") {
        true => picture(report).map_err(|e| Error::local("picture", std::io::Error::other(e)))?,
        false => serde_json::to_string_pretty(report).map_err(|e| Error::local("JSON", e))? + "\n",
    };
    std::fs::write(path, text).map_err(|e| Error::local(path.display(), e))
}

/// Why the rounds ended, in a sentence.
fn verdict(report: &Report) -> String {
    let rounds = match report.rounds {
        1 => "1 round".to_string(),
        n => format!("{n} rounds"),
    };
    if let Some(failure) = &report.failure {
        // As much as fits beside the picture's edges.
        const LONGEST: usize = 100;
        let whole = format!("failed after {rounds}: {failure}");
        let short: String = whole.chars().take(LONGEST).collect();
        return if short.len() < whole.len() { short + "…" } else { whole };
    }
    let Some(last) = report.history.last() else { return "stopped at once: no rounds were allowed".into() };
    let (left, fits) = (HumanBytes(last.left_bytes), HumanBytes(last.fitting_bytes));
    match report.converged {
        true => format!("converged after {rounds}: {left} left, {fits} fit into the downtime allowed"),
        false => format!("not converged in {rounds}: {left} left, {fits} fit into the downtime allowed"),
    }
}

const MIB: f64 = (1 << 20) as f64;
const SIZE: (u32, u32) = (900, 640);
/// Where the lower of the two charts begins.
const SPLIT: i32 = 340;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// As SVG.
fn picture(report: &Report) -> Result<String, String> {
    let mut svg = String::new();
    draw(report, SVGBackend::with_string(&mut svg, SIZE))?;
    Ok(svg)
}

/// What drawing has failed for. Into memory, nothing does.
fn said(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn draw(report: &Report, backend: SVGBackend<'_>) -> Result<(), String> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(said)?;
    let (upper, lower) = root.split_vertically(SPLIT);
    let rounds = &report.history;
    let behind = report.stop.iter().chain(&report.broken_off);
    let end = rounds.last().map_or(0.0, |r| r.start_seconds + r.seconds);
    let end = behind.clone().fold(end, |end, stretch| end.max(stretch.end()));

    // What is left after each round, and what would fit.
    let left: Vec<(f64, f64)> =
        rounds.iter().map(|r| (r.start_seconds + r.seconds, r.left_bytes as f64 / MIB)).collect();
    let fits: Vec<(f64, f64)> =
        rounds.iter().map(|r| (r.start_seconds + r.seconds, r.fitting_bytes as f64 / MIB)).collect();
    let top = left.iter().chain(&fits).fold(0.0, |top: f64, (_, y)| top.max(*y));
    let mut chart = begin(&upper, &verdict(report), "MiB left after a round", 0.0..end, top)?;
    downtime(&mut chart, report, top)?;
    chart
        .draw_series(LineSeries::new(left.iter().copied(), BLUE.stroke_width(2)))
        .map_err(said)?
        .label("left to be moved")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLUE.stroke_width(2)));
    chart.draw_series(left.iter().map(|point| Circle::new(*point, 3, BLUE.filled()))).map_err(said)?;
    chart
        .draw_series(LineSeries::new(fits, GREEN.stroke_width(2)))
        .map_err(said)?
        .label("fits into the downtime allowed")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], GREEN.stroke_width(2)));
    // Before the end of the first round there is nothing.
    labels(&mut chart, SeriesLabelPosition::UpperLeft)?;

    // What each round has moved, as wide as the round was long.
    let mut bars: Vec<(f64, f64, Moved)> =
        rounds.iter().map(|r| (r.start_seconds, r.start_seconds + r.seconds, r.moved)).collect();
    bars.extend(behind.map(|stretch| (stretch.start_seconds, stretch.end(), stretch.moved)));
    let top = bars.iter().fold(0.0, |top: f64, (_, _, moved)| top.max(moved.bytes() as f64 / MIB));
    let mut chart = begin(&lower, "", "MiB moved in a round", 0.0..end, top)?;
    downtime(&mut chart, report, top)?;
    let memory = |moved: Moved| moved.memory as f64 / MIB;
    let all = |moved: Moved| moved.bytes() as f64 / MIB;
    for (name, color, part) in [
        ("memory", BLUE, &(|moved| (0.0, memory(moved))) as &dyn Fn(Moved) -> (f64, f64)),
        ("device data", MAGENTA, &|moved| (memory(moved), all(moved))),
    ] {
        let bar = |(from, to, moved): &(f64, f64, Moved)| {
            let (low, high) = part(*moved);
            Rectangle::new([(*from, low), (*to, high)], color.mix(0.5).filled())
        };
        chart
            .draw_series(bars.iter().map(bar))
            .map_err(said)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], color.mix(0.5).filled()));
        let frame = |(from, to, moved): &(f64, f64, Moved)| {
            let (low, high) = part(*moved);
            Rectangle::new([(*from, low), (*to, high)], color.stroke_width(1))
        };
        chart.draw_series(bars.iter().map(frame)).map_err(said)?;
    }
    labels(&mut chart, SeriesLabelPosition::UpperRight)?;
    root.present().map_err(said)?;
    Ok(())
}

/// An empty chart.
fn begin<'a, 'b>(
    area: &'a Area<'b>,
    caption: &str,
    what: &str,
    seconds: Range<f64>,
    top: f64,
) -> Result<Chart<'a, 'b>, String> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(36).y_label_area_size(64);
    if !caption.is_empty() {
        builder.caption(caption, ("sans-serif", 16));
    }
    let seconds = 0.0..seconds.end.max(1e-6);
    let mut chart = builder.build_cartesian_2d(seconds, 0.0..(top * 1.1).max(1e-3)).map_err(said)?;
    chart.configure_mesh().x_desc("seconds").y_desc(what).light_line_style(WHITE).draw().map_err(said)?;
    Ok(chart)
}

/// Marks the time in which neither device ran.
fn downtime<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, report: &Report, top: f64) -> Result<(), String> {
    let Some(stop) = report.stop else { return Ok(()) };
    let corners = [(stop.start_seconds, 0.0), (stop.end(), top * 1.1)];
    let fill = RED.mix(0.2).filled();
    chart
        .draw_series(std::iter::once(Rectangle::new(corners, fill)))
        .map_err(said)?
        .label(format!("downtime, {:.1} ms", stop.seconds * 1000.0))
        .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], fill));
    Ok(())
}

fn labels<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, position: SeriesLabelPosition) -> Result<(), String> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(said)?;
    Ok(())
}
