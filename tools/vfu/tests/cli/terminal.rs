//! What people see: on a terminal, on a narrow one, and on none; in colors, and with the messages.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::device::Device;
use crate::migratable::{Fault, Migratable};
use crate::peer::Peer;

/// What a run on a terminal showed, all of it, and its exit code.
struct Shown {
    code: i32,
    text: String,
}

impl Shown {
    /// Without what makes colors and moves the cursor.
    fn plain(&self) -> String {
        plain(&self.text)
    }
}

/// Text without control sequences; what a carriage return or an erased line hides stays.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let end = behind.find(|c: char| ('@'..='~').contains(&c)).map_or(behind.len(), |end| end + 1);
        rest = &behind[end..];
    }
    plain.push_str(rest);
    plain.replace("\r\n", "\n")
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfu"));
    command.args(arguments).env("TERM", "xterm");
    // `CI` alone makes anstream color for any terminal, a dumb one too.
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(variable);
    }
    command
}

/// Runs a command on a terminal of so many columns.
fn on_terminal(columns: u16, mut command: Command) -> Shown {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = OwnedFd::from(File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap());
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let same = || Stdio::from(slave.as_fd().try_clone_to_owned().unwrap());
    let mut child = command.stdin(same()).stdout(same()).stderr(same()).spawn().unwrap();
    // With it go the last copies of that end on this side: reading ends when the program does.
    drop((slave, command));
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let mut terminal = File::from(master);
    while let Ok(count @ 1..) = terminal.read(&mut piece) {
        bytes.extend_from_slice(&piece[..count]);
    }
    let code = child.wait().unwrap().code().unwrap();
    Shown { code, text: String::from_utf8(bytes).unwrap() }
}

/// Runs it without one.
fn on_none(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// What does not depend on where lines end.
fn letters(text: &str) -> Vec<char> {
    let mut letters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    letters.sort_unstable();
    letters
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Asserts that a program which serves a new peer each time says on a narrow terminal all
/// that it says without one, but for its times.
#[track_caller]
fn loses_nothing<T: Send + 'static>(serve: impl Fn() -> Peer<T>, arguments: impl Fn(&str) -> Vec<String>) {
    let run = |narrow: bool| {
        let peer = serve();
        let arguments = arguments(path(&peer.socket()));
        let command = program(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let said = if narrow {
            let shown = on_terminal(40, command);
            (shown.code, letters(&without_numbers(&shown.plain())))
        } else {
            let (code, out, err) = on_none(command);
            (code, letters(&without_numbers(&(out + &err))))
        };
        peer.done();
        said
    };
    let none = run(false);
    assert!(run(true) == none, "{none:?}");
}

/// On a narrow terminal every command says all that it says without one.
#[test]
fn a_narrow_terminal_loses_nothing() {
    for arguments in [
        &["info"][..],
        &["info", "--json"],
        &["config"],
        &["config", "--dump"],
        &["read", "BAR0", "0", "--count", "64"],
        &["read", "BAR1", "0"],
        &["write", "BAR0", "0", "1"],
        &["irq", "--count", "1", "--write", "BAR0", "0x20", "1"],
        &["reset"],
        &["state"],
    ] {
        loses_nothing(Device::serve, |socket| {
            [&arguments[..1], &[socket], &arguments[1..]].concat().into_iter().map(str::to_string).collect()
        });
    }
}

/// Nor do those that move memory, states and files.
#[test]
fn a_narrow_terminal_loses_nothing_of_what_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (state, script) = (folder.path().join("state"), folder.path().join("script"));
    std::fs::write(&script, "read BAR0 0 --count 64\nhelp\nread BAR0 0x100000\n").unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_string()).collect::<Vec<_>>();
    for fault in [crate::dma::Fault::None, crate::dma::Fault::LastByte] {
        loses_nothing(
            || crate::dma::Engine::serve(fault, false),
            |socket| words(&["dma", socket, "copy", "--bytes", "5000", "--verify"]),
        );
    }
    for fault in [Fault::None, Fault::Data(1)] {
        loses_nothing(
            || Migratable::serve_source(fault, 1 << 20),
            |socket| words(&["save", socket, path(&state)]),
        );
        loses_nothing(|| Migratable::serve(fault, 1 << 20), |socket| words(&["load", socket, path(&state)]));
    }
    loses_nothing(Device::serve, |socket| words(&["script", socket, path(&script)]));
}

