//! Device states and migration data over the wire, against a search through
//! the arcs of the specification.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::os::unix::net::UnixStream;

use arbitrary::{Arbitrary, Result, Unstructured};
use vfio_user::capi;
use vfio_user::wire::bitmap_size;

use crate::peer::{self, Context, Handle, words};

const PAGE: u64 = 4096;
const LOST_CONN: u32 = 1;

/// Device states as numbered by the protocol.
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;
const PRE_COPY: u32 = 6;
/// And a state that no request enters or leaves.
const ERROR: u32 = 0;

const ARCS: [(u32, u32); 9] = [
    (STOP, RUNNING),
    (STOP, STOP_COPY),
    (STOP, RESUMING),
    (RUNNING, STOP),
    (RUNNING, PRE_COPY),
    (STOP_COPY, STOP),
    (RESUMING, STOP),
    (PRE_COPY, RUNNING),
    (PRE_COPY, STOP_COPY),
];

pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let _ = Both::run(&mut u);
}

/// What a callback is called for.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Quiesce,
    Reset(u32),
    /// As numbered for devices.
    Transition(u32),
    Read(u64),
    Write(Vec<u8>),
}

/// What a callback returns, and leaves in errno.
#[derive(Clone, Copy, Debug, Default)]
struct Returned {
    value: i64,
    errno: i32,
}

impl Returned {
    /// The errno that a failure is answered with.
    fn failure(self) -> i32 {
        if self.errno == 0 { libc::EINVAL } else { self.errno }
    }
}

/// The device: what its callbacks were called for, and what they are to return.
#[derive(Default)]
struct Device {
    calls: Vec<Call>,
    quiesce: Returned,
    reset: Returned,
    data: Returned,
    transitions: VecDeque<Returned>,
}

/// # Safety
///
/// The context is one of a [`Both`].
unsafe fn called<R>(handle: Handle, call: Call, f: impl FnOnce(&mut Device) -> R) -> R {
    // SAFETY: the caller's promise; nobody else uses the device while the
    // library runs.
    let device = unsafe { &mut *capi::vfu_get_private(handle).cast::<Device>() };
    device.calls.push(call);
    f(device)
}

fn give(result: Returned) -> i64 {
    peer::set_errno(result.errno);
    result.value
}

unsafe extern "C" fn quiesce(handle: Handle) -> c_int {
    // SAFETY: called by the library.
    give(unsafe { called(handle, Call::Quiesce, |device| device.quiesce) }) as c_int
}

unsafe extern "C" fn reset(handle: Handle, kind: u32) -> c_int {
    // SAFETY: as above.
    give(unsafe { called(handle, Call::Reset(kind), |device| device.reset) }) as c_int
}

unsafe extern "C" fn transition(handle: Handle, state: u32) -> c_int {
    let next = |device: &mut Device| device.transitions.pop_front().unwrap_or_default();
    // SAFETY: as above.
    give(unsafe { called(handle, Call::Transition(state), next) }) as c_int
}

unsafe extern "C" fn read_data(handle: Handle, buffer: *mut c_void, count: u64) -> isize {
    // SAFETY: as above.
    let result = unsafe { called(handle, Call::Read(count), |device| device.data) };
    for at in 0..count as usize {
        // SAFETY: the library's buffer of count bytes.
        unsafe { buffer.cast::<u8>().add(at).write(at as u8 ^ 0x5a) };
    }
    give(result) as isize
}

unsafe extern "C" fn write_data(handle: Handle, buffer: *mut c_void, count: u64) -> isize {
    // SAFETY: the library's buffer of count bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count as usize) }.to_vec();
    // SAFETY: as above.
    give(unsafe { called(handle, Call::Write(bytes), |device| device.data) }) as isize
}

/// What a request comes to: calls, and the payload or errno.
struct Expected {
    calls: Vec<Call>,
    answer: Result<Vec<u8>, i32>,
}

struct Both {
    context: Context,
    device: *mut Device,
    client: UnixStream,
    state: u32,
    max_data: usize,
    /// Page size of logging.
    logging: Option<u64>,
    has_dma: bool,
    id: u16,
}

