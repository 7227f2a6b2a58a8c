"""What a call leaves behind of what it has received: headers to be refused, commands that crossed, long messages."""
import pytest
from peer import *

BASE = 0x100000
TWIN = {"twin_socket": {"supported": True}}

# Refused for its type, at once, though the body that it announces has not come.
REFUSED = header(999, GET_INFO, 100, F_REPLY)


@pytest.fixture
def ctx():
    with Ctx(dma=True, quiesce=True) as ctx:
        yield ctx


def refused_by_polling(ctx, client):
    """Asserts that a caller that only polls gets the header refused, and that the stream stays in step."""
    assert ctx.readable(), "a header that waits for its answer, and the poll descriptor is silent"
    assert ctx.run() == 0
    assert is_error(client.recv(), 999, GET_INFO, errno.EINVAL)
    assert not ctx.readable()
    client.send_raw(bytes(84))
    assert ctx.run() == 0
    alive(client)


# --- a header that is refused, before its body has come -----------------------

def test_behind_the_version_message(ctx):
    with ctx.connect(attach=False) as client:
        client.send_raw(message(1, VERSION, version_payload()) + REFUSED)
        ctx.attach()
        assert client.recv().msg_id == 1
        refused_by_polling(ctx, client)


def test_behind_as_many_requests_as_one_call_executes(ctx):
    with ctx.connect() as client:
        client.send_raw(b"".join(info(i) for i in range(1500)))
        bound = ctx.run()  # 256, or fewer where its time is over before
        executed = bound + sum(poll_driven(ctx, lambda: ctx.readable()))
        assert executed == 1500 and bound < 1500
        for i in range(1500):
            assert is_info(client.recv(), i)
        client.send_raw(b"".join(info(i) for i in range(bound)) + REFUSED)
        if bound < 256 or ctx.run() < bound:
            pytest.skip("the machine was busy with something else, and the call has ended for its time")
        for i in range(bound):
            assert is_info(client.recv(), i)
        refused_by_polling(ctx, client)


@pytest.mark.parametrize("number", [0, errno.EIO])
def test_behind_a_request_that_waited_for_the_device(ctx, number):
    with ctx.connect() as client:
        ctx.quiesce_errno = errno.EBUSY
        client.send_raw(header(1, DEVICE_RESET, 16) + REFUSED)
        fails(errno.EBUSY, ctx.run)
        ctx.quiesced(number)
        assert client.recv().msg_id == 1
        refused_by_polling(ctx, client)


def test_behind_the_answer_to_a_dma_message(ctx):
    with ctx.connect() as client:
        client.map(BASE, 1 << 20)
        assert not ctx.readable()
        sg = ctx.sgl(BASE, 8)[1]

        def answer():
            m = client.recv()
            client.send_raw(header(m.msg_id, m.cmd, 40, F_REPLY) + m.payload[:16] + b"12345678" + REFUSED)
        server = Background(answer)
        assert sgl_read(ctx, sg, 8) == b"12345678"
        server.result()
        refused_by_polling(ctx, client)


@pytest.mark.parametrize("cut", [16, 17, 60, 99])
def test_the_rest_of_a_refused_body_comes_while_an_answer_is_awaited(ctx, cut):
    """With descriptors in between, and in pieces; the answer and what crosses it are found behind."""
    fds = [memfd(PAGE), memfd(PAGE)]
    with ctx.connect() as client:
        client.map(BASE, 1 << 20)
        sg = ctx.sgl(BASE, 8)[1]
        before = open_fds()
        refused = REFUSED + bytes(84)
        client.send_raw(refused[:cut], fds)
        assert ctx.run() == 0
        assert is_error(client.recv(), 999, GET_INFO, errno.EINVAL)
        assert open_fds() == before

        def answer():
            m = client.recv()
            for i in range(cut, 100):
                client.send_raw(refused[i:i + 1], fds[:1])
            client.send_raw(info(7))
            client.send_raw(header(m.msg_id, m.cmd, 40, F_REPLY) + m.payload[:16] + b"12345678")
        server = Background(answer)
        assert sgl_read(ctx, sg, 8) == b"12345678"
        server.result()
        assert open_fds() == before
        assert ctx.readable()
        assert ctx.run() == 1
        assert is_info(client.recv(), 7)
        alive(client)
    for fd in fds:
        os.close(fd)


