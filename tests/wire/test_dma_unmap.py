"""DMA_UNMAP: regions go, one or all, with or without their dirty bitmap."""
import errno
import os
import struct

import pytest

from libvfu import *
from guest import *

ADDRESS = 0x100000
TOP = 1 << 64


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("unmap-test", 64 * PAGE)
    yield fd
    os.close(fd)


def request(argsz=24, flags=0, address=ADDRESS, size=PAGE, bitmap=None):
    """Bytes of the request; `bitmap` is (page size, bitmap size)."""
    data = struct.pack("<IIQQ", argsz, flags, address, size)
    return data if bitmap is None else data + struct.pack("<QQ", *bitmap)


# --- one region ----------------------------------------------------------------------
def test_the_reply_repeats_the_request(device):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    assert client.request(DMA_UNMAP, request()) == request()
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)]
    fails(errno.ENOENT, ctx.sgl, ADDRESS, 1)


@pytest.mark.parametrize("flags", [0, UNMAP_ALL])
def test_the_reply_is_24_bytes_also_when_more_came(device, flags):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    data = request(argsz=1 << 20, flags=flags, **({} if flags == 0 else dict(address=0, size=0)))
    assert client.request(DMA_UNMAP, data + b"further bytes" * 9) == data
    assert ctx.events[1:] == [("unregister", ADDRESS, PAGE)]


@pytest.mark.parametrize("flags", [MAP_READ | MAP_WRITE, MAP_READ | MAP_WRITE | MAP_FILE_IO], ids=["mmap", "file io"])
def test_descriptor_and_mapping_are_gone_after_the_unmap_but_not_in_the_callback(device, fd, flags):
    ctx, client = device
    mapped = 0 if flags & MAP_FILE_IO else 1
    seen = []
    ctx.on_dma_unregister = lambda i: seen.append((len(file_mappings("unmap-test")), len(fds_of("unmap-test"))))
    before = open_fds()
    client.map(ADDRESS, 2 * PAGE, fd, flags=flags)
    assert (len(file_mappings("unmap-test")), len(fds_of("unmap-test"))) == (mapped, 2)
    client.unmap(ADDRESS, 2 * PAGE)
    assert seen == [(mapped, 2)]
    assert (file_mappings("unmap-test"), fds_of("unmap-test")) == ([], [fd])
    assert open_fds() == before


def test_the_unregister_callback_gets_the_region_s_info(device, fd):
    ctx, client = device
    seen = []

    def note(i):
        seen.append((i.iova.base, i.iova.len, i.vaddr, i.mapping.base, i.mapping.len, i.page_size, i.prot))
    ctx.on_dma_register = ctx.on_dma_unregister = note
    client.map(ADDRESS + 5, PAGE, fd, offset=5, flags=MAP_READ)
    client.unmap(ADDRESS + 5, PAGE)
    assert len(seen) == 2 and seen[0] == seen[1]
    assert seen[0][:2] == (ADDRESS + 5, PAGE) and seen[0][2] == seen[0][3] + 5
    assert seen[0][4] == 2 * PAGE and seen[0][6] == 1


@pytest.mark.parametrize("all_", [False, True], ids=["one", "all"])
def test_the_region_can_be_translated_got_and_put_in_the_unregister_callback(device, fd, all_):
    ctx, client = device
    os.pwrite(fd, b"last words", 0x20)
    seen = []

    def unregister(_info):
        n, sg = ctx.sgl(ADDRESS + 0x20, 10)
        iov = ctx.sgl_get(sg)[0]
        seen.append((n, peek(iov.base, iov.len), sgl_read(ctx, sg, 10, DIRECT)))
        ctx.sgl_put(sg)
        mark_dirty(ctx, sg)
    ctx.on_dma_unregister = unregister
    client.log_start()
    client.map(ADDRESS, PAGE, fd)
    client.unmap(0, 0, UNMAP_ALL) if all_ else client.unmap(ADDRESS, PAGE)
    assert seen == [(1, b"last words", b"last words")]
    fails(errno.ENOENT, ctx.sgl, ADDRESS + 0x20, 10)


