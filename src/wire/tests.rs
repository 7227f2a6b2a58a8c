//! The rules of each structure: what is valid, and what is not by one step.

use std::fmt::Debug;

use proptest::prelude::*;
use zerocopy::{Immutable, IntoBytes};

use super::limits::{HEADER_SIZE, MAX_BITMAP_SIZE, MAX_DATA_XFER_SIZE, MAX_ERRNO, MAX_MESSAGE_SIZE};
use super::*;

const MIB: u32 = MAX_DATA_XFER_SIZE as u32;

/// All of them are refused, with `EINVAL` and a rule, both by themselves and as
/// the payload of a message.
fn assert_refused<T: Request + IntoBytes + Immutable + Debug>(data: &[u8], bad: impl IntoIterator<Item = T>) {
    for request in bad {
        assert!(!request.is_valid(data), "{request:?}");
        assert!(Errno::EINVAL.take_rule().is_some(), "{request:?} is refused without a rule");
        let payload = [request.as_bytes(), data].concat();
        assert_eq!(T::parse(&payload).map(drop), Err(Errno::EINVAL), "{request:?}");
    }
}

/// All of them are taken, and found in a payload with the data behind them; what is
/// shorter than the structure is refused.
fn assert_taken<T: Request + IntoBytes + Immutable + Debug + PartialEq>(
    data: &[u8],
    good: impl IntoIterator<Item = T>,
) {
    for request in good {
        assert_eq!(request.check(data), Ok(()), "{request:?}");
        let payload = [request.as_bytes(), data].concat();
        let (found, behind) = T::parse(&payload).unwrap();
        assert_eq!((&found, behind), (&request, data));
        for len in 0..size_of::<T>() {
            assert!(T::parse(&payload[..len]).is_err(), "{len} bytes of {request:?}");
        }
    }
}

#[test]
fn of_a_header_the_size_is_that_of_a_message() {
    let size = |msg_size| Header::command(1, 9, msg_size).size();
    assert_eq!(size(HEADER_SIZE as u32), Ok(HEADER_SIZE));
    assert_eq!(size(MAX_MESSAGE_SIZE as u32), Ok(MAX_MESSAGE_SIZE));
    for bad in [0, 15, MAX_MESSAGE_SIZE as u32 + 1, u32::MAX] {
        assert_eq!(size(bad), Err(Errno::EINVAL), "{bad}");
    }
}

#[test]
fn a_request_is_a_command_with_a_payload_but_for_a_reset() {
    for cmd in 0..20 {
        assert!(Header::command(1, cmd, 17).is_request());
        assert_eq!(Header::command(1, cmd, 16).is_request(), cmd == 13, "{cmd}");
        assert!(!Header::command(1, cmd, 17).reply(17).is_request());
        for kind in 2..16 {
            assert!(!Header { flags: kind, ..Header::command(1, cmd, 17) }.is_request());
        }
    }
}

#[test]
fn a_failure_is_an_errno_or_stands_for_one() {
    let reply = Header::command(1, 11, 32).reply(32);
    assert_eq!(reply.failure(), None);
    let failed = |error_no| Header { error_no, ..reply.error_reply(Errno::EIO) }.failure();
    assert_eq!(failed(5), Some(Errno::EIO));
    assert_eq!(failed(MAX_ERRNO), Some(Errno::new(4096)));
    for bad in [0, MAX_ERRNO + 1, u32::MAX] {
        assert_eq!(failed(bad), Some(Errno::EINVAL), "{bad}");
    }
}

#[test]
fn versions() {
    assert_taken(b"{}\0", [0, 1, 2, u16::MAX].map(|minor| Version { major: 0, minor }));
    assert_refused(b"{}\0", [1, u16::MAX].map(|major| Version { major, minor: 0 }));
}

#[test]
fn what_asks_for_information_has_room_for_it() {
    let device = |argsz| DeviceInfo { argsz, flags: 7, num_regions: 7, num_irqs: 7 };
    assert_taken(&[], [16, 17, u32::MAX].map(device));
    assert_refused(&[1], [0, 15].map(device));
    let irq = |argsz| IrqInfo { argsz, flags: 7, index: u32::MAX, count: 7 };
    assert_taken(&[], [16, 17, u32::MAX].map(irq));
    assert_refused(&[1], [0, 15].map(irq));
    let region = |argsz| RegionInfo { argsz, flags: 7, index: u32::MAX, cap_offset: 7, size: 7, offset: 7 };
    assert_taken(&[], [32, 33, u32::MAX].map(region));
    assert_refused(&[1], [0, 31].map(region));
}

