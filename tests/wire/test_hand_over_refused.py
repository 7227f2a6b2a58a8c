"""Live upgrade that comes to nothing: the old process goes on, both know why, and nothing is left."""
import errno
import os
import socket
import struct
import threading

import pytest
from hand_over import Device, Upgrade, device, taking_over, upgraded
from libvfu import *
from stranger import *

def still_there(ctx, client):
    """Whether the client is served as before, and another process may try."""
    client.write(BAR0, 0, b"1234")
    assert client.read(BAR0, 0, 4) == b"1234"
    new = upgraded(ctx, client)
    assert client.read(BAR0, 0, 4) == b"1234"
    return new


# --- devices that do not fit -------------------------------------------------------

DIFFERENT = [dict(bar=2 * PAGE), dict(irqs=4), dict(pending_irqs=True), dict(dma=True), dict(migration=True),
             dict(state=False), dict(caps=[b"\x01\0\0\0\0\0\0\0"])]


@pytest.mark.parametrize("how", DIFFERENT, ids=lambda how: next(iter(how)))
def test_a_device_that_does_not_fit(how):
    with device() as old, old.connect() as client:
        before = len(open_fds())
        upgrade = Upgrade(old, **how)
        assert any("take_over" in line for _, line in upgrade.new.lines), upgrade.new.lines
        upgrade.failed(errno.EINVAL)
        assert any("not handed over" in line for _, line in old.lines)
        assert old.owned == [] and "save" not in old.events
        assert len(open_fds()) == before
        still_there(old, client).destroy()


class OtherMemory(Device):
    def setup_all(self, *args):
        super().setup_all(*args)
        self.fd = memfd(2 * PAGE)
        self.setup_region(BAR2, PAGE, None, RW | MEM, fd=self.fd)


def test_memory_of_a_bar_that_is_not_the_one_that_the_client_has():
    old = OtherMemory().serve_upgrades()
    with old.connect() as client:
        Upgrade(old, make=OtherMemory).failed(errno.EINVAL)
        client.read(BAR0, 0, 4)
    old.destroy()


def test_fewer_dma_regions_do_not_fit_and_more_do():
    with device(dma=True, max_regions=8) as old, old.connect() as client:
        client.map(0, PAGE)
        Upgrade(old, dma=True, max_regions=7).failed(errno.EINVAL)
        new = old.upgrade(client, max_regions=9)
        for n in range(1, 9):
            client.map(n * PAGE, PAGE)
        assert len([e for e in new.events if e[0] == "register"]) == 9


def another_ioeventfd(ctx):
    call("vfu_create_ioeventfd", ctx.p, BAR0, -1, 0, 8, 0, 0, -1, 0)


@pytest.mark.parametrize("change", [
    another_ioeventfd,
    lambda ctx: ctx.memory_region(BAR2, PAGE),
    lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 9),
    lambda ctx: ctx.add_cap(bytes([9, 0, 8, 0, 1, 2, 3, 4])),
    lambda ctx: ctx.setup_migration(),
    lambda ctx: call("vfu_setup_device_dma", ctx.p, 64, None, None),
    lambda ctx: call("vfux_add_hand_over_fd", ctx.p, b"disk", 0),
], ids=["ioeventfd", "region", "irqs", "capability", "migration", "dma", "descriptor"])
@pytest.mark.parametrize("is_quieting", [False, True], ids=["soon", "late"])
def test_a_device_that_is_set_up_otherwise_meanwhile(change, is_quieting):
    """The new process has made one as it was; the client may know already what is new."""
    def make(then=lambda ctx: None, **kw):
        ctx = Device(quiesce=True, realize=False, **kw)
        ctx.pci_init()
        ctx.realize()
        then(ctx)
        return ctx
    old = make().serve_upgrades()
    with old.connect() as client:
        made, gate = threading.Event(), threading.Event()
        upgrade = Upgrade(old, make=make, before=lambda new: made.set() or gate.wait(), pump=False)
        while not made.is_set():
            assert old.hand_over() == 0
        if not is_quieting:
            change(old)
        gate.set()
        if is_quieting:
            old.quiesce_errno = errno.EBUSY
            while old.hand_over() != -errno.EBUSY:
                pass
            change(old)
            old.quiesced()
            old.quiesce_errno = 0
            upgrade.answers.append(old.hand_over())
        upgrade.pump(old)
        upgrade.failed(errno.EBUSY)
        client.read(BAR0, 0, 4)
        new = upgraded(old, client, make=make, then=change)
        client.read(BAR0, 0, 4)
        new.destroy()


