"""Live upgrade: a client that talks to a device notices nothing when another context takes it over."""
import ctypes as c
import errno
import os
import random
import struct

import pytest
from hand_over import Device, Upgrade, device, upgraded
from libvfu import *

import ext

READ_4 = struct.pack("<QII", 0, BAR0, 4)


def write_of(offset, data, region=BAR0):
    return struct.pack("<QII", offset, region, len(data)) + data


def send_all(client, data):
    """Sends, and has the context receive what does not fit into the socket."""
    client.sock.settimeout(0)
    while data:
        try:
            data = data[client.sock.send(data):]
        except BlockingIOError:
            client.ctx.run()
    client.sock.settimeout(20)


def recv_all(client, count):
    """Receives so many bytes, and has the context send on what does not fit into the socket."""
    data = b""
    client.sock.settimeout(0)
    while len(data) < count:
        try:
            data += client.sock.recv(count - len(data))
        except BlockingIOError:
            assert client.ctx.readable()
            client.ctx.run()
    client.sock.settimeout(20)
    return data


# --- the connection --------------------------------------------------------------

def test_a_client_goes_on():
    with device() as old, old.connect() as client:
        client.write(BAR0, 8, b"before..")
        new = old.upgrade(client)
        assert client.read(BAR0, 8, 8) == b"before.."
        client.write(BAR0, 8, b"after...")
        assert client.read(BAR0, 8, 8) == b"after..."
        assert old.owned == [False] and new.owned == [True]
        assert ("reset", RESET_LOST_CONN) not in old.events


def test_a_main_loop_may_ask_in_each_turn_whether_anybody_may_take_over():
    with Device() as ctx:
        before = len(ctx.lines)
        fails(errno.ENOENT, lambda: call("vfux_get_hand_over_fd", ctx.p))
        assert len(ctx.lines) == before, "that is no refusal"
        ctx.serve_upgrades()
        assert call("vfux_get_hand_over_fd", ctx.p) == call("vfux_get_hand_over_fd", ctx.p) >= 0
        fails(errno.EEXIST, ctx.serve_upgrades)


def test_again_and_again_at_the_same_path():
    with device() as old, old.connect() as client:
        before = None
        for n in range(20):
            new = old.upgrade(client)
            client.write(BAR0, 0, struct.pack("<Q", n))
            assert client.read(BAR0, 0, 8) == struct.pack("<Q", n)
            if n == 1:
                before = len(open_fds())
        assert len(open_fds()) == before
        assert sorted(os.listdir(os.path.dirname(new.path))) == ["s", "s.upgrade"]
    assert not os.path.exists(os.path.dirname(new.path))


def test_without_a_client_the_next_one_comes_to_the_new_one():
    with device() as old:
        new = old.upgrade()
        assert not new.readable()
        with new.connect() as client:
            assert new.readable() is False
            client.write(BAR0, 0, b"1234")
        fails(errno.ENOTCONN, new.run)
        with new.connect() as client:
            assert client.read(BAR0, 0, 4) == b"1234"


def test_who_waits_to_be_accepted_is_accepted():
    with device() as old:
        client = old.connect(attach=False)
        new = old.upgrade()
        assert new.readable()
        client.ctx = new
        client.send(VERSION, version_payload())
        new.attach()
        assert client.recv().cmd == VERSION
        client.close()


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 19])
def test_in_the_middle_of_the_version(cut):
    text = message(1, VERSION, version_payload())
    with device() as old:
        client = old.connect(attach=False)
        client.send_raw(text[:cut])
        fails(errno.EAGAIN, old.attach)
        new = old.upgrade()
        fails(errno.EAGAIN, new.attach)
        client.send_raw(text[cut:])
        new.attach()
        assert client.recv().cmd == VERSION
        client.close()


def test_what_was_sent_and_not_received_is_executed_by_the_new_one():
    with device() as old, old.connect() as client:
        ids = [client.send(REGION_WRITE, write_of(n, b"x")) for n in range(50)]
        new = old.upgrade(client)
        assert new.readable()
        assert old.mem[0] == 0
        new.executes(50)
        assert [client.recv().msg_id for _ in ids] == ids
        assert new.mem[:51] == b"x" * 50 + b"\0"


