"""Guests that point to where nothing is: a status or a fatal error, never a byte outside of their memory."""
import random

import pytest

from driver import *

END = GUEST + GUEST_SIZE


@pytest.fixture
def d(attach, backing, doorbells):
    driver = attach(*backing, *doorbells)
    driver.create_queues()
    return driver


NOWHERE = [0, 0x1000, GUEST - PAGE, END, 1 << 40, (1 << 64) - PAGE]


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_data_that_is_nowhere(d, opcode):
    good = d.alloc()
    for bad in NOWHERE:
        assert status(d.run, 1, **io(opcode, 0, 1, bad)) == TRANSFER_ERROR
        assert status(d.run, 1, **io(opcode, 0, 16, good, bad)) == TRANSFER_ERROR
        assert status(d.run, 1, **io(opcode, 0, 17, good, bad)) == TRANSFER_ERROR, "a list"
        d.put(good, struct.pack("<QQ", good, bad))
        assert status(d.run, 1, **io(opcode, 0, 24, good, good)) == TRANSFER_ERROR, "an entry"
    d.run(1, **io(opcode, 0, 1, good))


def test_data_across_the_end_of_memory(attach):
    """Nothing is written, not even as far as there is memory; what lies behind stays as it was."""
    d = attach(enable=False)
    d.client.request(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, GUEST, GUEST_SIZE))
    d.client.map_dma(GUEST, GUEST_SIZE // 2 - 512, d.fd)
    d.enable()
    d.create_queues()
    d.put(GUEST + GUEST_SIZE // 2 - 2 * PAGE, b"\xee" * (4 * PAGE))
    last = GUEST + GUEST_SIZE // 2 - PAGE
    for prp1 in (last + PAGE - 512, last + PAGE - 1024, last + PAGE - 516):
        assert status(d.run, 1, **io(READ, 0, 2, prp1, last)) == TRANSFER_ERROR
    assert status(d.run, 1, **io(READ, 0, 16, last - PAGE, last)) == TRANSFER_ERROR
    assert d.get(last - PAGE, 4 * PAGE) == b"\xee" * (4 * PAGE)
    d.run(1, **io(READ, 0, 7, last))
    assert d.get(last - PAGE, 4 * PAGE) == b"\xee" * PAGE + bytes(7 * BLOCK) + b"\xee" * (2 * PAGE + 512)


def test_memory_that_must_not_be_written(d):
    base = END + (1 << 30)
    d.client.request(DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, base, 1 << 20), [d.fd])
    d.run(1, **io(WRITE, 0, 1, base))
    assert status(d.run, 1, **io(READ, 0, 1, base)) == TRANSFER_ERROR
    assert status(d.identify, 1, prp1=base) == TRANSFER_ERROR
    assert status(d.create_cq, 2, address=base) == TRANSFER_ERROR


def test_memory_that_only_messages_reach(d):
    base = END + (1 << 30)
    d.client.map_dma(base, 1 << 20)
    assert status(d.run, 1, **io(READ, 0, 1, base)) == TRANSFER_ERROR
    assert status(d.create_sq, 2, address=base) == TRANSFER_ERROR
    assert d.client.dma == [] and d.client.nothing()


def test_misaligned_prps(d):
    page = d.alloc(2 * PAGE)
    for opcode in (READ, WRITE):
        for offset in (1, 2, 3, 511):
            assert status(d.run, 1, **io(opcode, 0, 1, page + offset)) == INVALID_PRP_OFFSET
        for offset in (4, 8, 512, 4092):
            assert status(d.run, 1, **io(opcode, 0, 16, page, page + offset)) == INVALID_PRP_OFFSET
        for offset in (1, 4, 7):
            assert status(d.run, 1, **io(opcode, 0, 24, page, page + offset)) == INVALID_PRP_OFFSET, "a list"
        for entry in (page + 8, page + 512, page + 1):
            d.put(page, struct.pack("<QQ", page, entry))
            assert status(d.run, 1, **io(opcode, 0, 24, page, page)) == INVALID_PRP_OFFSET


def test_prp_lists_without_an_end(d):
    """A list whose last entry leads back to itself, with and without room for anything else in it."""
    page = d.alloc()
    d.put(page, struct.pack("<512Q", *[page] * 512))
    d.run(1, **io(READ, 0, 1024, page, page + PAGE - 8))  # the list goes on in itself, once
    d.put(page + PAGE - 8, struct.pack("<Q", page + PAGE - 8))
    assert status(d.run, 1, **io(READ, 0, 1024, page, page + PAGE - 8)) == INVALID_PRP_OFFSET


@pytest.mark.parametrize("what", ["sq", "cq"])
@pytest.mark.parametrize("qid", [0, 1])
def test_queues_whose_memory_goes_are_fatal(attach, doorbells, qid, what):
    d = attach(*doorbells, enable=False)
    base = END + (1 << 30)
    window = d.alloc(PAGE)
    d.client.map_dma(base, PAGE, d.fd, window - GUEST)
    d.enable()
    if qid == 0:
        # The admin queues can be anywhere.
        d.client.write_u32(CC, 0)
        d.write_u64(ASQ if what == "sq" else ACQ, base)
        d.client.write_u32(CC, EN | IOSQES | IOCQES)
        d.queues[0] = Queue(window if what == "sq" else d.queues[0].sq, window if what == "cq" else d.queues[0].cq, 32)
        d.put(d.queues[0].cq, bytes(512))
        d.admin(GET_FEATURES, cdw10=6)
    else:
        cq = d.create_cq(1, address=base if what == "cq" else None)
        sq = d.create_sq(1, address=base if what == "sq" else None)
        d.queues[1] = Queue(window if what == "sq" else sq, window if what == "cq" else cq, 32)
        d.put(d.queues[1].cq, bytes(512))
        d.run(1, **io(FLUSH, 0, 1))
    d.client.request(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, base, PAGE))
    d.settle()
    assert d.csts() == RDY
    d.put(window, b"\xee" * PAGE)
    d.ring(qid) if qid == 0 else None
    d.submit(qid, **(io(FLUSH, 0, 1) if qid else dict(opcode=GET_FEATURES, cdw10=6)))
    d.settle()
    assert d.csts() == RDY | CFS
    if what == "cq":
        assert d.get(window, PAGE) == b"\xee" * PAGE
    # Only a reset helps.
    d.submit(qid, **io(FLUSH, 0, 1))
    d.settle()
    assert d.csts() == RDY | CFS
    d.client.write_u32(CC, 0)
    d.enable()
    d.identify(1)


