"""Every wait ends: by a signal, or because the client has gone; what is unfinished is gone on with."""
import pytest
from dma_peer import *
from guest import fds_of

CHUNK = 131072
# As many commands may be without an answer.
MOST_UNANSWERED = 64


def in_pieces(client, data, sizes):
    at = 0
    for size in sizes:
        client.send_raw(data[at:at + size], sock=client.dma)
        at += size
        yield
    client.send_raw(data[at:], sock=client.dma)
    yield


def idle(ctx):
    """Asserts that a caller that polls has nothing to do, after the calls that it has to make."""
    for _ in range(10):
        if not ctx.readable():
            return
        assert ctx.run() == 0
    raise AssertionError("the poll descriptor is readable without end")


# --- the answer to a DMA message ----------------------------------------------

@pytest.mark.parametrize("length", [8, 4096, CHUNK])
@pytest.mark.parametrize("is_write", [False, True], ids=["read", "write"])
def test_a_signal_ends_waiting_for_an_answer_and_the_late_one_is_skipped(ctx, client, length, is_write):
    asked = interrupted(client, write, ctx, bytes(length)) if is_write else interrupted(client, read, ctx, length)
    assert ctx.events == []
    alive(client)
    client.send_raw(good(*asked), sock=client.dma)
    idle(ctx)
    assert client.nothing(), "nobody is told of it"
    answers_again(ctx, client)


@pytest.mark.parametrize("length", [8, CHUNK])
@pytest.mark.parametrize("sizes", [[1], [15], [16], [17, 3], [31], [32], [33, 1], [16, 16, 7]])
def test_a_late_answer_in_pieces(ctx, client, length, sizes):
    late = good(*interrupted(client, read, ctx, length))
    for _ in in_pieces(client, late, sizes):
        idle(ctx)
    assert client.nothing()
    answers_again(ctx, client)


@pytest.mark.parametrize("length", [8, CHUNK])
@pytest.mark.parametrize("cut", [1, 16, 20, 32, 36])
def test_a_signal_in_the_middle_of_an_answer(ctx, client, length, cut):
    call_ = Background(read, ctx, length)
    answer = good(*request_of(client))
    client.send_raw(answer[:cut], sock=client.dma)
    # It has been taken out of the socket: the server waits for the rest.
    until("it is received", lambda: unsent(client.dma) == 0 and sleeps(call_) is not None)
    call_.interrupt()
    fails(errno.EINTR, call_.result)
    client.send_raw(answer[cut:], sock=client.dma)
    idle(ctx)
    assert client.nothing()
    answers_again(ctx, client)


# As much as is received at once with a head, and around that.
LENGTHS = [1, 64, 4096, (32 << 10) - 1, 32 << 10, (32 << 10) + 1, 48 << 10, CHUNK]


def with_head(m, payload, error=0):
    flags = F_REPLY | (F_ERROR if error else 0)
    return header(m.msg_id, m.cmd, 16 + len(payload), flags, error) + payload


