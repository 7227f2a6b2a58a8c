"""DEVICE_GET_INFO, DEVICE_GET_REGION_INFO and DEVICE_GET_IRQ_INFO."""
import os
import struct

import pytest
from errno import EINVAL

from libvfu import *
from pci_device import alive

FLAG_READ, FLAG_WRITE, FLAG_MMAP, FLAG_CAPS = 1, 2, 4, 8
JUNK = 0xa5a5a5a5


@pytest.fixture
def device():
    with Ctx() as ctx, ctx.connect() as client:
        yield ctx, client


# --- device info ---------------------------------------------------------------

def info(argsz, extra=b""):
    return struct.pack("<IIII", argsz, JUNK, JUNK, JUNK) + extra


@pytest.mark.parametrize("argsz", [16, 17, 24, 4096, 0xffffffff])
@pytest.mark.parametrize("extra", [0, 1, 100])
def test_device_info_is_always_sixteen_bytes(device, argsz, extra):
    _, client = device
    assert client.request(GET_INFO, info(argsz, bytes(extra))) == struct.pack("<IIII", 16, 3, 9, 5)
    assert client.fds == []


@pytest.mark.parametrize("size", [1, 4, 8, 15])
def test_device_info_with_a_short_payload_is_refused(device, size):
    _, client = device
    client.request(GET_INFO, info(16)[:size], expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("argsz", [0, 8, 15])
def test_device_info_with_a_small_argsz_is_refused(device, argsz):
    _, client = device
    client.request(GET_INFO, info(argsz), expect=EINVAL)
    alive(client)


# --- region info ---------------------------------------------------------------

class RegionInfo:
    def __init__(self, payload):
        self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset = \
            struct.unpack("<IIIIQQ", payload[:32])
        self.length, self.rest = len(payload), payload[32:]


def region_request(argsz, index, extra=b""):
    return struct.pack("<IIIIQQ", argsz, JUNK, index, JUNK, 1 << 63, 1 << 62) + extra


def region_info(client, index, argsz=32, **kw):
    payload = client.request(GET_REGION_INFO, region_request(argsz, index, **kw))
    return RegionInfo(payload)


@pytest.mark.parametrize("index", [i for i in range(9) if i != CFG])
@pytest.mark.parametrize("argsz", [32, 33, 40, 4096])
def test_region_never_set_up_is_all_zero(device, index, argsz):
    _, client = device
    payload = client.request(GET_REGION_INFO, region_request(argsz, index))
    assert payload == struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
    assert client.fds == []


@pytest.mark.parametrize("size", [1, 8, 16, 31])
def test_region_info_with_a_short_payload_is_refused(device, size):
    _, client = device
    client.request(GET_REGION_INFO, region_request(32, BAR0)[:size], expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("argsz", [0, 8, 31])
def test_region_info_with_a_small_argsz_is_refused(device, argsz):
    _, client = device
    client.request(GET_REGION_INFO, region_request(argsz, BAR0), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("index", [9, 10, 255, 0x7fffffff, 0xffffffff])
def test_region_info_of_an_index_out_of_range_is_refused(device, index):
    _, client = device
    client.request(GET_REGION_INFO, region_request(32, index), expect=EINVAL)
    alive(client)


def test_region_info_request_may_be_followed_by_more(device):
    ctx, client = device
    ctx.setup_region(BAR0, 0x1000, flags=RW | MEM)
    info = region_info(client, BAR0, argsz=32, extra=bytes(200))
    assert (info.length, info.argsz, info.size) == (32, 32, 0x1000)


@pytest.mark.parametrize("flags, on_wire", [
    (1, FLAG_READ), (2, FLAG_WRITE), (3, FLAG_READ | FLAG_WRITE),
    (RW | MEM | BITS_64 | PREFETCH, FLAG_READ | FLAG_WRITE),
])
@pytest.mark.parametrize("argsz", [32, 40])
def test_region_without_areas_is_thirty_two_bytes(device, flags, on_wire, argsz):
    ctx, client = device
    ctx.setup_region(BAR2, 0x2000, flags=flags)
    payload = client.request(GET_REGION_INFO, region_request(argsz, BAR2))
    assert payload == struct.pack("<IIIIQQ", 32, on_wire, BAR2, 0, 0x2000, 0)
    assert client.fds == []


def test_the_region_offset_is_reported(device):
    ctx, client = device
    ctx.setup_region(BAR1, 0x1000, flags=RW | MEM, offset=0x123456789000)
    assert region_info(client, BAR1).offset == 0x123456789000


@pytest.mark.parametrize("size", [1 << 32, 1 << 33, 1 << 34, 1 << 63])
def test_sizes_of_four_gigabytes_and_more_are_reported_in_full(device, size):
    ctx, client = device
    ctx.setup_region(BAR0, size, flags=RW | MEM | BITS_64)
    assert region_info(client, BAR0).size == size


@pytest.mark.parametrize("kind, size", [(None, 256), (CONVENTIONAL, 256), (PCI_X_1, 256),
                                        (PCI_X_2, 4096), (EXPRESS, 4096)])
def test_config_region_has_the_size_of_its_kind(kind, size):
    with Ctx(realize=False) as ctx:
        if kind is not None:
            ctx.pci_init(kind)
        ctx.realize()
        with ctx.connect() as client:
            payload = client.request(GET_REGION_INFO, region_request(40, CFG))
            assert payload == struct.pack("<IIIIQQ", 32, FLAG_READ | FLAG_WRITE, CFG, 0, size, 0)


# The device of these tests: 0x8000 bytes at file offset 0x8000.
AREAS = [(0x2000, 0x1000), (0x4000, 0x2000)]


def mappable(ctx, areas=AREAS, idx=BAR1, size=0x8000, **kw):
    fd = memfd(0x10000)
    ctx.setup_region(idx, size, flags=RW | MEM, areas=areas, fd=fd, offset=0x8000, **kw)
    return fd


def same_file(a, b):
    return os.path.samestat(os.fstat(a), os.fstat(b))


@pytest.mark.parametrize("argsz", [32, 33, 48, 64, 79])
def test_without_room_for_the_areas_thirty_two_bytes_come_with_mmap_but_not_caps(device, argsz):
    ctx, client = device
    fd = mappable(ctx)
    before = open_fds()
    payload = client.request(GET_REGION_INFO, region_request(argsz, BAR1))
    assert payload == struct.pack("<IIIIQQ", 80, FLAG_READ | FLAG_WRITE | FLAG_MMAP, BAR1, 0, 0x8000, 0x8000)
    assert client.fds == [] and open_fds() == before
    os.close(fd)


@pytest.mark.parametrize("argsz", [80, 81, 200, 0xffffffff])
def test_with_room_the_areas_come_with_one_descriptor(device, argsz):
    ctx, client = device
    fd = mappable(ctx)
    payload = client.request(GET_REGION_INFO, region_request(argsz, BAR1))
    assert payload == struct.pack("<IIIIQQ", 80, FLAG_READ | FLAG_WRITE | FLAG_MMAP | FLAG_CAPS, BAR1, 32,
                                  0x8000, 0x8000) + struct.pack("<HHIII", 1, 1, 0, 2, 0) + \
        struct.pack("<QQQQ", 0x2000, 0x1000, 0x4000, 0x2000)
    assert len(client.fds) == 1 and same_file(client.fds[0], fd)
    os.close(client.fds[0])
    os.close(fd)


def test_nine_areas_can_be_set_up(device):
    ctx, client = device
    areas = [(i * 0x800, 0x400) for i in range(9)]
    fd = mappable(ctx, areas)
    full = 32 + 16 + 16 * 9
    info = region_info(client, BAR1)
    assert (info.length, info.argsz, info.flags) == (32, full, FLAG_READ | FLAG_WRITE | FLAG_MMAP)
    info = region_info(client, BAR1, argsz=full)
    assert (info.length, info.argsz, info.cap_offset) == (full, full, 32)
    assert info.rest == struct.pack("<HHIII", 1, 1, 0, 9, 0) + b"".join(struct.pack("<QQ", *a) for a in areas)
    os.close(client.fds[0])
    os.close(fd)


def test_descriptor_without_areas_is_one_area_over_the_whole_region(device):
    ctx, client = device
    fd = mappable(ctx, areas=None)
    info = region_info(client, BAR1, argsz=64)
    assert (info.length, info.argsz, info.cap_offset) == (64, 64, 32)
    assert info.flags == FLAG_READ | FLAG_WRITE | FLAG_MMAP | FLAG_CAPS
    assert info.rest == struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0, 0x8000)
    assert len(client.fds) == 1 and same_file(client.fds[0], fd)
    os.close(client.fds[0])
    os.close(fd)


def test_region_of_size_zero_never_has_capabilities(device):
    ctx, client = device
    fd = memfd(0x1000)
    ctx.setup_region(VGA, 0, flags=RW, fd=fd)
    info = region_info(client, VGA, argsz=4096)
    assert (info.length, info.argsz, info.cap_offset, info.size) == (32, 32, 0, 0)
    assert info.flags & FLAG_CAPS == 0 and client.fds == []
    os.close(fd)


def test_client_that_takes_no_descriptors_is_told_of_no_mapping():
    with Ctx() as ctx, ctx.connect(caps={"max_msg_fds": 0}) as client:
        fd = mappable(ctx)
        for argsz in (32, 80, 4096):
            payload = client.request(GET_REGION_INFO, region_request(argsz, BAR1))
            assert payload == struct.pack("<IIIIQQ", 32, FLAG_READ | FLAG_WRITE, BAR1, 0, 0x8000, 0x8000)
            assert client.fds == []
        alive(client)
        os.close(fd)


def test_descriptor_sent_is_the_clients_own_copy(device):
    ctx, client = device
    fd = mappable(ctx)
    region_info(client, BAR1, argsz=80)
    os.pwrite(client.fds[0], b"from the client", 0xa000)
    os.close(client.fds[0])
    assert os.pread(fd, 15, 0xa000) == b"from the client"
    region_info(client, BAR1, argsz=80)
    assert same_file(client.fds[0], fd)
    os.close(client.fds[0])
    os.close(fd)


# --- interrupt info --------------------------------------------------------------

def irq_request(argsz, index, extra=b""):
    return struct.pack("<IIII", argsz, JUNK, index, JUNK) + extra


@pytest.mark.parametrize("index, count", [(INTX, 0), (MSI, 0), (MSIX, 0), (ERR, 1), (REQ, 1)])
def test_irq_counts_by_default(device, index, count):
    _, client = device
    for argsz, extra in ((16, 0), (17, 1), (4096, 500)):
        payload = client.request(GET_IRQ_INFO, irq_request(argsz, index, bytes(extra)))
        assert payload == struct.pack("<IIII", 16, 1, index, count)


@pytest.mark.parametrize("index", [INTX, MSI, MSIX, ERR, REQ])
@pytest.mark.parametrize("count", [0, 1, 2048])
def test_irq_info_reports_the_configured_count(index, count):
    with Ctx(realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, index, count)
        ctx.realize()
        with ctx.connect() as client:
            for other in range(5):
                want = count if other == index else (0, 0, 0, 1, 1)[other]
                payload = client.request(GET_IRQ_INFO, irq_request(16, other))
                assert payload == struct.pack("<IIII", 16, 1, other, want)


@pytest.mark.parametrize("size", [1, 8, 15])
def test_irq_info_with_a_short_payload_is_refused(device, size):
    _, client = device
    client.request(GET_IRQ_INFO, irq_request(16, ERR)[:size], expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("argsz", [0, 8, 15])
def test_irq_info_with_a_small_argsz_is_refused(device, argsz):
    _, client = device
    client.request(GET_IRQ_INFO, irq_request(argsz, ERR), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("index", [5, 6, 255, 0xffffffff])
def test_irq_info_of_an_index_out_of_range_is_refused(device, index):
    _, client = device
    client.request(GET_IRQ_INFO, irq_request(16, index), expect=EINVAL)
    alive(client)
