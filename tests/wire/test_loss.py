"""Device reset, and what happens when the connection is lost."""
import pytest
from peer import *

LOST, DEVICE = ("reset", RESET_LOST_CONN), ("reset", RESET_DEVICE)
TWIN = {"twin_socket": {"supported": True}}


@pytest.fixture
def ctx():
    with Ctx(dma=True, quiesce=True, migration=True, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 4)
        call("vfu_setup_device_nr_irqs", ctx.p, INTX, 1)
        ctx.realize()
        yield ctx


@pytest.fixture
def client(ctx):
    with ctx.connect() as client:
        yield client


# --- VFIO_USER_DEVICE_RESET ---------------------------------------------------

@pytest.mark.parametrize("payload", [b"", b"x", bytes(64)])
def test_a_reset_needs_no_payload_and_ignores_any(ctx, client, payload):
    assert client.request(DEVICE_RESET, payload) == b""
    assert ctx.events == ["quiesce", DEVICE]


def test_without_a_callback_a_reset_succeeds():
    with Ctx(reset=False) as ctx, ctx.connect() as client:
        assert client.request(DEVICE_RESET) == b""


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, 0xbeef])
def test_a_failing_reset_is_answered_with_its_errno(ctx, client, number):
    ctx.reset_errno = number
    client.request(DEVICE_RESET, expect=number)
    assert ctx.events == ["quiesce", DEVICE]
    alive(client)


@pytest.mark.parametrize("result", [0, 1, 7, (1 << 31) - 1])
def test_results_of_zero_and_above_are_success(ctx, client, result):
    def reset(_ctx, _kind):
        c.set_errno(errno.EIO)
        return result
    call("vfu_setup_device_reset_cb", ctx.p, ctx.cb(RESET_CB, reset))
    assert client.request(DEVICE_RESET) == b""


@pytest.mark.parametrize("result", [-1, -2, -(1 << 31)])
def test_any_negative_result_is_failure(ctx, client, result):
    def reset(_ctx, _kind):
        c.set_errno(errno.ETIME)
        return result
    call("vfu_setup_device_reset_cb", ctx.p, ctx.cb(RESET_CB, reset))
    client.request(DEVICE_RESET, expect=errno.ETIME)


def test_a_reset_leaves_config_space_dma_and_interrupts_alone(ctx, client):
    fd, ev = memfd(PAGE, b"still"), eventfd()
    client.map(0, PAGE, fd=fd)
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 1, fds=[ev])
    client.write(CFG, 0x3c, b"\x0b")
    client.request(DEVICE_RESET)
    _, sg = ctx.sgl(0, 5)
    assert c.string_at(ctx.sgl_get(sg)[0].base, 5) == b"still"
    call("vfu_irq_trigger", ctx.p, 0)
    assert os.read(ev, 8) == struct.pack("<Q", 1)
    assert client.read(CFG, 0x3c, 1) == b"\x0b"
    os.close(fd), os.close(ev)


STATES = [S_STOP, S_RUNNING, S_STOP_COPY, S_RESUMING, S_PRE_COPY]


@pytest.mark.parametrize("state", STATES)
def test_a_reset_is_executed_in_every_state_and_makes_the_device_run_without_a_transition(ctx, client, state):
    client.set_state(state)
    del ctx.events[:]
    assert client.request(DEVICE_RESET) == b""
    assert ctx.events == ["quiesce", DEVICE]
    assert client.get_state() == (S_PRE_COPY if state == S_PRE_COPY else S_RUNNING)


@pytest.mark.parametrize("state", STATES)
def test_without_a_callback_a_reset_does_the_same(ctx, client, state):
    call("vfu_setup_device_reset_cb", ctx.p, None)
    client.set_state(state)
    client.request(DEVICE_RESET)
    assert client.get_state() == (S_PRE_COPY if state == S_PRE_COPY else S_RUNNING)


@pytest.mark.parametrize("state", STATES)
def test_a_failing_reset_leaves_the_state(ctx, client, state):
    client.set_state(state)
    ctx.reset_errno = errno.EIO
    client.request(DEVICE_RESET, expect=errno.EIO)
    assert client.get_state() == state


def test_a_reset_leads_out_of_error(ctx, client):
    ctx.transition_errno = errno.ENOTRECOVERABLE
    client.set_state(S_STOP, expect=errno.ENOTRECOVERABLE)
    assert client.get_state() == S_ERROR
    ctx.transition_errno = 0
    client.request(DEVICE_RESET)
    assert client.get_state() == S_RUNNING


