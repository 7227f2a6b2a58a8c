"""Admin commands."""
import uuid

import pytest

from driver import *


@pytest.fixture
def d(attach, doorbells):
    return attach(*doorbells)


def u(data, offset, size):
    return int.from_bytes(data[offset:offset + size], "little")


# --- identify -----------------------------------------------------------------

def test_identify_controller(d):
    id = d.identify(1)
    assert (u(id, 0, 2), u(id, 2, 2)) == struct.unpack("<HH", d.client.read(CONFIG, 0, 2) + d.client.read(CONFIG, 0x2c, 2))
    for begin, end in ((4, 24), (24, 64), (64, 72)):
        assert id[begin:end].isascii() and id[begin:end].strip(b" ") and b"\0" not in id[begin:end]
    assert u(id, 80, 4) == d.client.read_u32(VS) == 0x10400
    assert id[77] == 7 and PAGE << id[77] == MAX_TRANSFER
    assert id[111] == 1, "an I/O controller"
    assert (id[258], id[259]) == (3, 3), "limits of Abort and Asynchronous Event Request"
    assert (id[512], id[513]) == (0x66, 0x44)
    assert u(id, 516, 4) == 1, "one namespace"
    assert u(id, 520, 2) == 0xc, "write zeroes, dataset management"
    assert id[525] == 7, "a volatile write cache, and flush of all namespaces"
    nqn = id[768:1024].rstrip(b"\0").decode()
    assert nqn.startswith("nqn.2014-08.org.nvmexpress:uuid:") and str(uuid.UUID(nqn[-36:])) == nqn[-36:]


def test_identify_namespace(d):
    id = d.identify(0, 1)
    assert struct.unpack_from("<QQQ", id) == (32768, 32768, 32768)
    assert id[25] == 0 and id[26] == 0, "one format"
    assert u(id, 128, 4) == 9 << 16, "512 bytes, no metadata"
    assert id[33] & 7 == 1, "deallocated blocks read as zeroes"
    assert id[99] == 0
    for nsid in (0, 2, ALL):
        assert status(d.identify, 0, nsid) == INVALID_NAMESPACE


def test_identify_lists(d):
    assert d.identify(2, 0) == struct.pack("<I", 1) + bytes(PAGE - 4)
    assert d.identify(2, 1) == bytes(PAGE)
    for nsid in (ALL, ALL - 1):
        assert status(d.identify, 2, nsid) == INVALID_NAMESPACE


def test_asking_for_what_is_not_there_is_no_error(d):
    """It fails, as revision 1.4 says, but monitors that count the entries of the log have nothing to worry about."""
    questions = [dict(opcode=IDENTIFY, nsid=1, cdw10=cns) for cns in (4, 5, 6, 7, 8, 0x10, 0xff)]
    questions += [dict(opcode=GET_LOG, nsid=ALL, cdw10=lid | 127 << 16) for lid in (0, 5, 6, 0xff)]
    questions += [dict(opcode=GET_FEATURES, cdw10=fid) for fid in (3, 0xd, 0x16, 0xff)]
    for question in questions:
        d.submit(0, prp1=d.alloc(), **question)
        entry = d.reap(0)
        assert entry.status == (INVALID_LOG_PAGE if question["opcode"] == GET_LOG else INVALID_FIELD)
        assert (entry.more, entry.dnr) == (0, 1)
    assert u(d.get_log(2, 512), 176, 8) == 0
    assert d.get_log(1, 256) == bytes(256)
    assert status(d.identify, 0, 9) == INVALID_NAMESPACE
    assert u(d.get_log(2, 512), 176, 8) == 1


def test_namespace_descriptors(attach):
    name = uuid.uuid4()
    d = attach(f"--uuid={name}")
    assert d.identify(3, 1) == b"\x03\x10\0\0" + name.bytes + bytes(PAGE - 20)
    assert status(d.identify, 3, 0) == INVALID_NAMESPACE
    assert str(name).encode() in d.identify(1)[768:1024]


def test_the_namespace_keeps_its_name(attach, tmp_path):
    """Two servers over one file present the same disk, over two files they don't."""
    names = [attach("--size=1M", f"--file={tmp_path}/{file}").identify(3, 1) for file in "aab"]
    assert names[0] == names[1] != names[2]


