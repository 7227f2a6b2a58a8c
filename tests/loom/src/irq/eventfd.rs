//! In the place of an eventfd: something that counts, and that loom watches.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicBool;

use crate::wire::Result;

/// What became of an eventfd, for the end of a run.
#[derive(Debug, Default)]
pub(super) struct Life {
    signals: AtomicUsize,
    succeeded: AtomicUsize,
    closes: AtomicUsize,
}

impl Life {
    pub(super) fn signals(&self) -> usize {
        self.signals.load(Relaxed)
    }

    /// Triggers that say that they signalled it, or another one.
    pub(super) fn succeeded(&self) -> usize {
        self.succeeded.load(Relaxed)
    }

    pub(super) fn add_succeeded(&self, count: usize) {
        self.succeeded.fetch_add(count, Relaxed);
    }

    pub(super) fn closes(&self) -> usize {
        self.closes.load(Relaxed)
    }
}

/// Using it is reading the cell, and closing it is writing it, so that loom fails
/// if these are not in order.
#[derive(Debug)]
pub struct Eventfd {
    is_open: AtomicBool,
    descriptor: UnsafeCell<()>,
    blocks: bool,
    life: Arc<Life>,
}

impl Eventfd {
    pub(super) fn new(blocks: bool, life: &Arc<Life>) -> Eventfd {
        Eventfd {
            is_open: AtomicBool::new(true),
            descriptor: UnsafeCell::new(()),
            blocks,
            life: Arc::clone(life),
        }
    }

    pub fn blocks(&self) -> bool {
        self.blocks
    }

    pub fn descriptor(&self) -> std::os::fd::RawFd {
        self.descriptor.with(|_| 0)
    }

    pub fn write(&self) -> Result<()> {
        self.descriptor.with(|_| assert!(self.is_open.load(Relaxed), "it is used when it is closed"));
        self.life.signals.fetch_add(1, Relaxed);
        Ok(())
    }

    pub fn close(&self) {
        if self.is_open.swap(false, AcqRel) {
            self.descriptor.with_mut(|_| ());
            self.life.closes.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Eventfd {
    fn drop(&mut self) {
        self.close();
    }
}
