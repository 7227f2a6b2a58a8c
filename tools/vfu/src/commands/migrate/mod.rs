//! `vfu migrate`: what a virtual machine monitor does to move a device.

mod guest;
mod history;
mod load;
mod mover;
mod progress;
mod report;
mod side;
mod verify;

use std::path::Path;

use vfio_user::wire::{DeviceState, Feature, FeatureFlags, MigrationFlags};

use super::saved::migration_flags;
use crate::args;
use crate::client::{Client, Options, state_name};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::interrupts::{self, Vectors};
use crate::output::Format;
use guest::Guest;
use load::Record;
use mover::{End, Mover};
use progress::Progress;
use side::{Fault, On, Side};

/// Moves the device.
pub fn run(args: &args::Migrate, options: Options, format: Format) -> Result<()> {
    let guest = Guest::new(args.memory, args.page_size)?;
    let mut progress = Progress::new(format.is_json());
    progress.phase("connecting");
    let (src, identity) = connect(&args.source, options)?;
    let (dst, other) = connect(&args.destination, options)?;
    if let Some(difference) = identity.difference(&other) {
        return Err(Error::Unfit(format!("the destination is another kind of device: {difference}")));
    }
    let mut mover = Mover::new(src, dst, guest, identity, progress, args);
    let outcome = prepare(&mut mover, args).and_then(|()| mover.run());
    mover.progress.end();
    match outcome {
        Ok(report) => {
            if let (Some(path), Some(load)) = (&args.record, &mover.load) {
                write_record(path, load.record())?;
            }
            if let Some(path) = &args.report {
                history::write(path, &report)?;
            }
            report.print(format)
        }
        Err(fault) => {
            let report = args.report.as_ref().map(|path| (path, mover.failed(&fault)));
            let mut aftermath = mover.recover();
            // Rather nothing is said of the rounds than something else of the failure.
            if let Some((path, report)) = report
                && let Err(e) = history::write(path, &report)
            {
                aftermath = format!("{aftermath}; no report ({e})");
            }
            Err(fault.with_aftermath(aftermath))
        }
    }
}

/// What the device's disk must look like now, to a file.
fn write_record(path: &Path, record: Option<Record>) -> Result<()> {
    let text = serde_json::to_vec(&record).map_err(|e| Error::local("JSON", e))?;
    std::fs::write(path, text).map_err(|e| Error::local(path.display(), e))
}

fn connect(path: &Path, options: Options) -> Result<(End, Identity)> {
    let mut client = Client::connect(path, options)?;
    let unfit = |text: String| Err(Error::Unfit(format!("{}: {text}", path.display())));
    let flags = migration_flags(&mut client).map_err(|e| match e {
        Error::Unfit(text) => Error::Unfit(format!("{}: {text}", path.display())),
        e => e,
    })?;
    if !client.has_feature(Feature::DmaLoggingReport, FeatureFlags::GET)? {
        return unfit("the device cannot log dirty pages".into());
    }
    let (identity, _) = Identity::read(&mut client)?;
    let state = client.device_state()?;
    let pre_copy = flags.contains(MigrationFlags::PRE_COPY);
    Ok((End { client, vectors: None, state, pre_copy }, identity))
}

/// Sets both sides up as for a guest that runs: memory, interrupts, and work
/// for the source.
fn prepare(mover: &mut Mover<'_>, args: &args::Migrate) -> Result<(), Fault> {
    for (end, side, fit) in [
        (&mover.src, Side::Source, &[DeviceState::Running][..]),
        (&mover.dst, Side::Destination, &[DeviceState::Running, DeviceState::Stop][..]),
    ] {
        if !fit.contains(&end.state) {
            let remedy = match end.state {
                DeviceState::PreCopy => "set it to RUNNING first",
                _ => "reset it first",
            };
            let text = format!("the device is in {}; {remedy}", state_name(end.state));
            return Err(Error::Unfit(text)).on(side);
        }
    }
    mover.touched = true;
    mover.guest.map(&mut mover.src.client).on(Side::Source)?;
    mover.guest.fill(&mut mover.src.client).on(Side::Here)?;
    mover.guest.map(&mut mover.dst.client).on(Side::Destination)?;
    let known = load::is_known(&mover.identity);
    let with_load = args.load && known;
    if args.load && !known {
        mover.progress.phase("no load is known for this device: it moves without");
    }
    arm(&mut mover.src, None, with_load).on(Side::Source)?;
    let irq = mover.src.vectors.as_ref().map(Vectors::irq);
    if let Some(irq) = irq {
        arm(&mut mover.dst, Some(irq), false).on(Side::Destination)?;
    }
    if with_load {
        mover.start_load().on(Side::Source)?;
    }
    if args.record.is_some() && mover.load.as_ref().and_then(|load| load.record()).is_none() {
        return Err(Error::Usage("there is no record of this device's load".into())).on(Side::Here);
    }
    Ok(())
}

/// Gives a device eventfds for its interrupts, if it has any. They are switched
/// on in the configuration space only where a driver would do it.
fn arm(end: &mut End, irq: Option<crate::region::Irq>, switch_on: bool) -> Result<()> {
    if end.client.max_msg_fds() == 0 {
        return Ok(());
    }
    let (irq, count) = match interrupts::choose(&mut end.client, irq) {
        Ok(found) => found,
        Err(Error::Unfit(_)) => return Ok(()),
        Err(e) => return Err(e),
    };
    end.vectors = Some(match switch_on {
        true => Vectors::arm(&mut end.client, irq, count)?,
        false => Vectors::give(&mut end.client, irq, count)?,
    });
    Ok(())
}
