//! What stands between a client and a server changes nothing for either of them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::device::Device;
use crate::peer::*;

/// A running `vfu trace`.
struct Trace {
    dir: tempfile::TempDir,
    child: Child,
    pid: Pid,
    err: BufReader<std::process::ChildStderr>,
}

impl Trace {
    /// Stands in front of `server`.
    fn start(server: &Path, options: &[&str]) -> Trace {
        Trace::start_in(tempfile::tempdir().unwrap(), server, options)
    }

    fn start_in(dir: tempfile::TempDir, server: &Path, options: &[&str]) -> Trace {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vfu"))
            .arg("trace")
            .args([&dir.path().join("t"), server])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let err = BufReader::new(child.stderr.take().unwrap());
        let mut trace = Trace { dir, child, pid, err };
        assert!(trace.says().starts_with("vfu: listening at "));
        trace
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("t")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// The next line on standard error.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.err.read_line(&mut line).unwrap();
        line
    }

    /// Lets it stand still meanwhile.
    fn stopped<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        kill_process(self.pid, Signal::STOP).unwrap();
        waitpid(Some(self.pid), WaitOptions::UNTRACED).unwrap();
        let value = meanwhile();
        kill_process(self.pid, Signal::CONT).unwrap();
        value
    }

    fn signal(&self) {
        kill_process(self.pid, Signal::INT).unwrap();
    }

    /// Waits for its end: its output, and the rest of what it has said.
    fn ends(mut self, code: i32) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).unwrap();
        }
        self.err.read_to_string(&mut err).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{err}");
        assert!(!self.socket().exists());
        (out, err)
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

/// A socket where the test itself is the server.
fn listen() -> (tempfile::TempDir, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    (dir, listener)
}

fn accept(listener: &UnixListener) -> Conn {
    Conn { stream: listener.accept().unwrap().0 }
}

fn memfd(size: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

fn identity(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Reads so many bytes, one at a time, and with which of them descriptors came.
fn byte_by_byte(stream: &UnixStream, count: usize) -> (Vec<u8>, Vec<(usize, Vec<OwnedFd>)>) {
    let (mut bytes, mut came) = (Vec::new(), Vec::new());
    while bytes.len() < count {
        let (mut fds, mut conn) = (Vec::new(), Conn { stream: stream.try_clone().unwrap() });
        bytes.extend(conn.exactly(1, &mut fds).expect("the stream ends"));
        if !fds.is_empty() {
            came.push((bytes.len() - 1, fds));
        }
    }
    (bytes, came)
}

/// Sends what is in the queue while the trace stands still, so that it finds all of it together, and
/// looks at what comes out at the other end.
fn sends(trace: &Trace, from: &mut Conn, to: &UnixStream, sends: &[(usize, usize)]) {
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    let fds: Vec<Vec<OwnedFd>> =
        sends.iter().map(|(_, count)| (0..*count).map(|_| memfd(1)).collect()).collect();
    trace.stopped(|| {
        for ((size, _), fds) in sends.iter().zip(&fds) {
            let bytes: Vec<u8> = (0..*size).map(|n| (sent.len() + n) as u8).collect();
            if fds.is_empty() {
                from.send(&bytes);
            } else {
                expected.push((sent.len(), fds.iter().map(identity).collect::<Vec<_>>()));
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                from.send_with_fds(&bytes, &borrowed);
            }
            sent.extend(bytes);
        }
    });
    let (bytes, came) = byte_by_byte(to, sent.len());
    assert_eq!(bytes, sent);
    let came: Vec<(usize, Vec<u64>)> =
        came.iter().map(|(at, fds)| (*at, fds.iter().map(identity).collect())).collect();
    assert_eq!(came, expected);
}

#[test]
fn descriptors_keep_their_byte() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--quiet"]);
    let mut client = Conn { stream: trace.connect() };
    let mut server = accept(&listener);
    // As messages, of which a reader takes header and payload apart, so that nothing may move.
    for pattern in [
        &[(16, 0), (16, 1)][..],
        &[(1, 1)],
        &[(1, 0), (1, 2), (1, 0), (1, 1), (1, 1)],
        &[(100, 0), (17, 0), (64, 16), (3, 0), (1, 0), (300, 3), (5, 1)],
        &[(5000, 0), (2, 1), (5000, 0)],
        &[(100_000, 0), (20, 1), (7, 1)],
    ] {
        sends(&trace, &mut client, &server.stream, pattern);
        // The server's first message is looked at for a socket; this is none.
        sends(&trace, &mut server, &client.stream, pattern);
    }
    drop((client, server));
    trace.signal();
    trace.ends(0);
}

#[test]
fn what_is_no_vfio_user_passes_and_is_told_once() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once"]);
    let mut client = Conn { stream: trace.connect() };
    let mut server = accept(&listener);
    for _ in 0..3 {
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(&server.exactly(35, &mut vec![]).unwrap()[..5], b"GET /");
        server.send(b"HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(&client.exactly(19, &mut vec![]).unwrap()[..8], b"HTTP/1.1");
    }
    drop((client, server));
    let (out, err) = trace.ends(0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].contains("> the client: it is not vfio-user (a message of "), "{out}");
    assert!(lines[0].ends_with("it begins with \"GET / HTTP/1.1\\r\\n\"); passed on, but no longer decoded"));
    assert!(lines[1].contains("< the server: it is not vfio-user"), "{out}");
    assert_eq!((lines[2], err.as_str()), ("no messages", ""));
}

