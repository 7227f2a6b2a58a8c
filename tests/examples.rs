//! The example devices in C, driven by the `vfio_user` crate's client, which
//! shares no code with this library.
//!
//! The examples are compiled here against cargo's library and the public
//! headers, as a device author would.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vfio_user_client::Client;

const BAR0: u32 = 0;
const BAR2: u32 = 2;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const MSIX: u32 = 2;
const SET_EVENTFD_TRIGGER: u32 = 4 | 32;

/// Where the examples and the header folder are built, once for all tests.
static BUILT: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("include"), folder.path().join("vfio-user")).unwrap();
    symlink(library(), folder.path().join("libvfio-user.so.0")).unwrap();
    for (name, sources) in [
        ("null", &["null.c"][..]),
        ("gpio-idio-16", &["gpio-idio-16.c"]),
        (
            "nvme",
            &[
                "nvme/admin.c",
                "nvme/features.c",
                "nvme/identify.c",
                "nvme/identity.c",
                "nvme/io.c",
                "nvme/memory.c",
                "nvme/migration.c",
                "nvme/namespace.c",
                "nvme/nvme.c",
                "nvme/queues.c",
                "nvme/registers.c",
                "nvme/reset.c",
                "nvme/upgrade.c",
                "nvme/work.c",
            ],
        ),
        (
            "dma-engine",
            &[
                "dma-engine.c",
                "dma-engine-load.c",
                "dma-engine-migration.c",
                "dma-engine-registers.c",
                "dma-engine-save.c",
                "dma-engine-upgrade.c",
                "dma-engine-work.c",
            ],
        ),
    ] {
        let status = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(folder.path())
            .args(sources.iter().map(|source| root.join("examples-c").join(source)))
            .arg(folder.path().join("libvfio-user.so.0"))
            .arg(format!("-Wl,-rpath,{}", folder.path().display()))
            .arg("-o")
            .arg(folder.path().join(name))
            .status();
        assert!(status.unwrap().success(), "{name} compiles");
    }
    folder
});

fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let candidates = [deps.join("libvfio_user.so"), deps.parent().unwrap().join("libvfio_user.so")];
    candidates.into_iter().find(|path| path.exists()).expect("cargo built the library")
}

/// A running example.
struct Device {
    process: Child,
    folder: TempDir,
}

impl Device {
    fn start(name: &str, options: &[&str]) -> Device {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let mut process = Command::new(BUILT.path().join(name))
            .args(options)
            .arg(format!("--socket-path={}", socket.display()))
            .spawn()
            .unwrap();
        await_listener(&mut process, &socket);
        Device { process, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn connect(&self) -> Client {
        Client::new(&self.socket()).unwrap()
    }

    /// Ends it with a signal: cleanly, and the socket is gone.
    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(!self.socket().exists());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until a process listens. Its socket is there a moment before: such a
/// connection is refused. One that is made is ended at once, which the examples
/// take for a client that has left again.
fn await_listener(process: &mut Child, socket: &Path) {
    while UnixStream::connect(socket).is_err() {
        assert!(process.try_wait().unwrap().is_none(), "it runs");
        std::thread::yield_now();
    }
}

fn read<const N: usize>(client: &mut Client, region: u32, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    client.region_read(region, offset, &mut bytes).unwrap();
    bytes
}

fn read_u32(client: &mut Client, region: u32, offset: u64) -> u32 {
    u32::from_le_bytes(read(client, region, offset))
}

fn write_u32(client: &mut Client, region: u32, offset: u64, value: u32) {
    client.region_write(region, offset, &value.to_le_bytes()).unwrap();
}

/// An eventfd assigned to a vector.
fn arm(client: &mut Client, index: u32, vector: u32) -> EventFd {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    client.set_irqs(index, SET_EVENTFD_TRIGGER, vector, 1, &[event.as_fd().as_raw_fd()]).unwrap();
    event
}

/// Waits for an interrupt. The limit only keeps a failing test from hanging.
fn wait(event: &EventFd) {
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)).unwrap(), 1, "an interrupt");
    assert_eq!(event.read().unwrap(), 1);
}

