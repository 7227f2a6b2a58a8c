//! One vector: the eventfd that it has at the moment, and what keeps it from
//! being signalled.
//!
//! All of it is in one word, so that whoever triggers decides by one
//! compare-and-swap what becomes of the interrupt, and takes no lock: it may be a
//! signal handler. An eventfd that is taken away while somebody signals it is
//! closed by the last who does. For that, references are counted in two parts (a
//! split reference count): those taken from the word are counted in the word; when
//! the eventfd leaves the word, that count goes to the eventfd's own, from which
//! each of those that are left subtracts itself. So nobody ever waits, neither
//! who signals nor who takes away.

use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::eventfd::Eventfd;
use super::sync::{AtomicPtr, AtomicU32, AtomicU64};
use crate::wire::{Errno, Result};

/// The address of the [`Node`]: what user space has on today's processors.
const ADDRESS: u64 = (1 << 48) - 1;
/// The client masked the vector, or an interrupt that masks it was delivered.
const MASKED: u64 = 1 << 48;
/// The function is masked as a whole.
const FUNCTION_MASKED: u64 = 1 << 49;
/// An interrupt is waiting: the vector's bit of the pending bit array.
const PENDING: u64 = 1 << 50;
/// Signalling the eventfd takes more than a write.
const BLOCKS: u64 = 1 << 51;
/// How many signal the eventfd right now, in units of this.
const USER: u64 = 1 << 52;
/// A word with as many as can be counted.
const MOST_USERS: u64 = u64::MAX - (USER - 1);

/// Why a vector is not signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// The vector's own.
    Vector,
    /// That of the whole function.
    Function,
}

impl Mask {
    fn bit(self) -> u64 {
        match self {
            Mask::Vector => MASKED,
            Mask::Function => FUNCTION_MASKED,
        }
    }
}

/// How a trigger treats a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Signal its eventfd, or fail with `ENOENT`: masks are the device's business.
    Signal,
    /// Keep what cannot be signalled.
    Latch,
    /// The same; and what is signalled masks the vector.
    LatchAndMask,
}

/// An eventfd in its place.
#[derive(Debug)]
pub struct Node {
    eventfd: Eventfd,
    /// Once it has left its word: how many still signal it. Before the count of
    /// the word has been added, it may be less than zero, as a number that wraps.
    users: AtomicU32,
    next: AtomicPtr<Node>,
}

