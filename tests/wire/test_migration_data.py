"""MIG_DATA_READ and MIG_DATA_WRITE: the device's state on its way."""
import errno
import struct

import pytest

from libvfu import *
from guest import *

READABLE, WRITABLE = (S_PRE_COPY, S_STOP_COPY), (S_RESUMING,)
ALL = (S_STOP, S_RUNNING, S_STOP_COPY, S_RESUMING, S_PRE_COPY)
BLOB = bytes(i * 13 & 0xff for i in range(MIB))


def device(state, limit=None, **kw):
    caps = None if limit is None else {"max_data_xfer_size": limit}
    pair = attached(caps=caps, migration=True, **kw)

    class Entered:
        def __enter__(self):
            ctx, client = pair.__enter__()
            ctx.read_data = lambda count: BLOB[:count]
            client.set_state(state)
            ctx.events.clear()
            return ctx, client

        def __exit__(self, *exc):
            return pair.__exit__(*exc)
    return Entered()


def read(client, size, argsz=None, extra=b"", **kw):
    return client.request(MIG_DATA_READ, struct.pack("<II", 8 + size if argsz is None else argsz, size) + extra, **kw)


def write(client, data, size=None, argsz=None, extra=b"", **kw):
    size = len(data) if size is None else size
    return client.request(MIG_DATA_WRITE, struct.pack("<II", 8 + size if argsz is None else argsz, size) + data + extra,
                          **kw)


# --- read -----------------------------------------------------------------------------
@pytest.mark.parametrize("state", READABLE)
@pytest.mark.parametrize("size", [1, 4, 4096, 32768])
def test_read(state, size):
    with device(state) as (ctx, client):
        assert read(client, size) == struct.pack("<II", 8 + size, size) + BLOB[:size]
        assert ctx.events == [("read_data", size)]


@pytest.mark.parametrize("state", [s for s in ALL if s not in READABLE])
def test_read_in_another_state(state):
    with device(state) as (ctx, client):
        read(client, 4, expect=errno.EINVAL)
        assert ctx.events == []


@pytest.mark.parametrize("n", [0, 1, 99])
def test_a_short_read_is_answered_with_what_there_is(n):
    with device(S_STOP_COPY) as (ctx, client):
        ctx.read_data = lambda count: BLOB[:n]
        assert read(client, 100) == struct.pack("<II", 8 + n, n) + BLOB[:n]


def test_a_read_of_nothing_reaches_the_device():
    with device(S_STOP_COPY) as (ctx, client):
        assert read(client, 0) == struct.pack("<II", 8, 0)
        assert ctx.events == [("read_data", 0)]


def test_the_whole_state_in_pieces():
    with device(S_STOP_COPY) as (ctx, client):
        state = {"at": 0}

        def data(count):
            piece = BLOB[state["at"]:10000][:count]
            state["at"] += len(piece)
            return piece
        ctx.read_data = data
        got = b""
        while True:
            p = read(client, 4096)
            assert struct.unpack_from("<II", p) == (len(p), len(p) - 8)
            got += p[8:]
            if len(p) - 8 < 4096:
                break
        assert got == BLOB[:10000]
        assert read(client, 4096) == struct.pack("<II", 8, 0)


@pytest.mark.parametrize("number", [0xbeef, errno.EIO, 1])
def test_the_errno_of_a_failing_read(number):
    with device(S_PRE_COPY) as (ctx, client):
        ctx.read_data = lambda count: number
        read(client, 8, expect=number)
        assert client.get_state() == S_PRE_COPY
        ctx.read_data = lambda count: b"12345678"
        assert read(client, 8)[8:] == b"12345678"


@pytest.mark.parametrize("size, returned", [(0, 1), (8, 9), (8, 1 << 20), (100, 0xffffffff)])
def test_a_device_that_says_it_read_more_than_asked(size, returned):
    class Liar(Ctx):
        def _read_data(self, _ctx, buf, count):
            self.events.append(("read_data", count))
            return returned
    with Liar(migration=True) as ctx, ctx.connect() as client:
        client.set_state(S_STOP_COPY)
        read(client, size, expect=errno.EINVAL)
        assert ctx.events[-1] == ("read_data", size)
        answers(client)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_read_request_below_8_bytes(n):
    with device(S_STOP_COPY) as (ctx, client):
        client.request(MIG_DATA_READ, struct.pack("<II", 8, 0)[:n], expect=errno.EINVAL)
        assert ctx.events == []


