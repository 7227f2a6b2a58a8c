"""Contexts over sockets that were handed in, and in the place of a server that is no more."""
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import tempfile
import threading

import pytest
from libvfu import *

import ext  # noqa: F401 (declares the functions)

NOBODY = 65534  # a user, and a group, without any rights

BLOCKING = pytest.mark.parametrize("nonblocking", [True, False])


def over(fd):
    return lambda _path, flags: call("vfux_create_ctx_over_fd", fd, flags, None, 0)


def replacing(path, flags):
    return call("vfux_create_ctx_replacing", path, flags, None, 0)


def listening(path, kind=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    sock.listen(4)
    return sock


def has_flag(fd, flag):
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & flag)


def leave_stale(path):
    """As a server that was killed does."""
    listening(path).close()


def serves(ctx):
    """Whether a client is served."""
    with ctx.connect() as client:
        client.write(BAR0, 8, b"abcd")
        assert client.read(BAR0, 8, 4) == b"abcd"
    fails(errno.ENOTCONN, ctx.run)


# --- a socket that listens -----------------------------------------------------

@BLOCKING
def test_a_listening_socket_serves_one_client_after_the_other(tmp_path, nonblocking):
    path = str(tmp_path / "s")
    sock = listening(path)
    sock.setblocking(not nonblocking)
    with Ctx(nonblocking=nonblocking, path=path, create=over(os.dup(sock.fileno()))) as ctx:
        assert has_flag(sock.fileno(), os.O_NONBLOCK) == nonblocking
        ctx.memory_region(BAR0, PAGE)
        if nonblocking:
            fails(errno.EAGAIN, ctx.attach)
            for _ in range(3):
                serves(ctx)
        else:
            def client():
                with socket.socket(socket.AF_UNIX) as c:
                    c.connect(path)
                    c.sendall(message(1, VERSION, version_payload()))
                    assert c.recv(1 << 16)[:2] == b"\1\0"
            for _ in range(3):
                thread = threading.Thread(target=client, daemon=True)
                thread.start()
                ctx.attach()
                fails(errno.ENOTCONN, ctx.run)
                thread.join()
    sock.close()


def test_the_listening_socket_is_left_to_who_made_it(tmp_path):
    """systemd keeps it, and starts the service again with it: neither the path nor who waits there is touched."""
    path = str(tmp_path / "s")
    sock = listening(path)
    ctx = Ctx(path=path, create=over(os.dup(sock.fileno())))
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(path)
    ctx.destroy()
    assert os.path.exists(path)
    accepted, _ = sock.accept()
    waiting.sendall(b"x")
    assert accepted.recv(1) == b"x"
    with Ctx(path=path, create=over(os.dup(sock.fileno()))) as again:
        again.memory_region(BAR0, PAGE)
        serves(again)
    sock.close()


def test_the_descriptor_is_the_contexts_if_it_succeeds_and_is_not_inherited(tmp_path):
    sock = listening(str(tmp_path / "s"))
    fd = os.dup(sock.fileno())
    os.set_inheritable(fd, True)
    before = len(open_fds())
    ctx = Ctx(path=sock.getsockname(), create=over(fd))
    assert not os.get_inheritable(fd)
    ctx.destroy()
    assert len(open_fds()) == before - 1
    sock.close()


def test_the_poll_descriptor_tells_of_a_client(tmp_path):
    path = str(tmp_path / "s")
    sock = listening(path)
    with Ctx(path=path, create=over(os.dup(sock.fileno()))) as ctx:
        assert not ctx.readable()
        client = ctx.connect(attach=False)
        assert ctx.readable()
        client.close()
    sock.close()


# --- a socket that is connected ------------------------------------------------

