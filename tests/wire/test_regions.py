"""Setting up regions, and a client's access to them."""
import ctypes as c
import os
import struct

import pytest
from errno import EINVAL, EPERM, EIO

from libvfu import *
from pci_device import alive, peek, pm, poke

BARS = range(6)
FLAG_MASK = 63


@pytest.fixture
def device():
    with Ctx() as ctx, ctx.connect() as client:
        yield ctx, client


def region_info(client, index, argsz=4096):
    """(flags, size, offset, areas); closes the descriptor."""
    p = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))
    for fd in client.fds:
        os.close(fd)
    _, flags, idx, _, size, offset = struct.unpack("<IIIIQQ", p[:32])
    assert idx == index
    areas = [struct.unpack_from("<QQ", p, at) for at in range(48, len(p), 16)]
    return flags, size, offset, areas


def nothing_changed(ctx, client, index, refused):
    """Runs `refused`, which must be refused, and checks that the region stayed as it was."""
    before = region_info(client, index)
    fails(EINVAL, refused)
    assert region_info(client, index) == before
    assert client.nothing()


def callback(ctx, buf, count, offset, is_write):
    return count


# --- vfu_setup_region: what it refuses --------------------------------------------

@pytest.mark.parametrize("flags", [64, 64 | RW, 128 | RW, 1 << 30 | RW, -1, -(1 << 31) | RW, FLAG_MASK + 1 | RW])
def test_unknown_flags_are_refused(device, flags):
    ctx, client = device
    nothing_changed(ctx, client, BAR0, lambda: ctx.setup_region(BAR0, 0x1000, callback, flags))


@pytest.mark.parametrize("flags", [0, MEM, ALWAYS_CB, MEM | BITS_64 | PREFETCH])
def test_neither_read_nor_write_is_refused(device, flags):
    ctx, client = device
    nothing_changed(ctx, client, BAR0, lambda: ctx.setup_region(BAR0, 0x1000, callback, flags))


@pytest.mark.parametrize("index", [BAR0, ROM, CFG, VGA])
def test_always_cb_without_a_callback_is_refused(device, index):
    ctx, client = device
    nothing_changed(ctx, client, index, lambda: ctx.setup_region(index, 0x1000, None, RW | ALWAYS_CB))
    assert ctx.setup_region(index, 0x1000, callback, RW | ALWAYS_CB) == 0


def raw_setup(ctx, index, areas, nr_areas, fd, size=0x1000):
    return call("vfu_setup_region", ctx.p, index, size, None, RW | MEM, areas, nr_areas, fd, 0)


@pytest.mark.parametrize("nr_areas", [1, 2, 0xffffffff])
def test_number_of_areas_without_areas_is_refused(device, nr_areas):
    ctx, client = device
    with open(os.devnull) as f:
        nothing_changed(ctx, client, BAR0, lambda: raw_setup(ctx, BAR0, None, nr_areas, f.fileno()))


def test_areas_without_their_number_are_refused(device):
    ctx, client = device
    areas = (iovec * 1)(iovec(0, 0x1000))
    with open(os.devnull) as f:
        nothing_changed(ctx, client, BAR0, lambda: raw_setup(ctx, BAR0, areas, 0, f.fileno()))


def test_areas_without_a_descriptor_are_refused(device):
    ctx, client = device
    areas = (iovec * 1)(iovec(0, 0x1000))
    nothing_changed(ctx, client, BAR0, lambda: raw_setup(ctx, BAR0, areas, 1, -1))


@pytest.mark.parametrize("index", [-1, -(1 << 31), 9, 10, 1 << 30])
def test_index_out_of_range_is_refused(device, index):
    ctx, client = device
    fails(EINVAL, ctx.setup_region, index, 0x1000)
    alive(client)


@pytest.mark.parametrize("index", BARS)
@pytest.mark.parametrize("flags, size", [
    (RW, 1), (RW, 2), (RW, 3), (RW, 5), (RW, 0x3000), (RW, (1 << 32) - 1), (RW, (1 << 63) + 4),
    (RW | MEM, 1), (RW | MEM, 4), (RW | MEM, 8), (RW | MEM, 15), (RW | MEM, 17), (RW | MEM, 0x3000),
])
def test_bar_size_has_to_be_a_power_of_two_and_not_too_small(device, index, flags, size):
    ctx, client = device
    nothing_changed(ctx, client, index, lambda: ctx.setup_region(index, size, flags=flags))


