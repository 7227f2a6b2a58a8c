"""Live upgrade: of two devices that a client does the same to, one changes hands all the time, and nothing tells them apart."""
import ctypes as c
import errno
import os
import random
import struct

import pytest
from hand_over import Device, Upgrade
from libvfu import *

import ext  # noqa: F401 (declares the functions)

MSIX_CAP = struct.pack("<BBHII", 0x11, 0, 69, 0, 0x800)
MSI_CAP = struct.pack("<BBHIIHHII", 5, 0, 0x180, 0, 0, 0, 0, 0, 0)
END, BIG = 1 << 64, 1 << 30


class WithState(Device):
    """Its migration goes by what is in its memory, which callbacks of its own hand over."""

    def __init__(self, **kw):
        super().__init__(caps=(MSIX_CAP, MSI_CAP), irqs=70, dma=True, migration=True, quiesce=True, **kw)
        self.read_data, self.write_data = self.say, self.hear

    def setup_all(self, *args):
        call("vfu_setup_device_nr_irqs", self.p, INTX, 1)
        call("vfu_setup_device_nr_irqs", self.p, MSI, 8)
        super().setup_all(*args)

    def say(self, count):
        said = self.mem[-1]
        self.mem[-1] = (said * 7 + 3) % 256
        return bytes([said]) * (count if said % 3 else count // 2)

    def hear(self, data):
        self.mem[-2] = (self.mem[-2] * 5 + sum(data)) % 256
        return len(data)


class Migrates(WithState):
    """It is handed over by its migration, and taken along its arcs only."""

    ARCS = {(CB_STOP, CB_RUNNING), (CB_STOP, CB_STOP_COPY), (CB_STOP, CB_RESUME), (CB_RUNNING, CB_STOP), (CB_RUNNING, CB_PRE_COPY),
            (CB_STOP_COPY, CB_STOP), (CB_RESUME, CB_STOP), (CB_PRE_COPY, CB_RUNNING), (CB_PRE_COPY, CB_STOP_COPY)}

    def __init__(self, **kw):
        super().__init__(state=False, **kw)
        self.at, self.left, self.wrong = CB_RUNNING, b"", []
        self.on_transition, self.on_reset = self.go, self.restart

    def go(self, state):
        if (self.at, state) not in self.ARCS:
            self.wrong.append((self.at, state))
        if state == CB_STOP_COPY:
            self.left = bytes(self.mem)
        if state == CB_RESUME:
            self.left = b""
        if (self.at, state) == (CB_RESUME, CB_STOP) and len(self.left) >= len(self.mem):
            self.mem[:] = self.left[:len(self.mem)]
        self.at = state

    def restart(self, kind):
        if kind == RESET_DEVICE and self.at != CB_PRE_COPY:
            self.at = CB_RUNNING

    def say(self, count):
        if self.at != CB_STOP_COPY:
            return b""
        said, self.left = self.left[:count], self.left[count:]
        return said

    def hear(self, data):
        self.left += data
        return len(data)


class Side:
    def __init__(self, make, caps, pending_irqs, upgrades):
        self.make, self.caps, self.pending_irqs, self.upgrades = make, caps, pending_irqs, upgrades
        self.ctx = make(pending_irqs=pending_irqs).serve_upgrades()
        self.client = self.ctx.connect(caps=caps)
        self.files = [memfd(64 * PAGE) for _ in range(4)] + [memfd(BIG)]
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(12)]
        self.taken_over = 0

    def upgrade(self):
        if not self.upgrades:
            return
        old, attempt = self.ctx, Upgrade(self.ctx, make=self.make, pending_irqs=self.pending_irqs)
        if attempt.errno:
            # It is being migrated.
            return attempt.failed(errno.EBUSY)
        assert attempt.answers == [1]
        attempt.new.dir, old.dir = old.dir, None
        old.destroy()
        self.ctx = self.client.ctx = attempt.new
        self.taken_over += 1

    def run(self):
        while self.ctx.readable():
            self.ctx.run()

    def lose(self):
        self.client.close()
        with pytest.raises(Failed):
            while True:
                self.ctx.run()

    def call(self, name, *args):
        try:
            return call(name, self.ctx.p, *args)
        except Failed as e:
            return -e.errno

    def put(self, iova, length):
        try:
            n, sg = self.ctx.sgl(iova, length, 8, PROT_WRITE)
        except Failed as e:
            return -e.errno
        if n > 0:
            self.ctx.sgl_put(sg, n)
        return n

    def seen(self):
        """All that there is to be seen from outside."""
        replies = []
        self.run()
        while not self.client.nothing():
            reply = self.client.recv()
            replies.append((reply.raw, len(reply.fds)))
            for fd in reply.fds:
                os.close(fd)
            self.run()
        values = []
        for fd in self.eventfds:
            try:
                values.append(os.eventfd_read(fd))
            except BlockingIOError:
                values.append(0)
        pba = c.create_string_buffer(16)
        call("vfux_read_pba", self.ctx.p, pba, 16, 0)
        return replies, values, pba.raw, bytes(self.ctx.mem), getattr(self.ctx, "wrong", [])

    def close(self):
        self.client.close()
        self.ctx.destroy()
        for fd in self.files + self.eventfds:
            os.close(fd)


