"""REGION_WRITE_MULTI: several small writes in one command."""
import ctypes as c
import struct

import pytest
from errno import EBUSY, EINVAL, EPERM

from libvfu import *
from pci_device import alive, express, peek, peek16

ENTRY = 24
AGREED = {"write_multiple": True}


def entry(offset, region, data, count=None):
    count = len(data) if count is None else count
    return struct.pack("<QII", offset, region, count) + data.ljust(8, b"\xdd")


def multi(*entries, wr_cnt=None):
    return struct.pack("<Q", len(entries) if wr_cnt is None else wr_cnt) + b"".join(entries)


def done(n):
    return struct.pack("<Q", n)


class Device:
    def __init__(self, caps=AGREED, **kw):
        self.ctx = Ctx(realize=False, **kw)
        self.ctx.pci_init(EXPRESS)
        self.mem = self.ctx.memory_region(BAR0, 0x1000)
        self.other = self.ctx.memory_region(BAR2, 0x100)
        self.ctx.memory_region(BAR4, 0x100, flags=READ)
        self.ctx.add_cap(express(flr=True))
        self.ctx.realize()
        self.client = self.ctx.connect(caps=caps)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.client.close()
        self.ctx.destroy()

    def multi(self, *entries, expect=0, wr_cnt=None, **kw):
        return self.client.request(REGION_WRITE_MULTI, multi(*entries, wr_cnt=wr_cnt), expect=expect, **kw)


@pytest.fixture
def dev():
    with Device() as d:
        yield d


GOOD = entry(0, BAR0, b"abcd")


# --- agreement ---------------------------------------------------------------------------

def test_the_server_agrees_when_the_client_proposes_it(dev):
    assert dev.client.server["write_multiple"] is True
    assert dev.multi(GOOD) == done(1)


@pytest.mark.parametrize("caps", [None, {}, {"write_multiple": False}, {"max_msg_fds": 8}])
def test_without_agreement_it_is_refused(caps):
    with Device(caps) as dev:
        assert not dev.client.server.get("write_multiple")
        dev.multi(GOOD, expect=EINVAL)
        dev.multi(expect=EINVAL)
        assert dev.ctx.events == []
        alive(dev.client)


def test_agreement_ends_with_the_connection():
    with Device() as dev:
        dev.client.close()
        with pytest.raises(Failed):
            dev.ctx.run()
        dev.client = dev.ctx.connect()
        dev.multi(GOOD, expect=EINVAL)
        alive(dev.client)


# --- payload -------------------------------------------------------------------------------

@pytest.mark.parametrize("size", range(1, 8))
def test_short_payload_is_refused(dev, size):
    dev.client.request(REGION_WRITE_MULTI, bytes(size), expect=EINVAL)
    alive(dev.client)


def test_no_payload_is_refused(dev):
    dev.client.request(REGION_WRITE_MULTI, b"", expect=EINVAL, count=0)
    alive(dev.client)


@pytest.mark.parametrize("wr_cnt, rest", [
    (0, 1), (0, 24), (1, 0), (1, 23), (1, 25), (1, 48), (2, 24), (2, 47), (3, 71), (1 << 32, 24),
    # Products that wrap to the size of the rest.
    (1 << 61, 0), ((1 << 61) + 1, 24), ((1 << 61) + 2, 48), ((1 << 64) - 1, 24), ((1 << 63), 0)])
def test_wr_cnt_that_is_not_exactly_the_rest_is_refused(dev, wr_cnt, rest):
    entries = (GOOD * 3)[:rest].ljust(rest, b"\0")
    dev.client.request(REGION_WRITE_MULTI, struct.pack("<Q", wr_cnt) + entries, expect=EINVAL)
    assert dev.ctx.events == []
    alive(dev.client)


def test_no_writes_at_all_succeeds(dev):
    assert dev.multi() == done(0)
    assert dev.ctx.events == []
    alive(dev.client)