def test_what_was_received_and_not_executed_is_executed_by_the_new_one():
    """A call executes 256 requests; the rest lies in the old process."""
    with device() as old, old.connect() as client:
        ids = list(range(1, 601))
        client.send_raw(b"".join(message(i, REGION_WRITE, write_of(i - 1, b"x"), F_NO_REPLY if (i - 1) % 3 else 0)
                                 for i in ids))
        done = old.run()
        assert 0 < done < 600
        new = old.upgrade(client)
        assert new.readable()
        new.executes(600 - done)
        assert [client.recv().msg_id for _ in ids[::3]] == ids[::3]
        assert new.mem[:601] == b"x" * 600 + b"\0"
        assert [e[2] for e in old.events + new.events if e[0] == "write"] == list(range(600))
        assert client.nothing()


@pytest.mark.parametrize("size", [4, 3000, 70000, 300000])
def test_half_a_message_is_finished_by_the_new_one(size):
    bar = 1 << 20
    with device(bar=bar) as old, old.connect() as client:
        for seed in range(6):
            data = random.Random(seed).randbytes(size)
            text = message(7, REGION_WRITE, write_of(16, data))
            cut = random.Random(seed + size).choice([1, 15, 16, 17, 31, 32, len(text) - 1, len(text) // 2])
            send_all(client, text[:cut])
            assert client.ctx.run() == 0
            new = old.upgrade(client)
            assert new.run() == 0
            assert not new.readable()
            send_all(client, text[cut:])
            # One call receives once or twice.
            executed = 0
            while new.readable():
                executed += new.run()
            assert executed == 1
            assert client.recv().msg_id == 7
            assert new.mem[16:16 + size] == data


def test_replies_that_the_client_has_not_taken_are_sent_by_the_new_one():
    bar = 1 << 20
    with device(bar=bar) as old, old.connect() as client:
        old.mem[:] = random.Random(1).randbytes(bar)
        expected = bytes(old.mem)
        ids = [client.send(REGION_READ, struct.pack("<QII", 0, BAR0, bar)) for _ in range(5)]
        old.run()
        assert not old.readable(), "it is not stuck"
        new = old.upgrade(client)
        assert not new.readable()
        for msg_id in ids:
            head = recv_all(client, 32)
            assert struct.unpack_from("<HHI", head) == (msg_id, REGION_READ, 32 + bar)
            assert recv_all(client, bar) == expected
        assert client.read(BAR0, 0, 8) == expected[:8]


def test_what_the_version_agreed_on_stays():
    with device(dma=True) as old, old.connect(caps={"max_data_xfer_size": 4096, "write_multiple": True}) as client:
        client.map(0, PAGE)
        new = old.upgrade(client)
        client.request(REGION_WRITE_MULTI, struct.pack("<QQIIQ", 1, 8, BAR0, 4, 0x01020304))
        assert new.mem[8:12] == b"\x04\x03\x02\x01"


# --- memory ------------------------------------------------------------------------

def test_memory_is_mapped_anew_and_the_same_file_once():
    guest = memfd(64 * PAGE, b"guest memory")
    with device(dma=True) as old, old.connect() as client:
        for n in range(32):
            client.map(n * 2 * PAGE, PAGE, guest, offset=n * PAGE)
        client.map(1 << 40, PAGE, guest, flags=MAP_READ | MAP_WRITE | MAP_FILE_IO)
        client.map(1 << 41, PAGE)
        fds = len(open_fds())
        new = old.upgrade(client)
        assert len(open_fds()) <= fds
        registered = [e for e in new.events if e[0] == "register"]
        assert registered == [("register", n * 2 * PAGE, PAGE) for n in range(32)] + [
            ("register", 1 << 40, PAGE), ("register", 1 << 41, PAGE)]
        _, sg = new.sgl(0, 12)
        iov = new.sgl_get(sg)
        assert c.string_at(iov[0].base, 12) == b"guest memory"
        c.memmove(iov[0].base, b"GUEST", 5)
        new.sgl_put(sg)
        assert os.pread(guest, 5, 0) == b"GUEST"
        client.unmap(0, PAGE)
        client.map(0, PAGE, guest)
        # The very same again is no new region, so all of it is known.
        client.map(2 * PAGE, PAGE, guest, offset=PAGE)
        assert new.events[-1] == ("register", 0, PAGE)
        client.unmap(0, 0, UNMAP_ALL)
    os.close(guest)


def test_the_log_of_writes_goes_along_with_every_bit():
    guest = memfd(3000 * PAGE)
    rng = random.Random(5)
    with device(dma=True, migration=True) as old, old.connect() as client:
        client.map(0, 3000 * PAGE, guest)
        client.log_start(ranges=[(0, 100 * PAGE), (1000 * PAGE, 2000 * PAGE)])
        dirty = set()
        for _ in range(4):
            for page in rng.sample(range(3000), 60):
                _, sg = client.ctx.sgl(page * PAGE, 1, prot=PROT_WRITE)
                lib.vfu_sgl_mark_dirty(client.ctx.p, sg, 1)
                dirty.add(page)
            old.upgrade(client)
        logged = {page for page in dirty if page < 100 or 1000 <= page < 3000}
        bits = client.report(0, 3000 * PAGE)
        assert {n for n in range(3000) if bits >> n & 1} == logged
        old.upgrade(client)
        assert client.report(0, 3000 * PAGE) == 0
        client.log_stop()
        old.upgrade(client)
        client.log_start()
        assert client.report(0, 3000 * PAGE) == 0
    os.close(guest)


# --- interrupts ---------------------------------------------------------------------

def value(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("flags", [os.EFD_NONBLOCK, 0])
def test_eventfds_go_along(flags):
    fds = [os.eventfd(0, flags) for _ in range(8)]
    with device() as old, old.connect() as client:
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 8, fds=fds)
        new = old.upgrade(client)
        for n, fd in enumerate(fds):
            call("vfu_irq_trigger", new.p, n)
            assert os.eventfd_read(fd) == 1
        client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 0, 0)
        fails(errno.ENOENT, lambda: call("vfu_irq_trigger", new.p, 0))
    for fd in fds:
        os.close(fd)


def test_what_is_masked_and_what_waits_goes_along():
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    with device(pending_irqs=True) as old, old.connect() as client:
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 4, fds=fds)
        client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 1, 2)
        for n in (0, 1, 5):
            call("vfux_irq_trigger", old.p, MSIX, n)
        assert [value(fd) for fd in fds] == [1, 0, 0, 0]
        new = old.upgrade(client)
        assert [value(fd) for fd in fds] == [0, 0, 0, 0]
        call("vfux_irq_trigger", new.p, MSIX, 3)
        client.set_irqs(MSIX, DATA_NONE | ACTION_UNMASK, 1, 2)
        assert [value(fd) for fd in fds] == [0, 1, 0, 1]
        late = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 5, 1, fds=[late])
        assert value(late) == 1
        os.close(late)
    for fd in fds:
        os.close(fd)


