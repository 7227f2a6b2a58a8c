"""Configuration space, byte by byte.

The model below is a table of what a client's write does to each bit, written
from the PCI specifications and sharing nothing with the library. Every write of
every width at every offset of a device with every kind of capability is
compared with it: result, contents of the whole space, callbacks.
"""
import ctypes as c
import random
import struct

import pytest
from errno import EINVAL, EEXIST, ENOTSUP, EPERM

from libvfu import *
from pci_device import (alive, express, ext_vendor, msi, msix, peek, peek16, pm, poke, serial,
                        vendor)

SIZE = 4096

# --- the device ------------------------------------------------------------------------
# (offset, data, flags of adding it, name)
CAPS = [
    (0x40, pm(pmc=0x0003), 0, "pm"),
    (0x48, msi(control=0x0186), 0, "msi"),  # 8 messages capable, 64 bits, masks
    (0x60, msix(control=0x00ff, table=0x4, pba=0x1004), 0, "msix"),
    (0x6c, vendor(b"sixsix"), 0, "vendor"),  # 9 bytes, so that 3 of nothing follow
    (0x78, express(flr=True), 0, "express"),
    (0xb4, vendor(b"fixed"), CAP_READONLY, "readonly"),
    (0x100, serial(), CAP_EXTENDED, "serial"),
    (0x10c, ext_vendor(b"12345"), CAP_EXTENDED, "ext_vendor"),
]
# Besides, if the config region has a callback:
CALLBACK_CAPS = [
    (0xbc, vendor(b"called"), CAP_CALLBACK, "callback"),
    (0xc8, vendor(b"both"), CAP_CALLBACK | CAP_READONLY, "callback_readonly"),
    (0x200, ext_vendor(b"abcd"), CAP_EXTENDED | CAP_CALLBACK, "callback"),
]
REGIONS = [
    (BAR0, 0x1000, RW | MEM | BITS_64 | PREFETCH),
    (BAR2, 0x100, RW),
    (BAR4, 0x10000, RW | MEM),
    (BAR5, 16, RW | MEM | PREFETCH),
    (ROM, 0x800, READ),
]

# --- the model: offset -> bits that are stored, bits that writing 1 clears ----------------
RW_BITS, W1C_BITS = {}, {}


def stored(at, *bits):
    for i, b in enumerate(bits):
        RW_BITS[at + i] = b


def cleared(at, *bits):
    for i, b in enumerate(bits):
        W1C_BITS[at + i] = b


stored(0x04, 0b0101_0111, 0b0000_0111)       # command: 0, 1, 2, 4, 6, 8, 9, 10
cleared(0x07, 0b1111_1001)                   # status: 8, 11 to 15
stored(0x0c, 0xff, 0xff)                     # cache line size, latency timer
stored(0x10, 0x00, 0xf0, 0xff, 0xff)         # BAR 0: 4 KiB, 64 bits
stored(0x14, 0xff, 0xff, 0xff, 0xff)         # its upper half
stored(0x18, 0x00, 0xff, 0xff, 0xff)         # BAR 2: 256 ports
#      0x1c: BAR 3 is not set up
stored(0x20, 0x00, 0x00, 0xff, 0xff)         # BAR 4: 64 KiB
stored(0x24, 0xf0, 0xff, 0xff, 0xff)         # BAR 5: 16 bytes
stored(0x30, 0x01, 0xf8, 0xff, 0xff)         # ROM: 2 KiB, and its enable bit
stored(0x3c, 0xff)                           # interrupt line

stored(0x40 + 4, 0xff, 0xff)                 # PM: control and status, literally

stored(0x48 + 2, 0b0111_0001)                # MSI: enable, multiple message enable
stored(0x48 + 4, 0xfc, 0xff, 0xff, 0xff)     # address
stored(0x48 + 8, 0xff, 0xff, 0xff, 0xff)     # upper address
stored(0x48 + 12, 0xff, 0xff)                # data
stored(0x48 + 16, 0xff, 0xff, 0xff, 0xff)    # mask

stored(0x60 + 3, 0b1100_0000)                # MSI-X: enable, function mask

stored(0x6c + 3, *[0xff] * 6)                # vendor

