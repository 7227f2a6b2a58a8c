//! The states of migration, and the data that go through `VFIO_USER_MIG_DATA_READ` and `_WRITE`

use vfio_user::wire::{Command, DeviceState, Feature, FeatureFlags, MigData, MigrationFlags};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::features::{StateData, ask, data, do_reset, migrates};
use super::link::{Answer, Link};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};
use crate::client::state_name;

const ARCS: &str = "Direct State Transitions";
const PATHS: &str = "Complex State Transitions";
const READ: &str = "VFIO_USER_MIG_DATA_READ";
const WRITE: &str = "VFIO_USER_MIG_DATA_WRITE";

pub const STATE: &[Check] = &[
    Check::new("arcs", ARCS, "each direct transition is made", arcs).late(),
    Check::new("paths", PATHS, "other transitions are made of direct ones", paths).late(),
    Check::new("stop-copy-pre-copy", ARCS, "STOP_COPY does not lead to PRE_COPY", no_way_back).late(),
    Check::new("refused", ARCS, "ERROR and what is no state cannot be asked for", refused).late(),
    Check::new("short", ROBUSTNESS, "a state that is missing or cut is refused", short).late(),
    Check::new("resuming", ARCS, "a state is loaded, and the device runs again", resuming)
        .late()
        .destructive(),
];

pub const DATA: &[Check] = &[
    Check::new("read", READ, "the state is read in STOP_COPY until there is no more", read).late(),
    Check::new("read-pieces", READ, "a read brings as much as it asks for at the most", read_pieces).late(),
    Check::new("read-running", READ, "there is nothing to read in RUNNING", read_running).late(),
    Check::new("read-too-large", READ, "reads above max_data_xfer_size do no harm", read_too_large).late(),
    Check::new("write-running", WRITE, "there is nothing to write in RUNNING", write_running).late(),
    Check::new("short", ROBUSTNESS, "a short payload is refused", data_short).late(),
    Check::new("write", WRITE, "what was read can be written in RESUMING, in pieces", write)
        .late()
        .destructive(),
    Check::new("write-cut", WRITE, "a write with less data than it says is refused", write_cut)
        .late()
        .destructive(),
];

use DeviceState::{PreCopy, Resuming, Running, Stop as Stopped, StopCopy};

pub(super) fn state(link: &mut Link) -> Outcome<DeviceState> {
    let answer = ask(link, Feature::MigDeviceState as u32, FeatureFlags::GET, &[], 8)?.done()?;
    let number = data(&answer).first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    number.and_then(DeviceState::from_number).ok_or_else(|| Stop::fail(format!("the state is {number:?}")))
}

fn ask_state(link: &mut Link, device_state: u32) -> Outcome<Answer> {
    let request = StateData { device_state, data_fd: 0 };
    ask(link, Feature::MigDeviceState as u32, FeatureFlags::SET, request.as_bytes(), 0)
}

pub(super) fn set_state(link: &mut Link, to: DeviceState) -> Outcome<Answer> {
    let mut answer = ask_state(link, to as u32)?;
    answer.what = format!("the transition to {}", state_name(to));
    Ok(answer)
}

/// Goes to a state, and looks whether the device is there.
fn enter(link: &mut Link, to: DeviceState) -> Outcome {
    set_state(link, to)?.done()?;
    match state(link)? {
        now if now == to => Ok(()),
        now => {
            let text = format!("after the transition to {} the state is {}", state_name(to), state_name(now));
            Err(Stop::fail(text))
        }
    }
}

/// A check that takes the device to other states: it begins in RUNNING, and there it ends, whatever
/// was found in between.
pub(super) fn in_state(b: &mut Bench, check: impl FnOnce(&mut Bench) -> Outcome) -> Outcome {
    migrates(b)?;
    let now = state(b.link()?)?;
    if now != Running {
        return Err(Stop::skip(format!("the device is in the state {}, not RUNNING", state_name(now))));
    }
    let outcome = check(b);
    if outcome.is_err() {
        b.hang_up();
    }
    match b.link().and_then(|link| enter(link, Running)) {
        Ok(()) => outcome,
        Err(stop) if outcome.is_ok() => Err(stop),
        // A device that is asked to forget its data may be reset, too.
        Err(_) if b.may_destroy() => do_reset(b).and(outcome),
        Err(_) => outcome,
    }
}

