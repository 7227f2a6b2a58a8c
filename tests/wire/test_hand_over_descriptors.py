"""Live upgrade: descriptors that are many, and those whose message has not come, or was not executed yet."""
import errno
import os
import struct

import pytest
from dma_peer import BASE, attach, contents, good, peer, read
from hand_over import device, taking_over
from libvfu import *
from stranger import *

# What one message takes, less than half of what these devices have.
MANY = 300
SCM_MAX_FD = 253


def counted(events):
    """Which eventfds were signalled, and how often each; they are at 0 then."""
    counts = {}
    for n, event in enumerate(events):
        try:
            counts[n] = os.eventfd_read(event)
        except BlockingIOError:
            pass
    return counts


# --- more than one message takes ---------------------------------------------------

def name_of(n):
    return f"memory {n}".encode()


def with_many(old):
    """A client with memory of many files and with many eventfds."""
    client = old.connect()
    for n in range(MANY):
        fd = memfd(PAGE, name_of(n))
        client.map(n * PAGE, PAGE, fd)
        os.close(fd)
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(MANY)]
    for start in range(0, MANY, 100):
        client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, start, 100, fds=events[start:start + 100])
    return client, events


MANY_OF_EACH = dict(dma=True, irqs=MANY, max_regions=MANY)


def each_is_its_own(ctx, events):
    for n in range(MANY):
        _, sg = ctx.sgl(n * PAGE, 16)
        iov = ctx.sgl_get(sg)
        assert c.string_at(iov[0].base, 16).rstrip(b"\0") == name_of(n)
        ctx.sgl_put(sg)
        call("vfux_irq_trigger", ctx.p, MSIX, n)
        assert counted(events) == {n: 1}


def test_files_and_eventfds_of_several_messages():
    with device(**MANY_OF_EACH) as old:
        client, events = with_many(old)
        before = len(open_fds())
        for _ in range(2):
            new = old.upgrade(client)
            each_is_its_own(new, events)
        assert len(open_fds()) == before
        client.close()
        for event in events:
            os.close(event)


def test_they_come_in_their_order_and_go_with_who_does_not_take_them():
    with device(**MANY_OF_EACH) as old:
        client, events = with_many(old)
        before = len(open_fds())
        stranger = Stranger(old)
        stranger.say(HELLO)
        assert old.hand_over() == 0
        assert stranger.hear()[0] == DEVICE
        stranger.say(MEMORY)
        assert old.hand_over() == 0
        assert stranger.hear(keep=True, parts=2)[0] == MEMORY
        image, *files = stranger.kept
        assert [os.pread(fd, 16, 0).rstrip(b"\0") for fd in files] == [name_of(n) for n in range(MANY)]
        stranger.close()
        assert old.hand_over() == 0
        assert len(open_fds()) == before
        new = old.upgrade(client)
        each_is_its_own(new, events)
        client.close()
        for event in events:
            os.close(event)


def more(*fds):
    return lambda peer: socket.send_fds(peer, [text(MORE)], list(fds)) if fds else peer.send(text(MORE))


@pytest.mark.parametrize("count, rest, number", [
    (1, [], errno.ETIMEDOUT),
    (1, [lambda peer: peer.shutdown(socket.SHUT_RDWR)], errno.ECONNRESET),
    (1, [more()], errno.EPROTO),
    (2, [more(0), more()], errno.EPROTO),
    (2, [more(0, 1, 2)], errno.EPROTO),
    (2, [more(0), lambda peer: peer.send(text(NO, error=errno.EPERM))], errno.EPERM),
    (2, [more(0), lambda peer: peer.send(text(YOURS))], errno.EPROTO),
    (1, [lambda peer: peer.send(text(DEVICE))], errno.EPROTO),
    (1 << 60, [more(0), lambda peer: peer.shutdown(socket.SHUT_RDWR)], errno.ECONNRESET),
    ((1 << 64) - 1, [more(0), more()], errno.EPROTO),
], ids=["none", "the end", "an empty message", "half and an empty message", "too many", "half and no", "half and yours",
        "another image", "so many", "as many as there can be"])
def test_a_descriptor_too_few_and_one_too_many(tmp_path, count, rest, number):
    path = str(tmp_path / "s")
    before = len(open_fds())

    def answer(peer):
        with_image(DEVICE, EMPTY, count=count)(peer)
        for send in rest:
            send(peer)
    fake = FakeOld(path, [answer])
    fails(number, taking_over(path, timeout=50 if number == errno.ETIMEDOUT else 20000), None, 0)
    fake.close()
    assert len(open_fds()) == before


# --- whose message is not whole, or not executed -----------------------------------------

MAP = struct.pack("<IIQQQ", 32, MAP_READ | MAP_WRITE, 0, BASE, PAGE)
EVENTS = 4
SET = struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, MSIX, 0, EVENTS)
READ = struct.pack("<QII", 0, BAR0, 4)
FILE = "the file"  # in the place of its descriptor
MESSAGES = {"map": (message(1, DMA_MAP, MAP), [FILE]), "set": (message(2, SET_IRQS, SET), list(range(EVENTS))),
            "read": (message(3, REGION_READ, READ), [])}