#[test]
fn a_stream_that_ends_within_a_message_is_told() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once"]);
    let mut client = Conn { stream: trace.connect() };
    let mut server = accept(&listener);
    client.send(&message(1, RESET, 0, 0, &[1, 2, 3])[..17]);
    assert_eq!(server.exactly(17, &mut vec![]).unwrap().len(), 17);
    drop((client, server));
    assert!(trace.ends(0).0.contains("> the client: the stream ends 17 bytes into a message\n"));
}

#[test]
fn half_a_connection_can_be_closed() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once"]);
    let (mut client, mut server) = (Conn { stream: trace.connect() }, accept(&listener));
    client.send(b"1");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(server.exactly(1, &mut vec![]).unwrap(), b"1");
    assert!(server.exactly(1, &mut vec![]).is_none(), "the end comes through");
    server.send(b"23");
    assert_eq!(client.exactly(2, &mut vec![]).unwrap(), b"23");
    server.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.exactly(1, &mut vec![]).is_none());
    trace.ends(0);
}

/// Whoever writes to a peer that has gone gets to know, as without anything in between.
#[test]
fn a_peer_that_goes_is_gone_for_the_other() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &[]);
    for client_goes in [false, true] {
        let (client, server) = (trace.connect(), accept(&listener).stream);
        let (goes, mut stays) = if client_goes { (client, server) } else { (server, client) };
        drop(goes);
        assert_eq!(stays.read(&mut [0]).unwrap(), 0);
        let mut polled = [rustix::event::PollFd::new(&stays, rustix::event::PollFlags::empty())];
        rustix::event::poll(&mut polled, None).unwrap();
        assert!(polled[0].revents().contains(rustix::event::PollFlags::HUP));
        assert_eq!(stays.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
    trace.signal();
    trace.ends(0);
}

/// A peer that does not read holds up the other one, and nothing is lost.
#[test]
fn who_does_not_read_holds_up_who_writes() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once", "--quiet"]);
    let (mut client, mut server) = (trace.connect(), accept(&listener));
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 64 << 10];
    let mut accepted = 0;
    // Nothing more goes in once the buffers of two sockets and one piece are full.
    const BOUND: usize = 4 << 20;
    while accepted < BOUND {
        match client.write(&chunk) {
            Ok(count) => accepted += count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut polled = [rustix::event::PollFd::new(&client, rustix::event::PollFlags::OUT)];
                let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                if rustix::event::poll(&mut polled, Some(&patience)).unwrap() == 0 {
                    break;
                }
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert!(accepted < BOUND, "{accepted} bytes");
    // The other direction is free meanwhile.
    server.send(b"x");
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    drop(client);
    let bytes = server.exactly(accepted, &mut vec![]).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7) && server.exactly(1, &mut vec![]).is_none());
    drop(server);
    trace.ends(0);
}

