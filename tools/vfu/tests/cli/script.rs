//! `vfu script`

use std::fs;

use crate::device::{CAPABILITIES, Device, Seen, run};
use crate::peer::*;
use crate::{Run, vfu_with_input};

/// Runs a script against the made-up device: what it did.
fn script(lines: &str) -> (Run, Vec<Seen>) {
    let peer = Device::serve();
    let run = vfu_with_input("script", &peer.socket(), &[], lines.as_bytes());
    (run, peer.done().seen)
}

fn read(region: u32, offset: u64) -> Seen {
    Seen::Read { region, offset, count: 4 }
}

#[test]
fn commands_are_executed_in_order_on_one_connection() {
    let (run, seen) =
        script("# a comment\n\nread BAR0 0x10\n write BAR0 8 0x1234 # another\nread bar0 8\nreset\n");
    assert_eq!(run.ok().text(), "0x13121110\n0x00001234\n");
    let write = Seen::Write { region: 0, offset: 8, data: vec![0x34, 0x12, 0, 0] };
    assert_eq!(seen, [read(0, 16), write, read(0, 8), Seen::Reset]);
}

#[test]
fn a_file_is_as_good_as_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    fs::write(&file, "read BAR0 0x10\n").unwrap();
    assert_eq!(run("script", &[file.to_str().unwrap()]).0.ok().text(), "0x13121110\n");
    vfu_with_input("script", &nowhere().1, &["/no/such/file"], b"").fails(6, "/no/such/file");
}

#[test]
fn the_first_failure_ends_it_and_names_its_line() {
    let (run, seen) = script("read BAR0 0\n\nread BAR0 0x100000\nread BAR0 4\n");
    assert_eq!((run.code, run.text()), (1, "0x03020100\n"));
    assert!(
        run.err.starts_with("vfu: line 3: read of 4 bytes of BAR0 at 0x100000: the device answered"),
        "{}",
        run.err
    );
    assert_eq!(seen, [read(0, 0), read(0, 0x10_0000)]);
}

#[test]
fn lines_that_make_no_sense_show_before_the_device_is_touched() {
    for line in
        ["raed BAR0 0", "read BAR0", "map 0", "map 0 4k --memory disk", "fill 0 1 256", "peek 0 --width 3"]
    {
        let input = format!("read BAR0 0\n{line}\n");
        vfu_with_input("script", &nowhere().1, &[], input.as_bytes()).fails(2, "line 2: ");
    }
}

#[test]
fn what_has_connections_of_its_own_is_refused() {
    script("migrate elsewhere").0.fails(2, "line 1: ");
}

/// A device that adds up the first two words of memory by messages, once it is
/// told where it is, and puts the sum behind them.
fn adder() -> Peer<Vec<(u64, u64, u32)>> {
    Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let mut maps = Vec::new();
        while let Some(request) = conn.next() {
            match request.cmd {
                DMA_MAP => {
                    maps.push((request.u64(16), request.u64(24), request.u32(4)));
                    assert_eq!(request.fds.is_empty(), request.u32(4) & 4 == 0);
                    conn.reply(&request, &[]);
                }
                DMA_UNMAP => conn.reply(&request, &request.body),
                REGION_WRITE => {
                    let addr = u64::from(request.u32(16));
                    conn.send(&message(1, DMA_READ, 0, 0, &quads(&[addr, 8])));
                    let read = conn.next().unwrap();
                    let sum = read.u32(16) + read.u32(20);
                    let write = [quads(&[addr + 8, 4]), words(&[sum])].concat();
                    conn.send(&message(2, DMA_WRITE, 0, 0, &write));
                    assert_eq!(conn.next().unwrap().body.len(), 16);
                    conn.reply(&request, &request.body[..16]);
                }
                cmd => panic!("command {cmd}"),
            }
        }
        maps
    })
}

#[test]
fn the_device_gets_memory_to_work_on() {
    let peer = adder();
    let lines = "map 0x10000 64K --memory message\nmap 0 4096 --read-only\npoke 0x10010 30 12\n\
                 write BAR0 0 0x10010\npeek 0x10018\npeek 0x10010 --count 12\n\
                 fill 0x10000 3 0xab\npeek 0x10000 --width 8\nunmap 0x10000\npeek 0x10000\n";
    let run = vfu_with_input("script", &peer.socket(), &[], lines.as_bytes());
    let text = run.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("0x0000002a", "0x0000000000ababab"), "{text}");
    assert!(lines[1].starts_with("010010:   1e 00 00 00  0c 00 00 00  2a 00 00 00"), "{text}");
    assert_eq!((run.code, lines.len()), (6, 3));
    assert!(run.err.contains("line 10: memory"), "{}", run.err);
    assert_eq!(peer.done(), [(0x1_0000, 0x1_0000, 3), (0, 4096, 1 | 4)]);
}
