//! Two threads mark, and one harvests.
//!
//! What has to hold of a mark is that what its thread wrote before is reported:
//! a harvest that finds the bit comes after these writes, or a later harvest
//! finds it again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::atomic::{AtomicU64, AtomicUsize};

use super::{explore, spawn};
use crate::dma::bitmap::{Block, Name, all_words};
use crate::dma::dirty::{Dirty, Kept};
use crate::dma::sizes::GROUP_WORDS;

const GROUP_BITS: u64 = GROUP_WORDS as u64 * 64;

/// One bitmap, and a word of guest memory for each marker.
struct Logged {
    dirty: Dirty,
    name: Name,
    words: Box<[AtomicU64]>,
    memory: [AtomicUsize; 2],
}

/// Bits, the first and the last of them included.
type Bits = (u64, u64);

impl Logged {
    fn new(class: u32) -> Logged {
        let words: Box<[AtomicU64]> = (0..all_words(class)).map(|_| AtomicU64::new(0)).collect();
        let name = Name::new(words.as_ptr(), class).unwrap();
        Logged { dirty: Dirty::new(), name, words, memory: [AtomicUsize::new(0), AtomicUsize::new(0)] }
    }

    fn block(&self) -> Block<'_> {
        // SAFETY: the words are there as long as `self`.
        unsafe { self.name.block() }.unwrap()
    }

    /// Writes to guest memory, then marks it, by the short way if it can be.
    fn write(&self, marker: usize, bits: Bits) {
        self.memory[marker].store(1, Relaxed);
        let block = self.block();
        if bits.0 != bits.1 || !self.dirty.is_set(block, bits.0) {
            self.dirty.set(block, bits.0, bits.1);
        }
    }

    /// What is found, by words.
    fn harvest(&self, bits: Bits, last: bool) -> Vec<u64> {
        let mut all = vec![0; self.words.len()];
        self.dirty.harvest(
            self.block(),
            bits,
            Kept { first: false, last },
            &mut [0; GROUP_WORDS],
            |first, words| {
                for (number, word) in (first as usize..).zip(words) {
                    all[number] |= *word;
                }
            },
        );
        all
    }

    fn seen(&self) -> [bool; 2] {
        [0, 1].map(|marker| self.memory[marker].load(Relaxed) != 0)
    }
}

fn has(found: &[u64], bit: u64) -> bool {
    found[(bit / 64) as usize] >> (bit % 64) & 1 != 0
}

/// What a model does.
#[derive(Clone, Copy)]
struct Model {
    preemptions: usize,
    /// Log2 of the bitmap's words.
    class: u32,
    /// Set before anything else.
    before: Option<Bits>,
    /// What each marker marks.
    marks: [Option<Bits>; 2],
    /// What is harvested beside.
    harvested: Bits,
    keep_last: bool,
}

impl Model {
    /// That the markers mark this, of two groups.
    const fn new(marks: [Option<Bits>; 2], class: u32) -> Model {
        Model {
            preemptions: 2,
            class,
            before: None,
            marks,
            harvested: (0, (64 << class) - 1),
            keep_last: false,
        }
    }

    fn run(self) {
        explore(self.preemptions, move || {
            let logged = Arc::new(Logged::new(self.class));
            if let Some((first, last)) = self.before {
                let block = logged.block();
                logged.dirty.set(block, first, last);
            }
            let markers: Vec<_> = (0..2)
                .filter_map(|marker| Some((marker, self.marks[marker]?)))
                .map(|(marker, bits)| {
                    let logged = Arc::clone(&logged);
                    spawn(move || logged.write(marker, bits))
                })
                .collect();
            let early = logged.harvest(self.harvested, self.keep_last);
            let seen = logged.seen();
            markers.into_iter().for_each(|marker| marker.join().unwrap());
            let late = logged.harvest((0, (64 << self.class) - 1), false);
            for (marker, bits) in self.marks.iter().enumerate() {
                let Some((first, last)) = *bits else { continue };
                for bit in [first, last] {
                    let in_time = has(&early, bit) && seen[marker];
                    assert!(in_time || has(&late, bit), "the write of marker {marker} is reported");
                }
            }
            assert!(!self.keep_last || !has(&early, self.harvested.1) || has(&late, self.harvested.1));
            assert!(logged.harvest((0, (64 << self.class) - 1), false).iter().all(|word| *word == 0));
        });
    }
}

#[test]
fn one_word() {
    Model::new([Some((3, 3)), Some((60, 62))], 0).run();
}

#[test]
fn one_word_in_all_orders() {
    Model { preemptions: 4, ..Model::new([Some((3, 3)), None], 0) }.run();
}

/// The bit is set, so the marker does not set it, whether it is being taken or
/// not.
#[test]
fn a_bit_that_is_set() {
    Model { preemptions: 4, before: Some((3, 3)), ..Model::new([Some((3, 3)), None], 0) }.run();
}

#[test]
fn one_bit_twice() {
    Model::new([Some((3, 3)), Some((3, 3))], 0).run();
}

#[test]
fn two_words_of_a_group() {
    Model::new([Some((3, 3)), Some((70, 70))], 1).run();
}

#[test]
fn a_span_over_two_words() {
    Model::new([Some((60, 70)), Some((62, 62))], 1).run();
}

/// Words that are taken line by line.
#[test]
fn a_span_over_a_line() {
    Model::new([Some((60, 200)), None], 2).run();
}

/// Groups of which notes tell whether they may have bits set.
#[test]
fn two_groups() {
    Model::new([Some((3, 3)), Some((GROUP_BITS + 3, GROUP_BITS + 3))], 3).run();
}

#[test]
fn a_span_over_two_groups() {
    Model::new([Some((GROUP_BITS - 1, GROUP_BITS)), None], 3).run();
}

/// A group that has a bit set, and a note.
#[test]
fn a_group_that_is_noted() {
    Model { before: Some((3, 3)), ..Model::new([Some((3, 3)), Some((70, 70))], 3) }.run();
}

/// Of two groups, so that the short way looks at the note, too.
#[test]
fn a_bit_that_is_set_and_noted() {
    Model { preemptions: 3, before: Some((3, 3)), ..Model::new([Some((3, 3)), None], 3) }.run();
}

/// The harvest takes some bits of the group and leaves others, for which the
/// group has to stay noted.
#[test]
fn a_part_of_a_group() {
    Model { before: Some((1, 1)), harvested: (0, 63), ..Model::new([Some((3, 3)), Some((70, 70))], 3) }.run();
}

#[test]
fn the_last_bit_is_kept() {
    Model { harvested: (0, 3), keep_last: true, ..Model::new([Some((3, 3)), Some((2, 4))], 0) }.run();
}