/// The lines without their times, which are different each time.
fn without_times(out: &str) -> VecDeque<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).skip(1).collect();
        let latency = words.iter().position(|word| ["ns", "µs", "ms", "s"].contains(word));
        let words = words.iter().enumerate();
        let words = words.filter(|(n, _)| latency.is_none_or(|at| *n != at && n + 1 != at));
        words.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    };
    out.lines().map(line).collect()
}

#[test]
fn one_line_per_message_and_a_table() {
    let peer = Device::serve();
    let trace = Trace::start(&peer.socket(), &["--once"]);
    crate::vfu("read", &trace.socket(), &["CONFIG", "0"]).ok();
    peer.done();
    let (out, _) = trace.ends(0);
    let mut lines = without_times(&out);
    assert!(lines[0].starts_with("> VERSION #0 version=0.2 capabilities={\"max_data_xfer_size\":"), "{out}");
    assert!(lines[1].starts_with("< VERSION #0 ok version=0.2 capabilities={"), "{out}");
    lines.drain(..2);
    let expected = [
        "> DEVICE_GET_INFO #1 argsz=16",
        "< DEVICE_GET_INFO #1 ok flags=reset,pci num_regions=9 num_irqs=5",
        "> DEVICE_GET_REGION_INFO #2 region=CONFIG argsz=32",
        "< DEVICE_GET_REGION_INFO #2 ok region=CONFIG size=0x1000 offset=0x0 flags=read,write argsz=32",
        "> REGION_READ #3 region=CONFIG offset=0x0 count=4 registers=\"Vendor ID,Device ID\"",
        "< REGION_READ #3 ok region=CONFIG offset=0x0 count=4 registers=\"Vendor ID,Device ID\" data=0x",
        "",
    ];
    for (line, expected) in lines.drain(..expected.len()).zip(expected) {
        assert!(line.starts_with(expected) && (expected.ends_with('x') || line == expected), "{out}");
    }
    let table: Vec<Vec<&str>> = out.lines().skip(9).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(table[0], ["command", "from", "count", "posted", "errors", "bytes", "median", "99", "%"]);
    assert_eq!(table[2][..6], ["DEVICE_GET_INFO", "client", "1", "0", "0", "64"], "{out}");
    assert_eq!(table.len(), 5, "{out}");
}

/// What was written is what was seen, in JSON and for people; the file is there also while it is written.
#[test]
fn what_is_written_is_read_again() {
    for format in [&[][..], &["--json"]] {
        let peer = Device::serve();
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let trace = Trace::start(&peer.socket(), &[&["--once", "--write", path], format].concat());
        crate::vfu("info", &trace.socket(), &[]).ok();
        peer.done();
        let (seen, _) = trace.ends(0);
        let read = crate::vfu("trace", Path::new("--read"), &[&[path], format].concat()).ok();
        assert_eq!(read.text(), seen);
        assert!(seen.contains("DEVICE_GET_REGION_INFO"), "{seen}");
    }
}

#[test]
fn files_of_another_kind_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path();
    for (content, what) in [(&b""[..], "it ends within a packet"), (&[7; 300], "it is no pcapng file")] {
        std::fs::write(path, content).unwrap();
        crate::vfu("trace", Path::new("--read"), &[path.to_str().unwrap()]).fails(1, what);
    }
    crate::vfu("trace", Path::new("--read"), &["/no/such/file"]).fails(6, "/no/such/file: No such file");
}

#[test]
fn filters_choose_lines_and_leave_the_table() {
    let peer = Device::serve();
    let options = ["--once", "--json", "--filter", "region=BAR2, reply", "--filter", "error"];
    let trace = Trace::start(&peer.socket(), &options);
    crate::vfu("info", &trace.socket(), &[]).ok();
    peer.done();
    let (out, _) = trace.ends(0);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second, summary] = &lines[..] else { panic!("{out}") };
    for line in [first, second] {
        assert_eq!((&line["type"], &line["fields"]["region"]), (&"reply".into(), &"BAR2".into()), "{out}");
    }
    assert_eq!(second["descriptors"], serde_json::json!([{ "kind": "socket", "name": "", "size": 0 }]));
    assert_eq!(second["fields"]["areas"], serde_json::json!(["0x0+0x1000", "0x2000+0x1000"]));
    let commands = summary["summary"]["commands"].as_array().unwrap();
    assert!(commands.iter().any(|row| row["command"] == "DEVICE_GET_IRQ_INFO" && row["count"] == 5), "{out}");
    crate::vfu("trace", Path::new("--read"), &["x", "--filter", "nonsense"]).usage("'nonsense' is none of");
}

