"""Example programs as processes, and a client that speaks to them over a raw socket.

Nothing here is shared with the library or with its other tests: structures and
numbers are written down again, from the specification.
"""
import array
import errno
import mmap
import os
import select
import socket
import struct
import subprocess
import tempfile

TARGET = os.path.join(os.path.dirname(__file__), "..", "..", "target")
EXAMPLES = os.environ.get("VFU_EXAMPLES") or os.path.join(TARGET, "meson", "examples-c")
# The library that the examples are linked with is optimized and linked by meson; this one is neither.
OTHER_BUILD = os.path.realpath(os.environ.get("VFU_OTHER_BUILD") or os.path.join(TARGET, "debug", "libvfio_user.so"))

VERSION, DMA_MAP, DMA_UNMAP, GET_REGION_INFO, SET_IRQS = 1, 2, 3, 5, 8
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, DEVICE_RESET = 9, 10, 11, 12, 13
DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 16, 17, 18
F_REPLY, F_ERROR = 1, 32
FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
F_MIGRATION, F_STATE = 1, 2
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY = range(7)
BAR0, BAR2, CONFIG = 0, 2, 7
INTX, MSIX = 0, 2
MAX_XFER = 1 << 20


class Refused(Exception):
    """The server answered with an errno."""

    def __init__(self, number):
        super().__init__(errno.errorcode.get(number, number))
        self.errno = number


