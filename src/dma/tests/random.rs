//! Random sequences of everything, against the model.

use proptest::prelude::*;

use super::model::{Model, UNIT};
use super::*;
use crate::wire::LoggingRange;

/// Addresses that are used, in units.
const SPACE: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    Map {
        at: u64,
        size: u64,
        prot: u32,
        message: bool,
    },
    Unmap {
        nth: usize,
    },
    UnmapRange {
        at: u64,
        size: u64,
    },
    /// From the start of a region to the end of another, and a little less or more.
    UnmapRegions {
        from: usize,
        to: usize,
        before: u64,
        behind: u64,
    },
    Translate {
        at: u64,
        size: u64,
        prot: u32,
        max: usize,
    },
    Mark {
        at: u64,
        size: u64,
    },
    Start {
        shift: u32,
        ranges: Vec<(u64, u64)>,
    },
    Stop,
    Report {
        at: u64,
        size: u64,
        shift: u32,
    },
    ReportRegion {
        nth: usize,
        pages: u64,
        shift: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..SPACE;
    let size = prop_oneof![1..40_u64, 1..600_u64, Just(8), Just(64)];
    let ranges = prop::collection::vec((0..SPACE, 1..SPACE / 2), 0..3);
    let step = prop_oneof![
        6 => (at.clone(), size.clone(), 0..4_u32, prop::bool::weighted(0.15))
            .prop_map(|(at, size, prot, message)| Step::Map { at, size, prot: prot | 2, message }),
        2 => (0..SPACE / 8, 1..40_u64).prop_map(|(at, size)| {
            Step::Map { at: at * 8, size: size * 8, prot: 3, message: false }
        }),
        2 => any::<usize>().prop_map(|nth| Step::Unmap { nth }),
        1 => (at.clone(), size.clone()).prop_map(|(at, size)| Step::UnmapRange { at, size }),
        1 => (any::<usize>(), 0..4_usize, 0..3_u64, 0..3_u64).prop_map(|(from, more, before, behind)| {
            Step::UnmapRegions { from, to: from.saturating_add(more), before, behind }
        }),
        4 => (at.clone(), size.clone(), 0..4_u32, 0..4_usize)
            .prop_map(|(at, size, prot, max)| Step::Translate { at, size, prot, max }),
        8 => (at.clone(), size.clone()).prop_map(|(at, size)| Step::Mark { at, size }),
        3 => (11..16_u32, ranges).prop_map(|(shift, ranges)| Step::Start { shift, ranges }),
        1 => Just(Step::Stop),
        2 => (at, size, 9..18_u32).prop_map(|(at, size, shift)| Step::Report { at, size, shift }),
        6 => (any::<usize>(), 1..200_u64, 9..18_u32)
            .prop_map(|(nth, pages, shift)| Step::ReportRegion { nth, pages, shift }),
    ];
    prop::collection::vec(step, 1..80)
}

struct Both {
    space: AddressSpace,
    model: Model,
    /// Where the addresses start.
    base: u64,
    file: std::os::fd::OwnedFd,
}