/// The socket that comes with the reply to VERSION is proxied, too, and gives its messages away.
#[test]
fn the_twin_socket_is_proxied() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once"]);
    let mut client = Conn { stream: trace.connect() };
    let mut server = accept(&listener);
    client.send(&message(
        1,
        VERSION,
        0,
        0,
        b"\0\0\x02\0{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0",
    ));
    let request = server.next().unwrap();
    let (theirs, ours) = UnixStream::pair().unwrap();
    let json = b"\0\0\x02\0{\"capabilities\":{\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}\0";
    let reply = message(request.id, VERSION, 1, 0, json);
    // In two pieces: the descriptor is ahead of what says what it is.
    server.send_with_fds(&reply[..3], &[theirs.as_fd()]);
    server.send(&reply[3..]);
    let given = identity(&theirs);
    drop(theirs);
    let mut answer = client.next().unwrap();
    let twin = answer.fds.pop().unwrap();
    assert_ne!(identity(&twin), given, "it is another one");
    let (mut twin, mut ours) = (Conn { stream: twin.into() }, Conn { stream: ours });
    ours.send(&message(9, DMA_READ, 0, 0, &quads(&[0x1000, 4])));
    let command = twin.next().unwrap();
    assert_eq!((command.cmd, command.u64(0)), (DMA_READ, 0x1000));
    twin.reply(&command, &[quads(&[0x1000, 4]), vec![1, 2, 3, 4]].concat());
    assert_eq!(ours.next().unwrap().body[16..], [1, 2, 3, 4]);
    // Later descriptors stay what they are, sockets as well.
    let (other, _end) = UnixStream::pair().unwrap();
    server.send_with_fds(&message(2, GET_REGION_INFO, 1, 0, &[0; 32]), &[other.as_fd()]);
    assert_eq!(identity(&client.next().unwrap().fds[0]), identity(&other));
    drop(twin);
    assert!(ours.next().is_none());
    drop((client, server, ours));
    let (out, _) = trace.ends(0);
    let lines = without_times(&out);
    assert!(lines[1].ends_with("}} [socket]"), "{out}");
    assert_eq!(lines[2], "< twin DMA_READ #9 address=0x1000 count=4", "{out}");
    assert_eq!(lines[3], "> twin DMA_READ #9 ok address=0x1000 count=4 data=0x04030201", "{out}");
    assert!(lines[4].starts_with("< DEVICE_GET_REGION_INFO #2 ok unasked"), "{out}");
}

#[test]
fn several_clients_are_told_apart_and_nothing_is_left_of_them() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &[]);
    let before = trace.descriptors();
    let mut pairs: Vec<(Conn, Conn)> =
        (0..5).map(|_| (Conn { stream: trace.connect() }, accept(&listener))).collect();
    for (n, (client, server)) in pairs.iter_mut().enumerate() {
        let fd = memfd(0x1000);
        let map = [words(&[32, 3]), quads(&[0, n as u64 + 1, 0x1000])].concat();
        client.send_with_fds(&message(n as u16, DMA_MAP, 0, 0, &map), &[fd.as_fd()]);
        let request = server.next().unwrap();
        assert_eq!((request.id, identity(&request.fds[0])), (n as u16, identity(&fd)));
        server.error(&request, 22);
        assert_eq!(client.next().unwrap().flags, 0x21);
    }
    while let Some((client, mut server)) = pairs.pop() {
        drop(client);
        assert!(server.next().is_none());
    }
    // The end of a client is seen here before the trace has closed its side; a new one comes later.
    let (client, mut server) = (trace.connect(), accept(&listener));
    drop(client);
    assert!(server.next().is_none());
    drop(server);
    while trace.descriptors() > before {
        std::thread::yield_now();
    }
    trace.signal();
    let (out, _) = trace.ends(0);
    let lines = without_times(&out);
    assert_eq!(
        lines[0],
        "> DMA_MAP #0 address=0x1 size=0x1000 offset=0x0 flags=read,write [memfd \"test\" of 0x1000 bytes]"
    );
    assert_eq!(lines[1], "< DMA_MAP #0 failed (22: Invalid argument)");
    assert!(lines[8].starts_with("[5] > DMA_MAP #4 address=0x5 "), "{out}");
    let row: Vec<&str> = out.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[..6], ["DMA_MAP", "client", "5", "0", "5", "320"], "{out}");
}

