"""Framing, descriptors, replies and errno: what does not depend on the command."""
import pytest
from peer import *

LOST = ("reset", RESET_LOST_CONN)
EVERY_COMMAND = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 255, 256, 0xffff]


@pytest.fixture
def ctx():
    with Ctx(dma=True, migration=True, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 8)
        ctx.realize()
        yield ctx


@pytest.fixture
def client(ctx):
    with ctx.connect() as client:
        yield client


# --- headers that are refused -------------------------------------------------

def refuse_header(ctx, client, data, msg_id, cmd):
    """Sends a header alone; it is answered at once and counts as no request."""
    client.send_raw(data)
    assert ctx.run() == 0
    assert ctx.errno == errno.EINVAL
    assert is_error(client.recv(), msg_id, cmd, errno.EINVAL)


@pytest.mark.parametrize("kind", range(1, 16))
def test_a_type_that_is_not_command_is_einval_and_the_connection_stays(ctx, client, kind):
    refuse_header(ctx, client, header(5, GET_INFO, 16, kind), 5, GET_INFO)
    alive(client)


@pytest.mark.parametrize("cmd", [n for n in EVERY_COMMAND if n != DEVICE_RESET])
def test_a_bare_header_is_einval_and_the_connection_stays(ctx, client, cmd):
    refuse_header(ctx, client, header(5, cmd, 16), 5, cmd)
    alive(client)


def test_a_bare_header_is_enough_for_a_device_reset(ctx, client):
    client.send_raw(header(5, DEVICE_RESET, 16))
    assert ctx.run() == 1
    assert client.recv().raw == header(5, DEVICE_RESET, 16, F_REPLY)
    assert ctx.events == [("reset", RESET_DEVICE)]


@pytest.mark.parametrize("size", [0, 1, 8, 15, MAX_MSG + 1, MAX_MSG + 2, 1 << 31, 0xffffffff])
@pytest.mark.parametrize("cmd", [GET_INFO, DEVICE_RESET, 999])
def test_a_size_that_cannot_be_followed_is_answered_and_then_the_connection_is_lost(ctx, client, size, cmd):
    refuse_header(ctx, client, header(5, cmd, size), 5, cmd)
    assert ctx.events == [LOST]
    assert ctx.readable(), "the loss has not been reported yet"
    lost(ctx)
    assert ctx.events == [LOST]
    assert end_of_file(client.sock)
    with ctx.connect() as other:
        alive(other)


@pytest.mark.parametrize("size", [15, MAX_MSG + 1])
def test_what_follows_an_impossible_size_is_dropped_with_its_descriptors(ctx, client, size):
    fd = memfd(PAGE)
    before = open_fds()
    client.send_raw(info(4) + header(5, GET_INFO, size))
    client.send_raw(dma_map(6, 0, PAGE), [fd])
    client.send_raw(info(7))
    assert ctx.run() == 1
    assert is_info(client.recv(), 4)
    assert is_error(client.recv(), 5, GET_INFO, errno.EINVAL)
    assert end_of_file(client.sock), "closed in good order though something was unread"
    lost(ctx)
    assert ctx.events == [LOST]
    os.close(fd)
    assert open_fds() < before  # the connection's own has gone too


def test_the_quiesce_callback_is_asked_for_the_loss_after_an_impossible_size():
    with Ctx(quiesce=True) as ctx, ctx.connect() as client:
        ctx.quiesce_errno = errno.EBUSY
        client.send_raw(header(5, GET_INFO, 15))
        fails(errno.EBUSY, ctx.run)
        assert is_error(client.recv(), 5, GET_INFO, errno.EINVAL)
        fails(errno.EBUSY, ctx.run)
        assert ctx.events == ["quiesce"]
        assert ctx.quiesced() == 0
        lost(ctx)
        assert ctx.events == ["quiesce", LOST]