@pytest.mark.parametrize("size, argsz", [(0, 7), (0, 0), (1, 8), (100, 107), (100, 0), (100, 8)])
def test_argsz_of_a_read_must_have_room_for_the_data(size, argsz):
    with device(S_STOP_COPY) as (ctx, client):
        read(client, size, argsz=argsz, expect=errno.EINVAL)
        assert ctx.events == []


def test_a_larger_argsz_and_more_payload_are_fine():
    with device(S_STOP_COPY) as (ctx, client):
        assert read(client, 4, argsz=0xffffffff, extra=b"more") == struct.pack("<II", 12, 4) + BLOB[:4]


@pytest.mark.parametrize("limit, size, ok", [
    (4, 4, True), (4, 5, False), (4, 0xffffffff, False), (1, 1, True), (1, 2, False), (MIB - 1, MIB, False)])
def test_reads_are_limited_by_the_client_s_transfer_size(limit, size, ok):
    with device(S_STOP_COPY, limit) as (ctx, client):
        if ok:
            assert read(client, size)[8:] == BLOB[:size]
        else:
            read(client, size, argsz=min(8 + size, 0xffffffff), expect=errno.EINVAL)
        assert ctx.events == ([("read_data", size)] if ok else [])


@pytest.mark.parametrize("limit", [None, MIB, 4 * MIB, 1 << 40])
def test_reads_are_limited_to_1_mib(limit):
    with device(S_STOP_COPY, limit) as (ctx, client):
        read(client, MIB + 1, expect=errno.EINVAL)
        read(client, 0xffffffff, argsz=0xffffffff, expect=errno.EINVAL)
        read(client, 0xffffffff, argsz=7, expect=errno.EINVAL)
        assert ctx.events == []
        reply = exchange(client, message(5, MIG_DATA_READ, struct.pack("<II", 8 + MIB, MIB)))
        assert (reply.msg_id, reply.flags, reply.size) == (5, F_REPLY, 16 + 8 + MIB)
        assert reply.payload == struct.pack("<II", 8 + MIB, MIB) + BLOB
        assert ctx.events == [("read_data", MIB)]


# --- write -----------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 4, 4096, 32768])
def test_write(size):
    with device(S_RESUMING) as (ctx, client):
        assert write(client, BLOB[:size]) == b""
        assert ctx.events == [("write_data", BLOB[:size])]


@pytest.mark.parametrize("state", [s for s in ALL if s not in WRITABLE])
def test_write_in_another_state(state):
    with device(state) as (ctx, client):
        write(client, b"data", expect=errno.EINVAL)
        assert ctx.events == []


def test_a_write_of_nothing_succeeds():
    with device(S_RESUMING) as (ctx, client):
        assert write(client, b"") == b""
        assert ctx.events in ([], [("write_data", b"")])


def test_what_is_more_than_size_is_ignored():
    with device(S_RESUMING) as (ctx, client):
        assert write(client, b"data", extra=b"excess" * 100) == b""
        assert write(client, b"data", argsz=0xffffffff) == b""
        assert ctx.events == [("write_data", b"data")] * 2


@pytest.mark.parametrize("number", [0xbeef, errno.ENOSPC])
def test_the_errno_of_a_failing_write(number):
    with device(S_RESUMING) as (ctx, client):
        ctx.write_data = lambda data: ctx._fail(number)
        write(client, b"data", expect=number)
        assert client.get_state() == S_RESUMING
        ctx.write_data = None
        write(client, b"data")