#[test]
fn what_asks_for_descriptors_says_nothing_else() {
    let ask = RegionIoFds { argsz: 16, flags: 0, index: u32::MAX, count: 0 };
    assert_taken(&[], [16, 17, MIB].map(|argsz| RegionIoFds { argsz, ..ask }));
    assert_refused(&[], [0, 15, MIB + 1, u32::MAX].map(|argsz| RegionIoFds { argsz, ..ask }));
    assert_refused(&[], [RegionIoFds { flags: 1, ..ask }, RegionIoFds { count: 1, ..ask }]);
}

#[test]
fn accesses_are_short_enough_and_end_before_the_last_offset() {
    let access = |offset, count| RegionAccess { offset, region: u32::MAX, count };
    assert_taken(&[], [access(0, 0), access(u64::MAX - 1, 0), access(u64::MAX - 1, 1), access(0, MIB)]);
    assert_refused(&[], [access(u64::MAX, 0), access(u64::MAX, 1), access(u64::MAX - 1, 2)]);
    assert_refused(&[], [access(0, MIB + 1), access(0, u32::MAX)]);
    assert_eq!(access(8, 4).end(), 12);
    assert_eq!(access(8, 4).check_written(4), Ok(()));
    for len in [0, 3, 5] {
        assert_eq!(access(8, 4).check_written(len), Err(Errno::EINVAL));
    }
}

#[test]
fn several_writes_are_as_many_as_they_say() {
    let head = |wr_cnt| WriteMultiHead { wr_cnt };
    assert_taken(&[], [head(0)]);
    assert_taken(&[0; 48], [head(2)]);
    assert_refused(&[0; 48], [head(0), head(1), head(3), head(u64::MAX), head(1 << 61)]);
    assert_refused(&[0; 47], [head(2), head(1)]);
    let entry = |offset, count| WriteMultiEntry { offset, region: 3, count, data: [0; 8] };
    assert_taken(&[], [entry(0, 0), entry(0, 8), entry(u64::MAX - 8, 8)]);
    assert_refused(&[], [entry(0, 9), entry(0, u32::MAX), entry(u64::MAX - 7, 8), entry(u64::MAX, 0)]);
    assert_eq!(entry(5, 6).access(), RegionAccess { offset: 5, region: 3, count: 6 });
}

#[test]
fn migration_data_have_the_room_that_they_take() {
    let data = |argsz, size| MigData { argsz, size };
    assert_taken(&[], [data(8, 0), data(12, 4), data(u32::MAX, u32::MAX - 8)]);
    assert_refused(&[], [data(7, 0), data(11, 4), data(0, u32::MAX), data(u32::MAX, u32::MAX - 7)]);
}

#[test]
fn maps_have_known_flags() {
    let map = |argsz, flags| DmaMap { argsz, flags, offset: 1, addr: u64::MAX, size: u64::MAX };
    assert_taken(&[], (0..16).map(|flags| map(32, flags)));
    assert_taken(&[], [map(u32::MAX, 0)]);
    assert_refused(&[], (4..32).map(|bit| map(32, 1 << bit | 3)));
    assert_refused(&[], [map(31, 3), map(0, 3)]);
}

#[test]
fn a_descriptor_of_a_map_is_reached_in_one_way() {
    for flags in 0..16 {
        let map = DmaMap { argsz: 32, flags, offset: 0, addr: 0, size: 4096 };
        // By neither (which stands for MMAP if one came), by MMAP, by FILE_IO, or by both.
        let (none, some) = [(true, true), (false, true), (false, true), (false, false)][flags as usize >> 2];
        assert_eq!(map.check_fds(0).is_ok(), none, "{flags}");
        assert_eq!(map.check_fds(1).is_ok(), some, "{flags}");
        assert_eq!(map.check_fds(2).is_ok(), some, "{flags}");
    }
}

#[test]
fn unmaps_are_of_a_range_with_or_without_its_bitmap_or_of_all() {
    let unmap = |argsz, flags, addr, size| DmaUnmap { argsz, flags, addr, size };
    assert_taken(&[], [unmap(24, 0, 0, 0), unmap(MIB, 0, u64::MAX, u64::MAX), unmap(24, 2, 0, 0)]);
    assert_refused(&[], [unmap(23, 0, 0, 0), unmap(MIB + 1, 0, 0, 0), unmap(23, 2, 0, 0)]);
    assert_refused(&[], [unmap(24, 2, 4096, 0), unmap(24, 2, 0, 4096)]);
    assert_refused(&[0; 16], (3..64).chain([1 << 31]).map(|flags| unmap(48, flags, 0, 0)));
    let bitmap = |size| Bitmap { pgsize: 4096, size };
    assert_taken(bitmap(8).as_bytes(), [unmap(48, 1, 0, 4096), unmap(MIB, 1, 0, 4096)]);
    assert_refused(bitmap(8).as_bytes(), [unmap(47, 1, 0, 4096)]);
    assert_refused(bitmap(u64::MAX).as_bytes(), [unmap(MIB, 1, 0, 4096)]);
    assert_refused(&bitmap(8).as_bytes()[..15], [unmap(48, 1, 0, 4096)]);
}

