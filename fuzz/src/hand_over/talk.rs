//! What the two processes say to each other, said by hand.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    connect, getsockname, recvmsg, sendmsg, shutdown, socket, socketpair,
};
use vfio_user::capi;
use vfio_user::handover::{Kind, Message};
use vfio_user::wire::Errno;
use zerocopy::IntoBytes;

use super::images::{Image, Offer};
use super::{Others, TIMEOUT, failed_with};
use crate::peer::{self, Handle};

/// Descriptors of one message beside that of the image. (The kernel takes 253 of them.)
const MOST_FDS: usize = 250;

/// Two ends; the second is for the process that takes over, and all of the offer lies in it, and then the end.
pub fn offer(offer: &Offer, others: &Others) -> [OwnedFd; 2] {
    let (ours, theirs) = pair();
    for image in &offer.images {
        send_image(&ours, image, &image.fds(others));
    }
    if offer.is_given {
        send(&ours, &Message::plain(Kind::Yours), &[]);
    }
    shutdown(ours.as_raw_fd(), Shutdown::Write).expect("it is connected");
    [ours, theirs]
}

/// What a context says of itself, which it goes on with. `None` if it cannot leave its process as it is.
pub fn export(handle: Handle, does_dma: bool, others: &Others) -> Option<Offer> {
    let ours = meet(handle, others);
    let asked =
        if does_dma { &[Kind::Hello, Kind::Memory, Kind::Ready][..] } else { &[Kind::Hello, Kind::Ready] };
    for kind in asked {
        send(&ours, &Message::plain(*kind), &[]);
    }
    send(&ours, &Message::no(Errno::EPERM), &[]);
    // SAFETY: the context is there.
    let outcome = unsafe { capi::vfux_hand_over(handle, TIMEOUT) };
    if outcome == 0 {
        // What it listens at is not the socket that others know of.
        return None;
    }
    assert_eq!(outcome, -1);
    let errno = failed_with();
    let images: Vec<Image> = std::iter::from_fn(|| receive_image(&ours)).collect();
    // Without the last one it has refused; with it, it was refused.
    let is_whole = images.len() == asked.len();
    assert_eq!(is_whole, errno == libc::EPERM, "{} images, errno {errno}", images.len());
    is_whole.then_some(Offer { images, is_given: true })
}

/// A socket at whose other end the context hears us.
fn meet(handle: Handle, others: &Others) -> OwnedFd {
    let (ours, theirs) = pair();
    let theirs = theirs.into_raw_fd();
    // SAFETY: the context is there, and has the descriptor if it succeeds.
    if unsafe { capi::vfux_setup_hand_over_fd(handle, theirs) } == 0 {
        return ours;
    }
    assert_eq!(peer::errno(), libc::EEXIST);
    // SAFETY: it is ours still.
    drop(unsafe { OwnedFd::from_raw_fd(theirs) });
    // It listens somewhere: at a socket that it has taken over.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let ours = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("descriptors");
    let address: UnixAddr = getsockname(others.control.as_raw_fd()).expect("it has a name");
    connect(ours.as_raw_fd(), &address).expect("it listens");
    ours
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("descriptors")
}

fn send_image(socket: &OwnedFd, image: &Image, fds: &[RawFd]) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("image", flags).expect("descriptors"));
    file.write_all_at(&image.bytes, 0).expect("memory");
    if image.is_sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
    }
    let mut message = Message::with_image(image.kind, image.bytes.len(), image.says.unwrap_or(fds.len()));
    let (mut now, mut later) = fds.split_at(image.split.min(fds.len()).min(MOST_FDS));
    let mut part = vec![file.as_raw_fd()];
    loop {
        part.extend(now);
        send(socket, &message, &part);
        if later.is_empty() {
            return;
        }
        message = Message::plain(Kind::More);
        part.clear();
        (now, later) = later.split_at(later.len().min(MOST_FDS));
    }
}

fn send(socket: &OwnedFd, message: &Message, fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = [IoSlice::new(message.as_bytes())];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None).expect("room");
}

/// The next image; `None` where something else is said, or nothing.
fn receive_image(socket: &OwnedFd) -> Option<Image> {
    let (message, mut fds) = receive(socket)?;
    let kind = message.kind().expect("a message that there is");
    if kind == Kind::No {
        return None;
    }
    let (size, count) = message.image().expect("sizes");
    let file = File::from(fds.remove(0));
    while fds.len() < count {
        let (message, more) = receive(socket).expect("the rest of the descriptors");
        assert_eq!(message.kind(), Ok(Kind::More));
        assert!(!more.is_empty());
        fds.extend(more);
    }
    assert_eq!(fds.len(), count);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).expect("the image");
    Some(Image::received(kind, bytes, fds))
}

fn receive(socket: &OwnedFd) -> Option<(Message, Vec<OwnedFd>)> {
    let mut bytes = [0; Message::SIZE];
    let mut control = cmsg_space!([RawFd; 253]);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags) {
        Ok(received) => received,
        Err(nix::Error::EAGAIN | nix::Error::ECONNRESET) => return None,
        Err(errno) => panic!("{errno}"),
    };
    let count = received.bytes;
    let mut fds = Vec::new();
    for message in received.cmsgs().expect("not cut") {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: just received.
            fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    (count > 0).then(|| (Message::read(&bytes).expect("a message"), fds))
}
