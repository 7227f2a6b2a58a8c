//! A vector, step by step.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::aio::Aio;
use super::eventfd::Eventfd;
use super::vector::{Graveyard, Mask, Node, Policy, Vector};
use crate::wire::{Errno, Result};

fn numbered_node() -> (RawFd, Option<Box<Node>>) {
    let fd = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    (fd.as_raw_fd(), Some(Box::new(Node::new(Eventfd::new(fd, &Aio::default()).unwrap()))))
}

fn node() -> Option<Box<Node>> {
    numbered_node().1
}

/// Triggers, and says whether the eventfd was signalled.
fn signalled(vector: &Vector, policy: Policy) -> Result<bool> {
    let seen = Cell::new(false);
    vector.trigger(policy, &Graveyard::default(), |_| {
        seen.set(true);
        Ok(())
    })?;
    Ok(seen.get())
}

fn delivered(vector: &Vector, policy: Policy) -> bool {
    let seen = Cell::new(false);
    vector.deliver(policy, &Graveyard::default(), |_| {
        seen.set(true);
        Ok(())
    });
    seen.get()
}

#[test]
fn without_an_eventfd_it_fails_or_is_kept() {
    let vector = Vector::new();
    assert_eq!(signalled(&vector, Policy::Signal), Err(Errno::ENOENT));
    assert!(!vector.is_pending());
    assert_eq!(signalled(&vector, Policy::Latch), Ok(false));
    assert!(vector.is_pending() && !delivered(&vector, Policy::Latch));
    assert!(!vector.replace(node()));
    assert!(delivered(&vector, Policy::Latch) && !vector.is_pending());
    assert!(!delivered(&vector, Policy::Latch));
    assert!(vector.replace(None) && !vector.is_assigned());
}

#[test]
fn each_mask_holds_back_and_both_have_to_go() {
    let vector = Vector::new();
    vector.replace(node());
    vector.mask(Mask::Vector);
    vector.mask(Mask::Function);
    assert_eq!(signalled(&vector, Policy::Latch), Ok(false));
    assert_eq!(signalled(&vector, Policy::Signal), Ok(true));
    vector.unmask(Mask::Function);
    assert!(!delivered(&vector, Policy::Latch));
    vector.unmask(Mask::Vector);
    assert!(delivered(&vector, Policy::Latch));
    vector.replace(None);
}

#[test]
fn an_interrupt_that_masks_is_followed_by_one_that_waits() {
    let vector = Vector::new();
    vector.replace(node());
    assert_eq!(signalled(&vector, Policy::LatchAndMask), Ok(true));
    assert_eq!(signalled(&vector, Policy::LatchAndMask), Ok(false));
    assert_eq!(signalled(&vector, Policy::LatchAndMask), Ok(false));
    vector.unmask(Mask::Vector);
    assert!(delivered(&vector, Policy::LatchAndMask));
    assert_eq!(signalled(&vector, Policy::LatchAndMask), Ok(false));
    vector.clear_pending();
    vector.unmask(Mask::Vector);
    assert!(!delivered(&vector, Policy::LatchAndMask));
    vector.replace(None);
}

#[test]
fn what_cannot_be_signalled_goes_on_waiting() {
    let vector = Vector::new();
    assert_eq!(signalled(&vector, Policy::Latch), Ok(false));
    vector.replace(node());
    vector.deliver(Policy::Latch, &Graveyard::default(), |_| Err(Errno::EAGAIN));
    assert!(vector.is_pending());
    vector.replace(None);
}

#[test]
fn an_eventfd_replaced_while_it_is_signalled_is_closed_by_who_signals() {
    // SAFETY: no pointers.
    let is_open = |fd: RawFd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    let (vector, graveyard) = (Vector::new(), Graveyard::default());
    let (fd, first) = numbered_node();
    vector.replace(first);
    let outcome = vector.trigger(Policy::Signal, &graveyard, |first| {
        assert!(vector.replace(node()));
        vector.trigger(Policy::Signal, &graveyard, |second| {
            assert!(!std::ptr::eq(first, second));
            assert!(vector.replace(None));
            second.signal(&Aio::default())
        })?;
        assert!(is_open(fd));
        first.signal(&Aio::default())
    });
    assert_eq!(outcome, Ok(()));
    assert!(!vector.is_assigned());
}
