//! The sockets between a client and a server.
//!
//! Each client that connects is given a connection of its own to the server.
//! Everything happens in one thread, which waits for nothing but all of its
//! sockets together.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vfio_user::wire::{Command, Header, limits, take};

use super::descriptor::Descriptor;
use super::pipe::{PIECE, Piece, Pipe, Received};
use super::{Event, Peer, Place, Socket};
use crate::error::{Error, Result, reason};

/// How long it takes to try again, where a server has no room for another client.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// One for each of the two.
struct Both<T> {
    client: T,
    server: T,
}

impl<T> Both<T> {
    fn of(&self, peer: Peer) -> &T {
        match peer {
            Peer::Client => &self.client,
            Peer::Server => &self.server,
        }
    }

    fn of_mut(&mut self, peer: Peer) -> &mut T {
        match peer {
            Peer::Client => &mut self.client,
            Peer::Server => &mut self.server,
        }
    }
}

/// A socket of a connection: its two ends here, and the two directions.
struct Link {
    socket: Socket,
    /// The sockets that lead to each of the two.
    ends: Both<OwnedFd>,
    /// Who has closed its end.
    gone: Both<bool>,
    /// By who sends.
    pipes: Both<Pipe>,
}

impl Link {
    fn new(socket: Socket, client: OwnedFd, server: OwnedFd) -> Link {
        Link {
            socket,
            ends: Both { client, server },
            gone: Both { client: false, server: false },
            pipes: Both { client: Pipe::default(), server: Pipe::default() },
        }
    }

    fn is_over(&self) -> bool {
        self.pipes.client.is_over() && self.pipes.server.is_over()
    }

    /// What to wait for at the end that leads to `peer`; nothing if it need not be looked at.
    fn interest(&self, peer: Peer) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.pipes.of(peer).wants());
        flags.set(PollFlags::OUT, self.pipes.of(peer.other()).has_waiting());
        // That a peer has gone is told even to who waits for nothing, again and again.
        (!flags.is_empty() || !*self.gone.of(peer)).then_some(flags)
    }

    /// Sends what waits for `peer`; so does the end of the other's stream.
    fn send_to(&mut self, peer: Peer) -> Result<(), Errno> {
        let from = peer.other();
        self.pipes.of_mut(from).send(self.ends.of(from), self.ends.of(peer))
    }

    /// `peer` has closed its end: nothing reaches it any more.
    fn lose(&mut self, peer: Peer) {
        if !std::mem::replace(self.gone.of_mut(peer), true) {
            let from = peer.other();
            self.pipes.of_mut(from).abandon(self.ends.of(from));
        }
    }
}

/// Finds out where the server's first message ends: if that is the reply to
/// VERSION, it may bring the second socket.
#[derive(Default)]
struct Greeting {
    head: Vec<u8>,
    have: u64,
}

impl Greeting {
    /// Takes a piece of the server's stream in: whether its first byte belongs to that message.
    fn has(&mut self, bytes: &[u8]) -> bool {
        let begins_at = self.have;
        self.have = self.have.saturating_add(bytes.len() as u64);
        let room = limits::HEADER_SIZE.saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(room));
        match take::<Header>(&self.head) {
            Ok((header, _)) => {
                header.cmd == Command::Version as u16 && begins_at < u64::from(header.msg_size)
            }
            Err(_) => true,
        }
    }
}

/// A client's connection.
struct Session {
    number: u32,
    links: Vec<Link>,
    greeting: Greeting,
}

/// The socket that clients connect to; its name goes with it.
struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have taken it away.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener {
    fn bind(path: &Path) -> Result<Listener> {
        let failed = |e: std::io::Error| Error::local(path.display(), e);
        let socket = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path)
            }
            socket => socket,
        };
        let socket = socket.map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Listener { socket, path: path.into() })
    }
}

/// Whether a path is a socket where nobody listens any more.
fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// The time since 1970, which never goes back.
struct Clock {
    start: Instant,
    since_1970: Duration,
}

impl Clock {
    fn new() -> Clock {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), since_1970 }
    }

    fn now(&self) -> Duration {
        self.since_1970.saturating_add(self.start.elapsed())
    }
}

/// Stands between clients and a server.
pub struct Relay {
    listener: Listener,
    server: PathBuf,
    /// Readable when the program is to end.
    signals: UnixStream,
    events: SyncSender<Event>,
    clock: Clock,
    sessions: Vec<Session>,
    /// How many clients have come.
    count: u32,
    /// The server has no room for the client that waits.
    is_full: bool,
    room: Vec<u8>,
}

/// What a poll looks at.
#[derive(Clone, Copy)]
enum Looked {
    Signals,
    Listener,
    End(usize, usize, Peer),
}

