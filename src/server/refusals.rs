//! Refusals of functions that any thread may call, or a signal handler.

use std::fmt;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

use super::log::log;
use super::{Context, Device};
use crate::wire::Errno;

/// More than the functions have rules.
const PLACES: usize = 64;

/// What has been logged, and what is to be.
#[derive(Debug)]
pub struct Refusals {
    /// Which function and rule, as one number; 0: a free place.
    told: [AtomicUsize; PLACES],
    note: Note,
}

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals { told: [const { AtomicUsize::new(0) }; PLACES], note: Note::default() }
    }
}

impl Refusals {
    /// Whether a rule of a function is broken for the first time. Takes no lock and
    /// no memory.
    #[inline(never)]
    pub fn is_new(&self, name: &'static str, rule: &'static str) -> bool {
        // Both texts stay where they are.
        let number = (name.as_ptr().addr().rotate_left(32) ^ rule.as_ptr().addr()).max(1);
        for place in &self.told {
            match place.compare_exchange(0, number, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(there) if there == number => return false,
                Err(_) => {}
            }
        }
        false
    }
}

/// A call that a signal handler may make, with what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqCall {
    /// `vfu_irq_trigger`
    Trigger {
        /// The vector.
        vector: u32,
    },
    /// `vfux_irq_trigger`
    TriggerType {
        /// The type's number.
        kind: u32,
        /// The vector.
        vector: u32,
    },
    /// `vfux_irq_clear_pending`
    ClearPending {
        /// The type's number.
        kind: u32,
        /// The vector.
        vector: u32,
    },
    /// `vfux_read_pba`
    ReadPba {
        /// Of the first byte.
        offset: u64,
        /// Bytes.
        count: u64,
    },
}

impl IrqCall {
    fn to_numbers(self) -> (u8, u64, u64) {
        match self {
            IrqCall::Trigger { vector } => (0, 0, vector.into()),
            IrqCall::TriggerType { kind, vector } => (1, kind.into(), vector.into()),
            IrqCall::ClearPending { kind, vector } => (2, kind.into(), vector.into()),
            IrqCall::ReadPba { offset, count } => (3, offset, count),
        }
    }

    fn from_numbers((call, first, second): (u8, u64, u64)) -> IrqCall {
        let (kind, vector) = (first as u32, second as u32);
        match call {
            0 => IrqCall::Trigger { vector },
            1 => IrqCall::TriggerType { kind, vector },
            2 => IrqCall::ClearPending { kind, vector },
            _ => IrqCall::ReadPba { offset: first, count: second },
        }
    }

    fn name(self) -> &'static str {
        match self {
            IrqCall::Trigger { .. } => "vfu_irq_trigger",
            IrqCall::TriggerType { .. } => "vfux_irq_trigger",
            IrqCall::ClearPending { .. } => "vfux_irq_clear_pending",
            IrqCall::ReadPba { .. } => "vfux_read_pba",
        }
    }

    /// What is wrong with it, where it is refused.
    fn rule(self) -> &'static str {
        match self {
            IrqCall::Trigger { .. } => {
                "no type of interrupt has so many vectors, or vfu_realize_ctx() has not been called"
            }
            IrqCall::TriggerType { .. } => {
                "there is no such type, or it has not so many vectors, or vfu_realize_ctx() has not been called"
            }
            IrqCall::ClearPending { .. } => "there is no such type, or it has not so many vectors",
            IrqCall::ReadPba { .. } => {
                "the bytes are not within the pending bit array, or there is no buffer for them"
            }
        }
    }
}

impl fmt::Display for IrqCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            IrqCall::Trigger { vector } => write!(f, ": vector {vector}"),
            IrqCall::TriggerType { kind, vector } | IrqCall::ClearPending { kind, vector } => {
                write!(f, ": type {kind}, vector {vector}")
            }
            IrqCall::ReadPba { offset, count } => write!(f, ": {count:#x} bytes at {offset:#x}"),
        }
    }
}

const EMPTY: u8 = 0;
const IN_USE: u8 = 1;
const FULL: u8 = 2;

/// One refusal, left by whoever may not log it. While there is one, others are lost.
#[derive(Debug, Default)]
struct Note {
    state: AtomicU8,
    call: AtomicU8,
    first: AtomicU64,
    second: AtomicU64,
}

impl Note {
    fn leave(&self, call: IrqCall) {
        if self.state.compare_exchange(EMPTY, IN_USE, AcqRel, Relaxed).is_ok() {
            let (number, first, second) = call.to_numbers();
            self.call.store(number, Relaxed);
            self.first.store(first, Relaxed);
            self.second.store(second, Relaxed);
            self.state.store(FULL, Release);
        }
    }

    fn take(&self) -> Option<IrqCall> {
        self.state.compare_exchange(FULL, IN_USE, AcqRel, Relaxed).ok()?;
        let numbers = (self.call.load(Relaxed), self.first.load(Relaxed), self.second.load(Relaxed));
        self.state.store(EMPTY, Release);
        Some(IrqCall::from_numbers(numbers))
    }
}

impl<D: Device> Context<D> {
    /// Notes that a call was refused, for [`tell_noted_refusal`](Self::tell_noted_refusal).
    /// A signal handler may call this.
    #[cold]
    #[inline(never)]
    pub(crate) fn note_refusal(&self, call: IrqCall) {
        if self.log_enabled(libc::LOG_ERR) {
            self.refusals.note.leave(call);
            self.polls.store(false, SeqCst);
        }
    }

    /// Called once the context is realized, before [`tell_noted_refusal`](Self::tell_noted_refusal):
    /// whatever is noted from here on makes the next call take the long way again.
    pub(super) fn poll_from_now_on(&self) {
        if self.nonblocking && !self.polls.load(Relaxed) {
            self.polls.swap(true, SeqCst);
        }
    }

    /// Logs what was noted, on the context's own thread.
    #[inline(always)]
    pub(super) fn tell_noted_refusal(&self) {
        if self.refusals.note.state.load(Acquire) != EMPTY {
            self.log_noted_refusal();
        }
    }

    #[cold]
    #[inline(never)]
    fn log_noted_refusal(&self) {
        if let Some(call) = self.refusals.note.take()
            && self.refusals.is_new(call.name(), call.rule())
        {
            log!(self, LOG_ERR, "{call}: {}: {}", call.rule(), Errno::EINVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [IrqCall; 4] = [
        IrqCall::Trigger { vector: u32::MAX },
        IrqCall::TriggerType { kind: 9, vector: 1 },
        IrqCall::ClearPending { kind: u32::MAX, vector: 0 },
        IrqCall::ReadPba { offset: u64::MAX, count: 8 },
    ];

    #[test]
    fn a_note_says_what_was_left() {
        for call in CALLS {
            let note = Note::default();
            assert_eq!(note.take(), None);
            note.leave(call);
            note.leave(CALLS[0]);
            assert_eq!(note.take(), Some(call));
            assert_eq!(note.take(), None);
        }
    }

    #[test]
    fn each_rule_of_each_function_is_new_once() {
        let refusals = Refusals::default();
        for (name, rule) in [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")] {
            assert!(refusals.is_new(name, rule));
            assert!(!refusals.is_new(name, rule));
        }
    }
}
