"""Every command and its reply, and what a trace is to say of them.

Each message: who sends it, its command, its flags, its payload, its errno, how many descriptors come along, the fields that
`vfu trace --json` shows, and those of the Wireshark dissector (several of the same name as a list). Numbers and
layouts are written down from the specification.
"""
import dataclasses
import struct

from between import F_ERROR, F_NO_REPLY, F_REPLY

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = range(9, 14)
WRITE_MULTI, FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = range(15, 19)
ALL = [*range(1, 14), *range(15, 19)]
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
JSON = b'{"capabilities":{"max_msg_fds":8}}'


@dataclasses.dataclass
class Message:
    sender: str
    command: int
    flags: int
    payload: bytes
    fields: dict
    shark: dict
    error: int = 0
    fds: int = 0


messages = []


def says(sender, command, payload, fields, shark, flags=0, error=0, fds=0):
    messages.append(Message(sender, command, flags, payload, fields, shark, error, fds))


def pair(command, request, reply, sender="client"):
    """A command and its reply, each (payload, fields, fields in Wireshark, descriptors)."""
    other = {"client": "server", "server": "client"}[sender]
    says(sender, command, request[0], request[1], request[2], 0, 0, *request[3:])
    says(other, command, reply[0], reply[1], reply[2], F_REPLY, 0, *reply[3:])


capabilities = {"version": "0.2", "capabilities": {"max_msg_fds": 8}}
shark = {"major": 0, "minor": 2, "capabilities": JSON.decode()}
pair(VERSION, (struct.pack("<HH", 0, 2) + JSON + b"\0", capabilities, shark), (struct.pack("<HH", 0, 2) + JSON + b"\0", capabilities, shark))
pair(DMA_MAP,
     (struct.pack("<IIQQQ", 32, 3, 0x2000, 0x100000, 0x40000),
      {"address": 0x100000, "size": 0x40000, "offset": 0x2000, "flags": ["read", "write"]},
      {"argsz": 32, "flags": 3, "dma_read": 1, "dma_write": 1, "dma_mmap": 0, "offset": 0x2000, "address": 0x100000, "length": 0x40000,
       "descriptors": 1, "descriptor_kind": 1, "descriptor_name": "guest"}, 1),
     (b"", {}, {"type": 1}))
pair(GET_INFO,
     (struct.pack("<IIII", 16, 0, 0, 0), {"argsz": 16}, {"argsz": 16}),
     (struct.pack("<IIII", 16, 3, 9, 5), {"flags": ["reset", "pci"], "num_regions": 9, "num_irqs": 5},
      {"device_reset": 1, "device_pci": 1, "num_regions": 9, "num_irqs": 5}))
pair(GET_REGION_INFO,
     (struct.pack("<IIIIQQ", 72, 0, 2, 0, 0, 0), {"region": "BAR2", "argsz": 72}, {"region": 2, "argsz": 72}),
     (struct.pack("<IIIIQQ", 80, 15, 2, 32, 0x4000, 0x1000) + struct.pack("<HHIIIQQQQ", 1, 1, 0, 2, 0, 0, 0x1000, 0x2000, 0x800),
      {"region": "BAR2", "size": 0x4000, "offset": 0x1000, "flags": ["read", "write", "mmap", "caps"], "argsz": 80,
       "areas": ["0x0+0x1000", "0x2000+0x800"]},
      {"region": 2, "length": 0x4000, "offset": 0x1000, "region_mmap": 1, "cap_id": 1, "nr_areas": 2, "area_offset": [0, 0x2000],
       "area_size": [0x1000, 0x800], "descriptor_kind": 1}, 1))
pair(GET_REGION_IO_FDS,
     (struct.pack("<IIII", 112, 0, 0, 0), {"region": "BAR0", "argsz": 112}, {"region": 0, "argsz": 112}),
     (struct.pack("<IIII", 112, 0, 0, 2) + struct.pack("<QQIIIIQQ", 0x10, 4, 0, 0, 2, 0, 0, 7)
      + struct.pack("<QQIIIIQQ", 0x20, 8, 0xffffffff, 2, 0, 1, 0x40, 0),
      {"region": "BAR0", "count": 2, "entries": ["0x10+0x4 ioeventfd fd 0", "0x20+0x8 shadow ioeventfd no fd"]},
      {"region": 0, "count": 2, "offset": [0x10, 0x20], "length": [4, 8], "io_fd_type": [0, 2], "datamatch": [7, 0],
       "shadow_offset": [0, 0x40]}, 1))
pair(GET_IRQ_INFO,
     (struct.pack("<IIII", 16, 0, 2, 0), {"irq": "MSI-X", "argsz": 16}, {"irq": 2}),
     (struct.pack("<IIII", 16, 3, 2, 17), {"irq": "MSI-X", "count": 17, "flags": ["eventfd", "maskable"]},
      {"irq": 2, "count": 17, "irq_eventfd": 1, "irq_maskable": 1, "irq_automasked": 0}))