@pytest.mark.parametrize("kind", [1, 7])
@pytest.mark.parametrize("size", [17, 32, 5000, MAX_MSG])
def test_the_body_of_a_refused_header_is_skipped_as_it_arrives(ctx, client, kind, size):
    refuse_header(ctx, client, header(5, REGION_READ, size, kind), 5, REGION_READ)
    assert ctx.run() == 0
    assert not ctx.readable()
    body = (info(77) * (size // 32 + 1))[:size - 16]  # would be requests
    assert pump(ctx, client, body) == 0
    while ctx.readable():
        assert ctx.run() == 0
    alive(client)
    assert ctx.events == []


def test_a_refused_header_with_its_body_and_the_next_request_in_one_send(ctx, client):
    client.send_raw(message(1, GET_INFO, INFO_REQUEST, flags=1) + info(2))
    assert ctx.run() == 1
    assert is_error(client.recv(), 1, GET_INFO, errno.EINVAL)
    assert is_info(client.recv(), 2)


def test_descriptors_with_a_refused_header_and_with_its_body_are_closed(ctx, client):
    fd = memfd(PAGE)
    before = open_fds()
    client.send_raw(header(1, GET_INFO, 32, 1), [fd, fd])
    assert ctx.run() == 0
    assert is_error(client.recv(), 1, GET_INFO, errno.EINVAL)
    client.send_raw(INFO_REQUEST, [fd])
    assert ctx.run() == 0
    assert open_fds() == before
    alive(client)
    os.close(fd)


@pytest.mark.parametrize("data", [header(5, GET_INFO, 16, F_NO_REPLY), header(5, GET_INFO, 16, F_NO_REPLY | 1),
                                  message(5, 999, b"x", F_NO_REPLY),
                                  message(5, GET_INFO, b"short", F_NO_REPLY)])
def test_no_reply_is_sent_to_who_wants_none_not_even_for_errors(ctx, client, data):
    client.send_raw(data)
    ctx.run()
    alive(client)


@pytest.mark.parametrize("size", [15, MAX_MSG + 1])
def test_an_impossible_size_that_wants_no_reply_just_loses_the_connection(ctx, client, size):
    client.send_raw(header(5, GET_INFO, size, F_NO_REPLY))
    assert ctx.run() == 0
    lost(ctx)
    assert end_of_file(client.sock)


# --- commands -----------------------------------------------------------------

@pytest.mark.parametrize("cmd", [0, 1, 11, 12, 14, 15, 19, 20, 255, 256, 0xffff])
def test_unknown_commands_are_einval_and_their_descriptors_closed(ctx, client, cmd):
    fd = memfd(PAGE)
    before = open_fds()
    client.request(cmd, b"x", fds=[fd, fd], expect=errno.EINVAL)
    assert open_fds() == before
    os.close(fd)
    alive(client)


@pytest.mark.parametrize("msg_id", [0, 1, 0x7fff, 0xffff])
def test_id_and_command_are_echoed(ctx, client, msg_id):
    client.send_raw(info(msg_id))
    assert ctx.run() == 1
    assert is_info(client.recv(), msg_id)


@pytest.mark.parametrize("flags", [F_ERROR, 1 << 6, 1 << 31, 0xffffffff & ~0x1f])
def test_in_a_command_error_bit_errno_and_other_flags_are_ignored(ctx, client, flags):
    client.send_raw(header(9, GET_INFO, 32, flags, 0xdead) + INFO_REQUEST)
    assert ctx.run() == 1
    assert is_info(client.recv(), 9)


def test_a_request_that_wants_no_reply_is_executed_all_the_same(ctx, client):
    mem = ctx.memory_region(BAR0, 16)
    client.send_raw(region_write(1, BAR0, 4, b"abcd", F_NO_REPLY))
    assert ctx.run() == 1
    assert mem[4:8] == b"abcd"
    alive(client)


# --- error replies ------------------------------------------------------------

@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.ENOTCONN, errno.EAGAIN, 4095, 4096, 0xbeef,
                                    (1 << 31) - 1])
@pytest.mark.parametrize("is_write", [False, True])
def test_a_callbacks_errno_reaches_the_client_and_the_caller_unchanged(ctx, client, number, is_write):
    def access(_ctx, buf, count, _offset, writing):
        if not writing:
            c.memset(buf, 0x55, count)
        c.set_errno(number)
        return -1
    ctx.setup_region(BAR0, 64, access)
    # request() asserts that the reply is a header and nothing else, and errno after the call
    if is_write:
        client.write(BAR0, 0, b"abcdefgh", expect=number)
    else:
        client.read(BAR0, 0, 8, expect=number)
    alive(client)