# --- callbacks that fail ------------------------------------------------------------

def test_a_device_that_does_not_say_its_state():
    with device() as old, old.connect() as client:
        old.save_errno = errno.ENOSPC
        Upgrade(old).failed(errno.ENOSPC)
        assert old.owned == [True]
        old.save_errno = 0
        still_there(old, client).destroy()


def test_a_device_that_does_not_take_its_state():
    guest = memfd(PAGE)
    with device(dma=True) as old, old.connect() as client:
        client.map(0, PAGE, guest)

        def spoil(new):
            new.load_errno = errno.EILSEQ
        upgrade = Upgrade(old, dma=True, before=spoil)
        new = upgrade.new
        upgrade.failed(errno.EILSEQ)
        assert old.owned == [True] and new.owned == [False]
        assert ("unregister", 0, PAGE) in new.events and ("reset", RESET_LOST_CONN) not in new.events
        assert ("unregister", 0, PAGE) not in old.events
        client.write(BAR0, 0, b"1234")
        new = old.upgrade(client)
        assert client.read(BAR0, 0, 4) == b"1234"
    os.close(guest)


def test_a_device_that_refuses_memory():
    with device(dma=True) as old, old.connect() as client:
        client.map(0, PAGE)

        def refuse(new):
            new.on_dma_register = lambda info: call("vfux_refuse_dma_region", new.p, errno.ENOSR)
        Upgrade(old, dma=True, before=refuse).failed(errno.ENOSR)
        client.read(BAR0, 0, 4)
        old.upgrade(client)
        client.read(BAR0, 0, 4)


def test_not_from_inside_a_callback():
    seen = []
    with device(dma=True) as old, old.connect() as client:
        old.on_dma_register = lambda info: seen.append(old.hand_over())
        client.map(0, PAGE)
        assert seen == [-errno.EBUSY]


def test_while_a_request_waits_for_a_quiet_device():
    with device(quiesce=True, dma=True) as old, old.connect() as client:
        old.quiesce_errno = errno.EBUSY
        client.send(DMA_MAP, struct.pack("<IIQQQ", 32, MAP_READ, 0, 0, PAGE))
        fails(errno.EBUSY, old.run)
        Upgrade(old, quiesce=True, dma=True).failed(errno.EBUSY)
        old.quiesced()
        assert client.recv().error == 0
        old.quiesce_errno = 0
        old.upgrade(client)
        client.read(BAR0, 0, 4)


def test_a_client_that_has_gone_is_told_of_first():
    with device() as old:
        client = old.connect()
        client.send(DEVICE_RESET)
        client.close()
        new = old.upgrade()
        # What it has sent is still executed, and then it is lost.
        assert new.readable()
        assert new.run() == 1
        fails(errno.ENOTCONN, new.run)
        with new.connect() as client:
            client.read(BAR0, 0, 4)


# --- others at the socket -------------------------------------------------------------

@pytest.mark.parametrize("words", [b"", b"hello", b"x" * 32, b"x" * 1000, text(77), text(DEVICE), text(READY), text(MEMORY), text(HAVE),
                                   text(HELLO, magic=b"hfuv"), text(HELLO) + b"\0"])
def test_who_does_not_speak_the_protocol_is_sent_away(words):
    with device() as old, old.connect() as client:
        before = len(open_fds())
        stranger = Stranger(old)
        stranger.sock.send(words)
        outcome = old.hand_over()
        if words:
            assert outcome == -errno.EPROTO
            assert stranger.hear() == (NO, errno.EPROTO, None)
        else:
            assert outcome == 0, "an empty message looks like the end"
        assert stranger.hear() is None
        stranger.close()
        assert len(open_fds()) == before
        still_there(old, client).destroy()


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_refused(version):
    with device() as old, old.connect() as client:
        stranger = Stranger(old)
        stranger.say(HELLO, version=version)
        assert old.hand_over() == -errno.EPROTONOSUPPORT
        assert stranger.hear() == (NO, errno.EPROTONOSUPPORT, None)
        stranger.close()
        still_there(old, client).destroy()


