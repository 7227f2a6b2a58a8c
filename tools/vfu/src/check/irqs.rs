//! `VFIO_USER_DEVICE_SET_IRQS`

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use vfio_user::wire::{Command, IrqInfo, IrqInfoFlags, IrqSetFlags};

use super::bench::Bench;
use super::link::{Answer, Link};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};
use crate::error::Error;
use crate::region::Irq;

const SET: &str = "VFIO_USER_DEVICE_SET_IRQS";

pub const CHECKS: &[Check] = &[
    Check::new("trigger", SET, "an eventfd is signalled when its vector is triggered", trigger),
    Check::new("bool", SET, "boolean data says which vectors are triggered", boolean),
    Check::new("vectors", SET, "each vector has an eventfd of its own, set in any number of pieces", vectors),
    Check::new("replace", SET, "a new eventfd takes the place of the old one", replace),
    Check::new("take-back", SET, "eventfd data without descriptors take the eventfds away", take_back),
    Check::new("disable", SET, "no data, count 0 takes all eventfds of a type away", disable),
    Check::new("mask", SET, "a type that can be masked takes MASK and UNMASK", mask),
    Check::new("flags", SET, "flags without exactly one action and one type of data are refused", flags),
    Check::new("beyond", SET, "vectors beyond the last are refused", beyond),
    Check::new("bool-short", SET, "boolean data shorter than count are refused", bool_short).late(),
    Check::new("descriptors", ROBUSTNESS, "more or fewer descriptors than count do no harm", descriptors)
        .late(),
    Check::new("short", ROBUSTNESS, "a short payload is refused", short).late(),
];

const NONE: IrqSetFlags = IrqSetFlags::DATA_NONE;
const BOOL: IrqSetFlags = IrqSetFlags::DATA_BOOL;
const EVENTFD: IrqSetFlags = IrqSetFlags::DATA_EVENTFD;
const TRIGGER: IrqSetFlags = IrqSetFlags::ACTION_TRIGGER;

/// Most vectors of a type that are looked at.
const MOST: u32 = 64;

/// The types that have vectors, and take eventfds.
fn types(b: &Bench) -> Outcome<Vec<IrqInfo>> {
    let takes =
        |i: &&IrqInfo| i.count > 0 && IrqInfoFlags::from_bits_retain(i.flags).contains(IrqInfoFlags::EVENTFD);
    let types: Vec<IrqInfo> = b.facts().irqs.iter().filter(takes).copied().collect();
    if types.is_empty() { Err(Stop::skip("the device has no interrupts")) } else { Ok(types) }
}

/// Sends a command about the vectors `start..start + count` of a type.
fn ask(
    link: &mut Link,
    index: u32,
    flags: IrqSetFlags,
    (start, count): (u32, u32),
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Outcome<Answer> {
    let argsz = u32::try_from(data.len()).unwrap_or(u32::MAX).saturating_add(20);
    let request = [&words(&[argsz, flags.bits(), index, start, count]), data].concat();
    let what = format!("SET_IRQS of {}, flags {:#x}, start {start}, count {count}", Irq(index), flags.bits());
    link.request_with(Command::DeviceSetIrqs, &request, fds, &what)
}

pub(super) fn new_eventfd() -> Outcome<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(eventfd(0, flags).map_err(|e| Error::local("eventfd", e))?)
}

/// How often an eventfd was signalled since this was asked last.
pub(super) fn signals(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

pub(super) fn arm(link: &mut Link, index: u32, vector: u32, fd: &OwnedFd) -> Outcome {
    let answer = ask(link, index, EVENTFD | TRIGGER, (vector, 1), &[], &[fd.as_fd()])?.done()?;
    match answer.body.len() {
        0 => Ok(()),
        n => Err(Stop::fail(format!("{}: {n} bytes of payload, where there are none", answer.what))),
    }
}

/// Triggers, whether or not the server finds that there is something to trigger.
pub(super) fn fire(link: &mut Link, index: u32) -> Outcome {
    ask(link, index, NONE | TRIGGER, (0, 1), &[], &[]).map(|_| ())
}

fn disarm(link: &mut Link, index: u32) -> Outcome {
    ask(link, index, NONE | TRIGGER, (0, 0), &[], &[])?.done().map(|_| ())
}

/// Fails unless the eventfd was signalled `expected` times.
fn expect(fd: &OwnedFd, expected: u64, what: &str) -> Outcome {
    match signals(fd) {
        n if n == expected => Ok(()),
        n => Err(Stop::fail(format!("{what}: its eventfd was signalled {n} times, not {expected}"))),
    }
}

fn trigger(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let link = b.link()?;
        let fd = new_eventfd()?;
        arm(link, index, 0, &fd)?;
        expect(&fd, 0, &format!("{} that is set up", Irq(index)))?;
        ask(link, index, NONE | TRIGGER, (0, 1), &[], &[])?.done()?;
        expect(&fd, 1, &format!("{} that is triggered", Irq(index)))?;
        disarm(link, index)?;
    }
    Ok(())
}

fn boolean(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let link = b.link()?;
        let fd = new_eventfd()?;
        arm(link, index, 0, &fd)?;
        for value in [0, 1] {
            ask(link, index, BOOL | TRIGGER, (0, 1), &[value], &[])?.done()?;
            expect(&fd, value.into(), &format!("{} triggered with {value}", Irq(index)))?;
        }
        disarm(link, index)?;
    }
    Ok(())
}

