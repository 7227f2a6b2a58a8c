"""What is set up after vfu_realize_ctx, with a client attached: it works whole, or fails."""
import errno
import os
import struct

import pytest

from ext import *
from guest import *
from libvfu import *
from pci_device import msix, poke, vendor

ALL = 0xffffffff
ASSIGN = DATA_EVENTFD | ACTION_TRIGGER


def bar(n):
    return 0x10 + 4 * n


@pytest.fixture
def device():
    with Ctx(realize=False) as ctx:
        ctx.pci_init(EXPRESS)
        ctx.realize()
        with ctx.connect() as client:
            yield ctx, client


def read32(client, offset):
    return struct.unpack("<I", client.read(CFG, offset, 4))[0]


def write32(client, offset, value):
    client.write(CFG, offset, struct.pack("<I", value))


def status(client):
    return struct.unpack("<H", client.read(CFG, 6, 2))[0]


def signals(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


# --- regions and their registers ------------------------------------------------------
@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("flags, bits", [(RW, 1), (RW | MEM, 0), (RW | MEM | PREFETCH, 8)])
def test_a_bar_has_its_type_and_its_size(device, n, flags, bits):
    ctx, client = device
    memory = ctx.memory_region(n, 0x1000, flags)
    assert read32(client, bar(n)) == bits
    write32(client, bar(n), ALL)
    assert read32(client, bar(n)) == 0xfffff000 | bits
    for other in set(range(6)) - {n}:
        assert read32(client, bar(other)) == 1, "as it was"
    client.write(n, 0x10, b"late")
    assert memory[0x10:0x14] == b"late"
    assert struct.unpack_from("<Q", client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, n, 0, 0, 0)), 16) \
        == (0x1000,)


@pytest.mark.parametrize("n", [0, 2, 4])
@pytest.mark.parametrize("prefetch, bits", [(0, 4), (PREFETCH, 0xc)])
def test_a_64_bit_bar(device, n, prefetch, bits):
    ctx, client = device
    ctx.setup_region(n, 1 << 33, flags=RW | MEM | BITS_64 | prefetch)
    assert (read32(client, bar(n)), read32(client, bar(n + 1))) == (bits, 0)
    write32(client, bar(n), ALL)
    write32(client, bar(n + 1), ALL)
    assert (read32(client, bar(n)), read32(client, bar(n + 1))) == (bits, 0xfffffffe)
    fails(errno.EINVAL, ctx.setup_region, n + 1, 0x1000, flags=RW | MEM)
    assert read32(client, bar(n + 1)) == 0xfffffffe


def test_the_address_stays_as_far_as_the_size_leaves_it(device):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    write32(client, bar(0), 0xfebf1000)
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    assert read32(client, bar(0)) == 0xfebf1000
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM | PREFETCH)
    assert read32(client, bar(0)) == 0xfebf1008
    ctx.setup_region(BAR0, 0x100000, flags=RW | MEM)
    assert read32(client, bar(0)) == 0xfeb00000


@pytest.mark.parametrize("flags, registers", [
    (RW, (1, 0x11110001)), (RW | MEM | BITS_64, (4, 0)),
])
def test_an_address_of_another_kind_goes(device, flags, registers):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    write32(client, bar(0), 0xfebf1000)
    ctx.setup_region(BAR1, 0x10000, flags=RW)
    write32(client, bar(1), 0x11110000)
    if flags & BITS_64:
        fails(errno.EINVAL, ctx.setup_region, BAR0, 0x1000, flags=flags)
        assert (read32(client, bar(0)), read32(client, bar(1))) == (0xfebf1000, 0x11110001)
        ctx.setup_region(BAR1, 0, flags=RW)
    ctx.setup_region(BAR0, 0x1000, flags=flags)
    assert (read32(client, bar(0)), read32(client, bar(1))) == registers


def test_a_bar_that_goes(device):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM | BITS_64)
    write32(client, bar(0), 0xfebf1000)
    write32(client, bar(1), 7)
    ctx.setup_region(BAR0, 0, flags=RW | MEM)
    assert (read32(client, bar(0)), read32(client, bar(1))) == (0, 1)
    write32(client, bar(0), ALL)
    assert read32(client, bar(0)) == 0


