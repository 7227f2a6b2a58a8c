"""I/O commands, and the ways in which data lie in the guest's memory."""
import os
import random
import resource

import pytest

from driver import *

DATA = random.Random(1).randbytes(MAX_TRANSFER)


@pytest.fixture
def d(attach, backing, doorbells):
    driver = attach(*backing, *doorbells)
    driver.create_queues()
    return driver


def prp_list(d, pages, at=0):
    """Puts a PRP list for these pages in memory, `at` an offset in its first page; returns its address."""
    first = d.alloc() + at
    here, room = first, (PAGE - at) // 8
    while len(pages) > room:
        following = d.alloc()
        d.put(here, struct.pack(f"<{room}Q", *pages[:room - 1], following))
        pages, here, room = pages[room - 1:], following, PAGE // 8
    d.put(here, struct.pack(f"<{len(pages)}Q", *pages))
    return first


def shuffled_pages(d, count):
    """Pages of guest memory that don't follow each other."""
    pages = [d.alloc() for _ in range(count)]
    random.Random(count).shuffle(pages)
    return pages


def scatter(d, offset, pages, data):
    """Puts data at the offset in the first page and on in the others."""
    d.put(pages[0] + offset, data[:PAGE - offset])
    for i, page in enumerate(pages[1:]):
        d.put(page, data[PAGE - offset + i * PAGE:][:PAGE])


def gather(d, offset, pages, size):
    return (d.get(pages[0] + offset, PAGE - offset) + b"".join(d.get(page, PAGE) for page in pages[1:]))[:size]


def test_what_is_written_can_be_read(d, doorbells):
    assert (d.doorbells is not None) == bool(doorbells)
    d.write_blocks(8, DATA[:2 * PAGE])
    assert d.read_blocks(8, 16) == DATA[:2 * PAGE]
    assert d.read_blocks(7, 2) == bytes(BLOCK) + DATA[:BLOCK]
    assert d.read_blocks(24, 1) == bytes(BLOCK)


