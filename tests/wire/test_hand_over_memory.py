"""Live upgrade: DMA regions go ahead of the state, and the client may map and unmap meanwhile."""
import contextlib
import ctypes as c
import errno
import os
import select
import struct

import pytest
from hand_over import TIMEOUT, Device, Upgrade, device, taking_over
from libvfu import *
from stranger import *


class Halfway(Upgrade):
    """An upgrade that stays where the new process has been told of the DMA regions, and maps the first one."""

    def __init__(self, old, **kw):
        self.reached, self.go = os.eventfd(0), os.eventfd(0)

        def stop(new):
            def on_register(_info):
                new.on_dma_register = lambda _info: None
                os.eventfd_write(self.reached, 1)
                os.eventfd_read(self.go)
            new.on_dma_register = on_register
        super().__init__(old, dma=True, before=stop, pump=False, **kw)
        fd = call("vfux_get_hand_over_fd", old.p)
        while True:
            ready, _, _ = select.select([fd, self.reached], [], [], TIMEOUT / 1000)
            if self.reached in ready:
                break
            assert old.hand_over() == 0

    def go_on(self, old):
        os.eventfd_write(self.go, 1)
        self.pump(old)
        os.close(self.reached)
        os.close(self.go)
        return self

    @property
    def memory(self):
        """What the device of the new process was told, in order."""
        return [e for e in self.new.events if e[0] in ("register", "unregister")]


@pytest.fixture
def guest():
    fd = memfd(64 * PAGE)
    for n in range(64):
        os.pwrite(fd, b"page %02d" % n, n * PAGE)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def halfway(guest, **kw):
    """An old device with eight regions of a page, `n` at 2n pages, its client, and an upgrade."""
    with device(dma=True, **kw) as old, old.connect() as client:
        for n in range(8):
            client.map(2 * n * PAGE, PAGE, guest, offset=n * PAGE)
        yield old, client, Halfway(old, **kw)


def finish(old, client, upgrade):
    upgrade.go_on(old)
    assert upgrade.answers == [1] and upgrade.taken == 1, (upgrade.answers, upgrade.errno, upgrade.new.lines)
    client.ctx = upgrade.new
    return upgrade.new


def found(ctx, iova):
    _, sg = ctx.sgl(iova, 7)
    iov = ctx.sgl_get(sg)
    text = c.string_at(iov[0].base, 7)
    ctx.sgl_put(sg)
    return text


AHEAD = [("register", 2 * n * PAGE, PAGE) for n in range(8)]


def test_the_client_is_served_while_the_new_process_maps(guest):
    with halfway(guest) as (old, client, upgrade):
        client.write(BAR0, 0, b"meanwhil")
        assert "save" not in old.events and old.owned == []
        new = finish(old, client, upgrade)
        assert client.read(BAR0, 0, 8) == b"meanwhil"
        assert upgrade.memory == AHEAD
        assert [found(new, 2 * n * PAGE) for n in range(8)] == [b"page %02d" % n for n in range(8)]
        new.destroy()


def test_what_the_client_maps_and_unmaps_meanwhile(guest):
    other = memfd(PAGE, b"another")
    with halfway(guest) as (old, client, upgrade):
        client.unmap(0, PAGE)
        client.unmap(6 * PAGE, PAGE)
        client.unmap(8 * PAGE, PAGE)
        client.map(6 * PAGE, PAGE, guest, offset=20 * PAGE)      # with another page of the same file
        client.unmap(10 * PAGE, PAGE)
        client.map(10 * PAGE, PAGE, other)                       # the same but for the file
        client.map(13 * PAGE, PAGE, guest, offset=21 * PAGE)     # between two
        client.map(1 << 40, PAGE, guest, offset=22 * PAGE)
        client.map(1 << 41, PAGE)                                # by messages
        new = finish(old, client, upgrade)
        gone = [0, 6, 8, 10]
        assert upgrade.memory == AHEAD + [("unregister", n * PAGE, PAGE) for n in gone] + [
            ("register", iova, PAGE) for iova in (6 * PAGE, 10 * PAGE, 13 * PAGE, 1 << 40, 1 << 41)]
        for iova in (0, 8 * PAGE):
            fails(errno.ENOENT, new.sgl, iova, 1)
        there = {2: b"page 01", 4: b"page 02", 6: b"page 20", 10: b"another", 12: b"page 06", 13: b"page 21", 14: b"page 07"}
        assert {n: found(new, n * PAGE) for n in there} == there
        assert found(new, 1 << 40) == b"page 22"
        client.unmap(0, 0, UNMAP_ALL)
        new.destroy()
    os.close(other)


