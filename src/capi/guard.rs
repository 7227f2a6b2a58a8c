//! What stands round every entry point.
//!
//! A panic is a bug of this library and must not take the program down: it is
//! caught, the context is marked broken, the call fails with `EIO`, and so do
//! all later calls on that context but its destruction. A thread cannot be
//! cancelled inside, because unwinding for a cancellation must not meet
//! `catch_unwind`, which would abort the process; the calls that are cheaper
//! than that switch (`enter_lean`, `enter_silent`), and those that find nothing to
//! do (`enter_late`), contain no cancellation point, unless they are refused and
//! log that. A thread of asynchronous cancellation type may only be in the functions
//! that wait: those hold cancellation off outside of the guard (`wait`), and the frames
//! above it have no landing pads.
//!
//! A failure's `errno` is set as the last act, when nothing is left to disturb it.
//!
//! Whatever fails in here logs a line, whether it says why or not: so a new
//! refusal cannot be one without.

use std::any::Any;
use std::ffi::c_int;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use libc::{nfds_t, pollfd};

use super::{cast, vfu_ctx_t};
use crate::wire::{Errno, Result};

/// What a C function returns when it fails.
pub(super) trait Failure {
    const FAILED: Self;
}

impl Failure for c_int {
    const FAILED: c_int = -1;
}

impl Failure for isize {
    const FAILED: isize = -1;
}

impl Failure for usize {
    /// Of an offset in configuration space: 0 is no capability's.
    const FAILED: usize = 0;
}

impl Failure for bool {
    const FAILED: bool = false;
}

impl Failure for () {
    const FAILED: () = ();
}

impl<T> Failure for *mut T {
    const FAILED: *mut T = ptr::null_mut();
}

/// A result for C, and the `errno` that goes with it; `None` leaves it alone.
pub(super) struct Answer<R> {
    pub value: R,
    pub errno: Option<c_int>,
}

impl<R> From<R> for Answer<R> {
    fn from(value: R) -> Answer<R> {
        Answer { value, errno: None }
    }
}

impl<R: Failure> Answer<R> {
    fn failed(errno: Errno) -> Answer<R> {
        Answer { value: R::FAILED, errno: Some(errno.number()) }
    }

    /// The failing result where it is no refusal: it answers what was asked, and
    /// the log need not know.
    pub(super) fn no(errno: Errno) -> Answer<R> {
        Answer::failed(errno)
    }

    /// Back to C: the last act.
    fn give(self) -> R {
        if let Some(number) = self.errno {
            set_errno(number);
        }
        self.value
    }
}

/// Runs `body` for the C function `name` on a context: not broken, panics
/// caught, the thread not to be cancelled.
///
/// # Safety
///
/// `handle` is NULL, which fails with `EINVAL`, or a live context.
pub(super) unsafe fn enter<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> R {
    let cancellation = disable_cancellation();
    // SAFETY: the caller's promise.
    let answer = unsafe { checked(handle, name, logged(name, body)) };
    restore_cancellation(cancellation);
    answer.give()
}

/// Like [`enter`], for a caller that keeps its thread from being cancelled.
///
/// # Safety
///
/// As for [`enter`].
pub(super) unsafe fn enter_held<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> R {
    // SAFETY: the caller's promise.
    unsafe { checked(handle, name, logged(name, body)) }.give()
}

/// `body`, whose refusals are logged.
fn logged<A>(
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> impl FnOnce(&vfu_ctx_t) -> Result<A> {
    move |context| body(context).inspect_err(|errno| context.log_failure(format_args!("{name}"), *errno))
}

/// Like [`enter`], for a function whose refusals are logged with its arguments.
///
/// # Safety
///
/// As for [`enter`].
pub(super) unsafe fn enter_saying<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    call: fmt::Arguments<'_>,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> R {
    let body = |context: &vfu_ctx_t| body(context).inspect_err(|errno| context.log_failure(call, *errno));
    let cancellation = disable_cancellation();
    // SAFETY: the caller's promise.
    let answer = unsafe { checked(handle, name, body) };
    restore_cancellation(cancellation);
    answer.give()
}

/// Like [`enter`], for a `body` that may find nothing to do: it has to call
/// [`Hold::hold`] before it calls anything back or makes a system call that is a
/// cancellation point.
///
/// # Safety
///
/// As for [`enter`].
#[inline(always)]
pub(super) unsafe fn enter_late<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t, &mut Hold) -> Result<A>,
) -> R {
    let mut hold = Hold { before: None };
    let body = |context: &vfu_ctx_t| {
        body(context, &mut hold).inspect_err(|errno| {
            // The program's log function may be a cancellation point.
            hold.hold();
            context.log_failure(format_args!("{name}"), *errno);
        })
    };
    // SAFETY: the caller's promise.
    let answer = unsafe { checked(handle, name, body) };
    if let Some(before) = hold.before {
        restore_cancellation(before);
    }
    answer.give()
}

/// Keeps the calling thread from being cancelled, from some point on.
pub(super) struct Hold {
    before: Option<c_int>,
}

impl Hold {
    /// From now on, until the guard is left.
    pub fn hold(&mut self) {
        if self.before.is_none() {
            self.before = Some(disable_cancellation());
        }
    }
}

/// Like [`enter_saying`], for a `body` of a few nanoseconds, which any thread may
/// run at any rate: it calls nothing back and makes no system call that is a
/// cancellation point. Each rule that is broken is logged once.
///
/// # Safety
///
/// As for [`enter`].
pub(super) unsafe fn enter_lean<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    call: fmt::Arguments<'_>,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> R {
    let mut hold = Hold { before: None };
    let body = |context: &vfu_ctx_t| {
        body(context).inspect_err(|errno| {
            // As above.
            hold.hold();
            context.log_refusal_once(name, call, *errno);
        })
    };
    // SAFETY: the caller's promise.
    let answer = unsafe { checked(handle, name, body) };
    if let Some(before) = hold.before {
        restore_cancellation(before);
    }
    answer.give()
}

