//! Reading and writing regions.

use std::fmt;

use crate::server::log::log;
use crate::server::regions::{self, Access, RegionFlags};
use crate::server::{Context, Device};
use crate::transport::{Message, Reply};
use crate::wire::{DeviceState, Errno, RegionAccess, Request, Result, WriteMultiEntry, WriteMultiHead, take};

pub(super) const NOTHING: &str = "the device did nothing";

/// Where an entry of `VFIO_USER_REGION_WRITE_MULTI` starts in the payload.
fn start_of_entry(number: u64) -> Option<usize> {
    let start = usize::try_from(number).ok()?.checked_mul(size_of::<WriteMultiEntry>())?;
    start.checked_add(size_of::<WriteMultiHead>())
}

/// One of the writes of `VFIO_USER_REGION_WRITE_MULTI`, in words for the log.
struct WriteMultiWrite<'a> {
    payload: &'a [u8],
    number: u64,
}

impl fmt::Display for WriteMultiWrite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {}", self.number)?;
        let bytes = start_of_entry(self.number).and_then(|start| self.payload.get(start..));
        match take::<WriteMultiEntry>(bytes.unwrap_or_default()) {
            Ok((WriteMultiEntry { offset, region, count, .. }, _)) => {
                write!(f, " of region {region}, {count:#x} bytes at {offset:#x}")
            }
            Err(_) => Ok(()),
        }
    }
}

impl<D: Device> Context<D> {
    /// `VFIO_USER_REGION_READ`
    #[inline(always)]
    pub(in crate::server) fn region_read(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let (access, _) = take::<RegionAccess>(message.payload())?;
        let region = self.check_access(&access, None)?;
        let fixed = size_of::<RegionAccess>();
        let count = access.count as usize;
        self.make_room(reply, fixed.saturating_add(count))?;
        reply.put(&access)?;
        if count > 0 {
            let buffer = reply.space(count)?;
            let done = self.access_region(&access, region, buffer, false)?;
            if done < count {
                self.shorten(reply, access, done)?;
            }
        }
        Ok(())
    }

    /// Cuts the reply to a read that gave less than was asked for.
    fn shorten(&self, reply: &mut Reply, access: RegionAccess, done: usize) -> Result<()> {
        use zerocopy::IntoBytes;
        let fixed = size_of::<RegionAccess>();
        reply.truncate(fixed.saturating_add(done));
        let access = RegionAccess { count: u32::try_from(done).map_err(|_| Errno::EINVAL)?, ..access };
        let head = reply.payload_mut().get_mut(..fixed).ok_or(Errno::EINVAL)?;
        head.copy_from_slice(access.as_bytes());
        Ok(())
    }

    /// `VFIO_USER_REGION_WRITE`
    #[inline(always)]
    pub(in crate::server) fn region_write(&self, message: &mut Message, reply: &mut Reply) -> Result<()> {
        let (access, data) = take::<RegionAccess>(message.payload())?;
        let region = self.check_access(&access, Some(data.len()))?;
        let fixed = size_of::<RegionAccess>();
        let mut done = 0;
        if access.count > 0 {
            let data = message.payload_mut().get_mut(fixed..).ok_or(Errno::EINVAL)?;
            done = self.access_region(&access, region, data, true)?;
        }
        reply.put(&RegionAccess { count: u32::try_from(done).map_err(|_| Errno::EINVAL)?, ..access })
    }

