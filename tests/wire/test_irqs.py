"""DEVICE_SET_IRQS and vfu_irq_trigger."""
import ctypes as c
import fcntl
import os
import socket
import struct
import tempfile
import threading

import pytest
from errno import EAGAIN, EINVAL, ENOENT

from libvfu import *
from pci_device import alive

VECTORS = 2048
NONE_TRIGGER = DATA_NONE | ACTION_TRIGGER
BOOL_TRIGGER = DATA_BOOL | ACTION_TRIGGER
EVENTFD_TRIGGER = DATA_EVENTFD | ACTION_TRIGGER
FULL = (1 << 64) - 2  # the largest an eventfd counts to


class Device:
    """Counts for INTx, MSI and MSI-X of 1, 8 and 2048, and state callbacks that note their calls."""

    def __init__(self, counts=((INTX, 1), (MSI, 8), (MSIX, VECTORS)), state_callbacks=True, attach=True):
        self.ctx = Ctx(realize=False)
        for kind, n in counts:
            call("vfu_setup_device_nr_irqs", self.ctx.p, kind, n)
        if state_callbacks:
            for kind in range(5):
                call("vfu_setup_irq_state_callback", self.ctx.p, kind, self.ctx.cb(IRQ_CB, self._state(kind)))
        self.ctx.realize()
        self.client = self.ctx.connect() if attach else None
        self.fds = []

    def _state(self, kind):
        return lambda _ctx, start, count, mask: self.ctx.events.append((kind, start, count, mask))

    def eventfd(self, value=0, flags=os.EFD_NONBLOCK):
        fd = os.eventfd(value, flags | os.EFD_CLOEXEC)
        self.fds.append(fd)
        return fd

    def trigger(self, vector):
        return call("vfu_irq_trigger", self.ctx.p, vector)

    def assign(self, index, start, *fds):
        self.client.set_irqs(index, EVENTFD_TRIGGER, start, len(fds), fds=fds)

    def close(self):
        if self.client:
            self.client.close()
        self.ctx.destroy()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def dev():
    d = Device()
    yield d
    d.close()


