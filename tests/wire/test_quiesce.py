"""Asking the device to be quiet: by which messages, with which outcomes, at once and later."""
import pytest
from peer import *

LOST, DEVICE, FLR = ("reset", RESET_LOST_CONN), ("reset", RESET_DEVICE), ("reset", RESET_FLR)
EXPRESS_CAP = bytes([0x10, 0]) + b"\2\0" + struct.pack("<I", 1 << 28) + bytes(52)


@pytest.fixture
def ctx():
    with Ctx(dma=True, quiesce=True, migration=True, realize=False) as ctx:
        ctx.pci_init()
        assert ctx.add_cap(EXPRESS_CAP) == 0x40
        ctx.realize()
        yield ctx


@pytest.fixture
def client(ctx):
    with ctx.connect() as client:
        yield client


# Each of these asks, and does what the last column says.
ASKING = {
    "map": (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, PAGE, PAGE), [("register", PAGE, PAGE)]),
    "unmap": (DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE), [("unregister", 0, PAGE)]),
    "unmap all": (DMA_UNMAP, struct.pack("<IIQQ", 24, UNMAP_ALL, 0, 0), [("unregister", 0, PAGE)]),
    "reset": (DEVICE_RESET, b"", [DEVICE]),
    "set state": (DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | FEATURE_SET, S_STOP, 0), [("state", CB_STOP)]),
    "log start": (DEVICE_FEATURE, struct.pack("<IIQII", 24, F_LOG_START | FEATURE_SET, PAGE, 0, 0), []),
    "log stop": (DEVICE_FEATURE, struct.pack("<II", 8, F_LOG_STOP | FEATURE_SET), []),
    "function level reset": (REGION_WRITE, struct.pack("<QII", 0x48, CFG, 2) + b"\0\x80", [FLR]),
}
asking = pytest.mark.parametrize("what", ASKING)


@pytest.fixture
def prepared(ctx, client):
    """With one region mapped."""
    client.map(0, PAGE)
    del ctx.events[:]
    return client


def success(what, cmd, payload):
    """The payload of the reply to what succeeded."""
    if what == "function level reset":
        return payload[:16]
    return payload if cmd in (DMA_UNMAP, DEVICE_FEATURE) else b""


# --- which messages ask -------------------------------------------------------

@asking
def test_it_asks_exactly_once_before_anything_else(ctx, prepared, what):
    cmd, payload, events = ASKING[what]
    assert prepared.request(cmd, payload) == success(what, cmd, payload)
    assert ctx.events == ["quiesce"] + events


@asking
def test_without_a_callback_everything_proceeds_at_once(ctx, prepared, what):
    lib.vfu_setup_device_quiesce_cb(ctx.p, None)
    cmd, payload, events = ASKING[what]
    assert prepared.request(cmd, payload) == success(what, cmd, payload)
    assert ctx.events == events


NOT_ASKING = {
    "info": (GET_INFO, INFO_REQUEST),
    "region info": (GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)),
    "irq info": (GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
    "set irqs": (SET_IRQS, struct.pack("<IIIII", 20, DATA_NONE | ACTION_TRIGGER, REQ, 0, 0)),
    "read": (REGION_READ, struct.pack("<QII", 0, CFG, 4)),
    "read of Device Control": (REGION_READ, struct.pack("<QII", 0x48, CFG, 2)),
    "write elsewhere": (REGION_WRITE, struct.pack("<QII", 0x3c, CFG, 1) + b"x"),
    "write at offset 7": (REGION_WRITE, struct.pack("<QII", 7, CFG, 1) + b"\0"),
    "Device Control without reset": (REGION_WRITE, struct.pack("<QII", 0x48, CFG, 2) + b"\xff\x7f"),
    "get state": (DEVICE_FEATURE, struct.pack("<II", 16, F_STATE | FEATURE_GET)),
    "get migration": (DEVICE_FEATURE, struct.pack("<II", 16, F_MIGRATION | FEATURE_GET)),
    **{f"probe {n}": (DEVICE_FEATURE, struct.pack("<II", 8, n | FEATURE_PROBE)) for n in (1, 2, 6, 7, 8)},
    "probe set state": (DEVICE_FEATURE, struct.pack("<II", 8, F_STATE | FEATURE_PROBE | FEATURE_SET)),
    **{f"get {n}": (DEVICE_FEATURE, struct.pack("<II", 64, n | FEATURE_GET)) for n in (3, 6, 7, 10)},
    **{f"set {n}": (DEVICE_FEATURE, struct.pack("<II", 8, n | FEATURE_SET)) for n in (1, 3, 8, 10, 11)},
    "report": (DEVICE_FEATURE, struct.pack("<IIQQQ", 64, F_LOG_REPORT | FEATURE_GET, 0, PAGE, PAGE)),
    "migration read": (MIG_DATA_READ, struct.pack("<II", 16, 8)),
    "migration write": (MIG_DATA_WRITE, struct.pack("<II", 8, 0)),
    "unknown": (99, b"x"),
}


