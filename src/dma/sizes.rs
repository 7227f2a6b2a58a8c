//! How much of everything there is at once. The models in `tests/loom` have
//! smaller numbers, so that few steps lead through every branch.

/// Log2 of how many threads can each have a hint of their own. The hints of so
/// many take up one page.
pub(super) const LANES_LOG2: u32 = 9;

/// The lowest handle of a slot is 2 to this, which is at least 1; that many slots are made
/// first.
pub(super) const HANDLE_BASE: u32 = 6;
/// If there were more regions than these at a time, the memory that told of them
/// goes back to the system when the last one goes. (What these take up is less
/// than 64 KiB.)
pub(super) const KEPT: u32 = 192;

/// Regions in a leaf of the index: a power of four.
pub(super) const LEAF_CAPACITY: usize = 256;
/// Leaves that the first array of leaves holds: a page of starts.
pub(super) const TOP_CAPACITY: usize = 512;
/// Leaves that have memory put behind them at once, at the most.
pub(super) const POPULATED: usize = 16;
/// Looks into the index before a reader waits for the writer instead.
pub(super) const PATIENCE: u32 = 64;

/// Words of a dirty bitmap that are scanned in one go.
pub(super) const GROUP_WORDS: usize = 512;
/// Words of a cache line.
pub(super) const LINE_WORDS: usize = 8;
