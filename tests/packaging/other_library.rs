//! Another static library written in Rust, to be linked next to this one: it
//! has its own copy of the standard library inside, panics and unwinds.

/// Returns 42 by way of a panic that is caught.
#[unsafe(no_mangle)]
pub extern "C" fn other_library() -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    let caught = std::panic::catch_unwind(|| {
        if std::env::args().count() > 0 {
            std::panic::panic_any(42);
        }
    });
    caught.err().and_then(|payload| payload.downcast_ref().copied()).unwrap_or(0)
}
