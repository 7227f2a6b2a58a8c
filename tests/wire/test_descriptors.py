"""Descriptors of every kind as the memory of a DMA_MAP."""
import contextlib
import ctypes
import errno
import os
import pty
import socket
import struct
import tempfile

import pytest

from dma_peer import TWIN
from guest import *
from peer import *
from silent_fs import GETATTR, silent_fs

BASE = 0x100000
RW = MAP_READ | MAP_WRITE
libc = ctypes.CDLL(None, use_errno=True)


def made_by(call, *arguments):
    fd = call(*arguments)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def read_only(path):
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def one_of(pair):
    """One of two descriptors; the other one is closed."""
    keep, other = pair
    os.close(other)
    return keep


def a_socket():
    a, b = socket.socketpair()
    b.close()
    return a.detach()


def a_file():
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    os.ftruncate(fd, 4 * PAGE)
    return fd


def a_block_device():
    for name in os.listdir("/sys/class/block"):
        with contextlib.suppress(OSError):
            return read_only(f"/dev/{name}")
    pytest.skip("no block device can be opened")


def signals():
    return made_by(libc.signalfd, -1, bytes(128), 0)


# Kind, how to make one, whether it is memory for FILE_IO.
KINDS = [
    ("memfd", lambda: named_memfd("kinds", 4 * PAGE), True), ("file", a_file, True), ("block device", a_block_device, True),
    ("path", lambda: os.open(__file__, os.O_PATH), True),
    ("pipe, read end", lambda: one_of(os.pipe()), False), ("pipe, write end", lambda: one_of(os.pipe()[::-1]), False),
    ("socket", a_socket, False), ("directory", lambda: read_only("/"), False), ("/dev/zero", lambda: read_only("/dev/zero"), False),
    ("/dev/null", lambda: read_only("/dev/null"), False), ("terminal", lambda: one_of(pty.openpty()), False),
    ("eventfd", lambda: os.eventfd(0), False), ("epoll", lambda: made_by(libc.epoll_create1, 0), False),
    ("timerfd", lambda: made_by(libc.timerfd_create, 1, 0), False), ("inotify", lambda: made_by(libc.inotify_init1, 0), False),
    ("signalfd", signals, False),
]


@pytest.mark.parametrize("flags", [RW, MAP_READ, RW | MAP_FILE_IO, MAP_READ | MAP_FILE_IO, RW | MAP_MMAP])
@pytest.mark.parametrize("make, good", [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_kinds(make, good, flags):
    """FILE_IO takes what has offsets and an end. What can be mapped is mmap's business."""
    with attached(dma=True) as (ctx, client):
        before = open_fds()
        fd = make()
        sent = struct.pack("<IIQQQ", 32, flags, 0, BASE, PAGE)
        client.send(DMA_MAP, sent, fds=[fd])
        ctx.run()
        reply = client.recv()
        if flags & MAP_FILE_IO:
            assert reply.error == (0 if good else errno.EINVAL)
        mapped = reply.error == 0
        os.close(fd)
        assert ctx.events == [("register", BASE, PAGE)] * mapped
        assert (open_fds() == before) or mapped
        if mapped:
            client.unmap(BASE, PAGE)
        assert open_fds() == before


def an_eventfd(client, i):
    fd = eventfd()
    try:
        client.send(SET_IRQS, struct.pack("<5I", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, i, 1), fds=[fd])
    finally:
        os.close(fd)


def a_page(client, i):
    fd = memfd(PAGE)
    try:
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RW | MAP_FILE_IO, 0, BASE + i * PAGE, PAGE), fds=[fd])
    finally:
        os.close(fd)


@pytest.mark.parametrize("free", [24, 60, 200])
@pytest.mark.parametrize("send", [an_eventfd, a_page])
def test_what_stays_leaves_descriptors_to_others(send, free):
    """No client gets the last descriptors of the process: another context can take on another one."""
    with Ctx(dma=True, max_regions=256, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 256)
        ctx.realize()
        with ctx.connect() as client, Ctx() as other:
            other.poll_fd(), ctx.poll_fd()
            before = open_fds()
            with Room(free):
                errors = []
                for i in range(free):
                    send(client, i)
                    ctx.run()
                    errors.append(client.recv().error)
                kept = errors.count(0)
                assert errors == [0] * kept + [errno.EMFILE] * (free - kept)
                assert 0 < kept <= free - 8
                assert len(open_fds()) == len(before) + kept
                with other.connect(caps=TWIN) as second:
                    alive(second)
                alive(client)
            client.close()
            until_lost(ctx), until_lost(other)
            assert len(open_fds()) == len(before) - 2, "the connection, both ends, and nothing else"


@pytest.mark.parametrize("offset, size", [(0, 2 * PAGE), (PAGE, 3 * PAGE), (0, 8 * PAGE), (4 * PAGE, PAGE)])
@pytest.mark.parametrize("flags", [RW, RW | MAP_FILE_IO], ids=["mmap", "file io"])
def test_a_map_asks_nothing_of_a_file_system_that_does_not_answer(flags, offset, size):
    """Parts of it may be beyond the end of the file."""
    with silent_fs(4 * PAGE) as (fs, fd), attached(dma=True) as (ctx, client):
        fs.silence()
        for i in range(3):
            client.map(BASE + i * size, size, fd, offset=offset, flags=flags)
        client.map(BASE, size, fd, offset=offset, flags=flags)
        client.map(BASE, size, fd, offset=offset + PAGE, flags=flags, expect=errno.EEXIST)
        client.map(BASE + 3 * size, PAGE, fd, offset=(1 << 64) - 1, expect=errno.EINVAL)
        client.unmap(0, 0, UNMAP_ALL)
        assert fs.asked == []


@pytest.mark.parametrize("others", [0, 1])
def test_an_interrupt_asks_nothing_of_a_file_system_that_does_not_answer(others):
    """A file in place of an eventfd, or beside one, is told without it, refused and closed."""
    with silent_fs(PAGE) as (fs, fd), Ctx(realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 2)
        ctx.realize()
        with ctx.connect() as client:
            good = eventfd()
            before = open_fds()
            fs.silence()
            for _ in range(3):
                fds = [good] * others + [fd]
                client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, len(fds), fds=fds, expect=errno.EINVAL)
            fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 0)
            assert fs.asked == [] and open_fds() == before
            os.close(good)


def test_the_file_system_of_these_tests_would_be_asked():
    with silent_fs(PAGE) as (fs, fd):
        os.fstat(fd)
        fs.silence()
        with pytest.raises(OSError):
            os.fstat(fd)
        assert fs.asked == [GETATTR]