def cut(*names, at, fds=0, late=()):
    """Messages, sent at once as far as the last one is cut, with all the descriptors at the first byte; and the rest.
    Of the descriptors those in `late` come with the rest."""
    data = b"".join(MESSAGES[name][0] for name in names)
    every = [fd for name in names for fd in MESSAGES[name][1]]
    at = len(data) + at if at < 0 else len(data) - len(MESSAGES[names[-1]][0]) + at
    return [(data[:at], [fd for fd in every if fd not in late]), (data[at:], [fd for fd in every if fd in late])]


def busy(*names):
    """The messages behind more requests than a call executes."""
    reads = b"".join(message(1000 + n, REGION_READ, READ) for n in range(400))
    return [(reads, [])] + [MESSAGES[name] for name in names]


SCRIPTS = {
    **{f"map at {at}": cut("map", at=at) for at in (1, 15, 16, 17, -1)},
    **{f"set at {at}": cut("set", at=at) for at in (1, 8, 16, -1)},
    "set, and half of its descriptors": cut("set", at=18, late=[2, 3]),
    # Whose the descriptors are is in the bytes that have not come: the command, or the flags.
    **{f"map, and {name} at {at}": cut("map", name, at=at) for name in ("set", "read") for at in (1, 3, 12, 16)},
    "not executed": busy("map", "set"),
    "not executed, and half": busy("map") + cut("set", at=17),
}


def played(script, upgrades):
    """What the client hears, and what is there then, if it sends this; with an upgrade after each piece, or without."""
    guest = memfd(PAGE, b"the guest's")
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(EVENTS)]
    with device(dma=True, irqs=EVENTS) as old, old.connect() as client:
        before = None
        for data, fds in script:
            client.send_raw(data, [guest if fd == FILE else events[fd] for fd in fds])
            client.ctx.run()
            if upgrades:
                before = before or len(open_fds())
                old.upgrade(client)
                assert len(open_fds()) == before
            before = None
        while client.ctx.readable():
            client.ctx.run()
        heard = []
        while not client.nothing():
            reply = client.recv()
            heard.append((reply.msg_id, reply.cmd, reply.flags, reply.error))
        try:
            _, sg = client.ctx.sgl(BASE, 16)
            iov = client.ctx.sgl_get(sg)
            memory = c.string_at(iov[0].base, 11)
            client.ctx.sgl_put(sg)
        except Failed as e:
            memory = e.errno
        for n in range(EVENTS):
            lib.vfu_irq_trigger(client.ctx.p, n)
        outcome = heard, memory, counted(events)
        before = len(open_fds())
        client.write(BAR0, 0, b"in step.")
        assert client.read(BAR0, 0, 8) == b"in step."
    os.close(guest)
    for event in events:
        os.close(event)
    return outcome


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_descriptors_of_half_a_message_go_along(script):
    before = len(open_fds())
    expected = played(script, upgrades=False)
    assert expected[0], "it is answered"
    assert played(script, upgrades=True) == expected
    assert len(open_fds()) == before


def test_what_that_is_compared_with_is_what_was_meant():
    """So that the test above does not compare failures."""
    for name in ("map at 17", "map, and read at 3"):
        heard, memory, _ = played(SCRIPTS[name], upgrades=False)
        assert heard[0] == (1, DMA_MAP, F_REPLY, 0) and memory == b"the guest's"
    assert played(SCRIPTS["set at 8"], upgrades=False)[2] == {n: 1 for n in range(EVENTS)}
    heard, memory, counts = played(SCRIPTS["not executed, and half"], upgrades=False)
    assert len(heard) == 402 and memory == b"the guest's" and counts == {n: 1 for n in range(EVENTS)}


def test_a_command_that_crossed_ours_goes_along_with_its_descriptor():
    """It came while the device asked for memory by a message, and waits to be executed."""
    guest = memfd(PAGE, b"the guest's")
    with device(dma=True) as old:
        client = attach(old, None)

        def cross(m, addr, count, data):
            client.send_raw(message(77, DMA_MAP, struct.pack("<IIQQQ", 32, MAP_READ, 0, 0, PAGE)), [guest])
            return good(m, addr, count)
        server = peer(client, cross)
        assert read(old, 64) == contents(BASE, 64)
        server.result()
        assert client.nothing()
        new = old.upgrade(client)
        assert new.readable()
        new.executes(1)
        assert client.recv().msg_id == 77
        _, sg = new.sgl(0, 11, prot=PROT_READ)
        iov = new.sgl_get(sg)
        assert c.string_at(iov[0].base, 11) == b"the guest's"
        new.sgl_put(sg)
        client.close()
    os.close(guest)
