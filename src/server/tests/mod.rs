//! Requests, from the client's bytes to a device in Rust and back.

mod life;
mod memory;
mod migration;
mod quiesce;
mod regions;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tempfile::TempDir;

use super::*;
use crate::dma::RegionId;
use crate::irq::IrqType;
use crate::wire::{Command, DeviceState, Errno, Result};

/// What a device was called for.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Read(u32, u64, usize),
    Write(u32, u64, Vec<u8>),
    Quiesce,
    Reset(ResetType),
    Register(u64, u64),
    Unregister(u64, u64),
    Irqs(IrqType, u32, u32, bool),
    To(DeviceState),
    Save(usize),
    Load(Vec<u8>),
    Log(i32, String),
}

use Call::*;

/// What a device does with its context in a call.
type Action = fn(&Context<Recorder>);

/// Writes down what it is called for, and does what the test says.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<Call>>,
    /// Results of the calls to come that return one; then all succeed.
    results: RefCell<VecDeque<Result<usize>>>,
    migratable: Cell<bool>,
    /// Done in each call, before it returns.
    during: Cell<Option<Action>>,
}

impl Recorder {
    fn called(&self, context: &Context<Self>, call: Call, otherwise: usize) -> Result<usize> {
        self.calls.borrow_mut().push(call);
        if let Some(during) = self.during.get() {
            during(context);
        }
        self.results.borrow_mut().pop_front().unwrap_or(Ok(otherwise))
    }
}

