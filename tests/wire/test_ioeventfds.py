"""vfu_create_ioeventfd and DEVICE_GET_REGION_IO_FDS."""
import os
import struct

import pytest
from errno import EINVAL

from libvfu import *
from pci_device import alive

NO_FD = 0xffffffff
ENTRY = struct.Struct("<QQIIIIQQ")
assert ENTRY.size == 48
# A client that takes enough for every test.
MANY = {"max_msg_fds": 64}


@pytest.fixture
def device():
    with Ctx() as ctx, ctx.connect(caps=MANY) as client:
        ctx.memory_region(BAR2, 0x1000, flags=RW | MEM)
        yield ctx, client


@pytest.fixture
def eventfds():
    fds = []

    def make(n):
        new = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(n)]
        fds.extend(new)
        return new
    yield make
    for fd in fds:
        os.close(fd)


def create(ctx, region, fd, offset=0, size=8, flags=0, datamatch=0, shadow_fd=-1, shadow_offset=0):
    return call("vfu_create_ioeventfd", ctx.p, region, fd, offset, size, flags, datamatch, shadow_fd, shadow_offset)


def request(argsz, index, flags=0, count=0, extra=b""):
    return struct.pack("<IIII", argsz, flags, index, count) + extra


def ask(client, index, argsz=4096):
    """(argsz, count, entries) of a region; the descriptors are in client.fds."""
    p = client.request(GET_REGION_IO_FDS, request(argsz, index))
    size, flags, idx, count = struct.unpack_from("<IIII", p)
    assert (flags, idx) == (0, index)
    assert (len(p) - 16) % 48 == 0
    return size, count, [ENTRY.unpack_from(p, at) for at in range(16, len(p), 48)]


def close_all(client):
    for fd in client.fds:
        os.close(fd)
    client.fds = []


def connected(a, b):
    """Whether two descriptors are the same eventfd, tried in both directions."""
    for x, y in ((a, b), (b, a)):
        os.eventfd_write(x, 7)
        try:
            if os.eventfd_read(y) != 7:
                return False
        except BlockingIOError:
            os.eventfd_read(x)
            return False
    return True


# --- vfu_create_ioeventfd -----------------------------------------------------------------

@pytest.mark.parametrize("region", [9, 10, 512, 0xffffffff])
def test_region_out_of_range_is_refused(device, region):
    ctx, client = device
    fails(EINVAL, create, ctx, region, -1)


@pytest.mark.parametrize("offset, size", [(0, 0x1001), (0xfff, 2), (0x1000, 1), (0x1001, 0), (1 << 32, 8),
                                          ((1 << 64) - 8, 8), ((1 << 64) - 4, 8), ((1 << 64) - 1, 1)])
def test_entry_beyond_the_region_is_refused(device, offset, size):
    ctx, client = device
    fails(EINVAL, create, ctx, BAR2, -1, offset, size)
    assert ask(client, BAR2) == (16, 0, [])


@pytest.mark.parametrize("offset, size", [(0, 0x1000), (0xfff, 1), (0x1000, 0), (0xff8, 8)])
def test_entry_that_ends_with_the_region_is_accepted(device, offset, size):
    ctx, client = device
    assert create(ctx, BAR2, -1, offset, size) == 0
    assert ask(client, BAR2) == (64, 1, [(offset, size, NO_FD, 0, 0, 0, 0, 0)])


@pytest.mark.parametrize("size", [0, 1])
def test_entry_on_a_region_never_set_up_is_refused(device, size):
    ctx, client = device
    fails(EINVAL, create, ctx, BAR0, -1, 0, size)


def test_shadow_memory_is_refused(device, eventfds):
    ctx, client = device
    fd, shadow = eventfds(1)[0], memfd(4096)
    fails(EINVAL, create, ctx, BAR2, fd, shadow_fd=shadow, shadow_offset=8)
    assert ask(client, BAR2) == (16, 0, [])
    os.close(shadow)


