//! Asking the device to be quiet before what it relies on changes.

use super::log::log;
use super::loss::Ask;
use super::regions::{self, RegionFlags};
use super::run::NOT_QUIET;
use super::{Context, Device, ResetType};
use crate::transport::Message;
use crate::wire::{
    Command, Errno, FeatureFlags, RegionAccess, Result, WriteMultiEntry, WriteMultiHead, take,
};

/// What goes on once the device is quiet.
#[derive(Debug)]
pub enum Pending {
    /// A request.
    Message(Box<Message>),
    /// Tearing down a lost connection.
    Loss,
    /// Handing the device over to another process, and whether it is quiet by now.
    HandOver {
        /// It is.
        is_quiet: bool,
    },
}

impl<D: Device> Context<D> {
    /// Whether a request changes something that the device relies on.
    #[inline(always)]
    pub(super) fn asks_quiesce(&self, command: Option<Command>, message: &Message) -> bool {
        match command {
            Some(Command::RegionRead) => false,
            Some(Command::RegionWrite) => match take::<RegionAccess>(message.payload()) {
                Ok((access, data)) if data.len() == access.count as usize => {
                    self.write_resets_function(access.region, access.offset, data)
                }
                _ => false,
            },
            _ => self.seldom_asks_quiesce(command, message.payload()),
        }
    }

    /// Of all but the accesses to a region.
    #[inline(never)]
    fn seldom_asks_quiesce(&self, command: Option<Command>, payload: &[u8]) -> bool {
        match command {
            Some(Command::DmaMap | Command::DmaUnmap) => self.dma_is_ready(),
            Some(Command::DeviceReset) => true,
            Some(Command::RegionWriteMulti) => self.client.get().write_multiple && self.multi_resets(payload),
            Some(Command::DeviceFeature) => self.feature_asks(payload),
            _ => false,
        }
    }

    /// Whether a write starts a function level reset.
    fn write_resets_function(&self, region: u32, offset: u64, data: &[u8]) -> bool {
        if region as usize != regions::CONFIG {
            return false;
        }
        let access = self.regions.borrow().access(region);
        let through_callback = access.is_ok_and(|config| config.flags.contains(RegionFlags::ALWAYS_CB));
        match usize::try_from(offset) {
            Ok(offset) if !through_callback => self.pci.borrow().asks_quiesce(offset, data),
            _ => false,
        }
    }

    fn multi_resets(&self, payload: &[u8]) -> bool {
        let Ok((WriteMultiHead { wr_cnt }, mut rest)) = take::<WriteMultiHead>(payload) else {
            return false;
        };
        for _ in 0..wr_cnt {
            let Ok((entry, behind)) = take::<WriteMultiEntry>(rest) else {
                return false;
            };
            rest = behind;
            let data = entry.data.get(..entry.count as usize).unwrap_or_default();
            if self.write_resets_function(entry.region, entry.offset, data) {
                return true;
            }
        }
        false
    }

    /// Setting the device state, and starting and stopping the log of writes,
    /// if the request is one that will be tried.
    fn feature_asks(&self, payload: &[u8]) -> bool {
        self.check_feature(payload).is_ok_and(|(request, _)| request.operation() == FeatureFlags::SET)
    }

    /// See `vfu_device_quiesced`.
    pub fn device_quiesced(&self, errno: i32) -> Result<()> {
        let pending = self.pending.borrow_mut().take();
        let pending = pending.ok_or_else(|| Errno::EINVAL.because("nothing waits for the device"))?;
        let _busy = self.mark_busy();
        match pending {
            Pending::Message(message) if errno == 0 => {
                let command = Command::from_number(message.header.cmd);
                self.execute(command, message);
            }
            Pending::Message(message) => self.refuse_pending(message, Errno::new(errno)),
            Pending::HandOver { is_quiet: true } => {
                *self.pending.borrow_mut() = Some(Pending::HandOver { is_quiet: true });
                return Err(Errno::EINVAL.because("the device has said already that it is quiet"));
            }
            Pending::HandOver { is_quiet: false } => {
                match errno {
                    0 => *self.pending.borrow_mut() = Some(Pending::HandOver { is_quiet: true }),
                    errno => self.refuse_hand_over(Errno::new(errno)),
                }
                self.update_poller();
                return Ok(());
            }
            Pending::Loss => {
                if errno != 0 {
                    log!(
                        self,
                        LOG_ERR,
                        "device did not quiesce for a lost connection: {}",
                        Errno::new(errno)
                    );
                }
                self.finish_loss();
                self.update_poller();
                return Ok(());
            }
        }
        self.flush();
        // The device has just been asked, so a connection found lost while
        // replying is torn down without asking again.
        let outcome = if self.is_lost() { self.lose_client(Ask::No) } else { Ok(()) };
        self.update_poller();
        outcome
    }

    /// The device could not quiesce: the request fails and the device is reset.
    fn refuse_pending(&self, message: Box<Message>, errno: Errno) {
        let header = message.header;
        self.probe_executed(&header, &Err::<(), _>(errno));
        self.log_failed_request(&header, message.payload(), errno.because(NOT_QUIET));
        drop(message);
        self.answer_error(&header, errno);
        if let Err(errno) = self.reset_device(ResetType::Device) {
            log!(self, LOG_WARNING, "device reset failed: {errno}");
        }
    }
}
