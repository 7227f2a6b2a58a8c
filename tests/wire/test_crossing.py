"""Commands from server to client (DMA by messages), and what may cross them."""
import time
import pytest
from guest import resident
from dma_peer import *

# --- the plain case -----------------------------------------------------------

def test_a_read_is_one_message_each_way(ctx, client):
    server = peer(client, good)
    assert read(ctx, 64, 100) == contents(BASE + 100, 64)
    assert server.result() == [(DMA_READ, BASE + 100, 64, b"")]
    alive(client)


def test_a_write_is_one_message_each_way(ctx, client):
    server = peer(client, good)
    assert write(ctx, bytes(range(64)), 100) == 0
    assert server.result() == [(DMA_WRITE, BASE + 100, 64, bytes(range(64)))]
    alive(client)


def test_with_a_twin_socket_nothing_goes_over_the_main_one(ctx):
    with attach(ctx, TWIN) as client:
        server = peer(client, good, good)
        read(ctx, 64)
        write(ctx, b"x" * 64)
        server.result()
        assert client.nothing()


@pytest.mark.parametrize("limit,length,chunks", [
    (PAGE, 2 * PAGE + 42, [PAGE, PAGE, 42]),
    (1, 3, [1, 1, 1]),
    (65536, 131073, [65536, 65536, 1]),
    (131071, 131073, [131071, 2]),
    (131072, 131072, [131072]),
    (131072, 131073, [65536, 65536, 1]),
    (200000, 131072, [131072]),
    (200000, 300000, [65536] * 4 + [37856]),
    (1 << 20, 300000, [65536] * 4 + [37856]),
    (1 << 40, 300000, [65536] * 4 + [37856]),
    (None, 300000, [65536] * 4 + [37856]),
])
@pytest.mark.parametrize("is_write", [False, True])
def test_transfers_go_in_chunks_of_the_clients_limit_and_128_kib_on_the_way_at_the_most(ctx, limit, length, chunks, is_write):
    caps = {} if limit is None else {"max_data_xfer_size": limit}
    with attach(ctx, caps) as client:
        server = peer(client, *[good] * len(chunks))
        if is_write:
            write(ctx, contents(BASE, length))
        else:
            assert read(ctx, length) == contents(BASE, length)
        seen = server.result()
        starts = [BASE + sum(chunks[:i]) for i in range(len(chunks))]
        assert [(addr, count) for _, addr, count, _ in seen] == list(zip(starts, chunks))
        if is_write:
            assert b"".join(data for _, _, _, data in seen) == contents(BASE, length)
        alive(client)


@pytest.mark.parametrize("limit,length,chunks", [
    (PAGE, 2 * PAGE + 42, [PAGE, PAGE, 42]),
    (131073, 131073, [131073]),
    (200000, 300000, [200000, 100000]),
    (1 << 20, (1 << 20) + 1, [1 << 20, 1]),
    (1 << 40, 3 << 20, [1 << 20] * 3),
    (None, 1 << 20, [1 << 20]),
])
@pytest.mark.parametrize("is_write", [False, True])
def test_with_a_twin_socket_a_message_is_as_large_as_the_client_allows(ctx, limit, length, chunks, is_write):
    caps = TWIN if limit is None else {**TWIN, "max_data_xfer_size": limit}
    with attach(ctx, caps) as client:
        server = peer(client, *[good] * len(chunks))
        if is_write:
            write(ctx, contents(BASE, length))
        else:
            assert read(ctx, length) == contents(BASE, length)
        seen = server.result()
        assert [count for _, _, count, _ in seen] == chunks
        if is_write:
            assert b"".join(data for _, _, _, data in seen) == contents(BASE, length)
        alive(client)


def due(client):
    """Bytes of answers that the commands which lie in the socket ask for; none is answered yet."""
    asked = []
    while select.select([client.dma], [], [], 0)[0]:
        asked.append(request_of(client))
    return asked


@pytest.mark.parametrize("is_write", [False, True])
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "out of order"])
def test_over_one_socket_128_kib_of_answers_are_due_at_the_most(ctx, shared, is_write, order):
    """Several commands, answered in any order; the client reads none before the server waits."""
    length = 300000
    data = contents(BASE, length)
    call_ = Background(write, ctx, data) if is_write else Background(read, ctx, length)
    moved, most = 0, 0
    while moved < length:
        until("the server waits", lambda: unread(shared.sock) and sleeps(call_) is not None)
        asked = due(shared)
        assert sum(count for _, _, count, _ in asked) <= 131072
        most = max(most, len(asked))
        for one in asked[::order]:
            moved += one[2]
            assert not is_write or one[3] == data[one[1] - BASE:][:one[2]]
            shared.send_raw(good(*one))
    assert call_.result() == (0 if is_write else data)
    assert most == 2
    alive(shared)