fn vectors(b: &mut Bench) -> Outcome {
    let pieces = b.negotiated().map_or(1, |n| n.capabilities.max_msg_fds).clamp(1, 16) as usize;
    for IrqInfo { index, count, .. } in types(b)? {
        let link = b.link()?;
        let fds = (0..count.min(MOST)).map(|_| new_eventfd()).collect::<Outcome<Vec<_>>>()?;
        let mut start = 0;
        for piece in fds.chunks(pieces) {
            let piece: Vec<BorrowedFd<'_>> = piece.iter().map(AsFd::as_fd).collect();
            let range = (start, piece.len() as u32);
            ask(link, index, EVENTFD | TRIGGER, range, &[], &piece)?.done()?;
            start = start.saturating_add(range.1);
        }
        for vector in 0..start {
            ask(link, index, NONE | TRIGGER, (vector, 1), &[], &[])?.done()?;
            for (n, fd) in fds.iter().enumerate() {
                let expected = u64::from(n as u64 == u64::from(vector));
                expect(fd, expected, &format!("{} {n} when {vector} is triggered", Irq(index)))?;
            }
        }
        disarm(link, index)?;
    }
    Ok(())
}

fn replace(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let link = b.link()?;
        let (old, new) = (new_eventfd()?, new_eventfd()?);
        arm(link, index, 0, &old)?;
        arm(link, index, 0, &new)?;
        fire(link, index)?;
        expect(&old, 0, &format!("{} that was replaced", Irq(index)))?;
        expect(&new, 1, &format!("{} that took its place", Irq(index)))?;
        disarm(link, index)?;
    }
    Ok(())
}

fn take_back(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let link = b.link()?;
        let fd = new_eventfd()?;
        arm(link, index, 0, &fd)?;
        ask(link, index, EVENTFD | TRIGGER, (0, 1), &[], &[])?.done()?;
        fire(link, index)?;
        expect(&fd, 0, &format!("{} that was taken back", Irq(index)))?;
    }
    Ok(())
}

fn disable(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let link = b.link()?;
        let fd = new_eventfd()?;
        arm(link, index, 0, &fd)?;
        disarm(link, index)?;
        fire(link, index)?;
        expect(&fd, 0, &format!("{} that was disabled", Irq(index)))?;
    }
    Ok(())
}

fn mask(b: &mut Bench) -> Outcome {
    let maskable = |i: &IrqInfo| IrqInfoFlags::from_bits_retain(i.flags).contains(IrqInfoFlags::MASKABLE);
    let types: Vec<IrqInfo> = types(b)?.into_iter().filter(maskable).collect();
    if types.is_empty() {
        return Err(Stop::skip("no type can be masked"));
    }
    for IrqInfo { index, .. } in types {
        let link = b.link()?;
        for action in [IrqSetFlags::ACTION_MASK, IrqSetFlags::ACTION_UNMASK] {
            ask(link, index, NONE | action, (0, 1), &[], &[])?.done()?;
        }
    }
    Ok(())
}

fn flags(b: &mut Bench) -> Outcome {
    let both = NONE | EVENTFD | TRIGGER;
    let masked = NONE | TRIGGER | IrqSetFlags::ACTION_MASK;
    for IrqInfo { index, .. } in types(b)? {
        for flags in [IrqSetFlags::empty(), NONE, TRIGGER, both, masked] {
            ask(b.link()?, index, flags, (0, 1), &[], &[])?.refused()?;
        }
    }
    Ok(())
}

fn beyond(b: &mut Bench) -> Outcome {
    let number = b.facts().device.map_or(5, |device| device.num_irqs);
    for IrqInfo { index, count, .. } in types(b)? {
        let after = count.saturating_add(1);
        for range in [(count, 1), (0, after), (u32::MAX, 1), (u32::MAX, 2)] {
            ask(b.link()?, index, NONE | TRIGGER, range, &[], &[])?.refused()?;
        }
    }
    for index in [number, u32::MAX] {
        ask(b.link()?, index, NONE | TRIGGER, (0, 1), &[], &[])?.refused()?;
    }
    Ok(())
}

fn bool_short(b: &mut Bench) -> Outcome {
    for IrqInfo { index, .. } in types(b)? {
        let answer = ask(b.link()?, index, BOOL | TRIGGER, (0, 1), &[], &[])?;
        answer.refused()?;
        b.link()?.in_step(&answer.what)?;
    }
    Ok(())
}

fn descriptors(b: &mut Bench) -> Outcome {
    for IrqInfo { index, count, .. } in types(b)? {
        let (one, other) = (new_eventfd()?, new_eventfd()?);
        for (count, fds) in [(1, &[one.as_fd(), other.as_fd()][..]), (count.min(2), &[one.as_fd()])] {
            let link = b.link()?;
            let answer = ask(link, index, EVENTFD | TRIGGER, (0, count), &[], fds)?;
            link.in_step(&answer.what)?;
            disarm(link, index)?;
            if !answer.is_error() && count as usize != fds.len() {
                b.warn(format!("{} with {} descriptors is executed", answer.what, fds.len()));
            }
        }
    }
    Ok(())
}

fn short(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for size in [0, 4, 16] {
        let what = format!("SET_IRQS with {size} bytes of payload");
        let request = words(&[20, (NONE | TRIGGER).bits(), 0, 0, 0]);
        let request = request.get(..size).unwrap_or_default();
        link.request(Command::DeviceSetIrqs, request, &what)?.refused()?;
        link.in_step(&what)?;
    }
    Ok(())
}
