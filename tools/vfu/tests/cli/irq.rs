//! `vfu irq`

use serde_json::json;

use crate::device::{Seen, config_reads, run};

fn irqs(flags: u32, start: u32, count: u32, fds: usize) -> Seen {
    Seen::Irqs { flags, index: 2, start, count, fds }
}

/// A write to MSI-X Message Control.
fn switch(low: u8, high: u8) -> Seen {
    Seen::Write { region: 7, offset: 0x62, data: vec![low, high] }
}

#[test]
fn vectors_are_armed_in_the_portions_the_server_takes_and_disarmed() {
    let (run, seen) = run("irq", &["--trigger", "--count", "5", "--timeout", "30"]);
    let run = run.ok();
    let mut lines: Vec<_> = run.text().lines().collect();
    lines.sort();
    assert_eq!(lines, (0..5).map(|n| format!("MSI-X vector {n}: 1")).collect::<Vec<_>>());
    let armed = [irqs(0x24, 0, 2, 2), irqs(0x24, 2, 2, 2), irqs(0x24, 4, 1, 1)];
    let ended = [switch(0x04, 0x00), irqs(0x21, 0, 0, 0)];
    let expected = [&armed[..], &config_reads(), &[switch(0x04, 0x80), irqs(0x21, 0, 5, 0)], &ended].concat();
    assert_eq!(seen, expected);
}

#[test]
fn a_write_can_make_the_device_interrupt() {
    let arguments = ["--type", "msix", "--vectors", "2", "--count", "1", "--timeout", "30", "--json"];
    let poke = ["--write", "BAR0", "0x20", "1", "--width", "1"];
    let (run, seen) = run("irq", &[&arguments[..], &poke].concat());
    assert_eq!(run.ok().json(), json!({"type": "MSI-X", "vector": 1, "count": 1}));
    let write = Seen::Write { region: 0, offset: 0x20, data: vec![1] };
    let on = [&[irqs(0x24, 0, 2, 2)][..], &config_reads(), &[switch(0x04, 0x80)]].concat();
    let off = [switch(0x04, 0x00), irqs(0x21, 0, 0, 0)];
    assert_eq!(seen, [&on[..], &[write], &off].concat());
}

#[test]
fn a_silent_device_is_exit_code_4() {
    run("irq", &["--timeout", "0.2"]).0.fails(4, "0 interrupts came within 0.2 s");
}

#[test]
fn types_without_vectors_are_refused() {
    run("irq", &["--type", "msi"]).0.fails(1, "no MSI interrupts");
    run("irq", &["--vectors", "6"]).0.fails(2, "--vectors 6: the device has 5 MSI-X vectors");
}