@pytest.mark.parametrize("offset", [0, 4, 512, 3000, 4092])
@pytest.mark.parametrize("blocks", [1, 7, 8, 9, 16, 17, 100, 1024])
def test_all_forms_of_prps(d, offset, blocks):
    """One page, two, a list; beginning in a page; from a list in the middle of its page over several."""
    size = blocks * BLOCK
    count = (offset + size + PAGE - 1) // PAGE
    at = [0, 8, PAGE - 8 * (1 + count // 2), PAGE - 16][blocks % 4]
    pages = shuffled_pages(d, count)
    for opcode in (WRITE, READ):
        prp2 = 0 if count == 1 else pages[1] if count == 2 else prp_list(d, pages[1:], at)
        if opcode == WRITE:
            scatter(d, offset, pages, DATA[:size])
        else:
            scatter(d, 0, pages, b"\xee" * (count * PAGE))
        d.run(1, **io(opcode, 100, blocks, pages[0] + offset, prp2))
    assert gather(d, offset, pages, size) == DATA[:size]
    # Not a byte before or behind.
    assert d.get(pages[0], offset) == b"\xee" * offset
    rest = count * PAGE - offset - size
    assert d.get(pages[-1] + PAGE - rest, rest) == b"\xee" * rest


def test_a_prp_list_over_three_pages(d):
    pages = shuffled_pages(d, 128)
    scatter(d, 0, pages, DATA)
    # Of the first list page there is only the link left; an offset that spreads the rest needs no more.
    d.run(1, **io(WRITE, 0, 1024, pages[0], prp_list(d, pages[1:], PAGE - 8)))
    scatter(d, 0, pages, bytes(MAX_TRANSFER))
    d.run(1, **io(READ, 0, 1024, pages[0], prp_list(d, pages[1:], PAGE - 24)))
    assert gather(d, 0, pages, MAX_TRANSFER) == DATA


def test_data_across_regions_of_guest_memory(attach):
    """A page of the guest may consist of two regions, and a queue may, too."""
    d = attach(enable=False)
    half = GUEST_SIZE // 2 - 0x8000
    base = GUEST + (1 << 30)
    for start, size in ((0, half), (half, 0x10000)):
        d.client.map_dma(base + start, size, d.fd, start)
    d.enable()
    d.create_queues()
    d.put(GUEST + half - PAGE, DATA[:2 * PAGE])
    # The same memory, at its other address.
    at = base + half - PAGE
    d.run(1, **io(WRITE, 0, 16, at + 512, prp_list(d, [at + PAGE, at + 2 * PAGE])))
    assert d.read_blocks(0, 15) == DATA[512:2 * PAGE]


def test_a_queue_across_regions_of_guest_memory(attach):
    d = attach()
    base, size = GUEST + (1 << 30), 0x10000
    for start in range(0, size, PAGE):
        d.client.map_dma(base + start, PAGE, d.fd, GUEST_SIZE - size + start)
    cq = d.create_cq(1, 1024, address=base + 0x8000 - PAGE)
    sq = d.create_sq(1, 256, address=base + 0x4000 - PAGE)
    d.queues[1] = Queue(sq - base + GUEST + GUEST_SIZE - size, cq - base + GUEST + GUEST_SIZE - size, 256, 1024)
    d.put(d.queues[1].cq, bytes(1024 * 16))
    for n in range(600):
        d.run(1, **io(FLUSH, 0, 1))
        assert d.queues[1].head == n + 1


def test_a_queue_wraps_around_many_times(d):
    d.create_queues(2, size=3, cq_size=5)
    for n in range(50):
        d.write_blocks(n, bytes([n + 1]) * BLOCK, qid=2)
    assert d.read_blocks(0, 16) == b"".join(bytes([n + 1]) * BLOCK for n in range(16))


def test_many_commands_at_a_time(attach, backing, doorbells):
    """Batches: full queues, two of which share a completion queue."""
    d = attach(*backing, *doorbells)
    d.create_queues(1, size=512, cq_size=1024)
    d.queues[2] = Queue(d.create_sq(2, 512, cqid=1), None, 512)
    rng, model, left = random.Random(5), {}, {}
    pages = [d.alloc() for _ in range(64)]
    for turn in range(6):
        for page in pages:
            d.put(page, rng.randbytes(PAGE))
        for qid in (1, 2):
            for _ in range(400):
                slot, page = rng.randrange(500) * 2 + qid - 1, rng.choice(pages)
                left[d.submit(qid, ring=False, **io(WRITE, slot * 8, 8, page))] = qid
                model[slot] = d.get(page, PAGE)
            d.ring(qid)
        while left:
            entry = d.reap(1, ring=False)
            assert entry.status == 0 and left.pop(entry.cid) == entry.sqid
        d.write_doorbell(3, d.queues[1].head)
    d.create_queues(3)
    for slot, data in model.items():
        d.next = pages[0]
        assert d.read_blocks(slot * 8, 8, qid=3) == data


def test_flush(d):
    d.write_blocks(0, DATA[:BLOCK], flags=FUA)
    d.run(1, **io(FLUSH, 0, 1))
    d.run(1, **io(FLUSH, 0, 1, nsid=ALL))
    d.set_feature(6, 0)  # no volatile write cache
    d.write_blocks(1, DATA[BLOCK:PAGE])
    d.run(1, **io(WRITE_ZEROES, 3, 1))
    assert d.read_blocks(0, 8) == DATA[:3 * BLOCK] + bytes(BLOCK) + DATA[4 * BLOCK:PAGE]


def test_write_zeroes(d):
    d.write_blocks(0, DATA[:2 * PAGE])
    d.run(1, **io(WRITE_ZEROES, 3, 9))
    assert d.read_blocks(0, 16) == DATA[:3 * BLOCK] + bytes(9 * BLOCK) + DATA[12 * BLOCK:2 * PAGE]
    d.run(1, **io(WRITE_ZEROES, 0, 32768))  # all of it, more than a transfer may be
    assert d.read_blocks(0, 16) == bytes(2 * PAGE)
    assert status(d.run, 1, **io(WRITE_ZEROES, 1, 32768)) == OUT_OF_RANGE


def deallocate(d, ranges, ad=DEALLOCATE):
    at = d.alloc(2 * PAGE) + 100 * 4
    d.put(at, b"".join(struct.pack("<IIQ", 0, nlb, slba) for slba, nlb in ranges))
    d.run(1, opcode=DSM, nsid=1, prp1=at, prp2=at // PAGE * PAGE + PAGE, cdw10=len(ranges) - 1, cdw11=ad)


def test_deallocate(d):
    d.write_blocks(0, DATA[:2 * PAGE])
    deallocate(d, [(0, 1), (5, 0), (9, 2)], ad=0)
    assert d.read_blocks(0, 16) == DATA[:2 * PAGE]
    deallocate(d, [(0, 1), (5, 0), (9, 2)])
    assert d.read_blocks(0, 16) == \
        bytes(BLOCK) + DATA[BLOCK:9 * BLOCK] + bytes(2 * BLOCK) + DATA[11 * BLOCK:2 * PAGE]
    deallocate(d, [(n, 1) for n in range(256)])
    assert d.read_blocks(0, 16) == bytes(2 * PAGE)


def test_a_bad_range_deallocates_nothing(d):
    d.write_blocks(0, DATA[:PAGE])
    for bad in ((32768, 1), (32767, 2), (1 << 63, 1), ((1 << 64) - 1, ALL)):
        assert status(deallocate, d, [(0, 8), bad]) == OUT_OF_RANGE
    assert d.read_blocks(0, 8) == DATA[:PAGE]


def test_deallocating_gives_space_back(attach, tmp_path):
    d = attach("--size=16M", f"--file={tmp_path}/disk")
    d.create_queues()
    page = d.alloc(MAX_TRANSFER)
    d.put(page, DATA)
    d.run(1, **io(WRITE, 0, 1024, page, prp_list(d, range(page + PAGE, page + MAX_TRANSFER, PAGE))))
    used = os.stat(f"{tmp_path}/disk").st_blocks
    deallocate(d, [(0, 1024)])
    assert os.stat(f"{tmp_path}/disk").st_blocks <= used - 1024


def test_the_end_of_the_namespace(d):
    d.write_blocks(32767, DATA[:BLOCK])
    assert d.read_blocks(32767, 1) == DATA[:BLOCK]
    page = d.alloc(2 * PAGE)
    for opcode in (READ, WRITE):
        for slba, nlb in ((32768, 1), (32767, 2), (1 << 32, 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2), (1 << 55, 8)):
            assert status(d.run, 1, **io(opcode, slba, nlb, page, page + PAGE)) == OUT_OF_RANGE
        assert status(d.run, 1, **io(opcode, 0, 1025, page, page + PAGE)) == INVALID_FIELD
        assert status(d.run, 1, **io(opcode, 0, 65536, page, page + PAGE)) == INVALID_FIELD


def test_commands_that_do_not_exist(d):
    for opcode in (4, 5, 0xd, 0x80, 0xff):
        assert status(d.run, 1, opcode=opcode, nsid=1) == INVALID_OPCODE
    for nsid in (0, 2, ALL):
        assert status(d.run, 1, **io(READ, 0, 1, GUEST, nsid=nsid)) == INVALID_NAMESPACE
    assert status(d.run, 1, **io(FLUSH, 0, 1, nsid=2)) == INVALID_NAMESPACE
    for flags in (1, 2, 0x40, 0x80):
        fields = dict(io(READ, 0, 1, GUEST), flags=flags)
        assert status(d.run, 1, **fields) == INVALID_FIELD


def test_the_file_is_what_the_guest_wrote(attach, tmp_path):
    path = tmp_path / "disk"
    d = attach("--size=1M", f"--file={path}")
    d.create_queues()
    d.write_blocks(2047, DATA[:BLOCK])
    assert path.read_bytes() == bytes(2047 * BLOCK) + DATA[:BLOCK]
    d.close()
    d.device.end()
    # A file that exists gives the size, and keeps what is in it; another size cuts nothing off.
    for options, blocks in (((), 2048), (("--size=512K",), 1024), (("--size=2M",), 4096)):
        again = attach(f"--file={path}", *options)
        again.create_queues()
        assert struct.unpack_from("<Q", again.identify(0, 1)) == (blocks,)
        if blocks >= 2048:
            assert again.read_blocks(2047, 1) == DATA[:BLOCK]
    assert path.stat().st_size == 2 << 20


def test_a_readonly_namespace(attach, tmp_path, doorbells):
    path = tmp_path / "disk"
    path.write_bytes(DATA)
    path.chmod(0o444)
    d = attach("--readonly", f"--file={path}", *doorbells)
    d.create_queues()
    assert d.identify(0, 1)[99] == 1
    assert d.read_blocks(8, 8) == DATA[PAGE:2 * PAGE]
    assert status(d.write_blocks, 8, bytes(PAGE)) == WRITE_PROTECTED
    assert status(d.run, 1, **io(WRITE_ZEROES, 0, 8)) == WRITE_PROTECTED
    assert status(deallocate, d, [(0, 8)]) == WRITE_PROTECTED
    d.run(1, **io(FLUSH, 0, 1))
    assert path.read_bytes() == DATA


def test_readonly_memory(attach):
    d = attach("--readonly")
    d.create_queues()
    assert status(d.write_blocks, 0, DATA[:BLOCK]) == WRITE_PROTECTED
    assert d.read_blocks(0, 1) == bytes(BLOCK)


def test_a_file_that_cannot_be_written(attach, tmp_path):
    """A full disk is an error of the medium; so is a file that has been cut short."""
    path = tmp_path / "disk"
    d = attach("--size=1M", f"--file={path}")
    d.create_queues()
    pid = d.device.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    assert status(d.write_blocks, 0, DATA[:PAGE]) == WRITE_FAULT
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    d.write_blocks(0, DATA[:PAGE])
    os.truncate(path, 2000)
    assert status(d.read_blocks, 0, 8) == READ_ERROR
    assert d.read_blocks(0, 3) == DATA[:3 * BLOCK]
    smart = d.get_log(2, 512)
    assert struct.unpack_from("<Q", smart, 160) == (2,)