def test_an_error_answer_to_one_of_several_commands(ctx, shared):
    """The transfer fails; what the other is answered is skipped."""
    for which in (0, 1):
        call_ = Background(read, ctx, 300000)
        asked = [request_of(shared), request_of(shared)]
        shared.send_raw(replied(ERROR, errno.EIO, payload=b"")(*asked.pop(which)))
        fails(errno.EIO, call_.result)
        shared.send_raw(good(*asked[0]))
        assert ctx.run() == 0
        answers_again(ctx, shared)


def test_ids_come_from_one_counter_of_the_process(ctx, client):
    ids = []

    def noting(m, *rest):
        ids.append(m.msg_id)
        return good(m, *rest)
    with Ctx(dma=True) as other, attach(other, None) as second:
        for _ in range(3):
            server = peer(client, noting)
            read(ctx, 1)
            server.result()
            server = peer(second, noting)
            read(other, 1)
            server.result()
    assert [n & 0xffff for n in range(ids[0], ids[0] + 6)] == ids


def test_a_reply_in_pieces(ctx, client):
    def drip(m, *rest):
        for byte in good(m, *rest):
            client.send_raw(bytes([byte]), sock=client.dma)
    server = peer(client, drip)
    assert read(ctx, 40) == contents(BASE, 40)
    server.result()
    alive(client)


def test_the_log_warns_at_most_once_in_a_process_that_there_is_no_twin_socket(ctx, shared):
    ctx.lines.clear()
    for _ in range(2):
        server = peer(shared, good)
        read(ctx, 1)
        server.result()
    assert len([text for level, text in ctx.lines if level == 4]) <= 1


# --- replies that are wrong ---------------------------------------------------

def replied(flags=F_REPLY, error=0, msg_id=0, cmd=None, payload=None, cut=None, more=b""):
    """Makes an answer that differs from the good one in what is given."""
    def make(m, addr, count, data):
        body = good(m, addr, count)[16:] if payload is None else payload
        body = body[:cut] + more
        return header((m.msg_id + msg_id) & 0xffff, m.cmd if cmd is None else cmd, 16 + len(body), flags, error) + body
    return make


