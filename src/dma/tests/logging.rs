//! Dirty logging and reports.

use super::super::sizes::GROUP_WORDS;
use super::model::Model;
use super::*;
use crate::wire::LoggingRange;

const ALL: &[LoggingRange] = &[];

/// 32 pages from address 0 on, logged at the host's page size.
fn thirty_two_pages() -> AddressSpace {
    let space = AddressSpace::new();
    map_memory(&space, 0, 32 * page());
    assert_eq!(space.logging_start(page(), ALL), Ok(page()));
    space
}

/// Marks pages, then reports 32 of them.
fn worked(space: &AddressSpace, pages: &[(u64, u64)]) -> u64 {
    for (first, count) in pages {
        mark(space, first * page(), count * page());
    }
    let found = report(space, 0, 32 * page(), page()).unwrap();
    assert_eq!(report(space, 0, 32 * page(), page()), Ok(vec![0]), "not cleared");
    assert_eq!(found.len(), 1);
    found[0]
}

#[test]
fn worked_values() {
    let space = thirty_two_pages();
    for (pages, bits) in [
        (&[(0, 1)][..], 0x1),
        (&[(7, 1)], 0x80),
        (&[(0, 7)], 0x7f),
        (&[(0, 8)], 0xff),
        (&[(0, 9)], 0x1ff),
        (&[(7, 2)], 0x180),
        (&[(15, 1)], 0x8000),
        (&[(23, 1)], 0x80_0000),
        (&[(22, 1), (2, 2)], 0x40_000c),
        (&[(0, 32)], 0xffff_ffff),
    ] {
        assert_eq!(worked(&space, pages), bits);
    }
}

#[test]
fn worked_values_at_other_page_sizes() {
    let space = thirty_two_pages();
    let with = |page_size| {
        // 0x3c1
        mark(&space, 0, 1);
        mark(&space, 6 * page() + 1, 4 * page() - 2);
        report(&space, 0, 32 * page(), page_size).unwrap()
    };
    assert_eq!(with(page() / 2), [0xff003]);
    assert_eq!(with(page() * 2), [0x19]);
    assert_eq!(with(page() * 16), [1]);
    assert_eq!(worked(&space, &[]), 0);
}

#[test]
fn rounding_to_64_bits_reports_more() {
    let space = thirty_two_pages();
    mark(&space, 23 * page(), 1);
    assert_eq!(report(&space, 0, 16 * page(), page()), Ok(vec![0x80_0000]));
    assert_eq!(worked(&space, &[]), 0);
}

#[test]
fn only_what_is_put_for_writing_is_dirty() {
    let space = thirty_two_pages();
    let (read, write) = (entry(&space, 0, 1, Prot::READ), entry(&space, 0, 1, Prot::WRITE));
    space.get(&write).unwrap();
    space.mark_dirty(&read);
    assert_eq!(worked(&space, &[]), 0);
    for _ in 0..2 {
        space.mark_dirty(&write);
        assert_eq!(worked(&space, &[]), 1);
    }
    map_message(&space, 1 << 40, page()).unwrap();
    mark(&space, 1 << 40, page());
    assert_eq!(report(&space, 1 << 40, page(), page()), Ok(vec![0]));
}

#[test]
fn reports_fail_in_order() {
    let space = AddressSpace::new();
    map_memory(&space, 0, 4 * page());
    map_message(&space, 4 * page(), page()).unwrap();
    let p = page();
    assert_eq!(report(&space, 0, 4 * p, 0), Err(Errno::EINVAL));
    assert_eq!(report(&space, 1 << 40, 4 * p, 8 * p), Err(Errno::EINVAL));
    assert_eq!(report(&space, 1 << 40, u64::MAX, 1), Err(Errno::EINVAL));
    for (iova, length) in [(1 << 40, p), (1, 8 * p), (3 * p, 3 * p), (p, u64::MAX - 1)] {
        assert_eq!(report(&space, iova, length, length), Err(Errno::ENOENT));
    }
    assert_eq!(report(&space, 0, p, p), Err(Errno::EINVAL), "logging is off");
    space.logging_start(p, ALL).unwrap();
    assert_eq!(report(&space, 1, 2 * p, 3000), Err(Errno::EINVAL));
    assert_eq!(report(&space, 1, 2 * p, p), Err(Errno::ENOTSUP));
    assert_eq!(report(&space, 4 * p + 1, p - 1, p / 2), Err(Errno::ENOTSUP));
    mark(&space, 4 * p, p);
    assert_eq!(report(&space, 4 * p, p, p), Ok(vec![0]), "no descriptor");
    mark(&space, 0, p);
    assert_eq!(report(&space, 0, 5 * p, p), Ok(vec![1]), "messages read as clean");
    assert_eq!(space.report(0, p, p, &mut [0; 16]), Err(Errno::EINVAL));
}

