//! Clients that go, at any time and in any state

use std::os::fd::AsFd;

use vfio_user::wire::{Command, DeviceState, IrqInfo, MigrationFlags};

use super::bench::Bench;
use super::dma::{BASE, RW, SIZE, ask_map, ask_unmap, memory};
use super::features::migrates;
use super::irqs::{arm, fire, new_eventfd, signals};
use super::logging::start;
use super::state::{in_state, load, saved_and_resuming, set_state, state};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};
use crate::client::{proposal, state_name};

pub const CHECKS: &[Check] = &[
    Check::new("again", ROBUSTNESS, "one client after the other is served", again).own(),
    Check::new("silent", ROBUSTNESS, "a client that goes without a word does no harm", silent).own(),
    Check::new("in-version", ROBUSTNESS, "nor one that goes within VERSION", in_version).own(),
    Check::new("in-header", ROBUSTNESS, "nor one that goes within a header", in_header).own(),
    Check::new("in-payload", ROBUSTNESS, "nor one that goes within a payload", in_payload).own(),
    Check::new("unread", ROBUSTNESS, "nor one that goes with replies unread", unread).own(),
    Check::new("mapped", ROBUSTNESS, "the next client has the address space for itself", mapped).own(),
    Check::new("interrupts", ROBUSTNESS, "interrupts go to clients that are there", interrupts).own(),
    Check::new("logging", ROBUSTNESS, "the next client can log dirty pages", logging).own(),
    Check::new("stopped", ROBUSTNESS, "a device that was stopped can run again", stopped).own(),
    Check::new("resuming", ROBUSTNESS, "a device that was being loaded can run again", resuming)
        .own()
        .destructive(),
];

fn again(b: &mut Bench) -> Outcome {
    for _ in 0..4 {
        b.connect()?.in_step("VERSION")?;
    }
    if b.ends_with_client() {
        b.warn("the server ends with its client");
    }
    Ok(())
}

fn silent(b: &mut Bench) -> Outcome {
    b.fresh().map(drop)
}

fn in_version(b: &mut Bench) -> Outcome {
    let proposal = proposal(false)?;
    for size in [7, 18, 40] {
        let mut link = b.fresh()?;
        let (_, bytes) = link.command(Command::Version as u16, 0, &proposal);
        link.send(bytes.get(..size).unwrap_or_default(), &[])?;
    }
    Ok(())
}

/// Sends a part of a command and goes.
fn cut(b: &mut Bench, size: usize) -> Outcome {
    let mut link = b.connect()?;
    let (_, bytes) = link.command(Command::DeviceGetInfo as u16, 0, &words(&[16, 0, 0, 0]));
    link.send(bytes.get(..size).unwrap_or_default(), &[])
}

fn in_header(b: &mut Bench) -> Outcome {
    [1, 15].into_iter().try_for_each(|size| cut(b, size))
}

fn in_payload(b: &mut Bench) -> Outcome {
    [16, 20, 31].into_iter().try_for_each(|size| cut(b, size))
}

fn unread(b: &mut Bench) -> Outcome {
    const MANY: usize = 64;
    let mut link = b.connect()?;
    let mut all = Vec::new();
    for _ in 0..MANY {
        all.extend(link.command(Command::DeviceGetInfo as u16, 0, &words(&[16, 0, 0, 0])).1);
    }
    link.send(&all, &[])
}

fn mapped(b: &mut Bench) -> Outcome {
    let file = memory(SIZE)?;
    for _ in 0..2 {
        let mut link = b.connect()?;
        let mut answer = ask_map(&mut link, (BASE, SIZE, 0), RW, &[file.as_fd()])?;
        answer.what = format!("{} by the next client", answer.what);
        answer.done()?;
        ask_map(&mut link, (BASE + SIZE, SIZE, 0), RW, &[])?.done()?;
    }
    let mut link = b.connect()?;
    ask_map(&mut link, (BASE, 2 * SIZE, 0), RW, &[])?.done()?;
    ask_unmap(&mut link, BASE, 2 * SIZE)?.done().map(|_| ())
}

fn interrupts(b: &mut Bench) -> Outcome {
    let found = b.facts().irqs.iter().find(|irq| irq.count > 0 && irq.flags & 1 != 0);
    let IrqInfo { index, .. } = *found.ok_or_else(|| Stop::skip("the device has no interrupts"))?;
    let fd = new_eventfd()?;
    let mut link = b.connect()?;
    arm(&mut link, index, 0, &fd)?;
    drop(link);
    fire(&mut b.connect()?, index)?;
    match signals(&fd) {
        0 => Ok(()),
        _ => Err(Stop::fail("the eventfd of a client that has left is signalled")),
    }
}

fn logging(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let file = memory(SIZE)?;
    for page_size in [4096, 8192] {
        let mut link = b.connect()?;
        ask_map(&mut link, (BASE, SIZE, 0), RW, &[file.as_fd()])?.done()?;
        let mut answer = start(&mut link, page_size, &[(BASE, SIZE)])?;
        if answer.is_error() && page_size == 4096 {
            return Err(Stop::skip("the device does no dirty logging"));
        }
        answer.what = format!("{} by the next client", answer.what);
        answer.done()?;
    }
    Ok(())
}

/// The state survives its client, or it doesn't; the device must come to run.
fn stopped(b: &mut Bench) -> Outcome {
    let pre_copy = migrates(b)?.contains(MigrationFlags::PRE_COPY);
    let states = [DeviceState::Stop, DeviceState::StopCopy, DeviceState::PreCopy];
    in_state(b, |b| {
        for to in states.into_iter().filter(|to| pre_copy || *to != DeviceState::PreCopy) {
            let mut link = b.connect()?;
            set_state(&mut link, to)?.done()?;
            drop(link);
            let mut link = b.connect()?;
            set_state(&mut link, DeviceState::Running)?.done()?;
            if state(&mut link)? != DeviceState::Running {
                return Err(Stop::fail(format!("the device does not run after {}", state_name(to))));
            }
        }
        Ok(())
    })
}

fn resuming(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        let saved = saved_and_resuming(b)?;
        let mut link = b.connect()?;
        if state(&mut link)? == DeviceState::Resuming {
            load(&mut link, &saved, 4096)?;
        }
        set_state(&mut link, DeviceState::Running)?.done().map(|_| ())
    })
}