impl Node {
    /// For an eventfd that no vector has yet.
    pub fn new(eventfd: Eventfd) -> Node {
        Node { eventfd, users: AtomicU32::new(0), next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// Nodes whose eventfd was closed by someone who must not free memory: a stack of
/// Treiber's that is only ever emptied as a whole.
#[derive(Debug)]
pub struct Graveyard(AtomicPtr<Node>);

impl Default for Graveyard {
    fn default() -> Graveyard {
        Graveyard(AtomicPtr::new(ptr::null_mut()))
    }
}

impl Graveyard {
    fn bury_node(&self, node: *mut Node) {
        let mut head = self.0.load(Relaxed);
        loop {
            // SAFETY: the caller was the last to use the node, and gives it up.
            unsafe { &*node }.next.store(head, Relaxed);
            match self.0.compare_exchange_weak(head, node, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Frees what was buried.
    pub fn clear(&self) {
        let mut node = self.0.swap(ptr::null_mut(), Acquire);
        while !node.is_null() {
            // SAFETY: nobody else has what is taken out of the graveyard.
            let dead = unsafe { Box::from_raw(node) };
            node = dead.next.load(Relaxed);
        }
    }
}

impl Drop for Graveyard {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A vector. One that is all zeros has no eventfd and is not masked.
#[derive(Debug)]
#[repr(transparent)]
pub struct Vector(AtomicU64);

fn node_of(word: u64) -> *mut Node {
    ptr::with_exposed_provenance_mut((word & ADDRESS) as usize)
}

impl Vector {
    /// A vector without an eventfd.
    #[cfg(test)]
    pub fn new() -> Vector {
        Vector(AtomicU64::new(0))
    }

    /// Whether it has an eventfd.
    pub fn is_assigned(&self) -> bool {
        self.0.load(Relaxed) & ADDRESS != 0
    }

    /// Whether an interrupt waits.
    pub fn is_pending(&self) -> bool {
        self.0.load(Relaxed) & PENDING != 0
    }

    /// Whether the client masked it.
    pub fn is_masked(&self) -> bool {
        self.0.load(Relaxed) & MASKED != 0
    }

    /// An interrupt waits from now on.
    pub fn set_pending(&self) {
        self.0.fetch_or(PENDING, AcqRel);
    }

    /// The descriptor of its eventfd, which it goes on to own.
    ///
    /// # Safety
    ///
    /// Nobody takes the eventfd away meanwhile.
    pub unsafe fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        let node = node_of(self.0.load(Acquire));
        // SAFETY: null, or a node that is in the word and stays there.
        unsafe { node.as_ref() }.map(|node| node.eventfd.descriptor())
    }

    /// The usual case of [`Policy::Signal`]: an eventfd that one only writes to,
    /// and that nobody else signals right now. `None`: nothing was done, see [`trigger`](Self::trigger).
    #[inline(always)]
    pub fn trigger_usual(&self, graveyard: &Graveyard) -> Option<Result<()>> {
        let word = self.0.load(Acquire);
        // An address and nothing else.
        if word.wrapping_sub(1) >= ADDRESS {
            return None;
        }
        let taken = word + USER;
        self.0.compare_exchange(word, taken, AcqRel, Relaxed).ok()?;
        let node = node_of(word);
        // SAFETY: a node stays while it has users.
        let outcome = unsafe { &(*node).eventfd }.write();
        if self.0.compare_exchange(taken, word, Release, Relaxed).is_err() {
            self.leave_node(node, graveyard);
        }
        Some(outcome)
    }

    /// Triggers it: `signal` is what one does with its eventfd.
    ///
    /// `ENOENT` if it has none and the policy is not to keep interrupts.
    #[inline(always)]
    pub fn trigger(
        &self,
        policy: Policy,
        graveyard: &Graveyard,
        signal: impl FnOnce(&Eventfd) -> Result<()>,
    ) -> Result<()> {
        let mut word = self.0.load(Acquire);
        let taken = loop {
            let is_held_back =
                word & ADDRESS == 0 || policy != Policy::Signal && word & (MASKED | FUNCTION_MASKED) != 0;
            let new = match (is_held_back, policy) {
                (true, Policy::Signal) => return Err(Errno::ENOENT),
                (true, _) => word | PENDING,
                // More threads than a process can have.
                (false, _) if word >= MOST_USERS => return Err(Errno::EAGAIN),
                (false, Policy::LatchAndMask) => (word + USER) | MASKED,
                (false, _) => word + USER,
            };
            match self.0.compare_exchange_weak(word, new, AcqRel, Acquire) {
                Ok(_) if is_held_back => return Ok(()),
                Ok(_) => break new,
                Err(now) => word = now,
            }
        };
        let node = node_of(taken);
        // SAFETY: a node stays while it has users.
        let outcome = signal(unsafe { &(*node).eventfd });
        if self.0.compare_exchange(taken, taken - USER, Release, Relaxed).is_err() {
            self.leave_node(node, graveyard);
        }
        outcome
    }

    /// The caller no longer uses the node that it took from the word.
    #[cold]
    #[inline(never)]
    fn leave_node(&self, node: *mut Node, graveyard: &Graveyard) {
        let mut word = self.0.load(Relaxed);
        while node_of(word) == node {
            match self.0.compare_exchange_weak(word, word - USER, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        // SAFETY: a node stays while it has users, of which the caller is one.
        if unsafe { &*node }.users.fetch_sub(1, AcqRel) == 1 {
            // SAFETY: the last user; and the node is in no word any more.
            unsafe { &*node }.eventfd.close();
            graveyard.bury_node(node);
        }
    }

    /// Gives it another eventfd, or none, and closes the one it had, unless
    /// somebody signals that right now, who will. Returns whether it had one.
    pub fn replace(&self, node: Option<Box<Node>>) -> bool {
        let blocks = node.as_ref().is_some_and(|node| node.eventfd.blocks());
        let new = node.map_or(ptr::null_mut(), Box::into_raw);
        let address = new.expose_provenance() as u64;
        debug_assert_eq!(address & !ADDRESS, 0);
        let place = address | if blocks { BLOCKS } else { 0 };
        let mut word = self.0.load(Relaxed);
        loop {
            let flags = word & (MASKED | FUNCTION_MASKED | PENDING);
            match self.0.compare_exchange_weak(word, flags | place, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        let (old, users) = (node_of(word), (word / USER) as u32);
        if old.is_null() {
            return false;
        }
        // SAFETY: nobody frees it before the users of the word are added to its own.
        if users == 0 || unsafe { &*old }.users.fetch_add(users, AcqRel).wrapping_add(users) == 0 {
            // SAFETY: no users are left, and it is in no word any more.
            drop(unsafe { Box::from_raw(old) });
        }
        true
    }

    /// Holds interrupts back.
    pub fn mask(&self, mask: Mask) {
        self.0.fetch_or(mask.bit(), AcqRel);
    }

    /// No longer holds them back for this reason. What waits is delivered by
    /// [`deliver`](Self::deliver).
    pub fn unmask(&self, mask: Mask) {
        self.0.fetch_and(!mask.bit(), AcqRel);
    }

    /// Forgets the interrupt that waits.
    pub fn clear_pending(&self) {
        self.0.fetch_and(!PENDING, AcqRel);
    }

    /// Forgets masks and what waits.
    pub fn clear_flags(&self) {
        self.0.fetch_and(!(MASKED | FUNCTION_MASKED | PENDING), AcqRel);
    }

    /// Signals what waits, if nothing holds it back any more. What cannot be
    /// signalled goes on waiting.
    pub fn deliver(
        &self,
        policy: Policy,
        graveyard: &Graveyard,
        signal: impl FnOnce(&Eventfd) -> Result<()>,
    ) {
        // Who clears the bit has the interrupt; a trigger meanwhile is another one.
        let word = self.0.load(Acquire);
        if word & ADDRESS == 0
            || word & (MASKED | FUNCTION_MASKED) != 0
            || self.0.fetch_and(!PENDING, AcqRel) & PENDING == 0
        {
            return;
        }
        if self.trigger(policy, graveyard, signal).is_err() {
            self.0.fetch_or(PENDING, AcqRel);
        }
    }
}
