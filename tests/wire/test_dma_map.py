"""DMA_MAP: regions of the client's memory come into force."""
import ctypes as c
import errno
import os
import resource
import socket
import struct

import pytest

from libvfu import *
from guest import *

RW_FLAGS = MAP_READ | MAP_WRITE
ADDRESS = 0x10000
TIB = 1 << 40
LIMIT = 8 * TIB
TOP = 1 << 64


@pytest.fixture
def device():
    with attached(dma=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("map-test", 4 * PAGE, bytes(range(256)) * 64)
    yield fd
    os.close(fd)


def payload(argsz=32, flags=RW_FLAGS, offset=0, address=ADDRESS, size=PAGE):
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def info(i):
    """vfu_dma_info_t as a tuple."""
    return ((i.iova.base or 0, i.iova.len), i.vaddr, (i.mapping.base, i.mapping.len), i.page_size, i.prot)


def infos(ctx):
    """Collects the info of each register and unregister callback."""
    seen = []
    ctx.on_dma_register = ctx.on_dma_unregister = lambda i: seen.append(info(i))
    return seen


def file_page(fd):
    return max(PAGE, os.fstat(fd).st_blksize)


# --- success -----------------------------------------------------------------------
@pytest.mark.parametrize("flags", [0, MAP_READ, MAP_WRITE, RW_FLAGS])
def test_the_reply_has_no_payload_and_the_region_is_in_force(device, flags):
    ctx, client = device
    assert client.map(ADDRESS, PAGE, flags=flags) == b""
    assert ctx.events == [("register", ADDRESS, PAGE)]
    assert client.unmap(ADDRESS, PAGE) == struct.pack("<IIQQ", 24, 0, ADDRESS, PAGE)


def test_info_of_a_message_region(device):
    ctx, client = device
    seen = infos(ctx)
    client.map(ADDRESS, 3 * PAGE)
    assert seen == [((ADDRESS, 3 * PAGE), None, (None, 0), PAGE, 3)]


def test_info_of_a_file_io_region(device, fd):
    ctx, client = device
    seen = infos(ctx)
    client.map(ADDRESS, 2 * PAGE, fd, flags=RW_FLAGS | MAP_FILE_IO)
    assert seen == [((ADDRESS, 2 * PAGE), None, (None, 0), file_page(fd), 3)]
    assert file_mappings("map-test") == []


@pytest.mark.parametrize("flags", [RW_FLAGS, RW_FLAGS | MAP_MMAP], ids=["neither flag", "MMAP"])
def test_info_of_a_mapped_region(device, fd, flags):
    ctx, client = device
    seen = infos(ctx)
    client.map(ADDRESS, 2 * PAGE, fd, offset=PAGE, flags=flags)
    (start, length, perms, offset), = file_mappings("map-test")
    assert (length, perms, offset) == (2 * PAGE, "rw-s", PAGE)
    assert seen == [((ADDRESS, 2 * PAGE), start, (start, 2 * PAGE), file_page(fd), 3)]


@pytest.mark.parametrize("flags, perms", [(0, "---s"), (MAP_READ, "r--s"), (MAP_WRITE, "-w-s"), (RW_FLAGS, "rw-s")])
def test_the_mapping_is_shared_and_has_the_protection_of_the_flags(device, fd, flags, perms):
    ctx, client = device
    seen = infos(ctx)
    client.map(ADDRESS, PAGE, fd, flags=flags)
    assert [m[2] for m in file_mappings("map-test")] == [perms]
    assert seen[0][4] == flags


def test_the_mapping_stays_out_of_core_dumps(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd)
    with open("/proc/self/smaps") as f:
        text = f.read().split("/memfd:map-test ")[1]
    flags = next(line for line in text.splitlines() if line.startswith("VmFlags:"))
    assert "dd" in flags.split()


@pytest.mark.parametrize("delta, size, mapped", [
    (0x234, PAGE - 0x234, PAGE), (0x234, PAGE - 0x233, 2 * PAGE), (1, PAGE, 2 * PAGE), (PAGE - 1, 2, 2 * PAGE),
    (PAGE + 5, 2 * PAGE - 5, 2 * PAGE), (0, 1, PAGE), (5, 3 * PAGE, 4 * PAGE)])
def test_an_offset_inside_a_page_is_mapped_from_its_page_to_the_region_s_end(device, fd, delta, size, mapped):
    ctx, client = device
    seen = infos(ctx)
    client.map(ADDRESS + delta, size, fd, offset=delta)
    (start, length, _, offset), = file_mappings("map-test")
    assert (length, offset) == (mapped, delta // PAGE * PAGE)
    assert seen[0][1] == start + delta % PAGE
    assert seen[0][2] == (start, mapped)
    n, sg = ctx.sgl(ADDRESS + delta, size)
    iov = ctx.sgl_get(sg)[0]
    assert (iov.base, iov.len) == (start + delta % PAGE, size)
    poke(iov.base + size - 1, b"\xfe")
    assert os.pread(fd, 1, delta + size - 1) == b"\xfe"
    assert peek(iov.base, size) == os.pread(fd, size, delta)


def test_the_pointer_of_the_register_callback_is_good_until_unregister_returns(device, fd):
    ctx, client = device
    pointers, contents = [], []
    ctx.on_dma_register = lambda i: pointers.append((c.addressof(i), info(i)))

    def unregister(i):
        contents.append(info(i))
        contents.append(info(dma_info.from_address(pointers[0][0])))
    ctx.on_dma_unregister = unregister
    client.map(ADDRESS, PAGE, fd)
    client.map(ADDRESS + 0x100000, PAGE)
    assert info(dma_info.from_address(pointers[0][0])) == pointers[0][1]
    client.unmap(ADDRESS, PAGE)
    assert contents == [pointers[0][1]] * 2


def test_the_region_can_be_translated_and_accessed_in_the_register_callback(device, fd):
    ctx, client = device
    seen = []

    def register(_info):
        n, sg = ctx.sgl(ADDRESS + 0x10, 0x20)
        iov = ctx.sgl_get(sg)[0]
        seen.append((n, peek(iov.base, iov.len)))
        ctx.sgl_put(sg)
    ctx.on_dma_register = register
    client.map(ADDRESS, PAGE, fd)
    assert seen == [(1, bytes(range(0x10, 0x30)))]


def test_more_payload_and_a_larger_argsz_are_fine(device):
    ctx, client = device
    client.request(DMA_MAP, payload(argsz=33) + b"more")
    client.request(DMA_MAP, payload(argsz=0xffffffff, address=ADDRESS + PAGE))
    assert ctx.events == [("register", ADDRESS, PAGE), ("register", ADDRESS + PAGE, PAGE)]


def test_touching_regions_do_not_overlap(device):
    ctx, client = device
    for address, size in ((ADDRESS, PAGE), (ADDRESS + PAGE, 5), (ADDRESS + PAGE + 5, 1), (ADDRESS - 3, 3)):
        client.map(address, size)
    assert len(ctx.events) == 4
    assert ctx.sgl(ADDRESS - 3, PAGE + 9, 4)[0] == 4


def test_the_topmost_page(device, fd):
    ctx, client = device
    client.map(TOP - PAGE, PAGE, fd)
    assert ctx.events == [("register", TOP - PAGE, PAGE)]
    n, sg = ctx.sgl(TOP - 2, 2)
    assert (n, sg[0].dma_addr, sg[0].offset, sg[0].length) == (1, TOP - PAGE, PAGE - 2, 2)
    assert client.unmap(TOP - PAGE, PAGE) == struct.pack("<IIQQ", 24, 0, TOP - PAGE, PAGE)


def test_the_largest_region(device):
    ctx, client = device
    client.map(0, LIMIT)
    assert ctx.sgl(LIMIT - 1, 1)[0] == 1
    client.map(TOP - LIMIT, LIMIT)
    assert ctx.sgl(TOP - 1, 1)[0] == 1


def test_only_the_first_descriptor_is_used_and_the_others_are_closed(device, fd):
    ctx, client = device
    other = memfd(PAGE, b"\xff" * PAGE)
    before = open_fds()
    client.request(DMA_MAP, payload(), fds=[fd, other, other])
    assert len(open_fds()) == len(before) + 1
    n, sg = ctx.sgl(ADDRESS, 4)
    assert peek(ctx.sgl_get(sg)[0].base, 4) == b"\0\1\2\3"
    client.unmap(ADDRESS, PAGE)
    assert open_fds() == before
    os.close(other)


def test_the_descriptor_that_is_kept_closes_on_exec(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd, flags=RW_FLAGS | MAP_FILE_IO)
    kept, = set(fds_of("map-test")) - {fd}
    assert not os.get_inheritable(kept)


def test_file_io_takes_regular_files_and_no_character_devices(device, tmp_path):
    ctx, client = device
    path = tmp_path / "f"
    path.write_bytes(b"z" * PAGE)
    f, zero = os.open(path, os.O_RDWR), os.open("/dev/zero", os.O_RDWR)
    client.map(ADDRESS, PAGE, f, flags=RW_FLAGS | MAP_FILE_IO)
    client.map(ADDRESS + PAGE, PAGE, zero, flags=RW_FLAGS | MAP_FILE_IO, expect=errno.EINVAL)
    os.close(f)
    os.close(zero)
    n, sg = ctx.sgl(ADDRESS, 2)
    assert sgl_read(ctx, sg, 2, DIRECT) == b"zz"


def test_a_read_only_descriptor_serves_a_region_without_write_permission(device, fd):
    ctx, client = device
    ro = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    client.map(ADDRESS, PAGE, ro, flags=MAP_READ)
    os.close(ro)
    n, sg = ctx.sgl(ADDRESS, 3, prot=PROT_READ)
    assert peek(ctx.sgl_get(sg)[0].base, 3) == b"\0\1\2"


# --- the same again ------------------------------------------------------------------
@pytest.mark.parametrize("flags, again", [
    (RW_FLAGS, RW_FLAGS), (RW_FLAGS | MAP_MMAP, RW_FLAGS), (RW_FLAGS, RW_FLAGS | MAP_MMAP),
    (RW_FLAGS | MAP_FILE_IO, RW_FLAGS | MAP_FILE_IO), (MAP_READ, MAP_READ)])
def test_an_identical_map_succeeds_and_closes_its_descriptor_without_a_second_callback(device, fd, flags, again):
    ctx, client = device
    before = open_fds()
    client.map(ADDRESS, PAGE, fd, offset=PAGE, flags=flags)
    one, maps = open_fds(), file_mappings("map-test")
    twin = os.dup(fd)
    client.map(ADDRESS, PAGE, twin, offset=PAGE, flags=again)
    os.close(twin)
    assert (open_fds(), file_mappings("map-test")) == (one, maps)
    assert ctx.events == [("register", ADDRESS, PAGE)]
    client.unmap(ADDRESS, PAGE)
    client.unmap(ADDRESS, PAGE, expect=errno.ENOENT)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)]
    assert open_fds() == before
    assert file_mappings("map-test") == []


