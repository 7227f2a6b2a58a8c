//! Setting up a device.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use super::Context;
use super::callbacks::{
    DmaFn, IrqStateFn, MigrationCallbacks, QuiesceFn, ReadDataFn, ResetFn, TransitionFn, WriteDataFn,
};
use super::log::log;
use super::regions::{RegionConfig, RegionFlags};
use crate::irq::IrqType;
use crate::pci::PciType;
use crate::wire::{Errno, Result};

/// The only version of the migration callbacks: `VFU_MIGR_CALLBACKS_VERS`.
const MIGRATION_CALLBACKS_VERSION: c_int = 2;

impl Context {
    /// See `vfu_realize_ctx`.
    pub fn realize(&self) -> Result<()> {
        if self.realized.get() {
            return Ok(());
        }
        let mut regions = self.regions.borrow_mut();
        let mut pci = self.pci.borrow_mut();
        let size = regions.realize_config();
        let size = pci.ensure_space(size)?;
        regions.set_config_size(size);
        pci.realize(&regions.bars(), self.irqs.count(IrqType::Intx))?;
        self.irqs.make_ready();
        self.realized.set(true);
        Ok(())
    }

    /// See `vfu_setup_region`.
    pub fn setup_region(&self, index: c_int, config: RegionConfig) -> Result<()> {
        let config_size = self.pci.borrow().space().map(|space| space.len());
        self.regions.borrow_mut().setup(index, &config, config_size)?;
        let flags = RegionFlags::from_bits_retain(config.flags.unsigned_abs());
        if flags.contains(RegionFlags::PREFETCH) && !flags.contains(RegionFlags::IS_64_BITS) {
            log!(self, LOG_WARNING, "region {index}: prefetchable, but not 64 bits wide");
        }
        Ok(())
    }

    /// See `vfu_setup_device_reset_cb`.
    pub fn setup_reset(&self, callback: Option<ResetFn>) {
        self.callbacks.reset.set(callback);
    }

    /// See `vfu_setup_device_quiesce_cb`.
    pub fn setup_quiesce(&self, callback: Option<QuiesceFn>) {
        self.callbacks.quiesce.set(callback);
    }

    /// See `vfu_setup_device_nr_irqs`.
    pub fn setup_irqs(&self, kind: u32, count: u32) -> Result<()> {
        self.irqs.set_count(IrqType::from_index(kind)?, count);
        Ok(())
    }

    /// See `vfu_setup_irq_state_callback`.
    pub fn setup_irq_state(&self, kind: u32, callback: Option<IrqStateFn>) -> Result<()> {
        let cell = self.callbacks.irq_state.get(kind as usize).ok_or(Errno::EINVAL)?;
        cell.set(callback);
        Ok(())
    }

    /// See `vfu_setup_device_dma`. Once regions exist it is too late:
    /// `EEXIST`.
    pub fn setup_dma(
        &self,
        max_regions: usize,
        register: Option<DmaFn>,
        unregister: Option<DmaFn>,
    ) -> Result<()> {
        if !self.dma.is_empty() {
            return Err(Errno::EEXIST);
        }
        self.dma.set_limit(max_regions as u64);
        self.callbacks.dma_register.set(register);
        self.callbacks.dma_unregister.set(unregister);
        self.set_told_of_unmaps(unregister.is_some());
        self.dma_ready.store(true, Ordering::Release);
        Ok(())
    }

    /// See `vfu_setup_device_migration_callbacks`.
    pub fn setup_migration(
        &self,
        version: c_int,
        transition: Option<TransitionFn>,
        read_data: Option<ReadDataFn>,
        write_data: Option<WriteDataFn>,
    ) -> Result<()> {
        let (MIGRATION_CALLBACKS_VERSION, Some(transition), Some(read_data), Some(write_data)) =
            (version, transition, read_data, write_data)
        else {
            return Err(Errno::EINVAL);
        };
        self.callbacks.migration.set(Some(MigrationCallbacks { transition, read_data, write_data }));
        self.migration.reset();
        Ok(())
    }

    /// See `vfu_irq_trigger`. Any thread may call this.
    pub fn irq_trigger(&self, vector: u32) -> Result<()> {
        self.irqs.trigger(vector)
    }

    /// See `vfu_pci_init`.
    pub fn pci_init(&self, kind: u32, hdr_type: c_int, revision: c_int) -> Result<()> {
        let kind = PciType::from_number(kind).ok_or(Errno::EINVAL)?;
        self.pci.borrow_mut().init(kind, hdr_type, revision)?;
        self.regions.borrow_mut().set_config_size(kind.config_size());
        Ok(())
    }

    /// See `vfu_pci_set_id`.
    pub fn pci_set_id(&self, vid: u16, did: u16, ssvid: u16, ssid: u16) {
        // Without configuration space there is nothing to write to.
        let _ = self.pci.borrow().set_id(vid, did, ssvid, ssid);
    }

    /// See `vfu_pci_set_class`.
    pub fn pci_set_class(&self, base: u8, sub: u8, pi: u8) {
        let _ = self.pci.borrow().set_class(base, sub, pi);
    }

    /// Configuration space, or null before there is one.
    pub fn pci_config_space(&self) -> *mut u8 {
        self.pci.borrow().space().map_or(std::ptr::null_mut(), |space| space.as_ptr())
    }

    /// See `vfu_pci_add_capability`; `data` gives the bytes of the capability.
    pub fn pci_add_capability(&self, pos: usize, flags: c_int, data: &dyn Fn(usize) -> u8) -> Result<usize> {
        let config = self.regions.borrow().access(super::regions::CONFIG as u32)?;
        let added = self.pci.borrow_mut().add_capability(pos, flags, config.callback.is_some(), data)?;
        log!(self, LOG_DEBUG, "added capability at {added:#x}");
        Ok(added)
    }

    /// See `vfu_pci_find_capability`.
    pub fn pci_find_capability(&self, extended: bool, id: c_int) -> Result<usize> {
        self.pci.borrow().find_capability(extended, id)
    }

    /// See `vfu_pci_find_next_capability`.
    pub fn pci_find_next_capability(&self, extended: bool, pos: usize, id: c_int) -> Result<usize> {
        self.pci.borrow().find_next_capability(extended, pos, id)
    }
}