# --- execution -----------------------------------------------------------------------------

def test_entries_are_written_in_order(dev):
    assert dev.multi(entry(0, BAR0, b"abcdefgh"), entry(4, BAR0, b"XY"), entry(0, BAR2, b"z"),
                     entry(5, BAR0, b"W")) == done(4)
    assert dev.ctx.events == [("write", BAR0, 0, 8), ("write", BAR0, 4, 2), ("write", BAR2, 0, 1),
                              ("write", BAR0, 5, 1)]
    assert dev.mem[:9] == b"abcdXWgh\0" and dev.other[:2] == b"z\0"


@pytest.mark.parametrize("count", range(1, 9))
def test_count_bytes_of_the_entry_are_written(dev, count):
    data = bytes(range(1, 9))
    assert dev.multi(entry(0x10, BAR0, data, count)) == done(1)
    assert dev.mem[0x10:0x18] == data[:count].ljust(8, b"\0")
    assert dev.ctx.events == [("write", BAR0, 0x10, count)]


def test_count_zero_needs_no_callback(dev):
    assert dev.multi(entry(0, BAR0, b""), entry(0, BAR0, b"a")) == done(2)
    assert dev.ctx.events == [("write", BAR0, 0, 1)]


def test_configuration_space_by_its_own_rules(dev):
    assert dev.multi(entry(4, CFG, b"\xff\xff"), entry(0x3c, CFG, b"\x0b"), entry(0, CFG, b"\xff" * 4)) == done(3)
    assert peek16(dev.ctx, 4) == 0x0757 and peek(dev.ctx, 0x3c, 1) == b"\x0b" and peek(dev.ctx, 0, 4) == bytes(4)


BAD = {
    "count above eight": (entry(0, BAR0, b"abcdefgh", 9), EINVAL),
    "count of 32 bits": (entry(0, BAR0, b"abcdefgh", 0xffffffff), EINVAL),
    "index out of range": (entry(0, 9, b"a"), EINVAL),
    "beyond the region": (entry(0xffd, BAR0, b"abcd"), EINVAL),
    "offset that wraps": (entry((1 << 64) - 1, BAR0, b"abcd"), EINVAL),
    "unset region": (entry(0, BAR3, b"a"), EINVAL),
    "region that is only read": (entry(0, BAR4, b"a"), EPERM),
    "nothing there": (entry(0xf00, CFG, b"a"), EINVAL),
    "header of a capability": (entry(0x40, CFG, b"a"), EPERM),
}


@pytest.mark.parametrize("what", BAD)
def test_failure_of_the_first_is_the_commands(dev, what):
    bad, errno = BAD[what]
    dev.multi(bad, GOOD, expect=errno)
    dev.multi(bad, expect=errno)
    assert dev.ctx.events == [] and dev.mem == bytes(0x1000)
    alive(dev.client)


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("before", [1, 2, 5])
def test_failure_of_a_later_one_ends_it_with_the_number_completed(dev, what, before):
    bad, _ = BAD[what]
    good = [entry(i, BAR0, bytes([i + 1])) for i in range(before)]
    assert dev.multi(*good, bad, entry(0x100, BAR0, b"never")) == done(before)
    assert dev.ctx.events == [("write", BAR0, i, 1) for i in range(before)]
    assert dev.mem[0x100] == 0
    alive(dev.client)


def test_errno_of_the_callback(dev):
    def access(p, buf, count, offset, is_write):
        dev.ctx.events.append(offset)
        if offset < 8:
            return count
        c.set_errno(0xbeef)
        return -1
    dev.ctx.setup_region(BAR0, 0x1000, access)
    dev.multi(entry(8, BAR0, b"a"), GOOD, expect=0xbeef)
    assert dev.ctx.events == [8]
    assert dev.multi(GOOD, entry(8, BAR0, b"a"), GOOD) == done(1)
    assert dev.ctx.events == [8, 0, 8]