def test_a_failing_feature_set_is_answered_by_a_header_alone(ctx, client):
    ctx.transition_errno = 0xbeef
    client.set_state(S_STOP, expect=0xbeef)
    assert client.get_state() == S_RUNNING


def errno_after_each(ctx, count):
    """Runs until so many requests are executed: errno after the call that executed each. It is one call, but for a
    machine that is so slow that its time is over before."""
    errnos = []
    while len(errnos) < count:
        executed = ctx.run()
        assert executed > 0, errnos
        errnos += [ctx.errno] * executed
    return errnos


def test_when_one_call_executes_several_requests_the_errno_sent_last_counts(ctx, client):
    client.send_raw(message(1, DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE)) + message(2, 99, b"x") + info(3))
    assert errno_after_each(ctx, 3)[1] == errno.EINVAL
    assert is_error(client.recv(), 1, DMA_UNMAP, errno.ENOENT)
    assert is_error(client.recv(), 2, 99, errno.EINVAL)
    assert is_info(client.recv(), 3)
    client.send_raw(message(1, 99, b"x") + message(2, DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE)))
    ctx.executes(2)
    assert ctx.errno == errno.ENOENT


def test_a_whole_message_is_read_with_one_recv(ctx, client):
    ctx.memory_region(BAR0, 4096)
    client.send_raw(region_read(3, BAR0, 0, 4000))
    assert ctx.run() == 1
    assert len(client.sock.recv(4096)) == 4032
    assert client.nothing()


# --- messages in pieces -------------------------------------------------------

PIECES = region_write(3, BAR0, 8, b"abcdefghijk")


@pytest.mark.parametrize("first", range(1, len(PIECES)))
def test_a_message_in_two_pieces(ctx, client, first):
    mem = ctx.memory_region(BAR0, 64)
    client.send_raw(PIECES[:first])
    assert ctx.run() == 0
    assert ctx.run() == 0
    assert not ctx.readable(), "nothing to do, and the caller would spin"
    assert ctx.events == []
    client.send_raw(PIECES[first:])
    assert ctx.readable()
    assert ctx.run() == 1
    assert client.recv().payload == struct.pack("<QII", 8, BAR0, 11)
    assert mem[8:19] == b"abcdefghijk"
    alive(client)


def test_a_message_byte_by_byte(ctx, client):
    mem = ctx.memory_region(BAR0, 64)
    for byte in PIECES[:-1]:
        client.send_raw(bytes([byte]))
        assert ctx.run() == 0
    client.send_raw(PIECES[-1:])
    assert ctx.run() == 1
    assert client.recv().msg_id == 3
    assert mem[8:19] == b"abcdefghijk"


@pytest.mark.parametrize("cut", range(1, 2 * len(PIECES)))
def test_two_messages_cut_anywhere(ctx, client, cut):
    ctx.memory_region(BAR0, 64)
    stream = PIECES + PIECES
    client.send_raw(stream[:cut])
    first = ctx.run()
    assert first == (cut >= len(PIECES))
    client.send_raw(stream[cut:])
    assert ctx.run_to(2 - first)
    assert ctx.events == [("write", BAR0, 8, 11)] * 2
    client.recv(), client.recv()
    alive(client)


def test_a_blocking_context_waits_for_the_rest_of_a_message():
    with Ctx(nonblocking=False) as ctx, ctx.connect() as client:
        run = Background(ctx.run)
        for byte in info(1) + info(2):
            client.send_raw(bytes([byte]))
        assert is_info(client.recv(), 1) and is_info(client.recv(), 2)
        client.close()
        fails(errno.ENOTCONN, run.result)


def test_the_largest_message_is_executed(ctx, client):
    mem = ctx.memory_region(BAR0, MAX_XFER, flags=RW)
    data = os.urandom(MAX_XFER)
    request = region_write(1, BAR0, 0, data)
    assert len(request) == MAX_MSG
    done = pump(ctx, client, request)
    while not done:
        assert ctx.readable(GUARD * 1000)
        done = ctx.run()
    assert done == 1
    assert client.recv().payload == request[16:32]
    assert mem == data
    alive(client)


