#!/usr/bin/env python3
"""A vfio-user server that keeps to the protocol, but for the one fault that it is asked for.

    server.py SOCKET [FAULT]
    server.py --faults          prints the faults, each with the check that must find it

It shares no code with the library or with vfu. Its device has a configuration space, a BAR of
memory, a BAR that can be mapped in two places, and each kind of interrupt.
"""

import array
import json
import os
import socket
import struct
import sys

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = range(9, 14)
WRITE_MULTI, FEATURE, MIG_READ, MIG_WRITE = 15, 16, 17, 18

NO_REPLY, ERROR = 0x10, 0x20
EINVAL, EEXIST, ENOENT, ENOTSUP = 22, 17, 2, 95
MAX_XFER = 1 << 20

# fault -> the check that must find it
FAULTS = {
    "ids-15-bits": "framing/ids",
    "other-command-in-reply": "framing/ids",
    "same-id-refused": "framing/same-id",
    "region-info-larger-than-its-size": "framing/sizes",
    "error-with-payload": "framing/error-alone",
    "unknown-command-done": "framing/unknown-command",
    "unknown-payload-left": "framing/unknown-payload",
    "posted-write-answered": "framing/no-reply",
    "posted-error-answered": "framing/no-reply-error",
    "header-at-once": "framing/header-in-pieces",
    "body-at-once": "framing/body-in-pieces",
    "one-message-a-read": "framing/gathered",
    "dies-of-descriptors": "framing/descriptors",
    "type-ignored": "framing/type",
    "replies-executed": "framing/reply-unasked",
    "dies-of-small-size": "framing/size-below-header",
    "dies-of-huge-size": "framing/size-huge",
    "minor-always-2": "version/minor",
    "any-major": "version/major",
    "data-required": "version/no-data",
    "capabilities-required": "version/no-capabilities",
    "data-without-nul": "version/json",
    "data-no-json": "version/json",
    "capability-of-wrong-type": "version/capabilities",
    "no-transfer-size": "version/capabilities",
    "twin-socket-unasked": "version/subset",
    "unknown-capability-refused": "version/unknown-capability",
    "unknown-capability-echoed": "version/unknown-capability",
    "small-limits-refused": "version/small-limits",
    "descriptors-unlimited": "version/small-limits",
    "twin-socket-forgotten": "version/twin-socket",
    "twin-socket-no-socket": "version/twin-socket",
    "data-cut-at-1024": "version/long-json",
    "version-at-once": "version/in-pieces",
    "dies-of-bad-json": "version/malformed",
    "dies-of-first-command": "version/first",
    "second-version-unanswered": "version/again",
    "info-12-bytes": "info/device",
    "info-argsz-0": "info/device",
    "no-pci": "info/device",
    "info-beyond-argsz": "info/device-argsz",
    "long-argsz-refused": "info/device-argsz",
    "short-info-awaited": "info/device-short",
    "region-of-wrong-index": "info/regions",
    "region-info-beyond-argsz": "info/region-argsz",
    "capabilities-cut": "info/region-capabilities",
    "capability-loop": "info/region-capabilities",
    "any-region": "info/region-beyond",
    "area-outside": "info/sparse-areas",
    "areas-overlap": "info/sparse-areas",
    "mmap-without-descriptor": "info/mmap-descriptor",
    "file-too-short": "info/mmap-descriptor",
    "io-fd-index-too-large": "info/io-fds",
    "irq-of-wrong-index": "info/irqs",
    "33-msi-vectors": "info/irqs",
    "irq-info-beyond-argsz": "info/irq-argsz",
    "any-irq": "info/irq-beyond",
    "read-of-wrong-offset": "access/read",
    "read-without-data": "access/read",
    "bytes-swapped": "access/widths",
    "block-repeats-first-dword": "access/block",
    "last-byte-refused": "access/end",
    "read-beyond-gives-ones": "access/read-beyond",
    "offset-wraps": "access/read-beyond",
    "write-beyond-dropped": "access/write-beyond",
    "absent-region-reads-ones": "access/no-region",
    "large-read-cut": "access/read-too-large",
    "nothing-unanswered": "access/nothing",
    "write-echoes-data": "access/write",
    "write-takes-what-came": "access/write-payload",
    "short-access-executed": "access/short",
    "multi-counts-one": "access/multi",
    "bars-refused": "access/bars",
}


class Refused(Exception):
    """An error reply."""

    def __init__(self, errno=EINVAL):
        super().__init__()
        self.errno = errno


class Gone(Exception):
    """The client has left."""


def check(condition, errno=EINVAL):
    if not condition:
        raise Refused(errno)


