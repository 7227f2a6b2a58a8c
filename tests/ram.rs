//! The example device in Rust, as a process, driven by the `vfio_user` crate's
//! client, which shares no code with this library.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use vfio_user_client::Client;

const MEMORY: u32 = 0;
const DOORBELL: u32 = 2;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const SET_EVENTFD_TRIGGER: u32 = 4 | 32;

struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where cargo builds examples: beside the folder of the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/ram");
    assert!(path.exists(), "cargo test, or cargo build --examples, builds {}", path.display());
    path
}

#[test]
fn memory_that_is_written_read_copied_to_the_guest_and_reset() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let mut device = Example(Command::new(example()).arg(&socket).spawn().unwrap());
    let mut client = loop {
        match Client::new(&socket) {
            Ok(client) => break client,
            Err(_) => assert!(device.0.try_wait().unwrap().is_none(), "it runs"),
        }
        std::thread::yield_now();
    };
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0x36, 0x1b, 0x10, 0x00]);

    let mut bytes = [1; 8];
    client.region_read(MEMORY, 0xff8, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
    client.region_write(MEMORY, 0xff8, b"12345678").unwrap();
    client.region_read(MEMORY, 0xff8, &mut bytes).unwrap();
    assert_eq!(&bytes, b"12345678");

    let guest = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&guest, 0x4000).unwrap();
    client.dma_map(0, 0x10_0000, 0x4000, guest.as_raw_fd()).unwrap();
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    client.set_irqs(INTX, SET_EVENTFD_TRIGGER, 0, 1, &[event.as_fd().as_raw_fd()]).unwrap();
    client.region_write(DOORBELL, 0, &0x10_1000_u64.to_le_bytes()).unwrap();
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)).unwrap(), 1, "an interrupt");
    assert_eq!(pread(&guest, &mut bytes, 0x1ff8).unwrap(), 8);
    assert_eq!(&bytes, b"12345678");

    client.reset().unwrap();
    client.region_read(MEMORY, 0xff8, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);

    // The next client finds it waiting.
    drop(client);
    let mut client = Client::new(&socket).unwrap();
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0x36, 0x1b, 0x10, 0x00]);
}
