//! `vfu dma` against a DMA engine that moves memory as the example device does.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::device::{CAPABILITIES, Device, EINVAL};
use crate::peer::*;
use crate::{Run, vfu};

const IRQ_STATUS: usize = 0x10;
const IRQ_ENABLE: usize = 0x14;
const DOORBELL: u64 = 0x28;
const DESC: usize = 0x80;
const CHUNK: u64 = 64 << 10;

/// How the engine misbehaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// It leaves the last byte out.
    LastByte,
    /// It writes a byte too many.
    ByteTooMany,
    /// It reports that the source cannot be read.
    Status,
    /// It never interrupts.
    Silent,
    /// It reads beyond the memory.
    Beyond,
}

struct Map {
    flags: u32,
    addr: u64,
    size: u64,
    file: Option<File>,
}

pub struct Engine {
    device: Device,
    maps: Vec<Map>,
    /// Every range that was mapped: with its flags and whether a file came.
    mapped: Vec<(u32, u64, u64, bool)>,
    /// Where DMA commands go, if not over the main connection.
    twin: Option<Conn>,
    errors: Vec<u32>,
    fault: Fault,
}

impl Engine {
    pub fn serve(fault: Fault, twin: bool) -> Peer<Engine> {
        Peer::new(move |mut conn| {
            let twin = if twin { Some(negotiate_with_twin(&mut conn)) } else { None };
            if twin.is_none() {
                conn.negotiate(CAPABILITIES);
            }
            let mut device = Device::new();
            device.bar0.fill(0);
            device.bar0[..8].copy_from_slice(b"DMAE\0\0\x01\0");
            let (maps, mapped, errors) = (vec![], vec![], vec![]);
            let mut engine = Engine { device, maps, mapped, twin, errors, fault };
            while let Some(request) = conn.next() {
                engine.handle(&mut conn, request);
            }
            engine
        })
    }

    fn handle(&mut self, conn: &mut Conn, mut request: Request) {
        match request.cmd {
            DMA_MAP => {
                assert_eq!((request.body.len(), request.u32(0)), (32, 32));
                let [offset, addr, size] = [8, 16, 24].map(|at| request.u64(at));
                assert_eq!(offset, 0);
                let file = request.fds.pop().map(File::from);
                self.mapped.push((request.u32(4), addr, size, file.is_some()));
                self.maps.push(Map { flags: request.u32(4), addr, size, file });
                conn.reply(&request, &[]);
            }
            DMA_UNMAP => {
                assert_eq!((request.body.len(), request.u32(0), request.u32(4)), (24, 24, 0));
                let range = (request.u64(8), request.u64(16));
                let before = self.maps.len();
                self.maps.retain(|m| (m.addr, m.size) != range);
                match self.maps.len() < before {
                    true => conn.reply(&request, &request.body),
                    false => conn.error(&request, EINVAL),
                }
            }
            REGION_WRITE if (request.u32(8), request.u64(0)) == (0, DOORBELL) => {
                self.device.handle(conn, request);
                self.execute(conn);
            }
            _ => self.device.handle(conn, request),
        }
    }

    fn execute(&mut self, conn: &mut Conn) {
        let desc = self.device.bar0[DESC..DESC + 64].to_vec();
        let quad = |at: usize| u64::from_le_bytes(desc[at..at + 8].try_into().unwrap());
        let (op, flags, vector) = (desc[0], desc[4], desc[40]);
        let (src, dst, len, value) = (quad(8), quad(16), quad(24), quad(32));
        let by_message = flags & 0x10 != 0;
        let (mut sum, mut status) = (0xcbf2_9ce4_8422_2325_u64, 1);
        let wrong = match self.fault {
            Fault::LastByte => len - 1,
            Fault::ByteTooMany => len + 1,
            _ => len,
        };
        for start in (0..wrong).step_by(CHUNK as usize) {
            let size = CHUNK.min(wrong - start);
            let data = match op {
                1 | 4 => self.read(conn, src + start, size, by_message),
                2 => vec![value as u8; size as usize],
                3 => (start..start + size).map(|i| (value + i) as u8).collect(),
                _ => panic!("operation {op}"),
            };
            match op {
                4 => data.iter().for_each(|b| sum = (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)),
                _ => self.write(conn, dst + start, &data, by_message),
            }
        }
        match self.fault {
            Fault::Status => status = 4,
            Fault::Silent => return,
            Fault::Beyond => drop(self.read(conn, dst, CHUNK, true)),
            _ => {}
        }
        self.complete(status, if op == 4 { sum } else { 0 }, vector.into());
    }