pair(SET_IRQS,
     (struct.pack("<IIIII", 20, 0x24, 2, 1, 2), {"irq": "MSI-X", "start": 1, "count": 2, "flags": ["data_eventfd", "action_trigger"]},
      {"irq": 2, "start": 1, "count": 2, "data_eventfd": 1, "action_trigger": 1, "data_none": 0, "descriptors": 2}, 2),
     (b"", {}, {"type": 1}))
pair(SET_IRQS,
     (struct.pack("<IIIII", 23, 0x12, 1, 4, 3) + b"\1\0\1",
      {"irq": "MSI", "start": 4, "count": 3, "flags": ["data_bool", "action_unmask"], "vectors": ["4", "6"]},
      {"irq": 1, "data_bool": 1, "action_unmask": 1, "data": "010001"}),
     (b"", {}, {}))
pair(REGION_READ,
     (struct.pack("<QII", 0, 7, 4), {"region": "CONFIG", "offset": 0, "count": 4, "registers": ["Vendor ID", "Device ID"]},
      {"region": 7, "offset": 0, "count": 4}),
     (struct.pack("<QII", 0, 7, 4) + bytes.fromhex("34120010"),
      {"region": "CONFIG", "offset": 0, "count": 4, "registers": ["Vendor ID", "Device ID"], "data": 0x10001234},
      {"region": 7, "data": "34120010"}))
pair(REGION_WRITE,
     (struct.pack("<QII", 0x1000, 0, 20) + bytes(range(20)),
      {"region": "BAR0", "offset": 0x1000, "count": 20, "data": bytes(range(16)).hex(" ")},
      {"region": 0, "offset": 0x1000, "count": 20, "data": bytes(range(20)).hex()}),
     (struct.pack("<QII", 0x1000, 0, 20), {"region": "BAR0", "offset": 0x1000, "count": 20}, {"region": 0, "count": 20}))
says("client", REGION_WRITE, struct.pack("<QII", 8, 4, 1) + b"\x55", {"region": "BAR4", "offset": 8, "count": 1, "data": 0x55},
     {"region": 4, "no_reply": 1, "data": "55"}, F_NO_REPLY)
pair(DMA_READ,
     (struct.pack("<QQ", 0x7f000000, 8), {"address": 0x7f000000, "count": 8}, {"address": 0x7f000000, "count64": 8, "from_server": 1}),
     (struct.pack("<QQ", 0x7f000000, 8) + bytes(range(8)), {"address": 0x7f000000, "count": 8, "data": 0x0706050403020100},
      {"address": 0x7f000000, "data": bytes(range(8)).hex(), "from_server": 0}), "server")
pair(DMA_WRITE,
     (struct.pack("<QQ", 0x7f000000, 2) + b"ab", {"address": 0x7f000000, "count": 2, "data": 0x6261}, {"count64": 2, "data": "6162"}),
     (struct.pack("<QQ", 0x7f000000, 2), {"address": 0x7f000000, "count": 2}, {"count64": 2}), "server")
pair(RESET, (b"", {}, {"type": 0}), (b"", {}, {"type": 1}))
pair(WRITE_MULTI,
     (struct.pack("<Q", 2) + struct.pack("<QII8s", 0x10, 0, 4, b"\1") + struct.pack("<QII8s", 0x20, 2, 1, b"\2"),
      {"wr_cnt": 2, "writes": ["BAR0 0x10=0x00000001", "BAR2 0x20=0x02"]},
      {"wr_cnt": 2, "offset": [0x10, 0x20], "region": [0, 2], "count": [4, 1], "data": [b"\1".ljust(8, b"\0").hex(), b"\2".ljust(8, b"\0").hex()]}),
     (struct.pack("<Q", 2), {"wr_cnt": 2}, {"wr_cnt": 2}))
pair(FEATURE,
     (struct.pack("<II", 16, GET | 1), {"feature": "MIGRATION", "flags": ["get"], "argsz": 16}, {"feature": 1, "feature_get": 1}),
     (struct.pack("<IIQ", 16, GET | 1, 5), {"feature": "MIGRATION", "flags": ["get"], "argsz": 16, "migration": ["stop_copy", "pre_copy"]},
      {"feature": 1, "stop_copy": 1, "p2p": 0, "pre_copy": 1}))
pair(FEATURE,
     (struct.pack("<II", 8, PROBE | SET | 6), {"feature": "DMA_LOGGING_START", "flags": ["set", "probe"], "argsz": 8},
      {"feature": 6, "feature_probe": 1, "feature_set": 1}),
     (struct.pack("<II", 8, PROBE | SET | 6), {"feature": "DMA_LOGGING_START", "flags": ["set", "probe"], "argsz": 8}, {"feature": 6}))