@pytest.mark.parametrize("index", BARS)
@pytest.mark.parametrize("flags, size", [(RW, 4), (RW, 8), (RW, 256), (RW | MEM, 16), (RW | MEM, 32),
                                         (RW | MEM, 1 << 31), (RW | MEM, 1 << 63)])
def test_bar_size_that_is_a_power_of_two_is_accepted(device, index, flags, size):
    ctx, client = device
    assert ctx.setup_region(index, size, flags=flags) == 0
    assert region_info(client, index) == (3, size, 0, [])


@pytest.mark.parametrize("index", [ROM, VGA])
@pytest.mark.parametrize("size", [1, 3, 0x3001])
def test_other_regions_may_have_any_size(device, index, size):
    ctx, client = device
    assert ctx.setup_region(index, size, flags=RW) == 0
    assert region_info(client, index) == (3, size, 0, [])


@pytest.mark.parametrize("index", [BAR1, BAR3, BAR5])
@pytest.mark.parametrize("size", [0, 0x1000])
def test_odd_bar_can_not_be_64_bit(device, index, size):
    ctx, client = device
    nothing_changed(ctx, client, index, lambda: ctx.setup_region(index, size, flags=RW | MEM | BITS_64))


@pytest.mark.parametrize("even", [BAR0, BAR2, BAR4])
@pytest.mark.parametrize("size", [0, 0x1000])
def test_bar_above_a_64_bit_one_can_not_be_set_up_nor_cleared(device, even, size):
    ctx, client = device
    ctx.setup_region(even, 0x1000, flags=RW | MEM | BITS_64)
    nothing_changed(ctx, client, even + 1, lambda: ctx.setup_region(even + 1, size, flags=RW | MEM))


@pytest.mark.parametrize("even", [BAR0, BAR2, BAR4])
def test_bar_below_one_in_use_can_not_be_64_bit(device, even):
    ctx, client = device
    ctx.setup_region(even + 1, 0x1000, flags=RW | MEM)
    nothing_changed(ctx, client, even, lambda: ctx.setup_region(even, 0x1000, flags=RW | MEM | BITS_64))
    ctx.setup_region(even + 1, 0, flags=RW | MEM)
    assert ctx.setup_region(even, 0x1000, flags=RW | MEM | BITS_64) == 0


@pytest.mark.parametrize("even", [BAR0, BAR2, BAR4])
def test_clearing_a_64_bit_bar_frees_the_one_above(device, even):
    ctx, client = device
    ctx.setup_region(even, 0x1000, flags=RW | MEM | BITS_64)
    ctx.setup_region(even, 0, flags=RW | MEM)
    assert region_info(client, even) == (3, 0, 0, [])
    assert ctx.setup_region(even + 1, 0x1000, flags=RW | MEM) == 0


def test_bar_of_another_pair_is_no_neighbour(device):
    ctx, client = device
    ctx.setup_region(BAR1, 0x1000, flags=RW | MEM)
    assert ctx.setup_region(BAR2, 0x1000, flags=RW | MEM | BITS_64) == 0
    assert ctx.setup_region(BAR4, 0x1000, flags=RW | MEM | BITS_64) == 0


@pytest.mark.parametrize("flags", [1, 2, RW | MEM, 1 | MEM])
def test_config_region_has_to_be_readable_and_writable_and_no_memory(device, flags):
    ctx, client = device
    nothing_changed(ctx, client, CFG, lambda: ctx.setup_region(CFG, 256, callback, flags))


@pytest.mark.parametrize("area", [(0, 0x1001), (1, 0x1000), (0x1000, 1), (0x1001, 0),
                                  ((1 << 64) - 1, 2), ((1 << 64) - 0x1000, 0x1000), (0x800, (1 << 64) - 1)])
@pytest.mark.parametrize("good", [[], [(0, 0x1000)]])
def test_area_that_ends_beyond_the_region_is_refused(device, area, good):
    ctx, client = device
    fd = memfd(0x1000)
    nothing_changed(ctx, client, BAR0,
                    lambda: ctx.setup_region(BAR0, 0x1000, flags=RW | MEM, areas=[*good, area], fd=fd))
    os.fstat(fd)
    os.close(fd)


def test_area_that_ends_with_the_region_is_accepted(device):
    ctx, client = device
    fd = memfd(0x1000)
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM, areas=[(0, 0x1000), (0xfff, 1)], fd=fd)
    assert region_info(client, BAR0)[3] == [(0, 0x1000), (0xfff, 1)]
    os.close(fd)


# --- vfu_setup_region: what it does -------------------------------------------------

