"""Who the client is: what vfu_get_poll_fd returns in callbacks, and vfux_get_client_credentials."""
import ctypes as c
import errno
import os
import socket
import struct

import pytest
from libvfu import *

from ext import credentials

US = (os.getpid(), os.geteuid(), os.getegid())


def identity(ctx):
    found = credentials()
    call("vfux_get_client_credentials", ctx.p, c.byref(found))
    return found.pid, found.uid, found.gid


def peer_of(fd):
    """SO_PEERCRED of a descriptor, as programs ask for it."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def test_credentials_are_those_of_the_client_while_it_is_attached():
    with Ctx() as ctx:
        fails(errno.ENOTCONN, identity, ctx)
        client = ctx.connect(attach=False)
        fails(errno.EAGAIN, ctx.attach)
        fails(errno.ENOTCONN, identity, ctx)
        client.close()
        fails(errno.ENOMSG, ctx.attach)
        with ctx.connect():
            assert identity(ctx) == US
            fails(errno.EINVAL, lambda: call("vfux_get_client_credentials", ctx.p, None))
        fails(errno.ENOTCONN, ctx.run)
        fails(errno.ENOTCONN, identity, ctx)


def test_credentials_are_those_of_the_process_that_connected():
    with Ctx() as ctx:
        child = os.fork()
        if child == 0:
            try:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(ctx.path)
                sock.sendall(message(1, VERSION, version_payload()))
                sock.recv(1 << 16)
                sock.recv(1)
            finally:
                os._exit(0)
        while True:
            try:
                ctx.attach()
                break
            except Failed as e:
                assert e.errno == errno.EAGAIN
                assert ctx.readable(30000)
        assert identity(ctx) == (child, os.geteuid(), os.getegid())
        ctx.destroy()
        os.waitpid(child, 0)


@pytest.mark.parametrize("ask_before", [False, True])
def test_in_a_callback_the_poll_descriptor_is_the_connected_socket(ask_before):
    seen = []
    with Ctx(dma=True, quiesce=True) as ctx:
        def look(*_):
            seen.append((ctx.poll_fd(), peer_of(ctx.poll_fd()), identity(ctx)))
        ctx.on_dma_register = ctx.on_dma_unregister = ctx.on_reset = look
        client = ctx.connect()
        if ask_before:
            ctx.poll_fd()
        client.map(0, PAGE, memfd(PAGE))
        client.map(PAGE, PAGE, memfd(PAGE))
        client.unmap(0, PAGE)
        client.request(DEVICE_RESET)
        assert len(seen) == 4
        outside = ctx.poll_fd()
        with pytest.raises(OSError):
            peer_of(outside)
        # Also in the callbacks that the loss brings: the last unregister, the reset.
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        assert len(seen) == 6
        assert {who for _, *both in seen for who in both} == {US}
        (fd,) = {fd for fd, _, _ in seen}
        assert fd != outside
        assert ctx.poll_fd() == outside
        # And it is closed once they are over.
        with pytest.raises(OSError):
            os.fstat(fd)
        ctx.on_reset = lambda kind: None


def test_the_context_that_is_destroyed_tells_it_as_well():
    seen = []
    ctx = Ctx(dma=True)
    ctx.on_dma_unregister = lambda info: seen.append(peer_of(ctx.poll_fd()))
    client = ctx.connect()
    client.map(0, PAGE, memfd(PAGE))
    p, ctx.p = ctx.p, None
    ctx.poll_fd = lambda: call("vfu_get_poll_fd", p)
    lib.vfu_destroy_ctx(p)
    ctx.destroy()
    assert seen == [US]
    assert client.eof()


def test_while_the_device_takes_time_to_quiesce_it_is_the_poll_descriptor():
    with Ctx(dma=True, quiesce=True) as ctx, ctx.connect() as client:
        outside = ctx.poll_fd()
        ctx.quiesce_errno = errno.EBUSY
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE))
        fails(errno.EBUSY, ctx.run)
        assert ctx.poll_fd() == outside
        ctx.on_dma_register = lambda info: ctx.events.append(peer_of(ctx.poll_fd()))
        ctx.quiesced()
        assert ctx.events[-1] == US