def test_what_the_device_wrote_to_other_registers_stays(device):
    ctx, client = device
    poke(ctx, bar(3), struct.pack("<I", 0x12345678))
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    assert read32(client, bar(3)) == 0x12345678


def test_the_rom_s_register(device):
    ctx, client = device
    ctx.setup_region(ROM, 0x1000, flags=READ)
    write32(client, 0x30, ALL)
    assert read32(client, 0x30) == 0xfffff001
    ctx.setup_region(ROM, 0x10000, flags=READ)
    assert read32(client, 0x30) == 0xffff0001
    ctx.setup_region(ROM, 0, flags=READ)
    assert read32(client, 0x30) == 0


def test_configuration_space_gets_a_callback(device):
    ctx, client = device
    fails(errno.EINVAL, ctx.add_cap, vendor(b"abcd"), 0x40, CAP_CALLBACK)
    seen = []

    def access(_ctx, buf, count, offset, is_write):
        seen.append((offset, count, is_write))
        return count
    ctx.setup_region(CFG, 0, access)
    at = ctx.add_cap(vendor(b"abcd"), 0x40, CAP_CALLBACK)
    client.write(CFG, at + 4, b"x")
    assert seen == [(at + 4, 1, True)]
    fails(errno.EINVAL, ctx.setup_region, CFG, 0, None, RW | MEM)
    client.write(CFG, at + 4, b"y")
    assert len(seen) == 2


# --- capabilities ---------------------------------------------------------------------
def test_the_status_bit_comes_with_the_first_capability(device):
    ctx, client = device
    assert status(client) == 0
    at = ctx.add_cap(vendor(b"abcd"))
    assert status(client) == 0x10
    assert client.read(CFG, 0x34, 1) == bytes([at])


def test_an_extended_capability_has_no_status_bit(device):
    ctx, client = device
    ctx.add_cap(struct.pack("<IQ", 0x00010003, 7), flags=CAP_EXTENDED)
    assert status(client) == 0


# --- interrupts -----------------------------------------------------------------------
def irq_count(client, kind):
    return struct.unpack("<IIII", client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, kind, 0)))[3]


def set_count(ctx, kind, count):
    return call("vfu_setup_device_nr_irqs", ctx.p, kind, count)


def test_the_line_has_its_pin(device):
    ctx, client = device
    assert client.read(CFG, 0x3d, 1) == b"\0"
    set_count(ctx, INTX, 1)
    assert client.read(CFG, 0x3d, 1) == b"\1"
    set_count(ctx, INTX, 0)
    assert client.read(CFG, 0x3d, 1) == b"\0"
    for kind in (MSI, MSIX, ERR, REQ):
        set_count(ctx, kind, 1)
    assert client.read(CFG, 0x3d, 1) == b"\0", "others have none"


@pytest.mark.parametrize("kind", [INTX, MSI, MSIX])
def test_vectors_that_come_late_can_be_triggered(device, event, kind):
    ctx, client = device
    set_count(ctx, kind, 200)
    assert irq_count(client, kind) == 200
    client.set_irqs(kind, ASSIGN, 199, 1, fds=[event])
    call("vfu_irq_trigger", ctx.p, 199)
    assert signals(event) == 1
    fails(errno.EINVAL, call, "vfu_irq_trigger", ctx.p, 200)


@pytest.mark.parametrize("kind", [ERR, REQ])
def test_err_and_req_come_and_go(device, event, kind):
    ctx, client = device
    client.set_irqs(kind, ASSIGN, 0, 1, fds=[event])
    set_count(ctx, kind, 0)
    assert irq_count(client, kind) == 0
    client.set_irqs(kind, ASSIGN, 0, 1, fds=[event], expect=errno.EINVAL)
    fails(errno.EINVAL, call, "vfux_irq_trigger", ctx.p, kind, 0)
    set_count(ctx, kind, 1)
    fails(errno.ENOENT, call, "vfux_irq_trigger", ctx.p, kind, 0)
    client.set_irqs(kind, ASSIGN, 0, 1, fds=[event])
    call("vfux_irq_trigger", ctx.p, kind, 0)
    assert signals(event) == 1