/// Like [`enter_lean`], for what cannot be refused, or may not log: a signal handler
/// may call it.
///
/// # Safety
///
/// As for [`enter`].
pub(super) unsafe fn enter_silent<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> R {
    // SAFETY: the caller's promise.
    unsafe { checked(handle, name, body) }.give()
}

/// Like [`enter`], where there is no context (yet, or any longer) that could be
/// broken.
pub(super) fn enter_without_context<R: Failure>(body: impl FnOnce() -> Result<R>) -> R {
    let cancellation = disable_cancellation();
    let answer = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => value.into(),
        Ok(Err(errno)) => Answer::failed(errno),
        Err(_) => Answer::failed(Errno::EIO),
    };
    restore_cancellation(cancellation);
    answer.give()
}

/// # Safety
///
/// As for [`enter`].
unsafe fn checked<R: Failure, A: Into<Answer<R>>>(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    body: impl FnOnce(&vfu_ctx_t) -> Result<A>,
) -> Answer<R> {
    // SAFETY: the caller's promise.
    let context = match unsafe { cast::context(handle) } {
        Ok(context) => context,
        Err(errno) => return Answer::failed(errno),
    };
    if context.is_broken() {
        return Answer::failed(Errno::EIO);
    }
    match catch_unwind(AssertUnwindSafe(|| body(context))) {
        Ok(Ok(answer)) => answer.into(),
        Ok(Err(errno)) => Answer::failed(errno),
        Err(panic) => {
            give_up_context(context, name, panic);
            Answer::failed(Errno::EIO)
        }
    }
}

/// Marks the context broken after a panic and says so, once.
#[cold]
fn give_up_context(context: &vfu_ctx_t, name: &str, panic: Box<dyn Any + Send>) {
    context.mark_broken();
    let reason = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no reason given",
    };
    let line = format_args!("{name}: internal error, the context can only be destroyed: {reason}");
    // What panicked may be the logging: nothing is left to be done then.
    let _ = catch_unwind(AssertUnwindSafe(|| context.log_format(libc::LOG_ERR, line)));
}

const PTHREAD_CANCEL_DISABLE: c_int = 1;

unsafe extern "C-unwind" {
    /// Unwinds the stack if it enables cancellation for a thread of asynchronous
    /// type that has been cancelled in the meantime.
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    /// The same, if it makes the type asynchronous.
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
    /// A cancellation point.
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    /// Nothing else than that.
    fn pthread_testcancel();
}

/// Keeps the calling thread from being cancelled; returns what to restore.
fn disable_cancellation() -> c_int {
    let mut old = 0;
    // SAFETY: old is good for writes; the state is one of the two there are.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
    old
}

/// Called outside of every guard and with nothing left to drop: the thread may
/// end here.
fn restore_cancellation(state: c_int) {
    // SAFETY: state came from disable_cancellation; NULL for a state that is not
    // wanted is fine.
    unsafe { pthread_setcancelstate(state, ptr::null_mut()) };
}

const PTHREAD_CANCEL_DEFERRED: c_int = 0;

/// How a thread can be cancelled: state and type.
pub(super) struct Cancellation {
    state: c_int,
    kind: c_int,
}

impl Cancellation {
    /// Keeps the calling thread from being cancelled, whatever its type; returns what to
    /// restore.
    ///
    /// The type, too, since glibc's handler (2.36) looks at nothing else: a request of
    /// asynchronous type that is on its way when cancellation is disabled would take
    /// effect in the middle of what must not be cut short. And for its time every
    /// cancellation point makes the type asynchronous again, but one of a thread of
    /// deferred type does not return before what is on its way has arrived: so a thread
    /// of asynchronous type goes through one here, where it may end.
    pub(super) fn hold_off() -> Cancellation {
        let mut kind = 0;
        // SAFETY: kind is good for writes; the type is one of the two there are.
        unsafe { pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &mut kind) };
        let state = disable_cancellation();
        if kind != PTHREAD_CANCEL_DEFERRED {
            // SAFETY: there is no entry, and nothing to wait for.
            unsafe { poll(ptr::null_mut(), 0, 0) };
        }
        Cancellation { state, kind }
    }

    /// As [`restore_cancellation`].
    pub(super) fn restore(self) {
        restore_cancellation(self.state);
        if self.kind != PTHREAD_CANCEL_DEFERRED {
            // SAFETY: the type came from hold_off; NULL for a type that is not wanted
            // is fine.
            unsafe { pthread_setcanceltype(self.kind, ptr::null_mut()) };
        }
    }
}

/// Ends the thread, where it has been cancelled, if what it waited in was interrupted. glibc
/// (2.41 and later) lets a call that has moved something come back first, so that
/// it is known how much. Called as [`restore_cancellation`] is.
pub(super) fn end_if_cancelled_and_interrupted() {
    // SAFETY: the pointer is the calling thread's errno, always good for reads.
    if unsafe { *libc::__errno_location() } == libc::EINTR {
        // SAFETY: it takes nothing.
        unsafe { pthread_testcancel() };
    }
}

/// What a function returns that fails where no guard is needed.
#[cold]
#[inline(never)]
pub(super) fn fail<R: Failure>(errno: Errno) -> R {
    Answer::failed(errno).give()
}

/// Sets the calling thread's `errno`.
pub(super) fn set_errno(number: c_int) {
    // SAFETY: the pointer is the calling thread's errno, always good for writes.
    unsafe { *libc::__errno_location() = number };
}