fn run(name: &str, arguments: &[&str]) -> Output {
    Command::new(BUILT.path().join(name)).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn each_explains_itself_and_refuses_nonsense() {
    for name in ["null", "gpio-idio-16", "dma-engine"] {
        let help = run(name, &["--help"]);
        assert!(help.status.success());
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(text.contains("--socket-path=PATH") && text.contains(name), "{text}");
        for arguments in [&[][..], &["--no-such-option"], &["one", "two"]] {
            assert!(!run(name, arguments).status.success(), "{name} {arguments:?}");
        }
        let unusable = run(name, &["/no/such/folder/socket"]);
        assert!(!unusable.status.success());
        let complaint = String::from_utf8(unusable.stderr).unwrap();
        assert!(complaint.contains("No such file"), "{complaint}");
    }
}

#[test]
fn each_takes_a_bare_path_serves_one_client_after_another_and_ends_cleanly() {
    for (name, region) in [("null", BAR0), ("gpio-idio-16", BAR2), ("dma-engine", BAR0)] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let device = Device::start(name, &[]);
            for _ in 0..3 {
                let mut client = device.connect();
                assert!(client.region(region).unwrap().size > 0);
                client.reset().unwrap();
                client.shutdown().unwrap();
            }
            // While no client is there, and while one is.
            let _client = (signal == Signal::SIGINT).then(|| device.connect());
            device.end(signal);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("bare");
    let mut process =
        Command::new(BUILT.path().join("null")).args(["--once", socket.to_str().unwrap()]).spawn().unwrap();
    await_listener(&mut process, &socket);
    drop(Client::new(&socket).unwrap());
    assert!(process.wait().unwrap().success(), "leaves with its client");
}

#[test]
fn gpio_inputs_follow_outputs_and_interrupt() {
    let device = Device::start("gpio-idio-16", &["--loopback"]);
    let mut client = device.connect();
    assert_eq!(read::<4>(&mut client, CONFIG, 0), [0x4f, 0x49, 0xc8, 0x0d]);
    assert_eq!(client.region(BAR2).unwrap().size, 256);
    assert_eq!(client.get_irq_info(INTX).unwrap().count, 1);
    let event = arm(&mut client, INTX, 0);
    let _enable: [u8; 1] = read(&mut client, BAR2, 2);
    client.region_write(BAR2, 0, &[0x5a]).unwrap();
    wait(&event);
    assert_eq!(read::<1>(&mut client, BAR2, 1), [0x5a]);
    client.region_write(BAR2, 4, &[0xa5]).unwrap();
    assert_eq!(read::<1>(&mut client, BAR2, 5), [0xa5]);
    assert_eq!(read::<1>(&mut client, BAR2, 0), [0x5a], "outputs read back");
    client.region_write(BAR2, 1, &[0]).unwrap();
    device.end(Signal::SIGTERM);
}

/// The engine's registers, from examples-c/dma-engine.h.
mod engine {
    pub const CONTROL: u64 = 0x08;
    pub const IRQ_ENABLE: u64 = 0x14;
    pub const COMPLETED: u64 = 0x18;
    pub const DOORBELL: u64 = 0x28;
    pub const DESC: u64 = 0x80;
    pub const STATUS_IN_DESC: u64 = DESC + 44;
    pub const F_IRQ: u32 = 1;
    pub const F_DIRECT: u32 = 0x20;
}

fn descriptor(op: u32, flags: u32, src: u64, dst: u64, len: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(op.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    for number in [src, dst, len, value] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes()); // vector
    bytes.extend([0; 20]);
    bytes
}

/// Switches MSI-X on: function control is the word behind the capability's head.
fn enable_msix(client: &mut Client) {
    let mut at: u64 = u64::from(read::<1>(client, CONFIG, 0x34)[0]);
    while read::<1>(client, CONFIG, at) != [0x11] {
        at = u64::from(read::<1>(client, CONFIG, at + 1)[0]);
        assert_ne!(at, 0, "there is an MSI-X capability");
    }
    client.region_write(CONFIG, at + 2, &0x8000u16.to_le_bytes()).unwrap();
}

#[test]
fn the_dma_engine_moves_guest_memory() {
    for option in [&[][..], &["--async-quiesce"]] {
        let device = Device::start("dma-engine", option);
        let mut client = device.connect();
        let guest = fs::File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        guest.set_len(0x20_0000).unwrap();
        let pattern: Vec<u8> = (0..0x12345u32).map(|i| ((i * 7) >> 3) as u8).collect();
        guest.write_all_at(&pattern, 0x1000).unwrap();
        client.dma_map(0, 0x8000_0000, 0x10_0000, guest.as_raw_fd()).unwrap();
        client.dma_map(0x10_0000, 0x9000_0000, 0x10_0000, guest.as_raw_fd()).unwrap();

        enable_msix(&mut client);
        let event = arm(&mut client, MSIX, 0);
        write_u32(&mut client, BAR0, engine::CONTROL, 1);
        write_u32(&mut client, BAR0, engine::IRQ_ENABLE, 3);
        for (number, flags) in [0, engine::F_DIRECT].into_iter().enumerate() {
            let (src, dst) = (0x8000_1000, 0x9000_0000 + 0x2_0000 * number as u64);
            let copy = descriptor(1, engine::F_IRQ | flags, src, dst, pattern.len() as u64, 0);
            client.region_write(BAR0, engine::DESC, &copy).unwrap();
            write_u32(&mut client, BAR0, engine::DOORBELL, 1);
            wait(&event);
            assert_eq!(read_u32(&mut client, BAR0, engine::STATUS_IN_DESC), 1, "done");
            let mut copied = vec![0; pattern.len()];
            guest.read_exact_at(&mut copied, 0x10_0000 + 0x2_0000 * number as u64).unwrap();
            assert!(copied == pattern);
        }
        assert_eq!(read_u32(&mut client, BAR0, engine::COMPLETED), 2);

        // What is not mapped is an error of the descriptor and nothing else.
        let stray = descriptor(2, engine::F_IRQ, 0, 0xdead_0000, 64, 1);
        client.region_write(BAR0, engine::DESC, &stray).unwrap();
        write_u32(&mut client, BAR0, engine::DOORBELL, 1);
        wait(&event);
        assert_eq!(read_u32(&mut client, BAR0, engine::STATUS_IN_DESC), 5, "no such destination");

        client.dma_unmap(0x8000_0000, 0x10_0000).unwrap();
        client.dma_unmap(0x9000_0000, 0x10_0000).unwrap();
        client.reset().unwrap();
        assert_eq!(read_u32(&mut client, BAR0, engine::COMPLETED), 0);
        device.end(Signal::SIGTERM);
    }
}

#[test]
fn the_dma_engines_own_memory_can_be_mapped_in_part() {
    let device = Device::start("dma-engine", &[]);
    let mut client = device.connect();
    client.region_write(BAR2, 0x2000, b"through the socket").unwrap();
    let region = client.region(BAR2).unwrap();
    let [area] = region.sparse_areas[..] else { panic!("{:?}", region.sparse_areas) };
    assert_eq!((area.offset, area.size), (0x1000, 0x3ff_f000));
    let file = region.file_offset.as_ref().unwrap();
    let mut bytes = [0; 18];
    file.file().read_exact_at(&mut bytes, file.start() + 0x2000).unwrap();
    assert_eq!(&bytes, b"through the socket");
    file.file().write_all_at(b"through the file!!", file.start() + 0x2000).unwrap();
    assert_eq!(&read::<18>(&mut client, BAR2, 0x2000), b"through the file!!");
    device.end(Signal::SIGTERM);
}

/// A client that dies in the middle of a message leaves a device that serves the
/// next one.
#[test]
fn half_a_message_and_gone() {
    let device = Device::start("null", &[]);
    for _ in 0..20 {
        let mut stream = UnixStream::connect(device.socket()).unwrap();
        stream.write_all(&[1, 0, 1, 0, 20, 0, 0, 0, 0, 0]).unwrap();
        drop(stream);
    }
    let client = device.connect();
    client.shutdown().unwrap();
    device.end(Signal::SIGTERM);
}
