"""A VMM in small: a guest's memory, a device that works on it, and a way to move both."""
import mmap
import os
import random
import struct

from engine import *
from peer import *

PAGE = mmap.PAGESIZE
GUEST, GUEST_SIZE = 0x4000_0000, 16 << 20
RING, ENTRIES = GUEST, 900          # the ring stands at the start of guest memory
AREA = 1 << 20                      # data from here on
F_LOG_START, F_LOG_STOP, F_LOG_REPORT = 6, 7, 8

# What a migration goes through, in order: hooks are called with these names.
PHASES = ["logging", "pre-copy", "first round", "round", "stopped", "drained", "resuming", "half loaded", "loaded"]


def program(seed):
    """Work for the ring: descriptors of all kinds, that read what earlier ones have written."""
    rng = random.Random(seed)
    ring = b""
    for number in range(ENTRIES):
        length = rng.choice([64, 5000, 70000, 1000000])
        here = [rng.randrange(AREA, GUEST_SIZE - length) for _ in range(2)]
        local = [rng.randrange(PAGE, BAR2_SIZE - length) for _ in range(2)]
        op = rng.choice([COPY, COPY, FILL, PATTERN, CHECKSUM])
        flags = IRQ | rng.choice([0, 0, 0x20])
        src, dst = GUEST + here[0], GUEST + here[1]
        if rng.random() < 0.3:
            flags, src = flags | SRC_LOCAL, local[0]
        if rng.random() < 0.3:
            flags, dst = flags | DST_LOCAL, local[1]
        if op == COPY and abs(src - dst) < length:
            op = CHECKSUM
        ring += descriptor(op, flags, src, dst, length, number * 37)
    return ring


class Guest:
    """Guest memory on one side, and the client of the device there."""

    def __init__(self, device, content=None):
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, GUEST_SIZE)
        self.memory = mmap.mmap(self.fd, GUEST_SIZE)
        if content is not None:
            self.memory[:] = content
        self.client = Client(device)
        self.client.map_dma(GUEST, GUEST_SIZE, self.fd)
        self.event = self.client.assign_irq(2, 0)
        self.fed = 0                # entries of the ring that the device may work on
        enable_msix(self.client)

    def start(self, seed):
        """Fills memory and ring, and lets the device begin."""
        rng = random.Random(seed)
        self.memory[AREA:] = rng.randbytes(GUEST_SIZE - AREA)
        ring = program(seed)
        self.memory[:len(ring)] = ring
        c = self.client
        c.write_u32(CONTROL, 1)
        c.write_u32(IRQ_ENABLE, 3)
        c.write(BAR0, RING_BASE, struct.pack("<Q", RING))
        c.write_u32(RING_SIZE, 4096)
        self.feed(100)

    def feed(self, count):
        self.fed += count
        self.client.write_u32(RING_TAIL, self.fed)

    def feed_and_stop(self, count):
        """Feeds and stops with one send: the device is stopped before it can have done all."""
        self.fed += count
        tail = struct.pack("<QIII", RING_TAIL, BAR0, 4, self.fed)
        requests = [self.client.send(REGION_WRITE, tail), self.client.send_state(STOP_COPY)]
        for request in requests:
            self.client.wait(request)

    def busy(self):
        return bool(self.client.read_u32(STATUS) & BUSY)

    def outcome(self):
        """Everything, once all the work is done: guest memory and what the BARs show."""
        self.feed(ENTRIES - self.fed)
        finish(self.client)
        registers, memory = bars(self.client)
        return bytes(self.memory), registers, memory

    def report(self):
        """The pages written since the last report, as numbers."""
        size = GUEST_SIZE // PAGE // 8
        data = struct.pack("<QQQ", GUEST, GUEST_SIZE, PAGE)
        bits = self.client.feature(F_LOG_REPORT | FEATURE_GET, data, 32 + size)[32:]
        value = int.from_bytes(bits, "little")
        return [page for page in range(GUEST_SIZE // PAGE) if value >> page & 1]

    def close(self):
        self.client.close()
        os.close(self.event)
        os.close(self.fd)


def copy_pages(source, destination, pages):
    for page in pages:
        at = page * PAGE
        destination.memory[at:at + PAGE] = source.memory[at:at + PAGE]


def save_rounds(source, destination, hook=lambda phase: None):
    """The source's part: rounds while it works, then the rest. Returns the device's stream, and
    how much of the ring it was told of."""
    c = source.client
    c.feature(F_LOG_START | FEATURE_SET, struct.pack("<QII", PAGE, 0, 0), 24)
    source.feed(50)
    hook("logging")
    c.set_state(PRE_COPY)
    source.feed(50)
    hook("pre-copy")
    stream = c.read_until_short(lambda: MAX_XFER)
    copy_pages(source, destination, range(GUEST_SIZE // PAGE))
    hook("first round")
    for _ in range(3):
        source.feed(50)
        copy_pages(source, destination, source.report())
        stream += c.read_until_short(lambda: MAX_XFER)
    hook("round")
    source.feed_and_stop(100)
    hook("stopped")
    stream += c.read_until_short(lambda: MAX_XFER)
    copy_pages(source, destination, source.report())
    c.feature(F_LOG_STOP | FEATURE_SET, b"", 8)
    hook("drained")
    return stream, source.fed


def load_all(destination, stream, fed, hook=lambda phase: None):
    """The destination's part."""
    c = destination.client
    destination.fed = fed
    c.set_state(RESUMING)
    hook("resuming")
    half = len(stream) // 2
    c.write_all(stream[:half])
    hook("half loaded")
    c.write_all(stream[half:])
    c.set_state(STOP)
    hook("loaded")
    c.set_state(RUNNING)
