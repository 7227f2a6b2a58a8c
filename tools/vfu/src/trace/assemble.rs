//! Messages out of the pieces of a stream.

use std::time::Duration;

use vfio_user::wire::{Header, limits, take};

use super::descriptor::Descriptor;
use super::{Place, Record};

/// Bytes that are kept of a message: of any but the longest reports of dirty pages, all.
pub const KEPT: usize = limits::MAX_MESSAGE_SIZE;

/// No message has more bytes: the longest is a report of dirty pages. What claims to is not
/// of this protocol.
const LARGEST: u64 = limits::MAX_BITMAP_SIZE + 4096;

/// One direction of a socket.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What there is of the message that is being received.
    bytes: Vec<u8>,
    /// Bytes of it that have been received.
    have: u64,
    /// Bytes that it has in all, once its header is there.
    size: Option<u64>,
    descriptors: Vec<Descriptor>,
    /// It is not the protocol's: from some header on, there are no messages to be found.
    is_broken: bool,
}

impl Assembler {
    /// Takes a piece in: the messages that it completes, or bytes that are none.
    pub fn piece(
        &mut self,
        at: Duration,
        place: Place,
        mut bytes: &[u8],
        descriptors: Vec<Descriptor>,
    ) -> Vec<Record> {
        let mut out = Vec::new();
        self.descriptors.extend(descriptors);
        while !bytes.is_empty() {
            if self.is_broken {
                let size = bytes.len() as u64;
                let descriptors = std::mem::take(&mut self.descriptors);
                let bytes = bytes.to_vec();
                out.push(Record { at, place, is_message: false, size, bytes, descriptors });
                break;
            }
            let wanted = self.size.unwrap_or(limits::HEADER_SIZE as u64).saturating_sub(self.have);
            let (now, rest) = match usize::try_from(wanted) {
                Ok(wanted) if wanted < bytes.len() => bytes.split_at(wanted),
                _ => (bytes, &[][..]),
            };
            bytes = rest;
            let room = KEPT.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(now.get(..room).unwrap_or(now));
            self.have = self.have.saturating_add(now.len() as u64);
            if self.size.is_none() && self.have == limits::HEADER_SIZE as u64 {
                self.size = size(&self.bytes).ok();
                if self.size.is_none() {
                    self.is_broken = true;
                    let bytes = std::mem::take(&mut self.bytes);
                    let descriptors = std::mem::take(&mut self.descriptors);
                    let size = bytes.len() as u64;
                    out.push(Record { at, place, is_message: false, size, bytes, descriptors });
                    continue;
                }
            }
            if let Some(size) = self.size.filter(|size| *size == self.have) {
                self.have = 0;
                self.size = None;
                let bytes = std::mem::take(&mut self.bytes);
                let descriptors = std::mem::take(&mut self.descriptors);
                out.push(Record { at, place, is_message: true, size, bytes, descriptors });
            }
        }
        out
    }

    /// At the end of the stream: what is wrong with where it ends, if anything is.
    pub fn end(&self) -> Option<String> {
        (self.have > 0 && !self.is_broken)
            .then(|| format!("the stream ends {} bytes into a message", self.have))
    }
}

/// The size of the message that begins with this header, or why there is none.
fn size(head: &[u8]) -> Result<u64, String> {
    let header = take::<Header>(head).map_err(|e| e.to_string())?.0;
    let size = u64::from(header.msg_size);
    match header.message_type() {
        _ if size < limits::HEADER_SIZE as u64 || size > LARGEST => Err(format!("a message of {size} bytes")),
        None => Err(format!("a message that is neither command nor reply, flags {:#x}", header.flags)),
        Some(_) => Ok(size),
    }
}

