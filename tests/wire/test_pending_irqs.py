"""Interrupts that are kept until they can be delivered, and those of a named type: libvfio-user-ext.h."""
import os
import struct
from errno import EINVAL, ENOENT, ENOTCONN

import pytest
from libvfu import *

import ext  # noqa: F401 (declares the functions)

TRIGGER, VECTORS = ACTION_TRIGGER, 70
MSIX_CAP = struct.pack("<BBHII", 0x11, 0, VECTORS - 1, 0, 0x800)


class Device:
    def __init__(self, pending=True):
        self.ctx = Ctx(realize=False)
        self.ctx.pci_init()
        self.cap = self.ctx.add_cap(MSIX_CAP)
        for kind, count in ((INTX, 1), (MSI, 2), (MSIX, VECTORS)):
            call("vfu_setup_device_nr_irqs", self.ctx.p, kind, count)
            call("vfu_setup_irq_state_callback", self.ctx.p, kind,
                 self.ctx.cb(IRQ_CB, lambda _ctx, *seen: self.ctx.events.append(seen)))
        if pending:
            call("vfux_setup_pending_irqs", self.ctx.p)
        self.ctx.realize()
        self.client, self.fds = self.ctx.connect(), []

    def eventfd(self):
        self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self.fds[-1]

    def assign(self, kind, vector, fd):
        self.client.set_irqs(kind, DATA_EVENTFD | TRIGGER, vector, 1, fds=[] if fd is None else [fd])

    def mask(self, kind, vector, count=1, un=False):
        self.client.set_irqs(kind, DATA_NONE | (ACTION_UNMASK if un else ACTION_MASK), vector, count)

    def control(self, value):
        self.client.write(CFG, self.cap + 2, struct.pack("<H", value))

    def trigger(self, vector):
        call("vfu_irq_trigger", self.ctx.p, vector)

    def trigger_type(self, kind, vector):
        call("vfux_irq_trigger", self.ctx.p, kind, vector)

    def pba(self, count=16, offset=0):
        buf = c.create_string_buffer(b"\xff" * count, count)
        assert call("vfux_read_pba", self.ctx.p, buf, count, offset) == count
        return int.from_bytes(buf.raw, "little")


@pytest.fixture
def dev():
    yield from made(Device())


@pytest.fixture
def plain():
    yield from made(Device(pending=False))


def made(device):
    yield device
    device.client.close()
    device.ctx.destroy()
    for fd in device.fds:
        os.close(fd)


def value(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_too_late_after_realize(plain):
    fails(EINVAL, call, "vfux_setup_pending_irqs", plain.ctx.p)


def test_without_it_nothing_is_kept_or_said(plain):
    fd = plain.eventfd()
    fails(ENOENT, plain.trigger, 3)
    plain.assign(MSIX, 3, fd)
    plain.mask(MSIX, 3)
    plain.control(0xc000)
    plain.trigger(3)
    assert (value(fd), plain.pba()) == (1, 0)
    assert struct.unpack("<IIII", plain.client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, INTX, 0))) == (16, 1, 0, 1)


@pytest.mark.parametrize("kind, flags", [(INTX, 7), (MSI, 1), (MSIX, 1), (ERR, 1), (REQ, 1)])
def test_irq_info(dev, kind, flags):
    p = dev.client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, kind, 0))
    assert struct.unpack("<IIII", p)[1] == flags


def test_a_vector_taken_away_and_given_back_loses_nothing(dev):
    fd, other = dev.eventfd(), dev.eventfd()
    dev.assign(MSIX, 0, other)
    for vector in (3, 69):
        dev.assign(MSIX, vector, fd)
        dev.assign(MSIX, vector, None)
        dev.trigger(vector)
        dev.trigger(vector)
        assert dev.pba() == 1 << vector and value(fd) == 0
        dev.assign(MSIX, vector, fd)
        assert (dev.pba(), value(fd)) == (0, 1)
        dev.trigger(vector)
        assert value(fd) == 1
    fails(EINVAL, dev.trigger, VECTORS)


def test_with_no_eventfd_at_all_the_enabled_type_keeps_it(dev):
    dev.control(0x8000)
    dev.trigger(0)
    assert dev.pba() == 1
    fd = dev.eventfd()
    dev.assign(MSIX, 0, fd)
    assert value(fd) == 1


def test_with_nothing_enabled_it_is_intx(dev):
    dev.trigger(0)
    assert dev.pba() == 0
    fd = dev.eventfd()
    dev.assign(INTX, 0, fd)
    assert value(fd) == 1


