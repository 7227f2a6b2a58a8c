"""The C library as Python sees it, and a client that speaks to it over a raw socket.

Nothing here is shared with the library: structures and numbers are written
down again, from the specification and from the public header.
"""
import array
import ctypes as c
import errno
import json
import mmap
import os
import select
import socket
import struct
import tempfile

LIB = os.environ.get("VFU_LIB") or os.path.join(
    os.path.dirname(__file__), "..", "..", "target", "debug", "libvfio_user.so")
lib = c.CDLL(LIB, use_errno=True)

PAGE = mmap.PAGESIZE

# --- constants of the protocol ------------------------------------------------
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS = 1, 2, 3, 4, 5, 6
GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE = 7, 8, 9, 10, 11, 12
DEVICE_RESET, REGION_WRITE_MULTI, DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 13, 15, 16, 17, 18
F_REPLY, F_NO_REPLY, F_ERROR = 1, 16, 32
MAX_XFER = 1 << 20
MAX_MSG = MAX_XFER + 32

DATA_NONE, DATA_BOOL, DATA_EVENTFD = 1, 2, 4
ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER = 8, 16, 32

MAP_READ, MAP_WRITE, MAP_MMAP, MAP_FILE_IO = 1, 2, 4, 8
UNMAP_BITMAP, UNMAP_ALL = 1, 2

FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
F_MIGRATION, F_STATE, F_LOG_START, F_LOG_STOP, F_LOG_REPORT = 1, 2, 6, 7, 8
S_ERROR, S_STOP, S_RUNNING, S_STOP_COPY, S_RESUMING, S_RUNNING_P2P, S_PRE_COPY, S_PRE_COPY_P2P = range(8)
# the numbers that the transition callback gets
CB_STOP, CB_RUNNING, CB_STOP_COPY, CB_PRE_COPY, CB_RESUME = range(5)

# --- constants of the C API ---------------------------------------------------
ATTACH_NB = 1
RW, MEM, ALWAYS_CB, BITS_64, PREFETCH = 3, 4, 8, 16, 32
READ, WRITE = 1, 2
BAR0, BAR1, BAR2, BAR3, BAR4, BAR5, ROM, CFG, VGA = range(9)
INTX, MSI, MSIX, ERR, REQ = range(5)
CAP_EXTENDED, CAP_CALLBACK, CAP_READONLY = 1, 2, 4
CONVENTIONAL, PCI_X_1, PCI_X_2, EXPRESS = range(4)
RESET_DEVICE, RESET_LOST_CONN, RESET_FLR = range(3)
DIRECT = 1
PROT_READ, PROT_WRITE = 1, 2


class iovec(c.Structure):
    _fields_ = [("base", c.c_void_p), ("len", c.c_size_t)]


class dma_info(c.Structure):
    _fields_ = [("iova", iovec), ("vaddr", c.c_void_p), ("mapping", iovec),
                ("page_size", c.c_size_t), ("prot", c.c_uint32)]


class dma_sg(c.Structure):
    _fields_ = [("dma_addr", c.c_uint64), ("region", c.c_uint64), ("length", c.c_uint64),
                ("offset", c.c_uint64), ("writeable", c.c_bool), ("others", c.c_ubyte * 7)]


REGION_CB = c.CFUNCTYPE(c.c_ssize_t, c.c_void_p, c.POINTER(c.c_char), c.c_size_t, c.c_int64, c.c_bool,
                        use_errno=True)
INT_CB = c.CFUNCTYPE(c.c_int, c.c_void_p, use_errno=True)
RESET_CB = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint, use_errno=True)
DMA_CB = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(dma_info), use_errno=True)
IRQ_CB = c.CFUNCTYPE(None, c.c_void_p, c.c_uint32, c.c_uint32, c.c_bool, use_errno=True)
LOG_CB = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p, use_errno=True)
TRANSITION_CB = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint, use_errno=True)
DATA_CB = c.CFUNCTYPE(c.c_ssize_t, c.c_void_p, c.c_void_p, c.c_uint64, use_errno=True)


