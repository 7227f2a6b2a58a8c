//! Work for a dma-engine.

use std::time::{Duration, Instant};

use super::{Record, Summary};
use crate::args::{Access, Operation};
use crate::client::{Client, Deadline};
use crate::engine::{self, Descriptor, Model, Ring};
use crate::error::{Error, Result};
use crate::interrupts::Vectors;

/// Entries of the ring.
const ENTRIES: u32 = 64;
/// What the ring has for itself at the start of the guest's memory.
const RESERVED: u64 = 4096;
/// Bytes of the guest's memory behind the ring that only this side writes to,
/// as a guest's processor does.
const PROCESSOR: u64 = 64 << 10;
/// Bytes of device memory that this side writes to, before what the
/// descriptors use.
const SCRATCH: u64 = 4096;
/// Largest descriptor, in bytes.
const MAX_LEN: u64 = 16 << 10;
/// Descriptors before the working set moves.
const STAY: u64 = 4096;
/// The working set is this fraction of all memory.
const FRACTION: u64 = 64;

/// A range that descriptors work in, a part of it at a time.
struct Area {
    start: u64,
    size: u64,
    window: u64,
}

impl Area {
    fn new(start: u64, size: u64) -> Area {
        Area { start, size, window: start }
    }

    fn window_size(&self) -> u64 {
        (self.size / FRACTION).max(2 * MAX_LEN).min(self.size)
    }

    fn move_window(&mut self, rng: &mut fastrand::Rng) {
        let room = self.size.saturating_sub(self.window_size());
        self.window = self.start.saturating_add(rng.u64(0..=room));
    }

    /// An address with `len` bytes behind it.
    fn pick(&self, rng: &mut fastrand::Rng, len: u64) -> u64 {
        let room = self.window_size().saturating_sub(len);
        self.window.saturating_add(rng.u64(0..=room))
    }
}

/// A driver that always has something to do.
pub struct Load {
    ring: Ring,
    model: Option<Model>,
    rng: fastrand::Rng,
    /// Where the guest's memory begins, with the ring.
    base: u64,
    low: Area,
    high: Area,
    device: Area,
    vectors: u32,
    submitted: u64,
    interrupts: u64,
    unfinished_at_stop: u64,
}

impl Load {
    /// Sets the device up for work on `low` and `high`, the guest's memory as
    /// addresses and sizes. With a model, what the work comes to is checked.
    pub fn start(
        client: &mut Client,
        guest: [(u64, u64); 2],
        vectors: u32,
        with_model: bool,
        run: u32,
    ) -> Result<Load> {
        engine::identify(client)?;
        let device_size = client.region_info(engine::MEMORY)?.info.size;
        let model = match with_model {
            true => Some(model(client, &guest, device_size)?),
            false => None,
        };
        let [(low, low_size), (high, high_size)] = guest;
        let ring = Ring::set_up(client, low, ENTRIES)?;
        engine::enable(client)?;
        let work = engine::MEMORY_START.saturating_add(SCRATCH);
        Ok(Load {
            ring,
            model,
            rng: fastrand::Rng::with_seed(u64::from(run).saturating_add(1)),
            base: low,
            low: Area::new(
                low.saturating_add(RESERVED + PROCESSOR),
                low_size.saturating_sub(RESERVED + PROCESSOR),
            ),
            high: Area::new(high, high_size),
            device: Area::new(work, device_size.saturating_sub(work)),
            vectors: vectors.max(1),
            submitted: 0,
            interrupts: 0,
            unfinished_at_stop: 0,
        })
    }

    /// Takes in interrupts, waiting for them until the deadline, and what is
    /// done.
    fn collect(&mut self, client: &mut Client, vectors: &Vectors, deadline: Deadline) -> Result<()> {
        for (_, count) in vectors.wait(client, deadline)? {
            self.interrupts = self.interrupts.saturating_add(count);
        }
        for done in self.ring.done(client)? {
            let Some(model) = &mut self.model else { continue };
            let expected = model.execute(&done);
            if expected != Some(done.result) {
                let text = format!("a descriptor's result is {:#x}, not {expected:#x?}", done.result);
                return Err(Error::Unfit(text));
            }
        }
        Ok(())
    }