@pytest.mark.parametrize("kind", [INTX, MSI, MSIX])
def test_vectors_that_go_lose_their_eventfds(device, event, kind):
    ctx, client = device
    set_count(ctx, kind, 4)
    other = MSI if kind == MSIX else MSIX
    set_count(ctx, other, 8)  # so that there is a vector 3 of some type
    before = open_fds()
    client.set_irqs(kind, ASSIGN, 2, 2, fds=[event, event])
    call("vfu_irq_trigger", ctx.p, 3)
    assert signals(event) == 1
    set_count(ctx, kind, 3)
    call("vfu_irq_trigger", ctx.p, 2)
    fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 3)
    assert signals(event) == 1
    set_count(ctx, kind, 0)
    assert open_fds() == before
    fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 2)
    # The other type is in use, once it has an eventfd.
    client.set_irqs(other, ASSIGN, 2, 1, fds=[event])
    call("vfu_irq_trigger", ctx.p, 2)
    assert signals(event) == 1
    set_count(ctx, kind, 4)
    fails(errno.ENOENT, call, "vfux_irq_trigger", ctx.p, kind, 3)


def latching():
    ctx = Ctx(realize=False)
    call("vfux_setup_pending_irqs", ctx.p)
    ctx.pci_init(EXPRESS)
    ctx.realize()
    return ctx


def test_late_vectors_keep_interrupts_and_heed_the_function_mask(event):
    with latching() as ctx, ctx.connect() as client:
        at = ctx.add_cap(msix(control=0xc000 | 99))  # enabled, and masked as a whole
        set_count(ctx, MSIX, 100)
        client.set_irqs(MSIX, ASSIGN, 99, 1, fds=[event])
        call("vfu_irq_trigger", ctx.p, 99)
        assert signals(event) == 0, "masked"
        client.write(CFG, at + 2, struct.pack("<H", 0x8000))
        assert signals(event) == 1
        client.set_irqs(MSIX, ASSIGN, 99, 1, fds=[])
        call("vfu_irq_trigger", ctx.p, 99)
        set_count(ctx, MSIX, 99)
        set_count(ctx, MSIX, 100)
        client.set_irqs(MSIX, ASSIGN, 99, 1, fds=[event])
        assert signals(event) == 0, "forgotten with the vector"


@pytest.mark.parametrize("kind", [INTX, MSI, MSIX])
def test_the_state_callback(device, kind):
    ctx, client = device
    set_count(ctx, kind, 1)
    client.set_irqs(kind, DATA_NONE | ACTION_MASK, 0, 1)
    seen = []
    call("vfu_setup_irq_state_callback", ctx.p, kind, ctx.cb(IRQ_CB, lambda _c, *a: seen.append(a)))
    client.set_irqs(kind, DATA_NONE | ACTION_UNMASK, 0, 1)
    assert seen == [(0, 1, False)]


# --- callbacks ------------------------------------------------------------------------
def test_reset_and_quiesce_callbacks():
    with Ctx(reset=False) as ctx, ctx.connect() as client:
        client.request(DEVICE_RESET)
        assert ctx.events == []
        call("vfu_setup_device_reset_cb", ctx.p, ctx.cb(RESET_CB, ctx._reset))
        lib.vfu_setup_device_quiesce_cb(ctx.p, ctx.cb(INT_CB, ctx._quiesce))
        client.request(DEVICE_RESET)
        assert ctx.events == ["quiesce", ("reset", RESET_DEVICE)]
        lib.vfu_setup_device_quiesce_cb(ctx.p, None)
        call("vfu_setup_device_reset_cb", ctx.p, None)
        client.request(DEVICE_RESET)
        assert len(ctx.events) == 2


