//! `vfu config`

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::device::{config_reads, run};

/// A PCI Express network device with one capability of each kind.
pub fn space() -> Vec<u8> {
    let mut space = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x86, 0x80, 0x0e, 0x10]); // 8086:100e
    put(0x04, &[0x06, 0x04, 0x10, 0x00]); // memory, bus master, INTx off; capability list
    put(0x08, &[0x03, 0x00, 0x00, 0x02]); // revision 3, Ethernet controller
    put(0x10, &[0x00, 0x00, 0xd0, 0xfe]); // BAR0: 32 bits
    put(0x18, &[0x0c, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00]); // BAR2: 64 bits, prefetchable
    put(0x20, &[0x01, 0xc0, 0x00, 0x00]); // BAR4: I/O
    put(0x24, &[0x01, 0x00, 0x00, 0x00]); // BAR5: never set up
    put(0x2c, &[0xf4, 0x1a, 0x00, 0x11]);
    put(0x30, &[0x01, 0x00, 0xc0, 0xfe]); // ROM, enabled
    put(0x34, &[0x40]);
    put(0x3c, &[0x0b, 0x01]);
    put(0x40, &[0x01, 0x50, 0x03, 0xc8, 0x08, 0x01]); // PM
    put(0x50, &[0x05, 0x60, 0x85, 0x01, 0x00, 0x10, 0xe0, 0xfe, 0x01, 0, 0, 0, 0x41, 0x00]); // MSI
    put(0x60, &[0x11, 0x70, 0x04, 0x00, 0x02, 0x00, 0, 0, 0x04, 0x08, 0, 0]); // MSI-X
    put(
        0x70,
        &[
            0x10, 0xb0, 0x02, 0x00, 0x02, 0x80, 0x00, 0x10, 0x3f, 0x29, 0x08, 0x00, 0x13, 0x04, 0, 0, 0, 0,
            0x12, 0x00,
        ],
    );
    put(0xb0, &[0x09, 0x00, 0x06, 0xaa, 0xbb, 0xcc]); // vendor
    put(0x100, &[0x03, 0x00, 0x01, 0x14, 8, 7, 6, 5, 4, 3, 2, 1]); // DSN
    put(0x140, &[0x0b, 0x00, 0x01, 0x00, 0x34, 0x12, 0xa2, 0x00, 0xde, 0xad]); // VSEC
    space
}

#[test]
fn json_decodes_the_header() {
    let (run, seen) = run("config", &["--json"]);
    let config = run.ok().json();
    assert_eq!(seen, config_reads());
    assert_eq!((&config["vendor_id"], &config["device_id"]), (&json!(0x8086), &json!(0x100e)));
    assert_eq!(config["vendor"], json!("Intel Corporation"));
    assert_eq!(config["class"], json!({"base": 2, "sub": 0, "prog_if": 0, "name": "Ethernet controller"}));
    assert_eq!(config["command"], json!({"value": 0x406, "set": ["memory", "bus master", "INTx disabled"]}));
    assert_eq!(config["status"], json!({"value": 0x10, "set": ["capability list"]}));
    assert_eq!((&config["subsystem_vendor_id"], &config["subsystem_id"]), (&json!(0x1af4), &json!(0x1100)));
    assert_eq!((&config["interrupt_pin"], &config["interrupt_line"]), (&json!(1), &json!(11)));
    let bars = json!([
        {"index": 0, "kind": "memory32", "prefetchable": false, "address": 0xfed00000u32, "size": 0x1000},
        {"index": 2, "kind": "memory64", "prefetchable": true, "address": 0x1_0000_0000u64, "size": 0x4000},
        {"index": 4, "kind": "io", "prefetchable": false, "address": 0xc000, "size": 0x20},
    ]);
    assert_eq!(config["bars"], bars);
    assert_eq!(config["rom"], json!({"address": 0xfec00000u32, "size": 0x800, "enabled": true}));
}

