#!/usr/bin/env python3
"""A vfio-user server that keeps to the protocol, but for the one fault that it is asked for.

    server.py SOCKET [FAULT]

The faults are those of faults.json, where each has the check that must find it. This shares no code
with the library or with vfu. Its device has a configuration space, a BAR of memory with a DMA engine's
registers, a BAR that can be mapped in two places, and each kind of interrupt.
"""

import array
import json
import os
import pathlib
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
FAULTS = json.loads((pathlib.Path(__file__).parent / "faults.json").read_text())

ERR_STATE, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)
ARCS = {STOP: [RUNNING, STOP_COPY, RESUMING], RUNNING: [STOP, PRE_COPY], STOP_COPY: [STOP], RESUMING: [STOP],
        PRE_COPY: [RUNNING, STOP_COPY]}
STATE = bytes(range(256)) * 20
PAGE = 4096


def path(start, end):
    """The states to go through, or None: the shortest way that has no saving state inside."""
    ways = [[start]]
    while ways:
        way = ways.pop(0)
        if way[-1] == end:
            return way[1:]
        inside = len(way) > 1 and way[-1] in (STOP_COPY, PRE_COPY)
        ways += [way + [to] for to in ARCS[way[-1]] if to not in way and not inside]
    return None


class Irqs:
    """The eventfds of one type of interrupt."""

    def __init__(self, count):
        self.fds = [None] * count

    def put(self, vector, fd):
        if self.fds[vector] is not None:
            os.close(self.fds[vector])
        self.fds[vector] = fd

    def fire(self, vector):
        if self.fds[vector] is not None:
            os.eventfd_write(self.fds[vector], 1)


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
        engine = bytearray(0x1000)
        struct.pack_into("<4sI", engine, 0, b"DMAE", 1 << 16)
        self.regions = [Region(0x1000, data=engine), none, Region(0x8000, 7, areas=areas), none, Region(0x4000, 7), none, none,
                        Region(4096, data=config_space()), none]
        self.irqs = [Irqs(count) for count in (1, 33 if fault == "33-msi-vectors" else 4, 20, 1, 1)]
        self.maps = {}          # address -> size
        self.remembered = set()
        self.logging = None     # page size
        self.state = RUNNING
        self.at = 0             # how far the state was read
        self.written = b""

    def lost(self):
        """The client has gone."""
        if self.fault != "maps-stay":
            self.maps = {}
        if self.fault != "logging-stays":
            self.logging = None
        if self.fault != "eventfds-stay":
            for irqs in self.irqs:
                for vector in range(len(irqs.fds)):
                    irqs.put(vector, None)
        if self.fault == "stopped-for-good" and self.state != RUNNING:
            self.state = ERR_STATE
        if self.fault == "dies-while-resuming" and self.state == RESUMING:
            os._exit(1)


