"""The migration states: every transition, what fails, and the way out."""
import ctypes as c
import errno
import os
import struct

import pytest

from libvfu import *
from guest import *

BASE = 0x100000
NAMES = {S_ERROR: "ERROR", S_STOP: "STOP", S_RUNNING: "RUNNING", S_STOP_COPY: "STOP_COPY", S_RESUMING: "RESUMING",
         S_RUNNING_P2P: "RUNNING_P2P", S_PRE_COPY: "PRE_COPY", S_PRE_COPY_P2P: "PRE_COPY_P2P"}
ERR, S, R, SC, RS, P2P, PC, PCP = range(8)
NUMBER = {S: CB_STOP, R: CB_RUNNING, SC: CB_STOP_COPY, PC: CB_PRE_COPY, RS: CB_RESUME}
X = None
# from -> for each target 0..7 the states entered in order; X: refused
TABLE = {
    S: [X, [], [R], [SC], [RS], X, [R, PC], X],
    R: [X, [S], [], [S, SC], [S, RS], X, [PC], X],
    SC: [X, [S], [S, R], [], [S, RS], X, X, X],
    RS: [X, [S], [S, R], [S, SC], [], X, [S, R, PC], X],
    PC: [X, [R, S], [R], [SC], [R, S, RS], X, [], X],
    ERR: [X] * 8,
}
CELLS = [(a, b) for a in TABLE for b in range(8)]
PATHS = [(a, b, TABLE[a][b]) for a, b in CELLS if TABLE[a][b]]
STATES = [S, R, SC, RS, PC]


def cell_name(value):
    return NAMES.get(value) if isinstance(value, int) else None


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


def fail_at(ctx, step, number):
    """The transition callback fails at this step (from 0), from now on counted."""
    seen = []

    def transition(_state):
        ctx.transition_errno = number if len(seen) == step else 0
        seen.append(1)
    ctx.on_transition = transition


def succeed(ctx):
    ctx.on_transition = lambda state: None
    ctx.transition_errno = 0


def enter(ctx, client, state):
    """Brings the device into a state, ERROR included."""
    if state == ERR:
        fail_at(ctx, 0, errno.ENOTRECOVERABLE)
        client.set_state(S, expect=errno.ENOTRECOVERABLE)
        succeed(ctx)
    elif state != R:
        client.set_state(state)
    assert client.get_state() == state
    ctx.events.clear()


def callbacks(path):
    return [("state", NUMBER[s]) for s in path]


# --- the table -----------------------------------------------------------------------
@pytest.mark.parametrize("start, target", CELLS, ids=lambda v: NAMES[v])
def test_transition(device, start, target):
    ctx, client = device
    enter(ctx, client, start)
    path = TABLE[start][target]
    if path is X:
        client.set_state(target, expect=errno.EINVAL)
        assert ctx.events == []
        assert client.get_state() == start
    else:
        p = client.set_state(target)
        assert p == struct.pack("<IIII", 16, F_STATE | FEATURE_SET, target, 0)
        assert ctx.events == callbacks(path)
        assert client.get_state() == target


@pytest.mark.parametrize("state", [8, 9, 0xff, 0xabcd, 0x80000000, 0xffffffff, 256 + S])
@pytest.mark.parametrize("start", STATES, ids=lambda v: NAMES[v])
def test_a_state_that_is_none(device, start, state):
    ctx, client = device
    enter(ctx, client, start)
    client.set_state(state, expect=errno.EINVAL)
    assert ctx.events == []
    assert client.get_state() == start


def test_every_pair_of_transitions_in_one_session(device):
    """From each state to each, one after the other: nothing depends on what went before."""
    ctx, client = device
    state = R
    for first in STATES:
        for second in STATES:
            for target in (first, second):
                path = TABLE[state][target]
                ctx.events.clear()
                client.set_state(target, expect=errno.EINVAL if path is X else 0)
                assert ctx.events == callbacks(path or [])
                state = state if path is X else target
                assert client.get_state() == state


def test_the_number_of_the_data_descriptor_is_ignored_and_echoed(device):
    ctx, client = device
    data = struct.pack("<Ii", S, -1)
    assert client.feature(F_STATE | FEATURE_SET, data)[8:] == data
    assert client.feature(F_STATE | FEATURE_GET, argsz=16)[8:] == struct.pack("<II", S, 0)


