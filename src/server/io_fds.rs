//! Eventfds that a client's hypervisor may signal for writes to a region:
//! `vfu_create_ioeventfd` and `VFIO_USER_DEVICE_GET_REGION_IO_FDS`.

use std::os::fd::RawFd;

use super::regions;
use super::regions::RegionFlags;
use super::{Context, Device};
use crate::handover::{self, NO_FD};
use crate::memory;
use crate::transport::{Message, Reply};
use crate::wire::{Errno, IoFdEntry, IoFdType, RegionIoFds, Request, Result};

/// One entry; its descriptor is borrowed.
#[derive(Clone, Copy, Debug)]
struct IoEventfd {
    fd: RawFd,
    gpa_offset: u64,
    size: u32,
    flags: u32,
    datamatch: u64,
}

/// The entries of each region, oldest first.
#[derive(Debug, Default)]
pub struct IoEventfds {
    regions: [Vec<IoEventfd>; regions::COUNT],
}

const BEYOND: &str = "it ends beyond the region";

impl<D: Device> Context<D> {
    /// See `vfu_create_ioeventfd`. Shadow memory is not supported: `EINVAL`.
    #[allow(clippy::too_many_arguments)] // they are the C function's
    pub(crate) fn create_ioeventfd(
        &self,
        region: u32,
        fd: RawFd,
        gpa_offset: usize,
        size: u32,
        flags: u32,
        datamatch: u64,
        shadow_fd: RawFd,
        _shadow_offset: usize,
    ) -> Result<()> {
        let access = self.regions.borrow().access(region)?;
        let gpa_offset = gpa_offset as u64;
        let end = gpa_offset.checked_add(u64::from(size)).ok_or_else(|| Errno::EINVAL.because(BEYOND))?;
        Errno::EINVAL.unless(shadow_fd == -1, "shadow memory is not supported")?;
        Errno::EINVAL.unless(!access.flags.is_empty(), "the region is not set up")?;
        Errno::EINVAL.unless(end <= access.size, BEYOND)?;
        let mut entries = self.io_eventfds.borrow_mut();
        let entries = entries.regions.get_mut(region as usize).ok_or(Errno::EINVAL)?;
        memory::push(entries, IoEventfd { fd, gpa_offset, size, flags, datamatch })
    }

    /// All entries, each with its descriptor.
    pub(super) fn io_eventfd_records(&self) -> Result<Vec<(handover::IoEventfd, Option<RawFd>)>> {
        let mut records = Vec::new();
        let all = self.io_eventfds.borrow();
        for (region, entry) in (0..).zip(&all.regions).flat_map(|(n, list)| list.iter().map(move |e| (n, e)))
        {
            let &IoEventfd { fd, gpa_offset, size, flags, datamatch } = entry;
            let record = handover::IoEventfd { region, fd: NO_FD, gpa_offset, size, flags, datamatch };
            memory::push(&mut records, (record, (fd >= 0).then_some(fd)))?;
        }
        Ok(records)
    }

    /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`
    pub(super) fn device_get_region_io_fds(&self, message: &Message, reply: &mut Reply) -> Result<()> {
        let (request, _) = RegionIoFds::parse(message.payload())?;
        let fixed = size_of::<RegionIoFds>();
        let argsz = request.argsz as usize;
        let access = self.regions.borrow().access(request.index)?;
        Errno::EINVAL.unless(access.flags != RegionFlags::empty(), "the region is not set up")?;
        let all = self.io_eventfds.borrow();
        let entries = all.regions.get(request.index as usize).ok_or(Errno::EINVAL)?;
        // The region may have been set up anew, and smaller.
        let is_inside = |entry: &&IoEventfd| {
            entry.gpa_offset.checked_add(u64::from(entry.size)).is_some_and(|end| end <= access.size)
        };
        let count = entries.iter().filter(is_inside).count();
        let full = fixed.saturating_add(count.saturating_mul(size_of::<IoFdEntry>()));
        let fits = argsz >= full;

        self.make_room(reply, if fits { full } else { fixed })?;
        reply.put(&RegionIoFds {
            argsz: u32::try_from(full).map_err(|_| Errno::EINVAL)?,
            flags: 0,
            index: request.index,
            count: u32::try_from(count).map_err(|_| Errno::EINVAL)?,
        })?;
        if fits {
            let most = self.client.get().max_io_fds as usize;
            let mut fds = Vec::new();
            for entry in entries.iter().rev().filter(is_inside) {
                let fd_index = fd_index(&mut fds, entry.fd, most)?;
                reply.put(&IoFdEntry {
                    gpa_offset: entry.gpa_offset,
                    size: u64::from(entry.size),
                    fd_index,
                    kind: IoFdType::Ioeventfd as u32,
                    flags: entry.flags,
                    shadow_mem_fd_index: 0,
                    shadow_offset: 0,
                    datamatch: entry.datamatch,
                })?;
            }
            reply.lend_fds(fds)?;
        }
        Ok(())
    }
}

/// Index of a descriptor among those of a reply, each of which is sent once
/// and which are `most` at the most.
fn fd_index(fds: &mut Vec<RawFd>, fd: RawFd, most: usize) -> Result<u32> {
    let index = match fds.iter().position(|known| *known == fd) {
        _ if fd == -1 => None,
        Some(index) => Some(index),
        None if fds.len() >= most => None,
        None => {
            memory::push(fds, fd)?;
            Some(fds.len().saturating_sub(1))
        }
    };
    Ok(index.and_then(|index| u32::try_from(index).ok()).unwrap_or(IoFdEntry::NO_FD))
}