stored(0x78 + 0x08, 0xff, 0x7f)              # device control, without initiate FLR
cleared(0x78 + 0x0a, 0b0100_1111, 0)         # device status: 0 to 3, 6
stored(0x78 + 0x10, 0xff, 0xff)              # link control
cleared(0x78 + 0x12, 0, 0b1100_0000)         # link status: 14, 15
stored(0x78 + 0x18, 0xff, 0xff)              # slot control
cleared(0x78 + 0x1a, 0b0001_1111, 0b1)       # slot status: 0 to 4, 8
stored(0x78 + 0x1c, 0xff, 0xff)              # root control
cleared(0x78 + 0x20, 0, 0, 0b1, 0)           # root status: 16
stored(0x78 + 0x28, 0xff, 0xff)              # device control 2
stored(0x78 + 0x30, 0xff, 0xff)              # link control 2
cleared(0x78 + 0x32, 0b0010_0000, 0b1000_0000)  # link status 2: 5, 15

stored(0x10c + 8, *[0xff] * 5)               # extended vendor

HEADER_LENGTH = {"pm": 2, "msi": 2, "msix": 2, "vendor": 3, "express": 2, "serial": 4, "ext_vendor": 8}
# Registers of the Express capability that a write has to touch.
EXPRESS_REGISTERS = [*range(0x08, 0x0c), *range(0x10, 0x14), *range(0x18, 0x1e), *range(0x20, 0x24),
                     *range(0x28, 0x2c), *range(0x30, 0x34), *range(0x38, 0x3c)]
FLR_BYTE = 0x78 + 0x09


def caps(with_callback):
    return CAPS + (CALLBACK_CAPS if with_callback else [])


def pieces(offset, count, with_callback):
    """(start, bytes, name): an access cut at the borders of header, gaps and capabilities."""
    owner = {}
    for at, data, _, name in caps(with_callback):
        for i in range(len(data)):
            owner[at + i] = (name, at)
    while count:
        who = ("header", 0) if offset < 0x40 else owner.get(offset, ("gap", 0))
        n = 1
        while n < count and (("header", 0) if offset + n < 0x40 else owner.get(offset + n, ("gap", 0))) == who:
            n += 1
        yield offset, n, *who
        offset, count = offset + n, count - n


def by_table(space, at, data):
    for i, byte in enumerate(data):
        rw, w1c = RW_BITS.get(at + i, 0), W1C_BITS.get(at + i, 0)
        space[at + i] = (space[at + i] & ~rw | byte & rw) & ~(byte & w1c) & 0xff


def write_piece(space, at, data, name, base, with_callback, events):
    """What one piece of a write does to `space`; its errno."""
    i = at - base
    if name == "gap" or name == "callback":
        if not with_callback:
            return EINVAL
        events.append((at, bytes(data)))
        return 0
    if name in ("readonly", "callback_readonly"):
        return EPERM
    if i < HEADER_LENGTH.get(name, 0):
        return EPERM
    if name == "serial":
        return EPERM
    if name == "pm":
        if i == 4 and len(data) in (2, 4):
            by_table(space, at, data[:2])
            return 0
        return ENOTSUP if (i, len(data)) in ((2, 2), (6, 1), (7, 1)) else EINVAL
    if name == "msi" and i <= 2:
        old, new = space[base + 2] >> 4 & 7, data[2 - i] >> 4 & 7
        if new != old and (new > 5 or new > space[base + 2] >> 1 & 7):
            return EINVAL
    if name == "express" and not set(range(i, i + len(data))) & set(EXPRESS_REGISTERS):
        return EINVAL
    by_table(space, at, data)
    if name == "express" and at <= FLR_BYTE < at + len(data) and data[FLR_BYTE - at] & 0x80:
        events.append(("reset", RESET_FLR))
    return 0


def model_write(space, offset, data, with_callback):
    """(errno, events): what a write does to `space`."""
    events = []
    if offset <= FLR_BYTE < offset + len(data) and data[FLR_BYTE - offset] & 0x80:
        events.append("quiesce")
    done = 0
    for at, n, name, base in pieces(offset, len(data), with_callback):
        errno = write_piece(space, at, data[done:done + n], name, base, with_callback, events)
        if errno:
            return errno, events
        done += n
    return 0, events


