"""Interrupts against a model of all that is said of them: any request, trigger, mask and loss, in any order."""
import ctypes as c
import errno
import os
import random
import struct

import pytest
from libvfu import *

import ext  # noqa: F401 (declares the functions)

MSIX_CAP = struct.pack("<BBHII", 0x11, 0, 69, 0, 0x800)
MSI_CAP = struct.pack("<BBHIIHHII", 5, 0, 0x180, 0, 0, 0, 0, 0, 0)
FULL = (1 << 64) - 2
GUESTS = (MSIX, MSI, INTX)
EVENTFDS = 10
U32 = (1 << 32) - 1


class Model:
    def __init__(self, counts, keeps):
        self.counts, self.keeps = counts, keeps
        self.control = self.msi_control = 0
        self.eventfds = {}  # (type, vector): number of the eventfd
        self.masked, self.pending = set(), set()
        self.values = [0] * EVENTFDS
        self.calls = []

    def kept(self, kind):
        return self.keeps and kind in GUESTS

    def held_back(self, key):
        return key not in self.eventfds or key in self.masked or key[0] == MSIX and self.control & 0x4000

    def signal(self, key):
        number = self.eventfds[key]
        if self.values[number] == FULL:
            return errno.EAGAIN
        self.values[number] += 1
        return 0

    def deliver(self, key):
        if key not in self.pending or not self.kept(key[0]) or self.held_back(key):
            return
        if key[0] == INTX:
            self.masked.add(key)
        if self.signal(key) == 0:
            self.pending.discard(key)

    def trigger_key(self, key):
        if not self.kept(key[0]):
            return self.signal(key) if key in self.eventfds else errno.ENOENT
        if self.held_back(key):
            self.pending.add(key)
            return 0
        if key[0] == INTX:
            self.masked.add(key)
        return self.signal(key)

    def trigger(self, vector):
        if vector >= max(self.counts):
            return errno.EINVAL
        in_use = [kind for kind in GUESTS if any(key[0] == kind for key in self.eventfds)]
        if not in_use and self.keeps:
            enabled = [MSIX] * (self.control >> 15) + [MSI] * self.msi_control
            in_use = enabled or [kind for kind in (INTX, MSIX, MSI) if vector < self.counts[kind]]
        if not in_use or vector >= self.counts[in_use[0]]:
            return errno.ENOENT
        return self.trigger_key((in_use[0], vector))

    def there(self, kind, vector):
        return kind < 5 and vector < self.counts[kind]

    def trigger_type(self, kind, vector):
        return self.trigger_key((kind, vector)) if self.there(kind, vector) else errno.EINVAL

    def clear(self, kind, vector):
        self.pending.discard((kind, vector))
        return 0 if self.there(kind, vector) else errno.EINVAL

    def is_refused(self, argsz, flags, kind, start, count, data, fds):
        action, what = flags & 0x38, flags & 7
        return (argsz < 20 or kind > 4 or action not in (ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER)
                or what not in (DATA_NONE, DATA_BOOL, DATA_EVENTFD)
                or what == DATA_BOOL and len(data) != count
                or start >= self.counts[kind] or start + count > self.counts[kind]
                or kind in (ERR, REQ) and (action != ACTION_TRIGGER or count > 1)
                or count == 0 and (start != 0 or action != ACTION_TRIGGER or what != DATA_NONE)
                or fds and (what != DATA_EVENTFD or len(fds) != count)
                or action != ACTION_TRIGGER and what == DATA_EVENTFD)

    def set_irqs(self, argsz, flags, kind, start, count, data, fds):
        if self.is_refused(argsz, flags, kind, start, count, data, fds):
            return errno.EINVAL
        action, what = flags & 0x38, flags & 7
        keys = [(kind, start + n) for n in range(count)]
        if action != ACTION_TRIGGER:
            wanted = [start + n for n in range(count) if what == DATA_NONE or data[n]]
            while wanted:
                run = next((n for n, vector in enumerate(wanted) if vector != wanted[0] + n), len(wanted))
                self.mask(kind, wanted[0], run, action == ACTION_MASK)
                wanted = wanted[run:]
        elif what == DATA_EVENTFD:
            for n, key in enumerate(keys):
                self.eventfds.pop(key, None)
                if fds:
                    self.eventfds[key] = fds[n]
                    self.deliver(key)
        elif count == 0:
            self.eventfds = {key: fd for key, fd in self.eventfds.items() if key[0] != kind}
            self.masked = {key for key in self.masked if key[0] != kind}
        else:
            for n, key in enumerate(keys):
                number = self.signal(key) if key in self.eventfds and (what == DATA_NONE or data[n]) else 0
                if number:
                    return number
        return 0

    def mask(self, kind, start, count, mask):
        self.calls.append((kind, start, count, mask))
        for key in [(kind, start + n) for n in range(count)] if self.kept(kind) else []:
            if mask:
                self.masked.add(key)
            else:
                self.masked.discard(key)
                self.deliver(key)

    def set_control(self, value):
        was_masked, self.control = self.control & 0x4000, value
        for vector in range(self.counts[MSIX] if was_masked else 0):
            self.deliver((MSIX, vector))

    def set_count(self, kind, count):
        self.counts[kind] = count
        self.eventfds = {key: fd for key, fd in self.eventfds.items() if key[0] != kind or key[1] < count}
        self.masked = {key for key in self.masked if key[0] != kind or key[1] < count}
        self.pending = {key for key in self.pending if key[0] != kind or key[1] < count}


