//! The structures that `recvmsg` and `sendmsg` want, with room for descriptors.

use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::memory;
use crate::wire::limits::SCM_MAX_FD;
use crate::wire::{Errno, Result};

/// Bytes of control data for the most descriptors that the kernel passes.
const CONTROL_SIZE: usize = {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE((SCM_MAX_FD * size_of::<RawFd>()) as u32) as usize }
};

/// In `msg_flags`, which a `recvmsg` that succeeds sets: none has.
const UNTOUCHED: libc::c_int = -1;

/// How much is dropped at a time.
const DRAIN_PIECE: usize = 16 << 10;

/// Room for control data, aligned as a `cmsghdr` has to be.
#[repr(C, align(8))]
struct ControlBuffer([MaybeUninit<u8>; CONTROL_SIZE]);

/// A `msghdr` with its pieces, at one place for its whole life: the kernel
/// fills it while no Rust code looks at it.
pub struct Header {
    header: libc::msghdr,
    iov: [libc::iovec; 2],
    control: ControlBuffer,
}

impl Header {
    /// A header without data or control data.
    pub fn new() -> Result<Box<Header>> {
        memory::boxed(Header {
            // SAFETY: a msghdr is integers and pointers, for which zero is a value.
            header: unsafe { std::mem::zeroed() },
            iov: [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; 2],
            control: ControlBuffer([MaybeUninit::uninit(); CONTROL_SIZE]),
        })
    }

    /// Makes it ready to receive into one or two pieces, and descriptors.
    ///
    /// The pointer that comes back is for one `recvmsg`. It and the pieces
    /// must stay in place, and must not be looked at, until that has returned.
    #[inline(always)]
    pub fn prepare(&mut self, first: libc::iovec, second: Option<libc::iovec>) -> *mut libc::msghdr {
        self.iov = [first, second.unwrap_or(piece(&[]))];
        self.header.msg_iov = self.iov.as_mut_ptr();
        self.header.msg_iovlen = if second.is_some() { 2 } else { 1 };
        self.header.msg_control = self.control.0.as_mut_ptr().cast();
        self.header.msg_controllen = CONTROL_SIZE as _;
        self.header.msg_flags = UNTOUCHED;
        &mut self.header
    }

    /// Whether the `recvmsg` that was prepared last has received something, or the
    /// end, as far as the kernel has got.
    pub fn is_filled(&self) -> bool {
        self.header.msg_flags != UNTOUCHED
    }

    /// After a `recvmsg` that succeeded: whether no descriptors came, and none
    /// are missing.
    #[inline(always)]
    pub fn has_no_control(&self) -> bool {
        self.header.msg_controllen == 0 && self.header.msg_flags & libc::MSG_CTRUNC == 0
    }

    /// After a `recvmsg` that succeeded: appends the descriptors that came to
    /// `fds`, and says whether some are missing: the control data was cut, or
    /// there was no memory for them.
    pub fn collect(&self, fds: &mut Vec<OwnedFd>) -> bool {
        // SAFETY: the kernel filled header and control data; CMSG_FIRSTHDR and
        // CMSG_NXTHDR stay within msg_controllen.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&self.header) };
        let mut is_cut = self.header.msg_flags & libc::MSG_CTRUNC != 0;
        while !next.is_null() {
            // SAFETY: not null, so it points at a whole cmsghdr in the buffer.
            let (level, kind, len) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len) };
            if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
                // SAFETY: only computes.
                let head = unsafe { libc::CMSG_LEN(0) } as usize;
                let count = len.saturating_sub(head) / size_of::<RawFd>();
                // SAFETY: next is a valid cmsghdr, so its data follow.
                let data = unsafe { libc::CMSG_DATA(next) };
                for i in 0..count {
                    // SAFETY: the kernel wrote `count` descriptors from `data` on.
                    let fd = unsafe { data.cast::<RawFd>().add(i).read_unaligned() };
                    // SAFETY: it was installed for us just now and nobody else
                    // knows of it.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    is_cut |= memory::push(fds, fd).is_err();
                }
            }
            // SAFETY: as for CMSG_FIRSTHDR.
            next = unsafe { libc::CMSG_NXTHDR(&self.header, next) };
        }
        is_cut
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Header")
    }
}

/// Sends `pieces` with one `sendmsg`, descriptors with the first byte. At most
/// [`SCM_MAX_FD`] descriptors can be passed; more are refused by the kernel.
///
/// `flags` are added to `MSG_NOSIGNAL`. Returns the number of bytes sent.
pub fn send(socket: RawFd, pieces: &[libc::iovec], fds: &[RawFd], flags: libc::c_int) -> Result<usize> {
    let mut control = ControlBuffer([MaybeUninit::uninit(); CONTROL_SIZE]);
    // SAFETY: as in `Header::new`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = pieces.as_ptr().cast_mut();
    header.msg_iovlen = pieces.len() as _;
    if !fds.is_empty() {
        if fds.len() > SCM_MAX_FD {
            return Err(Errno::ETOOMANYREFS);
        }
        let bytes = size_of_val(fds);
        // SAFETY: only computes.
        let space = unsafe { libc::CMSG_SPACE(bytes as u32) };
        // What is between and behind the descriptors, too, is passed to the kernel.
        control.0.iter_mut().take(space as usize).for_each(|byte| *byte = MaybeUninit::new(0));
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = space as _;
        // SAFETY: the buffer holds CMSG_SPACE of the most descriptors, of which
        // there are no more than that, so a cmsghdr with the data fits.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&header);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), bytes);
        }
    }
    // SAFETY: header, pieces and control data are valid for the call; the
    // kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket, &header, libc::MSG_NOSIGNAL | flags) };
    usize::try_from(sent).map_err(|_| Errno::last())
}

/// One `recvmsg` that is no cancellation point, so that a call that finds nothing to
/// do need not keep its thread from being cancelled. Returns what `recvmsg` returns.
///
/// # Safety
///
/// `message` is good for `recvmsg`.
#[inline(always)]
pub unsafe fn receive(socket: RawFd, message: *mut libc::msghdr, flags: libc::c_int) -> Result<usize> {
    // SAFETY: the caller's promise.
    let count = unsafe { libc::syscall(libc::SYS_recvmsg, socket, message, flags | libc::MSG_CMSG_CLOEXEC) };
    usize::try_from(count).map_err(|_| Errno::last())
}

/// Sends bytes, and no descriptors, by the shortest way. As [`send`].
pub fn send_bytes(socket: RawFd, bytes: &[u8], flags: libc::c_int) -> Result<usize> {
    // SAFETY: the bytes are valid for the call; the kernel only reads them.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | flags) };
    usize::try_from(sent).map_err(|_| Errno::last())
}

/// A piece of memory, as an `iovec` wants it.
pub fn piece(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// A piece of memory to be written to.
pub fn piece_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Takes out of a socket what lies unread, up to `most` bytes, and drops it with
/// its descriptors. Never waits.
pub fn drain(socket: RawFd, most: usize) {
    let mut room = [MaybeUninit::<u8>::uninit(); DRAIN_PIECE];
    let mut taken = 0usize;
    while taken < most {
        // Without room for control data, the kernel closes the descriptors.
        // SAFETY: room for as many bytes as it says.
        let count = unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(count) {
            Ok(0) => break,
            Ok(count) => taken = taken.saturating_add(count),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => break,
        }
    }
}
