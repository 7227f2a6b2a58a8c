//! Guest memory for device code: `vfu_addr_to_sgl` and `vfu_sgl_*`.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use zerocopy::IntoBytes;

use super::log::log;
use super::{Context, Device};
use crate::dma::{Access, DmaInfo, Prot, RegionId, SgEntry, Translation};
use crate::transport::Awaited;
use crate::wire::limits::MAX_DMA_CHUNK;
use crate::wire::{Command, DmaAccess, Errno, Result, take};

/// `VFU_SGL_DIRECT_ACCESS`: without messages, where the region allows.
const DIRECT_ACCESS: c_int = 1;

/// Ids of the commands that this process sends, whatever the context.
static NEXT_MSG_ID: AtomicU16 = AtomicU16::new(1);

/// A command has been sent over a client's only socket.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Which way data go.
enum Data {
    /// From the client to here.
    Read(*mut u8),
    /// From here to the client.
    Write(*const u8),
}

impl<D: Device> Context<D> {
    /// See `vfu_addr_to_sgl`. Any thread may call this.
    pub fn addr_to_sgl(
        &self,
        addr: u64,
        len: u64,
        out: &mut [MaybeUninit<SgEntry>],
        prot: c_int,
    ) -> Result<Translation> {
        if !self.dma_is_ready() {
            return Err(Errno::EINVAL);
        }
        let prot = Prot::from_bits_truncate(prot.unsigned_abs());
        self.dma.translate(addr, len, prot, out)
    }

    /// What C's DMA callbacks are told of a region; good until it is removed.
    pub fn dma_info(&self, region: RegionId) -> *mut DmaInfo {
        self.dma.info(region)
    }

    /// The short way to what [`addr_to_sgl`](Context::addr_to_sgl) does: the
    /// entry, if one is enough and its region is the one that the thread used
    /// last. None says nothing. Cannot panic.
    #[inline(always)]
    pub fn recent_entry(&self, addr: u64, len: u64, prot: c_int) -> Option<SgEntry> {
        // There is no such region before DMA has been set up.
        if self.is_broken() {
            return None;
        }
        self.dma.translate_recent(addr, len, Prot::from_bits(prot.cast_unsigned())?)
    }

    /// The short way to what [`sgl_get`](Context::sgl_get) does for one entry.
    /// None says nothing. Cannot panic.
    #[inline(always)]
    pub fn recent_memory(&self, entry: &SgEntry, flags: c_int) -> Option<libc::iovec> {
        if flags != 0 || !self.is_gettable() {
            return None;
        }
        self.dma.get_recent(entry)
    }

    /// Whether [`sgl_mark_dirty`](Context::sgl_mark_dirty) has nothing to do.
    #[inline(always)]
    pub fn needs_no_marks(&self) -> bool {
        !self.is_broken() && !self.dma.is_logging()
    }

    /// See `vfu_sgl_get`; `iov` must have room for as many as there are
    /// entries. Any thread may call this.
    pub fn sgl_get(&self, sgl: &[SgEntry], iov: &mut [MaybeUninit<libc::iovec>], flags: c_int) -> Result<()> {
        if flags != 0 || self.is_broken() || !self.dma_is_ready() {
            return Err(Errno::EINVAL);
        }
        if !self.is_gettable() {
            self.warn_of_unmaps();
        }
        for (entry, iov) in sgl.iter().zip(iov) {
            iov.write(self.dma.get(entry)?);
        }
        Ok(())
    }

    /// See `vfu_sgl_put`, `vfu_sgl_mark_dirty`. Any thread may call this.
    pub fn sgl_mark_dirty(&self, sgl: &[SgEntry]) {
        for entry in sgl {
            self.dma.mark_dirty(entry);
        }
    }

    /// See `vfu_sg_is_mappable`. Any thread may call this.
    pub fn sg_is_mappable(&self, entry: &SgEntry) -> bool {
        self.dma.is_mappable(entry)
    }

    /// See `vfu_sgl_read`; `cnt` is how many entries the caller says there are,
    /// of which `sgl` has the first.
    ///
    /// # Safety
    ///
    /// `data` must have room for as many bytes as the entry is long.
    pub unsafe fn sgl_read(&self, sgl: &[SgEntry], cnt: usize, data: *mut u8, flags: c_int) -> Result<()> {
        self.sgl_access(sgl, cnt, Data::Read(data), flags)
    }

    /// See `vfu_sgl_write`.
    ///
    /// # Safety
    ///
    /// `data` must hold as many bytes as the entry is long.
    pub unsafe fn sgl_write(&self, sgl: &[SgEntry], cnt: usize, data: *const u8, flags: c_int) -> Result<()> {
        self.sgl_access(sgl, cnt, Data::Write(data), flags)
    }

