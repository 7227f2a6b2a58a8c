//! `VFIO_USER_DEVICE_GET_INFO`, `_GET_REGION_INFO`, `_GET_REGION_IO_FDS` and `_GET_IRQ_INFO`

use std::os::fd::OwnedFd;

use vfio_user::wire::{
    CapHeader, Command, DeviceFlags, DeviceInfo, IrqInfo, IrqInfoFlags, RegionInfo, RegionInfoFlags,
    RegionIoFds, SparseArea, SparseMmap, take,
};

use super::bench::Bench;
use super::link::{Answer, Link};
use super::{Check, Outcome, ROBUSTNESS, Stop, words};
use crate::region::{Irq, Region};

const DEVICE: &str = "VFIO_USER_DEVICE_GET_INFO";
const REGION: &str = "VFIO_USER_DEVICE_GET_REGION_INFO";
const SPARSE: &str = "VFIO Region Info Cap Sparse Mmap";
const IO_FDS: &str = "VFIO_USER_DEVICE_GET_REGION_IO_FDS";
const IRQ: &str = "VFIO_USER_DEVICE_GET_IRQ_INFO";

pub const CHECKS: &[Check] = &[
    Check::new("device", DEVICE, "the device describes itself", device),
    Check::new("device-argsz", DEVICE, "the reply is as large as argsz at the most", device_argsz),
    Check::new("device-short", ROBUSTNESS, "a short payload does no harm", device_short).late(),
    Check::new("regions", REGION, "each region describes itself", regions),
    Check::new("region-argsz", REGION, "the reply is as large as argsz at the most", region_argsz),
    Check::new("region-capabilities", REGION, "capabilities come when argsz has room", region_capabilities),
    Check::new("region-beyond", REGION, "there is no information on regions beyond the last", region_beyond),
    Check::new("sparse-areas", SPARSE, "areas that can be mapped lie in their region", sparse_areas),
    Check::new(
        "mmap-descriptor",
        REGION,
        "a region that can be mapped comes with its descriptor",
        descriptor,
    ),
    Check::new("io-fds", IO_FDS, "descriptors of a region come as the entries say", io_fds).late(),
    Check::new("irqs", IRQ, "each interrupt type describes itself", irqs),
    Check::new("irq-argsz", IRQ, "the reply is as large as argsz at the most", irq_argsz),
    Check::new("irq-beyond", IRQ, "there is no information on types beyond the last", irq_beyond),
];

/// Regions and interrupt types that PCI devices have in VFIO.
const PCI_REGIONS: u32 = 9;
const PCI_IRQS: u32 = 5;

/// The reply is either an error, or no larger than the argsz it was asked with.
fn within(answer: &Answer, argsz: u32) -> Outcome {
    let size = answer.body.len();
    match answer.is_error() || size as u64 <= u64::from(argsz) {
        true => Ok(()),
        false => Err(Stop::fail(format!("{}: {size} bytes of payload", answer.what))),
    }
}

/// The argsz of a reply: what the whole would take.
fn says(answer: &Answer, argsz: u32, least: usize) -> Outcome {
    match argsz as usize >= least {
        true => Ok(()),
        false => Err(Stop::fail(format!("{}: argsz {argsz}, below {least}", answer.what))),
    }
}

fn ask_device(link: &mut Link, argsz: u32) -> Outcome<Answer> {
    let what = format!("DEVICE_GET_INFO with argsz {argsz}");
    link.request(Command::DeviceGetInfo, &words(&[argsz, 0, 0, 0]), &what)
}

fn device(b: &mut Bench) -> Outcome {
    let answer = ask_device(b.link()?, size_of::<DeviceInfo>() as u32)?.done()?;
    let info: DeviceInfo = answer.payload()?;
    within(&answer, size_of::<DeviceInfo>() as u32)?;
    says(&answer, info.argsz, size_of::<DeviceInfo>())?;
    if !DeviceFlags::from_bits_retain(info.flags).contains(DeviceFlags::PCI) {
        return Err(Stop::fail(format!("flags {:#x}: no PCI device, and there are no others", info.flags)));
    }
    for (number, least, kind) in
        [(info.num_regions, PCI_REGIONS, "regions"), (info.num_irqs, PCI_IRQS, "interrupt types")]
    {
        if number < least {
            b.warn(format!("{number} {kind}, where PCI devices have {least}"));
        }
    }
    Ok(())
}

