//! How the functions that wait are driven: there is no other waiting.
//!
//! A thread that waits inside `vfu_run_ctx`, `vfu_attach_ctx`, `vfu_sgl_read` or
//! `vfu_sgl_write` may be cancelled by the program, or get a signal. So the
//! waiting system call is made by the C skin, in a frame with nothing to drop; in
//! between it calls [`Context::run_step`], [`Context::attach_step`] or
//! [`Context::sgl_step`] with what came of it. Between two steps nothing is
//! unfinished that only the next one could finish: it may never come.
//!
//! [`Context::run_step`]: super::Context::run_step
//! [`Context::attach_step`]: super::Context::attach_step
//! [`Context::sgl_step`]: super::Context::sgl_step

use std::ffi::c_short;
use std::os::fd::RawFd;

use crate::wire::{Errno, Result};

/// Why a step is taken.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The function was called.
    Start,
    /// The function was called, and [`Context::poll`](super::Context::poll) has
    /// received something, or failed.
    Received(Result<()>),
    /// The system call that the last [`Step::Wait`] asked for has returned
    /// this. With `EINTR`, a signal arrived.
    Done(Result<usize>),
    /// [`Wait::Ready`] has ended: what each of the two sockets is ready for.
    Ready(Result<[c_short; 2]>),
}

/// What is to be done next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Return.
    Return {
        /// What to return.
        value: i32,
        /// What to set `errno` to; otherwise it is left alone.
        errno: Option<Errno>,
    },
    /// Return -1 with this errno.
    Fail(Errno),
    /// Make a system call that waits, and take the next step with its outcome.
    Wait(Wait),
}

/// A system call that waits.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// `accept4` with `SOCK_CLOEXEC`; the outcome is the new descriptor.
    Accept(RawFd),
    /// `recvmsg` with `MSG_CMSG_CLOEXEC`.
    Receive {
        /// The socket.
        fd: RawFd,
        /// It and what it points to stay valid until the next step.
        message: *mut libc::msghdr,
    },
    /// `send` of so many bytes with `MSG_NOSIGNAL`; they stay valid until the next
    /// step. The outcome is how many were sent: with a signal, perhaps not all.
    Send {
        /// The socket.
        fd: RawFd,
        /// The first of the bytes.
        bytes: *const u8,
        /// How many.
        len: usize,
    },
    /// `poll` until one of two sockets is ready for what is said with it, or has
    /// lost its peer. A descriptor of -1 is none.
    Ready([libc::pollfd; 2]),
}