impl Drop for Both {
    fn drop(&mut self) {
        let calls = std::mem::take(&mut self.device().calls);
        assert_eq!(calls, []);
        self.context.assert_whole();
    }
}

/// Shortest way through the arcs that passes through no saving state.
fn way(from: u32, to: u32) -> Option<Vec<u32>> {
    if (from, to) == (STOP_COPY, PRE_COPY) {
        return None;
    }
    let is_known = |state| ARCS.iter().any(|arc| arc.0 == state);
    let mut ways = VecDeque::from([vec![from]]);
    while let Some(way) = ways.pop_front() {
        let last = way[way.len() - 1];
        if last == to && is_known(to) {
            return Some(way[1..].to_vec());
        }
        let is_passed = way.len() > 1 && [PRE_COPY, STOP_COPY].contains(&last);
        for (_, next) in ARCS.iter().filter(|arc| arc.0 == last && !is_passed && !way.contains(&arc.1)) {
            ways.push_back([&way[..], &[*next]].concat());
        }
    }
    None
}

/// A state as numbered for devices.
fn for_device(state: u32) -> u32 {
    match state {
        STOP => 0,
        RUNNING => 1,
        STOP_COPY => 2,
        PRE_COPY => 3,
        _ => 4,
    }
}

fn failing(u: &mut Unstructured) -> Result<Returned> {
    Ok(match u8::arbitrary(u)? {
        0 => Returned { value: -1, errno: 0xbeef },
        1 => Returned { value: -1, errno: libc::ENOTRECOVERABLE },
        2 => Returned { value: -1, errno: 0 },
        3 => Returned { value: 1, errno: libc::EIO },
        4 => Returned { value: -5, errno: libc::EIO },
        _ => Returned::default(),
    })
}

impl Both {
    fn device(&mut self) -> &mut Device {
        // SAFETY: made by run, which lets nobody else use it but the callbacks.
        unsafe { &mut *self.device }
    }

    fn run(u: &mut Unstructured) -> Result<()> {
        let mut device = Device::default();
        let device = &raw mut device;
        let context = Context::new(device.cast());
        let handle = context.0;
        let callbacks = callbacks(2);
        let has_dma = u8::arbitrary(u)? % 8 != 0;
        // SAFETY: the context is there, and the functions are of the right kind.
        unsafe {
            capi::vfu_setup_device_quiesce_cb(handle, Some(quiesce));
            capi::vfu_setup_device_reset_cb(handle, Some(reset));
            if has_dma {
                assert_eq!(capi::vfu_setup_device_dma(handle, 8, None, None), 0);
            }
            assert_eq!(capi::vfu_setup_device_migration_callbacks(handle, &callbacks), 0);
            assert_eq!(capi::vfu_realize_ctx(handle), 0);
        }
        let (client, max_data) = attach(u, handle)?;
        let (state, logging) = (RUNNING, None);
        let mut both = Both { context, device, client, state, max_data, logging, has_dma, id: 0 };
        while !u.is_empty() && both.step(u).is_ok() {}
        both.lose(Returned::default());
        drop(both.client.shutdown(std::net::Shutdown::Both));
        both.destroy();
        Ok(())
    }

    /// The end of a context is a reset, too.
    fn destroy(self) {
        let device = self.device;
        drop(self);
        // SAFETY: of run, which is still there.
        assert_eq!(std::mem::take(&mut unsafe { &mut *device }.calls), [Call::Reset(LOST_CONN)]);
    }

    fn step(&mut self, u: &mut Unstructured) -> Result<()> {
        match u8::arbitrary(u)? % 32 {
            0 => {
                let quiesce = failing(u)?;
                self.lose(quiesce);
                (self.client, self.max_data) = attach(u, self.context.0)?;
            }
            1 => {
                let version = i32::from(u8::arbitrary(u)? % 4);
                // SAFETY: the context is there.
                let outcome = unsafe {
                    capi::vfu_setup_device_migration_callbacks(self.context.0, &callbacks(version))
                };
                assert_eq!(outcome, if version == 2 { 0 } else { -1 });
                if version == 2 {
                    self.state = RUNNING;
                }
            }
            2 | 3 => self.reset(u)?,
            4..16 => self.set_state(u)?,
            16..19 => self.feature(u)?,
            19 | 20 => self.logging(u)?,
            21..26 => self.read(u)?,
            _ => self.write(u)?,
        }
        self.context.assert_whole();
        Ok(())
    }

