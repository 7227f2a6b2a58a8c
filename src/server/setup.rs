//! Setting up a device.

use std::sync::atomic::Ordering;

use super::log::log;
use super::regions::{RegionConfig, RegionFlags};
use super::{Context, Device};
use crate::irq::{IrqType, Irqs};
use crate::pci::{ConfigSpace, PciType};
use crate::wire::{Errno, Result};

impl<D: Device> Context<D> {
    /// Finishes the set-up: configuration space is made, if it is not yet, and
    /// filled in. To be called before a client is served.
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
        self.irqs.make_ready()?;
        drop(pci);
        self.update_irqs();
        self.realized.set(true);
        drop(regions);
        self.warn_of_capabilities();
        Ok(())
    }

    /// Sets up, replaces or clears a region, by its index
    /// (`VFIO_PCI_*_REGION_INDEX`). `EINVAL` for one that cannot be.
    pub fn setup_region(&self, index: u32, config: RegionConfig) -> Result<()> {
        let config_size = self.pci.borrow().space().map(|space| space.len());
        let flags = config.flags;
        let mut regions = self.regions.borrow_mut();
        let pci = self.pci.borrow();
        let before = pci.is_realized().then(|| (regions.bars(), regions.rom_size()));
        regions.setup(index, config, config_size)?;
        if let Some((bars, rom_size)) = before {
            pci.adapt((&bars, rom_size), (&regions.bars(), regions.rom_size()))?;
        }
        drop((regions, pci));
        if flags.contains(RegionFlags::PREFETCH) && !flags.contains(RegionFlags::IS_64_BITS) {
            log!(self, LOG_WARNING, "region {index}: prefetchable, but not 64 bits wide");
        }
        Ok(())
    }

    /// Sets how many interrupts of a type the device has; at first, one ERR, one
    /// REQ, and none of the others. `ENOMEM` if there is no memory for so many.
    pub fn setup_irqs(&self, kind: IrqType, count: u32) -> Result<()> {
        self.warn_of_vectors(kind, count);
        self.irqs.set_count(kind, count)?;
        if kind == IrqType::Intx && self.realized.get() {
            self.pci.borrow().set_interrupt_pin(count != 0)?;
        }
        Ok(())
    }

    /// The device does DMA, with so many regions at the most. `told` says whether
    /// it is told when regions go. Once regions exist it is too late, `EEXIST`, and
    /// once a client has offered memory that nobody wanted, while it is attached: `EINVAL`.
    pub fn setup_dma(&self, max_regions: usize, told: bool) -> Result<()> {
        if !self.dma.is_empty() {
            return Err(Errno::EEXIST.because("there are DMA regions already"));
        }
        let too_late = !self.dma_is_ready() && self.memory_disregarded.get();
        Errno::EINVAL.unless(!too_late, "memory that the client offered has been disregarded")?;
        self.dma.set_limit(max_regions as u64);
        self.set_told_of_unmaps(told);
        self.dma_ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Chooses whether only memory is taken that the client cannot take away again.
    /// Once regions exist it is too late: `EEXIST`.
    pub fn set_lasting_memory_only(&self, lasting: bool) -> Result<()> {
        if !self.dma.is_empty() {
            return Err(Errno::EEXIST.because("there are DMA regions"));
        }
        self.dma.set_lasting_only(lasting);
        Ok(())
    }

    /// The device can migrate, from now on: it runs.
    pub fn setup_migration(&self) {
        self.migration.begin();
    }

    /// See `vfux_setup_pending_irqs`.
    pub fn setup_pending_irqs(&self) -> Result<()> {
        self.irqs.latch()
    }

    /// The interrupts, for any thread.
    pub fn irqs(&self) -> &Irqs {
        &self.irqs
    }

    /// Tells the interrupts what configuration space says of them, where that
    /// matters.
    pub(super) fn update_irqs(&self) {
        if self.irqs.is_latching() {
            let (enabled, masked) = self.pci.borrow().interrupt_state();
            self.irqs.set_function_state(enabled, masked);
        }
    }

    /// [`irq_trigger`](Self::irq_trigger) where it is a matter of one write to an
    /// eventfd, and the context is sound. `None`: nothing was done. Cannot panic.
    #[inline(always)]
    pub(crate) fn irq_trigger_usual(&self, vector: u32) -> Option<Result<()>> {
        let outcome = if self.is_broken() { None } else { self.irqs.trigger_usual(vector) }?;
        self.probe_irq_triggered(vector, &outcome);
        Some(outcome)
    }

    /// See `vfu_irq_trigger`. Any thread may call this, and a signal handler.
    pub(crate) fn irq_trigger(&self, vector: u32) -> Result<()> {
        let outcome = self.irqs.trigger(vector);
        self.probe_irq_triggered(vector, &outcome);
        outcome
    }

    /// See `vfux_irq_trigger`. Any thread may call this, and a signal handler.
    pub(crate) fn irq_trigger_type(&self, kind: IrqType, vector: u32) -> Result<()> {
        let outcome = self.irqs.trigger_type(kind, vector);
        self.probe_irq_triggered(vector, &outcome);
        outcome
    }

    /// Makes configuration space, once. The only header type is 0; the revision
    /// is not looked at.
    pub fn pci_init(&self, kind: PciType, hdr_type: i32, revision: i32) -> Result<()> {
        self.pci.borrow_mut().init(kind, hdr_type, revision)?;
        self.regions.borrow_mut().set_config_size(kind.config_size());
        Ok(())
    }

    /// Sets vendor, device, and their subsystem ids.
    pub fn pci_set_id(&self, vid: u16, did: u16, ssvid: u16, ssid: u16) {
        // Without configuration space there is nothing to write to.
        let _ = self.pci.borrow().set_id(vid, did, ssvid, ssid);
    }

    /// Sets class, subclass and programming interface.
    pub fn pci_set_class(&self, base: u8, sub: u8, pi: u8) {
        let _ = self.pci.borrow().set_class(base, sub, pi);
    }

    /// Configuration space, once there is one.
    pub(crate) fn with_config_space<T>(&self, f: impl FnOnce(&ConfigSpace) -> T) -> Option<T> {
        self.pci.borrow().space().map(f)
    }

    /// See `vfu_pci_add_capability`; `data` gives the bytes of the capability.
    pub fn pci_add_capability(&self, pos: usize, flags: i32, data: &dyn Fn(usize) -> u8) -> Result<usize> {
        let config = self.regions.borrow().access(super::regions::CONFIG as u32)?;
        let added = self.pci.borrow_mut().add_capability(pos, flags, config.has_callback, data)?;
        self.update_irqs();
        log!(self, LOG_DEBUG, "added capability at {added:#x}");
        Ok(added)
    }

    /// See `vfu_pci_find_capability`.
    pub fn pci_find_capability(&self, extended: bool, id: i32) -> Result<usize> {
        self.pci.borrow().find_capability(extended, id)
    }

    /// See `vfu_pci_find_next_capability`.
    pub fn pci_find_next_capability(&self, extended: bool, pos: usize, id: i32) -> Result<usize> {
        self.pci.borrow().find_next_capability(extended, pos, id)
    }
}