def test_an_identical_map_of_a_message_region(device):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    client.map(ADDRESS, PAGE)
    assert ctx.events == [("register", ADDRESS, PAGE)]
    client.unmap(ADDRESS, PAGE)
    client.unmap(ADDRESS, PAGE, expect=errno.ENOENT)


def test_an_identical_map_is_no_further_region():
    with attached(dma=True, max_regions=1) as (ctx, client):
        client.map(ADDRESS, PAGE)
        client.map(ADDRESS, PAGE)
        client.map(ADDRESS + PAGE, PAGE, expect=errno.EINVAL)


@pytest.mark.parametrize("what", ["offset", "fewer permissions", "no permission", "other file", "file io", "message"])
def test_an_equal_range_with_other_attributes_exists_already(device, fd, what):
    ctx, client = device
    other = memfd(4 * PAGE)
    client.map(ADDRESS, PAGE, fd)
    before, maps = open_fds(), file_mappings("map-test")
    kw = {"offset": dict(fd=fd, offset=PAGE), "fewer permissions": dict(fd=fd, flags=MAP_READ),
          "no permission": dict(fd=fd, flags=0), "other file": dict(fd=other),
          "file io": dict(fd=fd, flags=RW_FLAGS | MAP_FILE_IO), "message": dict()}[what]
    client.map(ADDRESS, PAGE, expect=errno.EEXIST, **kw)
    assert (open_fds(), file_mappings("map-test")) == (before, maps)
    assert ctx.events == [("register", ADDRESS, PAGE)]
    n, sg = ctx.sgl(ADDRESS, 3)
    assert peek(ctx.sgl_get(sg)[0].base, 3) == b"\0\1\2"
    os.close(other)


