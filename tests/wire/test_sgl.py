"""The scatter-gather API: translation, memory, access directly and by messages."""
import ctypes as c
import errno
import functools
import os
import struct
import threading

import pytest

from libvfu import *
from guest import *

BASE = 0x200000
TOP = 1 << 64
RWF = MAP_READ | MAP_WRITE
READ_ONLY, WRITE_ONLY, BOTH = PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("sgl-test", 64 * PAGE, bytes(i % 251 for i in range(8 * PAGE)))
    yield fd
    os.close(fd)


def map_three(client, fd):
    """Three touching regions of a page."""
    for i in range(3):
        client.map(BASE + i * PAGE, PAGE, fd, offset=i * PAGE)


def entry(sg):
    """An entry as (region start, length, offset, writeable)."""
    return sg.dma_addr, sg.length, sg.offset, sg.writeable


@functools.cache
def pattern(n, seed=1):
    return bytes((i * 7 + seed + i // 256) & 0xff for i in range(n))


# --- layout -----------------------------------------------------------------------
def test_an_entry_has_40_bytes():
    assert lib.dma_sg_size() == 40 == c.sizeof(dma_sg)


@pytest.mark.parametrize("prot, writeable", [(READ_ONLY, 0), (WRITE_ONLY, 1), (BOTH, 1)])
def test_layout_of_an_entry(device, fd, prot, writeable):
    ctx, client = device
    client.map(BASE, 2 * PAGE, fd)
    n, sg = ctx.sgl(BASE + 0x123, 0x456, prot=prot)
    raw = bytes(sg[0])
    assert len(raw) == 40
    start, region, length, offset, flag = struct.unpack_from("<QQQQB", raw)
    assert (n, start, length, offset, flag) == (1, BASE, 0x456, 0x123, writeable)
    assert region != 0 and region & 0xffffffff != 0


def test_entries_are_written_whole_whatever_the_memory_held(device, fd):
    ctx, client = device
    map_three(client, fd)
    sg = (dma_sg * 4)()
    c.memset(sg, 0xff, 160)
    assert lib.vfu_addr_to_sgl(ctx.p, BASE + 1, 3 * PAGE - 1, sg, 3, READ_ONLY) == 3
    assert [bytes(sg[i])[32] for i in range(3)] == [0, 0, 0]
    assert [entry(sg[i]) for i in range(3)] == [
        (BASE, PAGE - 1, 1, False), (BASE + PAGE, PAGE, 0, False), (BASE + 2 * PAGE, PAGE, 0, False)]
    assert bytes(sg[3]) == b"\xff" * 40, "beyond the array"
    assert [i.len for i in ctx.sgl_get(sg, 3)[:3]] == [PAGE - 1, PAGE, PAGE]


@pytest.mark.parametrize("shift", range(1, 8))
def test_an_array_at_an_odd_address(device, fd, shift):
    ctx, client = device
    map_three(client, fd)
    client.map(BASE + 3 * PAGE, PAGE)
    raw = c.create_string_buffer(40 * 4 + 8)
    at = c.addressof(raw)
    at += (shift - at) % 8
    assert at % 8 == shift
    assert lib.vfu_addr_to_sgl(ctx.p, BASE + 5, 3 * PAGE, c.c_void_p(at), 4, BOTH) == 4
    words = [struct.unpack("<QQQQB", c.string_at(at + 40 * i, 33)) for i in range(4)]
    assert [(w[0], w[2], w[3], w[4]) for w in words] == [
        (BASE, PAGE - 5, 5, 1), (BASE + PAGE, PAGE, 0, 1), (BASE + 2 * PAGE, PAGE, 0, 1), (BASE + 3 * PAGE, 5, 0, 1)]
    iov = (iovec * 3)()
    call("vfu_sgl_get", ctx.p, c.c_void_p(at), iov, 3, 0)
    assert b"".join(peek(i.base, i.len) for i in iov) == os.pread(fd, 3 * PAGE - 5, 5)
    client.log_start()
    lib.vfu_sgl_put(ctx.p, c.c_void_p(at + 40), iov, 1)
    lib.vfu_sgl_mark_dirty(ctx.p, c.c_void_p(at + 80), 2)
    assert client.report(BASE, 3 * PAGE) == 0b110
    assert lib.vfu_sg_is_mappable(ctx.p, c.c_void_p(at))
    assert not lib.vfu_sg_is_mappable(ctx.p, c.c_void_p(at + 120))
    sgl_write(ctx, c.c_void_p(at + 40), pattern(PAGE), DIRECT)
    assert sgl_read(ctx, c.c_void_p(at + 40), PAGE, DIRECT) == pattern(PAGE) == os.pread(fd, PAGE, PAGE)


# --- vfu_addr_to_sgl ----------------------------------------------------------------
@pytest.mark.parametrize("at, length, pieces", [
    (0, 1, [(0, 0, 1)]), (0, PAGE, [(0, 0, PAGE)]), (PAGE - 1, 1, [(0, PAGE - 1, 1)]),
    (PAGE - 1, 2, [(0, PAGE - 1, 1), (1, 0, 1)]), (PAGE, PAGE, [(1, 0, PAGE)]),
    (0, 3 * PAGE, [(0, 0, PAGE), (1, 0, PAGE), (2, 0, PAGE)]),
    (7, 3 * PAGE - 8, [(0, 7, PAGE - 7), (1, 0, PAGE), (2, 0, PAGE - 1)])])
def test_one_entry_for_each_region_touched_in_order(device, fd, at, length, pieces):
    ctx, client = device
    map_three(client, fd)
    n, sg = ctx.sgl(BASE + at, length, 3)
    assert n == len(pieces)
    assert [entry(s) for s in sg[:n]] == [(BASE + r * PAGE, size, offset, True) for r, offset, size in pieces]
    iov = ctx.sgl_get(sg, n)
    assert b"".join(peek(iov[i].base, iov[i].len) for i in range(n)) == os.pread(fd, length, at)
    ctx.sgl_put(sg, n)


@pytest.mark.parametrize("addr", [0, 1, BASE, BASE + PAGE - 1, BASE + PAGE, TOP - 1])
@pytest.mark.parametrize("max_sgs", [0, 1])
def test_length_0_needs_no_entry(device, fd, addr, max_sgs):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    assert ctx.sgl(addr, 0, max_sgs)[0] == 0


@pytest.mark.parametrize("addr, length", [
    (0, 1), (BASE - 1, 1), (BASE - 1, 2), (BASE + PAGE, 1), (BASE + PAGE - 1, 2), (BASE, PAGE + 1), (BASE, 3 * PAGE),
    (BASE + 2 * PAGE - 1, 2), (BASE + 3 * PAGE - 1, 2), (BASE, TOP - BASE), (BASE, TOP - 1), (0, TOP - 1), (TOP - 1, 1)])
@pytest.mark.parametrize("max_sgs", [0, 1, 4])
def test_a_byte_in_no_region(device, fd, addr, length, max_sgs):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + 2 * PAGE, PAGE, fd)
    for warm in (0, BASE, BASE + 2 * PAGE):
        if warm:
            ctx.sgl(warm, 1)
        fails(errno.ENOENT, ctx.sgl, addr, length, max_sgs)


def test_no_region_at_all(device):
    ctx, client = device
    fails(errno.ENOENT, ctx.sgl, 0, 1)


@pytest.mark.parametrize("addr, length", [
    (BASE, TOP - 1), (BASE + 8, TOP - 8), (BASE + 8, TOP - 1), (TOP - 16, BASE + 32), (TOP - 1, BASE + 2), (TOP - 1, 2),
    (TOP - PAGE, TOP - 1), (TOP - PAGE, 2 * PAGE)])
def test_a_range_that_wraps_is_in_no_region(device, fd, addr, length):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for _ in range(2):
        assert ctx.sgl(BASE, PAGE)[0] == 1
        fails(errno.ENOENT, ctx.sgl, addr, length, 4)
    client.map(TOP - PAGE, PAGE, fd, offset=PAGE)
    for _ in range(2):
        assert ctx.sgl(TOP - PAGE, PAGE)[0] == 1
        fails(errno.ENOENT, ctx.sgl, addr, length, 4)


def test_the_topmost_page_is_translated_to_its_last_byte(device, fd):
    ctx, client = device
    client.map(TOP - PAGE, PAGE, fd)
    for _ in range(2):
        n, sg = ctx.sgl(TOP - PAGE, PAGE)
        assert (n, entry(sg[0])) == (1, (TOP - PAGE, PAGE, 0, True))
        n, sg = ctx.sgl(TOP - 1, 1)
        assert (n, entry(sg[0])) == (1, (TOP - PAGE, 1, PAGE - 1, True))
    assert peek(ctx.sgl_get(sg)[0].base, 1) == os.pread(fd, 1, PAGE - 1)
    client.map(TOP - 2 * PAGE, PAGE, fd)
    assert ctx.sgl(TOP - 2 * PAGE, 2 * PAGE, 2)[0] == 2


def test_the_topmost_page_by_messages(device):
    ctx, client = device
    memory = bytearray(pattern(PAGE))
    client.map(TOP - PAGE, PAGE)
    n, sg = ctx.sgl(TOP - 64, 64)
    with Guest(client, memory, TOP - PAGE) as guest:
        assert sgl_read(ctx, sg, 64) == memory[-64:]
    assert guest.messages == [(DMA_READ, TOP - 64, 64)]


@pytest.mark.parametrize("max_sgs", [0, 1, 2])
def test_too_few_entries_tell_how_many_are_needed_and_fill_those_that_fit(device, fd, max_sgs):
    ctx, client = device
    map_three(client, fd)
    sg = (dma_sg * 4)()
    c.set_errno(errno.EXDEV)
    assert lib.vfu_addr_to_sgl(ctx.p, BASE, 3 * PAGE, sg, max_sgs, BOTH) == -3 - 1
    assert c.get_errno() == 0
    assert [entry(s) for s in sg[:max_sgs]] == [(BASE + i * PAGE, PAGE, 0, True) for i in range(max_sgs)]
    assert bytes(sg)[40 * max_sgs:] == bytes(160 - 40 * max_sgs)
    if max_sgs:
        ctx.sgl_get(sg, max_sgs)


def test_no_entry_for_one_region(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for _ in range(2):
        c.set_errno(errno.EXDEV)
        assert lib.vfu_addr_to_sgl(ctx.p, BASE, 1, None, 0, BOTH) == -2
        assert c.get_errno() == 0


def test_a_hole_counts_more_than_too_few_entries(device, fd):
    ctx, client = device
    map_three(client, fd)
    fails(errno.ENOENT, ctx.sgl, BASE, 3 * PAGE + 1, 1)
    fails(errno.ENOENT, ctx.sgl, BASE, 3 * PAGE + 1, 0)


def test_hundreds_of_regions_in_one_range():
    with attached(dma=True, max_regions=500) as (ctx, client):
        for i in range(500):
            client.map(BASE + i * PAGE, PAGE)
        n, sg = ctx.sgl(BASE + 1, 500 * PAGE - 2, 500)
        assert n == 500
        assert [entry(s) for s in sg[1:499]] == [(BASE + i * PAGE, PAGE, 0, True) for i in range(1, 499)]
        assert (entry(sg[0]), entry(sg[499])) == ((BASE, PAGE - 1, 1, True), (BASE + 499 * PAGE, PAGE - 1, 0, True))
        assert ctx.sgl(BASE, 500 * PAGE, 499)[0] == -501


def test_max_is_a_whole_size_t(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for max_sgs in (1 << 32, (1 << 32) + 1, (1 << 31), 1 << 40):
        sg = (dma_sg * 1)()
        assert lib.vfu_addr_to_sgl(ctx.p, BASE, PAGE, sg, max_sgs, BOTH) == 1
        assert entry(sg[0]) == (BASE, PAGE, 0, True)


@pytest.mark.parametrize("flags, prot, number", [
    (MAP_READ, READ_ONLY, 0), (MAP_READ, WRITE_ONLY, errno.EACCES), (MAP_READ, BOTH, errno.EACCES),
    (MAP_WRITE, READ_ONLY, errno.EACCES), (MAP_WRITE, WRITE_ONLY, 0), (MAP_WRITE, BOTH, errno.EACCES),
    (0, READ_ONLY, errno.EACCES), (0, WRITE_ONLY, errno.EACCES), (0, BOTH, errno.EACCES),
    (RWF, READ_ONLY, 0), (RWF, WRITE_ONLY, 0), (RWF, BOTH, 0)])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_permissions_of_the_region(device, fd, flags, prot, number, kind):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=flags | (MAP_FILE_IO if kind == "file io" else 0))
    for _ in range(2):
        if number:
            fails(number, ctx.sgl, BASE, 1, prot=prot)
        else:
            assert ctx.sgl(BASE, 1, prot=prot)[0] == 1


def test_permissions_are_looked_at_for_entries_that_fit_only(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd, flags=MAP_READ)
    assert ctx.sgl(BASE, 2 * PAGE, 1)[0] == -3
    assert ctx.sgl(BASE + PAGE, 1, 0)[0] == -2
    fails(errno.EACCES, ctx.sgl, BASE, 2 * PAGE, 2)
    assert ctx.sgl(BASE, 2 * PAGE, 2, READ_ONLY)[0] == 2


def test_without_dma_translation_and_memory_are_refused():
    with attached(dma=False) as (ctx, client):
        fails(errno.EINVAL, ctx.sgl, BASE, 1)
        fails(errno.EINVAL, ctx.sgl, BASE, 0)
        fails(errno.EINVAL, ctx.sgl_get, (dma_sg * 1)())


def test_translation_before_a_client_came_finds_nothing():
    with Ctx(dma=True) as ctx:
        fails(errno.ENOENT, ctx.sgl, 0, 1)


def test_what_one_context_has_the_other_does_not_see(fd):
    with attached(dma=True) as (ctx, client), attached(dma=True) as (other, client2):
        client.map(BASE, PAGE, fd)
        for _ in range(3):
            assert ctx.sgl(BASE, 1)[0] == 1
            fails(errno.ENOENT, other.sgl, BASE, 1)
        client2.map(BASE, 2 * PAGE, fd, offset=PAGE)
        for _ in range(3):
            assert ctx.sgl(BASE, 1)[1][0].length == 1
            n, sg = ctx.sgl(BASE, PAGE)
            assert peek(ctx.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, 0)
            n, sg = other.sgl(BASE, PAGE)
            assert peek(other.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, PAGE)
            fails(errno.ENOENT, ctx.sgl, BASE, PAGE + 1)


def test_a_region_just_used_is_forgotten_when_it_goes(device, fd):
    ctx, client = device
    for i in range(5):
        client.map(BASE, PAGE, fd, offset=i * PAGE)
        for _ in range(2):
            n, sg = ctx.sgl(BASE, PAGE)
        assert peek(ctx.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, i * PAGE)
        client.unmap(BASE, PAGE)
        fails(errno.ENOENT, ctx.sgl, BASE, PAGE)


# --- vfu_sgl_get --------------------------------------------------------------------
def test_a_zeroed_entry(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    sg = (dma_sg * 1)()
    fails(errno.EINVAL, ctx.sgl_get, sg)
    fails(errno.EINVAL, sgl_read, ctx, sg, 8)
    fails(errno.EINVAL, sgl_read, ctx, sg, 8, DIRECT)
    fails(errno.EPERM, sgl_write, ctx, sg, b"x")
    sg[0].writeable = True
    fails(errno.EINVAL, sgl_write, ctx, sg, b"x")
    fails(errno.EINVAL, sgl_write, ctx, sg, b"x", DIRECT)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    assert not is_mappable(ctx, sg)


def test_an_entry_that_is_no_entry(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.log_start()
    for region in (1, 8, 0x1000, TOP - 1, TOP - 8, 0x7fffffffffff, 1 << 63):
        sg = (dma_sg * 1)(dma_sg(BASE, region, PAGE, 0, True))
        fails(errno.EINVAL, ctx.sgl_get, sg)
        fails(errno.EINVAL, sgl_read, ctx, sg, PAGE, DIRECT)
        ctx.sgl_put(sg)
        assert not is_mappable(ctx, sg)
    assert client.report(BASE, PAGE) == 0


@pytest.mark.parametrize("offset, length", [
    (PAGE - 7, 8), (PAGE, 1), (0, PAGE + 1), (1, PAGE), (PAGE + 1, 0), (TOP - 8, 8), (8, TOP - 8), (1 << 63, 1 << 63)])
def test_an_entry_that_was_changed_to_reach_beyond_its_region(device, fd, offset, length):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd, offset=PAGE)
    client.log_start()
    n, sg = ctx.sgl(BASE, 8)
    sg[0].offset, sg[0].length = offset, length
    fails(errno.EINVAL, ctx.sgl_get, sg)
    assert is_mappable(ctx, sg) is False
    ctx.sgl_put(sg)
    buf = c.create_string_buffer(2 * PAGE)
    for flags in (0, DIRECT):
        fails(errno.EINVAL, call, "vfu_sgl_read", ctx.p, sg, 1, buf, flags)
        fails(errno.EINVAL, call, "vfu_sgl_write", ctx.p, sg, 1, buf, flags)
    assert client.report(BASE, 2 * PAGE) == 0


@pytest.mark.parametrize("kind", ["message", "file io"])
def test_an_entry_of_a_region_that_is_not_mapped(device, fd, kind):
    ctx, client = device
    client.map(BASE, PAGE, *(() if kind == "message" else (fd,)), flags=RWF | (0 if kind == "message" else MAP_FILE_IO))
    n, sg = ctx.sgl(BASE, PAGE)
    fails(errno.EFAULT, ctx.sgl_get, sg)
    assert is_mappable(ctx, sg) is False
    ctx.sgl_put(sg)


@pytest.mark.parametrize("flags", [RWF, RWF | MAP_MMAP])
def test_an_entry_of_a_mapped_region_is_mappable(device, fd, flags):
    ctx, client = device
    client.map(BASE, PAGE, fd, flags=flags)
    assert is_mappable(ctx, ctx.sgl(BASE, 1)[1]) is True


def test_one_unmapped_region_among_three(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE)
    client.map(BASE + 2 * PAGE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 3 * PAGE, 3)
    fails(errno.EFAULT, ctx.sgl_get, sg, 3)
    assert [is_mappable(ctx, c.byref(sg[i])) for i in range(3)] == [True, False, True]
    ctx.sgl_get(sg, 1)


@pytest.mark.parametrize("flags", [1, 2, -1, 1 << 30])
def test_flags_of_get(device, fd, flags):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, PAGE)
    fails(errno.EINVAL, ctx.sgl_get, sg, 1, flags)
    ctx.sgl_get(sg)


def test_get_of_nothing(device):
    ctx, client = device
    ctx.sgl_get((dma_sg * 1)(), 0)


def test_get_without_an_unregister_callback_works_and_warns_once(fd):
    def warnings():
        return [text for level, text in ctx.lines if level == 4 and "unregister" in text]
    with Ctx(realize=False, migration=True) as ctx:
        call("vfu_setup_device_dma", ctx.p, 64, None, None)
        ctx.realize()
        with ctx.connect() as client:
            client.map(BASE, PAGE, fd)
            client.log_start()
            n, sg = ctx.sgl(BASE, 8)
            assert n == 1 and warnings() == []
            for flags in (1, -1, 1 << 31):
                fails(errno.EINVAL, call, "vfu_sgl_get", ctx.p, sg, (iovec * 1)(), 1, c.c_int(flags).value)
            assert warnings() == []
            for _ in range(3):
                iov = ctx.sgl_get(sg)[0]
                assert peek(iov.base, 8) == os.pread(fd, 8, 0)
                assert len(warnings()) == 1
            ctx.sgl_put(sg)
            assert client.report(BASE, PAGE) == 1
            mark_dirty(ctx, sg)
            assert client.report(BASE, PAGE) == 1
            client.unmap(BASE, PAGE)
            fails(errno.EINVAL, ctx.sgl_get, sg)
            for callback in (None, ctx.cb(DMA_CB, lambda _c, _i: None), None):
                call("vfu_setup_device_dma", ctx.p, 64, None, callback)
                client.map(BASE, PAGE, fd)
                ctx.sgl_get(ctx.sgl(BASE, 8)[1])
                client.unmap(BASE, PAGE)
            assert len(warnings()) == 1
            answers(client)


def test_the_memory_is_the_client_s(device, fd):
    ctx, client = device
    client.map(BASE, 2 * PAGE, fd, offset=PAGE)
    n, sg = ctx.sgl(BASE + 100, 200)
    iov = ctx.sgl_get(sg)[0]
    c.memmove(iov.base, b"from the device", 15)
    assert os.pread(fd, 15, PAGE + 100) == b"from the device"
    os.pwrite(fd, b"from the client", PAGE + 100)
    assert c.string_at(iov.base, 15) == b"from the client"


# --- direct access --------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mmap", "file io"])
@pytest.mark.parametrize("at, length", [(0, 64), (5, 1), (PAGE - 3, 7), (17, 2 * PAGE + 42), (0, 4 * PAGE)])
def test_direct_access_sends_no_message(device, fd, kind, at, length):
    ctx, client = device
    client.map(BASE + 9, 4 * PAGE, fd, offset=9, flags=RWF | (MAP_FILE_IO if kind == "file io" else MAP_MMAP))
    n, sg = ctx.sgl(BASE + 9 + at, length)
    old = os.pread(fd, 8 * PAGE, 0)
    assert sgl_read(ctx, sg, length, DIRECT) == old[9 + at:9 + at + length]
    data = pattern(length, 99)
    sgl_write(ctx, sg, data, DIRECT)
    assert os.pread(fd, 8 * PAGE, 0) == old[:9 + at] + data + old[9 + at + length:]
    assert client.nothing()


@pytest.mark.parametrize("length", [MIB, 3 * MIB + 5])
def test_direct_file_access_of_more_than_one_message_could_carry(device, length):
    ctx, client = device
    f = memfd(4 * MIB)
    client.map(BASE, 4 * MIB, f, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE, length)
    sgl_write(ctx, sg, pattern(length), DIRECT)
    assert os.pread(f, length, 0) == pattern(length)
    assert sgl_read(ctx, sg, length, DIRECT) == pattern(length)
    os.close(f)


@pytest.mark.parametrize("size, at, length", [(PAGE, PAGE - 4, 8), (PAGE, PAGE, 1), (0, 0, 1), (100, 0, 101)])
def test_the_end_of_the_file_is_eio(device, size, at, length):
    ctx, client = device
    f = memfd(size)
    client.map(BASE, 4 * PAGE, f, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE + at, length)
    fails(errno.EIO, sgl_read, ctx, sg, length, DIRECT)
    os.close(f)


def test_an_error_of_the_file_is_eio(device, fd):
    ctx, client = device
    ro = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    wo = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    client.map(BASE, PAGE, ro, flags=RWF | MAP_FILE_IO)
    client.map(BASE + PAGE, PAGE, wo, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE, 8)
    assert sgl_read(ctx, sg, 8, DIRECT) == os.pread(fd, 8, 0)
    fails(errno.EIO, sgl_write, ctx, sg, b"12345678", DIRECT)
    n, sg = ctx.sgl(BASE + PAGE, 8)
    sgl_write(ctx, sg, b"12345678", DIRECT)
    fails(errno.EIO, sgl_read, ctx, sg, 8, DIRECT)
    os.close(ro)
    os.close(wo)


@pytest.mark.parametrize("flags", [0, DIRECT], ids=["by message", "direct"])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_reading_a_region_without_read_permission(device, fd, kind, flags):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=MAP_WRITE | (MAP_FILE_IO if kind == "file io" else 0))
    n, sg = ctx.sgl(BASE, 8, prot=WRITE_ONLY)
    fails(errno.EPERM, sgl_read, ctx, sg, 8, flags)
    assert client.nothing()


@pytest.mark.parametrize("flags", [0, DIRECT], ids=["by message", "direct"])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_writing_through_an_entry_for_reading(device, fd, kind, flags):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=RWF | (MAP_FILE_IO if kind == "file io" else 0))
    n, sg = ctx.sgl(BASE, 8, prot=READ_ONLY)
    old = os.pread(fd, 8, 0)
    fails(errno.EPERM, sgl_write, ctx, sg, b"12345678", flags)
    assert client.nothing()
    assert os.pread(fd, 8, 0) == old


