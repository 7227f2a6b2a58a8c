"""The device dma-engine: its registers, and the stream of its state."""
import struct

from peer import BAR0, BAR2, CONFIG, MAX_XFER, RESUMING, STOP, STOP_COPY

CONTROL, STATUS, IRQ_STATUS, IRQ_ENABLE, COMPLETED = 0x08, 0x0c, 0x10, 0x14, 0x18
DOORBELL, RING_BASE, RING_SIZE, RING_HEAD, RING_TAIL, DESC = 0x28, 0x30, 0x38, 0x3c, 0x40, 0x80
DESC_STATUS = DESC + 44
MSIX_TABLE = 0x1000
BAR0_SIZE, BAR2_SIZE, PAGE, CHUNK = 0x2000, 0x4000000, 4096, 65536
NOP, COPY, FILL, PATTERN, CHECKSUM = range(5)
IRQ, SRC_LOCAL, DST_LOCAL, MESSAGE = 1, 2, 4, 0x10
BUSY, DONE = 1, 1

MAGIC = 0x5453474e45414d44
OPTIONAL = 1 << 31
R_PAGE, R_REGISTERS, R_MSIX, R_WORK, R_STATISTICS, R_END = 1, 2, 3, 4, 5 | OPTIONAL, 255


def descriptor(op, flags=0, src=0, dst=0, length=0, value=0, vector=0):
    return struct.pack("<IIQQQQIIQQ", op, flags, src, dst, length, value, vector, 0, 0, 0)


def ring_bell(client, desc):
    """Starts a descriptor from the registers."""
    client.write_u32(CONTROL, 1)
    client.write(BAR0, DESC, desc)
    client.write_u32(DOORBELL, 1)


def finish(client):
    """Until the device has nothing left to do."""
    while client.read_u32(STATUS) & BUSY:
        pass


def pattern(value, length):
    """What PATTERN writes."""
    turn = bytes((value + i) & 0xff for i in range(256))
    return (turn * (length // 256 + 1))[:length]


def bars(client):
    """All that the BARs show."""
    memory = b"".join(client.read(BAR2, at, MAX_XFER) for at in range(0, BAR2_SIZE, MAX_XFER))
    return client.read(BAR0, 0, BAR0_SIZE), memory


def enable_msix(client):
    at = client.read(CONFIG, 0x34, 1)[0]
    while client.read(CONFIG, at, 1) != b"\x11":
        at = client.read(CONFIG, at + 1, 1)[0]
        assert at
    client.write(CONFIG, at + 2, struct.pack("<H", 0x8000))


def save(client, sizes=lambda: MAX_XFER):
    """The whole stream, of a device that ends up in STOP."""
    client.set_state(STOP_COPY)
    stream = client.read_until_short(sizes)
    client.set_state(STOP)
    return stream


def load(client, stream, sizes=lambda: MAX_XFER):
    """Loads a stream into a device, which ends up in STOP."""
    client.set_state(RESUMING)
    client.write_all(stream, sizes)
    client.set_state(STOP)


def checksum(data):
    total = 0xcbf29ce484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return total


def split(stream):
    """A stream's header, and its records as (type, payload)."""
    length = struct.unpack_from("<QII", stream)[2]
    header, at, records = stream[:length], length, []
    while at < len(stream):
        kind, size = struct.unpack_from("<II", stream, at)
        records.append((kind, stream[at + 8:at + 8 + size]))
        assert len(records[-1][1]) == size
        at += 8 + size
    assert records[-1][0] == R_END
    return header, records


def join(header, records):
    """A stream of these, with the right checksum if it has the usual end."""
    stream = header
    for kind, payload in records:
        stream += struct.pack("<II", kind, len(payload))
        stream += struct.pack("<Q", checksum(stream)) if kind == R_END and len(payload) == 8 else payload
    return stream
