"""The units of docs/live-upgrade.md do what the page says: their commands are run as systemd runs them."""
import fcntl
import os
import re
import shlex
import signal
import socket
import subprocess

import pytest
from driver import *
from peer import EXAMPLES

PAGE_OF_UNITS = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "live-upgrade.md")
DISK = 16 << 20


def units():
    """What each unit of the page says, by its file's name; of those that are there twice, a list."""
    with open(PAGE_OF_UNITS) as page:
        text = page.read()
    found = {}
    for block in re.findall(r"^```ini\n(.*?)^```$", text, re.M | re.S):
        for name, body in re.findall(r"^# (card\S*?\.\w+).*?\n(.*?)(?=^# card|\Z)", block, re.M | re.S):
            said = dict(re.findall(r"^(\w+)=(.*)$", body.replace("\\\n", " "), re.M))
            found.setdefault(name, []).append(said)
    return found


class Systemd:
    """Has the socket, and starts services with it as descriptor 3."""

    def __init__(self, folder, unit):
        self.folder = folder
        self.path = self.place(unit["ListenStream"])
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, int(unit["SocketMode"], 8))
        self.listener.listen()
        self.process, self.ended = None, []

    def place(self, text):
        for path in ("/run/card", "/var/lib/card"):
            text = text.replace(path, str(self.folder))
        return text.replace("/usr/bin/nvme", os.path.join(EXAMPLES, "nvme"))

    def start(self, unit):
        number = fcntl.fcntl(self.listener, fcntl.F_DUPFD, 10)
        command = [self.place(word) for word in shlex.split(unit["ExecStart"])]
        old, self.process = self.process, subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{number} {number}<&-', "bash", *command], pass_fds=[number],
            start_new_session=True, stdin=subprocess.DEVNULL)
        os.close(number)
        return old

    def kill(self, number):
        """All of its processes, as systemd does; returns the status of the main one."""
        os.killpg(self.process.pid, number)
        return self.process.wait(GUARD)

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGKILL)
        self.listener.close()


@pytest.fixture
def systemd(tmp_path):
    with open(tmp_path / "disk.img", "wb") as disk:
        disk.truncate(DISK)
    made = []

    def make(unit):
        made.append(Systemd(tmp_path, unit))
        return made[-1]
    yield make
    for one in made:
        one.end()


def test_clients_wait_for_a_service_that_is_killed_or_not_there_yet(systemd):
    found = units()
    manager, service = systemd(found["card.socket"][0]), found["card.service"][0]
    assert os.stat(manager.path).st_mode & 0o777 == 0o600
    data = b""
    for _ in range(3):
        early = socket.socket(socket.AF_UNIX)
        early.connect(manager.path)  # nobody serves it yet
        early.close()
        manager.start(service)
        driver = Driver(manager)
        driver.create_queues()
        assert driver.read_blocks(5, 1)[:len(data)] == data
        data += b"more "
        driver.write_blocks(5, data.ljust(BLOCK, b"\0"))
        assert manager.kill(signal.SIGKILL) == -signal.SIGKILL
        driver.close()
    manager.start(service)
    driver = Driver(manager)
    driver.create_queues()
    assert driver.read_blocks(5, 1) == data.ljust(BLOCK, b"\0")
    driver.close()
    assert manager.kill(signal.SIGTERM) == 0
    assert os.path.exists(manager.path), "it is systemd's"


def test_a_service_is_replaced_by_its_other_instance_and_begins_anew_after_it_was_killed(systemd):
    found = units()
    manager, [service] = systemd(found["card.socket"][1]), found["card@.service"]
    assert found["card.socket"][1]["Service"] == "card@a.service"
    assert service["Sockets"] == "card.socket"
    manager.start(service)
    driver = Driver(manager)
    driver.create_queues()
    driver.write_blocks(5, b"x" * BLOCK)
    for _ in range(3):
        old = manager.start(service)
        assert old.wait(GUARD) == 0
        assert driver.read_blocks(5, 1) == b"x" * BLOCK
    # A stale socket for the next instance is left, and in nobody's way.
    assert manager.kill(signal.SIGKILL) == -signal.SIGKILL
    assert os.path.exists(manager.place("/run/card/upgrade"))
    driver.close()
    manager.start(service)
    driver = Driver(manager)
    driver.create_queues()
    assert driver.read_blocks(5, 1) == b"x" * BLOCK
    old = manager.start(service)
    assert old.wait(GUARD) == 0
    assert driver.read_blocks(5, 1) == b"x" * BLOCK
    driver.close()
    # The shell that waits for it ends by the signal, too.
    assert manager.kill(signal.SIGTERM) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("fd, says", [("-1", "not a descriptor"), ("x", "not a descriptor"), ("3x", "not a descriptor"), ("", "not a descriptor"),
                                      ("99999999999", "not a descriptor"), ("77", "Bad file descriptor"), ("0", "Socket operation on non-socket")])
@pytest.mark.parametrize("program", [["nvme", "--size=1M"], ["dma-engine"]], ids=["nvme", "dma-engine"])
def test_what_is_no_socket(program, fd, says):
    name, *options = program
    done = subprocess.run([os.path.join(EXAMPLES, name), *options, f"--fd={fd}"], stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and says in done.stderr, done.stderr


@pytest.mark.parametrize("more", [["path"], ["--take-over=/nowhere"]])
@pytest.mark.parametrize("program", [["nvme", "--size=1M"], ["dma-engine"]], ids=["nvme", "dma-engine"])
def test_a_device_has_one_socket(program, more):
    name, *options = program
    done = subprocess.run([os.path.join(EXAMPLES, name), *options, "--fd=0", *more], stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Usage:")


def test_a_client_over_a_pair_of_sockets():
    """What a VMM does that starts its device: one end is the device's."""
    ours, theirs = socket.socketpair()
    with theirs:
        device = subprocess.Popen([os.path.join(EXAMPLES, "dma-engine"), f"--fd={theirs.fileno()}", "--once"],
                                  pass_fds=[theirs.fileno()])
    with ours:
        ours.settimeout(GUARD)
        ours.sendall(struct.pack("<HHIIIHH", 1, VERSION, 20, 0, 0, 0, 0))
        assert ours.recv(16)[2:4] == struct.pack("<H", VERSION)
    assert device.wait(GUARD) == 0