ERROR = F_REPLY | F_ERROR
WRONG = {
    "another id": (errno.EPROTO, replied(msg_id=1)),
    "an id far off": (errno.EPROTO, replied(msg_id=0x8000)),
    "another id in an error reply": (errno.EPROTO, replied(ERROR, errno.EIO, msg_id=1, payload=b"")),
    "another id without payload": (errno.EPROTO, replied(msg_id=1, payload=b"")),
    **{f"type {n}": (errno.EINVAL, replied(n)) for n in (2, 3, 9, 15)},
    "type 2 with the error bit": (errno.EINVAL, replied(2 | F_ERROR, errno.EIO)),
    "another command": (errno.EINVAL, replied(cmd=GET_INFO)),
    "the command of the other direction": (errno.EINVAL, replied(cmd=23 - DMA_READ - 1)),
    "another command in an error reply": (errno.EINVAL, replied(ERROR, errno.EIO, cmd=GET_INFO, payload=b"")),
    **{f"errno {n}": (n, replied(ERROR, n, payload=b"")) for n in (
        1, errno.EIO, errno.ENOTCONN, errno.ENOMSG, errno.ECONNRESET, errno.EINTR, errno.EAGAIN, errno.EBUSY, 4096)},
    "errno with a payload": (errno.EIO, replied(ERROR, errno.EIO)),
    "errno with a long payload": (errno.EIO, replied(ERROR, errno.EIO, more=bytes(5000))),
    "errno 0": (errno.EINVAL, replied(ERROR, 0, payload=b"")),
    "errno 4097": (errno.EINVAL, replied(ERROR, 4097, payload=b"")),
    "errno 2^32 - 1": (errno.EINVAL, replied(ERROR, 0xffffffff, payload=b"")),
    "no payload": (errno.EINVAL, replied(payload=b"")),
    "one byte": (errno.EINVAL, replied(cut=1)),
    "a byte too few": (errno.EINVAL, replied(cut=-1)),
    "a byte too many": (errno.EINVAL, replied(more=b"x")),
    "a whole message too many": (errno.EINVAL, replied(more=info(5))),
    "as large as a message may be": (errno.EINVAL, replied(more=bytes(MAX_MSG - 40), cut=24)),
    "another address": (errno.EINVAL, lambda m, addr, count, data: good(m, addr + 1, count)),
    "address 0": (errno.EINVAL, lambda m, addr, count, data:
                  good(m, addr, count)[:16] + bytes(8) + good(m, addr, count)[24:]),
    "another count": (errno.EINVAL, lambda m, addr, count, data:
                      good(m, addr, count)[:24] + struct.pack("<Q", count - 1) + good(m, addr, count)[32:]),
    "count above 2^32": (errno.EINVAL, lambda m, addr, count, data:
                         good(m, addr, count)[:24] + struct.pack("<Q", count + (1 << 32)) + good(m, addr, count)[32:]),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("is_write", [False, True], ids=["read", "write"])
def test_a_wrong_reply_fails_that_transfer_and_the_connection_stays_in_step(ctx, client, what, is_write):
    number, answer = WRONG[what]
    if what == "the command of the other direction":
        answer = replied(cmd=DMA_READ if is_write else DMA_WRITE)
    server = peer(client, answer)
    fails(number, write, ctx, b"x" * 24) if is_write else fails(number, read, ctx, 24)
    server.result()
    assert ctx.events == []
    answers_again(ctx, client)


def test_a_wrong_reply_to_a_later_chunk_ends_the_transfer(ctx):
    with attach(ctx, {"max_data_xfer_size": 16}) as client:
        server = peer(client, good, replied(ERROR, errno.EIO, payload=b""))
        fails(errno.EIO, read, ctx, 64)
        assert len(server.result()) == 2
        answers_again(ctx, client)


def test_a_reply_that_comes_too_late_is_refused_where_nobody_awaits_one(ctx, client):
    """With a twin socket it lies there until the next transfer, whose answer it is not."""
    late = []

    def wrong(*a):
        late.append(good(*a))
        return replied(msg_id=1)(*a)
    server = peer(client, wrong)
    fails(errno.EPROTO, read, ctx, 8)
    server.result()
    client.send_raw(late[0], sock=client.dma)
    if client.twin:
        server = peer(client, None)
        fails(errno.EPROTO, read, ctx, 8)
        server.result()
    else:
        assert ctx.run() == 0
        msg_id, = struct.unpack_from("<H", late[0])
        assert is_error(client.recv(), msg_id, DMA_READ, errno.EINVAL)
    answers_again(ctx, client)


def test_a_reply_that_comes_when_the_next_one_is_awaited_fails_that_transfer(ctx, client):
    late = []

    def wrong(*a):
        late.append(good(*a))
        return replied(ERROR, errno.EIO, payload=b"")(*a)
    server = peer(client, wrong, lambda *a: late[0], good)
    fails(errno.EIO, read, ctx, 8)
    fails(errno.EPROTO, read, ctx, 8)
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    alive(client)


def test_descriptors_with_a_reply_are_closed_as_if_they_had_not_come(ctx, client):
    fd = memfd(PAGE)
    before = open_fds()

    def with_fds(m, *rest):
        client.send_raw(good(m, *rest), [fd] * 3, sock=client.dma)
    server = peer(client, with_fds)
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert open_fds() == before
    os.close(fd)
    answers_again(ctx, client)


def test_a_command_on_the_twin_socket_is_no_reply(ctx):
    with attach(ctx, TWIN) as client:
        server = peer(client, replied(flags=0))
        fails(errno.EINVAL, read, ctx, 8)
        server.result()
        answers_again(ctx, client)


@pytest.mark.parametrize("size", [0, 15, MAX_MSG + 1, 0xffffffff])
def test_a_size_that_cannot_be_followed_is_einval_and_the_connection_is_lost(ctx, client, size):
    server = peer(client, lambda m, *_: header(m.msg_id, m.cmd, size, F_REPLY))
    fails(errno.EINVAL, read, ctx, 8)
    server.result()
    assert ctx.events == [], "noted only: nothing is torn down in the middle of the device's work"
    assert ctx.sgl(BASE, 8)[0] == 1
    for _ in range(2):
        fails(errno.ENOTCONN, read, ctx, 8)
    assert ctx.readable(), "a loss that no call has reported"
    fails(errno.ENOTCONN, ctx.run)
    assert ctx.events == ["quiesce", ("unregister", BASE, 1 << 24), LOST]
    assert end_of_file(client.sock)
    lost(ctx)
    with ctx.connect() as other:
        alive(other)


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 39])
def test_end_of_file_instead_of_a_reply_is_enotconn_and_only_noted(ctx, client, cut):
    def leave(m, *rest):
        if cut:
            client.send_raw(good(m, *rest)[:cut], sock=client.dma)
        client.dma.shutdown(socket.SHUT_RDWR)
    server = peer(client, leave)
    fails(errno.ENOTCONN, read, ctx, 8)
    server.result()
    assert ctx.events == []
    fails(errno.ENOTCONN, write, ctx, b"x")
    assert ctx.readable()
    fails(errno.ENOTCONN, ctx.run)
    assert ctx.events == ["quiesce", ("unregister", BASE, 1 << 24), LOST]
    lost(ctx)


