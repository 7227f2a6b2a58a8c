//! How an address space hears of its losses.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory;
use crate::wire::{Errno, Result};

/// What the handler leaves for one address space.
pub(in crate::dma) struct News {
    pending: AtomicBool,
    /// Readable while `pending`, for who polls.
    event: OwnedFd,
    /// The process that made it: the eventfd of a child of fork(2) is its
    /// parent's, too.
    process: u32,
}

impl News {
    pub(super) fn new() -> Result<News> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(News { pending: AtomicBool::new(false), event: event.into(), process: std::process::id() })
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Called by the handler.
    pub(super) fn tell(&self) {
        if self.pending.swap(true, AcqRel) || !self.is_of_this_process() {
            return;
        }
        let one = 1_u64;
        // As a bare system call, since write(3) is a cancellation point, and
        // nothing may unwind from here.
        // SAFETY: it reads the eight bytes of `one`.
        unsafe { libc::syscall(libc::SYS_write, self.event.as_raw_fd(), &raw const one, size_of::<u64>()) };
    }

    /// Whether there was anything; not any more.
    fn take(&self) -> bool {
        let mut count = 0_u64;
        if self.is_of_this_process() {
            // SAFETY: there is room for eight bytes.
            unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        }
        self.pending.swap(false, AcqRel)
    }
}

/// An address space's news, made with its first guarded region; they stay where
/// they are as long as it lives.
pub(in crate::dma) struct Mailbox(OnceLock<Box<News>>);

impl Mailbox {
    pub(in crate::dma) const fn new() -> Mailbox {
        Mailbox(OnceLock::new())
    }

    pub(in crate::dma) fn get_or_make(&self) -> Result<&News> {
        if self.0.get().is_none() {
            // Whoever came first wins.
            let _ = self.0.set(memory::boxed(News::new()?)?);
        }
        self.0.get().map(Box::as_ref).ok_or(Errno::ENOMEM)
    }

    /// What is readable while there are any.
    pub(in crate::dma) fn descriptor(&self) -> Option<RawFd> {
        self.0.get().map(|news| news.event.as_raw_fd())
    }

    pub(in crate::dma) fn are_pending(&self) -> bool {
        self.0.get().is_some_and(|news| news.pending.load(Acquire))
    }

    pub(in crate::dma) fn take(&self) -> bool {
        self.0.get().is_some_and(|news| news.take())
    }
}