# --- the device ----------------------------------------------------------------------

def test_configuration_space_goes_along():
    with device(caps=[b"\x01\0\0\0\0\0\0\0"]) as old, old.connect() as client:
        client.write(CFG, 4, b"\x06\x04")
        client.write(CFG, 0x3c, b"\x0b")
        before = client.read(CFG, 0, 256)
        old.upgrade(client)
        assert client.read(CFG, 0, 256) == before
        client.write(CFG, 4, b"\0\0")
        assert client.read(CFG, 4, 2) == b"\0\0"


class WithMemory(Device):
    """With a BAR that the client maps, eventfds for writes to the other one, and a file of its own."""

    def __init__(self, bar2=None, io_fds=(), file=None, **kw):
        self.bar2, self.io_fds, self.file = bar2, io_fds, file
        super().__init__(**kw)

    def setup_all(self, *args):
        super().setup_all(*args)
        if self.bar2 is None:
            old = ext.old_region()
            call("vfux_get_old_region", self.p, BAR2, c.byref(old))
            assert (old.size, old.flags, old.offset) == (2 * PAGE, RW | MEM, PAGE)
            self.bar2 = old.fd
            fails(errno.ENOENT, lambda: call("vfux_get_old_region", self.p, BAR3, c.byref(old)))
            entries = []
            entry = ext.old_ioeventfd()
            while lib.vfux_get_old_ioeventfd(self.p, BAR0, len(entries), c.byref(entry)) == 0:
                entries.append((entry.fd, entry.gpa_offset, entry.size, entry.flags, entry.datamatch))
            assert c.get_errno() == errno.ENOENT
            self.io_fds = entries
            self.file = call("vfux_get_old_fd", self.p, b"disk")
            fails(errno.ENOENT, lambda: call("vfux_get_old_fd", self.p, b"other"))
            assert call("vfux_get_old_irq_count", self.p, MSIX) == 8
            config = c.create_string_buffer(16)
            call("vfux_get_old_config_space", self.p, config, 16, 0x2c)
            fails(errno.EINVAL, lambda: call("vfux_get_old_config_space", self.p, config, 16, 250))
        self.setup_region(BAR2, 2 * PAGE, None, RW | MEM, areas=[(0, PAGE)], fd=self.bar2, offset=PAGE)
        for fd, *entry in self.io_fds:
            call("vfu_create_ioeventfd", self.p, BAR0, fd, *entry, -1, 0)
        call("vfux_add_hand_over_fd", self.p, b"disk", self.file)