def some_irqs(rand):
    kind = rand.choice([INTX, MSI, MSIX, MSIX, ERR, REQ])
    most = [1, 8, 70, 1, 1][kind]
    start = rand.randrange(most + 1)
    count, what = rand.choice([0, 1, 1, 2, 3, most - start]), rand.choice([1, 1, 2, 4, 4, 4])
    data = bytes(rand.choice([0, 1, 2]) for _ in range(count)) if what == DATA_BOOL else b""
    fds = [("eventfds", rand.randrange(12)) for _ in range(count)] if what == DATA_EVENTFD and rand.random() < .8 else []
    flags = what | rand.choice([ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER, ACTION_TRIGGER])
    return SET_IRQS, struct.pack("<IIIII", 20 + len(data), flags, kind, start, count) + data, fds


def some_map(rand):
    if rand.random() < .25:
        return DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, END - BIG, BIG), [("files", 4)]
    iova, size, prot = rand.randrange(40) * PAGE, rand.randrange(1, 9) * PAGE, rand.choice([1, 3, 3])
    fds = [("files", rand.randrange(4))] if rand.random() < .8 else []
    prot |= MAP_FILE_IO if fds and rand.random() < .2 else 0
    return DMA_MAP, struct.pack("<IIQQQ", 32, prot, rand.randrange(50) * PAGE, iova, size), fds


def some_unmap(rand):
    if rand.random() < .05:
        return DMA_UNMAP, struct.pack("<IIQQ", 24, UNMAP_ALL, 0, 0), []
    return DMA_UNMAP, struct.pack("<IIQQ", 24, 0, rand.randrange(40) * PAGE, rand.randrange(1, 20) * PAGE), []


def some_logging(rand):
    if rand.random() < .2:
        return DEVICE_FEATURE, struct.pack("<II", 8, F_LOG_STOP | FEATURE_SET), []
    page = rand.choice([PAGE, PAGE, PAGE, 2 * PAGE, 512, 1 << 21, 1 << 40])
    ranges = [(rand.randrange(60) * PAGE, rand.randrange(1, 30) * PAGE) for _ in range(rand.choice([0, 0, 1, 2]))]
    data = struct.pack("<QII", page, len(ranges), 0) + b"".join(struct.pack("<QQ", *one) for one in ranges)
    return DEVICE_FEATURE, struct.pack("<II", 8 + len(data), F_LOG_START | FEATURE_SET) + data, []


def some_report(rand):
    iova, length = rand.randrange(45) * PAGE, rand.randrange(1, 30) * PAGE
    page = rand.choice([PAGE, PAGE, 2 * PAGE, 512, 8 * PAGE])
    if rand.random() < .4:
        iova = END - rand.randrange(1, BIG // PAGE + 1) * PAGE
        length = rand.choice([END - iova, min(END - iova, rand.randrange(1, 40000) * PAGE)])
        page = min(length, rand.choice([PAGE, PAGE, 2 * PAGE, 1 << 21]))
    argsz = 32 + -(-length // page // 64) * 8 + 8
    return DEVICE_FEATURE, struct.pack("<IIQQQ", argsz, F_LOG_REPORT | FEATURE_GET, iova, length, page), []


def some_migration(rand):
    size = rand.randrange(200)
    state = rand.choice([S_STOP, S_RUNNING, S_RUNNING, S_STOP_COPY, S_RESUMING, S_PRE_COPY, S_PRE_COPY])
    return rand.choice([
        (DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | FEATURE_SET, state, 0), []),
        (DEVICE_FEATURE, struct.pack("<II", 16, F_STATE | FEATURE_GET), []),
        (MIG_DATA_READ, struct.pack("<II", 8 + size, size), []),
        (MIG_DATA_WRITE, struct.pack("<II", 8 + size, size) + rand.randbytes(size), []),
        (DEVICE_RESET, b"", []) if rand.random() < .3 else (GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), []),
    ])


