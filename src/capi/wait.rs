//! The system calls in which a thread waits for the client.
//!
//! A program may cancel a thread that waits here, and then unwinding passes
//! through these frames and through the C function that calls them: they have
//! nothing to drop and stand outside of every guard. So a function that waits is
//! driven step by step. Each step runs inside the guard and ends in a result or
//! in the wish to wait for something; the wait happens out here, and its outcome
//! goes into the next step.

use std::ffi::{c_int, c_short, c_void};
use std::mem::needs_drop;
use std::ptr;

use libc::{msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t};

use super::guard::{self, Answer, Failure, Hold};
use super::vfu_ctx_t;
use crate::server::{Event, Step, Wait};
use crate::wire::{Errno, Result};

const _: () = assert!(!needs_drop::<Event>() && !needs_drop::<Step>() && !needs_drop::<Wait>());

unsafe extern "C-unwind" {
    fn accept4(socket: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    fn recvmsg(socket: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t;
    fn send(socket: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
}

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
            // SAFETY: a wait that the context's own step asked for just now.
            Next::Wait(wait) => unsafe { perform(wait) },
        };
    }
}

/// Waits; what came of it.
///
/// # Safety
///
/// What `wait` points to is good for the system call that it asks for.
unsafe fn perform(wait: Wait) -> Event {
    let result = match wait {
        // SAFETY: no address is wanted.
        Wait::Accept(fd) => unsafe {
            accept4(fd, ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC) as isize
        },
        // SAFETY: the caller's promise.
        Wait::Receive { fd, message } => unsafe { recvmsg(fd, message, libc::MSG_CMSG_CLOEXEC) },
        // SAFETY: the caller's promise.
        Wait::Send { fd, bytes, len } => unsafe { send(fd, bytes.cast(), len, libc::MSG_NOSIGNAL) },
        Wait::Ready(sockets) => return Event::Ready(ready(sockets)),
    };
    Event::Done(usize::try_from(result).map_err(|_| Errno::last()))
}

fn ready(mut sockets: [pollfd; 2]) -> Result<[c_short; 2]> {
    // SAFETY: two entries, good for reads and writes.
    match unsafe { poll(sockets.as_mut_ptr(), 2, -1) } {
        0.. => Ok(sockets.map(|socket| socket.revents)),
        _ => Err(Errno::last()),
    }
}