@pytest.mark.parametrize("what", ["descriptor", "permissions"])
def test_an_equal_range_of_a_message_region_with_other_attributes_exists_already(device, fd, what):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    before = open_fds()
    kw = dict(fd=fd) if what == "descriptor" else dict(flags=MAP_READ)
    client.map(ADDRESS, PAGE, expect=errno.EEXIST, **kw)
    assert open_fds() == before
    assert ctx.events == [("register", ADDRESS, PAGE)]
    assert not is_mappable(ctx, ctx.sgl(ADDRESS, 1)[1])


def kcmp_works(a, b):
    libc = c.CDLL(None, use_errno=True)
    r = libc.syscall(312, os.getpid(), os.getpid(), 0, a, b)
    return r >= 0


def test_a_file_opened_twice_is_two_files(device, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * PAGE)
    a, b = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    if not kcmp_works(a, b):
        pytest.skip("the kernel cannot compare open files")
    ctx, client = device
    client.map(ADDRESS, PAGE, a)
    before = open_fds()
    client.map(ADDRESS, PAGE, b, expect=errno.EEXIST)
    assert open_fds() == before
    client.map(ADDRESS, PAGE, a)
    os.close(a)
    os.close(b)


@pytest.mark.parametrize("address, size", [
    (ADDRESS - PAGE, PAGE + 1), (ADDRESS - 1, 2), (ADDRESS, 1), (ADDRESS, PAGE), (ADDRESS, 3 * PAGE),
    (ADDRESS + PAGE, 1), (ADDRESS + 2 * PAGE - 1, 1), (ADDRESS + 2 * PAGE - 1, PAGE),
    (ADDRESS - 1, 2 * PAGE + 2), (0, ADDRESS + 1), (ADDRESS - 1, 2 * PAGE + 1)])