    fn complete(&mut self, status: u8, result: u64, vector: usize) {
        let bar0 = &mut self.device.bar0;
        bar0[DESC + 44] = status;
        bar0[DESC + 48..DESC + 56].copy_from_slice(&result.to_le_bytes());
        bar0[IRQ_STATUS] = if status == 1 { 1 } else { 2 };
        assert_eq!((bar0[8], bar0[IRQ_ENABLE]), (1, 3), "the engine and its interrupts are on");
        assert_eq!(self.device.config[4] & 6, 6, "memory and bus master are on");
        assert_eq!(self.device.config[0x63] & 0x80, 0x80, "MSI-X is on");
        signal(self.device.eventfds[vector].as_ref().unwrap());
    }

    fn map(&self, addr: u64, size: u64, access: u32) -> Option<&Map> {
        self.maps.iter().find(|m| m.flags & access != 0 && m.addr <= addr && addr + size <= m.addr + m.size)
    }

    fn read(&mut self, conn: &mut Conn, addr: u64, size: u64, by_message: bool) -> Vec<u8> {
        let map = self.map(addr, size, 1).filter(|m| !by_message && m.file.is_some());
        match map.map(|m| (m.file.as_ref().unwrap(), addr - m.addr)) {
            Some((file, offset)) => {
                let mut data = vec![0; size as usize];
                file.read_exact_at(&mut data, offset).unwrap();
                data
            }
            None => self.ask(conn, DMA_READ, addr, size, &[]),
        }
    }

    fn write(&mut self, conn: &mut Conn, addr: u64, data: &[u8], by_message: bool) {
        let map = self.map(addr, data.len() as u64, 2).filter(|m| !by_message && m.file.is_some());
        match map.map(|m| (m.file.as_ref().unwrap(), addr - m.addr)) {
            Some((file, offset)) => file.write_all_at(data, offset).unwrap(),
            None => drop(self.ask(conn, DMA_WRITE, addr, data.len() as u64, data)),
        }
    }

    /// Sends a command to the client, and returns the data of its answer.
    fn ask(&mut self, conn: &mut Conn, cmd: u16, addr: u64, size: u64, data: &[u8]) -> Vec<u8> {
        let conn = self.twin.as_mut().unwrap_or(conn);
        let body = [quads(&[addr, size]), data.to_vec()].concat();
        conn.send(&message(0x4242, cmd, 0, 0, &body));
        let reply = conn.next().unwrap();
        assert_eq!((reply.id, reply.cmd), (0x4242, cmd));
        if reply.flags == 0x21 {
            self.errors.push(u32::from(cmd));
            return vec![];
        }
        assert_eq!((reply.flags, reply.u64(0), reply.u64(8)), (1, addr, size));
        reply.body[16..].to_vec()
    }
}

/// Answers the version message with a second socket.
fn negotiate_with_twin(conn: &mut Conn) -> Conn {
    let request = conn.next().unwrap();
    let text = String::from_utf8(request.body[4..request.body.len() - 1].to_vec()).unwrap();
    let text: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text["capabilities"]["twin_socket"], json!({"supported": true}));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let json = br#"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true,"fd_index":0}}}"#;
    let body = [&[0, 0, 2, 0], &json[..], &[0]].concat();
    conn.send_with_fds(&message(request.id, request.cmd, 1, 0, &body), &[theirs.as_fd()]);
    Conn { stream: ours }
}

fn run_with(fault: Fault, arguments: &[&str]) -> (Run, Engine) {
    let peer = Engine::serve(fault, arguments.contains(&"--twin-socket"));
    let run = vfu("dma", &peer.socket(), arguments);
    (run, peer.done())
}

/// A run that must succeed and leave nothing behind: the report.
#[track_caller]
fn good(arguments: &[&str]) -> (serde_json::Value, Engine) {
    let (run, engine) = run_with(Fault::None, &[arguments, &["--verify", "--json"]].concat());
    let report = run.ok().json();
    assert_eq!((&report["verified"], &report["interrupts"]), (&json!(true), &json!(1)));
    assert!(engine.maps.is_empty() && engine.errors.is_empty());
    assert!(engine.device.eventfds.iter().all(Option::is_none));
    let bar0 = &engine.device.bar0;
    assert_eq!((bar0[8], bar0[IRQ_ENABLE], engine.device.config[0x63]), (0, 0, 0), "all is off again");
    (report, engine)
}

