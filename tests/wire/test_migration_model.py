"""The migration state machine, its data and its callbacks against a model, in sessions of any requests."""
import errno
import random
import struct
from collections import deque

import pytest
from libvfu import *

CB = {S_STOP: CB_STOP, S_RUNNING: CB_RUNNING, S_STOP_COPY: CB_STOP_COPY, S_PRE_COPY: CB_PRE_COPY, S_RESUMING: CB_RESUME}
ARCS = {S_STOP: (S_RUNNING, S_STOP_COPY, S_RESUMING), S_RUNNING: (S_STOP, S_PRE_COPY), S_STOP_COPY: (S_STOP,),
        S_RESUMING: (S_STOP,), S_PRE_COPY: (S_RUNNING, S_STOP_COPY)}
SAVING = (S_PRE_COPY, S_STOP_COPY)
MIB = 1 << 20


def way(start, target):
    """The states on the shortest way, saving states only at its ends; None if there is none."""
    if start not in ARCS or target not in ARCS or (start, target) == (S_STOP_COPY, S_PRE_COPY):
        return None
    ways = deque([[start]])
    while ways:
        states = ways.popleft()
        if states[-1] == target:
            return states[1:]
        if len(states) == 1 or states[-1] not in SAVING:
            ways.extend(states + [after] for after in ARCS[states[-1]] if after not in states)
    return None