def value(fd):
    """What a (non-blocking) eventfd counted, which starts at 0 again."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# --- set-up ----------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [5, 6, 0xffffffff])
def test_set_up_of_a_type_out_of_range(kind):
    with Ctx() as ctx:
        fails(EINVAL, call, "vfu_setup_device_nr_irqs", ctx.p, kind, 1)
        fails(EINVAL, call, "vfu_setup_irq_state_callback", ctx.p, kind, None)


# --- what is refused -------------------------------------------------------------------

REFUSED = {
    "argsz below 20": dict(index=MSIX, flags=NONE_TRIGGER, start=0, count=1, argsz=19),
    "argsz 0": dict(index=MSIX, flags=NONE_TRIGGER, start=0, count=1, argsz=0),
    "fewer booleans than count": dict(index=MSIX, flags=BOOL_TRIGGER, start=0, count=2, data=b"\1"),
    "no booleans": dict(index=MSIX, flags=BOOL_TRIGGER, start=0, count=1),
    "more booleans than count": dict(index=MSIX, flags=BOOL_TRIGGER, start=0, count=2, data=b"\1\1\1"),
    "booleans and count 0": dict(index=MSIX, flags=BOOL_TRIGGER, start=0, count=0, data=b"\1"),
    "index 5": dict(index=5, flags=NONE_TRIGGER, start=0, count=1),
    "index of 32 bits": dict(index=0xffffffff, flags=NONE_TRIGGER, start=0, count=1),
    "no action": dict(index=MSIX, flags=DATA_NONE, start=0, count=1),
    "mask and unmask": dict(index=MSIX, flags=DATA_NONE | ACTION_MASK | ACTION_UNMASK, start=0, count=1),
    "mask and trigger": dict(index=MSIX, flags=NONE_TRIGGER | ACTION_MASK, start=0, count=1),
    "all actions": dict(index=MSIX, flags=NONE_TRIGGER | ACTION_MASK | ACTION_UNMASK, start=0, count=1),
    "no data type": dict(index=MSIX, flags=ACTION_TRIGGER, start=0, count=1),
    "none and boolean": dict(index=MSIX, flags=NONE_TRIGGER | DATA_BOOL, start=0, count=1, data=b"\1"),
    "none and eventfd": dict(index=MSIX, flags=NONE_TRIGGER | DATA_EVENTFD, start=0, count=1),
    "no flags": dict(index=MSIX, flags=0, start=0, count=1),
    "start at the count": dict(index=MSIX, flags=NONE_TRIGGER, start=VECTORS, count=1),
    "start above the count": dict(index=MSIX, flags=NONE_TRIGGER, start=VECTORS + 1, count=1),
    "start of 32 bits": dict(index=MSIX, flags=NONE_TRIGGER, start=0xffffffff, count=1),
    "end above the count": dict(index=MSIX, flags=NONE_TRIGGER, start=VECTORS - 1, count=2),
    "count above the count": dict(index=MSIX, flags=NONE_TRIGGER, start=0, count=VECTORS + 1),
    "end that wraps": dict(index=MSIX, flags=NONE_TRIGGER, start=1, count=0xffffffff),
    "count 0 with a start": dict(index=MSIX, flags=NONE_TRIGGER, start=1, count=0),
    "count 0 of booleans": dict(index=MSIX, flags=BOOL_TRIGGER, start=0, count=0),
    "count 0 of eventfds": dict(index=MSIX, flags=EVENTFD_TRIGGER, start=0, count=0),
    "count 0 of mask": dict(index=MSIX, flags=DATA_NONE | ACTION_MASK, start=0, count=0),
    "count 0 of unmask": dict(index=MSIX, flags=DATA_NONE | ACTION_UNMASK, start=0, count=0),
    "mask with eventfd data": dict(index=MSIX, flags=DATA_EVENTFD | ACTION_MASK, start=0, count=1),
    "unmask with eventfd data": dict(index=MSIX, flags=DATA_EVENTFD | ACTION_UNMASK, start=0, count=1),
}
for _kind, _name in ((ERR, "ERR"), (REQ, "REQ")):
    REFUSED |= {
        f"mask of {_name}": dict(index=_kind, flags=DATA_NONE | ACTION_MASK, start=0, count=1),
        f"unmask of {_name}": dict(index=_kind, flags=DATA_NONE | ACTION_UNMASK, start=0, count=1),
        f"two of {_name}": dict(index=_kind, flags=NONE_TRIGGER, start=0, count=2),
    }


@pytest.mark.parametrize("what", REFUSED)
def test_refused(dev, what):
    before = open_fds()
    dev.client.set_irqs(**REFUSED[what], expect=EINVAL)
    assert dev.ctx.events == []
    assert open_fds() == before
    alive(dev.client)


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_descriptors_leaves_none_open(dev, what):
    fd = dev.eventfd()
    before = open_fds()
    dev.client.set_irqs(**REFUSED[what], fds=[fd, fd], expect=EINVAL)
    assert open_fds() == before
    assert value(fd) == 0
    alive(dev.client)


@pytest.mark.parametrize("size", [1, 4, 8, 16, 19])
def test_short_payload_is_refused(dev, size):
    payload = struct.pack("<IIIII", 20, NONE_TRIGGER, MSIX, 0, 0)[:size]
    dev.client.request(SET_IRQS, payload, expect=EINVAL)
    alive(dev.client)


def test_header_without_payload_is_refused(dev):
    dev.client.request(SET_IRQS, b"", expect=EINVAL, count=0)
    alive(dev.client)


@pytest.mark.parametrize("flags", [NONE_TRIGGER, BOOL_TRIGGER, DATA_NONE | ACTION_MASK, DATA_BOOL | ACTION_UNMASK])
def test_descriptors_with_other_data_are_refused(dev, flags):
    fd = dev.eventfd()
    before = open_fds()
    data = b"\1" if flags & DATA_BOOL else b""
    dev.client.set_irqs(MSIX, flags, 0, 1, data, fds=[fd], expect=EINVAL)
    assert open_fds() == before and dev.ctx.events == []
    alive(dev.client)


@pytest.mark.parametrize("count, sent", [(1, 2), (2, 1), (8, 7), (3, 8)])
def test_a_number_of_descriptors_that_is_not_count_is_refused(dev, count, sent):
    fd = dev.eventfd()
    before = open_fds()
    dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, 0, count, fds=[fd] * sent, expect=EINVAL)
    assert open_fds() == before
    fails(ENOENT, dev.trigger, 0)
    alive(dev.client)


@pytest.mark.parametrize("index", [INTX, MSI, MSIX])
@pytest.mark.parametrize("flags, count", [(NONE_TRIGGER, 0), (NONE_TRIGGER, 1), (EVENTFD_TRIGGER, 1)])
def test_type_without_vectors_refuses_everything(index, flags, count):
    dev = Device(counts=())
    dev.client.set_irqs(index, flags, 0, count, expect=EINVAL)
    alive(dev.client)
    dev.close()


@pytest.mark.parametrize("index", [ERR, REQ])
def test_err_and_req_are_triggered_one_at_a_time_even_if_there_are_more(index):
    dev = Device(counts=((index, 4),))
    fd = dev.eventfd()
    dev.assign(index, 3, fd)
    dev.client.set_irqs(index, NONE_TRIGGER, 2, 2, expect=EINVAL)
    dev.client.set_irqs(index, BOOL_TRIGGER, 2, 2, b"\1\1", expect=EINVAL)
    assert value(fd) == 0
    dev.client.set_irqs(index, NONE_TRIGGER, 3, 1)
    assert value(fd) == 1
    dev.close()


@pytest.mark.parametrize("extra", [1 << 6, 1 << 31, 0xffffffc0])
def test_flag_bits_above_the_known_ones_are_ignored(dev, extra):
    dev.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK | extra, 3, 2)
    assert dev.ctx.events == [(MSIX, 3, 2, True)]


@pytest.mark.parametrize("argsz", [20, 21, 4096, 0xffffffff])
def test_argsz_of_twenty_or_more_is_accepted(dev, argsz):
    assert dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 1, argsz=argsz) == b""


# --- masking ---------------------------------------------------------------------------

@pytest.mark.parametrize("index", [INTX, MSI, MSIX])
@pytest.mark.parametrize("action, mask", [(ACTION_MASK, True), (ACTION_UNMASK, False)])
def test_mask_with_no_data_calls_back_once(dev, index, action, mask):
    assert dev.client.set_irqs(index, DATA_NONE | action, 0, 1) == b""
    assert dev.ctx.events == [(index, 0, 1, mask)]


def test_mask_of_a_range(dev):
    dev.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 7, VECTORS - 7)
    assert dev.ctx.events == [(MSIX, 7, VECTORS - 7, True)]


@pytest.mark.parametrize("booleans, runs", [
    (b"\0\0\0", []),
    (b"\1\1\1", [(5, 3)]),
    (b"\1\0\0", [(5, 1)]),
    (b"\0\0\1", [(7, 1)]),
    (b"\1\0\1", [(5, 1), (7, 1)]),
    (b"\0\1\2\xff\0\0\x80\1", [(6, 3), (11, 2)]),
])
@pytest.mark.parametrize("action, mask", [(ACTION_MASK, True), (ACTION_UNMASK, False)])
def test_mask_with_booleans_calls_back_once_for_each_run(dev, booleans, runs, action, mask):
    dev.client.set_irqs(MSIX, DATA_BOOL | action, 5, len(booleans), booleans)
    assert dev.ctx.events == [(MSIX, start, count, mask) for start, count in runs]


@pytest.mark.parametrize("data, flag", [(b"", DATA_NONE), (b"\1", DATA_BOOL)])
def test_mask_without_a_callback_succeeds(data, flag):
    dev = Device(state_callbacks=False)
    for action in (ACTION_MASK, ACTION_UNMASK):
        assert dev.client.set_irqs(MSIX, flag | action, 0, 1, data) == b""
    alive(dev.client)
    dev.close()


def test_mask_changes_no_eventfd(dev):
    fd = dev.eventfd()
    dev.assign(MSIX, 0, fd)
    dev.client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 0, 1)
    dev.trigger(0)
    assert value(fd) == 1


# --- assigning and triggering by the client ----------------------------------------------

@pytest.mark.parametrize("index", [ERR, REQ, MSIX])
def test_disabling_what_was_never_set_succeeds(dev, index):
    before = open_fds()
    assert dev.client.set_irqs(index, NONE_TRIGGER, 0, 0) == b""
    assert dev.client.set_irqs(index, EVENTFD_TRIGGER, 0, 1) == b""
    assert open_fds() == before


def test_trigger_with_no_data_reaches_one_of_two_vectors(dev):
    a, b = dev.eventfd(4), dev.eventfd(8)
    dev.assign(MSIX, 0, a, b)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 1, 1)
    assert (value(a), value(b)) == (4, 9)


def test_trigger_with_booleans_reaches_those_that_are_true(dev):
    a, b = dev.eventfd(4), dev.eventfd(8)
    dev.assign(MSIX, 0, a, b)
    dev.client.set_irqs(MSIX, BOOL_TRIGGER, 0, 2, b"\0\1")
    assert (value(a), value(b)) == (4, 9)


@pytest.mark.parametrize("byte", [1, 2, 0x7f, 0x80, 0xff])
def test_any_byte_but_zero_is_true(dev, byte):
    a, b = dev.eventfd(), dev.eventfd()
    dev.assign(MSIX, 10, a, b)
    dev.client.set_irqs(MSIX, BOOL_TRIGGER, 10, 2, bytes([byte, 0]))
    assert (value(a), value(b)) == (1, 0)


def test_vectors_without_an_eventfd_are_passed_over(dev):
    a, b = dev.eventfd(), dev.eventfd()
    dev.assign(MSIX, 1, a)
    dev.assign(MSIX, 4, b)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, VECTORS)
    dev.client.set_irqs(MSIX, BOOL_TRIGGER, 0, 5, b"\1\1\1\1\0")
    assert (value(a), value(b)) == (2, 1)


def test_each_type_is_triggered_by_the_client(dev):
    fds = {kind: dev.eventfd() for kind in range(5)}
    for kind, fd in fds.items():
        dev.assign(kind, 0, fd)
    for kind in fds:
        dev.client.set_irqs(kind, NONE_TRIGGER, 0, 1)
        assert {k: value(fd) for k, fd in fds.items()} == {k: int(k == kind) for k in fds}


def test_new_eventfd_replaces_the_old_one_which_is_closed(dev):
    a, b = dev.eventfd(), dev.eventfd()
    dev.assign(MSIX, 3, a)
    held = open_fds()
    dev.assign(MSIX, 3, b)
    assert len(open_fds()) == len(held)
    dev.trigger(3)
    assert (value(a), value(b)) == (0, 1)


def test_count_zero_closes_all_of_the_type_and_no_other(dev):
    before = open_fds()
    fd = dev.eventfd()
    dev.assign(MSI, 0, fd)
    dev.assign(MSIX, 0, fd, fd, fd)
    dev.assign(MSIX, VECTORS - 1, fd)
    assert len(open_fds()) == len(before) + 1 + 5
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 0)
    assert len(open_fds()) == len(before) + 1 + 1
    dev.client.set_irqs(MSI, NONE_TRIGGER, 0, 0)
    assert len(open_fds()) == len(before) + 1
    fails(ENOENT, dev.trigger, 0)


@pytest.mark.parametrize("start, count", [(0, 1), (1, 1), (1, 2), (2, 3), (4, 1), (0, 5)])
def test_no_descriptors_closes_the_range_and_nothing_else(dev, start, count):
    before = open_fds()
    fds = [dev.eventfd() for _ in range(5)]
    dev.assign(MSIX, 0, *fds)
    assert dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, start, count) == b""
    assert len(open_fds()) == len(before) + 10 - count
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 5)
    assert [value(fd) for fd in fds] == [int(not start <= i < start + count) for i in range(5)]


@pytest.mark.parametrize("index", [INTX, MSI, MSIX, ERR, REQ])
def test_eventfds_are_closed_when_the_connection_is_lost(dev, index):
    before = open_fds()
    fd = dev.eventfd()
    dev.assign(index, 0, fd)
    dev.client.close()
    with pytest.raises(Failed):
        dev.ctx.run()
    assert len(open_fds()) == len(before) + 1 - 2  # ours; without both ends of the connection
    dev.client = dev.ctx.connect()
    dev.client.set_irqs(index, NONE_TRIGGER, 0, 1)
    assert value(fd) == 0


def test_eventfds_are_closed_by_destroy():
    before = open_fds()
    dev = Device()
    fd = dev.eventfd()
    for kind in range(5):
        dev.assign(kind, 0, fd)
    dev.close()
    assert open_fds() == before


def test_eventfd_stays_the_clients_own_too(dev):
    fd = dev.eventfd()
    dev.assign(MSIX, 0, fd)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 0)
    os.eventfd_write(fd, 3)
    assert value(fd) == 3


def test_many_vectors_in_one_command(dev):
    fds = [dev.eventfd() for _ in range(64)]
    dev.assign(MSIX, VECTORS - 64, *fds)
    for i in (0, 31, 63):
        dev.trigger(VECTORS - 64 + i)
    assert [i for i, fd in enumerate(fds) if value(fd)] == [0, 31, 63]


# --- what is no eventfd ---------------------------------------------------------------------

def others():
    """Descriptors that are no eventfds: (name, descriptors to close, the one to send)."""
    r, w = os.pipe()
    a, b = socket.socketpair()
    yield "pipe, write end", [r, w], w
    yield "pipe, read end", [os.dup(r)], r
    yield "socket", [a.detach(), b.fileno()], b.detach()
    fd = memfd(16)
    yield "memfd", [fd], fd
    fd = os.open(os.devnull, os.O_RDWR)
    yield "character device", [fd], fd
    fd = os.open("/", os.O_RDONLY)
    yield "folder", [fd], fd


@pytest.mark.parametrize("good_first", [False, True])
def test_anything_but_an_eventfd_is_refused_and_all_are_closed(dev, good_first):
    good = dev.eventfd()
    opened = []
    for name, owned, fd in others():
        opened += owned
        fds = [good, fd] if good_first else [fd, good]
        before = open_fds()
        dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, 0, 2, fds=fds, expect=EINVAL)
        assert open_fds() == before, name
        fails(ENOENT, dev.trigger, 0)
        fails(ENOENT, dev.trigger, 1)
        assert value(good) == 0, name
        alive(dev.client)
    for fd in opened:
        os.close(fd)


def test_refusal_leaves_the_eventfds_that_were_assigned(dev):
    good = dev.eventfd()
    dev.assign(MSIX, 0, good)
    fd = memfd(16)
    dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, 0, 1, fds=[fd], expect=EINVAL)
    dev.trigger(0)
    assert value(good) == 1
    os.close(fd)


def test_the_clients_own_end_of_the_connection_is_not_kept(dev):
    dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, 0, 1, fds=[dev.client.sock.fileno()], expect=EINVAL)
    dev.client.close()
    with pytest.raises(Failed, match="ENOTCONN"):
        dev.ctx.run()
    dev.client = dev.ctx.connect()


libc = c.CDLL(None, use_errno=True)
LOOKALIKES = {
    "timerfd": lambda: libc.timerfd_create(1, os.O_CLOEXEC),
    "epoll": lambda: libc.epoll_create1(0),
    "inotify": lambda: libc.inotify_init1(0),
    "signalfd": lambda: libc.signalfd(-1, bytes(128), 0),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "file of that name": lambda: file_of_that_name(),
    "memfd of that name": lambda: os.memfd_create("anon_inode:[eventfd]"),
}


def file_of_that_name():
    with tempfile.TemporaryDirectory() as folder:
        return os.open(os.path.join(folder, "anon_inode:[eventfd]"), os.O_RDWR | os.O_CREAT, 0o600)


def assigned(dev, fd):
    """The errno of the reply to a SET_IRQS with this descriptor."""
    dev.client.send(SET_IRQS, struct.pack("<IIIII", 20, EVENTFD_TRIGGER, MSIX, 0, 1), fds=[fd])
    assert dev.ctx.run() == 1
    return dev.client.recv().error


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_descriptors_that_look_like_eventfds_are_refused(dev, kind):
    fd = LOOKALIKES[kind]()
    assert fd >= 0
    dev.fds.append(fd)
    before = open_fds()
    dev.ctx.lines.clear()
    assert assigned(dev, fd) == EINVAL
    why = [line for level, line in dev.ctx.lines if level == 3]
    assert len(why) == 1 and "SET_IRQS" in why[0] and kind.split()[0].replace("memfd", "file") in why[0]
    assert "eventfd" in why[0].replace("signalfd", "").split("not an", 1)[1]
    assert open_fds() == before
    fails(ENOENT, dev.trigger, 0)
    alive(dev.client)


def test_eventfds_are_told_where_proc_is_not_mounted(dev, tmp_path):
    """In a process that sees no file system at all."""
    fds = {name: make() for name, make in LOOKALIKES.items()} if os.geteuid() == 0 else pytest.skip("chroot")
    dev.fds.extend(fds.values())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chroot(tmp_path)
            os.chdir("/")
            assert not os.path.exists("/proc")
            refused = [assigned(dev, fd) for fd in fds.values()]
            taken = [assigned(dev, dev.eventfd(0, flags)) for flags in (0, os.EFD_NONBLOCK)]
            dev.trigger(0)
            status = 0 if (set(refused), taken, value(dev.fds[-1])) == ({EINVAL}, [0, 0], 1) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- full counters ----------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
def test_full_counter_never_blocks(dev, flags):
    fd = dev.eventfd(0, flags)
    os.eventfd_write(fd, FULL)
    dev.assign(MSIX, 0, fd)
    fails(EAGAIN, dev.trigger, 0)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 1, expect=EAGAIN)
    dev.client.set_irqs(MSIX, BOOL_TRIGGER, 0, 1, b"\1", expect=EAGAIN)
    assert os.eventfd_read(fd) == FULL
    dev.trigger(0)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 1)
    assert os.eventfd_read(fd) == 2


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
def test_flags_of_the_clients_descriptor_stay(dev, flags):
    fd = dev.eventfd(0, flags)
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    dev.assign(MSIX, 0, fd)
    dev.trigger(0)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
    assert os.eventfd_read(fd) == 1


# --- vfu_irq_trigger --------------------------------------------------------------------------

@pytest.mark.parametrize("vector", [VECTORS, VECTORS + 1, 0xffffffff])
def test_vector_out_of_range(dev, vector):
    fails(EINVAL, dev.trigger, vector)


@pytest.mark.parametrize("vector", [0, 1, VECTORS - 1])
def test_vector_without_an_eventfd(dev, vector):
    fails(ENOENT, dev.trigger, vector)
    dev.assign(MSIX, 8, dev.eventfd())
    fails(ENOENT, dev.trigger, vector)


def test_trigger_adds_one(dev):
    fd = dev.eventfd(4)
    dev.assign(MSIX, 8, fd)
    assert dev.trigger(8) == 0
    assert value(fd) == 5


def test_by_default_there_is_one_vector_which_has_no_eventfd():
    with Ctx() as ctx:
        fails(ENOENT, call, "vfu_irq_trigger", ctx.p, 0)
        fails(EINVAL, call, "vfu_irq_trigger", ctx.p, 1)


def test_the_largest_count_of_any_type_bounds_the_vector():
    dev = Device(counts=((MSI, 3),))
    dev.assign(MSI, 0, dev.eventfd())
    fails(ENOENT, dev.trigger, 2)
    fails(EINVAL, dev.trigger, 3)
    dev.close()


def test_err_and_req_can_not_be_triggered_by_the_device(dev):
    err, req = dev.eventfd(), dev.eventfd()
    dev.assign(ERR, 0, err)
    dev.assign(REQ, 0, req)
    fails(ENOENT, dev.trigger, 0)
    assert (value(err), value(req)) == (0, 0)


def test_the_type_in_use_is_the_first_of_msix_msi_intx_with_an_eventfd(dev):
    intx, msi, msix = dev.eventfd(), dev.eventfd(), dev.eventfd()
    values = lambda: (value(intx), value(msi), value(msix))
    dev.assign(INTX, 0, intx)
    dev.trigger(0)
    assert values() == (1, 0, 0)
    dev.assign(MSI, 0, msi)
    dev.trigger(0)
    assert values() == (0, 1, 0)
    dev.assign(MSIX, 5, msix)
    fails(ENOENT, dev.trigger, 0)
    dev.trigger(5)
    assert values() == (0, 0, 1)
    dev.client.set_irqs(MSIX, NONE_TRIGGER, 0, 0)
    dev.trigger(0)
    assert values() == (0, 1, 0)
    dev.client.set_irqs(MSI, EVENTFD_TRIGGER, 0, 1)
    dev.trigger(0)
    assert values() == (1, 0, 0)
    dev.client.set_irqs(INTX, NONE_TRIGGER, 0, 0)
    fails(ENOENT, dev.trigger, 0)


def test_assigning_one_type_replaces_nothing_of_another(dev):
    intx, msix = dev.eventfd(), dev.eventfd()
    dev.assign(INTX, 0, intx)
    dev.assign(MSIX, 0, msix)
    dev.client.set_irqs(INTX, NONE_TRIGGER, 0, 1)
    assert (value(intx), value(msix)) == (1, 0)


def test_trigger_before_realize():
    with Ctx(realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 4)
        fails(EINVAL, call, "vfu_irq_trigger", ctx.p, 0)
        ctx.realize()
        fails(ENOENT, call, "vfu_irq_trigger", ctx.p, 0)


def test_count_raised_after_realize_is_safe(dev):
    """The table may grow or the new vectors be refused; the old ones go on."""
    fd = dev.eventfd()
    call("vfu_setup_device_nr_irqs", dev.ctx.p, MSIX, 1 << 20)
    dev.client.send(SET_IRQS, struct.pack("<IIIII", 20, EVENTFD_TRIGGER, MSIX, (1 << 20) - 1, 1), fds=[fd])
    dev.ctx.run()
    reply = dev.client.recv()
    if reply.flags == F_REPLY:
        assert dev.trigger((1 << 20) - 1) == 0 and value(fd) == 1
    else:
        assert reply.error == EINVAL
        fails(EINVAL, dev.trigger, (1 << 20) - 1)
    dev.assign(MSIX, 0, fd)
    dev.trigger(0)
    assert value(fd) == 1
    alive(dev.client)


def test_trigger_from_inside_a_region_callback(dev):
    fd = dev.eventfd()
    dev.assign(MSIX, 0, fd)

    def access(p, buf, count, offset, is_write):
        dev.trigger(0)
        return count
    dev.ctx.setup_region(BAR0, 0x1000, access)
    dev.client.write(BAR0, 0, b"x")
    assert value(fd) == 1
    alive(dev.client)


def test_trigger_from_other_threads_while_the_context_runs(dev):
    """Every trigger that succeeded is counted, whatever the client does to other vectors meanwhile."""
    fd, others = dev.eventfd(), [dev.eventfd() for _ in range(4)]
    dev.assign(MSIX, 0, fd)
    threads = [threading.Thread(target=lambda: [dev.trigger(0) for _ in range(2000)]) for _ in range(2)]
    for t in threads:
        t.start()
    for _ in range(200):
        dev.assign(MSIX, 1, *others)
        dev.client.set_irqs(MSIX, EVENTFD_TRIGGER, 1, 4)
    for t in threads:
        t.join()
    assert value(fd) == 4000
    assert [value(o) for o in others] == [0] * 4