def some_request(rand, counts):
    kind = rand.choice([INTX, MSI, MSIX, MSIX, ERR, REQ, 5, U32] if rand.random() < .3 else [INTX, MSI, MSIX])
    most = counts[kind] if kind < 5 else 3
    start = rand.randrange(max(most, 1))
    if rand.random() < .3:
        start = rand.choice([0, 0, 1, max(most - 1, 0), most, rand.getrandbits(32), U32])
    count = rand.choice([0, 1, 1, 2, 3, 5, max(most - start, 0), most, U32, -start & U32])
    flags = rand.choice([1, 2, 4, 4]) | rand.choice([8, 16, 32, 32])
    if rand.random() < .05:
        flags = rand.getrandbits(7) | rand.getrandbits(20) << 6
    data, fds = b"", []
    if flags & DATA_BOOL and count < 5000:
        data = bytes(rand.choice([0, 0, 1, 1, 2, 255]) for _ in range(count))
    if rand.random() < .03:
        data += b"\1" * rand.randrange(1, 5)
    if (flags & DATA_EVENTFD and rand.random() < .75 or rand.random() < .03) and count < 254:
        fds = [rand.randrange(EVENTFDS) for _ in range(count)]
        if rand.random() < .03:
            fds = fds[1:] or [1]
    argsz = 20 + len(data) if rand.random() < .95 else rand.choice([0, 19, 20, U32])
    return argsz, flags, kind, start, count, data, fds


@pytest.mark.parametrize("seed", range(12))
def test_random_sessions(seed):
    rand = random.Random(seed)
    keeps = seed % 4 != 0
    counts = [rand.choice([0, 1, 1, 2]), rand.choice([0, 1, 8, 32]), rand.choice([1, 63, 64, 65, 70, 130, 2048]),
              rand.choice([1, 1, 3]), 1]
    model, seen = Model(counts, keeps), []
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK if n % 2 else 0) for n in range(EVENTFDS)]

    def note(kind):
        return lambda _ctx, start, count, mask: seen.append((kind, start, count, mask))
    with Ctx(realize=False) as ctx:
        ctx.pci_init()
        msix, msi = ctx.add_cap(MSIX_CAP), ctx.add_cap(MSI_CAP)
        for kind, count in enumerate(counts):
            call("vfu_setup_device_nr_irqs", ctx.p, kind, count)
            call("vfu_setup_irq_state_callback", ctx.p, kind, ctx.cb(IRQ_CB, note(kind)))
        if keeps:
            call("vfux_setup_pending_irqs", ctx.p)
        ctx.realize()
        client = ctx.connect()

        def request(argsz, flags, kind, start, count, data, fds):
            client.send(SET_IRQS, struct.pack("<IIIII", argsz, flags, kind, start, count) + data, [eventfds[fd] for fd in fds])
            assert ctx.run() == 1
            reply = client.recv()
            assert reply.payload == b""
            return reply.error

        def outcome(name, *args):
            try:
                call(name, ctx.p, *args)
            except Failed as e:
                return e.errno
            return 0

        for step in range(500):
            kind, vector = rand.randrange(6), rand.choice([0, 0, 1, 2, 7, 8, 31, 62, 63, 64, 65, 69, 129, 2047, 2048, U32])
            what = rand.choices(["request", "trigger", "trigger type", "clear", "control", "msi", "fill", "read", "reset", "loss",
                                 "count"], [55, 10, 6, 4, 8, 4, 2, 6, 2, 2, 1])[0]
            said = done = None
            if what == "request":
                args = some_request(rand, counts)
                said, done = model.set_irqs(*args), request(*args)
            elif what == "trigger":
                said, done = model.trigger(vector), outcome("vfu_irq_trigger", vector)
            elif what == "trigger type":
                said, done = model.trigger_type(kind, vector), outcome("vfux_irq_trigger", kind, vector)
            elif what == "clear":
                said, done = model.clear(kind, vector), outcome("vfux_irq_clear_pending", kind, vector)
            elif what == "control":
                value = rand.choice([0, 0x4000, 0x8000, 0xc000])
                model.set_control(value)
                if rand.random() < .5:
                    client.write(CFG, msix + 2, struct.pack("<H", value))
                else:
                    client.write(CFG, msix + 3, bytes([value >> 8]))
            elif what == "msi":
                model.msi_control = rand.randrange(2)
                client.write(CFG, msi + 2, struct.pack("<H", model.msi_control))
            elif what == "fill":
                number = rand.randrange(EVENTFDS)
                if model.values[number] < FULL:
                    os.eventfd_write(eventfds[number], FULL - model.values[number])
                model.values[number] = FULL
            elif what == "reset":
                model.pending.clear()
                client.request(DEVICE_RESET)
            elif what == "loss":
                for kept in (model.pending, model.masked, model.eventfds):
                    kept.clear()
                client.close()
                fails(errno.ENOTCONN, ctx.run)
                client = ctx.connect()
            elif what == "count":
                kind, count = rand.choice(GUESTS), rand.choice([0, 1, 2, 8, 64, 65, 70, 100])
                model.set_count(kind, count)
                call("vfu_setup_device_nr_irqs", ctx.p, kind, count)
            assert said == done, (step, what)
            if what == "read" or step == 499:
                for number, value in enumerate(model.values):
                    assert value == (os.eventfd_read(eventfds[number]) if value else 0), (step, number)
                    model.values[number] = 0
            assert seen == model.calls, (step, what)
            del seen[:], model.calls[:]
            size = -(-counts[MSIX] // 64) * 8
            pba = c.create_string_buffer(size + 1)
            assert call("vfux_read_pba", ctx.p, pba, size, 0) == size
            assert int.from_bytes(pba.raw[:size], "little") == \
                sum(1 << vector for kind, vector in model.pending if kind == MSIX), (step, what)
        client.close()
    for fd in eventfds:
        os.close(fd)