def test_a_client_that_is_gone_before_the_command(ctx, client):
    client.close()
    fails(errno.ENOTCONN, read, ctx, 8)
    assert ctx.events == []
    lost(ctx)
    assert ctx.events == ["quiesce", ("unregister", BASE, 1 << 24), LOST]


def test_an_error_reply_with_an_errno_of_loss_is_no_loss(ctx, client):
    for number in (errno.ENOMSG, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE):
        server = peer(client, replied(ERROR, number, payload=b""))
        fails(number, read, ctx, 8)
        server.result()
        answers_again(ctx, client)
    assert ctx.events == []


def test_without_a_client_a_message_transfer_is_enotconn():
    with Ctx(dma=True) as ctx:
        client = attach(ctx, None)
        seen = []

        def unregistered(_info):
            try:
                read(ctx, 8)
            except Failed as e:
                seen.append(e.errno)
        ctx.on_dma_unregister = unregistered
        client.close()
        lost(ctx)
        assert seen == [errno.ENOTCONN]


# --- what crosses -------------------------------------------------------------

def set_irqs(msg_id, count):
    return message(msg_id, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, count))


def test_a_command_that_crosses_is_executed_afterwards(ctx, shared):
    server = peer(shared, lambda *a: info(7) + good(*a))
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert shared.nothing()
    assert ctx.readable(), "a queued command makes the poll descriptor readable"
    assert ctx.run() == 1
    assert is_info(shared.recv(), 7)
    answers_again(ctx, shared)


def test_commands_that_cross_keep_their_order_and_descriptors(ctx, shared):
    events = [eventfd(), eventfd()]
    region = memfd(PAGE, b"mapped")

    def cross(*a):
        shared.send_raw(info(7))
        shared.send_raw(set_irqs(8, 2), events)
        shared.send_raw(dma_map(9, 0, PAGE), [region])
        shared.send_raw(info(10)[:5])
        shared.send_raw(info(10)[5:] + good(*a) + info(11)[:20])
    server = peer(shared, cross)
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert ctx.events == []
    shared.send_raw(info(11)[20:])
    executed = 0
    while executed < 5:
        assert ctx.readable()
        executed += ctx.run()
    assert is_info(shared.recv(), 7)
    assert shared.recv().raw == header(8, SET_IRQS, 16, F_REPLY)
    assert shared.recv().raw == header(9, DMA_MAP, 16, F_REPLY)
    assert is_info(shared.recv(), 10) and is_info(shared.recv(), 11)
    for vector, fd in enumerate(events):
        call("vfu_irq_trigger", ctx.p, vector)
        assert os.read(fd, 8) == struct.pack("<Q", 1)
        os.close(fd)
    _, sg = ctx.sgl(0, 6)
    assert c.string_at(ctx.sgl_get(sg)[0].base, 6) == b"mapped"
    os.close(region)
    answers_again(ctx, shared)


def test_commands_read_ahead_before_the_dma_message_keep_their_place_in_front(ctx, shared):
    got = dma_region(ctx, 8)
    server = peer(shared, lambda *a: info(3) + good(*a))
    shared.send_raw(region_write(1, BAR0, 0, b"go") + info(2))
    executed = ctx.run()
    while executed < 3:
        assert ctx.readable()
        executed += ctx.run()
    server.result()
    assert got == [contents(BASE, 8)]
    assert shared.recv().raw == header(1, REGION_WRITE, 32, F_REPLY) + struct.pack("<QII", 0, BAR0, 2)
    assert is_info(shared.recv(), 2) and is_info(shared.recv(), 3)


def dma_region(ctx, length, index=BAR0):
    """A region whose writes make the device read guest memory; what it read, or the errno."""
    got = []

    def access(_ctx, buf, count, _offset, is_write):
        ctx.events.append(("access", is_write, c.string_at(buf, count) if is_write else count))
        if is_write:
            before = c.string_at(buf, count)
            try:
                got.append(read(ctx, length))
            except Failed as e:
                got.append(e.errno)
            assert c.string_at(buf, count) == before, "the request moved or changed under the callback"
        return count
    ctx.setup_region(index, 256, access)
    return got