def test_descriptors_that_nobody_asked_for_are_closed():
    with device() as old, old.connect() as client:
        stranger = Stranger(old)
        assert old.hand_over() == 0
        before = len(open_fds())
        r, w = os.pipe()
        socket.send_fds(stranger.sock, [text(HELLO)], [w])
        os.close(w)
        assert old.hand_over() == 0
        assert os.read(r, 1) == b""
        os.close(r)
        assert stranger.hear()[0] == DEVICE
        assert len(open_fds()) == before
        stranger.close()
        still_there(old, client).destroy()


def test_who_only_looks_disturbs_nobody_and_lets_others_in_when_it_goes():
    with device() as old, old.connect() as client:
        stranger = Stranger(old)
        stranger.say(HELLO)
        assert old.hand_over() == 0
        kind, _, image = stranger.hear()
        assert kind == DEVICE and image[:8] == b"vfu-hand"
        client.write(BAR0, 0, b"meanwhil")
        upgrade = Upgrade(old, pump=False)
        assert old.hand_over() == 0
        client.read(BAR0, 0, 4)
        stranger.close()
        upgrade.pump(old)
        assert upgrade.taken == 1
        client.ctx = upgrade.new
        assert client.read(BAR0, 0, 8) == b"meanwhil"
        upgrade.new.destroy()


class Half:
    """A process that goes as far as to have the state, and says then what it is told to say."""

    def __init__(self, old, what):
        self.stranger = Stranger(old)
        self.stranger.say(HELLO)
        assert old.hand_over() == 0
        assert self.stranger.hear()[0] == DEVICE
        self.stranger.say(READY)
        self.heard = []
        self.thread = threading.Thread(target=what, args=(self,), daemon=True)
        self.thread.start()


def test_who_goes_with_the_state_in_its_hands():
    with device() as old, old.connect() as client:
        def go(half):
            half.heard.append(half.stranger.hear()[0])
            half.stranger.close()
        half = Half(old, go)
        assert old.hand_over() == -errno.ECONNRESET
        half.thread.join()
        assert half.heard == [STATE]
        assert old.owned == [True]
        still_there(old, client).destroy()


def test_who_goes_after_it_has_been_told_yours_and_before_it_has_said_taken():
    """It has executed nothing by then."""
    with device() as old, old.connect() as client:
        def go(half):
            half.heard.append(half.stranger.hear()[0])
            half.stranger.say(HAVE)
            half.heard.append(half.stranger.hear()[0])
            half.stranger.close()
        half = Half(old, go)
        assert old.hand_over() == -errno.ECONNRESET
        half.thread.join()
        assert half.heard == [STATE, YOURS]
        assert old.owned == [True]
        still_there(old, client).destroy()


def test_who_says_nothing_is_told_no_in_the_end():
    with device() as old, old.connect() as client:
        half = Half(old, lambda half: half.heard.append(half.stranger.hear()[0]))
        assert old.hand_over(timeout=50) == -errno.ETIMEDOUT
        half.thread.join()
        assert half.heard == [STATE]
        assert half.stranger.hear() == (NO, errno.ETIMEDOUT, None)
        with pytest.raises(BrokenPipeError):
            half.stranger.say(HAVE)
        half.stranger.close()
        assert old.owned == [True]
        still_there(old, client).destroy()


def test_who_says_no_is_believed():
    with device() as old, old.connect() as client:
        def refuse(half):
            half.heard.append(half.stranger.hear()[0])
            half.stranger.say(NO, error=errno.EXDEV)
        half = Half(old, refuse)
        assert old.hand_over() == -errno.EXDEV
        half.thread.join()
        half.stranger.close()
        still_there(old, client).destroy()