/// A report takes what it tells of, and nothing else: what is marked after its part was made comes in
/// the next one, what a report does not reach stays, and one that fails takes none.
#[test]
fn pages_that_are_told_of_do_not_come_round_again() {
    let (space, p) = (AddressSpace::new(), page());
    map_memory(&space, 0, 192 * p);
    space.logging_start(p, ALL).unwrap();
    let mark_pages = |pages: &[u64]| pages.iter().for_each(|number| mark(&space, number * p, 1));
    let all = || report(&space, 0, 192 * p, p).unwrap();
    let part = |number: u64| {
        let mut bitmap = [0xa5; 8];
        space.report_part(number * 64 * p, 64 * p, p, &mut bitmap, false).unwrap();
        u64::from_le_bytes(bitmap)
    };

    // A report that is made in parts.
    mark_pages(&[1, 63, 64, 130]);
    assert_eq!(part(0), 1 << 1 | 1 << 63);
    mark_pages(&[2, 65]);
    assert_eq!(part(1), 0b11);
    mark_pages(&[1, 65]);
    assert_eq!(part(2), 1 << 2);
    assert_eq!(all(), [0b110, 0b10, 0], "marked after it was told of");
    assert_eq!(all(), [0; 3]);

    // One that ends before all pages, and tells of those that its last word has.
    mark_pages(&[5, 20, 70]);
    assert_eq!(report(&space, 0, 10 * p, p), Ok(vec![1 << 5 | 1 << 20]));
    assert_eq!(all(), [0, 1 << 6, 0]);

    // Reports that fail.
    mark_pages(&[0, 7, 191]);
    assert_eq!(space.report(0, 192 * p, p, &mut [0; 16]), Err(Errno::EINVAL));
    assert_eq!(report(&space, 0, 3000 * 64, 3000), Err(Errno::EINVAL));
    assert_eq!(report(&space, 0, 193 * p, p), Err(Errno::ENOENT));
    assert_eq!(report(&space, 1, 64 * p, p), Err(Errno::ENOTSUP));
    assert_eq!(space.report_part(128 * p, 65 * p, p, &mut [0; 16], false), Err(Errno::ENOENT));
    assert_eq!(all(), [0b1000_0001, 0, 1 << 63]);
    assert_eq!(all(), [0; 3]);
}

/// A report that begins or ends in the middle of a word of a large bitmap leaves what it does not tell of to others.
#[test]
fn what_is_beside_a_report_stays_wherever_that_begins_and_ends() {
    let (p, file) = (page(), memory(page()));
    let group = GROUP_WORDS as u64 * 64;
    for at in [0, group, 2 * group] {
        for (first, count) in [(at, group - 32), (at + 5, group - 32), (at + 5, group - 64), (at + 5, 64)] {
            let end = first + count;
            let space = AddressSpace::new();
            space.map(request(0, 3 * group * p, Access::FileIo, Some(&file))).unwrap();
            space.logging_start(p, ALL).unwrap();
            let marked = [at, at + 4, at + 5, at + group - 33, at + group - 32, at + group - 1];
            marked.iter().for_each(|number| mark(&space, number * p, 1));
            let reported = |first: u64, end: u64| -> Vec<u64> {
                let words = report(&space, first * p, (end - first) * p, p / 2).unwrap();
                let bits =
                    (0..2 * (end - first)).filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 != 0);
                bits.filter(|bit| bit % 2 == 0).map(|bit| first + bit / 2).collect()
            };
            let (within, beside): (Vec<_>, Vec<_>) =
                marked.into_iter().partition(|number| (first..end).contains(number));
            assert_eq!(reported(first, end), within, "{first} {end}");
            assert_eq!(reported(0, 3 * group), beside, "{first} {end}");
        }
    }
}

#[test]
fn page_sizes_of_start() {
    let space = AddressSpace::new();
    map_memory(&space, 0, 4 * page());
    for bad in [0, 3000, page() + 1, u64::MAX] {
        assert_eq!(space.logging_start(bad, ALL), Err(Errno::EINVAL));
    }
    assert_eq!(space.logging_page_size(), None);
    assert_eq!(space.logging_start(page() / 2, ALL), Ok(page()));
    assert_eq!(space.logging_page_size(), Some(page()));
    mark(&space, 0, 1);
    assert_eq!(space.logging_start(page(), ALL), Ok(page()));
    assert_eq!(space.logging_start(page() / 2, ALL), Err(Errno::EINVAL));
    assert_eq!(space.logging_start(page() * 2, ALL), Err(Errno::EINVAL));
    assert_eq!(report(&space, 0, 4 * page(), page()), Ok(vec![1]), "nothing changed");
    space.logging_stop();
    space.logging_stop();
    assert_eq!(space.logging_start(1 << 63, ALL), Ok(1 << 63));
    mark(&space, 3 * page(), 1);
    assert_eq!(report(&space, 0, 2 * page(), page()), Ok(vec![0xf]), "one page for all");
    mark(&space, 3 * page(), 1);
    space.logging_stop();
    space.logging_start(page(), ALL).unwrap();
    assert_eq!(report(&space, 0, 4 * page(), page()), Ok(vec![0]), "forgotten");
}