def some_access(rand):
    offset, count = rand.randrange(3000), rand.randrange(1, 1000)
    place = rand.choice([0x42, 0x42, 0x43, 0x4e, 4, 0x10, 0x14, 0x3c])
    data = rand.choice([b"\0\x80", b"\0\xc0", b"\0\xc0", b"\0\0", b"\xff\xff", b"\1\0", rand.randbytes(2)])
    return rand.choice([
        (REGION_WRITE, struct.pack("<QII", offset, BAR0, count) + rand.randbytes(count), []),
        (REGION_READ, struct.pack("<QII", offset, BAR0, count), []),
        (REGION_READ, struct.pack("<QII", 0, CFG, 256), []),
        (REGION_WRITE, struct.pack("<QII", place, CFG, 2) + data, []),
    ])


def some_messages(rand, sides, first_id):
    """Sends a few, in two parts sometimes, and executes them now or later; with upgrades in between."""
    kinds = [some_irqs, some_irqs, some_map, some_unmap, some_logging, some_report, some_migration, some_access]
    for msg_id in range(first_id, first_id + rand.choice([1, 1, 1, 2, 5])):
        cmd, payload, fds = rand.choice(kinds)(rand)
        data = message(msg_id, cmd, payload, F_NO_REPLY if rand.random() < .1 else 0)
        cut = rand.randrange(1, len(data) + 1) if rand.random() < .3 else len(data)
        run_before, upgrade_between, run_behind = (rand.random() < p for p in (.3, .3, .6))
        for side in sides:
            side.client.send_raw(data[:cut], [getattr(side, name)[number] for name, number in fds])
            if run_before:
                side.run()
            if upgrade_between:
                side.upgrade()
            if cut < len(data):
                side.client.send_raw(data[cut:])
            # Whose descriptors are is told by the read that brings them.
            if run_behind or fds:
                side.run()


@pytest.mark.parametrize("make", [WithState, Migrates])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_tells_them_apart(make, seed):
    rand = random.Random(seed)
    caps = rand.choice([None, {"max_msg_fds": 16},
                        {"max_msg_fds": 8, "max_data_xfer_size": 100, "twin_socket": {"supported": True}}])
    sides = [Side(make, caps, seed % 4 != 3, upgrades) for upgrades in (False, True)]
    for step in range(80):
        what = rand.choices(["messages", "trigger", "write", "upgrade", "loss"], [60, 10, 15, 10, 3])[0]
        if what == "messages":
            some_messages(rand, sides, step * 8)
        elif what == "trigger":
            kind, vector = rand.randrange(6), rand.choice([0, 0, 1, 2, 3, 7, 8, 63, 64, 69, 70])
            name, *args = rand.choice([("vfu_irq_trigger", vector), ("vfux_irq_trigger", kind, vector),
                                       ("vfux_irq_clear_pending", kind, vector)])
            assert len({side.call(name, *args) for side in sides}) == 1
        elif what == "write":
            iova, length = rand.randrange(45 * PAGE), rand.randrange(1, 12 * PAGE)
            if rand.random() < .5:
                iova = END - rand.randrange(1, BIG)
                length = min(END - iova, rand.choice([1, PAGE, 10 * PAGE, 1 << 27, BIG]))
            assert len({side.put(iova, length) for side in sides}) == 1
        elif what == "upgrade":
            sides[1].upgrade()
        else:
            for side in sides:
                side.lose()
            if rand.random() < .5:
                sides[1].upgrade()
            for side in sides:
                side.client = side.ctx.connect(caps=caps)
        one, other = (side.seen() for side in sides)
        assert one == other, (step, what)
        assert other[-1] == [], "that is no arc"
    assert sides[1].taken_over > 5
    for side in sides:
        side.close()