@BLOCKING
@pytest.mark.parametrize("was_nonblocking", [True, False])
def test_a_connected_socket_has_one_client(nonblocking, was_nonblocking):
    ours, theirs = socket.socketpair()
    theirs.setblocking(not was_nonblocking)
    with Ctx(nonblocking=nonblocking, create=over(theirs.detach())) as ctx:
        ctx.memory_region(BAR0, PAGE)
        if nonblocking:
            # The client is there: the next call has something to do, and then waits for its message.
            assert ctx.readable()
            fails(errno.EAGAIN, ctx.attach)
            assert not ctx.readable()
            with ctx.connect(sock=ours) as client:
                client.write(BAR0, 0, b"12345678")
                assert client.read(BAR0, 0, 8) == b"12345678"
                assert not ctx.readable()
        else:
            ours.sendall(message(1, VERSION, version_payload()))
            ours.sendall(message(2, DEVICE_RESET))
            ours.shutdown(socket.SHUT_WR)
            ctx.attach()
        fails(errno.ENOTCONN, ctx.run)
        for _ in range(2):
            fails(errno.ENOTCONN, ctx.attach)
            fails(errno.ENOTCONN, ctx.run)
            if nonblocking:
                assert not ctx.readable()


def test_a_client_that_was_handed_in_and_is_not_taken_on_is_disconnected():
    ours, theirs = socket.socketpair()
    before = len(open_fds())
    Ctx(create=over(theirs.detach())).destroy()
    assert ours.recv(1) == b""
    assert len(open_fds()) == before - 1


def test_a_client_that_cannot_be_agreed_with_was_the_only_one():
    ours, theirs = socket.socketpair()
    with Ctx(create=over(theirs.detach())) as ctx:
        ours.sendall(message(1, VERSION, version_payload(major=7)))
        fails(errno.EINVAL, ctx.attach)
        fails(errno.ENOTCONN, ctx.attach)


# --- what is refused -----------------------------------------------------------

def others():
    reading, writing = os.pipe()
    os.close(writing)
    yield "a pipe", reading, errno.ENOTSOCK
    yield "UDP", socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(), errno.ENOTSUP
    yield "TCP", socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), errno.ENOTSUP
    yield "datagrams", socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].detach(), errno.ENOTSUP
    yield "packets", socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].detach(), errno.ENOTSUP
    yield "not connected", socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(), errno.ENOTCONN


def test_what_is_no_such_socket_is_refused_and_stays_the_callers():
    for what, fd, number in others():
        flags = fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)
        fails(number, over(fd), None, ATTACH_NB)
        assert (fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)) == flags, what
        os.close(fd)


# --- in the place of another ---------------------------------------------------

def test_where_nothing_is_it_is_as_ever(tmp_path):
    path = str(tmp_path / "s")
    with Ctx(path=path, create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)
        assert os.listdir(tmp_path) == ["s"]
    assert os.listdir(tmp_path) == []


def test_a_stale_socket_is_replaced(tmp_path):
    path = str(tmp_path / "s")
    leave_stale(path)
    fails(errno.EADDRINUSE, Ctx, path=path)
    with Ctx(path=path, create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)
        assert os.listdir(tmp_path) == ["s"]
    assert os.listdir(tmp_path) == []