fn has_pre_copy(b: &mut Bench) -> Outcome<bool> {
    Ok(migrates(b)?.contains(MigrationFlags::PRE_COPY))
}

fn walk(b: &mut Bench, path: &[DeviceState]) -> Outcome {
    let link = b.link()?;
    path.iter().try_for_each(|to| enter(link, *to))
}

fn arcs(b: &mut Bench) -> Outcome {
    let pre_copy = has_pre_copy(b)?;
    in_state(b, |b| {
        walk(b, &[Stopped, Running, Stopped, StopCopy, Stopped, Running])?;
        match pre_copy {
            true => walk(b, &[PreCopy, Running, PreCopy, StopCopy, Stopped, Running]),
            false => Ok(()),
        }
    })
}

fn paths(b: &mut Bench) -> Outcome {
    let pre_copy = has_pre_copy(b)?;
    in_state(b, |b| {
        walk(b, &[StopCopy, Running])?;
        match pre_copy {
            true => walk(b, &[Stopped, PreCopy, Stopped, Running]),
            false => Ok(()),
        }
    })
}

/// Asks for what must be refused, and leaves the state alone.
fn turned_down(link: &mut Link, to: u32, at: DeviceState) -> Outcome {
    let mut answer = ask_state(link, to)?;
    answer.what = format!("the transition from {} to {to}", state_name(at));
    answer.refused()?;
    match state(link)? {
        now if now == at => Ok(()),
        now => {
            let text = format!("{}: refused, yet the state is {}", answer.what, state_name(now));
            Err(Stop::fail(text))
        }
    }
}

fn no_way_back(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        walk(b, &[StopCopy])?;
        turned_down(b.link()?, PreCopy as u32, StopCopy)
    })
}

fn refused(b: &mut Bench) -> Outcome {
    let p2p = migrates(b)?.contains(MigrationFlags::P2P);
    in_state(b, |b| {
        let link = b.link()?;
        let unknown = [DeviceState::Error as u32, 8, 9, u32::MAX];
        let peers = [DeviceState::RunningP2p as u32, DeviceState::PreCopyP2p as u32];
        let peers = peers.into_iter().filter(|_| !p2p);
        unknown.into_iter().chain(peers).try_for_each(|to| turned_down(link, to, Running))
    })
}

fn short(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let link = b.link()?;
    for size in [0, 2] {
        let what = format!("a transition with {size} bytes of data");
        let running = (Running as u32).to_le_bytes();
        let cut = running.get(..size).unwrap_or_default();
        ask(link, Feature::MigDeviceState as u32, FeatureFlags::SET, cut, 0)?.refused()?;
        link.in_step(&what)?;
    }
    Ok(())
}

/// Largest state that is read, in bytes, and what is asked for at a time.
const LARGEST: usize = 256 << 20;
const PIECE: u32 = 64 << 10;

fn ask_read(link: &mut Link, size: u32) -> Outcome<Answer> {
    let request = MigData { argsz: size.saturating_add(size_of::<MigData>() as u32), size };
    let what = format!("MIG_DATA_READ of {size} bytes");
    link.request(Command::MigDataRead, request.as_bytes(), &what)
}

/// Up to `size` bytes of the state.
fn read_some(link: &mut Link, size: u32) -> Outcome<Vec<u8>> {
    let answer = ask_read(link, size)?.done()?;
    let head: MigData = answer.payload()?;
    let data = answer.body.get(size_of::<MigData>()..).unwrap_or_default();
    let fail = |text: String| Err(Stop::fail(format!("{}: {text}", answer.what)));
    if head.size > size {
        return fail(format!("size {}", head.size));
    }
    if data.len() as u64 != u64::from(head.size) {
        return fail(format!("size {}, and {} bytes", head.size, data.len()));
    }
    if head.argsz as usize != answer.body.len() {
        return fail(format!("argsz {} of {} bytes", head.argsz, answer.body.len()));
    }
    Ok(data.to_vec())
}

/// All of the state, in STOP_COPY.
fn read_all(link: &mut Link, piece: u32) -> Outcome<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let some = read_some(link, piece)?;
        all.extend_from_slice(&some);
        if some.len() < piece as usize {
            return Ok(all);
        }
        if all.len() > LARGEST {
            return Err(Stop::fail(format!("the state has no end: {} bytes so far", all.len())));
        }
    }
}

