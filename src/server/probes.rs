//! Places in a running server that an operator can attach a tracer to: USDT probes
//! (`bpftrace`, `perf`, SystemTap, gdb), of the provider `vfio_user`.
//!
//! Each is one instruction that does nothing, and a note in the library that says
//! where that is and which registers hold the arguments then. So nothing is paid for
//! but the arguments, which are values that are at hand there. `docs/tracing.md` lists
//! them: names and arguments are what scripts rely on.
//!
//! The first argument is always the context, as C's `vfu_ctx_t *`. Arguments are as wide
//! as a register: on processors of 32 bits, addresses and sizes lose their upper half.

use std::ffi::c_void;

use super::{Context, Device};
use crate::dma::DmaRegion;
use crate::wire::{DeviceState, Errno, Header, Result};

#[allow(unused_macros, reason = "replaced where there can be probes")]
macro_rules! fire {
    ($name:ident, $($argument:expr),+) => {{
        let _ = ($($argument),+);
    }};
}

// Where the oldest compiler that compiles the rest has inline assembly, of which a probe
// is made. (An interpreter has none.)
#[cfg(all(
    not(miri),
    any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "riscv32",
        target_arch = "loongarch64",
    )
))]
macro_rules! fire {
    ($name:ident, $($argument:expr),+) => {
        ::probe::probe!(vfio_user, $name, $($argument),+)
    };
}

/// 0, or the errno.
#[inline(always)]
fn number<T>(outcome: &Result<T>) -> i32 {
    outcome.as_ref().err().copied().map_or(0, Errno::number)
}

impl<D: Device> Context<D> {
    #[inline(always)]
    fn address(&self) -> *const c_void {
        (&raw const *self).cast()
    }

    /// A whole message has been taken from what the client sent.
    #[inline(always)]
    pub(super) fn probe_received(&self, header: &Header) {
        fire!(message_received, self.address(), header.msg_id, header.cmd, header.msg_size);
    }

    /// It has been executed, or refused.
    #[inline(always)]
    pub(super) fn probe_executed<T>(&self, header: &Header, outcome: &Result<T>) {
        fire!(message_executed, self.address(), header.msg_id, header.cmd, number(outcome));
    }

    /// Its reply has been sent, or goes out with the others of the call.
    #[inline(always)]
    pub(super) fn probe_replied<T>(&self, header: &Header, outcome: &Result<T>) {
        fire!(message_replied, self.address(), header.msg_id, header.cmd, number(outcome));
    }

    /// A region can be used, and the device knows of it.
    pub(super) fn probe_dma_mapped(&self, region: &DmaRegion) {
        fire!(dma_mapped, self.address(), region.iova, region.size, region.access as u8);
    }

    /// A region is about to go, and the device knows that.
    pub(super) fn probe_dma_unmapped(&self, region: &DmaRegion) {
        fire!(dma_unmapped, self.address(), region.iova, region.size);
    }

    /// The device has triggered a vector. Any thread may call this, and a signal handler.
    #[inline(always)]
    pub(super) fn probe_irq_triggered(&self, vector: u32, outcome: &Result<()>) {
        fire!(irq_triggered, self.address(), vector, number(outcome));
    }

    /// The migration state has become another one.
    pub(super) fn probe_state_changed(&self, from: DeviceState, to: DeviceState) {
        fire!(state_changed, self.address(), from as u32, to as u32);
    }
}