class Device:
    """The device of the model, its config callback noting what it sees."""

    def __init__(self, with_callback):
        self.with_callback = with_callback
        self.ctx = ctx = Ctx(realize=False, quiesce=True)
        ctx.pci_init(EXPRESS)
        lib.vfu_pci_set_id(ctx.p, 0x1af4, 0x1001, 0x5853, 0x0002)
        lib.vfu_pci_set_class(ctx.p, 0x01, 0x08, 0x02)
        for index, size, flags in REGIONS:
            ctx.setup_region(index, size, flags=flags)
        if with_callback:
            ctx.setup_region(CFG, 0, self.access, RW)
        for at, data, flags, _ in caps(with_callback):
            assert ctx.add_cap(data, at, flags) == at
        ctx.realize()
        self.client = ctx.connect()
        self.initial = peek(ctx, 0, SIZE)

    def access(self, _ctx, buf, count, offset, is_write):
        if is_write:
            self.ctx.events.append((offset, c.string_at(buf, count)))
        else:
            c.memmove(buf, bytes(callback_byte(offset + i) for i in range(count)), count)
        return count

    def image(self, kind):
        """Something for the space to hold: as it was at first, or with all that can be cleared set."""
        space = bytearray(self.initial)
        if kind == "full":
            for at, bits in W1C_BITS.items():
                space[at] |= bits
            for at, bits in RW_BITS.items():
                space[at] |= bits if at != 0x4a else 0x31
        return bytes(space)


def callback_byte(offset):
    return (offset * 29 + 11) & 0xff


@pytest.fixture(scope="module", params=[False, True], ids=["no_callback", "config_callback"])
def device(request):
    d = Device(request.param)
    yield d
    d.client.close()
    d.ctx.destroy()


OFFSETS = [*range(0x128), *range(0x1f0, 0x218), *range(SIZE - 16, SIZE)]


def written(kind, at, width):
    if kind == "random":
        return random.Random(at << 8 | width).randbytes(width)
    return bytes([kind]) * width


@pytest.mark.parametrize("image", ["initial", "full"])
@pytest.mark.parametrize("value", [0x00, 0xff, 0x55, "random"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 16])
def test_every_write_does_what_the_table_says(device, width, value, image):
    ctx, client = device.ctx, device.client
    start = device.image(image)
    for at in OFFSETS:
        if at + width > SIZE:
            continue
        poke(ctx, 0, start)
        ctx.events.clear()
        data = written(value, at, width)
        want = bytearray(start)
        errno, events = model_write(want, at, data, device.with_callback)
        where = f"{width} bytes at {at:#x}: {data.hex()}"
        try:
            client.write(CFG, at, data, expect=errno)
        except AssertionError as e:
            raise AssertionError(f"{where}: {e}") from e
        got = peek(ctx, 0, SIZE)
        if got != want:
            diff = {hex(i): (hex(got[i]), hex(want[i])) for i in range(SIZE) if got[i] != want[i]}
            raise AssertionError(f"{where}: (is, should be) {diff}")
        assert ctx.events == events, where
    alive(client)


@pytest.mark.parametrize("seed", range(4))
def test_long_writes_across_everything(device, seed):
    ctx, client, rng = device.ctx, device.client, random.Random(seed)
    start = device.image("full")
    for _ in range(300):
        at = rng.choice(OFFSETS)
        data = rng.randbytes(min(rng.randrange(1, 300), SIZE - at))
        poke(ctx, 0, start)
        ctx.events.clear()
        want = bytearray(start)
        errno, events = model_write(want, at, data, device.with_callback)
        client.write(CFG, at, data, expect=errno)
        assert peek(ctx, 0, SIZE) == want, (hex(at), len(data))
        assert ctx.events == events


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 64, 256])
def test_every_read_gives_the_live_bytes_or_the_callbacks(device, width):
    ctx, client = device.ctx, device.client
    start = bytearray(random.Random(width).randbytes(SIZE))
    poke(ctx, 0, start)
    want = bytearray(start)
    if device.with_callback:
        owned = {at + i: name for at, data, _, name in caps(True) for i in range(len(data))}
        for i in range(0x40, SIZE):
            if owned.get(i, "callback").startswith("callback"):
                want[i] = callback_byte(i)
    for at in OFFSETS:
        if at + width <= SIZE:
            assert client.read(CFG, at, width) == want[at:at + width], hex(at)
    assert client.read(CFG, 0, SIZE) == want
    poke(ctx, 0, device.initial)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_access_beyond_the_space_is_refused(device, width):
    for at in (SIZE - width + 1, SIZE, SIZE + 1, 1 << 32, (1 << 64) - width):
        device.client.read(CFG, at, width, expect=EINVAL)
        device.client.write(CFG, at, bytes(width), expect=EINVAL)
    alive(device.client)


