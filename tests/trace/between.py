"""`vfu trace` as a process, and two sides that say what a test wants them to say."""
import array
import json
import os
import signal
import socket
import struct
import subprocess
import tempfile

TOP = os.path.join(os.path.dirname(__file__), "..", "..")
TOOL = os.environ.get("VFU_TOOL") or os.path.join(TOP, "target", "debug", "vfu")
F_REPLY, F_NO_REPLY, F_ERROR = 1, 16, 32


class Trace:
    """Stands between clients, who connect to `path`, and a server; as a context, it is ended at the end."""

    def __init__(self, server, *options):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "t")
        self.out = os.path.join(self.folder.name, "out")
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen([TOOL, "trace", self.path, server, *options], stdout=out, stderr=subprocess.PIPE)
        assert self.process.stderr.readline().startswith(b"vfu: listening at ")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()
        self.folder.cleanup()

    def end(self):
        """Ends it as a user would; returns what it has printed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=60)[1].decode()
        with open(self.out) as out:
            text = out.read()
        assert (self.process.returncode, said) == (0, "")
        return text


def message(ident, command, payload=b"", flags=0, error=0):
    return struct.pack("<HHIII", ident, command, 16 + len(payload), flags, error) + payload


def send(sock, data, fds=()):
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([data], control)
    sock.sendall(data[sent:])


def receive(sock):
    """One message as it is, and its descriptors, which are to be closed."""
    data, fds = b"", []
    while len(data) < 16 or len(data) < struct.unpack_from("<I", data, 4)[0]:
        wanted = 16 if len(data) < 16 else struct.unpack_from("<I", data, 4)[0]
        part, control, _, _ = sock.recvmsg(wanted - len(data), socket.CMSG_SPACE(16 * 4))
        assert part, "the connection ends"
        data += part
        for _, _, numbers in control:
            fds.extend(array.array("i", numbers))
    return data, fds


class Conversation:
    """Both sides of a connection with a trace in between. Whatever one says, the other has to hear the same."""

    def __init__(self, *options):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "s")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(1)
        self.trace = Trace(path, *options)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.client.connect(self.trace.path)
        self.server, _ = self.listener.accept()
        for sock in (self.client, self.server):
            sock.settimeout(60)

    def says(self, who, data, fds=()):
        to = self.server if who == "client" else self.client
        send(getattr(self, who), data, fds)
        heard, came = receive(to)
        for fd in came:
            os.close(fd)
        assert (heard, len(came)) == (data, len(fds))

    def end(self):
        """What the trace has printed."""
        for sock in (self.client, self.server, self.listener):
            sock.close()
        with self.trace:
            text = self.trace.end()
        self.folder.cleanup()
        return text


def lines(text):
    """The lines of a trace in JSON, without the summary."""
    return [json.loads(line) for line in text.splitlines()][:-1]