@pytest.mark.parametrize("access", [sgl_read, sgl_write])
@pytest.mark.parametrize("flags, n, number", [
    (0x42, 1, errno.EINVAL), (2, 1, errno.EINVAL), (3, 1, errno.EINVAL), (-1, 1, errno.EINVAL), (0x42, 2, errno.EINVAL),
    (0, 2, errno.ENOTSUP), (DIRECT, 2, errno.ENOTSUP), (0, 0, errno.ENOTSUP), (DIRECT, 0, errno.ENOTSUP)])
def test_flags_then_the_number_of_entries(device, fd, access, flags, n, number):
    ctx, client = device
    map_three(client, fd)
    _, sg = ctx.sgl(BASE, 2 * PAGE, 2)
    arg = b"x" * 2 * PAGE if access is sgl_write else 2 * PAGE
    fails(number, access, ctx, sg, arg, flags, n)
    fails(number, access, ctx, (dma_sg * 2)(), arg, flags, n)
    assert client.nothing()


# --- by messages -----------------------------------------------------------------------
KINDS = [("message", 0), ("mmap", 0), ("file io", 0), ("message", DIRECT)]


def map_kind(client, kind, fd, size, base=BASE):
    client.map(base, size, None if kind == "message" else fd, flags=RWF | (MAP_FILE_IO if kind == "file io" else 0))


