"""The scatter-gather API: access by messages to the client."""
from sgl_device import *


# --- by messages -----------------------------------------------------------------------
KINDS = [("message", 0), ("mmap", 0), ("file io", 0), ("message", DIRECT)]


@pytest.mark.parametrize("kind, flags", KINDS)
def test_64_bytes_are_one_message_each_way(device, fd, kind, flags):
    ctx, client = device
    map_kind(client, kind, fd, PAGE)
    before = os.pread(fd, PAGE, 0)
    memory = bytearray(pattern(PAGE))
    n, sg = ctx.sgl(BASE + 0x80, 64)
    with Guest(client, memory, BASE) as guest:
        assert sgl_read(ctx, sg, 64, flags) == pattern(PAGE)[0x80:0xc0]
        sgl_write(ctx, sg, b"y" * 64, flags)
    assert guest.messages == [(DMA_READ, BASE + 0x80, 64), (DMA_WRITE, BASE + 0x80, 64)]
    assert memory == pattern(PAGE)[:0x80] + b"y" * 64 + pattern(PAGE)[0xc0:]
    assert os.pread(fd, PAGE, 0) == before, "messages and nothing else"


@pytest.mark.parametrize("limit, length, sizes", [
    (PAGE, 2 * PAGE + 42, [PAGE, PAGE, 42]), (PAGE, 2 * PAGE, [PAGE, PAGE]), (PAGE, 1, [1]), (PAGE, PAGE, [PAGE]),
    (64, 200, [64, 64, 64, 8]), (1, 3, [1, 1, 1]), (100000, 250000, [100000, 100000, 50000]),
    (131072, 131073, [65536, 65536, 1]), (131073, 131073, [65536, 65536, 1]), (MIB, 131072, [131072]),
    (None, 131072 * 2 + 5, [65536] * 4 + [5]), (4 * MIB, 2 * MIB, [65536] * 32), (1 << 40, 131073, [65536, 65536, 1])])
@pytest.mark.parametrize("kind, flags", [KINDS[0], KINDS[1]])
def test_chunks_are_what_the_client_takes_and_64_kib_where_there_are_several_at_once(fd, limit, length, sizes, kind, flags):
    caps = None if limit is None else {"max_data_xfer_size": limit}
    with attached(caps=caps, dma=True) as (ctx, client):
        map_kind(client, kind, fd, 4 * MIB)
        memory = bytearray(pattern(3 * MIB))
        n, sg = ctx.sgl(BASE + 3, length)
        with Guest(client, memory, BASE) as guest:
            assert sgl_read(ctx, sg, length, flags) == pattern(3 * MIB)[3:3 + length]
            sgl_write(ctx, sg, pattern(length, 77), flags)
        at, expected = BASE + 3, []
        for size in sizes:
            expected.append((at, size))
            at += size
        assert guest.messages == [(DMA_READ, *e) for e in expected] + [(DMA_WRITE, *e) for e in expected]
        assert memory[3:3 + length] == pattern(length, 77)
        assert memory[:3] == pattern(3) and memory[3 + length:] == pattern(3 * MIB)[3 + length:]


def test_message_ids_count_up(device):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 8)
    with Guest(client, bytearray(PAGE), BASE) as guest:
        for _ in range(5):
            sgl_read(ctx, sg, 8)
            sgl_write(ctx, sg, b"8" * 8)
    first = guest.ids[0]
    assert guest.ids == [(first + i) & 0xffff for i in range(10)]


