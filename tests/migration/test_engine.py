"""Live migration of the example device dma-engine, from one process to another."""
import errno
import os
import random
import struct

import pytest

from engine import *
from peer import *

GUEST = 0x100000  # where the guest's memory begins


@pytest.fixture(params=[(), ("--async-quiesce",)], ids=["", "async"])
def options(request):
    return request.param


@pytest.fixture
def start():
    """Starts devices, and sees to it that each of them ends in good order."""
    devices = []

    def start(*options):
        devices.append(Device("dma-engine", *options))
        return devices[-1]
    yield start
    for device in devices:
        if device.process.poll() is None:
            device.end()


def at_work(client, value=7):
    """Puts something everywhere, and leaves the device stopped in the middle of a descriptor."""
    rng = random.Random(value)
    client.map_dma(GUEST, 1 << 24)
    for page in rng.sample(range(1, BAR2_SIZE // PAGE), 12) + [1, BAR2_SIZE // PAGE - 1]:
        client.write(BAR2, page * PAGE + 17, rng.randbytes(1000))
    client.write(BAR0, MSIX_TABLE, rng.randbytes(64))
    client.write_u32(IRQ_ENABLE, 2)
    client.write(BAR0, RING_BASE, struct.pack("<Q", 0x40 * value))
    client.write_u32(RING_SIZE, 100)
    ring_bell(client, descriptor(FILL, DST_LOCAL | IRQ, dst=0x5000, length=0x3000, value=value))
    finish(client)
    stop_in_the_middle(client, descriptor(PATTERN, MESSAGE | IRQ, dst=GUEST, length=50 * CHUNK, value=value))


def stop_in_the_middle(client, desc, state=STOP):
    """Starts a descriptor that works by messages, and stops the device while it waits for one."""
    ring_bell(client, desc)
    message = client.wait_dma()
    request = client.send_state(state)
    client.serve_dma(*message)
    client.wait(request)
    assert client.read_u32(STATUS) & BUSY


@pytest.fixture(scope="module")
def stream():
    """A stream with something in each record."""
    device = Device()
    with Client(device) as client:
        at_work(client)
        got = save(client)
    device.end()
    _, records = split(got)
    work = dict(records)[R_WORK]
    assert struct.unpack_from("<IIQ", work)[1] == 1 and 0 < struct.unpack_from("<Q", work, 8)[0] < 50 * CHUNK
    return got


# --- moving -------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_what_was_saved_is_restored_at_any_size_of_reads_and_writes(start, options, seed):
    rng = random.Random(seed)
    largest = [1, 50, 5000, MAX_XFER][seed]
    with Client(start(*options)) as source, Client(start(*options)) as destination:
        at_work(source, 20 + seed)
        saved = save(source, lambda: rng.randint(1, largest))
        assert saved == save(source), "a new session has the whole stream again"
        destination.write(BAR2, 0x123000, b"not to be seen any more")
        load(destination, saved, lambda: rng.randint(1, largest))
        assert bars(destination) == bars(source)
        assert save(destination) == saved


def test_the_migration_flags_and_states(start):
    with Client(start()) as client:
        flags = client.feature(F_MIGRATION | FEATURE_GET, b"", 16)
        assert struct.unpack_from("<Q", flags, 8) == (5,), "stop-copy and pre-copy"
        for state in (PRE_COPY, STOP_COPY, STOP, RUNNING, PRE_COPY, RUNNING, STOP, STOP_COPY, RUNNING):
            client.set_state(state)
            assert client.state() == state
        assert refused(client.read_state, 100) == errno.EINVAL
        assert refused(client.write_state, b"x") == errno.EINVAL


@pytest.mark.parametrize("seed", range(3))
def test_pre_copy_of_a_busy_device(start, options, seed):
    """Rounds of reads of any size, while the device writes all over its memory."""
    rng = random.Random(seed)
    with Client(start(*options)) as source, Client(start(*options)) as destination:
        source.set_state(PRE_COPY)
        saved, value = [], 1
        for _ in range(15):
            if not source.read_u32(STATUS) & BUSY:
                begin = rng.randrange(PAGE, BAR2_SIZE // 2)
                ring_bell(source, descriptor(PATTERN, DST_LOCAL, dst=begin, value=value,
                                             length=rng.randrange(BAR2_SIZE - begin)))
                value += 3
            source.write(BAR2, rng.randrange(PAGE, BAR2_SIZE - 100), rng.randbytes(100))
            for _ in range(rng.randint(1, 20)):
                part = source.read_state(rng.choice([1, 7, 4096, 100000, MAX_XFER]))
                saved.append(part)
                if not part:
                    break
        source.set_state(STOP_COPY)
        saved.append(source.read_until_short(lambda: rng.choice([30000, 65536, MAX_XFER])))
        load(destination, b"".join(saved))
        assert bars(destination) == bars(source)
        # Both go on with what is left, and get to the same.
        source.set_state(RUNNING)
        destination.set_state(RUNNING)
        finish(source), finish(destination)
        assert bars(destination) == bars(source)


def test_pre_copy_goes_on_when_there_is_something_new(start):
    with Client(start()) as client:
        client.write(BAR2, 0x7000, b"a")
        client.set_state(PRE_COPY)
        parts = [client.read_until_short(lambda: 1000)]
        for _ in range(3):
            assert client.read_state(1000) == b"", "nothing for now"
        ring_bell(client, descriptor(FILL, DST_LOCAL, dst=0x8800, length=PAGE, value=3))
        finish(client)
        client.write(BAR2, 0x7000, b"b")
        client.write(BAR2, 0x10000, b"c"), client.write(BAR2, 0x10000, b"\0")
        parts.append(client.read_until_short(lambda: 1000))
        assert client.read_state(1000) == b""
        client.set_state(STOP_COPY)
        parts.append(client.read_until_short(lambda: 1000))
        assert client.read_state(1000) == b"", "the end"
    pages = []
    for part in parts:
        at = 32 if not pages else 0
        pages.append([])
        while part[at:at + 4] == struct.pack("<I", R_PAGE):
            pages[-1].append(struct.unpack_from("<Q", part, at + 8)[0])
            at += 16 + PAGE
    # What was written and put back is not worth a page.
    assert pages == [[0x7000], [0x7000, 0x8000, 0x9000], []]


def test_a_page_is_whole_even_if_it_changes_while_it_is_read(start):
    with Client(start()) as source, Client(start()) as destination:
        source.write(BAR2, 0x7000, b"a" * PAGE)
        source.set_state(PRE_COPY)
        saved = source.read_state(1000)
        source.write(BAR2, 0x7000, b"b" * PAGE)
        saved += source.read_until_short(lambda: 1000)
        source.set_state(STOP_COPY)
        saved += source.read_until_short(lambda: 1000)
        kinds = [(kind, payload[8:9]) for kind, payload in split(saved)[1] if kind == R_PAGE]
        assert kinds == [(R_PAGE, b"a"), (R_PAGE, b"b")]
        assert split(saved)[1][0][1][8:] == b"a" * PAGE
        load(destination, saved)
        assert bars(destination) == bars(source)


def test_what_the_client_writes_through_its_mapping_is_found(start):
    with Client(start()) as source, Client(start()) as destination:
        mapping, other = source.map_region(BAR2), destination.map_region(BAR2)
        mapping[0x5000:0x5004], mapping[0x9000:0x9004] = b"once", b"once"
        other[0x6000:0x6004] = b"junk"
        source.set_state(PRE_COPY)
        saved = source.read_until_short(lambda: MAX_XFER)
        mapping[0x5000:0x5004], mapping[0x333000:0x333004] = b"more", b"more"
        source.set_state(STOP_COPY)
        saved += source.read_until_short(lambda: MAX_XFER)
        load(destination, saved)
        assert mapping[PAGE:] == other[PAGE:] and other[0x9000:0x9004] == b"once"
        mapping.close(), other.close()


def test_a_new_session_starts_from_scratch(start):
    with Client(start()) as client:
        at_work(client)
        client.set_state(RUNNING)
        client.dma.clear()
        whole = None
        for state in (PRE_COPY, STOP_COPY):
            for length in (1, 40, 9000):
                client.set_state(state)
                begin = client.read_state(length)
                whole = whole or begin
                assert begin[:1] == whole[:1] and len(begin) == length
                assert begin.startswith(struct.pack("<QI", MAGIC, 1)[:length])
                client.set_state(RUNNING if state == PRE_COPY else STOP)
        assert client.state() == STOP


def function_level_reset(client):
    at = client.read(CONFIG, 0x34, 1)[0]
    while client.read(CONFIG, at, 1) != b"\x10":
        at = client.read(CONFIG, at + 1, 1)[0]
    client.write(CONFIG, at + 8, struct.pack("<H", 0x8000))


@pytest.mark.parametrize("reset", [function_level_reset, Client.reset], ids=["function", "device"])
def test_a_reset_by_the_guest_does_not_break_the_stream(start, reset):
    with Client(start()) as source, Client(start()) as destination:
        source.write(BAR2, 0x7000, b"a" * PAGE)
        source.set_state(PRE_COPY)
        saved = source.read_state(1000)
        reset(source)
        assert source.state() == PRE_COPY
        saved += source.read_until_short(lambda: 1000)
        assert len(saved) == 32 + 2 * (16 + PAGE), "the page again, now empty"
        source.set_state(STOP_COPY)
        saved += source.read_until_short(lambda: 1000)
        load(destination, saved)
        assert bars(destination) == bars(source)
        assert bars(destination)[1] == bytes(BAR2_SIZE)


# --- work ---------------------------------------------------------------------

@pytest.mark.parametrize("state", [STOP, STOP_COPY])
def test_work_in_flight_goes_on_at_the_destination(start, options, state):
    length = 40 * CHUNK + 123
    with Client(start(*options)) as source, Client(start(*options)) as destination:
        for client in (source, destination):
            client.map_dma(GUEST, 1 << 24)
        stop_in_the_middle(source, descriptor(PATTERN, MESSAGE, dst=GUEST, length=length, value=5), state)
        saved = save(source)
        load(destination, saved)
        assert not destination.dma and destination.read_u32(DESC_STATUS) == 0
        destination.set_state(RUNNING)
        finish(destination)
        assert source.nothing(), "the source does nothing any more"
        assert 0 < len(source.dma) < len(destination.dma)
        at = GUEST
        for _, address, count in source.dma + destination.dma:
            assert address == at
            at += count
        assert at == GUEST + length
        assert destination.read_u32(DESC_STATUS) == DONE and destination.read_u32(COMPLETED) == 1


def test_a_checksum_goes_on_where_it_was(start):
    data = random.Random(1).randbytes(5 * CHUNK)
    with Client(start()) as source, Client(start()) as destination:
        for client in (source, destination):
            client.map_dma(GUEST, 1 << 24)
            client.memory = lambda address, count: data[address - GUEST:address - GUEST + count]
        stop_in_the_middle(source, descriptor(CHECKSUM, MESSAGE, src=GUEST, length=len(data)))
        load(destination, save(source))
        destination.set_state(RUNNING)
        finish(destination)
        assert struct.unpack("<Q", destination.read(BAR0, DESC + 48, 8)) == (checksum(data),)


@pytest.mark.parametrize("stop_at", [0, 1, 17, 36])
def test_ring_entries_are_neither_lost_nor_doubled(start, options, stop_at):
    """One ring in guest memory that both can reach; entry i writes at its own place."""
    number, size = 40, 64
    guest = os.memfd_create("guest")
    os.ftruncate(guest, 1 << 20)
    begin = 50  # so that it wraps; up to there the ring is all zeros, which are NOPs
    counters = []
    with Client(start(*options)) as source, Client(start(*options)) as destination:
        for client in (source, destination):
            client.map_dma(GUEST, 1 << 20, guest)
            client.map_dma(0x800000, 1 << 24)
            enable_msix(client)
            counters.append(client.assign_irq(MSIX, 0))
        source.write(BAR0, RING_BASE, struct.pack("<Q", GUEST))
        source.write_u32(RING_SIZE, size)
        source.write_u32(IRQ_ENABLE, 3)
        source.write_u32(CONTROL, 1)
        source.write_u32(RING_TAIL, begin)
        finish(source)
        assert source.read_u32(COMPLETED) == begin and not source.dma and events(counters[0]) == 0

        for i in range(number):
            desc = descriptor(PATTERN, MESSAGE | IRQ, dst=0x800000 + i * CHUNK, length=CHUNK - i, value=i)
            os.pwrite(guest, desc, (begin + i) % size * 64)
        source.write_u32(RING_TAIL, (begin + number) % size)
        for _ in range(stop_at):
            source.serve_dma(*source.wait_dma())
        message = source.wait_dma()
        request = source.send_state(STOP_COPY)
        source.serve_dma(*message)
        source.wait(request)
        saved = source.read_until_short(lambda: 12345)
        assert stop_at < len(source.dma) < number
        load(destination, saved)
        assert destination.read_u32(RING_HEAD) == source.read_u32(RING_HEAD)
        before = os.pread(guest, 1 << 16, 0)
        destination.read_u32(STATUS)
        assert os.pread(guest, 1 << 16, 0) == before and not destination.dma
        destination.set_state(RUNNING)
        finish(destination)
        assert [(a, n) for _, a, n in source.dma + destination.dma] == [
            (0x800000 + i * CHUNK, CHUNK - i) for i in range(number)]
        assert destination.read_u32(COMPLETED) == begin + number
        assert destination.read_u32(RING_HEAD) == (begin + number) % size
        assert sum(events(fd) for fd in counters) == number
        for i in range(number):
            assert struct.unpack("<I", os.pread(guest, 4, (begin + i) % size * 64 + 44)) == (DONE,)
    for fd in [guest, *counters]:
        os.close(fd)


def test_stopped_means_frozen(start, options):
    with Client(start(*options)) as client:
        client.map_dma(GUEST, 1 << 24)
        client.write_u32(IRQ_ENABLE, 3)
        line = client.assign_irq(INTX, 0)
        stop_in_the_middle(client, descriptor(PATTERN, MESSAGE | IRQ, dst=GUEST, length=20 * CHUNK))
        messages, before = len(client.dma), bars(client)
        for state, number in ((STOP, errno.EBUSY), (STOP_COPY, errno.EINVAL), (RESUMING, errno.EBUSY)):
            client.set_state(state)
            for register in (CONTROL, IRQ_STATUS, DOORBELL, RING_TAIL, DESC, MSIX_TABLE):
                assert refused(client.write_u32, register, 1) == number
            assert bars(client) == before
        client.reset()
        client.map_dma(GUEST + (1 << 24), 1 << 24)
        assert len(client.dma) == messages and events(line) == 0
        os.close(line)


def test_a_stop_that_is_taken_back_changes_nothing(start, options):
    with Client(start(*options)) as client:
        client.map_dma(GUEST, 1 << 24)
        client.write_u32(IRQ_ENABLE, 3)
        line = client.assign_irq(INTX, 0)
        stop_in_the_middle(client, descriptor(PATTERN, MESSAGE | IRQ, dst=GUEST, length=20 * CHUNK))
        client.set_state(STOP_COPY)
        client.read_state(100)
        assert events(line) == 0
        client.set_state(RUNNING)
        finish(client)
        assert [a for _, a, _ in client.dma] == [GUEST + i * CHUNK for i in range(20)]
        assert events(line) == 1
        os.close(line)


def test_a_level_that_was_up_rises_at_the_destination(start):
    with Client(start()) as source, Client(start()) as destination:
        line = source.assign_irq(INTX, 0)
        source.write_u32(IRQ_ENABLE, 1)
        ring_bell(source, descriptor(NOP, IRQ))
        finish(source)
        assert events(line) == 1
        source.set_state(STOP), source.set_state(RUNNING)
        assert events(line) == 1, "here, if the device goes on here"
        os.close(line)
        line = destination.assign_irq(INTX, 0)
        load(destination, save(source))
        assert events(line) == 0
        destination.set_state(RUNNING)
        assert events(line) == 1
        os.close(line)


# --- streams that are not good ------------------------------------------------

class Victim:
    """A device that is offered bad streams, and must not change by them."""

    def __init__(self, client):
        self.client = client
        client.map_dma(GUEST, 1 << 24)
        self.prepare()

    def prepare(self):
        c = self.client
        c.write(BAR2, 0x4000, b"mine"), c.write_u32(IRQ_ENABLE, 1), c.write_u32(RING_SIZE, 9)
        self.before = c.read(BAR0, 0, BAR0_SIZE), c.read(BAR2, 0, 0x10000)

    def refuses(self, bad, good=None, chunk=MAX_XFER):
        """Whether it was refused while it was written; in the end it must be."""
        c, early = self.client, False
        c.set_state(RESUMING)
        try:
            c.write_all(bad, lambda: chunk)
        except Refused as e:
            early = True
            assert e.errno == errno.EINVAL
            assert refused(c.write_state, b"more") == errno.EINVAL, "lost is lost"
        assert refused(c.set_state, STOP) == errno.EINVAL
        assert refused(c.set_state, RUNNING) == errno.EINVAL
        assert c.state() == RESUMING
        assert (c.read(BAR0, 0, BAR0_SIZE), c.read(BAR2, 0, 0x10000)) == self.before
        c.reset()
        assert c.state() == RUNNING
        assert c.read_u32(RING_SIZE) == 0 and c.read(BAR2, 0x4000, 4) == bytes(4)
        if good is not None:
            load(c, good)
            assert save(c) == good
            c.reset()
        self.prepare()
        return early


@pytest.fixture
def victim(start):
    with Client(start()) as client:
        yield Victim(client)


def flipped(stream, at, mask):
    return stream[:at] + bytes([stream[at] ^ mask]) + stream[at + 1:]


def positions(stream):
    """Every byte that is not in a page's data, by what it is; of the data, some."""
    header, records = split(stream)
    yield from ((at, "header") for at in range(len(header)))
    at, rng = len(header), random.Random(3)
    for i, (kind, payload) in enumerate(records):
        if kind == R_PAGE and 0 < i < 13:
            at += 8 + len(payload)
            continue
        yield from ((at + n, "type") for n in range(4))
        yield from ((at + 4 + n, "length") for n in range(4))
        inside = [*range(8), *rng.sample(range(8, len(payload)), 20)] if kind == R_PAGE else range(len(payload))
        yield from ((at + 8 + n, f"payload of {kind:#x}") for n in inside)
        at += 8 + len(payload)
    assert at == len(stream)


def test_one_wrong_bit_anywhere(victim, stream):
    rng = random.Random(2)
    early, kinds = set(), set()
    for number, (at, kind) in enumerate(positions(stream)):
        bad = flipped(stream, at, 1 << rng.randrange(8))
        if victim.refuses(bad, stream if number % 50 == 0 else None, rng.choice([100000, MAX_XFER])):
            early.add(kind)
        kinds.add(kind)
    assert len(kinds) == 9
    assert early == kinds, "the checksum itself is looked at when it is there"


def test_what_can_be_refused_at_once_is(victim, stream):
    c = victim.client
    for at in [*range(12), 16, 23, 24, 27]:
        c.set_state(RESUMING)
        assert refused(c.write_state, flipped(stream, at, 0x80)[:32]) == errno.EINVAL, at
        c.reset()
    c.set_state(RESUMING)
    assert refused(c.write_state, stream[:32] + struct.pack("<II", 99, 8)) == errno.EINVAL
    c.reset()
    c.set_state(RESUMING)
    assert refused(c.write_state, stream[:32] + struct.pack("<II", R_PAGE, 99)) == errno.EINVAL


def test_an_incomplete_stream_can_be_completed(victim, stream):
    c = victim.client
    ends, at = [0, 1, 31, 32], 32
    for _, payload in split(stream)[1]:
        ends += [at + 3, at + 8, at + 8 + len(payload) // 2, at + 8 + len(payload)]
        at += 8 + len(payload)
    c.set_state(RESUMING)
    written = 0
    for end in ends[:-1]:
        c.write_state(stream[written:end])
        written = end
        assert refused(c.set_state, STOP) == errno.EINVAL
        assert c.state() == RESUMING
        assert (c.read(BAR0, 0, BAR0_SIZE), c.read(BAR2, 0, 0x10000)) == victim.before
    c.write_state(stream[written:])
    c.set_state(STOP)
    assert save(c) == stream


def test_truncated_streams(victim, stream):
    rng = random.Random(4)
    for end in [0, 1, 31, 32, len(stream) - 1, len(stream) - 8] + rng.sample(range(len(stream)), 20):
        assert not victim.refuses(stream[:end], stream)


def crafted(stream, **changes):
    """The stream with payloads replaced: name of a record to a function of its bytes."""
    names = {"registers": R_REGISTERS, "msix": R_MSIX, "work": R_WORK, "statistics": R_STATISTICS, "end": R_END}
    header, records = split(stream)
    if "header" in changes:
        header = changes.pop("header")(header)
    if "records" in changes:
        records = changes.pop("records")(records)
    by_type = {names[name]: f for name, f in changes.items()}
    return join(header, [(kind, by_type.get(kind, bytes)(payload)) for kind, payload in records])


def put(at, form, *values):
    size = struct.calcsize(form)
    return lambda payload: payload[:at] + struct.pack(form, *values) + payload[at + size:]


BAD = {
    "version 0": {"header": put(8, "<I", 0)},
    "version 2": {"header": put(8, "<I", 2)},
    "header too short": {"header": put(12, "<I", 31)},
    "header too long": {"header": put(12, "<I", 1 << 31)},
    "less memory": {"header": put(16, "<Q", BAR2_SIZE // 2)},
    "more memory": {"header": put(16, "<Q", BAR2_SIZE + PAGE)},
    "other pages": {"header": put(24, "<I", 8192)},
    "page 0": {"records": lambda r: [(R_PAGE, bytes(8 + PAGE))] + r},
    "page behind the memory": {"records": lambda r: [(R_PAGE, struct.pack("<Q", BAR2_SIZE) + bytes(PAGE))] + r},
    "page far behind the memory": {"records": lambda r: [(R_PAGE, b"\0\xf0" + b"\xff" * 6 + bytes(PAGE))] + r},
    "page not aligned": {"records": lambda r: [(R_PAGE, struct.pack("<Q", 0x1800) + bytes(PAGE))] + r},
    "long page": {"records": lambda r: [(R_PAGE, struct.pack("<Q", 0x1000) + bytes(PAGE + 1))] + r},
    "page after the registers": {"records": lambda r: r[:-4] + r[:1] + r[-4:]},
    "registers twice": {"records": lambda r: r[:-4] + r[-5:-4] + r[-4:]},
    "work before the registers": {"records": lambda r: r[:-5] + r[-3:-2] + r[-5:-3] + r[-2:]},
    "no registers": {"records": lambda r: r[:-5] + r[-4:]},
    "no MSI-X table": {"records": lambda r: r[:-4] + r[-3:]},
    "no work": {"records": lambda r: r[:-3] + r[-2:]},
    "nothing but the end": {"records": lambda r: r[-1:]},
    "unknown record": {"records": lambda r: r[:-1] + [(6, b"")] + r[-1:]},
    "short registers": {"registers": lambda p: p[:-8]},
    "short work": {"work": lambda p: p[:-8]},
    "short end": {"end": lambda p: p[:4]},
    "long end": {"end": lambda p: p + bytes(4)},
    "control": {"registers": put(0, "<I", 3)},
    "interrupt status": {"registers": put(4, "<I", 4)},
    "interrupt enable": {"registers": put(8, "<I", 1 << 31)},
    "ring too large": {"registers": put(20, "<III", 4097, 0, 0)},
    "head behind the ring": {"registers": put(20, "<III", 100, 100, 0)},
    "tail behind the ring": {"registers": put(20, "<III", 100, 0, 0xffffffff)},
    "head and no ring": {"registers": put(20, "<III", 0, 1, 0)},
    "ring not aligned": {"registers": put(32, "<Q", 8)},
    "doorbell": {"work": put(0, "<I", 2)},
    "origin": {"work": put(4, "<I", 3)},
    "work on no ring": {"registers": put(20, "<III", 0, 0, 0), "work": put(4, "<I", 2)},
    "more done than there was": {"work": put(8, "<Q", 50 * CHUNK + 1)},
    "vector": {"work": put(16 + 40, "<I", 4)},
    "flags": {"work": put(16 + 4, "<I", 0x40)},
}


@pytest.mark.parametrize("what", BAD)
def test_nonsense_with_a_good_checksum(victim, stream, what):
    victim.refuses(crafted(stream, **BAD[what]), stream)


def test_nothing_comes_after_the_end(victim, stream):
    assert victim.refuses(stream + b"\0", stream)
    assert victim.refuses(stream + stream, stream)


GOOD = {
    "a longer header": {"header": lambda h: put(12, "<I", 32 + 100)(h) + b"x" * 100},
    "an unknown record that may be skipped": {"records": lambda r: (
        [(99 | OPTIONAL, b"x" * 100000)] + r[:-1] + [(6 | OPTIONAL, b"")] * 2 + r[-1:])},
    "longer records": {name: lambda p: p + b"x" * 5000 for name in ("registers", "msix", "work", "statistics")},
    "no statistics": {"records": lambda r: r[:-2] + r[-1:]},
}


@pytest.mark.parametrize("what", GOOD)
def test_streams_of_later_versions(victim, stream, what):
    load(victim.client, crafted(stream, **GOOD[what]), lambda: 77777)
    again = save(victim.client)
    if what == "no statistics":
        assert again == crafted(stream, statistics=lambda p: bytes(len(p)))
    else:
        assert again == stream


def test_random_bytes(victim, stream):
    rng = random.Random(5)
    for length in (1, 8, 32, 1000, 100000):
        victim.refuses(rng.randbytes(length))
        victim.refuses(stream[:32] + rng.randbytes(length))


# --- ways out -----------------------------------------------------------------

def test_a_source_that_dies(start, stream):
    device = start()
    with Client(device) as source, Client(start()) as destination:
        at_work(source)
        source.set_state(RUNNING)
        source.set_state(PRE_COPY)
        destination.map_dma(GUEST, 1 << 24)
        destination.set_state(RESUMING)
        destination.write_state(source.read_state(30000))
        device.kill()
        with pytest.raises((AssertionError, OSError)):
            source.read_state(30000)
        assert refused(destination.set_state, STOP) == errno.EINVAL
        assert destination.state() == RESUMING
        destination.reset()
        assert bars(destination)[1] == bytes(BAR2_SIZE)
        load(destination, stream)
        assert save(destination) == stream


@pytest.mark.parametrize("state", [PRE_COPY, STOP_COPY, RESUMING, STOP])
def test_reset_and_leaving_end_a_session_and_free_its_memory(start, options, stream, state):
    device = start(*options)
    with Client(device) as client:
        idle = device.mappings(BAR2_SIZE)
        for leave in (False, True, True):
            client.write(BAR2, 0x4000, b"x")
            client.set_state(state)
            if state == RESUMING:
                client.write_state(stream[:20000])
            elif state != STOP:
                client.read_state(100)
            assert device.mappings(BAR2_SIZE) == idle + (state != STOP)
            if leave:
                client.close()
                client.__init__(device)
                # The library keeps the state, and the session is gone.
                assert client.state() == state
                assert device.mappings(BAR2_SIZE) == idle
                assert client.read(BAR2, 0x4000, 1) == b"\0"
                if state == RESUMING:
                    assert refused(client.set_state, STOP) == errno.EINVAL
                    client.write_all(stream)
                    client.set_state(STOP)
                    assert save(client) == stream
                elif state == STOP:
                    assert refused(client.write_u32, CONTROL, 1) == errno.EBUSY
                else:
                    assert client.read_state(100).startswith(struct.pack("<Q", MAGIC))
            if state == PRE_COPY:
                # The guest's reset is none of the migration's business.
                client.reset()
                assert client.state() == PRE_COPY
                assert device.mappings(BAR2_SIZE) == idle + 1
                client.set_state(RUNNING)
            else:
                client.reset()
            assert client.state() == RUNNING
            assert device.mappings(BAR2_SIZE) == idle
            client.write_u32(CONTROL, 1)


def test_a_state_that_cannot_be_put_in_place_is_an_error_that_a_reset_ends(start, stream):
    resource = pytest.importorskip("resource")
    device = start()
    with Client(device) as client:
        client.write(BAR2, 0x4000, b"mine")
        client.set_state(RESUMING)
        client.write_all(stream)
        unlimited = resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE, (BAR2_SIZE // 2, unlimited[1]))
        assert refused(client.set_state, STOP) == errno.ENOTRECOVERABLE
        assert client.state() == ERROR
        for other in (STOP, RUNNING, RESUMING):
            assert refused(client.set_state, other) == errno.EINVAL
        assert refused(client.write_state, b"x") == errno.EINVAL
        resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE, unlimited)
        client.reset()
        assert client.state() == RUNNING
        assert bars(client)[1] == bytes(BAR2_SIZE)
        load(client, stream)
        assert save(client) == stream


def test_a_device_that_ends_in_the_middle_of_a_session(start):
    for state in (PRE_COPY, STOP_COPY, RESUMING):
        device = start()
        with Client(device) as client:
            client.set_state(state)
            device.end()
