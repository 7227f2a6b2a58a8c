//! `VFIO_USER_DMA_MAP` and `VFIO_USER_DMA_UNMAP`

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use vfio_user::wire::{Command, DmaMap, DmaMapFlags, DmaUnmap, Errno};
use zerocopy::IntoBytes;

use super::bench::Bench;
use super::link::{Answer, Link, errno_text};
use super::{Check, Outcome, ROBUSTNESS, Stop};
use crate::args::{Access, Operation};
use crate::client::{Backing, Segment};
use crate::engine::{self, Descriptor};
use crate::error::Error;
use crate::interrupts::{self, Vectors};

const MAP: &str = "VFIO_USER_DMA_MAP";
const UNMAP: &str = "VFIO_USER_DMA_UNMAP";
const MESSAGES: &str = "VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE";

pub const CHECKS: &[Check] = &[
    Check::new("map", MAP, "memory with a descriptor is mapped", map),
    Check::new("map-message", MAP, "memory without a descriptor is mapped", map_message),
    Check::new("map-access", MAP, "memory may be readable or writable only", map_access),
    Check::new("map-offset", MAP, "memory may begin anywhere in its file", map_offset),
    Check::new("map-over", MAP, "a range over one that is mapped is refused with EEXIST", map_over),
    Check::new("map-again", MAP, "what was unmapped can be mapped again", map_again),
    Check::new("map-many", MAP, "as many ranges as max_dma_maps says can be mapped", map_many),
    Check::new("unmap", UNMAP, "the reply repeats the request", unmap_echo),
    Check::new("unmap-unknown", UNMAP, "what is not mapped is not unmapped", unmap_unknown),
    Check::new("unmap-part", UNMAP, "a part of what is mapped is not unmapped", unmap_part),
    Check::new("messages", MESSAGES, "memory without a descriptor is reached by messages", messages)
        .own()
        .destructive(),
    Check::new("nonsense", ROBUSTNESS, "ranges that are empty or wrap do no harm", nonsense).late(),
    Check::new("odd-descriptor", ROBUSTNESS, "a descriptor of no memory does no harm", odd_descriptor).late(),
    Check::new("short", ROBUSTNESS, "a short payload does no harm", short).late(),
];

/// Where the ranges of these checks are, and their size.
pub(super) const BASE: u64 = 1 << 32;
pub(super) const SIZE: u64 = 64 << 10;

pub(super) const RW: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

fn map_request(addr: u64, size: u64, offset: u64, flags: DmaMapFlags) -> DmaMap {
    DmaMap { argsz: size_of::<DmaMap>() as u32, flags: flags.bits(), offset, addr, size }
}

/// Maps `size` bytes at `addr`.
pub(super) fn ask_map(
    link: &mut Link,
    (addr, size, offset): (u64, u64, u64),
    flags: DmaMapFlags,
    fds: &[BorrowedFd<'_>],
) -> Outcome<Answer> {
    let what = format!("DMA_MAP of {addr:#x}+{size:#x}");
    link.request_with(Command::DmaMap, map_request(addr, size, offset, flags).as_bytes(), fds, &what)
}

pub(super) fn ask_unmap(link: &mut Link, addr: u64, size: u64) -> Outcome<Answer> {
    let unmap = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, addr, size };
    link.request(Command::DmaUnmap, unmap.as_bytes(), &format!("DMA_UNMAP of {addr:#x}+{size:#x}"))
}

/// Whether the server knows what is mapped. One whose device does no DMA need not, and then unmaps
/// even what was never mapped.
fn keeps_account(link: &mut Link) -> Outcome<bool> {
    Ok(ask_unmap(link, BASE << 8, SIZE)?.is_error())
}

/// Memory of `size` bytes with a descriptor.
pub(super) fn memory(size: u64) -> Outcome<std::fs::File> {
    match Backing::memfd(size)? {
        Backing::Shared(file, _) => Ok(file),
        Backing::Private(_) => Err(Error::local("memfd", rustix::io::Errno::IO).into()),
    }
}

fn map(b: &mut Bench) -> Outcome {
    let file = memory(SIZE)?;
    let link = b.link()?;
    let answer = ask_map(link, (BASE, SIZE, 0), RW, &[file.as_fd()])?.done()?;
    if !answer.body.is_empty() {
        return Err(Stop::fail(format!(
            "{}: a reply with {} bytes of payload",
            answer.what,
            answer.body.len()
        )));
    }
    ask_unmap(link, BASE, SIZE)?.done()?;
    link.in_step("DMA_UNMAP")
}

fn map_message(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    ask_map(link, (BASE, SIZE, 0), RW, &[])?.done()?;
    ask_unmap(link, BASE, SIZE)?.done().map(|_| ())
}

