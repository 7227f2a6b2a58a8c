//! The error type of the whole library: a Linux errno, which is what both the
//! protocol and the C API speak.
//!
//! Unlike `nix::errno::Errno` it can hold any number: a device callback may
//! fail with a value far above the defined ones, and that value goes to the
//! client unchanged.

use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::num::NonZeroI32;

/// A Linux errno. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroI32);

/// What every fallible function of the library returns.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

macro_rules! known {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "` of errno(3).")]
                pub const $name: Errno = Errno::new(libc::$name);
            )*
        }

        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == Errno::$name { return f.write_str(stringify!($name)); })*
                write!(f, "errno {}", self.0)
            }
        }
    };
}

known!(
    EACCES,
    EADDRINUSE,
    EAGAIN,
    EBADF,
    EBUSY,
    ECONNREFUSED,
    ECONNRESET,
    EEXIST,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    ENAMETOOLONG,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOMSG,
    ENOSPC,
    ENOTCONN,
    ENOTSOCK,
    ENOTRECOVERABLE,
    ENOTSUP,
    ENOTTY,
    EPERM,
    EPIPE,
    EPROTO,
    EPROTONOSUPPORT,
    EPROTOTYPE,
    ETIMEDOUT,
    ETOOMANYREFS,
);

thread_local! {
    /// The rule that was broken last, from where it is found broken to where the
    /// refusal is logged, in the same call: errno's companion, as in C.
    static RULE: Cell<Option<(Errno, &'static str)>> = const { Cell::new(None) };
}

impl Errno {
    /// This errno, for a refusal that says which rule was broken. What logs the
    /// refusal takes it by [`Errno::take_rule`].
    #[cold]
    #[inline(never)]
    pub fn because(self, rule: &'static str) -> Errno {
        RULE.set(Some((self, rule)));
        self
    }

    /// A refusal, unless the rule holds.
    #[inline(always)]
    pub fn unless(self, holds: bool, rule: &'static str) -> Result<()> {
        if holds { Ok(()) } else { Err(self.because(rule)) }
    }

    /// The rule that the refusal with this errno said last, if it said one.
    #[cold]
    pub fn take_rule(self) -> Option<&'static str> {
        RULE.take().filter(|(errno, _)| *errno == self).map(|(_, rule)| rule)
    }

    /// What is said of a failure of which nobody said more.
    #[cold]
    pub fn general_rule(self) -> &'static str {
        match self {
            Errno::ENOMEM => "there is no memory for it",
            Errno::EMFILE => "the process has no descriptors left",
            _ => "the device, or the system, failed",
        }
    }

    /// The errno with this number; 0, which is no error, counts as `EINVAL`.
    pub const fn new(number: i32) -> Errno {
        match NonZeroI32::new(number) {
            Some(n) => Errno(n),
            None => Errno::new(libc::EINVAL),
        }
    }

    /// The number, as it goes into `errno` and onto the wire.
    pub const fn number(self) -> i32 {
        self.0.get()
    }

    /// The calling thread's `errno`.
    pub fn last() -> Errno {
        Errno::new(nix::errno::Errno::last_raw())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `io::Error` says, without the memory that it takes, and without which
        // it ends the process.
        let mut text = [0_u8; 128];
        // SAFETY: text is good for writes of so many bytes.
        unsafe { libc::strerror_r(self.number(), text.as_mut_ptr().cast(), text.len()) };
        let text = CStr::from_bytes_until_nul(&text).ok().and_then(|text| text.to_str().ok());
        write!(f, "{} (os error {})", text.unwrap_or("Unknown error"), self.number())
    }
}

impl std::error::Error for Errno {}

impl From<nix::errno::Errno> for Errno {
    fn from(e: nix::errno::Errno) -> Errno {
        Errno::new(e as i32)
    }
}

impl From<io::Error> for Errno {
    fn from(e: io::Error) -> Errno {
        Errno::new(e.raw_os_error().unwrap_or(libc::EIO))
    }
}