def test_who_has_been_told_yours_has_it_though_it_does_not_answer():
    with device() as old:
        client = old.connect()

        def keep(half):
            half.heard.append(half.stranger.hear(keep=True)[0])
            half.stranger.say(HAVE)
            half.heard.append(half.stranger.hear(keep=True)[0])
        half = Half(old, keep)
        assert old.hand_over(timeout=50) == 1
        half.thread.join()
        assert half.heard == [STATE, YOURS]
        assert old.owned == [False]
        fails(errno.ENOTCONN, old.run)
        fails(errno.ENOTCONN, old.attach)
        assert client.nothing(), "the connection is not the old one's to end"
        half.stranger.drop()
        assert client.eof()
        half.stranger.close()
        client.close()


def test_a_context_that_is_destroyed_says_no():
    old = Device().serve_upgrades()
    stranger = Stranger(old)
    stranger.say(HELLO)
    assert old.hand_over() == 0
    assert stranger.hear()[0] == DEVICE
    old.destroy()
    assert stranger.hear() == (NO, errno.ECONNRESET, None)
    assert stranger.hear() is None
    stranger.close()


# --- the other side --------------------------------------------------------------------

@pytest.mark.parametrize("answer, number", [
    (lambda peer: peer.send(text(NO, error=errno.EPERM)), errno.EPERM),
    (lambda peer: peer.send(text(YOURS)), errno.EPROTO),
    (lambda peer: peer.send(text(DEVICE)), errno.EPROTO),
    (lambda peer: peer.send(b"what?"), errno.EPROTO),
    (lambda peer: peer.send(text(DEVICE, version=2)), errno.EPROTONOSUPPORT),
    (with_image(DEVICE, b""), errno.EPROTO),
    (with_image(DEVICE, b"x" * 100), errno.EPROTO),
    (with_image(DEVICE, EMPTY), errno.EPROTO),
    (with_image(DEVICE, EMPTY, size=10), errno.EPROTO),
    (with_image(DEVICE, EMPTY, size=1 << 60), errno.EPROTO),
    (with_image(DEVICE, EMPTY, sealed=False), errno.EPROTO),
    (with_image(DEVICE, EMPTY, fds=[0]), errno.EPROTO),
    (with_image(DEVICE, EMPTY[:-1]), errno.EPROTO),
    (with_image(DEVICE, EMPTY.replace(b"\1\0\0\0\0", b"\2\0\0\0\0", 1)), errno.EPROTONOSUPPORT),
    (lambda peer: peer.shutdown(socket.SHUT_RDWR), errno.ECONNRESET),
])
def test_what_is_no_answer(tmp_path, answer, number):
    path = str(tmp_path / "s")
    fake = FakeOld(path, [answer])
    fails(number, taking_over(path), None, 0)
    fake.close()


def test_no_answer_at_all(tmp_path):
    path = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(path)
    fails(errno.ECONNREFUSED, taking_over(path), None, 0)
    sock.listen(1)
    fails(errno.ETIMEDOUT, taking_over(path, timeout=20), None, 0)
    sock.close()
    fails(errno.ECONNREFUSED, taking_over(path), None, 0)
    os.unlink(path)
    fails(errno.ENOENT, taking_over(path), None, 0)


# --- images that are kept ----------------------------------------------------------------

IMAGES = os.path.join(os.path.dirname(__file__), "..", "hand-over")


def rich_device():
    """A device with a state that has something of everything, and its client."""
    old = Device(dma=True, migration=True, pending_irqs=True, path=None).serve_upgrades()
    guest = memfd(16 * PAGE, b"guest")
    client = old.connect(caps={"twin_socket": {"supported": True}, "max_msg_fds": 8})
    client.write(BAR0, 0, b"the state of the device")
    for n in range(2):
        client.map(n << 20, 8 * PAGE, guest, offset=n * 8 * PAGE)
    client.map(1 << 30, PAGE)
    client.log_start(ranges=[(0, 1 << 20)])
    _, sg = old.sgl(3 * PAGE, 1, prot=PROT_WRITE)
    lib.vfu_sgl_mark_dirty(old.p, sg, 1)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 2, 1, fds=[event])
    client.set_irqs(MSIX, DATA_NONE | ACTION_MASK, 2, 1)
    call("vfux_irq_trigger", old.p, MSIX, 2)
    client.guest = guest
    return old, client, event