impl Relay {
    /// Listens at `path` for clients of the server at `server`; `events` gets all that passes. If
    /// `events` takes no more, the relay waits.
    pub fn new(path: &Path, server: &Path, events: SyncSender<Event>) -> Result<Relay> {
        let failed = |e: std::io::Error| Error::local("signals", e);
        let (signals, sender) = UnixStream::pair().map_err(failed)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let sender = sender.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(signal, sender).map_err(failed)?;
        }
        allow_descriptors();
        Ok(Relay {
            listener: Listener::bind(path)?,
            server: server.into(),
            signals,
            events,
            clock: Clock::new(),
            sessions: Vec::new(),
            count: 0,
            is_full: false,
            room: vec![0; PIECE],
        })
    }

    /// Passes on until a signal says to end or, if asked for, the first client has gone.
    pub fn run(mut self, only_one: bool) -> Result<()> {
        say(&format!("listening at {}", self.listener.path.display()));
        while !only_one || self.count == 0 || !self.sessions.is_empty() {
            let ready = self.wait()?;
            for (looked, flags) in ready {
                match looked {
                    Looked::Signals => return Ok(()),
                    Looked::Listener => self.accept()?,
                    Looked::End(session, link, peer) => self.step(session, link, peer, flags),
                }
            }
            for session in &mut self.sessions {
                session.links.retain(|link| !link.is_over());
            }
            self.sessions.retain(|session| !session.links.is_empty());
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Vec<(Looked, PollFlags)>> {
        let mut looked = vec![Looked::Signals];
        let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if !self.is_full {
            looked.push(Looked::Listener);
            polled.push(PollFd::new(&self.listener.socket, PollFlags::IN));
        }
        for (s, session) in self.sessions.iter().enumerate() {
            for (l, link) in session.links.iter().enumerate() {
                for peer in [Peer::Client, Peer::Server] {
                    if let Some(flags) = link.interest(peer) {
                        looked.push(Looked::End(s, l, peer));
                        polled.push(PollFd::from_borrowed_fd(link.ends.of(peer).as_fd(), flags));
                    }
                }
            }
        }
        let timeout = self.is_full.then_some(AGAIN);
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::local("poll", e)),
        }
        self.is_full = false;
        let ready = looked.into_iter().zip(polled.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    /// Takes the next client, once there is a connection to the server for it.
    fn accept(&mut self) -> Result<()> {
        let server = match connect(&self.server) {
            Err(Errno::AGAIN) => {
                self.is_full = true;
                return Ok(());
            }
            server => server,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let client = match rustix::net::accept_with(&self.listener.socket, flags) {
            Ok(client) => client,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.is_full = true;
                return Ok(());
            }
            Err(e) => return Err(Error::local("accept", e)),
        };
        self.count = self.count.saturating_add(1);
        match server {
            Ok(server) => {
                let links = vec![Link::new(Socket::Main, client, server)];
                self.sessions.push(Session { number: self.count, links, greeting: Greeting::default() });
            }
            // The client sees a server that hangs up at once.
            Err(e) => say(&format!("cannot connect to {}: {}", self.server.display(), reason(&e.into()))),
        }
        Ok(())
    }

    /// Something has happened at the end that leads to `peer`.
    fn step(&mut self, s: usize, l: usize, peer: Peer, flags: PollFlags) {
        let gone = PollFlags::HUP | PollFlags::ERR;
        let Some(session) = self.sessions.get_mut(s) else { return };
        let Some(link) = session.links.get_mut(l) else { return };
        let place = Place { connection: session.number, socket: link.socket, from: peer };
        let mut done = Ok(());
        if flags.contains(PollFlags::OUT) {
            done = link.send_to(peer);
        }
        if flags.intersects(gone) {
            link.lose(peer);
        }
        if flags.intersects(gone | PollFlags::IN) && link.pipes.of(peer).wants() {
            done = done.and(self.pass(s, l, place));
        }
        if let Err(e) = done {
            let number = place.connection;
            say(&format!("connection {number}: cannot pass on: {}; closed", reason(&e.into())));
            self.sessions.retain(|session| session.number != number);
        }
    }

    /// Passes on what one receive finds.
    fn pass(&mut self, s: usize, l: usize, place: Place) -> Result<(), Errno> {
        let Some(session) = self.sessions.get_mut(s) else { return Ok(()) };
        let Some(link) = session.links.get_mut(l) else { return Ok(()) };
        let peer = place.from;
        let received = link.pipes.of_mut(peer).receive(link.ends.of(peer), &mut self.room);
        let at = self.clock.now();
        let (mut events, mut twins) = (Vec::new(), Vec::new());
        match received? {
            Received::Nothing => return Ok(()),
            Received::End => events.push(Event::End { at, place }),
            Received::Pieces(pieces) => {
                for mut piece in pieces {
                    let descriptors = piece.fds.iter().map(|fd| Descriptor::of(fd.as_fd())).collect();
                    let bytes = piece.bytes.clone();
                    if place.socket == Socket::Main && peer == Peer::Server && session.greeting.has(&bytes) {
                        twins.extend(twins_of(&mut piece)?);
                    }
                    link.pipes.of_mut(peer).put(piece);
                    events.push(Event::Piece { at, place, bytes, descriptors });
                }
            }
        }
        link.send_to(peer.other())?;
        session.links.extend(twins);
        for event in events {
            // The report ends only after the relay.
            let _ = self.events.send(event);
        }
        Ok(())
    }
}

/// Takes the sockets out of the reply to VERSION, and puts ends of new ones in their place.
fn twins_of(piece: &mut Piece) -> Result<Vec<Link>, Errno> {
    let mut links = Vec::new();
    for fd in &mut piece.fds {
        if !is_stream_socket(fd.as_fd()) {
            continue;
        }
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        fcntl_setfl(&theirs, fcntl_getfl(&*fd)?)?;
        let server = std::mem::replace(fd, theirs);
        for end in [&ours, &server] {
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
        }
        links.push(Link::new(Socket::Twin, ours, server));
    }
    Ok(links)
}

fn is_stream_socket(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
}

/// A connection to the server. `AGAIN` if it has no room for one.
fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Descriptors on their way are open here, too, and those of a guest's interrupts are many.
fn allow_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without, it is as many as there were.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Tells the user. Where standard error is closed, nobody listens.
fn say(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "vfu: {what}");
}