def test_last_call_wins_and_replaces_everything(device):
    ctx, client = device
    fd, other = memfd(0x4000), memfd(0x1000)
    ctx.setup_region(BAR0, 0x4000, flags=RW | MEM, areas=[(0, 0x1000), (0x2000, 0x1000)], fd=fd, offset=0x1000)
    assert region_info(client, BAR0) == (15, 0x4000, 0x1000, [(0, 0x1000), (0x2000, 0x1000)])
    ctx.setup_region(BAR0, 0x1000, flags=1 | MEM, fd=other, offset=0)
    assert region_info(client, BAR0) == (13, 0x1000, 0, [(0, 0x1000)])
    ctx.setup_region(BAR0, 0x2000, flags=RW | MEM)
    assert region_info(client, BAR0) == (3, 0x2000, 0, [])
    os.close(fd)
    os.close(other)


def test_size_zero_clears_a_region(device):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000)
    client.read(BAR0, 0, 4)
    ctx.setup_region(BAR0, 0, flags=RW)
    client.read(BAR0, 0, 4, expect=EINVAL)
    assert region_info(client, BAR0) == (3, 0, 0, [])


def test_area_array_is_copied(device):
    ctx, client = device
    fd = memfd(0x1000)
    areas = (iovec * 1)(iovec(0x400, 0x800))
    raw_setup(ctx, BAR0, areas, 1, fd)
    c.memset(areas, 0xff, c.sizeof(areas))
    assert region_info(client, BAR0)[3] == [(0x400, 0x800)]
    os.close(fd)


def test_descriptor_is_borrowed_never_duplicated_never_closed():
    fd = memfd(0x1000)
    with Ctx() as ctx:
        before = open_fds()
        for _ in range(3):
            ctx.setup_region(BAR0, 0x1000, flags=RW | MEM, fd=fd)
        ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
        ctx.setup_region(BAR1, 0x1000, flags=RW | MEM, fd=fd)
        assert open_fds() == before
    os.fstat(fd)
    os.close(fd)


def test_config_size_of_4096_without_pci_init_is_what_realize_makes():
    with Ctx(realize=False) as ctx:
        ctx.setup_region(CFG, 4096, callback, RW)
        ctx.realize()
        with ctx.connect() as client:
            assert region_info(client, CFG) == (3, 4096, 0, [])
            poke(ctx, 4095, b"\x5a")
            ctx.setup_region(CFG, 4096, None, RW)
            assert client.read(CFG, 4095, 1) == b"\x5a"


@pytest.mark.parametrize("kind, real", [(EXPRESS, 4096), (CONVENTIONAL, 256)])
@pytest.mark.parametrize("size", [0, 1, 256, 4096, 1 << 20])
@pytest.mark.parametrize("realized", [False, True])
def test_config_size_argument_is_ignored_after_pci_init(kind, real, size, realized):
    with Ctx(realize=False) as ctx:
        ctx.pci_init(kind)
        if realized:
            ctx.realize()
        ctx.setup_region(CFG, size, None, RW)
        ctx.realize()
        with ctx.connect() as client:
            assert region_info(client, CFG) == (3, real, 0, [])
            client.read(CFG, real - 1, 1)
            client.read(CFG, real, 1, expect=EINVAL)


# --- access: what is refused ---------------------------------------------------------

