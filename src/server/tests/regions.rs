//! Accesses to regions, and interrupts.

use super::*;

const CONFIG: u32 = 7;

#[test]
fn a_read_is_the_devices_to_answer() {
    let mut bench = Bench::new();
    let reply = bench.succeeds(Command::RegionRead, &access(0, 0x10, 4, &[]));
    assert_eq!(reply, access(0, 0x10, 4, &[0x10, 0x11, 0x12, 0x13]));
    assert_eq!(bench.calls(), [Read(0, 0x10, 4)]);
}

#[test]
fn a_write_comes_with_its_bytes() {
    let mut bench = Bench::new();
    let reply = bench.succeeds(Command::RegionWrite, &access(0, 0xffc, 4, b"abcd"));
    assert_eq!(reply, access(0, 0xffc, 4, &[]));
    assert_eq!(bench.calls(), [Write(0, 0xffc, b"abcd".to_vec())]);
}

#[test]
fn what_is_outside_or_not_allowed_never_reaches_the_device() {
    let mut bench = Bench::new();
    for (command, request, errno) in [
        (Command::RegionRead, access(0, 0xffd, 4, &[]), libc::EINVAL),
        (Command::RegionRead, access(0, u64::MAX, 1, &[]), libc::EINVAL),
        (Command::RegionRead, access(2, 0, 1, &[]), libc::EINVAL),
        (Command::RegionRead, access(9, 0, 1, &[]), libc::EINVAL),
        (Command::RegionRead, access(0, 0, 0x10_0001, &[]), libc::EINVAL),
        (Command::RegionRead, vec![0; 15], libc::EINVAL),
        (Command::RegionWrite, access(0, 0, 4, b"abc"), libc::EINVAL),
        (Command::RegionWrite, access(1, 0, 4, b"abcd"), libc::EPERM),
        (Command::RegionWriteMulti, words(&[], &[0]), libc::EINVAL),
        (Command::DmaRead, words(&[], &[0, 1]), libc::EINVAL),
        (Command::Version, words(&[0], &[]), libc::EINVAL),
    ] {
        assert_eq!(bench.request(command, &request), (errno, vec![]), "{command:?} {request:?}");
    }
    assert_eq!(bench.calls(), []);
}

#[test]
fn nothing_is_asked_of_the_device_for_no_bytes() {
    let mut bench = Bench::new();
    let nothing = access(0, BAR_SIZE, 0, &[]);
    assert_eq!(bench.succeeds(Command::RegionRead, &nothing), nothing);
    assert_eq!(bench.succeeds(Command::RegionWrite, &nothing), nothing);
    assert_eq!(bench.calls(), []);
}

#[test]
fn fewer_bytes_make_a_short_reply_and_more_or_none_an_error() {
    let mut bench = Bench::new();
    let read = access(0, 8, 4, &[]);
    bench.returns([Ok(1), Ok(0), Ok(5), Ok(usize::MAX), Err(Errno::new(0xbeef))]);
    assert_eq!(bench.succeeds(Command::RegionRead, &read), access(0, 8, 1, &[8]));
    for errno in [libc::EINVAL, libc::EINVAL, libc::EINVAL, 0xbeef] {
        assert_eq!(bench.request(Command::RegionRead, &read), (errno, vec![]));
    }
    let write = access(0, 8, 4, b"abcd");
    bench.returns([Ok(3), Ok(0), Ok(5), Err(Errno::ENOTTY)]);
    assert_eq!(bench.succeeds(Command::RegionWrite, &write), access(0, 8, 3, &[]));
    for errno in [libc::EINVAL, libc::EINVAL, libc::ENOTTY] {
        assert_eq!(bench.request(Command::RegionWrite, &write), (errno, vec![]));
    }
    assert_eq!(bench.calls().len(), 9);
}

#[test]
fn configuration_space_needs_no_device() {
    let mut bench = Bench::new();
    bench.context.pci_set_id(0x1234, 0x5678, 0, 0);
    let reply = bench.succeeds(Command::RegionRead, &access(CONFIG, 0, 4, &[]));
    assert_eq!(reply, access(CONFIG, 0, 4, &[0x34, 0x12, 0x78, 0x56]));
    bench.succeeds(Command::RegionWrite, &access(CONFIG, 0x3c, 1, &[11]));
    let reply = bench.succeeds(Command::RegionRead, &access(CONFIG, 0x3c, 1, &[]));
    assert_eq!(reply[16..], [11]);
    assert_eq!(bench.calls(), []);
}

#[test]
fn masks_come_in_runs() {
    let mut bench = Bench::new();
    let masked = [words(&[20 + 4, 2 | 8, 2, 0, 4], &[]), vec![1, 1, 0, 1]].concat();
    bench.succeeds(Command::DeviceSetIrqs, &masked);
    bench.succeeds(Command::DeviceSetIrqs, &words(&[20, 1 | 16, 2, 1, 3], &[]));
    assert_eq!(
        bench.calls(),
        [Irqs(IrqType::Msix, 0, 2, true), Irqs(IrqType::Msix, 3, 1, true), Irqs(IrqType::Msix, 1, 3, false)]
    );
}