    /// The client goes.
    fn lose(&mut self, quiesce: Returned) {
        drop(self.client.shutdown(std::net::Shutdown::Both));
        self.device().quiesce = quiesce;
        // SAFETY: the context is there.
        assert_eq!(unsafe { capi::vfu_run_ctx(self.context.0) }, -1);
        assert_eq!(peer::errno(), libc::ENOTCONN);
        let calls = std::mem::take(&mut self.device().calls);
        assert_eq!(calls, [Call::Quiesce, Call::Reset(LOST_CONN)]);
        self.device().quiesce = Returned::default();
        self.logging = None;
    }

    /// Executes a command that may ask the device to quiesce first, and compares.
    fn execute(
        &mut self,
        u: &mut Unstructured,
        cmd: u16,
        payload: &[u8],
        asks: bool,
        expect: impl FnOnce(&mut Both) -> Expected,
    ) -> Result<()> {
        self.id = self.id.wrapping_add(1);
        let wants_no_reply = u8::arbitrary(u)? % 16 == 0;
        // How the device quiesces: at once, later, not at all.
        let quiesce = match u8::arbitrary(u)? {
            0..32 => Returned { value: -1, errno: libc::EBUSY },
            32..40 => Returned { value: -1, errno: 0xabc },
            _ => Returned::default(),
        };
        let later = if u8::arbitrary(u)? % 4 == 0 { libc::ENOTTY } else { 0 };
        let reset_fails = u8::arbitrary(u)? % 8 == 0;
        self.device().quiesce = quiesce;
        peer::send(&self.client, &peer::message(self.id, cmd, u32::from(wants_no_reply) << 4, payload));
        let handle = self.context.0;
        // A long message takes more than one read, and there is one in each call.
        let calls = if asks { 1 } else { 16 };
        // SAFETY: the context is there.
        let mut outcomes = (0..calls).map(|_| unsafe { capi::vfu_run_ctx(handle) });
        let outcome = outcomes.find(|outcome| *outcome != 0).unwrap_or(0);
        let sent_errno = peer::errno();
        let mut expected = if asks && quiesce.value != 0 && quiesce.errno != libc::EBUSY {
            assert_eq!(outcome, 0);
            Expected { calls: Vec::new(), answer: Err(0xabc) }
        } else if asks && quiesce.value != 0 {
            assert_eq!((outcome, sent_errno), (-1, libc::EBUSY));
            // SAFETY: the context is there.
            assert_eq!(unsafe { capi::vfu_run_ctx(handle) }, -1);
            if later == 0 {
                // SAFETY: the context is there.
                assert_eq!(unsafe { capi::vfu_device_quiesced(handle, 0) }, 0);
                expect(self)
            } else {
                let device = self.device();
                let reset =
                    if reset_fails { Returned { value: -1, errno: libc::EIO } } else { Returned::default() };
                let before = std::mem::replace(&mut device.reset, reset);
                // SAFETY: the context is there.
                assert_eq!(unsafe { capi::vfu_device_quiesced(handle, later) }, 0);
                self.device().reset = before;
                if !reset_fails {
                    self.was_reset();
                }
                Expected { calls: vec![Call::Reset(0)], answer: Err(later) }
            }
        } else {
            assert_eq!(outcome, 1);
            let expected = expect(self);
            if let Err(errno) = &expected.answer {
                assert_eq!(sent_errno, *errno);
            }
            expected
        };
        if asks {
            expected.calls.insert(0, Call::Quiesce);
        }
        // SAFETY: the context is there.
        assert_eq!(unsafe { capi::vfu_device_quiesced(handle, 0) }, -1);
        let device = self.device();
        assert_eq!(std::mem::take(&mut device.calls), expected.calls);
        device.transitions.clear();
        let mut bytes = Vec::new();
        assert!(!peer::drain(&self.client, &mut bytes));
        if wants_no_reply {
            assert!(bytes.is_empty(), "{bytes:x?}");
            return Ok(());
        }
        let (header, payload) = peer::take_message(&mut bytes).expect("a reply");
        assert!(bytes.is_empty());
        assert_eq!((header.msg_id, header.cmd), (self.id, cmd));
        match expected.answer {
            Ok(answer) => {
                assert_eq!((header.flags, header.error_no), (1, 0));
                assert_eq!(payload, answer);
            }
            Err(errno) => {
                assert_eq!((header.flags, header.error_no), (0x21, errno as u32));
                assert!(payload.is_empty(), "{payload:x?}");
            }
        }
        Ok(())
    }