fn map_access(b: &mut Bench) -> Outcome {
    let file = memory(SIZE)?;
    let link = b.link()?;
    for flags in [DmaMapFlags::READ, DmaMapFlags::WRITE] {
        for fds in [&[][..], &[file.as_fd()]] {
            ask_map(link, (BASE, SIZE, 0), flags, fds)?.done()?;
            ask_unmap(link, BASE, SIZE)?.done()?;
        }
    }
    Ok(())
}

fn map_offset(b: &mut Bench) -> Outcome {
    let file = memory(3 * SIZE)?;
    let link = b.link()?;
    for offset in [4096, SIZE] {
        ask_map(link, (BASE, SIZE, offset), RW, &[file.as_fd()])?.done()?;
        ask_unmap(link, BASE, SIZE)?.done()?;
    }
    Ok(())
}

fn map_over(b: &mut Bench) -> Outcome {
    let file = memory(4 * SIZE)?;
    let link = b.link()?;
    if !keeps_account(link)? {
        return Err(Stop::skip("the server does not keep account of what is mapped: a device without DMA?"));
    }
    ask_map(link, (BASE, 2 * SIZE, 0), RW, &[file.as_fd()])?.done()?;
    let mut warnings = Vec::new();
    let over = [(BASE, SIZE), (BASE + SIZE, SIZE), (BASE + SIZE, 2 * SIZE), (BASE - SIZE, 4 * SIZE)];
    for (addr, size) in over {
        let answer = ask_map(link, (addr, size, 0), RW, &[file.as_fd()])?;
        let errno = answer.refused()?;
        if errno != Errno::EEXIST.number() as u32 {
            warnings.push(format!("{}: refused with {}, not EEXIST", answer.what, errno_text(errno)));
        }
    }
    if !ask_map(link, (BASE, 2 * SIZE, 0), RW, &[file.as_fd()])?.is_error() {
        warnings.push("the same map again is answered with success".into());
    }
    ask_unmap(link, BASE, 2 * SIZE)?.done()?;
    warnings.into_iter().for_each(|warning| b.warn(warning));
    Ok(())
}

fn map_again(b: &mut Bench) -> Outcome {
    let file = memory(SIZE)?;
    let link = b.link()?;
    for size in [SIZE, SIZE / 2, SIZE] {
        ask_map(link, (BASE, size, 0), RW, &[file.as_fd()])?.done()?;
        ask_unmap(link, BASE, size)?.done()?;
    }
    Ok(())
}

/// All at once, as guests' IOMMUs make it, within what a client may expect.
fn map_many(b: &mut Bench) -> Outcome {
    const MANY: u64 = 300;
    let most = b.negotiated().and_then(|n| n.capabilities.max_dma_maps);
    let many = most.unwrap_or(MANY).min(MANY);
    let link = b.link()?;
    let addrs: Vec<u64> = (0..many).map(|n| BASE + n * SIZE).collect();
    let unmap = |addr| DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, addr, size: SIZE };
    let maps: Vec<Vec<u8>> =
        addrs.iter().map(|addr| map_request(*addr, SIZE, 0, RW).as_bytes().to_vec()).collect();
    let unmaps: Vec<Vec<u8>> = addrs.iter().map(|addr| unmap(*addr).as_bytes().to_vec()).collect();
    for (command, requests) in [(Command::DmaMap, maps), (Command::DmaUnmap, unmaps)] {
        let (headers, bytes): (Vec<_>, Vec<_>) =
            requests.iter().map(|request| link.command(command as u16, 0, request)).unzip();
        link.send(&bytes.concat(), &[])?;
        for (n, header) in headers.iter().enumerate() {
            link.reply(header, &format!("{command} {n} of {many}"))?.done()?;
        }
    }
    Ok(())
}

fn unmap_echo(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    ask_map(link, (BASE, SIZE, 0), RW, &[])?.done()?;
    let answer = ask_unmap(link, BASE, SIZE)?.done()?;
    let echo: DmaUnmap = answer.payload()?;
    if (echo.addr, echo.size, echo.flags) != (BASE, SIZE, 0) || answer.body.len() != size_of::<DmaUnmap>() {
        return Err(Stop::fail(format!("{}: {echo:?} in {} bytes", answer.what, answer.body.len())));
    }
    Ok(())
}

fn unmap_unknown(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    ask_map(link, (BASE, SIZE, 0), RW, &[])?.done()?;
    // Whether it knows that at all.
    let over = !ask_map(link, (BASE + SIZE / 2, SIZE, 0), RW, &[])?.is_error();
    ask_unmap(link, BASE, SIZE)?.done()?;
    if over {
        return Err(Stop::skip("the server does not keep account of what is mapped: a device without DMA?"));
    }
    for (addr, size) in [(BASE, SIZE), (BASE << 8, SIZE), (0, 4096)] {
        ask_unmap(link, addr, size)?.refused()?;
    }
    Ok(())
}

