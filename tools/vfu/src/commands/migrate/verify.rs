//! Comparing what the two devices show of themselves, while both are stopped.

use std::fmt;

use indicatif::HumanBytes;
use serde::Serialize;
use vfio_user::wire::RegionInfoFlags;

use super::side::{Fault, On, Side};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::region::Region;

/// Largest region that is compared, in bytes.
const LARGEST: u64 = 1 << 30;

/// A region that was not compared.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub region: String,
    /// Why not.
    pub why: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.region, self.why)
    }
}

/// Compares every region of the devices; those that could not be, because the devices
/// refuse to be read, or the region is too large.
pub fn compare_regions(
    src: &mut Client,
    dst: &mut Client,
    identity: &Identity,
) -> Result<Vec<LeftOut>, Fault> {
    let mut left_out = Vec::new();
    for (n, size) in (0..).zip(&identity.region_sizes) {
        let region = Region(n);
        let flags = src.region_info(region).on(Side::Source)?.flags();
        if *size == 0 || !flags.contains(RegionInfoFlags::READ) {
            continue;
        }
        let mut leave_out = |why: String| left_out.push(LeftOut { region: region.to_string(), why });
        if *size > LARGEST {
            leave_out(format!("larger than {}", HumanBytes(LARGEST)));
            continue;
        }
        let ours = match read(src, region, *size).on(Side::Source)? {
            Ok(ours) => ours,
            Err(refused) => {
                leave_out(refused);
                continue;
            }
        };
        let text = match read(dst, region, *size).on(Side::Destination)? {
            Err(refused) => format!("{region} can be read from the source only: {refused}"),
            Ok(theirs) => match ours.iter().zip(&theirs).position(|(a, b)| a != b) {
                None => continue,
                Some(at) => format!("{region} differs from that of the source from byte {at:#x} on"),
            },
        };
        return Err(Error::Unfit(text)).on(Side::Destination);
    }
    Ok(left_out)
}

/// The region's bytes, or how the device refuses them.
fn read(client: &mut Client, region: Region, size: u64) -> Result<Result<Vec<u8>, String>> {
    match client.region_bytes(region, size) {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(e @ (Error::Device { .. } | Error::Unfit(_))) => Ok(Err(e.to_string())),
        Err(e) => Err(e),
    }
}
