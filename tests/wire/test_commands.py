"""Which commands there are: every other one is refused, every short payload too."""
import os
import struct

import pytest
from errno import EINVAL

from libvfu import *
from pci_device import alive

KNOWN = {DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS,
         REGION_READ, REGION_WRITE, DEVICE_RESET, REGION_WRITE_MULTI, DEVICE_FEATURE, MIG_DATA_READ,
         MIG_DATA_WRITE}


@pytest.fixture
def device():
    with Ctx(dma=True, quiesce=True, migration=True) as ctx, ctx.connect() as client:
        yield ctx, client
        assert client.nothing()


def test_every_unknown_command_number_is_refused(device):
    ctx, client = device
    for cmd in range(1 << 16):
        if cmd not in KNOWN:
            client.request(cmd, b"\0" * 32, expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("cmd", [0, VERSION, DMA_READ, DMA_WRITE, 14, 19, 20, 255, 256, 0xffff])
@pytest.mark.parametrize("size", [1, 4, 16, 4096])
def test_unknown_command_with_any_payload_is_refused(device, cmd, size):
    ctx, client = device
    client.request(cmd, bytes(size), expect=EINVAL)
    assert ctx.events == []
    alive(client)


@pytest.mark.parametrize("cmd", [0, VERSION, DMA_READ, DMA_WRITE, 14, 19, 0xffff])
def test_descriptors_of_an_unknown_command_are_closed(device, cmd):
    _, client = device
    fd = memfd(4096)
    before = open_fds()
    client.request(cmd, bytes(32), fds=[fd] * 8, expect=EINVAL)
    assert open_fds() == before
    os.close(fd)
    alive(client)


def test_second_version_message_is_refused_and_changes_nothing(device):
    _, client = device
    client.request(VERSION, version_payload({"write_multiple": True, "max_msg_fds": 3}), expect=EINVAL)
    client.request(REGION_WRITE_MULTI, bytes(8), expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("cmd", [0, 14, 19, 0xffff])
def test_unknown_command_that_wants_no_reply_gets_none(device, cmd):
    ctx, client = device
    client.send(cmd, bytes(16), flags=F_NO_REPLY)
    assert ctx.run() == 1
    assert ctx.errno == EINVAL
    alive(client)


@pytest.mark.parametrize("cmd", [c for c in range(20) if c != DEVICE_RESET])
def test_only_reset_comes_without_a_payload(device, cmd):
    """A header alone is refused before it is executed."""
    ctx, client = device
    client.request(cmd, b"", expect=EINVAL, count=0)
    assert ctx.events == []
    alive(client)


def test_reset_takes_no_payload_and_any(device):
    ctx, client = device
    assert client.request(DEVICE_RESET) == b""
    assert client.request(DEVICE_RESET, bytes(100)) == b""
    assert ctx.events == ["quiesce", ("reset", RESET_DEVICE)] * 2


# The least payload of each command, each filled so that it is fine at that size or
# fails for another reason than its length.
SMALLEST = {
    DMA_MAP: (32, struct.pack("<I", 32)),
    DMA_UNMAP: (24, struct.pack("<I", 24)),
    GET_INFO: (16, struct.pack("<I", 16)),
    GET_REGION_INFO: (32, struct.pack("<I", 32)),
    GET_REGION_IO_FDS: (16, struct.pack("<IIII", 16, 0, CFG, 0)),
    GET_IRQ_INFO: (16, struct.pack("<IIII", 16, 0, ERR, 0)),
    SET_IRQS: (20, struct.pack("<IIIII", 20, DATA_NONE | ACTION_TRIGGER, ERR, 0, 0)),
    REGION_READ: (16, struct.pack("<QII", 0, CFG, 0)),
    REGION_WRITE: (16, struct.pack("<QII", 0, CFG, 0)),
    DEVICE_FEATURE: (8, struct.pack("<II", 16, F_STATE | FEATURE_GET)),
}


@pytest.mark.parametrize("cmd", sorted(SMALLEST))
def test_payload_below_the_least_is_refused_at_every_size(device, cmd):
    _, client = device
    least, payload = SMALLEST[cmd]
    payload = payload.ljust(least, b"\0")
    for size in range(1, least):
        client.request(cmd, payload[:size], expect=EINVAL)
    alive(client)


@pytest.mark.parametrize("cmd", sorted(set(SMALLEST) - {DMA_MAP, DMA_UNMAP}))
def test_the_least_payload_is_enough(device, cmd):
    _, client = device
    least, payload = SMALLEST[cmd]
    client.request(cmd, payload.ljust(least, b"\0"))
    alive(client)


def test_reply_echoes_id_and_command(device):
    ctx, client = device
    for msg_id in (0, 1, 0x1234, 0xffff):
        client.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), msg_id=msg_id)
        ctx.run()
        reply = client.recv()
        assert reply.raw[:16] == struct.pack("<HHIII", msg_id, GET_INFO, 32, F_REPLY, 0)
        client.send(19, b"\0", msg_id=msg_id)
        ctx.run()
        assert client.recv().raw == struct.pack("<HHIII", msg_id, 19, 16, F_REPLY | F_ERROR, EINVAL)


def test_descriptors_of_a_command_that_takes_none_are_closed(device):
    _, client = device
    fd = memfd(4096)
    before = open_fds()
    client.request(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), fds=[fd, fd])
    client.request(REGION_READ, struct.pack("<QII", 0, CFG, 4), fds=[fd])
    client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 9, 0), fds=[fd] * 5, expect=EINVAL)
    assert open_fds() == before
    os.close(fd)
    alive(client)