def test_a_region_callback_may_do_dma_while_the_client_sends_another_access(ctx, client):
    got = dma_region(ctx, 64)

    def cross(*a):
        client.send_raw(region_write(2, BAR0, 0, b"second request"))
        client.send_raw(good(*a), sock=client.dma)
    server = peer(client, cross, good)
    client.send_raw(region_write(1, BAR0, 0, b"first"))
    executed = 0
    while executed < 2:
        assert ctx.readable()
        executed += ctx.run()
    server.result()
    assert got == [contents(BASE, 64)] * 2
    assert ctx.events == [("access", True, b"first"), ("access", True, b"second request")]
    assert [reply_of(client).msg_id for _ in range(2)] == [1, 2]
    answers_again(ctx, client)


def test_many_accesses_each_doing_dma_while_more_arrive(ctx, client):
    got = dma_region(ctx, 1000)
    n = 30

    def crossing(i):
        def cross(*a):
            if 2 * i + 2 < n:
                client.send_raw(b"".join(region_write(k, BAR0, 0, bytes([k]) * (k + 1)) for k in (2 * i + 1, 2 * i + 2)))
            client.send_raw(good(*a), sock=client.dma)
        return cross
    last = max(k for i in range(n) if 2 * i + 2 < n for k in (2 * i + 1, 2 * i + 2))
    server = peer(client, *[crossing(i) for i in range(last + 1)])
    client.send_raw(region_write(0, BAR0, 0, b"\0"))
    executed = 0
    while executed < last + 1:
        assert ctx.readable(GUARD * 1000)
        executed += ctx.run()
    server.result()
    assert got == [contents(BASE, 1000)] * (last + 1)
    assert [data for _, _, data in ctx.events] == [bytes([k]) * (k + 1) for k in range(last + 1)]
    assert [reply_of(client).msg_id for _ in range(last + 1)] == list(range(last + 1))


def test_gathered_replies_go_out_before_a_command_to_the_client(ctx, shared):
    got = dma_region(ctx, 8)
    order = []

    def serve():
        order.append(shared.recv().cmd)
        order.append(shared.recv().cmd)
        shared.send_raw(good(*request_of(shared)))
    server = Background(serve)
    shared.send_raw(info(1) + info(2) + region_write(3, BAR0, 0, b"go") + info(4))
    executed = ctx.run()
    server.result()
    assert order == [GET_INFO, GET_INFO]
    while executed < 4:
        executed += ctx.run()
    assert got == [contents(BASE, 8)]
    assert shared.recv().msg_id == 3
    assert is_info(shared.recv(), 4)


def test_gathered_replies_go_out_before_a_command_over_the_twin_socket_too(ctx):
    with attach(ctx, TWIN) as client:
        got = dma_region(ctx, 8)

        def serve():
            assert is_info(client.recv(), 1)
            client.send_raw(good(*request_of(client)), sock=client.twin)
        server = Background(serve)
        client.send_raw(info(1) + region_write(2, BAR0, 0, b"go"))
        ctx.executes(2)
        server.result()
        assert got == [contents(BASE, 8)]
        assert client.recv().msg_id == 2


@pytest.mark.parametrize("cut", [1, 15, 16, 20, 31])
def test_a_command_of_which_a_part_was_received_before_the_dma_message(ctx, shared, cut):
    shared.send_raw(info(1)[:cut])
    assert ctx.run() == 0
    server = peer(shared, lambda *a: info(1)[cut:] + good(*a))
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert ctx.run() == 1
    assert is_info(shared.recv(), 1)
    answers_again(ctx, shared)


def test_a_part_of_a_command_behind_the_reply_is_kept(ctx, shared):
    server = peer(shared, lambda *a: good(*a) + info(1)[:20])
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert ctx.run() == 0
    shared.send_raw(info(1)[20:])
    assert ctx.run() == 1
    assert is_info(shared.recv(), 1)


def test_a_header_that_is_refused_may_cross_too(ctx, shared):
    server = peer(shared, lambda *a: header(5, GET_INFO, 16) + good(*a))
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert ctx.run() == 0
    assert is_error(shared.recv(), 5, GET_INFO, errno.EINVAL)
    answers_again(ctx, shared)


def test_a_reset_may_cross_and_is_not_executed_inside_the_transfer(ctx, shared):
    server = peer(shared, lambda *a: header(5, DEVICE_RESET, 16) + good(*a))
    assert read(ctx, 8) == contents(BASE, 8)
    server.result()
    assert ctx.events == []
    assert ctx.run() == 1
    assert ctx.events == ["quiesce", ("reset", RESET_DEVICE)]
    assert shared.recv().raw == header(5, DEVICE_RESET, 16, F_REPLY)


def test_with_a_twin_socket_commands_on_the_main_one_stay_there(ctx):
    with attach(ctx, TWIN) as client:
        client.send_raw(info(1))
        server = peer(client, good)
        assert read(ctx, 8) == contents(BASE, 8)
        server.result()
        assert client.nothing()
        assert ctx.run() == 1
        assert is_info(client.recv(), 1)


