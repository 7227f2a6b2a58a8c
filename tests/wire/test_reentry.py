"""Callbacks that call back into the library on the same context."""
import ctypes as c
import os
import struct

import pytest
from errno import ENOENT

from libvfu import *
from pci_device import alive, express, pm, vendor


class Device:
    """A device of which any callback does all that a callback may do."""

    def __init__(self):
        self.ctx = ctx = Ctx(realize=False, quiesce=True, dma=True)
        self.log, self.depth, self.tries, self.fd = [], 0, 0, os.eventfd(0, os.EFD_NONBLOCK)
        ctx.pci_init(EXPRESS)
        ctx.setup_region(CFG, 0, self.region("config"), RW)
        ctx.setup_region(BAR0, 0x1000, self.region("bar"), RW)
        ctx.add_cap(pm())
        ctx.add_cap(express(flr=True))
        ctx.add_cap(vendor(b"abcdef"), 0, CAP_CALLBACK)
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 4)
        call("vfu_setup_irq_state_callback", ctx.p, MSIX, ctx.cb(IRQ_CB, lambda *a: self.use("irq state")))
        ctx.on_reset = lambda kind: self.use(("reset", kind))
        ctx.on_dma_register = lambda info: self.use("register")
        ctx.on_dma_unregister = lambda info: self.use("unregister")
        ctx.realize()
        self.client = ctx.connect()
        self.client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 1, fds=[self.fd])
        self.client.map(0x10000, 0x1000)
        self.log.clear()
        os.eventfd_read(self.fd)

    def region(self, name):
        def access(p, buf, count, offset, is_write):
            self.use(name)
            return count
        return access

    def use(self, who):
        """All of it, from inside a callback; the outcome goes to `log`."""
        if self.depth or not self.ctx.p:
            return
        self.depth += 1
        p = self.ctx.p
        try:
            assert call("vfu_get_private", p, ok=lambda r: True) is None
            space = call("vfu_pci_get_config_space", p)
            c.memmove(space + 0x3d, b"\2", 1)
            assert call("vfu_pci_find_capability", p, False, 0x10, ok=bool) == 0x48
            assert call("vfu_pci_find_next_capability", p, False, 0x40, 0x10, ok=bool) == 0x48
            fails(ENOENT, call, "vfu_pci_find_capability", p, False, 0x11, ok=bool)
            call("vfu_create_ioeventfd", p, BAR0, -1, 0, 8, 0, 0, -1, 0)
            call("vfu_irq_trigger", p, 0)
            n, sg = self.ctx.sgl(0x10000, 0x1000)
            assert n == 1
            assert not lib.vfu_sg_is_mappable(p, sg)
            lib.vfu_log(c.c_void_p(p), 3, b"from inside %s", str(who).encode())
            self.log.append(who)
        finally:
            self.depth -= 1

    def close(self):
        self.client.close()
        self.ctx.destroy()
        os.close(self.fd)


@pytest.fixture
def dev():
    d = Device()
    yield d
    d.close()


@pytest.mark.parametrize("what, act", [
    ("bar", lambda client: client.read(BAR0, 0, 4)),
    ("bar", lambda client: client.write(BAR0, 0, b"abcd")),
    ("config", lambda client: client.read(CFG, 0xf00, 4)),
    ("config", lambda client: client.write(CFG, 0xf00, b"abcd")),
    ("config", lambda client: client.read(CFG, 0x87, 2)),
    ("config", lambda client: client.write(CFG, 0x87, b"ab")),
    ("irq state", lambda client: client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 0, 1)),
    ("irq state", lambda client: client.set_irqs(MSIX, DATA_BOOL | ACTION_UNMASK, 0, 1, b"\1")),
    (("reset", RESET_FLR), lambda client: client.write(CFG, 0x50, b"\x00\x80")),
    (("reset", RESET_DEVICE), lambda client: client.request(DEVICE_RESET)),
    ("register", lambda client: client.map(0x20000, 0x1000)),
    ("unregister", lambda client: client.unmap(0x10000, 0x1000)),
])
def test_a_callback_may_use_the_library(dev, what, act):
    act(dev.client)
    assert dev.log == [what]
    assert os.eventfd_read(dev.fd) == 1
    assert any(text == f"from inside {what}" for _, text in dev.ctx.lines)
    alive(dev.client)


def test_the_log_function_may_use_the_library():
    with Ctx(realize=False, log=False) as ctx:
        ctx.pci_init(EXPRESS)
        used, inside = [], []

        def log(p, level, text):
            if inside or not ctx.p:
                return
            inside.append(1)
            used.append(text)
            assert call("vfu_pci_get_config_space", p)
            lib.vfu_pci_find_capability(p, False, 1)
            call("vfu_create_ioeventfd", p, BAR0, -1, 0, 8, 0, 0, -1, 0)
            fails(ENOENT, call, "vfu_irq_trigger", p, 0)
            inside.clear()
        ctx.memory_region(BAR0, 0x1000)
        ctx.realize()
        call("vfu_setup_log", ctx.p, ctx.cb(LOG_CB, log), 7)
        ctx.add_cap(pm())
        ctx.add_cap(express())
        with ctx.connect() as client:
            client.read(BAR0, 0, 4)
            client.write(CFG, 0x50, b"\x00\x80")
            client.write(CFG, 0x44, b"\1", expect=22)
            client.request(DEVICE_RESET)
            client.request(19, b"a", expect=22)
            client.set_irqs(REQ, DATA_NONE | ACTION_MASK, 0, 1, expect=22)
            client.request(GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, BAR0, 0))
            alive(client)
        assert len(used) >= 5, "something was logged"


def test_regions_and_capabilities_set_up_from_inside_a_callback():
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)
        ctx.realize()
        added = []

        def access(p, buf, count, offset, is_write):
            ctx.setup_region(BAR1, 0x1000, lambda *a: a[2], RW)
            added.append(ctx.add_cap(vendor(b"abc")))
            return count
        ctx.setup_region(BAR0, 0x1000, access, RW)
        with ctx.connect() as client:
            client.read(BAR1, 0, 4, expect=22)
            client.write(BAR0, 0, b"abcd")
            client.write(BAR0, 0, b"abcd")
            client.read(BAR1, 0, 4)
            assert added == [0x40, 0x48]
            assert client.read(CFG, 0x48, 6) == b"\x09\0\6abc"


def test_region_that_replaces_itself_from_inside_its_callback():
    with Ctx() as ctx:
        mem = bytearray(0x1000)

        def second(p, buf, count, offset, is_write):
            ctx.events.append("second")
            return count

        def first(p, buf, count, offset, is_write):
            ctx.setup_region(BAR0, 0x2000, second, RW)
            ctx.events.append("first")
            return count
        ctx.setup_region(BAR0, len(mem), first, RW)
        with ctx.connect() as client:
            client.write(BAR0, 0xffc, b"abcd")
            client.write(BAR0, 0x1ffc, b"abcd")
            assert ctx.events == ["first", "second"]