pair(FEATURE,
     (struct.pack("<IIII", 16, SET | 2, 6, 0), {"feature": "MIG_DEVICE_STATE", "flags": ["set"], "argsz": 16, "device_state": "PRE_COPY"},
      {"feature": 2, "feature_set": 1, "device_state": 6, "data_fd": 0}),
     (struct.pack("<IIII", 16, SET | 2, 6, 0), {"feature": "MIG_DEVICE_STATE", "flags": ["set"], "argsz": 16, "device_state": "PRE_COPY"},
      {"device_state": 6}))
ranges = struct.pack("<QII", 0x1000, 2, 0) + struct.pack("<QQQQ", 0, 0x1000, 0x8000, 0x2000)
fields = {"feature": "DMA_LOGGING_START", "flags": ["set"], "argsz": 56, "page_size": 0x1000, "ranges": ["0x0+0x1000", "0x8000+0x2000"]}
shark = {"feature": 6, "page_size": 0x1000, "num_ranges": 2, "iova": [0, 0x8000], "length": [0x1000, 0x2000]}
pair(FEATURE, (struct.pack("<II", 56, SET | 6) + ranges, fields, shark), (struct.pack("<II", 56, SET | 6) + ranges, fields, shark))
report = struct.pack("<QQQ", 0x100000, 0x40000, 0x1000)
fields = {"feature": "DMA_LOGGING_REPORT", "flags": ["get"], "argsz": 40, "iova": 0x100000, "length": 0x40000, "page_size": 0x1000}
shark = {"feature": 8, "iova": 0x100000, "length": 0x40000, "page_size": 0x1000}
pair(FEATURE,
     (struct.pack("<II", 40, GET | 8) + report, fields, shark),
     (struct.pack("<II", 40, GET | 8) + report + struct.pack("<Q", 0xf1), {**fields, "dirty_pages": 5}, {**shark, "bitmap": "f100000000000000"}))
pair(FEATURE,
     (struct.pack("<II", 8, SET | 7), {"feature": "DMA_LOGGING_STOP", "flags": ["set"], "argsz": 8}, {"feature": 7}),
     (struct.pack("<II", 8, SET | 7), {"feature": "DMA_LOGGING_STOP", "flags": ["set"], "argsz": 8}, {"feature": 7}))
pair(MIG_DATA_READ,
     (struct.pack("<II", 4104, 4096), {"size": 4096}, {"argsz": 4104, "count": 4096}),
     (struct.pack("<II", 11, 3) + b"xyz", {"size": 3, "data": b"xyz".hex(" ")}, {"count": 3, "data": b"xyz".hex()}))
pair(MIG_DATA_WRITE,
     (struct.pack("<II", 9, 1) + b"x", {"size": 1, "data": 0x78}, {"argsz": 9, "count": 1, "data": "78"}),
     (b"", {}, {"type": 1}))
pair(DMA_UNMAP,
     (struct.pack("<IIQQ", 48, 1, 0x100000, 0x40000) + struct.pack("<QQ", 0x1000, 8),
      {"address": 0x100000, "size": 0x40000, "flags": ["get_dirty_bitmap"], "pgsize": 0x1000, "bitmap_size": 8},
      {"address": 0x100000, "length": 0x40000, "unmap_bitmap": 1, "unmap_all": 0, "pgsize": 0x1000, "bitmap_size": 8}),
     (struct.pack("<IIQQ", 48, 1, 0x100000, 0x40000) + struct.pack("<QQQ", 0x1000, 8, 3),
      {"address": 0x100000, "size": 0x40000, "flags": ["get_dirty_bitmap"], "pgsize": 0x1000, "bitmap_size": 8, "dirty_pages": 2},
      {"pgsize": 0x1000, "bitmap": "0300000000000000"}))
pair(DMA_UNMAP,
     (struct.pack("<IIQQ", 24, 2, 0, 0), {"address": 0, "size": 0, "flags": ["all"]}, {"unmap_all": 1, "unmap_bitmap": 0}),
     (struct.pack("<IIQQ", 24, 2, 0, 0), {"address": 0, "size": 0, "flags": ["all"]}, {"unmap_all": 1}))
# One that no specification has, and one that fails.
pair(99, (b"abcde", {"payload": b"abcde".hex(" ")}, {"command": 99, "payload": b"abcde".hex()}), (b"", {"payload": ""}, {"type": 1}))
says("client", REGION_READ, struct.pack("<QII", 0xffff, 1, 1), {"region": "BAR1", "offset": 0xffff, "count": 1}, {"region": 1})
says("server", REGION_READ, b"", {}, {"is_error": 1, "errno": 22}, F_REPLY | F_ERROR, 22)