# --- the lost connection ------------------------------------------------------

def test_quiesce_then_regions_in_order_then_one_reset_then_enotconn(ctx, client):
    for addr in (5 * PAGE, 0, 9 * PAGE, 2 * PAGE):
        client.map(addr, PAGE)
    del ctx.events[:]
    client.close()
    fails(errno.ENOTCONN, ctx.run)
    assert ctx.events == ["quiesce", *[("unregister", n * PAGE, PAGE) for n in (0, 2, 5, 9)], LOST]
    lost(ctx)
    assert len(ctx.events) == 6


def test_the_result_of_the_reset_callback_is_ignored(ctx, client):
    ctx.reset_errno = errno.EIO
    client.close()
    lost(ctx)
    assert ctx.events == ["quiesce", LOST]
    ctx.reset_errno = 0
    with ctx.connect() as other:
        alive(other)


def test_without_callbacks_a_loss_is_just_reported():
    with Ctx(reset=False) as ctx:
        ctx.connect().close()
        lost(ctx)
        with ctx.connect() as other:
            alive(other)


def test_the_unregister_callback_runs_before_the_region_goes(ctx, client):
    fd = memfd(PAGE, b"until now")
    client.map(0, PAGE, fd=fd)
    os.close(fd)
    seen = []

    def unregistered(_info):
        _, sg = ctx.sgl(0, 9)
        seen.append(c.string_at(ctx.sgl_get(sg)[0].base, 9))
        ctx.sgl_put(sg)
    ctx.on_dma_unregister = unregistered
    client.close()
    lost(ctx)
    assert seen == [b"until now"]
    fails(errno.ENOENT, ctx.sgl, 0, 9)


def test_every_descriptor_of_the_connection_is_closed(ctx):
    before = open_fds()
    ctx.poll_fd()
    idle = open_fds()
    client = ctx.connect(caps=TWIN)
    files = [memfd(PAGE) for _ in range(3)]
    for i, fd in enumerate(files):
        client.map(i * PAGE, PAGE, fd=fd)
    events = [eventfd() for _ in range(7)]
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 4, fds=events[:4])
    for kind, fd in zip((INTX, ERR, REQ), events[4:]):
        client.set_irqs(kind, DATA_EVENTFD | ACTION_TRIGGER, 0, 1, fds=[fd])
    [os.close(fd) for fd in files + events]
    client.close()
    lost(ctx)
    assert before <= idle
    assert open_fds() == idle
    fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 0)


def test_the_twin_socket_is_closed_with_the_connection(ctx):
    client = ctx.connect(caps=TWIN)
    client.send_raw(header(1, GET_INFO, 3))
    assert ctx.run() == 0
    client.recv()
    lost(ctx)
    assert end_of_file(client.sock)
    assert end_of_file(client.twin)
    client.close()


def test_regions_ioeventfds_config_space_and_migration_state_are_kept(ctx, client):
    mem = ctx.memory_region(BAR2, 64)
    ev = eventfd()
    call("vfu_create_ioeventfd", ctx.p, BAR2, ev, 8, 4, 0, 0, -1, 0)
    client.write(BAR2, 0, b"kept")
    client.write(CFG, 0x3c, b"\x0b")
    client.set_state(S_STOP)
    client.close()
    lost(ctx)
    assert mem[:4] == b"kept"
    with ctx.connect() as other:
        assert other.read(BAR2, 0, 4) == b"kept"
        assert other.read(CFG, 0x3c, 1) == b"\x0b"
        p = other.request(GET_REGION_IO_FDS, struct.pack("<IIII", 64, 0, BAR2, 0))
        assert struct.unpack("<IIII", p[:16]) == (64, 0, BAR2, 1)
        [os.close(fd) for fd in other.fds]
        assert other.get_state() == S_STOP
    os.close(ev)


def test_dirty_logging_stops(ctx, client):
    client.log_start(2 * PAGE)
    client.log_start(4 * PAGE, expect=errno.EINVAL)
    client.close()
    lost(ctx)
    with ctx.connect() as other:
        other.log_start(4 * PAGE)


def test_one_client_after_the_other(ctx):
    before = None
    for _ in range(10):
        client = ctx.connect(caps=TWIN)
        client.map(0, PAGE)
        alive(client)
        client.close()
        lost(ctx, 1)
        before = before or open_fds()
        assert open_fds() == before
    assert ctx.events == ["quiesce", ("register", 0, PAGE), "quiesce", ("unregister", 0, PAGE), LOST] * 10


