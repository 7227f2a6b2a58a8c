//! Interrupts.

use std::ffi::c_int;

use super::{RawIrqType, cast, guard, vfu_ctx_t, vfu_dev_irq_state_cb_t};
use crate::irq::IrqType;
use crate::server::IrqCall;
use crate::wire::Errno;

/// Says how many vectors of a type of interrupt the device has. At first: one
/// ERR, one REQ, none of the others.
///
/// @vfu_ctx: the context
/// @type: enum vfu_dev_irq_type
/// @count: number of vectors
///
/// To be called before vfu_realize_ctx(). Afterwards it still works: it sets the
/// interrupt pin register if it is INTx whose number changes, and vectors that are
/// no longer there lose their eventfds. But a client that has asked already does
/// not learn of it.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such type
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_device_nr_irqs(
    vfu_ctx: *mut vfu_ctx_t,
    r#type: RawIrqType,
    count: u32,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        let call = format_args!("vfu_setup_device_nr_irqs: type {type}, count {count}", type = r#type);
        guard::enter_saying(vfu_ctx, "vfu_setup_device_nr_irqs", call, |ctx| {
            ctx.setup_irqs(IrqType::from_index(r#type)?, count)?;
            Ok(0)
        })
    }
}

/// Chooses the function that is told when the client masks or unmasks
/// interrupts of a type.
///
/// Clients mask and unmask INTx although its interrupt information says only that
/// it takes an eventfd: QEMU unmasks it at the end of each interrupt.
///
/// @vfu_ctx: the context
/// @type: enum vfu_dev_irq_type
/// @cb: the function; NULL: nobody is told
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such type
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_setup_irq_state_callback(
    vfu_ctx: *mut vfu_ctx_t,
    r#type: RawIrqType,
    cb: vfu_dev_irq_state_cb_t,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        let call = format_args!("vfu_setup_irq_state_callback: type {type}", type = r#type);
        guard::enter_saying(vfu_ctx, "vfu_setup_irq_state_callback", call, |ctx| {
            let callback = ctx.device().irq_state.get(r#type as usize);
            callback.ok_or_else(|| Errno::EINVAL.because("there is no such interrupt type"))?.set(cb);
            Ok(0)
        })
    }
}

/// Triggers an interrupt, of the type that the client has enabled: MSI-X, MSI or
/// INTx. ERR and REQ cannot be triggered.
///
/// @vfu_ctx: the context
/// @subindex: the vector
///
/// May be called from any thread while the device is not quiesced, and in signal
/// handlers. It takes no lock and does not wait, except for a client that breaks
/// the rules of eventfds on purpose: one that clears O_NONBLOCK of an eventfd that
/// it has handed over, and fills its counter, holds triggers of that vector until
/// it reads the counter, or a signal comes.
///
/// Masks are the device's business: what the client masked is told by the callback
/// of vfu_setup_irq_state_callback(), and an interrupt that is triggered all the
/// same is delivered.
///
/// As a signal handler must not log, the next vfu_run_ctx() does it where this fails
/// with EINVAL. The other errors are the client's doing, and are not logged.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no type of interrupt has such a vector; vfu_realize_ctx() has not
///            been called
///   ENOENT   the client has not enabled the vector
///   EAGAIN   the client has not taken very many interrupts of this vector
///   others   as write() sets it
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_irq_trigger(vfu_ctx: *mut vfu_ctx_t, subindex: u32) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    let usual = unsafe { cast::context(vfu_ctx) }.ok().and_then(|ctx| ctx.irq_trigger_usual(subindex));
    match usual {
        Some(Ok(())) => 0,
        Some(Err(errno)) => guard::fail(errno),
        // SAFETY: as above.
        None => unsafe { trigger_guarded(vfu_ctx, subindex) },
    }
}

/// # Safety
///
/// The handle is NULL or a live context.
#[cold]
#[inline(never)]
unsafe fn trigger_guarded(vfu_ctx: *mut vfu_ctx_t, subindex: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfu_irq_trigger", |ctx| {
            ctx.irq_trigger(subindex).map(|()| 0).inspect_err(|errno| {
                if *errno == Errno::EINVAL {
                    ctx.note_refusal(IrqCall::Trigger { vector: subindex });
                }
            })
        })
    }
}