    /// A reset leads out of every state but the one in which the device runs
    /// and is being saved.
    fn was_reset(&mut self) {
        if self.state != PRE_COPY {
            self.state = RUNNING;
        }
    }

    fn reset(&mut self, u: &mut Unstructured) -> Result<()> {
        let result = failing(u)?;
        self.device().reset = result;
        let outcome = self.execute(u, 13, &[], true, |both| {
            let answer = if result.value < 0 { Err(result.failure()) } else { Ok(Vec::new()) };
            if answer.is_ok() {
                both.was_reset();
            }
            Expected { calls: vec![Call::Reset(0)], answer }
        });
        self.device().reset = Returned::default();
        outcome
    }

    fn set_state(&mut self, u: &mut Unstructured) -> Result<()> {
        let state = match u8::arbitrary(u)? {
            0 => u32::arbitrary(u)?,
            other => u32::from(other % 9),
        };
        let steps: Vec<_> = (0..3).map(|_| failing(u)).collect::<Result<_>>()?;
        self.device().transitions = steps.clone().into();
        let mut payload = words(&[16, 1 << 17 | 2, state, u32::arbitrary(u)?]);
        payload[0] = match u8::arbitrary(u)? {
            0 => 15,
            _ => 16,
        };
        if u8::arbitrary(u)? == 0 {
            payload.truncate(8 + usize::from(u8::arbitrary(u)? % 8));
        }
        let is_good = payload.len() == 16 && payload[0] == 16;
        let echo = payload.clone();
        self.execute(u, 16, &payload, is_good, |both| {
            let way = if is_good { way(both.state, state) } else { None };
            let Some(way) = way else {
                return Expected { calls: Vec::new(), answer: Err(libc::EINVAL) };
            };
            let mut calls = Vec::new();
            for (state, step) in way.into_iter().zip(steps) {
                calls.push(Call::Transition(for_device(state)));
                if step.value != 0 {
                    let errno = if step.value < 0 { step.failure() } else { libc::EINVAL };
                    if errno == libc::ENOTRECOVERABLE {
                        both.state = ERROR;
                    }
                    return Expected { calls, answer: Err(errno) };
                }
                both.state = state;
            }
            Expected { calls, answer: Ok(echo) }
        })
    }

    /// Gets and probes, and requests that make no sense.
    fn feature(&mut self, u: &mut Unstructured) -> Result<()> {
        let operations = u32::from(u8::arbitrary(u)?);
        let operations = if operations < 8 { operations } else { [1, 4, 5][operations as usize % 3] };
        let feature = match u8::arbitrary(u)? {
            0 => u16::arbitrary(u)?.into(),
            other => [1, 2, 2, 6, 7, 3][usize::from(other % 6)],
        };
        let argsz = *u.choose(&[16, 16, 16, 8, 15, 2, 0, u32::MAX])?;
        let length = *u.choose(&[8, 16, 16, 7, 1, 24])?;
        let mut payload = words(&[argsz, operations << 16 | feature, 2, 3, 4, 5]);
        payload.truncate(length);
        if operations == 2 && [2, 6, 7].contains(&feature) {
            // Those have their own steps.
            return Ok(());
        }
        let possible = match feature {
            1 | 8 => 5,
            2 => 7,
            6 | 7 => 6,
            _ => 0,
        };
        let is_possible = length >= 8 && operations & !possible == 0;
        let answer = match operations {
            4..8 if is_possible && argsz as usize >= length => Ok(payload.clone()),
            1 if is_possible && argsz >= 16 && feature == 1 => Ok(words(&[16, 1 << 16 | 1, 5, 0])),
            1 if is_possible && argsz >= 16 && feature == 2 => Ok(words(&[16, 1 << 16 | 2, self.state, 0])),
            _ => Err(libc::EINVAL),
        };
        self.execute(u, 16, &payload, false, |_| Expected { calls: Vec::new(), answer })
    }