def test_what_a_callback_gets_is_aligned_to_8_bytes_wherever_it_lay_in_the_stream(ctx, client):
    seen = []

    def access(_ctx, buf, count, _offset, _is_write):
        seen.append((c.cast(buf, c.c_void_p).value % 8, c.string_at(buf, count)))
        return count
    ctx.setup_region(BAR0, 64, access)
    data = [bytes(range(n, n + n)) for n in range(1, 20)]
    client.send_raw(b"".join(region_write(i, BAR0, 0, d) for i, d in enumerate(data)))
    ctx.executes(len(data))
    assert seen == [(0, d) for d in data]


# --- end of file --------------------------------------------------------------

@pytest.mark.parametrize("length", range(1, 32))
def test_end_of_file_inside_a_message_is_a_lost_connection_and_nothing_is_answered(ctx, client, length):
    client.send_raw(info(1)[:length])
    client.sock.shutdown(socket.SHUT_WR)
    until_lost(ctx)
    assert ctx.events == [LOST]
    assert end_of_file(client.sock)


def test_a_client_that_shuts_down_its_sending_side_still_gets_its_replies(ctx, client):
    client.send_raw(info(1) + info(2) + info(3)[:20])
    client.sock.shutdown(socket.SHUT_WR)
    ctx.executes(2)
    assert is_info(client.recv(), 1) and is_info(client.recv(), 2)
    until_lost(ctx)
    assert end_of_file(client.sock)


def test_descriptors_of_a_message_that_never_becomes_whole_are_closed(ctx):
    before = open_fds()
    client = ctx.connect()
    fd = memfd(PAGE)
    client.send_raw(dma_map(1, 0, PAGE)[:30], [fd, fd])
    os.close(fd)
    assert ctx.run() == 0
    client.close()
    lost(ctx)
    assert open_fds() == before


# --- descriptors --------------------------------------------------------------

def mapped(ctx, addr, count=4):
    _, sg = ctx.sgl(addr, count)
    return c.string_at(ctx.sgl_get(sg)[0].base, count)


@pytest.mark.parametrize("cut", [16, 20, 47])
def test_descriptors_attached_to_the_body_belong_to_the_message_too(ctx, client, cut):
    fd = memfd(PAGE, b"here")
    data = dma_map(1, 0, PAGE)
    client.send_raw(data[:cut])
    assert ctx.run() == 0
    client.send_raw(data[cut:], [fd])
    assert ctx.run() == 1
    assert client.recv().raw == header(1, DMA_MAP, 16, F_REPLY)
    assert mapped(ctx, 0) == b"here"
    os.close(fd)


@pytest.mark.parametrize("cut", [1, 2, 15, 16, 17, 47])
def test_descriptors_of_a_part_do_not_go_with_the_whole_message_before_it(ctx, client, cut):
    """Both are received at once, and executed one call apart."""
    fd = memfd(PAGE, b"here")
    data = dma_map(2, 0, PAGE)
    client.send_raw(info(1))
    client.send_raw(data[:cut], [fd])
    os.close(fd)
    assert ctx.run() == 1
    client.send_raw(data[cut:])
    assert ctx.run() == 1
    assert is_info(client.recv(), 1)
    assert client.recv().raw == header(2, DMA_MAP, 16, F_REPLY)
    assert mapped(ctx, 0) == b"here"


@pytest.mark.parametrize("at_once", [False, True])
def test_header_and_body_sent_apart_with_the_descriptors_at_the_body(ctx, client, at_once):
    events = [eventfd(0) for _ in range(3)]
    data = message(1, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, 3))
    client.send_raw(data[:16])
    assert at_once or ctx.run() == 0
    client.send_raw(data[16:], events)
    assert sum(ctx.run() for _ in range(2)) == 1
    assert client.recv().flags == F_REPLY
    for vector, fd in enumerate(events):
        call("vfu_irq_trigger", ctx.p, vector)
        assert os.read(fd, 8) == struct.pack("<Q", 1)
        os.close(fd)


def test_descriptors_of_several_sends_of_one_message_are_taken_together_in_order(ctx, client):
    events = [eventfd(0) for _ in range(3)]
    data = message(1, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, 3))
    client.send_raw(data[:10], events[:1])
    client.send_raw(data[10:20], events[1:2])
    client.send_raw(data[20:], events[2:])
    assert sum(ctx.run() for _ in range(3)) == 1
    assert client.recv().flags == F_REPLY
    for vector, fd in enumerate(events):
        call("vfu_irq_trigger", ctx.p, vector)
        assert os.read(fd, 8) == struct.pack("<Q", 1)
        os.close(fd)


