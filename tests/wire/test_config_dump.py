"""The configuration space of a whole device, as the tools of the PCI world decode it.

The device listens on an empty path, as programs do that want no client at all:
that is an abstract name which all such programs share, so only one can run.
"""
import re
import shutil
import struct
import subprocess
import time
from errno import EADDRINUSE

import pytest

from libvfu import *
from pci_device import alive, express, ext_vendor, peek, pm, serial, vendor

NO_SOFT_RESET = 1 << 3
OFFSETS = [0x40, 0x48, 0x58, 0x100, 0x10c, 0x400]


def on_the_empty_path():
    """A context there. Another process may have it for a moment; the wait is for that only."""
    end = time.monotonic() + 60
    while True:
        try:
            return Ctx(path="", realize=False)
        except Failed as e:
            if e.errno != EADDRINUSE or time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="module")
def device():
    with on_the_empty_path() as ctx:
        ctx.pci_init(EXPRESS)
        lib.vfu_pci_set_id(ctx.p, 0x494f, 0x0dc8, 0x0, 0x0)
        lib.vfu_pci_set_class(ctx.p, 0x07, 0x80, 0x00)
        added = [
            ctx.add_cap(pm(pmcsr=NO_SOFT_RESET)),
            ctx.add_cap(vendor(b"Hello world!!", size=16)),
            ctx.add_cap(express(flr=True)),
            ctx.add_cap(serial(0x0123456789abcdef), 0, CAP_EXTENDED),
            ctx.add_cap(ext_vendor(b"first"), 0, CAP_EXTENDED),
            ctx.add_cap(ext_vendor(b"second"), 0x400, CAP_EXTENDED),
        ]
        ctx.realize()
        yield ctx, added


def test_offsets(device):
    assert device[1] == OFFSETS


def test_the_buffer(device):
    ctx, _ = device
    want = bytearray(4096)
    want[0x00:0x10] = struct.pack("<HHHHBBBBI", 0x494f, 0x0dc8, 0, 0x0010, 0, 0x00, 0x80, 0x07, 0)
    want[0x10:0x28] = struct.pack("<6I", *[1] * 6)
    want[0x34] = 0x40
    want[0x40:0x48] = pm(pmcsr=NO_SOFT_RESET, link=0x48)
    want[0x48:0x58] = b"\x09\x58\x10Hello world!!"
    want[0x58:0x94] = express(flr=True)
    want[0x100:0x10c] = struct.pack("<IQ", 0x10c << 20 | 1 << 16 | 3, 0x0123456789abcdef)
    want[0x10c:0x119] = struct.pack("<II", 0x400 << 20 | 1 << 16 | 0xb, 13 << 20 | 0x1234) + b"first"
    want[0x400:0x40e] = struct.pack("<II", 1 << 16 | 0xb, 14 << 20 | 0x1234) + b"second"
    assert peek(ctx, 0, 4096) == want


def test_a_client_reads_the_same(device):
    ctx, _ = device
    with ctx.connect() as client:
        assert client.read(CFG, 0, 4096) == peek(ctx, 0, 4096)
        alive(client)
    with pytest.raises(Failed, match="ENOTCONN"):
        ctx.run()


def hexdump(space):
    """As `lspci -xxxx` prints a device, which `lspci -F` reads."""
    lines = ["00:00.0 device"]
    lines += [f"{at:02x}: " + space[at:at + 16].hex(" ") for at in range(0, len(space), 16)]
    return "\n".join(lines) + "\n\n"


@pytest.mark.skipif(not shutil.which("lspci"), reason="pciutils is not installed")
def test_lspci_decodes_it(device, tmp_path):
    ctx, _ = device
    dump = tmp_path / "dump"
    dump.write_text(hexdump(peek(ctx, 0, 4096)))
    out = subprocess.run(["lspci", "-vv", "-n", "-F", str(dump)], capture_output=True, text=True, check=True,
                         timeout=60).stdout
    assert out.startswith("00:00.0 0780: 494f:0dc8\n")
    assert re.findall(r"Region (\d): I/O ports at <unassigned>", out) == list("012345"), out
    caps = [(int(at, 16), text) for at, text in
            re.findall(r"^\tCapabilities: \[([0-9a-f]+)(?: v\d)?\] (.*)$", out, re.M)]
    assert [at for at, _ in caps] == OFFSETS, out
    for (_, text), want in zip(caps, ("Power Management", "Vendor Specific Information: Len=10", "Express",
                                      "Device Serial Number 01-23-45-67-89-ab-cd-ef",
                                      "Vendor Specific Information: ID=1234 Rev=0 Len=00d",
                                      "Vendor Specific Information: ID=1234 Rev=0 Len=00e")):
        assert text.startswith(want), out
    assert "NoSoftRst+" in out and "FLReset+" in out and "Cap+" in out