@pytest.mark.parametrize("kind, flags", KINDS)
def test_64_bytes_are_one_message_each_way(device, fd, kind, flags):
    ctx, client = device
    map_kind(client, kind, fd, PAGE)
    before = os.pread(fd, PAGE, 0)
    memory = bytearray(pattern(PAGE))
    n, sg = ctx.sgl(BASE + 0x80, 64)
    with Guest(client, memory, BASE) as guest:
        assert sgl_read(ctx, sg, 64, flags) == pattern(PAGE)[0x80:0xc0]
        sgl_write(ctx, sg, b"y" * 64, flags)
    assert guest.messages == [(DMA_READ, BASE + 0x80, 64), (DMA_WRITE, BASE + 0x80, 64)]
    assert memory == pattern(PAGE)[:0x80] + b"y" * 64 + pattern(PAGE)[0xc0:]
    assert os.pread(fd, PAGE, 0) == before, "messages and nothing else"


@pytest.mark.parametrize("limit, length, sizes", [
    (PAGE, 2 * PAGE + 42, [PAGE, PAGE, 42]), (PAGE, 2 * PAGE, [PAGE, PAGE]), (PAGE, 1, [1]), (PAGE, PAGE, [PAGE]),
    (64, 200, [64, 64, 64, 8]), (1, 3, [1, 1, 1]), (100000, 250000, [100000, 100000, 50000]),
    (131072, 131073, [65536, 65536, 1]), (131073, 131073, [65536, 65536, 1]), (MIB, 131072, [131072]),
    (None, 131072 * 2 + 5, [65536] * 4 + [5]), (4 * MIB, 2 * MIB, [65536] * 32), (1 << 40, 131073, [65536, 65536, 1])])
