//! `--verbose`: this program's own messages, as a trace shows those of others.

use std::io::stderr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use super::{Descriptor, Event, Options, Peer, Place, Report, Socket};
use crate::client::{Tap, Wire};

/// Prints messages on standard error, each once it is whole.
pub struct Verbose(Report);

impl Verbose {
    /// In lines for people, or of JSON.
    pub fn new(json: bool) -> Verbose {
        let options = Options { json, ..Options::default() };
        Verbose(Report::to(Box::new(stderr()), options, None))
    }
}

impl Tap for Verbose {
    fn piece(&mut self, wire: Wire, is_sent: bool, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let place = Place {
            connection: wire.connection,
            socket: if wire.is_twin { Socket::Twin } else { Socket::Main },
            from: if is_sent { Peer::Client } else { Peer::Server },
        };
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let descriptors = fds.iter().map(|fd| Descriptor::of(*fd)).collect();
        self.0.event(Event::Piece { at, place, bytes: bytes.to_vec(), descriptors });
        self.0.flush();
    }
}
