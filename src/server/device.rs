//! What a device is to the server.

use std::ffi::CStr;

use super::Context;
use crate::dma::RegionId;
use crate::irq::IrqType;
use crate::wire::{DeviceState, Errno, Result};

/// Why a device is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetType {
    /// The client asked for it, or the device failed to quiesce.
    Device = 0,
    /// The client has gone, or the context is being destroyed.
    LostConn = 1,
    /// A function level reset, by the PCI Express capability.
    PciFlr = 2,
}

/// An emulated device: what a [`Context`] calls to serve its client.
///
/// Every method has the context that calls it, to look up guest memory, to
/// trigger interrupts or to set up more; nothing of the context is borrowed
/// meanwhile. All run on the thread that uses the context, [`log`](Device::log)
/// excepted. The device is shared: its own state stands in cells or, where its
/// threads use it too, behind locks or in atomics.
///
/// A method that fails returns the errno that the client is sent. Without an
/// implementation of its own a device has no regions, does not migrate, and
/// needs neither to quiesce nor to reset.
pub trait Device: Sized {
    /// The client reads `data.len()` bytes, at least one, from a region that was
    /// set up for it; `offset` and length are within the region. `data` holds
    /// leftovers of this client's earlier traffic.
    ///
    /// Returns how many bytes of `data` are filled in, from the start on, which
    /// may be less than all; `EINVAL` is made of 0 and of more.
    fn region_read(
        &self,
        context: &Context<Self>,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize> {
        let _ = (context, region, offset, data);
        Err(Errno::EINVAL)
    }

    /// The client writes `data`, at least one byte, to a region; as for
    /// [`region_read`](Device::region_read). The bytes are the request's own
    /// and may be changed.
    ///
    /// Returns how many bytes were taken.
    fn region_write(
        &self,
        context: &Context<Self>,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize> {
        let _ = (context, region, offset, data);
        Err(Errno::EINVAL)
    }

    /// The device is to stop all that relies on what is about to change, DMA
    /// above all, on every thread, until the operation is over.
    ///
    /// `EBUSY`: it needs time, and [`Context::device_quiesced`] is called when
    /// it is done. Any other errno refuses the operation.
    fn quiesce(&self, context: &Context<Self>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// Resets the device, which is quiesced. The server resets nothing itself:
    /// configuration space, DMA regions and interrupts stay. What comes of
    /// [`ResetType::LostConn`] is only logged.
    fn reset(&self, context: &Context<Self>, kind: ResetType) -> Result<()> {
        let _ = (context, kind);
        Ok(())
    }

    /// Whether a reset of the device does something.
    fn can_reset(&self) -> bool {
        true
    }

    /// The client added a DMA region, which can be used already. The device is
    /// quiesced. If this fails, the region goes as if it had never been, and
    /// [`dma_unregister`](Device::dma_unregister) is not called for it.
    fn dma_register(&self, context: &Context<Self>, region: RegionId) -> Result<()> {
        let _ = (context, region);
        Ok(())
    }

    /// A DMA region goes: it can be used until this returns. The device is
    /// quiesced.
    fn dma_unregister(&self, context: &Context<Self>, region: RegionId) {
        let _ = (context, region);
    }

    /// Memory of a DMA region has gone while it was used (its client truncated the
    /// file, say): where it was missed there are zeroes now that the client does not
    /// share. `offset` is where that was noticed first, in bytes from the region's
    /// start. Called once for a region, if the program has [installed] the guard;
    /// the device is not quiesced. What relies on the region is to be failed.
    ///
    /// [installed]: crate::dma::install_guard
    fn dma_lost(&self, context: &Context<Self>, region: RegionId, offset: u64) {
        let _ = (context, region, offset);
    }

    /// The client masked or unmasked `count` vectors from `start` on. Holding
    /// masked interrupts back is up to the device.
    fn irq_state(&self, context: &Context<Self>, kind: IrqType, start: u32, count: u32, mask: bool) {
        let _ = (context, kind, start, count, mask);
    }

    /// Whether the device can migrate: the three methods that follow do
    /// something.
    fn can_migrate(&self) -> bool {
        false
    }

    /// Brings the device, which is quiesced, into a state: one step of the way
    /// to the one that the client asked for.
    ///
    /// `ENOTRECOVERABLE` says that it cannot get back into any valid state: its
    /// state is ERROR then, which only a reset ends.
    fn transition(&self, context: &Context<Self>, state: DeviceState) -> Result<()> {
        let _ = (context, state);
        Err(Errno::EINVAL)
    }

    /// Puts the next part of the device's state into `data`, while state is
    /// saved. Returns the number of bytes; 0: there is no more for now.
    fn migration_read(&self, context: &Context<Self>, data: &mut [u8]) -> Result<usize> {
        let _ = (context, data);
        Err(Errno::EINVAL)
    }

    /// Takes the next part of the device's state, while it resumes; returns the
    /// number of bytes, which is all or `EINVAL`. They may be changed.
    fn migration_write(&self, context: &Context<Self>, data: &mut [u8]) -> Result<usize> {
        let _ = (context, data);
        Err(Errno::EINVAL)
    }

    /// Whether [`save_state`](Device::save_state) and [`load_state`](Device::load_state)
    /// do something. Otherwise what goes to another process is what the device says when
    /// it migrates, if it can.
    fn has_own_state(&self) -> bool {
        false
    }

    /// Another process takes over: what the device there has to know is given to
    /// [`Context::put_state`], in as many calls as one likes. The device is quiesced, and
    /// stays so until [`handed_over`](Device::handed_over).
    fn save_state(&self, context: &Context<Self>) -> Result<()> {
        let _ = context;
        Err(Errno::EINVAL)
    }

    /// Takes what `save_state` of the other process has given, all at once. The DMA
    /// regions are there. The device does not run before
    /// [`handed_over`](Device::handed_over): until then it is the other one's.
    /// `state` is the state of migration that the client has put it into.
    fn load_state(&self, context: &Context<Self>, data: &[u8], state: DeviceState) -> Result<()> {
        let _ = (context, data, state);
        Err(Errno::EINVAL)
    }

    /// It is decided who has the device: this process (`is_ours`), where it runs again, or
    /// runs at last; or the other one, and this one touches nothing any more that both
    /// have. Called once for each attempt, in both, whatever became of it.
    fn handed_over(&self, context: &Context<Self>, is_ours: bool) {
        let _ = (context, is_ours);
    }

    /// A line of log, without a newline at the end, of something that is under
    /// way: the context is not to be used here. `level` is from `LOG_ERR` (3)
    /// to `LOG_DEBUG` (7) of syslog(3), no higher than [`Context::set_log_level`]
    /// allows.
    fn log(&self, context: &Context<Self>, level: i32, line: &CStr) {
        let _ = (context, level, line);
    }
}