def test_the_transition_is_complete_when_the_reply_comes(device):
    ctx, client = device
    ctx.on_transition = lambda state: ctx.events.append(client.nothing())
    client.set_state(SC)
    assert ctx.events == [("state", CB_STOP), True, ("state", CB_STOP_COPY), True]


def test_a_composed_path_asks_for_quiesce_once():
    with attached(migration=True, quiesce=True) as (ctx, client):
        client.set_state(RS)
        assert ctx.events == ["quiesce", ("state", CB_STOP), ("state", CB_RESUME)]


# --- failing steps -----------------------------------------------------------------------
FAILING = [(a, b, path, k) for a, b, path in PATHS for k in range(len(path))]


@pytest.mark.parametrize("start, target, path, step", FAILING, ids=cell_name)
@pytest.mark.parametrize("number", [0xbeef, errno.EIO, errno.EBUSY])
def test_a_failing_step_leaves_the_state_of_the_last_completed_one(device, start, target, path, step, number):
    ctx, client = device
    enter(ctx, client, start)
    fail_at(ctx, step, number)
    client.set_state(target, expect=number)
    assert ctx.events == callbacks(path[:step + 1])
    succeed(ctx)
    assert client.get_state() == ([start] + path)[step]
    ctx.events.clear()
    rest = TABLE[([start] + path)[step]][target]
    client.set_state(target)
    assert ctx.events == callbacks(rest)
    assert client.get_state() == target


@pytest.mark.parametrize("start, target, path, step", FAILING, ids=cell_name)
def test_a_device_that_cannot_be_restored_is_in_error(device, start, target, path, step):
    ctx, client = device
    enter(ctx, client, start)
    fail_at(ctx, step, errno.ENOTRECOVERABLE)
    client.set_state(target, expect=errno.ENOTRECOVERABLE)
    assert ctx.events == callbacks(path[:step + 1])
    succeed(ctx)
    assert client.get_state() == ERR
    client.set_state(target, expect=errno.EINVAL)


class Returning(Ctx):
    """The transition callback returns what it is told to, with an errno."""
    result, number = 0, 0

    def _transition(self, _ctx, state):
        self.events.append(("state", state))
        c.set_errno(self.number)
        return self.result


@pytest.mark.parametrize("result, number, expected", [
    (1, errno.EIO, errno.EINVAL), (5, 0, errno.EINVAL), (1 << 30, errno.ENOTRECOVERABLE, errno.EINVAL),
    (-1, errno.EIO, errno.EIO), (-2, errno.EACCES, errno.EACCES), (-1, 0xbeef, 0xbeef)])
def test_any_result_but_0_is_a_failure(result, number, expected):
    with Returning(migration=True) as ctx, ctx.connect() as client:
        ctx.result, ctx.number = result, number
        client.set_state(S, expect=expected)
        assert ctx.events == [("state", CB_STOP)]
        assert client.get_state() == R
        ctx.result, ctx.number = 0, errno.EXDEV
        client.set_state(S)
        assert client.get_state() == S


# --- the state ERROR --------------------------------------------------------------------
@pytest.mark.parametrize("target", range(9))
def test_in_error_every_set_is_refused(device, target):
    ctx, client = device
    enter(ctx, client, ERR)
    client.set_state(target, expect=errno.EINVAL)
    assert ctx.events == []
    assert client.get_state() == ERR


def test_in_error_migration_data_are_refused(device):
    ctx, client = device
    enter(ctx, client, ERR)
    client.request(MIG_DATA_READ, struct.pack("<II", 16, 8), expect=errno.EINVAL)
    client.request(MIG_DATA_WRITE, struct.pack("<IIQ", 16, 8, 0), expect=errno.EINVAL)
    assert ctx.events == []


