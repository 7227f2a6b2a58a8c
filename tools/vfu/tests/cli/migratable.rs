//! A made-up device that can migrate: the one of `device`, with states, a
//! stream of data, and dirty logging. It can misbehave.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::device::Device;
use crate::peer::*;

pub const DEVICE_FEATURE: u16 = 16;
pub const MIG_DATA_READ: u16 = 17;
pub const MIG_DATA_WRITE: u16 = 18;

pub const STOP: u32 = 1;
pub const RUNNING: u32 = 2;
pub const STOP_COPY: u32 = 3;
pub const RESUMING: u32 = 4;
pub const PRE_COPY: u32 = 6;

pub const EIO: i32 = 5;
const EINVAL: i32 = 22;

/// How the device misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// It has no migration.
    Immovable,
    /// It has no PRE_COPY.
    NoPreCopy,
    /// It refuses to go to a state.
    Refuses(u32),
    /// It fails the n-th transfer of data.
    Data(usize),
    /// It sends half of what it promises.
    HalfData,
    /// It promises more data than was asked for.
    MuchData,
    /// It hangs up at the n-th transfer of data.
    HangUp(usize),
    /// It writes to a page and doesn't say so.
    LostBit,
    /// It writes to memory after the stop.
    LateWrite,
    /// A bitmap of it lacks a word.
    ShortBitmap,
    /// A report of it is about another range.
    OtherRange,
    /// Its logging has pages of 3000 bytes.
    OddPages,
    /// A byte of its registers is wrong when it has been loaded.
    WrongRegister,
    /// It is a device of another kind.
    OtherDevice,
    /// It is in this state from the start.
    Begins(u32),
    /// It takes no DMA maps.
    NoMaps,
    /// Its registers are read by so many bytes at the most.
    Registers(u32),
    /// It takes no writes to the configuration space.
    NoConfig,
    /// It loads no data and cannot be reset either.
    NoReset,
}

pub struct Map {
    pub addr: u64,
    pub size: u64,
    pub file: File,
    dirty: BTreeSet<u64>,
}

pub struct Migratable {
    pub device: Device,
    pub state: u32,
    /// States that were asked for, and resets, in order.
    pub states: Vec<u32>,
    /// What was loaded.
    pub loaded: Vec<u8>,
    /// Sizes of the pieces that were written.
    pub pieces: Vec<usize>,
    pub maps: Vec<Map>,
    /// Segments that were unmapped.
    pub unmapped: Vec<Map>,
    pub logging: Option<(u64, Vec<(u64, u64)>)>,
    pub reports: usize,
    transfers: usize,
    stream: Vec<u8>,
    fault: Fault,
}

/// In the list of states: a reset.
pub const RESET_SEEN: u32 = 100;

/// What the source has to say before the stop.
fn pre_copy_data() -> Vec<u8> {
    (0..2500u32).map(|n| (n % 253) as u8).collect()
}

impl Migratable {
    /// Serves one client, which may transfer `xfer` bytes at a time, with a
    /// fresh device.
    pub fn serve(fault: Fault, xfer: usize) -> Peer<Migratable> {
        Migratable::new(fault).listen(xfer)
    }

    /// The same with a device that has something to move: it differs from a
    /// fresh one.
    pub fn serve_source(fault: Fault, xfer: usize) -> Peer<Migratable> {
        let mut device = Migratable::new(fault);
        device.device.config = crate::config::space();
        device.device.bar0.iter_mut().for_each(|byte| *byte ^= 0x55);
        device.listen(xfer)
    }

