"""What the PCI side shows, registers, resets, interrupts and doorbells."""
import pytest

from driver import *

PM_CAP, EXPRESS_CAP, MSIX_CAP = 1, 0x10, 0x11


@pytest.fixture
def d(attach, doorbells):
    return attach(*doorbells)


def capability(client, wanted):
    at = client.read(CONFIG, 0x34, 1)[0]
    while at:
        kind, following = client.read(CONFIG, at, 2)
        if kind == wanted:
            return at
        at = following
    raise AssertionError("there is none")


def function_level_reset(client):
    at = capability(client, EXPRESS_CAP)
    client.write(CONFIG, at + 8, struct.pack("<H", 1 << 15))


def gone(d):
    """Whether the controller is as if it had just come, of what can be seen in BAR 0."""
    assert [d.client.read_u32(at) for at in (INTMS, CC, CSTS, AQA, ASQ, ACQ)] == [0] * 6
    return True


# --- the PCI function ---------------------------------------------------------

def test_configuration_space(d):
    config = d.client.read(CONFIG, 0, 256)
    assert config[9:12] == bytes([2, 8, 1]), "mass storage, NVM, NVMe"
    assert struct.unpack_from("<I", config, 0x10)[0] & 0xf == 4, "a 64-bit memory BAR"
    capability(d.client, PM_CAP)
    at = capability(d.client, EXPRESS_CAP)
    assert struct.unpack_from("<I", config, at + 4)[0] >> 28 & 1, "function level reset"
    at = capability(d.client, MSIX_CAP)
    control, table, pba = struct.unpack_from("<HII", config, at + 2)
    assert control & 0x7ff == NR_VECTORS - 1 and table == 4 and pba == 0x800 | 4


def test_the_sizes_of_the_bars(d):
    def size(region):
        return struct.unpack_from("<Q", d.client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, region, 0, 0, 0)), 16)[0]
    assert [size(region) for region in range(6)] == [0x4000, 0, 0, 0, 0x1000, 0]


def test_only_the_page_of_doorbells_can_be_mapped(attach):
    d = attach("--poll-doorbells")
    reply = d.client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, BAR0, 0, 0, 0))
    _, flags, _, cap, _, _ = struct.unpack_from("<IIIIQQ", reply)
    assert flags == 0xf, "readable, writable, mappable, with capabilities"
    assert struct.unpack_from("<HHIII", reply, cap) == (1, 1, 0, 1, 0), "sparse areas"
    assert struct.unpack_from("<QQ", reply, cap + 16) == (DOORBELLS, PAGE)