def test_the_very_same_mapped_again_is_another_region(guest):
    """Between the two it was not there, which the device has to know."""
    with halfway(guest) as (old, client, upgrade):
        client.unmap(4 * PAGE, PAGE)
        client.map(4 * PAGE, PAGE, guest, offset=2 * PAGE)
        new = finish(old, client, upgrade)
        assert upgrade.memory == AHEAD + [("unregister", 4 * PAGE, PAGE), ("register", 4 * PAGE, PAGE)]
        assert found(new, 4 * PAGE) == b"page 02"
        new.destroy()


@pytest.mark.parametrize("again", [False, True])
def test_all_goes_meanwhile(guest, again):
    with halfway(guest) as (old, client, upgrade):
        client.unmap(0, 0, UNMAP_ALL)
        if again:
            client.map(PAGE, PAGE, guest)
        new = finish(old, client, upgrade)
        assert upgrade.memory == AHEAD + [("unregister", *e[1:]) for e in AHEAD] + [("register", PAGE, PAGE)] * again
        new.destroy()


def test_the_client_goes_meanwhile_and_another_one_comes(guest):
    with halfway(guest) as (old, client, upgrade):
        client.close()
        fails(errno.ENOTCONN, old.run)
        client = old.connect()
        client.map(2 * PAGE, PAGE, guest, offset=PAGE)
        new = finish(old, client, upgrade)
        assert upgrade.memory == AHEAD + [("unregister", *e[1:]) for e in AHEAD] + [("register", 2 * PAGE, PAGE)]
        assert ("reset", RESET_LOST_CONN) not in new.events
        assert found(new, 2 * PAGE) == b"page 01"
        client.close()
        new.destroy()


def test_as_many_regions_as_there_may_be_are_exchanged(guest):
    with halfway(guest, max_regions=8) as (old, client, upgrade):
        client.unmap(0, 0, UNMAP_ALL)
        for n in range(8):
            client.map((100 + n) * PAGE, PAGE, guest, offset=n * PAGE)
        new = finish(old, client, upgrade)
        assert [found(new, (100 + n) * PAGE) for n in range(8)] == [b"page %02d" % n for n in range(8)]
        client.map(0, PAGE, expect=errno.EINVAL)
        new.destroy()


def mark(ctx, page):
    _, sg = ctx.sgl(page * PAGE, 1, prot=PROT_WRITE)
    lib.vfu_sgl_mark_dirty(ctx.p, sg, 1)


def marked(client):
    return [n for n in range(0, 16, 2) if client.report(n * PAGE, PAGE)]


@pytest.mark.parametrize("before", [None, [], [(0, 16 * PAGE)]])
@pytest.mark.parametrize("after", [None, [], [(0, 16 * PAGE)], [(0, 2 * PAGE), (4 * PAGE, 2 * PAGE)]])
def test_logging_starts_stops_and_changes_meanwhile(guest, before, after):
    """What was marked before is forgotten then, what is marked since is known."""
    with halfway_logging(guest, before) as (old, client, upgrade):
        if before is not None:
            client.log_stop()
        if after is not None:
            client.log_start(ranges=after)
            mark(old, 2)
            mark(old, 4)
        new = finish(old, client, upgrade)
        if after is None:
            client.report(0, PAGE, expect=errno.EINVAL)
        else:
            mark(new, 12)
            logged = [4] if len(after) == 2 else [2, 4, 12]
            assert marked(client) == logged
        new.destroy()


