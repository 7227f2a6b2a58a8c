//! The migration states, and migration data.

use super::*;

const GET_STATE: u32 = 2 | 1 << 16;
const SET_STATE: u32 = 2 | 1 << 17;

fn set(bench: &mut Bench, state: DeviceState) -> i32 {
    bench.request(Command::DeviceFeature, &words(&[16, SET_STATE, state as u32, 0], &[])).0
}

fn state(bench: &mut Bench) -> u32 {
    let reply = bench.succeeds(Command::DeviceFeature, &words(&[16, GET_STATE], &[]));
    u32::from_ne_bytes(reply[8..12].try_into().unwrap())
}

fn data(size: u32, bytes: &[u8]) -> Vec<u8> {
    [words(&[8 + size, size], &[]), bytes.to_vec()].concat()
}

#[test]
fn a_device_that_does_not_migrate_has_no_states() {
    let mut bench = Bench::new();
    assert_eq!(set(&mut bench, DeviceState::Stop), libc::EINVAL);
    assert_eq!(bench.request(Command::MigDataRead, &data(8, &[])).0, libc::EINVAL);
    assert_eq!(bench.calls(), []);
}

#[test]
fn the_device_is_taken_step_by_step() {
    let mut bench = Bench::migratable();
    assert_eq!(set(&mut bench, DeviceState::Resuming), 0);
    assert_eq!(bench.calls(), [Quiesce, To(DeviceState::Stop), To(DeviceState::Resuming)]);
    assert_eq!(state(&mut bench), DeviceState::Resuming as u32);
}

#[test]
fn a_step_that_fails_leaves_the_device_where_it_was() {
    let mut bench = Bench::migratable();
    bench.returns([Ok(0), Ok(0), Err(Errno::new(0xbeef))]);
    assert_eq!(set(&mut bench, DeviceState::Resuming), 0xbeef);
    assert_eq!(state(&mut bench), DeviceState::Stop as u32);
}

#[test]
fn only_a_reset_leads_out_of_error() {
    let mut bench = Bench::migratable();
    bench.returns([Ok(0), Err(Errno::ENOTRECOVERABLE)]);
    assert_eq!(set(&mut bench, DeviceState::Stop), libc::ENOTRECOVERABLE);
    assert_eq!(state(&mut bench), DeviceState::Error as u32);
    assert_eq!(set(&mut bench, DeviceState::Running), libc::EINVAL);
    bench.succeeds(Command::DeviceReset, &[]);
    assert_eq!(state(&mut bench), DeviceState::Running as u32);
}

#[test]
fn state_is_read_in_the_saving_states_and_never_more_than_asked_for() {
    let mut bench = Bench::migratable();
    assert_eq!(bench.request(Command::MigDataRead, &data(8, &[])).0, libc::EINVAL, "it runs");
    set(&mut bench, DeviceState::StopCopy);
    bench.calls();
    assert_eq!(bench.succeeds(Command::MigDataRead, &data(8, &[])), data(8, &[0x5a; 8]));
    bench.returns([Ok(3), Ok(0), Ok(9), Err(Errno::EIO)]);
    assert_eq!(bench.succeeds(Command::MigDataRead, &data(8, &[])), data(3, &[0x5a; 3]));
    assert_eq!(bench.succeeds(Command::MigDataRead, &data(8, &[])), data(0, &[]));
    assert_eq!(bench.request(Command::MigDataRead, &data(8, &[])), (libc::EINVAL, vec![]));
    assert_eq!(bench.request(Command::MigDataRead, &data(8, &[])), (libc::EIO, vec![]));
    assert_eq!(bench.calls(), [(); 5].map(|()| Save(8)));
}

#[test]
fn state_is_written_while_resuming_and_taken_whole() {
    let mut bench = Bench::migratable();
    assert_eq!(bench.request(Command::MigDataWrite, &data(4, b"abcd")).0, libc::EINVAL, "it runs");
    set(&mut bench, DeviceState::Resuming);
    bench.calls();
    assert!(bench.succeeds(Command::MigDataWrite, &data(4, b"abcd")).is_empty());
    bench.returns([Ok(3), Ok(5), Err(Errno::ENOSPC)]);
    for errno in [libc::EINVAL, libc::EINVAL, libc::ENOSPC] {
        assert_eq!(bench.request(Command::MigDataWrite, &data(4, b"abcd")), (errno, vec![]));
    }
    assert_eq!(bench.request(Command::MigDataWrite, &data(4, b"abc")).0, libc::EINVAL);
    assert_eq!(bench.calls(), [(); 4].map(|()| Load(b"abcd".to_vec())));
}

#[test]
fn no_region_is_written_while_the_device_is_stopped_and_copied() {
    let mut bench = Bench::migratable();
    set(&mut bench, DeviceState::StopCopy);
    bench.calls();
    assert_eq!(bench.request(Command::RegionWrite, &access(0, 0, 1, b"x")).0, libc::EINVAL);
    bench.succeeds(Command::RegionRead, &access(0, 0, 1, &[]));
    assert_eq!(bench.calls(), [Read(0, 0, 1)]);
}
