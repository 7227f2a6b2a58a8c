//! The end of a connection, and of a context.

use super::context::Phase;
use super::log::log;
use super::quiesce::Pending;
use super::{Context, Device, ResetType};
use crate::wire::{Errno, Result};

/// Whether the device is asked to quiesce before a connection is torn down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Yes,
    No,
}

impl<D: Device> Context<D> {
    /// Whether the connection was found lost and still has to be torn down.
    pub(super) fn is_lost(&self) -> bool {
        self.with_connection(|connection| connection.lost()).unwrap_or(false)
    }

    /// The connection is lost: tears it down, or has that done once the device
    /// is quiet, which is `EBUSY`.
    pub(super) fn lose_client(&self, ask: Ask) -> Result<()> {
        self.log_loss();
        self.with_connection(|connection| connection.set_lost());
        if ask == Ask::Yes {
            match self.device.quiesce(self) {
                Ok(()) => {}
                Err(Errno::EBUSY) => {
                    *self.pending.borrow_mut() = Some(Pending::Loss);
                    return Err(Errno::EBUSY);
                }
                Err(errno) => {
                    log!(self, LOG_ERR, "device did not quiesce for a lost connection: {errno}");
                }
            }
        }
        self.finish_loss();
        Ok(())
    }

    /// One line for each client that goes: with what is cut off by that.
    #[cold]
    fn log_loss(&self) {
        let cut_off = self.with_connection(|connection| (connection.partial(), connection.has_unsent()));
        let ((received, size), unsent) = cut_off.unwrap_or_default();
        let unsent = if unsent { ", with replies that it has not taken" } else { "" };
        match (received, size) {
            (0, _) => log!(self, LOG_INFO, "client lost{unsent}"),
            (_, None) => {
                log!(self, LOG_INFO, "client lost after {received} bytes of a message's header{unsent}");
            }
            (_, Some(size)) => {
                log!(self, LOG_INFO, "client lost after {received} bytes of a message of {size}{unsent}");
            }
        }
    }

    /// Tears a lost connection down; the device is quiet.
    pub(super) fn finish_loss(&self) {
        self.release_device();
        self.close_connection();
        self.loss_unreported.set(true);
    }

    /// Takes away from the device what was the client's.
    fn release_device(&self) {
        self.remove_dma_regions(0, u64::MAX);
        self.dma.logging_stop();
        // One that another process has is not ours to reset.
        if !self.is_elsewhere.get()
            && let Err(errno) = self.device.reset(self, ResetType::LostConn)
        {
            log!(self, LOG_WARNING, "reset for a lost connection failed: {errno}");
        }
        self.irqs.close_all();
        // Configuration space outlives the client, and so does what it masks.
        self.update_irqs();
        self.dma.give_back();
    }

    /// Closes the connection's sockets; what lies unread in them is taken out
    /// first.
    pub(super) fn close_connection(&self) {
        if let Some(poller) = self.poller.borrow_mut().as_mut() {
            poller.forget_sockets();
        }
        self.phase.set(Phase::Idle);
        self.memory_disregarded.set(false);
        let connection = self.connection.borrow_mut().take();
        drop(connection);
    }

    /// What `vfu_destroy_ctx` does before the context itself goes; the quiesce
    /// callback is not called. Says whether it may go: not from inside a
    /// callback, which has to return into the context.
    pub fn tear_down(&self) -> bool {
        if self.busy.get() {
            log!(self, LOG_ERR, "a context cannot be destroyed by its own callback");
            return false;
        }
        let _busy = self.mark_busy();
        self.end_hand_over();
        let pending = self.pending.borrow_mut().take();
        drop(pending);
        self.release_device();
        self.close_connection();
        true
    }
}