@pytest.mark.parametrize("what", NOT_ASKING)
def test_it_does_not_ask(ctx, prepared, what):
    ctx.quiesce_errno = errno.EBUSY
    prepared.send(*NOT_ASKING[what])
    assert ctx.run() == 1
    prepared.recv()
    assert ctx.events == []


def test_map_and_unmap_do_not_ask_if_dma_was_not_set_up():
    with Ctx(quiesce=True) as ctx, ctx.connect() as client:
        client.map(0, PAGE)
        client.unmap(0, PAGE)
        assert ctx.events == []


# --- outcomes -----------------------------------------------------------------

@asking
@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EIO, 0xbeef])
def test_another_errno_refuses_the_message_which_counts_as_0_requests(ctx, prepared, what, number):
    ctx.quiesce_errno = number
    cmd, payload, _ = ASKING[what]
    prepared.request(cmd, payload, expect=number, count=0)
    assert ctx.events == ["quiesce"]
    ctx.quiesce_errno = 0
    alive(prepared)
    assert ctx.sgl(0, PAGE)[0] == 1
    assert prepared.get_state() == S_RUNNING


@asking
@pytest.mark.parametrize("result", [1, 2, errno.EBUSY, 0x7fffffff])
def test_every_positive_result_is_success(ctx, prepared, what, result):
    ctx.results["quiesce"] = ctx.results["reset"] = result
    c.set_errno(errno.EBUSY)
    cmd, payload, events = ASKING[what]
    assert prepared.request(cmd, payload) == success(what, cmd, payload)
    assert ctx.events == ["quiesce"] + events


@pytest.mark.parametrize("result", [-1, -2, -errno.EBUSY, -0x80000000])
def test_every_negative_result_is_a_failure_and_errno_says_which(ctx, prepared, result):
    def fail(_):
        c.set_errno(errno.ENOTTY)

    ctx.results["reset"], ctx.on_reset = result, fail
    prepared.request(DEVICE_RESET, expect=errno.ENOTTY)
    ctx.results["quiesce"] = result  # and errno is as before the call: 0
    prepared.request(DEVICE_RESET, expect=errno.EINVAL, count=0)
    ctx.results.clear()
    ctx.on_reset = lambda kind: None
    prepared.request(DEVICE_RESET)
    assert ctx.events == ["quiesce", DEVICE, "quiesce", "quiesce", DEVICE]


def test_a_positive_result_when_the_client_has_gone_is_success(ctx, prepared):
    ctx.results["quiesce"] = ctx.results["reset"] = 1
    c.set_errno(errno.EBUSY)
    prepared.close()
    fails(errno.ENOTCONN, ctx.run)
    assert ctx.events == ["quiesce", ("unregister", 0, PAGE), LOST]


@asking
def test_ebusy_stores_the_message_until_the_device_is_quiet(ctx, prepared, what):
    ctx.quiesce_errno = errno.EBUSY
    cmd, payload, events = ASKING[what]
    msg_id = prepared.send(cmd, payload)
    for _ in range(4):
        fails(errno.EBUSY, ctx.run)
        assert not [text for _, text in ctx.lines if "vfu_run_ctx" in text], "that it takes time is no failure"
    assert ctx.events == ["quiesce"]
    assert prepared.nothing()
    assert ctx.quiesced() == 0
    assert ctx.events == ["quiesce"] + events
    reply = prepared.recv()
    assert (reply.msg_id, reply.cmd, reply.flags, reply.error) == (msg_id, cmd, F_REPLY, 0)
    assert reply.payload == success(what, cmd, payload)
    assert ctx.run() == 0
    fails(errno.EINVAL, ctx.quiesced)
    assert ctx.events == ["quiesce"] + events
    alive(prepared)


