"""What is refused says why: one line at LOG_ERR, with what was asked for and the rule that it broke."""
import ctypes
import errno
import re
import struct

import pytest
from libvfu import *

LOG_ERR = 3
MAPPED = 64 * PAGE


def access_nothing(_ctx, _buf, count, _offset, _is_write):
    return count


def errors(ctx):
    return [text for level, text in ctx.lines if level <= LOG_ERR]


def capability(number, size):
    return bytes([number, 0]) + bytes(size - 2)


# Mistakes in a program's set-up: a call, and words of the line.
SETUP = {
    "size is no power of two": (lambda ctx: ctx.setup_region(BAR0, 0x3000, access_nothing),
                                "vfu_setup_region: region 0, size 0x3000, flags 0x3: .*power of two"),
    "memory of 8 bytes": (lambda ctx: ctx.setup_region(BAR0, 8, access_nothing, RW | MEM), "size 0x8, .*16 bytes"),
    "neither READ nor WRITE": (lambda ctx: ctx.setup_region(BAR1, 0x1000, access_nothing, MEM),
                               "region 1, .*neither READ nor WRITE"),
    "unknown flag": (lambda ctx: ctx.setup_region(BAR1, 0x1000, access_nothing, RW | 1 << 10), "flags 0x403: an unknown flag"),
    "no such region": (lambda ctx: ctx.setup_region(9, 0x1000, access_nothing), "region 9, .*no such region"),
    "odd 64-bit BAR": (lambda ctx: ctx.setup_region(BAR1, 0x1000, access_nothing, RW | MEM | BITS_64),
                       "region 1, .*even number"),
    "64-bit BAR over another": (lambda ctx: (ctx.setup_region(BAR3, 0x1000, access_nothing),
                                             ctx.setup_region(BAR2, 0x1000, access_nothing, RW | MEM | BITS_64)),
                                "region 2, .*upper half"),
    "ALWAYS_CB without callback": (lambda ctx: ctx.setup_region(BAR0, 0x1000, None, RW | ALWAYS_CB), "ALWAYS_CB"),
    "parts without descriptor": (lambda ctx: ctx.setup_region(BAR0, 0x1000, access_nothing, RW | MEM, areas=[(0, 0x1000)]),
                                 "without a descriptor"),
    "part beyond the region": (lambda ctx: ctx.setup_region(BAR0, 0x1000, access_nothing, RW | MEM,
                                                            areas=[(0, 0x2000)], fd=0), "part to be mapped"),
    "configuration space of 512 bytes": (lambda ctx: ctx.setup_region(CFG, 512, access_nothing), "region 7, .*256 or 4096"),
    "misaligned capability": (lambda ctx: (ctx.pci_init(), ctx.add_cap(capability(1, 8), pos=0x41)),
                              "vfu_pci_add_capability: position 0x41, flags 0x0: .*misaligned"),
    "unknown capability": (lambda ctx: (ctx.pci_init(), ctx.add_cap(capability(0x7f, 8))), "not known"),
    "unknown capability flag": (lambda ctx: (ctx.pci_init(), ctx.add_cap(capability(1, 8), flags=999)), "unknown flag"),
    "capability without space": (lambda ctx: ctx.add_cap(capability(1, 8)), "no configuration space"),
    "callback capability without callback": (lambda ctx: (ctx.pci_init(), ctx.add_cap(capability(1, 8), flags=CAP_CALLBACK)),
                                             "no callback"),
    "extended on conventional": (lambda ctx: (ctx.pci_init(CONVENTIONAL), ctx.add_cap(capability(3, 12), flags=CAP_EXTENDED)),
                                 "256 bytes"),
    "extended not at 0x100": (lambda ctx: (ctx.pci_init(), ctx.add_cap(capability(3, 12), pos=0x200, flags=CAP_EXTENDED)),
                              "position 0x200, .*0x100"),
    "pci_init twice": (lambda ctx: (ctx.pci_init(), ctx.pci_init()), "vfu_pci_init: .*already"),
    "no such kind of device": (lambda ctx: ctx.pci_init(9), "vfu_pci_init: .*no such type"),
    "interrupt type": (lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, 5, 1),
                       "vfu_setup_device_nr_irqs: type 5, count 1: .*interrupt type"),
    "interrupt state type": (lambda ctx: call("vfu_setup_irq_state_callback", ctx.p, 5, None),
                             "vfu_setup_irq_state_callback: type 5: "),
    "wrong callbacks version": (lambda ctx: ctx.setup_migration(version=1), "VFU_MIGR_CALLBACKS_VERS"),
    "run before realize": (lambda ctx: ctx.run(), "vfu_run_ctx: .*vfu_realize_ctx"),
    "ioeventfd in a region that is not set up": (
        lambda ctx: call("vfu_create_ioeventfd", ctx.p, 0, -1, 0, 4, 0, 0, -1, 0), "vfu_create_ioeventfd: .*not set up"),
    "log level": (lambda ctx: call("vfu_setup_log", ctx.p, None, 8), "vfu_setup_log: .*level"),
}