@pytest.mark.parametrize("with_fd", [False, True], ids=["message", "mapped"])
def test_an_overlap_exists_already_and_the_region_stays_as_it_was(device, fd, address, size, with_fd):
    ctx, client = device
    client.map(ADDRESS, 2 * PAGE, fd)
    before, maps = open_fds(), file_mappings("map-test")
    client.map(address, size, fd if with_fd else None, expect=errno.EEXIST)
    assert (open_fds(), file_mappings("map-test")) == (before, maps)
    assert ctx.events == [("register", ADDRESS, 2 * PAGE)]
    assert ctx.sgl(ADDRESS, 2 * PAGE)[0] == 1
    fails(errno.ENOENT, ctx.sgl, ADDRESS - 1, 1)
    fails(errno.ENOENT, ctx.sgl, ADDRESS + 2 * PAGE, 1)


def test_overlap_with_one_of_many_regions(device):
    ctx, client = device
    for i in range(20):
        client.map(ADDRESS + 2 * i * PAGE, PAGE)
    for i in range(19):
        client.map(ADDRESS + (2 * i + 1) * PAGE - 1, PAGE, expect=errno.EEXIST)
        client.map(ADDRESS + (2 * i + 1) * PAGE + 1, PAGE, expect=errno.EEXIST)
        client.map(ADDRESS + (2 * i + 1) * PAGE, PAGE)


# --- refusals ------------------------------------------------------------------------
def kinds():
    a, b = socket.socketpair()
    r, w = os.pipe()
    ro = os.open("/dev/null", os.O_RDONLY)
    made = {"memfd": memfd(4 * PAGE), "pipe": r, "socket": a.fileno(), "eventfd": os.eventfd(0),
            "read only": None, "write only": None, "null": ro}
    made["read only"] = os.open(f"/proc/self/fd/{made['memfd']}", os.O_RDONLY)
    made["write only"] = os.open(f"/proc/self/fd/{made['memfd']}", os.O_WRONLY)
    made["directory"] = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    return made, [a, b, w]


@pytest.fixture(scope="module")
def descriptors():
    made, others = kinds()
    yield made
    for f in made.values():
        if f != others[0].fileno():
            os.close(f)
    others[0].close()
    others[1].close()
    os.close(others[2])


