//! The index of regions by itself, against a map of the standard library.

use std::collections::BTreeMap;

use super::super::index::Index;
use super::super::sizes::LEAF_CAPACITY;
use super::Random;

struct Both {
    index: Index<u64>,
    /// What is in the index, by its start, which it holds.
    model: BTreeMap<u64, &'static u64>,
    /// What the index is to lead to: all there are, by number.
    slots: &'static [u64],
}

impl Both {
    fn new(slots: &'static [u64]) -> Both {
        Both { index: Index::new(), model: BTreeMap::new(), slots }
    }

    fn insert(&mut self, number: u64) {
        let slot = &self.slots[number as usize];
        if self.model.insert(*slot, slot).is_none() {
            self.index.insert(*slot, slot).unwrap();
        }
    }

    fn remove(&mut self, number: u64) {
        let start = self.slots[number as usize];
        self.model.remove(&start);
        self.index.remove(start);
    }

    fn look(&self, address: u64) {
        let below = self.model.range(..=address).next_back().map(|(start, _)| *start);
        let above = self.model.range(address..).next().map(|(start, _)| *start);
        assert_eq!(self.index.up_to(address).copied(), below, "{address:#x}");
        assert_eq!(self.index.up_to_for_change(address).copied(), below, "{address:#x}");
        assert_eq!(self.index.from(address).copied(), above, "{address:#x}");
    }

    fn look_around(&self, number: u64) {
        let start = self.slots[number as usize];
        for address in [start.wrapping_sub(1), start, start.wrapping_add(1)] {
            self.look(address);
        }
    }

    /// Leaves are 4 KiB each: a region has its share of one only as long as they are not nearly empty.
    fn check_memory(&self) {
        let (leaves, _) = self.index.leaves();
        assert!(leaves <= 3 + self.model.len() / 16, "{leaves} leaves for {} regions", self.model.len());
    }

    fn look_at_all(&self) {
        let mut found = Vec::new();
        self.index.for_each(|start| found.push(*start));
        assert!(found.iter().eq(self.model.keys()));
        let Some(first) = self.model.keys().next() else { return };
        let mut cursor = self.index.cursor(*first).unwrap();
        for start in self.model.keys() {
            assert_eq!(cursor.slot(), Some(start));
            assert_eq!(cursor.advance().is_some(), start != self.model.keys().next_back().unwrap());
        }
    }
}

/// So many starts, the lowest and the highest address among them.
fn slots(count: u64) -> &'static [u64] {
    let start = |number| if number == count - 1 { u64::MAX } else { number * 0x1003 };
    Vec::leak((0..count).map(start).collect())
}

#[test]
fn any_sequence_of_runs() {
    const COUNT: u64 = 12_000;
    let (slots, mut random) = (slots(COUNT), Random(1));
    for round in 0..2 {
        let mut both = Both::new(slots);
        for _ in 0..50 {
            let (from, way) = (random.below(COUNT), random.below(9));
            let to = (from + random.below(if way < 2 { COUNT } else { 3000 })).min(COUNT);
            let every = 1 + random.below(300);
            match way {
                0 | 2 => (from..to).for_each(|number| both.insert(number)),
                1 | 3 => (from..to).rev().for_each(|number| both.insert(number)),
                4 => (from..to).for_each(|number| both.remove(number)),
                5 => (from..to).rev().for_each(|number| both.remove(number)),
                6 => (from..to).filter(|number| number % every != 0).for_each(|number| both.remove(number)),
                7 => (0..COUNT)
                    .filter(|number| number % every != 0)
                    .take(5000)
                    .for_each(|number| both.remove(number)),
                _ => (0..2000).for_each(|_| match random.below(2) {
                    0 => both.insert(random.below(COUNT)),
                    _ => both.remove(random.below(COUNT)),
                }),
            }
            for _ in 0..200 {
                both.look_around(random.below(COUNT));
            }
            [from, to - 1, COUNT - 1, 0].iter().for_each(|number| both.look_around(*number));
            both.look_at_all();
            both.check_memory();
        }
        if round == 1 {
            (0..COUNT).for_each(|number| both.remove(number));
            both.index.discard();
            both.look_at_all();
            both.look(0);
        }
    }
}

#[test]
fn what_few_regions_leave_of_many_takes_little_memory() {
    const LEAF: u64 = LEAF_CAPACITY as u64;
    let slots = slots(100 * LEAF);
    // Which one stays of each leaf, and whether the leaf is emptied before there is a next.
    for (kept, at_once) in [(0, true), (LEAF - 1, true), (LEAF / 2, true), (0, false), (LEAF - 1, false)] {
        let mut both = Both::new(slots);
        let thin = |both: &mut Both, leaf: u64| {
            (0..LEAF).filter(|n| *n != kept).for_each(|n| both.remove(leaf * LEAF + n));
        };
        for leaf in 0..100 {
            (0..LEAF).for_each(|n| both.insert(leaf * LEAF + n));
            if at_once {
                thin(&mut both, leaf);
            }
        }
        if !at_once {
            (0..100).for_each(|leaf| thin(&mut both, leaf));
        }
        both.look_at_all();
        both.check_memory();
        let (_, most) = both.index.leaves();
        assert!(!at_once || most < 10, "{most} leaves for 100 regions and a leaf more");
    }
}
