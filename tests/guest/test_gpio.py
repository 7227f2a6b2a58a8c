"""The GPIO card in a Linux guest: the kernel's own driver, QEMU's vfio-user client."""
import pathlib

import pytest

from lab import Guest, Server, initramfs


@pytest.fixture(scope="session")
def image(root, tmp_path_factory):
    source = pathlib.Path(__file__).parent / "gpio.c"
    return initramfs(root, tmp_path_factory.mktemp("image"), ["gpio-pci-idio-16"], [source])


@pytest.fixture
def server(examples):
    server = Server(examples / "gpio-idio-16", "--loopback")
    yield server
    assert server.end() == 0


def works(guest):
    output = guest.does("gpio")
    assert "32 lines" in output and " 0 wrong" in output


def test_the_driver_binds_and_lines_and_interrupts_work(root, image, server):
    with Guest(root, image, [server.path]) as guest:
        output = guest.does("cat /sys/bus/pci/drivers/pci-idio-16/0000:*/uevent")
        assert "PCI_ID=494F:0DC8" in output
        works(guest)
        assert guest.power_off() == 0


def test_stop_cont_and_reset(root, image, server):
    with Guest(root, image, [server.path]) as guest:
        works(guest)
        guest.command("stop")
        guest.command("cont")
        works(guest)
        guest.reset()
        works(guest)
        assert guest.power_off() == 0


def test_hot_unplug_and_plug(root, image, server):
    with Guest(root, image, [server.path]) as guest:
        works(guest)
        for _ in range(2):
            guest.unplug("d0")
            assert guest.run("test -e /dev/gpiochip0")[0] == 1
            guest.plug("d0", server.path)
            guest.appears("/dev/gpiochip0")
            works(guest)
        assert guest.power_off() == 0


def test_nothing_is_leaked_over_twenty_boots_of_one_server(root, image, server):
    before = None
    for boot in range(20):
        with Guest(root, image, [server.path], memory="256M") as guest:
            works(guest)
            if boot % 2 == 0:
                assert guest.power_off() == 0  # the others are killed
        now = server.holds()
        before = before or now
        assert now == before, f"boot {boot}"