def test_memory_of_bars_eventfds_for_writes_and_descriptors_of_the_devices_own():
    bar2, disk = memfd(4 * PAGE), memfd(PAGE, b"the disk")
    bells = [(os.eventfd(0), 8 * n, 4, 1, n) for n in range(3)]
    old = WithMemory(bar2, bells, disk).serve_upgrades()
    with old.connect(caps={"max_msg_fds": 8}) as client:
        info = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 64, 0, BAR2, 0, 0, 0))
        mapped, = client.fds
        asked = struct.pack("<IIII", 512, 0, BAR0, 0)
        entries = client.request(GET_REGION_IO_FDS, asked)
        theirs = client.fds
        new = upgraded(old, client, make=WithMemory)
        os.pwrite(mapped, b"by the client", PAGE)
        assert os.pread(new.bar2, 13, PAGE) == b"by the client"
        os.eventfd_write(theirs[0], 3)
        assert os.eventfd_read(new.io_fds[2][0]) == 3, "entries come in the reverse order"
        assert os.pread(new.file, 8, 0) == b"the disk"
        assert client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 64, 0, BAR2, 0, 0, 0)) == info
        assert client.request(GET_REGION_IO_FDS, asked) == entries
    new.destroy()


class Migrates(Device):
    """Its state is what it says when it migrates."""

    def __init__(self, **kw):
        super().__init__(state=False, migration=True, **kw)
        self.read_data = lambda count: self.pieces.pop(0) if self.pieces else b""
        self.pieces = []
        self.on_transition = self.begin

    def begin(self, state):
        if state == CB_STOP_COPY:
            self.pieces = [bytes(self.mem[:1000]), bytes(self.mem[1000:])]

    @property
    def states(self):
        return [e[1] for e in self.events if e[0] == "state"]

    @property
    def written(self):
        return b"".join(e[1] for e in self.events if e[0] == "write_data")


def test_the_state_of_migration_is_the_devices_state():
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        client.write(BAR0, 0, b"state")
        assert client.get_state() == S_RUNNING
        new = upgraded(old, client, make=Migrates)
        assert old.states == [CB_STOP, CB_STOP_COPY]
        assert new.states == [CB_STOP, CB_RESUME, CB_STOP, CB_RUNNING]
        assert new.written == bytes(old.mem)
        assert client.get_state() == S_RUNNING
        client.set_state(S_STOP)
        last = upgraded(new, client, make=Migrates)
        assert new.states[4:] == [CB_STOP, CB_STOP_COPY]
        assert last.states == [CB_STOP, CB_RESUME, CB_STOP]
        assert client.get_state() == S_STOP
        client.set_state(S_RUNNING)
    last.destroy()


