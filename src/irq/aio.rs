//! Adding 1 to an eventfd that blocks, without ever waiting.
//!
//! A write to an eventfd without `O_NONBLOCK` waits while its counter is full,
//! and asking poll(2) before does not help against a client that fills it in
//! between. `O_NONBLOCK` is the client's own: setting it would make the client's
//! reads fail. `RWF_NOWAIT` is not supported by eventfds, and opening them once
//! more through /proc neither. What never waits is how the kernel itself signals:
//! a request of its asynchronous I/O adds 1 to an eventfd of the caller's choice
//! when it is done (`IOCB_FLAG_RESFD`). Ours is done before io_submit(2) returns:
//! it reads nothing, from the eventfd itself.
//!
//! It costs about five times a write: the request, taking its result, and asking
//! before whether the counter is full. So eventfds that do not block are written to.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::wire::{Errno, Result};

/// As many requests may be under way, one a thread that triggers.
const REQUESTS: libc::c_long = 64;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;
/// A flag for reading that no kernel knows.
const RWF_NONE: i32 = 1 << 30;
/// How often a request is tried for which there was no room.
const TRIES: usize = 8;

/// `struct io_event` of <linux/aio_abi.h>.
type IoEvent = [u64; 4];

/// A context of the kernel's asynchronous I/O, made when it is first needed.
#[derive(Debug, Default)]
pub struct Aio(AtomicUsize);

impl Aio {
    /// Makes sure that [`add_one`](Self::add_one) works. Fails as io_setup(2) does
    /// (`ENOSYS`: the kernel is built without it), or if the kernel is too old to
    /// read from an eventfd so.
    pub fn prepare(&self) -> Result<()> {
        if self.0.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        let new = Aio::default();
        new.set_up()?;
        let probe = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        new.add_one(OwnedFd::from(probe).as_raw_fd())?;
        if self
            .0
            .compare_exchange(0, new.0.load(Ordering::Relaxed), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            std::mem::forget(new);
        }
        Ok(())
    }

    fn set_up(&self) -> Result<()> {
        let mut context: usize = 0;
        // SAFETY: context is good for the write of an aio_context_t.
        match unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &mut context) } {
            0 => {
                self.0.store(context, Ordering::Release);
                Ok(())
            }
            _ => Err(Errno::last()),
        }
    }

    /// Adds 1 to an eventfd, whose counter stays where it is if it is full.
    /// Async-signal-safe.
    pub fn add_one(&self, fd: RawFd) -> Result<()> {
        for _ in 0..TRIES {
            match self.submit(fd, 0) {
                Err(Errno::EAGAIN) => self.reap(),
                Ok(()) => {
                    self.reap();
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Whether a descriptor is an eventfd: the kernel looks at that before it
    /// refuses a flag that it does not know. No file system is asked.
    pub fn is_eventfd(&self, fd: RawFd) -> Result<bool> {
        match self.submit(fd, RWF_NONE) {
            Err(Errno::ENOTSUP) => Ok(true),
            Err(Errno::EINVAL) => Ok(false),
            Err(errno) => Err(errno),
            Ok(()) => Err(Errno::EIO),
        }
    }

    fn submit(&self, fd: RawFd, rw_flags: i32) -> Result<()> {
        let Ok(number) = u32::try_from(fd) else {
            return Err(Errno::EBADF);
        };
        // SAFETY: numbers only, for which zeros will do.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = IOCB_CMD_PREAD;
        request.aio_fildes = number;
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = number;
        request.aio_rw_flags = rw_flags;
        let requests = [&raw mut request];
        let context = self.0.load(Ordering::Acquire);
        // SAFETY: one request, valid for the call; it is done with when the call returns.
        match unsafe { libc::syscall(libc::SYS_io_submit, context, 1_usize, requests.as_ptr()) } {
            1 => Ok(()),
            _ => Err(Errno::last()),
        }
    }

    /// Takes the results of requests that are done, so that there is room for more.
    fn reap(&self) {
        let mut events = [IoEvent::default(); REQUESTS as usize];
        let context = self.0.load(Ordering::Acquire);
        // SAFETY: the array has room for that many; none is waited for.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                0_usize,
                events.len(),
                events.as_mut_ptr(),
                ptr::null_mut::<libc::timespec>(),
            )
        };
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        let context = *self.0.get_mut();
        if context != 0 {
            // SAFETY: a number; the context is this object's own.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}
