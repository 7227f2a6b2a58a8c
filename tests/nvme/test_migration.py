"""A controller moves from one process to another, over one file or one memory of the same kind."""
import random

import pytest

from driver import *

STATE_SIZE, UUID_AT, NSZE_AT = 2840, 16, 32
FEATURES_AT, SQS_AT, CQS_AT, DOORBELLS_AT = 80, 152, 152 + 33 * 24, 2568


@pytest.fixture(params=["trapped", "trapped-polled", "polled-trapped", "polled"])
def pair(request, start, tmp_path):
    """Two servers over one file, which learn of doorbells in each combination of ways."""
    ways = (request.param + "-" + request.param).split("-")[:2]
    return [start(f"--file={tmp_path}/disk", "--size=16M", *(["--poll-doorbells"] if way == "polled" else []))
            for way in ways]


@pytest.fixture
def two(start, tmp_path):
    return [start(f"--file={tmp_path}/disk", "--size=16M") for _ in range(2)]


@pytest.fixture
def drive():
    drivers = []

    def drive(device, **arguments):
        drivers.append(Driver(device, **arguments))
        return drivers[-1]
    yield drive
    for driver in drivers:
        driver.close()


def save(d, sizes=lambda: MAX_XFER):
    d.client.set_state(STOP_COPY)
    return d.client.read_until_short(sizes)


def load(d, record, sizes=lambda: MAX_XFER):
    d.client.set_state(RESUMING)
    d.client.write_all(record, sizes)
    d.client.set_state(STOP)


def move(drive, source, device, **arguments):
    """The driver goes on over there, with the same guest memory and what it knows of the queues."""
    record = save(source, **arguments)
    d = drive(device, enable=False, memory=source.fd)
    load(d, record, **arguments)
    d.queues, d.next, d.cid = source.queues, source.next, source.cid
    source.close()
    return d