def read_data(client, count=100):
    return client.request(MIG_DATA_READ, struct.pack("<II", 8 + count, count))[8:]


def test_in_pre_copy_it_goes_as_long_as_it_has_said_nothing():
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        client.write(BAR0, 0, b"state")
        client.set_state(S_PRE_COPY)
        assert read_data(client) == b""
        new = upgraded(old, client, make=Migrates)
        assert old.states == [CB_PRE_COPY, CB_STOP_COPY]
        assert new.states == [CB_STOP, CB_RESUME, CB_STOP, CB_RUNNING, CB_PRE_COPY]
        assert new.written == bytes(old.mem)
        assert client.get_state() == S_PRE_COPY
        client.set_state(S_STOP_COPY)
        assert new.states[-1] == CB_STOP_COPY
        assert len(read_data(client, PAGE)) == 1000
        # What was read in a session before counts no more.
        client.set_state(S_RUNNING)
        client.set_state(S_PRE_COPY)
        last = upgraded(new, client, make=Migrates)
        assert client.get_state() == S_PRE_COPY
    last.destroy()


def test_in_pre_copy_it_is_there_again_after_a_hand_over_that_fails():
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        client.set_state(S_PRE_COPY)

        def spoil(new):
            new.write_data = lambda data: new._fail(errno.EILSEQ)
        Upgrade(old, make=Migrates, before=spoil).failed(errno.EILSEQ)
        assert old.states == [CB_PRE_COPY, CB_STOP_COPY, CB_STOP, CB_RUNNING, CB_PRE_COPY]
        assert client.get_state() == S_PRE_COPY
    old.destroy()


@pytest.mark.parametrize("begin, refused, steps", [
    (S_RUNNING, CB_STOP, [CB_STOP]),
    (S_RUNNING, CB_STOP_COPY, [CB_STOP, CB_STOP_COPY, CB_RUNNING]),
    (S_STOP, CB_STOP_COPY, [CB_STOP_COPY]),
    (S_PRE_COPY, CB_STOP_COPY, [CB_STOP_COPY]),
], ids=["stop", "stop-copy", "stopped", "pre-copy"])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOTRECOVERABLE])
def test_a_device_that_does_not_stop_is_where_it_was(begin, refused, steps, number):
    """A step that fails is none; the way back begins where the last one led. (But for what the device cannot get out of.)"""
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        client.set_state(begin)
        before = len(old.states)

        def refuse(state):
            old.begin(state)
            old.transition_errno = number if state == refused else 0
        old.on_transition = refuse
        Upgrade(old, make=Migrates).failed(number)
        if number == errno.ENOTRECOVERABLE:
            assert old.states[before:] == steps[:steps.index(refused) + 1]
            assert client.get_state() == S_ERROR
            client.request(DEVICE_RESET)
        else:
            assert old.states[before:] == steps
            assert client.get_state() == begin
        client.read(BAR0, 0, 4)
        old.on_transition, old.transition_errno = old.begin, 0
        new = upgraded(old, client, make=Migrates)
        client.read(BAR0, 0, 4)
    new.destroy()


def test_a_device_that_was_not_stopped_is_not_started():
    """The client is lost while the device becomes quiet."""
    bar = 1 << 20
    old = Migrates(quiesce=True, bar=bar).serve_upgrades()
    client = old.connect()
    client.set_state(S_PRE_COPY)
    for _ in range(5):
        client.send(REGION_READ, struct.pack("<QII", 0, BAR0, bar))
    old.run()
    assert not old.readable(), "it is not stuck"
    before = old.states
    old.quiesce_errno = errno.EBUSY
    upgrade = Upgrade(old, make=Migrates, quiesce=True, bar=bar, pump=False)
    while old.hand_over() != -errno.EBUSY:
        pass
    client.close()
    old.quiesced()
    upgrade.answers.append(old.hand_over())
    upgrade.pump(old)
    upgrade.failed(errno.EBUSY)
    assert old.states == before
    old.quiesce_errno = 0
    fails(errno.ENOTCONN, old.run)
    old.destroy()


