//! Reports of many and of large regions, at random, against models.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::*;
use crate::wire::LoggingRange;

const STEPS: u64 = 4000;

/// Reports of any part of regions with several groups of words, page by page: what each tells of, and what it leaves.
#[test]
fn any_part_of_large_regions() {
    let p = page();
    let mut random = Random(7);
    for round in 0..1000 {
        let (space, regions, at) = some_regions(&mut random, 140_000);
        let logged = p << random.below(3);
        let n = random.below(4);
        let ranges: Vec<_> = (0..n)
            .map(|_| LoggingRange { iova: random.below(at), length: 1 + random.below(100_000) * 512 })
            .collect();
        space.logging_start(logged, &ranges).unwrap();
        let mut dirty = BTreeMap::new();
        for step in 0..12 {
            for _ in 0..random.below(16) {
                let (start, size) = regions[random.below(regions.len() as u64) as usize];
                let offset = match random.below(4) {
                    0 => random.below(size),
                    1 => {
                        (random.below(size / p + 1) / 32768 * 32768 * logged + random.below(130) * logged)
                            % size
                    }
                    2 => (size - 1 - random.below(70) * logged % size) % size,
                    _ => ((1 + random.below(4)) * 32768 * logged - 1 - random.below(130) * logged) % size,
                };
                mark(&space, start + offset, 1);
                let first = start + offset / logged * logged;
                let last = (first + logged).min(start + size) - 1;
                if ranges.is_empty() || ranges.iter().any(|r| r.iova <= last && first < r.iova + r.length) {
                    dirty.insert(first, last);
                }
            }
            let (start, size) = regions[random.below(regions.len() as u64) as usize];
            let pages = size.div_ceil(logged);
            let from = match random.below(3) {
                0 => random.below(pages.min(70)),
                1 => random.below(pages),
                _ => (random.below(pages) / 32768 * 32768 + random.below(66)) % pages,
            };
            let iova = start + from * logged;
            let most = at - iova;
            let length = match random.below(3) {
                0 => most,
                1 => 1 + random.below(most),
                _ => (((1 + random.below(4)) * 32768).saturating_sub(from % 32768 + random.below(66))
                    * logged)
                    .clamp(1, most),
            };
            let q = (p / 2) << random.below(9);
            if q > length {
                continue;
            }
            let found = report(&space, iova, length, q).unwrap();
            let end_region = regions.iter().find(|(s, z)| iova + length - 1 < s + z).unwrap();
            let covered = (iova + found.len() as u64 * 64 * q - 1).min(end_region.0 + end_region.1 - 1);
            let mut bits = vec![0_u64; found.len()];
            dirty.retain(|first, last| {
                if *last < iova || *first > covered {
                    return true;
                }
                let (a, b) = ((*first).max(iova), (*last).min(covered));
                for bit in (a - iova) / q..=(b - iova) / q {
                    bits[(bit / 64) as usize] |= 1 << (bit % 64);
                }
                *last > covered
            });
            assert!(found == bits, "{round} {step} {iova:#x} {length:#x} {q:#x} {logged:#x}");
        }
    }
}

/// Thousands of regions of all sizes that come and go, one by one and all at once, while logging is switched on and off:
/// what was written to one never shows in another, nor is it lost.
#[test]
fn many_regions_come_and_go() {
    let (p, fd, space) = (page(), memory(page()), AddressSpace::new());
    let mut random = Random(3);
    // Size and dirty pages of each region, by its number, where addresses are 2^40 apart.
    let mut regions = BTreeMap::<u64, (u64, BTreeSet<u64>)>::new();
    let mut logged = None;
    for step in 0..STEPS {
        match random.below(100) {
            0 => {
                while let Some(region) = space.first_within(0, u64::MAX) {
                    space.remove(region);
                }
                regions.clear();
            }
            1 => {
                space.logging_stop();
                logged = None;
                regions.values_mut().for_each(|region| region.1.clear());
            }
            2..8 => {
                let size = p << random.below(4);
                if logged.is_none() {
                    space.logging_start(size, &[]).unwrap();
                    logged = Some(size);
                }
            }
            8..11 => {
                for _ in 0..random.below(700) {
                    let at = random.below(3000);
                    let size = match random.below(5) {
                        0 => 1 + random.below(9000),
                        1 => (1 + random.below(40_000)) * p,
                        2 => (1 << random.below(22)) * p,
                        _ => (1 + random.below(300)) * p,
                    };
                    if let Entry::Vacant(vacant) = regions.entry(at) {
                        space.map(request(at << 40, size, Access::FileIo, Some(&fd))).unwrap();
                        vacant.insert((size, Default::default()));
                    }
                }
            }
            11..14 => {
                let at = random.below(3000);
                let gone: Vec<_> =
                    regions.range(at..at + random.below(800)).map(|(at, region)| (*at, region.0)).collect();
                for (at, size) in gone {
                    space.remove(space.find_exact(at << 40, size).unwrap());
                    regions.remove(&at);
                }
            }
            14..60 => {
                for _ in 0..20 {
                    let Some((at, region)) = regions.range_mut(random.below(3000)..).next() else { continue };
                    let offset = if random.below(3) == 0 { region.0 - 1 } else { random.below(region.0) };
                    let most = 1 << (1 + random.below(22));
                    let length = 1 + random.below((region.0 - offset).min(most));
                    mark(&space, (at << 40) + offset, length);
                    if let Some(logged) = logged {
                        region.1.extend(offset / logged..=(offset + length - 1) / logged);
                    }
                }
            }
            _ => {
                for _ in 0..5 {
                    let Some((at, region)) = regions.range_mut(random.below(3000)..).next() else { continue };
                    let size = logged.unwrap_or(p);
                    if size > region.0 {
                        continue;
                    }
                    let found = report(&space, at << 40, region.0, size);
                    let Some(_) = logged else {
                        assert_eq!(found, Err(Errno::EINVAL));
                        continue;
                    };
                    let mut bits = vec![0_u64; region.0.div_ceil(size).div_ceil(64) as usize];
                    mem::take(&mut region.1)
                        .iter()
                        .for_each(|page| bits[(page / 64) as usize] |= 1 << (page % 64));
                    assert!(found.unwrap() == bits, "{step}: {at:#x}");
                }
            }
        }
        assert_eq!(space.len(), regions.len() as u64);
    }
}