fn unmap_part(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    if !keeps_account(link)? {
        return Err(Stop::skip("the server does not keep account of what is mapped: a device without DMA?"));
    }
    ask_map(link, (BASE, 2 * SIZE, 0), RW, &[])?.done()?;
    for (addr, size) in [(BASE, SIZE), (BASE + SIZE, SIZE), (BASE + 4096, 4096), (BASE - SIZE, 2 * SIZE)] {
        ask_unmap(link, addr, size)?.refused()?;
    }
    ask_unmap(link, BASE, 2 * SIZE)?.done().map(|_| ())
}

fn nonsense(b: &mut Bench) -> Outcome {
    let ranges = [(BASE, 0), (u64::MAX - 4095, 8192), (u64::MAX, u64::MAX), (BASE + 1, 1 << 63)];
    for (addr, size) in ranges {
        let link = b.link()?;
        let answer = ask_map(link, (addr, size, 0), RW, &[])?;
        if !answer.is_error() {
            ask_unmap(link, addr, size)?;
        }
        ask_unmap(link, addr, size)?;
        link.in_step(&answer.what)?;
        let wraps = addr.checked_add(size).is_none();
        if !answer.is_error() && (size == 0 || wraps) {
            b.warn(format!("{} is answered with success", answer.what));
        }
    }
    Ok(())
}

/// The reading end of a pipe whose other end went to the server shows whether it was closed there.
fn odd_descriptor(b: &mut Bench) -> Outcome {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::local("pipe", e))?;
    let link = b.link()?;
    let answer = ask_map(link, (BASE, SIZE, 0), RW, &[writer.as_fd()])?;
    drop(writer);
    if !answer.is_error() {
        ask_unmap(link, BASE, SIZE)?.done()?;
    }
    link.in_step("DMA_MAP with a pipe")?;
    let mut polled = [PollFd::new(&reader, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).map_err(|e| Error::local("poll", e))?;
    if !polled.iter().any(|p| p.revents().contains(PollFlags::HUP)) {
        b.warn("the descriptor is still open in the server");
    }
    Ok(())
}

fn short(b: &mut Bench) -> Outcome {
    let unmap = DmaUnmap { argsz: 24, flags: 0, addr: BASE << 8, size: SIZE };
    let requests = [
        (Command::DmaMap, map_request(BASE << 8, SIZE, 0, RW).as_bytes().to_vec()),
        (Command::DmaUnmap, unmap.as_bytes().to_vec()),
    ];
    for (command, request) in requests {
        for size in [0, 8, 23] {
            let what = format!("{command} with {size} bytes of payload");
            let link = b.link()?;
            let answer = link.request(command, request.get(..size).unwrap_or_default(), &what)?;
            link.in_step(&what)?;
            if !answer.is_error() {
                b.warn(format!("{what} is answered with success"));
            }
        }
    }
    Ok(())
}

/// How to start a transfer is known of one kind of device only. Each of its messages is looked at by
/// the client that answers it.
fn messages(b: &mut Bench) -> Outcome {
    if b.ends_with_client() {
        return Err(Stop::skip("the server ends with its client"));
    }
    let mut client = b.client()?;
    if let Err(Error::Unfit(_) | Error::Device { .. }) = engine::identify(&mut client) {
        return Err(Stop::skip("the device is no dma-engine: how to start its DMA is not known"));
    }
    let pattern: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    let (src, dst) = (BASE, BASE + SIZE);
    for (addr, bytes) in [(src, pattern.clone()), (dst, vec![0; pattern.len()])] {
        client.dma_map(Segment { addr, access: RW, backing: Backing::Private(bytes) })?;
    }
    let (irq, available) = interrupts::choose(&mut client, None)?;
    let vectors = Vectors::arm(&mut client, irq, available)?;
    engine::enable(&mut client)?;
    let copy = |to| Descriptor::new(Operation::Copy, Access::Auto, (src, to, SIZE), 0, 0);
    engine::execute(&mut client, &vectors, &copy(dst))?.0.check()?;
    let mut found = vec![0; pattern.len()];
    client.memory().read(dst, &mut found)?;
    if let Some(at) = found.iter().zip(&pattern).position(|(found, due)| found != due) {
        return Err(Stop::fail(format!("what the device copied by messages is wrong from byte {at:#x} on")));
    }
    let traffic = client.memory().traffic;
    if traffic.reads == 0 || traffic.writes == 0 {
        return Err(Stop::fail("the memory was reached without messages"));
    }
    // There is no memory: the client says so, and the server has to live with it.
    let (lost, _) = engine::execute(&mut client, &vectors, &copy(BASE << 8))?;
    if lost.check().is_ok() {
        return Err(Stop::fail("a copy to where no memory is ended well"));
    }
    engine::disable(&mut client)?;
    vectors.disarm(&mut client)?;
    client.dma_unmap(src)?;
    client.dma_unmap(dst)?;
    Ok(())
}
