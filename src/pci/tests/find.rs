use super::*;

fn populated() -> Pci {
    let mut pci = device(PciType::Express);
    for bytes in [pm(), vendor(6), vendor(8)] {
        add(&mut pci, 0, 0, &bytes).unwrap();
    }
    add(&mut pci, 0x80, 0, &vendor(13)).unwrap();
    add(&mut pci, 0x90, 0, &vendor(13)).unwrap();
    add(&mut pci, 0, EXTENDED, &serial_number()).unwrap();
    add(&mut pci, 0, EXTENDED, &extended_vendor(13)).unwrap();
    add(&mut pci, 0, EXTENDED, &extended_vendor(8)).unwrap();
    add(&mut pci, 0x200, EXTENDED, &extended_vendor(24)).unwrap();
    pci
}

/// All hits of a search that goes on from each hit.
fn all(pci: &Pci, extended: bool, id: i32) -> Vec<usize> {
    let mut hits = vec![];
    let mut found = pci.find_capability(extended, id);
    while let Ok(at) = found {
        hits.push(at);
        assert!(hits.len() <= 4096, "the search goes round in circles");
        found = pci.find_next_capability(extended, at, id);
    }
    assert_eq!(found, Err(Errno::ENOENT));
    hits
}

#[test]
fn finding_goes_through_the_list() {
    let pci = populated();
    assert_eq!(all(&pci, false, 0x01), [0x40]);
    assert_eq!(all(&pci, false, 0x09), [0x48, 0x50, 0x80, 0x90]);
    assert!(all(&pci, false, 0x10).is_empty());
    assert_eq!(all(&pci, true, 0x0003), [0x100]);
    assert_eq!(all(&pci, true, 0x000b), [0x10c, 0x11c, 0x200]);
    assert!(all(&pci, true, 0x01).is_empty());
    assert_eq!(pci.find_next_capability(false, 0x40, 0x09), Ok(0x48));
    assert_eq!(pci.find_next_capability(true, 0x100, 0x0b), Ok(0x10c));
    for id in [-1, 0, 0x109, 0x1_0009, i32::MIN, i32::MAX] {
        assert_eq!(pci.find_capability(false, id), Err(Errno::ENOENT));
        assert_eq!(pci.find_capability(true, id), Err(Errno::ENOENT));
    }
}

#[test]
fn a_position_outside_the_space_is_einval() {
    let conventional = device(PciType::Conventional);
    for pos in [255, 256, 8192, usize::MAX] {
        assert_eq!(conventional.find_next_capability(false, pos, 1), Err(Errno::EINVAL));
    }
    assert_eq!(conventional.find_next_capability(false, 254, 1), Err(Errno::ENOENT));
    let express = populated();
    for pos in [4092, 4095, 4096, 8192, usize::MAX] {
        assert_eq!(express.find_next_capability(true, pos, 1), Err(Errno::EINVAL));
    }
    assert_eq!(express.find_next_capability(true, 4091, 1), Err(Errno::ENOENT));
    assert_eq!(Pci::new().find_capability(false, 1), Err(Errno::EINVAL));
    assert_eq!(Pci::new().find_capability(true, 1), Err(Errno::EINVAL));
}

#[test]
fn a_position_where_no_capability_starts_is_enoent() {
    let pci = populated();
    for pos in (1..0x3fc).filter(|pos| pci.capabilities().iter().all(|c| c.offset != *pos)) {
        for id in [0x01, 0x03, 0x09, 0x0b] {
            assert_eq!(pci.find_next_capability(false, pos, id), Err(Errno::ENOENT), "{pos:#x}");
            assert_eq!(pci.find_next_capability(true, pos, id), Err(Errno::ENOENT), "{pos:#x}");
        }
    }
    assert_eq!(pci.find_next_capability(false, 0x49, 0x09), Err(Errno::ENOENT));
    assert_eq!(pci.find_next_capability(true, 0x10d, 0x0b), Err(Errno::ENOENT));
}

#[test]
fn an_empty_list_and_an_extended_search_in_256_bytes_are_enoent() {
    for pci in [device(PciType::Express), device(PciType::Conventional)] {
        for extended in [false, true] {
            assert_eq!(pci.find_capability(extended, 0), Err(Errno::ENOENT));
            assert_eq!(pci.find_capability(extended, 1), Err(Errno::ENOENT));
        }
    }
}

#[test]
fn the_last_extended_capability_is_not_followed_by_the_header() {
    let pci = populated();
    pci.set_id(0x000b, 0, 0, 0).unwrap();
    assert_eq!(pci.find_next_capability(true, 0x200, 0x0b), Err(Errno::ENOENT));
    pci.space().unwrap().write_u16(0x202, 0x0041).unwrap();
    assert_eq!(pci.find_next_capability(true, 0x200, 0), Err(Errno::ENOENT), "a link into the header");
}

#[test]
fn links_are_read_from_the_live_buffer() {
    let pci = populated();
    let space = pci.space().unwrap();
    space.write_u8(0x41, 0x50).unwrap();
    assert_eq!(all(&pci, false, 0x09), [0x50, 0x80, 0x90]);
    space.write_u8(0x50, 0x77).unwrap();
    assert_eq!(pci.find_capability(false, 0x77), Ok(0x50));
    space.write_u8(0x34, 0).unwrap();
    assert_eq!(pci.find_capability(false, 0x01), Err(Errno::ENOENT));
}

#[test]
fn a_link_out_of_the_space_is_einval() {
    let mut pci = device(PciType::Conventional);
    add(&mut pci, 0, 0, &pm()).unwrap();
    pci.space().unwrap().write_u8(0x41, 0xff).unwrap();
    assert_eq!(pci.find_capability(false, 0x01), Ok(0x40));
    assert_eq!(pci.find_next_capability(false, 0x40, 0x01), Err(Errno::EINVAL));
    let pci = populated();
    pci.space().unwrap().write_u16(0x202, 0xffc1).unwrap();
    assert_eq!(pci.find_next_capability(true, 0x200, 0x0b), Err(Errno::EINVAL));
}

#[test]
fn a_circle_ends() {
    let pci = populated();
    let space = pci.space().unwrap();
    space.write_u8(0x91, 0x40).unwrap();
    assert_eq!(pci.find_capability(false, 0x77), Err(Errno::ENOENT));
    assert_eq!(all(&pci, false, 0x09), [0x48, 0x50, 0x80, 0x90]);
    space.write_u8(0x91, 0x90).unwrap();
    assert_eq!(pci.find_capability(false, 0x77), Err(Errno::ENOENT));
    space.write_u16(0x202, 0x10c1).unwrap();
    assert_eq!(all(&pci, true, 0x000b), [0x10c, 0x11c, 0x200]);
}

#[test]
fn any_contents_end_without_a_panic() {
    let pci = device(PciType::Express);
    for seed in 0..64_u32 {
        let noise: Vec<u8> =
            (0..4096_u32).map(|i| ((i + seed * 7919).wrapping_mul(2_654_435_761) >> 19) as u8).collect();
        pci.space().unwrap().write(0, &noise).unwrap();
        for pos in (0..4200).step_by(13) {
            for extended in [false, true] {
                let found = pci.find_next_capability(extended, pos, 0xaa);
                assert!(found.is_err() || found.is_ok_and(|at| (0x40..4096).contains(&at)));
            }
        }
    }
}
