//! Asking the device to be quiet, and resetting it.

use super::*;

#[test]
fn it_is_asked_once_and_before_anything_changes() {
    let mut bench = Bench::new();
    bench.map(0, 0x1000, None);
    assert_eq!(bench.calls(), [Quiesce, Register(0, 0x1000)]);
    assert_eq!(bench.succeeds(Command::DmaUnmap, &unmap_request(0, 0x1000)).len(), 24);
    assert_eq!(bench.calls(), [Quiesce, Unregister(0, 0x1000)]);
    assert!(bench.succeeds(Command::DeviceReset, &[]).is_empty());
    assert_eq!(bench.calls(), [Quiesce, Reset(ResetType::Device)]);
}

#[test]
fn a_device_that_cannot_refuses_the_request() {
    let mut bench = Bench::new();
    bench.returns([Err(Errno::ENOTTY)]);
    bench.send(Command::DmaMap, &map_request(0, 0x1000));
    assert_eq!(bench.context.run(), Ok(0), "it is not executed");
    assert_eq!(bench.reply(), (libc::ENOTTY, vec![]));
    assert_eq!(bench.calls(), [Quiesce]);
}

#[test]
fn a_device_that_needs_time_holds_everything_up() {
    let mut bench = Bench::new();
    bench.returns([Err(Errno::EBUSY)]);
    bench.send(Command::DmaMap, &map_request(0, 0x1000));
    bench.send(Command::RegionRead, &access(0, 0, 1, &[]));
    for _ in 0..3 {
        assert_eq!(bench.context.run(), Err(Errno::EBUSY));
    }
    assert_eq!(bench.calls(), [Quiesce]);
    assert_eq!(bench.context.device_quiesced(0), Ok(()));
    assert_eq!(bench.calls(), [Register(0, 0x1000)]);
    assert_eq!(bench.reply(), (0, vec![]));
    assert_eq!(bench.context.device_quiesced(0), Err(Errno::EINVAL), "nothing waits");
    assert_eq!(bench.context.run(), Ok(1));
    assert_eq!(bench.calls(), [Read(0, 0, 1)]);
}

#[test]
fn a_device_that_fails_in_the_end_is_reset() {
    let mut bench = Bench::new();
    bench.returns([Err(Errno::EBUSY)]);
    bench.send(Command::DmaMap, &map_request(0, 0x1000));
    assert_eq!(bench.context.run(), Err(Errno::EBUSY));
    assert_eq!(bench.context.device_quiesced(libc::EIO), Ok(()));
    assert_eq!(bench.reply(), (libc::EIO, vec![]));
    assert_eq!(bench.calls(), [Quiesce, Reset(ResetType::Device)]);
}

#[test]
fn a_reset_that_fails_is_told_to_the_client() {
    let mut bench = Bench::new();
    bench.returns([Ok(0), Err(Errno::new(0xbeef))]);
    assert_eq!(bench.request(Command::DeviceReset, &[]), (0xbeef, vec![]));
}

#[test]
fn what_a_device_may_call_in_a_call() {
    let mut bench = Bench::new();
    bench.during(|context| {
        assert_eq!(context.run(), Err(Errno::EBUSY));
        assert_eq!(context.attach(), Err(Errno::EINVAL));
        assert_eq!(context.device_quiesced(0), Err(Errno::EINVAL));
        assert_eq!(context.guest().trigger(0), Err(Errno::ENOENT));
        assert_eq!(context.read_memory(0, &mut [0]), Err(Errno::ENOENT));
        context
            .setup_region(4, RegionConfig { flags: RegionFlags::READ, ..RegionConfig::default() })
            .unwrap();
        context.setup_irqs(IrqType::Msi, 2).unwrap();
    });
    bench.succeeds(Command::DeviceReset, &[]);
    bench.succeeds(Command::RegionWrite, &access(0, 0, 4, b"abcd"));
    bench.map(0, 0x1000, None);
}
