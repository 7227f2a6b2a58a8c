//! The short way of frequent requests: received when nothing else is there, and
//! taken as a copy.

use std::os::fd::RawFd;

use zerocopy::FromBytes;

use super::super::buffer::MARGIN;
use super::super::control;
use super::Receiver;
use crate::wire::limits::HEADER_SIZE;
use crate::wire::{Header, Result, take};

impl Receiver {
    /// Whether nothing of any message has arrived, nothing waits for what comes,
    /// and something may come: as before nearly every receive.
    #[inline(always)]
    pub fn is_calm(&self) -> bool {
        self.head == self.tail
            && self.large.is_none()
            && self.skip == 0
            && self.waiting.is_empty()
            && !self.ended
    }

    /// Receives like [`receive`](Self::receive), without waiting; only when
    /// [`is_calm`](Self::is_calm).
    #[inline(always)]
    pub fn receive_calm(&mut self, socket: RawFd) -> Result<bool> {
        (self.head, self.tail) = (0, 0);
        self.offered = 0;
        let room = self.buffer.range_mut(0, self.buffer.len().saturating_sub(MARGIN));
        let message = self.socket_header.prepare(control::piece_mut(room), None);
        // SAFETY: as in `receive`.
        match unsafe { control::receive(socket, message, libc::MSG_DONTWAIT) } {
            Ok(count @ 1..) if self.socket_header.has_no_control() => {
                self.tail = count.min(self.buffer.len());
                Ok(true)
            }
            outcome => self.finish_outcome(outcome),
        }
    }

    /// Takes the next message as a copy, if it is whole, no larger than a `T`, came
    /// without descriptors, and is what is wanted. Behind its end, what is copied is
    /// of no meaning.
    #[inline(always)]
    pub fn next_short<T: FromBytes>(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.large.is_some() || self.skip > 0 || !self.waiting.is_empty() {
            return None;
        }
        let have = self.tail.saturating_sub(self.head);
        let bytes = self.buffer.range(self.head, usize::MAX);
        let (header, _) = take::<Header>(bytes).ok()?;
        let size = header.msg_size as usize;
        if !(HEADER_SIZE..=size_of::<T>().min(have)).contains(&size) {
            return None;
        }
        let (message, _) = take::<T>(bytes).ok().filter(|(message, _)| is_wanted(message))?;
        self.head = self.head.saturating_add(size);
        self.used = self.used.saturating_add(size as u64);
        Some(message)
    }

    /// The same, after [`receive_calm`](Self::receive_calm), if that brought one
    /// message and nothing else.
    #[inline(always)]
    pub fn next_single<T: FromBytes>(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let (message, _) = take::<T>(self.buffer.bytes()).ok()?;
        let (header, _) = take::<Header>(self.buffer.bytes()).ok()?;
        let is_single = header.msg_size as usize == self.tail && self.tail <= size_of::<T>();
        if !is_single || !self.waiting.is_empty() || !is_wanted(&message) {
            return None;
        }
        self.head = self.tail;
        self.used = self.used.saturating_add(self.tail as u64);
        Some(message)
    }
}
