"""A device that goes from one context to another: both in this process, the new one on a thread of its own."""
import contextlib
import ctypes as c
import os
import select
import threading

from ext import HANDED_OVER_CB, LOAD_CB, SAVE_CB, hand_over_callbacks
from libvfu import *

TIMEOUT = 20000


class Device(Ctx):
    """A device with a BAR of plain memory, and whatever else it is made with."""

    def __init__(self, state=True, irqs=8, bar=PAGE, realize=True, pending_irqs=False, caps=(), **kw):
        super().__init__(realize=False, **kw)
        self.owned, self.loaded, self.load_errno, self.save_errno = [], None, 0, 0
        self.setup_all(state, irqs, bar, pending_irqs, caps)
        if realize:
            self.realize()

    def setup_all(self, state, irqs, bar, pending_irqs, caps):
        if pending_irqs:
            call("vfux_setup_pending_irqs", self.p)
        if irqs:
            call("vfu_setup_device_nr_irqs", self.p, MSIX, irqs)
        if caps:
            self.pci_init()
            for data in caps:
                self.add_cap(data)
        self.mem = self.memory_region(BAR0, bar)
        if state:
            self.setup_state()

    def setup_state(self):
        cbs = hand_over_callbacks()
        cbs.version = 1
        for name, kind, f in (("save_state", SAVE_CB, self._save), ("load_state", LOAD_CB, self._load),
                              ("handed_over", HANDED_OVER_CB, self._handed_over)):
            f = kind(f)
            self.keep.append(f)
            setattr(cbs, name, f)
        call("vfux_setup_hand_over_callbacks", self.p, c.byref(cbs))

    def _save(self, _ctx):
        self.events.append("save")
        if self.save_errno:
            return self._fail(self.save_errno)
        half = len(self.mem) // 2
        for part in (self.mem[:half], self.mem[half:]):
            call("vfux_put_state", self.p, bytes(part), len(part))
        return 0

    def _load(self, _ctx, data, size, state):
        self.events.append(("load", state))
        self.mem[:] = c.string_at(data, size)
        return self._fail(self.load_errno)

    def _handed_over(self, _ctx, is_ours):
        self.owned.append(is_ours)

    @property
    def control(self):
        return self.path + ".upgrade"

    def serve_upgrades(self):
        call("vfux_setup_hand_over", self.p, self.control.encode())
        return self

    def hand_over(self, timeout=TIMEOUT):
        """1, 0, or -errno."""
        c.set_errno(0)
        r = lib.vfux_hand_over(self.p, timeout)
        return -c.get_errno() if r == -1 else r


def taking_over(control, timeout=TIMEOUT):
    return lambda _path, flags: call("vfux_create_ctx_taking_over", control.encode(), timeout, flags, None, 0)


class Upgrade:
    """An attempt: `new` is the context that is to have the device, or None if it could not be made."""

    def __init__(self, old, make=Device, timeout=TIMEOUT, before=lambda new: None, pump=True, **kw):
        self.new, self.taken, self.errno, self.answers = None, None, 0, []
        kw.setdefault("path", old.path)
        kw.setdefault("create", taking_over(old.control))

        def take():
            try:
                self.new = make(**kw)
                before(self.new)
                self.taken = call("vfux_take_over", self.new.p, timeout)
            except Failed as e:
                self.errno = e.errno
            finally:
                os.eventfd_write(self.done, 1)
        self.done = os.eventfd(0)
        self.thread = threading.Thread(target=take, daemon=True)
        self.thread.start()
        if pump:
            self.pump(old)

    def pump(self, old, timeout=TIMEOUT):
        """Answers until the attempt has come to an end on both sides."""
        poll = select.poll()
        fd = call("vfux_get_hand_over_fd", old.p)
        poll.register(fd, select.POLLIN)
        poll.register(self.done, select.POLLIN)
        while 1 not in self.answers:
            ready = dict(poll.poll(TIMEOUT))
            assert ready, "nobody says anything"
            if fd in ready:
                self.answers.append(old.hand_over(timeout))
            if ready == {self.done: select.POLLIN}:
                break
        self.thread.join()
        os.close(self.done)
        self.answers = [answer for answer in self.answers if answer != 0]

    def failed(self, number, old_number=None):
        """Whether it failed on both sides, with this errno; the new context is gone then."""
        assert (self.taken, self.errno) == (None, number), (self.taken, self.errno, self.new and self.new.lines)
        assert self.answers == [-(old_number or number)], self.answers
        if self.new:
            self.new.destroy()


def upgraded(old, client=None, **kw):
    """The context that has the device afterwards; the old one is destroyed."""
    upgrade = Upgrade(old, **kw)
    assert upgrade.errno == 0 and upgrade.answers == [1], (upgrade.errno, upgrade.answers, old.lines[-3:],
                                                           upgrade.new and upgrade.new.lines[-3:])
    upgrade.new.dir, old.dir = old.dir, None
    old.destroy()
    if client is not None:
        assert upgrade.taken == 1
        client.ctx = upgrade.new
    return upgrade.new


@contextlib.contextmanager
def device(**kw):
    """A device that can be taken over, and what becomes of it: a list whose last element has it."""
    chain = [Device(**kw).serve_upgrades()]
    chain_kw = {k: v for k, v in kw.items() if k != "path"}

    def upgrade(client=None, **more):
        chain.append(upgraded(chain[-1], client, **{**chain_kw, **more}))
        return chain[-1]
    chain[0].upgrade = upgrade
    try:
        yield chain[0]
    finally:
        chain[-1].destroy()
