"""The process of dma-engine is replaced while it works, and its client notices nothing.

VFU_UPGRADES says how often in a test; 100 is what is promised.
"""
import mmap
import os
import random
import subprocess

import pytest
from engine import *
from peer import *

UPGRADES = int(os.environ.get("VFU_UPGRADES", 4))
GUEST, GUEST_SIZE = 0x100000, 16 << 20


@pytest.fixture(params=[(), ("--async-quiesce",)], ids=["", "async"])
def options(request):
    return request.param


@pytest.fixture
def control(tmp_path):
    return str(tmp_path / "upgrade")


@pytest.fixture
def device(control, options):
    device = Device("dma-engine", f"--hand-over={control}", *options)
    yield device
    device.end()


def successor(device, control, *options):
    with open(device.log, "ab") as log:
        return subprocess.Popen([os.path.join(EXAMPLES, "dma-engine"), f"--take-over={control}", *options], stderr=log)


class Guest:
    def __init__(self, client):
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, GUEST_SIZE)
        self.memory = mmap.mmap(self.fd, GUEST_SIZE)
        client.map_dma(GUEST, GUEST_SIZE, self.fd)


def work(client, guest, data, at=0, back=0):
    """Bytes go from the guest's memory to the device's, and from there back."""
    back += 8 << 20
    guest.memory[at:at + len(data)] = data
    ring_bell(client, descriptor(COPY, DST_LOCAL, src=GUEST + at, dst=0x10000, length=len(data)))
    finish(client)
    ring_bell(client, descriptor(COPY, SRC_LOCAL, src=0x10000, dst=GUEST + back, length=len(data)))
    finish(client)
    assert guest.memory[back:back + len(data)] == data


def test_work_goes_on_through_one_upgrade_after_the_other(device, control, options):
    with Client(device) as client:
        guest = Guest(client)
        rng = random.Random(3)
        completed = client.read_u32(COMPLETED)
        for _ in range(UPGRADES):
            old, device.process = device.process, successor(device, control, *options)
            rest = 5
            while rest > 0:
                work(client, guest, rng.randbytes(256) * 2048, rng.randrange(0, 4 << 20), rng.randrange(0, 4 << 20))
                completed += 2
                assert client.read_u32(COMPLETED) == completed
                rest -= old.poll() is not None
            assert old.returncode == 0


def test_the_processes_may_have_different_builds_of_the_library(control, monkeypatch):
    builds = Builds(monkeypatch)
    builds.choose(is_other=True)
    device = Device("dma-engine", f"--hand-over={control}", "--async-quiesce")
    with Client(device) as client:
        guest = Guest(client)
        completed = client.read_u32(COMPLETED)
        for is_other in (False, True, False):
            assert builds.is_other(device.process) is not is_other
            builds.choose(is_other)
            old, device.process = device.process, successor(device, control, "--async-quiesce")
            while old.poll() is None:
                work(client, guest, b"some data")
                completed += 2
            assert old.returncode == 0
            work(client, guest, b"other data")
            completed += 2
            assert client.read_u32(COMPLETED) == completed
        assert builds.is_other(device.process) is is_other
    device.end()


def test_all_that_the_bars_show_is_the_same(device, control, options):
    with Client(device) as client:
        client.write(BAR2, 0x7000, b"memory of the device")
        client.write(BAR0, MSIX_TABLE, bytes(range(64)))
        client.write_u32(IRQ_ENABLE, 2)
        before = client.read(BAR0, 0, BAR0_SIZE), client.read(BAR2, 0x7000, PAGE), client.read(CONFIG, 0, 256)
        old, device.process = device.process, successor(device, control, *options)
        assert old.wait(60) == 0
        assert (client.read(BAR0, 0, BAR0_SIZE), client.read(BAR2, 0x7000, PAGE), client.read(CONFIG, 0, 256)) == before


def test_in_the_middle_of_a_migration_it_stays(device, control, options):
    with Client(device) as client:
        client.set_state(PRE_COPY)
        for at in range(4):
            # At work, too, and what is asked meanwhile is answered.
            completed = client.read_u32(COMPLETED)
            ring_bell(client, descriptor(FILL, DST_LOCAL, dst=0, length=BAR2_SIZE, value=at))
            refused = successor(device, control, *options)
            finish(client)
            assert client.read_u32(COMPLETED) == completed + 1
            assert refused.wait(60) == 1
            assert device.process.poll() is None
        client.set_state(STOP_COPY)
        assert successor(device, control, *options).wait(60) == 1
        client.set_state(STOP)
        old, device.process = device.process, successor(device, control, *options)
        assert old.wait(60) == 0
        client.set_state(RUNNING)
        ring_bell(client, descriptor(FILL, DST_LOCAL, dst=0x5000, length=PAGE, value=9))
        finish(client)
