//! Dirty logging: `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`, `_STOP` and `_REPORT`

use std::os::fd::AsFd;

use vfio_user::wire::{Feature, FeatureFlags, LoggingControl, LoggingRange, LoggingReport, take};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::dma::{BASE, RW, ask_map, ask_unmap, memory};
use super::features::{HEAD, ask, data};
use super::link::{Answer, Link};
use super::{Check, Outcome, ROBUSTNESS, Stop};
use crate::client::Pages;

const START: &str = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
const STOP: &str = "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP";
const REPORT: &str = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";

pub const CHECKS: &[Check] = &[
    Check::new("report", REPORT, "a bitmap of the range, with the pages written since the last", report)
        .late(),
    Check::new("page-sizes", REPORT, "a page size of the report's own", page_sizes).late(),
    Check::new("part", REPORT, "a part of what is logged can be reported", part).late(),
    Check::new("ranges", START, "no ranges, or several", ranges).late(),
    Check::new("ranges-cut", START, "more ranges than came are refused", ranges_cut).late(),
    Check::new("off", REPORT, "there is no report while nothing is logged", off).late(),
    Check::new("page-size-odd", REPORT, "a page size that is no power of two is refused", page_size_odd)
        .late(),
    Check::new("argsz", REPORT, "the reply is as large as argsz at the most", argsz).late(),
    Check::new("stop", STOP, "logging stops, also when it is off", stop).late(),
    Check::new("empty", ROBUSTNESS, "ranges that are empty, or not mapped, do no harm", empty).late(),
];

const SIZE: u64 = 1 << 20;
const PAGE: u64 = 4096;

pub(super) fn start(link: &mut Link, page_size: u64, ranges: &[(u64, u64)]) -> Outcome<Answer> {
    claim(link, page_size, ranges, ranges.len() as u32)
}

/// As `start`, with a number of ranges that may not be true.
fn claim(link: &mut Link, page_size: u64, ranges: &[(u64, u64)], num_ranges: u32) -> Outcome<Answer> {
    let control = LoggingControl { page_size, num_ranges, reserved: 0 };
    let ranges = ranges.iter().map(|(iova, length)| LoggingRange { iova: *iova, length: *length });
    let ranges: Vec<u8> = ranges.flat_map(|range| range.as_bytes().to_vec()).collect();
    let request = [control.as_bytes(), &ranges].concat();
    ask(link, Feature::DmaLoggingStart as u32, FeatureFlags::SET, &request, 0)
}

fn ask_stop(link: &mut Link) -> Outcome<Answer> {
    ask(link, Feature::DmaLoggingStop as u32, FeatureFlags::SET, &[], 0)
}

fn ask_report(link: &mut Link, (iova, length): (u64, u64), page_size: u64, room: u64) -> Outcome<Answer> {
    let request = LoggingReport { iova, length, page_size };
    let room = usize::try_from(room).unwrap_or(usize::MAX).saturating_add(size_of::<LoggingReport>());
    let mut answer =
        ask(link, Feature::DmaLoggingReport as u32, FeatureFlags::GET, request.as_bytes(), room)?;
    answer.what = format!("a report of {iova:#x}+{length:#x} in pages of {page_size}");
    Ok(answer)
}

/// A report, whose bitmap must be as large as the range takes: how many pages are dirty.
fn dirty(link: &mut Link, range: (u64, u64), page_size: u64) -> Outcome<u64> {
    let size = Pages::bitmap_size(range.1, page_size);
    let answer = ask_report(link, range, page_size, size)?.done()?;
    let fail = |text: String| Err(Stop::fail(format!("{}: {text}", answer.what)));
    let request = LoggingReport { iova: range.0, length: range.1, page_size };
    let Ok((echo, bitmap)) = take::<LoggingReport>(data(&answer)) else {
        return fail(format!("{} bytes of payload", answer.body.len()));
    };
    if echo != request {
        return fail(format!("the answer is about {echo:?}"));
    }
    if bitmap.len() as u64 != size {
        return fail(format!("a bitmap of {} bytes, not {size}", bitmap.len()));
    }
    let pages = range.1.div_ceil(page_size);
    let bits = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    if bits > pages {
        return fail(format!("{bits} bits set, of {pages} pages"));
    }
    Ok(bits)
}

