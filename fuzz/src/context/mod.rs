//! A client that sends anything, in any pieces and with any descriptors, to a
//! device that uses everything, in a context that never waits or in one that
//! does. No panic; nothing waits for ever; no descriptor and no mapping is left;
//! every command that wants an answer gets one, in order; regions are registered
//! and unregistered in pairs; a lost connection is one reset. All of that within
//! budgets of memory, descriptors and processor time, beside another context,
//! whose client is served at any time.

mod blocking;
pub(crate) mod budget;
mod client;
mod device;
pub(crate) mod messages;
mod neighbour;
pub(crate) mod pool;

use std::ffi::{c_char, c_int};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user::capi;

use crate::peer::{self, Context, Handle};
use budget::{Budget, Memory};
use client::{Client, lock};
use device::Device;
use pool::Pool;

#[allow(improper_ctypes, reason = "a context is opaque to those who have a pointer to it")]
unsafe extern "C" {
    fn vfu_setup_log(handle: Handle, log: capi::vfu_log_fn_t, level: c_int) -> c_int;
    fn vfu_log(handle: Handle, level: c_int, format: *const c_char, ...);
}

/// The first byte says whether the context waits for its client, and how much of
/// the input is the device's; the client's answers are behind it, and the rest is
/// what happens.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    neighbour::prepare();
    let budget = Budget::new();
    serve(*kind, rest);
    neighbour::welcome();
    budget.assert_kept();
}

/// All of it, done and gone.
fn serve(kind: u8, rest: &[u8]) {
    let pool = Pool::new();
    let (is_blocking, kind) = (kind >= 0x80, usize::from(kind % 0x80));
    let (script, rest) = rest.split_at((kind / 4 * 4).min(rest.len()));
    let (answers, rest) = rest.split_at((kind % 4 * 4).min(rest.len()));
    let device = Device::default();
    device.script.borrow_mut().extend(script);
    let mut u = Unstructured::new(rest);
    let private = (&raw const device).cast_mut().cast();
    let context = if is_blocking { Context::blocking(private) } else { Context::new(private) };
    let mut session = Session {
        context,
        device: &device,
        pool: &pool,
        answers,
        connections: 0,
        is_attached: false,
        is_blocking,
        fresh: Memory::now(),
        is_left: false,
    };
    let ready = session.setup(&mut u);
    session.fresh = Memory::now();
    match ready {
        Ok(()) if is_blocking => session.run_blocking(&mut u),
        Ok(()) => session.run_nonblocking(&mut u),
        Err(_) => {}
    }
    session.finish();
    drop(lock(&device.client).take());
    assert!(pool.is_open());
    if device.was_mapped.get() {
        assert_eq!(pool::mappings(), 0, "mappings");
    }
}

/// Descriptors that the kernel passes with one send.
const SCM_MAX_FD: usize = 253;
/// Calls with this number and more are made when the neighbour was served.
const NEIGHBOURS: u8 = 192;
/// Bytes of a message that come one by one.
const MOST_DRIBBLED: usize = 64;

struct Session<'a> {
    context: Context,
    device: &'a Device,
    pool: &'a Pool,
    answers: &'a [u8],
    /// How many there were.
    connections: usize,
    is_attached: bool,
    is_blocking: bool,
    /// What there was before there was a client.
    fresh: Memory,
    /// A client has gone, and what is there now was not compared with that.
    is_left: bool,
}

