"""A device with DMA and a client with a file to be mapped, for the tests of the scatter-gather API."""
import ctypes as c
import errno
import functools
import os
import struct
import threading

import pytest

from libvfu import *
from guest import *

BASE = 0x200000
TOP = 1 << 64
RWF = MAP_READ | MAP_WRITE
READ_ONLY, WRITE_ONLY, BOTH = PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


@pytest.fixture
def fd():
    fd = named_memfd("sgl-test", 64 * PAGE, bytes(i % 251 for i in range(8 * PAGE)))
    yield fd
    os.close(fd)


def map_three(client, fd):
    """Three touching regions of a page."""
    for i in range(3):
        client.map(BASE + i * PAGE, PAGE, fd, offset=i * PAGE)


def map_kind(client, kind, fd, size, base=BASE):
    client.map(base, size, None if kind == "message" else fd, flags=RWF | (MAP_FILE_IO if kind == "file io" else 0))


def entry(sg):
    """An entry as (region start, length, offset, writeable)."""
    return sg.dma_addr, sg.length, sg.offset, sg.writeable


@functools.cache
def pattern(n, seed=1):
    return bytes((i * 7 + seed + i // 256) & 0xff for i in range(n))