@pytest.mark.parametrize("cmd", [REGION_READ, REGION_WRITE])
@pytest.mark.parametrize("size", [1, 8, 15])
def test_access_with_a_short_payload_is_refused(device, cmd, size):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000)
    client.request(cmd, struct.pack("<QII", 0, BAR0, 4)[:size], expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("count", [MAX_XFER + 1, MAX_XFER + 8, 1 << 31, 0xffffffff])
def test_count_above_the_transfer_limit_is_refused(device, count):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000)
    ctx.setup_region(BAR2, 1 << 33, callback, RW | MEM | BITS_64)
    for region in (BAR0, BAR2):
        client.request(REGION_READ, struct.pack("<QII", 0, region, count), expect=EINVAL)
        client.request(REGION_WRITE, struct.pack("<QII", 0, region, count) + bytes(8), expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("count, length", [(0, 1), (1, 0), (4, 3), (4, 5), (8, 0), (16, 4000)])
def test_write_whose_data_is_not_exactly_count_is_refused(device, count, length):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000)
    client.request(REGION_WRITE, struct.pack("<QII", 0, BAR0, count) + bytes(length), expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("extra", [1, 4, 1000])
def test_read_may_carry_extra_bytes(device, extra):
    ctx, client = device
    mem = ctx.memory_region(BAR0, 0x1000)
    mem[8:12] = b"abcd"
    head = struct.pack("<QII", 8, BAR0, 4)
    assert client.request(REGION_READ, head + bytes(extra)) == head + b"abcd"


@pytest.mark.parametrize("region", [9, 10, 512, 0xffffffff])
def test_access_to_an_index_out_of_range_is_refused(device, region):
    ctx, client = device
    client.read(region, 0, 4, expect=EINVAL)
    client.read(region, 0, 0, expect=EINVAL)
    client.write(region, 0, b"abcd", expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("offset, count", [
    (0, 0x1001), (0xfff, 2), (0x1000, 1), (0x1001, 0), ((1 << 64) - 1, 0), ((1 << 64) - 1, 1),
    ((1 << 64) - 1, 2), ((1 << 64) - 4, 8), (1 << 63, 4), (1 << 32, 4)])
def test_access_beyond_the_region_is_refused(device, offset, count):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000)
    client.read(BAR0, offset, count, expect=EINVAL)
    client.write(BAR0, offset, bytes(count), expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("count", [0, 1])
def test_the_last_offset_is_beyond_the_largest_region(device, count):
    ctx, client = device
    ctx.setup_region(VGA, (1 << 64) - 1, callback)
    client.read(VGA, (1 << 64) - 1, count, expect=EINVAL)
    client.write(VGA, (1 << 64) - 1, bytes(count), expect=EINVAL)
    client.read(VGA, (1 << 64) - 2, 0)
    client.read(VGA, (1 << 63) - 1, 1)
    alive(client)


@pytest.mark.parametrize("region", [BAR0, BAR5, ROM, VGA])
def test_access_to_an_unset_region_is_refused(device, region):
    ctx, client = device
    client.read(region, 0, 1, expect=EINVAL)
    client.write(region, 0, b"a", expect=EINVAL)
    alive(client)


def test_region_without_a_callback_refuses_access(device):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000)
    client.read(BAR0, 0, 4, expect=EINVAL)
    client.write(BAR0, 0, b"abcd", expect=EINVAL)
    alive(client)


def test_flags_of_a_region_are_enforced(device):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000, flags=READ)
    ctx.memory_region(BAR1, 0x1000, flags=WRITE)
    client.write(BAR0, 0, b"abcd", expect=EPERM)
    client.read(BAR1, 0, 4, expect=EPERM)
    assert ctx.events == []
    client.read(BAR0, 0, 4)
    client.write(BAR1, 0, b"abcd")
    assert ctx.events == [("read", BAR0, 0, 4), ("write", BAR1, 0, 4)]


def test_flags_are_looked_at_behind_the_bounds(device):
    ctx, client = device
    ctx.memory_region(BAR0, 0x1000, flags=READ)
    client.write(BAR0, 0x1000, b"abcd", expect=EINVAL)
    client.request(REGION_WRITE, struct.pack("<QII", 0, BAR0, 4), expect=EINVAL)


def stop_copy(client):
    client.set_state(S_STOP_COPY)
    assert client.get_state() == S_STOP_COPY


def test_in_stop_copy_reads_are_allowed_and_writes_refused():
    with Ctx(migration=True) as ctx:
        mem = ctx.memory_region(BAR0, 0x1000)
        mem[:4] = b"abcd"
        with ctx.connect() as client:
            stop_copy(client)
            ctx.events.clear()
            assert client.read(BAR0, 0, 4) == b"abcd"
            client.read(CFG, 0, 64)
            client.write(BAR0, 0, b"efgh", expect=EINVAL)
            client.write(CFG, 4, b"\7\0", expect=EINVAL)
            client.write(BAR0, 0, b"", expect=EINVAL)
            assert ctx.events == [("read", BAR0, 0, 4)]
            assert mem[:4] == b"abcd" and peek(ctx, 4, 2) == b"\0\0"
            client.set_state(S_STOP)
            client.write(BAR0, 0, b"efgh")
            client.write(CFG, 4, b"\7\0")
            assert mem[:4] == b"efgh" and peek(ctx, 4, 2) == b"\7\0"


@pytest.mark.parametrize("state", [S_STOP, S_RUNNING, S_RESUMING, S_PRE_COPY])
def test_in_the_other_states_every_access_is_executed(state):
    with Ctx(migration=True) as ctx:
        mem = ctx.memory_region(BAR0, 0x1000)
        with ctx.connect() as client:
            client.set_state(state)
            client.write(BAR0, 0, b"abcd")
            assert client.read(BAR0, 0, 4) == b"abcd" == mem[:4]