@pytest.mark.parametrize("returned", [0, 1, 3, 5, 1 << 20, 0xffffffff])
def test_a_device_that_says_it_wrote_another_number(returned):
    with device(S_RESUMING) as (ctx, client):
        ctx.write_data = lambda data: returned
        write(client, b"data", expect=errno.EINVAL)
        assert ctx.events == [("write_data", b"data")]


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_write_request_below_8_bytes(n):
    with device(S_RESUMING) as (ctx, client):
        client.request(MIG_DATA_WRITE, struct.pack("<II", 8, 0)[:n], expect=errno.EINVAL)
        assert ctx.events == []


@pytest.mark.parametrize("data, size, argsz", [
    (b"", 1, 9), (b"abc", 4, 12), (b"abc", 4, 11), (b"", 65536, 65544), (b"abcd", 4, 11), (b"abcd", 4, 8), (b"abcd", 4, 0),
    (b"", 0, 7)])
def test_missing_data_and_an_argsz_too_small(data, size, argsz):
    with device(S_RESUMING) as (ctx, client):
        write(client, data, size=size, argsz=argsz, expect=errno.EINVAL)
        assert ctx.events == []


@pytest.mark.parametrize("limit, size, ok", [
    (4, 4, True), (4, 5, False), (1, 1, True), (1, 2, False)])
def test_writes_are_limited_by_the_client_s_transfer_size(limit, size, ok):
    with device(S_RESUMING, limit) as (ctx, client):
        write(client, BLOB[:size], expect=0 if ok else errno.EINVAL)
        assert ctx.events == ([("write_data", BLOB[:size])] if ok else [])
        write(client, BLOB[:4], size=0xffffffff, argsz=0xffffffff, expect=errno.EINVAL)


@pytest.mark.parametrize("limit", [None, MIB, 4 * MIB])
def test_writes_are_limited_to_1_mib(limit):
    with device(S_RESUMING, limit) as (ctx, client):
        reply = exchange(client, message(5, MIG_DATA_WRITE, struct.pack("<II", 8 + MIB, MIB) + BLOB))
        assert (reply.msg_id, reply.flags, reply.size) == (5, F_REPLY, 16)
        assert ctx.events == [("write_data", BLOB)]
        ctx.events.clear()
        reply = exchange(client, message(6, MIG_DATA_WRITE, struct.pack("<II", 9 + MIB, MIB + 1) + BLOB + b"x"))
        assert (reply.msg_id, reply.flags, reply.error) == (6, F_REPLY | F_ERROR, errno.EINVAL)
        assert ctx.events == []


# --- both -----------------------------------------------------------------------------
@pytest.mark.parametrize("cmd", [MIG_DATA_READ, MIG_DATA_WRITE])
def test_without_migration_callbacks(cmd):
    with attached(dma=True) as (ctx, client):
        client.request(cmd, struct.pack("<II", 12, 4) + b"data", expect=errno.EINVAL)


def test_migration_data_do_not_ask_for_quiesce():
    with device(S_STOP_COPY, quiesce=True) as (ctx, client):
        read(client, 4)
        assert ctx.events == [("read_data", 4)]
        client.set_state(S_RESUMING)
        ctx.events.clear()
        write(client, b"data")
        assert ctx.events == [("write_data", b"data")]


def test_a_device_moves_from_one_context_to_another():
    with device(S_PRE_COPY) as (source, from_client), device(S_RESUMING) as (target, to_client):
        stream = [BLOB[:1000], b"", BLOB[1000:3000], BLOB[3000:3100], b""]
        source.read_data = lambda count: stream.pop(0)
        write(to_client, read(from_client, 2000)[8:])
        assert read(from_client, 2000)[8:] == b""
        from_client.set_state(S_STOP_COPY)
        for _ in range(2):
            write(to_client, read(from_client, 2000)[8:])
        assert read(from_client, 2000)[8:] == b""
        from_client.set_state(S_STOP)
        to_client.set_state(S_RUNNING)
        assert b"".join(e[1] for e in target.events if e[0] == "write_data") == BLOB[:3100]
        assert [e for e in target.events if e[0] == "state"] == [("state", CB_STOP), ("state", CB_RUNNING)]
        assert [e for e in source.events if e[0] == "state"] == [("state", CB_STOP_COPY), ("state", CB_STOP)]
