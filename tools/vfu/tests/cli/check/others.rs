//! `vfu check` against a server that nobody here wrote: that of the `vfio_user` crate.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::verdicts;
use crate::vfu;

/// The example `vfio-user-crate`, which cargo builds with the tests.
fn server() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_vfu"));
    program.parent().unwrap().join("examples/vfio-user-crate")
}

/// Checks with a verdict that docs/conformance.md lists for the server.
fn documented() -> BTreeSet<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("## A server on the `vfio_user` crate\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (check, verdict) = (cells.next()?.to_string(), cells.next()?.to_string());
        check.contains('/').then_some((check, verdict))
    };
    section.lines().filter_map(row).collect()
}

#[test]
fn the_crate_s_server_is_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let command = format!("exec {} {} 2>/dev/null", server().display(), socket.display());
    let run = vfu("check", &socket, &["--json", "--destructive", "--timeout", "5", "--restart", &command]);
    assert_eq!(run.code, 1, "{}", run.err);
    let found = verdicts(&run.json()).into_iter().map(|(check, (verdict, _))| (check, verdict));
    let found: BTreeSet<_> = found.filter(|(_, verdict)| verdict == "fail" || verdict == "warn").collect();
    assert_eq!(found, documented());
}