#[test]
fn ranges_are_checked_and_honoured() {
    let space = AddressSpace::new();
    let p = page();
    map_memory(&space, 0, 8 * p);
    map_memory(&space, 8 * p, 8 * p);
    let range = |iova, length| LoggingRange { iova, length };
    for bad in [range(0, 0), range(u64::MAX, 2), range(2, u64::MAX)] {
        assert_eq!(space.logging_start(p, &[range(0, p), bad]), Err(Errno::EINVAL));
    }
    space
        .logging_start(p, &[range(9 * p + 1, 1), range(2 * p, p), range(2 * p, 2 * p), range(u64::MAX, 1)])
        .unwrap();
    mark(&space, 0, 8 * p);
    mark(&space, 8 * p, 8 * p);
    assert_eq!(report(&space, 0, 16 * p, p), Ok(vec![0x20c]));
    // A region mapped later, outside all ranges.
    map_memory(&space, 16 * p, p);
    mark(&space, 16 * p, p);
    assert_eq!(report(&space, 0, 17 * p, p), Ok(vec![0]));
}

#[test]
fn the_topmost_page_is_logged() {
    let space = AddressSpace::new();
    let start = 0_u64.wrapping_sub(2 * page());
    map_memory(&space, start, 2 * page());
    space.logging_start(page(), ALL).unwrap();
    mark(&space, u64::MAX, 1);
    assert_eq!(report(&space, start, 2 * page(), 2 * page()), Ok(vec![1]));
    mark(&space, u64::MAX, 1);
    assert_eq!(report(&space, start, 2 * page(), page() / 2), Ok(vec![0xc]));
    mark(&space, u64::MAX, 1);
    assert_eq!(report(&space, start + page(), page(), page()), Ok(vec![1]));
    assert_eq!(report(&space, start, 2 * page(), page()), Ok(vec![0]));
}

/// Every logging page size with every reporting page size, for parts of
/// regions and ranges across regions of odd sizes.
#[test]
fn all_page_sizes_against_the_model() {
    let fd = memory(page());
    let p = page();
    let sizes = [70 * p, 130 * p + 512, 8 * p, 3 * p + 1024, 65 * p];
    for logged_shift in 0..6 {
        for reported_shift in 9..22 {
            for base in [0, 512 * 3, 1 << 45] {
                let (space, mut model) = (AddressSpace::new(), Model::default());
                let mut at = base;
                for size in sizes {
                    space.map(request(at, size, Access::FileIo, Some(&fd))).unwrap();
                    model.map(at, size, Prot::all(), Access::FileIo).unwrap();
                    at += size;
                }
                let logged = p << logged_shift;
                space.logging_start(logged, ALL).unwrap();
                model.start(logged, ALL).unwrap();
                let mark_some = |space: &AddressSpace, model: &mut Model, seed: u64| {
                    let mut from = base;
                    for size in sizes {
                        for unit in (0..size / 512).filter(|unit| unit * unit % (41 + seed) < 2) {
                            mark(space, from + unit * 512, 512);
                            model.mark(from + unit * 512, 512);
                        }
                        from += size;
                    }
                };
                let total: u64 = sizes.iter().sum();
                let ranges = [
                    (base, total),
                    (base, sizes[0]),
                    (base, 512 * 5),
                    (base + logged, total - logged),
                    (base + 2 * logged, 9 * 512 + 9 * logged),
                    (base + sizes[0], sizes[1]),
                    (base + sizes[0] + logged, sizes[1]),
                    (base, total),
                ];
                for (seed, (iova, length)) in ranges.into_iter().enumerate() {
                    mark_some(&space, &mut model, seed as u64);
                    for (iova, length) in [(iova, length), (base, total)] {
                        let expected = model.report(iova, length, 1 << reported_shift);
                        let found = report(&space, iova, length, 1 << reported_shift);
                        assert_eq!(found, expected, "{logged} {reported_shift} {base} {iova} {length}");
                    }
                }
            }
        }
    }
}