# --- a 256-byte device without anything ---------------------------------------------------

def test_conventional_device_header_and_gap():
    with Ctx() as ctx, ctx.connect() as client:
        for at in range(0x40):
            client.write(CFG, at, b"\xff")
        want = bytearray(64)
        want[4:6], want[0x0c:0x0e], want[0x3c] = b"\x57\x07", b"\xff\xff", 0xff
        for n in range(6):
            want[0x10 + 4 * n] = 1
        assert client.read(CFG, 0, 64) == want
        for at in range(0x40, 0x100):
            client.write(CFG, at, b"\xff", expect=EINVAL)
            assert client.read(CFG, at, 1) == b"\0"


def test_pieces_before_the_failing_one_have_taken_effect():
    with Ctx() as ctx, ctx.connect() as client:
        client.write(CFG, 0x3c, b"\x0a\0\0\0\1", expect=EINVAL)
        assert peek(ctx, 0x3c, 5) == b"\x0a\0\0\0\0"


# --- status -------------------------------------------------------------------------------

def test_status_bits_that_a_device_sets_stay_unless_they_are_write_one_to_clear():
    with Ctx(realize=False) as ctx:
        ctx.pci_init()
        ctx.realize()
        with ctx.connect() as client:
            poke(ctx, 6, b"\xff\xff")
            client.write(CFG, 6, b"\0\0")
            assert peek16(ctx, 6) == 0xffff
            client.write(CFG, 6, b"\xff\xff")
            assert peek16(ctx, 6) == 0xffff & ~0xf900
            for bit in (8, 11, 12, 13, 14, 15):
                poke(ctx, 6, b"\xff\xff")
                client.write(CFG, 6, struct.pack("<H", 1 << bit))
                assert peek16(ctx, 6) == 0xffff & ~(1 << bit)


# --- set-up ---------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [4, 5, 0xffffffff])
def test_pci_init_of_an_unknown_type(kind):
    with Ctx(realize=False) as ctx:
        fails(EINVAL, ctx.pci_init, kind)
        assert not ctx.config()
        assert ctx.pci_init(EXPRESS) == 0


@pytest.mark.parametrize("hdr_type", [1, 2, -1])
def test_pci_init_of_another_header_type(hdr_type):
    with Ctx(realize=False) as ctx:
        fails(EINVAL, call, "vfu_pci_init", ctx.p, EXPRESS, hdr_type, 0)
        assert not ctx.config()


def test_pci_init_twice_or_after_realize():
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)
        fails(EEXIST, ctx.pci_init, EXPRESS)
        fails(EEXIST, ctx.pci_init, CONVENTIONAL)
    with Ctx() as ctx:
        fails(EEXIST, ctx.pci_init, EXPRESS)


@pytest.mark.parametrize("kind, size", [(CONVENTIONAL, 256), (PCI_X_1, 256), (PCI_X_2, 4096), (EXPRESS, 4096)])
def test_pci_init_makes_a_zeroed_space(kind, size):
    with Ctx(realize=False) as ctx:
        assert call("vfu_pci_init", ctx.p, kind, 0, 0x42) == 0
        assert peek(ctx, 0, size) == bytes(size), "the revision is ignored"


def test_ids_and_class():
    with Ctx(realize=False) as ctx:
        ctx.pci_init()
        lib.vfu_pci_set_id(ctx.p, 0x1234, 0x5678, 0x9abc, 0xdef0)
        lib.vfu_pci_set_class(ctx.p, 0x01, 0x08, 0x02)
        ctx.realize()
        with ctx.connect() as client:
            space = client.read(CFG, 0, 64)
        assert space[0:4] == struct.pack("<HH", 0x1234, 0x5678)
        assert space[8:12] == b"\0\2\10\1"
        assert space[0x2c:0x30] == struct.pack("<HH", 0x9abc, 0xdef0)


def test_ids_and_class_without_config_space_are_ignored():
    with Ctx(realize=False) as ctx:
        lib.vfu_pci_set_id(ctx.p, 1, 2, 3, 4)
        lib.vfu_pci_set_class(ctx.p, 1, 2, 3)
        assert not ctx.config()
        ctx.realize()
        assert peek(ctx, 0, 12) == bytes(12)