def test_admin_queues_that_are_nowhere(attach, doorbells):
    d = attach(*doorbells, enable=False)
    d.client.write_u32(AQA, 0x1f001f)
    d.write_u64(ASQ, (1 << 64) - PAGE), d.write_u64(ACQ, 0)
    d.client.write_u32(CC, EN | IOSQES | IOCQES)
    assert d.csts() == CFS, "at once"
    d.write_doorbell(0, 1)
    d.settle()
    assert d.csts() == CFS
    d.client.write_u32(CC, 0)
    d.enable()
    d.identify(1)


def test_memory_whose_file_is_not_what_the_guest_has(attach):
    """share=off: the client gives its file, and has its own copy of it. All that we see are zeroes."""
    d = attach()
    d.put(d.queues[0].sq, bytes(64))
    d.write_doorbell(0, 1)
    d.settle()
    assert d.csts() == RDY | CFS
    with open(d.device.log) as log:
        assert sum("share=on" in line for line in log) == 1


@pytest.mark.parametrize("what", ["sq", "cq", "both"])
def test_admin_queues_in_memory_that_is_not_shared(attach, what):
    """A machine without share=on: the guest is told at once, and the user what to do."""
    d = attach(enable=False)
    base = END + (1 << 30)
    d.client.map_dma(base, 1 << 20)
    d.client.write_u32(AQA, 0x1f001f)
    d.write_u64(ASQ, base if what != "cq" else GUEST)
    d.write_u64(ACQ, base + PAGE if what != "sq" else GUEST)
    d.client.write_u32(CC, EN | IOSQES | IOCQES)
    assert d.csts() == CFS
    with open(d.device.log) as log:
        assert sum("share=on" in line for line in log) == 1
    assert d.client.dma == [] and d.client.nothing()
    d.client.write_u32(CC, 0)
    d.enable()
    d.identify(1)


