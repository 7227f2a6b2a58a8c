//! What a device's set-up is warned of: it works, and seldom as it was meant.

use super::log::log;
use super::{Context, Device};
use crate::irq::IrqType;
use crate::pci::CapabilityKind;

/// Offset of the PCI Express device capabilities' upper half, and its bit that
/// says that the function can be reset.
const EXPRESS_DEVICE_CAPABILITIES: usize = 6;
const FUNCTION_LEVEL_RESET: u16 = 1 << 12;
/// Message control of MSI and of MSI-X.
const MESSAGE_CONTROL: usize = 2;
const MSI_64_BIT_ADDRESS: u16 = 1 << 7;
const MSIX_TABLE_SIZE: u16 = (1 << 11) - 1;

impl<D: Device> Context<D> {
    /// Looks at capabilities that contradict the rest of the set-up. Called when
    /// that is finished.
    pub(super) fn warn_of_capabilities(&self) {
        if !self.log_enabled(libc::LOG_WARNING) {
            return;
        }
        let word = |kind, at| self.pci.borrow().capability_word(kind, at);
        let express = word(CapabilityKind::Express, EXPRESS_DEVICE_CAPABILITIES);
        if express.is_some_and(|word| word & FUNCTION_LEVEL_RESET != 0) && !self.device.can_reset() {
            log!(self, LOG_WARNING, "a function level reset is offered, and there is no reset callback");
        }
        let msi = word(CapabilityKind::Msi, MESSAGE_CONTROL);
        if msi.is_some_and(|word| word & MSI_64_BIT_ADDRESS == 0) {
            log!(
                self,
                LOG_WARNING,
                "the MSI capability has no 64-bit address: a client finds data and masks elsewhere than in struct msicap"
            );
        }
        if let Some(word) = word(CapabilityKind::MsiX, MESSAGE_CONTROL) {
            let (table, vectors) = (u32::from(word & MSIX_TABLE_SIZE) + 1, self.irqs.count(IrqType::Msix));
            if table != vectors {
                log!(
                    self,
                    LOG_WARNING,
                    "the MSI-X table has {table} entries, and there are {vectors} vectors"
                );
            }
        }
    }

    /// A number of vectors that no PCI device can have.
    pub(super) fn warn_of_vectors(&self, kind: IrqType, count: u32) {
        let most = match kind {
            IrqType::Intx => 1,
            IrqType::Msi => 32,
            IrqType::Msix => 2048,
            IrqType::Err | IrqType::Req => return,
        };
        if count > most {
            log!(self, LOG_WARNING, "{count} vectors of type {kind:?}, of which PCI has {most} at most");
        }
    }

    /// The first region that a client may write and shares no file of.
    #[cold]
    pub(super) fn warn_of_messages(&self, iova: u64, size: u64) {
        if !self.messages_warned.replace(true) {
            log!(
                self,
                LOG_WARNING,
                "DMA region of {size:#x} bytes at {iova:#x} comes without a descriptor and is reached by messages only: \
                 guest memory has to be shared (QEMU: share=on)"
            );
        }
    }
}