#[test]
fn json_decodes_the_capabilities() {
    let config = run("config", &["--json"]).0.ok().json();
    let capabilities = json!([
        {"id": 1, "name": "Power Management", "offset": 0x40, "details": {
            "version": 3, "states": [], "pme": ["D0", "D3hot", "D3cold"], "state": 0,
            "no_soft_reset": true, "pme_enabled": true}},
        {"id": 5, "name": "MSI", "offset": 0x50, "details": {
            "enabled": true, "vectors": 4, "vectors_enabled": 1, "address64": true, "maskable": true,
            "address": 0x1_fee0_1000u64, "data": 0x41}},
        {"id": 0x11, "name": "MSI-X", "offset": 0x60, "details": {
            "enabled": false, "masked": false, "vectors": 5,
            "table": {"bar": 2, "offset": 0}, "pba": {"bar": 4, "offset": 0x800}}},
        {"id": 0x10, "name": "PCI Express", "offset": 0x70, "details": {
            "version": 2, "port_type": "Endpoint", "max_payload_supported": 512, "max_payload": 256,
            "max_read_request": 512, "flr": true,
            "device_control": ["report correctable", "report non-fatal", "report fatal",
                "report unsupported", "relaxed ordering", "extended tag", "no snoop"],
            "device_status": ["unsupported request"],
            "link_speed_supported": 3, "link_width_supported": 1, "link_speed": 2, "link_width": 1}},
        {"id": 9, "name": "Vendor Specific", "offset": 0xb0, "details": {"length": 6, "data": "aabbcc"}},
    ]);
    assert_eq!(config["capabilities"], capabilities);
    let extended = json!([
        {"id": 3, "name": "Device Serial Number", "version": 1, "offset": 0x100,
            "details": {"serial": "01-02-03-04-05-06-07-08"}},
        {"id": 0xb, "name": "Vendor Specific", "version": 1, "offset": 0x140,
            "details": {"vsec_id": 0x1234, "revision": 2, "length": 10, "data": "dead"}},
    ]);
    assert_eq!(config["extended_capabilities"], extended);
}

#[test]
fn the_text_names_everything() {
    let run = run("config", &[]).0.ok();
    for part in [
        "vendor     8086 Intel Corporation, device 100e",
        "class      020000 Ethernet controller",
        "command    0x0406 (memory, bus master, INTx disabled)",
        "region     BAR2: memory, 64 bits, prefetchable, at 0x100000000, 0x4000 bytes",
        "region     ROM: enabled, at 0xfec00000, 0x800 bytes",
        "interrupt  pin A, line 11",
        "[40] Power Management: version 3, in D0; sleep states none; PME# from D0 D3hot D3cold; no soft reset",
        "[50] MSI: on, 1 of 4 vectors, 64 bits, maskable, address 0x1fee01000, data 0x41",
        "[60] MSI-X: off, 5 vectors; table BAR2 at 0x0; pending bits BAR4 at 0x800",
        "[70] PCI Express: version 2, Endpoint; payload 256 of 512 bytes",
        "[b0] Vendor Specific: 6 bytes: aabbcc",
        "[100] Device Serial Number: 01-02-03-04-05-06-07-08",
    ] {
        assert!(run.text().contains(part), "{part}\n{}", run.text());
    }
}

#[test]
fn the_dump_has_every_byte() {
    let run = run("config", &["--dump"]).0.ok();
    let mut lines = run.text().lines();
    assert_eq!(lines.next(), Some("00:00.0 Ethernet controller: 8086:100e"));
    assert_eq!(lines.next(), Some("00: 86 80 0e 10 06 04 10 00 03 00 00 02 00 00 00 00"));
    let bytes: Vec<u8> = run
        .text()
        .lines()
        .skip(1)
        .flat_map(|line| line.split(' ').skip(1).map(|byte| u8::from_str_radix(byte, 16).unwrap()))
        .collect();
    assert_eq!(bytes, space());
}

#[test]
fn lspci_reads_the_dump() {
    let dump = run("config", &["--dump"]).0.ok();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(&dump.out).unwrap();
    let lspci = Command::new("lspci").arg("-F").arg(file.path()).arg("-vvnn").stderr(Stdio::null()).output();
    let Ok(lspci) = lspci else {
        eprintln!("lspci is not installed");
        return;
    };
    let text = String::from_utf8(lspci.stdout).unwrap();
    for part in [
        "00:00.0 ",
        "[8086:100e] (rev 03)",
        "[40] Power Management version 3",
        "[50] MSI: Enable+ Count=1/4 Maskable+ 64bit+",
        "[60] MSI-X: Enable- Count=5 Masked-",
        "[70] Express (v2) Endpoint",
        "Device Serial Number 01-02-03-04-05-06-07-08",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}
