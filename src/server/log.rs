//! The context's log.

use std::ffi::{CStr, c_int};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering};

use parking_lot::RwLock;

use super::Context;
use super::callbacks::LogFn;
use crate::memory::Bytes;
use crate::wire::{Errno, Result};

/// Where log lines go, and which.
#[derive(Debug)]
pub struct Log {
    function: RwLock<Option<LogFn>>,
    /// Lines above this level are not made; -1 while there is no function.
    enabled: AtomicI32,
}

impl Default for Log {
    fn default() -> Log {
        Log { function: RwLock::new(None), enabled: AtomicI32::new(-1) }
    }
}

impl Log {
    /// Sets function and level (0 to 7).
    pub fn set(&self, function: Option<LogFn>, level: c_int) -> Result<()> {
        if !(libc::LOG_EMERG..=libc::LOG_DEBUG).contains(&level) {
            return Err(Errno::EINVAL);
        }
        *self.function.write() = function;
        self.enabled.store(if function.is_some() { level } else { -1 }, Ordering::Relaxed);
        Ok(())
    }

    /// Whether lines of this level go anywhere.
    pub fn enabled(&self, level: c_int) -> bool {
        level <= self.enabled.load(Ordering::Relaxed)
    }
}

impl Context {
    /// Sets where log lines go, and up to which level.
    pub fn setup_log(&self, function: Option<LogFn>, level: c_int) -> Result<()> {
        self.log.set(function, level)
    }

    /// Whether lines of this level go anywhere.
    pub fn log_enabled(&self, level: c_int) -> bool {
        self.log.enabled(level)
    }

    /// Hands a line to the log function, if its level is enabled. `errno` is
    /// the same afterwards. Any thread may call this.
    pub fn log(&self, level: c_int, text: &CStr) {
        if !self.log_enabled(level) {
            return;
        }
        let function = *self.log.function.read();
        if let Some(function) = function {
            let errno = errno_location();
            // SAFETY: errno of the calling thread; the function was given by
            // the program for this use, and the text ends in NUL.
            unsafe {
                let before = *errno;
                function(self.as_vfu_ctx(), level, text.as_ptr());
                *errno = before;
            }
        }
    }

    /// For the `log!` macro: formats a line and hands it on. One that there is no
    /// memory for is lost.
    #[cold]
    #[inline(never)]
    pub(super) fn log_format(&self, level: c_int, arguments: fmt::Arguments<'_>) {
        let errno = errno_location();
        // SAFETY: errno of the calling thread.
        let before = unsafe { *errno };
        let mut line = Bytes::default();
        if write!(line, "{arguments}\0").is_ok()
            && let Ok(text) = CStr::from_bytes_with_nul(&line.0)
        {
            self.log(level, text);
        }
        // SAFETY: as above.
        unsafe { *errno = before };
    }
}

fn errno_location() -> *mut c_int {
    // SAFETY: no preconditions.
    unsafe { libc::__errno_location() }
}

/// Logs a line to a context. Nothing is formatted unless its level is enabled.
macro_rules! log {
    ($context:expr, $level:ident, $($argument:tt)*) => {
        if $context.log_enabled(libc::$level) {
            $context.log_format(libc::$level, format_args!($($argument)*));
        }
    };
}
pub(super) use log;