/// Why these bytes, the first of a stream that are no message, are none.
pub fn why_not(bytes: &[u8]) -> String {
    const QUOTED: usize = limits::HEADER_SIZE;
    let start = String::from_utf8_lossy(bytes.get(..QUOTED).unwrap_or(bytes));
    match size(bytes) {
        Err(why) => format!("it is not vfio-user ({why}; it begins with {start:?})"),
        Ok(_) => format!("it is not vfio-user (it begins with {start:?})"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::trace::descriptor::Kind;
    use crate::trace::{Peer, Socket};

    const PLACE: Place = Place { connection: 1, socket: Socket::Main, from: Peer::Client };

    fn message(id: u16, payload: &[u8]) -> Vec<u8> {
        let header = Header::command(id, 9, (limits::HEADER_SIZE + payload.len()) as u32);
        [header.as_bytes(), payload].concat()
    }

    fn feed(assembler: &mut Assembler, bytes: &[u8]) -> Vec<Record> {
        assembler.piece(Duration::ZERO, PLACE, bytes, vec![])
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            cuts in prop::collection::vec(1usize..50, 1..40),
        ) {
            let sent: Vec<Vec<u8>> =
                payloads.iter().enumerate().map(|(id, payload)| message(id as u16, payload)).collect();
            let stream = sent.concat();
            let mut assembler = Assembler::default();
            let (mut rest, mut got) = (&stream[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                got.extend(feed(&mut assembler, now));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let got: Vec<Vec<u8>> = got.into_iter().map(|record| record.bytes).collect();
            prop_assert_eq!(got, sent);
            prop_assert_eq!(assembler.end(), None);
        }
    }

    #[test]
    fn descriptors_belong_to_the_message_that_they_come_with() {
        let eventfd = || vec![Descriptor { kind: Kind::Eventfd, name: String::new(), size: 0 }];
        let mut assembler = Assembler::default();
        let bytes = message(1, &[1, 2, 3]);
        assert!(assembler.piece(Duration::ZERO, PLACE, &bytes[..5], eventfd()).is_empty());
        let [first] = &feed(&mut assembler, &bytes[5..])[..] else { panic!() };
        assert_eq!(first.descriptors, eventfd());
        let [second] = &feed(&mut assembler, &bytes)[..] else { panic!() };
        assert!(second.descriptors.is_empty());
    }

    #[test]
    fn of_a_long_message_the_beginning_is_kept() {
        let mut assembler = Assembler::default();
        let bytes = message(1, &vec![9; KEPT + 100]);
        let found = feed(&mut assembler, &[&bytes[..], &message(2, &[])].concat());
        assert_eq!((found[0].size, found[0].bytes.len()), (bytes.len() as u64, KEPT));
        assert_eq!((found[1].size, found[1].bytes.len()), (16, 16));
    }

    #[test]
    fn a_stream_of_something_else_is_kept_as_it_is() {
        for text in ["HTTP/1.1 400 Bad Request\r\n", "{\"QMP\": {\"version\": 1}}\r\n"] {
            let mut assembler = Assembler::default();
            let mut found = feed(&mut assembler, &message(1, &[]));
            found.extend(feed(&mut assembler, text.as_bytes()));
            found.extend(feed(&mut assembler, b"more"));
            let [first, rest @ ..] = &found[..] else { panic!() };
            assert!(first.is_message && rest.iter().all(|record| !record.is_message));
            let why = why_not(&rest[0].bytes);
            assert!(why.starts_with("it is not vfio-user (a message of "), "{why}");
            let kept: Vec<u8> = rest.iter().flat_map(|record| record.bytes.clone()).collect();
            assert_eq!(kept, [text, "more"].concat().as_bytes());
            assert_eq!(assembler.end(), None);
        }
        let mut odd = message(1, &[]);
        odd[8] = 2;
        let found = feed(&mut Assembler::default(), &odd);
        assert!(!found[0].is_message && why_not(&odd).contains("flags 0x2"), "{found:?}");
    }

    #[test]
    fn an_end_in_the_middle_is_told() {
        let mut assembler = Assembler::default();
        feed(&mut assembler, &message(1, &[1, 2, 3])[..17]);
        assert_eq!(assembler.end().unwrap(), "the stream ends 17 bytes into a message");
    }
}