@pytest.mark.parametrize("mistake", SETUP)
def test_each_mistake_in_the_set_up_is_one_line(mistake):
    calls, words = SETUP[mistake]
    with Ctx(realize=False) as ctx:
        with pytest.raises(Failed):
            calls(ctx)
        (line,) = errors(ctx)
        assert re.search(words, line), line


def test_nothing_is_logged_where_nobody_listens_and_the_next_refusal_has_its_own_reason():
    with Ctx(realize=False, log=False) as ctx:
        fails(errno.EINVAL, ctx.setup_region, BAR0, 0x3000, access_nothing)
        call("vfu_setup_log", ctx.p, ctx.cb(LOG_CB, ctx._log), 3)
        assert ctx.lines == []
        fails(errno.EINVAL, ctx.run)
        (line,) = errors(ctx)
        assert "vfu_realize_ctx" in line


def region(index, offset, count, data=b""):
    return struct.pack("=QII", offset, index, count) + data


# A client's requests that are refused: command, payload, and words of the line.
REQUESTS = {
    "read beyond": (REGION_READ, region(0, 0x1000, 4), "REGION_READ of region 0, 0x4 bytes at 0x1000: .*beyond"),
    "write beyond": (REGION_WRITE, region(0, 0xffe, 4, bytes(4)), "REGION_WRITE of region 0, 0x4 bytes at 0xffe: .*beyond"),
    "no such region": (REGION_READ, region(9, 0, 4), "region 9, .*no such region"),
    "too much": (REGION_READ, region(0, 0, MAX_XFER + 1), "max_data_xfer_size"),
    "write without data": (REGION_WRITE, region(0, 0, 8, bytes(4)), "length of the data"),
    "not writable": (REGION_WRITE, region(1, 0, 4, bytes(4)), "region 1, .*does not allow"),
    "no callback": (REGION_READ, region(2, 0, 4), "region 2, .*no callback"),
    "short payload": (REGION_READ, bytes(8), "REGION_READ of 24 bytes: .*too short"),
    "region info, small argsz": (GET_REGION_INFO, struct.pack("=IIIIQQ", 8, 0, 1, 0, 0, 0),
                                 "DEVICE_GET_REGION_INFO of region 1, argsz 8: argsz"),
    "region info, no region": (GET_REGION_INFO, struct.pack("=IIIIQQ", 32, 0, 9, 0, 0, 0), "region 9, .*no such region"),
    "irq info": (GET_IRQ_INFO, struct.pack("=IIII", 16, 0, 5, 0), "DEVICE_GET_IRQ_INFO of type 5, .*interrupt type"),
    "device info": (GET_INFO, struct.pack("=IIII", 8, 0, 0, 0), "DEVICE_GET_INFO.*argsz"),
    "too many vectors": (SET_IRQS, struct.pack("=IIIII", 20, DATA_NONE | ACTION_TRIGGER, MSIX, 0, 3),
                         "DEVICE_SET_IRQS of type 2, 3 vectors from 0, flags 0x21, .*not so many"),
    "map, unknown flag": (DMA_MAP, struct.pack("=IIQQQ", 32, 1 << 9, 0, PAGE, PAGE),
                          "DMA_MAP of 0x1000 bytes at 0x1000, offset 0x0, flags 0x200: an unknown flag"),
    "map, small argsz": (DMA_MAP, struct.pack("=IIQQQ", 8, 3, 0, PAGE, PAGE), "DMA_MAP .*argsz"),
    "map, empty": (DMA_MAP, struct.pack("=IIQQQ", 32, 3, 0, PAGE, 0), "DMA_MAP .*it is empty, or has no end"),
    "map, over another": (DMA_MAP, struct.pack("=IIQQQ", 32, 3, 0, MAPPED, PAGE), "DMA_MAP .*overlaps"),
    "map, too large": (DMA_MAP, struct.pack("=IIQQQ", 32, 3, 0, 1 << 40, 1 << 63), "DMA_MAP .*larger than a region may be"),
    "unmap, a part": (DMA_UNMAP, struct.pack("=IIQQ", 24, 0, MAPPED, PAGE), "DMA_UNMAP .*cuts through"),
    "irqs, no action": (SET_IRQS, struct.pack("=IIIII", 20, DATA_NONE, MSIX, 0, 1), "DEVICE_SET_IRQS .*not one of MASK"),
    "irqs, no data": (SET_IRQS, struct.pack("=IIIII", 20, ACTION_TRIGGER, MSIX, 0, 1), "DEVICE_SET_IRQS .*not one of"),
    "irqs, count 0": (SET_IRQS, struct.pack("=IIIII", 20, ACTION_MASK | DATA_NONE, MSIX, 0, 0), "DEVICE_SET_IRQS .*count is 0"),
    "descriptors of a region": (GET_REGION_IO_FDS, struct.pack("=IIII", 16, 1, 0, 0), "DEVICE_GET_REGION_IO_FDS of region 0, "),
    "descriptors of a region, small argsz": (GET_REGION_IO_FDS, struct.pack("=IIII", 8, 0, 0, 0), "argsz is out of range"),
    "descriptors of no region": (GET_REGION_IO_FDS, struct.pack("=IIII", 16, 0, BAR5, 0), "region 5, .*not set up"),
    "callback fails": (REGION_READ, region(3, 0, 4), "region 3, .*the device's callback failed"),
    "callback does nothing": (REGION_READ, region(3, 4, 4), "region 3, .*the device did nothing"),
    "callback does too much": (REGION_READ, region(3, 8, 4), "region 3, .*cannot be"),
    "no place for a write": (REGION_WRITE, region(CFG, 0xf0, 4, bytes(4)), "region 7, 0x4 bytes at 0xf0: nothing is there"),
    "read-only header of a capability": (REGION_WRITE, region(CFG, 0x40, 2, bytes(2)), "region 7, .*cannot be written"),
    "power management": (REGION_WRITE, region(CFG, 0x42, 2, bytes(2)), "region 7, .*cannot be written"),
    "a part of power management": (REGION_WRITE, region(CFG, 0x44, 1, bytes(1)), "region 7, .*as a whole"),
    "reset of a function that has none": (REGION_WRITE, region(CFG, 0x50, 2, b"\0\x80"), "region 7, .*cannot be reset"),
    "feature of no migration": (DEVICE_FEATURE, struct.pack("=II", 16, FEATURE_GET | F_MIGRATION), "DEVICE_FEATURE 1, .*does not have"),
    "unmap, flags": (DMA_UNMAP, struct.pack("=IIQQ", 24, 3, PAGE, PAGE), "DMA_UNMAP .*flags 0x3: "),
    "feature": (DEVICE_FEATURE, struct.pack("=II", 8, FEATURE_GET | 99), "DEVICE_FEATURE 99, .*does not have"),
    "migration data": (MIG_DATA_READ, struct.pack("=II", 16, 8), "MIG_DATA_READ of 0x8 bytes, .*cannot migrate"),
    "several writes": (REGION_WRITE_MULTI, struct.pack("=Q", 0), "REGION_WRITE_MULTI .*negotiated"),
    "the server's command": (DMA_READ, bytes(16), "DMA_READ .*not a command"),
    "no command": (99, bytes(4), "command 99 of 20 bytes: .*"),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_each_request_that_is_refused_is_one_line(request_name):
    command, payload, words = REQUESTS[request_name]
    with device() as ctx, ctx.connect() as client:
        client.request(DMA_MAP, struct.pack("=IIQQQ", 32, MAP_READ, 0, MAPPED, 2 * PAGE))
        expect_one_error(ctx, client, command, payload, words)


def bad_callback(_ctx, _buf, count, offset, _is_write):
    ctypes.set_errno(5)
    return {0: -1, 4: 0}.get(offset, count + 1)


def device(**kw):
    ctx = Ctx(dma=True, realize=False, **kw)
    ctx.memory_region(BAR0, 0x1000)
    ctx.memory_region(BAR1, 0x1000, READ)
    ctx.setup_region(BAR2, 0x1000, None)
    ctx.setup_region(BAR3, 0x1000, bad_callback)
    ctx.pci_init()
    assert ctx.add_cap(capability(1, 8), pos=0x40) == 0x40
    assert ctx.add_cap(express(0), pos=0x48) == 0x48
    call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 2)
    ctx.realize()
    return ctx


