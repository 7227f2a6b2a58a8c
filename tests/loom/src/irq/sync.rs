//! What the library's `sync` has, of loom.

pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