def test_each_of_several_pipelined_messages_gets_its_own_descriptors(ctx, client):
    for i in range(6):
        fd = memfd(PAGE, b"%04d" % i)
        client.send_raw(info(100 + i) + dma_map(i, i * PAGE, PAGE), [fd])
        os.close(fd)
    client.send_raw(dma_map(6, 6 * PAGE, PAGE))
    done = 0
    while done < 13:
        assert ctx.readable()
        done += ctx.run()
    for i in range(6):
        assert is_info(client.recv(), 100 + i)
        assert client.recv().raw == header(i, DMA_MAP, 16, F_REPLY)
        assert mapped(ctx, i * PAGE) == b"%04d" % i
    assert client.recv().raw == header(6, DMA_MAP, 16, F_REPLY)
    _, sg = ctx.sgl(6 * PAGE, 4)
    assert not lib.vfu_sg_is_mappable(ctx.p, sg)


REFUSED = {
    "unknown command": (99, b"x"),
    "region read, no such region": (REGION_READ, struct.pack("<QII", 0, 9, 4)),
    "region write, wrong count": (REGION_WRITE, struct.pack("<QII", 0, 0, 4)),
    "short payload": (GET_INFO, b"x"),
    "region info": (GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
    "io fds": (GET_REGION_IO_FDS, struct.pack("<IIII", 16, 1, 0, 0)),
    "irq info": (GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0)),
    "set irqs, wrong number": (SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, 3)),
    "set irqs, no eventfds": (SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, 2)),
    "set irqs, data none": (SET_IRQS, struct.pack("<IIIII", 20, DATA_NONE | ACTION_TRIGGER, MSIX, 0, 2)),
    "set irqs, past the end": (SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 7, 2)),
    "map, flags": (DMA_MAP, struct.pack("<IIQQQ", 32, 64, 0, 0, PAGE)),
    "map, both modes": (DMA_MAP, struct.pack("<IIQQQ", 32, 3 | MAP_MMAP | MAP_FILE_IO, 0, 0, PAGE)),
    "map, size 0": (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 0)),
    "map, too large": (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, (8 << 40) + PAGE)),
    "map, wraps": (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, (1 << 64) - PAGE, 2 * PAGE)),
    "map, short": (DMA_MAP, struct.pack("<IIQQ", 32, 3, 0, 0)),
    "unmap": (DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE)),
    "feature": (DEVICE_FEATURE, struct.pack("<II", 8, 99 | FEATURE_SET)),
    "migration read": (MIG_DATA_READ, struct.pack("<II", 16, 8)),
    "migration write": (MIG_DATA_WRITE, struct.pack("<II", 16, 8) + bytes(8)),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_no_descriptor_stays_open_after_a_refused_request(ctx, client, what, count):
    cmd, payload = REFUSED[what]
    fd = memfd(PAGE)
    before = open_fds()
    msg_id = client.send(cmd, payload, fds=[fd] * count)
    ctx.run()
    reply = client.recv()
    assert reply.flags == F_REPLY | F_ERROR and reply.msg_id == msg_id
    assert open_fds() == before
    os.close(fd)
    alive(client)


@pytest.mark.parametrize("cmd,payload", [
    (GET_INFO, INFO_REQUEST), (GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 0, 0)), (DEVICE_RESET, b"x"),
    (GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)),
    (REGION_READ, struct.pack("<QII", 0, CFG, 4)),
    (DEVICE_FEATURE, struct.pack("<II", 16, F_STATE | FEATURE_GET)),
    (DMA_UNMAP, struct.pack("<IIQQ", 24, UNMAP_ALL, 0, 0)),
    (SET_IRQS, struct.pack("<IIIII", 20, DATA_NONE | ACTION_TRIGGER, REQ, 0, 0))])
def test_descriptors_that_a_successful_request_does_not_use_are_closed(ctx, client, cmd, payload):
    fd = memfd(PAGE)
    before = open_fds()
    with_fds = [] if cmd == SET_IRQS else [fd, fd, fd]
    client.request(cmd, payload, fds=with_fds)
    assert open_fds() == before, "left open, or opened lazily"
    os.close(fd)