impl Device for Recorder {
    fn region_read(
        &self,
        context: &Context<Self>,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize> {
        for (place, byte) in data.iter_mut().zip(offset as u8..) {
            *place = byte;
        }
        self.called(context, Read(region, offset, data.len()), data.len())
    }

    fn region_write(
        &self,
        context: &Context<Self>,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize> {
        self.called(context, Write(region, offset, data.to_vec()), data.len())
    }

    fn quiesce(&self, context: &Context<Self>) -> Result<()> {
        self.called(context, Quiesce, 0).map(drop)
    }

    fn reset(&self, context: &Context<Self>, kind: ResetType) -> Result<()> {
        self.called(context, Reset(kind), 0).map(drop)
    }

    fn dma_register(&self, context: &Context<Self>, region: RegionId) -> Result<()> {
        let region = context.dma_region(region).unwrap();
        self.calls.borrow_mut().push(Register(region.iova, region.size));
        self.results.borrow_mut().pop_front().unwrap_or(Ok(0)).map(drop)
    }

    fn dma_unregister(&self, context: &Context<Self>, region: RegionId) {
        let region = context.dma_region(region).unwrap();
        context.guest().read_memory(region.iova, &mut [0]).ok();
        self.calls.borrow_mut().push(Unregister(region.iova, region.size));
    }

    fn irq_state(&self, context: &Context<Self>, kind: IrqType, start: u32, count: u32, mask: bool) {
        self.called(context, Irqs(kind, start, count, mask), 0).unwrap();
    }

    fn can_migrate(&self) -> bool {
        self.migratable.get()
    }

    fn transition(&self, context: &Context<Self>, state: DeviceState) -> Result<()> {
        self.called(context, To(state), 0).map(drop)
    }

    fn migration_read(&self, context: &Context<Self>, data: &mut [u8]) -> Result<usize> {
        data.fill(0x5a);
        self.called(context, Save(data.len()), data.len())
    }

    fn migration_write(&self, context: &Context<Self>, data: &mut [u8]) -> Result<usize> {
        self.called(context, Load(data.to_vec()), data.len())
    }

    fn log(&self, _: &Context<Self>, level: i32, line: &CStr) {
        self.calls.borrow_mut().push(Log(level, line.to_str().unwrap().to_owned()));
    }
}

/// A context that never waits, of a device with BARs 0 (read and written) and 1
/// (read only), and its client.
struct Bench {
    context: Box<Context<Recorder>>,
    path: PathBuf,
    client: Option<UnixStream>,
    _folder: TempDir,
}

const BAR_SIZE: u64 = 0x1000;

impl Bench {
    /// Set up, without a client.
    fn alone() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let context = Context::create(&path, true, Recorder::default()).unwrap();
        for (index, flags) in [(0, RegionFlags::READ | RegionFlags::WRITE), (1, RegionFlags::READ)] {
            let flags = flags | RegionFlags::MEM;
            let config = RegionConfig { size: BAR_SIZE, flags, ..RegionConfig::default() };
            context.setup_region(index, config).unwrap();
        }
        context.setup_irqs(IrqType::Msix, 4).unwrap();
        context.setup_dma(16, true).unwrap();
        context.realize().unwrap();
        Bench { context, path, client: None, _folder: folder }
    }

    fn new() -> Bench {
        let mut bench = Bench::alone();
        bench.connect();
        bench
    }

    fn migratable() -> Bench {
        let bench = Bench::new();
        bench.context.device().migratable.set(true);
        bench.context.setup_migration();
        bench
    }

    fn connect(&mut self) {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        let version = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0";
        stream.write_all(&message(Command::Version as u16, version)).unwrap();
        self.context.attach().unwrap();
        let (errno, _) = receive(&mut stream);
        assert_eq!(errno, 0);
        self.client = Some(stream);
    }

    fn send(&mut self, command: Command, payload: &[u8]) {
        let stream = self.client.as_mut().unwrap();
        stream.write_all(&message(command as u16, payload)).unwrap();
    }

    fn reply(&mut self) -> (i32, Vec<u8>) {
        receive(self.client.as_mut().unwrap())
    }

    /// A request and its reply: the errno, and the payload.
    fn request(&mut self, command: Command, payload: &[u8]) -> (i32, Vec<u8>) {
        self.send(command, payload);
        self.context.run().unwrap();
        self.reply()
    }

    fn succeeds(&mut self, command: Command, payload: &[u8]) -> Vec<u8> {
        let (errno, payload) = self.request(command, payload);
        assert_eq!(errno, 0);
        payload
    }

    /// Maps memory of the client, of which it sends a descriptor, or not.
    fn map(&mut self, iova: u64, size: u64, memory: Option<&OwnedFd>) {
        let bytes = message(Command::DmaMap as u16, &map_request(iova, size));
        let fds: Vec<_> = memory.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let socket = self.client.as_ref().unwrap().as_raw_fd();
        let data = [std::io::IoSlice::new(&bytes)];
        sendmsg::<()>(socket, &data, control, MsgFlags::empty(), None).unwrap();
        assert_eq!(self.context.run(), Ok(1));
        assert_eq!(self.reply(), (0, vec![]));
    }

    /// The device's calls since the last look.
    fn calls(&self) -> Vec<Call> {
        self.context.device().calls.take()
    }

    /// What the device's next calls return.
    fn returns<const N: usize>(&self, results: [Result<usize>; N]) {
        self.context.device().results.borrow_mut().extend(results);
    }

    /// What the device does in each call.
    fn during(&self, what: Action) {
        self.context.device().during.set(Some(what));
    }
}

fn message(command: u16, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let mut bytes = Vec::new();
    bytes.extend(0x77_u16.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

fn receive(stream: &mut UnixStream) -> (i32, Vec<u8>) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(4) as usize - 16];
    stream.read_exact(&mut payload).unwrap();
    (word(12) as i32, payload)
}

/// Numbers of 4 and 8 bytes, one behind the other.
fn words(four: &[u32], eight: &[u64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = four.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(eight.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}

fn map_request(iova: u64, size: u64) -> Vec<u8> {
    words(&[32, 3], &[0, iova, size])
}

fn unmap_request(iova: u64, size: u64) -> Vec<u8> {
    words(&[24, 0], &[iova, size])
}

/// A read or write of a region.
fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[], &[offset]);
    bytes.extend(words(&[region, count], &[]));
    bytes.extend(data);
    bytes
}
