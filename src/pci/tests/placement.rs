use proptest::prelude::*;

use super::*;

#[test]
fn a_standard_capability_is_at_0x40_and_the_next_behind_it() {
    let mut pci = device(PciType::Express);
    assert_eq!(add(&mut pci, 0, 0, &pm()), Ok(0x40));
    assert_eq!(add(&mut pci, 0, CALLBACK, &vendor(6)), Ok(0x48));
    assert_eq!(add(&mut pci, 0, READONLY, &vendor(8)), Ok(0x50));
    assert_eq!(add(&mut pci, 0x80, 0, &vendor(13)), Ok(0x80));
    assert_eq!(add(&mut pci, 0x90, 0, &vendor(13)), Ok(0x90));
    assert_eq!(bytes(&pci, 0x34, 1), [0x40]);
    for (at, next) in [(0x40, 0x48), (0x48, 0x50), (0x50, 0x80), (0x80, 0x90), (0x90, 0)] {
        assert_eq!(bytes(&pci, at + 1, 1), [next]);
    }
    assert_eq!(bytes(&pci, 0x80, 13), {
        let mut linked = vendor(13);
        linked[1] = 0x90;
        linked
    });
}

#[test]
fn an_extended_capability_is_at_0x100_and_the_next_behind_it() {
    let mut pci = device(PciType::Express);
    assert_eq!(add(&mut pci, 0x104, EXTENDED, &serial_number()), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 0, EXTENDED, &serial_number()), Ok(0x100));
    assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(13)), Ok(0x10c));
    assert_eq!(add(&mut pci, 0, EXTENDED | CALLBACK, &extended_vendor(8)), Ok(0x11c));
    assert_eq!(add(&mut pci, 0x200, EXTENDED, &extended_vendor(24)), Ok(0x200));
    assert_eq!(add(&mut pci, 0x258, EXTENDED, &extended_vendor(28)), Ok(0x258));
    let links = [(0x100, 0x10c), (0x10c, 0x11c), (0x11c, 0x200), (0x200, 0x258), (0x258, 0)];
    for (at, next) in links {
        let link = pci.space().unwrap().read_u16(at + 2).unwrap();
        assert_eq!(link, next << 4 | 1, "the version stays");
    }
    assert_eq!(bytes(&pci, 0x104, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn linking_keeps_the_id_and_version_of_the_previous_one() {
    let mut pci = device(PciType::Express);
    let mut version_5 = serial_number();
    version_5[2] = 5;
    add(&mut pci, 0, EXTENDED, &version_5).unwrap();
    add(&mut pci, 0, EXTENDED, &extended_vendor(8)).unwrap();
    assert_eq!(pci.space().unwrap().read_u32(0x100), Ok(0x10c5_0003));
}

#[test]
fn capabilities_of_a_config_dump() {
    let mut pci = device(PciType::Express);
    assert_eq!(add(&mut pci, 0, 0, &[1, 0, 0, 0, 8, 0, 0, 0]), Ok(0x40));
    assert_eq!(add(&mut pci, 0, 0, &vendor(16)), Ok(0x48));
    assert_eq!(add(&mut pci, 0, 0, &standard(0x10, 60)), Ok(0x58));
    assert_eq!(add(&mut pci, 0, EXTENDED, &serial_number()), Ok(0x100));
    assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(16)), Ok(0x10c));
    assert_eq!(add(&mut pci, 0x400, EXTENDED, &extended_vendor(16)), Ok(0x400));
}

#[test]
fn the_links_in_the_data_are_not_taken_over() {
    let mut pci = device(PciType::Express);
    let mut linked = pm();
    linked[1] = 0x77;
    add(&mut pci, 0, 0, &linked).unwrap();
    assert_eq!(bytes(&pci, 0x40, 2), [1, 0]);
    let mut linked = serial_number();
    linked[2..4].copy_from_slice(&[0xf1, 0xff]);
    add(&mut pci, 0, EXTENDED, &linked).unwrap();
    assert_eq!(bytes(&pci, 0x100, 4), [3, 0, 1, 0]);
}

