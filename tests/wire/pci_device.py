"""Capabilities as a device hands them over, and the live configuration space seen from the device."""
import ctypes as c
import struct

from libvfu import GET_INFO

PM, MSI, VENDOR, EXP, MSIX = 0x01, 0x05, 0x09, 0x10, 0x11
EXT_SERIAL, EXT_VENDOR = 0x0003, 0x000b

COMMAND, STATUS, CAP_POINTER = 0x04, 0x06, 0x34
FLR_CAPABLE = 1 << 28


def pm(pmc=0, pmcsr=0, bridge=0, data=0, link=0):
    return struct.pack("<BBHHBB", PM, link, pmc, pmcsr, bridge, data)


def msi(control=0, address=0, upper=0, data=0, extended_data=0, mask=0, pending=0):
    return struct.pack("<BBHIIHHII", MSI, 0, control, address, upper, data, extended_data, mask, pending)


def msix(control=0, table=0, pba=0):
    return struct.pack("<BBHII", MSIX, 0, control, table, pba)


def vendor(payload, size=None):
    return bytes([VENDOR, 0, 3 + len(payload) if size is None else size]) + payload


def express(flr=True, registers=()):
    """60 bytes; `registers` are (offset, bytes) put over zeros."""
    cap = bytearray(struct.pack("<BBHI", EXP, 0, 2, FLR_CAPABLE if flr else 0) + bytes(52))
    for offset, data in registers:
        cap[offset:offset + len(data)] = data
    return bytes(cap)


def serial(number=0x0123456789abcdef):
    return struct.pack("<HHQ", EXT_SERIAL, 1, number)


def ext_vendor(payload, size=None, vsec=0x1234):
    size = 8 + len(payload) if size is None else size
    return struct.pack("<HHI", EXT_VENDOR, 1, size << 20 | vsec) + payload


def peek(ctx, offset, count):
    """Configuration space as the device sees it."""
    return c.string_at(ctx.config() + offset, count)


def poke(ctx, offset, data):
    """The device changes its configuration space behind the library's back."""
    c.memmove(ctx.config() + offset, bytes(data), len(data))


def peek16(ctx, offset):
    return struct.unpack("<H", peek(ctx, offset, 2))[0]


def peek32(ctx, offset):
    return struct.unpack("<I", peek(ctx, offset, 4))[0]


def alive(client):
    """The connection is in step and still answers."""
    assert client.nothing()
    assert client.request(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)) == struct.pack("<IIII", 16, 3, 9, 5)
