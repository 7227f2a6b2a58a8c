//! Servers that are not there, say nothing, or speak nonsense.

use std::os::fd::AsFd;

use crate::device::CAPABILITIES;
use crate::peer::*;
use crate::vfu;

#[test]
fn a_wrong_socket_is_exit_code_3_and_says_what_it_is() {
    let (dir, socket) = nowhere();
    vfu("info", &socket, &[]).fails(3, "nobody: there is no such socket; is the server running?\n");
    std::fs::write(&socket, b"").unwrap();
    vfu("info", &socket, &[]).fails(3, "nobody: it is a file, but no socket\n");
    vfu("info", dir.path(), &[]).fails(3, "it is a folder; the path of the socket in it is needed\n");
    vfu("info", &dir.path().join("x".repeat(200)), &[]).fails(3, "cannot connect to");
    let stale = dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    vfu("info", &stale, &[])
        .fails(3, "stale: nobody listens there: the server that made this socket has ended\n");
}

/// A server that is in use takes the connection, or lets it wait, and says nothing.
#[test]
fn of_a_silent_server_it_says_that_another_client_may_be_connected() {
    let peer = Peer::new(Conn::drain);
    let why = "(a server serves one client at a time: another may be connected) within 0.2 s\n";
    vfu("info", &peer.socket(), &["--timeout", "0.2"]).fails(4, why);
    peer.done();
    // One client waits to be accepted; there is no room for another.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
    vfu("info", &path, &["--timeout", "0.2"]).fails(4, "did not accept the connection (a server serves one");
}

/// Other servers, that were taken for one of this protocol by mistake.
#[test]
fn another_protocol_is_exit_code_5_and_told_apart() {
    for greeting in [
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0}}}}\r\n",
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        "ERR\n",
    ] {
        let peer = Peer::new(move |mut conn| {
            conn.send(greeting.as_bytes());
            let _ = conn.stream.shutdown(std::net::Shutdown::Write);
            conn.drain();
        });
        vfu("info", &peer.socket(), &[]).fails(5, "what answers is no vfio-user server: it ");
        peer.done();
    }
}

#[test]
fn a_silent_server_is_exit_code_4() {
    let peer = Peer::new(Conn::drain);
    vfu("info", &peer.socket(), &["--timeout", "0.2"]).fails(4, "version negotiation: no answer");
    peer.done();
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        conn.drain();
    });
    vfu("reset", &peer.socket(), &["--timeout", "0.2"])
        .fails(4, "reset: no answer from the server within 0.2 s");
    peer.done();
}

#[test]
fn half_an_answer_is_silence() {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let request = conn.next().unwrap();
        conn.send(&message(request.id, request.cmd, 1, 0, &[])[..9]);
        conn.drain();
    });
    vfu("reset", &peer.socket(), &["--timeout", "0.2"]).fails(4, "no answer");
    peer.done();
}

/// A server that doesn't even read must not hold the client for ever.
#[test]
fn a_server_that_does_not_read_is_silent() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let peer = Peer::new(move |mut conn| {
        conn.negotiate(CAPABILITIES);
        conn.tell_of_regions();
        let _ = receiver.recv();
    });
    let data = vec![0; 1 << 20];
    let run = crate::vfu_with_input(
        "write",
        &peer.socket(),
        &["0", "0", "-", "--block", "--timeout", "0.2"],
        &data,
    );
    run.fails(4, "the server did not read the request");
    drop(sender);
    peer.done();
}

#[test]
fn an_error_to_the_version_is_exit_code_1() {
    let peer = Peer::new(|mut conn| {
        let request = conn.next().unwrap();
        conn.error(&request, 22);
    });
    vfu("info", &peer.socket(), &[]).fails(1, "version negotiation: the device answered: Invalid argument");
    peer.done();
}

/// Lets a server negotiate and then answer a reset with these bytes.
#[track_caller]
fn nonsense(answer: impl FnOnce(&Request) -> Vec<u8> + Send + 'static, part: &str) {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let request = conn.next().unwrap();
        conn.send(&answer(&request));
        let _ = conn.stream.shutdown(std::net::Shutdown::Write);
        conn.drain();
    });
    vfu("reset", &peer.socket(), &[]).fails(5, part);
    peer.done();
}

#[test]
fn nonsense_is_exit_code_5() {
    nonsense(|_| vec![], "vfu: reset: the server hung up\n");
    nonsense(
        |r| message(r.id, r.cmd, 1, 0, &[])[..15].to_vec(),
        "vfu: in the middle of a message: the server hung up\n",
    );
    nonsense(|r| message(r.id.wrapping_add(1), r.cmd, 1, 0, &[]), "a reply with id");
    nonsense(|r| message(r.id, RESET + 1, 1, 0, &[]), "command 13 were due");
    nonsense(|r| message(r.id, r.cmd, 2, 0, &[]), "a message of type 2");
    nonsense(|r| message(r.id, r.cmd, 0x21, u32::MAX, &[]), "errno 4294967295");
    nonsense(|_| message(1, RESET, 0, 0, &[]), "the server sent command 13");
    nonsense(|_| message(1, DMA_READ, 0, 0, &quads(&[0, u64::MAX])), "a DMA command for");
    nonsense(|_| message(1, DMA_WRITE, 0, 0, &[0; 3]), "with 3 bytes of payload");
    nonsense(
        |_| b"HTTP/1.0 400 Bad Request\r\n\r\n".to_vec(),
        "it begins with 'HTTP/1.0 400 Bad'; is this the right",
    );
}

