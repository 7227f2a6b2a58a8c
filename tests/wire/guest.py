"""What the other side does while the library works, and what can be seen of the process.

A thread that answers DMA messages from memory of its own, messages that are
larger than a socket's buffer, and the process's mappings and descriptors.
"""
import contextlib
import ctypes as c
import os
import re
import select
import socket
import struct
import threading

from libvfu import *

MIB = 1 << 20


def answers(client):
    """The connection still works: device info comes as ever."""
    p = client.request(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert struct.unpack("<IIII", p) == (16, 3, 9, 5)
    assert client.nothing()


@contextlib.contextmanager
def attached(caps=None, version=None, **kw):
    """A context and its client; at the end the connection must still answer."""
    with Ctx(**kw) as ctx, ctx.connect(caps=caps, version=version) as client, cut_if_hanging(client):
        yield ctx, client
        answers(client)


@contextlib.contextmanager
def cut_if_hanging(client):
    """A library that waits for a message nobody will send gets the end of the connection instead."""
    def cut():
        for sock in (client.sock, client.twin):
            if sock:
                sock.shutdown(socket.SHUT_RDWR)
    timer = threading.Timer(60, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# --- DMA messages ---------------------------------------------------------------
class Guest:
    """A thread that answers DMA_READ and DMA_WRITE from `memory`, which begins at `base`.

    `messages` holds (command, address, count) of what came, `ids` the message
    ids, `replies` the replies that came on the same socket. `answer(guest,
    header, address, count, data)` may return other bytes to send.
    """

    def __init__(self, client, memory=b"", base=0, sock=None, answer=None):
        self.sock = sock or client.sock
        self.memory, self.base, self.answer = memory, base, answer
        self.messages, self.ids, self.replies, self.error = [], [], [], None

    def __enter__(self):
        self.stop_read, self.stop_write = os.pipe()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        os.close(self.stop_write)
        self.thread.join()
        os.close(self.stop_read)
        if self.error and not exc[0]:
            raise self.error

    def _run(self):
        try:
            self._serve()
        except BaseException as e:  # noqa: B902
            self.error = e
            # The server waits for a reply that will never come.
            self.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self):
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        poller.register(self.stop_read, select.POLLIN | select.POLLHUP)
        while True:
            ready = [fd for fd, _ in poller.poll(20000)]
            assert ready, "neither a message nor the end of the test"
            if self.sock.fileno() not in ready:
                return
            self._one()

    def _exactly(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            assert more, "end of file"
            data += more
        return data

    def _one(self):
        head = self._exactly(16)
        msg_id, cmd, size, flags, error = struct.unpack("<HHIII", head)
        body = self._exactly(size - 16)
        if flags & 15 == F_REPLY:
            self.replies.append(Reply(head + body, []))
            return
        assert cmd in (DMA_READ, DMA_WRITE), cmd
        assert (flags, error) == (0, 0)
        address, count = struct.unpack_from("<QQ", body)
        data = body[16:]
        assert len(data) == (count if cmd == DMA_WRITE else 0)
        self.messages.append((cmd, address, count))
        self.ids.append(msg_id)
        at = address - self.base
        other = self.answer(self, head, address, count, data) if self.answer else None
        if other is not None:
            self.sock.sendall(other)
            return
        assert 0 <= at and at + count <= len(self.memory), "outside of the guest's memory"
        payload = body[:16]
        if cmd == DMA_READ:
            payload += bytes(self.memory[at:at + count])
        else:
            self.memory[at:at + count] = data
        self.sock.sendall(message(msg_id, cmd, payload, F_REPLY))


def check_length(sg, length):
    """The library moves as much as the entry says, whatever the buffer's size."""
    if isinstance(sg, c.Array):
        assert sg[0].length <= length, "the test's buffer is too small"


def sgl_read(ctx, sg, length, flags=0, n=1):
    """vfu_sgl_read: the bytes."""
    check_length(sg, length)
    buf = c.create_string_buffer(max(length, 1))
    call("vfu_sgl_read", ctx.p, sg, n, buf, flags)
    return buf.raw[:length]


def sgl_write(ctx, sg, data, flags=0, n=1):
    """vfu_sgl_write."""
    check_length(sg, len(data))
    call("vfu_sgl_write", ctx.p, sg, n, c.create_string_buffer(bytes(data), max(len(data), 1)), flags)


def mark_dirty(ctx, sg, n=1):
    lib.vfu_sgl_mark_dirty(ctx.p, sg, n)


def is_mappable(ctx, sg):
    return lib.vfu_sg_is_mappable(ctx.p, sg)


def put(ctx, address, length, max_sgs=1):
    """Translates for writing and puts: the device has written there."""
    n, sg = ctx.sgl(address, length, max_sgs)
    assert n == max_sgs
    ctx.sgl_put(sg, n)


# --- messages larger than a socket's buffer -----------------------------------------
def exchange(client, data):
    """Sends a message and receives its reply, running the context in between. Returns the Reply.

    Everything is done in small steps in one thread, so neither side can wait for the other.
    """
    ctx, out, got, size = client.ctx, memoryview(data), bytearray(), None
    client.sock.setblocking(False)
    try:
        for _ in range(1000000):
            with contextlib.suppress(BlockingIOError):
                if out:
                    out = out[client.sock.send(out):]
            ctx.run()
            with contextlib.suppress(BlockingIOError):
                part = client.sock.recv(16 - len(got) if size is None else min(size - len(got), MIB))
                assert part, "end of file in a message"
                got += part
                if size is None and len(got) == 16:
                    size = struct.unpack_from("<I", got, 4)[0]
            if len(got) == size:
                return Reply(got, [])
        raise AssertionError("the message does not come to an end")
    finally:
        client.sock.settimeout(20)


# --- the process ------------------------------------------------------------------
def named_memfd(name, size, content=None):
    """A memory file that can be recognised in /proc/self/maps."""
    fd = os.memfd_create(name)
    os.ftruncate(fd, size)
    if content:
        os.pwrite(fd, content, 0)
    return fd


def mappings(name):
    """(start, length, permissions, file offset) of the mappings of a named memory file."""
    found = []
    with open("/proc/self/maps") as f:
        for line in f:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+\s+(.*)", line)
            if m and m[5].startswith(name):
                start, end, offset = int(m[1], 16), int(m[2], 16), int(m[4], 16)
                found.append((start, end - start, m[3], offset))
    return found


libc_read, libc_write = (getattr(c.CDLL(None, use_errno=True), name) for name in ("read", "write"))
libc_read.restype = libc_write.restype = c.c_ssize_t


def file_mappings(name):
    return mappings(f"/memfd:{name} ")


def fds_of(name):
    """The descriptors of a named memory file that the process has open."""
    found = []
    for n in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{n}").startswith(f"/memfd:{name} "):
                found.append(int(n))
    return sorted(found)


def through_a_pipe(moves):
    """Calls moves(reading, writing) with the ends of a pipe: the system moves bytes of the process where loads and stores
    would end it. (So does /proc/self/mem, but in QEMU's user mode that is the emulator's memory.)"""
    ends = os.pipe()
    try:
        return moves(*ends)
    finally:
        for end in ends:
            os.close(end)


def moved_by(function, fd, address, n):
    count = function(fd, c.c_void_p(address), c.c_size_t(n))
    if count < 0:
        raise OSError(c.get_errno(), os.strerror(c.get_errno()))
    return count


def peek(address, n):
    """Memory of the process; an error instead of a signal where it can't be touched."""
    def moves(reading, writing):
        found = b""
        while len(found) < n:
            part = moved_by(libc_write, writing, address + len(found), min(n - len(found), PAGE))
            found += os.read(reading, part)
        return found
    return through_a_pipe(moves)


def poke(address, data):
    def moves(reading, writing):
        done = 0
        while done < len(data):
            part = os.write(writing, data[done:done + PAGE])
            assert moved_by(libc_read, reading, address + done, part) == part
            done += part
    through_a_pipe(moves)


def resident():
    """Anonymous memory of the process that is resident, in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:")) * 1024