    /// Some work.
    fn next(&mut self) -> Descriptor {
        let rng = &mut self.rng;
        if self.submitted.is_multiple_of(STAY) {
            [&mut self.low, &mut self.high, &mut self.device].into_iter().for_each(|a| a.move_window(rng));
        }
        let len = rng.u64(1..=MAX_LEN);
        let low = self.low.pick(rng, len);
        let high = self.high.pick(rng, len);
        let device = self.device.pick(rng, len);
        let (value, vector) = (rng.u64(..), rng.u32(0..self.vectors));
        let new =
            |operation, src, dst| Descriptor::new(operation, Access::Auto, (src, dst, len), value, vector);
        match rng.u32(0..10) {
            0 => new(Operation::Fill, 0, low),
            1 => new(Operation::Pattern, 0, high),
            2 => new(Operation::Pattern, 0, device).local(false, true),
            3 => new(Operation::Copy, low, high),
            4 => new(Operation::Copy, high, low),
            5 => new(Operation::Copy, low, device).local(false, true),
            6 => new(Operation::Copy, device, high).local(true, false),
            7 => new(Operation::Checksum, low, 0),
            8 => new(Operation::Checksum, device, 0).local(true, false),
            _ => Descriptor::new(Operation::Pattern, Access::Message, (0, low, len), value, vector),
        }
    }

    /// Writes to the device's memory as a driver does that doesn't map it.
    fn write_device_memory(&mut self, client: &mut Client) -> Result<()> {
        let value = self.rng.u64(..).to_le_bytes();
        let offset = engine::MEMORY_START.saturating_add(self.rng.u64(0..SCRATCH / 8).saturating_mul(8));
        client.region_write(engine::MEMORY, offset, &value)?;
        self.note(offset, &value, true);
        Ok(())
    }

    /// Writes to the guest's memory, of which the device knows nothing.
    fn write_guest_memory(&mut self, client: &mut Client) -> Result<()> {
        let value = self.rng.u64(..).to_le_bytes();
        let offset = RESERVED.saturating_add(self.rng.u64(0..PROCESSOR / 8).saturating_mul(8));
        let addr = self.base.saturating_add(offset);
        client.memory().write(addr, &value).map_err(Error::memory)?;
        self.note(addr, &value, false);
        Ok(())
    }

    /// Has the model know what this side writes.
    fn note(&mut self, addr: u64, value: &[u8], local: bool) {
        let place = self.model.as_mut().and_then(|m| m.find(addr, value.len(), local));
        if let Some(place) = place {
            place.copy_from_slice(value);
        }
    }
}

impl super::Load for Load {
    fn pump(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.collect(client, vectors, Deadline::after(Duration::ZERO))?;
        if self.ring.waiting() > ENTRIES as usize / 2 {
            return Ok(());
        }
        loop {
            let descriptor = self.next();
            if !self.ring.put(client, descriptor)? {
                break;
            }
            self.submitted = self.submitted.saturating_add(1);
        }
        engine::acknowledge(client)?;
        engine::scribble(client, self.rng.u64(..))?;
        self.write_device_memory(client)?;
        self.write_guest_memory(client)?;
        self.ring.ring(client)
    }

    fn stopped(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        self.collect(client, vectors, Deadline::after(Duration::ZERO))?;
        self.unfinished_at_stop = self.ring.waiting() as u64;
        Ok(())
    }

    fn moved(&mut self, _client: &mut Client) -> Result<()> {
        Ok(())
    }