@pytest.mark.parametrize("limit", [PAGE, 131072])
def test_with_a_twin_socket_messages_go_there(fd, limit):
    caps = {"max_msg_fds": 8, "max_data_xfer_size": limit, "twin_socket": {"supported": True}}
    with attached(caps=caps, dma=True) as (ctx, client):
        assert client.twin is not None
        client.map(BASE, 4 * PAGE)
        memory = bytearray(pattern(4 * PAGE))
        n, sg = ctx.sgl(BASE, 3 * PAGE)
        with Guest(client, memory, BASE, sock=client.twin) as guest:
            assert sgl_read(ctx, sg, 3 * PAGE) == pattern(3 * PAGE)
            sgl_write(ctx, sg, b"t" * 3 * PAGE)
        assert len(guest.messages) == 2 * -(-3 * PAGE // limit)
        assert memory == b"t" * 3 * PAGE + pattern(4 * PAGE)[3 * PAGE:]
        assert client.nothing()


def test_message_access_from_inside_a_region_callback():
    with Ctx(dma=True, realize=False) as ctx:
        memory = bytearray(pattern(PAGE))

        def access(_ctx, buf, count, offset, is_write):
            n, sg = ctx.sgl(BASE + offset, count)
            data = sgl_read(ctx, sg, count)
            sgl_write(ctx, sg, data[::-1])
            c.memmove(buf, data, count)
            return count
        ctx.setup_region(BAR0, PAGE, access)
        ctx.realize()
        with ctx.connect() as client:
            client.map(BASE, PAGE)
            with Guest(client, memory, BASE) as guest:
                msg_id = client.send(REGION_READ, struct.pack("<QII", 0x10, BAR0, 32))
                assert ctx.run() == 1
            assert guest.messages == [(DMA_READ, BASE + 0x10, 32), (DMA_WRITE, BASE + 0x10, 32)]
            reply = guest.replies[0] if guest.replies else client.recv()
            assert (reply.msg_id, reply.flags, reply.payload[16:]) == (msg_id, F_REPLY, pattern(PAGE)[0x10:0x30])
            assert memory[0x10:0x30] == pattern(PAGE)[0x10:0x30][::-1]
            answers(client)


# Replies to a DMA message that are refused: (how the reply is made, errno for a read, errno for a write)
def reply_bytes(head, address, count, cmd=None, msg_id=None, flags=F_REPLY, error=0, payload=None, longer=0):
    i, command, _, _, _ = struct.unpack("<HHIII", head)
    if payload is None:
        payload = struct.pack("<QQ", address, count) + (b"d" * count if command == DMA_READ else b"")
        payload = payload[:len(payload) + longer] + b"!" * longer
    return header(i if msg_id is None else msg_id(i), cmd or command, 16 + len(payload), flags, error) + payload


BAD_REPLIES = {
    "error": (dict(flags=F_REPLY | F_ERROR, error=errno.EIO, payload=b""), errno.EIO),
    "error with the whole payload": (dict(flags=F_REPLY | F_ERROR, error=errno.EIO), errno.EIO),
    "error with 1000 bytes": (dict(flags=F_REPLY | F_ERROR, error=errno.EPERM, payload=b"x" * 1000), errno.EPERM),
    "error 4096": (dict(flags=F_REPLY | F_ERROR, error=4096, payload=b""), 4096),
    "error 4097": (dict(flags=F_REPLY | F_ERROR, error=4097, payload=b""), errno.EINVAL),
    "error 0": (dict(flags=F_REPLY | F_ERROR, error=0, payload=b""), errno.EINVAL),
    "error ENOMSG": (dict(flags=F_REPLY | F_ERROR, error=errno.ENOMSG, payload=b""), errno.ENOMSG),
    "error ECONNRESET": (dict(flags=F_REPLY | F_ERROR, error=errno.ECONNRESET, payload=b""), errno.ECONNRESET),
    "other id": (dict(msg_id=lambda i: i + 1 & 0xffff), errno.EPROTO),
    "other id, no payload": (dict(msg_id=lambda i: i ^ 0x8000, payload=b""), errno.EPROTO),
    "other command": (dict(cmd=REGION_READ), errno.EINVAL),
    "no payload": (dict(payload=b""), errno.EINVAL),
    "15 bytes": (dict(payload=b"x" * 15), errno.EINVAL),
    "a byte too much": (dict(longer=1), errno.EINVAL),
    "a byte too little": (dict(longer=-1), errno.EINVAL),
    "too much": (dict(payload=b"x" * 500), errno.EINVAL),
}


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("how", BAD_REPLIES)
@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_a_bad_reply_fails_the_transfer_and_nothing_else(how, access, twin):
    change, number = BAD_REPLIES[how]
    caps = {"max_msg_fds": 8, "twin_socket": {"supported": True}} if twin else None
    with attached(caps=caps, dma=True) as (ctx, client):
        client.map(BASE, PAGE)
        n, sg = ctx.sgl(BASE, 64)
        sock = client.twin if twin else client.sock

        def answer(guest, head, address, count, data):
            return reply_bytes(head, address, count, **change)
        with Guest(client, answer=answer, sock=sock) as guest:
            if access == "read":
                fails(number, sgl_read, ctx, sg, 64)
            else:
                fails(number, sgl_write, ctx, sg, b"w" * 64)
        assert len(guest.messages) == 1
        with Guest(client, bytearray(b"good" * 1024), BASE, sock=sock):
            assert sgl_read(ctx, sg, 64) == b"good" * 16, "the stream is out of step"


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("address, count", [(1, 0), (0, 1), (0, -1), (-64, 0), (0, 1 << 32), (1 << 32, 0)])
def test_address_and_count_must_come_back(device, access, address, count):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)

    def answer(guest, head, a, n, data):
        payload = struct.pack("<QQ", a + address, n + count) + (b"d" * n if access == "read" else b"")
        return reply_bytes(head, a, n, payload=payload)
    with Guest(client, answer=answer):
        if access == "read":
            fails(errno.EINVAL, sgl_read, ctx, sg, 64)
        else:
            fails(errno.EINVAL, sgl_write, ctx, sg, b"w" * 64)
    with Guest(client, bytearray(b"good" * 1024), BASE):
        assert sgl_read(ctx, sg, 64) == b"good" * 16