/// What is for shells and for readers of manuals is the same on a terminal.
#[test]
fn completions_and_manual_pages_have_no_colors() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["completions", "bash"][..], &["man", path(folder.path())]] {
        let shown = on_terminal(40, program(arguments));
        let (code, out, err) = on_none(program(arguments));
        assert_eq!((shown.code, shown.text.replace("\r\n", "\n")), (code, out + &err), "{arguments:?}");
    }
    for page in std::fs::read_dir(folder.path()).unwrap() {
        assert!(!std::fs::read_to_string(page.unwrap().path()).unwrap().contains('\x1b'));
    }
}

/// A trace that is under way says on a terminal what it says without one.
#[test]
fn a_trace_that_is_under_way_on_a_terminal() {
    let trace = |on_a_terminal: bool| {
        let folder = tempfile::tempdir().unwrap();
        let listen = folder.path().join("t");
        let peer = Device::serve();
        let socket = peer.socket();
        let client = std::thread::spawn({
            let listen = listen.clone();
            // Until it listens.
            move || loop {
                match on_none(program(&["read", path(&listen), "BAR0", "0"])).0 {
                    3 => std::thread::yield_now(),
                    code => break code,
                }
            }
        });
        let command = program(&["trace", path(&listen), path(&socket), "--once"]);
        let (code, text) = if on_a_terminal {
            let shown = on_terminal(40, command);
            (shown.code, shown.plain())
        } else {
            let (code, out, err) = on_none(command);
            (code, err + &out)
        };
        assert_eq!((code, client.join().unwrap()), (0, 0), "{text}");
        peer.done();
        text
    };
    for text in [trace(true), trace(false)] {
        // The messages, and the table.
        for part in [
            "> VERSION #",
            "< VERSION #",
            "> REGION_READ #",
            "< REGION_READ #",
            "=0x03020100",
            "\n REGION_READ  ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// A migration on a terminal has a line that changes, without one a line for each step.
#[test]
fn a_migration_says_how_far_it_is() {
    let migrate = |columns: Option<u16>, more: &[&str]| {
        let src: Peer<Migratable> = Migratable::serve_source(Fault::None, 1 << 20);
        let dst = Migratable::serve(Fault::None, 1 << 20);
        let (from, to) = (src.socket(), dst.socket());
        let common =
            ["migrate", path(&from), path(&to), "--memory", "1M", "--rounds", "2", "--max-downtime", "0"];
        let command = program(&[&common, more].concat());
        let said = match columns {
            Some(columns) => {
                let shown = on_terminal(columns, command);
                assert_eq!(shown.code, 0, "{}", shown.text);
                shown.text
            }
            None => {
                let (code, out, err) = on_none(command);
                assert_eq!(code, 0, "{err}");
                err + &out
            }
        };
        src.done();
        dst.done();
        said
    };
    let narrow = migrate(Some(40), &[]);
    assert!(narrow.contains("\x1b["), "there is a line that changes: {narrow:?}");
    let table = plain(&narrow);
    let table = table.rsplit_once("migration").expect("there is a table").1;
    assert!(table.lines().all(|line| line.chars().count() <= 40), "{table}");
    let none = migrate(None, &[]);
    assert!(!none.contains('\x1b') && none.contains("vfu: round 2: "), "{none}");
    for word in ["total", "downtime", "rounds", "not converged", "memory", "device data", "verified"] {
        assert!(table.contains(word) && none.contains(word), "{word}: {table}\n{none}");
    }
    // With the messages between, the line does not change, but is one of many.
    let verbose = migrate(Some(200), &["-v"]);
    let shown = plain(&verbose);
    for part in ["vfu: round 2: ", "> DMA_MAP #", "[2] > MIG_DATA_WRITE #", "< MIG_DATA_READ #"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // What failed is told in a narrow one, too.
    let (src, dst) =
        (Migratable::serve_source(Fault::Data(1), 1 << 20), Migratable::serve(Fault::None, 1 << 20));
    let (from, to) = (src.socket(), dst.socket());
    let shown = on_terminal(40, program(&["migrate", path(&from), path(&to), "--memory", "1M"]));
    assert_eq!(shown.code, 1, "{}", shown.text);
    assert!(
        shown.plain().contains("vfu: source: reading migration data: the device answered"),
        "{}",
        shown.text
    );
    src.done();
    dst.done();
}

/// Checks a server that answers an error with more than a header.
fn check(columns: Option<u16>, more: &[&str], variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let server = crate::check::server(&socket, "error-with-payload");
    let mut command =
        program(&[&["check", path(&socket), "--group", "framing", "--restart", &server], more].concat());
    command.envs(variables.iter().copied());
    let (code, text) = match columns {
        Some(columns) => {
            let shown = on_terminal(columns, command);
            (shown.code, shown.text)
        }
        None => {
            let (code, out, err) = on_none(command);
            (code, out + &err)
        }
    };
    assert_eq!(code, 1, "{text}");
    text
}

const FAIL: &str = "\x1b[31mfail\x1b[0m ";
const ERROR: &str = "\x1b[1m\x1b[31mvfu:\x1b[0m 1 check failed";

#[test]
fn verdicts_have_colors_where_they_are_wanted() {
    for (columns, more, variables, is_colored) in [
        (Some(120), &[][..], &[][..], true),
        (Some(120), &[], &[("NO_COLOR", "1")], false),
        (Some(120), &[], &[("TERM", "dumb")], false),
        (Some(120), &["--color", "never"], &[], false),
        (Some(120), &["--color=always"], &[("NO_COLOR", "1")], true),
        (None, &[], &[], false),
        (None, &["--color=auto"], &[], false),
        (None, &["--color", "always"], &[], true),
    ] {
        let text = check(columns, more, variables);
        let seen = [FAIL, ERROR, "\x1b[32mpass\x1b[0m "].map(|part| text.contains(part));
        assert_eq!(seen, [is_colored; 3], "{more:?} {variables:?}: {text:?}");
        assert_eq!(text.contains('\x1b'), is_colored, "{text:?}");
    }
}

/// The parser of the command line has colors of its own.
#[test]
fn wrong_command_lines_have_colors_where_they_are_wanted() {
    for (columns, arguments, is_colored) in [
        (Some(80), &["nonsense"][..], true),
        (Some(80), &["--color", "never", "nonsense"], false),
        (None, &["nonsense"], false),
        (None, &["--color=always", "nonsense"], true),
    ] {
        let text = match columns {
            Some(columns) => on_terminal(columns, program(arguments)).text,
            None => on_none(program(arguments)).2,
        };
        assert!(plain(&text).contains("unrecognized subcommand 'nonsense'"), "{text}");
        assert_eq!(text.contains('\x1b'), is_colored, "{arguments:?}: {text:?}");
    }
    let (code, _, err) = on_none(program(&["--color", "blue", "info", "x"]));
    assert!(code == 2 && err.contains("invalid value 'blue'"), "{err}");
}

/// Tables go on below in their columns; nothing of them is lost.
#[test]
fn check_fits_into_a_narrow_terminal() {
    let narrow = plain(&check(Some(40), &[], &[]));
    let none = check(None, &[], &[]);
    let (table, _) = narrow.split_once("\n\n").unwrap();
    assert!(table.lines().count() > 30 && table.lines().all(|line| line.chars().count() <= 40), "{table}");
    assert_eq!(letters(&narrow), letters(&none));
    let list = on_terminal(40, program(&["check", "--list"]));
    assert!(list.plain().lines().all(|line| line.chars().count() <= 40), "{}", list.text);
}

/// The lines of a trace are as long as they are; the terminal breaks them.
#[test]
fn a_trace_on_a_narrow_terminal_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (listen, file) = (folder.path().join("t"), folder.path().join("t.pcapng"));
    let peer = Device::serve();
    let socket = peer.socket();
    let mut trace = program(&["trace", path(&listen), path(&socket), "--once", "--write", path(&file)]);
    trace.stdout(Stdio::piped()).stderr(Stdio::piped());
    let trace = trace.spawn().unwrap();
    // Until it listens.
    let code = loop {
        match on_none(program(&["read", path(&listen), "BAR0", "0"])).0 {
            3 => std::thread::yield_now(),
            code => break code,
        }
    };
    assert_eq!(code, 0);
    let traced = String::from_utf8(trace.wait_with_output().unwrap().stdout).unwrap();
    peer.done();
    let arguments = ["trace", "--read", path(&file)];
    let (code, out, err) = on_none(program(&arguments));
    assert_eq!((code, err.as_str()), (0, ""));
    // The times are rounded in the file.
    assert_eq!(letters(&without_numbers(&traced)), letters(&without_numbers(&out)));
    for columns in [40, 200] {
        let shown = on_terminal(columns, program(&arguments));
        assert_eq!((shown.code, shown.plain()), (0, out.clone()));
    }
}

/// With -v the messages are on standard error, and standard output is as without.
#[test]
fn messages_are_printed_for_every_command_that_speaks() {
    let read = |more: &[&str]| {
        let peer = Device::serve();
        let socket = peer.socket();
        let said = on_none(program(&[&["read", path(&socket), "BAR0", "4"], more].concat()));
        peer.done();
        said
    };
    let (code, out, err) = read(&["-v"]);
    assert_eq!((code, &out), (0, &read(&[]).1));
    // Behind the time.
    let said: Vec<&str> = err.lines().map(|line| line.trim_start().split_once(' ').unwrap().1).collect();
    assert!(said[0].starts_with("> VERSION #0 version=0.2 capabilities="), "{err}");
    assert!(said[1].starts_with("< VERSION #0 ok "), "{err}");
    let last = said[said.len() - 1];
    assert!(last.starts_with("< REGION_READ #") && last.ends_with(" data=0x07060504"), "{err}");
    // An error that the device answers with comes after its message.
    let peer = Device::serve();
    let (code, _, err) = on_none(program(&["-v", "read", path(&peer.socket()), "BAR2", "0"]));
    let (messages, error) = err.trim_end().rsplit_once('\n').unwrap();
    assert!(code == 1 && messages.contains(" failed (22: Invalid argument) "), "{err}");
    assert!(error.starts_with("vfu: read of 4 bytes of BAR2"), "{err}");
    peer.done();
    // As lines of JSON.
    let (_, out, err) = read(&["--verbose", "--json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
    let lines: Vec<serde_json::Value> = err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["command"] == "REGION_READ" && line["type"] == "reply"), "{err}");
    // Descriptors are told by kind; a script and checks speak, too.
    let peer = Device::serve();
    let socket = peer.socket();
    let arguments = ["irq", path(&socket), "--count", "1", "--write", "BAR0", "0x20", "1", "-v"];
    let (code, _, err) = on_none(program(&arguments));
    assert!(code == 0 && err.contains("> DEVICE_SET_IRQS #") && err.contains(" [eventfd, eventfd]"), "{err}");
    peer.done();
    let said = crate::vfu_with_input("script", &Device::serve().socket(), &["-v"], b"read BAR0 0\n");
    assert!(said.code == 0 && said.err.contains("< REGION_READ #"), "{}", said.err);
    let text = check(None, &["-v"], &[]);
    assert!(text.contains("> VERSION #"), "{text}");
}
