use super::*;

const fn memory(size: u64) -> Bar {
    Bar { size, mem: true, is_64: false, prefetch: false }
}

const fn memory_64(size: u64) -> Bar {
    Bar { size, mem: true, is_64: true, prefetch: false }
}

fn bar(pci: &Pci, n: usize) -> u32 {
    pci.space().unwrap().read_u32(0x10 + 4 * n).unwrap()
}

#[test]
fn types_have_the_numbers_and_sizes_of_the_api() {
    let sizes: Vec<_> = (0..5).map(|n| PciType::from_number(n).map(PciType::config_size)).collect();
    assert_eq!(sizes, [Some(256), Some(256), Some(4096), Some(4096), None]);
    assert_eq!(PciType::from_number(u32::MAX), None);
}

#[test]
fn init_refuses_other_header_types_and_a_second_space() {
    let mut pci = Pci::new();
    assert!(pci.space().is_none());
    assert_eq!(pci.init(PciType::Express, 1, 0), Err(Errno::EINVAL));
    assert!(pci.space().is_none());
    pci.init(PciType::Express, 0, 5).unwrap();
    assert_eq!(pci.space().unwrap().len(), 4096);
    assert_eq!(bytes(&pci, 8, 1), [0], "the revision is ignored");
    assert_eq!(pci.init(PciType::Express, 1, 0), Err(Errno::EINVAL));
    assert_eq!(pci.init(PciType::Express, 0, 0), Err(Errno::EEXIST));

    let mut realized = Pci::new();
    realized.ensure_space(0).unwrap();
    assert_eq!(realized.init(PciType::Express, 0, 0), Err(Errno::EEXIST));
}

#[test]
fn without_init_the_config_regions_size_chooses() {
    for (asked, got) in [(0, 256), (256, 256), (4096, 4096)] {
        let mut pci = Pci::new();
        assert_eq!(pci.ensure_space(asked), Ok(got));
        assert_eq!(pci.space().unwrap().len(), got);
        let pointer = pci.space().unwrap().as_ptr();
        assert_eq!(pci.ensure_space(4096), Ok(got), "once there is one it stays");
        assert_eq!(pci.space().unwrap().as_ptr(), pointer);
    }
    assert_eq!(device(PciType::Conventional).ensure_space(4096), Ok(256));
}

#[test]
fn ids_and_class_go_to_their_registers() {
    let pci = device(PciType::Conventional);
    pci.set_id(0x1122, 0x3344, 0x5566, 0x7788).unwrap();
    pci.set_class(1, 2, 3).unwrap();
    assert_eq!(bytes(&pci, 0, 12), [0x22, 0x11, 0x44, 0x33, 0, 0, 0, 0, 0, 3, 2, 1]);
    assert_eq!(bytes(&pci, 0x2c, 4), [0x66, 0x55, 0x88, 0x77]);
    assert_eq!(Pci::new().set_id(1, 2, 3, 4), Err(Errno::EINVAL));
    assert_eq!(Pci::new().set_class(1, 2, 3), Err(Errno::EINVAL));
}

#[test]
fn header_after_realize() {
    let mut pci = device(PciType::Conventional);
    add(&mut pci, 0, 0, &pm()).unwrap();
    assert_eq!(bytes(&pci, 6, 2), [0, 0]);
    let prefetchable = Bar { prefetch: true, ..memory_64(0x1000) };
    let bars = [
        Bar { size: 16, ..Bar::default() },
        memory(0x1000),
        memory_64(0x1000),
        Bar::default(),
        prefetchable,
        Bar::default(),
    ];
    pci.realize(&bars, 1).unwrap();
    let read: Vec<_> = (0..6).map(|n| bar(&pci, n)).collect();
    assert_eq!(read, [0x1, 0x0, 0x4, 0x0, 0xc, 0x0]);
    assert_eq!(bytes(&pci, 0x3d, 1), [1]);
    assert_eq!(bytes(&pci, 6, 2), [0x10, 0]);
}

