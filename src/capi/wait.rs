//! The system calls in which a thread waits for the client.
//!
//! A program may cancel a thread that waits here, and then unwinding passes
//! through these frames and through the C function that calls them: they have
//! nothing to drop and stand outside of every guard. So a function that waits is
//! driven step by step. Each step runs inside the guard and ends in a result or
//! in the wish to wait for something; the wait happens out here, and its outcome
//! goes into the next step.

use std::ffi::c_int;
use std::mem::needs_drop;
use std::ptr;

use libc::{msghdr, nfds_t, pollfd, sockaddr, socklen_t, ssize_t};

use super::guard::{self, Answer, Failure};
use super::vfu_ctx_t;
use crate::server::{Event, Step, Wait};
use crate::wire::{Errno, Result};

const _: () = assert!(!needs_drop::<Event>() && !needs_drop::<Step>() && !needs_drop::<Wait>());

unsafe extern "C-unwind" {
    fn accept4(socket: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    fn recvmsg(socket: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t;
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

/// Drives `step` until it returns.
///
/// # Safety
///
/// `handle` is NULL or a live context, and stays so if the thread is cancelled.
pub(super) unsafe fn drive(
    handle: *mut vfu_ctx_t,
    name: &'static str,
    step: fn(&vfu_ctx_t, Event) -> Step,
) -> c_int {
    let mut event = Event::Start;
    loop {
        // SAFETY: the caller's promise.
        let next = unsafe {
            guard::enter(handle, name, |context| match step(context, event) {
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
            Next::Wait(wait) => Event::Done(unsafe { perform(&wait) }),
        };
    }
}

/// Waits: the number of the new descriptor, of bytes, or of ready descriptors.
///
/// # Safety
///
/// What `wait` points to is good for the system call that it asks for.
unsafe fn perform(wait: &Wait) -> Result<usize> {
    let result = match *wait {
        // SAFETY: no address is wanted.
        Wait::Accept(fd) => unsafe {
            accept4(fd, ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC) as isize
        },
        // SAFETY: the caller's promise.
        Wait::Receive { fd, message } => unsafe { recvmsg(fd, message, libc::MSG_CMSG_CLOEXEC) },
        Wait::Writable(fd) => writable(fd),
    };
    usize::try_from(result).map_err(|_| Errno::last())
}

fn writable(fd: c_int) -> isize {
    let mut entry = pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, good for reads and writes.
    unsafe { poll(&mut entry, 1, -1) as isize }
}