@contextlib.contextmanager
def halfway_logging(guest, ranges):
    kw = dict(migration=True)
    with device(dma=True, **kw) as old, old.connect() as client:
        for n in range(8):
            client.map(2 * n * PAGE, PAGE, guest, offset=n * PAGE)
        if ranges is not None:
            client.log_start(ranges=ranges)
            mark(old, 0)
        yield old, client, Halfway(old, **kw)


def test_what_is_marked_before_and_meanwhile_is_known_if_logging_goes_on(guest):
    with halfway_logging(guest, []) as (old, client, upgrade):
        mark(old, 2)
        client.unmap(8 * PAGE, PAGE)
        client.map(8 * PAGE, PAGE, guest)
        mark(old, 8)
        new = finish(old, client, upgrade)
        mark(new, 14)
        assert marked(client) == [0, 2, 8, 14]
        new.destroy()


def test_a_device_that_refuses_memory_is_known_of_before_the_old_one_is_quiet():
    with device(dma=True, quiesce=True) as old, old.connect() as client:
        client.map(0, PAGE)
        client.map(PAGE, PAGE)
        quiesced = old.events.count("quiesce")

        def refuse(new):
            new.on_dma_register = lambda info: info.iova.base and call("vfux_refuse_dma_region", new.p, errno.ENOSR)
        upgrade = Upgrade(old, dma=True, quiesce=True, before=refuse)
        new = upgrade.new
        upgrade.failed(errno.ENOSR)
        assert [e for e in new.events if e[0] == "unregister"] == [("unregister", 0, PAGE)]
        assert new.owned == [False]
        assert old.events.count("quiesce") == quiesced and "save" not in old.events and old.owned == []
        old.upgrade(client)
        client.read(BAR0, 0, 4)


def test_what_one_was_told_the_next_one_does_not_know(guest):
    with device(dma=True) as old, old.connect() as client:
        for n in range(8):
            client.map(2 * n * PAGE, PAGE, guest, offset=n * PAGE)
        stranger = Stranger(old)
        for kind, answer in ((HELLO, DEVICE), (MEMORY, MEMORY), (MEMORY, MEMORY)):
            stranger.say(kind)
            assert old.hand_over() == 0
            assert stranger.hear()[0] == answer
        client.unmap(0, PAGE)
        stranger.close()
        new = old.upgrade(client)
        assert [e for e in new.events if e[0] == "register"] == AHEAD[1:]


# --- what no process can have said -----------------------------------------------------

NO_FD = 0xffffffff


def record(kind, *numbers):
    return struct.pack(f"<HHIQ{len(numbers)}Q", kind, 1, 0, 8 * len(numbers), *numbers)


def image(*records):
    return b"vfu-hand" + struct.pack("<II", 1, 0) + b"".join(records) + record(0xffff, len(records))


def region(iova, size, prot=3, access=0, fd=NO_FD, offset=0):
    return record(24, iova, size, prot, access, fd, offset)


def logging(page_size, *ranges):
    return record(25, page_size, len(ranges), *ranges)


def kept(*regions):
    return record(30, len(regions), *regions)


