//! How the functions that wait are driven.
//!
//! A thread that waits inside `vfu_run_ctx` or `vfu_attach_ctx` may be
//! cancelled by the program. So the waiting system call is made by the C skin,
//! in a frame with nothing to drop; in between it calls [`Context::run_step`]
//! or [`Context::attach_step`] with what came of it.
//!
//! [`Context::run_step`]: super::Context::run_step
//! [`Context::attach_step`]: super::Context::attach_step

use std::os::fd::RawFd;

use crate::wire::{Errno, Result};

/// Why a step is taken.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The function was called.
    Start,
    /// The system call that the last [`Step::Wait`] asked for has returned
    /// this.
    Done(Result<usize>),
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
    /// `poll` until the socket takes bytes.
    Writable(RawFd),
}
