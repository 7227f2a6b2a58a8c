//! Whose descriptors are whose: every gathering and every split of three messages
//! against a reader that takes header and body of each with exact reads.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

use nix::sys::socket::{ControlMessageOwned, recvmsg};
use nix::sys::stat::fstat;

use super::*;

/// What is sent: payload, and whether descriptors come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Info,
    MapWithFile,
    MapWithout,
    /// Two eventfds.
    SetEventfds,
    /// Takes eventfds away.
    ClearEventfds,
    Trigger,
}

const KINDS: [Kind; 6] =
    [Kind::Info, Kind::MapWithFile, Kind::MapWithout, Kind::SetEventfds, Kind::ClearEventfds, Kind::Trigger];

impl Kind {
    fn bytes(self, id: usize) -> Vec<u8> {
        let set_irqs = |flags: u32| message(id as u16, 8, [20, flags, 2, 0, 2].as_bytes());
        match self {
            Kind::Info => message(id as u16, 4, &pattern(16, id)),
            Kind::MapWithFile | Kind::MapWithout => message(id as u16, 2, &pattern(32, id)),
            Kind::SetEventfds | Kind::ClearEventfds => set_irqs(4 | 32),
            Kind::Trigger => set_irqs(1 | 32),
        }
    }

    fn fds(self) -> usize {
        match self {
            Kind::MapWithFile => 1,
            Kind::SetEventfds => 2,
            _ => 0,
        }
    }

    fn may_carry(self) -> bool {
        !matches!(self, Kind::Info | Kind::Trigger)
    }
}

/// One call of `sendmsg`: its bytes, and numbers of files.
type Send = (Vec<u8>, Vec<usize>);
/// A message as it was taken: id, payload, numbers of files.
type Taken = (u16, Vec<u8>, Vec<usize>);

struct Lab {
    files: Vec<File>,
    connection: Connection,
    peer: UnixStream,
    reference: (UnixStream, UnixStream),
}

impl Lab {
    fn new() -> Lab {
        let (connection, peer) = pair();
        let files = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
        Lab { files, connection, peer, reference: UnixStream::pair().unwrap() }
    }

    fn number(&self, fd: BorrowedFd) -> usize {
        let wanted = fstat(fd).unwrap().st_ino;
        self.files.iter().position(|file| fstat(file).unwrap().st_ino == wanted).unwrap()
    }

    fn send(&self, to: &UnixStream, (bytes, fds): &Send) {
        let fds: Vec<_> = fds.iter().map(|n| self.files[*n].as_raw_fd()).collect();
        match fds.is_empty() {
            true => (&*to).write_all(bytes).unwrap(),
            false => send_with_fds(to, bytes, &fds),
        }
    }

    /// What is taken if the receiver looks after the sends that `reads` has a bit for.
    fn taken(&mut self, sends: &[Send], reads: u32) -> Vec<Taken> {
        let mut taken = Vec::new();
        for (i, send) in sends.iter().enumerate() {
            self.send(&self.peer, send);
            if i + 1 < sends.len() && reads & 1 << i == 0 {
                continue;
            }
            while self.connection.receive().unwrap() == Received::Something {
                while let Next::Message(message) = self.connection.next(|_| true).unwrap() {
                    let files = message.fds.iter().map(|fd| self.number(fd.as_fd())).collect();
                    assert_eq!(message.missing_fds, None);
                    taken.push((message.header.msg_id, message.payload().to_vec(), files));
                    self.connection.recycle(message);
                }
            }
        }
        assert!(self.connection.is_at_rest());
        taken
    }

    /// The same as the reader of headers sees it.
    fn reference(&self, sends: &[Send], count: usize) -> Vec<Taken> {
        sends.iter().for_each(|send| self.send(&self.reference.0, send));
        let taken = (0..count).map(|_| {
            let (head, mut fds) = self.exactly(HEADER_SIZE);
            let (header, _) = crate::wire::take::<Header>(&head).unwrap();
            let (payload, more) = self.exactly(header.msg_size as usize - HEADER_SIZE);
            fds.extend(more);
            (header.msg_id, payload, fds)
        });
        taken.collect()
    }