NO_GOOD = {
    "an error": (errno.EIO, lambda m, addr, count: with_head(m, b"", errno.EIO)),
    "an error and data": (errno.EIO, lambda m, addr, count: with_head(m, bytes(16) + b"d" * count, errno.EIO)),
    "another address": (errno.EINVAL, lambda m, addr, count: with_head(
        m, struct.pack("<QQ", addr + 1, count) + b"d" * count)),
    "less": (errno.EINVAL, lambda m, addr, count: with_head(
        m, struct.pack("<QQ", addr, count) + b"d" * (count - 1))),
    "more": (errno.EINVAL, lambda m, addr, count: with_head(
        m, struct.pack("<QQ", addr, count) + b"d" * (count + 1))),
    "another command": (errno.EINVAL, lambda m, addr, count: header(
        m.msg_id, DMA_WRITE, 32 + count, F_REPLY) + struct.pack("<QQ", addr, count) + b"d" * count),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("how", NO_GOOD)
def test_an_answer_of_any_length_that_is_no_good_leaves_the_stream_in_step(ctx, client, length, how):
    number, answer = NO_GOOD[how]
    server = peer(client, lambda m, addr, count, data: answer(m, addr, count), good)
    fails(number, read, ctx, length)
    assert read(ctx, length, 64) == contents(BASE + 64, length)
    assert [seen[1] for seen in server.result()] == [BASE, BASE + 64]
    answers_again(ctx, client)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("cut", [1, 16, 31, 32, 33, 4064, -1])
def test_an_answer_of_any_length_in_two_pieces(ctx, client, length, cut):
    call_ = Background(read, ctx, length)
    answer = good(*request_of(client))
    client.send_raw(answer[:cut], sock=client.dma)
    until("it is received", lambda: unsent(client.dma) == 0)
    client.send_raw(answer[cut:], sock=client.dma)
    assert call_.result() == contents(BASE, length)
    answers_again(ctx, client)


@pytest.mark.parametrize("length", LENGTHS)
def test_descriptors_with_an_answer_of_any_length_are_closed(ctx, client, length):
    with open(os.memfd_create("not wanted"), "rb") as file:
        def answer(m, addr, count, data):
            client.send_raw(good(m, addr, count), [file.fileno()], sock=client.dma)
        server = peer(client, answer)
        assert read(ctx, length) == contents(BASE, length)
        server.result()
        assert fds_of("not wanted") == [file.fileno()]
    answers_again(ctx, client)


def unsent(sock):
    """Bytes that the other side has not taken."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


@pytest.mark.parametrize("length", [8, CHUNK])
@pytest.mark.parametrize("with_error", [False, True])
def test_late_answers_in_front_of_the_one_that_is_awaited(ctx, client, length, with_error):
    late = [good(*interrupted(client, read, ctx, length)) for _ in range(5)]
    if with_error:
        late[1] = late[1][:4] + struct.pack("<III", 16, F_REPLY | F_ERROR, errno.EIO)
        late[3] = late[3][:8] + struct.pack("<II", F_REPLY | F_ERROR, errno.EIO) + late[3][16:]

    def after_the_late_ones(*asked):
        return b"".join(late[::-1]) + good(*asked)
    server = peer(client, after_the_late_ones)
    assert read(ctx, 100) == contents(BASE, 100)
    server.result()
    answers_again(ctx, client)


def test_late_answers_among_commands_that_cross(ctx, shared):
    late = [good(*interrupted(shared, read, ctx, 8)) for _ in range(2)]
    shared.send_raw(info(1) + late[1] + info(2) + late[0] + info(3))
    ctx.executes(3)
    assert [is_info(shared.recv(), i) for i in (1, 2, 3)] == [True] * 3
    answers_again(ctx, shared)


def test_an_answer_is_skipped_once(ctx, shared):
    late = good(*interrupted(shared, read, ctx, 8))
    shared.send_raw(late + late)
    assert ctx.run() == 0
    msg_id, = struct.unpack_from("<H", late)
    assert is_error(shared.recv(), msg_id, DMA_READ, errno.EINVAL), "nobody awaits it a second time"
    answers_again(ctx, shared)


def test_when_too_many_answers_are_late_they_are_waited_for_first(ctx, client):
    late = [good(*interrupted(client, read, ctx, 8)) for _ in range(MOST_UNANSWERED)]
    call_ = Background(read, ctx, 8)
    until("it sleeps", lambda: sleeps(call_) is not None)
    assert not select.select([client.dma], [], [], 0)[0], "another command"
    call_.interrupt()
    fails(errno.EINTR, call_.result)
    call_ = Background(read, ctx, 16)
    client.send_raw(late.pop(), sock=client.dma)
    client.send_raw(good(*request_of(client)), sock=client.dma)
    assert call_.result() == contents(BASE, 16)
    client.send_raw(b"".join(late), sock=client.dma)
    idle(ctx)
    answers_again(ctx, client)


def test_a_long_transfer_may_be_interrupted_at_any_message(ctx, client):
    """What its other messages are answered is skipped."""
    for skipped in range(4):
        call_ = Background(read, ctx, 2 * CHUNK if client.twin is None else 8 * CHUNK)
        for _ in range(skipped if client.twin is None else 0):
            client.send_raw(good(*request_of(client)), sock=client.dma)
        until("it sleeps", lambda: sleeps(call_) is not None)
        call_.interrupt()
        fails(errno.EINTR, call_.result)
        while select.select([client.dma], [], [], 0)[0]:
            late = good(*request_of(client))
            for at in range(0, len(late), 50000):
                client.send_raw(late[at:at + 50000], sock=client.dma)
                idle(ctx)
        answers_again(ctx, client)


def test_a_signal_inside_a_callback_is_told_to_the_callback(ctx, client):
    outcomes = []

    def access(_ctx, buf, count, offset, is_write):
        try:
            outcomes.append(read(ctx, 8))
        except Failed as e:
            outcomes.append(e.errno)
        return count
    ctx.setup_region(BAR0, PAGE, access)
    client.send_raw(region_write(1, BAR0, 0, b"go"))
    run = Background(ctx.run)
    late = good(*request_of(client))
    run.interrupt()
    assert run.result() == 1 and outcomes == [errno.EINTR]
    assert client.recv().msg_id == 1
    client.send_raw(late, sock=client.dma)
    idle(ctx)
    answers_again(ctx, client)


# --- a command that is sent in part --------------------------------------------

@pytest.fixture(params=[True, False], ids=["non-blocking", "blocking"])
def any_ctx(request):
    with Ctx(dma=True, nonblocking=request.param, realize=False) as ctx:
        ctx.memory_region(BAR2, CHUNK)
        ctx.nonblocking = request.param
        ctx.realize()
        yield ctx


def serve(ctx, client, *requests):
    """Sends requests and has them executed, in a blocking context until a signal."""
    client.send_raw(b"".join(requests))
    if ctx.nonblocking:
        ctx.executes(len(requests))
        return
    run = Background(ctx.run)
    until("it is executed and waits", lambda: unsent(client.sock) == 0 and sleeps(run) is not None)
    run.interrupt()
    fails(errno.EINTR, run.result)


@pytest.mark.parametrize("caps", [None, TWIN], ids=["one socket", "twin socket"])
@pytest.mark.parametrize("then", ["requests", "another transfer"])
def test_the_rest_of_a_command_goes_out_before_anything_else(any_ctx, caps, then):
    ctx = any_ctx
    with ctx.connect(caps=caps) as client:
        client.dma, client.replies = client.twin or client.sock, []
        serve(ctx, client, dma_map(1, BASE, 1 << 24))
        assert client.recv().msg_id == 1
        size, filled = (1 << 20, 0) if client.twin else (CHUNK, CHUNK + 32)
        if filled:
            serve(ctx, client, region_read(2, BAR2, 0, CHUNK))  # its reply lies in the socket
        data = os.urandom(size)
        buffer = c.create_string_buffer(data, size)
        sg = entry(ctx, size)
        call_ = Background(lambda: call("vfu_sgl_write", ctx.p, sg, 1, buffer, 0))
        until("a part is sent", lambda: unread(client.dma) > filled + 32 and sleeps(call_) is not None)
        call_.interrupt()
        fails(errno.EINTR, call_.result)
        c.memset(buffer, 0, size)  # it is the device's again
        if then == "requests":
            if ctx.nonblocking:
                server = peer(client, good)
                while not server.done.wait(0.001):
                    if ctx.readable():
                        assert ctx.run() == 0
                idle(ctx)
            else:
                run = Background(ctx.run)
                server = peer(client, good)
        else:
            server = peer(client, good, good)
            assert read(ctx, 8) == contents(BASE, 8)
        written, *others = server.result()
        assert written == (DMA_WRITE, BASE, size, data)
        assert [other[:3] for other in others] == [(DMA_READ, BASE, 8)][:len(others)]
        assert [m.msg_id for m in client.replies] == [2][:filled]
        if then == "requests" and not ctx.nonblocking:
            client.send_raw(info(3))
            assert is_info(client.recv(), 3)
            client.close()
            fails(errno.ENOTCONN, run.result)


# --- a client that has closed one of two sockets --------------------------------

def test_the_loss_of_the_main_socket_ends_waiting_for_an_answer_on_the_twin_socket(ctx):
    with attach(ctx, TWIN) as client:
        call_ = Background(read, ctx, 8)
        request_of(client)
        client.sock.close()
        fails(errno.ENOTCONN, call_.result)
        assert ctx.events == [], "noted only"
        fails(errno.ENOTCONN, read, ctx, 8)
        lost(ctx)
        assert ctx.events == ["quiesce", ("unregister", BASE, 1 << 24), LOST]


def test_the_loss_of_the_main_socket_before_a_command_over_the_twin_socket(ctx):
    with attach(ctx, TWIN) as client:
        client.sock.close()
        fails(errno.ENOTCONN, read, ctx, 8)
        lost(ctx)


def test_the_loss_of_the_twin_socket_ends_waiting_for_an_answer(ctx):
    with attach(ctx, TWIN) as client:
        call_ = Background(read, ctx, 8)
        request_of(client)
        client.twin.close()
        fails(errno.ENOTCONN, call_.result)
        lost(ctx)


def test_a_client_that_has_ended_its_requests_still_answers_on_the_twin_socket(ctx):
    with attach(ctx, TWIN) as client:
        client.sock.shutdown(socket.SHUT_WR)
        server = peer(client, good)
        assert read(ctx, 8) == contents(BASE, 8)
        server.result()
        lost(ctx)


@pytest.mark.parametrize("how", ["close", "half"])
def test_a_full_twin_socket_is_waited_for_asleep_though_the_main_one_is_at_its_end(ctx, how):
    """The end of the main socket is no news that is told again and again; its loss ends the wait."""
    with attach(ctx, TWIN) as client:
        call_ = Background(write, ctx, bytes(1 << 20))
        until("the socket is full", lambda: unread(client.twin) > 65536 and sleeps(call_) is not None)
        before = sleeps(call_)
        if how == "close":
            client.sock.close()
            fails(errno.ENOTCONN, call_.result)
        else:
            client.sock.shutdown(socket.SHUT_WR)
            until("it sleeps again", lambda: (sleeps(call_) or before) > before)
            assert not call_.done.is_set()
            again = sleeps(call_)
            server = peer(client, good)
            assert call_.result() == 0
            server.result()
            assert again is not None
        lost(ctx)


# --- a client that reads no replies -------------------------------------------

def test_a_signal_ends_waiting_for_a_client_that_reads_no_replies():
    with Ctx(nonblocking=False, realize=False) as ctx:
        mem = ctx.memory_region(BAR2, MAX_XFER)
        mem[:] = os.urandom(MAX_XFER)
        ctx.realize()
        with ctx.connect() as client:
            client.send_raw(region_read(1, BAR2, 0, MAX_XFER) + info(2))
            for _ in range(3):
                run = Background(ctx.run)
                until("it waits for room", lambda: unread(client.sock) > 65536 and sleeps(run) is not None)
                run.interrupt()
                fails(errno.EINTR, run.result)
            run = Background(ctx.run)
            reply = client.recv()
            assert (reply.msg_id, reply.payload[16:]) == (1, bytes(mem)), "what was unsent is kept"
            assert is_info(client.recv(), 2)
            client.close()
            fails(errno.ENOTCONN, run.result)


def test_a_signal_ends_waiting_for_room_before_a_dma_message(ctx, client):
    """What the client has not read is gone on with."""
    mem = ctx.memory_region(BAR2, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    client.send_raw(region_read(1, BAR2, 0, MAX_XFER))
    assert ctx.run() == 1
    call_ = Background(read, ctx, 8)
    until("it waits for room", lambda: sleeps(call_) is not None)
    call_.interrupt()
    fails(errno.EINTR, call_.result)
    reply = Background(client.recv)
    while not reply.done.wait(0.001):
        if ctx.readable():
            assert ctx.run() == 0
    assert reply.result().payload[16:] == mem
    answers_again(ctx, client)


# --- a late answer while requests are served --------------------------------------

@pytest.mark.parametrize("caps", [None, TWIN], ids=["one socket", "twin socket"])
def test_a_late_answer_larger_than_a_socket_takes_does_not_hold_a_client_that_waits(any_ctx, caps):
    """A client with one thread sends it whole before it sends its next request."""
    ctx = any_ctx
    with ctx.connect(caps=caps) as client:
        client.dma, client.replies = client.twin or client.sock, []
        serve(ctx, client, dma_map(1, BASE, 1 << 24))
        assert client.recv().msg_id == 1
        late = good(*interrupted(client, read, ctx, MAX_XFER if client.twin else CHUNK))
        run = None if ctx.nonblocking else Background(ctx.run)

        def act():
            client.send_raw(late, sock=client.dma)
            client.send_raw(info(5))
            return client.recv()
        acting = Background(act)
        while ctx.nonblocking and not acting.done.wait(0.001):
            if ctx.readable():
                ctx.run()
        assert is_info(acting.result(), 5)
        if run:
            client.close()
            fails(errno.ENOTCONN, run.result)
        else:
            idle(ctx)
            answers_again(ctx, client)