@asking
@pytest.mark.parametrize("number", [errno.ENOTTY, 0xbeef])
def test_a_device_that_fails_to_quiesce_later_refuses_the_message_and_is_reset(ctx, prepared, what, number):
    ctx.quiesce_errno = errno.EBUSY
    cmd, payload, _ = ASKING[what]
    msg_id = prepared.send(cmd, payload)
    fails(errno.EBUSY, ctx.run)
    before = ctx.sgl(0, PAGE)[0]
    assert ctx.quiesced(number) == 0
    assert is_error(prepared.recv(), msg_id, cmd, number)
    assert ctx.events == ["quiesce", DEVICE], "nothing but the reset"
    assert ctx.sgl(0, PAGE)[0] == before == 1
    fails(errno.ENOENT, ctx.sgl, PAGE, PAGE)
    assert ctx.run() == 0
    fails(errno.EINVAL, ctx.quiesced)
    alive(prepared)
    assert prepared.get_state() == S_RUNNING


def test_a_failed_quiesce_that_wants_no_reply_gets_none_and_the_device_is_reset(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE), flags=F_NO_REPLY)
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced(errno.ENOTTY) == 0
    assert ctx.events == ["quiesce", DEVICE]
    alive(client)


def test_the_reset_of_a_failed_quiesce_returns_the_device_to_running(ctx, client):
    client.set_state(S_STOP)
    del ctx.events[:]
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0, PAGE))
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced(errno.ENOTTY) == 0
    assert is_error(client.recv(), 1, DMA_MAP, errno.ENOTTY)
    assert ctx.events == ["quiesce", DEVICE], "without calling the transition callback"
    assert client.get_state() == S_RUNNING


def test_a_failing_reset_after_a_failed_quiesce_leaves_the_state(ctx, client):
    client.set_state(S_STOP)
    ctx.quiesce_errno, ctx.reset_errno = errno.EBUSY, errno.EIO
    client.send_raw(dma_map(1, 0, PAGE))
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced(errno.ENOTTY) == 0
    client.recv()
    assert client.get_state() == S_STOP


def test_descriptors_of_a_discarded_message_are_closed(ctx, client):
    fd = memfd(PAGE)
    before = open_fds()
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0, PAGE), [fd, fd])
    fails(errno.EBUSY, ctx.run)
    ctx.quiesced(errno.ENOTTY)
    assert open_fds() == before
    os.close(fd)


def test_descriptors_of_a_message_refused_at_once_are_closed(ctx, client):
    fd = memfd(PAGE)
    before = open_fds()
    ctx.quiesce_errno = errno.ENOTTY
    client.map(0, PAGE, fd=fd, expect=errno.ENOTTY, count=0)
    assert open_fds() == before
    os.close(fd)


def test_a_stored_message_keeps_its_payload_and_descriptor_while_more_arrives(ctx, client):
    fd = memfd(PAGE, b"kept")
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0x1234000, PAGE), [fd])
    os.close(fd)
    fails(errno.EBUSY, ctx.run)
    client.send_raw(info(2) * 50)
    fails(errno.EBUSY, ctx.run)
    ctx.quiesced()
    assert client.recv().raw == header(1, DMA_MAP, 16, F_REPLY)
    _, sg = ctx.sgl(0x1234000, 4)
    assert c.string_at(ctx.sgl_get(sg)[0].base, 4) == b"kept"
    ctx.executes(50)


def test_a_stored_message_that_fails_is_answered_with_its_errno(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(message(1, DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE)))
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced() == 0
    assert is_error(client.recv(), 1, DMA_UNMAP, errno.ENOENT)
    ctx.quiesce_errno = 0
    alive(client)


def test_a_malformed_map_is_refused_and_the_connection_goes_on(ctx, client):
    client.request(DMA_MAP, b"short", expect=errno.EINVAL)
    assert [e for e in ctx.events if e != "quiesce"] == []
    alive(client)


# --- vfu_device_quiesced out of turn ------------------------------------------

@pytest.mark.parametrize("number", [0, errno.ENOTTY])
def test_quiesced_with_nothing_pending_is_einval_and_the_callback_is_not_called(ctx, client, number):
    fails(errno.EINVAL, ctx.quiesced, number)
    client.map(0, PAGE)
    fails(errno.EINVAL, ctx.quiesced, number)
    assert ctx.events == ["quiesce", ("register", 0, PAGE)]


def test_quiesced_without_a_callback_is_einval():
    with Ctx(dma=True) as ctx, ctx.connect():
        fails(errno.EINVAL, ctx.quiesced)