def test_data_of_admin_commands_may_lie_across_two_pages(d):
    whole, page = d.identify(1), d.alloc(2 * PAGE)
    d.put(page, b"\xee" * (2 * PAGE))
    d.admin(IDENTIFY, prp1=page + 1000, prp2=page + PAGE, cdw10=1)
    assert d.get(page, 2 * PAGE) == b"\xee" * 1000 + whole + b"\xee" * (PAGE - 1000)


# --- queues -------------------------------------------------------------------

def test_queues_come_and_go(d):
    for _ in range(3):
        for qid in (1, 17, NR_QUEUES - 1):
            d.create_queues(qid, size=5, cq_size=7)
        for qid in (1, 17, NR_QUEUES - 1):
            assert status(d.create_cq, qid) == INVALID_QID, "there is one"
            assert status(d.create_sq, qid, cqid=qid) == INVALID_QID
            d.run(qid, **io(FLUSH, 0, 1))
            assert status(d.admin, DELETE_CQ, cdw10=qid) == INVALID_DELETION
            d.admin(DELETE_SQ, cdw10=qid)
            assert status(d.admin, DELETE_SQ, cdw10=qid) == INVALID_QID
            d.admin(DELETE_CQ, cdw10=qid)
            assert status(d.admin, DELETE_CQ, cdw10=qid) == INVALID_QID


def test_the_largest_queues(d):
    assert u(d.client.read(BAR0, CAP, 8), 0, 2) == 1023
    d.create_queues(1, size=1024)
    d.run(1, **io(FLUSH, 0, 1))


def test_queues_that_cannot_be(d):
    page = d.alloc()
    d.create_cq(1)
    for qid in (0, NR_QUEUES, 0xffff):
        assert status(d.create_cq, qid) == INVALID_QID
        assert status(d.create_sq, qid) == INVALID_QID
        assert status(d.admin, DELETE_SQ, cdw10=qid) == INVALID_QID
        assert status(d.admin, DELETE_CQ, cdw10=qid) == INVALID_QID
    for size in (1, 1025, 65536):
        assert status(d.create_cq, 2, size=size, address=page) == INVALID_QUEUE_SIZE
        assert status(d.create_sq, 2, size=size, address=page) == INVALID_QUEUE_SIZE
    for cqid, expected in ((0, INVALID_QID), (NR_QUEUES, INVALID_QID), (0xffff, INVALID_QID), (2, INVALID_CQ)):
        assert status(d.create_sq, 2, cqid=cqid) == expected
    for vector in (NR_VECTORS, 0xffff):
        assert status(d.create_cq, 2, vector=vector) == INVALID_VECTOR
    d.create_cq(2, vector=NR_VECTORS - 1)
    for create in (d.create_cq, d.create_sq):
        assert status(create, 3, flags=0) == INVALID_FIELD, "not contiguous"
        assert status(create, 3, address=page + 8) == INVALID_PRP_OFFSET
        assert status(create, 3, address=0x1000) == TRANSFER_ERROR
        assert status(create, 3, address=GUEST + GUEST_SIZE - PAGE, size=1024) == TRANSFER_ERROR
        assert status(create, 3, address=(1 << 64) - PAGE, size=1024) == TRANSFER_ERROR


def test_entries_of_another_size(attach):
    d = attach(enable=False)
    d.enable(EN)  # the sizes may be set when there is need of them
    assert status(d.create_cq, 1) == INVALID_QUEUE_SIZE
    d.client.write_u32(CC, EN | IOCQES)
    d.create_cq(1)
    assert status(d.create_sq, 1) == INVALID_QUEUE_SIZE
    d.client.write_u32(CC, EN | IOCQES | IOSQES)
    d.create_sq(1)


# --- features -----------------------------------------------------------------

def test_features(d):
    for fid, default, value in ((1, 0, 0x03020107), (2, 0, 0), (4, 343, 350), (5, 0, 100), (6, 1, 0),
                                (8, 0, 0x1234), (10, 0, 1), (11, 0, 0x1f)):
        assert d.get_feature(fid) == default
        d.set_feature(fid, value)
        assert d.get_feature(fid) == value
    for fid, value in ((2, 1), (5, 1 << 16), (6, 2), (8, 1 << 16), (11, 1 << 8), (10, 2)):
        assert status(d.set_feature, fid, value) == INVALID_FIELD
        assert d.get_feature(fid) != value
    for fid in (0, 3, 0xc, 0xe, 0x16, 0x7e, 0x80, 0xff):
        assert status(d.set_feature, fid, 0) == INVALID_FIELD
        assert status(d.get_feature, fid) == INVALID_FIELD
    assert status(d.admin, SET_FEATURES, cdw10=6 | 1 << 31, cdw11=1) == NOT_SAVEABLE
    for select in (1, 2, 3):
        assert status(d.get_feature, 6 | select << 8) == INVALID_FIELD
    # A controller reset puts all of them back.
    d.client.write_u32(CC, 0)
    d.enable()
    assert [d.get_feature(fid) for fid in (1, 4, 5, 6, 8, 10, 11)] == [0, 343, 0, 1, 0, 0, 0]