def test_a_map_uses_the_first_descriptor_and_closes_the_others(ctx, client):
    first, second = memfd(PAGE, b"good"), memfd(PAGE, b"evil")
    before = open_fds()
    client.request(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE), fds=[first, second, second])
    assert len(open_fds()) <= len(before) + 1
    assert mapped(ctx, 0) == b"good"
    client.unmap(0, PAGE)
    assert open_fds() == before
    os.close(first), os.close(second)


def test_descriptors_of_messages_that_are_not_executed_yet_wait_with_them():
    with Ctx(dma=True, quiesce=True) as ctx, ctx.connect() as client:
        fd = memfd(PAGE, b"wait")
        ctx.quiesce_errno = errno.EBUSY
        client.send_raw(dma_map(1, 0, PAGE), [fd])
        client.send_raw(dma_map(2, PAGE, PAGE), [fd])
        fails(errno.EBUSY, ctx.run)
        ctx.quiesced()
        assert client.recv().raw == header(1, DMA_MAP, 16, F_REPLY)
        fails(errno.EBUSY, ctx.run)
        ctx.quiesced()
        assert client.recv().raw == header(2, DMA_MAP, 16, F_REPLY)
        assert mapped(ctx, 0) == mapped(ctx, PAGE) == b"wait"
        os.close(fd)


@pytest.mark.parametrize("free", [0, 1, 3])
@pytest.mark.parametrize("sent", [4, 8, 253])
def test_cut_control_data_refuses_that_message_and_leaks_nothing(ctx, client, sent, free):
    fd = memfd(PAGE)
    before = open_fds()
    client.send_raw(dma_map(1, 0, PAGE), [fd] * sent)
    with Room(free):
        assert ctx.run() == 0
    assert ctx.errno == errno.EINVAL
    assert is_error(client.recv(), 1, DMA_MAP, errno.EINVAL)
    assert open_fds() == before
    assert ctx.events == []
    os.close(fd)
    alive(client)


def test_after_cut_control_data_the_stream_is_in_step(ctx, client):
    fd = memfd(PAGE)
    client.send_raw(info(1) + info(2)[:20], [fd] * 8)
    client.send_raw(info(2)[20:] + info(3))
    with Room(2):
        done = ctx.run()
    done += ctx.run()
    replies = [client.recv() for _ in range(3)]
    # Neither may carry any, so they count as the last one's of their send.
    assert is_info(replies[0], 1)
    assert is_error(replies[1], 2, GET_INFO, errno.EINVAL)
    assert is_info(replies[2], 3)
    assert done == 2
    os.close(fd)
    alive(client)


def test_descriptors_of_a_message_that_is_never_whole_are_bounded(ctx, client):
    """It is refused once it is: they were more than may wait."""
    fd = memfd(PAGE)
    data = region_write(1, BAR0, 0, bytes(20))
    before = open_fds()
    with Room(2048):
        for i in range(len(data) - 1):
            client.send_raw(data[i:i + 1], [fd] * 128)
            assert ctx.run() == 0
            assert len(open_fds()) <= len(before) + 253
        client.send_raw(data[-1:])
        assert ctx.run() == 0
    assert is_error(client.recv(), 1, REGION_WRITE, errno.EMFILE)
    assert open_fds() == before
    os.close(fd)
    alive(client)


def test_a_reply_with_more_descriptors_than_the_kernel_sends_becomes_an_error_reply():
    with Ctx() as ctx:
        ctx.memory_region(BAR0, 4096)
        fds = [eventfd() for _ in range(254)]
        for i, fd in enumerate(fds):
            call("vfu_create_ioeventfd", ctx.p, BAR0, fd, 8 * i, 8, 0, 0, -1, 0)
        client = ctx.connect(caps={"max_msg_fds": 1024})
        before = open_fds()
        client.send_raw(message(9, GET_REGION_IO_FDS, struct.pack("<IIII", 16 + 48 * 254, 0, BAR0, 0)))
        assert ctx.run() == 1
        reply = client.recv()
        assert reply.flags == F_REPLY | F_ERROR and reply.error != 0
        assert is_error(reply, 9, GET_REGION_IO_FDS, reply.error)
        assert ctx.errno == reply.error
        assert open_fds() == before
        alive(client)
        [os.close(fd) for fd in fds]


