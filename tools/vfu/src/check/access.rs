//! `VFIO_USER_REGION_READ`, `_REGION_WRITE` and `_REGION_WRITE_MULTI`
//!
//! Reading a register of a device that nobody knows may change it, writing to one even more so.
//! Without `--destructive`, accesses go to the configuration space, where VMMs read everything, and
//! to where nothing is.

use vfio_user::wire::{Command, RegionAccess, RegionInfo, RegionInfoFlags, limits};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::link::{Answer, Link};
use super::{Check, Outcome, ROBUSTNESS, Stop};
use crate::region::Region;

const READ: &str = "VFIO_USER_REGION_READ";
const WRITE: &str = "VFIO_USER_REGION_WRITE";
const BOTH: &str = "Read and Write Operations";
const MULTI: &str = "VFIO_USER_REGION_WRITE_MULTI";

pub const CHECKS: &[Check] = &[
    Check::new("read", READ, "a read is answered with what was asked for", read),
    Check::new("widths", READ, "the same bytes are read in accesses of each width", widths),
    Check::new("block", READ, "the same bytes are read at once", block),
    Check::new("end", READ, "the last bytes of a region can be read", end),
    Check::new("read-beyond", READ, "reads beyond a region's end are refused", read_beyond),
    Check::new("write-beyond", WRITE, "writes beyond a region's end are refused", write_beyond),
    Check::new("no-region", BOTH, "accesses to regions that are not there are refused", no_region),
    Check::new("read-too-large", BOTH, "reads above max_data_xfer_size do no harm", read_too_large).late(),
    Check::new("nothing", ROBUSTNESS, "accesses of no bytes do no harm", nothing).late(),
    Check::new("write", WRITE, "a write is answered with what was asked for", write),
    Check::new(
        "write-payload",
        ROBUSTNESS,
        "a write with too much or too little data is refused",
        write_payload,
    )
    .late(),
    Check::new("short", ROBUSTNESS, "a short payload does no harm", short).late(),
    Check::new("multi", MULTI, "several writes in one message are counted", multi).late(),
    Check::new("bars", READ, "all of each region can be read, where it may be", bars).destructive(),
];

fn head(region: u32, offset: u64, count: u32) -> RegionAccess {
    RegionAccess { offset, region, count }
}

fn ask(link: &mut Link, command: Command, access: RegionAccess, data: &[u8]) -> Outcome<Answer> {
    let RegionAccess { offset, region, count } = access;
    let what = match command {
        Command::RegionRead => "REGION_READ",
        _ => "REGION_WRITE",
    };
    let what = format!("{what} of {count} bytes of {} at {offset:#x}", Region(region));
    link.request(command, &[access.as_bytes(), data].concat(), &what)
}

/// Reads, and checks the reply's shape: the bytes.
fn read_bytes(link: &mut Link, access: RegionAccess) -> Outcome<Vec<u8>> {
    let answer = ask(link, Command::RegionRead, access, &[])?.done()?;
    data_of(&answer, access)
}

fn data_of(answer: &Answer, access: RegionAccess) -> Outcome<Vec<u8>> {
    let echo: RegionAccess = answer.payload()?;
    let fail = |text: String| Err(Stop::fail(format!("{}: {text}", answer.what)));
    if (echo.offset, echo.region) != (access.offset, access.region) {
        return fail(format!("the answer is about {} at {:#x}", Region(echo.region), echo.offset));
    }
    let data = answer.body.get(size_of::<RegionAccess>()..).unwrap_or_default();
    if echo.count > access.count || data.len() as u64 != u64::from(echo.count) {
        return fail(format!("count {}, and {} bytes", echo.count, data.len()));
    }
    if echo.count < access.count {
        return fail(format!("{} bytes only", echo.count));
    }
    Ok(data.to_vec())
}

/// The configuration space, if the device has one.
fn config(b: &Bench) -> Outcome<RegionInfo> {
    let found = b.facts().regions.iter().find(|r| r.index == Region::CONFIG.0 && r.size >= 0x40);
    found.copied().ok_or_else(|| Stop::skip("there is no configuration space"))
}

const CONFIG: u32 = Region::CONFIG.0;

fn read(b: &mut Bench) -> Outcome {
    config(b)?;
    let ids = read_bytes(b.link()?, head(CONFIG, 0, 4))?;
    if ids.iter().all(|byte| *byte == 0xff) {
        b.warn("vendor and device id are ffff, which means that there is no device");
    }
    Ok(())
}