@pytest.mark.parametrize("kind, flags", [KINDS[0], KINDS[1]])
def test_chunks_are_what_the_client_takes_and_64_kib_where_there_are_several_at_once(fd, limit, length, sizes, kind, flags):
    caps = None if limit is None else {"max_data_xfer_size": limit}
    with attached(caps=caps, dma=True) as (ctx, client):
        map_kind(client, kind, fd, 4 * MIB)
        memory = bytearray(pattern(3 * MIB))
        n, sg = ctx.sgl(BASE + 3, length)
        with Guest(client, memory, BASE) as guest:
            assert sgl_read(ctx, sg, length, flags) == pattern(3 * MIB)[3:3 + length]
            sgl_write(ctx, sg, pattern(length, 77), flags)
        at, expected = BASE + 3, []
        for size in sizes:
            expected.append((at, size))
            at += size
        assert guest.messages == [(DMA_READ, *e) for e in expected] + [(DMA_WRITE, *e) for e in expected]
        assert memory[3:3 + length] == pattern(length, 77)
        assert memory[:3] == pattern(3) and memory[3 + length:] == pattern(3 * MIB)[3 + length:]


def test_message_ids_count_up(device):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 8)
    with Guest(client, bytearray(PAGE), BASE) as guest:
        for _ in range(5):
            sgl_read(ctx, sg, 8)
            sgl_write(ctx, sg, b"8" * 8)
    first = guest.ids[0]
    assert guest.ids == [(first + i) & 0xffff for i in range(10)]


