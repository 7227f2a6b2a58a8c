use super::*;

/// One of each capability, some with gaps between and some without.
fn populated() -> Pci {
    let mut pci = device(PciType::Express);
    add(&mut pci, 0x50, 0, &vendor(13)).unwrap();
    add(&mut pci, 0x40, 0, &pm()).unwrap();
    add(&mut pci, 0x48, CALLBACK, &vendor(8)).unwrap();
    add(&mut pci, 0x60, READONLY, &vendor(4)).unwrap();
    add(&mut pci, 0x70, 0, &standard(0x05, 24)).unwrap();
    add(&mut pci, 0x88, 0, &standard(0x11, 12)).unwrap();
    add(&mut pci, 0xc4, 0, &standard(0x10, 60)).unwrap();
    add(&mut pci, 0x100, EXTENDED, &serial_number()).unwrap();
    add(&mut pci, 0x110, EXTENDED, &extended_vendor(21)).unwrap();
    add(&mut pci, 0x140, EXTENDED | CALLBACK | READONLY, &extended_vendor(16)).unwrap();
    pci
}

/// What a byte belongs to, by looking at that byte alone.
fn owner(pci: &Pci, offset: usize, access: Access, has_callback: bool) -> (PieceKind, usize) {
    if offset < 64 {
        return (PieceKind::Header, 0);
    }
    match pci.capabilities().iter().position(|c| c.range().contains(&offset)) {
        Some(i) => {
            let capability = pci.capabilities()[i];
            let to_callback = capability.flags.contains(CapFlags::CALLBACK)
                && !(access == Access::Write && capability.flags.contains(CapFlags::READONLY));
            (if to_callback { PieceKind::Callback } else { PieceKind::Capability(capability) }, i)
        }
        None if has_callback => (PieceKind::Callback, usize::MAX),
        None => (PieceKind::Plain, usize::MAX),
    }
}

#[test]
fn pieces_tile_every_access_at_the_borders() {
    let pci = populated();
    let owners = |access, callback| -> Vec<_> {
        (0..4096).map(|offset| owner(&pci, offset, access, callback)).collect()
    };
    for (access, callback) in
        [(Access::Read, false), (Access::Read, true), (Access::Write, false), (Access::Write, true)]
    {
        let owners = owners(access, callback);
        for offset in 0..0x180 {
            for len in (1..=0x180 - offset).chain([4096 - offset]) {
                let piece = pci.piece(offset, len, access, callback);
                let same = owners[offset..offset + len].iter().take_while(|o| **o == owners[offset]).count();
                assert_eq!(piece, Piece { kind: owners[offset].0, offset, len: same }, "{offset:#x} {len}");
            }
        }
    }
}

#[test]
fn every_access_returns() {
    let pci = populated();
    for offset in (0..0x160).chain(4080..4100) {
        for len in 1..80 {
            let mut into = vec![0; len];
            let piece = pci.piece(offset, len, Access::Read, false);
            assert!(piece.len > 0);
            let read = pci.read_piece(&piece, &mut into[..piece.len]);
            let inside = offset + piece.len <= 4096 && piece.kind != PieceKind::Callback;
            assert_eq!(read, if inside { Ok(()) } else { Err(Errno::EINVAL) });
            for pattern in [0, 0x7f, 0xff] {
                let _ = write(&pci, offset, &vec![pattern; len]);
            }
        }
    }
    let links: Vec<_> = Chain::new(pci.space().unwrap(), List::Standard).unwrap().flatten().collect();
    assert_eq!(links, [0x50, 0x40, 0x48, 0x60, 0x70, 0x88, 0xc4], "no write reaches a link");
}