@pytest.mark.parametrize("around", [False, True])
def test_a_reply_with_a_descriptor_that_the_device_has_closed_becomes_an_error_reply(around):
    with Ctx() as ctx:
        ctx.memory_region(BAR0, 4096)
        fd = eventfd()
        call("vfu_create_ioeventfd", ctx.p, BAR0, fd, 0, 8, 0, 0, -1, 0)
        client = ctx.connect()
        os.close(fd)
        ask = message(9, GET_REGION_IO_FDS, struct.pack("<IIII", 64, 0, BAR0, 0))
        client.send_raw(message(1, 99, b"x") + ask + info(2) if around else ask)
        assert errno_after_each(ctx, 3 if around else 1)[int(around)] == errno.EBADF
        assert not around or is_error(client.recv(), 1, 99, errno.EINVAL)
        assert is_error(client.recv(), 9, GET_REGION_IO_FDS, errno.EBADF)
        assert not around or is_info(client.recv(), 2)
        alive(client)


def test_replies_with_descriptors_among_pipelined_ones_arrive_with_their_own_message():
    files = [memfd(PAGE, b"a"), memfd(PAGE, b"b")]
    with Ctx() as ctx:
        for i, fd in enumerate(files):
            ctx.setup_region(i, PAGE, flags=RW | MEM, areas=[(0, PAGE)], fd=fd)
        client = ctx.connect()
        ask = lambda i: message(10 + i, GET_REGION_INFO, struct.pack("<IIIIQQ", 64, 0, i, 0, 0, 0))
        client.send_raw(info(1) + ask(0) + info(2) + ask(1) + info(3))
        ctx.executes(5)
        for expected in (1, 10, 2, 11, 3):
            # Just the message: descriptors come with the first byte of a send.
            reply = client.recv()
            assert reply.msg_id == expected
            if expected >= 10:
                (fd,) = reply.fds
                assert os.pread(fd, 1, 0) == b"ab"[expected - 10:expected - 9]
                os.close(fd)
            else:
                assert reply.fds == []
    [os.close(fd) for fd in files]


def own_end(client):
    """The client's end of the connection as a further descriptor."""
    return os.dup(client.sock.fileno())


@pytest.mark.parametrize("flags,number", [(MAP_FILE_IO, errno.EINVAL), (MAP_MMAP, errno.ENODEV), (0, errno.ENODEV)])
def test_a_map_of_the_clients_own_end_is_refused_and_its_leaving_is_seen(ctx, client, flags, number):
    end = own_end(client)
    client.map(0, PAGE, fd=end, flags=3 | flags, expect=number)
    os.close(end)
    client.close()
    lost(ctx)
    assert ctx.events == [LOST]


@pytest.mark.parametrize("make", ["socket", "pipe"])
def test_file_io_takes_no_sockets_and_pipes(ctx, client, make):
    fds = os.pipe() if make == "pipe" else [s.detach() for s in socket.socketpair()]
    before = open_fds()
    for fd in fds:
        client.map(0, PAGE, fd=fd, flags=3 | MAP_FILE_IO, expect=errno.EINVAL)
    assert open_fds() == before
    [os.close(fd) for fd in fds]
    assert ctx.events == []
    alive(client)


def test_set_irqs_with_the_clients_own_end_is_refused_and_its_leaving_is_seen(ctx, client):
    end = own_end(client)
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 1, fds=[end], expect=errno.EINVAL)
    os.close(end)
    client.close()
    lost(ctx)


def test_set_irqs_takes_eventfds_only_and_all_or_none(ctx, client):
    good, (r, w), file = eventfd(), os.pipe(), memfd(PAGE)
    before = open_fds()
    for bad in (r, w, file):
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 2, fds=[good, bad], expect=errno.EINVAL)
    assert open_fds() == before
    fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 0)
    [os.close(fd) for fd in (good, r, w, file)]
    alive(client)


# --- the client has gone while its request was executed ------------------------

def test_a_reply_nobody_reads_raises_no_sigpipe_and_the_call_still_succeeds(ctx, client):
    caught = []
    previous = signal.signal(signal.SIGPIPE, lambda *_: caught.append(1))
    try:
        client.send_raw(info(1))
        client.close()
        assert ctx.run() == 1
        assert ctx.readable()
        lost(ctx)
    finally:
        signal.signal(signal.SIGPIPE, previous)
    assert caught == []
    assert ctx.events == [LOST]
