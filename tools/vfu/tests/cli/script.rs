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
    let refused = vfu_with_input("script", &nowhere().1, &[], b"migrate elsewhere");
    refused.fails(2, "line 1: migrate is no command for a script");
}

#[test]
fn what_is_wrong_with_a_line_is_said_in_full() {
    for (line, text) in [
        ("raed BAR0 0", "line 1: no command 'raed'; is it read? (help lists them)\n"),
        ("read BAR0", "line 1: the following required arguments were not provided: <OFFSET>\n"),
        ("peek 0 --width 3", "'3' for '--width <WIDTH>': none of 1, 2, 4, 8\n"),
        ("read BAR0 0 --colour", "line 1: unexpected argument '--colour' found"),
        ("poke 0 1\nrepeat 2\nread BAR0 0", "line 2: repeat without end\n"),
        ("read BAR0 0\nend", "line 2: end without repeat\n"),
        ("expect BAR0 0 0x100 --width 1", "line 1: 0x100 does not fit 1 bytes\n"),
        ("expect BAR0 0 3 --mask 1", "line 1: 0x3 has bits that the mask 0x1 has not\n"),
        (&"repeat 1\n".repeat(17), "line 17: too many blocks inside blocks\n"),
    ] {
        vfu_with_input("script", &nowhere().1, &[], line.as_bytes()).fails(2, text);
    }
}

#[test]
fn blocks_are_repeated() {
    let (run, seen) =
        script("repeat 2\nread BAR0 0\nrepeat 3\nread BAR0 4\nend\nend\nrepeat 0\nreset\nend\n");
    run.ok();
    let once = [read(0, 0), read(0, 4), read(0, 4), read(0, 4)];
    assert_eq!(seen, [once.clone(), once].concat());
}

/// A device whose register counts how often it was read.
fn counter() -> Peer<u32> {
    Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let mut device = Device::new();
        let mut reads = 0;
        while let Some(request) = conn.next() {
            if request.cmd == REGION_READ {
                reads += 1;
                conn.reply(&request, &[request.body.clone(), words(&[0x100 + reads])].concat());
            } else {
                device.handle(&mut conn, request);
            }
        }
        reads
    })
}

#[test]
fn a_script_waits_for_a_register() {
    for (line, reads) in
        [("expect BAR0 0 0x105", 5), ("expect BAR0 0 0 --mask 7", 8), ("sleep 0.01\nexpect BAR0 0 0x101", 1)]
    {
        let peer = counter();
        vfu_with_input("script", &peer.socket(), &[], line.as_bytes()).ok();
        assert_eq!(peer.done(), reads);
    }
    let peer = counter();
    let run = vfu_with_input("script", &peer.socket(), &[], b"\nexpect BAR0 0 1 --timeout 0.05");
    run.fails(1, "and did not become 0x1 within 0.05 s\n");
    assert!(peer.done() > 0);
    let (run, seen) = script("expect BAR1 0 0");
    run.fails(1, "line 1: the device has no BAR1\n");
    assert_eq!(seen, []);
}

#[test]
fn a_script_tells_of_its_lines_and_prints_json_in_lines() {
    let (run, _) = script("help");
    let run = run.ok();
    for word in ["map ADDR", "expect REGION", "repeat N", "sleep SECONDS"] {
        assert!(run.text().contains(word), "{}", run.text());
    }
    let peer = Device::serve();
    let run = vfu_with_input("script", &peer.socket(), &["--json"], b"read BAR0 0\nwrite BAR0 0 1\n").ok();
    let values = run.text().lines().map(|line| serde_json::from_str(line).unwrap());
    let values: Vec<serde_json::Value> = values.collect();
    assert_eq!((values[0]["value"].clone(), values[1]["count"].clone()), (0x0302_0100.into(), 4.into()));
    peer.done();
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
                _ => Device::new().handle(&mut conn, request),
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