    /// Logging, of a device that has no memory.
    fn logging(&mut self, u: &mut Unstructured) -> Result<()> {
        let page_size = match u8::arbitrary(u)? {
            0 => u64::arbitrary(u)?,
            other => [0, 1, PAGE, PAGE, 2 * PAGE, 3000, 1 << 63][usize::from(other % 7)],
        };
        let feature = 6 + u32::from(u8::arbitrary(u)? % 3);
        let mut payload = words(&[0, if feature == 8 { 1 << 16 } else { 1 << 17 } | feature]);
        let mut asks = false;
        let answer = match feature {
            6 => {
                let num_ranges = u32::from(u8::arbitrary(u)? % 3);
                let listed = u64::from(num_ranges).saturating_sub(u64::from(u8::arbitrary(u)? % 8 == 0));
                payload.extend(page_size.to_ne_bytes());
                payload.extend(words(&[num_ranges, 7]));
                let mut are_good = listed == u64::from(num_ranges);
                for _ in 0..listed {
                    let range = [u64::arbitrary(u)?, u64::from(u8::arbitrary(u)?)];
                    are_good &= range[1] != 0 && range[0].checked_add(range[1] - 1).is_some();
                    payload.extend(range.iter().flat_map(|number| number.to_ne_bytes()));
                }
                // What is wrong by itself is refused before the device is asked to quiesce.
                asks = listed == u64::from(num_ranges) && are_good && page_size.is_power_of_two();
                let used = page_size.max(PAGE);
                let is_good = are_good
                    && self.has_dma
                    && page_size.is_power_of_two()
                    && self.logging.is_none_or(|in_use| in_use == page_size);
                let mut reply = payload.clone();
                reply[8..16].copy_from_slice(&used.to_ne_bytes());
                if is_good { Ok(reply) } else { Err(libc::EINVAL) }
            }
            7 => {
                asks = true;
                Ok(payload.clone())
            }
            _ => {
                let length = u.int_in_range(0..=3 * PAGE)?;
                payload.extend([0, length, page_size].iter().flat_map(|number| number.to_ne_bytes()));
                let is_good =
                    self.has_dma && bitmap_size(length, page_size).is_ok_and(|size| size <= 4096 - 32);
                Err(if is_good { libc::ENOENT } else { libc::EINVAL })
            }
        };
        let argsz = if feature == 8 { 4096 } else { payload.len() as u32 };
        payload[..4].copy_from_slice(&argsz.to_ne_bytes());
        let answer = answer.map(|mut reply| {
            reply[..4].copy_from_slice(&argsz.to_ne_bytes());
            reply
        });
        self.execute(u, 16, &payload, asks, |both| {
            match (feature, &answer) {
                (6, Ok(_)) => both.logging = Some(page_size.max(PAGE)),
                (7, _) => both.logging = None,
                _ => {}
            }
            Expected { calls: Vec::new(), answer }
        })
    }

    /// Size, argsz and result of a transfer.
    fn transfer(&mut self, u: &mut Unstructured) -> Result<(usize, u32, Returned)> {
        let size = match u8::arbitrary(u)? {
            0 => u.int_in_range(0..=0x8000)?,
            1 => self.max_data,
            2 => self.max_data + 1,
            3 => usize::arbitrary(u)? & 0xffff_ffff,
            other => usize::from(other % 16),
        };
        let argsz = match u8::arbitrary(u)? {
            0 => (size + 7) as u32,
            1 => u32::MAX,
            _ => size.saturating_add(8).try_into().unwrap_or(u32::MAX),
        };
        let result = match u8::arbitrary(u)? {
            0..4 => Returned { value: -1, errno: 0xbeef },
            4 => Returned { value: -1, errno: 0 },
            5 => Returned { value: u32::MAX.into(), errno: libc::EIO },
            6 => Returned { value: -2, errno: libc::EIO },
            7 => Returned { value: size as i64 + 1, errno: libc::EIO },
            8..16 => Returned { value: size as i64 / 2, errno: 0 },
            16 => Returned { value: i64::MIN, errno: 0 },
            _ => Returned { value: size as i64, errno: 0 },
        };
        self.device().data = result;
        Ok((size, argsz, result))
    }

