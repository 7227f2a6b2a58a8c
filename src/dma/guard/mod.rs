//! The guard against memory that goes away under us: a process-wide handler of
//! `SIGBUS`, installed only when asked for.
//!
//! A client that truncates a file, or shares one that a full file system has no
//! room for, makes our next access fault. The handler finds the region by the
//! address (`table`), puts zeroed memory there, marks the region lost and tells
//! its address space (`news`). Whatever else the signal may mean goes to the
//! handler that was there before (`chain`).
//!
//! All that the handler does is async-signal-safe: it takes no lock, waits for
//! nobody, and makes system calls that are no cancellation points.

mod chain;
mod news;
mod table;

use std::ffi::{c_int, c_void};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use nix::errno::Errno as SystemErrno;
use parking_lot::Mutex;

pub(super) use news::Mailbox;
pub(super) use table::{Range, Watched, watch};

use crate::wire::Result;

static ON: AtomicBool = AtomicBool::new(false);

/// Whether regions that are mapped from now on are to be watched.
#[inline(always)]
pub(super) fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Installs the handler, once for the process and for good. Regions that are
/// mapped from then on, in whatever address space, are guarded; doing it again
/// does nothing. Any thread may call this.
///
/// # Errors
/// `ENOMEM`; the errno of sigaction(2).
pub fn install() -> Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock();
    if !ON.load(Acquire) {
        table::make();
        chain::put_in_front(on_sigbus)?;
        ON.store(true, Release);
    }
    Ok(())
}

extern "C-unwind" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = SystemErrno::last_raw();
    // SAFETY: the kernel's, or who passes a signal on to us; null, or what came
    // with the signal.
    let is_mended = match unsafe { info.as_ref() } {
        // Somebody's kill(2), and memory that the machine has lost, are for others.
        Some(info) if info.si_code == libc::BUS_ADRERR => {
            // SAFETY: with this code there is an address.
            table::mend(unsafe { info.si_addr() }.addr())
        }
        _ => false,
    };
    SystemErrno::set_raw(errno);
    if !is_mended {
        // SAFETY: what the kernel gave us; nothing here has anything to drop.
        unsafe { chain::pass_on(signal, info, context) };
    }
}