def test_callback_sees_its_own_bytes_only(dev):
    seen = []

    def access(p, buf, count, offset, is_write):
        assert is_write and c.addressof(buf.contents) % 8 == 0
        seen.append(c.string_at(buf, count))
        return count
    dev.ctx.setup_region(BAR0, 0x1000, access)
    assert dev.multi(entry(0, BAR0, b"abc"), entry(0, BAR0, b"defghijk"), entry(0, BAR0, b"l")) == done(3)
    assert seen == [b"abc", b"defghijk", b"l"]


def test_many_entries(dev):
    n = 4096
    dev.client.send(REGION_WRITE_MULTI, multi(*(entry(i, BAR0, bytes([i & 0xff])) for i in range(n))))
    while dev.ctx.run() == 0:  # it takes more than one read
        assert dev.client.nothing()
    assert dev.client.recv().payload == done(n)
    assert dev.mem == bytes(i & 0xff for i in range(n))


def test_no_reply_wanted(dev):
    dev.client.send(REGION_WRITE_MULTI, multi(GOOD), flags=F_NO_REPLY)
    assert dev.ctx.run() == 1
    assert dev.mem[:4] == b"abcd"
    alive(dev.client)


def test_in_stop_copy_it_is_refused():
    with Device(migration=True) as dev:
        dev.client.set_state(S_STOP_COPY)
        dev.ctx.events.clear()
        dev.multi(GOOD, expect=EINVAL)
        assert dev.multi() == done(0)
        assert dev.ctx.events == []
        dev.client.set_state(S_STOP)
        assert dev.multi(GOOD) == done(1)


# --- quiesce ---------------------------------------------------------------------------------

FLR = entry(0x48, CFG, b"\x01\x80")


def test_plain_entries_ask_for_no_quiesce():
    with Device(quiesce=True) as dev:
        assert dev.multi(GOOD, entry(0x48, CFG, b"\x01\x00"), entry(0x48, BAR0, b"\x01\x80")) == done(3)
        assert "quiesce" not in dev.ctx.events


@pytest.mark.parametrize("before", [0, 1, 3])
def test_function_level_reset_in_an_entry_quiesces_once(before):
    with Device(quiesce=True) as dev:
        assert dev.multi(*[GOOD] * before, FLR, GOOD, FLR) == done(before + 3)
        writes = [("write", BAR0, 0, 4)]
        assert dev.ctx.events == ["quiesce", *writes * before, ("reset", RESET_FLR), *writes, ("reset", RESET_FLR)]
        assert peek16(dev.ctx, 0x48) == 1


def test_failing_quiesce_refuses_all_of_it():
    with Device(quiesce=True) as dev:
        dev.ctx.quiesce_errno = 0xbeef
        dev.multi(GOOD, FLR, expect=0xbeef, count=0)
        dev.ctx.quiesce_errno = 0
        assert dev.ctx.events == ["quiesce"] and dev.mem[:4] == bytes(4)
        alive(dev.client)


def test_asynchronous_quiesce():
    with Device(quiesce=True) as dev:
        dev.ctx.quiesce_errno = EBUSY
        dev.client.send(REGION_WRITE_MULTI, multi(GOOD, FLR))
        fails(EBUSY, dev.ctx.run)
        assert dev.ctx.events == ["quiesce"] and dev.mem[:4] == bytes(4)
        dev.ctx.quiesced()
        assert dev.client.recv().payload == done(2)
        assert dev.ctx.events == ["quiesce", ("write", BAR0, 0, 4), ("reset", RESET_FLR)]
        dev.ctx.quiesce_errno = 0
        alive(dev.client)


def test_failing_reset_ends_it():
    with Device(quiesce=True) as dev:
        dev.ctx.reset_errno = 0xbeef
        dev.multi(FLR, GOOD, expect=0xbeef)
        assert dev.multi(GOOD, FLR, GOOD) == done(1)
        dev.ctx.reset_errno = 0
