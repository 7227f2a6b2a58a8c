"""The other process of a hand-over, by hand: on either side, as far as it wants to."""
import fcntl
import os
import socket
import struct
import threading

HELLO, DEVICE, READY, STATE, MORE, HAVE, YOURS, TAKEN, NO, MEMORY = range(1, 11)


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

    def receive(self):
        """The words of a message behind magic and version, and its descriptors; None at the end."""
        data, anc, _, _ = self.sock.recvmsg(100, socket.CMSG_SPACE(253 * 4))
        if not data:
            return None
        assert len(data) == 32 and data[:8] == b"vfuh" + struct.pack("<I", 1)
        fds = []
        for _, _, cmsg in anc:
            fds += struct.unpack(f"{len(cmsg) // 4}i", cmsg)
        return struct.unpack("<IIQQ", data[8:]), fds

    def hear(self, keep=False, parts=1):
        """Kind, errno and image of the next message; its descriptors are closed, unless they are to be kept. They come
        with so many messages."""
        received = self.receive()
        if received is None:
            return None
        (kind, error, size, count), fds = received
        image = None
        for _ in range(1, parts):
            words, later = self.receive()
            assert words == (MORE, 0, 0, 0) and later
            fds += later
        if kind in (DEVICE, MEMORY, STATE):
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
            fcntl.fcntl(fd, 1033, 0x2 | 0x4 | 0x8)
        socket.send_fds(peer, [text(kind, size=len(image) if size is None else size, fds=count)], [fd, *fds])
        os.close(fd)
    return answer


EMPTY = b"vfu-hand" + struct.pack("<II", 1, 0) + struct.pack("<HHIQQ", 0xffff, 1, 0, 8, 0)