def test_masks_of_vector_and_function_hold_back(dev):
    fd = dev.eventfd()
    dev.assign(MSIX, 1, fd)
    dev.mask(MSIX, 1)
    dev.trigger(1)
    assert (value(fd), dev.pba()) == (0, 2)
    dev.control(0xc000)
    dev.mask(MSIX, 1, un=True)
    assert (value(fd), dev.pba()) == (0, 2)
    dev.control(0x8000)
    assert (value(fd), dev.pba()) == (1, 0)
    assert dev.ctx.events == [(1, 1, True), (1, 1, False)]
    dev.client.set_irqs(MSIX, DATA_BOOL | ACTION_MASK, 0, 3, b"\0\1\0")
    dev.trigger(1)
    dev.client.set_irqs(MSIX, DATA_BOOL | ACTION_UNMASK, 0, 3, b"\1\0\1")
    assert value(fd) == 0
    dev.client.set_irqs(MSIX, DATA_BOOL | ACTION_UNMASK, 0, 3, b"\0\1\0")
    assert value(fd) == 1


def test_the_client_triggers_what_is_masked(dev):
    fd = dev.eventfd()
    dev.assign(MSIX, 1, fd)
    dev.mask(MSIX, 1)
    dev.client.set_irqs(MSIX, DATA_NONE | TRIGGER, 1, 1)
    assert (value(fd), dev.pba()) == (1, 0)


def test_intx_masks_itself(dev):
    fd = dev.eventfd()
    dev.assign(INTX, 0, fd)
    for _ in range(3):
        dev.trigger(0)
    assert value(fd) == 1
    dev.mask(INTX, 0, un=True)
    assert value(fd) == 1
    dev.mask(INTX, 0, un=True)
    assert value(fd) == 0
    dev.trigger(0)
    dev.trigger(0)
    call("vfux_irq_clear_pending", dev.ctx.p, INTX, 0)
    dev.mask(INTX, 0, un=True)
    assert value(fd) == 1


def test_disabling_a_type_ends_its_masks(dev):
    fd = dev.eventfd()
    dev.assign(INTX, 0, fd)
    dev.trigger(0)
    dev.client.set_irqs(INTX, DATA_NONE | TRIGGER, 0, 0)
    dev.assign(INTX, 0, fd)
    dev.trigger(0)
    assert value(fd) == 2


@pytest.mark.parametrize("how", ["reset", "loss"])
def test_reset_and_loss_forget(dev, how):
    dev.control(0x8000)
    dev.trigger(5)
    assert dev.pba() == 1 << 5
    if how == "reset":
        dev.client.request(DEVICE_RESET)
    else:
        dev.client.close()
        with pytest.raises(Failed):
            dev.ctx.run()
        dev.client = dev.ctx.connect()
    fd = dev.eventfd()
    assert dev.pba() == 0
    dev.assign(MSIX, 5, fd)
    assert value(fd) == 0


def test_a_function_mask_stays_with_configuration_space_when_the_client_goes(dev):
    dev.control(0xc000)
    dev.client.close()
    fails(ENOTCONN, dev.ctx.run)
    dev.client = dev.ctx.connect()
    assert dev.client.read(CFG, dev.cap + 2, 2) == struct.pack("<H", 0xc000 | VECTORS - 1)
    fd = dev.eventfd()
    dev.assign(MSIX, 5, fd)
    dev.trigger(5)
    assert (value(fd), dev.pba()) == (0, 1 << 5)
    dev.control(0x8000)
    assert (value(fd), dev.pba()) == (1, 0)


def test_the_array_ends_with_a_quadword(dev):
    assert dev.pba(0) == dev.pba(1, 15) == 0
    for count, offset in ((17, 0), (1, 16), (8, 9), (1, -1), (1, (1 << 63) - 1)):
        fails(EINVAL, dev.pba, count, offset)
    dev.control(0x8000)
    dev.trigger(69)
    assert dev.pba(1, 8) == 1 << 5


def test_err_and_req_are_triggered_by_name(plain, dev):
    for device in (plain, dev):
        for kind in (ERR, REQ):
            fails(ENOENT, device.trigger_type, kind, 0)
            fails(EINVAL, device.trigger_type, kind, 1)
            fd = device.eventfd()
            device.assign(kind, 0, fd)
            assert value(fd) == 0
            device.trigger_type(kind, 0)
            assert value(fd) == 1
        fails(EINVAL, device.trigger_type, 5, 0)


def test_a_type_that_is_not_in_use_can_be_named(plain):
    msix, intx = plain.eventfd(), plain.eventfd()
    plain.assign(MSIX, 0, msix)
    plain.assign(INTX, 0, intx)
    plain.trigger_type(INTX, 0)
    assert (value(msix), value(intx)) == (0, 1)


def test_named_types_before_realize():
    with Ctx(realize=False) as ctx:
        fails(EINVAL, call, "vfux_irq_trigger", ctx.p, REQ, 0)