@pytest.mark.parametrize("limit", [PAGE, 131072])
def test_with_a_twin_socket_messages_go_there(fd, limit):
    caps = {"max_msg_fds": 8, "max_data_xfer_size": limit, "twin_socket": {"supported": True}}
    with attached(caps=caps, dma=True) as (ctx, client):
        assert client.twin is not None
        client.map(BASE, 4 * PAGE)
        memory = bytearray(pattern(4 * PAGE))
        n, sg = ctx.sgl(BASE, 3 * PAGE)
        with Guest(client, memory, BASE, sock=client.twin) as guest:
            assert sgl_read(ctx, sg, 3 * PAGE) == pattern(3 * PAGE)
            sgl_write(ctx, sg, b"t" * 3 * PAGE)
        assert len(guest.messages) == 2 * -(-3 * PAGE // limit)
        assert memory == b"t" * 3 * PAGE + pattern(4 * PAGE)[3 * PAGE:]
        assert client.nothing()


def test_message_access_from_inside_a_region_callback():
    with Ctx(dma=True, realize=False) as ctx:
        memory = bytearray(pattern(PAGE))

        def access(_ctx, buf, count, offset, is_write):
            n, sg = ctx.sgl(BASE + offset, count)
            data = sgl_read(ctx, sg, count)
            sgl_write(ctx, sg, data[::-1])
            c.memmove(buf, data, count)
            return count
        ctx.setup_region(BAR0, PAGE, access)
        ctx.realize()
        with ctx.connect() as client:
            client.map(BASE, PAGE)
            with Guest(client, memory, BASE) as guest:
                msg_id = client.send(REGION_READ, struct.pack("<QII", 0x10, BAR0, 32))
                assert ctx.run() == 1
            assert guest.messages == [(DMA_READ, BASE + 0x10, 32), (DMA_WRITE, BASE + 0x10, 32)]
            reply = guest.replies[0] if guest.replies else client.recv()
            assert (reply.msg_id, reply.flags, reply.payload[16:]) == (msg_id, F_REPLY, pattern(PAGE)[0x10:0x30])
            assert memory[0x10:0x30] == pattern(PAGE)[0x10:0x30][::-1]
            answers(client)


# Replies to a DMA message that are refused: (how the reply is made, errno for a read, errno for a write)
def reply_bytes(head, address, count, cmd=None, msg_id=None, flags=F_REPLY, error=0, payload=None, longer=0):
    i, command, _, _, _ = struct.unpack("<HHIII", head)
    if payload is None:
        payload = struct.pack("<QQ", address, count) + (b"d" * count if command == DMA_READ else b"")
        payload = payload[:len(payload) + longer] + b"!" * longer
    return header(i if msg_id is None else msg_id(i), cmd or command, 16 + len(payload), flags, error) + payload


BAD_REPLIES = {
    "error": (dict(flags=F_REPLY | F_ERROR, error=errno.EIO, payload=b""), errno.EIO),
    "error with the whole payload": (dict(flags=F_REPLY | F_ERROR, error=errno.EIO), errno.EIO),
    "error with 1000 bytes": (dict(flags=F_REPLY | F_ERROR, error=errno.EPERM, payload=b"x" * 1000), errno.EPERM),
    "error 4096": (dict(flags=F_REPLY | F_ERROR, error=4096, payload=b""), 4096),
    "error 4097": (dict(flags=F_REPLY | F_ERROR, error=4097, payload=b""), errno.EINVAL),
    "error 0": (dict(flags=F_REPLY | F_ERROR, error=0, payload=b""), errno.EINVAL),
    "error ENOMSG": (dict(flags=F_REPLY | F_ERROR, error=errno.ENOMSG, payload=b""), errno.ENOMSG),
    "error ECONNRESET": (dict(flags=F_REPLY | F_ERROR, error=errno.ECONNRESET, payload=b""), errno.ECONNRESET),
    "other id": (dict(msg_id=lambda i: i + 1 & 0xffff), errno.EPROTO),
    "other id, no payload": (dict(msg_id=lambda i: i ^ 0x8000, payload=b""), errno.EPROTO),
    "other command": (dict(cmd=REGION_READ), errno.EINVAL),
    "no payload": (dict(payload=b""), errno.EINVAL),
    "15 bytes": (dict(payload=b"x" * 15), errno.EINVAL),
    "a byte too much": (dict(longer=1), errno.EINVAL),
    "a byte too little": (dict(longer=-1), errno.EINVAL),
    "too much": (dict(payload=b"x" * 500), errno.EINVAL),
}


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("how", BAD_REPLIES)
@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_a_bad_reply_fails_the_transfer_and_nothing_else(how, access, twin):
    change, number = BAD_REPLIES[how]
    caps = {"max_msg_fds": 8, "twin_socket": {"supported": True}} if twin else None
    with attached(caps=caps, dma=True) as (ctx, client):
        client.map(BASE, PAGE)
        n, sg = ctx.sgl(BASE, 64)
        sock = client.twin if twin else client.sock

        def answer(guest, head, address, count, data):
            return reply_bytes(head, address, count, **change)
        with Guest(client, answer=answer, sock=sock) as guest:
            if access == "read":
                fails(number, sgl_read, ctx, sg, 64)
            else:
                fails(number, sgl_write, ctx, sg, b"w" * 64)
        assert len(guest.messages) == 1
        with Guest(client, bytearray(b"good" * 1024), BASE, sock=sock):
            assert sgl_read(ctx, sg, 64) == b"good" * 16, "the stream is out of step"


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("address, count", [(1, 0), (0, 1), (0, -1), (-64, 0), (0, 1 << 32), (1 << 32, 0)])
def test_address_and_count_must_come_back(device, access, address, count):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)

    def answer(guest, head, a, n, data):
        payload = struct.pack("<QQ", a + address, n + count) + (b"d" * n if access == "read" else b"")
        return reply_bytes(head, a, n, payload=payload)
    with Guest(client, answer=answer):
        if access == "read":
            fails(errno.EINVAL, sgl_read, ctx, sg, 64)
        else:
            fails(errno.EINVAL, sgl_write, ctx, sg, b"w" * 64)
    with Guest(client, bytearray(b"good" * 1024), BASE):
        assert sgl_read(ctx, sg, 64) == b"good" * 16