#[test]
fn a_write_does_not_spill_over_the_end_of_a_capability() {
    let pci = populated();
    let before = bytes(&pci, 0x5d, 0x20);
    assert_eq!(write(&pci, 0x53, &[0xcc; 0x20]), Err(Errno::EINVAL), "the gap behind refuses it");
    assert_eq!(bytes(&pci, 0x53, 10), [0xcc; 10]);
    assert_eq!(bytes(&pci, 0x5d, 0x20), before);
    assert_eq!(write(&pci, 0x84, &[0xff; 8]), Err(Errno::EPERM), "the header of the next capability");
}

#[test]
fn gaps_are_copied_for_reads_and_refuse_writes() {
    let pci = populated();
    pci.space().unwrap().write_u8(0xa0, 0x42).unwrap();
    let gap = pci.piece(0xa0, 4, Access::Read, false);
    let mut into = [0; 4];
    pci.read_piece(&gap, &mut into).unwrap();
    assert_eq!((gap.kind, into), (PieceKind::Plain, [0x42, 0, 0, 0]));
    assert_eq!(write(&pci, 0xa0, &[1]), Err(Errno::EINVAL));
    assert_eq!(bytes(&pci, 0xa0, 1), [0x42]);
}

#[test]
fn reads_copy_the_live_buffer() {
    let pci = populated();
    pci.space().unwrap().write_u8(0x43, 0x99).unwrap();
    let mut header_and_more = vec![0; 0x48];
    let mut offset = 0;
    while offset < header_and_more.len() {
        let piece = pci.piece(offset, header_and_more.len() - offset, Access::Read, true);
        pci.read_piece(&piece, &mut header_and_more[offset..offset + piece.len]).unwrap();
        offset += piece.len;
    }
    assert_eq!(header_and_more, bytes(&pci, 0, 0x48));
    assert_eq!(header_and_more[0x43], 0x99);
}

#[test]
fn a_buffer_of_another_length_than_the_piece_is_refused() {
    let pci = populated();
    let piece = pci.piece(0x3c, 8, Access::Write, false);
    assert_eq!(piece.len, 4);
    assert_eq!(pci.write_piece(&piece, &[0; 8], &NO_BARS, 0), Err(Errno::EINVAL));
    assert_eq!(pci.read_piece(&piece, &mut [0; 3]), Err(Errno::EINVAL));
}

#[test]
fn without_a_space_every_access_fails() {
    let pci = Pci::new();
    for offset in [0, 0x40, 0x1000, usize::MAX] {
        let piece = pci.piece(offset, 1, Access::Read, false);
        assert_eq!(piece.len, 1);
        assert_eq!(pci.read_piece(&piece, &mut [0]), Err(Errno::EINVAL));
        assert_eq!(pci.write_piece(&piece, &[0], &NO_BARS, 0), Err(Errno::EINVAL));
    }
    assert_eq!(pci.piece(0, 0, Access::Read, false).len, 0);
}

/// Device Control stands at 0xcc; bit 15 is in the byte at 0xcd.
#[test]
fn only_a_write_that_sets_the_reset_bit_asks_for_a_quiesce() {
    let pci = populated();
    for offset in 0..0x110_usize {
        for len in 0..24 {
            let covers = (offset..offset + len).contains(&0xcd);
            assert_eq!(pci.asks_quiesce(offset, &vec![0x80; len]), covers);
            assert!(!pci.asks_quiesce(offset, &vec![0x7f; len]));
        }
    }
    assert!(pci.asks_quiesce(0, &vec![0xff; 4096]));
    assert!(!device(PciType::Express).asks_quiesce(7, &[0xff; 64]), "no Express capability");
}

#[test]
fn a_reset_reports_its_effect_through_the_pieces() {
    let pci = populated();
    pci.space().unwrap().write_u32(0xc8, 1 << 28).unwrap();
    assert_eq!(write(&pci, 0xcc, &[0x34, 0x92]), Ok(Effect::FunctionLevelReset));
    assert_eq!(bytes(&pci, 0xcc, 2), [0x34, 0x12]);
    assert_eq!(write(&pci, 0xc6, &[0x80; 8]), Ok(Effect::FunctionLevelReset));
}