def test_a_refused_header_and_a_request_behind_it_both_in_pieces_with_descriptors(ctx):
    """Each descriptor goes with the message whose bytes it came with, however the reads cut them."""
    pieces = REFUSED + bytes(84) + dma_map(1, BASE, PAGE) + REFUSED + bytes(84)
    kept, dropped = memfd(PAGE, b"kept"), memfd(PAGE)
    with ctx.connect() as client:
        before = open_fds()
        for i, byte in enumerate(pieces):
            of_the_map = 100 <= i < 148
            client.send_raw(bytes([byte]), [kept if i == 120 else dropped] if not of_the_map or i == 120 else [])
            assert ctx.run() == (i == 147)
        assert is_error(client.recv(), 999, GET_INFO, errno.EINVAL)
        assert client.recv().raw == header(1, DMA_MAP, 16, F_REPLY)
        assert is_error(client.recv(), 999, GET_INFO, errno.EINVAL)
        assert len(open_fds()) == len(before) + 1
        _, sg = ctx.sgl(BASE, 4)
        assert c.string_at(ctx.sgl_get(sg)[0].base, 4) == b"kept"
        alive(client)
    os.close(kept)
    os.close(dropped)


def test_the_end_of_the_stream_is_received_before_all_that_came_earlier_is_executed(ctx):
    """The calls that execute it say so; only then comes the loss."""
    with ctx.connect() as client:
        client.send_raw(b"".join(info(i) for i in range(1000)))
        client.sock.shutdown(socket.SHUT_WR)
        executed = 0
        while executed < 1000:
            assert ctx.readable()
            count = ctx.run()
            assert count > 0
            executed += count
        assert executed == 1000 and ctx.events == []
        for i in range(1000):
            assert is_info(client.recv(), i)
        until_lost(ctx)
        assert ctx.events == ["quiesce", ("reset", RESET_LOST_CONN)]


def sgl_read(ctx, sg, length):
    buf = c.create_string_buffer(length)
    call("vfu_sgl_read", ctx.p, sg, 1, buf, 0)
    return buf.raw[:length]


# --- commands that crossed, and a long message behind them --------------------

def test_a_long_message_waits_behind_more_commands_than_one_call_executes(ctx):
    """While a stuck reply is sent, commands are queued and the start of a long message is collected; the DMA message
    then goes over the twin socket and is answered there, so all of it is left for later calls. They find the buffer
    full behind the long message, and have nowhere to receive to until that has been executed."""
    mem = ctx.memory_region(BAR0, MAX_XFER)
    with ctx.connect(caps=TWIN) as client:
        client.map(BASE, 1 << 20)
        sg = ctx.sgl(BASE, 8)[1]
        client.send_raw(region_read(1, BAR0, 0, MAX_XFER))
        assert ctx.run() == 1
        crossing, behind = 600, 3000
        long = region_write(2, BAR0, 0, bytes(70000))
        client.send_raw(b"".join(info(i) for i in range(crossing)) + long[:1000])

        def serve():
            recv_exactly(client.sock, MAX_MSG)
            m = client.recv(client.twin)
            client.send_raw(header(m.msg_id, m.cmd, 40, F_REPLY) + m.payload[:16] + b"12345678", sock=client.twin)
        server = Background(serve)
        assert sgl_read(ctx, sg, 8) == b"12345678"
        server.result()
        client.send_raw(long[1000:] + b"".join(info(i) for i in range(behind)))

        received = []
        executed = 0
        while executed < crossing + 1 + behind:
            assert ctx.readable(), f"silent after {executed} requests"
            executed += ctx.run()
            while not client.nothing():
                received.append(client.recv())
        assert [r.cmd for r in received] == [GET_INFO] * crossing + [REGION_WRITE] + [GET_INFO] * behind
        assert [r.msg_id for r in received] == [*range(crossing), 2, *range(behind)]
        alive(client)
