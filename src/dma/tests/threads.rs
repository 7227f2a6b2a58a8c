//! Several threads at once.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;

use super::*;

/// Pages are marked while they are reported: each must be in one report.
fn no_mark_is_lost(pages: u64, span: u64, reported_shift: u32, rounds: u32) {
    const MARKERS: u64 = 3;
    let space = AddressSpace::new();
    let size = pages * page();
    space.map(request(0, size, Access::FileIo, Some(&memory(page())))).unwrap();
    space.logging_start(page(), &[]).unwrap();
    let mut lost = 0;
    let (begin, running) = (Barrier::new(MARKERS as usize + 1), AtomicU32::new(0));
    thread::scope(|scope| {
        for marker in 0..MARKERS {
            let (space, begin, running) = (&space, &begin, &running);
            scope.spawn(move || {
                for _ in 0..rounds {
                    begin.wait();
                    for first in (0..pages).step_by(span as usize) {
                        if first / span % MARKERS == marker {
                            mark(space, first * page(), span.min(pages - first) * page());
                        }
                    }
                    running.fetch_sub(1, SeqCst);
                    begin.wait();
                }
            });
        }
        for _ in 0..rounds {
            running.store(MARKERS as u32, SeqCst);
            begin.wait();
            let mut seen = Vec::new();
            let mut is_last = false;
            while !is_last {
                is_last = running.load(SeqCst) == 0;
                let found = report(&space, 0, size, page() << reported_shift).unwrap();
                seen.resize(found.len(), 0);
                seen.iter_mut().zip(found).for_each(|(seen, found)| *seen |= found);
            }
            let count: u32 = seen.iter().map(|word: &u64| word.count_ones()).sum();
            lost += pages.div_ceil(1 << reported_shift) - u64::from(count);
            begin.wait();
        }
    });
    // Not in the loop, where it would leave the markers waiting.
    assert_eq!(lost, 0);
}

#[test]
fn no_single_page_is_lost() {
    no_mark_is_lost(64 * 32, 1, 0, 1500);
}

#[test]
fn no_page_of_a_small_region_is_lost() {
    no_mark_is_lost(50, 1, 0, 10_000);
}

#[test]
fn no_span_is_lost() {
    no_mark_is_lost(64 * 1024 * 2 + 100, 200, 0, 100);
}

#[test]
fn no_page_is_lost_at_coarse_reports() {
    no_mark_is_lost(64 * 64, 3, 3, 300);
}

/// What a client has that copies the pages which reports of parts tell of, while threads write
/// to a few places, again and again: each time that they pause, all that was written.
fn what_is_copied_is_what_was_written(logged_shift: u32, rounds: u32) {
    const UNITS: u64 = 32_768 * 3 + 1000;
    const MARKERS: u64 = 3;
    let (unit, space) = (page(), AddressSpace::new());
    space.map(request(0, UNITS * unit, Access::FileIo, Some(&memory(unit)))).unwrap();
    space.logging_start(unit << logged_shift, &[]).unwrap();
    let written: Vec<AtomicU32> = (0..UNITS).map(|_| AtomicU32::new(0)).collect();
    let mut copied = vec![0; UNITS as usize];
    // Close to where words, groups and the region end.
    let ends = [0, 64, 128, 32_768, 2 * 32_768, 3 * 32_768, UNITS >> logged_shift];
    let place = |random: &mut Random| {
        let end = ends[random.below(7) as usize] << logged_shift;
        (end + random.below(12)).saturating_sub(6).min(UNITS - 1)
    };
    let mut missing = Vec::new();
    let (begin, running) = (Barrier::new(MARKERS as usize + 1), AtomicU32::new(0));
    thread::scope(|scope| {
        for seed in 1..=MARKERS {
            let (space, written, begin, running) = (&space, &written, &begin, &running);
            scope.spawn(move || {
                let mut random = Random(seed);
                for _ in 0..rounds {
                    begin.wait();
                    for _ in 0..random.below(100) {
                        let first = place(&mut random);
                        let most = if random.below(8) == 0 { 700 } else { 4 };
                        let last = (first + random.below(most)).min(UNITS - 1);
                        for at in first..=last {
                            written[at as usize].fetch_add(1, Relaxed);
                        }
                        let entry = entry(space, first * unit, (last - first + 1) * unit, Prot::WRITE);
                        // As `vfu_sgl_put` does.
                        let shift = space.page_shift();
                        if !space.is_marked(&entry, shift) && !space.try_mark(&entry, shift) {
                            space.mark_dirty(&entry);
                        }
                    }
                    running.fetch_sub(1, SeqCst);
                    begin.wait();
                }
            });
        }
        let mut random = Random(9);
        for _ in 0..rounds {
            running.store(MARKERS as u32, SeqCst);
            begin.wait();
            let mut is_last = false;
            while !is_last {
                is_last = running.load(SeqCst) == 0;
                let first = place(&mut random) >> logged_shift << logged_shift;
                let length = match random.below(4) {
                    0 => UNITS,
                    1 => place(&mut random).saturating_sub(first),
                    _ => random.below(200),
                };
                let length = length.clamp(1, UNITS - first);
                let (first, length) = if is_last { (0, UNITS) } else { (first, length) };
                let shift = (random.below(4) as u32).min(length.ilog2());
                let found = report(&space, first * unit, length * unit, unit << shift).unwrap();
                for (number, word) in found.iter().enumerate().filter(|(_, word)| **word != 0) {
                    for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                        let from = first + ((number as u64 * 64 + bit) << shift);
                        for at in from..(from + (1 << shift)).min(UNITS) {
                            copied[at as usize] = written[at as usize].load(Relaxed);
                        }
                    }
                }
            }
            for end in ends.map(|end| end << logged_shift) {
                let near = end.saturating_sub(8)..(end + 720).min(UNITS);
                missing.extend(near.filter(|at| {
                    let at = *at as usize;
                    copied[at] != written[at].load(Relaxed)
                }));
            }
            begin.wait();
        }
    });
    // Not in the loop, where it would leave the markers waiting.
    assert_eq!(missing, Vec::<u64>::new());
}