def test_config_space_pointer_stays_the_same():
    with Ctx(realize=False) as ctx:
        assert not ctx.config()
        ctx.pci_init()
        at = ctx.config()
        ctx.add_cap(pm())
        ctx.realize()
        assert ctx.config() == at
        with ctx.connect() as client:
            client.write(CFG, 4, b"\7")
            assert ctx.config() == at
        with pytest.raises(Failed):
            ctx.run()
        assert ctx.config() == at


def test_device_edits_are_seen_at_once():
    with Ctx() as ctx, ctx.connect() as client:
        for i in range(4):
            poke(ctx, 0x3d, bytes([i]))
            assert client.read(CFG, 0x3d, 1) == bytes([i])


# --- the config region's callback ------------------------------------------------------------

@pytest.fixture
def gaps():
    """A device whose config callback does what `ctx.answer(offset, count, is_write)` says."""
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)

        def access(_ctx, buf, count, offset, is_write):
            data = c.string_at(buf, count) if is_write else None
            ctx.events.append(("write" if is_write else "read", offset, count, data))
            if not is_write:
                c.memmove(buf, bytes((offset + i) & 0xff for i in range(count)), count)
            return ctx.answer(offset, count, is_write)
        ctx.answer = lambda offset, count, is_write: count
        ctx.setup_region(CFG, 0, access, RW)
        ctx.add_cap(pm())
        ctx.realize()
        with ctx.connect() as client:
            yield ctx, client


def test_gap_goes_to_the_callback_with_the_absolute_offset(gaps):
    ctx, client = gaps
    assert client.read(CFG, 0x48, 4) == b"\x48\x49\x4a\x4b"
    client.write(CFG, 0xffc, b"abcd")
    assert ctx.events == [("read", 0x48, 4, None), ("write", 0xffc, 4, b"abcd")]
    assert peek(ctx, 0xffc, 4) == b"\0\0\0\0", "the callback keeps it where it wants"


def test_header_and_capability_don_t_go_to_the_callback(gaps):
    ctx, client = gaps
    client.read(CFG, 0, 0x48)
    client.write(CFG, 0, bytes(0x40))
    client.write(CFG, 0x44, b"\1\2")
    assert ctx.events == []


def test_access_across_areas_is_split(gaps):
    ctx, client = gaps
    poke(ctx, 0x3e, b"\xaa\xbb")
    got = client.read(CFG, 0x3e, 0x20)
    assert got[:2] == b"\xaa\xbb" and got[2:10] == peek(ctx, 0x40, 8)
    assert got[10:] == bytes(range(0x48, 0x5e))
    assert ctx.events == [("read", 0x48, 0x16, None)]


def test_short_piece_goes_on_where_it_stopped(gaps):
    ctx, client = gaps
    ctx.answer = lambda offset, count, is_write: min(count, 3)
    assert client.read(CFG, 0x50, 8) == bytes(range(0x50, 0x58))
    client.write(CFG, 0x60, b"abcdefgh")
    assert ctx.events == [("read", 0x50, 8, None), ("read", 0x53, 5, None), ("read", 0x56, 2, None),
                          ("write", 0x60, 8, b"abcdefgh"), ("write", 0x63, 5, b"defgh"),
                          ("write", 0x66, 2, b"gh")]


@pytest.mark.parametrize("result", [0, 9, 1 << 40, -2])
def test_nothing_or_too_much_from_the_callback_is_refused(gaps, result):
    ctx, client = gaps
    ctx.answer = lambda offset, count, is_write: result
    client.read(CFG, 0x50, 8, expect=EINVAL)
    client.write(CFG, 0x50, bytes(8), expect=EINVAL)
    assert len(ctx.events) == 2
    alive(client)


def test_errno_of_the_callback_ends_the_access(gaps):
    ctx, client = gaps

    def answer(offset, count, is_write):
        c.set_errno(0xbeef)
        return -1
    ctx.answer = answer
    client.read(CFG, 0x3c, 0x20, expect=0xbeef)
    client.write(CFG, 0x48, b"a", expect=0xbeef)
    assert [e[:3] for e in ctx.events] == [("read", 0x48, 0x14), ("write", 0x48, 1)]
    alive(client)


def test_callback_set_after_realize_is_used():
    with Ctx() as ctx, ctx.connect() as client:
        client.write(CFG, 0x80, b"a", expect=EINVAL)
        ctx.memory_region(CFG, 256)
        client.write(CFG, 0x80, b"a")
        assert client.read(CFG, 0x80, 1) == b"a"
        assert ctx.events == [("write", CFG, 0x80, 1), ("read", CFG, 0x80, 1)]
