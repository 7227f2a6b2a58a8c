use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use super::*;

#[test]
fn zeroed_at_first_and_aligned() {
    let space = ConfigSpace::new(4096).unwrap();
    let mut all = [0xff; 4096];
    space.read(0, &mut all).unwrap();
    assert_eq!(all, [0; 4096]);
    assert_eq!(space.as_ptr() as usize % 16, 0);
    assert_eq!(ConfigSpace::new(0).unwrap_err(), Errno::EINVAL);
}

#[test]
fn every_offset_and_length_is_read_and_written_exactly() {
    const LEN: usize = 24;
    for offset in 0..LEN + 4 {
        for len in 0..LEN + 4 {
            let space = ConfigSpace::new(LEN).unwrap();
            let mut model = [0x55; LEN];
            space.write(0, &model).unwrap();
            let data: Vec<u8> = (1..=len as u8).collect();
            let fits = offset + len <= LEN;
            assert_eq!(space.write(offset, &data), if fits { Ok(()) } else { Err(Errno::EINVAL) });
            if fits {
                model[offset..offset + len].copy_from_slice(&data);
            }
            let mut all = [0; LEN];
            space.read(0, &mut all).unwrap();
            assert_eq!(all, model, "{offset} {len}");
            let mut back = vec![0; len];
            assert_eq!(space.read(offset, &mut back).is_ok(), fits);
            if fits {
                assert_eq!(back, data);
            }
        }
    }
}

#[test]
fn offsets_at_the_end_of_the_address_space_are_refused() {
    let space = ConfigSpace::new(256).unwrap();
    assert_eq!(space.read(usize::MAX, &mut [0]), Err(Errno::EINVAL));
    assert_eq!(space.write(usize::MAX, &[0, 0]), Err(Errno::EINVAL));
    assert_eq!(space.read_u32(usize::MAX - 1), Err(Errno::EINVAL));
    assert_eq!(space.read_u32(253), Err(Errno::EINVAL));
    assert_eq!(space.read_u32(252), Ok(0));
}

#[test]
fn numbers_are_little_endian() {
    let space = ConfigSpace::new(16).unwrap();
    space.write_u32(1, 0x4433_2211).unwrap();
    space.write_u16(5, 0x6655).unwrap();
    space.write_u8(7, 0x77).unwrap();
    let mut all = [0; 8];
    space.read(0, &mut all).unwrap();
    assert_eq!(all, [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]);
    assert_eq!(space.read_u32(1), Ok(0x4433_2211));
    assert_eq!(space.read_u16(5), Ok(0x6655));
    assert_eq!(space.read_u8(7), Ok(0x77));
}

#[test]
fn the_device_and_the_library_see_each_others_writes() {
    let space = ConfigSpace::new(256).unwrap();
    let pointer = space.as_ptr();
    // SAFETY: inside the buffer of `space`.
    unsafe { pointer.add(0x41).write(7) };
    assert_eq!(space.read_u8(0x41), Ok(7));
    space.write_u8(0x41, 8).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { pointer.add(0x41).read() }, 8);
    let moved = Box::new(space);
    assert_eq!(moved.as_ptr(), pointer);
}

#[test]
fn an_aligned_register_is_never_seen_half_written() {
    let space = ConfigSpace::new(256).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for value in [0, u32::MAX].iter().cycle().take_while(|_| !done.load(Relaxed)) {
                space.write_u32(0x10, *value).unwrap();
                space.write_u16(0x04, *value as u16).unwrap();
            }
        });
        let whole = (0..200_000).all(|_| {
            matches!(space.read_u32(0x10), Ok(0 | u32::MAX)) && matches!(space.read_u16(4), Ok(0 | u16::MAX))
        });
        done.store(true, Relaxed);
        assert!(whole);
    });
}
