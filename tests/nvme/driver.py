"""An NVMe driver in small: guest memory, queues in it, and the commands that go there.

Structures and numbers are written down again, from the specification.
"""
import errno
import mmap
import os
import select
import struct
import time

from peer import *

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0, 8, 0xc, 0x10, 0x14, 0x1c, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
EN, IOSQES, IOCQES = 1, 6 << 16, 4 << 20
SHN_NORMAL, SHN_ABRUPT = 1 << 14, 2 << 14
RDY, CFS, SHST, SHST_DONE = 1, 2, 12, 8

DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, AER = \
    0, 1, 2, 4, 5, 6, 8, 9, 10, 12
FLUSH, WRITE, READ, WRITE_ZEROES, DSM = 0, 1, 2, 8, 9
FUA, DEALLOCATE = 1 << 30, 4
ALL = 0xffffffff

SUCCESS, INVALID_OPCODE, INVALID_FIELD, TRANSFER_ERROR, ABORTED = 0, 1, 2, 4, 7
INVALID_NAMESPACE, SEQUENCE_ERROR, INVALID_PRP_OFFSET, WRITE_PROTECTED, OUT_OF_RANGE = 0xb, 0xc, 0x13, 0x20, 0x80
INVALID_CQ, INVALID_QID, INVALID_QUEUE_SIZE, TOO_MANY_AERS, INVALID_VECTOR = 0x100, 0x101, 0x102, 0x105, 0x108
INVALID_LOG_PAGE, INVALID_DELETION, NOT_SAVEABLE, WRITE_FAULT, READ_ERROR = 0x109, 0x10c, 0x10d, 0x280, 0x281

BLOCK, PAGE = 512, 4096
MAX_TRANSFER = 512 * 1024
NR_QUEUES = NR_VECTORS = 33
GUEST = 0x10000000
GUEST_SIZE = 16 << 20
GUARD = 60  # seconds after which something that must happen is taken to never happen


class Failed(Exception):
    """A command completed with a status."""

    def __init__(self, status):
        super().__init__(hex(status))
        self.status = status


class Completion:
    def __init__(self, data):
        self.result, _, self.sq_head, self.sqid, self.cid, field = struct.unpack("<IIHHHH", data)
        self.phase = field & 1
        self.status = field >> 1 & 0x7ff
        self.more, self.dnr = field >> 14 & 1, field >> 15


class Queue:
    """A submission queue and its completion queue."""

    def __init__(self, sq, cq, size, cq_size=None):
        self.sq, self.cq = sq, cq
        self.size, self.cq_size = size, cq_size or size
        self.tail = self.head = 0
        self.phase = 1


def command(opcode, nsid=0, prp1=0, prp2=0, cdw10=0, cdw11=0, cdw12=0, cdw13=0, cid=0, flags=0):
    return struct.pack("<BBHIIIQQQIIIIII", opcode, flags, cid, nsid, 0, 0, 0, prp1, prp2,
                       cdw10, cdw11, cdw12, cdw13, 0, 0)


def io(opcode, slba, nlb, prp1=0, prp2=0, flags=0, nsid=1):
    return dict(opcode=opcode, nsid=nsid, prp1=prp1, prp2=prp2, cdw10=slba & ALL, cdw11=slba >> 32, cdw12=nlb - 1 | flags)


