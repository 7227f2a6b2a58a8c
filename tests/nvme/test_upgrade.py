"""The controller's process is replaced while its driver keeps the queues full.

VFU_UPGRADES says how often in a test; 100 is what is promised.
"""
import os
import random
import subprocess

import pytest
from driver import *
from peer import EXAMPLES, Builds

UPGRADES = int(os.environ.get("VFU_UPGRADES", 4))
BLOCKS = 4096


class Load:
    """Reads and writes of a block each, as many at a time as the queue has room for, every one of them verified."""

    def __init__(self, driver, seed):
        self.driver, self.rng = driver, random.Random(seed)
        self.qid = driver.create_queues()
        self.depth = driver.queues[self.qid].size - 1
        self.pages = [driver.alloc() for _ in range(self.depth)]
        self.content = {}
        self.pending = {}  # command id to (block, page, what it writes or None)
        self.done = 0

    def begin(self):
        busy = {block for block, _, _ in self.pending.values()}
        used = {page for _, page, _ in self.pending.values()}
        block = next(b for b in iter(lambda: self.rng.randrange(BLOCKS), None) if b not in busy)
        page = next(p for p in self.pages if p not in used)
        data = self.rng.randbytes(BLOCK) if self.rng.random() < 0.6 else None
        self.driver.put(page, data or b"\xee" * BLOCK)
        cid = self.driver.submit(self.qid, **io(READ if data is None else WRITE, block, 1, page))
        assert cid not in self.pending
        self.pending[cid] = block, page, data

    def end(self):
        entry = self.driver.reap(self.qid)
        # Of a command that is completed twice there is nothing here the second time.
        block, page, data = self.pending.pop(entry.cid)
        assert entry.status == SUCCESS
        if data is None:
            expected = self.content.get(block, bytes(BLOCK))
            assert self.driver.get(page, BLOCK) == expected, f"block {block}"
        else:
            self.content[block] = data
        self.done += 1

    def go_on(self, until):
        """Until something is so, and for some hundred commands more."""
        rest = 300
        while rest > 0:
            while len(self.pending) < self.depth:
                self.begin()
            self.end()
            rest -= until()

    def drain(self):
        while self.pending:
            self.end()

    def verify(self):
        page = self.pages[0]
        for block, data in self.content.items():
            self.driver.run(self.qid, **io(READ, block, 1, page))
            assert self.driver.get(page, BLOCK) == data


@pytest.fixture
def control(tmp_path):
    return str(tmp_path / "upgrade")


def successor(device, control, *options):
    """A process that takes over from another one, which has ended in good order when it has."""
    with open(device.log, "ab") as log:
        return subprocess.Popen([os.path.join(EXAMPLES, "nvme"), f"--take-over={control}", *options], stderr=log)


def test_a_full_queue_goes_on_through_one_upgrade_after_the_other(attach, control, doorbells, backing):
    driver = attach(*doorbells, *backing, f"--hand-over={control}")
    device = driver.device
    load = Load(driver, 1)
    for _ in range(UPGRADES):
        old, device.process = device.process, successor(device, control)
        load.go_on(lambda old=old: old.poll() is not None)
        assert old.returncode == 0
        assert device.process.poll() is None
    load.drain()
    load.verify()
    assert driver.get_log(1, 64)[:8] == bytes(8), "an entry in the error log"


def test_the_processes_may_have_different_builds_of_the_library(attach, control, doorbells, monkeypatch):
    builds = Builds(monkeypatch)
    builds.choose(is_other=True)
    driver = attach(*doorbells, f"--hand-over={control}")
    device = driver.device
    load = Load(driver, 2)
    for is_other in (False, True, False):
        assert builds.is_other(device.process) is not is_other
        builds.choose(is_other)
        old, device.process = device.process, successor(device, control)
        load.go_on(lambda old=old: old.poll() is not None)
        assert old.returncode == 0
    load.drain()
    load.verify()


def test_a_controller_that_is_taken_over_is_what_it_was(attach, control):
    driver = attach(f"--hand-over={control}")
    device = driver.device
    driver.create_queues()
    driver.write_blocks(7, b"x" * BLOCK)
    before = driver.identify(1), driver.identify(0, 1), driver.client.read(BAR0, 0, 0x40)
    config = driver.client.read(CONFIG, 0, 256)
    old, device.process = device.process, successor(device, control)
    assert old.wait(60) == 0
    assert (driver.identify(1), driver.identify(0, 1), driver.client.read(BAR0, 0, 0x40)) == before
    assert driver.client.read(CONFIG, 0, 256) == config
    assert driver.read_blocks(7, 1) == b"x" * BLOCK
    # A reset, and the next driver.
    driver.client.write_u32(CC, 0)
    driver.enable()
    driver.create_queues()
    assert driver.read_blocks(7, 1) == b"x" * BLOCK


@pytest.mark.parametrize("options", [["--size=8M"], ["--uuid=00112233-4455-6677-8899-aabbccddeeff"]])
def test_a_controller_that_does_not_fit_leaves_the_old_one_alone(attach, control, options):
    driver = attach(f"--hand-over={control}")
    driver.create_queues()
    driver.write_blocks(3, b"y" * BLOCK)
    assert successor(driver.device, control, *options).wait(60) == 1
    assert driver.device.process.poll() is None
    assert driver.read_blocks(3, 1) == b"y" * BLOCK
    old, driver.device.process = driver.device.process, successor(driver.device, control)
    assert old.wait(60) == 0
    assert driver.read_blocks(3, 1) == b"y" * BLOCK


@pytest.mark.parametrize("arguments", [["--take-over=/nowhere"], ["--take-over=/nowhere", "path"],
                                       ["--take-over=/nowhere", "--file=x"]])
def test_what_does_not_go_together(arguments):
    done = subprocess.run([os.path.join(EXAMPLES, "nvme"), *arguments], capture_output=True, check=False)
    assert done.returncode == 1
    assert (b"Usage" in done.stderr) == (len(arguments) > 1)