    /// `VFIO_USER_REGION_WRITE_MULTI`: the entries in order, up to the first
    /// that fails; only if that is the very first does the command fail.
    pub(in crate::server) fn region_write_multi(
        &self,
        message: &mut Message,
        reply: &mut Reply,
    ) -> Result<()> {
        Errno::EINVAL.unless(self.client.get().write_multiple, "write_multiple was not negotiated")?;
        let (head, _entries) = WriteMultiHead::parse(message.payload())?;
        let mut wr_cnt = 0u64;
        for number in 0..head.wr_cnt {
            match self.write_entry(message, number) {
                Ok(()) => wr_cnt = wr_cnt.saturating_add(1),
                Err(errno) if number == 0 => return Err(errno),
                Err(errno) => {
                    let rule = errno.take_rule().unwrap_or_else(|| errno.general_rule());
                    let entry = WriteMultiWrite { payload: message.payload(), number };
                    log!(self, LOG_ERR, "REGION_WRITE_MULTI, {entry}: {rule}: {errno}");
                    break;
                }
            }
        }
        reply.put(&WriteMultiHead { wr_cnt })
    }

    fn write_entry(&self, message: &mut Message, number: u64) -> Result<()> {
        let start = start_of_entry(number).ok_or(Errno::EINVAL)?;
        let bytes = message.payload_mut().get_mut(start..).ok_or(Errno::EINVAL)?;
        let (entry, _) = WriteMultiEntry::parse(bytes)?;
        let access = entry.access();
        let count = entry.count as usize;
        let at = std::mem::offset_of!(WriteMultiEntry, data);
        let region = self.check_access(&access, Some(count))?;
        if count > 0 {
            let data = bytes.get_mut(at..at.saturating_add(count)).ok_or(Errno::EINVAL)?;
            let done = self.access_region(&access, region, data, true)?;
            Errno::EINVAL.unless(done == count, "the device took a part of it only")?;
        }
        Ok(())
    }

    /// Checks an access; `data` is the length of what comes with a write.
    #[inline(always)]
    pub(in crate::server) fn check_access(
        &self,
        access: &RegionAccess,
        data: Option<usize>,
    ) -> Result<Access> {
        if let Some(data) = data {
            access.check_written(data)?;
        }
        let regions = self.regions.borrow();
        let region = regions.get(access.region)?;
        access.check(&[])?;
        Errno::EINVAL.unless(access.end() <= region.size, RegionAccess::BEYOND)?;
        Errno::EINVAL.unless(
            data.is_none() || self.migration.state() != DeviceState::StopCopy,
            "a write in the migration state STOP_COPY",
        )?;
        let needed = if data.is_some() { RegionFlags::WRITE } else { RegionFlags::READ };
        Errno::EPERM.unless(region.flags.contains(needed), "the region does not allow it")?;
        Ok(region.access())
    }

    /// Reads into, or writes from, `buffer`, which is not empty: how many bytes,
    /// at least one.
    #[inline(always)]
    pub(in crate::server) fn access_region(
        &self,
        access: &RegionAccess,
        region: Access,
        buffer: &mut [u8],
        is_write: bool,
    ) -> Result<usize> {
        let RegionAccess { offset, region: index, count } = *access;
        log!(
            self,
            LOG_DEBUG,
            "region {index}: {} {count} bytes at {offset:#x}",
            if is_write { "write" } else { "read" }
        );
        if index as usize == regions::CONFIG && !region.flags.contains(RegionFlags::ALWAYS_CB) {
            let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
            let outcome = self.access_config(region.has_callback, buffer, offset, is_write);
            if is_write {
                self.update_irqs();
            }
            return outcome.map(|()| buffer.len());
        }
        match self.call_region(index, offset, buffer, is_write)? {
            0 => Err(Errno::EINVAL.because(NOTHING)),
            done => Ok(done),
        }
    }

    /// Has the device fill `buffer` from a region, or write it to there: how many
    /// bytes, at most all.
    #[inline(always)]
    pub(super) fn call_region(
        &self,
        region: u32,
        offset: u64,
        buffer: &mut [u8],
        is_write: bool,
    ) -> Result<usize> {
        let length = buffer.len();
        let done = match is_write {
            true => self.device.region_write(self, region, offset, buffer)?,
            false => self.device.region_read(self, region, offset, buffer)?,
        };
        Errno::EINVAL.unless(done <= length, "the device moved more than there is").map(|()| done)
    }
}