#[test]
fn bars_never_set_up_read_1() {
    let mut pci = device(PciType::Conventional);
    pci.realize(&NO_BARS, 0).unwrap();
    assert!((0..6).all(|n| bar(&pci, n) == 1));
    assert_eq!(bytes(&pci, 0x3d, 1), [0]);
    assert_eq!(bytes(&pci, 6, 2), [0, 0], "no capability");
    assert_eq!(Pci::new().realize(&NO_BARS, 0), Err(Errno::EINVAL));
}

#[test]
fn only_standard_capabilities_set_the_status_bit_and_also_after_realize() {
    let mut pci = device(PciType::Express);
    add(&mut pci, 0, EXTENDED, &serial_number()).unwrap();
    pci.realize(&NO_BARS, 0).unwrap();
    assert_eq!(bytes(&pci, 6, 2), [0, 0]);
    add(&mut pci, 0, EXTENDED, &extended_vendor(16)).unwrap();
    assert_eq!(bytes(&pci, 6, 2), [0, 0]);
    add(&mut pci, 0, 0, &pm()).unwrap();
    assert_eq!(bytes(&pci, 6, 2), [0x10, 0]);
}

/// Writes all ones to a BAR, restores it, and returns what it read between.
fn sized(pci: &Pci, bars: &[Bar; BARS], n: usize) -> u32 {
    let saved = bytes(pci, 0x10 + 4 * n, 4);
    store_with(pci, 0x10 + 4 * n, &[0xff; 4], bars, 0);
    let size = bar(pci, n);
    store_with(pci, 0x10 + 4 * n, &saved, bars, 0);
    assert_eq!(bytes(pci, 0x10 + 4 * n, 4), saved);
    size
}

#[test]
fn bars_are_sized_and_restored() {
    const KIB: u64 = 1 << 10;
    const GIB: u64 = 1 << 30;
    let small = [NO_BARS[0], memory(4 * KIB), memory(8 * KIB), memory(16 * KIB), NO_BARS[0], NO_BARS[0]];
    let mut pci = device(PciType::Express);
    pci.realize(&small, 0).unwrap();
    let sizes: Vec<_> = (0..6).map(|n| sized(&pci, &small, n)).collect();
    assert_eq!(sizes, [1, 0xffff_f000, 0xffff_e000, 0xffff_c000, 1, 1]);

    let none = NO_BARS[0];
    let large = [memory_64(4 * GIB), none, memory_64(8 * GIB), none, memory_64(16 * GIB), none];
    let mut pci = device(PciType::Express);
    pci.realize(&large, 0).unwrap();
    let sizes: Vec<_> = (0..6).map(|n| sized(&pci, &large, n)).collect();
    assert_eq!(sizes, [4, 0xffff_ffff, 4, 0xffff_fffe, 4, 0xffff_fffc]);
}

#[test]
fn a_64_bit_bar_below_4_gib_can_be_placed_above() {
    let mut bars = NO_BARS;
    bars[2] = memory_64(0x4000);
    let mut pci = device(PciType::Express);
    pci.realize(&bars, 0).unwrap();
    store_with(&pci, 0x18, &0x1_2345_6789_abcd_u64.to_le_bytes(), &bars, 0);
    assert_eq!((bar(&pci, 2), bar(&pci, 3)), (0x6789_8004, 0x0001_2345));
}

#[test]
fn the_rom_is_sized_and_enabled() {
    let pci = device(PciType::Express);
    let rom = |size, written: u32| {
        store_with(&pci, 0x30, &written.to_le_bytes(), &NO_BARS, size);
        pci.space().unwrap().read_u32(0x30).unwrap()
    };
    assert_eq!(rom(0x10000, 0xffff_f800), 0xffff_0000);
    assert_eq!(rom(0x10000, 0xfeb0_0001), 0xfeb0_0001);
    assert_eq!(rom(0x10000, 0xffff_fffe), 0xffff_0000);
    assert_eq!(rom(0x200, u32::MAX), 0xffff_f801);
    assert_eq!(rom(0x1800, u32::MAX), 0xffff_e001, "not a power of two: as the next one");
    assert_eq!(rom(u64::MAX, u32::MAX), 1);
    assert_eq!(rom(0, u32::MAX), 0);
}
