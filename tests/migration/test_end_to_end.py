"""A device moves from one process to another while it works, and nothing is lost.

What everything is compared with is a run of the same work without a migration.
"""
import errno
import random

import pytest

from vmm import *

SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def reference():
    """seed -> (guest memory, registers, device memory, interrupts) of a run in one process."""
    known = {}

    def run(seed):
        if seed not in known:
            device = Device()
            guest = Guest(device)
            guest.start(seed)
            known[seed] = guest.outcome(), events(guest.event)
            guest.close()
            device.end()
            assert known[seed][1] == ENTRIES
        return known[seed]
    return run


@pytest.fixture
def start():
    devices, guests = [], []

    class Start:
        def device(self, *options):
            devices.append(Device("dma-engine", *options))
            return devices[-1]

        def guest(self, device):
            guests.append(Guest(device))
            return guests[-1]
    yield Start()
    for guest in guests:
        guest.close()
    for device in devices:
        if device.process.poll() is None:
            device.end()


class Killed(Exception):
    """A hook has ended one side."""


def same(guest, reference, interrupts):
    outcome, total = reference
    got = guest.outcome()
    for name, a, b in zip(("guest memory", "registers", "device memory"), got, outcome):
        assert a == b, f"{name} differs from byte {next(i for i in range(len(a)) if a[i] != b[i]):#x} on"
    assert interrupts + events(guest.event) == total


@pytest.mark.parametrize("options", [(), ("--async-quiesce",)], ids=["", "async"])
@pytest.mark.parametrize("seed", SEEDS)
def test_work_that_is_moved_ends_like_work_that_is_not(start, reference, seed, options):
    source, destination = start.guest(start.device(*options)), start.guest(start.device(*options))
    source.start(seed)
    moved = save_rounds(source, destination)
    assert source.busy(), "it was stopped in the middle of its work"
    before = events(source.event)
    load_all(destination, *moved)
    assert destination.busy() or destination.client.read_u32(COMPLETED) == moved[1]
    same(destination, reference(seed), before)
    # The source has not changed since it was stopped, and can be told to run instead.
    source.client.set_state(RUNNING)
    same(source, reference(seed), before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_source_dies(start, reference, phase):
    """The destination is unaffected: after a reset another device can move there."""
    device = start.device()
    source, destination = start.guest(device), start.guest(start.device())
    source.start(1)

    def kill(now):
        if now == phase:
            device.kill()
            raise Killed
    with pytest.raises(Killed):
        load_all(destination, *save_rounds(source, destination, kill), kill)
    destination.client.reset()
    assert destination.client.state() == RUNNING
    enable_msix(destination.client)  # a reset has switched it off
    again = start.guest(start.device())
    again.start(2)
    load_all(destination, *save_rounds(again, destination))
    same(destination, reference(2), events(again.event))


@pytest.mark.parametrize("phase", PHASES)
def test_the_destination_dies(start, reference, phase):
    """The source goes back to RUNNING and works on, as if nothing had been."""
    device = start.device()
    source, destination = start.guest(start.device()), start.guest(device)
    source.start(1)

    def kill(now):
        if now == phase:
            device.kill()
            raise Killed
    with pytest.raises(Killed):
        load_all(destination, *save_rounds(source, destination, kill), kill)
    source.client.set_state(RUNNING)
    assert source.client.state() == RUNNING
    same(source, reference(1), 0)


@pytest.mark.parametrize("phase", ["first round", "stopped", "drained"])
def test_the_client_goes_and_comes_back(start, phase):
    """The state stays; what was the client's is gone, and the device can be made to run again."""
    device = start.device()
    source, destination = start.guest(device), start.guest(start.device())
    source.start(1)

    def leave(now):
        if now == phase:
            raise Killed
    with pytest.raises(Killed):
        save_rounds(source, destination, leave)
    source.client.close()
    with Client(device) as back:
        assert back.state() == (PRE_COPY if phase == "first round" else STOP_COPY)
        back.reset()
        if phase == "first round":  # a reset is no way out of it
            assert back.state() == PRE_COPY
            back.set_state(RUNNING)
        assert back.state() == RUNNING
    back = start.guest(device)
    back.start(3)
    back.outcome()
    assert events(back.event) == ENTRIES


@pytest.fixture(scope="module")
def moved():
    """A stream, how much of the ring it knows of, guest memory, and the interrupts until then."""
    devices = [Device(), Device()]
    source, destination = (Guest(device) for device in devices)
    source.start(1)
    stream, fed = save_rounds(source, destination)
    yield stream, fed, bytes(destination.memory), events(source.event)
    for guest, device in zip((source, destination), devices):
        guest.close()
        device.end()


@pytest.fixture(scope="module")
def damaged(moved):
    """Ways to spoil a stream."""
    stream = moved[0]
    header, records = split(stream)
    cuts, bits, orders = random.Random(1), random.Random(2), random.Random(3)

    def cut():
        return stream[:cuts.randrange(len(stream))]

    def flip():
        at = bits.randrange(len(stream))
        return stream[:at] + bytes([stream[at] ^ 1 << bits.randrange(8)]) + stream[at + 1:]

    def swap():
        a, b = sorted(orders.sample(range(len(records)), 2))
        changed = [*records]
        changed[a], changed[b] = changed[b], changed[a]
        # As bytes, with the checksum of the stream as it was.
        return header + b"".join(struct.pack("<II", kind, len(data)) + data for kind, data in changed)

    def drop():
        a = orders.randrange(len(stream) - 5000)
        return stream[:a] + stream[a + 4096:] + bytes(4096)
    return {"cut": cut, "flip": flip, "swap": swap, "drop": drop}


@pytest.mark.parametrize("how", ["cut", "flip", "swap", "drop"])
def test_a_stream_that_was_damaged_is_refused(start, moved, damaged, reference, how):
    """RESUMING stays, nothing of it has taken effect, and after a reset the good stream loads."""
    stream, fed, memory, interrupts = moved
    guest = start.guest(start.device())
    for _ in range(5):
        bad = damaged[how]()
        if bad == stream:
            continue
        guest.client.set_state(RESUMING)
        with pytest.raises(Refused) as refusal:
            guest.client.write_all(bad, lambda: 333_333)
            guest.client.set_state(STOP)
        assert refusal.value.errno not in (0, errno.ENOTRECOVERABLE)
        assert guest.client.state() == RESUMING
        guest.client.reset()
        assert guest.client.state() == RUNNING
        assert bars(guest.client)[1][PAGE:] == bytes(BAR2_SIZE - PAGE), "nothing of it is there"
    guest.memory[:] = memory
    enable_msix(guest.client)
    load_all(guest, stream, fed)
    same(guest, reference(1), interrupts)