def test_interrupt_vector_configuration(d):
    for vector in (0, NR_VECTORS - 1):
        assert d.get_feature(9, vector) == vector
        d.set_feature(9, 1 << 16 | vector)
        assert d.get_feature(9, vector) == 1 << 16 | vector
    d.set_feature(9, 0)
    assert (d.get_feature(9, 0), d.get_feature(9, NR_VECTORS - 1)) == (0, 1 << 16 | NR_VECTORS - 1)
    assert status(d.set_feature, 9, NR_VECTORS) == INVALID_FIELD
    assert status(d.get_feature, 9, NR_VECTORS) == INVALID_FIELD


def test_temperature_thresholds(d):
    d.set_feature(4, 15 << 16 | 400)
    d.set_feature(4, 1 << 20 | 5)
    assert (d.get_feature(4), d.get_feature(4, 1 << 20)) == (400, 5)
    for bad in (1 << 16, 8 << 16, 2 << 20, 3 << 20):
        assert status(d.set_feature, 4, bad) == INVALID_FIELD
        assert status(d.get_feature, 4, bad) == INVALID_FIELD


def test_number_of_queues(d):
    assert d.set_feature(7, 3 << 16 | 2) == d.get_feature(7) == 3 << 16 | 2
    d.create_cq(4)
    assert status(d.create_cq, 5) == INVALID_QID
    d.create_sq(3, cqid=4)
    assert status(d.create_sq, 4, cqid=4) == INVALID_QID
    assert status(d.set_feature, 7, 0) == SEQUENCE_ERROR
    d.admin(DELETE_SQ, cdw10=3)
    assert status(d.set_feature, 7, 0) == SEQUENCE_ERROR
    d.admin(DELETE_CQ, cdw10=4)
    assert d.set_feature(7, 0xfffe << 16 | 0xfffe) == 31 << 16 | 31
    for bad in (0xffff, 0xffff << 16):
        assert status(d.set_feature, 7, bad) == INVALID_FIELD


# --- log pages ----------------------------------------------------------------

def test_smart_log(d):
    d.create_queues()
    before = d.get_log(2, 512)
    assert (before[0], u(before, 1, 2), before[3]) == (0, 310, 100)
    for n in range(3):
        d.write_blocks(n, bytes(BLOCK))
    d.read_blocks(0, 16)
    log = d.get_log(2, 512)
    assert [u(log, at, 16) - u(before, at, 16) for at in (32, 48, 64, 80)] == [1, 1, 1, 3]
    d.set_feature(4, 310)
    assert d.get_log(2, 512)[0] == 2, "too warm"
    assert d.get_log(2, 512, nsid=0)[0] == 2
    assert status(d.get_log, 2, 512, nsid=1) == INVALID_FIELD


def test_error_log(d):
    d.create_queues()
    assert d.get_log(1, 256) == bytes(256)
    for n in range(6):
        d.submit(1, **io(READ, 1 << 33 | n, 1, GUEST))
        entry = d.reap(1)
        assert (entry.status, entry.more, entry.dnr) == (OUT_OF_RANGE, 1, 1)
    log = d.get_log(1, 256)
    for n in range(4):
        count, sqid, cid, field, _, lba, nsid = struct.unpack_from("<QHHHHQI", log, n * 64)
        assert (count, sqid, field >> 1 & 0x7ff, lba, nsid) == (6 - n, 1, OUT_OF_RANGE, 1 << 33 | 5 - n, 1)
        assert cid == d.cid - 1 - n
    assert u(d.get_log(2, 512), 176, 8) == 6


