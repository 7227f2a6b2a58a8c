//! An eventfd that belongs to a client.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::aio::Aio;
use crate::wire::{Errno, Result};

/// What /proc calls every eventfd. A file's name there starts with a slash.
const NAME: &[u8] = b"anon_inode:[eventfd]";
/// How the names of others start, and what a refusal says of them.
const OTHERS: [(&[u8], &str); 9] = [
    (b"/", "a descriptor is that of a file, not an eventfd"),
    (b"pipe:", "a descriptor is that of a pipe, not an eventfd"),
    (b"socket:", "a descriptor is that of a socket, not an eventfd"),
    (b"anon_inode:[timerfd]", "a descriptor is a timerfd, not an eventfd"),
    (b"anon_inode:[signalfd]", "a descriptor is a signalfd, not an eventfd"),
    (b"anon_inode:[eventpoll]", "a descriptor is that of an epoll, not an eventfd"),
    (b"anon_inode:inotify", "a descriptor is that of an inotify, not an eventfd"),
    (b"anon_inode:[pidfd]", "a descriptor is a pidfd, not an eventfd"),
    (b"", "a descriptor is no eventfd"),
];

const NO_AIO: &str =
    "an eventfd without O_NONBLOCK takes the kernel's asynchronous I/O, which is not to be had";
const NO_NAMES: &str =
    "neither /proc nor the kernel's asynchronous I/O is there to tell whether it is an eventfd";

/// An eventfd to add 1 to. Everything but [`new`](Eventfd::new) may be called
/// in a signal handler: the system calls are made without the C library's
/// functions, which are points where a thread may be cancelled.
#[derive(Debug)]
pub struct Eventfd {
    /// -1 once it is closed.
    fd: AtomicI32,
    /// `O_NONBLOCK` was set when it came. We must not set it: the flag is shared
    /// with the client.
    nonblocking: bool,
}

impl Eventfd {
    /// Takes a descriptor; `EINVAL` if it is no eventfd. For one that blocks,
    /// `aio` is made ready, and its failure is this one's.
    pub fn new(fd: OwnedFd, aio: &Aio) -> Result<Eventfd> {
        check_eventfd(fd.as_raw_fd(), aio)?;
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        let nonblocking = flags.contains(OFlag::O_NONBLOCK);
        if !nonblocking {
            aio.prepare().map_err(|errno| errno.because(NO_AIO))?;
        }
        Ok(Eventfd { fd: AtomicI32::new(fd.into_raw_fd()), nonblocking })
    }

    /// Whether adding 1 by [`write`](Self::write) may wait.
    pub fn blocks(&self) -> bool {
        !self.nonblocking
    }

    /// The descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }

    /// Adds 1 to one that does not block. `EAGAIN` if the counter is full.
    #[inline(always)]
    pub fn write(&self) -> Result<()> {
        write_one(self.fd.load(Ordering::Relaxed))
    }

    /// Adds 1. `EAGAIN` if the counter is full; never waits, whatever the client
    /// does to the counter.
    #[inline(always)]
    pub fn signal(&self, aio: &Aio) -> Result<()> {
        match self.nonblocking {
            true => self.write(),
            false => signal_blocking(self.fd.load(Ordering::Relaxed), aio),
        }
    }

    /// Closes it, once.
    pub fn close(&self) {
        let fd = self.fd.swap(-1, Ordering::AcqRel);
        if fd >= 0 {
            // SAFETY: the descriptor is this object's own, and not used again.
            unsafe { libc::syscall(libc::SYS_close, fd) };
        }
    }
}

impl Drop for Eventfd {
    fn drop(&mut self) {
        self.close();
    }
}

/// Adds 1 by write(2), called as the kernel has it: no function of the C library
/// stands between, and `errno` stays as it is.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn write_one(fd: RawFd) -> Result<()> {
    let one = 1_u64;
    let mut result = libc::SYS_write;
    // SAFETY: eight bytes, valid for the call; the kernel changes these registers only.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") fd as isize,
            in("rsi") &raw const one,
            in("rdx") size_of::<u64>(),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, readonly),
        );
    }
    if result < 0 { Err(Errno::new(i32::try_from(-result).unwrap_or(libc::EIO))) } else { Ok(()) }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
fn write_one(fd: RawFd) -> Result<()> {
    let one = 1_u64;
    // SAFETY: eight bytes, valid for the call.
    match unsafe { libc::syscall(libc::SYS_write, fd, &raw const one, size_of::<u64>()) } {
        -1 => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// The kernel's own way of signalling leaves a full counter as it is and says
/// nothing, so it is asked before.
#[cold]
#[inline(never)]
fn signal_blocking(fd: RawFd, aio: &Aio) -> Result<()> {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let no_mask = std::ptr::null::<libc::sigset_t>();
    // SAFETY: one entry and a time, valid for the call.
    match unsafe { libc::syscall(libc::SYS_ppoll, &raw mut entry, 1_usize, &raw const now, no_mask, 8_usize) }
    {
        -1 => Err(Errno::last()),
        0 => Err(Errno::EAGAIN),
        _ if entry.revents & libc::POLLOUT == 0 => Err(Errno::EAGAIN),
        _ => aio.add_one(fd),
    }
}

/// `EINVAL` unless a descriptor is an eventfd. Told without asking the file system that a descriptor may be of, which may
/// be the client's and never answer: by its name in /proc, or, where that is not
/// mounted, by what the kernel's asynchronous I/O says of it.
fn check_eventfd(fd: RawFd, aio: &Aio) -> Result<()> {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    const DIRECTORY: usize = b"/proc/self/fd/".len();
    let mut digits = [0_u8; 10];
    let mut count = 0;
    let mut rest = u32::try_from(fd).map_err(|_| Errno::EBADF)?;
    for digit in &mut digits {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    let places = path.iter_mut().skip(DIRECTORY);
    for (place, digit) in places.zip(digits.iter().take(count).rev()) {
        *place = *digit;
    }
    let mut name = [0_u8; NAME.len() + 2];
    // SAFETY: the path ends in NUL, its last byte in any case; the name has room for that many.
    let length = unsafe { libc::readlink(path.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            let name = name.get(..length).unwrap_or_default();
            let other = OTHERS.iter().find(|(start, _)| name.starts_with(start));
            Errno::EINVAL.unless(name == NAME, other.map_or("", |(_, rule)| *rule))
        }
        Err(_) => {
            aio.prepare().map_err(|errno| errno.because(NO_NAMES))?;
            Errno::EINVAL.unless(aio.is_eventfd(fd)?, "a descriptor is no eventfd")
        }
    }
}