    fn exactly(&self, count: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut fds, mut have) = (vec![0; count], Vec::new(), 0);
        while have < count {
            let mut control = nix::cmsg_space!([RawFd; 8]);
            let mut room = [IoSliceMut::new(&mut bytes[have..])];
            let socket = self.reference.1.as_raw_fd();
            let got = recvmsg::<()>(socket, &mut room, Some(&mut control), MsgFlags::empty()).unwrap();
            for part in got.cmsgs().unwrap() {
                let ControlMessageOwned::ScmRights(passed) = part else { panic!("{part:?}") };
                // SAFETY: they were passed just now, and nobody else has them.
                let owned = passed.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                fds.extend(owned.map(|fd| self.number(fd.as_fd())));
            }
            have += got.bytes;
        }
        (bytes, fds)
    }
}

/// Three messages with the numbers of their files.
fn messages(kinds: [Kind; 3]) -> Vec<(Kind, Send)> {
    let mut next = 0;
    let with_files = kinds.into_iter().enumerate().map(|(i, kind)| {
        let files = (next..next + kind.fds()).collect();
        next += kind.fds();
        (kind, (kind.bytes(i), files))
    });
    with_files.collect()
}

/// All gatherings: a message with descriptors starts a send, one without may be
/// added to the one before.
fn gatherings(messages: &[(Kind, Send)]) -> Vec<Vec<Send>> {
    let mut all: Vec<Vec<Send>> = vec![Vec::new()];
    for (kind, send) in messages {
        let apart = all.iter().cloned().map(|mut sends| {
            sends.push(send.clone());
            sends
        });
        let gathered = all.iter().filter(|sends| kind.fds() == 0 && !sends.is_empty()).cloned();
        let gathered = gathered.map(|mut sends| {
            sends.last_mut().unwrap().0.extend_from_slice(&send.0);
            sends
        });
        all = apart.chain(gathered).collect();
    }
    all
}

/// Whether a message that may carry descriptors, and has none, is in a send
/// behind one that has: then nobody can tell whose they are.
fn is_ambiguous(messages: &[(Kind, Send)], sends: &[Send]) -> bool {
    let (mut end, mut at) = (0, 0);
    let mut boundaries = sends.iter().map(|send| {
        end += send.0.len();
        end
    });
    let (mut boundary, mut with_fds) = (boundaries.next(), false);
    for (kind, send) in messages {
        if boundary == Some(at) {
            (boundary, with_fds) = (boundaries.next(), false);
        }
        if with_fds && kind.may_carry() {
            return true;
        }
        with_fds |= kind.fds() > 0;
        at += send.0.len();
    }
    false
}

/// Cuts at byte `cut` of the stream. Descriptors stay with the first part; with
/// `at_body`, those of a send that is cut go with the second.
fn cut(sends: &[Send], cut: usize, at_body: bool) -> Vec<Send> {
    let (mut parts, mut at) = (Vec::new(), 0);
    for (bytes, fds) in sends {
        match cut.checked_sub(at) {
            Some(inside @ 1..) if inside < bytes.len() => {
                let (first, second) = bytes.split_at(inside);
                let (with_first, with_second) = match at_body {
                    true => (Vec::new(), fds.clone()),
                    false => (fds.clone(), Vec::new()),
                };
                parts.push((first.to_vec(), with_first));
                parts.push((second.to_vec(), with_second));
            }
            _ => parts.push((bytes.clone(), fds.clone())),
        }
        at += bytes.len();
    }
    parts
}

fn triples() -> impl Iterator<Item = [Kind; 3]> {
    KINDS.into_iter().flat_map(|a| KINDS.into_iter().flat_map(move |b| KINDS.map(|c| [a, b, c])))
}

#[test]
fn every_gathering_and_every_split_of_three_messages() {
    let mut lab = Lab::new();
    for kinds in triples() {
        let messages = messages(kinds);
        for sends in gatherings(&messages) {
            if is_ambiguous(&messages, &sends) {
                continue;
            }
            let total: usize = sends.iter().map(|send| send.0.len()).sum();
            for at in 0..total {
                let sends = cut(&sends, at, false);
                let expected = lab.reference(&sends, 3);
                for reads in [0, !0] {
                    assert_eq!(lab.taken(&sends, reads), expected, "{kinds:?} cut at {at}, reads {reads:b}");
                }
            }
        }
    }
}

