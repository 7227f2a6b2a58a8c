"""Live upgrade of a device whose client has taken memory away that it was guarded against."""
import ctypes as c
import errno
import os
import signal
import traceback

import pytest
from hand_over import Device, Upgrade, upgraded
from libvfu import *

import ext  # noqa: F401 (declares the functions)

LOST_CB = c.CFUNCTYPE(None, P, c.POINTER(dma_info), c.c_uint64, use_errno=True)
BASE = 0x10000


def in_a_child(f):
    """The guard is for good, so it is another process's."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            call("vfux_guard_dma")
            f()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


class Told(Device):
    def setup_state(self):
        super().setup_state()
        self.lost = []
        call("vfux_setup_dma_lost_cb", self.p, self.cb(LOST_CB, lambda _ctx, info, offset: self.lost.append(
            ((info.contents.iova.base or 0) - BASE, offset))))

    def entry(self, page):
        n, sg = self.sgl(BASE + page * PAGE, 8)
        assert n == 1
        return sg

    def touch(self, page):
        sg = self.entry(page)
        return c.string_at(self.sgl_get(sg)[0].base, 8), lib.vfux_sg_is_lost(self.p, sg)

    def read_directly(self, page):
        call("vfu_sgl_read", self.p, self.entry(page), 1, c.create_string_buffer(8), DIRECT)


def two_regions(ctx, client):
    files = [memfd(4 * PAGE, b"x" * 4 * PAGE) for _ in range(2)]
    for n, fd in enumerate(files):
        client.map(BASE + 4 * n * PAGE, 4 * PAGE, fd)
    return files


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("grown", [True, False])
def test_a_region_that_has_lost_memory_has_lost_it_afterwards(told, grown):
    def child():
        ctx = Told(dma=True).serve_upgrades()
        client = ctx.connect()
        files = two_regions(ctx, client)
        os.ftruncate(files[1], PAGE)
        assert ctx.touch(6) == (bytes(8), True)
        if told:
            assert ctx.run() == 0 and ctx.lost == [(4 * PAGE, 2 * PAGE)]
        if grown:
            os.ftruncate(files[1], 4 * PAGE)
        for _ in range(3):
            ctx = upgraded(ctx, client, make=Told, dma=True)
            fails(errno.EIO, ctx.read_directly, 6)
            fails(errno.EIO, ctx.read_directly, 4)
            assert ctx.touch(6) == (bytes(8), True)
            ctx.read_directly(2)
            assert ctx.touch(2) == (b"x" * 8, False)
            # Who has it is told of it, as it was told of the region.
            assert ctx.lost == [] and ctx.readable()
            assert ctx.run() == 0 and ctx.lost == [(4 * PAGE, 2 * PAGE)]
            assert not ctx.readable()
        client.unmap(BASE + 4 * PAGE, 4 * PAGE)
        client.map(BASE + 4 * PAGE, 4 * PAGE, files[0])
        ctx = upgraded(ctx, client, make=Told, dma=True)
        assert ctx.touch(6) == (b"x" * 8, False) and ctx.lost == []
        ctx.destroy()
    in_a_child(child)


def test_memory_that_went_and_nobody_has_touched_is_lost_afterwards():
    def child():
        ctx = Told(dma=True).serve_upgrades()
        client = ctx.connect()
        files = two_regions(ctx, client)
        # Of a file that is too short as it is mapped, nothing is lost.
        short = memfd(3 * PAGE)
        client.map(BASE + 8 * PAGE, 4 * PAGE, short, offset=PAGE)
        client.map(BASE + 12 * PAGE, PAGE, short, offset=5 * PAGE + 100)
        os.ftruncate(files[1], PAGE + 1)
        for _ in range(2):
            ctx = upgraded(ctx, client, make=Told, dma=True)
            assert ctx.run() == 0 and ctx.lost == [(4 * PAGE, 2 * PAGE)]
            fails(errno.EIO, ctx.read_directly, 6)
            for page, content in ((2, b"x" * 8), (9, bytes(8)), (10, bytes(8)), (11, bytes(8))):
                ctx.read_directly(page)
                assert ctx.touch(page) == (content, False)
        # Unless it gets shorter still.
        os.ftruncate(short, 2 * PAGE)
        ctx = upgraded(ctx, client, make=Told, dma=True)
        assert ctx.run() == 0 and ctx.lost == [(4 * PAGE, 2 * PAGE), (8 * PAGE, PAGE)]
        fails(errno.EIO, ctx.read_directly, 9)
        ctx.destroy()
    in_a_child(child)


def test_an_attempt_that_fails_loses_nothing_more():
    def child():
        old = Told(dma=True).serve_upgrades()
        client = old.connect()
        files = two_regions(old, client)
        os.ftruncate(files[1], PAGE)
        assert old.touch(6) == (bytes(8), True)
        assert old.run() == 0 and len(old.lost) == 1

        def spoil(new):
            new.load_errno = errno.EILSEQ
        Upgrade(old, make=Told, dma=True, before=spoil).failed(errno.EILSEQ)
        assert old.run() == 0 and len(old.lost) == 1
        assert old.touch(2) == (b"x" * 8, False)
        old.destroy()
    in_a_child(child)