fn device_argsz(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for argsz in [0, 8, 15] {
        within(&ask_device(link, argsz)?, argsz)?;
    }
    for argsz in [64, 1 << 20] {
        let answer = ask_device(link, argsz)?.done()?;
        within(&answer, argsz)?;
        answer.payload::<DeviceInfo>()?;
    }
    Ok(())
}

fn device_short(b: &mut Bench) -> Outcome {
    for size in [0, 4, 12] {
        let link = b.link()?;
        let what = format!("DEVICE_GET_INFO with {size} bytes of payload");
        let payload = words(&[16, 0, 0, 0]);
        let answer = link.request(Command::DeviceGetInfo, payload.get(..size).unwrap_or_default(), &what)?;
        link.in_step(&what)?;
        if !answer.is_error() {
            b.warn(format!("{what} is executed"));
        }
    }
    Ok(())
}

fn ask_region(link: &mut Link, index: u32, argsz: u32) -> Outcome<Answer> {
    let what = format!("DEVICE_GET_REGION_INFO of {} with argsz {argsz}", Region(index));
    link.request(Command::DeviceGetRegionInfo, &words(&[argsz, 0, index, 0, 0, 0, 0, 0]), &what)
}

fn number_of_regions(b: &Bench) -> Outcome<u32> {
    let device = b.facts().device.ok_or_else(|| Stop::skip("the device does not describe itself"))?;
    // More than that are for the check of the device's description.
    Ok(device.num_regions.min(64))
}

const BRIEF: u32 = size_of::<RegionInfo>() as u32;

fn regions(b: &mut Bench) -> Outcome {
    for index in 0..number_of_regions(b)? {
        let answer = ask_region(b.link()?, index, BRIEF)?.done()?;
        let info: RegionInfo = answer.payload()?;
        within(&answer, BRIEF)?;
        says(&answer, info.argsz, size_of::<RegionInfo>())?;
        if info.index != index {
            return Err(Stop::fail(format!("{}: the answer is about {}", answer.what, Region(info.index))));
        }
        let unknown = info.flags & !RegionInfoFlags::all().bits();
        if unknown != 0 {
            b.warn(format!("{}: unknown flags {unknown:#x}", Region(index)));
        }
        let is_bar = index <= 5;
        if is_bar && info.size != 0 && !info.size.is_power_of_two() {
            b.warn(format!("{}: size {:#x}, which no BAR can have", Region(index), info.size));
        }
    }
    Ok(())
}

fn region_argsz(b: &mut Bench) -> Outcome {
    for index in 0..number_of_regions(b)? {
        let link = b.link()?;
        for argsz in [0, 16, 31, BRIEF, 33] {
            within(&ask_region(link, index, argsz)?, argsz)?;
        }
        let brief: RegionInfo = ask_region(link, index, BRIEF)?.done()?.payload()?;
        for argsz in [brief.argsz, 1 << 16] {
            let answer = ask_region(link, index, argsz)?.done()?;
            within(&answer, argsz)?;
            let info: RegionInfo = answer.payload()?;
            if info.argsz != brief.argsz {
                let text = format!("{}: argsz {}, before {}", answer.what, info.argsz, brief.argsz);
                return Err(Stop::fail(text));
            }
        }
    }
    Ok(())
}

/// Everything there is to know of a region: the reply to the argsz that the server says, and whether
/// it has capabilities.
fn whole(link: &mut Link, index: u32) -> Outcome<(RegionInfo, Answer)> {
    let brief: RegionInfo = ask_region(link, index, BRIEF)?.done()?.payload()?;
    // More areas than anybody maps.
    let argsz = brief.argsz.clamp(BRIEF, 1 << 20);
    let answer = ask_region(link, index, argsz)?.done()?;
    Ok((answer.payload()?, answer))
}

fn flags(info: &RegionInfo) -> RegionInfoFlags {
    RegionInfoFlags::from_bits_retain(info.flags)
}

fn region_capabilities(b: &mut Bench) -> Outcome {
    let mut some = false;
    for index in 0..number_of_regions(b)? {
        let (info, answer) = whole(b.link()?, index)?;
        let fail = |text: String| Err(Stop::fail(format!("{}: {text}", answer.what)));
        let caps = flags(&info).contains(RegionInfoFlags::CAPS);
        if info.argsz > BRIEF && !caps {
            return fail(format!("argsz {} without capabilities", info.argsz));
        }
        if !caps {
            continue;
        }
        some = true;
        if (answer.body.len() as u64) < u64::from(info.argsz) {
            return fail(format!("{} bytes of payload of {}", answer.body.len(), info.argsz));
        }
        walk(&answer, info.cap_offset)?;
    }
    if some { Ok(()) } else { Err(Stop::skip("no region has capabilities")) }
}

