//! `vfu read` and `vfu write`

use serde_json::json;

use crate::device::{Device, Seen, run};
use crate::{Run, vfu_with_input};

fn read(offset: u64, count: u32) -> Seen {
    Seen::Read { region: 0, offset, count }
}

fn written(offset: u64, data: &[u8]) -> Seen {
    Seen::Write { region: 0, offset, data: data.to_vec() }
}

#[test]
fn one_access_prints_the_number() {
    let (run0, seen) = run("read", &["bar0", "0x10"]);
    assert_eq!((run0.ok().text(), seen), ("0x13121110\n", vec![read(16, 4)]));
    for (width, text) in [("1", "0x00\n"), ("2", "0x0100\n"), ("8", "0x0706050403020100\n")] {
        let (run, seen) = run("read", &["0", "0", "--width", width]);
        assert_eq!((run.ok().text(), seen), (text, vec![read(0, width.parse().unwrap())]));
    }
}

#[test]
fn more_is_a_dump_in_accesses_of_the_width() {
    let (run, seen) = run("read", &["BAR0", "0x40", "--count", "23", "--width", "8"]);
    let run = run.ok();
    let lines: Vec<_> = run.text().lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("0040:   40 41 42 43  44 45"), "{lines:?}");
    assert!(lines[1].starts_with("0050:   50 51 52 53  54 55 56"), "{lines:?}");
    assert_eq!(seen, [read(0x40, 8), read(0x48, 8), read(0x50, 4), read(0x54, 2), read(0x56, 1)]);
}

#[test]
fn block_takes_one_access() {
    let (run, seen) = run("read", &["BAR0", "0", "--count", "0x1000", "--block", "--raw"]);
    assert_eq!((run.ok().out, seen), (Device::new().bar0, vec![read(0, 0x1000)]));
}

#[test]
fn json_has_the_bytes_and_the_number() {
    let (run0, _) = run("read", &["BAR0", "2", "--width", "2", "--json"]);
    let expected = json!({"region": "BAR0", "offset": 2, "count": 2, "data": "0203", "value": 0x302});
    assert_eq!(run0.ok().json(), expected);
    let (run0, _) = run("read", &["BAR0", "2", "--count", "2", "--width", "1", "--json"]);
    assert_eq!(run0.ok().json()["value"], json!(null));
    let (run0, _) = run("write", &["BAR0", "8", "1", "2", "--json"]);
    assert_eq!(run0.ok().json(), json!({"region": "BAR0", "offset": 8, "count": 8}));
    let (run0, _) = run("reset", &["--json"]);
    assert_eq!(run0.ok().json(), json!({"reset": true}));
    let (_dir, socket) = crate::peer::nowhere();
    crate::vfu("read", &socket, &["BAR0", "0", "--raw", "--json"])
        .fails(2, "--raw and --json exclude each other");
    crate::vfu("config", &socket, &["--dump", "--json"]).fails(2, "--dump and --json exclude each other");
}

#[test]
fn numbers_may_have_units() {
    let (run0, seen) = run("read", &["BAR0", "1K", "--count", "0x1k", "--block", "--raw"]);
    assert_eq!((run0.ok().out.len(), seen), (1024, vec![read(1024, 1024)]));
    let (_dir, socket) = crate::peer::nowhere();
    let bad = crate::vfu("read", &socket, &["BAR0", "ten"]);
    assert!(bad.code == 2 && bad.err.contains("'ten' for '<OFFSET>': not a number"), "{}", bad.err);
}

#[test]
fn values_are_written_one_behind_the_other() {
    let (run0, seen) = run("write", &["BAR0", "8", "0x1234", "7", "--width", "2"]);
    assert!(run0.ok().out.is_empty());
    assert_eq!(seen, [written(8, &[0x34, 0x12]), written(10, &[7, 0])]);
}

fn with_input(arguments: &[&str], input: &[u8]) -> (Run, Vec<Seen>) {
    let peer = Device::serve();
    let run = vfu_with_input("write", &peer.socket(), arguments, input);
    (run, peer.done().seen)
}

#[test]
fn bytes_come_from_a_file_or_standard_input() {
    let expected = vec![written(0x100, b"vfio"), written(0x104, b"us"), written(0x106, b"e")];
    for arguments in [&["BAR0", "0x100", "-"][..], &["BAR0", "0x100", "--file", "-"]] {
        let (run, seen) = with_input(arguments, b"vfiouse");
        assert_eq!((run.ok().code, seen), (0, expected.clone()));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, b"vfiouse").unwrap();
    let path = file.path().to_str().unwrap();
    let (run, seen) = with_input(&["BAR0", "0x100", "--block", "--file", path], b"");
    assert_eq!((run.ok().code, seen), (0, vec![written(0x100, b"vfiouse")]));
}

#[test]
fn the_device_s_error_is_exit_code_1() {
    run("read", &["BAR0", "0xffe"]).0.fails(1, "Invalid argument");
    run("read", &["BAR4", "0"]).0.fails(1, "read of 4 bytes of BAR4 at 0x0: the device answered");
    for region in ["BAR1", "VGA"] {
        let (read, seen) = run("read", &[region, "0"]);
        read.fails(1, &format!("vfu: the device has no {region}\n"));
        let (write, also_seen) = run("write", &[region, "0", "1"]);
        write.fails(1, &format!("vfu: the device has no {region}\n"));
        assert_eq!((seen, also_seen), (vec![], vec![]));
    }
    run("read", &["12", "0"]).0.fails(1, "the device has no region 12: it has 9 regions");
    run("write", &["BAR0", "0x1000", "1"]).0.fails(1, "Invalid argument");
}

#[test]
fn wrong_arguments_never_reach_the_device() {
    let (_dir, socket) = crate::peer::nowhere();
    let write = |arguments: &[&str]| crate::vfu("write", &socket, arguments);
    write(&["BAR0", "0", "0x100", "--width", "1"]).fails(2, "0x100 does not fit 1 bytes");
    write(&["BAR0", "0", "seven"]).fails(2, "seven");
    assert_eq!(write(&["BAR9", "0", "1"]).code, 2);
    assert_eq!(write(&["BAR0", "0"]).code, 2);
    assert_eq!(write(&["BAR0", "0", "1", "--width", "3"]).code, 2);
    write(&["BAR0", "0", "--file", socket.to_str().unwrap()]).fails(6, "No such file");
}