/// With memory mapped that the device does not know of; the check is skipped where nothing can be
/// logged. Afterwards nothing is logged or mapped.
fn logged(b: &mut Bench, check: impl FnOnce(&mut Bench) -> Outcome) -> Outcome {
    let probe = FeatureFlags::SET | FeatureFlags::PROBE;
    if ask(b.link()?, Feature::DmaLoggingStart as u32, probe, &[], 0)?.is_error() {
        return Err(Stop::skip("the device does no dirty logging"));
    }
    let file = memory(SIZE)?;
    ask_map(b.link()?, (BASE, SIZE, 0), RW, &[file.as_fd()])?.done()?;
    // A device without DMA may know the feature, and then has nothing to log.
    let able = !start(b.link()?, PAGE, &[(BASE, SIZE)])?.is_error();
    ask_stop(b.link()?)?;
    if !able {
        ask_unmap(b.link()?, BASE, SIZE)?;
        return Err(Stop::skip("the device does not log: a device without DMA?"));
    }
    let outcome = check(b);
    if outcome.is_ok() {
        ask_stop(b.link()?)?.done()?;
        ask_unmap(b.link()?, BASE, SIZE)?.done()?;
    }
    outcome
}

fn report(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        let answer = start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        match take::<LoggingControl>(data(&answer)) {
            Ok((echo, _)) if echo.page_size.is_power_of_two() && echo.num_ranges == 1 => {}
            _ => return Err(Stop::fail(format!("{}: the reply does not repeat the request", answer.what))),
        }
        dirty(link, (BASE, SIZE), PAGE)?;
        match dirty(link, (BASE, SIZE), PAGE)? {
            0 => Ok(()),
            n => Err(Stop::fail(format!(
                "a second report says that {n} pages are dirty, which nobody wrote to"
            ))),
        }
    })
}

fn page_sizes(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        for page_size in [PAGE, 2 * PAGE, 16 * PAGE, SIZE] {
            dirty(link, (BASE, SIZE), page_size)?;
        }
        Ok(())
    })
}

fn part(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        for (offset, length) in
            [(0, SIZE / 2), (SIZE / 2, SIZE / 2), (SIZE - PAGE, PAGE), (16 * PAGE, 3 * PAGE)]
        {
            dirty(link, (BASE + offset, length), PAGE)?;
        }
        Ok(())
    })
}

fn ranges(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        let parts = [(BASE, PAGE), (BASE + 4 * PAGE, 4 * PAGE), (BASE + SIZE / 2, SIZE / 2)];
        for ranges in [&[][..], &parts] {
            start(link, PAGE, ranges)?.done()?;
            dirty(link, (BASE + SIZE / 2, SIZE / 2), PAGE)?;
            ask_stop(link)?.done()?;
        }
        Ok(())
    })
}

fn ranges_cut(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        for num_ranges in [2, u32::MAX] {
            let answer = claim(link, PAGE, &[(BASE, SIZE)], num_ranges)?;
            answer.refused()?;
            link.in_step(&answer.what)?;
        }
        Ok(())
    })
}

fn off(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        let room = Pages::bitmap_size(SIZE, PAGE);
        ask_report(link, (BASE, SIZE), PAGE, room)?.refused()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        ask_stop(link)?.done()?;
        ask_report(link, (BASE, SIZE), PAGE, room)?.refused().map(|_| ())
    })
}

fn page_size_odd(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        for page_size in [0, 3000, PAGE + 1] {
            ask_report(link, (BASE, SIZE), page_size, 4096)?.refused()?;
        }
        Ok(())
    })
}

fn argsz(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        for room in [0, 8] {
            let answer = ask_report(link, (BASE, SIZE), PAGE, room)?;
            let most = HEAD as u64 + size_of::<LoggingReport>() as u64 + room;
            if !answer.is_error() && answer.body.len() as u64 > most {
                let text =
                    format!("{}: {} bytes of payload for argsz {most}", answer.what, answer.body.len());
                return Err(Stop::fail(text));
            }
        }
        Ok(())
    })
}

fn stop(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        ask_stop(link)?.done()?;
        start(link, PAGE, &[(BASE, SIZE)])?.done()?;
        ask_stop(link)?.done()?;
        ask_stop(link)?.done().map(|_| ())
    })
}

fn empty(b: &mut Bench) -> Outcome {
    logged(b, |b| {
        let link = b.link()?;
        for ranges in [&[(BASE, 0)][..], &[(u64::MAX, 2)], &[(0, u64::MAX)]] {
            let answer = start(link, PAGE, ranges)?;
            link.in_step(&answer.what)?;
            ask_stop(link)?.done()?;
        }
        start(link, PAGE, &[])?.done()?;
        for range in
            [(BASE, 0), (BASE << 8, SIZE), (u64::MAX - PAGE, 2 * PAGE), (BASE, 4 * SIZE), (0, u64::MAX)]
        {
            let answer = ask_report(link, range, PAGE, 4096)?;
            link.in_step(&answer.what)?;
        }
        Ok(())
    })
}
