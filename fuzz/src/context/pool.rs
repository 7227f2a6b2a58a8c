//! What a client may send besides bytes.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

/// Name of all memory that is sent.
const NAME: &std::ffi::CStr = c"fuzz-pool";

/// Descriptors that a client may send.
pub struct Pool {
    fds: Vec<OwnedFd>,
}

/// Memory of so many bytes.
pub fn memory(size: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(NAME, flags).expect("memory"));
    file.set_len(size).expect("memory");
    file
}

/// The same memory, opened in another way.
fn again(file: &File, options: &OpenOptions) -> OwnedFd {
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("memory").into()
}

impl Pool {
    pub fn new() -> Pool {
        let (small, large, sealed) = (memory(0x1800), memory(0x10000), memory(0x4000));
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&sealed, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
        let options = OpenOptions::new;
        let read_only = again(&large, options().read(true));
        let write_only = again(&large, options().write(true));
        let path_only = again(&large, options().read(true).custom_flags(libc::O_PATH));
        let event = |flags| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | flags).expect("descriptors").into();
        let (socket, _) = UnixStream::pair().expect("descriptors");
        let (pipe_out, pipe_in) = std::io::pipe().expect("descriptors");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("descriptors");
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).expect("descriptors");
        let on_disk = tempfile::tempfile().expect("a file");
        on_disk.set_len(0x3000).expect("room");
        let fds = vec![
            small.into(),
            large.into(),
            event(EfdFlags::empty()),
            event(EfdFlags::EFD_NONBLOCK),
            read_only,
            socket.into(),
            pipe_out.into(),
            File::open("/dev/null").expect("null").into(),
            pipe_in.into(),
            write_only,
            path_only,
            sealed.into(),
            File::open("/").expect("a folder").into(),
            epoll.0,
            event(EfdFlags::EFD_SEMAPHORE),
            timer.into(),
            on_disk.into(),
            File::open("/dev/zero").expect("zeroes").into(),
        ];
        Pool { fds }
    }

    /// The descriptor with this number; the one after the last is the client's own end.
    pub fn get(&self, number: u8, own: RawFd) -> RawFd {
        self.fds.get(usize::from(number) % (self.fds.len() + 1)).map_or(own, AsRawFd::as_raw_fd)
    }

    /// They are as they were.
    pub fn is_open(&self) -> bool {
        self.fds.iter().all(|fd| fcntl(fd, FcntlArg::F_GETFD).is_ok())
    }
}

/// How many mappings there are of memory that was sent.
pub fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    let name = NAME.to_str().expect("text");
    maps.lines().filter(|line| line.contains(name)).count()
}
