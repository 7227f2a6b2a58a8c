//! `vfu irq`

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use clap_num::maybe_hex;
use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use vfio_user::wire::IrqSetFlags;

use super::access::encode;
use crate::args;
use crate::client::{Client, Deadline};
use crate::error::{Error, Result};
use crate::output;
use crate::region::{Irq, Region};

/// Vectors of one type that interrupts arrive on.
pub struct Vectors {
    irq: Irq,
    eventfds: Vec<OwnedFd>,
}

impl Vectors {
    /// Gives the first `count` vectors an eventfd each, as many in a request
    /// as the server takes.
    pub fn arm(client: &mut Client, irq: Irq, count: u32) -> Result<Vectors> {
        let batch = client.max_msg_fds();
        if batch == 0 {
            return Err(Error::Unfit("the server takes no descriptors, so interrupts cannot reach this side".into()));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfds = (0..count).map(|_| eventfd(0, flags).map_err(|e| Error::local("eventfd", e)));
        let eventfds: Vec<OwnedFd> = eventfds.collect::<Result<_>>()?;
        let mut start: u32 = 0;
        for part in eventfds.chunks(batch) {
            let borrowed: Vec<_> = part.iter().map(AsFd::as_fd).collect();
            let flags = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
            let number = part.len() as u32;
            client.set_irqs(irq, flags, start, number, &borrowed)?;
            start = start.saturating_add(number);
        }
        Ok(Vectors { irq, eventfds })
    }

    /// Waits for interrupts: each vector that fired with how often; none if
    /// the deadline comes first.
    pub fn wait(&self, client: &mut Client, deadline: Deadline) -> Result<Vec<(usize, u64)>> {
        let borrowed: Vec<_> = self.eventfds.iter().map(AsFd::as_fd).collect();
        let ready = client.wait_readable(&borrowed, deadline)?;
        let mut fired = Vec::new();
        for vector in ready {
            let Some(fd) = self.eventfds.get(vector) else { continue };
            let mut counter = [0; 8];
            match rustix::io::read(fd, &mut counter) {
                Ok(_) => fired.push((vector, u64::from_ne_bytes(counter))),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::local("eventfd", e)),
            }
        }
        Ok(fired)
    }

    /// Takes the eventfds back.
    pub fn disarm(self, client: &mut Client) -> Result<()> {
        client.set_irqs(self.irq, IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER, 0, 0, &[])
    }
}

/// A write that makes the device interrupt.
pub struct Poke {
    region: Region,
    offset: u64,
    data: Vec<u8>,
}

impl Poke {
    /// The write that the command line asks for.
    pub fn new(args: &args::IrqArgs) -> Result<Option<Poke>> {
        let [region, offset, value] = args.write.as_slice() else { return Ok(None) };
        let wrong = |text: &str, e: String| Error::Usage(format!("{text}: {e}"));
        Ok(Some(Poke {
            region: region.parse().map_err(|e| wrong(region, e))?,
            offset: maybe_hex(offset).map_err(|e| wrong(offset, e))?,
            data: encode(value, args.width)?,
        }))
    }
}

#[derive(Serialize)]
struct Fired {
    r#type: String,
    vector: usize,
    count: u64,
}

/// The type to listen to, and how many vectors it has.
fn choose(client: &mut Client, wanted: Option<Irq>) -> Result<(Irq, u32)> {
    let candidates = wanted.map_or_else(|| vec![Irq::MSIX, Irq::MSI, Irq::INTX], |irq| vec![irq]);
    for irq in candidates {
        let count = client.irq_info(irq)?.count;
        if count > 0 {
            return Ok((irq, count));
        }
    }
    let what = wanted.map_or_else(|| "MSI-X, MSI or INTx".into(), |irq| irq.to_string());
    Err(Error::Unfit(format!("the device has no {what} interrupts")))
}

/// Arms vectors, waits, prints.
pub fn run(client: &mut Client, args: &args::IrqArgs, poke: Option<Poke>, timeout: Option<Duration>) -> Result<()> {
    let (irq, available) = choose(client, args.irq)?;
    let count = args.vectors.unwrap_or(available);
    if count == 0 || count > available {
        return Err(Error::Usage(format!("--vectors {count}: the device has {available} {irq} vectors")));
    }
    let vectors = Vectors::arm(client, irq, count)?;
    if args.trigger {
        client.set_irqs(irq, IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER, 0, count, &[])?;
    }
    if let Some(Poke { region, offset, data }) = poke {
        client.region_write(region, offset, &data)?;
    }
    let outcome = listen(client, &vectors, args, timeout);
    match outcome {
        Ok(()) => vectors.disarm(client),
        Err(e) => Err(e),
    }
}

/// Prints interrupts until there were enough, or the time is over.
fn listen(client: &mut Client, vectors: &Vectors, args: &args::IrqArgs, timeout: Option<Duration>) -> Result<()> {
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    let mut seen: u64 = 0;
    while args.count.is_none_or(|enough| seen < enough) {
        let fired = vectors.wait(client, deadline)?;
        if fired.is_empty() && deadline.is_over() {
            return match args.count {
                None if seen > 0 => Ok(()),
                _ => Err(Error::Silent {
                    what: format!("{seen} interrupts came"),
                    seconds: timeout.unwrap_or_default().as_secs_f64(),
                }),
            };
        }
        for (vector, count) in fired {
            seen = seen.saturating_add(count);
            let r#type = vectors.irq.to_string();
            match args.json {
                true => output::json_line(&Fired { r#type, vector, count })?,
                false => output::line(format!("{} vector {vector}: {count}", r#type))?,
            }
        }
    }
    Ok(())
}