#[test]
fn posted_writes_are_counted_by_region() {
    let (dir, listener) = listen();
    let trace = Trace::start(&dir.path().join("s"), &["--once", "--quiet"]);
    let mut client = Conn { stream: trace.connect() };
    let mut server = accept(&listener);
    for region in [0, 0, 2] {
        let body = [quads(&[0x10]), words(&[region, 4]), vec![1, 0, 0, 0]].concat();
        client.send(&message(1, REGION_WRITE, 0x10, 0, &body));
        server.next().unwrap();
    }
    let entry = [quads(&[0x20]), words(&[2, 1]), vec![5; 8]].concat();
    client.send(&message(1, 15, 0x10, 0, &[quads(&[2]), entry.clone(), entry].concat()));
    server.next().unwrap();
    drop((client, server));
    let (out, _) = trace.ends(0);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.iter().any(|row| row.starts_with(&[
        "REGION_WRITE",
        "client",
        "3",
        "3",
        "0",
        "108",
        "-",
        "-"
    ])));
    assert!(rows.iter().any(|row| row == &["BAR0", "2", "8"]), "{out}");
    assert!(rows.iter().any(|row| row == &["BAR2", "3", "6"]), "{out}");
}

#[test]
fn a_server_that_is_not_there_hangs_up() {
    let (_dir, nobody) = nowhere();
    let mut trace = Trace::start(&nobody, &[]);
    assert_eq!(trace.connect().read(&mut [0]).unwrap(), 0);
    let said = trace.says();
    assert!(
        said.starts_with("vfu: cannot connect to ") && said.ends_with(": No such file or directory\n"),
        "{said}"
    );
    trace.signal();
    assert_eq!(trace.ends(0).0, "no messages\n");
}

#[test]
fn a_socket_that_is_in_use_stays_and_a_stale_one_goes() {
    let (dir, listener) = listen();
    let in_use = dir.path().join("s");
    crate::vfu("trace", &in_use, &["x"]).fails(6, "Address already in use");
    assert!(UnixStream::connect(&in_use).is_ok());
    let file = dir.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    crate::vfu("trace", &file, &["x"]).fails(6, "Address already in use");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let stale = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(stale.path().join("t")).unwrap());
    let trace = Trace::start_in(stale, &in_use, &["--once"]);
    drop(trace.connect());
    drop(listener);
    trace.ends(0);
}

/// `head` has seen enough; the device goes on.
#[test]
fn nobody_has_to_read_the_trace() {
    let peer = Device::serve();
    let mut trace = Trace::start(&peer.socket(), &["--once"]);
    drop(trace.child.stdout.take());
    crate::vfu("info", &trace.socket(), &[]).ok();
    peer.done();
    assert_eq!(trace.ends(0).1, "");
}

/// A file that cannot be written any more is told in the end; the device goes on.
#[test]
fn a_full_file_system_is_told_in_the_end() {
    let peer = Device::serve();
    let trace = Trace::start(&peer.socket(), &["--once", "--quiet", "--write", "/dev/full"]);
    crate::vfu("info", &trace.socket(), &[]).ok();
    peer.done();
    let (out, err) = trace.ends(6);
    assert!(out.contains("DEVICE_GET_INFO"), "{out}");
    assert_eq!(err, "vfu: /dev/full: No space left on device\n");
}

/// Once the server has room again, the client that waits gets its turn.
#[test]
fn a_server_with_a_full_queue_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let waits = UnixStream::connect(&path).unwrap();
    let trace = Trace::start(&path, &["--once"]);
    let mut client = Conn { stream: trace.connect() };
    client.send(b"x");
    let listener = UnixListener::from(socket);
    drop((listener.accept().unwrap(), waits));
    let mut server = accept(&listener);
    assert_eq!(server.exactly(1, &mut vec![]).unwrap(), b"x");
    drop((client, server));
    trace.ends(0);
}
