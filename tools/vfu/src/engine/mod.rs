//! A driver for the example device dma-engine: its registers and its one
//! descriptor in them. Numbers are little-endian.

mod model;
mod ring;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::args::{Access, Operation};
use crate::client::{Client, Deadline};
use crate::error::{Error, Result};
use crate::interrupts::Vectors;
use crate::region::Region;

pub use model::{Model, checksum};
pub use ring::Ring;

/// What the identity register reads: "DMAE".
const ID: u32 = 0x4541_4d44;
/// Major version of the registers, the upper half of the version register.
const MAJOR_VERSION: u32 = 1;

/// Offsets of the registers in BAR0.
mod register {
    pub const ID: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const CONTROL: u64 = 0x08;
    pub const IRQ_STATUS: u64 = 0x10;
    pub const IRQ_ENABLE: u64 = 0x14;
    pub const DOORBELL: u64 = 0x28;
    pub const RING_BASE: u64 = 0x30;
    pub const RING_SIZE: u64 = 0x38;
    pub const RING_HEAD: u64 = 0x3c;
    pub const RING_TAIL: u64 = 0x40;
    pub const DESC: u64 = 0x80;
}

/// Bit of the control register: execute what there is.
const CONTROL_ENABLE: u32 = 1;
/// Bits of the interrupt registers: done, and error.
const IRQ_ALL: u32 = 3;

/// Flags of [`Descriptor`].
mod flag {
    pub const IRQ: u32 = 0x01;
    pub const SRC_LOCAL: u32 = 0x02;
    pub const DST_LOCAL: u32 = 0x04;
    pub const MESSAGE: u32 = 0x10;
    pub const DIRECT: u32 = 0x20;
}

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Descriptor {
    op: u32,
    flags: u32,
    src: u64,
    dst: u64,
    len: u64,
    value: u64,
    vector: u32,
    status: u32,
    /// What a checksum came to.
    pub result: u64,
    reserved: u64,
}

impl Descriptor {
    /// Work on `len` bytes, whose end interrupts through `vector`.
    pub fn new(
        operation: Operation,
        access: Access,
        range: (u64, u64, u64),
        value: u64,
        vector: u32,
    ) -> Descriptor {
        let op = match operation {
            Operation::Copy => 1,
            Operation::Fill => 2,
            Operation::Pattern => 3,
            Operation::Checksum => 4,
        };
        let access = match access {
            Access::Auto => 0,
            Access::Message => flag::MESSAGE,
            Access::Direct => flag::DIRECT,
        };
        let (src, dst, len) = range;
        let flags = flag::IRQ | access;
        Descriptor { op, flags, src, dst, len, value, vector, status: 0, result: 0, reserved: 0 }
    }

    /// The same work on the device's own memory: `src` or `dst` or both are
    /// offsets in BAR2.
    pub fn local(mut self, src: bool, dst: bool) -> Descriptor {
        for (local, bit) in [(src, flag::SRC_LOCAL), (dst, flag::DST_LOCAL)] {
            self.flags = self.flags & !bit | if local { bit } else { 0 };
        }
        self
    }

    /// Fails unless the device says that it has done the work.
    pub fn check(&self) -> Result<()> {
        let problem = match self.status {
            1 => return Ok(()),
            0 => "interrupted before it was done",
            2 => "does not know the operation",
            3 => "has no such vector",
            4 => "cannot read the source",
            5 => "cannot write the destination",
            6 => "failed to exchange messages",
            7 => "was busy",
            other => return Err(Error::Unfit(format!("the DMA engine reports status {other}"))),
        };
        Err(Error::Unfit(format!("the DMA engine {problem}")))
    }
}

fn get(client: &mut Client, offset: u64) -> Result<u32> {
    let bytes = client.region_read(Region::BAR0, offset, 4)?;
    bytes.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(|| Error::local("register", Errno::IO))
}

