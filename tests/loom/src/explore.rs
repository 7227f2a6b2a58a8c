//! Running models.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread::{Builder, JoinHandle};

/// Words of a thread's stack. Loom's own are small, and who runs out of them
/// ends there, and fails nothing.
const STACK: usize = 1 << 15;

/// A thread of a model.
pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new().stack_size(STACK).spawn(run).unwrap()
}

/// Runs a model in all orders with at most so many preemptions.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 10_000;
    let model = Arc::new(model);
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&begun), Arc::clone(&ended));
    builder.check(move || {
        let model = Arc::clone(&model);
        counts.0.fetch_add(1, Relaxed);
        spawn(move || model()).join().unwrap();
        counts.1.fetch_add(1, Relaxed);
    });
    // Loom does not tell.
    let begun = begun.load(Relaxed);
    println!("{begun} runs");
    assert!(begun > 1 && begun == ended.load(Relaxed));
}
