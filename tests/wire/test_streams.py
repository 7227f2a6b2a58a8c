"""Long streams of requests of all sizes, in pieces, with descriptors: each gets its own, and its answer, in order.

What is sent, when the context runs and when the client reads is random; the model is a few dictionaries.
"""
import array
import random

import pytest
from peer import *

BAR, SIZE = 0, 1 << 20
VECTORS = 8
REQUESTS = 300


class Stream:
    """Requests, in pieces with descriptors, and what comes of them."""

    def __init__(self, rng):
        self.rng = rng
        self.pieces, self.rest = [], b""
        self.answers, self.registered = [], []
        self.memory, self.mapped, self.vectors = bytearray(SIZE), {}, {}
        self.opened = []
        for number in range(REQUESTS):
            rng.choice([self.map, self.map, self.map_messages, self.unmap, self.irqs, self.irqs, self.read, self.read,
                        self.write, self.write, self.posted, self.info, self.unknown, self.refused])(number)
        self.cut()

    def cut(self):
        if self.rest:
            self.pieces.append((self.rest, []))
            self.rest = b""

    def put(self, data, fds=()):
        """Descriptors go with a message's first byte, and a piece of their own begins there."""
        if fds:
            self.cut()
            first = self.rng.choice([1, 2, 15, 16, 17, 20, len(data) - 1, len(data)])
            self.pieces.append((data[:first], list(fds)))
            data = data[first:]
        self.rest += data
        while len(self.rest) > 1 and self.rng.random() < 0.4:
            first = self.rng.randrange(1, len(self.rest))
            self.pieces.append((self.rest[:first], []))
            self.rest = self.rest[first:]
        if self.rng.random() < 0.4:
            self.cut()

    def answer(self, number, cmd, payload=b""):
        self.answers.append(message(number, cmd, payload, F_REPLY))

    def error(self, number, cmd):
        self.answers.append(header(number, cmd, 16, F_REPLY | F_ERROR, errno.EINVAL))

    def open(self, fd):
        self.opened.append(fd)
        return fd

    def size(self):
        at_most = self.rng.choice([0, 1, 7, 300, 4200, 70_000, 70_000, SIZE])
        return self.rng.randint(at_most // 2, at_most)

    def map(self, number):
        content = b"%08d" % number
        others = [self.open(memfd(PAGE, b"surplus!")) for _ in range(self.rng.choice([0, 0, 0, 1, 7]))]
        self.put(dma_map(number, number * PAGE, PAGE), [self.open(memfd(PAGE, content)), *others])
        self.mapped[number * PAGE] = content
        self.registered.append((number * PAGE, content))
        self.answer(number, DMA_MAP)

    def map_messages(self, number):
        self.put(dma_map(number, number * PAGE, PAGE))
        self.mapped[number * PAGE] = None
        self.registered.append((number * PAGE, None))
        self.answer(number, DMA_MAP)

    def unmap(self, number):
        if self.mapped:
            iova = self.rng.choice(list(self.mapped))
            del self.mapped[iova]
            payload = struct.pack("<IIQQ", 24, 0, iova, PAGE)
            self.put(message(number, DMA_UNMAP, payload))
            self.answer(number, DMA_UNMAP, payload)

    def irqs(self, number):
        start = self.rng.randrange(VECTORS)
        fds = [self.open(eventfd()) for _ in range(self.rng.randint(1, VECTORS - start))]
        head = struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, start, len(fds))
        self.put(message(number, SET_IRQS, head), fds)
        self.vectors.update(zip(range(start, VECTORS), fds))
        self.answer(number, SET_IRQS)

    def read(self, number):
        size = self.size()
        offset = self.rng.randint(0, SIZE - size)
        self.put(region_read(number, BAR, offset, size))
        self.answer(number, REGION_READ, struct.pack("<QII", offset, BAR, size) + self.memory[offset:offset + size])

    def write(self, number, flags=0):
        size = self.size()
        offset = self.rng.randint(0, SIZE - size)
        data = self.memory[offset:offset + size] = self.rng.randbytes(size)
        self.put(region_write(number, BAR, offset, data, flags))
        if not flags:
            self.answer(number, REGION_WRITE, struct.pack("<QII", offset, BAR, size))

    def posted(self, number):
        self.write(number, F_NO_REPLY)

    def info(self, number):
        self.put(info(number))
        self.answer(number, GET_INFO, INFO_REPLY)

    def unknown(self, number):
        self.put(message(number, 99, bytes(self.rng.choice([1, 40, 5000]))))
        self.error(number, 99)

    def refused(self, number):
        """For its header: what follows is dropped."""
        self.put(message(number, DMA_MAP, bytes(self.rng.choice([1, 40, 5000, 70_000])), F_REPLY))
        self.error(number, DMA_MAP)


