//! What threads that trigger and the one that assigns share is made of. The
//! models in `tests/loom` compile `vector` with loom's atomics in the place of
//! these.

pub(super) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
