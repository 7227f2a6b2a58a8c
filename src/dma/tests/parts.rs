//! Reports that are made in parts, and what is written between those.

use super::*;
use crate::wire::LoggingRange;

/// What is written where a part has been made is told of by the next report, though the part that follows tells
/// of the same page.
#[test]
fn a_page_that_two_parts_have_is_told_of_whenever_it_is_marked() {
    let (space, p) = (AddressSpace::new(), page());
    // So that pages of 128 reported ones begin in the middle of a part.
    map_memory(&space, 0, 64 * p);
    map_memory(&space, 64 * p, 256 * p);
    space.logging_start(128 * p, &[]).unwrap();
    let all = || report(&space, 0, 320 * p, p).unwrap();
    for marked_before in 0..5 {
        let mut told = false;
        let mut found = Vec::new();
        for part in 0..5 {
            if part == marked_before {
                mark(&space, 70 * p, 1);
            }
            let mut bitmap = [0xa5; 8];
            told = space.report_part(part * 64 * p, 64 * p, p, &mut bitmap, told).unwrap();
            found.push(u64::from_le_bytes(bitmap));
        }
        let again = all();
        let whole = [0, !0, !0, 0, 0];
        match marked_before {
            0 | 1 => assert_eq!((&found[..], &again[..]), (&whole[..], &[0; 5][..]), "{marked_before}"),
            2 => assert_eq!((&found[..], &again[..]), (&[0, 0, !0, 0, 0][..], &whole[..])),
            _ => assert_eq!((&found[..], &again[..]), (&[0; 5][..], &whole[..]), "{marked_before}"),
        }
        assert_eq!(all(), [0; 5]);
    }
}

/// The same of a page that more than two parts have: only what each part before has told of is clean after the last.
#[test]
fn a_page_that_many_parts_have_is_told_of_whenever_it_is_marked() {
    let (space, p) = (AddressSpace::new(), page());
    map_memory(&space, 0, 64 * p);
    map_memory(&space, 64 * p, 512 * p);
    space.logging_start(256 * p, &[]).unwrap();
    let all = || report(&space, 0, 576 * p, p).unwrap();
    let whole = [0, !0, !0, !0, !0, 0, 0, 0, 0];
    for marked_before in 0..9 {
        let mut told = false;
        let mut found = Vec::new();
        for part in 0..9 {
            if part == marked_before {
                mark(&space, 70 * p, 1);
            }
            let mut bitmap = [0xa5; 8];
            told = space.report_part(part * 64 * p, 64 * p, p, &mut bitmap, told).unwrap();
            found.push(u64::from_le_bytes(bitmap));
        }
        let expected: Vec<_> =
            (0..9).map(|part| if part < marked_before { 0 } else { whole[part as usize] }).collect();
        assert_eq!(found, expected, "{marked_before}");
        let again = if marked_before < 2 { [0; 9] } else { whole };
        assert_eq!(all(), again, "{marked_before}");
        assert_eq!(all(), [0; 9], "{marked_before}");
    }
}

/// A report in parts tells of the same as a whole one, and leaves the same, wherever the ranges begin and end.
#[test]
fn parts_make_up_the_whole_whatever_ranges_there_are() {
    let p = page();
    for (first, count) in [(0, 320), (70, 1), (127, 1), (128, 1), (150, 1), (100, 60), (190, 10), (319, 1)] {
        let (space, ranges) = (AddressSpace::new(), [LoggingRange { iova: first * p, length: count * p }]);
        map_memory(&space, 0, 64 * p);
        map_memory(&space, 64 * p, 256 * p);
        space.logging_start(128 * p, &ranges).unwrap();
        let mark_all = || [(0, 64), (64, 256)].map(|(first, count)| mark(&space, first * p, count * p));
        mark_all();
        let expected = report(&space, 0, 320 * p, p).unwrap();
        assert_eq!(report(&space, 0, 320 * p, p), Ok(vec![0; 5]), "{first} {count}");
        mark_all();
        let mut told = false;
        let mut found = Vec::new();
        for part in 0..5 {
            let mut bitmap = [0xa5; 8];
            told = space.report_part(part * 64 * p, 64 * p, p, &mut bitmap, told).unwrap();
            found.push(u64::from_le_bytes(bitmap));
        }
        assert_eq!(found, expected, "{first} {count}");
        assert_eq!(report(&space, 0, 320 * p, p), Ok(vec![0; 5]), "{first} {count}");
    }
}

/// Whatever is marked before or between the parts of a report, this report or the next one tells of it, the one
/// after that of nothing, and none of pages that were not written to.
#[test]
fn no_write_between_parts_is_lost() {
    let p = page();
    let mut random = Random(1);
    for round in 0..2000 {
        let (space, regions, at) = some_regions(&mut random, 300);
        let (logged, reported) = (p << random.below(9), (p / 8) << random.below(6));
        let ranges: Vec<_> = (0..random.below(3))
            .map(|_| LoggingRange { iova: random.below(at), length: 1 + random.below(70 * p) })
            .collect();
        space.logging_start(logged, &ranges).unwrap();
        if at < reported {
            continue;
        }
        let mut marked = Vec::new();
        let mut mark_some = |most| {
            for _ in 0..random.below(most) {
                let (start, size) = regions[random.below(regions.len() as u64) as usize];
                let offset = random.below(size);
                mark(&space, start + offset, 1);
                let first = start + offset / logged * logged;
                let last = (first + logged).min(start + size) - 1;
                let is_in = |r: &LoggingRange| r.iova <= last && first < r.iova + r.length;
                if ranges.is_empty() || ranges.iter().any(is_in) {
                    marked.push((start + offset, first, last));
                }
            }
        };
        mark_some(5);
        let words = at.div_ceil(reported).div_ceil(64);
        let (mut told, mut from, mut found) = (false, 0, Vec::new());
        while from < words {
            let count = (1 + (round + from) % 3).min(words - from);
            let (iova, end) = (from * 64 * reported, ((from + count) * 64 * reported).min(at));
            let mut bitmap = vec![0xa5; 8 * count as usize];
            told = space.report_part(iova, end - iova, reported, &mut bitmap, told).unwrap();
            found.extend(bitmap.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
            from += count;
            mark_some(3);
        }
        let next = report(&space, 0, at, reported).unwrap();
        assert!(report(&space, 0, at, reported).unwrap().iter().all(|word| *word == 0), "{round}");
        let mut all: Vec<_> = found.iter().zip(&next).map(|(one, other)| one | other).collect();
        let mut may_be = vec![0_u64; all.len()];
        for (address, first, last) in marked {
            let bit = address / reported;
            assert_ne!(all[(bit / 64) as usize] >> (bit % 64) & 1, 0, "{round}: {address:#x}");
            (first / reported..=last / reported)
                .for_each(|bit| may_be[(bit / 64) as usize] |= 1 << (bit % 64));
        }
        all.iter_mut().zip(may_be).for_each(|(word, may_be)| *word &= !may_be);
        assert!(all.iter().all(|word| *word == 0), "{round}");
    }
}