@pytest.mark.parametrize("size", [16, 32, 5000])
def test_a_reply_that_nobody_awaits_is_refused_and_the_connection_stays(ctx, shared, size):
    shared.send_raw(header(5, DMA_READ, size, F_REPLY) + bytes(size - 16))
    assert ctx.run() == 0
    assert is_error(shared.recv(), 5, DMA_READ, errno.EINVAL)
    answers_again(ctx, shared)


def test_a_crossing_size_that_cannot_be_followed_loses_the_connection(ctx, shared):
    server = peer(shared, lambda *a: header(5, GET_INFO, 7) + good(*a))
    try:
        read(ctx, 8)
    except Failed as e:
        assert e.errno in (errno.EINVAL, errno.ENOTCONN)
    server.result()
    assert ctx.events == []
    for _ in range(3):
        try:
            ctx.run()
        except Failed as e:
            assert e.errno == errno.ENOTCONN
    lost(ctx)
    assert ctx.events == ["quiesce", ("unregister", BASE, 1 << 24), LOST]


# What may cross one message of ours is bounded: so many commands, bytes, descriptors.
MOST, MOST_BYTES, MOST_FDS = 4096, 16 << 20, 1024


def crossed(client, *parts):
    """Sends what crosses, then the answer, in a thread: the server takes it while it waits."""
    def serve():
        m, *rest = request_of(client)
        try:
            for part in parts:
                client.send_raw(*part)
            client.send_raw(good(m, *rest))
        except (BrokenPipeError, ConnectionResetError):
            return "cut off"
        return "taken"
    return Background(serve)


def test_as_many_commands_as_are_bearable_may_cross(ctx, shared):
    before = resident()
    server = crossed(shared, [b"".join(info(i) for i in range(MOST))])
    assert read(ctx, 8) == contents(BASE, 8)
    assert server.result() == "taken"
    assert resident() - before < 16 << 20, "each waits in a buffer much larger than itself"
    executed, received = 0, []
    while executed < MOST:
        assert ctx.readable()
        executed += ctx.run()
        while not shared.nothing():
            received.append(shared.recv())
    assert all(is_info(reply, i) for i, reply in enumerate(received)) and len(received) == MOST
    answers_again(ctx, shared)


def test_as_many_bytes_as_are_bearable_may_cross(ctx, shared):
    mem = ctx.memory_region(BAR0, MAX_XFER)
    large = MOST_BYTES // MAX_XFER - 1
    server = crossed(shared, *[[region_write(i, BAR0, 0, bytes([i]) * MAX_XFER)] for i in range(large)])
    assert read(ctx, 8) == contents(BASE, 8)
    assert server.result() == "taken"
    ctx.executes(large)
    assert [shared.recv().msg_id for _ in range(large)] == list(range(large))
    assert mem == bytes([large - 1]) * MAX_XFER
    answers_again(ctx, shared)


@pytest.fixture
def room():
    """The process may open more than may cross."""
    with Room(2 * MOST_FDS):
        yield


def maps_with_descriptors(fd, first, count):
    return [[dma_map(i, i * PAGE, PAGE), [fd] * 128] for i in range(first, first + count)]


def test_as_many_descriptors_as_are_bearable_may_cross(ctx, shared, room):
    fd = memfd(PAGE)
    before = open_fds()
    count = MOST_FDS // 128
    server = crossed(shared, *maps_with_descriptors(fd, 1, count))
    assert read(ctx, 8) == contents(BASE, 8)
    assert server.result() == "taken"
    ctx.executes(count)
    for i in range(1, 1 + count):
        assert shared.recv().raw == header(i, DMA_MAP, 16, F_REPLY)
    assert len(open_fds()) == len(before) + 1, "one descriptor of that file is kept"
    os.close(fd)
    answers_again(ctx, shared)


