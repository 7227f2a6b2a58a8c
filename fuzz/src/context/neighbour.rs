//! Another context of the process, with a client of its own: whatever the client
//! that is fuzzed does, this one is served.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vfio_user::capi;
use vfio_user::wire::Header;

use super::budget;
use super::pool::memory;
use crate::peer::{self, Context, message, words};

thread_local! {
    static NEIGHBOUR: RefCell<Option<Neighbour>> = const { RefCell::new(None) };
}

/// The neighbour of this thread is there, and keeps what it will.
pub fn prepare() {
    with(Neighbour::use_all);
}

/// A client that is connected is served, in all ways that take descriptors.
pub fn ask() {
    with(Neighbour::use_all);
}

/// So is one that comes.
pub fn welcome() {
    with(|neighbour| {
        neighbour.attach();
        neighbour.use_all();
    });
}

fn with(f: impl FnOnce(&mut Neighbour)) {
    NEIGHBOUR.with_borrow_mut(|neighbour| f(neighbour.get_or_insert_with(Neighbour::new)));
}

struct Neighbour {
    context: Context,
    client: UnixStream,
    /// What its clients send.
    memory: File,
    event: EventFd,
}

impl Neighbour {
    fn new() -> Neighbour {
        let context = Context::named("neighbour", std::ptr::null_mut(), capi::LIBVFIO_USER_FLAG_ATTACH_NB);
        let handle = context.0;
        // SAFETY: the context is there, and the callbacks touch nothing of ours.
        unsafe {
            assert_eq!(capi::vfu_pci_init(handle, 3, 0, 0), 0);
            assert_eq!(capi::vfu_setup_device_nr_irqs(handle, 2, 1), 0);
            assert_eq!(capi::vfu_setup_device_dma(handle, 4, Some(ignore), Some(ignore)), 0);
            assert_eq!(capi::vfu_realize_ctx(handle), 0);
        }
        let client = connect(&context);
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Neighbour { context, client, memory: memory(0x1000), event: event.expect("descriptors") }
    }

    /// The client goes, and another comes.
    fn attach(&mut self) {
        self.client.shutdown(std::net::Shutdown::Both).expect("it is connected");
        // SAFETY: the context is there.
        let outcome = unsafe { capi::vfu_run_ctx(self.context.0) };
        assert_eq!((outcome, peer::errno()), (-1, libc::ENOTCONN));
        self.client = connect(&self.context);
    }

    fn use_all(&mut self) {
        let before = budget::time();
        self.request(4, &words(&[16, 0, 0, 0]), None);
        let place = [0x1000_u64.to_ne_bytes(), 0x1000_u64.to_ne_bytes()].concat();
        let map = [&words(&[32, 3])[..], &[0; 8], &place].concat();
        self.request(2, &map, Some(self.memory.as_raw_fd()));
        self.request(8, &words(&[20, 0x24, 2, 0, 1]), Some(self.event.as_raw_fd()));
        // SAFETY: the context is there.
        assert_eq!(unsafe { capi::vfu_irq_trigger(self.context.0, 0) }, 0);
        assert_eq!(self.event.read(), Ok(1));
        self.request(3, &[&words(&[24, 0])[..], &place].concat(), None);
        assert!(budget::time() - before <= budget::CALL, "a neighbour waits");
        self.context.assert_whole();
    }

    /// Succeeds, in two calls at the most: a message's descriptors end a receive.
    fn request(&mut self, cmd: u16, payload: &[u8], fd: Option<RawFd>) {
        let bytes = message(0xabc, cmd, 0, payload);
        let rights = [ControlMessage::ScmRights(fd.as_slice())];
        let control = if fd.is_some() { &rights[..] } else { &[] };
        let part = [IoSlice::new(&bytes)];
        let sent = sendmsg::<()>(self.client.as_raw_fd(), &part, control, MsgFlags::MSG_NOSIGNAL, None);
        assert_eq!(sent, Ok(bytes.len()));
        // SAFETY: the context is there.
        assert_eq!(unsafe { capi::vfu_run_ctx(self.context.0) }, 1, "{}", peer::errno());
        let header = reply(&self.client);
        assert_eq!((header.msg_id, header.cmd, header.flags, header.error_no), (0xabc, cmd, 1, 0));
    }
}

fn connect(context: &Context) -> UnixStream {
    let client = Context::connect_to("neighbour").expect("room for one");
    peer::send(&client, &peer::version(""));
    // SAFETY: the context is there.
    assert_eq!(unsafe { capi::vfu_attach_ctx(context.0) }, 0, "{}", peer::errno());
    assert_eq!(reply(&client).flags, 1);
    client
}

/// The reply that is there.
fn reply(mut client: &UnixStream) -> Header {
    let mut bytes = vec![0; 0x1000];
    let count = client.read(&mut bytes).expect("a reply");
    bytes.truncate(count);
    let (header, _) = peer::take_message(&mut bytes).expect("a whole reply");
    assert!(bytes.is_empty());
    header
}

unsafe extern "C" fn ignore(_: peer::Handle, _: *mut capi::vfu_dma_info_t) {}
