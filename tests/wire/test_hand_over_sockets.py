"""Live upgrade: where the two processes meet. Sockets that were handed in, and whose they are afterwards; other users."""
import contextlib
import ctypes as c
import errno
import fcntl
import os
import select
import socket
import struct
import traceback

import pytest
from hand_over import TIMEOUT, Device, Upgrade, device, taking_over, upgraded
from peer import *
from stranger import *


def taking_over_fd(fd, timeout=TIMEOUT):
    return lambda _path, flags: call("vfux_create_ctx_taking_over_fd", fd, timeout, flags, None, 0)


def is_open(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def pair():
    return [sock.detach() for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]


def over(old, fd):
    """It hands over at this socket."""
    call("vfux_setup_hand_over_fd", old.p, fd)
    return old


# --- sockets that were handed in ---------------------------------------------------

def test_over_a_pair_of_sockets():
    before = len(open_fds())
    ours, theirs = pair()
    old = over(Device(), ours)
    with old.connect() as client:
        client.write(BAR0, 0, b"the same")
        # Each is its context's from here on.
        new = upgraded(old, client, create=taking_over_fd(theirs))
        assert client.read(BAR0, 0, 8) == b"the same"
        assert not is_open(ours) and not is_open(theirs)
        # Nobody else can come that way; but by another one.
        fails(errno.ENOENT, lambda: call("vfux_get_hand_over_fd", new.p))
        ours, theirs = pair()
        last = upgraded(over(new, ours), client, create=taking_over_fd(theirs))
        assert client.read(BAR0, 0, 8) == b"the same"
    last.destroy()
    assert len(open_fds()) == before


def test_over_a_socket_that_listens_and_is_not_ours_to_remove(tmp_path):
    path = str(tmp_path / "control")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1)
    before = len(open_fds()) - 1
    old = over(Device(), listener.detach())
    with old.connect() as client:
        for _ in range(3):
            def connected(_path, flags):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(path)
                return taking_over_fd(sock.detach())(None, flags)
            old = upgraded(old, client, create=connected)
            client.write(BAR0, 0, b"1234")
    old.destroy()
    assert len(open_fds()) == before
    assert os.path.exists(path), "who made it removes it"


def test_a_context_that_nobody_takes_over_closes_its_socket():
    for fds in (pair(), pair()[::-1]):
        with over(Device(), fds[0]):
            assert is_open(fds[0])
        assert not is_open(fds[0]) and is_open(fds[1])
        os.close(fds[1])


def test_a_socket_that_is_refused_stays_the_callers():
    ours, theirs = pair()
    with over(Device(), ours) as old:
        other, end = pair()
        fails(errno.EEXIST, over, old, other)
        assert is_open(other)
        for fd in (other, end):
            os.close(fd)
    os.close(theirs)
    event = os.eventfd(0)
    fails(errno.ENOTSOCK, taking_over_fd(event), None, 0)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fails(errno.ENOTCONN, taking_over_fd(listener.fileno()), None, 0)
    listener.bind("")  # an address of the kernel's choice
    listener.listen(1)
    fails(errno.ENOTCONN, taking_over_fd(listener.fileno()), None, 0)
    stream = socket.socketpair()
    fails(errno.ENOTSUP, taking_over_fd(stream[0].fileno()), None, 0)
    ours, theirs = pair()
    fails(errno.EINVAL, taking_over_fd(ours, timeout=0), None, 0)
    fails(errno.EINVAL, taking_over_fd(ours), None, 0x80)
    for fd in (event, listener.fileno(), stream[0].fileno(), ours):
        assert is_open(fd)
    for sock in (listener, *stream):
        sock.close()
    for fd in (event, ours, theirs):
        os.close(fd)


@pytest.mark.parametrize("says, number", [(None, errno.ETIMEDOUT), (b"", errno.ECONNRESET), (b"what?", errno.EPROTO),
                                          (text(NO, error=errno.EPERM), errno.EPERM)])
