"""How a region of the client's memory is reached, and a device that refuses it."""
import errno
import os
import struct

import pytest

from ext import *
from guest import *
from libvfu import *

ADDRESS = 0x10000
RW_FLAGS = MAP_READ | MAP_WRITE
KINDS = pytest.mark.parametrize("flags, has_file, access", [
    (RW_FLAGS, False, ACCESS_MESSAGE), (RW_FLAGS, True, ACCESS_MMAP), (RW_FLAGS | MAP_MMAP, True, ACCESS_MMAP),
    (RW_FLAGS | MAP_FILE_IO, True, ACCESS_FILE_IO), (0, False, ACCESS_MESSAGE), (MAP_FILE_IO, True, ACCESS_FILE_IO),
], ids=["message", "descriptor", "mmap", "file I/O", "message, no rights", "file I/O, no rights"])


@pytest.fixture
def device():
    with attached(dma=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("access-test", 4 * PAGE)
    yield fd
    os.close(fd)


def access_of(ctx, address):
    return call("vfux_get_dma_access", ctx.p, address)


def refuse(ctx, number):
    return call("vfux_refuse_dma_region", ctx.p, number)


# --- how it is reached ----------------------------------------------------------------
@KINDS
def test_the_callbacks_can_ask(device, fd, flags, has_file, access):
    ctx, client = device
    seen = []
    ctx.on_dma_register = ctx.on_dma_unregister = lambda i: seen.append(access_of(ctx, i.iova.base))
    client.map(ADDRESS, 2 * PAGE, fd if has_file else None, flags=flags)
    assert seen == [access]
    for address in (ADDRESS, ADDRESS + 1, ADDRESS + 2 * PAGE - 1):
        assert access_of(ctx, address) == access
    for address in (0, ADDRESS - 1, ADDRESS + 2 * PAGE, (1 << 64) - 1):
        fails(errno.ENOENT, access_of, ctx, address)
    client.unmap(ADDRESS, 2 * PAGE)
    assert seen == [access, access]
    fails(errno.ENOENT, access_of, ctx, ADDRESS)


def test_each_region_says_its_own(device, fd):
    ctx, client = device
    client.map(ADDRESS, PAGE, fd)
    client.map(ADDRESS + PAGE, PAGE)
    client.map(ADDRESS + 2 * PAGE, PAGE, fd, flags=RW_FLAGS | MAP_FILE_IO)
    assert [access_of(ctx, ADDRESS + n * PAGE) for n in range(3)] == [ACCESS_MMAP, ACCESS_MESSAGE, ACCESS_FILE_IO]


def test_before_dma_is_set_up_there_are_no_regions():
    with Ctx() as ctx:
        fails(errno.ENOENT, access_of, ctx, 0)


def test_a_region_at_0_and_one_at_the_end(device, fd):
    ctx, client = device
    client.map(0, PAGE)
    client.map((1 << 64) - PAGE, PAGE, fd)
    assert access_of(ctx, 0) == ACCESS_MESSAGE
    assert access_of(ctx, (1 << 64) - 1) == ACCESS_MMAP


# --- refusing -------------------------------------------------------------------------
@KINDS
def test_a_refused_map_fails_and_leaves_nothing(device, fd, flags, has_file, access):
    ctx, client = device
    before, mapped = open_fds(), file_mappings("access-test")
    ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
    client.map(ADDRESS, PAGE, fd if has_file else None, flags=flags, expect=errno.EPERM)
    assert ctx.events == [("register", ADDRESS, PAGE)], "and no unregister callback"
    assert (open_fds(), file_mappings("access-test")) == (before, mapped)
    fails(errno.ENOENT, ctx.sgl, ADDRESS, 1)
    fails(errno.ENOENT, access_of, ctx, ADDRESS)
    client.unmap(ADDRESS, PAGE, expect=errno.ENOENT)
    assert any(level == 3 and "the device refuses the region" in line and hex(ADDRESS) in line for level, line in ctx.lines)


@pytest.mark.parametrize("number", [1, errno.EBUSY, errno.ENOTCONN, errno.EINTR, errno.EAGAIN, 4095])
def test_the_client_is_told_the_errno(device, number):
    ctx, client = device
    ctx.on_dma_register = lambda i: refuse(ctx, number)
    client.map(ADDRESS, PAGE, expect=number)
    ctx.on_dma_register = lambda i: None
    client.map(ADDRESS, PAGE)
    assert ctx.events == [("register", ADDRESS, PAGE)] * 2


def test_no_other_numbers_are_errnos(device):
    ctx, client = device
    for number in (0, -1, -errno.EPERM, 4096, 0x7fffffff, -0x80000000):
        ctx.on_dma_register = lambda i: fails(errno.EINVAL, refuse, ctx, number)
        client.map(ADDRESS, PAGE)
        client.unmap(ADDRESS, PAGE)
    assert ctx.events == [("register", ADDRESS, PAGE), ("unregister", ADDRESS, PAGE)] * 6


def test_of_two_the_last_counts_and_a_bad_one_changes_nothing(device):
    ctx, client = device

    def register(_info):
        refuse(ctx, errno.EPERM)
        refuse(ctx, errno.ENOTSUP)
        fails(errno.EINVAL, refuse, ctx, 0)
    ctx.on_dma_register = register
    client.map(ADDRESS, PAGE, expect=errno.ENOTSUP)


def test_only_in_the_register_callback(device):
    ctx, client = device
    tries = []

    def attempt(*_):
        tries.append(fails(errno.EINVAL, refuse, ctx, errno.EPERM))
    attempt()
    ctx.on_dma_unregister = ctx.on_reset = attempt
    client.map(ADDRESS, PAGE)
    attempt()
    client.unmap(ADDRESS, PAGE)
    client.request(DEVICE_RESET)
    assert len(tries) == 4
    ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
    client.map(ADDRESS, PAGE, expect=errno.EPERM)
    attempt()
    ctx.on_dma_register = lambda i: None
    client.map(ADDRESS, PAGE)


def test_what_was_translated_in_the_callback_is_stale_afterwards(device, fd):
    ctx, client = device
    entries = []

    def register(_info):
        _, sg = ctx.sgl(ADDRESS, 8)
        iov = ctx.sgl_get(sg)[0]
        poke(iov.base, b"touched!")
        ctx.sgl_put(sg)
        entries.append(sg)
        refuse(ctx, errno.EPERM)
    ctx.on_dma_register = register
    client.map(ADDRESS, PAGE, fd, expect=errno.EPERM)
    assert os.pread(fd, 8, 0) == b"touched!"
    fails(errno.EINVAL, ctx.sgl_get, entries[0])
    ctx.on_dma_register = lambda i: None
    client.map(ADDRESS, PAGE, fd)
    fails(errno.EINVAL, ctx.sgl_get, entries[0])


def test_a_device_that_takes_mapped_memory_only(device, fd):
    ctx, client = device
    ctx.on_dma_register = lambda i: access_of(ctx, i.iova.base) == ACCESS_MMAP or refuse(ctx, errno.ENOTSUP)
    client.map(ADDRESS, PAGE, expect=errno.ENOTSUP)
    client.map(ADDRESS, PAGE, fd, flags=RW_FLAGS | MAP_FILE_IO, expect=errno.ENOTSUP)
    client.map(ADDRESS, PAGE, fd)
    # The same once more is no new region: nobody is asked.
    ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
    client.map(ADDRESS, PAGE, fd)
    client.map(ADDRESS + PAGE, PAGE, fd, expect=errno.EPERM)
    assert ctx.sgl(ADDRESS, PAGE)[0] == 1


def test_a_refused_region_does_not_count(device):
    ctx, client = device
    for address in range(ADDRESS, ADDRESS + 63 * PAGE, PAGE):
        client.map(address, PAGE)
    ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
    for _ in range(200):
        client.map(1 << 40, PAGE, expect=errno.EPERM)
    ctx.on_dma_register = lambda i: None
    client.map(1 << 40, PAGE)
    client.map(1 << 41, PAGE, expect=errno.EINVAL)


def test_while_dirty_pages_are_logged(fd):
    with attached(dma=True, migration=True) as (ctx, client):
        client.log_start()
        ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
        client.map(ADDRESS, PAGE, fd, expect=errno.EPERM)
        ctx.on_dma_register = lambda i: None
        client.map(ADDRESS, PAGE, fd)
        assert client.report(ADDRESS, PAGE) == 0
        _, sg = ctx.sgl(ADDRESS, 1)
        mark_dirty(ctx, sg)
        assert client.report(ADDRESS, PAGE) == 1


def test_with_a_quiesce_that_takes_its_time():
    with attached(dma=True, quiesce=True) as (ctx, client):
        ctx.quiesce_errno = errno.EBUSY
        ctx.on_dma_register = lambda i: refuse(ctx, errno.EPERM)
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RW_FLAGS, 0, ADDRESS, PAGE))
        fails(errno.EBUSY, ctx.run)
        ctx.quiesced()
        assert client.recv().error == errno.EPERM
        ctx.quiesce_errno = 0
        ctx.on_dma_register = lambda i: None
        client.map(ADDRESS, PAGE)
