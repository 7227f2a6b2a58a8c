"""Live upgrade that comes to nothing: the old process goes on, both know why, and nothing is left."""
import errno
import os
import socket
import struct
import threading

import pytest
from hand_over import Device, Upgrade, device, taking_over, upgraded
from libvfu import *

HELLO, DEVICE, READY, STATE, MORE, HAVE, YOURS, TAKEN, NO = range(1, 10)


def text(kind, error=0, size=0, fds=0, magic=b"vfuh", version=1):
    return magic + struct.pack("<IIIQQ", version, kind, error, size, fds)


class Stranger:
    """A process at the control socket that speaks the protocol by hand, as far as it wants to."""

    def __init__(self, old):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(old.control)
        self.kept = []

    def say(self, *args, **kw):
        self.sock.send(text(*args, **kw))

    def hear(self, keep=False):
        """Kind, errno and image of the next message; its descriptors are closed, unless they are to be kept."""
        data, anc, _, _ = self.sock.recvmsg(100, socket.CMSG_SPACE(253 * 4))
        if not data:
            return None
        assert len(data) == 32 and data[:8] == b"vfuh" + struct.pack("<I", 1)
        kind, error, size, count = struct.unpack("<IIQQ", data[8:])
        fds = []
        for _, _, cmsg in anc:
            fds += struct.unpack(f"{len(cmsg) // 4}i", cmsg)
        image = None
        if kind in (DEVICE, STATE):
            image = os.pread(fds[0], size, 0)
            assert len(fds) == 1 + count
        self.kept += fds
        if not keep:
            self.drop()
        return kind, error, image

    def drop(self):
        while self.kept:
            os.close(self.kept.pop())

    def close(self):
        self.drop()
        self.sock.close()


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

@pytest.mark.parametrize("words", [b"", b"hello", b"x" * 32, b"x" * 1000, text(77), text(DEVICE), text(READY), text(HAVE),
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

class FakeOld:
    """A process that is asked for its device, and answers what it is told to."""

    def __init__(self, path, answers):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(path)
        self.sock.listen(1)
        self.answers = answers
        self.heard = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        peer, _ = self.sock.accept()
        peer.settimeout(20)
        for answer in self.answers:
            data = peer.recv(100)
            self.heard.append(struct.unpack_from("<I", data, 8)[0] if data else None)
            if answer is not None:
                answer(peer)
        peer.settimeout(20)
        try:
            data = peer.recv(100)
            self.heard.append(struct.unpack_from("<II", data, 8) if data else None)
        except ConnectionResetError:
            self.heard.append(None)
        peer.close()

    def close(self):
        self.thread.join()
        self.sock.close()


def with_image(kind, image, size=None, count=0, sealed=True, fds=()):
    def answer(peer):
        fd = os.memfd_create("image", os.MFD_ALLOW_SEALING)
        os.pwrite(fd, image, 0)
        if sealed:
            import fcntl
            fcntl.fcntl(fd, 1033, 0x2 | 0x4 | 0x8)
        socket.send_fds(peer, [text(kind, size=len(image) if size is None else size, fds=count)], [fd, *fds])
        os.close(fd)
    return answer


EMPTY = b"vfu-hand" + struct.pack("<II", 1, 0) + struct.pack("<HHIQQ", 0xffff, 1, 0, 8, 0)


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
    # More replies than the socket takes.
    client.send_raw(b"".join(message(n, REGION_READ, struct.pack("<QII", 0, BAR0, PAGE)) for n in range(1, 101)))
    old.run()
    client.send_raw(message(500, REGION_WRITE, struct.pack("<QII", 0, BAR0, 4) + b"half")[:-2])
    os.close(guest)
    return old, client, event


def test_the_images_that_are_kept_are_taken_over(tmp_path):
    """What a process of this version has said once; later ones have to take it. (VFU_MAKE_IMAGES makes them.)"""
    if os.environ.get("VFU_MAKE_IMAGES"):
        old, client, event = rich_device()
        stranger = Stranger(old)
        stranger.say(HELLO)
        assert old.hand_over() == 0
        device_image = stranger.hear()[2]
        stranger.say(READY)
        old.hand_over(timeout=1)
        state_image = stranger.hear()[2]
        for name, image in (("device-1.image", device_image), ("state-1.image", state_image)):
            with open(os.path.join(IMAGES, name), "wb") as f:
                f.write(image)
        os.close(event)
        old.destroy()
    with open(os.path.join(IMAGES, "device-1.image"), "rb") as f:
        device_image = f.read()
    with open(os.path.join(IMAGES, "state-1.image"), "rb") as f:
        state_image = f.read()
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

    def nothing(peer):
        pass

    def yours(peer):
        peer.send(text(YOURS))
    fake = FakeOld(path, [with_image(DEVICE, device_image), with_image(STATE, state_image, count=len(fds), fds=fds), yours])
    new = Device(dma=True, migration=True, pending_irqs=True, path=path, create=taking_over(path))
    assert call("vfux_take_over", new.p, 20000) == 1
    fake.close()
    assert fake.heard == [HELLO, READY, HAVE, (TAKEN, 0)]
    with Client(new, attach=False, sock=ours) as client:
        client.sock.settimeout(20)
        assert bytes(new.mem[:23]) == b"the state of the device"
        assert [e for e in new.events if e[0] == "register"] == [
            ("register", 0, 8 * PAGE), ("register", 1 << 20, 8 * PAGE), ("register", 1 << 30, PAGE)]
        while new.readable():
            new.run()
        assert client.sock.recv(1 << 20), "replies that the client had not taken"
        assert not new.readable()
    new.destroy()
    for sock in (listener, control, theirs, their_twin, twin):
        sock.close()
    os.close(guest)
    os.close(event)