/// Bits at the edges of the units that the bitmap is gone through in.
#[test]
fn edges_of_large_bitmaps() {
    let fd = memory(page());
    let (p, pages) = (page(), 3 * 64 * 32768 / 10 + 77);
    for reported_shift in [0, 1, 2, 3, 5, 6, 7, 12] {
        let space = AddressSpace::new();
        space.map(request(0, pages * p, Access::FileIo, Some(&fd))).unwrap();
        space.logging_start(p, ALL).unwrap();
        let mut expected = std::collections::BTreeSet::new();
        for unit in (0..pages).step_by(32768) {
            for (first, count) in [(unit.saturating_sub(1), 2), (unit + 700, 150), (unit + 20000, 64)] {
                if first + count <= pages {
                    mark(&space, first * p, count * p);
                    expected.extend(first..first + count);
                }
            }
        }
        mark(&space, 32000 * p, 70000 * p);
        expected.extend(32000..102000);
        for from in [0, 5, 64] {
            let found = report(&space, from * p, (pages - from) * p, p << reported_shift).unwrap();
            let mut bits = vec![0_u64; found.len()];
            for page in expected.iter().filter(|page| **page >= from) {
                let bit = (page - from) >> reported_shift;
                bits[(bit / 64) as usize] |= 1 << (bit % 64);
            }
            assert!(found == bits, "{reported_shift} {from}");
            let rest: Vec<_> = expected.iter().copied().filter(|page| *page < from).collect();
            expected = rest.into_iter().collect();
            for page in (0..pages).step_by(61) {
                mark(&space, page * p, 1);
                expected.insert(page);
            }
        }
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * page()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn large_bitmaps_take_memory_only_where_marked() {
    let space = AddressSpace::new();
    let file = memory(page());
    for i in 0..4 {
        space.map(request(i << 43, MAX_REGION_SIZE, Access::FileIo, Some(&file))).unwrap();
    }
    let before = resident();
    space.logging_start(4096, ALL).unwrap();
    mark(&space, (1 << 43) - 1, 1);
    for i in 0..4 {
        mark(&space, i << 43, 1);
        let found = report(&space, i << 43, 1 << 43, 2 << 20).unwrap();
        assert_eq!(found.iter().map(|word| word.count_ones()).sum::<u32>(), if i == 0 { 2 } else { 1 });
    }
    assert!(resident() < before + (200 << 20));
    for _ in 0..2000 {
        space.logging_stop();
        space.logging_start(4096, ALL).unwrap();
        mark(&space, 5 << 42, 1 << 30);
    }
    assert!(resident() < before + (200 << 20));
}

#[test]
fn a_group_is_harvested_once_however_many_ranges_it_has() {
    const RANGES: u64 = 32_768;
    let space = AddressSpace::new();
    let p = page();
    let size = 2 * RANGES * p;
    let file = memory(p);
    space.map(request(0, size, Access::FileIo, Some(&file))).unwrap();
    let every_other: Vec<_> = (0..RANGES).map(|i| LoggingRange { iova: 2 * i * p, length: p }).collect();
    space.logging_start(p, &every_other).unwrap();
    let reported = |expected: u64| {
        let before = space.dirty.harvested();
        let words = report(&space, 0, size, p).unwrap();
        assert!(words.iter().all(|word| *word == expected));
        space.dirty.harvested() - before
    };
    // But for the last page, which is behind the last range, and stays as it is.
    mark(&space, 0, size - p);
    assert_eq!(reported(0x5555_5555_5555_5555), size / p / (GROUP_WORDS as u64 * 64));
    assert_eq!(reported(0), 0, "nothing is dirty");
    // Between two ranges nothing is ever reported.
    mark(&space, p, p);
    assert!(reported(0) <= 1);
}

/// A thread may be about to mark a page of a region that goes meanwhile, and whose bitmap a smaller one gets.
#[test]
fn a_bit_that_is_set_too_late_keeps_nobody_from_taking_over() {
    let (p, file) = (page(), memory(page()));
    let space = AddressSpace::new();
    let pages = GROUP_WORDS as u64 * 64 + 70;
    space.map(request(0, pages * p, Access::FileIo, Some(&file))).unwrap();
    space.logging_start(p, ALL).unwrap();
    mark(&space, (pages - 1) * p, 1);
    let block = space.bitmap(&space.region_around(0).unwrap()).unwrap();
    for late in [pages, pages + 64, 2 * GROUP_WORDS as u64 * 64 - 1] {
        space.dirty.set(block, late, late);
    }
    let successor = AddressSpace::new();
    successor.map(request(0, pages * p, Access::FileIo, Some(&file))).unwrap();
    successor.resume_logging(p, Vec::new()).unwrap();
    space.visit_dirty(|iova, first, words| successor.mark_pages(iova, first, words)).unwrap();
    let found = report(&successor, 0, pages * p, p).unwrap();
    let expected = pages - 1;
    for (number, word) in (0..).zip(found) {
        assert_eq!(word, if number == expected / 64 { 1 << (expected % 64) } else { 0 }, "{number}");
    }
}