#[test]
fn a_size_that_lies_is_exit_code_5() {
    for size in [0, 15, (1 << 20) + 33, u32::MAX] {
        let head = move |r: &Request| {
            let mut bytes = message(r.id, r.cmd, 1, 0, &[]);
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        nonsense(head, &format!("the message has {size} bytes"));
    }
}

/// Lets a server answer `command` as `answer` says, everything else well.
#[track_caller]
fn bad_answer(
    command: u16,
    line: &[&str],
    answer: impl Fn(&Request) -> Vec<u8> + Send + 'static,
    part: &str,
) {
    let peer = Peer::new(move |mut conn| {
        conn.negotiate(CAPABILITIES);
        let mut device = crate::device::Device::new();
        while let Some(request) = conn.next() {
            match request.cmd == command {
                true => conn.reply(&request, &answer(&request)),
                false => device.handle(&mut conn, request),
            }
        }
    });
    vfu(line[0], &peer.socket(), &line[1..]).fails(5, part);
    peer.done();
}

#[test]
fn answers_of_a_wrong_shape_are_exit_code_5() {
    bad_answer(GET_INFO, &["info"], |_| vec![], "device information: a reply with 0 bytes of 16");
    bad_answer(GET_INFO, &["info"], |_| words(&[16, 3, u32::MAX, 5]), "4294967295 regions");
    bad_answer(GET_IRQ_INFO, &["info"], |_| words(&[16, 1, 9, 5]), "the answer is about type 9");
    bad_answer(GET_REGION_INFO, &["info"], |_| vec![0; 31], "a reply with 31 bytes of 32");
    let huge = |_: &Request| [words(&[u32::MAX, 0, 0, 0]), quads(&[0, 0])].concat();
    bad_answer(GET_REGION_INFO, &["info"], huge, "4294967295 bytes to tell");
    let lost = |_: &Request| [words(&[32, 8, 0, 32]), quads(&[0, 0])].concat();
    bad_answer(GET_REGION_INFO, &["info"], lost, "leads nowhere");
    let read = ["read", "BAR0", "0"];
    bad_answer(REGION_READ, &read, |r| r.body.clone(), "4 bytes promised, 0 sent");
    bad_answer(REGION_READ, &read, |r| [&r.body[..], &[0; 5]].concat(), "4 bytes promised, 5 sent");
    bad_answer(REGION_READ, &read, |_| [quads(&[0]), words(&[0, 5, 0, 0])].concat(), "about something else");
    bad_answer(REGION_WRITE, &["write", "BAR0", "0", "1"], |_| vec![], "a reply with 0 bytes of 16");
}

/// Servers do that where they know of no errno.
#[test]
fn an_error_without_errno_is_exit_code_1() {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let request = conn.next().unwrap();
        conn.error(&request, 0);
        conn.drain();
    });
    vfu("reset", &peer.socket(), &[]).fails(1, "reset: the device answered with an error, but no errno");
    peer.done();
}

#[test]
fn a_short_answer_is_exit_code_1() {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        conn.tell_of_regions();
        let request = conn.next().unwrap();
        conn.reply(&request, &[quads(&[0]), words(&[0, 2]), vec![1, 2]].concat());
        conn.drain();
    });
    vfu("read", &peer.socket(), &["BAR0", "0"]).fails(1, "the device did 2 bytes of 4");
    peer.done();
}

#[test]
fn too_many_descriptors_are_exit_code_5() {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let request = conn.next().unwrap();
        let stream = conn.stream.try_clone().unwrap();
        conn.send_with_fds(&message(request.id, request.cmd, 1, 0, &[]), &[stream.as_fd(); 17]);
        conn.drain();
    });
    vfu("reset", &peer.socket(), &[]).fails(5, "16 descriptors");
    peer.done();
}

/// Lets a server answer the version message with this payload.
#[track_caller]
fn bad_version(payload: &[u8], part: &str) {
    let payload = payload.to_vec();
    let peer = Peer::new(move |mut conn| {
        let request = conn.next().unwrap();
        conn.reply(&request, &payload);
        conn.drain();
    });
    vfu("info", &peer.socket(), &["--twin-socket"]).fails(5, part);
    peer.done();
}

#[test]
fn a_bad_version_reply_is_exit_code_5() {
    bad_version(&[], "0 bytes of payload");
    bad_version(&[1, 0, 0, 0], "version 1.0");
    bad_version(&[0, 0, 3, 0], "version 0.3");
    bad_version(b"\0\0\x02\0{}", "NUL");
    bad_version(b"\0\0\x02\0nonsense\0", "capabilities");
    bad_version(b"\0\0\x02\0{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0", "did not come");
    // What the server sent is quoted in one line of bounded length.
    let long = format!("\0\0\x02\0{{\"capabilities\":{{\"max_msg_fds\":\"{}\n\"}}}}\0", "x".repeat(1 << 16));
    bad_version(long.as_bytes(), "capabilities");
}

/// The answer comes byte by byte, behind a command of the server.
#[test]
fn pieces_and_commands_in_between_are_fine() {
    let peer = Peer::new(|mut conn| {
        conn.negotiate(CAPABILITIES);
        let request = conn.next().unwrap();
        let mut bytes = message(700, DMA_READ, 0, 0, &quads(&[0x1000, 16]));
        bytes.extend(message(701, DMA_WRITE, 0x10, 0, &[quads(&[0x1000, 1]), vec![5]].concat()));
        bytes.extend(message(request.id, request.cmd, 1, 0, &[]));
        bytes.iter().for_each(|byte| conn.send(&[*byte]));
        let answer = conn.next().unwrap();
        // There is no memory at all, and the second command wants no reply.
        (answer.id, answer.cmd, answer.flags, answer.body.len(), conn.next().is_none())
    });
    vfu("reset", &peer.socket(), &[]).ok();
    assert_eq!(peer.done(), (700, DMA_READ, 0x21, 0, true));
}
