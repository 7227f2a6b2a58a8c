//! `vfu save`, `vfu load` and `vfu state`: the state of one device.

use serde::Serialize;
use vfio_user::wire::{DeviceState, Feature, FeatureFlags, MigrationFlags};

use crate::args;
use crate::client::{Client, state_name};
use crate::config::restore;
use crate::container::{Header, Reader, Writer};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::output::{self, Format};
use crate::region::Region;

#[derive(Serialize)]
struct Shown {
    state: &'static str,
    stop_copy: bool,
    pre_copy: bool,
    p2p: bool,
    dirty_logging: bool,
}

/// Migration data that was saved or loaded.
#[derive(Serialize)]
struct Data {
    bytes: u64,
}

/// What the device can do about migration. Fails if it can't migrate.
pub fn migration_flags(client: &mut Client) -> Result<MigrationFlags> {
    let flags = client.migration_flags()?.filter(|f| f.contains(MigrationFlags::STOP_COPY));
    flags.ok_or_else(|| Error::Unfit("the device cannot migrate".into()))
}

/// Reads all data of a device in STOP_COPY, a piece at a time.
pub fn read_all(client: &mut Client, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let size = client.max_data_xfer_size();
    let mut total: u64 = 0;
    loop {
        let data = client.mig_data_read(size)?;
        piece(&data)?;
        total = total.saturating_add(data.len() as u64);
        if data.len() < size {
            return Ok(total);
        }
    }
}

/// Makes the configuration space what it was. What a device doesn't let be
/// written, and only it can know of, stays.
pub fn restore_config(client: &mut Client, saved: &[u8]) -> Result<()> {
    let now = client.config_space()?;
    for write in restore::plan(saved, &now) {
        match client.region_write(Region::CONFIG, write.offset as u64, &write.data) {
            Err(Error::Device { .. }) if write.optional => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Shows the state, after a change if one is asked for.
pub fn state(client: &mut Client, args: &args::State, format: Format) -> Result<()> {
    let flags = migration_flags(client)?;
    if let Some(state) = args.set {
        client.set_device_state(state.into())?;
    }
    let shown = Shown {
        state: state_name(client.device_state()?),
        stop_copy: flags.contains(MigrationFlags::STOP_COPY),
        pre_copy: flags.contains(MigrationFlags::PRE_COPY),
        p2p: flags.contains(MigrationFlags::P2P),
        dirty_logging: client.has_feature(Feature::DmaLoggingStart, FeatureFlags::SET)?,
    };
    if format.is_json() {
        return format.json(&shown);
    }
    let known = [("STOP_COPY", shown.stop_copy), ("PRE_COPY", shown.pre_copy), ("P2P", shown.p2p)];
    let known: Vec<&str> = known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    output::line(format!("state          {}", shown.state))?;
    output::line(format!("migration      {}", known.join(", ")))?;
    output::line(format!("dirty logging  {}", if shown.dirty_logging { "yes" } else { "no" }))
}

/// Saves the device's state. However it goes, the device is in the state that
/// it was in afterwards, as far as that can be.
pub fn save(client: &mut Client, args: &args::Save, format: Format) -> Result<()> {
    migration_flags(client)?;
    let (device, _) = Identity::read(client)?;
    let before = client.device_state()?;
    if !matches!(before, DeviceState::Running | DeviceState::Stop) {
        return Err(Error::Unfit(format!("the device is in {}, not RUNNING", state_name(before))));
    }
    let outcome = save_stopped(client, args, device);
    let back = client.set_device_state(before);
    let bytes = match (outcome, back) {
        (Ok(bytes), Ok(())) => bytes,
        (Ok(_), Err(e)) => return Err(e),
        (Err(e), _) => return Err(e),
    };
    let text = format!("{}: {bytes} bytes of migration data", args.file.display());
    format.result(&Data { bytes }, Some(text))
}

fn save_stopped(client: &mut Client, args: &args::Save, device: Identity) -> Result<u64> {
    client.set_device_state(DeviceState::StopCopy)?;
    let config = client.config_space()?;
    let header = Header { device, tool_version: env!("CARGO_PKG_VERSION").into() };
    let mut file = Writer::new(&args.file, &header, &config)?;
    let bytes = read_all(client, |data| file.data(data))?;
    file.finish(&args.file)?;
    Ok(bytes)
}

/// Loads what [`save`] has saved into a device of the same kind. If that
/// fails halfway the device is reset.
pub fn load(client: &mut Client, file: &mut Reader, format: Format) -> Result<()> {
    migration_flags(client)?;
    let (device, _) = Identity::read(client)?;
    if let Some(difference) = file.header.device.difference(&device) {
        return Err(Error::Unfit(format!("the file is of another kind of device: {difference}")));
    }
    match load_data(client, file) {
        Ok(bytes) => format.result(&Data { bytes }, Some(format!("{bytes} bytes of migration data loaded"))),
        Err(e) => {
            let aftermath = match client.reset() {
                Ok(()) => "the device was reset".into(),
                Err(e) => format!("the device could not be reset: {e}"),
            };
            Err(Error::Migration { side: "load", source: Box::new(e), aftermath })
        }
    }
}

fn load_data(client: &mut Client, file: &mut Reader) -> Result<u64> {
    client.set_device_state(DeviceState::Resuming)?;
    let mut bytes: u64 = 0;
    loop {
        let piece = file.data()?;
        if piece.is_empty() {
            break;
        }
        client.mig_data_write(&piece)?;
        bytes = bytes.saturating_add(piece.len() as u64);
    }
    restore_config(client, &file.config)?;
    client.set_device_state(DeviceState::Running)?;
    Ok(bytes)
}