@pytest.mark.parametrize("outcome", [0, errno.EBUSY, errno.EIO])
def test_quiesced_from_inside_the_quiesce_callback_is_einval(ctx, client, outcome):
    inside = []

    def quiesce(_ctx):
        c.set_errno(0)
        inside.append((lib.vfu_device_quiesced(ctx.p, 0), c.get_errno()))
        return ctx._fail(outcome)
    lib.vfu_setup_device_quiesce_cb(ctx.p, ctx.cb(INT_CB, quiesce))
    client.send_raw(dma_map(1, 0, PAGE))
    if outcome == errno.EBUSY:
        fails(errno.EBUSY, ctx.run)
        assert ctx.quiesced() == 0
    else:
        ctx.run()
    assert inside == [(-1, errno.EINVAL)]
    assert client.recv().error == (outcome if outcome == errno.EIO else 0)
    assert ctx.events == ([] if outcome == errno.EIO else [("register", 0, PAGE)])


# --- the device works on while it has not quiesced ----------------------------

def test_the_device_works_normally_while_a_quiesce_is_pending(ctx, client):
    fd = memfd(PAGE, b"data")
    client.map(0, PAGE, fd=fd)
    ev = eventfd()
    call("vfu_setup_device_nr_irqs", ctx.p, REQ, 1)
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(message(1, DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, PAGE)))
    fails(errno.EBUSY, ctx.run)
    n, sg = ctx.sgl(0, 4)
    assert c.string_at(ctx.sgl_get(sg)[0].base, 4) == b"data"
    ctx.sgl_put(sg)
    buf = c.create_string_buffer(4)
    call("vfu_sgl_read", ctx.p, sg, 1, buf, DIRECT)
    assert buf.raw == b"data"
    call("vfu_sgl_write", ctx.p, sg, 1, b"more", DIRECT)
    assert os.pread(fd, 4, 0) == b"more"
    ctx.quiesced()
    assert client.recv().flags == F_REPLY
    fails(errno.ENOENT, ctx.sgl, 0, 4)
    os.close(fd), os.close(ev)


def try_sgl(ctx, addr):
    """What the SGL functions say of a mapped address."""
    n, sg = ctx.sgl(addr, 8)
    text = c.string_at(ctx.sgl_get(sg)[0].base, 8)
    ctx.sgl_put(sg)
    return n, text


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("what", ["map", "reset", "set state", "function level reset"])
def test_sgl_functions_work_inside_the_callbacks_that_run_while_quiesced(ctx, client, what, later):
    fd = memfd(PAGE, b"contents")
    client.map(0, PAGE, fd=fd)
    seen = []
    note = lambda *_: seen.append(try_sgl(ctx, 0))
    ctx.on_dma_register = ctx.on_reset = ctx.on_transition = note
    cmd, payload, _ = ASKING[what]
    if later:
        ctx.quiesce_errno = errno.EBUSY
    client.send(cmd, payload)
    if later:
        fails(errno.EBUSY, ctx.run)
        assert seen == []
        ctx.quiesced()
    else:
        assert ctx.run() == 1
    assert seen == [(1, b"contents")]
    assert client.recv().flags == F_REPLY
    ctx.on_dma_register = ctx.on_reset = ctx.on_transition = lambda *_: None
    os.close(fd)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_the_region_of_a_map_is_usable_in_its_own_register_callback_and_afterwards(ctx, client, later):
    fd = memfd(PAGE, b"contents")
    seen = []
    ctx.on_dma_register = lambda i: seen.append(try_sgl(ctx, i.iova.base))
    if later:
        ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, PAGE, PAGE), [fd])
    if later:
        fails(errno.EBUSY, ctx.run)
        fails(errno.ENOENT, ctx.sgl, PAGE, 8)
        ctx.quiesced()
    else:
        assert ctx.run() == 1
    assert seen == [(1, b"contents")]
    assert client.recv().flags == F_REPLY
    assert ctx.run() == 0
    assert try_sgl(ctx, PAGE) == (1, b"contents")
    os.close(fd)


def test_callbacks_that_are_not_for_quiet_devices_run_without_asking(ctx, client):
    ctx.memory_region(BAR0, 16)
    client.write(BAR0, 0, b"x")
    client.read(BAR0, 0, 1)
    assert ctx.events == [("write", BAR0, 0, 1), ("read", BAR0, 0, 1)]


# --- the client leaves while a message waits ----------------------------------

