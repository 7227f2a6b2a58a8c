"""Reports of dirty pages that are longer than what the server makes at once: the rest is made as the client reads."""
import pytest
from guest import *
from peer import *

MIB, GIB = 1 << 20, 1 << 30
PART = MIB  # bytes of bitmap
RWF = MAP_READ | MAP_WRITE


@pytest.fixture(params=[True, False], ids=["non-blocking", "blocking"])
def ctx(request):
    with Ctx(dma=True, migration=True, nonblocking=request.param) as ctx:
        ctx.nonblocking = request.param
        yield ctx


def serving(ctx, f):
    """Runs f, a client that waits for answers, while the context serves it."""
    acting = Background(f)
    if ctx.nonblocking:
        while not acting.done.wait(0.001):
            if ctx.readable():
                ctx.run()
    else:
        run = Background(ctx.run)
        acting.done.wait(GUARD)
        until("it waits", lambda: sleeps(run) is not None or run.done.is_set())
        run.interrupt()
        fails(errno.EINTR, run.result)
    return acting.result()


def ask(client, payload, cmd=DEVICE_FEATURE, fds=()):
    client.send(cmd, payload, fds)
    reply = client.recv()
    assert reply.flags == F_REPLY
    return reply.payload


def mapped(client, addr, size, fd):
    ask(client, struct.pack("<IIQQQ", 32, RWF, 0, addr, size), DMA_MAP, [fd])


def log_start(client, page):
    ask(client, struct.pack("<IIQII", 24, F_LOG_START | FEATURE_SET, page, 0, 0))


def report_request(iova, length, page):
    size = 32 + (-(-length // page) + 63) // 64 * 8
    return struct.pack("<IIQQQ", size, F_LOG_REPORT | FEATURE_GET, iova, length, page), size


def runs(bitmap):
    """Where bits are set: (first, end) of each run."""
    found, at = [], 0
    while True:
        at = next((i for i in range(at, len(bitmap), 4096) if bitmap[i:i + 4096].count(0) != len(bitmap[i:i + 4096])), None)
        if at is None:
            break
        word = int.from_bytes(bitmap[at:at + 4096], "little")
        bit = at * 8
        while word:
            skip = (word & -word).bit_length() - 1
            word, bit = word >> skip, bit + skip
            count = (~word & word + 1).bit_length() - 1
            found.append((bit, bit + count))
            word, bit = word >> count, bit + count
        at += 4096
    joined = found[:1]
    for first, end in found[1:]:
        if joined[-1][1] == first:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((first, end))
    return joined


def leave_unread(ctx, client, request):
    """Asks for a long report, of which the first part is made, and does not read it."""
    client.send(DEVICE_FEATURE, request)
    if ctx.nonblocking:
        assert ctx.run() == 1
        for _ in range(20):
            assert ctx.run() == 0
    else:
        run = Background(ctx.run)
        until("it waits for room", lambda: unread(client.sock) > 65536 and sleeps(run) is not None)
        run.interrupt()
        fails(errno.EINTR, run.result)


def test_a_report_that_nobody_reads_does_not_fill_the_memory(ctx):
    size = 2 * GIB
    f = named_memfd("unread", size)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, size, f), log_start(client, PAGE)))
        pages = [0, 5, 2 * PART * 8 // PAGE - 1, 2 * PART * 8 // PAGE, size // PAGE - 1]
        for page in pages:
            put(ctx, page * PAGE, 1)
        request, length = report_request(0, size, 1)
        assert length == 32 + 256 * MIB
        before = resident()
        leave_unread(ctx, client, request)
        assert resident() - before < 8 * MIB
        reply = serving(ctx, lambda: Reply(recv_exactly(client.sock, 16 + length), []))
        assert (reply.size, reply.flags) == (16 + length, F_REPLY)
        assert reply.payload[:32] == struct.pack("<II", length, F_LOG_REPORT | FEATURE_GET) + request[8:]
        found = runs(reply.payload[32:])
        expected = [(0, PAGE), (5 * PAGE, 6 * PAGE), ((pages[2]) * PAGE, (pages[3] + 1) * PAGE), (size - PAGE, size)]
        assert found == expected
        again = serving(ctx, lambda: ask(client, report_request(0, size, PAGE)[0]))
        assert again[32:] == bytes(len(again) - 32), "what was reported is clean"
    os.close(f)


def test_a_logged_page_that_lies_in_two_parts(ctx):
    """It is reported in both, and is clean after the second."""
    q, p, small = 64, 2 * MIB, 3 * PAGE
    boundary = PART * 8 * q
    size = 3 * boundary
    f = named_memfd("parts", size)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, small, f), mapped(client, small, size, f), log_start(client, p)))
        put(ctx, boundary + 1, 1)
        put(ctx, 2 * boundary - 1, 1)
        request, length = report_request(0, small + size, q)
        assert length > 32 + 3 * PART
        reply = serving(ctx, lambda: ask(client, request))
        first, second = small + boundary - p, small + 2 * boundary - p
        assert runs(reply[32:]) == [(first // q, (first + p) // q), (second // q, (second + p) // q)]
        reply = serving(ctx, lambda: ask(client, request))
        assert runs(reply[32:]) == []
    os.close(f)


def test_what_is_written_between_two_parts_that_have_the_same_page(ctx):
    """The second part tells of its half; of the other, the next report does."""
    q, p, small = 64, 2 * MIB, 3 * PAGE
    boundary = PART * 8 * q
    size = 3 * boundary
    f = named_memfd("between", size)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, small, f), mapped(client, small, size, f), log_start(client, p)))
        request, length = report_request(0, small + size, q)
        leave_unread(ctx, client, request)
        put(ctx, boundary - 1, 1)
        first, end = small + boundary - p, small + boundary
        reply = serving(ctx, lambda: Reply(recv_exactly(client.sock, 16 + length), []))
        assert runs(reply.payload[32:]) == [(boundary // q, end // q)]
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == [(first // q, end // q)]
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == []
    os.close(f)


def test_what_is_written_between_two_parts_of_a_page_that_many_have(ctx):
    """Those after the write tell of their parts of the page; of what is before, the next report does."""
    q, p = 1, 64 * MIB
    part = PART * 8 * q
    f = named_memfd("many", 2 * p)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, 2 * p, f), log_start(client, p)))
        request, length = report_request(0, 2 * p, q)
        leave_unread(ctx, client, request)
        put(ctx, 0, 1)
        reply = serving(ctx, lambda: Reply(recv_exactly(client.sock, 16 + length), []))
        [(first, end)] = runs(reply.payload[32:])
        assert first in range(part, p, part) and end == p
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == [(0, p)]
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == []
    os.close(f)


@pytest.mark.parametrize("at", [1, -1], ids=["behind", "before"])
def test_a_range_in_one_half_of_a_page_that_two_parts_have(ctx, at):
    """The page is in the range, as it is where one part has all of it; and clean when it was reported."""
    q, p, small = 64, 2 * MIB, 3 * PAGE
    boundary = PART * 8 * q
    size = 3 * boundary
    f = named_memfd("range", size)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, small, f), mapped(client, small, size, f)))
        start = struct.pack("<IIQIIQQ", 40, F_LOG_START | FEATURE_SET, p, 1, 0, min(boundary, boundary + at), 1)
        serving(ctx, lambda: ask(client, start))
        put(ctx, boundary, 1)
        request, length = report_request(0, small + size, q)
        first = small + boundary - p
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == [(first // q, (first + p) // q)]
        assert runs(serving(ctx, lambda: ask(client, request))[32:]) == []
    os.close(f)


@pytest.mark.parametrize("error, iova, length, page", [
    (errno.ENOENT, 0, 3 * GIB, 64), (errno.EINVAL, 0, 2 * GIB, 96), (errno.ENOTSUP, 1, 2 * GIB - 1, 64)])
def test_what_is_wrong_far_behind_is_found_at_once(ctx, error, iova, length, page):
    f = named_memfd("wrong", 2 * GIB)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, 2 * GIB, f), log_start(client, PAGE)))
        put(ctx, 0, 1)

        def act():
            client.send(DEVICE_FEATURE, report_request(iova, length, page)[0], msg_id=5)
            assert is_error(client.recv(), 5, DEVICE_FEATURE, error)
            return ask(client, report_request(0, 64 * PAGE, PAGE)[0])
        assert serving(ctx, act)[32:] == b"\1" + bytes(7), "and nothing is cleared"
    os.close(f)