# --- access: what the callback sees and what its result becomes ------------------------

@pytest.mark.parametrize("region", [BAR0, BAR1, BAR2, BAR3, BAR4, BAR5, ROM, VGA])
def test_callback_gets_offset_count_direction_and_data(device, region):
    ctx, client = device
    mem = ctx.memory_region(region, 0x1000)
    data = bytes(range(256))
    for offset, count in ((0, 1), (3, 2), (8, 8), (0xf00, 256), (0xfff, 1)):
        client.write(region, offset, data[:count])
        assert mem[offset:offset + count] == data[:count]
        assert client.read(region, offset, count) == data[:count]
        assert ctx.events == [("write", region, offset, count), ("read", region, offset, count)]
        ctx.events.clear()


def test_callback_gets_the_context_and_may_use_it(device):
    ctx, client = device
    seen = []

    def access(p, buf, count, offset, is_write):
        seen.append(p)
        space = lib.vfu_pci_get_config_space(p)
        c.memmove(space + 0x3c, bytes([offset & 0xff]), 1)
        return count
    ctx.setup_region(BAR0, 0x1000, access)
    client.write(BAR0, 0x42, b"a")
    assert seen == [ctx.p]
    assert client.read(CFG, 0x3c, 1) == b"\x42"


@pytest.mark.parametrize("region", [BAR0, CFG])
@pytest.mark.parametrize("offset", [0, 1, 0x100])
def test_count_zero_is_answered_with_the_request_and_no_callback(device, region, offset):
    ctx, client = device
    ctx.memory_region(BAR0, 0x100)
    head = struct.pack("<QII", offset, region, 0)
    assert client.request(REGION_READ, head) == head
    assert client.request(REGION_WRITE, head) == head
    assert ctx.events == []


def test_count_zero_needs_no_callback(device):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000)
    head = struct.pack("<QII", 0, BAR0, 0)
    assert client.request(REGION_READ, head) == head
    assert client.request(REGION_WRITE, head) == head


@pytest.mark.parametrize("done", [1, 3, 7])
def test_short_count_of_the_callback_is_the_replys(device, done):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000, lambda p, buf, count, offset, w: c.memmove(buf, b"abcdefgh", count) and done)
    read = struct.pack("<QII", 16, BAR0, 8)
    short = struct.pack("<QII", 16, BAR0, done)
    assert client.request(REGION_READ, read) == short + b"abcdefgh"[:done]
    assert client.request(REGION_WRITE, read + bytes(8)) == short
    alive(client)


