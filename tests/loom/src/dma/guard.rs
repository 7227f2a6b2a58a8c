//! No guard: the library's has a table of the whole process, which lives longer
//! than a model runs.

use std::os::fd::RawFd;

use super::region::Prot;
use super::slots::Slot;
use crate::wire::{Errno, Result};

pub(super) fn is_on() -> bool {
    false
}

pub fn install() -> Result<()> {
    Err(Errno::ENOTSUP)
}

pub(super) struct News;

pub(super) struct Mailbox;

impl Mailbox {
    pub(super) const fn new() -> Mailbox {
        Mailbox
    }

    pub(super) fn get_or_make(&self) -> Result<&News> {
        Err(Errno::ENOTSUP)
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        None
    }

    pub(super) fn are_pending(&self) -> bool {
        false
    }

    pub(super) fn take(&self) -> bool {
        false
    }
}

pub(super) struct Range {
    pub(super) base: usize,
    pub(super) length: usize,
    pub(super) vaddr: usize,
    pub(super) of_file: u64,
    pub(super) page_size: u64,
    pub(super) prot: Prot,
}

pub(super) struct Watched;

impl Watched {
    pub(super) fn first_lost(&self) -> u64 {
        0
    }
}

/// # Safety
///
/// None is needed.
pub(super) unsafe fn watch(_range: &Range, _slot: &Slot, _news: &News) -> Result<Watched> {
    Err(Errno::ENOTSUP)
}
