"""A client that is asked for its memory by messages, and what its answers are."""
import pytest
from peer import *

LOST = ("reset", RESET_LOST_CONN)
TWIN = {"twin_socket": {"supported": True}}
BASE = 0x100000


@pytest.fixture
def ctx():
    with Ctx(dma=True, quiesce=True, migration=True, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 2)
        ctx.realize()
        yield ctx


def attach(ctx, caps):
    """A client with one region of memory that is reached by messages."""
    client = ctx.connect(caps=caps)
    client.map(BASE, 1 << 24)
    assert not ctx.readable()  # asked for early: what happens from now on has to set it
    del ctx.events[:]
    client.dma, client.replies = client.twin or client.sock, []
    return client


@pytest.fixture(params=[None, TWIN], ids=["one socket", "twin socket"])
def client(ctx, request):
    with attach(ctx, request.param) as client:
        yield client


@pytest.fixture
def shared(ctx):
    """A client without a twin socket."""
    with attach(ctx, None) as client:
        yield client


def entry(ctx, length, offset=0):
    return ctx.sgl(BASE + offset, length)[1]


def read(ctx, length, offset=0):
    """vfu_sgl_read by messages."""
    buf = c.create_string_buffer(max(length, 1))
    call("vfu_sgl_read", ctx.p, entry(ctx, length, offset), 1, buf, 0)
    return buf.raw[:length]


def write(ctx, data, offset=0):
    return call("vfu_sgl_write", ctx.p, entry(ctx, len(data), offset), 1, data, 0)


def request_of(client):
    """Receives the server's next command; checks what is common to all. (message, address, count, data)

    Replies that come before it are put aside for reply_of().
    """
    m = client.recv(client.dma)
    while m.flags & 15 == F_REPLY:
        client.replies.append(m)
        m = client.recv(client.dma)
    assert m.flags == 0 and m.error == 0 and m.fds == []
    assert m.cmd in (DMA_READ, DMA_WRITE)
    addr, count = struct.unpack_from("<QQ", m.payload)
    assert m.size == 32 + (count if m.cmd == DMA_WRITE else 0)
    return m, addr, count, m.payload[16:]


def reply_of(client):
    """The next reply, in the order in which they came."""
    return client.replies.pop(0) if client.replies else client.recv()


def good(m, addr, count, data=b""):
    """The reply that is wanted: of a read, bytes 0, 1, 2 and so on from the start of the region."""
    payload = struct.pack("<QQ", addr, count)
    if m.cmd == DMA_READ:
        payload += contents(addr, count)
    return header(m.msg_id, m.cmd, 16 + len(payload), F_REPLY) + payload


def contents(addr, count):
    start = addr - BASE
    return bytes((start + i) * 7 & 0xff for i in range(count))


def peer(client, *answers):
    """A thread that answers one command after the other: with bytes, or what a function makes of the command."""
    def serve():
        seen = []
        for answer in answers:
            m, addr, count, data = request_of(client)
            seen.append((m.cmd, addr, count, data))
            reply = answer(m, addr, count, data) if callable(answer) else answer
            if reply:
                client.send_raw(reply, sock=client.dma)
        return seen

    def guarded():
        try:
            return serve()
        except BaseException:
            client.dma.shutdown(socket.SHUT_RDWR)  # or the server would wait for ever
            raise
    return Background(guarded)


def interrupted(client, f, *args):
    """What the server asked in a call that a signal ended while it waited for the answer."""
    call_ = Background(f, *args)
    asked = request_of(client)
    call_.interrupt()
    fails(errno.EINTR, call_.result)
    return asked


def answers_again(ctx, client):
    """Asserts that both ways of the connection are in step."""
    server = peer(client, good)
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    alive(client)