fn widths(b: &mut Bench) -> Outcome {
    const WIDTHS: [u32; 4] = [4, 2, 1, 8];
    config(b)?;
    let mut first: Option<Vec<u8>> = None;
    for width in WIDTHS {
        let link = b.link()?;
        let mut bytes = Vec::new();
        for offset in (0..8).step_by(width as usize) {
            let access = head(CONFIG, offset, width);
            let answer = ask(link, Command::RegionRead, access, &[])?;
            // Nothing reads configuration space by 8.
            if width == 8 && answer.is_error() {
                return Ok(());
            }
            bytes.extend(data_of(&answer.done()?, access)?);
        }
        match &first {
            None => first = Some(bytes),
            Some(before) if *before == bytes => {}
            Some(before) => {
                let text = format!("by {width} bytes: {bytes:02x?}, by 4 bytes: {before:02x?}");
                return Err(Stop::fail(text));
            }
        }
    }
    Ok(())
}

/// The header of the configuration space, in which nothing changes by itself but the status.
fn block(b: &mut Bench) -> Outcome {
    config(b)?;
    let access = head(CONFIG, 0, 0x40);
    let answer = ask(b.link()?, Command::RegionRead, access, &[])?;
    if answer.is_error() {
        b.warn("configuration space is read in small pieces only");
        return Ok(());
    }
    let at_once = data_of(&answer, access)?;
    let mut pieces = Vec::new();
    for offset in (0..0x40).step_by(4) {
        pieces.extend(read_bytes(b.link()?, head(CONFIG, offset, 4))?);
    }
    const STATUS: std::ops::Range<usize> = 6..8;
    let differ = at_once.iter().zip(&pieces).enumerate().find(|(n, (a, b))| a != b && !STATUS.contains(n));
    match differ {
        None => Ok(()),
        Some((n, (a, b))) => Err(Stop::fail(format!("byte {n:#x}: {a:#04x} at once, {b:#04x} in pieces"))),
    }
}

fn end(b: &mut Bench) -> Outcome {
    let RegionInfo { size, .. } = config(b)?;
    let link = b.link()?;
    for count in [1, 4] {
        read_bytes(link, head(CONFIG, size.saturating_sub(count.into()), count))?;
    }
    Ok(())
}

/// Regions that there are.
fn present(b: &Bench) -> Vec<RegionInfo> {
    b.facts().regions.iter().filter(|r| r.size > 0).copied().collect()
}