def test_a_socket_where_nobody_hands_over_is_closed(says, number):
    before = len(open_fds())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if says:
        ours.send(says)
    elif says is not None:
        ours.shutdown(socket.SHUT_WR)
    fd = theirs.detach()
    fails(number, taking_over_fd(fd, timeout=20000 if says is not None else 20), None, 0)
    assert not is_open(fd)
    ours.close()
    assert len(open_fds()) == before


def test_after_an_attempt_that_failed_there_can_be_another_socket():
    ours, theirs = pair()
    old = over(Device(), ours)
    with old.connect() as client:
        fd = call("vfux_get_hand_over_fd", old.p)
        Upgrade(old, create=taking_over_fd(theirs), irqs=4).failed(errno.EINVAL)
        assert not is_open(ours) and not is_open(theirs)
        client.read(BAR0, 0, 4)
        ours, theirs = pair()
        over(old, ours)
        assert call("vfux_get_hand_over_fd", old.p) == fd, "main loops may go on to watch it"
        new = upgraded(old, client, create=taking_over_fd(theirs))
        client.read(BAR0, 0, 4)
    new.destroy()


# --- clients that are not attached yet ------------------------------------------------

def test_a_context_that_waits_takes_over_from_one_that_does_not():
    with device() as old:
        new = old.upgrade(nonblocking=False)
        waiting = Background(new.attach)
        # As its flags say, whatever the other process wanted of the same socket.
        until("it waits", lambda: sleeps(waiting) is not None)
        assert not waiting.done.is_set()
        with Client(new, attach=False) as client:
            client.send(VERSION, version_payload())
            waiting.result()
            assert client.recv().cmd == VERSION
            served = Background(new.run)
            client.send(REGION_READ, struct.pack("<QII", 0, BAR0, 4))
            assert client.recv().cmd == REGION_READ
        fails(errno.ENOTCONN, served.result)


def test_a_context_that_does_not_wait_takes_over_from_one_that_does():
    with device(nonblocking=False) as old:
        new = old.upgrade(nonblocking=True)
        fails(errno.EAGAIN, new.attach)
        with new.connect() as client:
            client.read(BAR0, 0, 4)
            # And so on; the socket for the next process has never waited.
            assert new.hand_over() == 0
            last = old.upgrade(client, nonblocking=False)
        fails(errno.ENOTCONN, last.run)


@pytest.mark.parametrize("sent", [0, 7, None])
def test_a_client_that_was_handed_in_and_is_not_attached_yet(sent):
    """All of its version, a part, or nothing lies in the socket."""
    ours, theirs = socket.socketpair()
    version = message(1, VERSION, version_payload())
    create = lambda _path, flags: call("vfux_create_ctx_over_fd", theirs.detach(), flags, None, 0)
    with device(create=create) as old:
        ours.sendall(version[:sent])
        new = old.upgrade(create=taking_over(old.control))
        if sent is not None:
            fails(errno.EAGAIN, new.attach)
            ours.sendall(version[sent:])
        assert new.readable()
        new.attach()
        with Client(new, attach=False, sock=ours) as client:
            client.sock.settimeout(20)
            assert client.recv().cmd == VERSION
            client.write(BAR0, 0, b"1234")
        fails(errno.ENOTCONN, new.run)
        fails(errno.ENOTCONN, new.attach)


def test_a_client_that_was_handed_in_stays_where_the_attempt_fails():
    ours, theirs = socket.socketpair()
    create = lambda _path, flags: call("vfux_create_ctx_over_fd", theirs.detach(), flags, None, 0)
    with device(create=create) as old:
        old.save_errno = errno.ENOSPC
        Upgrade(old).failed(errno.ENOSPC)
        ours.sendall(message(1, VERSION, version_payload()))
        assert old.readable()
        old.attach()
        with Client(old, attach=False, sock=ours) as client:
            client.sock.settimeout(20)
            assert client.recv().cmd == VERSION
            client.write(BAR0, 0, b"1234")
            assert client.read(BAR0, 0, 4) == b"1234"


