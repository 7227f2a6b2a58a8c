//! `vfu dma`

use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use vfio_user::wire::DmaMapFlags;

use crate::args::{self, MemoryKind, Operation};
use crate::client::{Backing, Client, Segment, Traffic};
use crate::engine::{self, Descriptor, checksum};
use crate::error::{Error, Result};
use crate::interrupts::{self, Vectors};
use crate::output::{self, Format};

/// What the destination holds before the device writes to it.
const UNTOUCHED: u8 = 0xee;

#[derive(Serialize)]
struct Report {
    operation: String,
    bytes: usize,
    memory: String,
    access: String,
    interrupt: String,
    interrupts: u64,
    /// Commands of the server to reach the memory.
    messages: Traffic,
    result: u64,
    verified: bool,
    seconds: f64,
}

/// The client's memory: a source that may be read, and a destination behind it.
struct Ranges {
    src: u64,
    dst: u64,
    /// Size of each in bytes, a whole number of pages.
    size: usize,
}

impl Ranges {
    fn new(args: &args::Dma) -> Result<Ranges> {
        let page = rustix::param::page_size();
        let size = args.bytes.max(1).checked_next_multiple_of(page);
        let dst = size.and_then(|size| args.addr.checked_add(size as u64));
        let end = dst.zip(size).and_then(|(dst, size)| dst.checked_add(size as u64));
        match (size, dst, end) {
            (Some(size), Some(dst), Some(_)) if args.addr.is_multiple_of(page as u64) => {
                Ok(Ranges { src: args.addr, dst, size })
            }
            _ => Err(Error::Usage(format!("no memory can be at {:#x}", args.addr))),
        }
    }

    fn map(&self, client: &mut Client, kind: MemoryKind) -> Result<()> {
        let read_only = DmaMapFlags::READ;
        for (addr, access) in [(self.src, read_only), (self.dst, read_only | DmaMapFlags::WRITE)] {
            let backing = match kind {
                MemoryKind::Message => Backing::Private(vec![0; self.size]),
                MemoryKind::Memfd => Backing::memfd(self.size as u64)?,
            };
            client.dma_map(Segment { addr, access, backing })?;
        }
        let memory = client.memory();
        let filled = memory.write(self.src, &noise(self.size));
        filled.and_then(|()| memory.write(self.dst, &vec![UNTOUCHED; self.size])).map_err(Error::memory)
    }

    fn unmap(&self, client: &mut Client) -> Result<()> {
        client.dma_unmap(self.src)?;
        client.dma_unmap(self.dst)
    }

    /// Fails unless the memory, and the sum, are as they must be.
    fn verify(&self, client: &mut Client, args: &args::Dma, result: u64) -> Result<()> {
        let noise = noise(self.size);
        let source = noise.get(..args.bytes).unwrap_or_default();
        let mut expected = match args.operation {
            Operation::Copy => source.to_vec(),
            Operation::Fill => vec![args.value as u8; args.bytes],
            Operation::Pattern => (0..args.bytes as u64).map(|i| args.value.wrapping_add(i) as u8).collect(),
            Operation::Checksum => Vec::new(),
        };
        expected.resize(self.size, UNTOUCHED);
        for (name, addr, expected) in [("source", self.src, &noise), ("destination", self.dst, &expected)] {
            let mut found = vec![0; self.size];
            client.memory().read(addr, &mut found).map_err(Error::memory)?;
            if let Some(at) = found.iter().zip(expected).position(|(f, e)| f != e) {
                return Err(Error::Unfit(format!("the {name} is wrong from byte {at:#x} on")));
            }
        }
        match args.operation {
            Operation::Checksum if result != checksum(source) => {
                Err(Error::Unfit(format!("the sum is {result:#x}, it should be {:#x}", checksum(source))))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes in which a piece that went to a wrong place shows: the upper bytes of
/// a multiplicative generator.
fn noise(size: usize) -> Vec<u8> {
    let mut state: u64 = 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Has the device move memory.
pub fn run(client: &mut Client, args: &args::Dma, format: Format) -> Result<()> {
    let ranges = Ranges::new(args)?;
    engine::identify(client)?;
    let (irq, available) = interrupts::choose(client, None)?;
    if args.vector >= available {
        return Err(Error::Usage(format!(
            "--vector {}: the device has {available} {irq} vectors",
            args.vector
        )));
    }
    ranges.map(client, args.memory)?;
    let vectors = Vectors::arm(client, irq, available)?;
    engine::enable(client)?;

    let range = (ranges.src, ranges.dst, args.bytes as u64);
    let descriptor = Descriptor::new(args.operation, args.access, range, args.value, args.vector);
    let start = Instant::now();
    let (done, interrupts) = engine::execute(client, &vectors, &descriptor)?;
    let seconds = start.elapsed().as_secs_f64();

    done.check()?;
    if args.verify {
        ranges.verify(client, args, done.result)?;
    }
    engine::disable(client)?;
    vectors.disarm(client)?;
    ranges.unmap(client)?;
    report(
        &Report {
            operation: name(args.operation),
            bytes: args.bytes,
            memory: name(args.memory),
            access: name(args.access),
            interrupt: irq.to_string(),
            interrupts,
            messages: client.memory().traffic,
            result: done.result,
            verified: args.verify,
            seconds,
        },
        format,
    )
}

/// The name that the command line has for it.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string())
}

fn report(report: &Report, format: Format) -> Result<()> {
    if format.is_json() {
        return format.json(report);
    }
    let Report { operation, bytes, memory, interrupt, messages, .. } = report;
    output::line(format!("{operation} of {bytes} bytes in {memory} memory: done"))?;
    if operation == "checksum" {
        output::line(format!("sum          {:#018x}", report.result))?;
    }
    output::line(format!("interrupts   {} ({interrupt})", report.interrupts))?;
    output::line(format!("messages     {} reads, {} writes", messages.reads, messages.writes))?;
    output::line(format!("verified     {}", if report.verified { "yes" } else { "no" }))?;
    output::line(format!("time         {:.3} ms", report.seconds * 1000.0))
}