#[test]
fn every_order_of_sends_and_reads() {
    let mut lab = Lab::new();
    for kinds in triples() {
        let messages = messages(kinds);
        let sends: Vec<Send> = messages.iter().map(|(_, send)| send.clone()).collect();
        // Each in two parts, within the header, or before the flags are there.
        for inside in [7, 20] {
            let mut sends = sends.clone();
            for i in (0..3).rev() {
                let at = sends[..i].iter().map(|send| send.0.len()).sum::<usize>() + inside;
                sends = cut(&sends, at, false);
            }
            let expected = lab.reference(&sends, 3);
            for reads in 0..1 << (sends.len() - 1) {
                assert_eq!(lab.taken(&sends, reads), expected, "{kinds:?} cut at {inside}, reads {reads:b}");
            }
        }
    }
}

#[test]
fn descriptors_sent_with_the_body_alone() {
    let mut lab = Lab::new();
    for kinds in triples().filter(|kinds| kinds.iter().any(|kind| kind.fds() > 0)) {
        let messages = messages(kinds);
        let sends: Vec<Send> = messages.iter().map(|(_, send)| send.clone()).collect();
        let mut at = 0;
        for (kind, (bytes, _)) in &messages {
            for inside in (0..bytes.len()).filter(|_| kind.fds() > 0) {
                let sends = cut(&sends, at + inside, true);
                let expected = lab.reference(&sends, 3);
                for reads in [0, !0] {
                    assert_eq!(lab.taken(&sends, reads), expected, "{kinds:?}, {kind:?} cut at {inside}");
                }
            }
            at += bytes.len();
        }
    }
}

#[test]
fn where_nobody_can_tell_the_last_that_may_carry_them_has_them() {
    let mut lab = Lab::new();
    for kinds in triples() {
        let messages = messages(kinds);
        let bytes: Vec<u8> = messages.iter().flat_map(|(_, send)| send.0.clone()).collect();
        let owner = kinds.iter().rposition(|kind| kind.may_carry()).unwrap_or(2);
        for at in 0..bytes.len() {
            let sends = [(bytes[..at].to_vec(), vec![]), (bytes[at..].to_vec(), vec![0, 1])];
            let sends = if at == 0 { &sends[1..] } else { &sends[..] };
            let taken = lab.taken(sends, 0);
            for (i, (_, _, files)) in taken.iter().enumerate() {
                assert_eq!(*files, if i == owner { vec![0, 1] } else { vec![] }, "{kinds:?} cut at {at}");
            }
        }
    }
}

/// A held message at the start of a full buffer, and the header of the next one
/// cut off by its end.
#[test]
fn a_burst_that_fills_the_buffer_behind_a_message_that_is_held() {
    let mut lab = Lab::new();
    let map = Kind::MapWithFile.bytes(1);
    let set_irqs = Kind::Trigger.bytes(2);
    for filler in [4050, 65_400, 65_500, 65_600, 140_000] {
        for part in 0..60 {
            let long = message(3, 9, &pattern(filler + part - 64, 0));
            let sends = [([map.clone(), long.clone(), set_irqs.clone()].concat(), vec![4])];
            let taken = lab.taken(&sends, 0);
            let ids: Vec<_> = taken.iter().map(|(id, _, files)| (*id, files.len())).collect();
            assert_eq!(ids, [(1, 1), (3, 0), (2, 0)], "{filler} and {part}");
        }
    }
}

#[test]
fn no_more_than_one_array_waits_for_a_message_that_is_not_whole() {
    let (mut connection, peer) = pair();
    let file = File::open("/dev/null").unwrap();
    let bytes = message(1, 2, &pattern(32, 0));
    for (i, byte) in bytes.iter().enumerate() {
        send_with_fds(&peer, &[*byte], &[file.as_raw_fd(); 200]);
        assert_eq!(connection.receive().unwrap(), Received::Something);
        if i + 1 < bytes.len() {
            assert!(matches!(connection.next(|_| true).unwrap(), Next::Nothing));
        }
    }
    let Next::Message(message) = connection.next(|_| true).unwrap() else { panic!("no message") };
    assert_eq!((message.fds.len(), message.missing_fds), (0, Some(Errno::EMFILE)));
}