/// The areas of the sparse mmap capability, if there is one in the list.
fn walk(answer: &Answer, first: u32) -> Outcome<Option<Vec<SparseArea>>> {
    let fail = |text: &str| Stop::fail(format!("{}: {text}", answer.what));
    let mut at = first as usize;
    let mut areas = None;
    if at < size_of::<RegionInfo>() {
        return Err(fail(&format!("cap_offset {first}")));
    }
    loop {
        let here = answer.body.get(at..).unwrap_or_default();
        let (header, _): (CapHeader, _) =
            take(here).map_err(|_| fail("the list of capabilities leads out of the payload"))?;
        if header.id == CapHeader::SPARSE_MMAP {
            let (sparse, list): (SparseMmap, _) =
                take(here).map_err(|_| fail("the sparse mmap capability leads out of the payload"))?;
            let (all, _) = list.as_chunks::<{ size_of::<SparseArea>() }>();
            let count = sparse.nr_areas as usize;
            let Some(listed) = all.get(..count) else {
                return Err(fail(&format!("{count} areas, of which {} came", all.len())));
            };
            areas = Some(listed.iter().filter_map(|area| take(area).ok()).map(|(area, _)| area).collect());
        }
        match header.next as usize {
            0 => return Ok(areas),
            next if next > at => at = next,
            _ => return Err(fail("the list of capabilities leads backwards")),
        }
    }
}

fn region_beyond(b: &mut Bench) -> Outcome {
    let number = number_of_regions(b)?;
    let link = b.link()?;
    for index in [number, 1 << 16, u32::MAX] {
        ask_region(link, index, BRIEF)?.refused()?;
    }
    Ok(())
}

fn sparse_areas(b: &mut Bench) -> Outcome {
    let mut some = false;
    for index in 0..number_of_regions(b)? {
        let (info, answer) = whole(b.link()?, index)?;
        if !flags(&info).contains(RegionInfoFlags::CAPS) {
            continue;
        }
        let Some(mut areas) = walk(&answer, info.cap_offset)? else { continue };
        some = true;
        areas.sort_by_key(|area| area.offset);
        let mut end = 0;
        for SparseArea { offset, size } in areas {
            let fail =
                |text: &str| Stop::fail(format!("{}: area {offset:#x}+{size:#x} {text}", Region(index)));
            if offset < end {
                return Err(fail("overlaps another"));
            }
            end =
                offset.checked_add(size).filter(|end| *end <= info.size).ok_or_else(|| fail("is outside"))?;
            if offset % 4096 != 0 {
                b.warn(format!("{}: area {offset:#x}+{size:#x} does not begin with a page", Region(index)));
            }
        }
    }
    if some { Ok(()) } else { Err(Stop::skip("no region has areas that can be mapped")) }
}

fn descriptor(b: &mut Bench) -> Outcome {
    let mut some = false;
    for index in 0..number_of_regions(b)? {
        let (info, answer) = whole(b.link()?, index)?;
        if !flags(&info).contains(RegionInfoFlags::MMAP) {
            if !answer.fds.is_empty() {
                b.warn(format!("{}: a descriptor of a region that cannot be mapped", Region(index)));
            }
            continue;
        }
        some = true;
        let Some(fd) = answer.fds.first() else {
            return Err(Stop::fail(format!("{}: flagged MMAP, but no descriptor came", Region(index))));
        };
        if let Some(size) = file_size(fd)
            && info.offset.checked_add(info.size).is_none_or(|end| end > size)
            && !flags(&info).contains(RegionInfoFlags::CAPS)
        {
            let text =
                format!("{}: {:#x}+{:#x} of a file of {size:#x}", Region(index), info.offset, info.size);
            return Err(Stop::fail(text));
        }
    }
    if some { Ok(()) } else { Err(Stop::skip("no region can be mapped")) }
}

/// Bytes of a regular file; others don't say.
fn file_size(fd: &OwnedFd) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    u64::try_from(stat.st_size).ok().filter(|_| is_file)
}

/// Bytes of an entry: 40 in the specification, 48 in the C library, which adds shadow memory.
const ENTRIES: [u32; 2] = [40, 48];

