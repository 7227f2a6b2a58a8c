"""An NVMe disk moves between two processes over one file, while both ends of it are busy.

The tool writes to it all the time, checks what its driver sees, and leaves a record of what must be on
the disk; this file looks at the disk itself, without the tool and without the device.
"""
import fcntl
import json
import os
import struct
import subprocess
import zlib

import pytest

from peer import EXAMPLES, Client, Device
from test_vfu import PATIENT, vfu

DISK = 2 << 20
# Times that a process is replaced; 20 are enough in the middle of one migration.
UPGRADES = min(20, int(os.environ.get("VFU_UPGRADES", 3)))
FACTOR = 0x9e3779b97f4a7c15


@pytest.fixture
def start(tmp_path):
    """Starts servers over one file."""
    devices = []

    class Start:
        file = str(tmp_path / "disk")

        def server(self, *options):
            device = Device("nvme", f"--size={DISK}", f"--file={self.file}", *options)
            Client(device).close()  # it listens
            devices.append(device)
            return device
    with open(Start.file, "wb") as disk:
        disk.truncate(DISK)
    yield Start()
    for device in devices:
        if device.process.poll() is None:
            device.end()


def block(size, lba, sequence):
    """What write number `sequence` leaves in a block."""
    words = [sequence * FACTOR + n & (1 << 64) - 1 for n in range(3, size // 8)]
    # The last word gives way to a zero and the checksum.
    data = struct.pack(f"<8sQQ{len(words)}Q", b"VFUSTAMP", lba, sequence, *words)[:-8] + bytes(4)
    return data + struct.pack("<I", zlib.crc32(data))


def wrong_blocks(file, record):
    """The blocks of the disk that are not what the record says."""
    size, sequences = record["block_size"], record["sequences"]
    assert len(sequences) * size == DISK
    with open(file, "rb") as disk:
        found = disk.read()
    assert len(found) == DISK
    expected = (block(size, lba, sequence) if sequence else bytes(size) for lba, sequence in enumerate(sequences))
    return [lba for lba, data in enumerate(expected) if data != found[lba * size:(lba + 1) * size]]


def migrate(source, destination, record, *options):
    done = vfu("migrate", source.path, destination.path, "--load", "--verify", "--json", "--memory", "16M",
               "--rounds", "4", "--record", str(record), *options)
    return json.loads(done.stdout), json.loads(record.read_text())


def migrating(source, destination, rounds, *options):
    """A migration that goes on for so many rounds; what it says comes line by line."""
    return subprocess.Popen([*PATIENT, "migrate", source.path, destination.path, "--load", "--verify", "--memory", "16M",
                             "--max-downtime", "0", "--rounds", str(rounds), *options],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


MODES = [(), ("--poll-doorbells",)]


@pytest.mark.parametrize("options", MODES, ids=["trapped", "polled"])
def test_no_write_is_lost_or_done_twice(start, tmp_path, options):
    """Ten times: writes are outstanding when the source stops, and are completed once, at the destination."""
    source = start.server(*options)
    unfinished = 0
    for _ in range(10):
        destination = start.server(*options)
        with open(start.file, "r+b") as disk:  # as new, so that nothing is right from before
            disk.write(bytes(DISK))
        summary, record = migrate(source, destination, tmp_path / "record")
        assert summary["verified"] is True, summary
        assert sum(n > 0 for n in record["sequences"]) > len(record["sequences"]) // 2, "it was a load"
        assert wrong_blocks(start.file, record) == []
        unfinished += summary["load"]["unfinished_at_stop"]
        source.end()
        source = destination
    # Trapped doorbells are rung with the request to stop. One that polls may be faster each time.
    assert unfinished > 0 or options, "the load was caught in the middle"


@pytest.mark.parametrize("options", MODES, ids=["trapped", "polled"])
def test_a_disk_that_is_reset_while_it_moves_loses_nothing(start, tmp_path, options):
    """Its guest reboots, with writes outstanding, three times in the middle of a migration."""
    source, destination = start.server(*options), start.server(*options)
    summary, record = migrate(source, destination, tmp_path / "record", "--reset-during", "3")
    assert summary["resets"] == 3 and summary["verified"] is True, summary
    # Blocks that were written last before a reset are none of the last load's.
    written = [lba for lba, sequence in enumerate(record["sequences"]) if sequence]
    assert written and not set(written) & set(wrong_blocks(start.file, record))


def test_a_disk_moves_to_a_server_with_other_doorbells(start, tmp_path):
    """There and back: how a server learns of doorbells is not a part of the state."""
    a, b = start.server(), start.server("--poll-doorbells")
    for source, destination in ((a, b), (b, a)):
        vfu("reset", source.path)
        vfu("reset", destination.path)
        summary, record = migrate(source, destination, tmp_path / "record")
        assert summary["verified"] is True


def test_damage_behind_the_drivers_back_is_noticed(start, tmp_path):
    """Somebody else changes a byte of every block from the first round on: the tool must say so."""
    source, destination = start.server(), start.server()
    tool = migrating(source, destination, 100)
    words = ""
    for line in tool.stderr:
        words = line
        if line.startswith("vfu: round 1:"):
            with open(start.file, "r+b", buffering=0) as disk:
                while tool.poll() is None:
                    for lba in range(DISK // 512):
                        os.pwrite(disk.fileno(), b"\x55", lba * 512 + 100)
    assert tool.wait() == 1, words
    assert "vfu: destination: block" in words or "vfu: source: block" in words, words


def test_the_independent_check_notices_a_single_block(start, tmp_path):
    source, destination = start.server(), start.server()
    _, record = migrate(source, destination, tmp_path / "record")
    assert wrong_blocks(start.file, record) == []
    lba = next(lba for lba, sequence in enumerate(record["sequences"]) if sequence)
    with open(start.file, "r+b") as disk:
        disk.seek(lba * 512)
        disk.write(block(512, lba, record["sequences"][lba] - 1))  # as if an older write had come later
    assert wrong_blocks(start.file, record) == [lba]


def test_the_destination_dies_and_no_write_is_lost_at_the_source(start):
    """The tool lets the source go on, and checks all of the disk itself before it says that it runs."""
    source, destination = start.server(), start.server()
    tool = migrating(source, destination, 4)
    words = ""
    for line in tool.stderr:
        words = line
        if line.startswith("vfu: round 1:"):
            destination.kill()
    assert tool.wait(120) == 5
    assert "the source runs" in words


@pytest.mark.parametrize("options", MODES, ids=["trapped", "polled"])
def test_its_source_is_replaced_in_the_middle(start, tmp_path, options):
    """By another process, again and again while it is at work and writes are logged; nothing differs afterwards."""
    control = tmp_path / "upgrade"
    source, destination = start.server(*options, f"--hand-over={control}"), start.server(*options)
    record = tmp_path / "record"
    tool = migrating(source, destination, 30 * UPGRADES, "--record", str(record))
    # So that the tool does not get further ahead of who reads what it says than some 20 rounds.
    fcntl.fcntl(tool.stderr, fcntl.F_SETPIPE_SZ, 4096)
    words = [next(line for line in tool.stderr if line.startswith("vfu: round 1:"))]
    for _ in range(UPGRADES):
        with open(source.log, "ab") as log:
            old, source.process = source.process, subprocess.Popen(
                [os.path.join(EXAMPLES, "nvme"), f"--take-over={control}"], stderr=log)
        assert old.wait(60) == 0
        # In the middle: rounds follow.
        words += [tool.stderr.readline() for _ in range(4)]
        assert words[-1].startswith("vfu: round "), words[-3:]
    rest = tool.stderr.read()
    assert tool.wait() == 0, rest
    assert wrong_blocks(start.file, json.loads(record.read_text())) == []
