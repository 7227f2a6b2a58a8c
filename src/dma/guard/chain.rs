//! The handler that was there before ours, and what becomes of a signal that is
//! none of ours: the same as without us.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize};

use crate::wire::{Errno, Result};

type Handler = extern "C-unwind" fn(c_int, *mut libc::siginfo_t, *mut c_void);
type PlainHandler = extern "C-unwind" fn(c_int);

/// What sigaction(2) said of it.
struct Before {
    handler: AtomicUsize,
    flags: AtomicI32,
    mask: AtomicU64,
}

static BEFORE: Before =
    Before { handler: AtomicUsize::new(libc::SIG_DFL), flags: AtomicI32::new(0), mask: AtomicU64::new(0) };

impl Before {
    fn set(&self, action: &libc::sigaction) {
        self.handler.store(action.sa_sigaction, Relaxed);
        self.flags.store(action.sa_flags, Relaxed);
        self.mask.store(first_word(&raw const action.sa_mask), Relaxed);
    }
}

/// The 64 signals that the kernel knows of.
fn first_word(set: *const libc::sigset_t) -> u64 {
    const { assert!(size_of::<libc::sigset_t>() >= size_of::<u64>()) };
    // SAFETY: both callers have a set there, which is at least as large, and of
    // which the kernel writes that much.
    unsafe { set.cast::<u64>().read_unaligned() }
}

fn set_of(word: u64) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: it is large enough, and any bits are a set.
    unsafe {
        set.as_mut_ptr().cast::<u64>().write_unaligned(word);
        set.assume_init()
    }
}

fn sigaction(new: Option<&libc::sigaction>) -> Result<libc::sigaction> {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: null, or an action; and there is room for one.
    if unsafe { libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()) } < 0 {
        return Err(Errno::last());
    }
    // SAFETY: it was filled in.
    Ok(unsafe { old.assume_init() })
}

/// An action, with all signals blocked meanwhile, those of the C library
/// included: nothing may interrupt the handler, or cancel its thread.
fn action(handler: usize, flags: c_int) -> libc::sigaction {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeroes are one.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action.sa_mask = set_of(u64::MAX);
    *action
}

/// Installs a handler, and keeps what was there before.
pub(super) fn put_in_front(handler: Handler) -> Result<()> {
    let before = sigaction(None)?;
    BEFORE.set(&before);
    let kept = match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => libc::SA_ONSTACK | libc::SA_RESTART,
        _ => before.sa_flags & (libc::SA_ONSTACK | libc::SA_RESTART),
    };
    let before = sigaction(Some(&action(handler as usize, libc::SA_SIGINFO | kept)))?;
    // Another thread may have been quicker.
    BEFORE.set(&before);
    Ok(())
}

/// Does with a signal what would have been done without us.
///
/// # Safety
///
/// These are the arguments of a handler of `SIGBUS`, in whose frames there is
/// nothing to drop: the other handler may leave by longjmp(3).
pub(super) unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let flags = BEFORE.flags.load(Relaxed);
    let handler = match flags & libc::SA_RESETHAND {
        0 => BEFORE.handler.load(Relaxed),
        _ => BEFORE.handler.swap(libc::SIG_DFL, SeqCst),
    };
    match handler {
        // SAFETY: the caller's promise.
        libc::SIG_IGN if unsafe { can_be_ignored(info) } => {}
        // SAFETY: the caller's promise.
        libc::SIG_DFL | libc::SIG_IGN => unsafe { die_of_signal(signal, info) },
        handler => {
            // SAFETY: the caller's promise.
            unsafe { set_mask(signal, flags, context) };
            // SAFETY: sigaction(2) had it as a handler of this kind.
            unsafe {
                match flags & libc::SA_SIGINFO {
                    0 => transmute::<usize, PlainHandler>(handler)(signal),
                    _ => transmute::<usize, Handler>(handler)(signal, info, context),
                }
            }
        }
    }
}

/// Whether the kernel would leave it at nothing: not for a fault, which would be
/// repeated for ever.
///
/// # Safety
///
/// As for [`pass_on`].
unsafe fn can_be_ignored(info: *const libc::siginfo_t) -> bool {
    // SAFETY: the caller's promise; null if who passed it on to us has none.
    unsafe { info.as_ref() }.is_none_or(|info| info.si_code <= 0 || info.si_code == libc::BUS_MCEERR_AO)
}

/// Ends the process by the signal, as soon as the handler has returned.
///
/// # Safety
///
/// As for [`pass_on`].
unsafe fn die_of_signal(signal: c_int, info: *const libc::siginfo_t) {
    let _ = sigaction(Some(&action(libc::SIG_DFL, 0)));
    // A fault would come back by itself, but not a signal that somebody sent. It
    // is blocked here.
    // SAFETY: plain system calls; the info is one of the kernel's.
    unsafe {
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        if info.is_null() || libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) < 0 {
            libc::syscall(libc::SYS_tgkill, process, thread, signal);
        }
    }
}

/// Blocks what the kernel would have blocked for the other handler: what the
/// thread had blocked before, what the handler wants blocked, and, unless it
/// does not want that, the signal itself.
///
/// # Safety
///
/// As for [`pass_on`].
unsafe fn set_mask(signal: c_int, flags: c_int, context: *const c_void) {
    let context = context.cast::<libc::ucontext_t>();
    if context.is_null() {
        return;
    }
    // SAFETY: the kernel's.
    let before = first_word(unsafe { &raw const (*context).uc_sigmask });
    let own = if flags & libc::SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
    let mask = set_of(before | BEFORE.mask.load(Relaxed) | own);
    // SAFETY: a set; the old one is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut()) };
}
