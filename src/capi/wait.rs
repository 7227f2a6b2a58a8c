//! How the functions that wait for the client are driven.
//!
//! A program may cancel a thread that waits here, and then unwinding passes
//! through these frames and through the C function that calls them: they have
//! nothing to drop and stand outside of every guard. So a function that waits is
//! driven step by step. Each step runs inside the guard and ends in a result or
//! in the wish to wait for something; the wait happens out here, and its outcome
//! goes into the next step.

use std::ffi::c_int;
use std::mem::needs_drop;

use super::guard::{self, Answer, Failure, Hold};
use super::vfu_ctx_t;
use crate::server::{Event, Step};
use crate::transport::Wait;
use crate::wire::Errno;

const _: () = assert!(!needs_drop::<Event>() && !needs_drop::<Step>() && !needs_drop::<Wait>());

/// What a step came to: C's result, or a wait.
enum Next {
    Return(c_int),
    Wait(Wait),
}

impl Failure for Next {
    const FAILED: Next = Next::Return(-1);
}

/// Drives `step`, which has nothing to drop, until it returns. It is told the
/// event, and holds off cancellation before it does what may meet one.
///
/// # Safety
///
/// `handle` is NULL or a live context, and stays so if the thread is cancelled.
#[inline(always)]
pub(super) unsafe fn drive<F: FnMut(&vfu_ctx_t, Event, &mut Hold) -> Step>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    mut step: F,
) -> c_int {
    const { assert!(!needs_drop::<F>()) };
    let mut event = Event::Start;
    loop {
        // SAFETY: the caller's promise.
        let next = unsafe {
            guard::enter_late(handle, name, |context, hold| match step(context, event, hold) {
                Step::Return { value, errno } => {
                    Ok(Answer { value: Next::Return(value), errno: errno.map(Errno::number) })
                }
                Step::Fail(errno) => Err(errno),
                Step::Wait(wait) => Ok(Next::Wait(wait).into()),
            })
        };
        event = match next {
            Next::Return(value) => return value,
            // SAFETY: the context's own step asked for it just now, and it stays as it is.
            Next::Wait(wait) => Event::Waited(unsafe { wait.perform() }),
        };
    }
}
