//! What a client's write to each kind of capability does.

use super::*;

/// A device whose one capability, `data`, is at 0x40 (extended: 0x100).
fn with(flags: i32, data: &[u8]) -> (Pci, usize) {
    let mut pci = device(PciType::Express);
    let at = add(&mut pci, 0, flags, data).unwrap();
    (pci, at)
}

#[test]
fn writes_to_a_header_are_eperm() {
    let headers = [
        (0, pm(), 2),
        (0, standard(0x05, 24), 2),
        (0, vendor(16), 3),
        (0, standard(0x10, 60), 2),
        (0, standard(0x11, 12), 2),
        (EXTENDED, serial_number(), 4),
        (EXTENDED, extended_vendor(16), 8),
    ];
    for (flags, data, header_len) in headers {
        let (pci, base) = with(flags, &data);
        let before = bytes(&pci, 0, 4096);
        for at in 0..header_len {
            for len in 1..=data.len() - at {
                assert_eq!(write(&pci, base + at, &vec![0xff; len]), Err(Errno::EPERM), "{data:x?} {at}");
            }
        }
        assert_eq!(bytes(&pci, 0, 4096), before);
    }
}

#[test]
fn read_only_capabilities_refuse_every_write_before_their_callback() {
    for flags in [READONLY, READONLY | CALLBACK] {
        let (pci, base) = with(flags, &vendor(16));
        let before = bytes(&pci, base, 16);
        for at in 0..16 {
            assert_eq!(write(&pci, base + at, &[0]), Err(Errno::EPERM));
        }
        assert_eq!(write(&pci, base + 2, &[1; 14]), Err(Errno::EPERM));
        assert_eq!(bytes(&pci, base, 16), before);
    }
}