def test_after_kill_9_nobody_has_to_unlink_anything(tmp_path):
    path = str(tmp_path / "s")
    ready, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            ctx = Ctx(path=path, create=replacing)
            os.write(says, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(says)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    fails(errno.EADDRINUSE, Ctx, path=path, create=replacing)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with Ctx(path=path, create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@pytest.mark.parametrize("listens", [True, False])
def test_a_socket_that_somebody_has_is_left_alone_and_notices_nothing(tmp_path, kind, listens):
    path = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    if listens and kind != socket.SOCK_DGRAM:
        sock.listen(1)
    before = os.stat(path).st_ino
    fails(errno.EADDRINUSE, Ctx, path=path, create=replacing)
    assert os.stat(path).st_ino == before
    assert os.listdir(tmp_path) == ["s"]
    # Nobody has called.
    assert not select.select([sock], [], [], 0)[0] or not listens
    sock.close()


def test_a_server_that_waits_for_a_client_is_not_disturbed(tmp_path):
    path = str(tmp_path / "s")
    with Ctx(path=path) as ctx:
        ctx.memory_region(BAR0, PAGE)
        fails(errno.EADDRINUSE, Ctx, path=path, create=replacing)
        assert not ctx.readable()
        fails(errno.EAGAIN, ctx.attach)
        serves(ctx)


@pytest.mark.parametrize("make", [lambda path: open(path, "w").close(), os.mkdir, os.mkfifo,
                                  lambda path: os.symlink("/nowhere/at/all", path)])
def test_what_is_no_socket_is_left_alone(tmp_path, make):
    path = str(tmp_path / "s")
    make(path)
    before = os.lstat(path).st_ino
    fails(errno.EADDRINUSE, Ctx, path=path, create=replacing)
    assert os.lstat(path).st_ino == before
    assert os.listdir(tmp_path) == ["s"]


def test_what_a_killed_one_left_on_the_way_does_no_harm(tmp_path):
    path = str(tmp_path / "s")
    for name in ("s", "s.new"):
        leave_stale(str(tmp_path / name))
    (tmp_path / "s.lock").write_text("")
    with Ctx(path=path, create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)
        assert os.listdir(tmp_path) == ["s"]


def test_who_has_the_turn_has_the_path(tmp_path):
    path = str(tmp_path / "s")
    leave_stale(path)
    with open(tmp_path / "s.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(errno.EADDRINUSE, Ctx, path=path, create=replacing)
    with Ctx(path=path, create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)


def test_of_many_that_start_at_once_one_serves(tmp_path):
    """And whoever connects meanwhile finds a socket: at no time is there none."""
    path = str(tmp_path / "s")
    for _ in range(10):
        leave_stale(path)
        go, gone = os.pipe()
        children = []
        for _ in range(8):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.close(gone)
                    os.read(go, 1)
                    try:
                        ctx = Ctx(path=path, create=replacing)
                        os.write(writing, b"1")
                        signal.pause()
                    except Failed as e:
                        os.write(writing, b"0" if e.errno == errno.EADDRINUSE else b"?")
                finally:
                    os._exit(0)
            os.close(writing)
            children.append((child, reading))
        os.close(go)
        os.close(gone)
        waiting = {reading for _, reading in children}
        told = b""
        while waiting:
            # Never FileNotFoundError.
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                assert sock.connect_ex(path) in (0, errno.ECONNREFUSED, errno.EAGAIN)
            for reading in select.select(list(waiting), [], [], 0)[0]:
                told += os.read(reading, 1)
                os.close(reading)
                waiting.discard(reading)
        assert sorted(told) == sorted(b"1" + b"0" * 7)
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.unlink(path)
        assert os.listdir(tmp_path) == []


def test_the_path_is_removed_only_while_it_is_the_contexts(tmp_path):
    path = str(tmp_path / "s")
    leave_stale(path)
    ctx = Ctx(path=path, create=replacing)
    os.unlink(path)
    other = listening(path)
    ctx.destroy()
    assert os.path.exists(path)
    other.close()


def test_a_path_has_room_for_the_names_beside_it(tmp_path):
    for length, number in ((102, 0), (103, errno.ENAMETOOLONG)):
        path = str(tmp_path / "s")
        path += "s" * (length - len(path))
        leave_stale(path)
        if number:
            fails(number, Ctx, path=path, create=replacing)
        else:
            Ctx(path=path, create=replacing).destroy()


def is_refused_with(number, path):
    """Whether another user, who may do nothing with it, is refused to take a path."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            fails(number, Ctx, path=path, create=replacing)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def test_no_socket_that_may_not_be_connected_to():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # others get as far as the socket
        path = os.path.join(folder, "s")
        leave_stale(path)
        os.chmod(path, 0)
        assert is_refused_with(errno.EACCES, path)
        assert os.listdir(folder) == ["s"]


def test_without_a_path_there_is_nothing_to_replace():
    with Ctx(path="", create=replacing) as ctx:
        ctx.memory_region(BAR0, PAGE)
        serves(ctx)