    fn sgl_access(&self, sgl: &[SgEntry], cnt: usize, data: Data, flags: c_int) -> Result<()> {
        if flags & !DIRECT_ACCESS != 0 {
            return Err(Errno::EINVAL);
        }
        let ([entry], 1) = (sgl, cnt) else {
            return Err(Errno::ENOTSUP);
        };
        if matches!(data, Data::Write(_)) && !entry.is_writeable() {
            return Err(Errno::EPERM);
        }
        let target = self.dma.range_of(entry)?;
        if matches!(data, Data::Read(_)) && !target.prot.contains(Prot::READ) {
            return Err(Errno::EPERM);
        }
        if flags & DIRECT_ACCESS != 0 && target.access != Access::Message {
            return match data {
                // SAFETY: the caller's promise.
                Data::Read(to) => unsafe { self.dma.read(entry, to) },
                // SAFETY: the caller's promise.
                Data::Write(from) => unsafe { self.dma.write(entry, from) },
            };
        }
        let outcome = self.access_by_messages(target.iova, entry.length(), &data);
        if !self.busy.get() {
            // Commands may have been queued, or the connection found lost,
            // with no request in progress that would see to it.
            self.update_poller();
        }
        outcome
    }

    /// Moves `length` bytes in as many messages as it takes, one at a time.
    fn access_by_messages(&self, iova: u64, length: u64, data: &Data) -> Result<()> {
        if !self.attached() {
            return Err(Errno::ENOTCONN);
        }
        self.warn_of_single_socket();
        let most = MAX_DMA_CHUNK.min(self.client.get().max_data_xfer_size) as u64;
        let mut done = 0u64;
        while done < length {
            let count = most.min(length.saturating_sub(done));
            let access = DmaAccess { addr: iova.saturating_add(done), count };
            match self.transfer(access, data, done as usize) {
                Ok(()) => done = done.saturating_add(count),
                Err(Awaited::Failed(errno)) => {
                    log!(self, LOG_ERR, "DMA of {count:#x} bytes at {:#x} failed: {errno}", access.addr);
                    return Err(errno);
                }
                Err(Awaited::Lost(errno)) => {
                    log!(self, LOG_ERR, "connection lost in a DMA transfer");
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn warn_of_single_socket(&self) {
        let has_twin = self.with_connection(|connection| connection.has_twin()).unwrap_or(true);
        if !has_twin && !WARNED.swap(true, Ordering::Relaxed) {
            log!(
                self,
                LOG_WARNING,
                "the client has one socket only: what it sends while it is asked for memory waits"
            );
        }
    }

    /// One message and its answer; `skip` bytes of the data are done.
    fn transfer(&self, access: DmaAccess, data: &Data, skip: usize) -> Result<(), Awaited> {
        let mut connection = self.connection.borrow_mut();
        let connection = connection.as_mut().ok_or(Awaited::Failed(Errno::ENOTCONN))?;
        let msg_id = NEXT_MSG_ID.fetch_add(1, Ordering::Relaxed);
        let count = access.count as usize;
        let (cmd, sent): (_, &[u8]) = match data {
            Data::Read(_) => (Command::DmaRead, &[]),
            Data::Write(from) => {
                // SAFETY: the data are `skip + count` bytes or longer, and the
                // device does not run while they are looked at.
                (Command::DmaWrite, unsafe { std::slice::from_raw_parts(from.add(skip), count) })
            }
        };
        let answer = connection.exchange(msg_id, cmd as u16, [access.as_bytes(), sent])?;
        let judged = match data {
            Data::Read(to) => match take::<DmaAccess>(answer.payload()) {
                Ok((echo, bytes)) if echo == access && bytes.len() == count => {
                    // SAFETY: there is room for `skip + count` bytes or more,
                    // which no Rust code refers to.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(skip), count) };
                    Ok(())
                }
                _ => Err(Awaited::Failed(Errno::EINVAL)),
            },
            Data::Write(_) => match echoes_write(answer.payload(), access) {
                true => Ok(()),
                false => Err(Awaited::Failed(Errno::EINVAL)),
            },
        };
        connection.recycle(answer);
        judged
    }
}

/// Whether a payload is the answer to a write: address and count. The
/// specification's table has a count of four bytes, its C structure one of
/// eight; both are understood.
fn echoes_write(payload: &[u8], access: DmaAccess) -> bool {
    match take::<DmaAccess>(payload) {
        Ok((echo, rest)) => echo == access && rest.is_empty(),
        Err(_) => match take::<u64>(payload) {
            Ok((addr, rest)) => {
                let count = take::<u32>(rest);
                addr == access.addr
                    && count.is_ok_and(|(n, rest)| rest.is_empty() && u64::from(n) == access.count)
            }
            Err(_) => false,
        },
    }
}
