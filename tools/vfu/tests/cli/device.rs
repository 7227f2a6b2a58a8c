//! A made-up device: a few regions and interrupts, scripted request by request.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::peer::*;

pub const CAPABILITIES: &str = r#"{"capabilities":{"max_msg_fds":2,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":64,"write_multiple":true,"migration":{"pgsize":4096},"unknown":[null]}}"#;

pub const EINVAL: i32 = 22;

/// Sizes of the nine regions.
pub const SIZES: [u64; 9] = [0x1000, 0, 0x4000, 0, 0x20, 0, 0x800, 0x1000, 0];
/// Counts of the five interrupt types.
pub const COUNTS: [u32; 5] = [1, 0, 5, 1, 1];

/// What the client did, command by command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Read { region: u32, offset: u64, count: u32 },
    Write { region: u32, offset: u64, data: Vec<u8> },
    Irqs { flags: u32, index: u32, start: u32, count: u32, fds: usize },
    Reset,
}

pub struct Device {
    pub config: Vec<u8>,
    pub bar0: Vec<u8>,
    pub eventfds: Vec<Option<OwnedFd>>,
    pub seen: Vec<Seen>,
}

impl Device {
    /// Serves one client with the made-up device; in the end, what it did.
    pub fn serve() -> Peer<Device> {
        Peer::new(|mut conn| {
            conn.negotiate(CAPABILITIES);
            let mut device = Device::new();
            while let Some(request) = conn.next() {
                device.handle(&mut conn, request);
            }
            device
        })
    }

    pub fn new() -> Device {
        let bar0 = (0..0x1000).map(|n| (n % 251) as u8).collect();
        let eventfds = (0..COUNTS[2]).map(|_| None).collect();
        Device { config: crate::config::space(), bar0, eventfds, seen: vec![] }
    }

    pub fn handle(&mut self, conn: &mut Conn, request: Request) {
        match request.cmd {
            GET_INFO => {
                assert_eq!((request.body.len(), request.u32(0)), (16, 16));
                conn.reply(&request, &words(&[16, 3, 9, 5]));
            }
            GET_REGION_INFO => region_info(conn, &request),
            GET_IRQ_INFO => {
                let index = request.u32(8);
                assert_eq!((request.body.len(), request.u32(0)), (16, 16));
                conn.reply(&request, &words(&[16, 1, index, COUNTS[index as usize]]));
            }
            SET_IRQS => self.set_irqs(conn, request),
            REGION_READ => self.read(conn, &request),
            REGION_WRITE => self.write(conn, &request),
            RESET => {
                assert!(request.body.is_empty());
                self.seen.push(Seen::Reset);
                conn.reply(&request, &[]);
            }
            _ => conn.error(&request, EINVAL),
        }
    }

    fn space(&mut self, region: u32) -> &mut Vec<u8> {
        if region == 7 { &mut self.config } else { &mut self.bar0 }
    }

    fn range(&mut self, request: &Request) -> Option<(u32, usize, usize)> {
        let (offset, region, count) = (request.u64(0), request.u32(8), request.u32(12));
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(count as usize)?;
        let inside = (region == 0 || region == 7) && end <= self.space(region).len();
        inside.then_some((region, start, end))
    }

    fn read(&mut self, conn: &mut Conn, request: &Request) {
        let (offset, region, count) = (request.u64(0), request.u32(8), request.u32(12));
        assert_eq!(request.body.len(), 16);
        self.seen.push(Seen::Read { region, offset, count });
        match self.range(request) {
            Some((region, start, end)) => {
                let data = self.space(region)[start..end].to_vec();
                conn.reply(request, &[request.body.clone(), data].concat());
            }
            None => conn.error(request, EINVAL),
        }
    }

    fn write(&mut self, conn: &mut Conn, request: &Request) {
        let (offset, region, data) = (request.u64(0), request.u32(8), request.body[16..].to_vec());
        assert_eq!(data.len(), request.u32(12) as usize);
        self.seen.push(Seen::Write { region, offset, data: data.clone() });
        match self.range(request) {
            Some((region, start, end)) => {
                self.space(region)[start..end].copy_from_slice(&data);
                conn.reply(request, &request.body[..16]);
                // The doorbell: the vector whose number is written.
                if (region, start) == (0, 0x20) {
                    signal(self.eventfds[data[0] as usize].as_ref().unwrap());
                }
            }
            None => conn.error(request, EINVAL),
        }
    }

    fn set_irqs(&mut self, conn: &mut Conn, mut request: Request) {
        let [argsz, flags, index, start, count] = [0, 4, 8, 12, 16].map(|at| request.u32(at));
        assert_eq!((request.body.len(), argsz), (20, 20));
        let fds = request.fds.len();
        self.seen.push(Seen::Irqs { flags, index, start, count, fds });
        let vectors = start as usize..(start + count) as usize;
        match flags {
            0x24 => {
                assert_eq!(fds, count as usize);
                for (vector, fd) in vectors.zip(request.fds.drain(..)) {
                    self.eventfds[vector] = Some(fd);
                }
            }
            0x21 if count == 0 => self.eventfds.iter_mut().for_each(|fd| *fd = None),
            0x21 => self.eventfds[vectors].iter().flatten().for_each(signal),
            _ => return conn.error(&request, EINVAL),
        }
        conn.reply(&request, &[]);
    }
}

impl Conn {
    /// Answers what clients ask before they access a region: about the device, and about the region.
    pub fn tell_of_regions(&mut self) {
        for command in [GET_INFO, GET_REGION_INFO] {
            let request = self.next().unwrap();
            assert_eq!(request.cmd, command);
            Device::new().handle(self, request);
        }
    }
}

/// BAR 2 can be mapped in two places, which takes a second request.
fn region_info(conn: &mut Conn, request: &Request) {
    let [argsz, flags, index] = [0, 4, 8].map(|at| request.u32(at));
    assert_eq!((request.body.len(), flags), (32, 0));
    let size = SIZES[index as usize];
    let fixed = |argsz: u32, flags: u32, cap_offset: u32| {
        [words(&[argsz, flags, index, cap_offset]), quads(&[size, 0])].concat()
    };
    match (index, argsz) {
        (2, 32) => conn.reply(request, &fixed(80, 7, 0)),
        (2, 80) => {
            let areas = [words(&[0x0001_0001, 0, 2, 0]), quads(&[0, 0x1000, 0x2000, 0x1000])].concat();
            let bytes = message(request.id, request.cmd, 1, 0, &[fixed(80, 15, 32), areas].concat());
            let (fd, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            conn.send_with_fds(&bytes, &[fd.as_fd()]);
        }
        _ => conn.reply(request, &fixed(32, if size > 0 { 3 } else { 0 }, 0)),
    }
}

/// A look at the whole configuration space.
pub fn config_reads() -> Vec<Seen> {
    (0..0x1000).step_by(4).map(|offset| Seen::Read { region: 7, offset, count: 4 }).collect()
}

/// Runs `vfu` against the made-up device.
pub fn run(command: &str, arguments: &[&str]) -> (crate::Run, Vec<Seen>) {
    let peer = Device::serve();
    let socket: PathBuf = peer.socket();
    let run = crate::vfu(command, &socket, arguments);
    (run, peer.done().seen)
}