def expect_one_error(ctx, client, command, payload, words):
    del ctx.lines[:]
    client.send(command, payload)
    ctx.run()
    (line,) = errors(ctx)
    assert re.search(words, line), line
    assert "or the system" not in line
    assert not [text for level, text in ctx.lines if level == 4]


def feature(number, data, argsz=None):
    return struct.pack("=II", 8 + len(data) if argsz is None else argsz, number) + data


START, REPORT = F_LOG_START | FEATURE_SET, F_LOG_REPORT | FEATURE_GET
# The same of a device that migrates, which runs.
OF_MIGRATION = {
    "no such state": (DEVICE_FEATURE, feature(F_STATE | FEATURE_SET, struct.pack("=II", 99, 0)), "DEVICE_FEATURE 2, .*no such state"),
    "no way": (DEVICE_FEATURE, feature(F_STATE | FEATURE_SET, struct.pack("=II", S_ERROR, 0)), "DEVICE_FEATURE 2, .*no way leads"),
    "reading while running": (MIG_DATA_READ, struct.pack("=II", 16, 8), "MIG_DATA_READ of 0x8 bytes, .*PRE_COPY"),
    "writing while running": (MIG_DATA_WRITE, struct.pack("=II", 16, 8) + bytes(8), "MIG_DATA_WRITE of 0x8 bytes, .*RESUMING"),
    "too little data": (MIG_DATA_WRITE, struct.pack("=II", 16, 8), "MIG_DATA_WRITE of 0x8 bytes, .*fewer bytes"),
    "logging of odd pages": (DEVICE_FEATURE, feature(START, struct.pack("=QII", 3, 0, 0)), "DEVICE_FEATURE 6, .*power of two"),
    "logging of nothing": (DEVICE_FEATURE, feature(START, struct.pack("=QIIQQ", PAGE, 1, 0, PAGE, 0)), "DEVICE_FEATURE 6, .*empty"),
    "report without logging": (DEVICE_FEATURE, feature(REPORT, struct.pack("=QQQ", MAPPED, PAGE, PAGE), 40), "DEVICE_FEATURE 8, .*not logged"),
    "report of nothing": (DEVICE_FEATURE, feature(REPORT, struct.pack("=QQQ", 0, PAGE, PAGE), 40), "DEVICE_FEATURE 8, .*in no region"),
    "report of large pages": (DEVICE_FEATURE, feature(REPORT, struct.pack("=QQQ", MAPPED, PAGE, 2 * PAGE), 40), "DEVICE_FEATURE 8, .*larger than the range"),
    "report, small argsz": (DEVICE_FEATURE, feature(REPORT, struct.pack("=QQQ", MAPPED, PAGE, PAGE), 32), "DEVICE_FEATURE 8, .*argsz"),
}