#[test]
fn bitmaps_are_those_of_their_range() {
    let bitmap = |pgsize, size| Bitmap { pgsize, size };
    assert_eq!(bitmap(4096, 16).check_range(65 << 12), Ok(()));
    for bad in [bitmap(4096, 8), bitmap(4096, 24), bitmap(0, 16), bitmap(66 << 12, 8)] {
        assert_eq!(bad.check_range(65 << 12), Err(Errno::EINVAL), "{bad:?}");
    }
}

#[test]
fn bitmap_sizes() {
    for (length, page_size, size) in [
        (1, 1, Ok(8)),
        (64, 1, Ok(8)),
        (65, 1, Ok(16)),
        (8 << 40, 4096, Ok(MAX_BITMAP_SIZE)),
        ((8 << 40) + 1, 4096, Err(Errno::EINVAL)),
        (u64::MAX, 1, Err(Errno::EINVAL)),
        (u64::MAX, u64::MAX, Ok(8)),
        (u64::MAX, 1 << 63, Ok(8)),
        (10, 11, Err(Errno::EINVAL)),
        (10, 0, Err(Errno::EINVAL)),
        (0, 0, Err(Errno::EINVAL)),
        (0, 1, Err(Errno::EINVAL)),
    ] {
        assert_eq!(bitmap_size(length, page_size), size, "{length} {page_size}");
    }
}

#[test]
fn an_answer_to_a_write_repeats_address_and_count() {
    let access = DmaAccess { addr: 0x1122_3344_5566, count: 0x708 };
    let echo = access.as_bytes();
    assert!(access.is_echoed(echo));
    assert!(access.is_echoed(&echo[..12]), "a count of four bytes");
    for len in (0..12).chain(13..16) {
        assert!(!access.is_echoed(&echo[..len]), "{len}");
    }
    assert!(!access.is_echoed(&[echo, &[0]].concat()));
    for at in 0..16 {
        let mut other = access;
        other.as_mut_bytes()[at] ^= 1;
        assert!(!access.is_echoed(other.as_bytes()), "byte {at}");
        assert_eq!(access.is_echoed(&other.as_bytes()[..12]), at >= 12, "byte {at}");
    }
}

#[test]
fn ranges_to_log_are_there_and_have_an_end() {
    let control = |page_size, num_ranges| LoggingControl { page_size, num_ranges, reserved: 7 };
    let range = |iova, length| LoggingRange { iova, length };
    let good = [range(0, 1), range(u64::MAX, 1), range(1, u64::MAX)];
    assert_taken(&[], [control(1, 0), control(4096, 0), control(1 << 63, 0)]);
    assert_taken(good.as_bytes(), (0..=3).map(|count| control(4096, count)));
    assert_refused(good.as_bytes(), [control(4096, 4), control(4096, u32::MAX)]);
    assert_refused(&good.as_bytes()[..47], [control(4096, 3)]);
    assert_refused(&[], [control(0, 0), control(3000, 0), control(u64::MAX, 0)]);
    for bad in [range(0, 0), range(1, 0), range(2, u64::MAX), range(u64::MAX, 2)] {
        assert_refused([good[0], bad].as_bytes(), [control(4096, 2)]);
        assert_taken([good[0], bad].as_bytes(), [control(4096, 1)]);
    }
    assert_eq!(control(4096, 2).ranges(good.as_bytes()).collect::<Vec<_>>(), good[..2]);
    assert_eq!(range(2, 3).last(), Ok(4));
}

#[test]
fn reports_have_room_for_their_bitmap() {
    let report = LoggingReport { iova: u64::MAX, length: 65 << 12, page_size: 4096 };
    assert_taken(&[], [report]);
    assert_refused(&[], [0, 66 << 12].map(|page_size| LoggingReport { page_size, ..report }));
    let get = |argsz| DeviceFeature { argsz, flags: FeatureFlags::GET.bits() | 8 };
    assert_taken(report.as_bytes(), [get(48), get(u32::MAX)]);
    assert_refused(report.as_bytes(), [get(47), get(32), get(0)]);
    assert_refused(&report.as_bytes()[..23], [get(48)]);
}