class Session:
    def __init__(self, seed):
        self.rand = random.Random(seed)
        limit = self.rand.choice([None, 4, 100, MIB, 1 << 30])
        self.caps = None if limit is None else {"max_data_xfer_size": limit}
        self.most = min(limit or MIB, MIB)
        self.ctx = Ctx(migration=True, quiesce=True)
        self.ctx.memory_region(BAR0, PAGE)
        self.client = self.ctx.connect(caps=self.caps)
        self.state = S_RUNNING

    def exchange(self, cmd, payload, quiesced=None):
        """The errno of the answer, and its payload."""
        self.client.send(cmd, payload)
        if quiesced is None:
            self.ctx.run()
        else:
            fails(errno.EBUSY, self.ctx.run)
            fails(errno.EBUSY, self.ctx.run)
            assert self.ctx.events == ["quiesce"]
            self.ctx.quiesced(quiesced)
        reply = self.client.recv()
        assert reply.error == 0 or reply.payload == b""
        return reply.error, reply.payload

    def set_state(self):
        rand, ctx = self.rand, self.ctx
        target = rand.choice([*range(9), *ARCS, *ARCS, *ARCS, 0xabcd, (1 << 32) - 1])
        path = way(self.state, target)
        bad_step, failure = rand.randrange(6), rand.choice([0, 0, errno.EIO, errno.ENOTRECOVERABLE, 0xbeef, errno.EBUSY, "positive"])
        steps = []

        def begin(_state):
            fails_now = len(steps) == bad_step
            steps.append(_state)
            ctx.results = {"transition": 5} if fails_now and failure == "positive" else {}
            ctx.transition_errno = failure if fails_now and failure != "positive" else 0
        ctx.on_transition = begin
        data = struct.pack("<II", target, rand.getrandbits(32)) + rand.choice([b"", b"", b"", b"more"])
        data = data if rand.random() < .95 else data[:rand.randrange(8)]
        argsz = rand.choice([8 + len(data)] * 4 + [8, 15, (1 << 32) - 1])
        payload = struct.pack("<II", argsz, F_STATE | FEATURE_SET) + data
        quiet = rand.choice(["at once", "at once", "refused", "later", "not", "not, nor reset"])
        if len(data) < 8 or argsz < 8 + len(data):
            assert self.exchange(DEVICE_FEATURE, payload)[0] == errno.EINVAL
            assert ctx.events == []
            return
        ctx.reset_errno = errno.ENXIO if quiet == "not, nor reset" else 0
        ctx.quiesce_errno = {"at once": 0, "refused": errno.EIO}.get(quiet, errno.EBUSY)
        number, events = 0, ["quiesce"]
        if quiet == "refused":
            number = errno.EIO
        elif quiet in ("not", "not, nor reset"):
            number = 77
            events.append(("reset", RESET_DEVICE))
            if quiet == "not" and self.state != S_PRE_COPY:
                self.state = S_RUNNING
        elif path is None:
            number = errno.EINVAL
        else:
            for n, state in enumerate(path):
                events.append(("state", CB[state]))
                if n == bad_step and failure:
                    number = errno.EINVAL if failure == "positive" else failure
                    self.state = S_ERROR if failure == errno.ENOTRECOVERABLE else self.state
                    break
                self.state = state
        later = None if ctx.quiesce_errno != errno.EBUSY else 0 if quiet == "later" else 77
        assert self.exchange(DEVICE_FEATURE, payload, later) == (number, b"" if number else payload)
        assert ctx.events == events
        ctx.quiesce_errno = ctx.reset_errno = ctx.transition_errno = 0
        ctx.results = {}

    def move_data(self, is_write):
        rand, ctx = self.rand, self.ctx
        size = rand.choice([0, 1, 4, 5, 99, 100, 101, 1000, MIB + 1, (1 << 32) - 1, (1 << 32) - 8])
        argsz = rand.choice([8 + size, 8 + size, 8 + size, 7 + size, 8, (1 << 32) - 1]) & 0xffffffff
        there = min(size, 3000) if rand.random() < .9 else rand.randrange(min(size, 3000) + 10)
        payload = struct.pack("<II", argsz, size) + (rand.randbytes(there) if is_write else b"")
        payload = payload if rand.random() < .95 else payload[:rand.randrange(1, 8)]
        answer = rand.choice([None, None, errno.EIO, 0xbeef, "less", "more", -5])
        is_good = len(payload) >= 8 and size <= self.most and argsz >= 8 + size
        is_good &= self.state == S_RESUMING and len(payload) >= 8 + size if is_write else self.state in SAVING
        data = rand.randbytes(min(size, 2000))
        if answer == "less":
            data = data[:rand.randrange(len(data) + 1)]
        if is_write:
            taken = {None: size, "less": size - 1 if size else -5, "more": size + 1, -5: -5}
            ctx.write_data = lambda _data: taken[answer] if answer in taken else ctx._fail(answer)
        else:
            ctx.read_data = lambda _count: {None: data, "less": data, "more": data + b"x"}.get(answer, answer)
        is_refused = answer in (-5, "more") or is_write and answer == "less"
        number = errno.EINVAL if not is_good or is_refused else answer if isinstance(answer, int) else 0
        read = b"" if is_write or number else struct.pack("<II", 8 + len(data), len(data)) + data
        assert self.exchange(MIG_DATA_WRITE if is_write else MIG_DATA_READ, payload) == (number, read)
        called = ("write_data", payload[8:8 + size]) if is_write else ("read_data", size)
        assert ctx.events == ([called] if is_good else [])

    def reset(self):
        self.ctx.reset_errno, self.ctx.quiesce_errno = (self.rand.choice([0, 0, errno.EIO]) for _ in range(2))
        number = self.ctx.quiesce_errno or self.ctx.reset_errno
        self.client.request(DEVICE_RESET, expect=number, count=None)
        if number == 0 and self.state != S_PRE_COPY:
            self.state = S_RUNNING
        self.ctx.reset_errno = self.ctx.quiesce_errno = 0

    def lose(self):
        self.client.close()
        fails(errno.ENOTCONN, self.ctx.run)
        assert self.ctx.events == ["quiesce", ("reset", RESET_LOST_CONN)]
        self.client = self.ctx.connect(caps=self.caps)

    def access(self):
        self.client.write(BAR0, 0, b"1234", expect=errno.EINVAL if self.state == S_STOP_COPY else 0)
        self.client.read(BAR0, 0, 4)


@pytest.mark.parametrize("seed", range(8))
def test_random_sessions(seed):
    session = Session(seed)
    steps = [session.set_state, lambda: session.move_data(False), lambda: session.move_data(True), session.reset, session.lose,
             session.access]
    for _ in range(400):
        session.ctx.events.clear()
        session.rand.choices(steps, [45, 14, 14, 12, 5, 10])[0]()
        assert session.client.get_state() == session.state
    session.client.close()
    session.ctx.destroy()