def refused(tmp_path, memory, state=None):
    """The line in the log of a process that takes over from one that says this."""
    path = str(tmp_path / "control")
    with open(os.path.join(os.path.dirname(__file__), "..", "hand-over", "device-1.image"), "rb") as f:
        answers = [with_image(DEVICE, f.read()), with_image(MEMORY, memory)]
    if state:
        answers.append(with_image(STATE, state))
    before = len(open_fds())
    fake = FakeOld(path, answers)
    new = Device(dma=True, migration=True, pending_irqs=True, path=path, create=taking_over(path))
    fails(errno.EPROTO, call, "vfux_take_over", new.p, TIMEOUT)
    fake.close()
    assert fake.heard == [HELLO, MEMORY, READY, (NO, errno.EPROTO)][:2 + bool(state)] + [(NO, errno.EPROTO)]
    memory = [e for e in new.events if e[0] in ("register", "unregister")]
    assert memory == memory[:len(memory) // 2] + [("unregister", *e[1:]) for e in memory[:len(memory) // 2]]
    line = new.lines[-1][1]
    new.destroy()
    assert len(open_fds()) == before
    return line


@pytest.mark.parametrize("records, line", [
    ([kept()], "does not belong there"),
    ([region(0, PAGE), region(0, PAGE)], "cannot be that of a client"),
    ([region(PAGE, PAGE), region(0, PAGE + 1)], "cannot be that of a client"),
    ([region(0, 0)], "cannot be that of a client"),
    ([region(1 << 63, (1 << 64) - 1)], "cannot be that of a client"),
    ([region(0, PAGE, access=3)], "of its DMA regions does not go together"),
    ([region(0, PAGE, prot=4)], "of its DMA regions does not go together"),
    ([region(0, PAGE, access=1, fd=0)], "descriptor that it names is missing"),
    ([logging(3)], "a log of writes that cannot be"),
    ([logging(PAGE, 0)], "of its DMA regions does not go together"),
    ([logging(PAGE, 1, 0)], "a log of writes that cannot be"),
    ([record(24, 0)], "no image of a context"),
])
def test_memory_that_cannot_be(tmp_path, records, line):
    assert line in refused(tmp_path, image(*records))


@pytest.mark.parametrize("regions", [[0], [0, 3], [2, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, (1 << 64) - 1], [(1 << 64) - 1, 1]])
def test_regions_that_cannot_be_there_still(tmp_path, regions):
    line = refused(tmp_path, image(region(0, PAGE), region(PAGE, PAGE)), image(kept(*regions)))
    assert "of its DMA regions does not go together" in line


@pytest.mark.parametrize("records", [[], [kept(), kept()], [logging(PAGE), logging(PAGE), kept()]],
                         ids=["nothing", "twice", "logged twice"])
def test_what_became_of_the_regions_is_said_once(tmp_path, records):
    line = refused(tmp_path, image(region(0, PAGE)), image(record(17, *[1] * 13), record(28, 2), *records))
    assert "of its state does not go together" in line


def report(more, iova, length, page_size):
    return record(22, more, iova, length, page_size)


def dirty(iova, first, *words):
    return record(26, iova, first, len(words), *words)


@pytest.mark.parametrize("record_, line", [
    (report(8, 0, PAGE, 0), "of its state does not go together"),
    (report(8, 0, 0, PAGE), "of its state does not go together"),
    (report(8, 0, PAGE, 3), "of its state does not go together"),
    (report(16, 0, 64 * PAGE, PAGE), "of its state does not go together"),
    (report((1 << 64) - 1, 0, (1 << 64) - 1, 1), "of its state does not go together"),
    (dirty(PAGE, 0, 1), "pages that nobody can have written to"),
    (dirty(0, 0, 2), "pages that nobody can have written to"),
    (dirty(0, (1 << 64) - 64, 1, 1), "pages that nobody can have written to"),
    (dirty(0, (1 << 64) - 1, 0, 0, 1), "pages that nobody can have written to"),
    (record(31, PAGE, 0), "memory that cannot be that of a client"),
    (record(31, 0, 0), "memory that cannot be that of a client"),
], ids=["pages of no size", "no pages", "pages of an odd size", "more than there is", "far more", "no region", "beyond", "far beyond", "at the end",
        "lost where nothing is", "lost behind messages"])
def test_a_report_and_pages_that_cannot_be(tmp_path, record_, line):
    # All the rest is right: there is no client.
    rest = [record(17, 0, 0, 0, *[1] * 10), record(28, 2), logging(PAGE), kept(0, 1)]
    assert line in refused(tmp_path, image(logging(PAGE), region(0, PAGE)), image(*rest, record_))