def test_other_logs(d):
    firmware = d.get_log(3, 512)
    assert firmware[0] == 1 and firmware[8:16] == d.identify(1)[64:72] and firmware[16:] == bytes(496)
    assert d.get_log(4, 4096) == bytes(4096)
    for lid in (0, 5, 6, 0x80, 0xff):
        assert status(d.get_log, lid, 512) == INVALID_LOG_PAGE


def test_parts_of_logs(d):
    status(d.admin, 0xff)
    for lid, size in ((1, 256), (3, 512)):
        whole = d.get_log(lid, size)
        for offset, count in ((0, 4), (0, 8), (4, 12), (8, size - 8), (size - 4, 4)):
            assert d.get_log(lid, count, offset) == whole[offset:offset + count]
        assert d.get_log(lid, 2 * PAGE, 4) == whole[4:] + bytes(2 * PAGE - size + 4)
        assert d.get_log(lid, 8, size) == bytes(8)
        for offset in (2, size + 4, 1 << 32, (1 << 64) - 4):
            assert status(d.get_log, lid, 4, offset) == INVALID_FIELD
        assert status(d.admin, GET_LOG, nsid=ALL, prp1=GUEST, prp2=GUEST, cdw10=lid, cdw11=8) == INVALID_FIELD


# --- events and abort ---------------------------------------------------------

def wrong_doorbell(d):
    """Something that raises an error event."""
    d.create_queues(9, size=4)
    d.write_doorbell(18, 4)
    d.settle()


def test_an_event_completes_a_request(d):
    d.submit(0, opcode=AER)
    d.settle()
    assert d.peek(0) is None
    wrong_doorbell_cid = d.cid
    d.create_queues(9, size=4)
    d.write_doorbell(18, 4)
    entry = d.reap(0)
    assert (entry.cid, entry.status, entry.result) == (wrong_doorbell_cid, 0, 1 << 16 | 1 << 8)


def test_an_event_waits_for_a_request_and_is_told_once(d):
    wrong_doorbell(d)
    d.submit(0, opcode=AER)
    assert d.reap(0).result == 0x10100
    # Until the log is read there is no other of this type.
    d.submit(0, opcode=AER)
    d.write_doorbell(18, 5)
    d.settle()
    assert d.peek(0) is None
    d.get_log(1, 64, retain=True)
    d.settle()
    assert d.peek(0) is None
    d.get_log(1, 64)
    d.settle()
    assert d.peek(0) is None, "what happened before is in the log"
    d.write_doorbell(18, 6)
    assert d.reap(0).result == 0x10100


def test_temperature_events(d):
    d.submit(0, opcode=AER)
    d.set_feature(4, 300)
    d.settle()
    assert d.peek(0) is None, "nobody asked for it"
    d.set_feature(11, 2)
    assert d.reap(0).result == 2 << 16 | 1 << 8 | 1
    d.submit(0, opcode=AER)
    d.get_log(2, 512)
    d.set_feature(4, 1 << 20 | 320)
    assert d.reap(0).result == 0x20101


def test_events_have_a_limit(d):
    cids = [d.submit(0, opcode=AER) for _ in range(5)]
    entry = d.reap(0)
    assert (entry.cid, entry.status) == (cids[4], TOO_MANY_AERS)
    d.settle()
    assert d.peek(0) is None


def test_abort_of_a_request_for_events(d):
    cids = [d.submit(0, opcode=AER) for _ in range(3)]
    abort = d.submit(0, opcode=ABORT, cdw10=cids[1] << 16)
    first, second = d.reap(0), d.reap(0)
    assert (first.cid, first.status, second.cid, second.status, second.result) == (cids[1], ABORTED, abort, 0, 0)
    assert d.admin(ABORT, cdw10=cids[1] << 16) == 1, "it is no more"
    # The others are still there, in order.
    wrong_doorbell(d)
    assert d.reap(0).cid == cids[0]


def test_abort_of_what_is_not_there(d):
    d.create_queues()
    d.submit(0, opcode=AER, cid=77)
    for sqid, cid in ((0, 78), (1, 77), (40, 77), (0xffff, 0)):
        assert d.admin(ABORT, cdw10=cid << 16 | sqid) == 1


def test_other_admin_commands(d):
    for opcode in (3, 7, 0xd, 0x10, 0x18, 0x80, 0xc0, 0xff):
        assert status(d.admin, opcode) == INVALID_OPCODE
    for flags in (1, 0x40, 0x80):
        assert status(d.admin, GET_FEATURES, cdw10=6, flags=flags) == INVALID_FIELD
