//! The context's log.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering};

use super::{Context, Device};
use crate::memory::Bytes;
use crate::wire::Errno;

/// Logs a line to a context. Nothing is formatted unless its level is enabled.
macro_rules! log {
    ($context:expr, $level:ident, $($argument:tt)*) => {
        if $context.log_enabled(libc::$level) {
            $context.log_format(libc::$level, format_args!($($argument)*));
        }
    };
}
pub(super) use log;

/// Which log lines are made.
#[derive(Debug)]
pub struct Log {
    /// Lines above this level are not; -1: none is.
    enabled: AtomicI32,
}

impl Default for Log {
    fn default() -> Log {
        Log { enabled: AtomicI32::new(-1) }
    }
}

fn rule_to_log(errno: Errno) -> Option<&'static str> {
    match (errno.take_rule(), errno) {
        (Some(rule), _) => Some(rule),
        (None, Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOTCONN) => None,
        (None, _) => Some(errno.general_rule()),
    }
}

impl<D: Device> Context<D> {
    /// From now on, lines up to this level, `LOG_EMERG` (0) to `LOG_DEBUG` (7)
    /// of syslog(3), go to [`Device::log`]; None: no lines, as at first.
    pub fn set_log_level(&self, level: Option<i32>) {
        self.log.enabled.store(level.unwrap_or(-1), Ordering::Relaxed);
    }

    /// Whether lines of this level go anywhere.
    pub fn log_enabled(&self, level: i32) -> bool {
        level <= self.log.enabled.load(Ordering::Relaxed)
    }

    /// Hands a line to the device's log, if its level is enabled.
    pub fn log(&self, level: i32, line: &CStr) {
        if self.log_enabled(level) {
            self.device.log(self, level, line);
        }
    }

    /// Logs that the program was refused something, and which rule was broken. What
    /// does not say that is logged as well, unless it is what every event loop meets
    /// all the time.
    #[cold]
    pub fn log_failure(&self, what: fmt::Arguments<'_>, errno: Errno) {
        if let Some(rule) = rule_to_log(errno) {
            log!(self, LOG_ERR, "{what}: {rule}: {errno}");
        }
    }

    /// Logs a refusal of the function `name`, which is called at any rate and on any
    /// thread: each rule that it has once in the life of the context, because it may
    /// be a guest that makes the device break it.
    #[cold]
    pub fn log_refusal_once(&self, name: &'static str, what: fmt::Arguments<'_>, errno: Errno) {
        let Some(rule) = rule_to_log(errno) else { return };
        if self.log_enabled(libc::LOG_ERR) && self.refusals.is_new(name, rule) {
            log!(self, LOG_ERR, "{what}: {rule}: {errno}");
        }
    }

    /// Formats a line and hands it on. One that there is no memory for is lost: what is
    /// formatted takes no other memory.
    #[cold]
    #[inline(never)]
    pub fn log_format(&self, level: i32, arguments: fmt::Arguments<'_>) {
        let errno = nix::errno::Errno::last_raw();
        let mut line = Bytes::default();
        if write!(line, "{arguments}\0").is_ok()
            && let Ok(text) = CStr::from_bytes_with_nul(&line.0)
        {
            self.log(level, text);
        }
        nix::errno::Errno::set_raw(errno);
    }
}