def test_a_client_that_goes_in_the_middle_of_a_long_report(ctx):
    f = named_memfd("gone", 2 * GIB)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, 2 * GIB, f), log_start(client, PAGE)))
        client.send(DEVICE_FEATURE, report_request(0, 2 * GIB, 1)[0])
        run = Background(ctx.run)
        recv_exactly(client.sock, 100000)
        client.close()
        if ctx.nonblocking:
            assert run.result() == 1
            until_lost(ctx)
        else:
            fails(errno.ENOTCONN, run.result)
    if ctx.nonblocking:
        with ctx.connect() as other:
            alive(other)
    os.close(f)


def test_the_bitmap_of_an_unmap_that_nobody_reads_fits_in_a_message(ctx):
    nbytes = MIB - 40
    size = nbytes * 8 * PAGE
    f = named_memfd("unread-unmap", size)
    with ctx.connect() as client:
        serving(ctx, lambda: (mapped(client, 0, size, f), log_start(client, PAGE)))
        put(ctx, size - 1, 1)
        before = resident()
        request = struct.pack("<IIQQQQ", MIB, 1, 0, size, PAGE, nbytes)
        client.send(DMA_UNMAP, request)
        if ctx.nonblocking:
            assert ctx.run() == 1
        else:
            run = Background(ctx.run)
            until("it waits for room", lambda: unread(client.sock) > 65536 and sleeps(run) is not None)
            run.interrupt()
            fails(errno.EINTR, run.result)
        assert resident() - before < 2 * MIB
        reply = serving(ctx, lambda: Reply(recv_exactly(client.sock, 16 + 40 + nbytes), []))
        assert reply.payload[:40] == request and reply.payload[-1] == 0x80
        # One bit more is refused, and nothing is made for it.
        serving(ctx, lambda: mapped(client, 0, size + 64 * PAGE, f))
        client.send(DMA_UNMAP, struct.pack("<IIQQQQ", MIB + 8, 1, 0, size + 64 * PAGE, PAGE, nbytes + 8))
        reply = serving(ctx, client.recv)
        assert (reply.flags, reply.error) == (F_REPLY | F_ERROR, errno.EINVAL)
    os.close(f)