def test_the_second_of_three_chunks_fails():
    with attached(caps={"max_data_xfer_size": 16}, dma=True) as (ctx, client):
        client.map(BASE, PAGE)
        memory = bytearray(PAGE)
        n, sg = ctx.sgl(BASE, 48)

        def answer(guest, head, address, count, data):
            if address == BASE + 16:
                return reply_bytes(head, address, count, flags=F_REPLY | F_ERROR, error=errno.EIO, payload=b"")
            return None
        with Guest(client, memory, BASE, answer=answer) as guest:
            fails(errno.EIO, sgl_write, ctx, sg, b"w" * 48)
        assert guest.messages == [(DMA_WRITE, BASE, 16), (DMA_WRITE, BASE + 16, 16)]
        assert memory[:48] == b"w" * 16 + bytes(32)


def test_descriptors_with_a_reply_are_closed_and_the_transfer_goes_on(device, fd):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    sent = []

    def answer(guest, head, address, count, data):
        client.send_raw(reply_bytes(head, address, count), [fd, fd])
        sent.append(1)
        return b""
    with Guest(client, answer=answer) as guest:
        assert sgl_read(ctx, sg, 64) == b"d" * 64
    assert sent == [1] and len(guest.messages) == 1
    assert fds_of("sgl-test") == [fd]