def test_a_message_whose_client_has_gone_is_still_executed_and_the_loss_asks_no_further(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0, PAGE))
    fails(errno.EBUSY, ctx.run)
    client.close()
    fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce"]
    assert ctx.quiesced() == 0
    assert ctx.events == ["quiesce", ("register", 0, PAGE), ("unregister", 0, PAGE), LOST]
    lost(ctx)
    assert ctx.events.count("quiesce") == 1
    fails(errno.ENOENT, ctx.sgl, 0, PAGE)


def test_a_state_change_whose_client_leaves_resets_once_and_only_after_quiescing(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    cmd, payload, _ = ASKING["set state"]
    client.send(cmd, payload)
    fails(errno.EBUSY, ctx.run)
    client.close()
    fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce"]
    assert ctx.quiesced() == 0
    assert ctx.events == ["quiesce", ("state", CB_STOP), LOST]
    lost(ctx)
    assert ctx.events.count(LOST) == 1


def test_a_failed_quiesce_of_a_client_that_has_gone_resets_and_the_loss_follows(ctx, client):
    ctx.quiesce_errno = errno.EBUSY
    client.send_raw(dma_map(1, 0, PAGE))
    fails(errno.EBUSY, ctx.run)
    client.close()
    assert ctx.quiesced(errno.ENOTTY) == 0
    lost(ctx)
    assert ctx.events == ["quiesce", DEVICE, LOST]


def test_a_client_gone_during_a_map_hides_the_failed_reply_and_is_reported_next(ctx, client):
    client.send_raw(dma_map(1, 0, PAGE))
    client.close()
    assert ctx.run() == 1
    assert ctx.events == ["quiesce", ("register", 0, PAGE), "quiesce", ("unregister", 0, PAGE), LOST]
    lost(ctx)
    assert len(ctx.events) == 5


def test_ebusy_for_the_loss_found_while_replying_is_the_calls_result(ctx, client):
    ctx.on_dma_register = lambda _info: setattr(ctx, "quiesce_errno", errno.EBUSY)
    client.send_raw(dma_map(1, 0, PAGE))
    client.close()
    fails(errno.EBUSY, ctx.run)
    fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce", ("register", 0, PAGE), "quiesce"]
    assert ctx.quiesced() == 0
    assert ctx.events[3:] == [("unregister", 0, PAGE), LOST]
    lost(ctx)


# --- the connection is lost while nothing else is pending ---------------------

def test_a_loss_with_a_busy_device_waits_for_it(ctx, client):
    client.map(0, PAGE)
    del ctx.events[:]
    ctx.quiesce_errno = errno.EBUSY
    client.close()
    for _ in range(4):
        fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce"]
    assert ctx.sgl(0, PAGE)[0] == 1, "nothing is torn down yet"
    assert ctx.quiesced() == 0
    assert ctx.events == ["quiesce", ("unregister", 0, PAGE), LOST]
    lost(ctx)
    ctx.quiesce_errno = 0
    with ctx.connect() as other:
        alive(other)


def test_a_device_that_fails_to_quiesce_later_for_a_loss_is_torn_down_all_the_same(ctx, client):
    client.map(0, PAGE)
    del ctx.events[:]
    ctx.quiesce_errno = errno.EBUSY
    client.close()
    fails(errno.EBUSY, ctx.run)
    assert ctx.quiesced(errno.EIO) == 0
    assert ctx.events == ["quiesce", ("unregister", 0, PAGE), LOST]
    lost(ctx)
    fails(errno.EINVAL, ctx.quiesced)
    assert ctx.events.count("quiesce") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTTY, 0xbeef])
def test_a_device_that_fails_to_quiesce_at_once_for_a_loss_is_torn_down_all_the_same(ctx, client, number):
    client.map(0, PAGE)
    del ctx.events[:]
    ctx.quiesce_errno = number
    client.close()
    lost(ctx)
    assert ctx.events == ["quiesce", ("unregister", 0, PAGE), LOST]
    ctx.quiesce_errno = 0
    with ctx.connect() as other:
        alive(other)


def test_destroy_while_a_loss_is_pending():
    ctx = Ctx(dma=True, quiesce=True)
    client = ctx.connect()
    client.map(0, PAGE)
    ctx.quiesce_errno = errno.EBUSY
    client.close()
    fails(errno.EBUSY, ctx.run)
    del ctx.events[:]
    ctx.destroy()
    assert ctx.events == [("unregister", 0, PAGE), LOST]
