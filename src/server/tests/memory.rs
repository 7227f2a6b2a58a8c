//! Guest memory and interrupts, from the thread of the context and from others.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::*;

const PAGE: u64 = 0x1000;

fn memory(size: u64) -> OwnedFd {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, size as i64).unwrap();
    fd
}

fn pread(fd: &OwnedFd, offset: i64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    assert_eq!(nix::sys::uio::pread(fd.as_fd(), &mut bytes, offset).unwrap(), count);
    bytes
}

#[test]
fn bytes_are_moved_over_any_number_of_regions() {
    let mut bench = Bench::new();
    // More than are looked up at a time; the tenth is missing at first.
    let memories: Vec<OwnedFd> = (0..11).map(|_| memory(PAGE)).collect();
    for (number, fd) in memories.iter().enumerate().filter(|(number, _)| *number != 9) {
        bench.map(number as u64 * PAGE, PAGE, Some(fd));
    }
    let bytes: Vec<u8> = (0..10 * PAGE).map(|at| ((at * 7) >> 3) as u8).collect();
    let guest = bench.context.guest();
    assert_eq!(guest.write_memory(PAGE / 2, &bytes), Err(Errno::ENOENT));
    bench.map(9 * PAGE, PAGE, Some(&memories[9]));
    let guest = bench.context.guest();
    guest.write_memory(PAGE / 2, &bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    guest.read_memory(PAGE / 2, &mut back).unwrap();
    assert!(back == bytes);
    let half = PAGE as usize / 2;
    assert!(pread(&memories[0], half as i64, half) == bytes[..half]);
    assert!(pread(&memories[10], 0, half) == bytes[bytes.len() - half..]);
    let mut again = vec![0; bytes.len()];
    bench.context.read_memory(PAGE / 2, &mut again).unwrap();
    assert!(again == bytes);
}

#[test]
fn what_cannot_be_reached() {
    let mut bench = Bench::new();
    bench.map(0, PAGE, None);
    let guest = bench.context.guest();
    assert_eq!(guest.read_memory(0, &mut [0; 4]), Err(Errno::EFAULT), "by messages only");
    assert_eq!(guest.write_memory(0, &[0; 4]), Err(Errno::EFAULT));
    assert_eq!(guest.read_memory(PAGE - 1, &mut [0; 2]), Err(Errno::ENOENT));
    assert_eq!(guest.read_memory(u64::MAX, &mut [0; 2]), Err(Errno::ENOENT));
    assert_eq!(guest.read_memory(u64::MAX, &mut []), Ok(()));
    assert_eq!(guest.trigger(4), Err(Errno::EINVAL), "there are 4 vectors");
}

#[test]
fn memory_without_a_descriptor_is_asked_of_the_client() {
    let mut bench = Bench::new();
    bench.map(0, 2 * PAGE, None);
    let mut client = bench.client.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for data in [&b"read"[..], &[]] {
                let mut header = [0; 16];
                client.read_exact(&mut header).unwrap();
                let size = u32::from_ne_bytes(header[4..8].try_into().unwrap()) as usize - 16;
                let mut payload = vec![0; size];
                client.read_exact(&mut payload).unwrap();
                assert_eq!(payload[..16], words(&[], &[0x1ffc, 4]));
                assert_eq!(payload[16..], if data.is_empty() { &b"sent"[..] } else { &[] }[..]);
                payload.truncate(16);
                payload.extend(data);
                header[4..8].copy_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
                header[8] = 1;
                client.write_all(&header).unwrap();
                client.write_all(&payload).unwrap();
            }
        });
        let mut bytes = [0; 4];
        bench.context.read_memory(0x1ffc, &mut bytes).unwrap();
        assert_eq!(&bytes, b"read");
        bench.context.write_memory(0x1ffc, b"sent").unwrap();
    });
}

#[test]
fn memory_stays_while_another_thread_moves_bytes() {
    let mut bench = Bench::new();
    let fd = memory(PAGE);
    nix::sys::uio::pwrite(fd.as_fd(), &[0x5a; PAGE as usize], 0).unwrap();
    let Bench { context, client, .. } = &mut bench;
    let stream = client.as_mut().unwrap();
    let done = AtomicBool::new(false);
    let guest = context.guest();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut bytes, mut read) = ([0; PAGE as usize], 0_u32);
            while !done.load(Ordering::Relaxed) || read == 0 {
                match guest.read_memory(0, &mut bytes) {
                    Ok(()) => {
                        assert!(bytes == [0x5a; PAGE as usize]);
                        read += 1;
                    }
                    Err(errno) => assert!(matches!(errno, Errno::ENOENT | Errno::EINVAL), "{errno}"),
                }
                guest.write_memory(0, &[0x5a; 64]).ok();
            }
        });
        let mut exchange = |command: Command, payload: &[u8], fds: &[i32]| {
            let bytes = message(command as u16, payload);
            let rights = [ControlMessage::ScmRights(fds)];
            let control = if fds.is_empty() { &[][..] } else { &rights[..] };
            let data = [std::io::IoSlice::new(&bytes)];
            sendmsg::<()>(stream.as_raw_fd(), &data, control, MsgFlags::empty(), None).unwrap();
            assert_eq!(context.run(), Ok(1));
            assert_eq!(receive(stream).0, 0);
        };
        for _ in 0..500 {
            exchange(Command::DmaMap, &map_request(0, PAGE), &[fd.as_raw_fd()]);
            exchange(Command::DmaUnmap, &unmap_request(0, PAGE), &[]);
        }
        exchange(Command::DmaMap, &map_request(0, PAGE), &[fd.as_raw_fd()]);
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn a_region_that_the_device_refuses_goes() {
    let mut bench = Bench::new();
    bench.returns([Ok(0), Err(Errno::ENOTSUP)]);
    assert_eq!(bench.request(Command::DmaMap, &map_request(0, PAGE)), (libc::ENOTSUP, vec![]));
    assert_eq!(bench.calls(), [Call::Quiesce, Call::Register(0, PAGE)], "without an Unregister");
    assert_eq!(bench.context.guest().read_memory(0, &mut [0]), Err(Errno::ENOENT));
    bench.map(0, PAGE, None);
    assert_eq!(bench.calls(), [Call::Quiesce, Call::Register(0, PAGE)]);
}