class migration_callbacks(c.Structure):
    _fields_ = [("version", c.c_int), ("transition", TRANSITION_CB),
                ("read_data", DATA_CB), ("write_data", DATA_CB)]


def _declare(name, result, *args):
    """A function's types. Where a library, an older one, lacks the function, the tests that call it fail, no others."""
    f = getattr(lib, name, None)
    if f is None:
        return
    f.restype = result
    f.argtypes = args


P = c.c_void_p
_declare("vfu_create_ctx", P, c.c_uint, c.c_char_p, c.c_int, P, c.c_uint)
_declare("vfu_destroy_ctx", None, P)
_declare("vfu_realize_ctx", c.c_int, P)
_declare("vfu_attach_ctx", c.c_int, P)
_declare("vfu_run_ctx", c.c_int, P)
_declare("vfu_get_poll_fd", c.c_int, P)
_declare("vfu_get_private", P, P)
_declare("vfu_setup_log", c.c_int, P, P, c.c_int)
_declare("vfu_setup_region", c.c_int, P, c.c_int, c.c_size_t, P, c.c_int, P, c.c_uint32, c.c_int, c.c_uint64)
_declare("vfu_setup_device_reset_cb", c.c_int, P, P)
_declare("vfu_setup_device_quiesce_cb", None, P, P)
_declare("vfu_device_quiesced", c.c_int, P, c.c_int)
_declare("vfu_setup_device_dma", c.c_int, P, c.c_size_t, P, P)
_declare("vfu_setup_device_nr_irqs", c.c_int, P, c.c_uint, c.c_uint32)
_declare("vfu_setup_irq_state_callback", c.c_int, P, c.c_uint, P)
_declare("vfu_irq_trigger", c.c_int, P, c.c_uint32)
_declare("vfu_setup_device_migration_callbacks", c.c_int, P, P)
_declare("vfu_create_ioeventfd", c.c_int, P, c.c_uint32, c.c_int, c.c_size_t, c.c_uint32, c.c_uint32,
         c.c_uint64, c.c_int, c.c_size_t)
_declare("vfu_pci_init", c.c_int, P, c.c_uint, c.c_int, c.c_int)
_declare("vfu_pci_set_id", None, P, c.c_uint16, c.c_uint16, c.c_uint16, c.c_uint16)
_declare("vfu_pci_set_class", None, P, c.c_uint8, c.c_uint8, c.c_uint8)
_declare("vfu_pci_get_config_space", P, P)
_declare("vfu_pci_add_capability", c.c_ssize_t, P, c.c_size_t, c.c_int, P)
_declare("vfu_pci_find_capability", c.c_size_t, P, c.c_bool, c.c_int)
_declare("vfu_pci_find_next_capability", c.c_size_t, P, c.c_bool, c.c_size_t, c.c_int)
_declare("vfu_addr_to_sgl", c.c_int, P, c.c_size_t, c.c_size_t, P, c.c_size_t, c.c_int)
_declare("vfu_sgl_get", c.c_int, P, P, P, c.c_size_t, c.c_int)
_declare("vfu_sgl_put", None, P, P, P, c.c_size_t)
_declare("vfu_sgl_mark_dirty", None, P, P, c.c_size_t)
_declare("vfu_sgl_read", c.c_int, P, P, c.c_size_t, P, c.c_int)
_declare("vfu_sgl_write", c.c_int, P, P, c.c_size_t, P, c.c_int)
_declare("vfu_sg_is_mappable", c.c_bool, P, P)
_declare("dma_sg_size", c.c_size_t)


class Failed(Exception):
    """A C function returned its error value."""

    def __init__(self, name, number):
        super().__init__(f"{name}: {errno.errorcode.get(number, number)}")
        self.errno = number


def call(name, *args, ok=lambda r: r != -1 and r is not None):
    """Calls a C function; raises Failed with errno if it says that it failed."""
    c.set_errno(0)
    r = getattr(lib, name)(*args)
    if not ok(r):
        raise Failed(name, c.get_errno())
    return r