@pytest.mark.parametrize("is_old", [True, False], ids=["old", "new"])
def test_a_device_that_does_not_go_on_is_in_error_until_it_is_reset(is_old):
    def fails_to_run(ctx):
        def begin(state):
            ctx.begin(state)
            ctx.transition_errno = errno.EIO if state == CB_RUNNING else 0
        ctx.on_transition = begin

    def spoil(new):
        new.write_data = lambda data: new._fail(errno.EILSEQ)
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        client.set_state(S_PRE_COPY)
        if is_old:
            fails_to_run(old)
            Upgrade(old, make=Migrates, before=spoil).failed(errno.EILSEQ)
            now = old
        else:
            now = upgraded(old, client, make=Migrates, before=fails_to_run)
        assert client.get_state() == S_ERROR
        client.request(DEVICE_RESET)
        assert client.get_state() == S_RUNNING
    now.destroy()


def start_saying(client):
    client.set_state(S_PRE_COPY)
    client.ctx.pieces = [b"said"]
    assert read_data(client) == b"said"


@pytest.mark.parametrize("begin", [start_saying, lambda client: client.set_state(S_STOP_COPY),
                                   lambda client: client.set_state(S_RESUMING)], ids=["pre-copy", "stop-copy", "resuming"])
def test_while_it_is_migrated_it_stays(begin):
    old = Migrates().serve_upgrades()
    with old.connect() as client:
        begin(client)
        before = old.states
        Upgrade(old, make=Migrates).failed(errno.EBUSY)
        assert old.states == before
        client.set_state(S_RUNNING)
        new = upgraded(old, client, make=Migrates)
        assert client.get_state() == S_RUNNING
    new.destroy()


def test_a_device_with_callbacks_of_its_own_goes_in_pre_copy_too():
    with device(migration=True) as old, old.connect() as client:
        client.set_state(S_PRE_COPY)
        new = old.upgrade(client)
        assert client.get_state() == S_PRE_COPY
        assert ("load", S_PRE_COPY) in new.events
        assert [e for e in new.events if e[0] == "state"] == []
        client.set_state(S_RUNNING)
        assert new.events[-1] == ("state", CB_RUNNING)


def test_a_device_that_needs_time_to_become_quiet():
    with device(quiesce=True) as old, old.connect() as client:
        old.quiesce_errno = errno.EBUSY
        upgrade = Upgrade(old, quiesce=True, pump=False)
        while old.hand_over() != -errno.EBUSY:
            pass
        fails(errno.EBUSY, old.run)
        assert old.hand_over() == -errno.EBUSY
        old.quiesced()
        fails(errno.EINVAL, old.quiesced)
        fails(errno.EBUSY, old.run)
        assert old.hand_over() == 1
        upgrade.thread.join()
        assert upgrade.taken == 1
        client.ctx = upgrade.new
        client.read(BAR0, 0, 4)
        upgrade.new.destroy()


def test_a_device_that_does_not_become_quiet_stays():
    with device(quiesce=True) as old, old.connect() as client:
        old.quiesce_errno = errno.EIO
        Upgrade(old, quiesce=True).failed(errno.EIO)
        old.quiesce_errno = errno.EBUSY
        upgrade = Upgrade(old, quiesce=True, pump=False)
        while old.hand_over() != -errno.EBUSY:
            pass
        old.quiesced(errno.ENXIO)
        upgrade.pump(old)
        assert upgrade.errno == errno.ENXIO
        upgrade.new.destroy()
        old.quiesce_errno = 0
        client.read(BAR0, 0, 4)
        old.upgrade(client)
        client.read(BAR0, 0, 4)
