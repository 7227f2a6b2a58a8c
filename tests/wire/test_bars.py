"""Base address registers and the expansion ROM register, as a client sees them."""
import struct
from contextlib import contextmanager

import pytest

from libvfu import *
from pci_device import alive, peek, peek32, poke

ROM_REGISTER = 0x30
ALL = 0xffffffff


def bar(n):
    return 0x10 + 4 * n


@contextmanager
def device(*regions, init=EXPRESS, before=None):
    """A realized device with these regions (index, size, flags), and a client."""
    with Ctx(realize=False) as ctx:
        ctx.pci_init(init)
        for index, size, flags in regions:
            ctx.setup_region(index, size, flags=flags)
        if before:
            before(ctx)
        ctx.realize()
        with ctx.connect() as client:
            yield ctx, client


def read32(client, offset):
    return struct.unpack("<I", client.read(CFG, offset, 4))[0]


def write32(client, offset, value):
    client.write(CFG, offset, struct.pack("<I", value))


def sizing(client, offset):
    """What a driver does to find a register's size; the saved value is put back."""
    saved = read32(client, offset)
    write32(client, offset, ALL)
    answer = read32(client, offset)
    write32(client, offset, saved)
    assert read32(client, offset) == saved
    return answer


# --- type bits ------------------------------------------------------------------------

@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("flags, value", [
    (RW, 0x1), (RW | MEM, 0x0), (RW | MEM | PREFETCH, 0x8),
])
def test_type_bits_of_a_32_bit_bar(n, flags, value):
    with device((n, 0x1000, flags)) as (ctx, client):
        assert read32(client, bar(n)) == value == peek32(ctx, bar(n))
        for other in set(range(6)) - {n}:
            assert read32(client, bar(other)) == 1, "a BAR never set up reads 1"


@pytest.mark.parametrize("n", [0, 2, 4])
@pytest.mark.parametrize("flags, value", [(RW | MEM | BITS_64, 0x4), (RW | MEM | BITS_64 | PREFETCH, 0xc)])
def test_type_bits_of_a_64_bit_bar(n, flags, value):
    with device((n, 0x1000, flags)) as (ctx, client):
        assert read32(client, bar(n)) == value
        assert read32(client, bar(n + 1)) == 0, "the upper half has no type bits"


def test_type_bits_are_ored_into_what_stands_there():
    def before(ctx):
        poke(ctx, bar(0), struct.pack("<III", 0xfe000000, 0xabc00000, 0))
    with device((BAR0, 0x1000, RW | MEM | PREFETCH), before=before) as (ctx, client):
        assert [read32(client, bar(n)) for n in range(3)] == [0xfe000008, 0xabc00001, 1]


def test_type_bits_without_pci_init():
    with Ctx(realize=False) as ctx:
        ctx.setup_region(BAR1, 0x1000, flags=RW | MEM)
        ctx.realize()
        with ctx.connect() as client:
            assert [read32(client, bar(n)) for n in range(6)] == [1, 0, 1, 1, 1, 1]


def test_device_without_regions_has_six_unassigned_io_bars():
    with device() as (ctx, client):
        assert client.read(CFG, 0x10, 24) == struct.pack("<6I", 1, 1, 1, 1, 1, 1)


# --- sizing ------------------------------------------------------------------------

@pytest.mark.parametrize("n", range(6))
def test_unset_bar_sizes_to_zero(n):
    with device() as (_, client):
        # Only the type bit of an I/O BAR is left.
        assert sizing(client, bar(n)) == 1
        write32(client, bar(n), 0)
        assert read32(client, bar(n)) == 1


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("shift", range(4, 32))
def test_sizing_of_32_bit_memory(n, shift):
    for prefetch in (0, PREFETCH):
        with device((n, 1 << shift, RW | MEM | prefetch)) as (_, client):
            type_bits = 8 if prefetch else 0
            assert sizing(client, bar(n)) == -(1 << shift) & ALL | type_bits


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("shift", range(2, 32))
def test_sizing_of_io(n, shift):
    with device((n, 1 << shift, RW)) as (_, client):
        assert sizing(client, bar(n)) == -(1 << shift) & ALL | 1


