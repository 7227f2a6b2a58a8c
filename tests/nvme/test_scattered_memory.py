"""Memory as it is behind an IOMMU of the guest's: each page is a region of its own, wherever it lies in the client's."""
import random

import pytest

from driver import *
from peer import *

IOVA = 0xff000000 << 8  # of the guest's pages, one after the other
PAGES = 700


@pytest.fixture
def scattered(attach, doorbells):
    """A driver; iova(n): the address for the device of the n-th of some pages, place(n): that for the driver."""
    d = attach(*doorbells, enable=False)
    pages = list(range(1000, 1000 + PAGES))
    random.Random(1).shuffle(pages)
    for n, page in enumerate(pages):
        d.client.map_dma(IOVA + n * PAGE, PAGE, d.fd, page * PAGE)
    d.iova = lambda n: IOVA + n * PAGE
    d.place = lambda n: GUEST + pages[n] * PAGE
    return d


def scatter(d, first, data):
    for n in range(0, len(data), PAGE):
        d.put(d.place(first + n // PAGE), data[n:n + PAGE])


def gather(d, first, size):
    return b"".join(d.get(d.place(first + n), PAGE) for n in range((size + PAGE - 1) // PAGE))[:size]


def test_queues_prp_lists_and_data(scattered):
    d = scattered
    d.enable()
    # As Linux has them: 1024 entries, 16 and 4 pages.
    d.admin(CREATE_CQ, prp1=d.iova(0), cdw10=1023 << 16 | 1, cdw11=1 << 16 | 3)
    d.admin(CREATE_SQ, prp1=d.iova(4), cdw10=1023 << 16 | 1, cdw11=1 << 16 | 1)
    scatter(d, 0, bytes(4 * PAGE))
    data = random.Random(2).randbytes(MAX_TRANSFER)
    scatter(d, 100, data)
    # Not aligned: 129 pages of data, and the list reaches over the end of its first page.
    entries = [d.iova(100 + n) for n in range(1, 129)]
    scatter(d, 30, bytes(PAGE - 64) + struct.pack("<7Q", *entries[:7]) + struct.pack("<Q", d.iova(31)) + struct.pack("<121Q", *entries[7:]))
    scatter(d, 300, bytes(MAX_TRANSFER))
    entries = [d.iova(300 + n) for n in range(1, 128)]
    scatter(d, 40, struct.pack("<127Q", *entries))
    tail, head = 0, 0

    def run(**fields):
        nonlocal tail, head
        d.put(d.place(4 + tail * 64 // PAGE) + tail * 64 % PAGE, command(cid=tail, **fields))
        tail = (tail + 1) % 1024
        d.write_doorbell(2, tail)
        guard = time.monotonic() + GUARD
        at = d.place(head * 16 // PAGE) + head * 16 % PAGE
        while not (entry := Completion(d.get(at, 16))).phase:
            assert time.monotonic() < guard, "no completion comes"
            os.sched_yield()
        assert (entry.cid, entry.sq_head, entry.status) == (tail - 1, tail, 0)
        head += 1
        d.write_doorbell(3, head)

    run(**io(WRITE, 0, 1024 - 1, d.iova(100) + 512, d.iova(31) - 64))
    run(**io(READ, 0, 1024 - 1, d.iova(300), d.iova(40)))
    assert gather(d, 300, MAX_TRANSFER - 512) == data[512:]
    # All of both queues: 16 pages of commands, most of a completion queue.
    while tail < 1000:
        run(**io(FLUSH, 0, 1))
    run(**io(READ, 5, 8, d.iova(500) + 0x200, d.iova(501)))
    assert gather(d, 500, 2 * PAGE)[512:512 + PAGE] == data[512 + 5 * 512:512 + 5 * 512 + PAGE]


@pytest.mark.parametrize("entries", [32, 1024, 4096])
def test_admin_queues(scattered, entries):
    d = scattered
    d.client.write_u32(AQA, (entries - 1) << 16 | (entries - 1))
    d.write_u64(ASQ, d.iova(0)), d.write_u64(ACQ, d.iova(100))
    d.client.write_u32(CC, EN | IOSQES | IOCQES)
    assert d.csts() == RDY
    for tail in range(1, 70):
        d.put(d.place((tail - 1) * 64 // PAGE) + (tail - 1) * 64 % PAGE, command(IDENTIFY, 0, d.iova(600) + 0x800, d.iova(601), 1, cid=tail))
        if tail < entries:
            d.write_doorbell(0, tail)
            d.settle()
    assert d.csts() == RDY
    id = gather(d, 600, 2 * PAGE)[0x800:0x800 + PAGE]
    assert struct.unpack_from("<I", id, 80) == (0x10400,)
