//! `vfu check` against a server that has every fault that there is a check for, one at a time.

mod others;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::{Run, vfu};

/// A server that is right but for one fault, or wholly.
pub fn server(socket: &Path, fault: &str) -> String {
    format!("exec python3 {} {} {fault}", script().display(), socket.display())
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/check/server.py")
}

/// Checks the server with `fault`, which is started anew whenever it has ended.
fn check(fault: &str, arguments: &[&str]) -> (Run, Value) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let command = server(&socket, fault);
    let mut all = vec!["--json", "--restart", &command];
    all.extend(arguments);
    let run = vfu("check", &socket, &all);
    let json = serde_json::from_slice(&run.out).unwrap_or_default();
    (run, json)
}

/// Verdict and reason of each check.
fn verdicts(report: &Value) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let results = report["results"].as_array().expect("there are results");
    results.iter().map(|r| (text(&r["check"]), (text(&r["verdict"]), text(&r["reason"])))).collect()
}

fn names() -> BTreeSet<String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_vfu")).args(["check", "--list", "--json"]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["checks"].as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap().to_string()).collect()
}

fn faults() -> BTreeMap<String, String> {
    serde_json::from_str(include_str!("faults.json")).unwrap()
}

#[test]
fn a_right_server_passes_every_check() {
    let (run, report) = check("", &["--destructive", "--timeout", "30"]);
    let verdicts = verdicts(&report);
    let others: Vec<_> = verdicts.iter().filter(|(_, (verdict, _))| verdict != "pass").collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(verdicts.into_keys().collect::<BTreeSet<_>>(), names());
}

/// A check that nothing makes fail is none.
#[test]
fn every_check_finds_its_faults() {
    let faults = faults();
    let found: BTreeSet<String> = faults.values().cloned().collect();
    assert_eq!(found, names(), "each check has a fault that it must find, and each fault a check");
    // Some wait for what does not come, so several at a time.
    const WORKERS: usize = 6;
    let faults: Vec<_> = faults.iter().collect();
    let missed = |part: &[(&String, &String)]| -> Vec<String> {
        let outcome = |(fault, name): &(&String, &String)| {
            let (run, report) = check(fault, &["--destructive", "--timeout", "3", "--only", name]);
            let result = &report["results"][0];
            let found = (result["verdict"].as_str(), run.code, run.err.as_str());
            let expected = (Some("fail"), 1, "vfu: 1 check failed\n");
            (found != expected).then(|| format!("{fault}: {result} {} {}", run.code, run.err))
        };
        part.iter().filter_map(outcome).collect()
    };
    let missed: Vec<String> = std::thread::scope(|scope| {
        let parts = faults.chunks(faults.len().div_ceil(WORKERS));
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || missed(part))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The other checks go on with a server that dies of one.
#[test]
fn a_server_that_dies_is_started_again() {
    let (run, report) = check("dies-of-descriptors", &["--group", "framing", "--timeout", "30"]);
    let verdicts = verdicts(&report);
    let failed: Vec<_> = verdicts.iter().filter(|(_, (verdict, _))| verdict == "fail").collect();
    let [(name, (_, reason))] = failed[..] else { panic!("{failed:?}") };
    assert_eq!(name, "framing/descriptors");
    assert!(reason.contains("the server ended with exit status: 1"), "{reason}");
    assert!(verdicts.values().all(|(verdict, _)| verdict != "skip"), "{verdicts:?}");
    assert_eq!(run.code, 1);
}

/// A server that the user has started.
struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(fault: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let mut process = Command::new("python3")
            .arg(script())
            .arg(&socket)
            .args((!fault.is_empty()).then_some(fault))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(process.try_wait().unwrap().is_none(), "it runs");
            std::thread::yield_now();
        }
        Server { process, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Without a way to start it again, the rest is skipped, and the reason said.
#[test]
fn a_server_that_dies_for_good_is_said_so() {
    let server = Server::start("dies-of-descriptors");
    let run = vfu("check", &server.socket(), &["--group", "framing"]);
    assert_eq!((run.code, run.err.as_str()), (1, "vfu: 1 check failed\n"));
    let text = run.text();
    assert!(text.contains("afterwards the server cannot be reached: "), "{text}");
    assert!(text.contains("the server cannot be reached any more; --restart tells how"), "{text}");
}

#[test]
fn the_table_says_what_was_found() {
    let server = Server::start("error-with-payload");
    let run = vfu("check", &server.socket(), &["--group", "framing"]);
    let text = run.text();
    let line = text.lines().find(|line| line.contains("framing/error-alone")).unwrap();
    for part in ["fail", "Header", "the error brings 32 more bytes"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(text.ends_with("15 passed, 0 with a warning, 1 failed, 0 skipped\n"), "{text}");
}

#[test]
fn what_loses_data_has_to_be_asked_for() {
    let (_, report) = check("", &["--timeout", "30"]);
    let Output { stdout, .. } =
        Command::new(env!("CARGO_BIN_EXE_vfu")).args(["check", "--list", "--json"]).output().unwrap();
    let list: Value = serde_json::from_slice(&stdout).unwrap();
    let destructive = list["checks"].as_array().unwrap().iter().filter(|c| c["destructive"] == true);
    let destructive: BTreeSet<&str> = destructive.map(|c| c["check"].as_str().unwrap()).collect();
    let verdicts = verdicts(&report);
    let skipped =
        verdicts.iter().filter(|(_, (verdict, _))| verdict == "skip").map(|(name, _)| name.as_str());
    assert_eq!(skipped.collect::<BTreeSet<_>>(), destructive);
}

#[test]
fn a_file_for_services_that_test() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("junit.xml");
    let arguments = ["--group", "framing", "--junit", file.to_str().unwrap()];
    let (run, _) = check("error-with-payload", &arguments);
    assert_eq!(run.code, 1);
    let text = std::fs::read_to_string(file).unwrap();
    let suite = "<testsuite name=\"vfu check\" tests=\"16\" failures=\"1\" errors=\"0\" skipped=\"0\">";
    for part in [
        suite,
        "<testcase classname=\"vfu.check.framing\" name=\"ids\"/>",
        "<testcase classname=\"vfu.check.framing\" name=\"error-alone\">",
        "<failure message=\"DEVICE_GET_REGION_INFO of a region that is not there: the error brings 32 more bytes\">",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn unknown_checks_are_named() {
    let (run, _) = check("", &["--only", "framing/nonsense"]);
    run.fails(2, "there is no check called 'framing/nonsense'; --list names them");
}

#[test]
fn a_server_that_cannot_be_started_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let run = vfu("check", &folder.path().join("s"), &["--timeout", "0.1", "--restart", "true"]);
    run.fails(3, "there is no such socket");
}