#[test]
fn memory_with_a_descriptor_is_moved_without_messages() {
    let (report, engine) = good(&["copy", "--bytes", "100000", "--vector", "3"]);
    assert_eq!(report["messages"], json!({"reads": 0, "writes": 0}));
    assert_eq!((&report["operation"], &report["memory"]), (&json!("copy"), &json!("memfd")));
    let base = 0x1_0000_0000;
    assert_eq!(engine.mapped, [(5, base, 0x19000, true), (7, base + 0x19000, 0x19000, true)]);
}

#[test]
fn memory_without_a_descriptor_is_moved_by_messages() {
    let (report, engine) = good(&["copy", "--bytes", "100000", "--memory", "message", "--addr", "0x10000"]);
    assert_eq!(report["messages"], json!({"reads": 2, "writes": 2}));
    assert_eq!(engine.mapped, [(1, 0x10000, 0x19000, false), (3, 0x29000, 0x19000, false)]);
}

#[test]
fn messages_can_be_asked_for_where_there_is_a_descriptor() {
    let (report, _) = good(&["copy", "--bytes", "70000", "--access", "message"]);
    assert_eq!(report["messages"], json!({"reads": 2, "writes": 2}));
}

#[test]
fn messages_can_use_the_second_socket() {
    let (report, _) = good(&["copy", "--bytes", "70000", "--memory", "message", "--twin-socket"]);
    assert_eq!(report["messages"], json!({"reads": 2, "writes": 2}));
}

#[test]
fn every_operation_works_with_both_kinds_of_memory() {
    for memory in ["memfd", "message"] {
        for operation in ["fill", "pattern", "checksum"] {
            good(&[operation, "--bytes", "5000", "--memory", memory, "--value", "0xfe"]);
        }
        good(&["copy", "--bytes", "0", "--memory", memory]);
    }
}

#[test]
fn the_text_says_what_was_done() {
    let (run, _) = run_with(Fault::None, &["fill", "--bytes", "64"]);
    let run = run.ok();
    assert!(run.text().starts_with("fill of 64 bytes in memfd memory: done\n"), "{}", run.text());
    assert!(run.text().contains("verified     no\n"), "{}", run.text());
}

#[test]
fn wrong_bytes_are_found() {
    for memory in ["memfd", "message"] {
        for operation in ["copy", "fill", "pattern"] {
            let line = [operation, "--bytes", "5000", "--memory", memory, "--verify"];
            run_with(Fault::LastByte, &line).0.fails(1, "the destination is wrong from byte 0x1387 on");
            run_with(Fault::ByteTooMany, &line).0.fails(1, "the destination is wrong from byte 0x1388 on");
        }
        let line = ["checksum", "--bytes", "5000", "--memory", memory, "--verify"];
        run_with(Fault::LastByte, &line).0.fails(1, "the sum is");
    }
}

#[test]
fn a_failing_engine_is_exit_code_1() {
    run_with(Fault::Status, &["copy"]).0.fails(1, "the DMA engine cannot read the source");
}

#[test]
fn an_engine_without_end_is_exit_code_4() {
    let (run, _) = run_with(Fault::Silent, &["copy", "--timeout", "0.2"]);
    run.fails(4, "no interrupt of the DMA engine came within 0.2 s");
}

#[test]
fn addresses_without_memory_are_refused_to_the_device() {
    let (run, engine) = run_with(Fault::Beyond, &["copy", "--memory", "message"]);
    run.ok();
    assert_eq!(engine.errors, [u32::from(DMA_READ)]);
}

#[test]
fn another_device_is_told_apart() {
    let (run, _) = crate::device::run("dma", &["copy"]);
    run.fails(1, "not a dma-engine: BAR0 starts with 0x03020100");
    run_with(Fault::None, &["copy", "--vector", "5"]).0.fails(2, "--vector 5: the device has 5 MSI-X");
    run_with(Fault::None, &["copy", "--addr", "1"]).0.fails(2, "no memory can be at 0x1");
}