impl Session<'_> {
    fn handle(&self) -> Handle {
        self.context.0
    }

    fn setup(&mut self, u: &mut Unstructured) -> Result<()> {
        let handle = self.handle();
        let memory = self.pool.get(1, -1);
        let kind = u8::arbitrary(u)?;
        // SAFETY: the context is there, and what is passed is what is asked for.
        unsafe {
            if kind & 1 == 0 {
                vfu_setup_log(handle, Some(device::log), 7);
            }
            assert_eq!(capi::vfu_pci_init(handle, 3, 0, 0), 0);
            capi::vfu_pci_set_id(handle, 1, 2, 3, 4);
            capi::vfu_pci_set_class(handle, 1, 8, 2);
            let mut areas = [
                libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0x1000 },
                libc::iovec { iov_base: 0x2000 as *mut _, iov_len: 0x1000 },
            ];
            let none = std::ptr::null_mut();
            let access = Some(device::access as _);
            assert_eq!(capi::vfu_setup_region(handle, 0, 0x1_0000, access, 7, none, 0, -1, 0), 0);
            assert_eq!(
                capi::vfu_setup_region(handle, 1, 0x8000, access, 7, areas.as_mut_ptr(), 2, memory, 0),
                0
            );
            assert_eq!(capi::vfu_setup_region(handle, 2, 1 << 32, access, 0x17, none, 0, -1, 0), 0);
            assert_eq!(capi::vfu_setup_region(handle, 4, 0x100, access, 1, none, 0, memory, 0), 0);
            assert_eq!(capi::vfu_setup_region(handle, 6, 0x1000, None, 1, none, 0, -1, 0), 0);
            let flags = if kind & 6 == 6 { 0xb } else { 3 };
            let access = if kind & 24 == 24 && flags == 3 { None } else { access };
            assert_eq!(capi::vfu_setup_region(handle, 7, 0, access, flags, none, 0, -1, 0), 0);
            self.capabilities(access.is_some());
            for (index, count) in [(0, 1), (1, 4), (2, 8)] {
                assert_eq!(capi::vfu_setup_device_nr_irqs(handle, index, count), 0);
                assert_eq!(capi::vfu_setup_irq_state_callback(handle, index, Some(device::irq_state)), 0);
            }
            if kind & 96 != 96 {
                assert_eq!(
                    capi::vfu_setup_device_dma(handle, 16, Some(device::register), Some(device::unregister)),
                    0
                );
            }
            capi::vfu_setup_device_quiesce_cb(handle, if kind < 0xc0 { Some(device::quiesce) } else { None });
            assert_eq!(capi::vfu_setup_device_reset_cb(handle, Some(device::reset)), 0);
            let callbacks = capi::vfu_migration_callbacks_t {
                version: 2,
                transition: Some(device::transition),
                read_data: Some(device::data),
                write_data: Some(device::data),
            };
            assert_eq!(capi::vfu_setup_device_migration_callbacks(handle, &callbacks), 0);
            assert_eq!((capi::vfu_run_ctx(handle), peer::errno()), (-1, libc::EINVAL));
            assert_eq!(capi::vfu_realize_ctx(handle), 0);
            for (at, fd) in [(0, 2), (8, 3), (16, 2), (24, 99)] {
                let fd = if fd == 99 { -1 } else { self.pool.get(fd, -1) };
                assert_eq!(capi::vfu_create_ioeventfd(handle, 0, fd, at, 4, 0, 0, -1, 0), 0);
            }
            if kind & 1 == 0 {
                assert!(capi::vfu_get_poll_fd(handle) >= 0);
            }
        }
        Ok(())
    }

    fn run_nonblocking(&mut self, u: &mut Unstructured) {
        if self.connect(u).is_ok() {
            while !u.is_empty() && self.step(u).is_ok() {}
        }
        let may_answer = |client: &Client| !client.is_amid() && !client.is_lost && !client.has_ended;
        if self.is_attached && lock(&self.device.client).as_ref().is_some_and(may_answer) {
            self.settle();
            self.assert_left();
        }
    }

    /// All kinds of capabilities.
    fn capabilities(&self, has_callback: bool) {
        let mut express = [0_u8; 60];
        (express[0], express[7]) = (0x10, 0x10);
        let standard: [(c_int, Vec<u8>); 5] = [
            (0, vec![1, 0, 0, 0, 0, 0, 0, 0]),
            (0, [&[5, 0, 0x0a][..], &[0; 21]].concat()),
            (if has_callback { 2 } else { 0 }, [&[9, 0, 16][..], &[0xaa; 13]].concat()),
            (0, vec![0x11, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (0, express.to_vec()),
        ];
        let extended: [(c_int, Vec<u8>); 2] = [
            (1, vec![3, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            (5, [&[0xb, 0, 1, 0, 0, 0, 0x00, 0x02][..], &[0xbb; 24]].concat()),
        ];
        for (flags, mut data) in standard.into_iter().chain(extended) {
            // SAFETY: the context is there, and the data as long as it says.
            let at =
                unsafe { capi::vfu_pci_add_capability(self.handle(), 0, flags, data.as_mut_ptr().cast()) };
            assert!(at > 0);
        }
    }

    /// A new client, if the last one has gone.
    fn connect(&mut self, u: &mut Unstructured) -> Result<()> {
        if self.is_attached {
            return Ok(());
        }
        if lock(&self.device.client).is_none() {
            let socket = match Context::connect() {
                Ok(socket) => socket,
                Err(e) => {
                    assert!(client::is_refused(&e), "{e}");
                    return Ok(());
                }
            };
            *lock(&self.device.client) = Some(Client::new(socket, self.answers.to_vec().into()));
        }
        match u8::arbitrary(u)? {
            0..8 => {
                let message = messages::any(u)?;
                self.with_client(|client| client.send(&message.bytes, &[]));
            }
            kind => {
                let (bytes, max_fds) = messages::version(u)?;
                self.with_client(|client| client.max_fds = max_fds);
                let own = self.own_fd();
                let split = if kind < 24 { usize::from(kind) } else { 0 };
                let (first, second) = bytes.split_at(split);
                self.with_client(|client| client.send(first, &[]));
                if split > 0 {
                    self.attach();
                }
                let fds = [self.pool.get(kind, own)];
                self.with_client(|client| client.send(second, if kind == 255 { &fds } else { &[] }));
            }
        }
        self.attach();
        Ok(())
    }

    fn attach(&mut self) {
        if self.is_attached {
            return;
        }
        // SAFETY: the context is there.
        let outcome = unsafe { capi::vfu_attach_ctx(self.handle()) };
        let errno = peer::errno();
        self.with_client(|client| {
            client.receive();
        });
        if outcome == 0 {
            self.connections += 1;
            self.is_attached = true;
        } else if errno != libc::EAGAIN {
            *lock(&self.device.client) = None;
        }
        self.context.assert_whole();
    }

    fn with_client(&self, f: impl FnOnce(&mut Client)) {
        if let Some(client) = lock(&self.device.client).as_mut() {
            f(client);
        }
    }

    fn own_fd(&self) -> RawFd {
        lock(&self.device.client).as_ref().map_or(self.pool.get(0, -1), |client| client.socket.as_raw_fd())
    }

    fn step(&mut self, u: &mut Unstructured) -> Result<()> {
        match u8::arbitrary(u)? % 64 {
            0..36 => self.send(u)?,
            36..44 => drop(self.run()),
            44 | 45 => self.settle(),
            46 | 47 => self.with_client(|client| {
                client.receive();
            }),
            48 => {
                let length = usize::from(u8::arbitrary(u)?);
                let bytes = u.bytes(length.min(u.len()))?.to_vec();
                self.with_client(|client| client.send(&bytes, &[]));
            }
            49 => self.with_client(|client| client.end(Shutdown::Both)),
            50 => self.with_client(|client| client.end(Shutdown::Write)),
            51 if u8::arbitrary(u)? < 64 => *lock(&self.device.client) = None,
            51 | 52 => self.connect(u)?,
            53 => self.dribble(u)?,
            54..57 => {
                let errno = if u8::arbitrary(u)? % 3 == 0 { libc::ENOTTY } else { 0 };
                self.quiesced(errno);
            }
            57 | 58 => self.device.use_memory(self.handle()),
            59 => self.device.use_old_entry(self.handle()),
            _ => self.call(u)?,
        }
        self.context.assert_whole();
        self.assert_left();
        Ok(())
    }

    fn send(&mut self, u: &mut Unstructured) -> Result<()> {
        let message = messages::any(u)?;
        let own = self.own_fd();
        let fds: Vec<RawFd> = message.fds.iter().map(|number| self.pool.get(*number, own)).collect();
        let how = u8::arbitrary(u)?;
        let split = if how < 32 { u.choose_index(message.bytes.len())? } else { 0 };
        let (early, late) = if how % 2 == 0 { (&fds[..], &[][..]) } else { (&[][..], &fds[..]) };
        if split < 2 {
            self.with_client(|client| client.send_new(message.bytes, &fds));
        } else {
            let (first, second) = message.bytes.split_at(split);
            self.with_client(|client| client.send_new(first.to_vec(), early));
            if how % 4 < 2 {
                self.run();
            }
            self.with_client(|client| client.send(second, late));
        }
        if how >= 128 {
            self.run();
        }
        Ok(())
    }

    /// A message that comes in bytes, with descriptors on each.
    fn dribble(&mut self, u: &mut Unstructured) -> Result<()> {
        let message = messages::any(u)?;
        let count = usize::from(u8::arbitrary(u)?).min(SCM_MAX_FD);
        let fds = vec![self.pool.get(u8::arbitrary(u)?, self.own_fd()); count];
        let how_often = usize::from(u8::arbitrary(u)? % 16);
        for (at, byte) in message.bytes.iter().take(MOST_DRIBBLED).enumerate() {
            self.with_client(|client| client.send(&[*byte], &fds));
            if at.checked_rem(how_often) == Some(0) {
                self.run();
            }
        }
        neighbour::ask();
        Ok(())
    }

    /// One call; what it returned.
    fn run(&mut self) -> c_int {
        let handle = self.handle();
        let resets = self.device.lost_resets.get();
        let is_quiet = !self.is_readable();
        let before = budget::time();
        // SAFETY: the context is there.
        let outcome = unsafe { capi::vfu_run_ctx(handle) };
        let errno = peer::errno();
        assert!(outcome >= -1);
        let took = budget::time() - before;
        assert!(took <= budget::CALL, "a call of {took:?}");
        let lost = self.device.lost_resets.get() - resets;
        assert!(lost <= 1);
        if is_quiet && self.is_attached && !self.device.is_quiescing.get() {
            // What the poll descriptor does not tell of is nothing.
            assert!(outcome == 0 && lost == 0, "{outcome} {errno}, but nothing to poll");
        }
        if outcome == -1 && errno != libc::EBUSY {
            assert_eq!(errno, libc::ENOTCONN);
            assert_eq!(self.device.lost_resets.get(), self.connections);
            self.lost();
        }
        assert!(outcome != -1 || errno != libc::EBUSY || self.device.is_quiescing.get());
        self.context.assert_whole();
        outcome
    }

    /// A client that has gone left nothing, if nobody has come since.
    fn assert_left(&mut self) {
        if std::mem::take(&mut self.is_left) && lock(&self.device.client).is_none() {
            self.fresh.assert_back("after a client");
        }
    }

    /// The connection is no more.
    fn lost(&mut self) {
        if std::mem::take(&mut self.is_attached) {
            self.with_client(|client| {
                client.receive();
                client.assert_served();
            });
            *lock(&self.device.client) = None;
            self.is_left = true;
        }
    }

    /// Whether the poll descriptor says that there is something to do.
    fn is_readable(&self) -> bool {
        // SAFETY: the context is there.
        let fd = unsafe { capi::vfu_get_poll_fd(self.handle()) };
        assert!(fd >= 0);
        // SAFETY: the library's, which stays open.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    fn quiesced(&mut self, errno: c_int) {
        let was_quiescing = self.device.is_quiescing.replace(false);
        // SAFETY: the context is there.
        let outcome = unsafe { capi::vfu_device_quiesced(self.handle(), errno) };
        assert_eq!(outcome, if was_quiescing { 0 } else { -1 });
    }

    /// Goes on until nothing moves: then everything was answered.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut moved = false;
            self.with_client(|client| moved = client.receive());
            if self.device.is_quiescing.get() {
                self.quiesced(0);
                moved = true;
            }
            match self.run() {
                -1 if self.device.is_quiescing.get() => {}
                -1 => return,
                0 if !moved && !self.is_readable() => {
                    self.with_client(|client| {
                        if !client.receive() && client.is_attached && !client.is_lost && !client.has_ended {
                            client.assert_answered();
                        }
                    });
                    return;
                }
                _ => {}
            }
        }
        panic!("it goes on for ever");
    }

    /// Other functions, on a context in use.
    fn call(&mut self, u: &mut Unstructured) -> Result<()> {
        let handle = self.handle();
        let number = u8::arbitrary(u)?;
        let access = Some(device::access as _);
        let none = std::ptr::null_mut();
        let fd = self.pool.get(1, -1);
        if number >= NEIGHBOURS {
            neighbour::ask();
        }
        // SAFETY: the context is there, and what is passed is what is asked for.
        unsafe {
            match number % 12 {
                0 => drop(capi::vfu_irq_trigger(handle, u32::from(number / 12))),
                1 => {
                    let size = 1_usize << (number % 16);
                    let index = c_int::from(u8::arbitrary(u)? % 10);
                    capi::vfu_setup_region(
                        handle,
                        index,
                        size,
                        access,
                        c_int::from(number / 8),
                        none,
                        0,
                        fd,
                        0,
                    );
                }
                2 => {
                    let mut data = [9_u8; 16];
                    data[2] = number % 16;
                    capi::vfu_pci_add_capability(
                        handle,
                        0,
                        c_int::from(number / 64),
                        data.as_mut_ptr().cast(),
                    );
                }
                3 => drop(capi::vfu_create_ioeventfd(handle, number.into(), -1, 0, 4, 0, 0, -1, 0)),
                4 => {
                    let space = capi::vfu_pci_get_config_space(handle);
                    let at = u.int_in_range(0..=0x140)?;
                    space.add(at).write_volatile(u8::arbitrary(u)?);
                }
                5 => drop(capi::vfu_setup_device_nr_irqs(handle, (number / 16).into(), 3)),
                6 => drop(capi::vfu_pci_find_capability(handle, number > 64, (number % 32).into())),
                7 => drop(vfu_setup_log(handle, Some(device::log), c_int::from(number % 9))),
                8 => vfu_log(handle, c_int::from(number % 8), c"%d%% of %s".as_ptr(), 5, c"text".as_ptr()),
                9 => drop(capi::vfu_realize_ctx(handle)),
                10 => {
                    let (register, unregister) = (device::register as _, device::unregister as _);
                    capi::vfu_setup_device_dma(handle, usize::from(number), Some(register), Some(unregister));
                }
                _ if self.is_blocking && !self.is_attached => {}
                _ => {
                    let was_attached = self.is_attached;
                    let outcome = capi::vfu_attach_ctx(handle);
                    assert!(!was_attached || outcome == -1);
                    assert!(outcome == -1 || lock(&self.device.client).is_some());
                    if outcome == 0 {
                        self.connections += 1;
                        self.is_attached = true;
                    }
                }
            }
        }
        Ok(())
    }

    /// The context goes, if it has not.
    fn finish(mut self) {
        if !self.handle().is_null() {
            self.destroy();
        }
    }

    fn destroy(&mut self) {
        let resets = self.device.lost_resets.get();
        assert!(resets == self.connections || resets + 1 == self.connections);
        self.context.assert_whole();
        self.context.destroy();
        assert_eq!(self.device.lost_resets.get(), resets + 1);
        assert!(self.device.regions.borrow().is_empty(), "regions outlive their device");
    }
}