@pytest.mark.parametrize("seed", range(2))
def test_random_commands(attach, backing, doorbells, seed):
    """Whatever is in a command, there is a completion, and the rest of memory stays as it was."""
    rng = random.Random(seed)
    d = attach(*backing, *doorbells)
    d.create_queues()
    arena, fence = d.alloc(64 * PAGE), d.alloc()
    d.put(fence, b"\xee" * PAGE)
    left = GUEST_SIZE - (d.next - GUEST)
    d.put(d.next, b"\xee" * left)

    def address():
        return rng.choice([lambda: arena + rng.randrange(0, 62 * PAGE, PAGE), lambda: arena + rng.randrange(62 * PAGE),
                           lambda: rng.choice(NOWHERE), lambda: rng.getrandbits(64) | 1 << 63])()

    def number():
        return rng.choice([0, 1, 7, 31, rng.getrandbits(8), rng.getrandbits(16), rng.getrandbits(32)])
    for turn in range(600):
        d.put(arena, b"".join(struct.pack("<Q", address()) for _ in range(64)))
        qid = rng.choice([0, 1, 1])
        opcode = rng.choice([FLUSH, WRITE, READ, READ, WRITE_ZEROES, DSM, rng.getrandbits(8)]) if qid else \
            rng.choice([GET_LOG, IDENTIFY, SET_FEATURES, GET_FEATURES, ABORT, rng.randrange(0xd, 256)])
        d.submit(qid, opcode=opcode, nsid=rng.choice([1, 1, 1, 0, ALL]), prp1=address(), prp2=address(),
                 cdw10=number(), cdw11=rng.choice([0, 4, number()]), cdw12=number() & rng.choice([0xf, 0xff, ALL]),
                 flags=rng.choice([0] * 9 + [rng.getrandbits(8)]))
        assert d.reap(qid).cid == d.cid
    assert d.csts() == RDY
    assert d.get(fence, PAGE) == b"\xee" * PAGE and d.get(d.next, left) == b"\xee" * left


def test_a_guest_that_changes_its_mind(attach, backing):
    """Commands and lists that are overwritten all the time while the controller works on them."""
    import threading
    d = attach(*backing, "--poll-doorbells")
    d.create_queues(1, size=1024)
    lists, data = d.alloc(4 * PAGE), d.alloc(256 * PAGE)
    fence = d.alloc()
    d.put(fence, b"\xee" * PAGE)
    stop = threading.Event()

    def scribble():
        rng = random.Random(3)
        while not stop.is_set():
            at = rng.randrange(4 * PAGE // 8) * 8
            d.put(lists + at, struct.pack("<Q", rng.choice([data + rng.randrange(256) * PAGE, lists, END, 1 << 50, 3])))
            at = rng.randrange(1024) * 64
            d.put(d.queues[1].sq + at + 24, struct.pack("<QQ", rng.choice([data, END - 512, 3]), lists))
    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(20):
            for _ in range(500):
                d.submit(1, ring=False, **io(WRITE, 0, 1024, data, lists))
            d.ring(1)
            for _ in range(500):
                d.reap(1)
    finally:
        stop.set()
        thread.join()
    assert d.csts() == RDY and d.get(fence, PAGE) == b"\xee" * PAGE