/// The checks in their order: each fails also with all later faults.
#[test]
fn refusals_in_their_order() {
    let mut pci = device(PciType::Conventional);
    let unknown = |_| 0xff;
    let add = |pci: &mut Pci, pos, flags, callback| pci.add_capability(pos, flags, callback, &unknown);
    assert_eq!(add(&mut pci, 256, 999, false), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 256, -1, true), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 256, CALLBACK, false), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 256, EXTENDED, true), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 256, CALLBACK, true), Err(Errno::ENOTSUP));
    let mut express = device(PciType::Express);
    assert_eq!(add(&mut express, 4096, EXTENDED, true), Err(Errno::ENOTSUP));
    for bus in [PciType::Conventional, PciType::PciX1] {
        let mut pci = device(bus);
        assert_eq!(super::add(&mut pci, 0, EXTENDED, &serial_number()), Err(Errno::EINVAL));
    }
    assert_eq!(super::add(&mut Pci::new(), 0, 0, &pm()), Err(Errno::EINVAL), "no space");
    assert_eq!(super::add(&mut device(PciType::PciX2), 0, EXTENDED, &serial_number()), Ok(0x100));
}

#[test]
fn every_id_but_the_known_ones_is_unsupported() {
    for id in 0..=0xffff_u16 {
        let data = |i: usize| match i {
            0 | 1 => id.to_le_bytes()[i],
            2 | 6 | 7 => 0x20,
            _ => 0,
        };
        let mut pci = device(PciType::Express);
        let extended = pci.add_capability(0, EXTENDED, false, &data);
        let known = [0x0003, 0x000b].contains(&id);
        assert_eq!(extended, if known { Ok(0x100) } else { Err(Errno::ENOTSUP) });
        let standard = pci.add_capability(0, 0, false, &data);
        let known = [0x01, 0x05, 0x09, 0x10, 0x11].contains(&(id as u8));
        assert_eq!(standard, if known { Ok(0x40) } else { Err(Errno::ENOTSUP) });
    }
}

#[test]
fn bad_positions() {
    let mut pci = device(PciType::Conventional);
    for pos in [4, 0x3c, 0x41, 0x42, 249, 252, 255, 256, 4096, usize::MAX, usize::MAX - 3] {
        assert_eq!(add(&mut pci, pos, 0, &pm()), Err(Errno::EINVAL), "{pos}");
    }
    let mut pci = device(PciType::Express);
    for pos in [0x100, 0x200, 0xfc] {
        assert_eq!(add(&mut pci, pos, 0, &pm()), Err(Errno::EINVAL), "{pos}");
    }
    add(&mut pci, 0, EXTENDED, &serial_number()).unwrap();
    for pos in [4, 0xfc, 0x100, 0x108, 0x201, 0x202, 4088, 4094, 4096, usize::MAX] {
        assert_eq!(add(&mut pci, pos, EXTENDED, &serial_number()), Err(Errno::EINVAL), "{pos}");
    }
    assert_eq!(bytes(&pci, 0x100, 4), [3, 0, 1, 0]);
}

#[test]
fn touching_ranges_do_not_overlap_and_the_end_is_inside() {
    let mut pci = device(PciType::Conventional);
    assert_eq!(add(&mut pci, 0xf8, 0, &pm()), Ok(0xf8));
    assert_eq!(add(&mut pci, 0xf0, 0, &pm()), Ok(0xf0));
    assert_eq!(add(&mut pci, 0xf4, 0, &pm()), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 0xe8, 0, &vendor(9)), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 0xe8, 0, &vendor(8)), Ok(0xe8));
    assert_eq!(add(&mut pci, 0, 0, &pm()), Ok(0x40), "no room behind the last: the lowest gap");
    let mut pci = device(PciType::Express);
    add(&mut pci, 0, EXTENDED, &serial_number()).unwrap();
    assert_eq!(add(&mut pci, 4084, EXTENDED, &serial_number()), Ok(4084));
}

