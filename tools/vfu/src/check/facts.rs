//! What the server says of its device, as far as it says anything: what checks look for.

use vfio_user::wire::{Command, DeviceInfo, IrqInfo, RegionInfo};

use super::link::Link;
use super::{Outcome, words};

/// More regions or interrupt types than any device has.
const MOST: u32 = 64;

/// A device as it describes itself. What was refused, or makes no sense, is missing.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `DEVICE_GET_INFO`
    pub device: Option<DeviceInfo>,
    /// `DEVICE_GET_REGION_INFO`, by index
    pub regions: Vec<RegionInfo>,
    /// `DEVICE_GET_IRQ_INFO`, by index
    pub irqs: Vec<IrqInfo>,
}

impl Facts {
    /// Asks for all of it.
    pub fn gather(link: &mut Link) -> Outcome<Facts> {
        let mut facts = Facts::default();
        let answer = link.request(Command::DeviceGetInfo, &words(&[16, 0, 0, 0]), "DEVICE_GET_INFO")?;
        let Some(device) = answer.done().and_then(|a| a.payload::<DeviceInfo>()).ok() else {
            return Ok(facts);
        };
        facts.device = Some(device);
        for index in 0..device.num_regions.min(MOST) {
            let request = words(&[32, 0, index, 0, 0, 0, 0, 0]);
            let what = format!("DEVICE_GET_REGION_INFO of region {index}");
            let answer = link.request(Command::DeviceGetRegionInfo, &request, &what)?;
            if let Ok(info) = answer.done().and_then(|a| a.payload::<RegionInfo>()) {
                facts.regions.push(RegionInfo { index, ..info });
            }
        }
        for index in 0..device.num_irqs.min(MOST) {
            let what = format!("DEVICE_GET_IRQ_INFO of type {index}");
            let answer = link.request(Command::DeviceGetIrqInfo, &words(&[16, 0, index, 0]), &what)?;
            if let Ok(info) = answer.done().and_then(|a| a.payload::<IrqInfo>()) {
                facts.irqs.push(IrqInfo { index, ..info });
            }
        }
        Ok(facts)
    }
}