@pytest.mark.parametrize("request_name", OF_MIGRATION)
def test_each_request_of_migration_that_is_refused_is_one_line(request_name):
    with device(migration=True) as ctx, ctx.connect() as client:
        client.request(DMA_MAP, struct.pack("=IIQQQ", 32, MAP_READ, 0, MAPPED, 2 * PAGE))
        expect_one_error(ctx, client, *OF_MIGRATION[request_name])


def test_callbacks_that_fail_are_told_from_the_system():
    with device(migration=True) as ctx, ctx.connect() as client:
        ctx.reset_errno = ctx.transition_errno = errno.ENOSPC
        expect_one_error(ctx, client, DEVICE_RESET, b"", "DEVICE_RESET.*the device's callback failed: No space")
        expect_one_error(ctx, client, DEVICE_FEATURE, feature(F_STATE | FEATURE_SET, struct.pack("=II", S_STOP, 0)),
                         "DEVICE_FEATURE 2, .*the device's callback failed: No space")


def test_one_write_of_several_that_fails_is_one_line():
    def entry(index, offset, count):
        return struct.pack("=QIIQ", offset, index, count, 0)
    with device() as ctx, ctx.connect(caps={"write_multiple": True}) as client:
        payload = struct.pack("=Q", 2) + entry(BAR0, 0, 4) + entry(BAR1, 8, 4)
        expect_one_error(ctx, client, REGION_WRITE_MULTI, payload,
                         "REGION_WRITE_MULTI, write 1 of region 1, 0x4 bytes at 0x8: the region does not allow it")


def test_an_unmap_of_nothing_is_one_warning():
    with device() as ctx, ctx.connect() as client:
        del ctx.lines[:]
        client.unmap(PAGE, PAGE, expect=errno.ENOENT)
        (line,) = warnings(ctx)
        assert "DMA_UNMAP of 0x1000 bytes at 0x1000, flags 0x0: no region is there" in line
        assert errors(ctx) == []