@pytest.mark.parametrize("result", [0, 9, 1 << 20, 1 << 32, (1 << 63) - 1, -2, -4096, -(1 << 63)])
def test_any_other_result_of_the_callback_is_refused(device, result):
    ctx, client = device

    def access(p, buf, count, offset, is_write):
        c.set_errno(EIO)
        return result
    ctx.setup_region(BAR0, 0x1000, access)
    client.read(BAR0, 0, 8, expect=EINVAL)
    client.write(BAR0, 0, bytes(8), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("number", [1, EPERM, EIO, 133, 4096, 0xbeef, 0x7fffffff])
def test_errno_of_a_failing_callback_goes_to_the_client_in_a_bare_header(device, number):
    ctx, client = device

    def access(p, buf, count, offset, is_write):
        c.memset(buf, 0xee, count)
        c.set_errno(number)
        return -1
    ctx.setup_region(BAR0, 0x1000, access)
    client.read(BAR0, 0, 64, expect=number)
    client.write(BAR0, 0, bytes(64), expect=number)
    alive(client)


def test_minus_one_of_a_callback_that_returns_32_bits_is_a_failure_with_its_errno(device):
    """Some devices' callbacks return an int where ssize_t is declared."""
    ctx, client = device

    def access(p, buf, count, offset, is_write):
        c.set_errno(EIO)
        return 0xffffffff
    ctx.setup_region(BAR0, 0x1000, access)
    client.read(BAR0, 0, 8, expect=EIO)
    client.write(BAR0, 0, bytes(8), expect=EIO)
    alive(client)


def test_buffer_is_aligned_wherever_the_message_lies_in_the_stream(device):
    ctx, client = device
    at = []

    def access(p, buf, count, offset, is_write):
        at.append(c.addressof(buf.contents) % 8)
        assert c.string_at(buf, count) == bytes([offset & 0xff]) * count
        return count
    ctx.setup_region(BAR0, 0x1000, access)
    sizes = [1, 2, 3, 5, 7, 11, 13, 1, 6, 9]
    stream = b"".join(message(i, REGION_WRITE, struct.pack("<QII", i, BAR0, n) + bytes([i]) * n)
                      for i, n in enumerate(sizes))
    client.send_raw(stream)
    while len(at) < len(sizes):
        assert ctx.run() > 0
    assert at == [0] * len(sizes)
    for i, n in enumerate(sizes):
        reply = client.recv()
        assert (reply.msg_id, reply.payload) == (i, struct.pack("<QII", i, BAR0, n))
    alive(client)


def exchange(ctx, client, request, size):
    """Sends a large request and takes a reply of `size` bytes, running the context as the socket fills."""
    received, client_timeout = b"", client.sock.gettimeout()
    client.sock.setblocking(False)
    while len(received) < size:
        for _ in range(2):
            try:
                if request:
                    request = request[client.sock.send(request):]
                else:
                    received += client.sock.recv(size - len(received))
            except BlockingIOError:
                pass
        ctx.run()
    client.sock.settimeout(client_timeout)
    return received


@pytest.mark.parametrize("count", [MAX_XFER - 1, MAX_XFER])
def test_the_largest_access(device, count):
    ctx, client = device
    mem = ctx.memory_region(BAR0, 2 * MAX_XFER)
    data = os.urandom(1024) * 1024
    head = struct.pack("<QII", 4096, BAR0, count)
    assert exchange(ctx, client, message(7, REGION_WRITE, head + data[:count]), 32)[16:] == head
    assert mem[4096:4096 + count] == data[:count]
    reply = exchange(ctx, client, message(8, REGION_READ, head), 32 + count)
    assert reply == header(8, REGION_READ, 32 + count, F_REPLY) + head + data[:count]
    alive(client)


# --- ALWAYS_CB ---------------------------------------------------------------------

@pytest.mark.parametrize("offset, count", [(0, 2), (0, 64), (3, 7), (0x10, 4), (0x30, 0x40), (0, 256), (0, 4096)])
def test_with_always_cb_the_whole_config_access_goes_to_the_callback(offset, count):
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)
        mem = ctx.memory_region(CFG, 4096, flags=RW | ALWAYS_CB)
        assert ctx.add_cap(pm()) == 0x40
        ctx.realize()
        mem[:] = bytes(i * 7 & 0xff for i in range(4096))
        live = peek(ctx, 0, 4096)
        with ctx.connect() as client:
            assert client.read(CFG, offset, count) == mem[offset:offset + count]
            client.write(CFG, offset, b"\x5a" * count)
            assert mem[offset:offset + count] == b"\x5a" * count
            assert ctx.events == [("read", CFG, offset, count), ("write", CFG, offset, count)]
        assert peek(ctx, 0, 4096) == live


def test_always_cb_is_still_bound_by_the_size():
    with Ctx(realize=False) as ctx:
        ctx.pci_init(CONVENTIONAL)
        ctx.memory_region(CFG, 256, flags=RW | ALWAYS_CB)
        ctx.realize()
        with ctx.connect() as client:
            client.read(CFG, 255, 2, expect=EINVAL)
            client.write(CFG, 256, b"a", expect=EINVAL)
            assert ctx.events == []


def test_always_cb_result_follows_the_rules_of_any_region():
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)

        def access(p, buf, count, offset, is_write):
            c.set_errno(0xbeef)
            return -1
        ctx.setup_region(CFG, 0, access, RW | ALWAYS_CB)
        ctx.realize()
        with ctx.connect() as client:
            client.read(CFG, 0, 4, expect=0xbeef)
            client.write(CFG, 4, b"\0\0", expect=0xbeef)
            alive(client)


def test_regions_can_be_set_up_with_a_client_attached(device):
    ctx, client = device
    client.read(BAR3, 0, 1, expect=EINVAL)
    mem = ctx.memory_region(BAR3, 0x1000)
    client.write(BAR3, 1, b"x")
    assert mem[1] == ord("x")


def test_regions_outlive_the_connection():
    with Ctx() as ctx:
        mem = ctx.memory_region(BAR0, 0x1000)
        mem[0] = 42
        client = ctx.connect()
        client.close()
        with pytest.raises(Failed):
            ctx.run()
        with ctx.connect() as client:
            assert client.read(BAR0, 0, 1) == b"*"
