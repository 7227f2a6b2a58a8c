"""What disks are called: from the example's own source, as a library."""
import ctypes
import os
import pathlib
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """(is_device, device, inode) -> (uuid, serial number)"""
    folder = tmp_path_factory.mktemp("identity")
    (folder / "vfio-user").symlink_to(TOP / "include")
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I", folder,
                    TOP / "examples-c" / "nvme" / "identity.c", "-o", folder / "identity.so"], check=True)
    library = ctypes.CDLL(folder / "identity.so")
    library.make_uuid.argtypes = [ctypes.c_bool, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]

    def names(device, inode, is_device=False):
        uuid, serial = ctypes.create_string_buffer(16), ctypes.create_string_buffer(21)
        library.make_uuid(is_device, device, inode, uuid)
        library.format_serial_number(uuid, serial)
        return uuid.raw, serial.value.decode()
    names.serial = library.format_serial_number
    return names


def bits(data):
    return bin(int.from_bytes(data, "big")).count("1")


def differing(a, b):
    return bits(bytes(x ^ y for x, y in zip(a, b)))


def test_names_are_well_formed_and_always_the_same(names):
    uuid, serial = names(0x801, 12)
    assert (uuid[6] >> 4, uuid[8] >> 6) == (8, 2), "version 8"
    assert len(serial) == 20 and serial == serial.lower() and int(serial, 16)
    assert names(0x801, 12) == (uuid, serial)
    # A name must not change with a new version of the program.
    assert (uuid.hex(), serial) == ("e5d990943a8d8b288377b1fe896cbb22", "c10002f847171196c341")


def test_every_bit_counts(names):
    """Files that differ in one bit of inode or device have names that differ in about half of theirs."""
    for device, inode in [(0, 0), (0x801, 12), (0xfd00, 0x7fffffff), ((1 << 64) - 1, (1 << 64) - 1)]:
        uuid, serial = names(device, inode)
        for bit in range(64):
            for other in (names(device ^ 1 << bit, inode), names(device, inode ^ 1 << bit)):
                assert 32 <= differing(uuid, other[0]) <= 90
                assert differing(bytes.fromhex(serial), bytes.fromhex(other[1])) >= 16


def test_neighbours_have_nothing_in_common(names):
    """All disks of one guest: files of one folder, over a few file systems; and their numbers exchanged."""
    files = {(device, inode) for device in (0x801, 0x802, 0x803, 0x25) for inode in range(5000)}
    files |= {(inode, device) for device, inode in files}
    found = [names(*file) for file in files]
    assert len({uuid for uuid, _ in found}) == len({uuid[:8] for uuid, _ in found}) == len({serial for _, serial in found}) == len(files)
    assert len({serial[:12] for _, serial in found}) == len(files)


def test_a_block_device_is_no_file(names):
    assert names(0x801, 0, True) != names(0x801, 0, False)


def test_chosen_names_that_differ_in_their_end_have_serial_numbers_of_their_own(names):
    serials = set()
    for n in range(2000):
        serial = ctypes.create_string_buffer(21)
        names.serial(b"\x11" * 14 + n.to_bytes(2, "big"), serial)
        serials.add(serial.value)
    assert len(serials) == 2000