#[test]
fn what_reports_of_parts_tell_of_is_all_that_was_written() {
    what_is_copied_is_what_was_written(0, ROUNDS);
}

#[test]
fn what_reports_of_parts_of_larger_pages_tell_of_is_all_that_was_written() {
    what_is_copied_is_what_was_written(2, ROUNDS);
}

const ROUNDS: u32 = 300;

/// Entries are used while regions come and go: an entry is what was asked for,
/// or fails.
#[test]
fn translating_while_mapping() {
    const PLACES: u64 = 600;
    let place = |i: u64| i * 0x10_0000;
    let size = |i: u64| (i % 7 + 1) * page();
    let space = AddressSpace::new();
    let fd = memory(8 * page());
    let map = |i: u64| {
        let access = if i.is_multiple_of(3) { Access::Mmap } else { Access::FileIo };
        space.map(request(place(i), size(i), access, Some(&fd))).unwrap().region
    };
    // Every fourth stays.
    for i in (0..PLACES).step_by(4) {
        map(i);
    }
    space.logging_start(page(), &[]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 1..=3_u64 {
            let (space, done) = (&space, &done);
            scope.spawn(move || {
                let mut random = seed;
                let (mut good, mut kept) = (0_u64, SgEntry::ZERO);
                while !done.load(Relaxed) || good == 0 {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let i = (random >> 33) % PLACES;
                    let iova = place(i) + (random >> 20) % size(i);
                    let Ok((list, _)) = entries(space, iova, 1, Prot::WRITE, 1) else {
                        assert!(!i.is_multiple_of(4), "what stays is always found");
                        continue;
                    };
                    let range = space.range_of(&list[0]);
                    match (space.get(&list[0]), i % 3) {
                        (Ok(iov), 0) => assert_eq!(iov.iov_len, 1),
                        (Err(Errno::EFAULT), 1 | 2) | (Err(Errno::EINVAL), _) => {}
                        other => panic!("{other:?}"),
                    }
                    assert!(range.is_ok() || !i.is_multiple_of(4));
                    if let Ok(range) = range {
                        assert_eq!(range.iova, iova);
                        good += 1;
                    }
                    space.mark_dirty(&list[0]);
                    space.mark_dirty(&kept);
                    kept = list[0];
                }
            });
        }
        for round in 0..30 {
            let regions: Vec<_> = (0..PLACES).filter(|i| i % 4 != 0).map(|i| (i, map(i))).collect();
            if round % 8 == 0 {
                space.logging_stop();
                space.logging_start(page() << (round % 3), &[]).unwrap();
            }
            for (i, region) in regions {
                let old = entry(&space, place(i), 1, Prot::WRITE);
                space.remove(region);
                assert!(space.range_of(&old).is_err());
                assert!(entries(&space, place(i), 1, Prot::WRITE, 1).is_err());
            }
        }
        done.store(true, Relaxed);
    });
    assert_eq!(space.len(), PLACES / 4);
}