def test_a_quiesce_callback_that_goes_while_it_is_waited_for():
    with Ctx(quiesce=True) as ctx, ctx.connect() as client:
        ctx.quiesce_errno = errno.EBUSY
        client.send(DEVICE_RESET)
        fails(errno.EBUSY, ctx.run)
        lib.vfu_setup_device_quiesce_cb(ctx.p, None)
        fails(errno.EBUSY, ctx.run)
        ctx.quiesced()
        assert client.recv().error == 0
        client.request(DEVICE_RESET)


# --- migration ------------------------------------------------------------------------
def test_migration_is_there_once_it_is_set_up(device):
    ctx, client = device
    client.feature(F_MIGRATION | FEATURE_GET, argsz=16, expect=errno.EINVAL)
    client.set_state(S_PRE_COPY, expect=errno.EINVAL)
    ctx.setup_migration()
    assert len(client.feature(F_MIGRATION | FEATURE_GET, argsz=16)) == 16
    assert client.get_state() == S_RUNNING
    client.set_state(S_PRE_COPY)
    assert ctx.events == [("state", CB_PRE_COPY)]


def test_other_callbacks_in_the_middle_of_a_migration(device):
    ctx, client = device
    ctx.setup_migration()
    client.set_state(S_PRE_COPY)
    ctx.setup_migration()
    assert client.get_state() == S_RUNNING, "as when it is set up"
    client.set_state(S_PRE_COPY)
    fails(errno.EINVAL, ctx.setup_migration, 1)
    assert client.get_state() == S_PRE_COPY
    assert ctx.events == [("state", CB_PRE_COPY)] * 2


# --- DMA ------------------------------------------------------------------------------
def setup_dma(ctx):
    return call("vfu_setup_device_dma", ctx.p, 16, ctx.cb(DMA_CB, ctx._dma_register),
                ctx.cb(DMA_CB, ctx._dma_unregister))


def test_dma_is_there_once_it_is_set_up(device):
    ctx, client = device
    setup_dma(ctx)
    client.map(0x10000, PAGE)
    assert ctx.events == [("register", 0x10000, PAGE)]
    fails(errno.EEXIST, setup_dma, ctx)
    client.unmap(0x10000, PAGE)
    setup_dma(ctx)
    client.map(0x10000, PAGE)


def test_dma_is_too_late_once_memory_has_been_disregarded(device):
    ctx, client = device
    client.map(0x10000, PAGE)
    fails(errno.EINVAL, setup_dma, ctx)
    client.map(0x20000, PAGE)
    assert ctx.events == []
    fails(errno.EINVAL, ctx.sgl, 0x10000, 1)
    client.close()
    fails(errno.ENOTCONN, ctx.run)
    setup_dma(ctx)
    with ctx.connect() as client:
        client.map(0x10000, PAGE)
        assert ctx.events[-1] == ("register", 0x10000, PAGE)


# --- ioeventfds -----------------------------------------------------------------------
def io_fds(client, region):
    reply = client.request(GET_REGION_IO_FDS, struct.pack("<IIII", 4096, 0, region, 0))
    for fd in client.fds:
        os.close(fd)
    return struct.unpack_from("<IIII", reply)[3], [struct.unpack_from("<Q", reply, 16 + 40 * n)[0]
                                                   for n in range((len(reply) - 16) // 40)]


def test_ioeventfds_come_with_the_region_and_go_with_its_end(device, event):
    ctx, client = device

    def create(offset):
        return call("vfu_create_ioeventfd", ctx.p, BAR0, event, offset, 4, 0, 0, -1, 0)
    fails(errno.EINVAL, create, 0)
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    create(0)
    create(0xffc)
    assert io_fds(client, BAR0) == (2, [0xffc, 0])
    ctx.setup_region(BAR0, 0x800, flags=RW | MEM)
    assert io_fds(client, BAR0) == (1, [0])
    ctx.setup_region(BAR0, 0, flags=RW | MEM)
    assert io_fds(client, BAR0) == (0, [])
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    assert io_fds(client, BAR0) == (2, [0xffc, 0])