fn io_fds(b: &mut Bench) -> Outcome {
    let sizes: Vec<u32> = b.facts().regions.iter().filter(|r| r.size > 0).map(|r| r.index).collect();
    let head = size_of::<RegionIoFds>() as u32;
    let mut some = false;
    for index in sizes {
        let link = b.link()?;
        let mut ask = |argsz: u32| {
            let what = format!("DEVICE_GET_REGION_IO_FDS of {} with argsz {argsz}", Region(index));
            link.request(Command::DeviceGetRegionIoFds, &words(&[argsz, 0, index, 0]), &what)
        };
        let answer = ask(head)?;
        if answer.is_error() {
            continue;
        }
        some = true;
        within(&answer, head)?;
        let brief: RegionIoFds = answer.payload()?;
        let answer = ask(brief.argsz.clamp(head, 1 << 20))?.done()?;
        let full: RegionIoFds = answer.payload()?;
        let fail = |text: String| Err(Stop::fail(format!("{}: {text}", answer.what)));
        let entries = answer.body.get(size_of::<RegionIoFds>()..).unwrap_or_default();
        let size = ENTRIES.iter().find(|size| size.checked_mul(full.count) == Some(entries.len() as u32));
        let Some(size) = size else {
            return fail(format!("{} entries in {} bytes", full.count, entries.len()));
        };
        for entry in entries.chunks(*size as usize) {
            let fd_index = entry.get(16..).and_then(<[u8]>::first_chunk).map(|n| u32::from_le_bytes(*n));
            match fd_index {
                Some(u32::MAX) | None => {}
                Some(n) if (n as usize) < answer.fds.len() => {}
                Some(n) => return fail(format!("fd_index {n}, but {} descriptors came", answer.fds.len())),
            }
        }
    }
    if some { Ok(()) } else { Err(Stop::skip("the server refuses it for all regions")) }
}

fn ask_irq(link: &mut Link, index: u32, argsz: u32) -> Outcome<Answer> {
    let what = format!("DEVICE_GET_IRQ_INFO of {} with argsz {argsz}", Irq(index));
    link.request(Command::DeviceGetIrqInfo, &words(&[argsz, 0, index, 0]), &what)
}

fn number_of_irqs(b: &Bench) -> Outcome<u32> {
    let device = b.facts().device.ok_or_else(|| Stop::skip("the device does not describe itself"))?;
    Ok(device.num_irqs.min(64))
}

const IRQ_INFO: u32 = size_of::<IrqInfo>() as u32;

fn irqs(b: &mut Bench) -> Outcome {
    for index in 0..number_of_irqs(b)? {
        let answer = ask_irq(b.link()?, index, IRQ_INFO)?.done()?;
        let info: IrqInfo = answer.payload()?;
        within(&answer, IRQ_INFO)?;
        says(&answer, info.argsz, size_of::<IrqInfo>())?;
        if info.index != index {
            return Err(Stop::fail(format!("{}: the answer is about {}", answer.what, Irq(info.index))));
        }
        // Also VFIO_IRQ_INFO_NORESIZE.
        let unknown = info.flags & !(IrqInfoFlags::all().bits() | 1 << 3);
        if unknown != 0 {
            b.warn(format!("{}: unknown flags {unknown:#x}", Irq(index)));
        }
        let most = match Irq(index) {
            Irq::INTX => 1,
            Irq::MSI => 32,
            Irq::MSIX => 2048,
            _ => u32::MAX,
        };
        if info.count > most {
            return Err(Stop::fail(format!("{}: {} vectors, where {most} can be", Irq(index), info.count)));
        }
    }
    Ok(())
}

fn irq_argsz(b: &mut Bench) -> Outcome {
    for index in 0..number_of_irqs(b)? {
        let link = b.link()?;
        for argsz in [0, 8, 15] {
            within(&ask_irq(link, index, argsz)?, argsz)?;
        }
        let answer = ask_irq(link, index, 64)?.done()?;
        within(&answer, 64)?;
        answer.payload::<IrqInfo>()?;
    }
    Ok(())
}

fn irq_beyond(b: &mut Bench) -> Outcome {
    let number = number_of_irqs(b)?;
    let link = b.link()?;
    for index in [number, 1 << 16, u32::MAX] {
        ask_irq(link, index, IRQ_INFO)?.refused()?;
    }
    Ok(())
}
