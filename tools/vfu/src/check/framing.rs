//! Messages as such: how they are cut, put together, named and answered.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vfio_user::wire::{Command, Header, HeaderFlags, limits};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::link::{Link, Trouble};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};
use crate::error::Error;
use crate::region::Region;

const HEADER: &str = "Header";

pub const CHECKS: &[Check] = &[
    Check::new("ids", HEADER, "replies repeat the id and the command, whatever the id", ids),
    Check::new("same-id", HEADER, "commands with the same id, both under way, are both answered", same_id),
    Check::new("sizes", HEADER, "replies are as large as their headers say", sizes),
    Check::new("error-alone", HEADER, "a reply with an error is a header and no more", error_alone),
    Check::new("unknown-command", HEADER, "commands that it does not know are refused", unknown_command)
        .late(),
    Check::new("unknown-payload", ROBUSTNESS, "the payload of what is refused is read over", unknown_payload)
        .late(),
    Check::new("no-reply", HEADER, "a write with No_reply is not answered", no_reply),
    Check::new(
        "no-reply-error",
        HEADER,
        "a failed write with No_reply is not answered either",
        no_reply_error,
    ),
    Check::new("header-in-pieces", ROBUSTNESS, "a header may come byte by byte", header_in_pieces).late(),
    Check::new("body-in-pieces", ROBUSTNESS, "a payload may come apart from its header", body_in_pieces)
        .late(),
    Check::new("gathered", ROBUSTNESS, "many commands may come at once", gathered),
    Check::new(
        "descriptors",
        ROBUSTNESS,
        "descriptors with a command that takes none do no harm",
        descriptors,
    )
    .late(),
    Check::new("reply-unasked", ROBUSTNESS, "a reply that nobody waits for is not executed", reply_unasked)
        .own(),
    Check::new("type", ROBUSTNESS, "a message of an unknown type is not executed", unknown_type).own(),
    Check::new("size-below-header", ROBUSTNESS, "a size below the header's does no harm", size_below).own(),
    Check::new("size-huge", ROBUSTNESS, "a size that no message has does no harm", size_huge).own(),
];

const GET_INFO: [u32; 4] = [16, 0, 0, 0];

fn ids(b: &mut Bench) -> Outcome {
    for id in [0, 1, 0x7fff, 0x8000, 0xffff] {
        let link = b.link()?;
        link.next_id = id;
        link.request(Command::DeviceGetInfo, &words(&GET_INFO), &format!("a command with id {id}"))?
            .done()?;
    }
    Ok(())
}

fn same_id(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    let mut bytes = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..3 {
        link.next_id = 7;
        let (header, message) = link.command(Command::DeviceGetInfo as u16, 0, &words(&GET_INFO));
        bytes.extend(message);
        sent.push(header);
    }
    link.send(&bytes, &[])?;
    for header in sent {
        link.reply(&header, "one of three commands with id 7")?.done()?;
    }
    link.in_step("commands with the same id")
}

/// A size that lies shows at the next reply, which does not begin where it should.
fn sizes(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    link.in_step("VERSION")?;
    for index in 0..9 {
        let request = words(&[32, 0, index, 0, 0, 0, 0, 0]);
        let what = format!("DEVICE_GET_REGION_INFO of region {index}");
        link.request(Command::DeviceGetRegionInfo, &request, &what)?;
        link.in_step(&what)?;
    }
    Ok(())
}

/// A command that every server refuses: information on a region beyond the last one.
fn refused(link: &mut Link) -> Outcome<super::link::Answer> {
    let request = words(&[32, 0, u32::MAX, 0, 0, 0, 0, 0]);
    link.request(
        Command::DeviceGetRegionInfo,
        &request,
        "DEVICE_GET_REGION_INFO of a region that is not there",
    )
}

fn error_alone(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    let answer = refused(link)?;
    answer.refused()?;
    if !answer.body.is_empty() {
        return Err(Stop::fail(format!(
            "{}: the error brings {} more bytes",
            answer.what,
            answer.body.len()
        )));
    }
    link.in_step("a command that was refused")
}

fn unknown_command(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for cmd in [0, 14, 500, 0xffff] {
        let (header, bytes) = link.command(cmd, 0, &[]);
        link.send(&bytes, &[])?;
        let what = format!("command {cmd}");
        link.reply(&header, &what)?.refused()?;
        link.in_step(&what)?;
    }
    Ok(())
}

fn unknown_payload(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for size in [4, 100, 70_000] {
        let what = format!("command 500 with {size} bytes of payload");
        let (header, bytes) = link.command(500, 0, &vec![0; size]);
        link.send(&bytes, &[])?;
        link.reply(&header, &what)?.refused()?;
        link.in_step(&what)?;
    }
    Ok(())
}

/// Writes to the register that software keeps the interrupt's number in what stands there.
fn harmless_write(b: &mut Bench) -> Outcome<Vec<u8>> {
    let link = b.link()?;
    let at = [0x3c_u64.as_bytes(), &words(&[Region::CONFIG.0, 1])].concat();
    let answer = link.request(Command::RegionRead, &at, "a read of the interrupt line register")?;
    match answer.body.get(16..) {
        Some([value]) if !answer.is_error() => Ok([&at, &[*value][..]].concat()),
        _ => Err(Stop::skip("there is no register that can be written without harm")),
    }
}

fn no_reply(b: &mut Bench) -> Outcome {
    let write = harmless_write(b)?;
    let link = b.link()?;
    let what = "a write with No_reply";
    let (_, bytes) = link.command(Command::RegionWrite as u16, HeaderFlags::NO_REPLY.bits(), &write);
    link.send(&bytes, &[])?;
    link.in_step(what)
}