class Device:
    """A running example."""

    def __init__(self, name="dma-engine", *options):
        self.dir = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.dir.name, "s")
        self.log = os.path.join(self.dir.name, "log")
        # Python ignores SIGXFSZ, and the program inherits that: see limit_files.
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([os.path.join(EXAMPLES, name), *options, self.path],
                                            stderr=log, restore_signals=False)
        while not os.path.exists(self.path):
            assert self.process.poll() is None, "the example has ended"
            os.sched_yield()

    def mappings(self, size):
        """How many mappings of this size and more the program has."""
        with open(f"/proc/{self.process.pid}/maps") as maps:
            ends = [[int(n, 16) for n in line.split()[0].split("-")] for line in maps]
        return sum(end - begin >= size for begin, end in ends)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.dir.cleanup()

    def end(self):
        """Ends it as a user would, and checks that it leaves in good order."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait()
        self.dir.cleanup()
        assert status == 0, status


class Client:
    """A client; `dma` notes the messages for its memory, which `memory` (address to byte) holds."""

    def __init__(self, device):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        while True:
            try:
                self.sock.connect(device.path)
                break
            except ConnectionRefusedError:
                # The socket has its name for a moment before it listens.
                assert device.process.poll() is None
        self.next_id = 0
        self.dma = []
        self.memory = lambda address, count: bytes(count)
        self.request(VERSION, struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_data_xfer_size":1048576}}\0')

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def send(self, cmd, payload=b"", fds=(), flags=0, msg_id=None):
        if msg_id is None:
            self.next_id = msg_id = (self.next_id + 1) & 0xffff
        data = struct.pack("<HHIII", msg_id, cmd, 16 + len(payload), flags, 0) + payload
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], control)
        self.sock.sendall(data[sent:])
        return msg_id

    def receive(self):
        """One message: header fields, payload, descriptors."""
        fds = []
        head = self.receive_exactly(16, fds)
        msg_id, cmd, size, flags, error = struct.unpack("<HHIII", head)
        return msg_id, cmd, flags, error, self.receive_exactly(size - 16, fds), fds

    def receive_exactly(self, count, fds):
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            got, control, _, _ = self.sock.recvmsg_into([rest], socket.CMSG_SPACE(64))
            assert got, "the server has left"
            rest = rest[got:]
            for _, _, numbers in control:
                fds += array.array("i", numbers)
        return bytes(data)

    def serve_dma(self, msg_id, cmd, payload):
        address, count = struct.unpack_from("<QQ", payload)
        self.dma.append((cmd, address, count))
        reply = payload[:16]
        if cmd == DMA_READ:
            reply += self.memory(address, count)
        self.send(cmd, reply, flags=F_REPLY, msg_id=msg_id)

    def wait(self, msg_id):
        """The reply to a request; DMA of the server is served until it comes."""
        while True:
            got, cmd, flags, error, payload, fds = self.receive()
            if flags & 0xf != F_REPLY:
                assert cmd in (DMA_READ, DMA_WRITE), cmd
                self.serve_dma(got, cmd, payload)
                continue
            assert got == msg_id
            if flags & F_ERROR:
                raise Refused(error)
            self.fds = fds
            return payload

    def wait_dma(self):
        """Waits for the server's next DMA message, and returns what its answer needs."""
        msg_id, cmd, flags, _, payload, _ = self.receive()
        assert flags & 0xf != F_REPLY and cmd in (DMA_READ, DMA_WRITE)
        return msg_id, cmd, payload

    def nothing(self):
        """Whether nothing lies in the socket."""
        return not select.select([self.sock], [], [], 0)[0]

    def request(self, cmd, payload=b"", fds=()):
        return self.wait(self.send(cmd, payload, fds))

    def read(self, region, offset, count):
        reply = self.request(REGION_READ, struct.pack("<QII", offset, region, count))
        assert len(reply) == 16 + count
        return reply[16:]

    def write(self, region, offset, data):
        self.request(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)

    def read_u32(self, offset, region=BAR0):
        return struct.unpack("<I", self.read(region, offset, 4))[0]

    def write_u32(self, offset, value, region=BAR0):
        self.write(region, offset, struct.pack("<I", value))

    def map_dma(self, address, size, fd=None, offset=0):
        self.request(DMA_MAP, struct.pack("<IIQQQ", 32, 3, offset, address, size),
                     [] if fd is None else [fd])

    def map_region(self, region):
        """The client's own mapping of a region, at the region's offsets."""
        reply = self.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, region, 0, 0, 0))
        size, offset = struct.unpack_from("<QQ", reply, 16)
        [fd] = self.fds
        mapping = mmap.mmap(fd, size, offset=offset)
        os.close(fd)
        return mapping

    def assign_irq(self, index, vector):
        """An eventfd that counts the vector's interrupts."""
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.request(SET_IRQS, struct.pack("<IIIII", 20, 4 | 32, index, vector, 1), [fd])
        return fd

    def reset(self):
        self.request(DEVICE_RESET)

    def feature(self, flags, data, argsz):
        return self.request(DEVICE_FEATURE, struct.pack("<II", argsz, flags) + data)

    def send_state(self, state):
        return self.send(DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | FEATURE_SET, state, 0))

    def set_state(self, state):
        self.wait(self.send_state(state))

    def state(self):
        return struct.unpack_from("<I", self.feature(F_STATE | FEATURE_GET, b"", 16), 8)[0]

    def read_state(self, size):
        reply = self.request(MIG_DATA_READ, struct.pack("<II", 8 + size, size))
        argsz, got = struct.unpack_from("<II", reply)
        assert argsz == len(reply) == 8 + got and got <= size
        return reply[8:]

    def read_until_short(self, sizes):
        """Everything that there is (for now); `sizes` says how much to ask for each time."""
        parts = []
        while True:
            size = sizes()
            parts.append(self.read_state(size))
            if len(parts[-1]) < size:
                return b"".join(parts)

    def write_state(self, data):
        self.request(MIG_DATA_WRITE, struct.pack("<II", 8 + len(data), len(data)) + data)

    def write_all(self, data, sizes=lambda: MAX_XFER):
        at = 0
        while at < len(data):
            size = sizes()
            self.write_state(data[at:at + size])
            at += size


class Builds:
    """Which build of the library processes have that are started from now on: that of the examples, or another one."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def choose(self, is_other):
        assert os.path.exists(OTHER_BUILD), "cargo build -p libvfio-user makes it"
        # It has the name that programs ask for, so that they take it.
        if is_other:
            self.patch.setenv("LD_PRELOAD", OTHER_BUILD)
        else:
            self.patch.delenv("LD_PRELOAD", raising=False)

    @staticmethod
    def is_other(process):
        with open(f"/proc/{process.pid}/maps") as maps:
            loaded = {os.path.basename(line.split()[-1]) for line in maps if ".so" in line}
        is_other = os.path.basename(OTHER_BUILD) in loaded
        assert is_other != any(name.startswith("libvfio-user.so") for name in loaded), loaded
        return is_other


def refused(f, *args):
    """The errno that a request fails with."""
    try:
        f(*args)
    except Refused as e:
        return e.errno
    raise AssertionError("not refused")


def events(fd):
    """What an eventfd has counted since it was last asked."""
    try:
        return struct.unpack("<Q", os.read(fd, 8))[0]
    except BlockingIOError:
        return 0
