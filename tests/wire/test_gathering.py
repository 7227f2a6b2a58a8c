"""Which message descriptors belong to, when several are gathered into one send; and how many may wait."""
import itertools
import resource
import pytest
from peer import *

BASE = 0x100000
TWIN = {"twin_socket": {"supported": True}}
VECTORS = 8


class Info:
    """A plain request, which carries no descriptors."""
    fds, may_carry = [], False

    def __init__(self, place):
        self.data = info(place)

    def check(self, ctx, reply, fds):
        assert is_info(reply, reply.msg_id) and fds == []


class Map:
    """A region of memory with a file, or reached by messages."""
    may_carry = True

    def __init__(self, place, with_file=True):
        self.addr = place * PAGE
        self.data = dma_map(place, self.addr, PAGE)
        self.fds = [memfd(PAGE, b"file %d" % place)] if with_file else []

    def check(self, ctx, reply, fds):
        assert reply.raw == header(reply.msg_id, DMA_MAP, 16, F_REPLY)
        sg = ctx.sgl(self.addr, 6)[1]
        assert lib.vfu_sg_is_mappable(ctx.p, sg) == bool(fds)
        if fds:
            assert c.string_at(ctx.sgl_get(sg)[0].base, 6) == os.pread(fds[0], 6, 0)


class MapWithout(Map):
    def __init__(self, place):
        super().__init__(place, False)


class SetEventfds:
    """Two vectors of its own, with eventfds."""
    may_carry = True

    def __init__(self, place):
        self.vector = 2 * place
        self.data = message(place, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX,
                                                         self.vector, 2))
        self.fds = [eventfd(), eventfd()]

    def check(self, ctx, reply, fds):
        assert reply.raw == header(reply.msg_id, SET_IRQS, 16, F_REPLY)
        for i in range(2):
            if fds:
                call("vfu_irq_trigger", ctx.p, self.vector + i)
                assert os.read(fds[i], 8) == struct.pack("<Q", 1)
            else:
                fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, self.vector + i)


class ClearEventfds(SetEventfds):
    def __init__(self, place):
        super().__init__(place)
        close_all(self.fds)
        self.fds = []


KINDS = [Info, Map, MapWithout, SetEventfds, ClearEventfds]


def close_all(fds):
    for fd in fds:
        os.close(fd)


@pytest.fixture
def ctx():
    with Ctx(dma=True, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, MSIX, VECTORS)
        ctx.realize()
        yield ctx


def gatherings(messages):
    """Every way to send them: one with descriptors starts a send. Left out is where a message that may carry some,
    and has none, comes in a send behind one that has: nobody can tell there."""
    for joined in itertools.product([False, True], repeat=len(messages) - 1):
        sends = [[messages[0]]]
        for message, join in zip(messages[1:], joined):
            if not join:
                sends.append([message])
            elif message.fds or message.may_carry and any(m.fds for m in sends[-1]):
                break
            else:
                sends[-1].append(message)
        else:
            yield [(b"".join(m.data for m in send), send[0].fds) for send in sends]


def every_case():
    """Messages and the way to send them. Places start at 1: identifier, address and vectors."""
    for kinds in itertools.product(KINDS, repeat=3):
        messages = [kind(place) for place, kind in enumerate(kinds)]
        for sends in gatherings(messages):
            yield messages, sends
        for m in messages:
            close_all(m.fds)


def forget(client):
    """Takes regions and eventfds away."""
    client.request(DMA_UNMAP, struct.pack("<IIQQ", 24, UNMAP_ALL, 0, 0))
    client.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 0, 0)


def run_all(ctx, count):
    done = 0
    while done < count:
        assert ctx.readable()
        done += ctx.run()
    assert done == count


def test_every_gathering_of_three_messages(ctx):
    with ctx.connect() as client:
        ctx.poll_fd()
        before = open_fds()
        for messages, sends in every_case():
            for data, fds in sends:
                client.send_raw(data, fds)
            run_all(ctx, 3)
            for m in messages:
                m.check(ctx, client.recv(), m.fds)
            forget(client)
        assert open_fds() == before


@pytest.mark.parametrize("caps", [None, TWIN], ids=["one socket", "twin socket"])
def test_every_gathering_that_crosses_a_dma_message(ctx, caps):
    """Sent while the server waits for the answer to a command of its own."""
    with ctx.connect(caps=caps) as client:
        dma = client.twin or client.sock
        for messages, sends in every_case():
            client.map(BASE, PAGE)
            sg = ctx.sgl(BASE, 8)[1]

            def serve():
                m = client.recv(dma)
                for data, fds in sends:
                    client.send_raw(data, fds)
                client.send_raw(header(m.msg_id, m.cmd, 40, F_REPLY) + m.payload[:16] + b"12345678", sock=dma)
            server = Background(serve)
            buf = c.create_string_buffer(8)
            call("vfu_sgl_read", ctx.p, sg, 1, buf, 0)
            server.result()
            assert buf.raw == b"12345678"
            run_all(ctx, 3)
            for m in messages:
                m.check(ctx, client.recv(), m.fds)
            forget(client)


def test_descriptors_on_the_twin_socket_are_nobodys(ctx):
    """Neither those of a command, which has no place there, nor those of an answer."""
    with ctx.connect(caps=TWIN) as client:
        client.map(BASE, PAGE)
        sg = ctx.sgl(BASE, 8)[1]
        before = open_fds()
        for cmd in (DMA_MAP, SET_IRQS, DMA_READ):
            def serve():
                m = client.recv(client.twin)
                fd = memfd(PAGE)
                client.send_raw(header(m.msg_id, cmd, 48, F_REPLY if cmd == DMA_READ else 0) + m.payload[:16] +
                                struct.pack("<QQ", 4, 0), [fd], sock=client.twin)
                os.close(fd)
            server = Background(serve)
            fails(errno.EINVAL, call, "vfu_sgl_read", ctx.p, sg, 1, c.create_string_buffer(8), 0)
            server.result()
        assert open_fds() == before
        alive(client)