def test_messages_without_a_client():
    """The entry is got while the client is there; the region goes with it, so it is tried from inside."""
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        client.map(BASE, PAGE)
        seen = []

        def unregister(_info):
            n, sg = ctx.sgl(BASE, 8)
            try:
                sgl_read(ctx, sg, 8)
            except Failed as e:
                seen.append(e.errno)
        ctx.on_dma_unregister = unregister
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        assert seen == [errno.ENOTCONN]
        with ctx.connect() as client:
            answers(client)


# --- while a quiesce is pending, and in callbacks of vfu_device_quiesced ---------------------
@pytest.mark.parametrize("kind, flags", KINDS + [("mmap", DIRECT), ("file io", DIRECT)])
def test_access_while_a_quiesce_is_pending_and_in_the_callbacks_after_it(fd, kind, flags):
    with attached(dma=True, quiesce=True) as (ctx, client):
        map_kind(client, kind, fd, PAGE)
        memory = bytearray(os.pread(fd, PAGE, 0))
        ctx.quiesce_errno = errno.EBUSY
        ctx.events.clear()
        msg_id = client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RWF, 0, BASE + PAGE, PAGE))
        fails(errno.EBUSY, ctx.run)
        seen = []

        def access(*_):
            n, sg = ctx.sgl(BASE + 8, 64)
            seen.append(sgl_read(ctx, sg, 64, flags))
            sgl_write(ctx, sg, seen[-1], flags)
            assert is_mappable(ctx, sg) == (kind == "mmap")
            if kind == "mmap":
                seen.append(peek(ctx.sgl_get(sg)[0].base, 64))
            ctx.sgl_put(sg)
        expected = [memory[8:72]] * (2 if kind == "mmap" else 1)
        ctx.on_dma_register = access
        with Guest(client, memory, BASE) as guest:
            access()
            assert seen == expected
            fails(errno.EBUSY, ctx.run)
            ctx.quiesced()
        assert seen == expected * 2
        assert ctx.events == ["quiesce", ("register", BASE + PAGE, PAGE)]
        reply = guest.replies[0] if guest.replies else client.recv()
        assert (reply.msg_id, reply.flags) == (msg_id, F_REPLY)
        assert len(guest.messages) == (4 if kind == "message" or not flags else 0)
        ctx.on_dma_register = lambda i: None
        ctx.quiesce_errno = 0


def test_access_inside_register_transition_and_reset_callbacks(fd):
    with attached(dma=True, quiesce=True, migration=True) as (ctx, client):
        seen = []

        def access(*_):
            n, sg = ctx.sgl(BASE, 16)
            seen.append(peek(ctx.sgl_get(sg)[0].base, 16))
            ctx.sgl_put(sg)
        ctx.on_dma_register = ctx.on_transition = ctx.on_reset = access
        client.map(BASE, PAGE, fd)
        client.set_state(S_STOP)
        client.request(DEVICE_RESET)
        assert seen == [os.pread(fd, 16, 0)] * 3
        ctx.on_reset = lambda kind: None


# --- entries that outlive their region ----------------------------------------------------
def is_stale(ctx, sg, flags=(0, DIRECT)):
    fails(errno.EINVAL, ctx.sgl_get, sg)
    for f in flags:
        fails(errno.EINVAL, sgl_read, ctx, sg, 64, f)
        fails(errno.EINVAL, sgl_write, ctx, sg, b"z" * 64, f)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    assert is_mappable(ctx, sg) is False


