//! Comparing what the two devices show of themselves, while both are stopped.

use vfio_user::wire::RegionInfoFlags;

use super::side::{Fault, On, Side};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::region::Region;

/// Largest region that is compared, in bytes.
const LARGEST: u64 = 1 << 30;

/// Compares every region of the devices; the names of those that could not be
/// compared, because the devices refuse to be read in large accesses or the
/// region is too large.
pub fn compare_regions(
    src: &mut Client,
    dst: &mut Client,
    identity: &Identity,
) -> Result<Vec<String>, Fault> {
    let mut left_out = Vec::new();
    for (n, size) in (0..).zip(&identity.region_sizes) {
        let region = Region(n);
        let flags = src.region_info(region).on(Side::Source)?.flags();
        if *size == 0 || !flags.contains(RegionInfoFlags::READ) {
            continue;
        }
        if *size > LARGEST {
            left_out.push(region.to_string());
            continue;
        }
        let Some(ours) = read(src, region, *size).on(Side::Source)? else {
            left_out.push(region.to_string());
            continue;
        };
        let theirs = read(dst, region, *size).on(Side::Destination)?;
        let at = match &theirs {
            Some(theirs) => ours.iter().zip(theirs).position(|(a, b)| a != b),
            None => Some(0),
        };
        if let Some(at) = at {
            let text = format!("{region} differs from that of the source from byte {at:#x} on");
            return Err(Error::Unfit(text)).on(Side::Destination);
        }
    }
    Ok(left_out)
}

/// The region's bytes; `None` if the device refuses.
fn read(client: &mut Client, region: Region, size: u64) -> Result<Option<Vec<u8>>> {
    match client.region_bytes(region, size) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Device { .. } | Error::Unfit(_)) => Ok(None),
        Err(e) => Err(e),
    }
}