# One with two descriptors comes before.
TOO_MUCH = {
    "commands": lambda fd: [[b"".join(info(i) for i in range(MOST))]],
    "bytes": lambda fd: [[region_write(1, BAR0, 0, bytes(MAX_XFER)) * (MOST_BYTES // MAX_XFER)]],
    "descriptors": lambda fd: maps_with_descriptors(fd, 2, MOST_FDS // 128),
}


@pytest.mark.parametrize("inside", [False, True], ids=["outside of callbacks", "inside a callback"])
@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_client_that_sends_more_instead_of_an_answer_is_given_up(ctx, shared, room, what, inside):
    """The loss is torn down as any other, and what had crossed is dropped with its descriptors."""
    got = dma_region(ctx, 8)
    fd = memfd(PAGE)
    ctx.poll_fd()
    before = open_fds()
    server = crossed(shared, [dma_map(1, 0, PAGE), [fd, fd]], *TOO_MUCH[what](fd))
    if inside:
        shared.send_raw(region_write(1, BAR0, 0, b"go"))
        assert ctx.run() == 1
        assert got == [errno.ENOTCONN]
    else:
        fails(errno.ENOTCONN, read, ctx, 8)
        assert ctx.events == []
        assert ctx.readable()
    lost(ctx)
    server.result()
    expected = ["quiesce", ("unregister", BASE, 1 << 24), LOST]
    assert ctx.events == ([("access", True, b"go")] if inside else []) + expected
    assert end_of_file(shared.sock)
    shared.close()
    assert len(open_fds()) == len(before) - 2, "the connection, both ends, and nothing else"
    os.close(fd)


@pytest.mark.parametrize("each", [1, 16])
@pytest.mark.parametrize("free", [24, 60, 200, 700])
def test_what_crosses_leaves_descriptors_to_others(ctx, shared, free, each):
    """The client is given up before the process has used its last descriptors, and meanwhile another context takes on a
    client, and memory from it."""
    fd = memfd(PAGE)
    ctx.poll_fd()
    before = open_fds()
    with Ctx(dma=True) as other:
        other.poll_fd()
        with Room(free):
            shares = [[dma_map(i, i * PAGE, PAGE), [fd] * each] for i in range(1, 2 + free // each)]
            server = crossed(shared, *shares)
            fails(errno.ENOTCONN, read, ctx, 8)
            with other.connect(caps=TWIN) as second:
                second.map(BASE, PAGE, fd)
                alive(second)
            lost(ctx)
            server.result()
    assert end_of_file(shared.sock)
    shared.close()
    assert len(open_fds()) == len(before) - 2, "the connection, both ends, and nothing else"
    os.close(fd)


# --- a loss inside a callback -------------------------------------------------

@pytest.mark.parametrize("how,number", [("end of file", errno.ENOTCONN), ("impossible size", errno.EINVAL)])
def test_a_loss_found_inside_a_callback_is_torn_down_when_the_callback_is_back(ctx, client, how, number):
    got = dma_region(ctx, 8)

    def fail(m, *rest):
        if how == "end of file":
            client.dma.shutdown(socket.SHUT_RDWR)
        else:
            client.send_raw(header(m.msg_id, m.cmd, 3, F_REPLY), sock=client.dma)
    server = peer(client, fail)
    client.send_raw(region_write(1, BAR0, 0, b"go"))
    assert ctx.run() == 1
    server.result()
    assert got == [number]
    assert ctx.events == [("access", True, b"go"), "quiesce", ("unregister", BASE, 1 << 24), LOST]
    assert end_of_file(client.sock), "the reply is dropped"
    assert ctx.readable()
    lost(ctx)
    assert len(ctx.events) == 4


def test_a_loss_found_inside_a_callback_of_vfu_device_quiesced_is_torn_down_there(ctx, client):
    got = []

    def registered(info):
        if info.iova.base == BASE << 8:
            try:
                read(ctx, 8)
            except Failed as e:
                got.append(e.errno)
    ctx.on_dma_register = registered
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, BASE << 8, PAGE))
    fails(errno.EBUSY, ctx.run)
    server = peer(client, lambda *_: client.dma.shutdown(socket.SHUT_RDWR))
    assert ctx.quiesced() == 0
    server.result()
    assert got == [errno.ENOTCONN]
    assert ctx.events == ["quiesce", ("register", BASE << 8, PAGE), ("unregister", BASE, 1 << 24),
                          ("unregister", BASE << 8, PAGE), LOST]
    assert ctx.readable()
    lost(ctx)


def test_a_loss_found_inside_a_callback_with_a_busy_device(ctx, client):
    dma_region(ctx, 8)
    ctx.quiesce_errno = errno.EBUSY
    server = peer(client, lambda *_: client.dma.shutdown(socket.SHUT_RDWR))
    client.send_raw(region_write(1, BAR0, 0, b"go"))
    fails(errno.EBUSY, ctx.run)
    server.result()
    assert ctx.events == [("access", True, b"go"), "quiesce"]
    assert ctx.quiesced() == 0
    assert ctx.events[2:] == [("unregister", BASE, 1 << 24), LOST]
    lost(ctx)


def test_requests_behind_a_loss_found_inside_a_callback_are_dropped(ctx, shared):
    got = dma_region(ctx, 8)
    fd = memfd(PAGE)
    server = peer(shared, lambda m, *_: header(m.msg_id, m.cmd, 3, F_REPLY))
    shared.send_raw(region_write(1, BAR0, 0, b"go") + region_write(2, BAR0, 0, b"never"), [fd])
    assert ctx.run() == 1
    server.result()
    assert got == [errno.EINVAL]
    assert ctx.events.count(LOST) == 1 and ("access", True, b"never") not in ctx.events
    lost(ctx)
    os.close(fd)


# --- while a device is being quiesced -----------------------------------------

def test_message_transfers_work_while_a_quiesce_is_pending(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(message(1, DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE, 1 << 24)))
    fails(errno.EBUSY, ctx.run)

    def cross(*a):
        client.send_raw(info(2))
        client.send_raw(good(*a), sock=client.dma)
    server = peer(client, cross, good)
    assert read(ctx, 64) == contents(BASE, 64)
    write(ctx, b"x" * 64)
    server.result()
    fails(errno.EBUSY, ctx.run)
    assert client.nothing(), "the crossing command waits behind the pending one"
    assert ctx.events == ["quiesce"]
    ctx.quiesced()
    assert client.recv().msg_id == 1
    assert ctx.readable()
    assert ctx.run() == 1
    assert is_info(client.recv(), 2)


@pytest.mark.parametrize("what", ["register", "reset", "transition"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_message_transfers_work_inside_callbacks_that_run_while_quiesced(ctx, client, what, later):
    got = []
    note = lambda *_: got.append(read(ctx, 32))
    ctx.on_dma_register = ctx.on_reset = ctx.on_transition = note
    request = {"register": dma_map(1, 0, PAGE), "reset": header(1, DEVICE_RESET, 16),
               "transition": message(1, DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | FEATURE_SET, S_STOP, 0))}
    server = peer(client, good)
    client.send_raw(request[what])
    if later:
        ctx.quiesce_errno = errno.EBUSY
        fails(errno.EBUSY, ctx.run)
        assert ctx.quiesced() == 0
    else:
        assert ctx.run() == 1
    server.result()
    assert got == [contents(BASE, 32)]
    ctx.on_dma_register = ctx.on_reset = ctx.on_transition = lambda *_: None
    reply = client.recv()
    assert (reply.msg_id, reply.flags) == (1, F_REPLY)


# --- waiting ------------------------------------------------------------------

def test_a_stuck_reply_goes_out_before_a_dma_message(ctx, shared):
    """The client takes the rest of a long reply while the server waits with its command."""
    mem = ctx.memory_region(BAR2, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    shared.send_raw(region_read(1, BAR2, 0, MAX_XFER))
    assert ctx.run() == 1

    def serve():
        reply = recv_exactly(shared.sock, MAX_MSG)
        shared.send_raw(good(*request_of(shared)))
        return reply
    server = Background(serve)
    assert read(ctx, 8) == contents(BASE, 8)
    assert server.result()[32:] == mem
    answers_again(ctx, shared)


def test_a_client_that_stops_sending_before_the_first_command_over_its_twin_socket_answers_there(ctx):
    """The server waits with that command, too, and what it finds at the main socket's end is no loss."""
    mem = ctx.memory_region(BAR2, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    with attach(ctx, TWIN) as client:
        client.send_raw(region_read(1, BAR2, 0, MAX_XFER))
        assert ctx.run() == 1
        client.send_raw(info(2))
        client.sock.shutdown(socket.SHUT_WR)

        def serve():
            time.sleep(.05)  # what the server waits for by then is more than room
            reply = recv_exactly(client.sock, MAX_MSG)
            client.send_raw(good(*request_of(client)), sock=client.twin)
            return reply
        server = Background(serve)
        assert read(ctx, 8) == contents(BASE, 8)
        assert server.result()[32:] == mem
        assert ctx.run() == 1
        assert is_info(client.recv(), 2)
        until_lost(ctx)


def test_in_a_blocking_context_commands_that_cross_are_executed_too():
    with Ctx(nonblocking=False, dma=True) as ctx:
        got = dma_region(ctx, 8)
        client = ctx.connect()
        client.dma, client.replies = client.sock, []
        run = Background(ctx.run)
        client.send_raw(dma_map(1, BASE, 1 << 24))
        assert client.recv().msg_id == 1
        client.send_raw(region_write(2, BAR0, 0, b"go"))
        m, addr, count, data = request_of(client)
        client.send_raw(info(3) + good(m, addr, count) + info(4))
        assert client.recv().msg_id == 2
        assert is_info(client.recv(), 3) and is_info(client.recv(), 4)
        client.close()
        fails(errno.ENOTCONN, run.result)
        assert got == [contents(BASE, 8)]