def test_the_next_client_starts_from_the_defaults(ctx):
    """What one client negotiated is not another's."""
    first = ctx.connect(caps={"max_msg_fds": 0, "max_data_xfer_size": 4})
    first.close()
    lost(ctx, 1)
    fd = memfd(PAGE)
    ctx.setup_region(BAR0, PAGE, flags=RW | MEM, areas=[(0, PAGE)], fd=fd)
    with ctx.connect() as second:
        p = second.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 64, 0, BAR0, 0, 0, 0))
        assert len(p) == 64 and len(second.fds) == 1
        os.close(second.fds[0])
        second.set_state(S_PRE_COPY)
        ctx.read_data = lambda count: b"x" * count
        assert second.request(MIG_DATA_READ, struct.pack("<II", 108, 100))[8:] == b"x" * 100
        second.request(DEVICE_RESET)
    os.close(fd)


def test_a_client_reset_by_its_own_close_with_replies_unread_is_a_lost_connection(ctx, client):
    client.send_raw(info(1))
    assert ctx.run() == 1
    client.close()  # the reply unread: the server's next read says ECONNRESET
    lost(ctx)
    assert ctx.events == ["quiesce", LOST]


def test_unread_messages_are_taken_out_before_closing_and_their_descriptors_closed(ctx):
    before = open_fds()
    client = ctx.connect()
    fd = memfd(PAGE)
    client.send_raw(header(1, GET_INFO, 1))
    for i in range(40):
        client.send_raw(dma_map(i, i * PAGE, PAGE), [fd])
    os.close(fd)
    assert ctx.run() == 0
    assert is_error(client.recv(), 1, GET_INFO, errno.EINVAL)
    assert end_of_file(client.sock), "no reset though much was unread"
    lost(ctx)
    client.close()
    assert open_fds() == before
    assert ctx.events == ["quiesce", LOST]


@pytest.mark.parametrize("how", ["loss", "destroy"])
def test_what_lies_unread_in_the_twin_socket_is_taken_out_before_closing_too(how):
    ctx = Ctx(quiesce=True)
    client = ctx.connect(caps={"twin_socket": {"supported": True}})
    before = open_fds()
    fd = memfd(PAGE)
    for i in range(10):
        client.send_raw(header(i, DMA_READ, 4096, F_REPLY) + bytes(4080), [fd], sock=client.twin)
    if how == "loss":
        client.sock.shutdown(socket.SHUT_WR)
        lost(ctx)
        gone = 2
    else:
        ctx.destroy()
        gone = 3
    os.close(fd)
    assert end_of_file(client.twin) and end_of_file(client.sock)
    assert len(open_fds()) == len(before) - gone
    client.close()
    ctx.destroy()


def test_what_was_received_and_not_executed_is_dropped_when_a_send_fails(ctx):
    ctx.poll_fd()
    before = open_fds()
    client = ctx.connect()
    mem = ctx.memory_region(BAR0, MAX_XFER)
    client.send_raw(region_read(1, BAR0, 0, MAX_XFER))
    fd = memfd(PAGE)
    client.send_raw(dma_map(2, 0, PAGE), [fd])
    os.close(fd)
    assert ctx.run() == 1
    client.close()
    until_lost(ctx)
    assert ctx.events == [("read", BAR0, 0, len(mem)), "quiesce", LOST]
    assert open_fds() == before


def test_a_blocking_context_reports_the_loss_and_attaches_again():
    with Ctx(nonblocking=False, quiesce=True) as ctx:
        for _ in range(2):
            client = ctx.connect()
            run = Background(ctx.run)
            client.send_raw(info(1))
            assert is_info(client.recv(), 1)
            client.close()
            fails(errno.ENOTCONN, run.result)
            lost(ctx)
        assert ctx.events == ["quiesce", LOST] * 2


def test_a_blocking_context_whose_device_is_busy_when_the_client_leaves():
    with Ctx(nonblocking=False, quiesce=True) as ctx:
        client = ctx.connect()
        ctx.quiesce_errno = errno.EBUSY
        client.close()
        for _ in range(3):
            fails(errno.EBUSY, ctx.run)
        assert ctx.quiesced() == 0
        lost(ctx)
        assert ctx.events == ["quiesce", LOST]