def test_the_file_of_the_doorbells_keeps_its_size(attach):
    d = attach("--poll-doorbells")
    d.client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, BAR0, 0, 0, 0))
    [fd] = d.client.fds
    with pytest.raises(OSError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_the_msix_table_is_memory(d):
    table = bytes(range(256)) * 2 + bytes(16)
    d.client.write(4, 0, table)
    assert d.client.read(4, 0, 0x1000) == table + bytes(0x1000 - len(table))
    d.client.write(4, 520, b"\xff" * 100)
    assert d.client.read(4, 0, 0x1000) == table[:520] + b"\xff" * 8 + bytes(0x1000 - 528)
    d.client.write(4, 0x800, b"\xff" * 16)
    assert d.client.read(4, 0x800, 16) == bytes(16), "nothing is pending"


# --- registers ----------------------------------------------------------------

def test_registers_in_halves_and_as_a_whole(attach):
    d = attach(enable=False)
    c = d.client
    cap = struct.unpack("<Q", c.read(BAR0, CAP, 8))[0]
    assert (c.read_u32(CAP), c.read_u32(CAP + 4)) == (cap & ALL, cap >> 32)
    assert cap & 0xffff == 1023 and cap >> 16 & 1 and cap >> 24 & 0xff and cap >> 32 & 15 == 0 and cap >> 37 & 1
    assert cap >> 48 == 0, "pages of 4096 bytes"
    d.write_u64(ASQ, 0x123456789abcdef0)
    assert (c.read_u32(ASQ), c.read_u32(ASQ + 4)) == (0x9abcd000, 0x12345678)
    c.write_u32(ACQ + 4, 5), c.write_u32(ACQ, 0x7fff)
    assert c.read(BAR0, ACQ, 8) == struct.pack("<Q", 5 << 32 | 0x7000)
    c.write_u32(AQA, ALL)
    assert c.read_u32(AQA) == 0x0fff0fff
    c.write_u32(INTMS, 0xff), c.write_u32(INTMC, 0x0f)
    assert c.read_u32(INTMS) == c.read_u32(INTMC) == 0xf0
    for at in (CAP, VS, CSTS, 0x18, 0x20, 0x38, 0xffc, 0x2000, 0x3ffc):
        before = c.read_u32(at)
        c.write_u32(at, ALL)
        assert c.read_u32(at) == before


def test_accesses_that_registers_do_not_take(d):
    for at, size in ((CC, 1), (CC, 2), (CC + 1, 4), (CC, 6), (DOORBELLS + 2, 4)):
        assert refused(d.client.read, BAR0, at, size) == errno.EINVAL
        assert refused(d.client.write, BAR0, at, bytes(size)) == errno.EINVAL
    assert len(d.client.read(BAR0, 0, 0x4000)) == 0x4000


def test_what_the_controller_cannot_do_is_fatal(attach):
    d = attach(enable=False)
    d.write_u64(ASQ, GUEST), d.write_u64(ACQ, GUEST + PAGE)
    for cc, aqa in ((EN | 1 << 4, 0x1f001f), (EN | 1 << 7, 0x1f001f), (EN | 1 << 11, 0x1f001f),
                    (EN, 0x1f0000), (EN, 0x00001f), (EN, 0)):
        d.client.write_u32(AQA, aqa)
        d.client.write_u32(CC, cc)
        assert d.csts() == CFS
        d.client.write_u32(CC, 0)
        assert d.csts() == 0
    d.enable()
    d.identify(1)


def test_the_largest_admin_queues(attach):
    d = attach(entries=4096)
    for n in range(300):
        assert d.admin(GET_FEATURES, cdw10=6) == 1


# --- resets and shutdown ------------------------------------------------------

def test_controller_reset(d):
    for turn in range(3):
        d.create_queues()
        d.write_blocks(turn, bytes([turn + 1]) * BLOCK)
        d.submit(0, opcode=AER)
        queues = [d.client.read_u32(at) for at in (AQA, ASQ, ACQ)]
        d.client.write_u32(CC, IOSQES | IOCQES)
        assert d.csts() == 0
        assert [d.client.read_u32(at) for at in (AQA, ASQ, ACQ)] == queues
        assert d.client.read(BAR0, DOORBELLS, PAGE) == bytes(PAGE)
        d.next = GUEST
        d.enable()
        assert status(d.admin, DELETE_SQ, cdw10=1) == INVALID_QID, "queues are gone"
        assert d.admin(ABORT, cdw10=0) == 1 and d.peek(0) is None, "and what waited for an event"
    d.create_queues()
    assert d.read_blocks(0, 3) == b"".join(bytes([n + 1]) * BLOCK for n in range(3))


def test_a_disabled_controller_does_nothing(d):
    d.client.write_u32(CC, 0)
    d.put(d.queues[0].cq, bytes(512))
    d.submit(0, opcode=IDENTIFY, cdw10=1, prp1=GUEST)
    d.write_doorbell(7, 7)
    d.settle()
    assert d.csts() == 0 and d.get(d.queues[0].cq, 512) == bytes(512)
    d.enable()
    d.submit(0, opcode=AER)
    d.identify(1)


@pytest.mark.parametrize("kind", [SHN_NORMAL, SHN_ABRUPT])
def test_shutdown(d, kind):
    d.create_queues()
    d.write_blocks(0, b"x" * BLOCK)
    d.client.write_u32(CC, EN | IOSQES | IOCQES | kind)
    d.settle()
    assert d.csts() == RDY | SHST_DONE
    d.submit(1, **io(FLUSH, 0, 1))
    d.settle()
    assert d.peek(1) is None, "it is shut down"
    d.client.write_u32(CC, 0)
    assert d.csts() == 0
    d.enable()
    d.create_queues()
    assert d.read_blocks(0, 1) == b"x" * BLOCK


def test_shutdown_of_a_disabled_controller(attach):
    d = attach(enable=False)
    d.client.write_u32(CC, SHN_NORMAL)
    d.settle()
    assert d.csts() == SHST_DONE
    d.client.write_u32(CC, 0)
    d.enable()


@pytest.mark.parametrize("reset", [lambda c: c.reset(), function_level_reset], ids=["device", "flr"])
def test_device_resets(d, reset):
    for turn in range(2):
        d.create_queues()
        d.submit(0, opcode=AER)
        d.client.write(CONFIG, 4, struct.pack("<H", 6))
        d.client.write(4, 0, b"\xff" * 16)
        d.set_feature(6, 0)
        reset(d.client)
        assert gone(d)
        assert d.client.read(4, 0, 16) == bytes(16) and d.client.read(CONFIG, 4, 2) == bytes(2)
        assert d.client.read(BAR0, DOORBELLS, PAGE) == bytes(PAGE)
        d.enable()
        assert d.get_feature(6) == 1


def test_one_client_after_the_other(start, attach, doorbells, backing):
    device = start(*doorbells, *backing)
    for turn in range(3):
        d = attach(device=device, enable=False)
        assert gone(d)
        d.enable()
        d.create_queues()
        assert d.read_blocks(turn, 1) == bytes(BLOCK)
        d.write_blocks(turn, b"x" * BLOCK)
        assert d.read_blocks(0, turn + 1) == b"x" * BLOCK * (turn + 1)
        d.submit(1, **io(FLUSH, 0, 1))  # and leaves in the middle
        d.close()


# --- interrupts ---------------------------------------------------------------

def wait_event(d, vector):
    assert select.select([d.events[vector]], [], [], GUARD)[0], "no interrupt comes"
    return events(d.events[vector])


def test_interrupts(d):
    d.create_queues(1, vector=1)
    d.create_queues(2, vector=2)
    d.create_queues(3, vector=2, interrupts=False)
    for fd in d.events:
        events(fd)
    d.submit(0, opcode=GET_FEATURES, cdw10=6)
    assert wait_event(d, 0) == 1
    d.submit(1, **io(FLUSH, 0, 1))
    assert wait_event(d, 1) == 1
    d.submit(2, **io(FLUSH, 0, 1))
    assert wait_event(d, 2) == 1
    d.run(3, **io(FLUSH, 0, 1))
    d.settle()
    assert [events(fd) for fd in d.events] == [0, 0, 0]


def test_one_interrupt_for_a_batch(d):
    d.create_queues(1, size=64)
    events(d.events[1])
    for _ in range(32):
        d.submit(1, ring=False, **io(FLUSH, 0, 1))
    d.ring(1)
    for _ in range(32):
        d.reap(1)
    assert wait_event(d, 1) == 1


def test_an_interrupt_for_an_event(d):
    d.submit(0, opcode=AER)
    d.create_queues(1, size=4)
    d.settle()
    events(d.events[0])
    d.write_doorbell(2, 9)
    assert wait_event(d, 0) == 1 and d.reap(0).result == 0x10100


def test_vectors_that_the_client_does_not_listen_to(d):
    d.create_queues(1, vector=NR_VECTORS - 1)
    d.run(1, **io(FLUSH, 0, 1))


# --- doorbells and queues that are full ---------------------------------------

def test_a_full_completion_queue_holds_the_submission_queue_back(d):
    d.create_queues(1, size=32, cq_size=4)
    d.create_queues(2)
    for _ in range(20):
        d.submit(1, ring=False, **io(FLUSH, 0, 1))
    d.ring(1)
    seen = [d.reap(1, ring=False) for _ in range(3)]
    d.settle()
    assert d.peek(1) is None and seen[-1].sq_head == 3
    d.run(2, **io(FLUSH, 0, 1))  # others go on
    for n in range(17):
        d.write_doorbell(3, d.queues[1].head)
        seen.append(d.reap(1, ring=False))
    assert [entry.cid for entry in seen] == list(range(seen[0].cid, seen[0].cid + 20))


def test_a_full_admin_completion_queue(attach, doorbells):
    d = attach(*doorbells, entries=4)
    cids = [d.submit(0, opcode=AER)]
    d.settle()
    cids += [d.submit(0, opcode=GET_FEATURES, cdw10=6) for _ in range(2)]
    d.settle()
    entries = [d.reap(0, ring=False) for _ in range(2)]
    # One place is left. Abort needs two, so it says that it could not.
    cids.append(d.submit(0, opcode=ABORT, cdw10=cids[0] << 16))
    entries.append(d.reap(0, ring=False))
    assert entries[2].result == 1
    cids.append(d.submit(0, opcode=ABORT, cdw10=cids[0] << 16))
    d.settle()
    assert d.peek(0) is None
    d.write_doorbell(1, d.queues[0].head)
    entries += [d.reap(0, ring=False), d.reap(0, ring=False)]
    assert [e.cid for e in entries] == cids[1:4] + [cids[0], cids[4]]
    assert entries[3].status == ABORTED and entries[4].result == 0


@pytest.mark.parametrize("value", [32, 33, 0xffff, 0x10000, ALL])
def test_a_tail_out_of_range_is_an_event_and_ignored(d, value):
    d.create_queues()
    d.submit(0, opcode=AER)
    d.write_doorbell(2, value)
    assert d.reap(0).result == 0x10100
    d.settle()
    assert d.csts() == RDY and d.peek(1) is None
    d.run(1, **io(FLUSH, 0, 1))


@pytest.mark.parametrize("value", [2, 5, 31, 32, ALL])
def test_a_head_that_cannot_be_is_an_event_and_ignored(d, value):
    """A polled one is noticed when the controller needs room: for five commands at a time it does."""
    d.create_queues(1, size=32, cq_size=4)
    d.submit(0, opcode=AER)
    d.submit(1, **io(FLUSH, 0, 1))
    d.reap(1, ring=False)
    d.write_doorbell(3, value)
    for _ in range(5):
        d.submit(1, ring=False, **io(FLUSH, 0, 1))
    d.ring(1)
    assert d.reap(0).result == 0x10100
    for _ in range(2):
        d.reap(1, ring=False)
    d.settle()
    assert d.peek(1) is None
    d.write_doorbell(3, d.queues[1].head)
    for _ in range(3):
        d.reap(1, ring=False)


def test_doorbells_that_are_not_there_are_an_event(attach):
    d = attach()
    d.create_queues()
    for at in (2 * 2, 2 * 2 + 1, 2 * NR_QUEUES, 1023):
        d.submit(0, opcode=AER)
        d.write_doorbell(at, 1)
        assert d.reap(0).result == 0x10000
        d.get_log(1, 64)


def test_a_doorbell_can_be_rung_by_a_message_where_it_is_polled(attach):
    d = attach("--poll-doorbells")
    d.create_queues()
    d.doorbells = None
    for n in range(5):
        d.run(1, **io(FLUSH, 0, 1))
    assert d.client.read_u32(DOORBELLS + 8) == 5


def test_commands_that_are_left_in_a_queue_which_goes(d):
    d.create_queues(1, size=32, cq_size=2)
    for _ in range(10):
        d.submit(1, **io(FLUSH, 0, 1))
    d.settle()
    d.admin(DELETE_SQ, cdw10=1)
    d.admin(DELETE_CQ, cdw10=1)
    d.create_queues()
    d.run(1, **io(FLUSH, 0, 1))