class Ctx:
    """A context with a device whose callbacks note what they saw in `events`.

    Behaviour can be changed through the attributes: `quiesce_errno` (0, or what
    the quiesce callback fails with), `reset_errno`, `region` (a function
    (buf, count, offset, is_write) -> count), `on_dma_register(info)`, `on_reset`...
    """

    def __init__(self, nonblocking=True, path=None, quiesce=False, dma=False, migration=False,
                 max_regions=64, realize=True, log=True, reset=True, create=None):
        self.events, self.lines, self.keep = [], [], []
        self.dir = tempfile.TemporaryDirectory() if path is None else None
        self.path = path if path is not None else os.path.join(self.dir.name, "s")
        flags = ATTACH_NB if nonblocking else 0
        # `create` makes the context in another way: it is given the path and the flags.
        self.p = (create or self._create)(self.path.encode(), flags)
        self.quiesce_errno = self.reset_errno = self.transition_errno = 0
        self.results = {}
        self.polled = None
        self.on_dma_register = self.on_dma_unregister = self.on_reset = self.on_transition = lambda *a: None
        self.read_data = self.write_data = None
        if log:
            call("vfu_setup_log", self.p, self.cb(LOG_CB, self._log), 7)
        if reset:
            call("vfu_setup_device_reset_cb", self.p, self.cb(RESET_CB, self._reset))
        if quiesce:
            lib.vfu_setup_device_quiesce_cb(self.p, self.cb(INT_CB, self._quiesce))
        if dma:
            call("vfu_setup_device_dma", self.p, max_regions, self.cb(DMA_CB, self._dma_register),
                 self.cb(DMA_CB, self._dma_unregister))
        if migration:
            self.setup_migration()
        if realize:
            self.realize()

    @staticmethod
    def _create(path, flags):
        return call("vfu_create_ctx", 0, path, flags, None, 0)

    def cb(self, kind, f):
        """A C function pointer that lives as long as the context."""
        f = kind(f)
        self.keep.append(f)
        return c.cast(f, c.c_void_p)

    def _log(self, _ctx, level, text):
        self.lines.append((level, text.decode()))

    def _quiesce(self, _ctx):
        self.events.append("quiesce")
        return self._outcome("quiesce", self.quiesce_errno)

    def _reset(self, _ctx, kind):
        self.events.append(("reset", kind))
        self.on_reset(kind)
        return self._outcome("reset", self.reset_errno)

    def _dma_register(self, _ctx, info):
        i = info.contents
        self.events.append(("register", i.iova.base or 0, i.iova.len))
        self.on_dma_register(i)

    def _dma_unregister(self, _ctx, info):
        i = info.contents
        self.events.append(("unregister", i.iova.base or 0, i.iova.len))
        self.on_dma_unregister(i)

    def _transition(self, _ctx, state):
        self.events.append(("state", state))
        self.on_transition(state)
        return self._outcome("transition", self.transition_errno)

    def _read_data(self, _ctx, buf, count):
        self.events.append(("read_data", count))
        data = self.read_data(count)
        if isinstance(data, int):
            return self._fail(data) if data > 0 else data
        c.memmove(buf, data, min(len(data), count))
        return len(data)

    def _write_data(self, _ctx, buf, count):
        data = c.string_at(buf, count)
        self.events.append(("write_data", data))
        r = self.write_data(data) if self.write_data else count
        return r

    def _outcome(self, callback, number):
        return self.results[callback] if callback in self.results else self._fail(number)

    @staticmethod
    def _fail(number):
        if number == 0:
            return 0
        c.set_errno(number)
        return -1

    def setup_migration(self, version=2):
        cbs = migration_callbacks()
        cbs.version = version
        for name, kind, f in (("transition", TRANSITION_CB, self._transition),
                              ("read_data", DATA_CB, self._read_data),
                              ("write_data", DATA_CB, self._write_data)):
            g = kind(f)
            self.keep.append(g)
            setattr(cbs, name, g)
        return call("vfu_setup_device_migration_callbacks", self.p, c.byref(cbs))

    def setup_region(self, idx, size, cb=None, flags=RW, areas=None, fd=-1, offset=0):
        n, arr = 0, None
        if areas is not None:
            n = len(areas)
            arr = (iovec * max(n, 1))(*[iovec(o, s) for o, s in areas])
        f = self.cb(REGION_CB, cb) if cb else None
        return call("vfu_setup_region", self.p, idx, size, f, flags, arr, n, fd, offset)

    def memory_region(self, idx, size, flags=RW, **kw):
        """A region that is plain memory; returns it. Accesses go to `events`."""
        mem = bytearray(size)

        def access(_ctx, buf, count, offset, is_write):
            self.events.append(("write" if is_write else "read", idx, offset, count))
            if is_write:
                mem[offset:offset + count] = c.string_at(buf, count)
            else:
                c.memmove(buf, bytes(mem[offset:offset + count]), count)
            return count
        self.setup_region(idx, size, access, flags, **kw)
        return mem

    def realize(self):
        return call("vfu_realize_ctx", self.p)

    def attach(self):
        r = call("vfu_attach_ctx", self.p)
        self.polled = None
        return r

    def executes(self, count):
        """Calls until `count` requests are executed: usually once, but a call that takes long ends early."""
        executed = self.run()
        while 0 < executed < count:
            more = self.run()
            assert more > 0, f"{executed} of {count}"
            executed += more
        assert executed == count

    def run(self):
        """vfu_run_ctx: the count. errno is then c.get_errno() and in self.errno."""
        c.set_errno(0)
        r = lib.vfu_run_ctx(self.p)
        self.errno = c.get_errno()
        if r == -1:
            if self.errno == errno.ENOTCONN:
                self.polled = None
            raise Failed("vfu_run_ctx", self.errno)
        return r

    def run_to(self, count):
        """Runs until so many requests have been executed: in one call, but for a machine that is so busy
        that the first one's time is over before it has looked at the others."""
        done = self.run()
        while 0 < done < count and self.readable():
            done += self.run()
        return done == count

    def quiesced(self, number=0):
        return call("vfu_device_quiesced", self.p, number)

    def poll_fd(self):
        return call("vfu_get_poll_fd", self.p)

    def readable(self, timeout=0):
        """What poll says, the descriptor being asked for no more often than callers have to."""
        if self.polled is None:
            self.polled = select.poll()
            self.polled.register(self.poll_fd(), select.POLLIN)
        return bool(self.polled.poll(timeout))

    def config(self):
        """The live configuration space."""
        p = lib.vfu_pci_get_config_space(self.p)
        return p

    def pci_init(self, kind=EXPRESS):
        return call("vfu_pci_init", self.p, kind, 0, 0)

    def add_cap(self, data, pos=0, flags=0):
        buf = c.create_string_buffer(bytes(data), max(len(data), 1))
        return call("vfu_pci_add_capability", self.p, pos, flags, buf)

    def sgl(self, addr, length, max_sgs=1, prot=PROT_READ | PROT_WRITE):
        """(result, entries); raises Failed for -1."""
        sg = (dma_sg * max(max_sgs, 1))()
        c.set_errno(0)
        n = lib.vfu_addr_to_sgl(self.p, addr, length, sg, max_sgs, prot)
        if n == -1:
            raise Failed("vfu_addr_to_sgl", c.get_errno())
        return n, sg

    def sgl_get(self, sg, n=1, flags=0):
        iov = (iovec * max(n, 1))()
        call("vfu_sgl_get", self.p, sg, iov, n, flags)
        return iov

    def sgl_put(self, sg, n=1):
        lib.vfu_sgl_put(self.p, sg, (iovec * max(n, 1))(), n)

    def connect(self, **kw):
        """A client that is attached."""
        client = Client(self, **kw)
        return client

    def destroy(self):
        if self.p:
            p, self.p = self.p, None
            lib.vfu_destroy_ctx(p)
        if self.dir:
            self.dir.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.destroy()