#[test]
fn automatic_placement_avoids_what_stands_higher() {
    let mut pci = device(PciType::Conventional);
    assert_eq!(add(&mut pci, 0x48, 0, &pm()), Ok(0x48));
    assert_eq!(add(&mut pci, 0x40, 0, &pm()), Ok(0x40));
    assert_eq!(add(&mut pci, 0, 0, &pm()), Ok(0x50), "0x48, behind the last of the chain, is taken");
}

#[test]
fn vendor_sizes_below_the_header_are_refused() {
    for size in 0..3 {
        let mut pci = device(PciType::Express);
        assert_eq!(add(&mut pci, 0, 0, &[0x09, 0, size]), Err(Errno::EINVAL));
    }
    for size in 0..8 {
        let mut pci = device(PciType::Express);
        let mut small = extended_vendor(8);
        small[4..8].copy_from_slice(&(size << 20 | 0xf_ffff_u32).to_le_bytes());
        assert_eq!(add(&mut pci, 0, EXTENDED, &small), Err(Errno::EINVAL));
    }
    let mut pci = device(PciType::Express);
    assert_eq!(add(&mut pci, 0, 0, &vendor(3)), Ok(0x40));
    assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(8)), Ok(0x100));
}

#[test]
fn no_room_is_enospc() {
    let mut pci = device(PciType::Conventional);
    assert_eq!(add(&mut pci, 0, 0, &vendor(193)), Err(Errno::ENOSPC));
    assert_eq!(add(&mut pci, 0, 0, &vendor(189)), Ok(0x40));
    assert_eq!(add(&mut pci, 0, 0, &vendor(3)), Err(Errno::ENOSPC));
    let mut pci = device(PciType::Express);
    assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(3841)), Err(Errno::ENOSPC));
    assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(3840)), Ok(0x100));
    assert_eq!(add(&mut pci, 0, EXTENDED, &serial_number()), Err(Errno::ENOSPC));
}

#[test]
fn the_129th_extended_capability_is_enospc() {
    let mut pci = device(PciType::Express);
    for n in 0..128 {
        assert_eq!(add(&mut pci, 0, EXTENDED, &extended_vendor(8)), Ok(0x100 + 8 * n));
    }
    assert_eq!(add(&mut pci, 0x800, EXTENDED, &extended_vendor(8)), Err(Errno::ENOSPC));
    assert_eq!(pci.add_capability(0, EXTENDED, false, &|_| 0xff), Err(Errno::ENOSPC), "before the id");
    assert_eq!(add(&mut pci, 0, 0, &pm()), Ok(0x40), "the other list has its own count");
}

#[test]
fn capabilities_that_the_device_put_there_itself_are_linked_and_spared() {
    let mut pci = device(PciType::Express);
    let space = pci.space().unwrap();
    space.write_u8(0x34, 0x60).unwrap();
    space.write(0x60, &[0x12, 0x40]).unwrap();
    space.write(0x40, &[0x05, 0]).unwrap();
    assert_eq!(add(&mut pci, 0x50, 0, &pm()), Err(Errno::EINVAL), "MSI has 24 bytes");
    assert_eq!(add(&mut pci, 0x5c, 0, &pm()), Err(Errno::EINVAL));
    assert_eq!(add(&mut pci, 0x60, 0, &pm()), Err(Errno::EINVAL), "unknown, but its header is there");
    assert_eq!(add(&mut pci, 0, 0, &pm()), Ok(0x58));
    assert_eq!(bytes(&pci, 0x40, 2), [0x05, 0x58]);
}

