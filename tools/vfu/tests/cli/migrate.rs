//! `vfu migrate` between two made-up devices.

use serde_json::json;

use crate::migratable::*;
use crate::peer::Peer;
use crate::{Run, vfu};

/// Runs `vfu migrate` with little memory and a number of rounds.
fn migrate_with(src: Fault, dst: Fault, arguments: &[&str]) -> (Run, Migratable, Migratable) {
    let src: Peer<Migratable> = Migratable::serve_source(src, 1000);
    let dst = Migratable::serve(dst, 700);
    let (from, to) = (src.socket(), dst.socket());
    let common = [to.to_str().unwrap(), "--memory", "1M", "--rounds", "3", "--max-downtime", "0", "--json"];
    let run = vfu("migrate", &from, &[&common, arguments].concat());
    (run, src.done(), dst.done())
}

/// Runs it with a fault, for an error with an exit code and a text. The source
/// must run again afterwards, and the destination be reset.
#[track_caller]
fn fails(src: Fault, dst: Fault, code: i32, text: &str) -> (Migratable, Migratable) {
    let (run, src, dst) = migrate_with(src, dst, &["--verify"]);
    run.fails(code, text);
    assert_eq!(src.state, RUNNING, "{text}");
    assert_eq!((src.states.last(), src.logging.is_none()), (Some(&RUNNING), true), "{text}");
    assert_eq!(dst.states.last(), Some(&RESET_SEEN), "{text}");
    (src, dst)
}

#[test]
fn a_device_moves_with_its_memory() {
    let (run, src, dst) = migrate_with(Fault::None, Fault::None, &["--verify"]);
    let report = run.ok().json();
    assert_eq!((&report["rounds"], &report["verified"]), (&json!(3), &json!(true)));
    assert_eq!((&report["converged"], &report["page_size"]), (&json!(false), &json!(4096)));
    assert_eq!(report["moved"]["device"], json!(2500 + 4096));
    let left_out = |region: &str| {
        json!({"region": region,
               "why": format!("read of 4 bytes of {region} at 0x0: the device answered: Invalid argument")})
    };
    assert_eq!(report["not_compared"], json!(["BAR2", "BAR4", "ROM"].map(left_out)));
    assert_eq!(src.states, [PRE_COPY, STOP_COPY, STOP]);
    assert_eq!(dst.states, [RESUMING, STOP, RUNNING]);
    // Memory, registers, and the configuration space are those of the source.
    assert!(src.memory() == dst.memory() && src.memory().len() == 1 << 20);
    assert_eq!(dst.loaded, src.expected_data(true));
    assert!(dst.device.bar0 == src.device.bar0 && dst.device.config == src.device.config);
    // Pieces are as large as both sides allow.
    assert_eq!(dst.pieces[..5], [700, 300, 700, 300, 500]);
    // Each segment after each round and after the stop, and then given back.
    assert_eq!((src.reports, src.maps.len(), src.unmapped.len()), (8, 0, 2));
    assert!(src.logging.is_none() && dst.logging.is_none());
    // All vectors were armed on both sides, two at a time.
    assert!(src.device.eventfds.iter().chain(&dst.device.eventfds).all(Option::is_some));
}

/// Registers of 8 and of 4 bytes are compared, by accesses of as many; where a device takes
/// none that large, it is said.
#[test]
fn registers_are_compared_by_accesses_that_the_device_takes() {
    for (most, others) in [(8, 3), (4, 3), (2, 4)] {
        let device = Fault::Registers(most);
        let (run, ..) = migrate_with(device, device, &["--verify"]);
        let report = run.ok().json();
        assert_eq!(report["verified"], json!(true));
        let left_out = report["not_compared"].as_array().unwrap();
        let of_bar0 = left_out.iter().find(|left| left["region"] == "BAR0");
        assert_eq!((left_out.len(), of_bar0.is_some()), (others, most == 2), "{left_out:?}");
        if let Some(left) = of_bar0 {
            let why = left["why"].as_str().unwrap();
            assert!(why.starts_with("read of 4 bytes of BAR0 at 0x0: the device answered: "), "{why}");
        }
    }
}