def header(msg_id, cmd, size, flags=0, error=0):
    return struct.pack("<HHIII", msg_id, cmd, size, flags, error)


def message(msg_id, cmd, payload=b"", flags=0):
    return header(msg_id, cmd, 16 + len(payload), flags) + payload


def version_payload(caps=None, major=0, minor=2, text=None):
    if text is None:
        text = b"" if caps is None else json.dumps({"capabilities": caps}).encode() + b"\0"
    return struct.pack("<HH", major, minor) + text


class Reply:
    """A whole message from the server."""

    def __init__(self, data, fds):
        self.msg_id, self.cmd, self.size, self.flags, self.error = struct.unpack("<HHIII", data[:16])
        self.payload, self.fds, self.raw = data[16:], fds, data

    def close(self):
        for fd in self.fds:
            os.close(fd)


class Client:
    """A client. `ctx` is run by the test in the same thread: send, ctx.run(), receive."""

    def __init__(self, ctx, caps=None, version=None, attach=True, sock=None):
        self.ctx = ctx
        self.twin = None
        self.sock = sock or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        if sock is None:
            path = ctx.path if ctx.path else "\0" * 108
            self.sock.connect(path)
        self.next_id = 100
        self.server = None
        if attach:
            self.send(VERSION, version if version is not None else version_payload(caps))
            ctx.attach()
            reply = self.recv()
            assert reply.flags == F_REPLY and reply.cmd == VERSION, reply.raw
            assert struct.unpack("<H", reply.payload[:2]) == (0,)
            assert reply.payload[-1] == 0
            self.minor = struct.unpack("<H", reply.payload[2:4])[0]
            self.server = json.loads(reply.payload[4:-1])["capabilities"]
            if reply.fds:
                assert len(reply.fds) == 1
                self.twin = socket.socket(fileno=reply.fds[0])
                self.twin.settimeout(20)

    def send_raw(self, data, fds=(), sock=None):
        sock = sock or self.sock
        if fds:
            n = sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            assert n == len(data)
        else:
            sock.sendall(data)

    def send(self, cmd, payload=b"", fds=(), flags=0, msg_id=None):
        """Sends a command in one send; returns its id."""
        if msg_id is None:
            self.next_id = (self.next_id + 1) & 0xffff
            msg_id = self.next_id
        self.send_raw(message(msg_id, cmd, payload, flags), fds)
        return msg_id

    def recv(self, sock=None):
        """Receives one message with one recvmsg, checks that it is whole, and returns it."""
        sock = sock or self.sock
        # Peek first: messages that were gathered into one send come one by one.
        head = sock.recv(16, socket.MSG_PEEK)
        assert len(head) == 16, f"end of file or a part of a header: {head!r}"
        size = struct.unpack_from("<I", head, 4)[0]
        data, anc, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(253 * 4))
        fds = array.array("i")
        for level, kind, cmsg in anc:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(cmsg[:len(cmsg) - len(cmsg) % 4])
        while len(data) < size:
            more = sock.recv(size - len(data))
            assert more, "end of file in a message"
            data += more
        return Reply(data, list(fds))

    def nothing(self):
        """Whether nothing has come from the server."""
        # Asked of the kernel: recv with MSG_DONTWAIT would still wait for the socket's timeout.
        return not select.select([self.sock], [], [], 0)[0]

    def eof(self):
        """Whether the server has closed the connection, in good order."""
        return self.sock.recv(1) == b""

    def request(self, cmd, payload=b"", fds=(), expect=0, count=1, flags=0):
        """Sends, runs the context once, receives; checks id, command, errno.

        `expect` is the errno of the reply; `count` what vfu_run_ctx must return
        (None: anything). Returns the payload, with descriptors in self.fds.
        """
        msg_id = self.send(cmd, payload, fds, flags)
        got = self.ctx.run()
        if count is not None:
            assert got == count, f"vfu_run_ctx returned {got}"
        reply = self.recv()
        assert (reply.msg_id, reply.cmd) == (msg_id, cmd)
        assert reply.size == len(reply.raw)
        if expect:
            assert reply.flags == F_REPLY | F_ERROR, f"no error: {reply.raw!r}"
            assert reply.error == expect, f"errno {reply.error}, not {expect}"
            assert reply.payload == b"", "an error reply has a payload"
            assert self.ctx.errno == expect, "errno after vfu_run_ctx"
        else:
            assert reply.flags == F_REPLY, f"flags {reply.flags:#x}, errno {reply.error}"
            assert reply.error == 0
        self.fds = reply.fds
        return reply.payload

    def read(self, region, offset, count, **kw):
        p = self.request(REGION_READ, struct.pack("<QII", offset, region, count), **kw)
        if kw.get("expect"):
            return None
        assert p[:16] == struct.pack("<QII", offset, region, len(p) - 16)
        return p[16:]

    def write(self, region, offset, data, **kw):
        head = struct.pack("<QII", offset, region, len(data))
        p = self.request(REGION_WRITE, head + data, **kw)
        if not kw.get("expect"):
            assert p == head

    def map(self, addr, size, fd=None, offset=0, flags=MAP_READ | MAP_WRITE, **kw):
        return self.request(DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, addr, size),
                            fds=[] if fd is None else [fd], **kw)

    def unmap(self, addr, size, flags=0, **kw):
        return self.request(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, addr, size), **kw)

    def set_irqs(self, index, flags, start, count, data=b"", fds=(), argsz=None, **kw):
        argsz = 20 + len(data) if argsz is None else argsz
        return self.request(SET_IRQS, struct.pack("<IIIII", argsz, flags, index, start, count) + data, fds, **kw)

    def feature(self, number, data=b"", argsz=None, **kw):
        argsz = 8 + len(data) if argsz is None else argsz
        return self.request(DEVICE_FEATURE, struct.pack("<II", argsz, number) + data, **kw)

    def set_state(self, state, **kw):
        return self.feature(F_STATE | FEATURE_SET, struct.pack("<II", state, 0), **kw)

    def get_state(self):
        p = self.feature(F_STATE | FEATURE_GET, argsz=16)
        return struct.unpack("<IIII", p)[2]

    def log_start(self, page=PAGE, ranges=(), **kw):
        data = struct.pack("<QII", page, len(ranges), 0) + b"".join(struct.pack("<QQ", *r) for r in ranges)
        return self.feature(F_LOG_START | FEATURE_SET, data, **kw)

    def log_stop(self, **kw):
        return self.feature(F_LOG_STOP | FEATURE_SET, **kw)

    def report(self, iova, length, page=PAGE, argsz=None, **kw):
        """The dirty bitmap as an integer (bit i: page i)."""
        size = (length + page - 1) // page if page else 0
        size = (size + 63) // 64 * 8
        argsz = 32 + size if argsz is None else argsz
        p = self.feature(F_LOG_REPORT | FEATURE_GET, struct.pack("<QQQ", iova, length, page), argsz=argsz, **kw)
        if kw.get("expect"):
            return None
        assert len(p) == 32 + size
        assert p[:32] == struct.pack("<IIQQQ", 32 + size, F_LOG_REPORT | FEATURE_GET, iova, length, page)
        return int.from_bytes(p[32:], "little")

    def close(self):
        if self.twin:
            self.twin.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def memfd(size, content=None):
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    if content:
        os.pwrite(fd, content, 0)
    return fd


def open_fds():
    """The numbers of this process's open descriptors."""
    return set(os.listdir("/proc/self/fd"))


def fails(number, f, *args, **kw):
    """Asserts that f fails with this errno."""
    try:
        r = f(*args, **kw)
    except Failed as e:
        assert e.errno == number, f"errno {e.errno}, not {number}"
        return
    raise AssertionError(f"no failure but {r}")