#[test]
fn features_have_some_operations_and_any_can_be_probed() {
    for number in (0..16).chain([0xffff]) {
        for operations in 0..16_u32 {
            let flags = operations << 16 | number;
            let feature = DeviceFeature { argsz: 1 << 20, flags };
            let (can_get, can_set) = match number {
                1 | 8 => (true, false),
                2 => (true, true),
                6 | 7 => (false, true),
                _ => (false, false),
            };
            let (get, set, probe) = (operations & 1 != 0, operations & 2 != 0, operations & 4 != 0);
            let is_known = can_get || can_set;
            let has_operations = (!get || can_get) && (!set || can_set) && operations & 8 == 0;
            let is_one = probe || get != set;
            // Data that serve whatever is got or set.
            let data = [4096_u64, 0, 4096];
            let mut data: Vec<u8> = data.as_bytes().to_vec();
            if number == 8 {
                data = LoggingReport { iova: 0, length: 1 << 20, page_size: 4096 }.as_bytes().to_vec();
            }
            assert_eq!(feature.is_valid(&data), is_known && has_operations && is_one, "{flags:#x}");
        }
    }
}

#[test]
fn of_what_is_set_or_probed_argsz_covers_the_data() {
    let feature =
        |argsz, operation: FeatureFlags, number| DeviceFeature { argsz, flags: operation.bits() | number };
    for operation in [FeatureFlags::SET, FeatureFlags::PROBE, FeatureFlags::SET | FeatureFlags::PROBE] {
        assert_taken(&[0; 8], [feature(16, operation, 2), feature(u32::MAX, operation, 2)]);
        assert_refused(&[0; 8], [feature(15, operation, 2), feature(0, operation, 2)]);
    }
    // A state that is none is for the device to refuse; one that is not there is not.
    assert_taken(&[0xff; 8], [feature(16, FeatureFlags::SET, 2)]);
    assert_refused(&[0; 7], [feature(16, FeatureFlags::SET, 2)]);
    assert_taken(&[], [feature(8, FeatureFlags::SET, 7), feature(8, FeatureFlags::PROBE, 2)]);
    assert_refused(&[0; 15], [feature(32, FeatureFlags::SET, 6)]);
    assert_refused(&[0; 16], [feature(32, FeatureFlags::SET, 6)]);
    for number in [1, 2] {
        assert_taken(&[], [feature(16, FeatureFlags::GET, number)]);
        assert_refused(&[], [feature(15, FeatureFlags::GET, number)]);
    }
}

proptest! {
    /// Against the specification's sentences, said once more.
    #[test]
    fn changes_of_interrupts(
        flags in 0..128_u32,
        argsz in prop::sample::select(vec![0, 19, 20, 21, u32::MAX]),
        start in prop::sample::select(vec![0, 1, 2, u32::MAX - 1, u32::MAX]),
        count in prop::sample::select(vec![0, 1, 2, 3, u32::MAX]),
        len in 0..4_usize,
        fds in 0..4_usize,
    ) {
        let request = IrqSet { argsz, flags, index: 9, start, count };
        let [none, bool, eventfd, mask, unmask, trigger] = [0, 1, 2, 3, 4, 5].map(|bit| flags >> bit & 1 == 1);
        let one_of = |bits: [bool; 3]| bits.iter().filter(|bit| **bit).count() == 1;
        let expected = argsz >= 20
            && one_of([none, bool, eventfd])
            && one_of([mask, unmask, trigger])
            && (!bool || len == count as usize)
            && (count > 0 || none && trigger && start == 0)
            && u64::from(start) + u64::from(count) <= u64::from(u32::MAX)
            && (!eventfd || trigger);
        let data = vec![1; len];
        prop_assert_eq!(request.is_valid(&data), expected, "{:?}", request);
        if expected {
            let are_right = fds == 0 || eventfd && fds == count as usize;
            prop_assert_eq!(request.check_fds(fds).is_ok(), are_right, "{:?} {}", request, fds);
        } else {
            assert_refused(&data, [request]);
        }
    }

    /// Whatever comes, it is judged, and what is taken is what came.
    #[test]
    fn anything_can_be_judged(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
        fn judge<T: Request + IntoBytes + Immutable>(bytes: &[u8]) {
            if let Ok((request, data)) = T::parse(bytes) {
                assert!(request.is_valid(data));
                assert_eq!([request.as_bytes(), data].concat(), bytes);
            }
        }
        judge::<Version>(&bytes);
        judge::<DeviceInfo>(&bytes);
        judge::<RegionInfo>(&bytes);
        judge::<RegionIoFds>(&bytes);
        judge::<IrqInfo>(&bytes);
        judge::<IrqSet>(&bytes);
        judge::<RegionAccess>(&bytes);
        judge::<WriteMultiHead>(&bytes);
        judge::<WriteMultiEntry>(&bytes);
        judge::<DmaMap>(&bytes);
        judge::<DmaUnmap>(&bytes);
        judge::<DeviceFeature>(&bytes);
        judge::<LoggingControl>(&bytes);
        judge::<LoggingReport>(&bytes);
        judge::<MigData>(&bytes);
    }
}
