//! Messages whose body is taken where it is wanted, instead of as a whole.

use std::os::fd::RawFd;

use super::super::buffer::MARGIN;
use super::super::control;
use super::super::pool::Pool;
use super::Receiver;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Header, Result, take};

/// Most bytes of a body that are received where it is wanted before it is known
/// whether it is. If it is not, they fit into an ordinary buffer.
const SPLIT_MAX: usize = 32 << 10;

impl Receiver {
    /// The header that stands next in the stream, if it has arrived and nothing
    /// of its message has been taken.
    pub fn next_header(&self) -> Option<Header> {
        match self.skip == 0 && self.large.is_none() {
            true => self.peek().filter(|header| header.size().is_ok()),
            false => None,
        }
    }

    /// Takes the next message's header and the first `N` bytes of its payload,
    /// once they have arrived. The rest of it is its body.
    pub fn take_head<const N: usize>(&mut self) -> Option<[u8; N]> {
        let size = self.next_header()?.msg_size as usize;
        let from = self.head.saturating_add(HEADER_SIZE);
        let head = *self.buffer.range(from, self.tail).first_chunk::<N>()?;
        let taken = HEADER_SIZE.saturating_add(N);
        self.skip = size.checked_sub(taken)?;
        drop(self.waiting.take(self.used));
        self.head = self.head.saturating_add(taken);
        self.used = self.used.saturating_add(taken as u64);
        Some(head)
    }

    /// How many bytes of the body have not been taken.
    pub fn body_left(&self) -> usize {
        self.skip
    }

    /// Takes what lies here of the body, up to `len` bytes; how many that were.
    ///
    /// # Safety
    ///
    /// At `to` there is room for `len` bytes, which nobody else refers to.
    pub unsafe fn take_body(&mut self, to: *mut u8, len: usize) -> usize {
        let end = self.head.saturating_add(len.min(self.skip)).min(self.tail);
        let bytes = self.buffer.range(self.head, end);
        let count = bytes.len();
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count) };
        self.head = self.head.saturating_add(count);
        self.used = self.used.saturating_add(count as u64);
        self.skip = self.skip.saturating_sub(count);
        count
    }

    /// Whether nothing of the next message has arrived, so that it can be received
    /// by [`prepare_split`](Self::prepare_split).
    pub fn can_split(&self) -> bool {
        self.at_boundary() && self.waiting.is_empty() && !self.ended
    }

    /// Makes ready for a `recvmsg` by somebody else of a message's header and `N`
    /// bytes of payload, and of its body, at most `len` bytes of it, straight to
    /// where it is wanted, if the message turns out to be the one that is expected.
    /// [`finish_split`](Self::finish_split) finds out. Nothing of it has arrived.
    pub fn prepare_split<const N: usize>(&mut self, to: *mut u8, len: usize) -> *mut libc::msghdr {
        self.offered = 0;
        (self.head, self.tail) = (0, 0);
        let start = control::piece_mut(self.buffer.range_mut(0, HEADER_SIZE.saturating_add(N)));
        let body = libc::iovec { iov_base: to.cast(), iov_len: len.min(SPLIT_MAX) };
        self.socket_header.prepare(start, Some(body))
    }

    /// Takes over what that `recvmsg` brought: `count` bytes, 0 for the end. True
    /// if it is what was expected: its head is taken then. What else it is has been
    /// moved from `to` to where all that is received lies.
    ///
    /// # Safety
    ///
    /// `to` is what was given to `prepare_split`, and as good as then.
    pub unsafe fn finish_split<const N: usize>(
        &mut self,
        count: usize,
        to: *const u8,
        is_expected: impl Fn(&Header, &[u8; N]) -> bool,
        pool: &mut Pool,
    ) -> Result<bool> {
        let start = HEADER_SIZE.saturating_add(N);
        let head = take::<Header>(self.buffer.range(0, start.min(count))).ok();
        if let Some((header, head)) = head
            && let Some(head) = head.first_chunk::<N>()
            && self.socket_header.has_no_control()
            && is_expected(&header, head)
        {
            self.skip = (header.msg_size as usize).saturating_sub(count);
            self.used = self.used.saturating_add(count as u64);
            return Ok(true);
        }
        let body = count.saturating_sub(start);
        if body > 0 {
            self.tail = start;
            if self.buffer.len() < count.saturating_add(MARGIN) {
                self.grow(pool)?;
            }
            // SAFETY: the caller's promise; the kernel wrote so many bytes there.
            let body = unsafe { std::slice::from_raw_parts(to, body) };
            self.buffer.range_mut(start, count).copy_from_slice(body);
            self.tail = 0;
        }
        self.finish(count);
        Ok(false)
    }

    /// Whether a `recvmsg` by somebody else, of which nothing was told, has taken
    /// bytes from the socket.
    pub fn has_missed(&self) -> bool {
        self.socket_header.is_filled()
    }

    /// The same, and closes the descriptors that came with them.
    pub fn drop_missed(&mut self) -> bool {
        let has_missed = self.has_missed();
        if has_missed {
            // What does not fit into the list is closed as well.
            self.socket_header.collect(&mut Vec::new());
        }
        has_missed
    }

    /// Receives, without waiting, what is next of the body of a message whose
    /// head was taken, and then at most `most` bytes more. Nothing of it lies
    /// here untaken.
    ///
    /// # Safety
    ///
    /// At `to` there is room for `len` bytes, which nobody else refers to.
    pub unsafe fn receive_body(
        &mut self,
        socket: RawFd,
        to: *mut u8,
        len: usize,
        most: usize,
    ) -> Result<bool> {
        if self.head < self.tail {
            return Ok(true);
        }
        let message = self.prepare_body(to, len, most);
        // SAFETY: as in `receive`; the first piece is the caller's promise.
        unsafe { self.receive_prepared(socket, message, libc::MSG_DONTWAIT) }
    }

    /// Makes ready for the same by somebody else, whose outcome
    /// [`finish`](Self::finish) is to be told.
    pub fn prepare_body(&mut self, to: *mut u8, len: usize, most: usize) -> *mut libc::msghdr {
        (self.head, self.tail) = (0, 0);
        self.offered = len.min(self.skip);
        let first = libc::iovec { iov_base: to.cast(), iov_len: self.offered };
        let end = self.end_of_room().min(most);
        let rest = control::piece_mut(self.buffer.range_mut(0, end));
        self.socket_header.prepare(first, Some(rest))
    }
}
