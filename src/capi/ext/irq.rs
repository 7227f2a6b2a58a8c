//! Interrupts that wait, and those that are not the guest's.

use std::ffi::{c_char, c_int};

use libc::{size_t, ssize_t};

use crate::capi::{RawIrqType, cast, guard, vfu_ctx_t};
use crate::irq::IrqType;
use crate::server::IrqCall;
use crate::wire::Errno;

/// Keeps interrupts that cannot be delivered, until they can.
///
/// @vfu_ctx: the context
///
/// Without this, vfu_irq_trigger() fails with ENOENT while the client has taken a
/// vector's eventfd away (VMMs do that to mask a vector, and before and after
/// migration), and does not heed masks. With it, for INTx, MSI and MSI-X:
///
/// - A trigger of a vector that has no eventfd or is masked succeeds, and is
///   pending: one bit for each vector, as PCI has it. It is delivered when the
///   eventfd comes or the last mask goes.
/// - A vector is masked by the client's SET_IRQS, and all of MSI-X by the Function
///   Mask bit of the capability's Message Control, as far as the library handles
///   it (not with VFU_CAP_FLAG_CALLBACK). The callback of
///   vfu_setup_irq_state_callback() is called as ever.
/// - INTx is as the kernel's VFIO has it: an interrupt masks the line, until the
///   client unmasks it; what is triggered meanwhile is delivered then. The client
///   is told so (MASKABLE, AUTOMASKED).
/// - While no type has an eventfd, a trigger is for the type that configuration
///   space enables, MSI-X or MSI, or else for the first of INTx, MSI-X and MSI
///   with such a vector. vfux_irq_trigger() names the type.
/// - A reset of the device, and the loss of the client, forget what is pending.
///
/// To be called before vfu_realize_ctx().
///
/// Threads: on the thread that uses the context, see the top of libvfio-user.h.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   vfu_realize_ctx() has been called
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_setup_pending_irqs(vfu_ctx: *mut vfu_ctx_t) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe { guard::enter(vfu_ctx, "vfux_setup_pending_irqs", |ctx| ctx.setup_pending_irqs().map(|()| 0)) }
}

/// Triggers an interrupt of a type, ERR and REQ included, which tell the VMM of an
/// error that the device cannot recover from, and ask it to release the device.
///
/// @vfu_ctx: the context
/// @type: enum vfu_dev_irq_type
/// @subindex: the vector
///
/// May be called from any thread while the device is not quiesced, and in signal
/// handlers. It takes no lock, and waits no more than vfu_irq_trigger() does. What is
/// logged of it is as there.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such type, or it has no such vector; vfu_realize_ctx() has not
///            been called
///   ENOENT   the vector has no eventfd, and interrupts of this type are not kept
///            (ERR and REQ never are)
///   EAGAIN   the client has not taken very many interrupts of this vector
///   others   as write() sets it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_irq_trigger(
    vfu_ctx: *mut vfu_ctx_t,
    r#type: RawIrqType,
    subindex: u32,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfux_irq_trigger", |ctx| {
            let outcome = match IrqType::known(r#type) {
                Some(kind) => ctx.irq_trigger_type(kind, subindex),
                None => Err(Errno::EINVAL),
            };
            if outcome == Err(Errno::EINVAL) {
                ctx.note_refusal(IrqCall::TriggerType { kind: r#type, vector: subindex });
            }
            outcome.map(|()| 0)
        })
    }
}

/// Forgets an interrupt that is pending: what it told of is no longer so.
///
/// @vfu_ctx: the context
/// @type: enum vfu_dev_irq_type
/// @subindex: the vector
///
/// A device with INTx calls this when the driver has cleared the cause, or the
/// interrupt is delivered once more when the client unmasks the line.
///
/// May be called from any thread while the device is not quiesced, and in signal
/// handlers. It takes no lock and never waits. What is logged of it is as for
/// vfu_irq_trigger().
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such type, or it has no such vector
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_irq_clear_pending(
    vfu_ctx: *mut vfu_ctx_t,
    r#type: RawIrqType,
    subindex: u32,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfux_irq_clear_pending", |ctx| {
            let kind = IrqType::known(r#type).ok_or(Errno::EINVAL);
            let outcome = kind.and_then(|kind| ctx.irqs().clear_pending(kind, subindex));
            if outcome.is_err() {
                ctx.note_refusal(IrqCall::ClearPending { kind: r#type, vector: subindex });
            }
            outcome.map(|()| 0)
        })
    }
}

/// Reads the pending bit array of MSI-X: for the region access callback of the
/// BAR that the capability says it is in.
///
/// @vfu_ctx: the context
/// @buf: filled in
/// @count: number of bytes
/// @offset: the first byte, from the start of the pending bit array
///
/// The array has a bit for each vector and is a multiple of 8 bytes long. Clients
/// that keep the MSI-X table to themselves, as QEMU does, still read the array
/// from the device. Without vfux_setup_pending_irqs() it is all zeros.
///
/// May be called from any thread while the device is not quiesced, and in signal
/// handlers. It takes no lock and never waits. What is logged of it is as for
/// vfu_irq_trigger().
///
/// Returns count, or -1 and sets errno:
///
///   EINVAL   the bytes are not within the array; buf is NULL
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfux_read_pba(
    vfu_ctx: *mut vfu_ctx_t,
    buf: *mut c_char,
    count: size_t,
    offset: u64,
) -> ssize_t {
    // SAFETY: C's promises: the handle is NULL or a live context, buf NULL or good
    // for count bytes.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfux_read_pba", |ctx| {
            let bytes = cast::bytes_mut(buf, count).ok_or(Errno::EINVAL);
            let outcome = bytes.and_then(|bytes| {
                bytes.fill(0);
                ctx.irqs().read_pba(offset, bytes)
            });
            if outcome.is_err() {
                ctx.note_refusal(IrqCall::ReadPba { offset, count: count as u64 });
            }
            outcome.and_then(|()| ssize_t::try_from(count).map_err(|_| Errno::EINVAL))
        })
    }
}