fn no_reply_error(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    let write = [u64::MAX.as_bytes(), &words(&[Region::CONFIG.0, 1]), &[0][..]].concat();
    let (_, bytes) = link.command(Command::RegionWrite as u16, HeaderFlags::NO_REPLY.bits(), &write);
    link.send(&bytes, &[])?;
    link.in_step("a write with No_reply beyond the region's end")
}

/// Sends the parts so that they arrive one by one.
fn piecemeal(link: &mut Link, parts: &[&[u8]], pause: Duration) -> Outcome {
    for part in parts {
        link.send(part, &[])?;
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Pauses between pieces: a server that is slow to look may get the first of them together.
const PAUSES: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(3), Duration::from_millis(9)];

fn header_in_pieces(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for pause in PAUSES {
        let (header, bytes) = link.command(Command::DeviceGetInfo as u16, 0, &words(&GET_INFO));
        let (head, body) = bytes.split_at(limits::HEADER_SIZE.min(bytes.len()));
        let parts: Vec<&[u8]> = head.chunks(1).chain([body]).collect();
        piecemeal(link, &parts, pause)?;
        link.reply(&header, "a command whose header came byte by byte")?.done()?;
    }
    link.in_step("a header in pieces")
}

fn body_in_pieces(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for pause in PAUSES {
        let (header, bytes) = link.command(Command::DeviceGetInfo as u16, 0, &words(&GET_INFO));
        let (head, body) = bytes.split_at(limits::HEADER_SIZE.min(bytes.len()));
        let parts: Vec<&[u8]> = [head].into_iter().chain(body.chunks(3)).collect();
        piecemeal(link, &parts, pause)?;
        link.reply(&header, "a command whose payload came in pieces")?.done()?;
    }
    link.in_step("a payload in pieces")
}

/// The replies may come in any order.
fn gathered(b: &mut Bench) -> Outcome {
    const MANY: usize = 64;
    let link = b.link()?;
    let mut bytes = Vec::new();
    let mut due = Vec::new();
    for _ in 0..MANY {
        let (header, message) = link.command(Command::DeviceGetInfo as u16, 0, &words(&GET_INFO));
        bytes.extend(message);
        due.push(header.msg_id);
    }
    link.send(&bytes, &[])?;
    while !due.is_empty() {
        let what = format!("{MANY} commands at once, {} not answered", due.len());
        let message = link.receive(&what)?.ok_or(Trouble::Gone(what))?;
        let Some(at) = due.iter().position(|id| *id == message.header.msg_id) else {
            return Err(Stop::fail(format!("a reply with id {}, which is not due", message.header.msg_id)));
        };
        due.swap_remove(at);
    }
    link.in_step("many commands at once")
}

fn descriptors(b: &mut Bench) -> Outcome {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| Error::local("eventfd", e))?;
    let link = b.link()?;
    let what = "DEVICE_GET_INFO with a descriptor";
    link.request_with(Command::DeviceGetInfo, &words(&GET_INFO), &[fd.as_fd()], what)?;
    link.in_step(what)
}

/// Sends `bytes`; whatever the server makes of it, it must not answer with success.
fn not_executed(b: &mut Bench, bytes: &[u8], what: &str) -> Outcome {
    let mut link = b.connect()?;
    link.send(bytes, &[])?;
    // Where nothing is answered to it, this is.
    let (probe, message) = link.command(Command::DeviceGetInfo as u16, 0, &words(&GET_INFO));
    link.send(&message, &[])?;
    match link.receive(what)? {
        None => Ok(()),
        Some(message) if message.header.msg_id == probe.msg_id => Ok(()),
        Some(message) if message.header.flags().contains(HeaderFlags::ERROR) => {
            // Behind that, the connection may end.
            link.reply_or_end(&probe, what).map(|_| ())
        }
        Some(_) => Err(Stop::fail(format!("{what}: executed"))),
    }
}

fn of_type(kind: u32) -> Vec<u8> {
    let payload = words(&GET_INFO);
    let size = limits::HEADER_SIZE.saturating_add(payload.len()) as u32;
    let header = Header { flags: kind, ..Header::command(0x4321, Command::DeviceGetInfo as u16, size) };
    [header.as_bytes(), &payload].concat()
}

fn reply_unasked(b: &mut Bench) -> Outcome {
    not_executed(b, &of_type(1), "a reply to nothing")
}

fn unknown_type(b: &mut Bench) -> Outcome {
    not_executed(b, &of_type(2), "a message of type 2")
}

/// Sends a header alone, whose size says something impossible. The server may answer with an error,
/// or close the connection.
fn impossible(b: &mut Bench, size: u32) -> Outcome {
    let what = format!("a header that says the message has {size} bytes");
    let mut link = b.connect()?;
    let header = Header::command(0x4321, Command::DeviceGetInfo as u16, size);
    link.send(header.as_bytes(), &[])?;
    match link.reply_or_end(&header, &what) {
        Ok(None) => Ok(()),
        Ok(Some(answer)) => answer.refused().map(|_| ()),
        Err(Stop::Trouble(Trouble::Silent(_))) => {
            b.warn(format!("{what}: the server waits for more"));
            Ok(())
        }
        Err(stop) => Err(stop),
    }
}

fn size_below(b: &mut Bench) -> Outcome {
    impossible(b, 0)?;
    impossible(b, 15)
}

fn size_huge(b: &mut Bench) -> Outcome {
    impossible(b, 1 << 30)?;
    impossible(b, u32::MAX)
}