#[test]
fn address_spaces_of_many_threads_share_files() {
    let fd = memory(8 * page());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..500 {
                    let space = AddressSpace::new();
                    for i in 0..4 {
                        let access = if i == round % 4 { Access::Mmap } else { Access::FileIo };
                        space.map(request(i * page(), page(), access, Some(&fd))).unwrap();
                    }
                    let entry = entry(&space, 0, 4, Prot::READ);
                    // SAFETY: four bytes are asked for.
                    unsafe { space.read(&entry, [0; 4].as_mut_ptr()) }.unwrap();
                }
            });
        }
    });
}

/// The same without a system call, and small: for miri, which tries the orders
/// in which other threads may see what one writes.
#[test]
fn translating_while_mapping_in_any_memory_order() {
    const PLACES: u64 = 4;
    let rounds = if cfg!(miri) { 12 } else { 2000 };
    let space = AddressSpace::new();
    let place = |i: u64| i * 0x10_0000;
    let size = |i: u64| (i + 1) * 0x1000;
    let map = |i: u64| {
        let prot = Prot::READ | Prot::WRITE;
        let request = MapRequest {
            iova: place(i),
            size: size(i),
            prot,
            access: Access::Message,
            file: None,
            offset: 0,
        };
        space.map(request).unwrap().region
    };
    map(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (space, done) = (&space, &done);
            scope.spawn(move || {
                let mut kept = [SgEntry::ZERO; PLACES as usize];
                while !done.load(Relaxed) {
                    for i in 0..PLACES {
                        let iova = place(i) + size(i) - 8;
                        let Ok((list, _)) = entries(space, iova, 8, Prot::WRITE, 1) else {
                            assert!(i > 0, "what stays is always found");
                            continue;
                        };
                        for entry in [list[0], kept[i as usize]] {
                            match space.range_of(&entry) {
                                Ok(range) => assert_eq!((range.iova, range.length), (iova, 8)),
                                Err(errno) => {
                                    assert!(errno == Errno::EINVAL && (i > 0 || entry == SgEntry::ZERO))
                                }
                            }
                            // By messages, so never mapped: whatever is read, no address comes of it.
                            assert!(space.get(&entry).is_err());
                        }
                        kept[i as usize] = list[0];
                    }
                }
            });
        }
        for round in 0..rounds {
            let i = round % (PLACES - 1) + 1;
            let region = map(i);
            let old = entry(&space, place(i), 1, Prot::WRITE);
            space.remove(region);
            assert!(space.range_of(&old).is_err());
        }
        done.store(true, Relaxed);
    });
}

/// Entries are used while all regions go, and the memory that told of them, and
/// others come to the same places.
#[test]
fn translating_while_memory_goes() {
    const PLACES: u64 = 600;
    let place = |i: u64| i * 0x10_0000;
    let space = AddressSpace::new();
    let fd = memory(page());
    let (stop, found) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for thread in 0..2 {
            let (space, stop, found) = (&space, &stop, &found);
            scope.spawn(move || {
                let mut i = thread;
                while !stop.load(Relaxed) {
                    i = (i + 7) % PLACES;
                    let Ok((entries, _)) = entries(space, place(i) + 8, 16, Prot::READ, 1) else { continue };
                    let entry = entries[0];
                    let mut bytes = [0; 16];
                    let copied = space.copy_from(place(i) + 8, &mut bytes);
                    assert!(matches!(copied, Ok(()) | Err(Errno::ENOENT | Errno::EINVAL)));
                    if let Ok(range) = space.range_of(&entry) {
                        assert_eq!((range.iova, range.length), (place(i) + 8, 16));
                        found.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        let mut rounds = 0;
        while rounds < 10 || found.load(Relaxed) < 100 {
            rounds += 1;
            for i in 0..PLACES {
                let access = if i.is_multiple_of(3) { Access::Mmap } else { Access::FileIo };
                space.map(request(place(i), page(), access, Some(&fd))).unwrap();
            }
            let old = entry(&space, place(5), 1, Prot::READ);
            assert_eq!(remove_range(&space, 0, u64::MAX), Ok(PLACES));
            assert_eq!(space.range_of(&old), Err(Errno::EINVAL));
            let again = space.map(request(place(5), page(), Access::FileIo, Some(&fd))).unwrap();
            assert_eq!(space.range_of(&old), Err(Errno::EINVAL));
            space.remove(again.region);
        }
        stop.store(true, Relaxed);
    });
}