# --- other commands ------------------------------------------------------------------------
@pytest.mark.parametrize("state", STATES + [ERR], ids=lambda v: NAMES[v])
def test_every_other_command_works_in_every_state(state):
    with Ctx(dma=True, migration=True, realize=False) as ctx:
        memory = ctx.memory_region(BAR0, PAGE)
        memory[:4] = b"bar0"
        call("vfu_setup_device_nr_irqs", ctx.p, INTX, 1)
        ctx.pci_init()
        ctx.realize()
        fd = memfd(PAGE)
        event = os.eventfd(0)
        with ctx.connect() as client:
            enter(ctx, client, state)
            answers(client)
            p = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, BAR0, 0, 0, 0))
            assert struct.unpack("<IIIIQQ", p)[4] == PAGE
            client.request(GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, BAR0, 0))
            p = client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, INTX, 0))
            assert struct.unpack("<IIII", p) == (16, 1, INTX, 1)
            client.set_irqs(INTX, DATA_EVENTFD | ACTION_TRIGGER, 0, 1, fds=[event])
            client.set_irqs(INTX, DATA_NONE | ACTION_TRIGGER, 0, 1)
            assert os.eventfd_read(event) == 1
            client.map(BASE, PAGE, fd)
            client.map(BASE + PAGE, PAGE)
            client.log_start()
            put(ctx, BASE, 1)
            assert client.report(BASE, PAGE) == 1
            client.log_stop()
            client.unmap(BASE, PAGE)
            client.unmap(0, 0, UNMAP_ALL)
            assert client.read(BAR0, 0, 4) == b"bar0"
            client.read(CFG, 0, 64)
            client.feature(F_STATE | FEATURE_GET | FEATURE_PROBE)
            client.request(19, b"x" * 8, expect=errno.EINVAL)
            client.request(14, b"x" * 8, expect=errno.EINVAL)
            assert client.get_state() == state
            written = 0 if state != SC else errno.EINVAL
            client.write(BAR0, 0, b"new!", expect=written)
            client.write(CFG, 0x3c, b"\x0b", expect=written)
            assert memory[:4] == (b"bar0" if written else b"new!")
            assert client.read(CFG, 0x3c, 1) == (b"\0" if written else b"\x0b")
            client.request(DEVICE_RESET)
            assert client.get_state() == (PC if state == PC else R)
        os.close(fd)
        os.close(event)


def test_a_refused_write_in_stop_copy_reaches_no_callback():
    with Ctx(migration=True, realize=False) as ctx:
        ctx.memory_region(BAR0, PAGE)
        ctx.realize()
        with ctx.connect() as client:
            enter(ctx, client, SC)
            client.write(BAR0, 8, b"x", expect=errno.EINVAL)
            assert ctx.events == []
            client.set_state(S)
            client.write(BAR0, 8, b"x")
            assert ctx.events[-1] == ("write", BAR0, 8, 1)


# --- the ways out ----------------------------------------------------------------------------
@pytest.mark.parametrize("state", STATES + [ERR], ids=lambda v: NAMES[v])
@pytest.mark.parametrize("with_callback", [True, False], ids=["reset callback", "no reset callback"])
def test_reset_leads_to_running_without_a_transition_and_pre_copy_goes_on(state, with_callback):
    with attached(migration=True, reset=with_callback) as (ctx, client):
        enter(ctx, client, state)
        assert client.request(DEVICE_RESET) == b""
        assert ctx.events == ([("reset", RESET_DEVICE)] if with_callback else [])
        assert client.get_state() == (PC if state == PC else R)
        ctx.events.clear()
        client.set_state(SC)
        assert ctx.events == callbacks([SC] if state == PC else [S, SC])


def test_a_reset_in_pre_copy_does_not_end_the_stream():
    with attached(migration=True) as (ctx, client):
        enter(ctx, client, PC)
        ctx.read_data = lambda count: data[:count]
        for data, reset, state in [(b"before", True, PC), (b"after", False, SC), (b"rest", False, SC)]:
            reply = client.request(MIG_DATA_READ, struct.pack("<II", 16, 8))
            assert reply == struct.pack("<II", 8 + len(data), len(data)) + data
            if reset:
                client.request(DEVICE_RESET)
            assert client.get_state() == (PC if data != b"rest" else SC)
            client.set_state(state)
        assert ctx.events == [("read_data", 8), ("reset", RESET_DEVICE), ("read_data", 8), ("state", CB_STOP_COPY), ("read_data", 8)]


