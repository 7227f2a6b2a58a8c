//! `VFIO_USER_DEVICE_FEATURE`, as such, and `VFIO_USER_DEVICE_RESET`

use vfio_user::wire::{
    Command, DeviceFeature, DeviceFlags, DeviceState, Feature, FeatureFlags, MigrationFlags, RegionInfo,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bench::Bench;
use super::facts::Facts;
use super::link::{Answer, Link};
use super::state::{in_state, set_state, state};
use super::{Check, Outcome, ROBUSTNESS, Stop};

const FEATURE: &str = "VFIO_USER_DEVICE_FEATURE";
const MIGRATION: &str = "VFIO_DEVICE_FEATURE_MIGRATION";
const STATE: &str = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";
const DEVICE_RESET: &str = "VFIO_USER_DEVICE_RESET";
const ARCS: &str = "Direct State Transitions";

pub const CHECKS: &[Check] = &[
    Check::new("probe", FEATURE, "a probe is answered with the request", probe).late(),
    Check::new("probe-operation", FEATURE, "operations that a feature lacks are refused", probe_operation)
        .late(),
    Check::new("unknown", FEATURE, "features that it does not know are refused", unknown).late(),
    Check::new("both", FEATURE, "GET and SET exclude each other", both).late(),
    Check::new("migration", MIGRATION, "a device that migrates has STOP_COPY", migration).late(),
    Check::new("state", STATE, "the state of the device can be asked for", get_state).late(),
    Check::new("short", ROBUSTNESS, "a short payload is refused", short).late(),
];

pub const RESET: &[Check] = &[
    Check::new("reset", DEVICE_RESET, "a device that can be reset is reset", reset).destructive(),
    Check::new("description", DEVICE_RESET, "the device is the same after it", description).destructive(),
    Check::new("stopped", ARCS, "it leads back to RUNNING", stopped).destructive(),
];

/// A device state as the feature's data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct StateData {
    pub device_state: u32,
    /// Not used in vfio-user.
    pub data_fd: u32,
}

/// Bytes of the head of a feature's request and reply.
pub(super) const HEAD: usize = size_of::<DeviceFeature>();

/// Sends a feature's request; the reply has room for as much as was sent, or for `room` bytes of data.
pub(super) fn ask(
    link: &mut Link,
    number: u32,
    operation: FeatureFlags,
    data: &[u8],
    room: usize,
) -> Outcome<Answer> {
    let argsz = u32::try_from(data.len().max(room).saturating_add(HEAD)).unwrap_or(u32::MAX);
    let request = DeviceFeature { argsz, flags: number | operation.bits() };
    let what = match Feature::from_number(number) {
        Some(feature) => format!("DEVICE_FEATURE {} of {feature:?}", names(operation)),
        None => format!("DEVICE_FEATURE {} of {number}", names(operation)),
    };
    let request = [request.as_bytes(), data].concat();
    link.request_large(Command::DeviceFeature, &request, argsz as usize, &what)
}

fn names(operation: FeatureFlags) -> String {
    operation.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|")
}

/// The data of a reply, behind its head.
pub(super) fn data(answer: &Answer) -> &[u8] {
    answer.body.get(HEAD..).unwrap_or_default()
}

/// What the device can do about migration; the check is skipped where that is nothing. It is not asked
/// before somebody needs it: a server that does not know the command may lose step by it.
pub(super) fn migrates(b: &mut Bench) -> Outcome<MigrationFlags> {
    let known = match b.migration {
        Some(known) => known,
        None => {
            let room = size_of::<u64>();
            let answer = ask(b.link()?, Feature::Migration as u32, FeatureFlags::GET, &[], room)?;
            let bits = data(&answer).first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            *b.migration.insert(bits.map(MigrationFlags::from_bits_retain))
        }
    };
    known.ok_or_else(|| Stop::skip("the device does not migrate"))
}

fn probe(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let link = b.link()?;
    for (feature, operation) in
        [(Feature::Migration, FeatureFlags::GET), (Feature::MigDeviceState, FeatureFlags::SET)]
    {
        let operation = operation | FeatureFlags::PROBE;
        let answer = ask(link, feature as u32, operation, &[], 0)?.done()?;
        let echo: DeviceFeature = answer.payload()?;
        let sent = DeviceFeature { argsz: HEAD as u32, flags: feature as u32 | operation.bits() };
        if echo != sent || answer.body.len() != HEAD {
            let text = format!("{}: {echo:?} in {} bytes, not {sent:?}", answer.what, answer.body.len());
            return Err(Stop::fail(text));
        }
    }
    Ok(())
}