#[test]
fn every_page_goes_once_and_then_only_dirty_ones() {
    let (run, ..) = migrate_with(Fault::None, Fault::None, &[]);
    let moved = run.ok().json()["moved"]["memory"].as_u64().unwrap();
    let dirty = moved - (1 << 20);
    // Five pages a segment in a round at the most, counted by both segments'
    // reports, and four after the stop.
    assert!(dirty > 0 && dirty <= (3 * 2 * 10 + 2 * 10) * 4096, "{dirty}");
}

#[test]
fn logging_is_started_for_the_memory_alone() {
    // A source that fails leaves its logging as it was started.
    let src: Peer<Migratable> = Migratable::serve_source(Fault::HangUp(1), 1 << 20);
    let dst = Migratable::serve(Fault::None, 1 << 20);
    let (from, to) = (src.socket(), dst.socket());
    let run =
        vfu("migrate", &from, &[to.to_str().unwrap(), "--memory", "1M", "--page-size", "0x1000", "--json"]);
    run.fails(5, "source: reading migration data: the server hung up");
    let half = 1 << 19;
    assert_eq!(src.done().logging, Some((4096, vec![(0, half), (4 << 30, half)])));
    assert_eq!(dst.done().states, [RESUMING, RESET_SEEN]);
}

#[test]
fn a_device_without_pre_copy_moves_its_memory_in_rounds() {
    let (run, src, dst) = migrate_with(Fault::NoPreCopy, Fault::NoPreCopy, &["--verify"]);
    assert_eq!(run.ok().json()["rounds"], json!(3));
    assert_eq!(src.states, [STOP_COPY, STOP]);
    assert_eq!(dst.loaded, src.expected_data(false));
    assert!(src.memory() == dst.memory());
}

#[test]
fn a_destination_may_be_stopped() {
    let (run, _, dst) = migrate_with(Fault::None, Fault::Begins(STOP), &[]);
    run.ok();
    assert_eq!(dst.state, RUNNING);
}

#[test]
fn the_text_sums_up_and_says_what_happens() {
    let src: Peer<Migratable> = Migratable::serve_source(Fault::None, 1 << 20);
    let dst = Migratable::serve(Fault::None, 1 << 20);
    let (from, to) = (src.socket(), dst.socket());
    let run = vfu("migrate", &from, &[to.to_str().unwrap(), "--memory", "1M", "--rounds", "1", "--load"]);
    assert_eq!(run.code, 0, "{}", run.err);
    for row in ["total", "downtime", "rounds", "memory", "device data", "rate", "verified"] {
        assert!(run.text().contains(row), "{}", run.text());
    }
    for line in ["no load is known for this device", "round 1: 1.00 MiB of memory", "stopped"] {
        assert!(run.err.contains(line), "{}", run.err);
    }
    src.done();
    dst.done();
}

#[test]
fn refused_transitions_of_the_source() {
    fails(
        Fault::Refuses(PRE_COPY),
        Fault::None,
        1,
        "source: going to PRE_COPY: the device answered: Input/output error",
    );
    fails(Fault::Refuses(STOP_COPY), Fault::None, 1, "source: going to STOP_COPY");
    fails(Fault::Refuses(STOP), Fault::None, 1, "source: going to STOP:");
}

#[test]
fn refused_transitions_of_the_destination() {
    let text = "the source runs, the destination was reset";
    for (state, name) in [(RESUMING, "RESUMING"), (STOP, "STOP"), (RUNNING, "RUNNING")] {
        let (_, dst) = fails(
            Fault::None,
            Fault::Refuses(state),
            1,
            &format!("destination: going to {name}: the device answered: Input/output error; {text}"),
        );
        assert_eq!(dst.states[dst.states.len() - 2], state);
    }
}

#[test]
fn data_that_fails_half_way() {
    for n in [1, 3, 5, 9] {
        fails(
            Fault::Data(n),
            Fault::None,
            1,
            "source: reading migration data: the device answered: Input/output error",
        );
        fails(
            Fault::None,
            Fault::Data(n),
            1,
            "destination: writing migration data: the device answered: Input/output error",
        );
    }
}