def config_space():
    space = bytearray(4096)
    struct.pack_into("<HHHH", space, 0, 0x1b36, 0x0042, 0, 0)
    space[0x0b] = 0xff
    space[0x3d] = 1
    return space


class Region:
    def __init__(self, size, flags=3, data=None, areas=()):
        self.size, self.flags, self.areas = size, flags, areas
        self.data = bytearray(size) if data is None else data


class Device:
    """The state that outlives a client."""

    def __init__(self, fault):
        self.fault = fault
        self.file = os.memfd_create("bar2")
        os.ftruncate(self.file, 0x2000 if fault == "file-too-short" else 0x8000)
        areas = [(0x1000, 0x1000), (0x4000, 0x2000)]
        if fault == "area-outside":
            areas[1] = (0x4000, 0x8000)
        if fault == "areas-overlap":
            areas[1] = (0x1000, 0x2000)
        none = Region(0, 0)
        self.regions = [Region(0x1000), none, Region(0x8000, 7, areas=areas), none, Region(0x4000, 7), none, none,
                        Region(4096, data=config_space()), none]
        self.irqs = [1, 33 if fault == "33-msi-vectors" else 4, 8, 1, 1]


class Connection:
    """One client, from its first byte to its last."""

    def __init__(self, sock, device):
        self.sock, self.device, self.fault = sock, device, device.fault
        self.fds, self.ids, self.write_multiple = [], [], False
        self.negotiated = False
        self.max_msg_fds = 1

    # -- bytes

    def some(self, count):
        """What there is, up to count bytes; descriptors are kept."""
        space = socket.CMSG_SPACE(4 * 64)
        data, control, _, _ = self.sock.recvmsg(count, space)
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[:len(content) - len(content) % 4])
                self.fds.extend(fds)
        if not data:
            raise Gone
        return data

    def exactly(self, count, at_once=False):
        data = b""
        while len(data) < count:
            data += self.some(count - len(data))
            if at_once and len(data) < count:
                raise Gone
        return data

    def send(self, data, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        self.sock.sendall(data[sent:])

    def reply(self, head, body=b"", fds=()):
        ident, cmd = head[:2]
        if self.fault == "ids-15-bits":
            ident &= 0x7fff
        if self.fault == "other-command-in-reply" and ident == 0x8000:
            cmd += 1
        size = 16 + len(body)
        if self.fault == "region-info-larger-than-its-size" and cmd == REGION_INFO:
            size -= 4
        self.send(struct.pack("<HHIII", ident, cmd, size, 1, 0) + body, fds)

    def error(self, head, errno):
        body = b""
        if self.fault == "error-with-payload" and head[1] == REGION_INFO:
            body = bytes(32)
        self.send(struct.pack("<HHIII", head[0], head[1], 16 + len(body), 1 | ERROR, errno) + body)

    # -- messages

    def serve(self):
        try:
            while True:
                self.one()
        except (Gone, ConnectionError, BrokenPipeError):
            pass
        finally:
            self.close_fds()
            self.sock.close()

    def close_fds(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def one(self):
        first = not self.negotiated
        head = struct.unpack("<HHIII", self.exactly(16, self.fault == "header-at-once" and not first))
        ident, cmd, size, flags, _ = head
        body_size = size - 16
        if body_size < 0:
            if self.fault == "dies-of-small-size":
                os._exit(1)
            self.error(head, EINVAL)
            raise Gone
        if size > MAX_XFER + 32:
            if self.fault == "dies-of-huge-size":
                os._exit(1)
            self.error(head, EINVAL)
            raise Gone
        if self.fault == "unknown-payload-left" and cmd > MIG_WRITE:
            return self.error(head, EINVAL)
        if self.fault == "short-info-awaited" and cmd == GET_INFO:
            body_size = max(body_size, 16)
        at_once = self.fault == ("version-at-once" if first else "body-at-once")
        if self.fault == "one-message-a-read" and not first:
            body = self.some(65536)[:body_size] if body_size else b""
        else:
            body = self.exactly(body_size, at_once)
        if self.fault == "dies-of-descriptors" and self.fds and cmd not in (DMA_MAP, SET_IRQS):
            os._exit(1)
        if self.fault == "same-id-refused":
            self.ids = (self.ids + [ident])[-2:]
            if self.ids == [ident, ident] and not first:
                return self.error(head, EEXIST)
        answer = not flags & NO_REPLY
        try:
            kind = flags & 15
            lenient = (kind == 1 and self.fault == "replies-executed") or (kind > 1 and self.fault == "type-ignored")
            check(kind == 0 or lenient)
            body, fds = self.execute(head, body)
            if answer or self.fault == "posted-write-answered":
                self.reply(head, body, fds)
        except Refused as e:
            if answer or self.fault == "posted-error-answered":
                self.error(head, e.errno)
            if first and cmd == VERSION:
                raise Gone from e
        finally:
            self.close_fds()

    def execute(self, head, body):
        """The payload of the reply, and its descriptors."""
        cmd = head[1]
        if not self.negotiated:
            if cmd != VERSION and self.fault == "dies-of-first-command":
                os._exit(1)
            check(cmd == VERSION)
            return self.version(body)
        commands = {
            GET_INFO: self.info, REGION_INFO: self.region_info, IO_FDS: self.io_fds, IRQ_INFO: self.irq_info,
            REGION_READ: self.read, REGION_WRITE: self.write, WRITE_MULTI: self.write_multi,
        }
        if cmd == VERSION and self.fault == "second-version-unanswered":
            self.exactly(1)
        if cmd not in commands and self.fault == "unknown-command-done":
            return b"", ()
        check(cmd in commands)
        result = commands[cmd](body)
        return result if isinstance(result, tuple) else (result, ())

    def version(self, body):
        fault = self.fault
        check(len(body) >= 4)
        major, minor = struct.unpack_from("<HH", body)
        check(major == 0 or fault == "any-major")
        text = body[4:]
        proposed = {}
        check(text or fault != "data-required")
        if text:
            if fault == "data-cut-at-1024":
                text = text[:1024]
            check(text[-1] == 0)
            try:
                value = json.loads(text[:-1].decode())
            except ValueError:
                if fault == "dies-of-bad-json":
                    os._exit(1)
                raise Refused from None
            check(isinstance(value, dict))
            check("capabilities" in value or fault != "capabilities-required")
            proposed = value.get("capabilities", {})
            check(isinstance(proposed, dict))
        known = {"max_msg_fds": 8, "max_data_xfer_size": MAX_XFER, "pgsizes": 4096, "max_dma_maps": 65535,
                 "write_multiple": True}
        check(fault != "unknown-capability-refused" or "vfu_check" not in proposed)
        check(fault != "small-limits-refused" or proposed.get("max_data_xfer_size", MAX_XFER) > 4096)
        agreed = {name: value for name, value in known.items() if name in proposed}
        if fault == "unknown-capability-echoed":
            agreed.update((name, value) for name, value in proposed.items() if name not in known)
        self.max_msg_fds = proposed.get("max_msg_fds", 1)
        self.write_multiple = "write_multiple" in agreed
        fds = []
        if proposed.get("twin_socket", {}).get("supported") or fault == "twin-socket-unasked":
            agreed["twin_socket"] = {"supported": True, "fd_index": 0}
            if fault == "twin-socket-no-socket":
                fds = [os.memfd_create("no socket")]
            elif fault != "twin-socket-forgotten":
                ours, theirs = socket.socketpair()
                self.twin = ours
                fds = [theirs.detach()]
        if fault == "capability-of-wrong-type" and "max_msg_fds" in agreed:
            agreed["max_msg_fds"] = "8"
        if fault == "no-transfer-size":
            agreed["max_data_xfer_size"] = 0
        text = json.dumps({"capabilities": agreed}).encode() + b"\0"
        if fault == "data-without-nul":
            text = text[:-1]
        if fault == "data-no-json":
            text = b"{capabilities}\0"
        if fault == "minor-always-2":
            minor = 2
        self.negotiated = True
        self.fds.extend(fds)    # closed when they are sent
        return struct.pack("<HH", major, min(minor, 2)) + text, tuple(fds)

    # -- information

    def info(self, body):
        check(len(body) >= 16)
        argsz, = struct.unpack_from("<I", body)
        check(argsz >= 16 or self.fault == "info-beyond-argsz")
        check(argsz == 16 or self.fault != "long-argsz-refused")
        reply = struct.pack("<IIII", 0 if self.fault == "info-argsz-0" else 16, 1 if self.fault == "no-pci" else 3,
                            len(self.device.regions), len(self.device.irqs))
        return reply[:12] if self.fault == "info-12-bytes" else reply

    def region_info(self, body):
        check(len(body) >= 32)
        argsz, _, index = struct.unpack_from("<III", body)
        check(argsz >= 32)
        if self.fault == "any-region":
            index = min(index, 8)
        check(index < len(self.device.regions))
        region = self.device.regions[index]
        full = 32 + (16 + 16 * len(region.areas) if region.areas else 0)
        flags, offset = region.flags, 0
        caps, fds = b"", ()
        if region.areas:
            flags |= 8
            offset = 32
            following = 32 if self.fault == "capability-loop" else 0
            caps = struct.pack("<HHIII", 1, 1, following, len(region.areas), 0)
            caps += b"".join(struct.pack("<QQ", *area) for area in region.areas)
        room = argsz >= full or self.fault == "region-info-beyond-argsz"
        if region.flags & 4 and room and self.fault != "mmap-without-descriptor":
            fds = (self.device.file,) * (3 if self.fault == "descriptors-unlimited" else 1)
        if self.fault == "region-of-wrong-index" and index == 2:
            index = 3
        if self.fault == "capabilities-cut":
            caps = caps[:-8]
        head = struct.pack("<IIIIQQ", full, flags, index, offset, region.size, 0)
        return head + (caps if room else b""), fds

    def io_fds(self, body):
        check(len(body) >= 16)
        argsz, flags, index, count = struct.unpack_from("<IIII", body)
        check((flags, count) == (0, 0) and argsz >= 16 and index < len(self.device.regions))
        check(self.device.regions[index].size)
        entries = b""
        fds = ()
        if index == 0:
            fd_index = 1 if self.fault == "io-fd-index-too-large" else 0
            entries = struct.pack("<QQIIIIQ", 0x100, 4, fd_index, 0, 0, 0, 0)
        full = 16 + len(entries)
        if argsz < full:
            entries = b""
        elif entries:
            fds = (self.device.file,)
        return struct.pack("<IIII", full, 0, index, full // 40) + entries, fds

    def irq_info(self, body):
        check(len(body) >= 16)
        argsz, _, index = struct.unpack_from("<III", body)
        check(argsz >= 16 or self.fault == "irq-info-beyond-argsz")
        if self.fault == "any-irq":
            index = min(index, 4)
        check(index < len(self.device.irqs))
        count = self.device.irqs[index]
        if self.fault == "irq-of-wrong-index":
            index = 0
        return struct.pack("<IIII", 16, 3 if index == 0 else 1, index, count)

    # -- regions

    def access(self, body, data=None):
        """Where an access goes: the region, its offset and count."""
        if self.fault == "short-access-executed" and len(body) < 16:
            body = bytes(8) + struct.pack("<II", 7, 0)
        check(len(body) >= 16)
        offset, index, count = struct.unpack_from("<QII", body)
        if self.fault == "large-read-cut" and data is None:
            count = min(count, 4)
        check(count <= MAX_XFER)
        present = index < len(self.device.regions) and self.device.regions[index].size > 0
        if self.fault == "absent-region-reads-ones" and not present:
            return None, offset, index, count
        check(present)
        check(self.fault != "bars-refused" or index == 7)
        region = self.device.regions[index]
        if self.fault == "offset-wraps":
            offset %= 1 << 63
            offset %= region.size * 2
        end = offset + count
        if end > region.size:
            drop = "write-beyond-dropped" if data is not None else "read-beyond-gives-ones"
            check(self.fault == drop or (self.fault == "offset-wraps" and data is None))
            return None, offset, index, count
        check(self.fault != "last-byte-refused" or end < region.size)
        return region, offset, index, count

    def read(self, body):
        region, offset, index, count = self.access(body)
        if count == 0 and self.fault == "nothing-unanswered":
            self.exactly(1)
        data = bytes(region.data[offset:offset + count]) if region else b"\xff" * count
        if self.fault == "bytes-swapped" and count == 2:
            data = data[::-1]
        if self.fault == "block-repeats-first-dword" and count > 8:
            data = data[:4] * (count // 4)
        if self.fault == "read-of-wrong-offset":
            offset += 4
        if self.fault == "read-without-data":
            data = b""
        return struct.pack("<QII", offset, index, count) + data

    def write(self, body):
        region, offset, index, count = self.access(body, data=True)
        data = body[16:]
        if self.fault == "write-takes-what-came":
            data = data[:count]
        else:
            check(len(data) == count)
        if region:
            region.data[offset:offset + len(data)] = data
        echo = data if self.fault == "write-echoes-data" else b""
        return struct.pack("<QII", offset, index, count) + echo

    def write_multi(self, body):
        check(self.write_multiple and len(body) >= 8)
        count, = struct.unpack_from("<Q", body)
        check(len(body) == 8 + 24 * count)
        done = 0
        for at in range(8, len(body), 24):
            size, = struct.unpack_from("<I", body, at + 12)
            self.write(body[at:at + 16 + size])
            done += 1
        if self.fault == "multi-counts-one":
            done = 1
        return struct.pack("<Q", done)


def main():
    if sys.argv[1:] == ["--faults"]:
        print(json.dumps(FAULTS))
        return
    path, fault = sys.argv[1], (sys.argv[2:] + [""])[0]
    assert fault in FAULTS or not fault, fault
    device = Device(fault)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        sock, _ = listener.accept()
        Connection(sock, device).serve()


main()