REFUSED = [
    ("payload of 1 byte", b"\x20", None, errno.EINVAL),
    ("payload of 31 bytes", payload()[:31], None, errno.EINVAL),
    ("payload of 31 bytes, descriptor", payload()[:31], "memfd", errno.EINVAL),
    ("argsz 31", payload(argsz=31), None, errno.EINVAL),
    ("argsz 0", payload(argsz=0), "memfd", errno.EINVAL),
    ("MMAP without descriptor", payload(flags=RW_FLAGS | MAP_MMAP), None, errno.EINVAL),
    ("FILE_IO without descriptor", payload(flags=RW_FLAGS | MAP_FILE_IO), None, errno.EINVAL),
    ("both modes", payload(flags=RW_FLAGS | MAP_MMAP | MAP_FILE_IO), "memfd", errno.EINVAL),
    ("unknown flag 16", payload(flags=RW_FLAGS | 16), "memfd", errno.EINVAL),
    ("unknown flag 16 without descriptor", payload(flags=RW_FLAGS | 16), None, errno.EINVAL),
    ("unknown flag 31", payload(flags=RW_FLAGS | 1 << 31), "memfd", errno.EINVAL),
    ("flags before size", payload(flags=16, size=LIMIT + 1), None, errno.EINVAL),
    ("above the limit", payload(size=LIMIT + 1), None, errno.ENOSPC),
    ("above the limit, descriptor", payload(size=LIMIT + PAGE), "memfd", errno.ENOSPC),
    ("far above the limit", payload(address=0, size=TOP - 1), "memfd", errno.ENOSPC),
    ("above the limit and wrapping", payload(address=TOP - PAGE, size=LIMIT + 1), None, errno.ENOSPC),
    ("size 0", payload(size=0), None, errno.EINVAL),
    ("size 0, descriptor", payload(size=0), "memfd", errno.EINVAL),
    ("size 0, FILE_IO", payload(size=0, flags=RW_FLAGS | MAP_FILE_IO), "memfd", errno.EINVAL),
    ("size 0 at 0", payload(address=0, size=0), None, errno.EINVAL),
    ("wrapping by a byte", payload(address=TOP - PAGE, size=PAGE + 1), None, errno.EINVAL),
    ("wrapping, descriptor", payload(address=TOP - PAGE, size=2 * PAGE), "memfd", errno.EINVAL),
    ("wrapping from the last byte", payload(address=TOP - 1, size=2), None, errno.EINVAL),
    ("mapping read only for writing", payload(), "read only", errno.EACCES),
    ("mapping write only", payload(flags=MAP_WRITE), "write only", errno.EACCES),
    ("mapping a pipe", payload(flags=MAP_READ), "pipe", errno.ENODEV),
    ("mapping a socket", payload(), "socket", errno.ENODEV),
    ("mapping an eventfd", payload(flags=RW_FLAGS | MAP_MMAP), "eventfd", errno.ENODEV),
    ("mapping a directory", payload(flags=MAP_READ), "directory", errno.ENODEV),
    ("file I/O on a pipe", payload(flags=RW_FLAGS | MAP_FILE_IO), "pipe", errno.EINVAL),
    ("file I/O on a socket", payload(flags=RW_FLAGS | MAP_FILE_IO), "socket", errno.EINVAL),
    ("file I/O on an eventfd", payload(flags=RW_FLAGS | MAP_FILE_IO), "eventfd", errno.EINVAL),
    ("file I/O on a directory", payload(flags=MAP_READ | MAP_FILE_IO), "directory", errno.EINVAL),
]


REFUSED = [(*r, n) for r in REFUSED for n in ((0,) if r[2] is None else (0, 2))]


@pytest.mark.parametrize("data, kind, number, extra", [r[1:] for r in REFUSED],
                         ids=[r[0] + (", two more descriptors" if r[4] else "") for r in REFUSED])
def test_a_refused_map_leaves_no_region_and_no_descriptor(device, descriptors, data, kind, number, extra):
    ctx, client = device
    client.map(0x40000000, PAGE)
    ctx.events.clear()
    before = open_fds()
    fds = [] if kind is None else [descriptors[kind]] + [descriptors["memfd"]] * extra
    client.request(DMA_MAP, data, fds=fds, expect=number)
    assert open_fds() == before
    assert ctx.events == []
    if len(data) >= 24:
        address = struct.unpack_from("<Q", data, 16)[0]
        fails(errno.ENOENT, ctx.sgl, address, 1)
    assert ctx.sgl(0x40000000, PAGE)[0] == 1


@pytest.mark.parametrize("flags", [RW_FLAGS, RW_FLAGS | MAP_FILE_IO], ids=["mmap", "file io"])
def test_the_client_s_own_end_of_the_connection_is_refused_and_closed(flags):
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        before = open_fds()
        number = errno.EINVAL if flags & MAP_FILE_IO else errno.ENODEV
        client.map(ADDRESS, PAGE, client.sock.fileno(), flags=flags, expect=number)
        assert open_fds() == before
        client.close()
        fails(errno.ENOTCONN, ctx.run)


def test_an_offset_that_no_file_can_have(device, fd):
    ctx, client = device
    for offset in (TOP - PAGE, TOP - 1, (1 << 63) - PAGE, 1 << 63):
        before = open_fds()
        client.send(DMA_MAP, payload(offset=offset, size=2 * PAGE), fds=[fd])
        assert ctx.run() == 1
        reply = client.recv()
        assert (reply.flags, reply.payload) == (F_REPLY | F_ERROR, b"")
        assert reply.error in (errno.EINVAL, errno.EOVERFLOW)
        assert open_fds() == before
        assert ctx.events == []
        assert file_mappings("map-test") == []


