//! Clients that come and go, and the end of a context.

use super::*;

#[test]
fn a_client_that_goes_takes_its_memory_along() {
    let mut bench = Bench::new();
    for iova in [0x3000, 0x1000, 0x2000] {
        bench.map(iova, 0x1000, None);
    }
    bench.calls();
    bench.client = None;
    assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
    let gone = [0x1000, 0x2000, 0x3000].map(|iova| Unregister(iova, 0x1000));
    let mut expected = vec![Quiesce];
    expected.extend(gone);
    expected.push(Reset(ResetType::LostConn));
    assert_eq!(bench.calls(), expected);
    assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
    assert_eq!(bench.calls(), []);
}

#[test]
fn the_next_client_is_served() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.client = None;
        assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
        bench.connect();
        bench.succeeds(Command::RegionRead, &access(0, 0, 4, &[]));
    }
}

#[test]
fn what_was_sent_before_the_end_is_executed() {
    let mut bench = Bench::new();
    bench.send(Command::RegionWrite, &access(0, 0, 1, b"x"));
    bench.client = None;
    assert_eq!(bench.context.run(), Ok(1));
    assert_eq!(bench.calls()[0], Write(0, 0, b"x".to_vec()));
    assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
}

#[test]
fn a_loss_waits_for_a_device_that_needs_time() {
    let mut bench = Bench::new();
    bench.client = None;
    bench.returns([Err(Errno::EBUSY)]);
    assert_eq!(bench.context.run(), Err(Errno::EBUSY));
    assert_eq!(bench.calls(), [Quiesce]);
    assert_eq!(bench.context.device_quiesced(0), Ok(()));
    assert_eq!(bench.calls(), [Reset(ResetType::LostConn)]);
    assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
    bench.connect();
}

#[test]
fn nobody_is_there() {
    let bench = Bench::alone();
    assert_eq!(bench.context.attach(), Err(Errno::EAGAIN));
    assert_eq!(bench.context.run(), Err(Errno::ENOTCONN));
    assert_eq!(Context::create(&bench.path, true, Recorder::default()).err(), Some(Errno::EADDRINUSE));
}

#[test]
fn a_context_that_was_not_realized_serves_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let context = Context::create(&folder.path().join("s"), true, Recorder::default()).unwrap();
    assert_eq!(context.run(), Err(Errno::EINVAL));
}

/// Tells its test, which outlives it, what it is called for.
struct Told<'a>(&'a RefCell<Vec<Call>>);

impl Device for Told<'_> {
    fn reset(&self, _: &Context<Self>, kind: ResetType) -> Result<()> {
        self.0.borrow_mut().push(Reset(kind));
        Ok(())
    }
}

#[test]
fn a_device_is_told_of_the_end_unless_its_context_is_just_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let calls = RefCell::default();
    drop(Context::create(&path, true, Told(&calls)).unwrap());
    assert!(!path.exists() && calls.take().is_empty());
    Context::create(&path, true, Told(&calls)).unwrap().close();
    assert!(!path.exists() && calls.take() == [Reset(ResetType::LostConn)]);
}

#[test]
fn a_blocking_context_serves_until_the_client_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let context = Context::create(&path, false, Recorder::default()).unwrap();
    context.realize().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&message(Command::Version as u16, b"\0\0\x01\0{}\0")).unwrap();
            assert_eq!(receive(&mut stream).0, 0);
            for _ in 0..3 {
                stream.write_all(&message(Command::DeviceReset as u16, &[])).unwrap();
                assert_eq!(receive(&mut stream), (0, vec![]));
            }
        });
        context.attach().unwrap();
        assert_eq!(context.run(), Err(Errno::ENOTCONN));
    });
    let resets =
        context.device().calls.take().iter().filter(|call| **call == Reset(ResetType::Device)).count();
    assert_eq!(resets, 3);
}

#[test]
fn a_line_of_log_is_made_up_to_the_level_only() {
    let mut bench = Bench::new();
    bench.request(Command::DmaRead, &[0]);
    assert_eq!(bench.calls(), [], "no log at first");
    bench.context.set_log_level(Some(libc::LOG_ERR));
    bench.request(Command::DmaRead, &[0]);
    bench.succeeds(Command::RegionRead, &access(0, 0, 1, &[]));
    let calls = bench.calls();
    assert!(matches!(calls[..], [Log(libc::LOG_ERR, _), Read(..)]), "{calls:?}");
    bench.context.set_log_level(None);
    bench.request(Command::DmaRead, &[0]);
    assert_eq!(bench.calls(), []);
}