    fn listen(mut self, xfer: usize) -> Peer<Migratable> {
        Peer::new(move |mut conn| {
            let json = format!(r#"{{"capabilities":{{"max_msg_fds":2,"max_data_xfer_size":{xfer}}}}}"#);
            conn.negotiate(&json);
            while let Some(request) = conn.next() {
                if !self.handle(&mut conn, request) {
                    break;
                }
            }
            self
        })
    }

    fn new(fault: Fault) -> Migratable {
        let mut device = Device::new();
        // A fresh device, as far as a client can write to it.
        device.config[0x04..0x06].fill(0);
        device.config[0x10..0x28].fill(0);
        if fault == Fault::OtherDevice {
            device.config[0x02] ^= 1;
        }
        let state = if let Fault::Begins(state) = fault { state } else { RUNNING };
        Migratable {
            device,
            state,
            states: vec![],
            loaded: vec![],
            pieces: vec![],
            maps: vec![],
            unmapped: vec![],
            logging: None,
            reports: 0,
            transfers: 0,
            stream: vec![],
            fault,
        }
    }

    fn handle(&mut self, conn: &mut Conn, mut request: Request) -> bool {
        match request.cmd {
            DEVICE_FEATURE => self.feature(conn, &request),
            MIG_DATA_READ => return self.read(conn, &request),
            MIG_DATA_WRITE => return self.write(conn, &request),
            DMA_MAP if self.fault == Fault::NoMaps => conn.error(&request, EINVAL),
            DMA_MAP => {
                let file = File::from(request.fds.pop().unwrap());
                let (addr, size) = (request.u64(16), request.u64(24));
                self.maps.push(Map { addr, size, file, dirty: BTreeSet::new() });
                conn.reply(&request, &[]);
            }
            DMA_UNMAP => {
                assert_eq!((request.body.len(), request.u32(4)), (40, 1));
                let at = self.maps.iter().position(|m| m.addr == request.u64(8)).unwrap();
                let bits = self.bitmap(at);
                assert_eq!((request.u64(24), request.u64(32)), (4096, bits.len() as u64));
                assert_eq!(request.u32(0) as usize, 40 + bits.len());
                self.unmapped.push(self.maps.remove(at));
                conn.reply(&request, &[request.body.clone(), bits].concat());
            }
            RESET if self.fault == Fault::NoReset => conn.error(&request, EIO),
            RESET => {
                self.states.push(RESET_SEEN);
                self.state = RUNNING;
                conn.reply(&request, &[]);
            }
            REGION_READ if matches!(self.fault, Fault::Registers(most) if request.u32(8) == 0 && request.u32(12) > most) =>
            {
                conn.error(&request, EINVAL);
            }
            REGION_WRITE if request.u32(8) == 7 && self.fault == Fault::NoConfig => {
                conn.error(&request, EINVAL)
            }
            REGION_WRITE => {
                assert_ne!(self.state, STOP_COPY);
                self.device.handle(conn, request);
            }
            _ => self.device.handle(conn, request),
        }
        true
    }

    fn feature(&mut self, conn: &mut Conn, request: &Request) {
        let (argsz, flags) = (request.u32(0) as usize, request.u32(4));
        assert!(argsz >= request.body.len());
        if self.fault == Fault::Immovable {
            return conn.error(request, EINVAL);
        }
        let reply = |data: &[u8]| {
            assert!(argsz >= 8 + data.len());
            [words(&[8 + data.len() as u32, flags]), data.to_vec()].concat()
        };
        match (flags & 0xffff, flags >> 16) {
            // Probes of logging.
            (6 | 8, operation) if operation & 4 != 0 => conn.reply(request, &request.body.clone()),
            (1, 1) => {
                let flags = if self.fault == Fault::NoPreCopy { 1 } else { 5 };
                conn.reply(request, &reply(&quads(&[flags])))
            }
            (2, 1) => conn.reply(request, &reply(&words(&[self.state, 0]))),
            (2, 2) => {
                assert_eq!((request.body.len(), request.u32(12)), (16, 0));
                self.set_state(conn, request);
            }
            (6, 2) => {
                let ranges = (0..request.u32(16) as usize)
                    .map(|n| (request.u64(24 + 16 * n), request.u64(32 + 16 * n)))
                    .collect();
                self.logging = Some((request.u64(8), ranges));
                let mut body = request.body.clone();
                if self.fault == Fault::OddPages {
                    body[8..16].copy_from_slice(&3000u64.to_le_bytes());
                }
                conn.reply(request, &body);
            }
            (7, 2) => {
                self.logging = None;
                conn.reply(request, &request.body.clone());
            }
            (8, 1) => self.report(conn, request, argsz),
            _ => conn.error(request, EINVAL),
        }
    }

    fn set_state(&mut self, conn: &mut Conn, request: &Request) {
        let state = request.u32(8);
        self.states.push(state);
        if self.fault == Fault::Refuses(state) {
            return conn.error(request, EIO);
        }
        match (self.state, state) {
            (_, PRE_COPY) => self.stream = pre_copy_data(),
            (_, STOP_COPY) => {
                self.work(3);
                self.stream = self.device.bar0.clone();
            }
            (RESUMING, STOP | RUNNING) => {
                let start = self.loaded.len().saturating_sub(self.device.bar0.len());
                self.device.bar0.copy_from_slice(&self.loaded[start..]);
                if self.fault == Fault::WrongRegister {
                    self.device.bar0[0x123] ^= 1;
                }
            }
            _ => {}
        }
        self.state = state;
        conn.reply(request, &request.body.clone());
    }

    /// Writes to memory, as a device does: to the page with this number and
    /// the 9th after it, of each segment.
    fn work(&mut self, page: u64) {
        for map in &mut self.maps {
            for page in [page, page + 9] {
                let bytes = [page as u8 ^ 0xa5; 100];
                map.file.write_all_at(&bytes, page * 4096 + 4000).unwrap();
                // The write reaches into the next page.
                map.dirty.extend([page, page + 1]);
            }
            if self.fault == Fault::LostBit {
                map.dirty.remove(&(page + 1));
            }
        }
    }

    fn bitmap(&mut self, map: usize) -> Vec<u8> {
        let map = &mut self.maps[map];
        let mut bits = vec![0; (map.size / 4096).div_ceil(64) as usize * 8];
        for page in std::mem::take(&mut map.dirty) {
            bits[page as usize / 8] |= 1 << (page % 8);
        }
        bits
    }

    fn report(&mut self, conn: &mut Conn, request: &Request, argsz: usize) {
        assert_eq!(request.body.len(), 32);
        assert_eq!(self.logging.as_ref().unwrap().0, 4096);
        self.reports += 1;
        let [addr, size, page_size] = [8, 16, 24].map(|at| request.u64(at));
        let at = self.maps.iter().position(|m| (m.addr, m.size) == (addr, size)).unwrap();
        assert_eq!(page_size, 4096);
        if self.state != STOP_COPY {
            self.work(self.reports as u64 * 5 % 100);
            self.write_by_message(conn, addr + 77 * 4096 + self.reports as u64);
        } else if self.fault == Fault::LateWrite {
            let bits = self.bitmap(at);
            self.work(50);
            return conn.reply(request, &[request.body.clone(), bits].concat());
        }
        let mut bits = self.bitmap(at);
        if self.fault == Fault::ShortBitmap {
            bits.truncate(bits.len() - 8);
        }
        let mut body = [request.body.clone(), bits].concat();
        assert!(argsz >= body.len());
        if self.fault == Fault::OtherRange {
            body[8] ^= 1;
        }
        conn.reply(request, &body);
    }

    /// What a device writes by messages is not in its bitmaps.
    fn write_by_message(&mut self, conn: &mut Conn, addr: u64) {
        let body = [quads(&[addr, 3]), vec![1, 2, 3]].concat();
        conn.send(&message(500, DMA_WRITE, 0, 0, &body));
        let reply = conn.next().unwrap();
        assert_eq!((reply.id, reply.flags, reply.body), (500, 1, quads(&[addr, 3])));
    }

    /// Whether a transfer succeeds; false if the connection is to end.
    fn transfer(&mut self) -> Result<bool, i32> {
        self.transfers += 1;
        match self.fault {
            Fault::Data(n) if n == self.transfers => Err(EIO),
            Fault::HangUp(n) => Ok(n != self.transfers),
            _ => Ok(true),
        }
    }

    fn read(&mut self, conn: &mut Conn, request: &Request) -> bool {
        assert!([PRE_COPY, STOP_COPY].contains(&self.state));
        let size = request.u32(4);
        assert_eq!((request.body.len(), request.u32(0)), (8, 8 + size));
        match self.transfer() {
            Err(errno) => conn.error(request, errno),
            Ok(false) => return false,
            Ok(true) => {
                let rest = self.stream.split_off(self.stream.len().min(size as usize));
                let mut data = std::mem::replace(&mut self.stream, rest);
                let mut promised = data.len() as u32;
                match self.fault {
                    Fault::HalfData => data.truncate(data.len() / 2),
                    Fault::MuchData => promised = size + 1,
                    _ => {}
                }
                conn.reply(request, &[words(&[8 + promised, promised]), data].concat());
            }
        }
        true
    }

    fn write(&mut self, conn: &mut Conn, request: &Request) -> bool {
        assert_eq!(self.state, RESUMING);
        let data = &request.body[8..];
        assert_eq!((request.u32(0) as usize, request.u32(4) as usize), (8 + data.len(), data.len()));
        assert!(!data.is_empty());
        match self.transfer() {
            _ if self.fault == Fault::NoReset => conn.error(request, EIO),
            Err(errno) => conn.error(request, errno),
            Ok(false) => return false,
            Ok(true) => {
                self.pieces.push(data.len());
                self.loaded.extend_from_slice(data);
                conn.reply(request, &[]);
            }
        }
        true
    }

    /// All memory, of segments that are mapped and that were.
    pub fn memory(&self) -> Vec<u8> {
        let mut maps: Vec<&Map> = self.maps.iter().chain(&self.unmapped).collect();
        maps.sort_by_key(|map| map.addr);
        let mut all = vec![];
        for map in maps {
            let mut bytes = vec![0; map.size as usize];
            map.file.read_exact_at(&mut bytes, 0).unwrap();
            all.extend(bytes);
        }
        all
    }

    /// The data that a device which has moved was given.
    pub fn expected_data(&self, with_pre_copy: bool) -> Vec<u8> {
        [if with_pre_copy { pre_copy_data() } else { vec![] }, self.device.bar0.clone()].concat()
    }
}