#[test]
fn vendor_bytes_are_copied() {
    let (pci, base) = with(0, &vendor(10));
    store(&pci, base + 3, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(bytes(&pci, base, 11), [9, 0, 10, 1, 2, 3, 4, 5, 6, 7, 0]);
    let (pci, base) = with(EXTENDED, &extended_vendor(12));
    store(&pci, base + 9, &[1, 2]);
    assert_eq!(bytes(&pci, base + 8, 5), [0xee, 1, 2, 0xee, 0]);
}

#[test]
fn a_serial_number_cannot_be_written() {
    let (pci, base) = with(EXTENDED, &serial_number());
    for at in 0..12 {
        assert_eq!(write(&pci, base + at, &[0xff]), Err(Errno::EPERM));
    }
    assert_eq!(bytes(&pci, base + 4, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn power_management_by_offset_and_size() {
    for at in 2..8 {
        for len in 1..=8 - at {
            let (pci, base) = with(0, &[1, 0, 0x33, 0x33, 0x44, 0x44, 0x66, 0x77]);
            let data = [1, 2, 3, 4, 5, 6];
            let expected = match (at, len) {
                (4, 2 | 4) => Ok(Effect::None),
                (2, 2) | (6 | 7, 1) => Err(Errno::ENOTSUP),
                _ => Err(Errno::EINVAL),
            };
            assert_eq!(write(&pci, base + at, &data[..len]), expected, "{len} at {at}");
            let pmcsr = if expected.is_ok() { [1, 2] } else { [0x44, 0x44] };
            assert_eq!(bytes(&pci, base, 4), [1, 0, 0x33, 0x33]);
            assert_eq!(bytes(&pci, base + 4, 2), pmcsr);
            assert_eq!(bytes(&pci, base + 6, 2), [0x66, 0x77]);
        }
    }
}

/// An MSI capability that can do 2^`capable` messages, with 2^`enabled` on.
fn msi(capable: u8, enabled: u8) -> (Pci, usize) {
    let mut data = standard(0x05, 24);
    data[2] = capable << 1 | enabled << 4;
    with(0, &data)
}

#[test]
fn msi_stores_what_is_writable() {
    let (pci, base) = msi(5, 0);
    pci.space().unwrap().write_u8(base + 3, 1).unwrap();
    store(&pci, base + 2, &[0xd1; 22]);
    let mut expected = vec![5, 0, 0x5b, 1];
    expected.extend([0xd0, 0xd1, 0xd1, 0xd1, 0xd1, 0xd1, 0xd1, 0xd1]);
    expected.extend([0xd1, 0xd1, 0, 0, 0xd1, 0xd1, 0xd1, 0xd1, 0, 0, 0, 0]);
    assert_eq!(bytes(&pci, base, 24), expected);
    store(&pci, base + 2, &[0; 22]);
    let mut expected = vec![0; 24];
    expected[..4].copy_from_slice(&[5, 0, 5 << 1, 1]);
    assert_eq!(bytes(&pci, base, 24), expected, "only what can't be written is left");
}

#[test]
fn msi_takes_any_offset_and_size() {
    const WRITABLE: [u8; 24] = {
        let mut bits = [0xff; 24];
        (bits[0], bits[1], bits[2], bits[3], bits[4]) = (0, 0, 0x71, 0, 0xfc);
        (bits[14], bits[15]) = (0, 0);
        (bits[20], bits[21], bits[22], bits[23]) = (0, 0, 0, 0);
        bits
    };
    for at in 2..24 {
        for len in 1..=24 - at {
            let (pci, base) = msi(3, 0);
            let data = vec![0xb7; len];
            let mut expected = bytes(&pci, base, 24);
            for i in at..at + len {
                expected[i] |= 0xb7 & WRITABLE[i];
            }
            store(&pci, base + at, &data);
            assert_eq!(bytes(&pci, base, 24), expected, "{len} at {at}");
        }
    }
}

#[test]
fn msi_refuses_more_messages_than_there_can_be_and_changes_nothing() {
    for capable in 0..8 {
        for enabled in 0..8 {
            for wanted in 0..8 {
                let (pci, base) = msi(capable, enabled);
                let before = bytes(&pci, base, 24);
                let written = write(&pci, base + 2, &[wanted << 4 | 1, 0, 0xff, 0xff]);
                let allowed = wanted == enabled || wanted <= 5 && wanted <= capable;
                assert_eq!(written, if allowed { Ok(Effect::None) } else { Err(Errno::EINVAL) });
                if allowed {
                    assert_eq!(bytes(&pci, base + 2, 1), [capable << 1 | wanted << 4 | 1]);
                } else {
                    assert_eq!(bytes(&pci, base, 24), before);
                }
            }
        }
    }
}

#[test]
fn msi_x_changes_only_enable_and_function_mask() {
    let mut data = standard(0x11, 12);
    let (pci, base) = with(0, &data);
    store(&pci, base + 2, &[0xff, 0xff]);
    assert_eq!(pci.space().unwrap().read_u16(base + 2), Ok(0xc000));
    store(&pci, base + 2, &[0, 0]);
    store(&pci, base + 3, &[0xc0, 0xff]);
    assert_eq!(bytes(&pci, base + 2, 10), [0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0]);
    store(&pci, base + 4, &[0xff]);
    assert_eq!(bytes(&pci, base + 4, 1), [0]);

    data[2..].fill(0x15);
    for at in 2..12 {
        for len in 1..=12 - at {
            let (pci, base) = with(0, &data);
            let mut expected = bytes(&pci, base, 12);
            if (at..at + len).contains(&3) {
                expected[3] = 0x95;
            }
            store(&pci, base + at, &vec![0xaa; len]);
            assert_eq!(bytes(&pci, base, 12), expected, "{len} at {at}");
        }
    }
}

/// An Express capability all of whose other registers are 0xff.
fn express(flr: bool) -> (Pci, usize) {
    let mut data = vec![0xff; 60];
    data[..2].copy_from_slice(&[0x10, 0]);
    data[7] = if flr { 0xff } else { 0xef };
    data[8..10].copy_from_slice(&[0, 0]);
    for control in [0x10, 0x18, 0x1c, 0x28, 0x30, 0x38] {
        data[control..control + 2].fill(0);
    }
    with(0, &data)
}

#[test]
fn the_second_controls_are_stored_as_written() {
    let (pci, base) = express(true);
    for value in 0..=u16::MAX {
        for register in [0x28, 0x30] {
            store(&pci, base + register, &value.to_le_bytes());
            assert_eq!(pci.space().unwrap().read_u16(base + register), Ok(value));
        }
    }
}

#[test]
fn device_control_stores_all_but_the_reset_bit() {
    let (pci, base) = express(true);
    for value in 0..=u16::MAX {
        let flr = value & 0x8000 != 0;
        let expected = if flr { Effect::FunctionLevelReset } else { Effect::None };
        assert_eq!(write(&pci, base + 8, &value.to_le_bytes()), Ok(expected));
        assert_eq!(pci.space().unwrap().read_u16(base + 8), Ok(value & 0x7fff));
        assert_eq!(pci.asks_quiesce(base + 8, &value.to_le_bytes()), flr);
    }
}

#[test]
fn a_reset_needs_the_capability_but_the_other_bits_are_stored() {
    let (pci, base) = express(false);
    assert_eq!(write(&pci, base + 8, &[0x10, 0x80]), Err(Errno::EINVAL));
    assert_eq!(bytes(&pci, base + 8, 2), [0x10, 0]);
    assert_eq!(write(&pci, base + 8, &[0x20, 0x28]), Ok(Effect::None));
    assert_eq!(bytes(&pci, base + 8, 2), [0x20, 0x28]);
    assert_eq!(write(&pci, base + 9, &[0x80]), Err(Errno::EINVAL));
}

/// Every write, against a table of what is stored and what 1 clears.
#[test]
fn express_merges_any_offset_and_size() {
    let mut stored = [0_u8; 60];
    for register in [0x08, 0x10, 0x18, 0x1c, 0x28, 0x30] {
        stored[register..register + 2].fill(0xff);
    }
    stored[9] = 0x7f;
    let mut clear = [0_u8; 60];
    for (byte, bits) in
        [(0x0a, 0x4f), (0x13, 0xc0), (0x1a, 0x1f), (0x1b, 1), (0x22, 1), (0x32, 0x20), (0x33, 0x80)]
    {
        clear[byte] = bits;
    }
    let writable = |i: usize| !matches!(i, 2..=7 | 0xc..=0xf | 0x14..=0x17 | 0x1e..=0x1f | 0x24..=0x27 | 0x2c..=0x2f | 0x34..=0x37);
    for at in 2..60 {
        for len in 1..=60 - at {
            for pattern in [0x00_u8, 0xff, 0x5a, 0xa5] {
                let (pci, base) = express(true);
                let mut expected = bytes(&pci, base, 60);
                for i in at..at + len {
                    expected[i] = expected[i] & !stored[i] | pattern & stored[i];
                    expected[i] &= !(pattern & clear[i]);
                }
                let flr = (at..at + len).contains(&9) && pattern & 0x80 != 0;
                let result = match (flr, (at..at + len).any(writable)) {
                    (_, false) => Err(Errno::EINVAL),
                    (true, _) => Ok(Effect::FunctionLevelReset),
                    (false, _) => Ok(Effect::None),
                };
                assert_eq!(write(&pci, base + at, &vec![pattern; len]), result, "{len} at {at:#x}");
                assert_eq!(bytes(&pci, base, 60), expected, "{len} at {at:#x}");
            }
        }
    }
}
