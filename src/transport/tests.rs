//! Framing at every split, descriptors, gathering: over real socket pairs.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proptest::prelude::*;
use zerocopy::IntoBytes;

mod descriptors;

use super::*;
use crate::wire::limits::{HEADER_SIZE, MAX_MESSAGE_SIZE};
use crate::wire::{Errno, Header};

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Connection::new(OwnedFd::from(ours), crate::wire::may_carry_fds).unwrap(), theirs)
}

fn message(id: u16, cmd: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(id, cmd, (HEADER_SIZE + payload.len()) as u32);
    [header.as_bytes(), payload].concat()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed * 7) as u8).collect()
}

fn send_with_fds(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let control = [ControlMessage::ScmRights(fds)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None);
    assert_eq!(sent.unwrap(), bytes.len());
}

/// Takes every whole message that is there.
fn take_all(connection: &mut Connection, out: &mut Vec<(u16, Vec<u8>)>) {
    loop {
        match connection.next(|_| true).unwrap() {
            Next::Message(message) => {
                assert_eq!(message.payload().as_ptr() as usize % 8, 0, "payload is aligned");
                out.push((message.header.msg_id, message.payload().to_vec()));
                connection.recycle(message);
            }
            Next::Nothing => return,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_split_of_two_messages_gives_the_same_messages() {
    let first = message(1, 9, &pattern(21, 1));
    let second = message(2, 10, &pattern(5, 2));
    let stream = [first, second].concat();
    for cut in 0..=stream.len() {
        let (mut connection, mut peer) = pair();
        let mut got = Vec::new();
        for part in [&stream[..cut], &stream[cut..]] {
            peer.write_all(part).unwrap();
            while connection.receive().unwrap() == Received::Something {}
            take_all(&mut connection, &mut got);
        }
        assert_eq!(got, [(1, pattern(21, 1)), (2, pattern(5, 2))], "cut at {cut}");
        assert!(connection.at_boundary());
    }
}

#[test]
fn one_byte_at_a_time() {
    let stream = [message(1, 9, &pattern(40, 1)), message(2, 13, &[]), message(3, 9, &[7])].concat();
    let (mut connection, mut peer) = pair();
    let mut got = Vec::new();
    for byte in &stream {
        peer.write_all(&[*byte]).unwrap();
        assert_eq!(connection.receive().unwrap(), Received::Something);
        take_all(&mut connection, &mut got);
    }
    assert_eq!(got, [(1, pattern(40, 1)), (2, vec![]), (3, vec![7])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Messages of all sizes, cut anywhere, arrive as they were sent.
    #[test]
    fn any_sizes_and_splits(
        sizes in prop::collection::vec(prop_oneof![0usize..64, 0usize..5000, 60_000usize..70_000, Just(MAX_MESSAGE_SIZE - HEADER_SIZE)], 1..12),
        cuts in prop::collection::vec(1usize..150_000, 1..40),
    ) {
        let expected: Vec<_> = sizes.iter().enumerate().map(|(i, n)| (i as u16, pattern(*n, i))).collect();
        let stream: Vec<u8> = expected.iter().flat_map(|(id, body)| message(*id, 10, body)).collect();
        let (mut connection, mut peer) = pair();
        peer.set_nonblocking(true).unwrap();
        let (mut sent, mut got, mut cuts) = (0, Vec::new(), cuts.into_iter().cycle());
        while got.len() < expected.len() {
            let end = (sent + cuts.next().unwrap()).min(stream.len());
            if let Ok(count) = peer.write(&stream[sent..end]) {
                sent += count;
            }
            connection.receive().unwrap();
            take_all(&mut connection, &mut got);
        }
        prop_assert_eq!(got, expected);
    }
}

/// Header and 48 bytes, as much of them as the header says.
type Short = [u8; 64];

fn short(bytes: &[u8]) -> Option<Short> {
    let mut message = [0; 64];
    message.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(message)
}

/// Takes a short message by one of the two ways; without what is behind its end.
fn take_short(connection: &mut Connection, is_alone: bool) -> Option<Short> {
    let is_wanted = |message: &Short| message[2] == 9;
    let taken = match is_alone {
        true => connection.next_single(is_wanted),
        false => connection.next_short(is_wanted),
    }?;
    let (header, _) = crate::wire::take::<Header>(&taken).unwrap();
    short(&taken[..header.msg_size as usize])
}

#[test]
fn short_messages_are_taken_as_copies_and_others_left() {
    for size in 0..100 {
        for (cmd, is_alone) in [(9, false), (9, true), (10, false), (10, true)] {
            let (mut connection, mut peer) = pair();
            let sent = message(1, cmd, &pattern(size, 3));
            peer.write_all(&sent).unwrap();
            assert!(connection.is_calm());
            assert_eq!(connection.receive_calm().unwrap(), Received::Something);
            let expected = short(&sent).filter(|_| cmd == 9);
            assert_eq!(take_short(&mut connection, is_alone), expected, "{size} {cmd} {is_alone}");
            assert_eq!(connection.is_calm(), expected.is_some());
            let mut got = Vec::new();
            take_all(&mut connection, &mut got);
            assert_eq!(got.is_empty(), expected.is_some(), "the other way has what this one left");
        }
    }
}

#[test]
fn a_short_message_is_single_if_nothing_is_before_or_behind_it() {
    let both = [message(1, 9, b"12345678"), message(2, 9, b"x")].concat();
    for cut in 1..both.len() {
        let (mut connection, mut peer) = pair();
        peer.write_all(&both[..cut]).unwrap();
        connection.receive_calm().unwrap();
        assert_eq!(take_short(&mut connection, true), short(&both[..24]).filter(|_| cut == 24), "{cut}");
    }
}

#[test]
fn a_short_message_with_a_descriptor_is_left_to_the_general_way() {
    let (mut connection, peer) = pair();
    let file = File::open("/dev/null").unwrap();
    send_with_fds(&peer, &message(1, 9, b"12345678"), &[file.as_raw_fd()]);
    assert_eq!(connection.receive_calm().unwrap(), Received::Something);
    assert!(take_short(&mut connection, true).is_none() && take_short(&mut connection, false).is_none());
}

#[test]
fn short_replies_go_out_at_once_or_behind_those_that_wait() {
    let (mut connection, mut peer) = pair();
    peer.set_nonblocking(true).unwrap();
    let (first, second, third) = (message(1, 9, b"a"), message(2, 9, b"b"), message(3, 9, b"c"));
    let mut got = vec![0; 200];
    connection.answer_short(&first);
    assert_eq!(peer.read(&mut got).unwrap(), first.len());
    connection.sender.push_bytes(&second, &mut connection.pool).unwrap();
    connection.answer_short(&third);
    assert!(peer.read(&mut got).is_err(), "not before the second");
    assert_eq!(connection.flush(), Sent::All);
    assert_eq!(peer.read(&mut got).unwrap(), second.len() + third.len());
    assert_eq!(got[..second.len()], second);
    // What the socket does not take at once is kept.
    let mut sent = 0;
    while !connection.has_unsent() {
        connection.answer_short(&first);
        sent += first.len();
    }
    peer.set_nonblocking(false).unwrap();
    let mut all = vec![0; sent];
    while connection.flush() != Sent::All {
        let taken = first.len();
        peer.read_exact(&mut all[..taken]).unwrap();
        all.truncate(all.len() - taken);
    }
    peer.read_exact(&mut all).unwrap();
    drop(peer);
    connection.answer_short(&first);
    assert!(connection.lost());
}

#[test]
fn refused_bodies_are_dropped_with_their_descriptors_and_the_stream_stays_in_step() {
    let (mut connection, mut peer) = pair();
    let (mut reading, writing) = std::io::pipe().unwrap();
    let bad = message(1, 77, &pattern(100_000, 0));
    send_with_fds(&peer, &bad[..HEADER_SIZE], &[writing.as_raw_fd()]);
    drop(writing);
    connection.receive().unwrap();
    let next = connection.next(|header| header.cmd != 77).unwrap();
    assert!(matches!(next, Next::Refused(header) if header.msg_id == 1), "before the body has come");
    peer.set_nonblocking(true).unwrap();
    let mut rest = &bad[HEADER_SIZE..];
    while !rest.is_empty() {
        if let Ok(count) = peer.write(rest) {
            rest = &rest[count..];
        }
        connection.receive().unwrap();
        assert!(matches!(connection.next(|_| true).unwrap(), Next::Nothing));
    }
    peer.write_all(&message(2, 9, b"next")).unwrap();
    while connection.receive().unwrap() == Received::Something {}
    let mut got = Vec::new();
    take_all(&mut connection, &mut got);
    assert_eq!(got, [(2, b"next".to_vec())]);
    let mut nothing = Vec::new();
    assert_eq!(reading.read_to_end(&mut nothing).unwrap(), 0, "the descriptor was closed");
}

#[test]
fn sizes_that_cannot_be_followed() {
    for size in [0, 15, MAX_MESSAGE_SIZE as u32 + 1, u32::MAX] {
        let (mut connection, mut peer) = pair();
        peer.write_all(Header::command(5, 9, size).as_bytes()).unwrap();
        connection.receive().unwrap();
        assert!(matches!(connection.next(|_| true).unwrap(), Next::Unfollowable(h) if h.msg_size == size));
    }
}

#[test]
fn descriptors_of_a_pipelined_burst_come_with_their_messages() {
    let (mut connection, peer) = pair();
    let files: Vec<_> = (0..10)
        .map(|i| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[i]).unwrap();
            file
        })
        .collect();
    for (i, file) in files.iter().enumerate() {
        send_with_fds(&peer, &message(i as u16, 2, &pattern(32, i)), &[file.as_raw_fd()]);
    }
    let mut seen = 0;
    while connection.receive().unwrap() == Received::Something {
        assert_eq!(connection.receive().unwrap(), Received::Nothing, "not before these have been taken");
        while let Next::Message(mut message) = connection.next(|_| true).unwrap() {
            assert_eq!(message.header.msg_id, seen);
            assert_eq!(message.fds.len(), 1);
            let mut byte = [0];
            let file = File::from(message.fds.remove(0));
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).unwrap();
            assert_eq!(u16::from(byte[0]), seen);
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn descriptors_attached_to_the_body_belong_to_the_message() {
    let (mut connection, mut peer) = pair();
    let file = File::open("/dev/null").unwrap();
    let bytes = message(1, 2, &pattern(32, 0));
    peer.write_all(&bytes[..HEADER_SIZE]).unwrap();
    send_with_fds(&peer, &bytes[HEADER_SIZE..], &[file.as_raw_fd()]);
    while connection.receive().unwrap() == Received::Something {}
    let Next::Message(message) = connection.next(|_| true).unwrap() else { panic!("no message") };
    assert_eq!(message.fds.len(), 1);
}

#[test]
fn the_end_is_not_an_error_before_what_came_is_used() {
    let (mut connection, mut peer) = pair();
    peer.write_all(&message(1, 9, b"last")).unwrap();
    drop(peer);
    while !connection.ended() {
        connection.receive().unwrap();
    }
    let mut got = Vec::new();
    take_all(&mut connection, &mut got);
    assert_eq!(got.len(), 1);
}

fn request(id: u16) -> Header {
    Header::command(id, 9, 32)
}

#[test]
fn replies_are_gathered_and_in_order_and_whole_whatever_their_size() {
    let (mut connection, mut peer) = pair();
    let sizes = [0, 4, 4080, 4081, 70_000, 8, 1 << 20, 3];
    let mut expected = Vec::new();
    for (i, size) in sizes.into_iter().enumerate() {
        let mut reply = Reply::empty();
        connection.make_room(&mut reply, size).unwrap();
        reply.put_bytes(&pattern(size, i)).unwrap();
        connection.reply(&request(i as u16), &mut reply).unwrap();
        expected.extend_from_slice(request(i as u16).reply((HEADER_SIZE + size) as u32).as_bytes());
        expected.extend(pattern(size, i));
    }
    connection.reply_error(&request(99), Errno::new(0xbeef)).unwrap();
    expected.extend_from_slice(request(99).error_reply(Errno::new(0xbeef)).as_bytes());
    peer.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let mut room = vec![0; 1 << 16];
    while got.len() < expected.len() {
        assert_ne!(connection.flush(), Sent::Lost);
        if let Ok(count) = peer.read(&mut room) {
            got.extend_from_slice(&room[..count]);
        }
    }
    assert!(got == expected);
    assert_eq!(connection.flush(), Sent::All);
    assert!(!connection.has_unsent());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Over a socket that keeps sends apart: each is one of whole replies.
    #[test]
    fn no_reply_is_cut_in_two_sends(
        sizes in prop::collection::vec((prop_oneof![0usize..64, 3000usize..5000, 20_000usize..30_000], any::<bool>()), 1..20),
    ) {
        let flags = nix::sys::socket::SockFlag::empty();
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix, nix::sys::socket::SockType::SeqPacket, None, flags).unwrap();
        let mut connection = Connection::new(ours, crate::wire::may_carry_fds).unwrap();
        let peer = File::from(theirs);
        let file = File::open("/dev/null").unwrap();
        let mut room = vec![0; 1 << 20];
        let (mut asked, mut answered) = (0_u16, 0_u16);
        for (i, (size, with_fd)) in sizes.iter().enumerate() {
            let mut reply = Reply::empty();
            connection.make_room(&mut reply, *size).unwrap();
            reply.put_bytes(&pattern(*size, i)).unwrap();
            if *with_fd {
                reply.lend_fds(vec![file.as_raw_fd()]).unwrap();
            }
            connection.reply(&request(asked), &mut reply).unwrap();
            asked += 1;
            if !connection.should_flush() && usize::from(asked) < sizes.len() {
                continue;
            }
            prop_assert_eq!(connection.flush(), Sent::All);
            while answered < asked {
                let count = (&peer).read(&mut room).unwrap();
                let mut rest = &room[..count];
                while !rest.is_empty() {
                    let (header, _) = crate::wire::take::<Header>(rest).unwrap();
                    prop_assert_eq!(header.msg_id, answered);
                    answered += 1;
                    prop_assert!(header.msg_size as usize <= rest.len(), "cut");
                    rest = &rest[header.msg_size as usize..];
                }
            }
        }
    }
}

#[test]
fn a_reply_with_too_many_descriptors_becomes_an_error_reply() {
    let (mut connection, mut peer) = pair();
    let file = File::open("/dev/null").unwrap();
    let mut reply = Reply::empty();
    reply.put_bytes(&[1; 8]).unwrap();
    reply.lend_fds(vec![file.as_raw_fd(); 254]).unwrap();
    connection.reply(&request(1), &mut reply).unwrap();
    connection.reply_error(&request(2), Errno::EINVAL).unwrap();
    assert_eq!(connection.flush(), Sent::All);
    let mut got = [0; 32];
    peer.read_exact(&mut got).unwrap();
    let first = request(1).error_reply(Errno::ETOOMANYREFS);
    let second = request(2).error_reply(Errno::EINVAL);
    assert_eq!(got[..], [first.as_bytes(), second.as_bytes()].concat());
}

#[test]
fn a_peer_that_is_gone_is_noticed_when_sending() {
    let (mut connection, peer) = pair();
    drop(peer);
    connection.reply_error(&request(1), Errno::EINVAL).unwrap();
    assert_eq!(connection.flush(), Sent::Lost);
    assert!(connection.lost());
}

#[test]
fn closing_does_not_reset_the_peer() {
    let (connection, mut peer) = pair();
    peer.write_all(&pattern(100_000, 0)).unwrap();
    drop(connection);
    let mut rest = Vec::new();
    assert_eq!(peer.read_to_end(&mut rest).unwrap(), 0, "end of file and not ECONNRESET");
}

/// A command that reads `to`, sent over a twin socket, and the client's end of that.
fn asked<'a>(connection: &mut Connection, to: &'a mut [u8]) -> (UnixStream, [Outstanding<'a>; 1]) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    connection.set_twin(OwnedFd::from(ours));
    connection.open_twin().unwrap();
    let command = Outstanding { msg_id: 7, cmd: 11, head: [9; 16], data: Data::read(to) };
    assert_eq!(connection.send_command(&command), Ok(true));
    (theirs, [command])
}

#[test]
fn of_a_receipt_that_nobody_told_of_it_is_known_whether_it_took_anything() {
    for takes in [false, true] {
        let (mut connection, _peer) = pair();
        let mut data = [0; 64];
        let (mut theirs, awaited) = asked(&mut connection, &mut data);
        let wait = connection.wait_answer(&awaited).unwrap();
        if takes {
            theirs.write_all(&[1; 5]).unwrap();
        }
        // SAFETY: it was asked for just now. Without bytes it ends by itself.
        let outcome = unsafe { wait.perform() };
        let expected = if takes { Ok(5) } else { Err(Errno::EAGAIN) };
        assert!(matches!(outcome, Outcome::Moved(outcome) if outcome == expected), "{outcome:?}");
        connection.abandon_answers();
        assert_eq!(connection.lost(), takes);
    }
}

#[test]
fn a_second_socket_that_no_command_went_over_is_closed_as_gently() {
    let (mut connection, _peer) = pair();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    connection.set_twin(OwnedFd::from(ours));
    assert!(connection.has_twin() && connection.late_socket().is_none());
    theirs.write_all(&pattern(100_000, 0)).unwrap();
    drop(connection);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "end of file and not ECONNRESET");
}
