"""What tests of the connection need beside libvfu: threads for the side that blocks, long messages, standard requests."""
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import termios
import threading

from libvfu import *

GUARD = 30  # seconds after which something that must happen is taken to never happen

INFO_REQUEST = struct.pack("<IIII", 16, 0, 0, 0)
INFO_REPLY = struct.pack("<IIII", 16, 3, 9, 5)


def info(msg_id, flags=0):
    """A whole DEVICE_GET_INFO message: the plainest request there is."""
    return message(msg_id, GET_INFO, INFO_REQUEST, flags)


def is_info(reply, msg_id):
    return (reply.msg_id, reply.cmd, reply.flags, reply.error, reply.payload, reply.fds) == \
        (msg_id, GET_INFO, F_REPLY, 0, INFO_REPLY, [])


def alive(client):
    """Asserts that the connection is in step: a request is executed by one call and answered."""
    assert client.nothing(), "something came that nobody asked for"
    assert client.request(GET_INFO, INFO_REQUEST) == INFO_REPLY
    assert client.nothing()


def region_write(msg_id, region, offset, data, flags=0):
    return message(msg_id, REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data, flags)


def region_read(msg_id, region, offset, count, flags=0):
    return message(msg_id, REGION_READ, struct.pack("<QII", offset, region, count), flags)


def dma_map(msg_id, addr, size, flags=MAP_READ | MAP_WRITE, offset=0, header_flags=0):
    return message(msg_id, DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, addr, size), header_flags)


def is_error(reply, msg_id, cmd, number):
    """Whether this is an error reply: a header and nothing else."""
    return reply.raw == header(msg_id, cmd, 16, F_REPLY | F_ERROR, number) and reply.fds == []


def lost(ctx, times=3):
    """Asserts that the connection is gone for the caller, as often as it asks."""
    for _ in range(times):
        fails(errno.ENOTCONN, ctx.run)


def until_lost(ctx):
    """Calls whenever the poll descriptor says so until the loss is reported; nothing is executed before.

    (A call reads once, so the end of file behind a part of a message is met by the next one.)
    """
    for _ in range(10):
        assert ctx.readable(), "the poll descriptor is silent though the loss is not reported"
        try:
            assert ctx.run() == 0
        except Failed as e:
            assert e.errno == errno.ENOTCONN
            return lost(ctx)
    raise AssertionError("the loss is never reported")


def end_of_file(sock):
    """Whether the stream ends here in good order (no reset, no byte left)."""
    return sock.recv(1) == b""


def poll_driven(ctx, more):
    """A caller that calls vfu_run_ctx only when the poll descriptor says so, while `more()`.

    Returns what the calls returned.
    """
    counts = []
    while more():
        assert ctx.readable(GUARD * 1000), "the poll descriptor is silent though there is something to do"
        counts.append(ctx.run())
    return counts


class Background(threading.Thread):
    """Runs f in a thread: for calls that block. The thread lives on until its result is fetched."""

    def __init__(self, f, *args):
        super().__init__(daemon=True)
        self.f, self.args = f, args
        self.value = self.error = None
        self.done, self.release = threading.Event(), threading.Event()
        self.start()

    def run(self):
        try:
            self.value = self.f(*self.args)
        except BaseException as e:  # handed to result()
            self.error = e
        self.done.set()
        self.release.wait()

    def result(self):
        finished = self.done.wait(GUARD)
        self.release.set()
        assert finished, "the call does not return"
        self.join()
        if self.error is not None:
            raise self.error
        return self.value

    def interrupt(self):
        """Sends signals until f has returned: the first may come before f waits."""
        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            for _ in range(GUARD * 100):
                signal.pthread_kill(self.ident, signal.SIGUSR1)
                if self.done.wait(0.01):
                    return
        finally:
            signal.signal(signal.SIGUSR1, previous)


def pump(ctx, client, data):
    """Sends more than the socket takes at once, running the context in between; what the calls returned, summed."""
    view, total = memoryview(data), 0
    while view:
        if select.select([], [client.sock], [], 0)[1]:
            view = view[client.sock.send(view):]
        else:
            total += ctx.run()
    return total


def sleeps(thread):
    """How often a thread has gone to sleep, if it sleeps now; else None."""
    with open(f"/proc/self/task/{thread.native_id}/status") as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    return int(status["voluntary_ctxt_switches"]) if status["State"][0] == "S" else None


def unread(sock):
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]


def until(what, condition):
    for _ in range(GUARD * 100):
        if condition():
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"never: {what}")


def recv_exactly(sock, count):
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 16))
        assert part, "end of file"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def eventfd(value=0):
    return os.eventfd(value, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if hasattr(os, "eventfd") else _eventfd(value)


def _eventfd(value):
    libc = c.CDLL(None, use_errno=True)
    fd = libc.eventfd(value, 0o2000000 | 0o4000)
    assert fd >= 0
    return fd


class Room:
    """While entered, the process can open just `free` more descriptors."""

    def __init__(self, free):
        self.free = free

    def __enter__(self):
        self.old = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = {int(n) for n in open_fds()}
        opened = {fd for fd in opened if os.path.exists(f"/proc/self/fd/{fd}")}  # not the listing itself
        limit = next(n for n in range(4096) if n - len([fd for fd in opened if fd < n]) == self.free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, self.old[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.old)


def names_of(fd):
    """The numbers under which this process has the open file of a socket or eventfd descriptor."""
    wanted = os.readlink(f"/proc/self/fd/{fd}")
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == wanted:
                found.append(int(name))
        except FileNotFoundError:
            pass
    return found
