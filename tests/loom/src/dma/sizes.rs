//! The numbers of the library's `sizes`, as small as they may be.

pub(super) const LANES_LOG2: u32 = 1;

pub(super) const HANDLE_BASE: u32 = 1;
pub(super) const KEPT: u32 = 1;

pub(super) const LEAF_CAPACITY: usize = 4;
pub(super) const TOP_CAPACITY: usize = 1;
pub(super) const POPULATED: usize = 1;
pub(super) const PATIENCE: u32 = 1;

pub(super) const GROUP_WORDS: usize = 4;
pub(super) const LINE_WORDS: usize = 2;
