//! Serving a device in Rust: what drives the steps of [`step`](super::step).

use super::step::{Event, Step};
use super::transfer::SglAccess;
use super::{Context, Device};
use crate::dma::SgEntry;
use crate::transport::Data;
use crate::wire::{Errno, Result};

impl<D: Device> Context<D> {
    /// Takes on a client: accepts its connection and agrees on the version of
    /// the protocol. Waits for both, unless the context is non-blocking.
    ///
    /// # Errors
    /// The context can attach again after all of them. `EAGAIN`: no client yet,
    /// or its message is not complete; `EINTR`: a signal; `EINVAL`: there is a
    /// client already, or it cannot be agreed with; `ENOMSG`, `ECONNRESET`: the
    /// client left before, or in the middle of, its message; others as accept(2)
    /// and recvmsg(2).
    pub fn attach(&self) -> Result<()> {
        drive_steps(|event| self.attach_step(event)).map(drop)
    }

    /// Serves the client: reads its requests, executes and answers them. A
    /// blocking context does so until one of the errors; a non-blocking one
    /// executes what is there, up to a bound, and says how many requests that
    /// were.
    ///
    /// # Errors
    /// `ENOTCONN`: there is no client, or it has gone; its DMA regions and
    /// interrupts are released and the device was reset. `EBUSY`: the device is
    /// to quiesce and has not said yet that it did; so, too, inside of the
    /// device's methods. `EINTR`: a signal. `EINVAL` before
    /// [`realize`](Context::realize). Others as recvmsg(2).
    pub fn run(&self) -> Result<usize> {
        drive_steps(|event| self.run_step(event))
    }

    /// Moves the bytes of an entry, as many as `data` has, by messages.
    pub(super) fn move_by_messages(&self, entry: &SgEntry, data: Data<'_>) -> Result<()> {
        let access = SglAccess { sgl: &[*entry], cnt: 1, data, flags: 0 };
        let mut transfer = None;
        drive_steps(|event| self.sgl_step(access, &mut transfer, event)).map(drop)
    }

    /// Ends it all: DMA regions are removed and the device is reset, each with
    /// its method; then the client is disconnected and the socket's path removed.
    /// Without this, the device is not told.
    #[allow(clippy::boxed_local, reason = "a context lives in a box")]
    pub fn close(self: Box<Self>) {
        self.tear_down();
    }
}

/// Takes steps until one returns.
fn drive_steps(mut step: impl FnMut(Event) -> Step) -> Result<usize> {
    let mut event = Event::Start;
    loop {
        match step(event) {
            Step::Return { value, .. } => return usize::try_from(value).map_err(|_| Errno::EINVAL),
            Step::Fail(errno) => return Err(errno),
            // SAFETY: the step asked for it just now, and nothing has been done since.
            Step::Wait(wait) => event = Event::Waited(unsafe { wait.perform() }),
        }
    }
}