@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_an_entry_of_a_region_that_has_gone(device, fd, kind):
    ctx, client = device
    client.log_start()
    map_kind(client, kind, fd, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    is_stale(ctx, sg)
    assert client.nothing()


def test_a_new_region_in_its_place_is_another_region(device, fd):
    ctx, client = device
    client.log_start()
    client.map(BASE, PAGE, fd)
    n, old = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    before = os.pread(fd, PAGE, 0)
    for i in range(50):
        client.map(BASE, PAGE, fd)
        is_stale(ctx, old)
        assert client.report(BASE, PAGE) == 0, "a stale entry marked a page"
        n, sg = ctx.sgl(BASE, 64)
        assert is_mappable(ctx, sg)
        client.unmap(BASE, PAGE)
        is_stale(ctx, sg)
    assert os.pread(fd, PAGE, 0) == before


def test_stale_entries_of_many_regions(fd):
    with attached(dma=True, max_regions=100) as (ctx, client):
        for i in range(100):
            client.map(BASE + i * PAGE, PAGE, fd)
        n, sg = ctx.sgl(BASE, 100 * PAGE, 100)
        for i in range(0, 100, 2):
            client.unmap(BASE + i * PAGE, PAGE)
        for i in range(0, 100, 2):
            client.map(BASE + i * PAGE, PAGE, fd)
        for i in range(100):
            one = c.byref(sg[i])
            assert is_mappable(ctx, one) == (i % 2 == 1)
            if i % 2:
                call("vfu_sgl_get", ctx.p, one, (iovec * 1)(), 1, 0)
            else:
                fails(errno.EINVAL, call, "vfu_sgl_get", ctx.p, one, (iovec * 1)(), 1, 0)
        fails(errno.EINVAL, ctx.sgl_get, sg, 100)


def test_an_entry_is_good_until_the_unregister_callback_has_returned(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 64)
    seen = []

    def unregister(_info):
        seen.append((peek(ctx.sgl_get(sg)[0].base, 64), sgl_read(ctx, sg, 64, DIRECT), is_mappable(ctx, sg)))
        sgl_write(ctx, sg, b"0" * 64, DIRECT)
        ctx.sgl_put(sg)
    old = os.pread(fd, 64, 0)
    ctx.on_dma_unregister = unregister
    client.unmap(BASE, PAGE)
    assert seen == [(old, old, True)]
    assert os.pread(fd, 64, 0) == b"0" * 64
    is_stale(ctx, sg)


def test_an_entry_of_a_lost_connection(fd):
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        client.map(BASE, PAGE, fd)
        n, sg = ctx.sgl(BASE, 64)
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        is_stale(ctx, sg)
        with ctx.connect() as client:
            client.map(BASE, PAGE, fd)
            is_stale(ctx, sg)
            answers(client)


def test_a_region_that_an_unregister_callback_asks_about_after_it_went(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd)
    n, first = ctx.sgl(BASE, 64)
    n, second = ctx.sgl(BASE + PAGE, 64)
    seen = []

    def unregister(i):
        seen.append((i.iova.base, is_mappable(ctx, first), is_mappable(ctx, second)))
    ctx.on_dma_unregister = unregister
    client.unmap(0, 0, UNMAP_ALL)
    assert seen == [(BASE, True, True), (BASE + PAGE, False, True)]


# --- threads -----------------------------------------------------------------------------
def test_other_threads_translate_get_and_put_while_requests_are_handled(fd):
    with attached(dma=True, migration=True) as (ctx, client):
        client.map(BASE, 64 * PAGE, fd)
        client.log_start()
        failures, barrier = [], threading.Barrier(5)

        def device_thread(t):
            try:
                barrier.wait()
                for page in range(t, 64, 4):
                    for _ in range(20):
                        n, sg = ctx.sgl(BASE + page * PAGE, 8, prot=READ_ONLY)
                        assert n == 1 and peek(ctx.sgl_get(sg)[0].base, 8) == os.pread(fd, 8, page * PAGE)
                        ctx.sgl_put(sg)
                    put(ctx, BASE + page * PAGE, 8)
            except BaseException as e:  # noqa: B902
                failures.append(e)
        threads = [threading.Thread(target=device_thread, args=(t,)) for t in range(4)]
        for t in threads:
            t.start()
        barrier.wait()
        found = 0
        while any(t.is_alive() for t in threads):
            bits = client.report(BASE, 64 * PAGE)
            assert found & bits == 0, "a page was reported twice but written once"
            found |= bits
        for t in threads:
            t.join()
        assert not failures
        found |= client.report(BASE, 64 * PAGE)
        assert found == (1 << 64) - 1, "a written page was never reported"


# --- commands that cross a DMA message on the only socket --------------------------------------
def test_commands_that_cross_a_dma_message_are_executed_afterwards_in_order(device, fd):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    ctx.events.clear()

    def answer(guest, head, address, count, data):
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RWF, 0, BASE + PAGE, PAGE), [fd], msg_id=1)
        client.send(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE + PAGE, PAGE), msg_id=2)
    with Guest(client, bytearray(b"mem!" * 1024), BASE, answer=answer):
        assert sgl_read(ctx, sg, 64) == b"mem!" * 16
    assert ctx.events == [] and client.nothing()
    assert ctx.readable(), "the queued commands are something to do"
    ctx.executes(2)
    assert ctx.events == [("register", BASE + PAGE, PAGE), ("unregister", BASE + PAGE, PAGE)]
    assert [(r.msg_id, r.flags) for r in (client.recv(), client.recv())] == [(1, F_REPLY), (2, F_REPLY)]
    assert fds_of("sgl-test") == [fd]


def test_an_entry_that_outlived_its_region_inside_the_callback_of_the_request_in_progress(device, fd):
    """A stale entry is found out from inside callbacks, too."""
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    seen = []
    ctx.on_dma_register = lambda i: seen.append(is_mappable(ctx, sg))
    client.map(BASE, PAGE, fd)
    assert seen == [False]