fn read_beyond(b: &mut Bench) -> Outcome {
    let regions = present(b);
    let link = b.link()?;
    for RegionInfo { index, size, .. } in regions {
        let crossing = size.saturating_sub(1);
        for (offset, count) in [(size, 1), (size, 4), (crossing, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
            ask(link, Command::RegionRead, head(index, offset, count), &[])?.refused()?;
        }
    }
    link.in_step("reads beyond the end")
}

/// None of them touches a byte of the region, even where the server gets the sums wrong.
fn write_beyond(b: &mut Bench) -> Outcome {
    let regions = present(b);
    let link = b.link()?;
    for RegionInfo { index, size, .. } in regions {
        for offset in [size, u64::MAX - 3] {
            ask(link, Command::RegionWrite, head(index, offset, 4), &[0; 4])?.refused()?;
        }
    }
    link.in_step("writes beyond the end")
}

fn no_region(b: &mut Bench) -> Outcome {
    let number = b.facts().device.map_or(9, |device| device.num_regions);
    let empty: Vec<u32> = b.facts().regions.iter().filter(|r| r.size == 0).map(|r| r.index).collect();
    let link = b.link()?;
    for index in empty.into_iter().chain([number, u32::MAX]) {
        ask(link, Command::RegionRead, head(index, 0, 4), &[])?.refused()?;
        ask(link, Command::RegionWrite, head(index, 0, 4), &[0; 4])?.refused()?;
    }
    link.in_step("accesses to regions that are not there")
}

fn read_too_large(b: &mut Bench) -> Outcome {
    config(b)?;
    let link = b.link()?;
    for count in [u32::MAX, 1 << 31, limits::MAX_DATA_XFER_SIZE as u32 + 1] {
        ask(link, Command::RegionRead, head(CONFIG, 0, count), &[])?.refused()?;
    }
    link.in_step("reads that are too large")
}

fn nothing(b: &mut Bench) -> Outcome {
    config(b)?;
    for command in [Command::RegionRead, Command::RegionWrite] {
        let link = b.link()?;
        let answer = ask(link, command, head(CONFIG, 0, 0), &[])?;
        link.in_step(&answer.what)?;
        if answer.is_error() {
            b.warn(format!("{} is refused", answer.what));
        } else if answer.payload::<RegionAccess>()?.count != 0 {
            return Err(Stop::fail(format!("{}: more than nothing", answer.what)));
        }
    }
    Ok(())
}

/// Where software keeps the number of the interrupt, and nothing else looks.
const INTERRUPT_LINE: u64 = 0x3c;

fn write(b: &mut Bench) -> Outcome {
    config(b)?;
    let link = b.link()?;
    for count in [1, 2, 4] {
        let access = head(CONFIG, INTERRUPT_LINE, count);
        let before = read_bytes(link, access)?;
        let answer = ask(link, Command::RegionWrite, access, &before)?.done()?;
        let echo: RegionAccess = answer.payload()?;
        if echo != access || answer.body.len() != size_of::<RegionAccess>() {
            let text = format!("{}: {echo:?} in {} bytes of payload", answer.what, answer.body.len());
            return Err(Stop::fail(text));
        }
    }
    Ok(())
}

fn write_payload(b: &mut Bench) -> Outcome {
    config(b)?;
    let link = b.link()?;
    let before = read_bytes(link, head(CONFIG, INTERRUPT_LINE, 4))?;
    for (count, size) in [(1, 0), (4, 2), (1, 4), (u32::MAX, 1)] {
        let link = b.link()?;
        let data = before.get(..size).unwrap_or_default();
        let answer = ask(link, Command::RegionWrite, head(CONFIG, INTERRUPT_LINE, count), data)?;
        let what = format!("a write of {count} bytes with {size} bytes of data");
        link.in_step(&what)?;
        if !answer.is_error() && size < count as usize {
            return Err(Stop::fail(format!("{what} is executed")));
        }
        if !answer.is_error() {
            b.warn(format!("{what} is executed"));
        }
    }
    Ok(())
}

fn short(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for command in [Command::RegionRead, Command::RegionWrite] {
        for size in [0, 8, 15] {
            let what = format!("{command} with {size} bytes of payload");
            let access = head(CONFIG, 0, 4);
            let payload = access.as_bytes().get(..size).unwrap_or_default();
            link.request(command, payload, &what)?.refused()?;
            link.in_step(&what)?;
        }
    }
    Ok(())
}

fn multi(b: &mut Bench) -> Outcome {
    if !b.negotiated().is_some_and(|n| n.capabilities.write_multiple) {
        return Err(Stop::skip("write_multiple is not negotiated"));
    }
    config(b)?;
    let link = b.link()?;
    let access = head(CONFIG, INTERRUPT_LINE, 1);
    let before = read_bytes(link, access)?;
    let mut data = [0; 8];
    data.iter_mut().zip(&before).for_each(|(to, from)| *to = *from);
    let entry = [access.as_bytes(), &data[..]].concat();
    let what = "REGION_WRITE_MULTI of two writes";
    let request = [2_u64.as_bytes(), &entry, &entry].concat();
    let done: u64 = link.request(Command::RegionWriteMulti, &request, what)?.done()?.payload()?;
    match done {
        2 => link.in_step(what),
        other => Err(Stop::fail(format!("{what}: {other} done"))),
    }
}

/// Regions of registers take no large accesses, and may have holes: at the least, some must work.
fn bars(b: &mut Bench) -> Outcome {
    const MOST: u64 = 64 << 10;
    let regions = present(b);
    for RegionInfo { index, size, flags, .. } in regions {
        if !RegionInfoFlags::from_bits_retain(flags).contains(RegionInfoFlags::READ) {
            continue;
        }
        let link = b.link()?;
        let mut done: u64 = 0;
        let mut why = None;
        for offset in (0..size.min(MOST)).step_by(4) {
            let count = u32::try_from(size.saturating_sub(offset).min(4)).unwrap_or(4);
            let access = head(index, offset, count);
            let answer = ask(link, Command::RegionRead, access, &[])?;
            match answer.is_error() {
                true => why = Some(answer.what),
                false => {
                    data_of(&answer, access)?;
                    done = done.saturating_add(1);
                }
            }
        }
        match (done, why) {
            (0, Some(_)) => {
                return Err(Stop::fail(format!(
                    "{} is flagged READ, yet all reads are refused",
                    Region(index)
                )));
            }
            (_, Some(what)) => b.warn(format!("{what} is refused")),
            (_, None) => {}
        }
    }
    Ok(())
}