class Connection:
    """One client, from its first byte to its last."""

    def __init__(self, sock, device):
        self.sock, self.device, self.fault = sock, device, device.fault
        self.fds, self.ids, self.write_multiple = [], [], False
        self.negotiated = False
        self.begun = False
        self.rung = False       # the doorbell of the DMA engine
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

    def exactly(self, count, at_once=False, dies=""):
        data = b""
        while len(data) < count:
            try:
                data += self.some(count - len(data))
            except (Gone, ConnectionError):
                if self.fault == dies and (data or dies != "dies-in-header"):
                    os._exit(1)
                raise
            if at_once and len(data) < count:
                raise Gone
        return data

    def send(self, data, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        if sent < len(data):    # sending nothing fails, too, where the client has left
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
        except Gone:
            pass
        except ConnectionError:
            if self.fault == "dies-of-unread":
                os._exit(1)
        finally:
            if not self.negotiated and self.fault == "dies-of-silence" and not self.begun:
                os._exit(1)
            self.close_fds()
            self.sock.close()
            self.device.lost()

    def close_fds(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def one(self):
        first = not self.negotiated
        dies = "dies-in-version" if first else "dies-in-header"
        head = struct.unpack("<HHIII", self.exactly(16, self.fault == "header-at-once" and not first, dies))
        self.begun = True
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
            body = self.exactly(body_size, at_once, "dies-in-version" if first else "dies-in-payload")
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
            self.work()
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
            SET_IRQS: self.set_irqs, DMA_MAP: self.dma_map, DMA_UNMAP: self.dma_unmap, RESET: self.reset,
            FEATURE: self.feature, MIG_READ: self.mig_read, MIG_WRITE: self.mig_write,
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
        count = len(self.device.irqs[index].fds)
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
        if region and (index, offset) == (0, 0x10):
            data = bytes(4)     # acknowledged
        if region:
            region.data[offset:offset + len(data)] = data
            self.rung |= (index, offset) == (0, 0x28)
        echo = data if self.fault == "write-echoes-data" else b""
        return struct.pack("<QII", offset, index, count) + echo

    # -- a DMA engine's registers, in BAR 0

    def work(self):
        """Copies what the descriptor says, by messages, when the doorbell was rung."""
        if not self.rung:
            return
        self.rung = False
        bar = self.device.regions[0].data
        _, _, src, dst, length, _, vector, _ = struct.unpack_from("<IIQQQQII", bar, 0x80)
        status, step = 1, 4096
        for at in range(0, length, step):
            data = self.message(DMA_READ, src + at, step)
            if data is None:
                status = 4
                break
            to = dst + at + (8 if self.fault == "message-elsewhere" and at == 0 else 0)
            if self.message(DMA_WRITE, to, step, data[16:]) is None and self.fault != "error-reply-ignored":
                status = 5
                break
        struct.pack_into("<I", bar, 0x80 + 44, status)
        struct.pack_into("<I", bar, 0x10, 1)
        self.device.irqs[2].fire(vector)

    def message(self, cmd, addr, count, data=b""):
        """The payload of the client's reply; None if that is an error."""
        if self.fault == "message-cut":
            data = data[:-1]
        payload = struct.pack("<QQ", addr, count) + data
        self.send(struct.pack("<HHIII", 0x4444, cmd, 16 + len(payload), 0, 0) + payload)
        _, _, size, flags, _ = struct.unpack("<HHIII", self.exactly(16))
        body = self.exactly(size - 16) if size > 16 else b""
        return None if flags & ERROR else body

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

    # -- interrupts

    def set_irqs(self, body):
        fault = self.fault
        if fault == "short-irqs-done" and len(body) < 20:
            return b""
        check(len(body) >= 20)
        _, flags, index, start, count = struct.unpack_from("<IIIII", body)
        data, action = flags & 7, flags & 0x38
        check((data in (1, 2, 4) and action in (8, 16, 32)) or fault == "any-flags")
        if fault == "any-vector":
            index, start, count = min(index, 4), 0, min(count, 1)
        check(index < len(self.device.irqs))
        irqs = self.device.irqs[index]
        fds, self.fds = self.fds, []
        try:
            check(start + count <= len(irqs.fds))
            if fault == "bool-read-beyond":
                body += bytes(count)
            check(data != 2 or len(body) >= 20 + count)
            if len(fds) not in (0, count):
                if fault == "dies-of-odd-number":
                    os._exit(1)
                raise Refused
            if action != 32:
                check(fault != "mask-refused")
            elif count == 0:
                for vector in range(len(irqs.fds) if fault != "disable-ignored" else 0):
                    irqs.put(vector, None)
            elif data == 4:
                self.arm(irqs, start, count, fds)
                fds = []
            elif data == 2 and fault != "bool-ignored":
                for vector in range(count):
                    if body[20 + vector] or fault == "bool-all-true":
                        irqs.fire(start + vector)
            elif data == 1 and fault != "trigger-none-ignored":
                for vector in range(start, start + count):
                    irqs.fire(vector)
        finally:
            for fd in fds:
                os.close(fd)
        return bytes(4) if fault == "set-irqs-with-payload" else b""

    def arm(self, irqs, start, count, fds):
        if not fds and self.fault == "no-descriptors-ignored":
            return
        for n, fd in enumerate(fds or [None] * count):
            vector = n if self.fault == "vectors-from-0" else start + n
            if self.fault == "first-eventfd-stays" and fd is not None and irqs.fds[vector] is not None:
                os.close(fd)
                continue
            irqs.put(vector, fd)
            if self.fault == "trigger-when-armed":
                irqs.fire(vector)

    # -- memory

    def dma_map(self, body):
        fault, maps = self.fault, self.device.maps
        if fault == "short-map-unanswered" and len(body) < 32:
            self.exactly(1)
        check(len(body) >= 32)
        _, flags, offset, addr, size = struct.unpack_from("<IIQQQ", body)
        if addr + size > 1 << 64 and fault == "dies-of-wrapping":
            os._exit(1)
        check(size and addr + size <= 1 << 64)
        check(flags == 3 or fault != "read-write-only")
        check(self.fds or fault != "descriptor-required")
        check(not offset or fault != "no-offset")
        if self.fds:
            try:
                os.lseek(self.fds[0], 0, os.SEEK_CUR)
            except OSError as e:
                if fault == "dies-of-pipe":
                    os._exit(1)
                raise Refused from e
        over = any(addr < start + length and start < addr + size for start, length in maps.items())
        check(not over or fault == "overlaps-mapped", EEXIST)
        check((addr, size) not in self.device.remembered, EEXIST)
        check(len(maps) < (16 if fault == "16-ranges" else 65535))
        if fault == "range-remembered":
            self.device.remembered.add((addr, size))
        maps.setdefault(addr, size)
        return bytes(8) if fault == "map-with-payload" else b""

    def dma_unmap(self, body):
        fault, maps = self.fault, self.device.maps
        check(len(body) >= 24)
        _, flags, addr, size = struct.unpack_from("<IIQQ", body)
        check(flags == 0)
        exact = maps.get(addr) == size
        # The one part that this takes, so that others show that it keeps account.
        part = fault == "parts-unmapped" and maps.get(addr, 0) > size > 0
        check(exact or part or fault == "unmap-of-nothing-done", ENOENT)
        if exact or part:
            del maps[addr]
        return b"" if fault == "unmap-without-payload" else body[:24]

    # -- state

    def reset(self, _):
        check(self.fault != "reset-refused")
        if self.fault != "reset-stays-stopped":
            self.device.state = RUNNING
        if self.fault == "bar-gone-after-reset":
            self.device.regions[0] = Region(0, 0)
        return bytes(4) if self.fault == "reset-with-payload" else b""

    def feature(self, body):
        fault = self.fault
        if fault == "short-feature-done" and len(body) < 8:
            return b""
        check(len(body) >= 8)
        argsz, flags = struct.unpack_from("<II", body)
        number, get, put, probe = flags & 0xffff, flags & 1 << 16, flags & 1 << 17, flags & 1 << 18
        known = {1: 1 << 16, 2: 3 << 16, 6: 1 << 17, 7: 1 << 17, 8: 1 << 16}
        if number not in known and fault == "any-feature":
            return body
        check(number in known)
        if probe:
            check(not flags & 3 << 16 & ~known[number] or fault == "any-probe")
            return body + bytes(8) if fault == "probe-with-data" else body
        check(not flags & 3 << 16 & ~known[number])
        check(bool(get) != bool(put) or fault == "get-and-set")
        data = body[8:]
        if number == 1:
            return struct.pack("<IIQ", 16, flags, 4 if fault == "no-stop-copy" else 5)
        if number == 2 and get and not put:
            return struct.pack("<IIII", 16, flags, 99 if fault == "state-99" else self.device.state, 0)
        if number == 2:
            self.transition(data)
        elif number == 6:
            self.log(data)
        elif number == 7:
            check(self.device.logging or fault != "stop-once")
            self.device.logging = None
        elif number == 8:
            return self.report(argsz, flags, data)
        return body

    def transition(self, data):
        fault, device = self.fault, self.device
        if len(data) < 8 and fault == "short-state-done":
            return
        check(len(data) >= 8)
        to, = struct.unpack_from("<I", data)
        if fault == "error-entered" and to == ERR_STATE:
            device.state = to
            return
        check(to in ARCS and device.state in ARCS)
        if (device.state, to) == (STOP_COPY, PRE_COPY):
            if fault == "refused-yet-entered":
                device.state = to
            check(fault == "stop-copy-to-pre-copy")
            device.state = to
            return
        check(fault != "running-to-pre-copy-refused" or (device.state, to) != (RUNNING, PRE_COPY))
        way = path(device.state, to)
        check(way is not None and (len(way) < 2 or fault != "composed-refused"))
        check(to != RESUMING or fault != "resuming-refused")
        for state in way:
            if device.state == RESUMING:
                check(device.written == STATE)
            if state in (STOP_COPY, PRE_COPY, RESUMING):
                device.at, device.written = 0, b""
            device.state = state
        if fault == "transition-not-made":
            device.state = RUNNING

    def mig_read(self, body):
        fault, device = self.fault, self.device
        if fault == "short-data-done" and len(body) < 8:
            return b""
        check(len(body) >= 8)
        _, size = struct.unpack_from("<II", body)
        check(device.state in (STOP_COPY, PRE_COPY) or fault == "read-anywhere")
        if size > MAX_XFER:
            if fault == "dies-of-large-read":
                os._exit(1)
            raise Refused
        if fault == "no-end":
            device.at = 0
        data = STATE[device.at:device.at + (size + 1 if fault == "more-than-asked" else size)]
        device.at += len(data)
        said = len(data)
        if fault == "size-without-data":
            data = data[:-1]
        return struct.pack("<II", 8 + said, said) + data

    def mig_write(self, body):
        fault, device = self.fault, self.device
        check(len(body) >= 8)
        _, size = struct.unpack_from("<II", body)
        check(device.state == RESUMING or fault == "write-anywhere")
        if fault == "cut-write-done" and len(body) != 8 + size:
            return b""
        check(len(body) == 8 + size)
        if fault != "first-piece-only" or not device.written:
            device.written += body[8:]
        return b""

    # -- dirty logging

    def log(self, data):
        fault = self.fault
        check(len(data) >= 16)
        page_size, count, _ = struct.unpack_from("<QII", data)
        check(page_size and not page_size & page_size - 1)
        check(count or fault != "ranges-required")
        if fault != "ranges-believed":
            check(len(data) == 16 + 16 * count)
        for at in range(16, len(data), 16):
            iova, length = struct.unpack_from("<QQ", data, at)
            if not length and fault == "dies-of-empty-range":
                os._exit(1)
            check(length and iova + length <= 1 << 64)
        check(self.device.logging in (None, page_size))
        self.device.logging = page_size

    def report(self, argsz, flags, data):
        fault = self.fault
        check(len(data) >= 24)
        iova, length, page_size = struct.unpack_from("<QQQ", data)
        check(self.device.logging or fault == "report-while-off")
        if fault == "any-page-size":
            page_size = page_size or PAGE
        else:
            check(page_size and not page_size & page_size - 1)
        mapped = [(start, size) for start, size in self.device.maps.items()
                  if start <= iova and iova + length <= start + size]
        check(length and mapped, ENOENT)
        check(fault != "report-of-all-only" or mapped == [(iova, length)], ENOTSUP)
        unit = PAGE if fault == "page-size-of-start" else page_size
        size = -(-length // unit // 64) * 8
        if fault == "bitmap-of-bytes":
            size = -(-length // unit // 8) + 1
        check(argsz >= 32 + size or fault == "report-beyond-argsz")
        bitmap = bytes([1]) + bytes(size - 1) if fault == "bits-stay" else bytes(size)
        return struct.pack("<II", 32 + size, flags) + data[:24] + bitmap


def main():
    path, fault = sys.argv[1], (sys.argv[2:] + [""])[0]
    assert fault in FAULTS or not fault, fault
    device = Device(fault)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    clients = []
    while True:
        sock, _ = listener.accept()
        if fault == "one-client" and clients:
            clients.append(sock)
            continue
        clients = [None]
        Connection(sock, device).serve()


main()