def test_the_second_of_three_chunks_fails():
    with attached(caps={"max_data_xfer_size": 16}, dma=True) as (ctx, client):
        client.map(BASE, PAGE)
        memory = bytearray(PAGE)
        n, sg = ctx.sgl(BASE, 48)

        def answer(guest, head, address, count, data):
            if address == BASE + 16:
                return reply_bytes(head, address, count, flags=F_REPLY | F_ERROR, error=errno.EIO, payload=b"")
            return None
        with Guest(client, memory, BASE, answer=answer) as guest:
            fails(errno.EIO, sgl_write, ctx, sg, b"w" * 48)
        assert guest.messages == [(DMA_WRITE, BASE, 16), (DMA_WRITE, BASE + 16, 16)]
        assert memory[:48] == b"w" * 16 + bytes(32)


def test_descriptors_with_a_reply_are_closed_and_the_transfer_goes_on(device, fd):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    sent = []

    def answer(guest, head, address, count, data):
        client.send_raw(reply_bytes(head, address, count), [fd, fd])
        sent.append(1)
        return b""
    with Guest(client, answer=answer) as guest:
        assert sgl_read(ctx, sg, 64) == b"d" * 64
    assert sent == [1] and len(guest.messages) == 1
    assert fds_of("sgl-test") == [fd]


def test_messages_without_a_client():
    """The entry is got while the client is there; the region goes with it, so it is tried from inside."""
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        client.map(BASE, PAGE)
        seen = []

        def unregister(_info):
            n, sg = ctx.sgl(BASE, 8)
            try:
                sgl_read(ctx, sg, 8)
            except Failed as e:
                seen.append(e.errno)
        ctx.on_dma_unregister = unregister
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        assert seen == [errno.ENOTCONN]
        with ctx.connect() as client:
            answers(client)


# --- while a quiesce is pending, and in callbacks of vfu_device_quiesced ---------------------
@pytest.mark.parametrize("kind, flags", KINDS + [("mmap", DIRECT), ("file io", DIRECT)])
def test_access_while_a_quiesce_is_pending_and_in_the_callbacks_after_it(fd, kind, flags):
    with attached(dma=True, quiesce=True) as (ctx, client):
        map_kind(client, kind, fd, PAGE)
        memory = bytearray(os.pread(fd, PAGE, 0))
        ctx.quiesce_errno = errno.EBUSY
        ctx.events.clear()
        msg_id = client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RWF, 0, BASE + PAGE, PAGE))
        fails(errno.EBUSY, ctx.run)
        seen = []

        def access(*_):
            n, sg = ctx.sgl(BASE + 8, 64)
            seen.append(sgl_read(ctx, sg, 64, flags))
            sgl_write(ctx, sg, seen[-1], flags)
            assert is_mappable(ctx, sg) == (kind == "mmap")
            if kind == "mmap":
                seen.append(peek(ctx.sgl_get(sg)[0].base, 64))
            ctx.sgl_put(sg)
        expected = [memory[8:72]] * (2 if kind == "mmap" else 1)
        ctx.on_dma_register = access
        with Guest(client, memory, BASE) as guest:
            access()
            assert seen == expected
            fails(errno.EBUSY, ctx.run)
            ctx.quiesced()
        assert seen == expected * 2
        assert ctx.events == ["quiesce", ("register", BASE + PAGE, PAGE)]
        reply = guest.replies[0] if guest.replies else client.recv()
        assert (reply.msg_id, reply.flags) == (msg_id, F_REPLY)
        assert len(guest.messages) == (4 if kind == "message" or not flags else 0)
        ctx.on_dma_register = lambda i: None
        ctx.quiesce_errno = 0


def test_access_inside_register_transition_and_reset_callbacks(fd):
    with attached(dma=True, quiesce=True, migration=True) as (ctx, client):
        seen = []

        def access(*_):
            n, sg = ctx.sgl(BASE, 16)
            seen.append(peek(ctx.sgl_get(sg)[0].base, 16))
            ctx.sgl_put(sg)
        ctx.on_dma_register = ctx.on_transition = ctx.on_reset = access
        client.map(BASE, PAGE, fd)
        client.set_state(S_STOP)
        client.request(DEVICE_RESET)
        assert seen == [os.pread(fd, 16, 0)] * 3
        ctx.on_reset = lambda kind: None


# --- commands that cross a DMA message on the only socket --------------------------------------
def test_commands_that_cross_a_dma_message_are_executed_afterwards_in_order(device, fd):
    ctx, client = device
    client.map(BASE, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    ctx.events.clear()

    def answer(guest, head, address, count, data):
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, RWF, 0, BASE + PAGE, PAGE), [fd], msg_id=1)
        client.send(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE + PAGE, PAGE), msg_id=2)
    with Guest(client, bytearray(b"mem!" * 1024), BASE, answer=answer):
        assert sgl_read(ctx, sg, 64) == b"mem!" * 16
    assert ctx.events == [] and client.nothing()
    assert ctx.readable(), "the queued commands are something to do"
    ctx.executes(2)
    assert ctx.events == [("register", BASE + PAGE, PAGE), ("unregister", BASE + PAGE, PAGE)]
    assert [(r.msg_id, r.flags) for r in (client.recv(), client.recv())] == [(1, F_REPLY), (2, F_REPLY)]
    assert fds_of("sgl-test") == [fd]