#[test]
fn data_that_breaks_the_protocol() {
    fails(
        Fault::HalfData,
        Fault::None,
        5,
        "source: protocol violation: reading migration data: 1000 bytes promised",
    );
    fails(Fault::MuchData, Fault::None, 5, "source: protocol violation: reading migration data: 1001 bytes");
    fails(Fault::ShortBitmap, Fault::None, 5, "a bitmap of 8 bytes of 16");
    fails(Fault::OtherRange, Fault::None, 5, "the reply does not repeat the range");
    fails(Fault::OddPages, Fault::None, 5, "starting dirty logging: a page size of 3000");
}

#[test]
fn a_source_that_dies_leaves_a_clean_destination() {
    for n in [1, 2, 4, 7] {
        let (run, _, dst) = migrate_with(Fault::HangUp(n), Fault::None, &[]);
        run.fails(5, "the source does not run (");
        assert_eq!(dst.states, [RESUMING, RESET_SEEN]);
    }
}

#[test]
fn a_destination_that_dies_leaves_the_source_running() {
    for n in [1, 2, 4, 7] {
        let (run, src, _) = migrate_with(Fault::None, Fault::HangUp(n), &[]);
        run.fails(5, "the source runs, the destination could not be reset (");
        assert_eq!((src.state, src.logging), (RUNNING, None));
    }
}

#[test]
fn a_destination_that_cannot_be_reset_is_told() {
    let (run, src, _) = migrate_with(Fault::None, Fault::NoReset, &[]);
    run.fails(
        1,
        "the source runs, the destination could not be reset (reset: the device answered: Input/output error",
    );
    assert_eq!(src.state, RUNNING);
}

/// A report of a migration that fails after two rounds, in a third one, or after the stop, and the picture of it.
fn report_of_failure(src: Fault, dst: Fault, text: &str) -> (serde_json::Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for name in ["report.json", "report.svg"] {
        let (run, ..) = migrate_with(src, dst, &["--report", &file(name)]);
        run.fails(1, text);
    }
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file("report.json")).unwrap()).unwrap();
    let picture = std::fs::read_to_string(file("report.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");
    assert_eq!(
        (&report["converged"], &report["rounds"]),
        (&json!(false), &json!(report["history"].as_array().unwrap().len()))
    );
    (report, picture)
}

#[test]
fn a_report_tells_of_a_migration_that_failed() {
    // In the second round: it ends there.
    let said = "source: reading migration data: the device answered: Input/output error";
    let (report, picture) = report_of_failure(Fault::Data(4), Fault::None, said);
    assert_eq!((&report["failure"], &report["stop"]), (&json!(said), &json!(null)));
    let (rounds, broken_off) = (report["history"].as_array().unwrap(), &report["broken_off"]);
    assert!(!rounds.is_empty() && broken_off["seconds"].as_f64().unwrap() > 0.0, "{report}");
    let sum: u64 =
        rounds.iter().chain([broken_off]).map(|part| part["moved"]["memory"].as_u64().unwrap()).sum();
    assert_eq!(report["moved"]["memory"], json!(sum));
    assert!(
        picture.contains("failed after ") && picture.contains(said) && !picture.contains("downtime, "),
        "{picture}"
    );
    // After the rounds: the downtime until then is there.
    let said = "destination: going to RUNNING: the device answered: Input/output error";
    let (report, picture) = report_of_failure(Fault::None, Fault::Refuses(RUNNING), said);
    assert_eq!(
        (&report["failure"], &report["rounds"], report.get("broken_off")),
        (&json!(said), &json!(3), None)
    );
    assert_eq!(report["stop"]["seconds"], report["downtime_seconds"]);
    assert!(picture.contains("failed after 3 rounds: ") && picture.contains("downtime, "), "{picture}");
    // Before the first.
    let said = "destination: DMA map of 0x80000 bytes at 0x0: the device answered: Invalid argument";
    let (report, picture) = report_of_failure(Fault::None, Fault::NoMaps, said);
    assert_eq!((&report["failure"], &report["history"]), (&json!(said), &json!([])));
    assert!(picture.contains("failed after 0 rounds: "), "{picture}");
}