class Driver:
    def __init__(self, device, enable=True, memory=None, entries=32):
        self.device = device
        self.client = Client(device)
        self.fd = os.memfd_create("guest") if memory is None else os.dup(memory)
        os.ftruncate(self.fd, GUEST_SIZE)
        self.memory = mmap.mmap(self.fd, GUEST_SIZE)
        self.client.map_dma(GUEST, GUEST_SIZE, self.fd)
        self.events = [self.client.assign_irq(MSIX, v) for v in range(3)]
        self.descriptors = [*self.events, self.fd]
        self.map_doorbells()
        self.next = GUEST
        self.cid = 0
        self.queues = {}
        self.entries = entries
        if enable:
            self.enable()

    def map_doorbells(self):
        """The page of doorbells, if the device lets us have it."""
        reply = self.client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, BAR0, 0, 0, 0))
        self.doorbells = None
        if self.client.fds:
            [fd] = self.client.fds
            size, offset = struct.unpack_from("<QQ", reply, 16)
            self.doorbells = mmap.mmap(fd, PAGE, offset=offset + DOORBELLS)
            os.close(fd)

    def close(self):
        self.client.close()
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    # Guest memory.

    def alloc(self, size=PAGE):
        address = self.next
        self.next += (size + PAGE - 1) // PAGE * PAGE
        assert self.next <= GUEST + GUEST_SIZE
        return address

    def put(self, address, data):
        self.memory[address - GUEST:address - GUEST + len(data)] = data

    def get(self, address, size):
        return self.memory[address - GUEST:address - GUEST + size]

    # Registers.

    def csts(self):
        return self.client.read_u32(CSTS)

    def settle(self):
        """Until the device has looked at all that it has been told: it works between two requests."""
        self.csts()
        self.csts()

    def write_u64(self, offset, value):
        self.client.write(BAR0, offset, struct.pack("<Q", value))

    def enable(self, cc=EN | IOSQES | IOCQES):
        n = self.entries
        self.queues = {0: Queue(self.alloc(n * 64), self.alloc(n * 16), n)}
        self.put(self.queues[0].cq, bytes(n * 16))
        self.client.write_u32(AQA, (n - 1) << 16 | (n - 1))
        self.write_u64(ASQ, self.queues[0].sq)
        self.write_u64(ACQ, self.queues[0].cq)
        self.client.write_u32(CC, cc)
        assert self.csts() == RDY

    def write_doorbell(self, index, value):
        if self.doorbells is None:
            self.client.write_u32(DOORBELLS + 4 * index, value)
        else:
            self.doorbells[4 * index:4 * index + 4] = struct.pack("<I", value)

    # Queues.

    def submit(self, qid, *, ring=True, **fields):
        """Puts a command in a queue; returns its id."""
        queue = self.queues[qid]
        if "cid" not in fields:
            self.cid = fields["cid"] = (self.cid + 1) & 0xffff
        self.put(queue.sq + queue.tail * 64, command(**fields))
        queue.tail = (queue.tail + 1) % queue.size
        if ring:
            self.ring(qid)
        return fields["cid"]

    def ring(self, qid):
        self.write_doorbell(2 * qid, self.queues[qid].tail)

    def peek(self, qid):
        """The next completion, if there is one."""
        queue = self.queues[qid]
        entry = Completion(self.get(queue.cq + queue.head * 16, 16))
        return entry if entry.phase == queue.phase else None

    def reap(self, qid, ring=True):
        """The next completion, waited for."""
        queue, guard = self.queues[qid], time.monotonic() + GUARD
        while (entry := self.peek(qid)) is None:
            assert self.device.process.poll() is None, "the server has ended"
            assert time.monotonic() < guard, "no completion comes"
            os.sched_yield()
        queue.head += 1
        if queue.head == queue.cq_size:
            queue.head, queue.phase = 0, queue.phase ^ 1
        if ring:
            self.write_doorbell(2 * qid + 1, queue.head)
        return entry

    def run(self, qid, **fields):
        """A command from beginning to end; its result."""
        cid = self.submit(qid, **fields)
        entry = self.reap(qid)
        assert (entry.cid, entry.sqid, entry.sq_head) == (cid, qid, self.queues[qid].tail)
        if entry.status:
            raise Failed(entry.status)
        return entry.result

    def admin(self, opcode, **fields):
        return self.run(0, opcode=opcode, **fields)

    def create_cq(self, qid=1, size=32, vector=1, interrupts=True, address=None, flags=1):
        address = address or self.alloc(size * 16)
        if GUEST <= address and address + size * 16 <= GUEST + GUEST_SIZE:
            self.put(address, bytes(size * 16))
        self.admin(CREATE_CQ, prp1=address, cdw10=(size - 1) << 16 | qid,
                   cdw11=vector << 16 | interrupts << 1 | flags)
        return address

    def create_sq(self, qid=1, size=32, cqid=1, address=None, flags=1):
        address = address or self.alloc(size * 64)
        self.admin(CREATE_SQ, prp1=address, cdw10=(size - 1) << 16 | qid, cdw11=cqid << 16 | flags)
        return address

    def create_queues(self, qid=1, size=32, cq_size=None, **arguments):
        cq = self.create_cq(qid, cq_size or size, **arguments)
        self.queues[qid] = Queue(self.create_sq(qid, size, qid), cq, size, cq_size)
        return qid

    # What is asked for most.

    def identify(self, cns, nsid=0, prp1=None):
        page = prp1 or self.alloc()
        self.admin(IDENTIFY, nsid=nsid, prp1=page, cdw10=cns)
        return self.get(page, PAGE)

    def get_log(self, lid, size, offset=0, retain=False, nsid=ALL):
        page = self.alloc(max(size, PAGE))
        self.put(page, b"\xee" * size)
        numd = size // 4 - 1
        self.admin(GET_LOG, nsid=nsid, prp1=page, prp2=page + PAGE,
                   cdw10=lid | retain << 15 | (numd & 0xffff) << 16, cdw11=numd >> 16,
                   cdw12=offset & ALL, cdw13=offset >> 32)
        return self.get(page, size)

    def set_feature(self, fid, value, **fields):
        return self.admin(SET_FEATURES, cdw10=fid, cdw11=value, **fields)

    def get_feature(self, fid, value=0):
        return self.admin(GET_FEATURES, cdw10=fid, cdw11=value)

    def write_blocks(self, slba, data, qid=1, flags=0):
        """At most two pages."""
        page = self.alloc(len(data))
        self.put(page, data)
        self.run(qid, **io(WRITE, slba, len(data) // BLOCK, page, page + PAGE, flags))

    def read_blocks(self, slba, count, qid=1):
        page = self.alloc(count * BLOCK)
        self.put(page, b"\xee" * (count * BLOCK))
        self.run(qid, **io(READ, slba, count, page, page + PAGE))
        return self.get(page, count * BLOCK)


def status(f, *args, **arguments):
    """The status that a command fails with."""
    try:
        f(*args, **arguments)
    except Failed as e:
        return e.status
    raise AssertionError("it succeeded")