def test_descriptors_and_mappings_after_a_thousand_refused_maps(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd)
    before, maps = open_fds(), file_mappings("map-test")
    for i in range(1000):
        client.map(ADDRESS + i % PAGE, PAGE, fd, offset=PAGE, expect=errno.EEXIST)
    assert (open_fds(), file_mappings("map-test")) == (before, maps)


# --- the limit on the number of regions -----------------------------------------------
def test_the_limit_on_the_number_of_regions(fd):
    with attached(dma=True, max_regions=64) as (ctx, client):
        for i in range(64):
            client.map(ADDRESS + i * PAGE, PAGE)
        before = open_fds()
        client.map(ADDRESS + 64 * PAGE, PAGE, expect=errno.EINVAL)
        client.map(ADDRESS + 64 * PAGE, PAGE, fd, expect=errno.EINVAL)
        assert open_fds() == before
        assert len(ctx.events) == 64
        client.unmap(ADDRESS, PAGE)
        client.map(ADDRESS + 64 * PAGE, PAGE)


def test_an_overlap_is_told_before_the_limit_and_the_limit_before_the_descriptor(fd):
    r, w = os.pipe()
    with attached(dma=True, max_regions=1) as (ctx, client):
        client.map(ADDRESS, PAGE)
        client.map(ADDRESS + 1, PAGE, expect=errno.EEXIST)
        client.map(ADDRESS, PAGE, flags=MAP_READ, expect=errno.EEXIST)
        client.map(ADDRESS + PAGE, PAGE, r, expect=errno.EINVAL)
        client.map(ADDRESS + PAGE, LIMIT + 1, expect=errno.ENOSPC)
    os.close(r)
    os.close(w)


def test_the_limit_is_a_whole_size_t():
    with attached(dma=True, max_regions=1 << 32) as (ctx, client):
        client.map(ADDRESS, PAGE)
        assert ctx.events == [("register", ADDRESS, PAGE)]
    with attached(dma=True, max_regions=(1 << 64) - 1) as (ctx, client):
        client.map(ADDRESS, PAGE)
        assert ctx.events == [("register", ADDRESS, PAGE)]


def test_a_limit_of_no_region():
    with attached(dma=True, max_regions=0) as (ctx, client):
        client.map(ADDRESS, PAGE, expect=errno.EINVAL)
        assert ctx.events == []


# --- vfu_setup_device_dma ---------------------------------------------------------------
@pytest.mark.parametrize("data", [b"x", payload(), payload(flags=0xffffffff), payload(size=TOP - 1)])
@pytest.mark.parametrize("cmd", [DMA_MAP, DMA_UNMAP])
def test_without_dma_map_and_unmap_succeed_and_do_nothing(fd, data, cmd):
    with attached(dma=False, quiesce=True) as (ctx, client):
        before = open_fds()
        expected = data[:24].ljust(24, b"\0") if cmd == DMA_UNMAP else b""
        assert client.request(cmd, data, fds=[fd, fd]) == expected
        assert open_fds() == before
        assert ctx.events == []
        assert file_mappings("map-test") == []


def test_setting_dma_up_again_replaces_the_callbacks_and_the_limit():
    with attached(dma=True, max_regions=64) as (ctx, client):
        seen = []
        call("vfu_setup_device_dma", ctx.p, 1, ctx.cb(DMA_CB, lambda _c, i: seen.append("register")),
             ctx.cb(DMA_CB, lambda _c, i: seen.append("unregister")))
        client.map(ADDRESS, PAGE)
        client.map(ADDRESS + PAGE, PAGE, expect=errno.EINVAL)
        client.unmap(ADDRESS, PAGE)
        assert seen == ["register", "unregister"]
        assert ctx.events == []


def test_setting_dma_up_again_while_regions_exist(device):
    ctx, client = device
    client.map(ADDRESS, PAGE)
    fails(errno.EEXIST, call, "vfu_setup_device_dma", ctx.p, 64, None, None)
    client.unmap(ADDRESS, PAGE)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)]


def test_callbacks_are_optional(fd):
    with Ctx(realize=False) as ctx:
        call("vfu_setup_device_dma", ctx.p, 64, None, None)
        ctx.realize()
        with ctx.connect() as client:
            before = open_fds()
            client.map(ADDRESS, PAGE, fd)
            assert ctx.sgl(ADDRESS, PAGE)[0] == 1
            client.unmap(ADDRESS, PAGE)
            assert open_fds() == before
            answers(client)


