//! `vfu irq`

use std::time::Duration;

use serde::Serialize;
use vfio_user::wire::IrqSetFlags;

use super::access::encode;
use crate::args;
use crate::client::{Client, Deadline};
use crate::error::{Error, Result};
use crate::interrupts::{self, Vectors};
use crate::number::number;
use crate::output::{self, Format};
use crate::region::Region;

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
            offset: number(offset).map_err(|e| wrong(offset, e))?,
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

/// Arms vectors, waits, prints.
pub fn run(
    client: &mut Client,
    args: &args::IrqArgs,
    poke: Option<Poke>,
    timeout: Option<Duration>,
    format: Format,
) -> Result<()> {
    let (irq, available) = interrupts::choose(client, args.irq)?;
    let count = args.vectors.unwrap_or(available);
    if count == 0 || count > available {
        return Err(Error::Usage(format!("--vectors {count}: the device has {available} {irq} vectors")));
    }
    if let Some(poke) = &poke {
        client.expect_region(poke.region)?;
    }
    let vectors = Vectors::arm(client, irq, count)?;
    if args.trigger {
        client.set_irqs(irq, IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER, 0, count, &[])?;
    }
    if let Some(Poke { region, offset, data }) = poke {
        client.region_write(region, offset, &data)?;
    }
    let outcome = listen(client, &vectors, args, timeout, format);
    match outcome {
        Ok(()) => vectors.disarm(client),
        Err(e) => Err(e),
    }
}

/// Prints interrupts until there were enough, or the time is over.
fn listen(
    client: &mut Client,
    vectors: &Vectors,
    args: &args::IrqArgs,
    timeout: Option<Duration>,
    format: Format,
) -> Result<()> {
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
            let r#type = vectors.irq().to_string();
            let text = format!("{} vector {vector}: {count}", r#type);
            match format.is_json() {
                true => Format::JsonLines.json(&Fired { r#type, vector, count })?,
                false => output::line(text)?,
            }
        }
    }
    Ok(())
}