#[test]
fn a_broken_chain_is_refused_and_a_circle_is_cut() {
    let mut pci = device(PciType::Express);
    add(&mut pci, 0, EXTENDED, &serial_number()).unwrap();
    pci.space().unwrap().write_u16(0x102, 0xfff1).unwrap();
    assert_eq!(add(&mut pci, 0, EXTENDED, &serial_number()), Err(Errno::EINVAL));
    pci.space().unwrap().write_u16(0x102, 0x1001).unwrap();
    assert_eq!(add(&mut pci, 0, EXTENDED, &serial_number()), Ok(0x10c));
    assert_eq!(pci.space().unwrap().read_u16(0x102), Ok(0x10c1));
}

fn standard_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(pm()),
        Just(standard(0x05, 24)),
        Just(standard(0x10, 60)),
        Just(standard(0x11, 12)),
        (3_u8..60).prop_map(vendor),
    ]
}

fn extended_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(serial_number()), (8_u16..700).prop_map(extended_vendor)]
}

/// Position (0 for automatic) and bytes of a capability to add.
fn request() -> impl Strategy<Value = (usize, i32, Vec<u8>)> {
    let standard_pos =
        prop_oneof![3 => Just(0), 2 => (0x10_usize..0x42).prop_map(|n| n * 4), 1 => 0..0x110_usize];
    let extended_pos =
        prop_oneof![3 => Just(0), 2 => (0x40_usize..0x402).prop_map(|n| n * 4), 1 => 0..0x1010_usize];
    prop_oneof![(standard_pos, Just(0), standard_bytes()), (extended_pos, Just(EXTENDED), extended_bytes()),]
}

/// What must hold whatever was added.
fn check_invariants(pci: &Pci) {
    let all = pci.capabilities();
    for (i, one) in all.iter().enumerate() {
        let room = if one.list() == List::Standard { 0x40..0x100 } else { 0x100..0x1000 };
        assert!(one.offset.is_multiple_of(4));
        assert!(one.offset >= room.start && one.range().end <= room.end, "{one:?}");
        for other in &all[..i] {
            assert!(one.range().end <= other.offset || other.range().end <= one.offset);
        }
    }
    for list in [List::Standard, List::Extended] {
        let chain: Vec<_> = Chain::new(pci.space().unwrap(), list).unwrap().map(Result::unwrap).collect();
        let added: Vec<_> = all.iter().filter(|c| c.list() == list).map(|c| c.offset).collect();
        assert_eq!(chain, added, "the chain has all, in the order in which they were added");
    }
}

/// Whether `size` bytes fit at an aligned place of the list, by trying all.
fn a_place_exists(pci: &Pci, extended: bool, size: usize) -> bool {
    let (start, end) = if extended { (0x100, 0x1000) } else { (0x40, 0x100) };
    let free =
        |at: usize| pci.capabilities().iter().all(|c| (at..at + size).all(|byte| !c.range().contains(&byte)));
    (start..=end - size.min(end - start)).step_by(4).any(|at| at + size <= end && free(at))
}

proptest! {
    #[test]
    fn placement_keeps_the_invariants(requests in prop::collection::vec(request(), 1..24)) {
        let mut pci = device(PciType::Express);
        for (pos, flags, data) in requests {
            let possible = a_place_exists(&pci, flags == EXTENDED, data.len());
            let before = bytes(&pci, 0, 4096);
            match add(&mut pci, pos, flags, &data) {
                Ok(at) => {
                    prop_assert!(pos == 0 || at == pos);
                    let header = data.len().min(4);
                    prop_assert_eq!(&bytes(&pci, at, data.len())[header..], &data[header..]);
                }
                Err(e) => {
                    prop_assert_eq!(e, if pos == 0 { Errno::ENOSPC } else { Errno::EINVAL });
                    prop_assert!(pos != 0 || !possible);
                    prop_assert_eq!(bytes(&pci, 0, 4096), before);
                }
            }
            check_invariants(&pci);
        }
    }
}
