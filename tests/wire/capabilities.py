"""Devices with capabilities, and walks through their lists."""
import ctypes as c
import struct

import pytest
from errno import EBUSY, EINVAL, ENOENT, ENOSPC, ENOTSUP, ENOTTY, EPERM

from libvfu import *
from pci_device import *


def make(kind=EXPRESS, **kw):
    ctx = Ctx(realize=False, **kw)
    if kind is not None:
        ctx.pci_init(kind)
    return ctx


@pytest.fixture
def ctx():
    """An Express device, not realized yet."""
    with make() as ctx:
        yield ctx


@pytest.fixture
def attached():
    """A realized Express device with a client; capabilities are added afterwards."""
    with make() as ctx:
        ctx.realize()
        with ctx.connect() as client:
            yield ctx, client


def find(ctx, extended, cap_id, pos=None):
    """Result of vfu_pci_find_capability or, with `pos`, of vfu_pci_find_next_capability."""
    ok = lambda r: r != 0
    if pos is None:
        return call("vfu_pci_find_capability", ctx.p, extended, cap_id, ok=ok)
    return call("vfu_pci_find_next_capability", ctx.p, extended, pos, cap_id, ok=ok)


def chain(ctx):
    """Offsets in the standard list, by its links."""
    at, seen = peek(ctx, CAP_POINTER, 1)[0], []
    while at:
        seen.append(at)
        at = peek(ctx, at + 1, 1)[0]
    return seen


def ext_link(ctx, at):
    return peek32(ctx, at) >> 20


def ext_chain(ctx):
    at, seen = 0x100, []
    while at and peek32(ctx, at):
        seen.append(at)
        at = ext_link(ctx, at)
    return seen