def test_set_irqs_and_a_request_gathered_into_one_send(ctx):
    """A client that saves a system call: the eventfd arrives, and nothing claims so that is not true."""
    with ctx.connect() as client:
        setting = SetEventfds(0)
        client.send_raw(setting.data + info(7), setting.fds)
        assert ctx.run_to(2)
        setting.check(ctx, client.recv(), setting.fds)
        assert is_info(client.recv(), 7)
        close_all(setting.fds)


@pytest.mark.parametrize("part", range(1, 36))
def test_a_map_waits_for_what_tells_whose_the_descriptors_are(ctx, part):
    """Its send ends in a part of SET_IRQS, which could have them as well; until the flags have come."""
    with ctx.connect() as client:
        mapping, trigger = Map(1), message(2, SET_IRQS, struct.pack("<IIIII", 20, DATA_NONE | ACTION_MASK, MSIX, 0, 1))
        client.send_raw(mapping.data + trigger[:part], mapping.fds)
        told = part >= 24
        assert ctx.run() == told
        assert not ctx.readable()
        client.send_raw(trigger[part:])
        assert ctx.run_to(2 - told)
        mapping.check(ctx, client.recv(), mapping.fds)
        assert client.recv().raw == header(2, SET_IRQS, 16, F_REPLY)
        close_all(mapping.fds)


# --- how many may wait --------------------------------------------------------------------------

def limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("bare", [8, 16, 40])
def test_a_message_that_is_never_whole_leaves_descriptors_to_others(ctx, bare):
    """So many bytes of it, each with as many descriptors as a send takes: the process can still take on a client of
    another context, and that client's descriptors."""
    fd = memfd(PAGE, b"file 1")
    with Room(700), ctx.connect() as client, Ctx(dma=True) as other:
        before = open_fds()
        data = dma_map(1, BASE, PAGE)
        for i in range(bare):
            client.send_raw(data[i:i + 1], [fd] * 253)
            assert ctx.run() == 0
            assert len(open_fds()) <= len(before) + 253
        with other.connect(caps=TWIN) as second:
            mapping = Map(1)
            second.send_raw(mapping.data, mapping.fds)
            assert other.run() == 1
            mapping.check(other, second.recv(), mapping.fds)
            close_all(mapping.fds)
        client.send_raw(data[bare:])
        assert ctx.run() == 0
        assert is_error(client.recv(), 1, DMA_MAP, errno.EMFILE)
        alive(client)
    os.close(fd)


@pytest.mark.parametrize("free", [20, 60, 200])
def test_near_the_limit_of_the_process_fewer_may_wait(ctx, free):
    fd = memfd(PAGE)
    data = dma_map(1, BASE, PAGE)
    with ctx.connect() as client:
        before = open_fds()
        with Ctx() as other:
            client.send_raw(data[:20], [fd] * min(free, 253))
            with Room(free):
                assert ctx.run() == 0
                with other.connect(caps=TWIN) as second:
                    alive(second)
        waiting = len(open_fds()) - len(before)
        assert waiting <= free - 12
        client.send_raw(data[20:])
        assert ctx.run() == 0
        assert is_error(client.recv(), 1, DMA_MAP, errno.EMFILE)
        assert open_fds() == before
        alive(client)
    os.close(fd)


def test_one_whole_array_may_wait(ctx):
    events = [eventfd() for _ in range(253)]
    with Room(1000), Ctx(realize=False) as device:
        call("vfu_setup_device_nr_irqs", device.p, MSIX, 253)
        device.realize()
        with device.connect() as client:
            data = message(1, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, 253))
            client.send_raw(data[:30], events)
            assert device.run() == 0
            client.send_raw(data[30:])
            assert device.run() == 1
            assert client.recv().flags == F_REPLY
            call("vfu_irq_trigger", device.p, 252)
            assert os.read(events[252], 8) == struct.pack("<Q", 1)
    close_all(events)


def test_descriptors_of_whole_messages_do_not_pile_up(ctx):
    """They are executed, some a call, before more are received."""
    fd = memfd(PAGE)
    with Room(1500), ctx.connect() as client:
        ctx.poll_fd()
        before = open_fds()
        burst = b"".join(info(i) for i in range(500))
        for _ in range(3):
            client.send_raw(burst)
            client.send_raw(info(999), [fd] * 253)
        executed = 0
        while executed < 3 * 501:
            assert ctx.readable()
            executed += ctx.run()
            assert len(open_fds()) <= len(before) + 253
            while not client.nothing():
                client.recv()
        assert open_fds() == before
        alive(client)
    os.close(fd)


def test_a_long_message_in_bytes_with_a_descriptor_each_keeps_memory_constant(ctx):
    """What is kept for it does not grow by the byte."""
    from guest import resident
    fd = memfd(PAGE)
    with ctx.connect() as client:
        client.send_raw(region_write(1, BAR0, 0, bytes(60000))[:100])
        ctx.run()

        def dribble(count):
            for _ in range(count):
                client.send_raw(b"x", [fd])
                assert ctx.run() == 0
        dribble(1000)
        before, memory = open_fds(), resident()
        dribble(20000)
        assert open_fds() == before
        assert resident() - memory < 64 << 10
    os.close(fd)