def change_memory(client):
    client.unmap(1 << 20, 8 * PAGE)
    client.map(1 << 21, 8 * PAGE, client.guest, offset=8 * PAGE)


def leave_things_open(old, client):
    # More replies than the socket takes.
    client.send_raw(b"".join(message(n, REGION_READ, struct.pack("<QII", 0, BAR0, PAGE)) for n in range(1, 101)))
    old.run()
    client.send_raw(message(500, REGION_WRITE, struct.pack("<QII", 0, BAR0, 4) + b"half")[:-2])


def make_images(ahead):
    """Writes images down as this version makes them."""
    old, client, event = rich_device()
    stranger = Stranger(old)
    stranger.say(HELLO)
    assert old.hand_over() == 0
    images = {"device-1.image": stranger.hear()[2]}
    if ahead:
        stranger.say(MEMORY)
        assert old.hand_over() == 0
        images = {"memory-1.image": stranger.hear()[2]}
        change_memory(client)
    leave_things_open(old, client)
    stranger.say(READY)
    old.hand_over(timeout=1)
    images["state-1-kept.image" if ahead else "state-1.image"] = stranger.hear()[2]
    for name, image in images.items():
        with open(os.path.join(IMAGES, name), "xb") as f:
            f.write(image)
    stranger.close()
    os.close(client.guest)
    client.close()
    os.close(event)
    old.destroy()


def kept_image(name):
    with open(os.path.join(IMAGES, name), "rb") as f:
        return f.read()


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_the_images_that_are_kept_are_taken_over(tmp_path, ahead):
    """What a process of this version has said once; later ones have to take it. (VFU_MAKE_IMAGES makes those that are missing.)"""
    state_name = "state-1-kept.image" if ahead else "state-1.image"
    if os.environ.get("VFU_MAKE_IMAGES") and not os.path.exists(os.path.join(IMAGES, state_name)):
        make_images(ahead)
    # Descriptors in the order of version 1: listeners, sockets, the files of DMA regions, eventfds.
    path = str(tmp_path / "control")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(str(tmp_path / "c"))
    control.listen(1)
    ours, theirs = socket.socketpair()
    twin, their_twin = socket.socketpair()
    guest = memfd(16 * PAGE, b"guest")
    event = os.eventfd(0, os.EFD_NONBLOCK)
    fds = [listener.fileno(), control.fileno(), theirs.fileno(), their_twin.fileno(), guest, event]
    memory = with_image(MEMORY, kept_image("memory-1.image"), count=1, fds=[guest]) if ahead else with_image(MEMORY, EMPTY)

    def yours(peer):
        peer.send(text(YOURS))
    fake = FakeOld(path, [with_image(DEVICE, kept_image("device-1.image")), memory,
                          with_image(STATE, kept_image(state_name), count=len(fds), fds=fds), yours])
    new = Device(dma=True, migration=True, pending_irqs=True, path=path, create=taking_over(path))
    assert call("vfux_take_over", new.p, 20000) == 1
    fake.close()
    assert fake.heard == [HELLO, MEMORY, READY, HAVE, (TAKEN, 0)]
    with Client(new, attach=False, sock=ours) as client:
        client.sock.settimeout(20)
        assert bytes(new.mem[:23]) == b"the state of the device"
        changed = [("unregister", 1 << 20, 8 * PAGE), ("register", 1 << 21, 8 * PAGE)] if ahead else []
        assert [e for e in new.events if e[0] in ("register", "unregister")] == [
            ("register", 0, 8 * PAGE), ("register", 1 << 20, 8 * PAGE), ("register", 1 << 30, PAGE), *changed]
        while new.readable():
            new.run()
        assert client.sock.recv(1 << 20), "replies that the client had not taken"
        assert not new.readable()
    new.destroy()
    for sock in (listener, control, theirs, their_twin, twin):
        sock.close()
    os.close(guest)
    os.close(event)
