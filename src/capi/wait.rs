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

use super::guard::{self, Answer, Cancellation, Failure, Hold};
use super::vfu_ctx_t;
use crate::server::{Event, Step};
use crate::transport::Wait;
use crate::wire::{Errno, Result};

const _: () = assert!(!needs_drop::<Event>() && !needs_drop::<Step>() && !needs_drop::<Wait>());

/// What a step came to: C's result, or a wait.
enum Next {
    Return(c_int),
    Wait(Wait),
}

impl Failure for Next {
    const FAILED: Next = Next::Return(<c_int as Failure>::FAILED);
}

/// Drives `step`, which has nothing to drop, from an event on until it returns. The
/// thread is not cancelled in a step.
///
/// Nor does a thread of asynchronous cancellation type, for which any instruction of
/// this frame may be the last, meet a landing pad here: the guard has some, and is
/// never inlined; `step` is borrowed since a generic value would have one to be dropped
/// by, in a debug build, though there is nothing to drop.
///
/// # Safety
///
/// `handle` is NULL or a live context, and stays so if the thread is cancelled.
pub(super) unsafe fn drive<F: FnMut(&vfu_ctx_t, Event) -> Step>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    mut event: Event,
    step: &mut F,
) -> c_int {
    const { assert!(!needs_drop::<F>()) };
    loop {
        let cancellation = Cancellation::hold_off();
        // SAFETY: the caller's promise.
        let next = unsafe { guarded(handle, name, event, step) };
        cancellation.restore();
        event = match next {
            Next::Return(value) => {
                if value == c_int::FAILED {
                    guard::end_if_cancelled_and_interrupted();
                }
                return value;
            }
            // SAFETY: the context's own step asked for it just now, and it stays as it is.
            Next::Wait(wait) => Event::Waited(unsafe { wait.perform() }),
        };
    }
}

/// A step of [`drive`], inside the guard.
///
/// # Safety
///
/// `handle` is NULL or a live context.
#[inline(never)]
unsafe fn guarded<F: FnMut(&vfu_ctx_t, Event) -> Step>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    event: Event,
    step: &mut F,
) -> Next {
    // SAFETY: the caller's promise.
    unsafe { guard::enter_held(handle, name, |context| answer(step(context, event))) }
}

/// Like [`drive`], for a function that as a rule does not wait and finds nothing to do:
/// `first` is its first step, and holds off cancellation before it does what may meet
/// one.
///
/// # Safety
///
/// As for [`drive`]; the thread's cancellation type is not asynchronous.
#[inline(always)]
pub(super) unsafe fn drive_late<F: FnMut(&vfu_ctx_t, Event) -> Step>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    first: impl FnOnce(&vfu_ctx_t, &mut Hold) -> Step,
    step: &mut F,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { guard::enter_late(handle, name, |context, hold| answer(first(context, hold))) } {
        Next::Return(value) => value,
        // SAFETY: the context's own step asked for it just now, and it stays as it is.
        Next::Wait(wait) => unsafe { drive(handle, name, Event::Waited(wait.perform()), step) },
    }
}

/// What a step means for the guard.
#[inline(always)]
fn answer(step: Step) -> Result<Answer<Next>> {
    match step {
        Step::Return { value, errno } => {
            Ok(Answer { value: Next::Return(value), errno: errno.map(Errno::number) })
        }
        Step::Fail(errno) => Err(errno),
        Step::Wait(wait) => Ok(Next::Wait(wait).into()),
    }
}