def test_descriptor_stays_the_callers(eventfds):
    fd, = eventfds(1)
    with Ctx() as ctx:
        ctx.memory_region(BAR2, 0x1000)
        before = open_fds()
        create(ctx, BAR2, fd)
        assert open_fds() == before, "not duplicated"
    os.fstat(fd)


def test_entries_can_be_created_before_realize(eventfds):
    fd, = eventfds(1)
    with Ctx(realize=False) as ctx:
        ctx.memory_region(BAR2, 0x1000)
        create(ctx, BAR2, fd)
        ctx.realize()
        with ctx.connect() as client:
            assert ask(client, BAR2)[:2] == (64, 1)
            assert connected(fd, client.fds[0])
            close_all(client)


def test_entries_outlive_the_connection(eventfds):
    fd, = eventfds(1)
    with Ctx() as ctx:
        ctx.memory_region(BAR2, 0x1000)
        ctx.connect().close()
        create(ctx, BAR2, fd, 0x20)
        with pytest.raises(Failed):
            ctx.run()
        with ctx.connect() as client:
            assert ask(client, BAR2)[2] == [(0x20, 8, 0, 0, 0, 0, 0, 0)]
            close_all(client)


# --- what is refused ----------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 8, 15])
def test_short_payload_is_refused(device, size):
    _, client = device
    client.request(GET_REGION_IO_FDS, request(16, BAR2)[:size], expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("flags, count", [(1, 0), (0, 1), (1 << 31, 0), (0, 0xffffffff)])
def test_flags_or_count_are_refused(device, flags, count):
    _, client = device
    client.request(GET_REGION_IO_FDS, request(4096, BAR2, flags, count), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("index", [9, 512, 0xffffffff])
def test_index_out_of_range_is_refused(device, index):
    _, client = device
    client.request(GET_REGION_IO_FDS, request(4096, index), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("index", [BAR0, BAR5, ROM, VGA])
def test_region_never_set_up_is_refused(device, index):
    _, client = device
    client.request(GET_REGION_IO_FDS, request(4096, index), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("argsz", [0, 15, MAX_XFER + 1, 0xffffffff])
def test_argsz_out_of_range_is_refused(device, argsz, count):
    _, client = device
    client.request(GET_REGION_IO_FDS, request(argsz, BAR2, 0, count), expect=EINVAL)
    alive(client)


# --- replies --------------------------------------------------------------------------------

@pytest.mark.parametrize("argsz", [16, 17, 64, 4096, MAX_XFER])
@pytest.mark.parametrize("mapped", [False, True])
def test_region_without_entries(device, argsz, mapped):
    ctx, client = device
    fd = memfd(0x1000)
    ctx.setup_region(BAR1, 0x1000, flags=RW | MEM, fd=fd if mapped else -1)
    assert client.request(GET_REGION_IO_FDS, request(argsz, BAR1)) == struct.pack("<IIII", 16, 0, BAR1, 0)
    assert client.fds == []
    os.close(fd)


def test_request_may_be_followed_by_more(device):
    _, client = device
    assert client.request(GET_REGION_IO_FDS, request(16, BAR2, extra=bytes(100))) == \
        struct.pack("<IIII", 16, 0, BAR2, 0)


def test_six_entries_newest_first_with_usable_descriptors(device, eventfds):
    ctx, client = device
    fds = eventfds(6)
    for i, fd in enumerate(fds):
        create(ctx, BAR2, fd, offset=8 * i, size=8)
    size, count, entries = ask(client, BAR2, 16 + 48 * 6)
    assert (size, count) == (16 + 48 * 6, 6)
    assert entries == [(offset, 8, i, 0, 0, 0, 0, 0) for i, offset in enumerate((40, 32, 24, 16, 8, 0))]
    assert len(client.fds) == 6
    for got, fd in zip(client.fds, reversed(fds)):
        assert connected(got, fd)
    close_all(client)


@pytest.mark.parametrize("argsz", [16, 17, 63, 64, 16 + 48 * 6 - 1])
def test_without_room_for_all_entries_only_the_header_comes(device, eventfds, argsz):
    ctx, client = device
    for fd in eventfds(6):
        create(ctx, BAR2, fd)
    before = open_fds()
    assert client.request(GET_REGION_IO_FDS, request(argsz, BAR2)) == \
        struct.pack("<IIII", 16 + 48 * 6, 0, BAR2, 6)
    assert client.fds == [] and open_fds() == before


@pytest.mark.parametrize("argsz", [16 + 48 * 2, 16 + 48 * 2 + 1, MAX_XFER])
def test_with_room_the_reply_is_as_large_as_needed(device, eventfds, argsz):
    ctx, client = device
    for fd in eventfds(2):
        create(ctx, BAR2, fd)
    p = client.request(GET_REGION_IO_FDS, request(argsz, BAR2))
    assert len(p) == 16 + 48 * 2 == struct.unpack_from("<I", p)[0]
    close_all(client)


def test_every_field_of_an_entry(device, eventfds):
    ctx, client = device
    create(ctx, BAR2, eventfds(1)[0], offset=0x123, size=4, flags=0x89abcdef, datamatch=0xfedcba9876543210)
    assert ask(client, BAR2)[2] == [(0x123, 4, 0, 0, 0x89abcdef, 0, 0, 0xfedcba9876543210)]
    close_all(client)


def test_a_shared_descriptor_is_sent_once(device, eventfds):
    """Eight entries, of which the two newest share one descriptor."""
    ctx, client = device
    fds = eventfds(7)
    fds.append(fds[6])
    for i, fd in enumerate(fds):
        create(ctx, BAR2, fd, offset=8 * i)
    size, count, entries = ask(client, BAR2)
    assert (size, count) == (16 + 48 * 8, 8)
    assert [e[2] for e in entries] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert [e[0] for e in entries] == [56, 48, 40, 32, 24, 16, 8, 0]
    assert len(client.fds) == 7
    for got, fd in zip(client.fds, reversed(fds[:7])):
        assert connected(got, fd)
    close_all(client)


def test_descriptors_are_numbered_in_order_of_first_use(device, eventfds):
    ctx, client = device
    a, b, c = eventfds(3)
    for fd in (a, b, a, c, b, a):
        create(ctx, BAR2, fd)
    assert [e[2] for e in ask(client, BAR2)[2]] == [0, 1, 2, 0, 1, 0]
    assert len(client.fds) == 3
    assert all(connected(got, fd) for got, fd in zip(client.fds, (a, b, c)))
    close_all(client)


def test_entries_without_a_descriptor_between_others(device, eventfds):
    ctx, client = device
    a, b = eventfds(2)
    for fd in (b, -1, a, -1, a):
        create(ctx, BAR2, fd)
    assert [e[2] for e in ask(client, BAR2)[2]] == [0, NO_FD, 0, NO_FD, 1]
    assert len(client.fds) == 2 and connected(client.fds[0], a) and connected(client.fds[1], b)
    close_all(client)


def test_only_entries_without_descriptors(device):
    ctx, client = device
    create(ctx, BAR2, -1, 0x10)
    create(ctx, BAR2, -1, 0x20)
    assert [e[:3] for e in ask(client, BAR2)[2]] == [(0x20, 8, NO_FD), (0x10, 8, NO_FD)]
    assert client.fds == []


def test_each_region_has_its_own_entries(device, eventfds):
    ctx, client = device
    ctx.memory_region(BAR4, 0x1000)
    a, b = eventfds(2)
    create(ctx, BAR2, a, 1)
    create(ctx, BAR4, b, 2)
    create(ctx, CFG, -1, 3)
    for region, offset in ((BAR2, 1), (BAR4, 2), (CFG, 3)):
        assert [e[0] for e in ask(client, region)[2]] == [offset]
        close_all(client)


def test_asking_again_gives_the_same(device, eventfds):
    ctx, client = device
    for fd in eventfds(3):
        create(ctx, BAR2, fd)
    before = open_fds()
    first = ask(client, BAR2)
    close_all(client)
    assert ask(client, BAR2) == first and len(client.fds) == 3
    close_all(client)
    assert open_fds() == before


# --- a client's limit of descriptors ------------------------------------------------------------

@pytest.mark.parametrize("caps, most", [(None, 6), ({"pgsizes": 4096}, 6), ({"max_msg_fds": 0}, 0), ({"max_msg_fds": 1}, 1),
                                        ({"max_msg_fds": 3}, 3), ({"max_msg_fds": 6}, 6),
                                        ({"max_msg_fds": 1024}, 6)])
def test_no_more_descriptors_than_the_client_takes(eventfds, caps, most):
    with Ctx() as ctx, ctx.connect(caps=caps) as client:
        ctx.memory_region(BAR2, 0x1000)
        fds = eventfds(6)
        for i, fd in enumerate(fds):
            create(ctx, BAR2, fd, 8 * i)
        size, count, entries = ask(client, BAR2)
        assert (size, count) == (16 + 48 * 6, 6)
        assert [e[2] for e in entries] == [i if i < most else NO_FD for i in range(6)]
        assert len(client.fds) == most
        assert all(connected(got, fd) for got, fd in zip(client.fds, reversed(fds)))
        close_all(client)
        alive(client)


def test_a_client_that_says_nothing_is_sent_eight(eventfds):
    with Ctx() as ctx, ctx.connect() as client:
        ctx.memory_region(BAR2, 0x1000)
        for i, fd in enumerate(eventfds(12)):
            create(ctx, BAR2, fd, 8 * i)
        assert [e[2] for e in ask(client, BAR2)[2]] == [*range(8)] + [NO_FD] * 4
        assert len(client.fds) == 8
        close_all(client)
        alive(client)


def test_entries_that_share_a_descriptor_behind_the_limit(eventfds):
    with Ctx() as ctx, ctx.connect(caps={"max_msg_fds": 1}) as client:
        ctx.memory_region(BAR2, 0x1000)
        a, b = eventfds(2)
        for fd in (b, a, b, a):
            create(ctx, BAR2, fd)
        assert [e[2] for e in ask(client, BAR2)[2]] == [0, NO_FD, 0, NO_FD]
        assert len(client.fds) == 1 and connected(client.fds[0], a)
        close_all(client)


def test_more_descriptors_than_a_message_takes_are_answered():
    """The kernel stops at 253 a message; the client gets an answer all the same."""
    with Ctx() as ctx, ctx.connect(caps={"max_msg_fds": 1024}) as client:
        ctx.memory_region(BAR2, 0x1000)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(254)]
        for fd in fds:
            create(ctx, BAR2, fd)
        msg_id = client.send(GET_REGION_IO_FDS, request(MAX_XFER, BAR2))
        assert ctx.run() == 1
        reply = client.recv()
        assert reply.msg_id == msg_id and reply.cmd == GET_REGION_IO_FDS
        if reply.flags == F_REPLY | F_ERROR:
            assert reply.error != 0 and reply.payload == b"" and reply.fds == []
        else:
            assert len(reply.payload) == 16 + 48 * 254 and len(reply.fds) <= 253
        reply.close()
        alive(client)
        for fd in fds:
            os.close(fd)


def test_many_entries(device):
    ctx, client = device
    for i in range(2000):
        create(ctx, BAR2, -1, i, 1)
    size, count, entries = ask(client, BAR2, MAX_XFER)
    assert (size, count) == (16 + 48 * 2000, 2000)
    assert [e[0] for e in entries] == list(reversed(range(2000)))
