//! `vfu save`, `vfu load` and `vfu state`.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::migratable::*;
use crate::{Run, vfu};

fn on(device: Fault, command: &str, arguments: &[&str]) -> (Run, Migratable) {
    let peer = match command {
        "save" => Migratable::serve_source(device, 1000),
        _ => Migratable::serve(device, 700),
    };
    let run = vfu(command, &peer.socket(), arguments);
    (run, peer.done())
}

/// A folder with a saved state in it, and the device that it is of.
fn saved() -> (tempfile::TempDir, PathBuf, Migratable) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let (run, device) = on(Fault::None, "save", &[text(&file)]);
    assert!(run.ok().text().ends_with("state: 4096 bytes of migration data\n"));
    (dir, file, device)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_saved_state_can_be_loaded() {
    let (dir, file, src) = saved();
    assert_eq!(src.states, [STOP_COPY, RUNNING]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let (run, dst) = on(Fault::None, "load", &[text(&file)]);
    assert_eq!(run.ok().text(), "4096 bytes of migration data loaded\n");
    assert_eq!(dst.states, [RESUMING, RUNNING]);
    assert!(dst.device.bar0 == src.device.bar0 && dst.device.config == src.device.config);
}

#[test]
fn saving_replaces_a_file_only_when_it_is_whole() {
    let (dir, file, _) = saved();
    let before = std::fs::read(&file).unwrap();
    for fault in [Fault::Data(1), Fault::Data(4), Fault::HalfData, Fault::Refuses(STOP_COPY)] {
        let (run, device) = on(fault, "save", &[text(&file)]);
        let code = if fault == Fault::HalfData { 5 } else { 1 };
        run.fails(
            code,
            if fault == Fault::Refuses(STOP_COPY) { "going to STOP_COPY" } else { "reading migration" },
        );
        assert_eq!((device.state, device.states.last()), (RUNNING, Some(&RUNNING)));
        assert!(std::fs::read(&file).unwrap() == before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    let (run, device) = on(Fault::None, "save", &[text(&dir.path().join("no/folder"))]);
    run.fails(6, "no/folder");
    assert_eq!(device.state, RUNNING);
}

#[test]
fn a_stopped_device_stays_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (run, device) = on(Fault::Begins(STOP), "save", &[text(&dir.path().join("f"))]);
    run.ok();
    assert_eq!(device.states, [STOP_COPY, STOP]);
    let (run, device) = on(Fault::Begins(RESUMING), "save", &[text(&dir.path().join("g"))]);
    run.fails(1, "the device is in RESUMING");
    assert!(device.states.is_empty());
}

#[test]
fn another_kind_of_device_is_not_touched() {
    let (_dir, file, _) = saved();
    let (run, device) = on(Fault::OtherDevice, "load", &[text(&file)]);
    run.fails(1, "another kind of device: device 8086:100f (1af4:1100) is not 8086:100e");
    assert!(
        device.states.is_empty()
            && device.device.seen.iter().all(|s| matches!(s, crate::device::Seen::Read { .. }))
    );
}

#[test]
fn a_damaged_file_does_not_even_lead_to_a_connection() {
    let (dir, file, _) = saved();
    let whole = std::fs::read(&file).unwrap();
    let other = dir.path().join("other");
    let nobody = dir.path().join("nobody");
    let refused = |bytes: &[u8], part: &str| {
        std::fs::write(&other, bytes).unwrap();
        vfu("load", &nobody, &[text(&other)]).fails(1, part);
    };
    for len in [0, 7, 8, 15, 16, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..len], "cut short");
    }
    refused(b"#!/bin/sh\necho no device\n", "no saved device state");
    for at in [20, 1000, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        refused(&changed, "other: ");
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    refused(&newer, "format 2, where 1 is known");
    refused(&[&whole[..], b"\n"].concat(), "something follows its end");
    vfu("load", &nobody, &[text(&dir.path().join("missing"))]).fails(6, "missing");
    vfu("load", &nobody, &[text(&file)]).fails(3, "cannot connect to");
}

#[test]
fn a_device_that_refuses_the_state_is_reset() {
    let (_dir, file, _) = saved();
    for (fault, part) in [
        (Fault::Refuses(RESUMING), "going to RESUMING: the device answered: Input/output error"),
        (Fault::Data(1), "writing migration data: the device answered: Input/output error"),
        (Fault::Data(4), "writing migration data: the device answered: Input/output error"),
        (Fault::NoConfig, "write of 4 bytes to CONFIG at 0x10"),
        (Fault::Refuses(RUNNING), "going to RUNNING: the device answered: Input/output error"),
    ] {
        let (run, device) = on(fault, "load", &[text(&file)]);
        assert!(run.err.ends_with("; the device was reset\n"), "{}", run.err);
        run.fails(1, part);
        assert_eq!(device.states.last(), Some(&RESET_SEEN));
    }
    let (run, _) = on(Fault::NoReset, "load", &[text(&file)]);
    run.fails(1, "the device could not be reset: reset: the device answered: Input/output error");
    let (run, _) = on(Fault::HangUp(2), "load", &[text(&file)]);
    run.fails(5, "writing migration data: the server hung up");
}

#[test]
fn devices_that_cannot_migrate_say_so() {
    let (_dir, file, _) = saved();
    for (command, arguments) in [("save", vec![text(&file)]), ("load", vec![text(&file)]), ("state", vec![])]
    {
        on(Fault::Immovable, command, &arguments).0.fails(1, "the device cannot migrate");
    }
}

#[test]
fn the_state_is_shown_and_set() {
    let (run, device) = on(Fault::None, "state", &[]);
    assert_eq!(
        run.ok().text(),
        "state          RUNNING\nmigration      STOP_COPY, PRE_COPY\ndirty logging  yes\n"
    );
    assert!(device.states.is_empty());
    let (run, device) = on(Fault::NoPreCopy, "state", &["--set", "stop", "--json"]);
    assert_eq!(
        run.ok().json(),
        json!({"state": "STOP", "stop_copy": true, "pre_copy": false, "p2p": false, "dirty_logging": true})
    );
    assert_eq!(device.states, [STOP]);
    let states =
        [("running", RUNNING), ("stop-copy", STOP_COPY), ("pre-copy", PRE_COPY), ("resuming", RESUMING)];
    for (name, number) in states {
        assert_eq!(on(Fault::None, "state", &["--set", name]).1.states, [number]);
    }
    on(Fault::Refuses(STOP), "state", &["--set", "stop"])
        .0
        .fails(1, "going to STOP: the device answered: Input/output error");
    on(Fault::Begins(9), "state", &[]).0.fails(5, "device state: there is no state 9");
}
