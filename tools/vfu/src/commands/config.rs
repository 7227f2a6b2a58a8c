//! `vfu config`

use crate::args;
use crate::client::Client;
use crate::config::{Config, Header};
use crate::error::{Error, Result};
use crate::output::{self, Format};
use crate::region::Region;

/// Shows the configuration space.
pub fn run(client: &mut Client, args: &args::Config, format: Format) -> Result<()> {
    let bytes = client.config_space()?;
    let mut region_sizes = [0; 7];
    for (size, n) in region_sizes.iter_mut().zip(0..) {
        *size = client.region_info(Region(n))?.info.size;
    }
    let config = Config::decode(&bytes, &region_sizes).ok_or_else(|| {
        Error::Unfit(format!("a configuration space of {} bytes has no header", bytes.len()))
    })?;
    if args.dump {
        return output::bytes(config.dump(&bytes).as_bytes());
    }
    match format.is_json() {
        true => format.json(&config),
        false => print(&config),
    }
}

fn print(config: &Config) -> Result<()> {
    print_header(&config.header)?;
    for capability in &config.capabilities {
        let details = capability.details.as_ref().map_or_else(String::new, |d| format!(": {d}"));
        output::line(format!(
            "[{:02x}] {}{details}",
            capability.offset,
            named(capability.name, capability.id.into())
        ))?;
    }
    for capability in &config.extended_capabilities {
        let details = capability.details.as_ref().map_or_else(String::new, |d| format!(": {d}"));
        output::line(format!(
            "[{:03x}] {}{details}",
            capability.offset,
            named(capability.name, capability.id)
        ))?;
    }
    Ok(())
}

fn named(name: &str, id: u16) -> String {
    match name {
        "unknown" => format!("capability {id:#x}"),
        name => name.to_string(),
    }
}

fn print_header(header: &Header) -> Result<()> {
    let name = |name: Option<&str>| name.map_or_else(String::new, |n| format!(" {n}"));
    let device = format!(
        "{:04x}{}, device {:04x}{}",
        header.vendor_id,
        name(header.vendor),
        header.device_id,
        name(header.device)
    );
    let subsystem = format!("{:04x}, device {:04x}", header.subsystem_vendor_id, header.subsystem_id);
    let class = &header.class;
    let mut rows = vec![
        ("vendor", device),
        ("subsystem", format!("vendor {subsystem}")),
        ("class", format!("{:02x}{:02x}{:02x} {}", class.base, class.sub, class.prog_if, class.name)),
        ("revision", format!("{:02x}", header.revision)),
        ("command", header.command.to_string()),
        ("status", header.status.to_string()),
    ];
    if header.header_type != 0 || header.multifunction {
        let functions = if header.multifunction { ", several functions" } else { "" };
        rows.push(("header", format!("type {}{functions}", header.header_type)));
    }
    if let Some(pin) =
        (1..=4).contains(&header.interrupt_pin).then(|| char::from(b'A' + header.interrupt_pin - 1))
    {
        rows.push(("interrupt", format!("pin {pin}, line {}", header.interrupt_line)));
    }
    rows.extend(header.bars.iter().map(|bar| ("region", bar.to_string())));
    if let Some(rom) = &header.rom {
        let enabled = if rom.enabled { "enabled" } else { "disabled" };
        rows.push(("region", format!("ROM: {enabled}, at {:#x}, {:#x} bytes", rom.address, rom.size)));
    }
    for (label, text) in rows {
        output::line(format!("{label:<10} {text}"))?;
    }
    Ok(())
}
