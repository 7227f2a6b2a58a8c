"""A file system in user space (FUSE) that falls silent.

It has one file. Until `silence()` it answers what is asked of it; afterwards it notes what is asked and
refuses, where a hostile one would not answer.
"""
import contextlib
import ctypes
import errno
import os
import stat
import struct
import tempfile
import threading

import pytest

LOOKUP, FORGET, GETATTR, OPEN, RELEASE, FLUSH, INIT, OPENDIR = 1, 2, 3, 14, 18, 25, 26, 27
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
# No answer is waited for.
UNASKED = (FORGET, RELEASE, INTERRUPT, DESTROY, BATCH_FORGET)
# close(2) asks nothing.
FOPEN_NOFLUSH = 1 << 5
ROOT, FILE = 1, 2
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2


class SilentFs:
    def __init__(self, device, size):
        self.device, self.size = device, size
        self.silent, self.asked = False, []

    def silence(self):
        self.silent = True

    def attributes(self, node):
        mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o666
        size = 0 if node == ROOT else self.size
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

    def answer(self, opcode, node):
        """Error or the answer's bytes. Attributes are valid for no time at all."""
        if opcode == INIT:
            return struct.pack("<4IHH2IHHI7I", 7, 31, 4096, 0, 12, 9, 4096, 1, 1, 0, 0, *[0] * 7)
        if opcode == LOOKUP:
            return struct.pack("<4Q2I", FILE, 1, 0, 0, 0, 0) + self.attributes(FILE)
        if opcode == GETATTR:
            return struct.pack("<Q2I", 0, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 1, FOPEN_NOFLUSH, 0)
        return -errno.ENOSYS

    def serve(self):
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    continue
                return
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in (FORGET, INTERRUPT, BATCH_FORGET):
                continue
            answer = b"" if opcode in UNASKED else self.answer(opcode, node)
            if self.silent and opcode not in UNASKED:
                self.asked.append(opcode)
                answer = -errno.EIO
            error, data = (answer, b"") if isinstance(answer, int) else (0, answer)
            with contextlib.suppress(OSError):
                os.write(self.device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)


@contextlib.contextmanager
def silent_fs(size):
    """The file system, and a descriptor of its file."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        pytest.skip(f"/dev/fuse cannot be opened: {e.strerror}")
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as at:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if libc.mount(b"silent", at.encode(), b"fuse", MS_NOSUID | MS_NODEV, options) != 0:
            os.close(device)
            pytest.skip(f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}")
        fs = SilentFs(device, size)
        thread = threading.Thread(target=fs.serve, daemon=True)
        thread.start()
        try:
            fd = os.open(os.path.join(at, "file"), os.O_RDWR)
            try:
                yield fs, fd
            finally:
                os.close(fd)
        finally:
            libc.umount2(at.encode(), MNT_DETACH)
            thread.join()
            os.close(device)