def test_a_device_that_fails_to_quiesce_for_pre_copy_is_reset_and_stays_in_it():
    with attached(migration=True, quiesce=True) as (ctx, client):
        client.set_state(PC)
        ctx.events.clear()
        ctx.quiesce_errno = errno.EBUSY
        client.send(DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | FEATURE_SET, SC, 0))
        fails(errno.EBUSY, ctx.run)
        assert ctx.quiesced(errno.EIO) == 0
        assert ctx.events == ["quiesce", ("reset", RESET_DEVICE)]
        assert client.recv().error == errno.EIO
        assert client.get_state() == PC


@pytest.mark.parametrize("state", STATES + [ERR], ids=lambda v: NAMES[v])
def test_a_failing_reset_leaves_the_state(device, state):
    ctx, client = device
    enter(ctx, client, state)
    ctx.reset_errno = errno.EIO
    client.request(DEVICE_RESET, expect=errno.EIO)
    assert ctx.events == [("reset", RESET_DEVICE)]
    assert client.get_state() == state
    ctx.reset_errno = 0
    client.request(DEVICE_RESET)
    assert client.get_state() == (PC if state == PC else R)


@pytest.mark.parametrize("state", STATES + [ERR], ids=lambda v: NAMES[v])
def test_a_lost_connection_leaves_the_state(state):
    with Ctx(migration=True) as ctx:
        client = ctx.connect()
        enter(ctx, client, state)
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        assert ctx.events == [("reset", RESET_LOST_CONN)]
        with ctx.connect() as client:
            assert client.get_state() == state
            answers(client)


@pytest.mark.parametrize("state", [S, RS, PC, ERR], ids=lambda v: NAMES[v])
def test_a_function_level_reset_leaves_the_state(state):
    with Ctx(migration=True, realize=False) as ctx:
        ctx.pci_init()
        express = bytearray(60)
        express[0] = 0x10
        struct.pack_into("<H", express, 2, 2)
        struct.pack_into("<I", express, 4, 1 << 28)
        pos = ctx.add_cap(express)
        ctx.realize()
        with ctx.connect() as client:
            enter(ctx, client, state)
            client.write(CFG, pos + 8, struct.pack("<H", 1 << 15))
            assert ctx.events == [("reset", RESET_FLR)]
            assert client.get_state() == state


# --- setting up ---------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [0, 1, 3, -1])
def test_the_version_of_the_callbacks_is_2(version):
    with Ctx(realize=False) as ctx:
        fails(errno.EINVAL, ctx.setup_migration, version)
        ctx.realize()
        with ctx.connect() as client:
            client.feature(F_STATE | FEATURE_PROBE, expect=errno.EINVAL)


@pytest.mark.parametrize("missing", ["transition", "read_data", "write_data"])
def test_all_three_callbacks_are_needed(missing):
    with Ctx() as ctx:
        cbs = migration_callbacks()
        cbs.version = 2
        for name, kind in (("transition", TRANSITION_CB), ("read_data", DATA_CB), ("write_data", DATA_CB)):
            if name != missing:
                setattr(cbs, name, c.cast(ctx.cb(kind, lambda *a: 0), kind))
        fails(errno.EINVAL, call, "vfu_setup_device_migration_callbacks", ctx.p, c.byref(cbs))


def test_no_callbacks_struct():
    with Ctx() as ctx:
        fails(errno.EINVAL, call, "vfu_setup_device_migration_callbacks", ctx.p, None)


def test_the_struct_is_copied_and_a_second_one_replaces_the_first():
    with attached(migration=True) as (ctx, client):
        client.set_state(S)
        seen = []
        cbs = migration_callbacks()
        cbs.version = 2
        cbs.transition = c.cast(ctx.cb(TRANSITION_CB, lambda _c, state: seen.append(state) or 0), TRANSITION_CB)
        cbs.read_data = c.cast(ctx.cb(DATA_CB, lambda *a: 0), DATA_CB)
        cbs.write_data = c.cast(ctx.cb(DATA_CB, lambda *a: 0), DATA_CB)
        call("vfu_setup_device_migration_callbacks", ctx.p, c.byref(cbs))
        c.memset(c.byref(cbs), 0, c.sizeof(cbs))
        ctx.events.clear()
        assert client.get_state() == R
        client.set_state(S)
        assert (seen, ctx.events) == ([CB_STOP], [])
