"""The GPIO card in a Linux guest: the kernel's own driver, QEMU's vfio-user client."""
import pathlib

import pytest

from lab import *

MODULES = ["gpio-regmap", "gpio-idio-16", "gpio-pci-idio-16"]


@pytest.fixture(scope="session")
def image(root, tmp_path_factory):
    return initramfs(root, tmp_path_factory.mktemp("image"), MODULES, [pathlib.Path(__file__).parent / "gpio.c"])


@pytest.fixture
def server(examples):
    server = Server(examples / "gpio-idio-16", "--loopback")
    yield server
    assert server.end() == 0


def works(guest):
    status, output = guest.run("gpio")
    assert status == 0, output
    assert "32 lines" in output and " 0 wrong" in output


def test_the_driver_binds_and_lines_and_interrupts_work(root, image, server):
    guest = Guest(root, image, [server.path])
    status, output = guest.run("cat /sys/bus/pci/drivers/*/*/uevent | grep -A1 DRIVER=pci-idio-16")
    assert status == 0 and "494F:0DC8" in output.upper() or "pci-idio-16" in output, output
    works(guest)
    assert guest.power_off() == 0


def test_stop_cont_and_reset(root, image, server):
    guest = Guest(root, image, [server.path])
    works(guest)
    guest.command("stop")
    guest.command("cont")
    works(guest)
    guest.command("system_reset")
    guest.expect("GUEST-READY")
    works(guest)
    assert guest.power_off() == 0


def test_hot_unplug_and_plug(root, image, server):
    guest = Guest(root, image, [server.path])
    works(guest)
    for _ in range(2):
        guest.command("device_del", id="d0")
        guest.event("DEVICE_DELETED")
        status, _ = guest.run("test -e /dev/gpiochip0")
        assert status == 1
        guest.plug("d0", server.path)
        status, output = guest.run("for i in $(seq 100); do test -e /dev/gpiochip0 && exit 0; sleep 0.1; done; dmesg | tail; exit 1")
        assert status == 0, output
        works(guest)
    assert guest.power_off() == 0


def test_nothing_is_leaked_over_twenty_boots_of_one_server(root, image, server):
    before = None
    for boot in range(20):
        guest = Guest(root, image, [server.path], memory="256M")
        if boot % 5 == 0:
            works(guest)
        if boot % 2:
            guest.close()  # killed in mid-air
        else:
            assert guest.power_off() == 0
        # It has seen that the last guest is gone once it takes the next client.
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(PATIENCE)
        probe.connect(server.path)
        probe.sendall(b"\1\0\1\0\24\0\0\0\0\0\0\0\0\0\0\0\0\0\2\0")
        assert probe.recv(16)
        now = server.descriptors(), server.mappings()
        probe.close()
        before = before or now
        assert now == before, f"boot {boot}"