@pytest.mark.parametrize("address, size, expect", [
    (ADDRESS, PAGE - 1, errno.EINVAL), (ADDRESS, PAGE + 1, errno.EINVAL), (ADDRESS + 1, PAGE, errno.EINVAL),
    (ADDRESS + 1, PAGE - 1, errno.EINVAL), (ADDRESS + PAGE // 2, PAGE, errno.EINVAL), (ADDRESS + 1, 2 * PAGE, errno.EINVAL),
    (ADDRESS + 1, TOP - ADDRESS - 1, errno.EINVAL), (0, ADDRESS + 1, errno.EINVAL), (ADDRESS + 1, 1, errno.EINVAL),
    (ADDRESS + 2 * PAGE - 1, 1, errno.EINVAL), (0, ADDRESS + 2 * PAGE - 1, errno.EINVAL),
    (0, ADDRESS, errno.ENOENT), (ADDRESS + 2 * PAGE, 1, errno.ENOENT), (ADDRESS + 2 * PAGE, PAGE, errno.ENOENT),
    (ADDRESS, 0, errno.ENOENT), (ADDRESS + 1, 0, errno.ENOENT), (0, 0, errno.ENOENT), (TOP - 1, 1, errno.ENOENT),
    (0xfef00000, TOP - 0xfef00000, errno.ENOENT), (TOP - PAGE, 2 * PAGE, errno.ENOENT), (ADDRESS, TOP - 1, errno.ENOENT)])
def test_a_range_that_cuts_through_a_region_or_has_none(device, address, size, expect):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    client.map(ADDRESS + PAGE, PAGE)
    ctx.events.clear()
    client.unmap(address, size, expect=expect)
    assert ctx.events == []
    assert ctx.sgl(ADDRESS, 2 * PAGE, 2)[0] == 2


@pytest.mark.parametrize("address, size, gone", [
    (ADDRESS - 1, PAGE + 1, 1), (0, ADDRESS + PAGE, 1), (ADDRESS, 2 * PAGE, 2), (ADDRESS, 3 * PAGE - 1, 2), (ADDRESS, 3 * PAGE, 2),
    (ADDRESS, 3 * PAGE + 1, 3), (0, TOP - 1, 3), (ADDRESS, 1 << 44, 3), (ADDRESS - 7, TOP - ADDRESS + 7, 3), (1, TOP - 1, 3)])
def test_all_regions_in_a_range_go_in_ascending_order(device, address, size, gone):
    ctx, client = device
    regions = [(ADDRESS, PAGE), (ADDRESS + PAGE, PAGE), (ADDRESS + 3 * PAGE, 1)]
    for region in reversed(regions):
        client.map(*region)
    ctx.events.clear()
    data = request(address=address, size=size)
    assert client.request(DMA_UNMAP, data) == data
    assert ctx.events == [("unregister", *region) for region in regions[:gone]]
    for i, (start, _) in enumerate(regions):
        if i < gone:
            fails(errno.ENOENT, ctx.sgl, start, 1)
        else:
            assert ctx.sgl(start, 1)[0] == 1


def test_the_large_ranges_of_a_guest_s_iommu_at_a_reboot(device, fd):
    """The pages of the boot before must not stay."""
    ctx, client = device
    client.map(0xfffff000, PAGE, fd)
    client.unmap(0xfffc0000, 0x40000)
    client.map(0xfffff000, PAGE, fd, offset=PAGE)
    os.pwrite(fd, b"new", PAGE)
    _, sg = ctx.sgl(0xfffff000, 3)
    assert sgl_read(ctx, sg, 3, DIRECT) == b"new"
    client.map(TOP - PAGE, PAGE, fd)
    client.unmap(0x100000000, TOP - 0x100000000)
    assert ctx.events == [("register", 0xfffff000, PAGE), ("unregister", 0xfffff000, PAGE), ("register", 0xfffff000, PAGE),
                          ("register", TOP - PAGE, PAGE), ("unregister", TOP - PAGE, PAGE)]


def test_callbacks_of_a_range_still_have_what_is_not_yet_gone(device, fd):
    ctx, client = device
    for i in range(3):
        client.map(ADDRESS + i * PAGE, PAGE, fd)
    seen = []

    def unregister(info):
        seen.append([ctx.sgl(ADDRESS + i * PAGE, 1)[0] if ADDRESS + i * PAGE >= info.iova.base else None for i in range(3)])
        fails(errno.EEXIST, call, "vfu_setup_device_dma", ctx.p, 64, None, None)
        fails(errno.EBUSY, ctx.run)
    ctx.on_dma_unregister = unregister
    client.unmap(0, TOP - 1)
    assert seen == [[1, 1, 1], [None, 1, 1], [None, None, 1]]
    assert file_mappings("unmap-test") == []


def test_a_range_that_was_unmapped_is_unknown_and_can_be_mapped_anew(device, fd):
    ctx, client = device
    for _ in range(3):
        client.map(ADDRESS, PAGE, fd)
        client.unmap(ADDRESS, PAGE)
        client.unmap(ADDRESS, PAGE, expect=errno.ENOENT)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)] * 3