# --- other users ----------------------------------------------------------------------

NOBODY = 65534


@contextlib.contextmanager
def as_nobody(what):
    """Runs it in a process of another user, which has none of our descriptors but the last end of a pair of sockets, that
    it is given; and has what it returned in a list, which is filled at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            ours.close()
            for fd in open_fds() - {str(fd) for fd in (0, 1, 2, theirs.fileno())}:
                with contextlib.suppress(OSError):
                    os.close(int(fd))
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            status = what(theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    result = []
    try:
        yield ours, result
    finally:
        ours.close()
        result.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def answer(old):
    """What comes of an attempt, which may take several calls: who connects has not said anything yet."""
    while True:
        assert select.select([call("vfux_get_hand_over_fd", old.p)], [], [], GUARD)[0]
        if outcome := old.hand_over():
            return outcome


@pytest.fixture
def open_to_all():
    """A device whose sockets anybody may connect to."""
    before = len(open_fds())
    with device(dma=True) as old:
        with old.connect() as client:
            # The kernel lets them in; the library has to look.
            os.chmod(old.dir.name, 0o755)
            os.chmod(old.control, 0o777)
            yield old, client
    assert len(open_fds()) == before


def test_another_user_may_not_take_over(open_to_all):
    old, client = open_to_all
    client.write(BAR0, 0, b"unharmed")
    control = old.control
    before = len(open_fds())

    def take(_sock):
        c.set_errno(0)
        assert lib.vfux_create_ctx_taking_over(control.encode(), TIMEOUT, ATTACH_NB, None, 0) is None
        return c.get_errno()
    with as_nobody(take) as (sock, result):
        assert answer(old) == -errno.EPERM
    assert result == [errno.EPERM]
    assert "only the same user, or root, may take over" in old.lines[-1][1], old.lines[-1]
    assert len(open_fds()) == before
    assert old.owned == [] and "save" not in old.events
    assert client.read(BAR0, 0, 8) == b"unharmed"
    # Who may, may still.
    old.upgrade(client)
    assert client.read(BAR0, 0, 8) == b"unharmed"


def test_another_user_hears_nothing_of_the_device_whatever_it_says(open_to_all):
    old, client = open_to_all
    for first in (HELLO, MEMORY, READY, HAVE):
        def ask(_sock, first=first):
            stranger = Stranger(old)
            stranger.say(first)
            heard = stranger.hear(keep=True)
            assert heard == (NO, errno.EPERM if first == HELLO else errno.EPROTO, None), heard
            assert stranger.kept == [] and stranger.hear() is None
            return 0
        with as_nobody(ask) as (_, result):
            assert answer(old) == -(errno.EPERM if first == HELLO else errno.EPROTO)
        assert result == [0]
    client.read(BAR0, 0, 4)


def test_root_may_take_over_from_another_user():
    """And the socket of the device, with the path, is another user's then, as before."""
    def serve(sock):
        old = Device(dma=True).serve_upgrades()
        sock.send(old.path.encode())
        client = old.connect()
        client.write(BAR0, 0, b"of another's")
        assert answer(old) == 1
        socket.send_fds(sock, [b"client"], [client.sock.fileno()])
        assert sock.recv(1) == b"", "until all is seen"
        old.dir.cleanup()
        return 0
    with as_nobody(serve) as (sock, result):
        path = sock.recv(200).decode()

        def create(_path, flags):
            return call("vfux_create_ctx_taking_over", (path + ".upgrade").encode(), TIMEOUT, flags, None, 0)
        with Device(dma=True, path=path, create=create) as new:
            assert call("vfux_take_over", new.p, TIMEOUT) == 1
            _, [fd], _, _ = socket.recv_fds(sock, 10, 1)
            with Client(new, attach=False, sock=socket.socket(fileno=fd)) as client:
                client.sock.settimeout(20)
                assert client.read(BAR0, 0, 12) == b"of another's"
    assert result == [0]