fn probe_operation(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let link = b.link()?;
    for operation in [FeatureFlags::SET, FeatureFlags::SET | FeatureFlags::GET] {
        ask(link, Feature::Migration as u32, operation | FeatureFlags::PROBE, &[], 0)?.refused()?;
    }
    Ok(())
}

fn unknown(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for operation in [FeatureFlags::PROBE | FeatureFlags::GET, FeatureFlags::GET, FeatureFlags::SET] {
        ask(link, 0x7ffe, operation, &[], 64)?.refused()?;
    }
    link.in_step("DEVICE_FEATURE of an unknown feature")
}

fn both(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let link = b.link()?;
    let running = StateData { device_state: DeviceState::Running as u32, data_fd: 0 };
    let both = FeatureFlags::GET | FeatureFlags::SET;
    ask(link, Feature::MigDeviceState as u32, both, running.as_bytes(), 0)?.refused().map(|_| ())
}

fn migration(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    let answer = ask(link, Feature::Migration as u32, FeatureFlags::GET, &[], 8)?;
    if answer.is_error() {
        return Err(Stop::skip("the device does not migrate"));
    }
    let (head, bits) = answer.payload::<(DeviceFeature, u64)>().map(|pair| (pair.0, pair.1))?;
    if head.argsz as usize != answer.body.len() {
        return Err(Stop::fail(format!(
            "{}: argsz {} of {} bytes",
            answer.what,
            head.argsz,
            answer.body.len()
        )));
    }
    let unknown = bits & !MigrationFlags::all().bits();
    if unknown != 0 {
        b.warn(format!("unknown flags {unknown:#x}"));
    }
    match MigrationFlags::from_bits_retain(bits).contains(MigrationFlags::STOP_COPY) {
        true => Ok(()),
        false => Err(Stop::fail(format!("flags {bits:#x} without STOP_COPY"))),
    }
}

fn get_state(b: &mut Bench) -> Outcome {
    migrates(b)?;
    let now = state(b.link()?)?;
    if now != DeviceState::Running {
        b.warn(format!("the device is in the state {now:?}"));
    }
    Ok(())
}

fn short(b: &mut Bench) -> Outcome {
    let link = b.link()?;
    for size in [0, 4, 7] {
        let what = format!("DEVICE_FEATURE with {size} bytes of payload");
        link.request(Command::DeviceFeature, &vec![0; size], &what)?.refused()?;
        link.in_step(&what)?;
    }
    Ok(())
}

/// Resets the device, if it says that it can be.
pub(super) fn do_reset(b: &mut Bench) -> Outcome<Answer> {
    let flags = b.facts().device.map_or(0, |device| device.flags);
    let link = b.link()?;
    let answer = link.request(Command::DeviceReset, &[], "DEVICE_RESET")?;
    if answer.is_error() && !DeviceFlags::from_bits_retain(flags).contains(DeviceFlags::RESET) {
        return Err(Stop::skip("the device cannot be reset"));
    }
    answer.done()
}

fn reset(b: &mut Bench) -> Outcome {
    for _ in 0..2 {
        let answer = do_reset(b)?;
        if !answer.body.is_empty() {
            return Err(Stop::fail(format!("a reply with {} bytes of payload", answer.body.len())));
        }
        b.link()?.in_step("DEVICE_RESET")?;
    }
    Ok(())
}

fn description(b: &mut Bench) -> Outcome {
    let before = b.facts().clone();
    do_reset(b)?;
    let after = Facts::gather(b.link()?)?;
    let sizes = |facts: &Facts| facts.regions.iter().map(|RegionInfo { size, .. }| *size).collect::<Vec<_>>();
    let counts = |facts: &Facts| facts.irqs.iter().map(|irq| irq.count).collect::<Vec<_>>();
    match (sizes(&before), counts(&before)) == (sizes(&after), counts(&after)) {
        true => Ok(()),
        false => Err(Stop::fail(format!(
            "regions {:x?}, interrupts {:?}; before {:x?}, {:?}",
            sizes(&after),
            counts(&after),
            sizes(&before),
            counts(&before)
        ))),
    }
}

fn stopped(b: &mut Bench) -> Outcome {
    in_state(b, |b| {
        set_state(b.link()?, DeviceState::Stop)?.done()?;
        do_reset(b)?;
        match state(b.link()?)? {
            DeviceState::Running => Ok(()),
            other => Err(Stop::fail(format!("after a reset the state is {other:?}"))),
        }
    })
}
