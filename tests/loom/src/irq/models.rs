//! A vector whose eventfd is replaced and taken away while it is triggered.

use std::sync::Arc;

use super::eventfd::{Eventfd, Life};
use super::vector::{Graveyard, Mask, Node, Policy, Vector};
use crate::explore::{explore, spawn};
use crate::wire::{Errno, Result};

/// A vector, and two eventfds for it.
struct Irq {
    vector: Vector,
    graveyard: Graveyard,
    lives: [Arc<Life>; 2],
}

impl Irq {
    fn new() -> Arc<Irq> {
        Arc::new(Irq { vector: Vector::new(), graveyard: Graveyard::default(), lives: Default::default() })
    }

    /// Gives the vector the eventfd with this number; the second is one that blocks.
    fn assign(&self, number: usize) {
        let eventfd = Eventfd::new(number == 1, &self.lives[number]);
        self.vector.replace(Some(Box::new(Node::new(eventfd))));
    }

    /// As `vfu_irq_trigger` does: the short way, if it can be.
    fn trigger(&self, policy: Policy) -> Result<()> {
        let usual = if policy == Policy::Signal { self.vector.trigger_usual(&self.graveyard) } else { None };
        usual.unwrap_or_else(|| self.vector.trigger(policy, &self.graveyard, Eventfd::write))
    }

    fn deliver(&self) {
        self.vector.deliver(Policy::Latch, &self.graveyard, Eventfd::write);
    }

    fn signals(&self) -> usize {
        self.lives.iter().map(|life| life.signals()).sum()
    }

    fn closes(&self) -> [usize; 2] {
        [self.lives[0].closes(), self.lives[1].closes()]
    }
}

/// Runs `change` beside two threads, of which each triggers `times` times. In the
/// end the eventfds, of which `made` had been assigned, are closed, once.
fn beside_triggers(preemptions: usize, times: usize, made: [usize; 2], change: fn(&Irq)) {
    explore(preemptions, move || {
        let irq = Irq::new();
        irq.assign(0);
        let threads = [(); 2].map(|()| {
            let irq = Arc::clone(&irq);
            spawn(move || {
                let outcomes = (0..times).map(|_| irq.trigger(Policy::Signal));
                let signalled = outcomes.filter(|outcome| match outcome {
                    Ok(()) => true,
                    Err(errno) => {
                        assert_eq!(*errno, Errno::ENOENT);
                        false
                    }
                });
                irq.lives[0].add_succeeded(signalled.count());
            })
        });
        change(&irq);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(irq.signals(), irq.lives[0].succeeded());
        irq.vector.replace(None);
        assert_eq!(irq.closes(), made, "without another word, by the last who used it");
        irq.graveyard.clear();
        assert_eq!(irq.closes(), made);
    });
}

#[test]
fn an_eventfd_is_taken_away() {
    beside_triggers(3, 1, [1, 0], |irq| assert!(irq.vector.replace(None)));
}

#[test]
fn an_eventfd_is_replaced_and_the_next_taken_away() {
    beside_triggers(2, 1, [1, 1], |irq| {
        irq.assign(1);
        irq.vector.replace(None);
    });
}

/// What was buried is freed meanwhile, too, as each change of interrupts does.
#[test]
fn threads_that_trigger_twice() {
    beside_triggers(2, 2, [1, 1], |irq| {
        irq.assign(1);
        irq.graveyard.clear();
    });
}

/// Who takes an eventfd away does not wait for who signals it, who closes it.
#[test]
fn nobody_waits() {
    explore(2, || {
        let irq = Irq::new();
        irq.assign(0);
        let other = {
            let irq = Arc::clone(&irq);
            spawn(move || irq.lives[0].add_succeeded(irq.trigger(Policy::Signal).is_ok().into()))
        };
        let outcome = irq.vector.trigger(Policy::Signal, &irq.graveyard, |eventfd| {
            assert!(irq.vector.replace(None));
            assert_eq!(irq.closes(), [0, 0], "it is still used");
            eventfd.write()
        });
        other.join().unwrap();
        let signals = 1 + irq.lives[0].succeeded();
        assert_eq!((outcome, irq.signals(), irq.closes()), (Ok(()), signals, [1, 0]));
    });
}

/// An interrupt that is kept is delivered by whoever ends what held it back, or
/// finds that it is over.
fn none_is_lost(begin: fn(&Irq), end: fn(&Irq)) {
    explore(3, move || {
        let irq = Irq::new();
        begin(&irq);
        let threads = [(); 2].map(|()| {
            let irq = Arc::clone(&irq);
            spawn(move || irq.trigger(Policy::Latch).unwrap())
        });
        end(&irq);
        irq.deliver();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!irq.vector.is_pending());
        // Two that are kept at the same time are one.
        assert!((1..=2).contains(&irq.signals()));
        irq.vector.replace(None);
        assert_eq!(irq.closes(), [1, 0]);
    });
}

#[test]
fn an_eventfd_comes() {
    none_is_lost(|_| (), |irq| irq.assign(0));
}

#[test]
fn a_mask_goes() {
    none_is_lost(
        |irq| {
            irq.assign(0);
            irq.vector.mask(Mask::Vector);
        },
        |irq| irq.vector.unmask(Mask::Vector),
    );
}

/// Of INTx one interrupt is delivered until the client unmasks the line.
#[test]
fn a_line_masks_itself() {
    explore(3, || {
        let irq = Irq::new();
        irq.assign(0);
        let other = {
            let irq = Arc::clone(&irq);
            spawn(move || irq.trigger(Policy::LatchAndMask).unwrap())
        };
        irq.trigger(Policy::LatchAndMask).unwrap();
        other.join().unwrap();
        assert!(irq.signals() == 1 && irq.vector.is_pending());
        irq.vector.unmask(Mask::Vector);
        irq.vector.deliver(Policy::LatchAndMask, &irq.graveyard, Eventfd::write);
        assert!(irq.signals() == 2 && !irq.vector.is_pending());
    });
}