def send(sock, pieces):
    """As much of the first piece as there is room for; whether that was anything."""
    data, fds = pieces[0]
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        count = sock.sendmsg([data], control)
    except BlockingIOError:
        return False
    pieces[:1] = [] if count == len(data) else [(data[count:], [])]
    return True


def run(ctx, rng, is_pending):
    """One call; whether the device is asked to be quiet, and takes its time."""
    if is_pending:
        fails(errno.EBUSY, ctx.run)
        if rng.random() < 0.5:
            return True
        ctx.quiesced()
        return False
    ctx.quiesce_errno = rng.choice([0, 0, errno.EBUSY])
    try:
        ctx.run()
    except Failed as e:
        assert e.errno == errno.EBUSY
        return True
    return False


def exchange(ctx, client, rng, pieces):
    """Sends all pieces, and returns all that was answered, until there is nothing left to do."""
    pieces, answers = list(pieces), bytearray()
    is_pending, idle = False, 0
    while idle < 100:
        idle += 1
        match rng.randrange(3):
            case 0:
                for _ in range(rng.choice([1, 5, 50])):
                    if pieces and send(client.sock, pieces):
                        idle = 0
            case 1 if is_pending or ctx.readable():
                is_pending, idle = run(ctx, rng, is_pending), 0
            case 2 if rng.random() < 0.5:
                for _ in range(rng.choice([1, 100])):
                    try:
                        answers += client.sock.recv(rng.choice([1, 100, 1 << 20]))
                        idle = 0
                    except BlockingIOError:
                        break
    assert not pieces and not is_pending
    return bytes(answers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("caps", [None, {"twin_socket": {"supported": True}}], ids=["one socket", "twin socket"])
@pytest.mark.parametrize("room", [None, 4096], ids=["", "little room"])
def test_every_request_gets_its_descriptors_and_its_answer(seed, caps, room):
    rng = random.Random(f"{seed} {caps} {room}")
    with Ctx(dma=True, quiesce=True, realize=False, max_regions=REQUESTS) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, VECTORS)
        ctx.realize()
        ctx.memory_region(BAR, SIZE)
        registered = []
        ctx.on_dma_register = lambda i: registered.append((i.iova.base or 0, c.string_at(i.vaddr, 8) if i.vaddr else None))
        client = ctx.connect(caps=caps)
        if room:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        client.sock.setblocking(False)
        assert not ctx.readable()
        before = len(open_fds())
        stream = Stream(rng)
        assert exchange(ctx, client, rng, stream.pieces) == b"".join(stream.answers)
        assert registered == stream.registered
        for iova, content in stream.mapped.items():
            _, sg = ctx.sgl(iova, 8)
            assert lib.vfu_sg_is_mappable(ctx.p, sg) == (content is not None)
            assert content is None or c.string_at(ctx.sgl_get(sg)[0].base, 8) == content
        for vector, fd in stream.vectors.items():
            call("vfu_irq_trigger", ctx.p, vector)
            assert os.read(fd, 8) == struct.pack("<Q", 1)
        for fd in stream.opened:
            os.close(fd)
        files = [content for content in stream.mapped.values() if content is not None]
        assert len(open_fds()) == before + len(files) + len(stream.vectors)
        client.close()