def test_the_neighbours_stay(device, fd):
    ctx, client = device
    for i in range(5):
        client.map(ADDRESS + i * PAGE, PAGE, fd, offset=i * PAGE)
    client.unmap(ADDRESS + 2 * PAGE, PAGE)
    assert ctx.sgl(ADDRESS, 2 * PAGE, 2)[0] == 2
    assert ctx.sgl(ADDRESS + 3 * PAGE, 2 * PAGE, 2)[0] == 2
    fails(errno.ENOENT, ctx.sgl, ADDRESS + PAGE, 2 * PAGE, 3)
    assert sum(m[1] for m in file_mappings("unmap-test")) == 4 * PAGE


def test_regions_mapped_and_unmapped_in_every_order(device):
    ctx, client = device
    order = [(i * 37) % 53 for i in range(53)]
    for i in order:
        client.map(ADDRESS + i * PAGE, PAGE)
    for i in order[::-2] + order[::-1][1::2]:
        client.unmap(ADDRESS + i * PAGE, PAGE)
        fails(errno.ENOENT, ctx.sgl, ADDRESS + i * PAGE, 1)
    assert len(ctx.events) == 106


# --- all of them -------------------------------------------------------------------------
def test_all_regions_go_in_ascending_order(device, fd):
    ctx, client = device
    before = open_fds()
    order = [5, 1, 60, 3, 17, 0, 63, 2]
    for i in order:
        client.map(ADDRESS + i * PAGE, PAGE, fd if i % 2 else None)
    client.map(TOP - PAGE, PAGE)
    ctx.events.clear()
    data = request(flags=UNMAP_ALL, address=0, size=0)
    assert client.request(DMA_UNMAP, data) == data
    assert ctx.events == [("unregister", ADDRESS + i * PAGE, PAGE) for i in sorted(order)] + [
        ("unregister", TOP - PAGE, PAGE)]
    assert open_fds() == before
    assert file_mappings("unmap-test") == []
    for i in order:
        fails(errno.ENOENT, ctx.sgl, ADDRESS + i * PAGE, 1)


def test_all_64_at_once(device):
    ctx, client = device
    for i in range(64):
        client.map(ADDRESS + i * PAGE, PAGE)
    client.map(ADDRESS + 64 * PAGE, PAGE, expect=errno.EINVAL)
    ctx.events.clear()
    client.unmap(0, 0, UNMAP_ALL)
    assert ctx.events == [("unregister", ADDRESS + i * PAGE, PAGE) for i in range(64)]
    for i in range(64):
        client.map(ADDRESS + i * PAGE, PAGE)


def test_all_of_none_succeeds(device):
    ctx, client = device
    client.unmap(0, 0, UNMAP_ALL)
    client.map(ADDRESS, PAGE)
    client.unmap(0, 0, UNMAP_ALL)
    client.unmap(0, 0, UNMAP_ALL)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)]


# --- refusals --------------------------------------------------------------------------
BITMAP = (PAGE, 8)
REFUSED = [
    ("flags 3", request(flags=3)), ("flags 3, all", request(flags=3, address=0, size=0)),
    ("flags 3 with bitmap", request(argsz=48, flags=3, bitmap=BITMAP)),
    ("flags 4", request(flags=4)), ("flags 6", request(flags=6, address=0, size=0)),
    ("flag 31", request(flags=1 << 31)), ("flag 31 and all", request(flags=1 << 31 | 2, address=0, size=0)),
    ("all with address", request(flags=2, size=0)), ("all with size", request(flags=2, address=0)),
    ("all with both", request(flags=2)),
    ("1 byte", request()[:1]), ("8 bytes", request()[:8]), ("23 bytes", request()[:23]),
    ("8 bytes, all", request(flags=2, address=0, size=0)[:8]),
    ("23 bytes, all", request(flags=2, address=0, size=0)[:23]),
    ("bitmap, 8 bytes", request(argsz=48, flags=1)[:8]),
    ("bitmap, 24 bytes", request(argsz=48, flags=1)),
    ("bitmap, 39 bytes", request(argsz=48, flags=1, bitmap=BITMAP)[:39]),
    ("argsz 0", request(argsz=0)), ("argsz 23", request(argsz=23)),
    ("argsz 23, all", request(argsz=23, flags=2, address=0, size=0)),
    ("bitmap, argsz 24", request(argsz=24, flags=1, bitmap=BITMAP)),
    ("bitmap, argsz 40", request(argsz=40, flags=1, bitmap=BITMAP)),
    ("bitmap, argsz 47", request(argsz=47, flags=1, bitmap=BITMAP)),
    ("argsz above 1 MiB", request(argsz=MIB + 1)),
    ("argsz far above 1 MiB", request(argsz=0xffffffff)),
    ("argsz above 1 MiB, all", request(argsz=MIB + 1, flags=2, address=0, size=0)),
    ("bitmap, argsz above 1 MiB", request(argsz=MIB + 1, flags=1, bitmap=BITMAP)),
    ("bitmap of 2^64 - 1 bytes", request(argsz=48, flags=1, bitmap=(PAGE, TOP - 1))),
    ("bitmap of 2^64 - 8 bytes", request(argsz=32, flags=1, bitmap=(PAGE, TOP - 8))),
    ("bitmap of 2^64 - 8 bytes, argsz 48", request(argsz=48, flags=1, bitmap=(PAGE, TOP - 8))),
    ("bitmap of 2^64 - 40 bytes, argsz 0", request(argsz=0, flags=1, bitmap=(PAGE, TOP - 40))),
    ("bitmap size 0", request(argsz=48, flags=1, bitmap=(PAGE, 0))),
    ("bitmap too small", request(argsz=48, flags=1, bitmap=(PAGE, 7))),
    ("bitmap too large", request(argsz=128, flags=1, bitmap=(PAGE, 16))),
    ("bitmap one byte too large", request(argsz=128, flags=1, bitmap=(PAGE, 9))),
    ("page size 0", request(argsz=48, flags=1, bitmap=(0, 8))),
    ("page size above the length", request(argsz=48, flags=1, bitmap=(2 * PAGE, 8))),
    ("page size no power of two", request(argsz=48, flags=1, bitmap=(3000, 8))),
]