def seal(record):
    """The record with the right checksum."""
    total = 0xcbf29ce484222325
    for byte in record[:-8]:
        total = (total ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return bytes(record[:-8]) + struct.pack("<Q", total)


def change(record, at, fmt, value):
    record = bytearray(record)
    struct.pack_into("<" + fmt, record, at, value)
    return seal(record)


def busy(d):
    """Something everywhere: queues that have wrapped, features, an event that waits and one that was told."""
    d.create_queues(1, size=8, cq_size=6)
    d.create_queues(5, size=16, vector=2)
    for n in range(13):
        d.write_blocks(n, bytes([n + 1]) * BLOCK)
    d.set_feature(4, 1 << 20 | 9)
    d.set_feature(6, 0)
    d.set_feature(9, 1 << 16 | 4)
    d.set_feature(11, 2)
    d.client.write(4, 0, bytes(range(128)))
    d.client.write_u32(INTMS, 0x50)
    d.submit(0, opcode=AER)
    d.submit(0, opcode=AER, cid=9999)
    d.write_doorbell(2, 1000)
    assert d.reap(0).result == 0x10100
    d.write_doorbell(2, d.queues[1].tail)
    d.settle()


# --- moving -------------------------------------------------------------------

@pytest.mark.parametrize("largest", [1, 100, MAX_XFER])
def test_a_controller_goes_on_elsewhere(pair, drive, largest):
    rng = random.Random(largest)
    source = drive(pair[0])
    busy(source)
    registers = [source.client.read_u32(at) for at in (INTMS, CC, CSTS, AQA, ASQ, ACQ)]
    d = move(drive, source, pair[1], sizes=lambda: rng.randint(1, largest))
    assert registers == [d.client.read_u32(at) for at in (INTMS, CC, CSTS, AQA, ASQ, ACQ)]
    d.client.set_state(RUNNING)
    assert d.client.read(4, 0, 528) == bytes(range(128)) + bytes(400)
    assert d.read_blocks(0, 13) == b"".join(bytes([n + 1]) * BLOCK for n in range(13))
    d.write_blocks(20, b"y" * BLOCK, qid=5)
    assert [d.get_feature(4, 1 << 20), d.get_feature(6), d.get_feature(9, 4), d.get_feature(11)] == [9, 0, 0x10004, 2]
    # The event was told over there; so there is no other until the log is read.
    d.write_doorbell(10, 77)
    d.settle()
    assert d.peek(0) is None
    d.get_log(1, 64)
    d.write_doorbell(10, 78)
    entry = d.reap(0)
    assert (entry.cid, entry.result) == (9999, 0x10100)
    smart = d.get_log(2, 512)
    assert struct.unpack_from("<Q", smart, 80) == (14,)


def test_what_is_saved_is_what_was_loaded(two, drive):
    source = drive(two[0])
    busy(source)
    record = save(source)
    assert len(record) == STATE_SIZE and record == seal(record)
    source.client.set_state(STOP)
    assert save(source) == record, "a new session has it all again"
    d = drive(two[1], enable=False, memory=source.fd)
    load(d, record)
    assert save(d) == record


def test_a_source_that_is_not_left_goes_on(pair, drive):
    d = drive(pair[0])
    busy(d)
    save(d)
    d.client.set_state(RUNNING)
    assert d.read_blocks(0, 13) == b"".join(bytes([n + 1]) * BLOCK for n in range(13))


def test_it_works_in_pre_copy(pair, drive):
    d = drive(pair[0])
    d.create_queues()
    d.client.set_state(PRE_COPY)
    assert d.client.read_state(100) == b"", "there is nothing to send while it runs"
    d.write_blocks(0, b"z" * BLOCK)
    d = move(drive, d, pair[1])
    d.client.set_state(RUNNING)
    assert d.read_blocks(0, 1) == b"z" * BLOCK


@pytest.mark.parametrize("state", [STOP, STOP_COPY])
def test_a_stopped_controller_does_nothing(pair, drive, state):
    d = drive(pair[0])
    d.create_queues()
    d.client.set_state(state)
    page = d.alloc()
    before = d.get(GUEST, d.next - GUEST)
    d.put(d.queues[1].sq, command(cid=1, **io(READ, 0, 8, page)))
    if d.doorbells:
        d.write_doorbell(2, 1)
    elif state == STOP:
        d.client.write_u32(DOORBELLS + 8, 1)
    d.settle()
    at = d.queues[1].sq - GUEST
    assert d.get(GUEST, at) + d.get(GUEST + at + 64, d.next - GUEST - at - 64) == before[:at] + before[at + 64:]


def test_doorbells_rung_while_it_is_stopped(pair, drive):
    """On the source before the state is read, on the destination once it is loaded: nothing is lost."""
    source = drive(pair[0])
    source.create_queues()
    source.write_blocks(0, b"0" * BLOCK)
    source.client.set_state(STOP)
    pages = [source.alloc() for _ in range(4)]
    for n, page in enumerate(pages):
        source.put(page, bytes([65 + n]) * BLOCK)
    cids = [source.submit(1, **io(WRITE, n, 1, page)) for n, page in enumerate(pages[:2])]
    source.settle()
    assert source.peek(1) is None
    d = move(drive, source, pair[1])
    cids += [d.submit(1, **io(WRITE, n, 1, pages[n])) for n in (2, 3)]
    d.settle()
    assert d.peek(1) is None
    d.client.set_state(RUNNING)
    assert [d.reap(1).cid for _ in range(4)] == cids
    assert d.read_blocks(0, 4) == b"".join(bytes([65 + n]) * BLOCK for n in range(4))


def test_commands_behind_a_full_completion_queue_move(pair, drive):
    source = drive(pair[0])
    source.create_queues(1, size=32, cq_size=4)
    cids = [source.submit(1, **io(FLUSH, 0, 1)) for _ in range(10)]
    source.settle()
    d = move(drive, source, pair[1])
    d.client.set_state(RUNNING)
    assert [d.reap(1).cid for _ in range(10)] == cids


def test_completions_that_nobody_has_seen_interrupt_again(two, drive):
    source = drive(two[0])
    source.create_queues(1)
    source.submit(1, **io(FLUSH, 0, 1))
    source.settle()
    d = move(drive, source, two[1])
    assert events(d.events[1]) == 0
    d.client.set_state(RUNNING)
    assert events(d.events[1]) == 1 and d.peek(1) is not None


def test_writes_at_full_depth_move_again_and_again(pair, drive):
    """There and back while the queue is full of writes: each is done, completed once, and in order."""
    d = drive(pair[0])
    d.create_queues(1, size=33)
    pages = [d.alloc() for _ in range(32)]
    model, pending, number = {}, {}, 0
    rng = random.Random(9)
    for turn in range(6):
        for _ in range(200):
            free = [page for page in pages if page not in [p for p, _ in pending.values()]]
            while free:
                number += 1
                slot, page = rng.randrange(64), free.pop()
                d.put(page, struct.pack("<Q", number) * 64)
                model[slot] = number
                pending[d.submit(1, **io(WRITE, slot, 1, page))] = page, number
            entry = d.reap(1)
            assert entry.status == 0
            # A key that is not there: a command that completed twice.
            _, done = pending.pop(entry.cid)
            assert done == number - len(pending)
        d = move(drive, d, pair[(turn + 1) % 2])
        d.client.set_state(RUNNING)
    while pending:
        assert pending.pop(d.reap(1).cid)
    for slot, value in model.items():
        assert d.read_blocks(slot, 1) == struct.pack("<Q", value) * 64


def test_dirty_pages_are_what_the_controller_wrote(two, drive):
    d = drive(two[0])
    d.create_queues()
    pages = [d.alloc() for _ in range(3)]
    d.client.feature(6 | FEATURE_SET, struct.pack("<QII", PAGE, 0, 0), 24)
    d.run(1, **io(READ, 0, 1, pages[0] + 512))
    d.run(1, **io(WRITE, 0, 1, pages[1]))
    reply = d.client.feature(8 | FEATURE_GET, struct.pack("<QQQ", GUEST, GUEST_SIZE, PAGE), 32 + GUEST_SIZE // PAGE // 8)
    bits = int.from_bytes(reply[32:], "little")
    dirty = [GUEST + n * PAGE for n in range(GUEST_SIZE // PAGE) if bits >> n & 1]
    assert dirty == sorted([pages[0], d.queues[1].cq])


# --- what is not right --------------------------------------------------------

@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A record with something everywhere, the file that belongs to it, and the guest's memory."""
    path = tmp_path_factory.mktemp("disk") / "disk"
    device = Device("nvme", f"--file={path}", "--size=16M")
    d = Driver(device)
    busy(d)
    saved = save(d)
    d.close()
    device.end()
    return saved, path


def check_untouched(d):
    """The load has failed, and what the controller was it still is."""
    assert d.client.state() == RESUMING
    assert d.csts() == RDY
    d.client.reset()
    assert d.client.state() == RUNNING and d.csts() == 0
    d.next = GUEST
    d.enable()
    d.create_queues()
    d.run(1, **io(FLUSH, 0, 1))


def test_damaged_records(start, drive, record):
    saved, path = record
    d = drive(start(f"--file={path}"))
    rng = random.Random(4)
    for at in [*range(0, 152, 3), *rng.sample(range(152, STATE_SIZE), 60)]:
        damaged = bytearray(saved)
        damaged[at] ^= 1 << rng.randrange(8)
        d.client.set_state(RESUMING)
        d.client.write_all(bytes(damaged))
        assert refused(d.client.set_state, STOP) == errno.EINVAL
        check_untouched(d)


def test_short_and_long_records(start, drive, record):
    saved, path = record
    d = drive(start(f"--file={path}"))
    for length in (0, 1, 8, STATE_SIZE // 2, STATE_SIZE - 1):
        d.client.set_state(RESUMING)
        d.client.write_all(saved[:length])
        assert refused(d.client.set_state, STOP) == errno.EINVAL
        check_untouched(d)
    # What is missing may still come; what is too much spoils it.
    d.client.set_state(RESUMING)
    d.client.write_all(saved[:-5])
    assert refused(d.client.set_state, STOP) == errno.EINVAL
    d.client.write_all(saved[-5:])
    d.client.set_state(STOP)
    d.client.set_state(RESUMING)
    d.client.write_all(saved)
    assert refused(d.client.write_state, b"x") == errno.EINVAL
    assert refused(d.client.set_state, STOP) == errno.EINVAL
    d.client.reset()
    assert refused(d.client.write_state, saved) == errno.EINVAL, "not in this state"


SQ1, CQ1, CQ0 = SQS_AT + 24, CQS_AT + 24, CQS_AT


@pytest.mark.parametrize("at, fmt, value", [
    (0, "Q", 1), (8, "I", 2), (8, "I", 0), (12, "I", 0), (UUID_AT, "Q", 1), (NSZE_AT, "Q", 1), (40, "H", 32),
    (42, "H", 32), (44, "I", 1),
    (48, "Q", GUEST + 1), (56, "Q", GUEST + 1), (64, "I", ALL), (68, "I", ALL), (68, "I", 0), (72, "I", 0),
    (72, "I", 1 << 31), (72, "I", RDY | 12), (FEATURES_AT, "I", 1), (FEATURES_AT + 8, "I", 1),
    (FEATURES_AT + 24, "I", 2), (FEATURES_AT + 28, "I", 32), (FEATURES_AT + 44, "I", 1 << 8), (128, "Q", 1 << 33),
    (138, "B", 4), (139, "B", 4), (140, "B", 1), (141, "B", 5), (150, "H", 1),
    (SQ1, "Q", GUEST + 64), (SQ1 + 8, "H", 1), (SQ1 + 8, "H", 1025), (SQ1 + 8, "H", 0), (SQ1 + 10, "H", 8),
    (SQ1 + 12, "H", 8), (SQ1 + 14, "H", 0), (SQ1 + 14, "H", 2), (SQ1 + 14, "H", 33), (SQ1 + 20, "I", 1),
    (SQ1 + 24, "Q", GUEST), (SQS_AT + 8, "H", 0), (SQS_AT + 8, "H", 4097), (SQS_AT + 14, "H", 1),
    (CQ1, "Q", GUEST + 16), (CQ1 + 8, "H", 0), (CQ1 + 8, "H", 1), (CQ1 + 8, "H", 1025), (CQ1 + 10, "H", 6),
    (CQ1 + 12, "H", 6), (CQ1 + 14, "H", 33), (CQ1 + 20, "B", 2), (CQ1 + 21, "B", 2), (CQ1 + 22, "H", 1),
    (CQ0 + 8, "H", 0), (CQ1 + 24, "B", 1),
])
def test_records_that_do_not_mean_well(start, drive, record, at, fmt, value):
    """With the right checksum, but with something that no driver could have brought about."""
    saved, path = record
    d = drive(start(f"--file={path}"))
    bad = change(saved, at, fmt, value)
    assert bad != saved
    d.client.set_state(RESUMING)
    d.client.write_all(bad)
    assert refused(d.client.set_state, STOP) == errno.EINVAL
    check_untouched(d)


def test_random_records_harm_nobody(start, drive, record):
    """Those that are let in may be nonsense for this guest; they have to be harmless."""
    saved, path = record
    device = start(f"--file={path}")
    rng = random.Random(11)
    loaded = 0
    for turn in range(150):
        d = drive(device, enable=False)
        bad = bytearray(saved)
        for _ in range(rng.randint(1, 3)):
            bad[rng.choice([rng.randrange(48, STATE_SIZE - 8), rng.randrange(SQS_AT, SQS_AT + 48),
                            rng.randrange(CQS_AT, CQS_AT + 48)])] = rng.getrandbits(8)
        d.client.set_state(RESUMING)
        d.client.write_all(seal(bad))
        try:
            d.client.set_state(RUNNING)
            loaded += 1
            for qid in (0, 1, 5):
                d.write_doorbell(2 * qid, rng.randrange(8))
            d.settle()
        except Refused as e:
            assert e.errno == errno.EINVAL
        d.client.reset()
        d.close()
    assert loaded > 20


def test_another_disk(start, drive, record, tmp_path):
    saved, path = record
    for options in ([f"--file={tmp_path}/other", "--size=16M"], [f"--file={path}", "--size=8M"], ["--size=16M"]):
        d = drive(start(*options))
        d.client.set_state(RESUMING)
        d.client.write_all(saved)
        assert refused(d.client.set_state, STOP) == errno.EINVAL
        check_untouched(d)


def test_clients_and_guests_that_leave_in_the_middle(start, drive, record):
    saved, path = record
    device = start(f"--file={path}")
    for state in (PRE_COPY, STOP_COPY, RESUMING):
        d = drive(device)
        d.client.set_state(state)
        if state == RESUMING:
            d.client.write_all(saved[:100])
        else:
            d.client.read_state(100)
        d.close()
        d = drive(device, enable=False)
        assert d.client.state() == state
        if state == RESUMING:
            # The part of the record that came is gone with its client.
            d.client.write_all(saved)
            d.client.set_state(STOP)
        d.client.reset()
        d.enable()
        d.close()