fn read(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        walk(b, &[StopCopy])?;
        let state = read_all(b.link()?, PIECE)?;
        if state.is_empty() {
            b.warn("the state is empty");
        }
        // There is no more then.
        match read_some(b.link()?, PIECE)?.len() {
            0 => Ok(()),
            n => Err(Stop::fail(format!("{n} more bytes behind the end of the state"))),
        }
    })
}

fn read_pieces(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        walk(b, &[StopCopy])?;
        let link = b.link()?;
        for size in [1, 7, 4096] {
            read_some(link, size)?;
        }
        Ok(())
    })
}

fn read_running(b: &mut Bench) -> Outcome {
    in_state(b, |b| ask_read(b.link()?, 64)?.refused().map(|_| ()))
}

fn read_too_large(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        walk(b, &[StopCopy])?;
        let most = b.negotiated().map_or(1 << 20, |n| n.capabilities.max_data_xfer_size);
        for size in [u32::MAX, most.saturating_add(1)] {
            let link = b.link()?;
            let answer = ask_read(link, size)?;
            link.in_step(&answer.what)?;
            if !answer.is_error() && answer.body.len() as u64 > u64::from(most) + 8 {
                return Err(Stop::fail(format!("{}: {} bytes came", answer.what, answer.body.len())));
            }
        }
        Ok(())
    })
}

fn ask_write(link: &mut Link, size: u32, data: &[u8]) -> Outcome<Answer> {
    let argsz = size.saturating_add(size_of::<MigData>() as u32);
    let what = format!("MIG_DATA_WRITE of {size} bytes");
    link.request(Command::MigDataWrite, &[&words(&[argsz, size]), data].concat(), &what)
}

fn write_running(b: &mut Bench) -> Outcome {
    in_state(b, |b| ask_write(b.link()?, 4, &[0; 4])?.refused().map(|_| ()))
}

fn data_short(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let link = b.link()?;
    for command in [Command::MigDataRead, Command::MigDataWrite] {
        for size in [0, 4] {
            let what = format!("{command} with {size} bytes of payload");
            link.request(command, &vec![0; size], &what)?.refused()?;
            link.in_step(&what)?;
        }
    }
    Ok(())
}

/// What the device's state is; then it waits to be loaded.
pub(super) fn saved_and_resuming(b: &mut Bench) -> Outcome<Vec<u8>> {
    walk(b, &[StopCopy])?;
    let saved = read_all(b.link()?, PIECE)?;
    walk(b, &[Stopped, Resuming])?;
    Ok(saved)
}

pub(super) fn load(link: &mut Link, saved: &[u8], piece: usize) -> Outcome {
    for data in saved.chunks(piece) {
        let answer = ask_write(link, u32::try_from(data.len()).unwrap_or(u32::MAX), data)?.done()?;
        if !answer.body.is_empty() {
            return Err(Stop::fail(format!("{}: {} bytes of payload", answer.what, answer.body.len())));
        }
    }
    Ok(())
}

fn resuming(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        let saved = saved_and_resuming(b)?;
        load(b.link()?, &saved, PIECE as usize)?;
        walk(b, &[Stopped, Running])?;
        // And by the ways that are made of several transitions.
        let saved = saved_and_resuming(b)?;
        load(b.link()?, &saved, PIECE as usize)?;
        walk(b, &[Running])
    })
}

fn write(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        let saved = saved_and_resuming(b)?;
        load(b.link()?, &saved, 1000)?;
        walk(b, &[StopCopy])?;
        let again = read_all(b.link()?, PIECE)?;
        match (again.len(), saved.len()) {
            (n, m) if n == m => Ok(()),
            (n, m) => {
                b.warn(format!("the state that was loaded is {n} bytes, where {m} were written"));
                Ok(())
            }
        }
    })
}

fn write_cut(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        let saved = saved_and_resuming(b)?;
        let link = b.link()?;
        ask_write(link, 100, &[0; 10])?.refused()?;
        link.in_step("MIG_DATA_WRITE with less data than it says")?;
        load(link, &saved, PIECE as usize)?;
        walk(b, &[Running])
    })
}
