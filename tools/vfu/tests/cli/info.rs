//! `vfu info` and `vfu reset`

use serde_json::json;

use crate::device::{Seen, run};

#[test]
fn json_tells_everything() {
    let info = run("info", &["--json"]).0.ok().json();
    assert_eq!(info["version"], json!({"major": 0, "minor": 2}));
    let capabilities = json!({
        "max_msg_fds": 2, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 64,
        "write_multiple": true, "migration_pgsize": 4096, "twin_socket": false
    });
    assert_eq!(info["capabilities"], capabilities);
    assert_eq!(info["device"], json!({"flags": ["reset", "pci"], "num_regions": 9, "num_irqs": 5}));
    let bar0 = json!({
        "index": 0, "name": "BAR0", "size": 4096, "offset": 0, "flags": ["read", "write"],
        "descriptor": false, "mmap_areas": []
    });
    assert_eq!(info["regions"][0], bar0);
    let bar2 = json!({
        "index": 2, "name": "BAR2", "size": 16384, "offset": 0, "flags": ["read", "write", "mmap", "caps"],
        "descriptor": true, "mmap_areas": [{"offset": 0, "size": 4096}, {"offset": 8192, "size": 4096}]
    });
    assert_eq!(info["regions"][2], bar2);
    let names: Vec<_> = info["regions"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA"]);
    assert_eq!(info["irqs"][2], json!({"index": 2, "name": "MSI-X", "count": 5, "flags": ["eventfd"]}));
    assert_eq!(info["irqs"].as_array().unwrap().len(), 5);
}

#[test]
fn the_text_is_a_table() {
    let (run, _) = run("info", &[]);
    let run = run.ok();
    let text = run.text();
    let row = |name: &str| text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_default();
    let columns = |name: &str| row(name).split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(columns("BAR0"), ["BAR0", "0x1000", "read", "write", "-"]);
    assert_eq!(columns("BAR2").last().unwrap(), "0x2000+0x1000");
    assert_eq!(columns("MSI-X"), ["MSI-X", "5", "eventfd"]);
    assert_eq!(columns("device"), ["device", "reset,", "pci"]);
    assert_eq!(row("BAR1"), "", "regions that are not there take no room");
    assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
}

#[test]
fn reset_resets() {
    let (run, seen) = run("reset", &[]);
    assert!(run.ok().out.is_empty());
    assert_eq!(seen, [Seen::Reset]);
}
