"""vfu_run_ctx: what a call executes and returns, replies that a slow client leaves, and the poll descriptor."""
import time

import pytest
from peer import *

LOST = ("reset", RESET_LOST_CONN)


@pytest.fixture
def ctx():
    with Ctx(dma=True, quiesce=True) as ctx:
        yield ctx


@pytest.fixture
def client(ctx):
    with ctx.connect() as client:
        yield client


# --- before anything is read --------------------------------------------------

def test_not_realized_is_einval_whether_attached_or_not():
    with Ctx(realize=False) as ctx:
        for _ in range(2):
            fails(errno.EINVAL, ctx.run)
        ctx.realize()
        fails(errno.ENOTCONN, ctx.run)


def test_a_pending_quiesce_is_ebusy_as_often_as_called_and_nothing_is_read(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send(DEVICE_RESET)
    fails(errno.EBUSY, ctx.run)
    client.send_raw(info(1))
    for _ in range(5):
        fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce"]
    assert client.nothing()


def test_not_attached_is_enotconn(ctx):
    lost(ctx)
    client = ctx.connect(attach=False)
    lost(ctx)  # a client that waits is not attached
    client.close()


# --- batches ------------------------------------------------------------------

def test_an_idle_call_returns_0_and_sends_nothing(ctx, client):
    for _ in range(5):
        assert ctx.run() == 0
    assert client.nothing()
    assert ctx.events == []


@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64])
def test_a_call_executes_the_whole_messages_that_are_there(ctx, client, n):
    client.send_raw(b"".join(info(i) for i in range(n)))
    ctx.executes(n)
    for i in range(n):
        assert is_info(client.recv(), i)
    assert ctx.run() == 0


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_messages_of_many_sends_are_executed_in_order(ctx, client, pieces):
    mem = ctx.memory_region(BAR0, 256)
    stream = b"".join(region_write(i, BAR0, i, bytes([i])) for i in range(100))
    step = -(-len(stream) // pieces)
    executed = 0
    for start in range(0, len(stream), step):
        client.send_raw(stream[start:start + step])
        executed += ctx.run()
    while executed < 100:  # a call that took long has ended early
        more = ctx.run()
        assert more > 0
        executed += more
    assert executed == 100
    assert [client.recv().msg_id for _ in range(100)] == list(range(100))
    assert ctx.events == [("write", BAR0, i, 1) for i in range(100)]
    assert mem[:100] == bytes(range(100))


def test_a_part_of_a_message_behind_whole_ones_waits(ctx, client):
    client.send_raw(info(1) + info(2) + info(3)[:9])
    ctx.executes(2)
    assert ctx.run() == 0
    assert not ctx.readable()
    client.send_raw(info(3)[9:])
    assert ctx.run() == 1
    assert [client.recv().msg_id for _ in range(3)] == [1, 2, 3]


def test_refused_messages_are_not_counted(ctx, client):
    client.send_raw(info(1) + header(2, GET_INFO, 16) + info(3) + message(4, 99, b"x") + header(5, 99, 16, 1))
    ctx.executes(3)
    assert [(r.msg_id, r.error) for r in (client.recv() for _ in range(5))] == [
        (1, 0), (2, errno.EINVAL), (3, 0), (4, errno.EINVAL), (5, errno.EINVAL)]


def test_requests_that_want_no_reply_are_counted(ctx, client):
    client.send_raw(info(1, F_NO_REPLY) + info(2) + info(3, F_NO_REPLY))
    ctx.executes(3)
    assert is_info(client.recv(), 2)
    alive(client)


def test_a_batch_stops_at_a_pending_quiesce_with_the_replies_before_it_sent(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(info(1) + info(2) + dma_map(3, 0, PAGE) + info(4) + info(5))
    fails(errno.EBUSY, ctx.run)
    assert is_info(client.recv(), 1) and is_info(client.recv(), 2)
    assert client.nothing()
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced() == 0
    assert client.recv().raw == header(3, DMA_MAP, 16, F_REPLY)
    assert client.nothing(), "what follows waits for the next vfu_run_ctx"
    assert ctx.readable(), "messages were received and not executed"
    ctx.executes(2)
    assert is_info(client.recv(), 4) and is_info(client.recv(), 5)
    assert ctx.events == ["quiesce", ("register", 0, PAGE)]


def test_a_batch_ends_with_its_count_at_a_lost_connection_and_enotconn_comes_next(ctx, client):
    client.send_raw(info(1) + info(2) + header(3, GET_INFO, 3) + info(4))
    ctx.executes(2)
    assert is_info(client.recv(), 1) and is_info(client.recv(), 2)
    assert is_error(client.recv(), 3, GET_INFO, errno.EINVAL)
    assert end_of_file(client.sock)
    assert ctx.readable(), "the loss has not been reported yet"
    lost(ctx)
    assert not ctx.readable()


def test_a_client_that_leaves_behind_its_requests_has_them_executed(ctx, client):
    mem = ctx.memory_region(BAR0, 16)
    client.send_raw(region_write(1, BAR0, 0, b"a", F_NO_REPLY) + region_write(2, BAR0, 1, b"b", F_NO_REPLY))
    client.close()
    ctx.executes(2)
    assert mem[:2] == b"ab"
    until_lost(ctx)


def test_running_from_inside_a_callback_does_not_disturb_the_request(ctx, client):
    inner = []

    def access(_ctx, _buf, count, _offset, _is_write):
        try:
            inner.append(ctx.run())
        except Failed as e:
            inner.append(-e.errno)
        return count
    ctx.setup_region(BAR0, 16, access)
    client.send_raw(region_write(1, BAR0, 0, b"a") + info(2))
    ctx.executes(2)
    assert len(inner) == 1
    assert client.recv().msg_id == 1
    assert is_info(client.recv(), 2)


# --- blocking contexts --------------------------------------------------------

@pytest.fixture
def blocking():
    with Ctx(nonblocking=False, dma=True, quiesce=True) as ctx, ctx.connect() as client:
        yield ctx, client


def test_a_blocking_call_goes_on_until_an_error_and_a_failed_command_is_none(blocking):
    ctx, client = blocking
    run = Background(ctx.run)
    for i in range(5):
        client.send_raw(info(i))
        assert is_info(client.recv(), i)
        client.send_raw(message(50 + i, 99, b"x"))
        assert is_error(client.recv(), 50 + i, 99, errno.EINVAL)
        client.send_raw(header(80 + i, GET_INFO, 16))
        assert is_error(client.recv(), 80 + i, GET_INFO, errno.EINVAL)
    ctx.quiesce_errno = errno.ENOTTY
    client.send_raw(header(99, DEVICE_RESET, 16))
    assert is_error(client.recv(), 99, DEVICE_RESET, errno.ENOTTY)
    ctx.quiesce_errno = 0
    client.close()
    fails(errno.ENOTCONN, run.result)


def test_a_blocking_call_answers_pipelined_requests(blocking):
    ctx, client = blocking
    run = Background(ctx.run)
    client.send_raw(b"".join(info(i) for i in range(500)))
    for i in range(500):
        assert is_info(client.recv(), i)
    client.close()
    fails(errno.ENOTCONN, run.result)


def test_a_pending_quiesce_ends_a_blocking_call(blocking):
    ctx, client = blocking
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(info(1) + dma_map(2, 0, PAGE) + info(3))
    fails(errno.EBUSY, ctx.run)
    assert is_info(client.recv(), 1)
    fails(errno.EBUSY, ctx.run)
    ctx.quiesced()
    assert client.recv().raw == header(2, DMA_MAP, 16, F_REPLY)
    run = Background(ctx.run)
    assert is_info(client.recv(), 3)
    ctx.quiesce_errno = 0
    client.close()
    fails(errno.ENOTCONN, run.result)


def test_a_signal_ends_a_blocking_call_with_eintr(blocking):
    ctx, client = blocking
    for i in range(3):
        run = Background(ctx.run)
        client.send_raw(info(i))
        assert is_info(client.recv(), i)
        run.interrupt()
        fails(errno.EINTR, run.result)
    assert ctx.events == []


@pytest.mark.parametrize("first", [1, 15, 16, 17, 31])
def test_what_had_arrived_of_a_message_is_kept_when_a_signal_comes(blocking, first):
    ctx, client = blocking
    run = Background(ctx.run)
    client.send_raw(info(1) + info(2)[:first])
    assert is_info(client.recv(), 1)
    run.interrupt()
    fails(errno.EINTR, run.result)
    run = Background(ctx.run)
    client.send_raw(info(2)[first:])
    assert is_info(client.recv(), 2)
    client.close()
    fails(errno.ENOTCONN, run.result)


@pytest.mark.parametrize("what", ["a request that takes long", "requests that take long together"])
def test_a_call_that_takes_long_ends_before_all_is_executed(ctx, client, what):
    """And the poll descriptor stays readable until all is."""
    ctx.poll_fd()
    tick = 1e-2  # the longest of Linux' clocks
    clock = 6  # CLOCK_MONOTONIC_COARSE

    def access(_ctx, buf, count, offset, is_write):
        until_ = time.clock_gettime(clock) + (2 * tick if what.startswith("a ") else tick / 10)
        while time.clock_gettime(clock) < until_:
            pass
        return count
    ctx.setup_region(BAR0, PAGE, access)
    n = 30
    client.send_raw(b"".join(region_write(i, BAR0, 0, b"x") for i in range(n)))
    counts = poll_driven(ctx, lambda: ctx.readable())
    assert sum(counts) == n
    assert len(counts) == n if what.startswith("a ") else len(counts) > 1
    for i in range(n):
        assert client.recv().msg_id == i


# --- replies that the client does not take ------------------------------------

def stuck(ctx, client, size=MAX_XFER):
    """Leaves the context with a reply that the socket does not take; returns the data and the id."""
    data = os.urandom(size)
    mem = ctx.memory_region(BAR0, size)
    mem[:] = data
    client.send_raw(region_read(1, BAR0, 0, size))
    assert ctx.run() == 1
    return data


def take_reply(ctx, client, size):
    """Reads a long reply, calling the context as the poll descriptor says; what the calls returned, summed."""
    got, executed = b"", 0
    while len(got) < size:
        if select.select([client.sock], [], [], 0)[0]:
            got += client.sock.recv(min(1 << 16, size - len(got)))
        else:
            assert ctx.readable(GUARD * 1000), "there is room, and the poll descriptor is silent"
            executed += ctx.run()
    return got, executed


def test_a_reply_the_client_does_not_take_is_kept_and_nothing_else_is_executed(ctx, client):
    data = stuck(ctx, client)
    client.send_raw(info(2) + region_write(3, BAR0, 0, b"x"))
    for _ in range(5):
        assert not ctx.readable(), "nothing moves, and the caller would spin"
        assert ctx.run() == 0
    assert ctx.events == [("read", BAR0, 0, MAX_XFER)]
    got, executed = take_reply(ctx, client, MAX_MSG)
    assert got[:32] == header(1, REGION_READ, MAX_MSG, F_REPLY) + struct.pack("<QII", 0, BAR0, MAX_XFER)
    assert got[32:] == data
    while executed < 2:
        assert ctx.readable()
        executed += ctx.run()
    assert executed == 2
    assert is_info(client.recv(), 2)
    assert client.recv().msg_id == 3
    assert not ctx.readable()
    alive(client)


def test_what_was_received_ahead_of_a_stuck_reply_is_executed_afterwards(ctx, client):
    mem = ctx.memory_region(BAR0, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    client.send_raw(region_read(1, BAR0, 0, MAX_XFER) + info(2) + info(3))
    assert ctx.run() == 1
    assert ctx.run() == 0
    got, executed = take_reply(ctx, client, MAX_MSG)
    assert got[32:] == mem
    while executed < 2:
        assert ctx.readable(), "messages were received and not executed"
        executed += ctx.run()
    assert is_info(client.recv(), 2) and is_info(client.recv(), 3)


@pytest.mark.parametrize("n,size", [(100, 1 << 16), (1000, 4000), (3000, 100)])
def test_gathered_replies_stay_bounded_however_much_is_asked_for(ctx, client, n, size):
    ctx.memory_region(BAR0, 1 << 16)
    client.send_raw(b"".join(region_read(i, BAR0, 0, size) for i in range(n)))
    executed = 0
    for _ in range(n):
        executed += ctx.run()
    sndbuf = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert executed == len(ctx.events)
    assert executed < n
    assert executed * size <= 2 * sndbuf + (4 << 16), "requests are executed though nobody takes the replies"
    for i in range(n):
        got, more = take_reply(ctx, client, 32 + size)
        assert got[:16] == header(i, REGION_READ, 32 + size, F_REPLY)
        executed += more
    assert executed == n
    alive(client)


def test_a_blocking_context_waits_for_room_when_no_request_is_left(blocking):
    """Replies too short to be sent at once, so that the last of them is met by a full socket."""
    ctx, client = blocking
    size = 60000
    mem = ctx.memory_region(BAR0, 1 << 16)
    mem[:] = os.urandom(1 << 16)
    run = Background(ctx.run)
    for i in range(8):
        client.send_raw(region_read(i, BAR0, 0, size))
        whole = (i + 1) * (32 + size)
        until("a reply has been begun", lambda: len(ctx.events) > i and (
            unread(client.sock) == whole or sleeps(run) is not None))
        if unread(client.sock) < whole:
            break
    for j in range(i + 1):
        assert recv_exactly(client.sock, 32 + size)[32:] == mem[:size]
    client.close()
    fails(errno.ENOTCONN, run.result)


def test_a_client_that_leaves_without_taking_its_reply(ctx, client):
    stuck(ctx, client)
    client.close()
    until_lost(ctx)
    assert ctx.events[1:] == ["quiesce", LOST]


def test_a_client_that_stops_sending_still_gets_a_stuck_reply(ctx, client):
    data = stuck(ctx, client)
    client.send_raw(info(2))
    client.sock.shutdown(socket.SHUT_WR)
    assert not ctx.readable(), "end of file counts only when the replies have gone"
    assert ctx.run() == 0
    got, executed = take_reply(ctx, client, MAX_MSG)
    assert got[32:] == data
    while executed < 1:
        assert ctx.readable()
        executed += ctx.run()
    assert is_info(client.recv(), 2)
    until_lost(ctx)


def test_a_blocking_context_waits_for_the_client_to_take_its_reply(blocking):
    ctx, client = blocking
    mem = ctx.memory_region(BAR0, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    run = Background(ctx.run)
    client.send_raw(region_read(1, BAR0, 0, MAX_XFER) + info(2))
    assert recv_exactly(client.sock, MAX_MSG)[32:] == mem
    assert is_info(client.recv(), 2)
    client.close()
    fails(errno.ENOTCONN, run.result)


def test_a_stuck_reply_of_a_quiesced_request_is_sent_later():
    with Ctx(quiesce=True, dma=True) as ctx, ctx.connect() as client:
        data = stuck(ctx, client)
        client.send_raw(header(9, DEVICE_RESET, 16))
        ctx.quiesce_errno = errno.EBUSY
        got = b""
        while ctx.events[-1] != "quiesce":
            if select.select([client.sock], [], [], 0)[0]:
                got += client.sock.recv(1 << 16)
            elif ctx.readable(GUARD * 1000):
                try:
                    ctx.run()
                except Failed as e:
                    assert e.errno == errno.EBUSY
        ctx.quiesced()
        got += recv_exactly(client.sock, MAX_MSG + 16 - len(got))
        assert got[32:MAX_MSG] == data
        assert got[MAX_MSG:] == header(9, DEVICE_RESET, 16, F_REPLY)


# --- the poll descriptor ------------------------------------------------------

def test_the_poll_descriptor_says_that_a_client_waits(ctx):
    assert not ctx.readable()
    client = ctx.connect(attach=False)
    assert ctx.readable()
    client.send(VERSION, version_payload())
    assert ctx.readable()
    ctx.attach()
    assert not ctx.readable()
    client.close()


def test_the_poll_descriptor_of_an_idle_connection_is_silent(ctx, client):
    assert not ctx.readable()
    for _ in range(3):
        alive(client)
        assert not ctx.readable()


def test_bytes_and_end_of_file_make_the_poll_descriptor_readable(ctx, client):
    client.send_raw(info(1)[:1])
    assert ctx.readable()
    assert ctx.run() == 0
    assert not ctx.readable()
    client.send_raw(info(1)[1:])
    assert ctx.readable()
    assert ctx.run() == 1
    assert not ctx.readable()
    client.close()
    assert ctx.readable()
    lost(ctx)
    assert not ctx.readable()


@pytest.mark.parametrize("ask_before", [False, True], ids=["asked after", "asked before"])
def test_the_poll_descriptor_works_whenever_it_was_asked_for(ask_before):
    with Ctx() as ctx:
        if ask_before:
            ctx.poll_fd()
        client = ctx.connect(attach=False)
        client.send_raw(message(1, VERSION, version_payload()) + info(2))
        ctx.attach()
        client.recv()
        assert ctx.readable(), "a message was received and not executed"
        assert ctx.run() == 1
        assert not ctx.readable()
        client.close()


def test_poll_select_and_an_epoll_set_of_the_callers_own_all_work(ctx, client):
    fd = ctx.poll_fd()
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)
    assert select.select([fd], [], [], 0) == ([], [], []) and epoll.poll(0) == []
    client.send_raw(info(1))
    assert select.select([fd], [], [], 0) == ([fd], [], [])
    assert epoll.poll(0) == [(fd, select.EPOLLIN)]
    ctx.run()
    assert select.select([fd], [], [], 0) == ([], [], []) and epoll.poll(0) == []
    epoll.close()


def test_the_poll_descriptor_stays_the_librarys(ctx, client):
    fd = ctx.poll_fd()
    before = open_fds()
    assert ctx.poll_fd() == fd
    assert open_fds() == before
    alive(client)


def test_a_loss_found_while_replying_makes_the_poll_descriptor_readable_until_it_is_reported(ctx, client):
    client.send_raw(info(1))
    client.close()
    assert ctx.run() == 1
    assert ctx.readable()
    fails(errno.ENOTCONN, ctx.run)
    assert not ctx.readable()


def test_a_loss_found_by_vfu_device_quiesced_makes_the_poll_descriptor_readable(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(header(1, DEVICE_RESET, 16))
    fails(errno.EBUSY, ctx.run)
    client.close()
    assert ctx.quiesced() == 0
    assert ctx.readable()
    fails(errno.ENOTCONN, ctx.run)
    assert not ctx.readable()


@pytest.mark.parametrize("behind", [[], [2]], ids=["alone", "with a request behind it"])
def test_while_a_quiesce_is_pending_the_poll_descriptor_is_silent_and_the_caller_need_not_spin(ctx, client, behind):
    ctx.quiesce_errno = errno.EBUSY
    assert not ctx.readable()
    client.send_raw(header(1, DEVICE_RESET, 16) + b"".join(info(i) for i in behind))
    fails(errno.EBUSY, ctx.run)
    client.send_raw(info(3))
    assert not ctx.readable()
    ctx.quiesced()
    executed = sum(poll_driven(ctx, lambda: ctx.readable()))
    assert executed == len(behind) + 1
    assert [client.recv().msg_id for _ in range(executed + 1)] == [1, *behind, 3]
    ctx.events.clear()
    client.close()
    fails(errno.EBUSY, ctx.run)
    assert not ctx.readable(), "a loss that waits for the device"
    ctx.quiesced()
    assert ctx.readable()
    lost(ctx)


def test_what_came_while_a_quiesce_was_pending_is_seen_by_polling_afterwards(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0, PAGE))
    fails(errno.EBUSY, ctx.run)
    client.send_raw(info(2))  # stays in the socket
    ctx.quiesced()
    assert client.recv().msg_id == 1
    assert ctx.readable()
    assert ctx.run() == 1
    assert is_info(client.recv(), 2)


def test_a_server_driven_by_nothing_but_poll(ctx):
    """From the first connection to the last byte, with pipelining, pieces, long replies and asynchronous quiesce."""
    ctx.quiesce_errno = errno.EBUSY
    mem = ctx.memory_region(BAR0, MAX_XFER)
    mem[:] = os.urandom(MAX_XFER)
    stop = []

    def serve():
        attached = False
        while not stop:
            if not ctx.readable(GUARD * 1000):
                return "the poll descriptor was silent though the client waits"
            try:
                if not attached:
                    ctx.attach()
                    attached = True
                else:
                    ctx.run()
            except Failed as e:
                if e.errno == errno.EBUSY:
                    ctx.quiesced()  # the device is quiet
                elif e.errno == errno.ENOTCONN:
                    attached = False
                    stop.append("gone") if gone else None
                elif e.errno != errno.EAGAIN:
                    raise
        return stop

    gone = []
    server = Background(serve)
    for round in range(2):
        client = ctx.connect(attach=False)
        version = message(1, VERSION, version_payload())
        client.send_raw(version[:11])
        client.send_raw(version[11:] + info(2))
        assert client.recv().cmd == VERSION
        assert is_info(client.recv(), 2)
        # a batch larger than any bound, with maps that make the device quiesce
        stream = b"".join(info(i) + (dma_map(10000 + i, i * PAGE, PAGE) if i % 50 == 0 else b"") for i in range(600))
        client.send_raw(stream)
        for i in range(600):
            assert is_info(client.recv(), i)
            if i % 50 == 0:
                assert client.recv().raw == header(10000 + i, DMA_MAP, 16, F_REPLY)
        # long replies, read late
        client.send_raw(b"".join(region_read(i, BAR0, 0, MAX_XFER) for i in range(3)) + info(4))
        for i in range(3):
            reply = recv_exactly(client.sock, MAX_MSG)
            assert reply[:16] == header(i, REGION_READ, MAX_MSG, F_REPLY) and reply[32:] == mem
        assert is_info(client.recv(), 4)
        gone.append(1) if round == 1 else None
        client.close()
    assert server.result() == ["gone"]
    assert ctx.events.count(LOST) == 2


def test_all_messages_beyond_one_calls_bound_are_executed_by_polling(ctx, client):
    client.send_raw(b"".join(info(i & 0xffff) for i in range(3000)))
    executed, received = 0, 0
    while executed < 3000:
        assert ctx.readable(), f"silent after {executed} of 3000"
        count = ctx.run()
        assert count > 0
        executed += count
        while not client.nothing():
            assert is_info(client.recv(), received)
            received += 1
    assert (executed, received) == (3000, 3000)
    assert not ctx.readable()
