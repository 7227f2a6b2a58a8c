//! Who looks on at what this program sends and receives, for `--verbose`.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

/// One of the sockets of this program's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Which connection, from 1 on.
    pub connection: u32,
    /// Whether it is the second socket, for the server's commands.
    pub is_twin: bool,
}

/// Told of every piece, in the order in which they go and come.
pub trait Tap: Send {
    /// These bytes were sent, the descriptors with the first of them, or received.
    fn piece(&mut self, wire: Wire, is_sent: bool, bytes: &[u8], fds: &[BorrowedFd<'_>]);
}

/// The one who looks on, and how many connections there were.
struct Onlooker {
    tap: Box<dyn Tap>,
    connections: u32,
}

static ONLOOKER: OnceLock<Mutex<Onlooker>> = OnceLock::new();

fn with<T>(what: impl FnOnce(&mut Onlooker) -> T) -> Option<T> {
    ONLOOKER.get().map(|it| what(&mut it.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// From now on `tap` is told of all connections; only the first one who asks is.
pub fn look_on(tap: Box<dyn Tap>) {
    let _ = ONLOOKER.set(Mutex::new(Onlooker { tap, connections: 0 }));
}

/// Whether somebody looks on.
pub fn is_watched() -> bool {
    ONLOOKER.get().is_some()
}

impl Wire {
    /// That of a new connection, if somebody looks on.
    pub fn new() -> Option<Wire> {
        with(|it| {
            it.connections = it.connections.saturating_add(1);
            Wire { connection: it.connections, is_twin: false }
        })
    }

    /// Tells of what was sent or received.
    pub fn piece(self, is_sent: bool, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        with(|it| it.tap.piece(self, is_sent, bytes, fds));
    }
}