def test_a_device_that_says_later_that_it_cannot_quiesce_is_one_line():
    with device(quiesce=True) as ctx, ctx.connect() as client:
        ctx.quiesce_errno = errno.EBUSY
        client.send(DMA_UNMAP, struct.pack("=IIQQ", 24, 0, PAGE, PAGE))
        fails(errno.EBUSY, ctx.run)
        del ctx.lines[:]
        ctx.quiesced(errno.EIO)
        (line,) = errors(ctx)
        assert re.search("DMA_UNMAP of 0x1000 bytes at 0x1000, .*the device did not quiesce", line)


@pytest.mark.parametrize("payload, words", [
    (struct.pack("=HH", 1, 0), "major version"), (struct.pack("=HH", 0, 1) + b"{\0", "capabilities"), (b"\0", "too short|no VERSION"),
])
def test_a_negotiation_that_fails_is_one_line(payload, words):
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        client.send(VERSION, payload)
        with pytest.raises(Failed):
            ctx.attach()
        (line,) = errors(ctx)
        assert re.search(words, line), line
        client.close()


def warnings(ctx):
    return [text for level, text in ctx.lines if level == 4]


def express(flr):
    return struct.pack("<BBHI", 0x10, 0, 2, flr << 28) + bytes(52)


def msix(vectors):
    return struct.pack("<BBHII", 0x11, 0, vectors - 1, 0, 0)


# Set-ups that work, and seldom as meant: calls before realizing, the number of lines, words of the first.
ODD = {
    "no reset for FLR": (lambda ctx: ctx.add_cap(express(1)), 1, "function level reset"),
    "no FLR": (lambda ctx: ctx.add_cap(express(0)), 0, ""),
    "two INTx": (lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, INTX, 2), 1, "2 vectors of type Intx, .* 1 at most"),
    "one INTx": (lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, INTX, 1), 0, ""),
    "33 of MSI": (lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, MSI, 33), 1, "33 vectors of type Msi, .* 32 at most"),
    "2049 of MSI-X": (lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 2049), 1, "2048 at most"),
    "32-bit MSI": (lambda ctx: ctx.add_cap(struct.pack("<BBH", 5, 0, 0) + bytes(20)), 1, "struct msicap"),
    "64-bit MSI": (lambda ctx: ctx.add_cap(struct.pack("<BBH", 5, 0, 1 << 7) + bytes(20)), 0, ""),
    "MSI-X table": (lambda ctx: (ctx.add_cap(msix(4)), call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 3)), 1,
                    "4 entries, and there are 3 vectors"),
    "MSI-X table that agrees": (lambda ctx: (ctx.add_cap(msix(4)), call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 4)), 0, ""),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_set_up_is_warned_of_once(odd):
    calls, count, words = ODD[odd]
    with Ctx(realize=False, reset=False) as ctx:
        ctx.pci_init()
        calls(ctx)
        ctx.realize()
        ctx.realize()
        lines = warnings(ctx)
        assert len(lines) == count and (count == 0 or re.search(words, lines[0])), lines


def test_flr_with_a_reset_callback_is_not_warned_of():
    with Ctx(realize=False) as ctx:
        ctx.pci_init()
        ctx.add_cap(express(1))
        ctx.realize()
        assert warnings(ctx) == []


def test_memory_that_is_not_shared_is_warned_of_once_and_rom_is_not():
    with Ctx(dma=True) as ctx, ctx.connect() as client:
        client.request(DMA_MAP, struct.pack("=IIQQQ", 32, MAP_READ, 0, PAGE, PAGE))
        assert warnings(ctx) == []
        for page in (2, 3):
            client.request(DMA_MAP, struct.pack("=IIQQQ", 32, MAP_READ | MAP_WRITE, 0, page * PAGE, PAGE))
        (line,) = warnings(ctx)
        assert "0x1000 bytes at 0x2000" in line and "share=on" in line


@pytest.mark.parametrize("sent, words", [
    (b"", "client lost$"), (header(1, REGION_READ, 32)[:7], "client lost after 7 bytes of a message's header$"),
    (header(1, REGION_READ, 32) + b"x", "client lost after 17 bytes of a message of 32$"),
])
def test_the_loss_of_a_client_is_one_line_with_what_it_cut_off(sent, words):
    with Ctx() as ctx:
        client = ctx.connect()
        if sent:
            client.send_raw(sent)
            assert ctx.run() == 0
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        fails(errno.ENOTCONN, ctx.run)
        (line,) = [text for level, text in ctx.lines if level == 6 and "lost" in text]
        assert re.search(words, line), line