@pytest.mark.parametrize("n", [0, 2, 4])
@pytest.mark.parametrize("shift", [4, 12, 20, 31, 32, 33, 34, 40, 63])
def test_sizing_of_both_halves_of_64_bit_memory(n, shift):
    for prefetch in (0, PREFETCH):
        with device((n, 1 << shift, RW | MEM | BITS_64 | prefetch)) as (_, client):
            mask = -(1 << shift) & (1 << 64) - 1
            type_bits = 0xc if prefetch else 4
            assert sizing(client, bar(n)) == mask & ALL | type_bits
            assert sizing(client, bar(n + 1)) == mask >> 32


@pytest.mark.parametrize("size, low, high", [
    (4 << 30, 0x00000004, 0xffffffff), (8 << 30, 0x4, 0xfffffffe), (16 << 30, 0x4, 0xfffffffc)])
def test_worked_values_of_large_bars(size, low, high):
    """Both halves are sized together, as drivers do."""
    regions = [(n, size, RW | MEM | BITS_64) for n in (0, 2, 4)]
    with device(*regions) as (_, client):
        for n in (0, 2, 4):
            saved = client.read(CFG, bar(n), 8)
            client.write(CFG, bar(n), b"\xff" * 8)
            assert struct.unpack("<II", client.read(CFG, bar(n), 8)) == (low, high)
            client.write(CFG, bar(n), saved)
            assert client.read(CFG, bar(n), 8) == saved


def test_worked_values_of_small_bars():
    regions = [(n, size, RW | MEM) for n, size in ((1, 0x1000), (2, 0x2000), (3, 0x4000))]
    with device(*regions) as (_, client):
        assert [sizing(client, bar(n)) for n in (1, 2, 3)] == [0xfffff000, 0xffffe000, 0xffffc000]
        assert [sizing(client, bar(n)) for n in (0, 4, 5)] == [1, 1, 1]


def test_32_bit_bar_of_four_gigabytes_leaves_no_address_bits():
    with device((BAR0, 4 << 30, RW | MEM)) as (_, client):
        assert sizing(client, bar(0)) == 0


# --- writing addresses ------------------------------------------------------------------

def test_address_is_stored_above_the_size_and_type_bits_stay():
    with device((BAR0, 0x1000, RW | MEM | BITS_64 | PREFETCH), (BAR2, 0x100, RW)) as (ctx, client):
        write32(client, bar(0), 0xdeadbeef)
        assert read32(client, bar(0)) == 0xdeadb00c == peek32(ctx, bar(0))
        write32(client, bar(2), 0x0000c0de)
        assert read32(client, bar(2)) == 0xc001
        write32(client, bar(0), 0)
        assert read32(client, bar(0)) == 0xc


def test_64_bit_bar_below_four_gigabytes_can_be_placed_above():
    with device((BAR2, 0x4000, RW | MEM | BITS_64)) as (_, client):
        client.write(CFG, bar(2), struct.pack("<Q", 0x12345678_9abcdef0))
        assert struct.unpack("<Q", client.read(CFG, bar(2), 8)) == (0x12345678_9abcc004,)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_writes_are_merged(width):
    with device((BAR0, 0x1000, RW | MEM | BITS_64)) as (_, client):
        want = bytearray(struct.pack("<II", 0xfedcb004, 0x13579bdf))
        client.write(CFG, bar(0), want)
        for at in range(8 - width + 1):
            data = bytes(0x5a + i for i in range(width))
            client.write(CFG, bar(0) + at, data)
            want[at:at + width] = data
            want[0] = 0x04
            want[1] &= 0xf0
            assert client.read(CFG, bar(0), 8) == want


def test_write_to_one_bar_leaves_the_others():
    regions = [(n, 0x1000, RW | MEM) for n in range(6)]
    with device(*regions) as (_, client):
        want = [0] * 6
        for n in range(6):
            want[n] = 0xa0000000 | n << 12
            write32(client, bar(n), want[n])
            assert list(struct.unpack("<6I", client.read(CFG, 0x10, 24))) == want