    fn is_possible(&self, size: usize, argsz: u32) -> bool {
        size <= self.max_data && argsz as usize >= size.saturating_add(8)
    }

    fn read(&mut self, u: &mut Unstructured) -> Result<()> {
        let (size, argsz, result) = self.transfer(u)?;
        let mut payload = words(&[argsz, size as u32]);
        if u8::arbitrary(u)? == 0 {
            payload.truncate(7);
        }
        // What a client that doesn't read its replies meanwhile has room for.
        let size = if size > 0x8000 && self.is_possible(size, argsz) { return Ok(()) } else { size };
        let is_good = payload.len() == 8
            && self.is_possible(size, argsz)
            && [PRE_COPY, STOP_COPY].contains(&self.state);
        self.execute(u, 17, &payload, false, |_| {
            if !is_good {
                return Expected { calls: Vec::new(), answer: Err(libc::EINVAL) };
            }
            let answer = match result.value {
                -1 | 0xffff_ffff => Err(result.failure()),
                value if value < 0 || value > size as i64 => Err(libc::EINVAL),
                value => {
                    let mut reply = words(&[8 + value as u32, value as u32]);
                    reply.extend((0..value as usize).map(|at| at as u8 ^ 0x5a));
                    Ok(reply)
                }
            };
            Expected { calls: vec![Call::Read(size as u64)], answer }
        })
    }

    fn write(&mut self, u: &mut Unstructured) -> Result<()> {
        let (size, argsz, result) = self.transfer(u)?;
        let there = match u8::arbitrary(u)? {
            0 => size.saturating_sub(1),
            1 => size.saturating_add(5),
            _ => size,
        };
        let mut payload = words(&[argsz, size as u32]);
        payload.resize(8 + there.min(0x8000), 0x77);
        if payload.len() > 8 && u8::arbitrary(u)? % 8 == 0 {
            payload[8] = 0x88;
        }
        let is_good = payload.len() >= size.saturating_add(8)
            && self.is_possible(size, argsz)
            && self.state == RESUMING;
        let data = payload.get(8..size.saturating_add(8)).unwrap_or_default().to_vec();
        self.execute(u, 18, &payload, false, |_| {
            if !is_good {
                return Expected { calls: Vec::new(), answer: Err(libc::EINVAL) };
            }
            let answer = match result.value {
                -1 | 0xffff_ffff => Err(result.failure()),
                value if value == size as i64 => Ok(Vec::new()),
                _ => Err(libc::EINVAL),
            };
            Expected { calls: vec![Call::Write(data)], answer }
        })
    }
}

fn callbacks(version: c_int) -> capi::vfu_migration_callbacks_t {
    capi::vfu_migration_callbacks_t {
        version,
        transition: Some(transition),
        read_data: Some(read_data),
        write_data: Some(write_data),
    }
}

/// A client, and how much data it takes at a time.
fn attach(u: &mut Unstructured, handle: Handle) -> Result<(UnixStream, usize)> {
    let max_data = match u8::arbitrary(u)? {
        0..32 => Some(u.int_in_range(1..=0x100)?),
        32..40 => Some(0x20_0000),
        _ => None,
    };
    let client = Context::connect().expect("a context that listens");
    let text = max_data.map(|max| format!("{{\"capabilities\":{{\"max_data_xfer_size\":{max}}}}}"));
    peer::send(&client, &peer::version(&text.unwrap_or_default()));
    // SAFETY: the context is there.
    assert_eq!(unsafe { capi::vfu_attach_ctx(handle) }, 0);
    let mut reply = Vec::new();
    peer::drain(&client, &mut reply);
    let (header, _) = peer::take_message(&mut reply).expect("a reply");
    assert_eq!((header.msg_id, header.cmd, header.flags), (0xfeed, 1, 1));
    Ok((client, max_data.unwrap_or(1 << 20).min(1 << 20)))
}