/// What went wrong is told first; a report that cannot be written comes behind.
#[test]
fn a_report_that_cannot_be_written_hides_no_failure() {
    let (run, ..) = migrate_with(Fault::Data(1), Fault::None, &["--report", "/dev/null/report.svg"]);
    run.fails(1, "Input/output error; the source runs, the destination was reset; no report (/dev/null/report.svg: Not a directory)");
}

#[test]
fn a_lost_dirty_bit_is_found() {
    fails(
        Fault::LostBit,
        Fault::None,
        1,
        "destination: the guest's memory differs from that of the source at 0x",
    );
}

#[test]
fn a_wrong_register_is_found() {
    fails(
        Fault::None,
        Fault::WrongRegister,
        1,
        "destination: BAR0 differs from that of the source from byte 0x123 on",
    );
}

#[test]
fn a_source_that_writes_after_the_stop_is_found() {
    // The second segment's report comes after the write, so only one is late.
    let (run, src, dst) = migrate_with(Fault::LateWrite, Fault::None, &[]);
    run.fails(1, "source: 4 pages were written to after the stop");
    assert_eq!((src.state, dst.states.last()), (RUNNING, Some(&RESET_SEEN)));
}

#[test]
fn a_configuration_space_that_cannot_be_restored() {
    fails(Fault::None, Fault::NoConfig, 1, "destination: write of 4 bytes to CONFIG at 0x10");
}

#[test]
fn memory_that_is_refused() {
    let (run, src, dst) = migrate_with(Fault::None, Fault::NoMaps, &[]);
    run.fails(1, "destination: DMA map of 0x80000 bytes at 0x0: the device answered: Invalid argument");
    assert_eq!((src.states, dst.states), (vec![RUNNING], vec![RESET_SEEN]));
}

/// What can be known before is found before anything is changed.
#[test]
fn devices_that_do_not_fit_are_left_alone() {
    let cases = [
        (Fault::Immovable, Fault::None, "the device cannot migrate"),
        (Fault::None, Fault::Immovable, "the device cannot migrate"),
        (
            Fault::None,
            Fault::OtherDevice,
            "another kind of device: device 8086:100f (1af4:1100) is not 8086:100e",
        ),
        (Fault::Begins(STOP), Fault::None, "source: the device is in STOP; reset it first; nothing was done"),
        (Fault::Begins(0), Fault::None, "source: the device is in ERROR"),
        (Fault::None, Fault::Begins(0), "destination: the device is in ERROR"),
        (Fault::None, Fault::Begins(PRE_COPY), "destination: the device is in PRE_COPY"),
    ];
    for (src, dst, text) in cases {
        let src: Peer<Migratable> = Migratable::serve_source(src, 4096);
        let peer = Migratable::serve(dst, 4096);
        let (from, to) = (src.socket(), peer.socket());
        vfu("migrate", &from, &[to.to_str().unwrap(), "--memory", "1M", "--json"]).fails(1, text);
        // Where the source alone doesn't fit, the destination is not even asked.
        let _ = std::os::unix::net::UnixStream::connect(&to);
        let touched = src.done();
        assert!(touched.states.is_empty() && touched.maps.is_empty() && touched.logging.is_none(), "{text}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_exit_code_2() {
    let (_dir, nobody) = crate::peer::nowhere();
    let to = nobody.to_str().unwrap();
    for arguments in [
        &["--memory", "1000K"][..],
        &["--memory", "64K"],
        &["--memory", "99999999999G"],
        &["--memory", "M"],
        &["--page-size", "2048"],
        &["--page-size", "5000"],
        &["--max-downtime", "-1"],
    ] {
        assert_eq!(vfu("migrate", &nobody, &[&[to], arguments].concat()).code, 2, "{arguments:?}");
    }
    vfu("migrate", &nobody, &[to, "--memory", "1M", "--page-size", "0x100000"])
        .fails(2, "too little for pages");
    vfu("migrate", &nobody, &[to, "--json"]).fails(3, "cannot connect to");
}
