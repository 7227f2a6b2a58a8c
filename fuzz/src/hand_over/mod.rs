//! A process that hands its device over, and says anything: images whose records go
//! together or do not, with descriptors of any kind. Either there is an error, and
//! nothing is left, or a context that works; what that one says of itself another one
//! takes, and says the same.

mod device;
mod draft;
mod images;
mod talk;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Once;

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use crate::context::budget::Budget;
use crate::context::pool::{self, Pool};
use crate::peer;
use device::{Device, Taken};
use images::Offer;

/// Waiting is a fault: all that will be said has been said. So this is as long as never.
const TIMEOUT: i32 = 60_000;

/// See [`Offer`] for what the input says.
pub fn run(data: &[u8]) {
    // What is made once in a process is there before anything is counted.
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        let _ = attempt(&mut Unstructured::new(&[]));
    });
    let budget = Budget::new();
    let _ = attempt(&mut Unstructured::new(data));
    budget.assert_kept();
}

fn attempt(u: &mut Unstructured) -> Result<()> {
    let others = Others::new();
    let device = Device::default();
    let offer = Offer::new(u)?;
    if let Some(taken) = Taken::over(talk::offer(&offer, &others), &offer, &device) {
        // What another one has taken is ended by that one, too.
        if u8::arbitrary(u)? % 2 == 0 {
            taken.use_it(u)?;
        }
        check_fixpoint(&taken, offer.does_dma(), &others);
        taken.use_it(u)?;
        taken.end();
    }
    assert!(device.is_empty(), "regions outlive their context");
    assert!(others.pool.is_open());
    assert_eq!(pool::mappings(), 0, "mappings");
    Ok(())
}

/// What a context says of itself, another one says, too, once it has taken it.
fn check_fixpoint(first: &Taken<'_>, does_dma: bool, others: &Others) {
    let Some(one) = talk::export(first.handle(), does_dma, others) else { return };
    let device = Device::default();
    let second = Taken::over(talk::offer(&one, others), &one, &device);
    let second = second.expect("what a context says of itself is taken");
    let two = talk::export(second.handle(), does_dma, others).expect("it can be said again");
    for (one, two) in one.images.iter().zip(&two.images) {
        assert_eq!(one.records(), two.records());
        assert_eq!(files(one.fds(others)), files(two.fds(others)));
    }
    second.end();
    assert!(device.is_empty(), "regions outlive their context");
}

/// What files descriptors are.
fn files(fds: Vec<RawFd>) -> Vec<(u64, u64)> {
    let identity = |fd: RawFd| {
        // SAFETY: zeros are a valid stat.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: good for writes.
        assert_eq!(unsafe { libc::fstat(fd, &mut found) }, 0);
        (found.st_dev, found.st_ino)
    };
    fds.into_iter().map(identity).collect()
}

/// What the process that hands over has: sockets, and whatever else there is.
pub struct Others {
    pool: Pool,
    client: [UnixStream; 2],
    twin: [UnixStream; 2],
    listener: OwnedFd,
    control: OwnedFd,
}

impl Others {
    fn new() -> Others {
        let pair = || UnixStream::pair().expect("descriptors").into();
        Others {
            pool: Pool::new(),
            client: pair(),
            twin: pair(),
            listener: listening(SockType::Stream),
            control: listening(SockType::SeqPacket),
        }
    }

    /// The descriptor with this number.
    pub fn get(&self, number: u8) -> RawFd {
        match number {
            images::CLIENT => self.client[0].as_raw_fd(),
            images::TWIN => self.twin[0].as_raw_fd(),
            images::LISTENER => self.listener.as_raw_fd(),
            images::CONTROL => self.control.as_raw_fd(),
            other => self.pool.get(other - images::POOL, self.client[0].as_raw_fd()),
        }
    }
}

/// At a name of the kernel's choice.
fn listening(kind: SockType) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, kind, flags, None).expect("descriptors");
    bind(fd.as_raw_fd(), &UnixAddr::new_unnamed()).expect("a name");
    listen(&fd, Backlog::new(4).expect("a few")).expect("it listens");
    fd
}

/// The calling thread's errno, of a call that failed.
fn failed_with() -> i32 {
    let errno = peer::errno();
    assert_ne!(errno, 0);
    assert_ne!(errno, libc::ETIMEDOUT, "it has waited");
    errno
}
