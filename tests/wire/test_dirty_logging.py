"""Dirty page logging: start, stop, report."""
import errno
import os
import random
import re
import struct

import pytest

from libvfu import *
from guest import *

BASE = 0x400000
TOP = 1 << 64
RWF = MAP_READ | MAP_WRITE
GIB = 1 << 30
KIB = 1024


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("log-test", 256 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def logged(device, fd):
    """One region of 32 pages, logged at the host's page size."""
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    client.log_start()
    return ctx, client


def write_pages(ctx, first, n=1, base=BASE):
    put(ctx, base + first * PAGE, n * PAGE)


def report_data(iova, length, page):
    return struct.pack("<QQQ", iova, length, page)


def bitmap_bytes(length, page):
    return (-(-length // page) + 63) // 64 * 8


# --- worked values ------------------------------------------------------------------
@pytest.mark.parametrize("pages, bits", [
    ([(0, 1)], 0x1), ([(7, 1)], 0x80), ([(0, 7)], 0x7f), ([(0, 8)], 0xff), ([(0, 9)], 0x1ff), ([(7, 2)], 0x180),
    ([(15, 1)], 0x8000), ([(23, 1)], 0x800000), ([(22, 1), (2, 2)], 0x40000c), ([(0, 32)], 0xffffffff),
    ([(31, 1)], 0x80000000), ([(0, 1), (6, 4)], 0x3c1), ([], 0)])
@pytest.mark.parametrize("length", [16, 32])
def test_worked_values(logged, pages, bits, length):
    """Bits beyond the length but inside the rounded bitmap are reported as well."""
    ctx, client = logged
    for first, n in pages:
        write_pages(ctx, first, n)
    assert client.report(BASE, length * PAGE) == bits
    assert client.report(BASE, length * PAGE) == 0, "bits are cleared when they are reported"


@pytest.mark.parametrize("at, length, bits", [
    (0, 1, 1), (PAGE - 1, 1, 1), (PAGE, 1, 2), (PAGE - 1, 2, 3), (0, PAGE + 1, 3), (1, PAGE, 3), (1, PAGE - 1, 1),
    (PAGE + 5, PAGE, 6), (32 * PAGE - 1, 1, 1 << 31)])
def test_each_page_touched_is_marked(logged, at, length, bits):
    ctx, client = logged
    put(ctx, BASE + at, length)
    assert client.report(BASE, 32 * PAGE) == bits


@pytest.mark.parametrize("page, bits", [
    (PAGE // 2, 0xff003), (PAGE // 4, 0xffff00000f), (PAGE // 8, 0xffffffff0000000000ff),
    (PAGE * 2, 0x19), (PAGE * 4, 0x7), (PAGE * 8, 0x3), (PAGE * 16, 0x1), (PAGE * 32, 0x1)])
def test_worked_values_at_another_page_size(logged, page, bits):
    ctx, client = logged
    write_pages(ctx, 0)
    write_pages(ctx, 6, 4)
    assert client.report(BASE, 32 * PAGE, page=page) == bits
    assert client.report(BASE, 32 * PAGE, page=page) == 0
    assert client.report(BASE, 32 * PAGE) == 0


@pytest.mark.parametrize("page", [1, 2, 16, 512])
def test_result_pages_as_small_as_bytes(logged, page):
    """A logged page is hundreds and thousands of bits of the result."""
    ctx, client = logged
    write_pages(ctx, 1)
    write_pages(ctx, 30)
    per = PAGE // page
    assert client.report(BASE, 32 * PAGE, page=page) == ((1 << per) - 1) << per | ((1 << per) - 1) << 30 * per
    assert client.report(BASE, 32 * PAGE, page=page) == 0


@pytest.mark.parametrize("logging", [PAGE, 2 * PAGE, 16 * PAGE, 1 << 20, 1 << 31, 1 << 63])
def test_logging_at_a_page_size_as_asked(device, fd, logging):
    ctx, client = device
    client.map(BASE, 64 * PAGE, fd)
    client.log_start(logging)
    write_pages(ctx, 33)
    per = min(logging // PAGE, 64)
    first = 33 // per * per
    assert client.report(BASE, 64 * PAGE) == ((1 << per) - 1) << first
    assert client.report(BASE, 64 * PAGE) == 0


# --- what marks and what doesn't -------------------------------------------------------
def test_unmodified(logged):
    ctx, client = logged
    assert client.report(BASE, 32 * PAGE) == 0


def test_entries_for_reading_never_mark(logged):
    ctx, client = logged
    n, sg = ctx.sgl(BASE, 32 * PAGE, prot=PROT_READ)
    ctx.sgl_get(sg)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    assert client.report(BASE, 32 * PAGE) == 0


def test_put_marks_and_get_does_not_and_put_marks_each_time(logged):
    ctx, client = logged
    n, sg = ctx.sgl(BASE + 3 * PAGE, PAGE)
    ctx.sgl_get(sg)
    assert client.report(BASE, 32 * PAGE) == 0
    for _ in range(3):
        ctx.sgl_put(sg)
        assert client.report(BASE, 32 * PAGE) == 8
        assert client.report(BASE, 32 * PAGE) == 0


def test_mark_dirty_marks_as_put_does(logged):
    ctx, client = logged
    n, sg = ctx.sgl(BASE + 3 * PAGE, PAGE + 1)
    for _ in range(2):
        mark_dirty(ctx, sg)
        assert client.report(BASE, 32 * PAGE) == 0x18


def test_several_entries_at_once(device, fd):
    ctx, client = device
    for i in range(3):
        client.map(BASE + i * PAGE, PAGE, fd, offset=i * PAGE)
    client.map(BASE + 3 * PAGE, PAGE)
    client.log_start()
    n, sg = ctx.sgl(BASE, 4 * PAGE, 4)
    ctx.sgl_put(sg, 3)
    assert client.report(BASE, 4 * PAGE) == 7
    mark_dirty(ctx, sg, 4)
    assert client.report(BASE, 4 * PAGE) == 7, "message regions are the client's business"


@pytest.mark.parametrize("kind", [0, MAP_FILE_IO], ids=["mmap", "file io"])
def test_a_direct_write_marks(device, fd, kind):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd, flags=RWF | kind)
    client.log_start()
    n, sg = ctx.sgl(BASE + 5 * PAGE - 1, 2)
    sgl_read(ctx, sg, 2, DIRECT)
    assert client.report(BASE, 32 * PAGE) == 0
    sgl_write(ctx, sg, b"ab", DIRECT)
    assert client.report(BASE, 32 * PAGE) == 0x30


@pytest.mark.parametrize("kind", [0, MAP_FILE_IO], ids=["mmap", "file io"])
def test_a_write_by_message_does_not_mark(device, fd, kind):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd, flags=RWF | kind)
    client.log_start()
    n, sg = ctx.sgl(BASE, 64)
    memory = bytearray(PAGE)
    with Guest(client, memory, BASE) as guest:
        sgl_write(ctx, sg, b"w" * 64)
    assert guest.messages == [(DMA_WRITE, BASE, 64)] and memory[:64] == b"w" * 64
    assert client.report(BASE, 32 * PAGE) == 0


def test_message_entries_are_ignored(device):
    ctx, client = device
    client.map(BASE, 32 * PAGE)
    client.log_start()
    n, sg = ctx.sgl(BASE, 64)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    answers(client)


def test_nothing_is_marked_while_logging_is_off(device, fd):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    write_pages(ctx, 0)
    client.log_start()
    write_pages(ctx, 1)
    client.log_stop()
    write_pages(ctx, 2)
    client.log_start()
    assert client.report(BASE, 32 * PAGE) == 0
    write_pages(ctx, 3)
    assert client.report(BASE, 32 * PAGE) == 8


def test_an_entry_got_before_logging_began_marks_when_it_is_put(device, fd):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    n, sg = ctx.sgl(BASE, PAGE)
    ctx.sgl_get(sg)
    client.log_start()
    ctx.sgl_put(sg)
    assert client.report(BASE, 32 * PAGE) == 1


def test_a_region_mapped_while_logging_is_logged(device, fd):
    ctx, client = device
    client.log_start()
    client.map(BASE, 32 * PAGE, fd)
    write_pages(ctx, 4)
    assert client.report(BASE, 32 * PAGE) == 0x10
    ctx.on_dma_register = lambda i: put(ctx, i.iova.base, 1)
    client.map(BASE + 32 * PAGE, 32 * PAGE, fd, offset=32 * PAGE)
    assert client.report(BASE, 64 * PAGE) == 1 << 32


def test_a_region_of_32_pages_over_a_file_of_16(device):
    ctx, client = device
    f = memfd(16 * PAGE)
    client.map(BASE, 32 * PAGE, f)
    client.log_start()
    for page in range(32):
        n, sg = ctx.sgl(BASE + page * PAGE, PAGE)
        iov = ctx.sgl_get(sg)[0]
        poke(iov.base, b"dirty")
        ctx.sgl_put(sg)
        assert client.report(BASE, 32 * PAGE) == 1 << page
    os.close(f)


# --- start and stop ----------------------------------------------------------------------
def start_data(page, n=0, reserved=0, ranges=b""):
    return struct.pack("<QII", page, n, reserved) + ranges


@pytest.mark.parametrize("page", [PAGE, 2 * PAGE, 1 << 21, 1 << 30, 1 << 62, 1 << 63])
def test_the_reply_of_start_repeats_the_request(device, page):
    ctx, client = device
    p = client.log_start(page)
    assert p == struct.pack("<II", 24, F_LOG_START | FEATURE_SET) + start_data(page)


@pytest.mark.parametrize("page", [1, 2, 512, PAGE // 2])
def test_below_the_host_s_page_size_the_host_s_is_used_and_told(device, fd, page):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    p = client.log_start(page)
    assert p == struct.pack("<II", 24, F_LOG_START | FEATURE_SET) + start_data(PAGE)
    write_pages(ctx, 2)
    assert client.report(BASE, 32 * PAGE) == 4
    client.log_start(page, expect=errno.EINVAL)
    client.log_start(PAGE)


@pytest.mark.parametrize("page", [0, 3, 3000, PAGE + 1, PAGE - 1, 3 * PAGE, TOP - 1, (1 << 63) + 1, 3 << 62])
def test_page_sizes_that_are_no_power_of_two(device, fd, page):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.log_start(page, expect=errno.EINVAL)
    client.report(BASE, PAGE, expect=errno.EINVAL)
    client.log_start()
    client.log_start(page, expect=errno.EINVAL)
    put(ctx, BASE, 1)
    assert client.report(BASE, PAGE) == 1


def test_start_again_with_the_page_size_in_use_changes_nothing(logged):
    ctx, client = logged
    write_pages(ctx, 3)
    client.log_start()
    assert client.report(BASE, 32 * PAGE) == 8


@pytest.mark.parametrize("page", [1, PAGE // 2, 2 * PAGE, 1 << 63])
def test_start_again_with_another_page_size(logged, page):
    ctx, client = logged
    write_pages(ctx, 3)
    client.log_start(page, expect=errno.EINVAL)
    assert client.report(BASE, 32 * PAGE) == 8


def test_another_page_size_after_stop(logged):
    ctx, client = logged
    client.log_stop()
    client.log_start(2 * PAGE)
    write_pages(ctx, 3)
    assert client.report(BASE, 32 * PAGE) == 0xc


@pytest.mark.parametrize("size", [1, 100, PAGE - 1, PAGE + 1, 3 * PAGE])
@pytest.mark.parametrize("before", [True, False], ids=["mapped before", "mapped later"])
def test_regions_smaller_than_a_page_occupy_one_bit(device, fd, size, before):
    ctx, client = device
    if not before:
        client.log_start(16 * PAGE)
    client.map(BASE, size, fd)
    client.map(BASE + size, size, fd, offset=64 * PAGE)
    if before:
        client.log_start(16 * PAGE)
    put(ctx, BASE + size - 1, 1)
    assert client.report(BASE, size, page=1) == (1 << size) - 1
    assert client.report(BASE + size, size, page=1) == 0
    put(ctx, BASE + size, 1)
    assert client.report(BASE, 2 * size, page=1) == ((1 << size) - 1) << size


@pytest.mark.parametrize("data", [b"", b"\0" * 8, struct.pack("<Q", PAGE) + b"\0" * 7, start_data(PAGE)[:15]])
def test_start_needs_16_bytes(device, fd, data):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.feature(F_LOG_START | FEATURE_SET, data, expect=errno.EINVAL)
    client.feature(F_LOG_START | FEATURE_SET, data, argsz=64, expect=errno.EINVAL)
    client.report(BASE, PAGE, expect=errno.EINVAL)


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 100])
def test_stop_succeeds_always_and_disregards_its_data(logged, data):
    ctx, client = logged
    for _ in range(2):
        p = client.feature(F_LOG_STOP | FEATURE_SET, data)
        assert p == struct.pack("<II", 8 + len(data), F_LOG_STOP | FEATURE_SET) + data
        client.report(BASE, 32 * PAGE, expect=errno.EINVAL)


def test_stop_when_logging_never_began(device):
    ctx, client = device
    client.log_stop()


def test_without_dma_start_and_report_are_refused():
    with attached(dma=False, migration=True) as (ctx, client):
        client.log_start(expect=errno.EINVAL)
        client.report(BASE, PAGE, expect=errno.EINVAL)
        client.report(BASE, PAGE, page=2 * PAGE, expect=errno.EINVAL)
        client.log_stop()


def test_logging_ends_with_the_connection(fd):
    with Ctx(dma=True, migration=True) as ctx:
        client = ctx.connect()
        client.log_start(4 * PAGE)
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        with ctx.connect() as client:
            client.map(BASE, PAGE, fd)
            client.report(BASE, PAGE, expect=errno.EINVAL)
            client.log_start(PAGE)
            put(ctx, BASE, 1)
            assert client.report(BASE, PAGE) == 1
            answers(client)


def test_destroy_with_logging_active_and_regions_mapped(fd):
    before = open_fds()
    with Ctx(dma=True, migration=True) as ctx:
        with ctx.connect() as client:
            client.map(BASE, 32 * PAGE, fd)
            client.log_start()
            write_pages(ctx, 1)
            ctx.destroy()
    assert open_fds() == before
    assert file_mappings("log-test") == []


def test_logging_starts_many_times_and_leaves_nothing_behind(device):
    """8 TiB at the smallest page size: 256 MiB of bitmap each time, none of it touched."""
    ctx, client = device
    size = 8 << 40
    f = named_memfd("log-8t", size)
    client.map(0, size, f)
    before = resident()
    for _ in range(20):
        client.log_start()
        put(ctx, size - 1, 1)
        assert resident() - before < 16 * MIB
        client.log_stop()
    client.log_start()
    client.unmap(0, size)
    client.map(0, size, f)
    put(ctx, size // 2, 1)
    assert client.report(size // 2 - 32 * PAGE, 64 * PAGE) == 1 << 32
    assert resident() - before < 16 * MIB
    os.close(f)


@pytest.mark.parametrize("first, count", [(5, 32768 - 64), (0, 32768 - 64), (5, 32768), (32768 + 63, 32768 - 64), (7, 64)])
def test_what_is_beside_a_report_is_in_the_next_one(device, first, count):
    """However large the region is, and wherever in it the report begins and ends."""
    ctx, client = device
    pages = 3 * 32768
    fd = named_memfd("beside", pages * PAGE)
    client.map(BASE, pages * PAGE, fd)
    os.close(fd)
    client.log_start()
    edges = {0, first - 1, first, first + count - 1, first + count, first + count + 1} - {-1}
    for page in edges:
        write_pages(ctx, page)
    assert client.report(BASE + first * PAGE, count * PAGE) == 1 | 1 << count - 1
    beside = sum(1 << page for page in edges if not first <= page < first + count)
    # Not compared in the assertion itself: as decimals they would be too long.
    is_beside = client.report(BASE, pages * PAGE) == beside
    assert is_beside
    assert client.report(BASE, pages * PAGE) == 0


# --- ranges of start -------------------------------------------------------------------------
@pytest.mark.parametrize("n, ranges", [
    (1, []), (2, [(BASE, PAGE)]), (0xffffffff, [(BASE, PAGE)]), (0x10000000, []),
    (1, [(BASE, 0)]), (2, [(BASE, PAGE), (BASE, 0)]), (1, [(TOP - PAGE, PAGE + 1)]), (1, [(2, TOP - 1)]),
    (2, [(BASE, PAGE), (TOP - 1, 2)])])
def test_bad_ranges(device, fd, n, ranges):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    data = start_data(PAGE, n, 0, b"".join(struct.pack("<QQ", *r) for r in ranges))
    client.feature(F_LOG_START | FEATURE_SET, data, expect=errno.EINVAL)
    client.report(BASE, PAGE, expect=errno.EINVAL)
    client.log_start()
    client.feature(F_LOG_START | FEATURE_SET, data, expect=errno.EINVAL)


def test_ranges_up_to_the_end_of_the_address_space(device, fd):
    ctx, client = device
    client.map(TOP - PAGE, PAGE, fd)
    client.log_start(ranges=[(1, TOP - 1), (TOP - 1, 1)])
    put(ctx, TOP - 1, 1)
    assert client.report(TOP - PAGE, PAGE) == 1


def test_a_range_that_the_message_holds_in_part_only(device):
    ctx, client = device
    data = start_data(PAGE, 1, 0, struct.pack("<QQ", BASE, PAGE)[:15])
    client.feature(F_LOG_START | FEATURE_SET, data, expect=errno.EINVAL)
    client.log_start(2 * PAGE)


def test_writes_inside_the_ranges_are_logged(device, fd):
    ctx, client = device
    client.map(BASE, 64 * PAGE, fd)
    ranges = [(BASE + 2 * PAGE, 3 * PAGE), (BASE + 10 * PAGE + 5, 1), (BASE + 60 * PAGE, TOP - BASE - 60 * PAGE)]
    p = client.log_start(ranges=ranges)
    assert p[8:] == start_data(PAGE, 3, 0, b"".join(struct.pack("<QQ", *r) for r in ranges))
    logged_pages = (2, 3, 4, 10, 60, 63)
    for page in logged_pages:
        write_pages(ctx, page)
    assert client.report(BASE, 64 * PAGE) == sum(1 << page for page in logged_pages)
    write_pages(ctx, 0, 64)
    bits = client.report(BASE, 64 * PAGE)
    must = sum(1 << page for page in (2, 3, 4, 10, 60, 61, 62, 63))
    assert bits & must == must


def test_ranges_may_name_what_is_not_mapped_yet(device, fd):
    ctx, client = device
    client.log_start(ranges=[(BASE, 32 * PAGE), (0, PAGE), (TOP - PAGE, PAGE)])
    client.map(BASE, 32 * PAGE, fd)
    client.map(TOP - PAGE, PAGE, fd)
    write_pages(ctx, 9)
    put(ctx, TOP - 1, 1)
    assert client.report(BASE, 32 * PAGE) == 1 << 9
    assert client.report(TOP - PAGE, PAGE) == 1


def test_the_next_start_has_ranges_of_its_own(device, fd):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    client.log_start(ranges=[(BASE, PAGE)])
    client.log_stop()
    client.log_start()
    write_pages(ctx, 0, 32)
    assert client.report(BASE, 32 * PAGE) == 0xffffffff


# --- errors of report ---------------------------------------------------------------------------
def refused_report(client, number, iova, length, page=PAGE, **kw):
    client.report(iova, length, page=page, expect=number, **kw)


def test_page_size_0_or_above_the_length(logged):
    ctx, client = logged
    refused_report(client, errno.EINVAL, BASE, 16 * PAGE, page=0, argsz=4096)
    refused_report(client, errno.EINVAL, BASE, 16 * PAGE, page=16 * MIB)
    refused_report(client, errno.EINVAL, BASE, 16 * PAGE, page=32 * PAGE)
    refused_report(client, errno.EINVAL, BASE, PAGE - 1)
    refused_report(client, errno.EINVAL, BASE, 0)
    refused_report(client, errno.EINVAL, 0, 0, page=1)
    refused_report(client, errno.EINVAL, 0, 5, page=0, argsz=100)


@pytest.mark.parametrize("page", [3, 3000, PAGE + 1, PAGE - 1, 3 * PAGE])
def test_a_reporting_page_size_that_is_no_power_of_two(logged, page):
    ctx, client = logged
    write_pages(ctx, 2)
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE, page=page, argsz=1 << 20)
    assert client.report(BASE, 32 * PAGE) == 4


@pytest.mark.parametrize("argsz", [0, 8, 32, 39])
def test_argsz_must_have_room_for_the_bitmap(logged, argsz):
    ctx, client = logged
    write_pages(ctx, 2)
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE, argsz=argsz)
    assert client.report(BASE, 32 * PAGE) == 4


def test_argsz_one_too_small_for_two_words(device, fd):
    ctx, client = device
    client.map(BASE, 65 * PAGE, fd)
    client.log_start()
    refused_report(client, errno.EINVAL, BASE, 65 * PAGE, argsz=47)
    assert client.report(BASE, 65 * PAGE, argsz=48) == 0


def test_a_larger_argsz_is_fine_and_the_reply_tells_its_own_size(logged):
    ctx, client = logged
    write_pages(ctx, 2)
    p = client.feature(F_LOG_REPORT | FEATURE_GET, report_data(BASE, 32 * PAGE, PAGE), argsz=0xffffffff)
    assert p == struct.pack("<IIQQQQ", 40, F_LOG_REPORT | FEATURE_GET, BASE, 32 * PAGE, PAGE, 4)


@pytest.mark.parametrize("n", [0, 8, 23])
def test_report_needs_24_bytes(logged, n):
    ctx, client = logged
    write_pages(ctx, 2)
    data = report_data(BASE, 32 * PAGE, PAGE)[:n]
    client.feature(F_LOG_REPORT | FEATURE_GET, data, argsz=4096, expect=errno.EINVAL)
    assert client.report(BASE, 32 * PAGE) == 4


@pytest.mark.parametrize("iova, length", [
    (0, PAGE), (BASE - PAGE, PAGE), (BASE - PAGE, 2 * PAGE), (BASE - 1, PAGE), (BASE + 32 * PAGE, PAGE), (BASE, 33 * PAGE),
    (BASE, 32 * PAGE + 1), (BASE + 16 * PAGE, 17 * PAGE), (BASE + 1, 32 * PAGE), (BASE + 16 * PAGE + 5, 16 * PAGE),
    (TOP - PAGE, PAGE), (TOP - PAGE, 2 * PAGE), (BASE, 1 << 40), (BASE + 64 * PAGE, PAGE), (BASE + 32 * PAGE, 33 * PAGE)])
def test_a_byte_that_is_not_mapped(logged, fd, iova, length):
    ctx, client = logged
    client.map(BASE + 64 * PAGE + PAGE, 32 * PAGE, fd)
    write_pages(ctx, 2)
    refused_report(client, errno.ENOENT, iova, length)
    assert client.report(BASE, 32 * PAGE) == 4


def test_enoent_also_when_logging_is_off(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    refused_report(client, errno.ENOENT, BASE + PAGE, PAGE)
    refused_report(client, errno.ENOENT, BASE, 2 * PAGE)


def test_logging_off(device, fd):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd)
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE)
    client.log_start()
    client.log_stop()
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE)
    refused_report(client, errno.EINVAL, BASE + 1, 32 * PAGE - 1)


def test_a_range_that_wraps_is_not_mapped(device, fd):
    ctx, client = device
    client.map(TOP - 32 * PAGE, 32 * PAGE, fd)
    client.map(0, 32 * PAGE, fd, offset=32 * PAGE)
    client.log_start()
    refused_report(client, errno.ENOENT, TOP - PAGE, 2 * PAGE)
    refused_report(client, errno.ENOENT, TOP - 32 * PAGE, 33 * PAGE)
    put(ctx, TOP - 1, 1)
    assert client.report(TOP - 32 * PAGE, 32 * PAGE) == 1 << 31


@pytest.mark.parametrize("at, length", [(1, 32 * PAGE - 1), (1, PAGE), (PAGE - 1, PAGE), (5 * PAGE + 8, PAGE)])
def test_a_start_that_is_no_multiple_of_the_logging_page_size(logged, at, length):
    ctx, client = logged
    write_pages(ctx, 5)
    refused_report(client, errno.ENOTSUP, BASE + at, length)
    refused_report(client, errno.ENOTSUP, BASE + at, length, page=1)
    assert client.report(BASE, 32 * PAGE) == 1 << 5


def test_alignment_is_counted_from_the_region_s_start_in_logging_pages(device, fd):
    ctx, client = device
    odd = BASE + 0x123
    client.map(odd, 32 * PAGE, fd)
    client.log_start(4 * PAGE)
    put(ctx, odd + 9 * PAGE, 1)
    for at in (PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE, 4 * PAGE + 1, PAGE - 0x123):
        refused_report(client, errno.ENOTSUP, odd + at, PAGE)
    assert client.report(odd + 4 * PAGE, 8 * PAGE) == 0xf0
    put(ctx, odd + 9 * PAGE, 1)
    assert client.report(odd + 8 * PAGE, 2 * PAGE) == 0xf


def test_message_regions(device, fd):
    ctx, client = device
    client.map(BASE, 32 * PAGE)
    client.map(BASE + 32 * PAGE, 32 * PAGE, fd)
    client.log_start()
    write_pages(ctx, 33)
    assert client.report(BASE, 32 * PAGE) == 0
    assert client.report(BASE, 64 * PAGE) == 1 << 33
    write_pages(ctx, 33)
    assert client.report(BASE + 31 * PAGE, 3 * PAGE) == 4
    refused_report(client, errno.ENOTSUP, BASE + 1, PAGE)
    refused_report(client, errno.ENOENT, BASE + 63 * PAGE, 2 * PAGE)
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE, page=3000)
    assert client.report(BASE + 32 * PAGE, 32 * PAGE) == 0
    client.log_stop()
    refused_report(client, errno.EINVAL, BASE, 32 * PAGE)


@pytest.mark.parametrize("page, size", [(PAGE, 13), (PAGE // 4, 5), (PAGE * 4, 64), (PAGE, 4096)])
def test_a_report_of_memory_without_a_descriptor_is_all_zero(device, page, size):
    """As a ROM: the client knows itself what it wrote there."""
    ctx, client = device
    client.map(BASE, size * page, flags=MAP_READ)
    client.map(BASE + 2 * size * page, size * page)
    client.log_start()
    for at in (BASE, BASE + 2 * size * page):
        assert client.report(at, size * page, page=page) == 0


@pytest.mark.parametrize("kind", [MAP_FILE_IO, 0], ids=["file io", "mmap"])
def test_a_write_through_the_descriptor_is_logged(device, fd, kind):
    ctx, client = device
    client.map(BASE, 32 * PAGE, fd, flags=RWF | kind)
    client.log_start()
    n, sg = ctx.sgl(BASE + 3 * PAGE - 1, 2)
    sgl_write(ctx, sg, b"ab", DIRECT)
    assert client.report(BASE, 32 * PAGE) == 0xc
    sgl_read(ctx, sg, 2, DIRECT)
    assert client.report(BASE, 32 * PAGE) == 0


def test_a_message_region_further_on_reads_as_clean(device, fd):
    ctx, client = device
    client.map(BASE, 8 * PAGE, fd)
    client.map(BASE + 8 * PAGE, 8 * PAGE)
    client.map(BASE + 16 * PAGE, 8 * PAGE, fd, offset=8 * PAGE, flags=RWF | MAP_FILE_IO)
    client.log_start()
    for _ in range(2):
        for page in (0, 7, 8, 12, 15, 16, 23):
            write_pages(ctx, page)
        assert client.report(BASE, 24 * PAGE) == 1 | 1 << 7 | 1 << 16 | 1 << 23
        write_pages(ctx, 7, 1)
        assert client.report(BASE, 16 * PAGE) == 1 << 7
    assert client.report(BASE, 24 * PAGE) == 0


@pytest.mark.parametrize("length, page", [
    (8 * GIB, 1), (1 << 40, 32), (8 << 40, 2048), (TOP - 1, 1), (TOP - 1, 4096), (TOP - 1, TOP - 1), (1 << 63, 1)])
def test_a_bitmap_of_more_than_256_mib(logged, length, page):
    """Told before anything about the range."""
    ctx, client = logged
    size = bitmap_bytes(length, page)
    if size <= 256 * MIB:
        refused_report(client, errno.ENOENT, BASE, length, page=page, argsz=32 + size)
    else:
        refused_report(client, errno.EINVAL, BASE, length, page=page, argsz=0xffffffff)


# --- parts of regions and several regions ----------------------------------------------------------
def test_part_of_a_region(logged):
    ctx, client = logged
    for page in (3, 4, 9, 31):
        write_pages(ctx, page)
    # As far as the region goes, in the rounded bitmap.
    assert client.report(BASE + 4 * PAGE, PAGE) == 1 | 1 << 5 | 1 << 27
    assert client.report(BASE, 32 * PAGE) == 1 << 3


def test_a_report_of_64_pages_ends_where_it_says(device, fd):
    ctx, client = device
    client.map(BASE, 256 * PAGE, fd)
    client.log_start()
    for page in (0, 63, 64, 127, 128, 255):
        write_pages(ctx, page)
    assert client.report(BASE + 64 * PAGE, 64 * PAGE) == 1 | 1 << 63
    assert client.report(BASE, 256 * PAGE) == 1 | 1 << 63 | 1 << 128 | 1 << 255


def test_several_regions(device, fd):
    ctx, client = device
    sizes, at = [3, 1, 20, 7, 33], 0
    for size in sizes:
        client.map(BASE + at * PAGE, size * PAGE, fd, offset=at * PAGE)
        at += size
    client.log_start()
    pages = [0, 2, 3, 4, 23, 24, 30, 31, 63]
    for page in pages:
        write_pages(ctx, page)
    assert client.report(BASE, 64 * PAGE) == sum(1 << p for p in pages)
    assert client.report(BASE, 64 * PAGE) == 0


def test_beyond_the_region_in_which_the_range_ends_bits_are_zero_and_stay_logged(device, fd):
    ctx, client = device
    client.map(BASE, 16 * PAGE, fd)
    client.map(BASE + 16 * PAGE, 16 * PAGE, fd, offset=16 * PAGE)
    client.log_start()
    for page in (1, 14, 16, 20):
        write_pages(ctx, page)
    assert client.report(BASE, PAGE) == 1 << 1 | 1 << 14
    assert client.report(BASE, 17 * PAGE) == 1 << 16 | 1 << 20
    assert client.report(BASE, 32 * PAGE) == 0


@pytest.mark.parametrize("hole", [0, 1, 2, 3])
def test_a_hole_between_regions(device, fd, hole):
    ctx, client = device
    for i in range(4):
        if i != hole:
            client.map(BASE + 4 * i * PAGE, 4 * PAGE, fd, offset=4 * i * PAGE)
    client.log_start()
    for i in range(4):
        if i != hole:
            write_pages(ctx, 4 * i)
    refused_report(client, errno.ENOENT, BASE, 16 * PAGE)
    for i in range(4):
        if i != hole:
            assert client.report(BASE + 4 * i * PAGE, 4 * PAGE) == 1, "a refused report cleared a bit"


def test_regions_whose_boundary_lies_inside_a_reported_page(device, fd):
    ctx, client = device
    client.map(BASE, 3 * PAGE, fd)
    client.map(BASE + 3 * PAGE, 5 * PAGE, fd, offset=3 * PAGE)
    client.log_start()
    write_pages(ctx, 2)
    assert client.report(BASE, 8 * PAGE, page=2 * PAGE) == 2
    write_pages(ctx, 3)
    assert client.report(BASE, 8 * PAGE, page=2 * PAGE) == 2
    write_pages(ctx, 7)
    assert client.report(BASE, 8 * PAGE, page=8 * PAGE) == 1
    assert client.report(BASE, 8 * PAGE) == 0


def test_a_logged_bit_is_cleared_only_when_all_it_stands_for_was_reported(device, fd):
    """One bit stands for 16 pages; a report at one byte a page covers 64 bytes."""
    ctx, client = device
    client.map(BASE, 64 * PAGE, fd)
    client.log_start(16 * PAGE)
    write_pages(ctx, 17)
    at = BASE + 16 * PAGE
    for _ in range(2):
        assert client.report(at, 64, page=1) == (1 << 64) - 1
    assert client.report(at, 16 * PAGE - 64, page=64) == (1 << 1024 * PAGE // 4096) - 1
    assert client.report(at, 16 * PAGE, page=64) == 0


def test_the_last_bit_stands_for_the_rest_of_its_region_only(device, fd):
    ctx, client = device
    client.map(BASE, 17 * PAGE, fd)
    client.map(BASE + 17 * PAGE, PAGE, fd, offset=17 * PAGE)
    client.log_start(16 * PAGE)
    write_pages(ctx, 16)
    assert client.report(BASE + 16 * PAGE, PAGE) == 1
    assert client.report(BASE, 17 * PAGE) == 0


# --- against a model --------------------------------------------------------------------------------
class Model:
    """What the rules say a report holds and clears, in the simplest words."""

    def __init__(self, regions, logging):
        # (start, size, whether it is logged)
        self.regions, self.logging = regions, logging
        self.dirty = set()

    def spans(self):
        for start, size, is_logged in self.regions:
            if is_logged:
                for at in range(start, start + size, self.logging):
                    yield at, min(at + self.logging, start + size)

    def write(self, iova, length):
        self.dirty |= {s for s in self.spans() if s[0] < iova + length and iova < s[1]}

    def region(self, iova):
        return next((r for r in self.regions if r[0] <= iova < r[0] + r[1]), None)

    def report(self, iova, length, page):
        """errno, or the bits."""
        if page > length:
            return errno.EINVAL, None
        at = iova
        while at < iova + length:
            last = self.region(at)
            if last is None:
                return errno.ENOENT, None
            at = last[0] + last[1]
        first = self.region(iova)
        if (iova - first[0]) % self.logging:
            return errno.ENOTSUP, None
        end = min(at, iova + bitmap_bytes(length, page) * 8 * page)
        bits = 0
        for low, high in self.dirty:
            low, high = max(low, iova), min(high, end)
            if low < high:
                a, b = (low - iova) // page, (high - 1 - iova) // page
                bits |= ((1 << (b - a + 1)) - 1) << a
        self.dirty = {s for s in self.dirty if not (iova <= s[0] and s[1] <= end)}
        return 0, bits


@pytest.mark.parametrize("seed", range(40))
def test_against_a_model(seed):
    r = random.Random(seed)
    with attached(dma=True, migration=True, max_regions=100) as (ctx, client):
        f = memfd(512 * PAGE)
        regions, at = [], BASE + r.choice([0, 0, 0x200, PAGE])
        unit = r.choice([PAGE, PAGE, 512, 1])
        for _ in range(r.randint(1, 8)):
            size = r.randint(1, 40 * PAGE // unit) * unit
            kind = r.choice(["mmap", "mmap", "file io", "message"]) if regions else "mmap"
            client.map(at, size, None if kind == "message" else f, offset=r.randint(0, 100) * PAGE,
                       flags=RWF | (MAP_FILE_IO if kind == "file io" else 0))
            regions.append((at, size, kind != "message"))
            at += size + (r.choice([0, 0, 0, 0, PAGE, unit]))
        logging = PAGE << r.choice([0, 0, 1, 2, 4, 8])
        model = Model(regions, logging)
        client.log_start(logging)
        low, high = regions[0][0], regions[-1][0] + regions[-1][1]
        outcomes, marked = set(), 0
        for _ in range(40):
            for _ in range(r.randint(0, 5)):
                start, size, _ = r.choice(regions)
                offset = r.randrange(size)
                length = min(r.choice([1, PAGE, 3 * PAGE]), size - offset)
                put(ctx, start + offset, length)
                model.write(start + offset, length)
            page = PAGE >> 4 << r.randint(0, 12)
            region = r.choice(regions)
            iova = r.choice([region[0], region[0] + r.randrange(region[1]) // logging * logging, r.randrange(low, high)])
            to = r.choice([region[0] + region[1], high, r.randrange(low, high + 1)])
            length = max(to - iova, 1)
            number, bits = model.report(iova, length, page)
            outcomes.add(number)
            marked += bool(bits)
            got = client.report(iova, length, page=page, expect=number)
            assert got == bits, f"report of {iova:#x}+{length:#x} by {page:#x}: {got:#x}, not {bits:#x}"
        assert 0 in outcomes and marked
        os.close(f)


# --- large ----------------------------------------------------------------------------------------------
def large_report(client, iova, length, page):
    size = bitmap_bytes(length, page)
    data = struct.pack("<II", 32 + size, F_LOG_REPORT | FEATURE_GET) + report_data(iova, length, page)
    reply = exchange(client, message(77, DEVICE_FEATURE, data))
    assert (reply.msg_id, reply.cmd, reply.flags, reply.error) == (77, DEVICE_FEATURE, F_REPLY, 0)
    assert reply.size == 16 + 32 + size
    assert reply.payload[:32] == data
    return memoryview(reply.payload)[32:]


def set_bits(bitmap):
    """Numbers of the bits that are set."""
    data = bytes(bitmap)
    # re knows how to skip zeros quickly.
    return [8 * m.start() + bit for m in re.finditer(rb"[^\0]", data) for bit in range(8) if m[0][0] >> bit & 1]


@pytest.mark.parametrize("file_size", [64 * GIB, PAGE], ids=["sparse file", "file of a page"])
def test_64_gib_in_one_reply(device, file_size):
    ctx, client = device
    size = 64 * GIB
    f = named_memfd("log-64g", file_size)
    client.map(0, size, f)
    client.log_start()
    pages = [0, 1, 63, 64, 1 << 20, (1 << 23) + 5, (1 << 24) - 1]
    for page in pages:
        put(ctx, page * PAGE, 1)
    bitmap = large_report(client, 0, size, PAGE)
    assert len(bitmap) == 2 * MIB
    assert set_bits(bitmap) == pages
    assert not any(large_report(client, 0, size, PAGE))
    for page in pages:
        put(ctx, page * PAGE, 1)
    bitmap = large_report(client, 0, size, 8 * PAGE)
    assert set_bits(bitmap) == sorted({page // 8 for page in pages})
    put(ctx, size - 1, 1)
    assert set_bits(large_report(client, 0, size, PAGE // 2)) == [(1 << 25) - 2, (1 << 25) - 1]
    client.unmap(0, size)
    assert file_mappings("log-64g") == []
    os.close(f)


def test_8_tib_in_one_reply_of_256_mib_and_the_memory_is_given_back(device):
    ctx, client = device
    size = 8 << 40
    f = named_memfd("log-8t", size)
    client.map(0, size, f)
    client.log_start()
    pages = [0, 12345678, size // PAGE - 1]
    for page in pages:
        put(ctx, page * PAGE, 1)
    refused_report(client, errno.EINVAL, 0, size, page=PAGE // 2)
    before = resident()
    bitmap = large_report(client, 0, size, PAGE)
    assert len(bitmap) == 256 * MIB
    assert set_bits(bitmap) == pages
    bitmap.release()
    answers(client)
    assert resident() - before < 32 * MIB, "memory of the large reply is kept"
    os.close(f)