# --- one descriptor for many regions -----------------------------------------------------
def test_thousands_of_regions_share_one_descriptor():
    count = 3000
    big = named_memfd("shared-test", count * PAGE)
    with attached(dma=True, max_regions=count) as (ctx, client):
        before = open_fds()
        for i in range(count):
            twin = os.dup(big)
            client.map(2 * i * PAGE, PAGE, twin, offset=i * PAGE, flags=RW_FLAGS | (MAP_FILE_IO if i % 3 == 0 else 0))
            os.close(twin)
            if i % 500 == 0:
                assert len(open_fds()) == len(before) + 1
        assert len(open_fds()) == len(before) + 1
        for i in (0, 1, count // 2, count - 1):
            n, sg = ctx.sgl(2 * i * PAGE, 4)
            sgl_write(ctx, sg, struct.pack("<I", i + 7), DIRECT)
            assert os.pread(big, 4, i * PAGE) == struct.pack("<I", i + 7)
        for i in range(count - 1):
            client.unmap(2 * i * PAGE, PAGE)
        assert len(open_fds()) == len(before) + 1
        assert sum(m[1] for m in file_mappings("shared-test")) == PAGE
        client.unmap(2 * (count - 1) * PAGE, PAGE)
        assert open_fds() == before
        assert file_mappings("shared-test") == []
    os.close(big)


def test_contexts_share_descriptors_too(fd):
    with attached(dma=True) as (ctx, client), attached(dma=True) as (other, client2):
        before = open_fds()
        client.map(ADDRESS, PAGE, fd)
        one = open_fds()
        client2.map(ADDRESS, PAGE, fd, offset=PAGE)
        assert open_fds() == one and len(one) == len(before) + 1
        client.unmap(ADDRESS, PAGE)
        assert open_fds() == one
        n, sg = other.sgl(ADDRESS, 4)
        assert peek(other.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, PAGE)
        client2.unmap(ADDRESS, PAGE)
        assert open_fds() == before


def test_different_files_keep_a_descriptor_each(device):
    ctx, client = device
    files = [named_memfd(f"each-{i}", PAGE, bytes([i + 1]) * PAGE) for i in range(10)]
    before = open_fds()
    for i, f in enumerate(files):
        client.map(i * PAGE, PAGE, f)
    assert len(open_fds()) == len(before) + 10
    for i in range(10):
        n, sg = ctx.sgl(i * PAGE, 2)
        assert peek(ctx.sgl_get(sg)[0].base, 2) == bytes([i + 1]) * 2
    client.unmap(0, 0, UNMAP_ALL)
    assert open_fds() == before
    for f in files:
        os.close(f)


def test_a_refused_map_does_not_release_the_shared_descriptor(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd, flags=RW_FLAGS | MAP_FILE_IO)
    one = open_fds()
    client.map(ADDRESS, 2 * PAGE, fd, expect=errno.EEXIST)
    client.map(TOP - PAGE, 2 * PAGE, fd, expect=errno.EINVAL)
    assert open_fds() == one
    n, sg = ctx.sgl(ADDRESS, 4)
    assert sgl_read(ctx, sg, 4, DIRECT) == b"\0\1\2\3"


def test_more_regions_than_descriptors_allowed():
    """The process would run out of descriptors if each region kept one."""
    big = memfd(400 * PAGE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with attached(dma=True, max_regions=400) as (ctx, client):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_fds())) + 20, hard))
        try:
            for i in range(400):
                client.map(i * PAGE, PAGE, big, offset=i * PAGE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(ctx.events) == 400
    os.close(big)


# --- the end of a connection ------------------------------------------------------------
@pytest.mark.parametrize("how", ["close", "destroy"])
def test_when_the_connection_goes_so_do_regions_descriptors_and_mappings(fd, how):
    seen = []
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        for i in (3, 1, 2):
            client.map(i * PAGE, PAGE, fd, flags=RW_FLAGS | (MAP_FILE_IO if i == 2 else 0))
        assert len(fds_of("map-test")) == 2
        ctx.events.clear()
        if how == "close":
            client.close()
            fails(errno.ENOTCONN, ctx.run)
        else:
            ctx.destroy()
            client.close()
        assert ctx.events == [("unregister", i * PAGE, PAGE) for i in (1, 2, 3)] + [("reset", RESET_LOST_CONN)]
        assert file_mappings("map-test") == []
        assert fds_of("map-test") == [fd]
        if how == "close":
            with ctx.connect() as client:
                client.map(PAGE, PAGE, fd)
                answers(client)


# --- a region longer than its file ---------------------------------------------------------
@pytest.mark.parametrize("file_size, offset, size", [
    (16 * PAGE, 0, 32 * PAGE), (16 * PAGE + 100, 0, 32 * PAGE), (0, 0, 4 * PAGE), (PAGE, 3 * PAGE, 2 * PAGE),
    (PAGE, 0, PAGE + 1), (2 * PAGE, PAGE + 5, 3 * PAGE), (100, 0, PAGE)])
def test_a_region_longer_than_its_file(device, file_size, offset, size):
    ctx, client = device
    content = (b"file" * file_size)[:file_size]
    f = named_memfd("short-test", file_size, content)
    client.map(ADDRESS, size, f, offset=offset)
    assert ctx.events == [("register", ADDRESS, size)]
    n, sg = ctx.sgl(ADDRESS, size)
    iov = ctx.sgl_get(sg)[0]
    assert iov.len == size
    expected = content[offset:offset + size].ljust(size, b"\0")
    assert peek(iov.base, size) == expected
    poke(iov.base, b"\x5a" * size)
    assert peek(iov.base, size) == b"\x5a" * size
    assert sgl_read(ctx, sg, size, DIRECT) == b"\x5a" * size
    sgl_write(ctx, sg, b"\xa5" * size, DIRECT)
    assert peek(iov.base, size) == b"\xa5" * size
    ctx.sgl_put(sg)
    assert os.fstat(f).st_size == file_size
    shared = min(max(file_size - offset, 0), size)
    assert os.pread(f, shared, offset) == b"\xa5" * shared if shared else True
    client.unmap(ADDRESS, size)
    assert file_mappings("short-test") == []
    os.close(f)


def test_the_anonymous_pages_go_with_the_region(device):
    ctx, client = device
    f = memfd(PAGE)
    before = mappings("/dev/zero")
    client.map(ADDRESS, 9 * PAGE, f)
    n, sg = ctx.sgl(ADDRESS + 8 * PAGE, PAGE)
    base = ctx.sgl_get(sg)[0].base
    poke(base, b"gone")
    client.unmap(ADDRESS, 9 * PAGE)
    assert mappings("/dev/zero") == before
    client.map(ADDRESS, 9 * PAGE, f)
    n, sg = ctx.sgl(ADDRESS + 8 * PAGE, PAGE)
    assert peek(ctx.sgl_get(sg)[0].base, 4) == b"\0\0\0\0"
    os.close(f)


def test_a_region_longer_than_its_file_is_told_once_at_warning_level(device, fd):
    ctx, client = device
    ctx.lines.clear()
    client.map(ADDRESS, PAGE, fd)
    assert [line for line in ctx.lines if line[0] <= 4] == []
    client.map(ADDRESS + 0x100000, 8 * PAGE, fd)
    assert len([line for line in ctx.lines if line[0] == 4]) == 1
    n, sg = ctx.sgl(ADDRESS + 0x100000, 8 * PAGE)
    sgl_read(ctx, sg, 8 * PAGE, DIRECT)
    assert len([line for line in ctx.lines if line[0] == 4]) == 1


@pytest.mark.parametrize("size", [64 << 30, LIMIT], ids=["64 GiB", "8 TiB"])
def test_a_large_region_far_longer_than_its_file(device, size):
    """Nothing is reserved for what is never touched."""
    ctx, client = device
    f = memfd(PAGE, b"front")
    before = resident()
    client.map(0, size, f)
    n, sg = ctx.sgl(0, 8)
    assert sgl_read(ctx, sg, 8, DIRECT) == b"front\0\0\0"
    n, sg = ctx.sgl(size - 8, 8)
    sgl_write(ctx, sg, b"the tail", DIRECT)
    assert sgl_read(ctx, sg, 8, DIRECT) == b"the tail"
    assert resident() - before < 16 * MIB
    client.unmap(0, size)
    os.close(f)


def test_file_io_on_a_region_longer_than_its_file_meets_the_end_of_the_file(device):
    ctx, client = device
    f = memfd(PAGE, b"x" * PAGE)
    client.map(ADDRESS, 2 * PAGE, f, flags=RW_FLAGS | MAP_FILE_IO)
    n, sg = ctx.sgl(ADDRESS + PAGE - 4, 4)
    assert sgl_read(ctx, sg, 4, DIRECT) == b"xxxx"
    n, sg = ctx.sgl(ADDRESS + PAGE - 4, 5)
    fails(errno.EIO, sgl_read, ctx, sg, 5, DIRECT)
    os.close(f)