    fn settle(&mut self, client: &mut Client, vectors: &Vectors) -> Result<()> {
        let timeout = client.timeout();
        let mut since = Instant::now();
        while self.ring.waiting() > 0 {
            let before = self.ring.waiting();
            self.collect(client, vectors, Deadline::after(Duration::from_millis(10).min(timeout)))?;
            if self.ring.waiting() < before {
                since = Instant::now();
            } else if since.elapsed() > timeout {
                let what = format!("{before} descriptors were not done");
                return Err(Error::Silent { what, seconds: timeout.as_secs_f64() });
            }
        }
        // The last interrupt is sent before the device says how far it is.
        self.collect(client, vectors, Deadline::after(Duration::ZERO))
    }

    fn work_on(&mut self, client: &mut Client, vectors: &Vectors, count: u64) -> Result<()> {
        let enough = self.submitted.saturating_add(count);
        while self.submitted < enough {
            self.pump(client, vectors)?;
            self.settle(client, vectors)?;
        }
        Ok(())
    }

    fn check(&mut self, client: &mut Client, _vectors: &Vectors) -> Result<()> {
        if self.interrupts < self.submitted {
            let text = format!("{} interrupts for {} descriptors", self.interrupts, self.submitted);
            return Err(Error::Unfit(text));
        }
        let Some(model) = &self.model else { return Ok(()) };
        for (base, expected) in &model.guest {
            let mut found = vec![0; expected.len()];
            client.memory().read(*base, &mut found).map_err(Error::memory)?;
            // The ring has its own check.
            let start = if self.base == *base { RESERVED } else { 0 };
            compare("the guest's memory", *base, start, expected, &found)?;
        }
        let found = read_memory(client, model.device.len() as u64)?;
        compare("the device's memory", 0, engine::MEMORY_START, &model.device, &found)
    }

    fn summary(&self) -> Summary {
        let Load { submitted, interrupts, unfinished_at_stop, .. } = *self;
        Summary { submitted, interrupts, unfinished_at_stop }
    }

    fn record(&self) -> Option<Record> {
        None
    }
}

fn model(client: &mut Client, guest: &[(u64, u64)], device_size: u64) -> Result<Model> {
    let mut segments = Vec::new();
    for (addr, size) in guest {
        let mut bytes = vec![0; usize::try_from(*size).unwrap_or(usize::MAX)];
        client.memory().read(*addr, &mut bytes).map_err(Error::memory)?;
        segments.push((*addr, bytes));
    }
    Ok(Model { guest: segments, device: read_memory(client, device_size)? })
}

fn read_memory(client: &mut Client, size: u64) -> Result<Vec<u8>> {
    client.region_bytes(engine::MEMORY, size)
}

fn compare(what: &str, base: u64, start: u64, expected: &[u8], found: &[u8]) -> Result<()> {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let mut pairs = expected.iter().zip(found).enumerate().skip(start);
    match pairs.find(|(_, (e, f))| e != f) {
        None => Ok(()),
        Some((at, _)) => {
            let at = base.saturating_add(at as u64);
            Err(Error::Unfit(format!("{what} is not what the work comes to from {at:#x} on")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stays_in_its_area() {
        let mut rng = fastrand::Rng::with_seed(3);
        for size in [2 * MAX_LEN, 3 * MAX_LEN + 1, 64 << 20] {
            let mut area = Area::new(0x1000, size);
            for _ in 0..1000 {
                area.move_window(&mut rng);
                let len = rng.u64(1..=MAX_LEN);
                let at = area.pick(&mut rng, len);
                assert!(at >= 0x1000 && at + len <= 0x1000 + size);
            }
        }
    }

    #[test]
    fn a_wrong_byte_is_named() {
        assert!(compare("x", 0x1000, 1, &[1, 2, 3], &[9, 2, 3]).is_ok());
        let error = compare("x", 0x1000, 1, &[1, 2, 3], &[1, 2, 4]).unwrap_err();
        assert!(error.to_string().contains("0x1002"));
    }
}