@pytest.mark.parametrize("data", [r[1] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_refused_unmap_removes_nothing(device, fd, data):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd)
    client.log_start()
    put(ctx, ADDRESS, 1)
    ctx.events.clear()
    before = open_fds()
    client.request(DMA_UNMAP, data, fds=[fd], expect=errno.EINVAL)
    assert ctx.events == []
    assert open_fds() == before
    assert sum(m[1] for m in file_mappings("unmap-test")) == PAGE
    assert client.report(ADDRESS, PAGE) == 1


# --- with the dirty bitmap ---------------------------------------------------------------
def test_unmap_with_bitmap(device, fd):
    ctx, client = device
    client.map(ADDRESS, 64 * PAGE, fd)
    client.log_start()
    put(ctx, ADDRESS + 3 * PAGE, 2 * PAGE)
    put(ctx, ADDRESS + 63 * PAGE, 1)
    before = len(fds_of("unmap-test"))
    data = request(argsz=48, flags=1, size=64 * PAGE, bitmap=(PAGE, 8))
    p = client.request(DMA_UNMAP, data)
    assert p == data + struct.pack("<Q", 1 << 63 | 0x18)
    assert ctx.events[-1] == ("unregister", ADDRESS, 64 * PAGE)
    assert (len(fds_of("unmap-test")), before) == (1, 2)
    assert file_mappings("unmap-test") == []
    client.report(ADDRESS, PAGE, expect=errno.ENOENT)


def test_unmap_with_bitmap_ignores_further_bytes_and_takes_a_larger_argsz(device, fd):
    ctx, client = device
    client.map(ADDRESS, 32 * PAGE, fd)
    client.log_start()
    put(ctx, ADDRESS, 1)
    data = request(argsz=MIB, flags=1, size=32 * PAGE, bitmap=(PAGE, 8))
    assert client.request(DMA_UNMAP, data + b"x" * 8) == data + struct.pack("<Q", 1)


@pytest.mark.parametrize("page, size, bits", [
    (PAGE // 2, 8, 0xff003), (PAGE * 2, 8, 0x19), (PAGE * 16, 8, 1), (PAGE // 4, 16, 0xffff00000f)])
def test_unmap_with_bitmap_at_another_page_size(device, fd, page, size, bits):
    ctx, client = device
    client.map(ADDRESS, 32 * PAGE, fd)
    client.log_start()
    for first, n in ((0, 1), (6, 4)):
        put(ctx, ADDRESS + first * PAGE, n * PAGE)
    data = request(argsz=40 + size, flags=1, size=32 * PAGE, bitmap=(page, size))
    assert client.request(DMA_UNMAP, data) == data + bits.to_bytes(size, "little")


def test_unmap_with_bitmap_when_logging_is_off(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd)
    client.unmap(ADDRESS, PAGE, 1, expect=errno.EINVAL)
    client.request(DMA_UNMAP, request(argsz=48, flags=1, bitmap=BITMAP), expect=errno.EINVAL)
    assert ctx.events == [("register", ADDRESS, PAGE)]
    assert ctx.sgl(ADDRESS, PAGE)[0] == 1


def test_unmap_with_bitmap_of_a_message_region(device):
    """It is never dirty: the client knows itself what it wrote there."""
    ctx, client = device
    client.map(ADDRESS, PAGE)
    client.log_start()
    put(ctx, ADDRESS, PAGE)
    data = request(argsz=48, flags=1, bitmap=BITMAP)
    assert client.request(DMA_UNMAP, data) == data + bytes(8)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)]


@pytest.mark.parametrize("address, size, nbytes", [
    (ADDRESS, 64 * PAGE, 8), (ADDRESS, 16 * PAGE, 8), (ADDRESS + 16 * PAGE, 16 * PAGE, 8), (ADDRESS, 65 * PAGE, 16)])
def test_unmap_with_bitmap_of_no_exact_region_clears_no_bit(device, fd, address, size, nbytes):
    ctx, client = device
    client.map(ADDRESS, 32 * PAGE, fd)
    client.map(ADDRESS + 32 * PAGE, 32 * PAGE, fd, offset=32 * PAGE)
    client.log_start()
    put(ctx, ADDRESS + 7 * PAGE, 1)
    put(ctx, ADDRESS + 17 * PAGE, 1)
    put(ctx, ADDRESS + 40 * PAGE, 1)
    ctx.events.clear()
    client.request(DMA_UNMAP, request(argsz=40 + nbytes, flags=1, address=address, size=size, bitmap=(PAGE, nbytes)),
                   expect=errno.ENOENT)
    assert ctx.events == []
    assert client.report(ADDRESS, 64 * PAGE) == 1 << 7 | 1 << 17 | 1 << 40


def test_unmap_of_a_logged_region_leaves_the_other_region_s_bits(device, fd):
    ctx, client = device
    client.map(ADDRESS, 32 * PAGE, fd)
    client.map(ADDRESS + 32 * PAGE, 32 * PAGE, fd, offset=32 * PAGE)
    client.log_start()
    put(ctx, ADDRESS, 32 * PAGE)
    put(ctx, ADDRESS + 35 * PAGE, 1)
    client.unmap(ADDRESS, 32 * PAGE)
    client.report(ADDRESS, 32 * PAGE, expect=errno.ENOENT)
    assert client.report(ADDRESS + 32 * PAGE, 32 * PAGE) == 8


def test_a_region_mapped_again_begins_clean(device, fd):
    ctx, client = device
    client.log_start()
    client.map(ADDRESS, 32 * PAGE, fd)
    put(ctx, ADDRESS, 32 * PAGE)
    client.unmap(ADDRESS, 32 * PAGE)
    client.map(ADDRESS, 32 * PAGE, fd)
    assert client.report(ADDRESS, 32 * PAGE) == 0


def test_what_the_unregister_callback_puts_comes_too_late_for_the_bitmap_and_does_no_harm(device, fd):
    """The bitmap is fetched first."""
    ctx, client = device
    client.map(ADDRESS, 32 * PAGE, fd)
    client.log_start()
    put(ctx, ADDRESS, 1)
    ctx.on_dma_unregister = lambda i: put(ctx, ADDRESS + 5 * PAGE, 1)
    data = request(argsz=48, flags=1, size=32 * PAGE, bitmap=(PAGE, 8))
    assert client.request(DMA_UNMAP, data) == data + struct.pack("<Q", 1)


def test_the_largest_bitmap_of_an_unmap(device):
    """argsz may be 1 MiB: 40 bytes of request and 1 MiB - 40 of bitmap."""
    ctx, client = device
    nbytes = MIB - 40
    size = nbytes * 8 * PAGE
    f = named_memfd("unmap-large", size)
    client.map(0, size, f)
    client.log_start()
    put(ctx, size - 1, 1)
    data = request(argsz=MIB, flags=1, address=0, size=size, bitmap=(PAGE, nbytes))
    reply = exchange(client, message(7, DMA_UNMAP, data))
    assert (reply.msg_id, reply.flags, reply.size) == (7, F_REPLY, 16 + 40 + nbytes)
    assert reply.payload[:40] == data
    assert reply.payload[-1] == 0x80 and not any(reply.payload[40:-1])
    assert file_mappings("unmap-large") == []
    client.map(0, size + PAGE, f)
    data = request(argsz=MIB, flags=1, address=0, size=size + PAGE, bitmap=(PAGE, nbytes + 8))
    client.request(DMA_UNMAP, data, expect=errno.EINVAL)
    assert len(file_mappings("unmap-large")) == 1
    os.close(f)
