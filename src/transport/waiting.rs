//! Descriptors that have arrived and wait for their message.
//!
//! They belong to the message with whose first byte they were sent. The kernel
//! ends a read behind the send that carried them, so it is one of those that the
//! read brought bytes of: the last one that may carry any, or else the last. What
//! a message may carry can stand in bytes that have not arrived; then, if an
//! earlier message could have them as well, that one is held until they have.

mod handover;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::allowance::{self, MESSAGE_FDS};
use crate::memory;
use crate::wire::{Errno, Result};

/// Positions in the stream: of the first byte, and behind the last one.
pub type Span = (u64, u64);

/// What is known of a message of which at least a byte has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where it starts in the stream.
    pub at: u64,
    /// Where it ends, or, without a whole header, where that ends.
    pub end: u64,
    /// Whether it may carry descriptors, if that is known.
    pub carries: Option<bool>,
}

/// What came with a read, or with several.
#[derive(Debug)]
struct Parcel {
    /// Where the message starts that it belongs to.
    owner: u64,
    fds: Vec<OwnedFd>,
    /// Some are missing: what the message is refused with.
    missing: Option<Errno>,
}

impl Parcel {
    fn append(&mut self, fds: Vec<OwnedFd>, missing: Option<Errno>) -> Result<()> {
        self.missing = self.missing.or(missing);
        memory::reserve(&mut self.fds, fds.len())?;
        self.fds.extend(fds);
        if self.fds.len() > MESSAGE_FDS {
            self.missing.get_or_insert(Errno::EMFILE);
        }
        self.drop_useless();
        Ok(())
    }

    /// Closes what may not wait.
    fn limit(&mut self, most: usize) {
        if allowance::close_surplus(&mut self.fds, most) {
            self.missing.get_or_insert(Errno::EMFILE);
        }
        self.drop_useless();
    }

    /// A message that some are missing of will be refused.
    fn drop_useless(&mut self) {
        if self.missing.is_some() {
            self.fds.clear();
        }
    }
}

/// What came with a read of which it is not known yet who has it.
#[derive(Debug)]
struct Open {
    read: Span,
    /// Whose it is if the last message that the read brought bytes of may carry
    /// none; the parcel is marked with that last one.
    fallback: u64,
    parcel: Parcel,
    /// What came after it, with bytes of that last message alone.
    later: Parcel,
}

/// Who has what came with a read.
#[derive(Clone, Copy, Debug, Default)]
struct Verdict {
    /// The last message that may carry descriptors.
    carrier: Option<u64>,
    last: Option<u64>,
    /// Of the last one it is not known.
    is_open: bool,
}

/// Descriptors that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    parcels: VecDeque<Parcel>,
    open: Option<Open>,
}

impl Waiting {
    /// Whether nothing waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.parcels.is_empty() && self.open.is_none()
    }

    /// Whether the message that starts at `at` has to wait, because it may have
    /// descriptors which may be a later one's.
    #[inline(always)]
    pub fn holds(&self, at: u64) -> bool {
        self.open.as_ref().is_some_and(|open| open.fallback == at)
    }

    /// Whether it is not known yet who has what came with a read.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Descriptors came with the bytes `read`; `missing` says that not all did.
    /// `messages` are all those that have arrived in whole or in part, in order.
    pub fn add(
        &mut self,
        read: Span,
        fds: Vec<OwnedFd>,
        missing: Option<Errno>,
        messages: impl Iterator<Item = Seen>,
    ) -> Result<()> {
        if let Some(open) = &mut self.open {
            return open.later.append(fds, missing);
        }
        let verdict = judge_span(read, messages);
        let parcel = |owner| Parcel { owner, fds, missing };
        match verdict {
            Verdict { carrier: Some(fallback), last: Some(last), is_open: true } => {
                let later = Parcel { owner: last, fds: Vec::new(), missing: None };
                self.open = Some(Open { read, fallback, parcel: parcel(last), later });
                Ok(())
            }
            Verdict { carrier: Some(owner), .. } | Verdict { last: Some(owner), .. } => {
                self.assign(parcel(owner))
            }
            // They came with nothing but bytes of a message that was refused.
            _ => Ok(()),
        }
    }

    /// More has arrived, or (`ended`) nothing more will: finds out whose that is
    /// of which it was not known.
    pub fn settle(&mut self, ended: bool, messages: impl Iterator<Item = Seen>) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let verdict = judge_span(open.read, messages);
        if verdict.is_open && !ended {
            self.open = Some(open);
            return Ok(());
        }
        open.parcel.owner = verdict.carrier.unwrap_or(open.fallback);
        self.assign(open.parcel)?;
        match open.later {
            Parcel { fds, missing: None, .. } if fds.is_empty() => Ok(()),
            later => self.assign(later),
        }
    }

    fn assign(&mut self, parcel: Parcel) -> Result<()> {
        match self.parcels.back_mut() {
            Some(last) if last.owner == parcel.owner => last.append(parcel.fds, parcel.missing),
            _ => memory::push_back(&mut self.parcels, parcel),
        }
    }

    /// The last message, which starts at `at`, is not whole: closes what it must
    /// not keep.
    pub fn limit_unfinished(&mut self, at: u64) {
        if let Some(open) = &mut self.open {
            open.parcel.limit(MESSAGE_FDS);
            open.later.limit(MESSAGE_FDS.saturating_sub(open.parcel.fds.len()));
        } else if let Some(last) = self.parcels.back_mut().filter(|last| last.owner == at) {
            last.limit(MESSAGE_FDS);
        }
    }

    /// What belongs to the message that starts at `at`, which is being taken.
    pub fn take(&mut self, at: u64) -> (Vec<OwnedFd>, Option<Errno>) {
        while self.parcels.front().is_some_and(|parcel| parcel.owner <= at) {
            match self.parcels.pop_front() {
                Some(parcel) if parcel.owner == at => return (parcel.fds, parcel.missing),
                _ => {}
            }
        }
        (Vec::new(), None)
    }

    /// Closes all.
    pub fn clear(&mut self) {
        *self = Waiting::default();
    }
}

/// Looks for the messages that have bytes in `read`.
fn judge_span((start, end): Span, messages: impl Iterator<Item = Seen>) -> Verdict {
    let mut verdict = Verdict::default();
    for message in messages.skip_while(|message| message.end <= start).take_while(|message| message.at < end)
    {
        verdict.last = Some(message.at);
        verdict.is_open = message.carries.is_none();
        if message.carries == Some(true) {
            verdict.carrier = Some(message.at);
        }
    }
    verdict
}