fn set(client: &mut Client, offset: u64, value: u32) -> Result<()> {
    client.region_write(Region::BAR0, offset, &value.to_le_bytes())
}

/// Whether a device with these ids is a dma-engine.
pub fn is_known(vendor_id: u16, device_id: u16) -> bool {
    (vendor_id, device_id) == (0x1234, 0xd3a0)
}

/// Offset in BAR2 of the device's memory.
pub const MEMORY_START: u64 = 0x1000;
/// The region that the device's memory is in.
pub const MEMORY: Region = Region(2);

/// Fails unless the device is a dma-engine.
pub fn identify(client: &mut Client) -> Result<()> {
    let id = get(client, register::ID)?;
    if id != ID {
        return Err(Error::Unfit(format!("not a dma-engine: BAR0 starts with {id:#010x}, not {ID:#010x}")));
    }
    match get(client, register::VERSION)? >> 16 {
        MAJOR_VERSION => Ok(()),
        other => Err(Error::Unfit(format!("a dma-engine of version {other}, not {MAJOR_VERSION}"))),
    }
}

/// Lets the device decode its registers and start transfers, as a driver does.
pub fn enable(client: &mut Client) -> Result<()> {
    client.enable_memory_and_bus_master()?;
    set(client, register::IRQ_STATUS, IRQ_ALL)?;
    set(client, register::IRQ_ENABLE, IRQ_ALL)?;
    set(client, register::CONTROL, CONTROL_ENABLE)
}

/// Acknowledges interrupts.
pub fn acknowledge(client: &mut Client) -> Result<()> {
    set(client, register::IRQ_STATUS, IRQ_ALL)
}

/// Writes to the registers of the one descriptor, which the device only keeps
/// until the doorbell is rung.
pub fn scribble(client: &mut Client, value: u64) -> Result<()> {
    let words = size_of::<Descriptor>() as u64 / 8;
    let offset = register::DESC.saturating_add(value % words * 8);
    client.region_write(Region::BAR0, offset, &value.to_le_bytes())
}

/// Stops the device.
pub fn disable(client: &mut Client) -> Result<()> {
    set(client, register::CONTROL, 0)?;
    set(client, register::IRQ_ENABLE, 0)
}

/// Has the device execute `descriptor` and waits for its interrupt: the
/// descriptor as the device left it, and how many interrupts came.
pub fn execute(client: &mut Client, vectors: &Vectors, descriptor: &Descriptor) -> Result<(Descriptor, u64)> {
    for (offset, word) in (register::DESC..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
        client.region_write(Region::BAR0, offset, word)?;
    }
    set(client, register::DOORBELL, 1)?;
    let mut interrupts: u64 = 0;
    loop {
        interrupts = interrupts.saturating_add(wait(client, vectors)?);
        let status = get(client, register::IRQ_STATUS)?;
        if status & IRQ_ALL != 0 {
            set(client, register::IRQ_STATUS, status)?;
            break;
        }
    }
    let mut bytes = Vec::new();
    for offset in (register::DESC..).step_by(8).take(size_of::<Descriptor>() / 8) {
        bytes.extend(client.region_read(Region::BAR0, offset, 8)?);
    }
    let done = Descriptor::read_from_bytes(&bytes).map_err(|_| Error::local("descriptor", Errno::IO))?;
    Ok((done, interrupts))
}

/// Waits for interrupts, as long as the device at least moves memory by
/// messages: how many came.
fn wait(client: &mut Client, vectors: &Vectors) -> Result<u64> {
    loop {
        let before = client.memory().traffic;
        let timeout = client.timeout();
        let fired = vectors.wait(client, Deadline::after(timeout))?;
        if !fired.is_empty() {
            return Ok(fired.iter().map(|(_, count)| count).sum());
        }
        if client.memory().traffic == before {
            let what = "no interrupt of the DMA engine came".into();
            return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
        }
    }
}
