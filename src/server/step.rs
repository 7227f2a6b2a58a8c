//! How the functions that wait are driven: there is no other waiting.
//!
//! A thread that waits inside `vfu_run_ctx`, `vfu_attach_ctx`, `vfu_sgl_read` or
//! `vfu_sgl_write` may be cancelled by the program, or get a signal. So the
//! waiting system call ([`Wait::perform`]) is made by who called the function, in a
//! frame with nothing to drop; in between that calls [`Context::run_step`], [`Context::attach_step`] or
//! [`Context::sgl_step`] with what came of it. Between two steps nothing is
//! unfinished that only the next one could finish: it may never come.
//!
//! [`Context::run_step`]: super::Context::run_step
//! [`Context::attach_step`]: super::Context::attach_step
//! [`Context::sgl_step`]: super::Context::sgl_step

use crate::transport::{Outcome, Wait};
use crate::wire::{Errno, Result};

/// Why a step is taken.
#[derive(Debug)]
pub enum Event {
    /// The function was called.
    Start,
    /// The function was called, and [`Context::poll`](super::Context::poll) has
    /// received something, or failed.
    Received(Result<()>),
    /// What the last [`Step::Wait`] asked for has ended.
    Waited(Outcome),
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