impl Both {
    fn start_of(&self, nth: usize) -> Option<(u64, u64)> {
        let count = self.model.regions.len();
        let nth = nth.checked_rem(count)?;
        self.model.regions.iter().nth(nth).map(|(start, region)| (*start, region.size))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Map { at, size, prot, message } => {
                let (at, size) = (self.base + at * UNIT, size * UNIT);
                let prot = Prot::from_bits_truncate(prot);
                let access = if message { Access::Message } else { Access::FileIo };
                let file = (!message).then_some(&self.file);
                let request = MapRequest { prot, ..request(at, size, access, file) };
                let mapped = self.space.map(request).map(|mapped| mapped.fresh);
                assert_eq!(mapped, self.model.map(at, size, prot, access));
            }
            Step::Unmap { nth } => {
                let Some((start, size)) = self.start_of(nth) else { return };
                self.space.remove(self.space.find_exact(start, size).unwrap());
                self.model.regions.remove(&start);
            }
            Step::UnmapRange { at, size } => {
                let first = self.base + at * UNIT;
                self.unmap(first, first + size * UNIT - 1);
            }
            Step::UnmapRegions { from, to, before, behind } => {
                let (Some(from), Some(to)) = (self.start_of(from), self.start_of(to)) else { return };
                let (first, end) = (from.0.min(to.0), (from.0 + from.1).max(to.0 + to.1));
                self.unmap((first + UNIT).saturating_sub(before * UNIT), end + UNIT - 1 - behind * UNIT);
                // The last address of all may be among them.
                if before == 0 && behind == 0 {
                    self.unmap(first, u64::MAX);
                }
            }
            Step::Translate { at, size, prot, max } => {
                self.translate(self.base + at * UNIT, size * UNIT, Prot::from_bits_truncate(prot), max);
            }
            Step::Mark { at, size } => {
                let (at, size) = (self.base + at * UNIT, size * UNIT);
                let Ok((list, translation)) = entries(&self.space, at, size, Prot::WRITE, 100) else {
                    return;
                };
                assert_eq!(translation, Translation::Filled(list.len()));
                list.iter().for_each(|entry| self.space.mark_dirty(entry));
                self.model.mark(at, size);
            }
            Step::Start { shift, ranges } => {
                let range = |(at, size)| LoggingRange { iova: self.base + at * UNIT, length: size * UNIT };
                let ranges: Vec<_> = ranges.into_iter().map(range).collect();
                assert_eq!(
                    self.space.logging_start(1 << shift, &ranges),
                    self.model.start(1 << shift, &ranges)
                );
            }
            Step::Stop => {
                self.space.logging_stop();
                self.model.stop();
            }
            Step::Report { at, size, shift } => self.report(self.base + at * UNIT, size * UNIT, 1 << shift),
            Step::ReportRegion { nth, pages, shift } => {
                let Some((start, size)) = self.start_of(nth) else { return };
                let logged = self.space.logging_page_size().unwrap_or(page());
                let from = start + (pages % 5) * logged;
                self.report(from, pages * UNIT * 4, 1 << shift);
                self.report(start, size, 1 << shift);
            }
        }
        assert_eq!(self.space.len(), self.model.regions.len() as u64);
        let first = self.space.first_within(0, u64::MAX).map(|region| {
            // SAFETY: the region is there.
            unsafe { *self.space.info(region) }.iova.iov_base as u64
        });
        assert_eq!(first, self.model.regions.keys().next().copied());
    }

    fn unmap(&mut self, first: u64, last: u64) {
        // Regions of one unit may leave nothing of the range.
        if first <= last {
            assert_eq!(remove_range(&self.space, first, last), self.model.unmap(first, last));
        }
    }

    fn translate(&self, at: u64, size: u64, prot: Prot, max: usize) {
        let expected = self.model.translate(at, size, prot, max);
        let found = entries(&self.space, at, size, prot, max);
        let Ok((list, translation)) = found else {
            assert_eq!(found.unwrap_err(), expected.unwrap_err());
            return;
        };
        let expected = expected.unwrap();
        let filled = expected.len() <= max;
        let wanted = if filled { Translation::Filled } else { Translation::TooSmall };
        assert_eq!(translation, wanted(expected.len()));
        let list: Vec<_> = list.iter().map(|entry| (entry.offset(), entry.length())).collect();
        assert_eq!(list, expected[..expected.len().min(max)]);
    }

    fn report(&mut self, at: u64, size: u64, page_size: u64) {
        assert_eq!(report(&self.space, at, size, page_size), self.model.report(at, size, page_size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence(steps in steps(), base in prop_oneof![Just(0_u64), Just(7 * UNIT), Just(1 << 40)]) {
        let mut both = Both { space: AddressSpace::new(), model: Model::default(), base, file: memory(page()) };
        for step in steps {
            both.step(step);
        }
    }
}