def test_one_write_over_all_bars():
    regions = [(n, 0x1000 << n, RW | MEM) for n in range(6)]
    with device(*regions) as (_, client):
        client.write(CFG, 0x10, b"\xff" * 24)
        assert struct.unpack("<6I", client.read(CFG, 0x10, 24)) == \
            tuple(-(0x1000 << n) & ALL for n in range(6))


def test_bar_set_up_again_after_realize_sizes_anew():
    with device((BAR0, 0x1000, RW | MEM)) as (ctx, client):
        assert sizing(client, bar(0)) == 0xfffff000
        ctx.setup_region(BAR0, 0x10000, flags=RW | MEM)
        assert sizing(client, bar(0)) == 0xffff0000


def test_bar_follows_what_the_device_wrote_there():
    with device((BAR0, 0x1000, RW | MEM)) as (ctx, client):
        poke(ctx, bar(0), struct.pack("<I", 0x12345008))
        assert read32(client, bar(0)) == 0x12345008
        write32(client, bar(0), 0xfffff000)
        assert read32(client, bar(0)) == 0xfffff008


# --- expansion ROM ----------------------------------------------------------------------

@pytest.mark.parametrize("value", [0, 1, 0xfffff800, 0xfffffffe, ALL, 0x12345678])
def test_without_a_rom_its_register_stays_zero(value):
    with device() as (_, client):
        write32(client, ROM_REGISTER, value)
        assert read32(client, ROM_REGISTER) == 0
        alive(client)


@pytest.mark.parametrize("shift", range(11, 25))
def test_rom_is_sized_and_enabled(shift):
    with device((ROM, 1 << shift, READ)) as (_, client):
        assert read32(client, ROM_REGISTER) == 0
        address = -(1 << shift) & ALL
        write32(client, ROM_REGISTER, 0xfffffffe)
        assert read32(client, ROM_REGISTER) == address
        write32(client, ROM_REGISTER, ALL)
        assert read32(client, ROM_REGISTER) == address | 1
        write32(client, ROM_REGISTER, 0xfffff800)
        assert read32(client, ROM_REGISTER) == address
        write32(client, ROM_REGISTER, 0)
        assert read32(client, ROM_REGISTER) == 0


@pytest.mark.parametrize("size", [1, 16, 512, 1024])
def test_small_rom_has_no_address_bits_below_bit_11(size):
    with device((ROM, size, READ)) as (_, client):
        write32(client, ROM_REGISTER, ALL)
        assert read32(client, ROM_REGISTER) == 0xfffff801


def test_rom_enable_by_a_single_byte():
    with device((ROM, 0x10000, READ)) as (_, client):
        write32(client, ROM_REGISTER, 0xfeb00000)
        client.write(CFG, ROM_REGISTER, b"\1")
        assert read32(client, ROM_REGISTER) == 0xfeb00001
        client.write(CFG, ROM_REGISTER + 3, b"\xfd")
        assert read32(client, ROM_REGISTER) == 0xfdb00001


# --- what else realizing does ---------------------------------------------------------

@pytest.mark.parametrize("count, pin", [(0, 0), (1, 1), (4, 1)])
def test_interrupt_pin_says_whether_there_is_intx(count, pin):
    with device(before=lambda ctx: call("vfu_setup_device_nr_irqs", ctx.p, INTX, count)) as (ctx, client):
        assert client.read(CFG, 0x3d, 1) == bytes([pin]) == peek(ctx, 0x3d, 1)


def test_realizing_again_changes_nothing():
    with device((BAR0, 0x1000, RW | MEM | BITS_64)) as (ctx, client):
        client.write(CFG, bar(0), struct.pack("<Q", 0x1_2345_6000))
        before = peek(ctx, 0, 4096)
        ctx.realize()
        assert peek(ctx, 0, 4096) == before
