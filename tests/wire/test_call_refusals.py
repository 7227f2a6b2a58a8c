"""Every refusal of every public function is one line at LOG_ERR, which names the function and the rule.

What there is to refuse is read from the public headers: an errno that a function's description lists, and a function
that fails in no way, have to be in one of the tables here. So none can be added without its line.
"""
import ctypes
import pathlib
import re
import resource
import socket
import tempfile
import threading

import pytest
import ext
import hand_over
import test_hand_over_refused as others
from guest import Guest
from libvfu import *
from peer import Room

TOP = pathlib.Path(__file__).resolve().parents[2]
LOG_ERR = 3
BASE = 0x100000


# --- what the headers say ---------------------------------------------------------------------
def documented():
    """{function: the errnos that its description lists}; "others" are the system's."""
    found = {}
    for name in ("libvfio-user.h", "libvfio-user-ext.h"):
        text = (TOP / "include" / name).read_text()
        for comment, function in re.findall(r"/\*\*((?:(?!\*/).)*)\*/\s*(?:[a-z_0-9]+ )+\**\s*((?:vfux?_|dma_)\w+)\(", text, re.S):
            listed = re.findall(r"^ \*   +((?:E[A-Z]+)(?:, E[A-Z]+)*|others) {2,}", comment, re.M)
            found[function] = {errno for entry in listed for errno in entry.split(", ")}
    return found


def exported():
    return set(re.findall(r"^    (\w+);$", (TOP / "libvfio-user.map").read_text(), re.M))


# --- the device -------------------------------------------------------------------------------
class Device:
    """A context that is realized, with a client, a region reached by messages, one that is mapped, and entries."""

    def __init__(self, ctx, client):
        self.ctx, self.client, self.p = ctx, client, ctx.p
        self.fd = memfd(PAGE)
        client.map(BASE, PAGE)
        client.map(BASE + PAGE, PAGE, self.fd)
        client.map(BASE + 2 * PAGE, PAGE, self.fd, flags=MAP_READ)
        self.message, self.mapped = (ctx.sgl(BASE + i * PAGE, 64)[1] for i in range(2))
        self.stale = (dma_sg * 1)()
        self.data = ctypes.create_string_buffer(64)

    def move(self, name, sg, cnt=1, data=True, flags=0):
        call(name, self.p, sg, cnt, self.data if data else None, flags)

    def asked(self, name, error):
        """The client is asked, and answers with an error, or with an answer to something else."""
        def answer(_guest, head, _address, _count, _data):
            msg_id, command = struct.unpack_from("<HH", head)
            return header(msg_id + (error == 0), command, 16, F_REPLY | (F_ERROR if error else 0), error)
        with Guest(self.client, bytearray(PAGE), BASE, answer=answer):
            self.move(name, self.message)

    def cut_short(self, name):
        """A file that is too short for the entry."""
        fd = memfd(PAGE)
        self.client.map(BASE + 4 * PAGE, PAGE, fd, flags=MAP_READ | MAP_WRITE | MAP_FILE_IO)
        sg = self.ctx.sgl(BASE + 4 * PAGE, 64)[1]
        os.ftruncate(fd, 0)
        if name == "vfu_sgl_write":  # which makes a file longer
            os.fchmod(fd, 0o400)
            self.client.map(BASE + 5 * PAGE, PAGE, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), flags=MAP_READ | MAP_WRITE | MAP_FILE_IO)
            sg = self.ctx.sgl(BASE + 5 * PAGE, 64)[1]
        self.move(name, sg, flags=DIRECT)


def nothing_asked(d):
    call("vfu_device_quiesced", d.p, 0)


def in_a_callback(name):
    """Calls a function, which fails, in the callback that registers a region."""
    def calls(d):
        failed = []
        d.ctx.on_dma_register = lambda _info: failed.append(called(name, d.p))
        d.client.map(BASE + 8 * PAGE, PAGE)
        raise failed[0]
    return calls


def called(*args):
    try:
        call(*args)
    except Failed as e:
        return e
    raise AssertionError(f"{args[0]} does not fail")


def capability(number, size=8):
    return bytes([number, 0]) + bytes(size - 2)


def filled(ctx):
    for _ in range(200):
        ctx.add_cap(capability(1, 8))


def attach_with(sent, closes=False):
    def calls(ctx):
        ctx.realize()
        client = ctx.connect(attach=False)
        client.send_raw(sent)
        if closes:
            client.close()
        ctx.attach()
    return calls


def no_room(ctx):
    with Room(0):
        ctx.poll_fd()


def disregarded(ctx):
    ctx.realize()
    with ctx.connect() as client:
        client.map(BASE, PAGE)
        call("vfu_setup_device_dma", ctx.p, 1, None, None)


def null_sgl(name):
    """A function without a result: the refusal has no errno. Pages are logged, or nothing is looked at."""
    def calls(d):
        d.client.log_start()
        args = {"vfu_sgl_put": (None, None, 1), "vfu_sgl_mark_dirty": (None, 1)}[name]
        getattr(lib, name)(d.p, *args)
        raise Failed(name, errno.EINVAL)
    return calls


def no_pointer(name):
    """A function that returns false."""
    def calls(d):
        assert getattr(lib, name)(d.p, None) is False
        raise Failed(name, errno.EINVAL)
    return calls


def transfers(name):
    return [
        (name, "EINVAL", "data is NULL", lambda d: d.move(name, d.mapped, data=False)),
        (name, "EINVAL", "pointer that is needed is NULL", lambda d: d.move(name, None)),
        (name, "EINVAL", "flags 0x2: an unknown flag", lambda d: d.move(name, d.mapped, flags=2)),
        (name, "EINVAL", "has not filled the entry in", lambda d: d.move(name, d.stale if name == "vfu_sgl_read" else writeable(d.stale))),
        (name, "EINVAL", "its answer makes no sense", lambda d: d.asked(name, 4097)),
        (name, "ENOTSUP", "2 entries, .*sg_cnt is not 1", lambda d: d.move(name, d.mapped, cnt=2)),
        (name, "EPERM", "0x40 bytes at 0x0 of the region at 0x", lambda d: d.move(name, forbidden(d, name))),
        (name, "EPROTO", "makes no sense", lambda d: d.asked(name, 0)),
        (name, "EIO", "the client's file", lambda d: d.cut_short(name)),
        (name, "others", "the client refuses it", lambda d: d.asked(name, errno.ENOSPC)),
    ]


def writeable(sg):
    sg[0].writeable = True
    return sg


def forbidden(d, name):
    if name == "vfu_sgl_write":
        return d.ctx.sgl(BASE + 2 * PAGE, 64, prot=PROT_READ)[1]
    d.client.map(BASE + 3 * PAGE, PAGE, flags=MAP_WRITE)
    return d.ctx.sgl(BASE + 3 * PAGE, 64, prot=PROT_WRITE)[1]


def hand_over_callbacks(ctx, version=1, one=False):
    cbs = ext.hand_over_callbacks()
    cbs.version = version
    if one:
        cbs.save_state = ext.SAVE_CB(lambda _ctx: 0)
    call("vfux_setup_hand_over_callbacks", ctx.p, ctypes.byref(cbs))


def control_at(ctx, path):
    call("vfux_setup_hand_over", ctx.p, path.encode())


def occupied(ctx):
    path = ctx.path + ".file"
    with open(path, "x"):
        control_at(ctx, path)


def no_control(make):
    """A descriptor that others cannot come by, which stays the caller's."""
    def calls(ctx):
        fd = make()
        try:
            call("vfux_setup_hand_over_fd", ctx.p, fd)
        finally:
            os.close(fd)
    return calls


def realized_before(ctx, name, *args):
    ctx.realize()
    call(name, ctx.p, *args)


def old_region(ctx, index=BAR0):
    region = ext.old_region()
    call("vfux_get_old_region", ctx.p, index, ctypes.byref(region))


def old_ioeventfd(ctx, n=0):
    entry = ext.old_ioeventfd()
    call("vfux_get_old_ioeventfd", ctx.p, BAR0, n, ctypes.byref(entry))


def old_config_space(ctx, count, offset):
    call("vfux_get_old_config_space", ctx.p, ctypes.create_string_buffer(count), count, offset)


# Function, errno, words of the line, what breaks the rule: it is given a Ctx with nothing set up, or a Device.
SETUP = [
    ("vfu_setup_log", "EINVAL", "there is no such level", lambda x: call("vfu_setup_log", x.p, None, 8)),
    ("vfu_setup_region", "EINVAL", "region 0, size 0x3000, flags 0x3: .*power of two", lambda x: x.setup_region(BAR0, 0x3000, None)),
    ("vfu_setup_region", "EINVAL", "contradict each other", lambda x: call("vfu_setup_region", x.p, 0, 4096, None, 3, None, 1, -1, 0)),
    ("vfu_setup_region", "EINVAL", "misaligned", lambda x: call("vfu_setup_region", x.p, 0, 4096, None, 3, 9, 1, -1, 0)),
    ("vfu_setup_region", "EINVAL", "region -1, .*no such region", lambda x: x.setup_region(-1, 4096, None)),
    ("vfu_setup_region", "EINVAL", "neither READ nor WRITE", lambda x: x.setup_region(BAR0, 4096, None, MEM)),
    ("vfu_pci_init", "EINVAL", "no such type of device", lambda x: x.pci_init(9)),
    ("vfu_pci_init", "EINVAL", "", lambda x: call("vfu_pci_init", x.p, 3, 1, 0)),
    ("vfu_pci_init", "EEXIST", "", lambda x: (x.pci_init(), x.pci_init())),
    ("vfu_pci_add_capability", "EINVAL", "position 0x41, flags 0x0: ", lambda x: (x.pci_init(), x.add_cap(capability(1), pos=0x41))),
    ("vfu_pci_add_capability", "EINVAL", "NULL", lambda x: (x.pci_init(), call("vfu_pci_add_capability", x.p, 0, 0, None))),
    ("vfu_pci_add_capability", "EINVAL", "unknown flag", lambda x: (x.pci_init(), x.add_cap(capability(1), flags=999))),
    ("vfu_pci_add_capability", "EINVAL", "no configuration space", lambda x: x.add_cap(capability(1))),
    ("vfu_pci_add_capability", "ENOTSUP", "not known", lambda x: (x.pci_init(), x.add_cap(capability(0x7f)))),
    ("vfu_pci_add_capability", "ENOSPC", "", lambda x: (x.pci_init(), filled(x))),
    ("vfu_pci_find_capability", "EINVAL", "id 0x1: there is no configuration space", lambda x: found("vfu_pci_find_capability", x.p, False, 1)),
    ("vfu_pci_find_next_capability", "EINVAL", "id 0x1, behind 0x1000: the position", lambda x: (
        x.pci_init(), found("vfu_pci_find_next_capability", x.p, False, 0x1000, 1))),
    ("vfu_pci_find_next_capability", "EINVAL", "no configuration space", lambda x: found("vfu_pci_find_next_capability", x.p, False, 0, 1)),
    ("vfu_setup_device_nr_irqs", "EINVAL", "type 5, count 1: .*interrupt type", lambda x: call("vfu_setup_device_nr_irqs", x.p, 5, 1)),
    ("vfu_setup_irq_state_callback", "EINVAL", "type 5: .*interrupt type", lambda x: call("vfu_setup_irq_state_callback", x.p, 5, None)),
    ("vfu_setup_device_migration_callbacks", "EINVAL", "VFU_MIGR_CALLBACKS_VERS", lambda x: x.setup_migration(version=1)),
    ("vfu_setup_device_migration_callbacks", "EINVAL", "NULL", lambda x: call("vfu_setup_device_migration_callbacks", x.p, None)),
    ("vfu_create_ioeventfd", "EINVAL", "region 0, 0x4 bytes at 0x8: the region is not set up", lambda x: call("vfu_create_ioeventfd", x.p, 0, -1, 8, 4, 0, 0, -1, 0)),
    ("vfu_create_ioeventfd", "EINVAL", "shadow", lambda x: call("vfu_create_ioeventfd", x.p, 0, -1, 8, 4, 0, 0, 3, 0)),
    ("vfu_create_ioeventfd", "EINVAL", "beyond", lambda x: call("vfu_create_ioeventfd", x.p, 0, -1, 2**64 - 1, 4, 0, 0, -1, 0)),
    ("vfu_create_ioeventfd", "EINVAL", "no such region", lambda x: call("vfu_create_ioeventfd", x.p, 9, -1, 8, 4, 0, 0, -1, 0)),
    ("vfu_run_ctx", "EINVAL", "vfu_realize_ctx", lambda x: x.run()),
    ("vfu_device_quiesced", "EINVAL", "no quiesce callback", nothing_asked),
    ("vfu_get_poll_fd", "EMFILE", "no descriptors left", no_room),
    ("vfu_attach_ctx", "EINVAL", "no VERSION", attach_with(message(1, GET_INFO, bytes(16)))),
    ("vfu_attach_ctx", "EINVAL", "major version", attach_with(message(1, VERSION, struct.pack("=HH", 1, 0)))),
    ("vfu_attach_ctx", "ENOMSG", "the client left", attach_with(b"", closes=True)),
    ("vfu_attach_ctx", "ECONNRESET", "the client left", attach_with(b"123", closes=True)),
    ("vfu_addr_to_sgl", "EINVAL", "0x40 bytes at 0x100000, prot 3: vfu_setup_device_dma", lambda x: x.sgl(BASE, 64)),
    ("vfu_sgl_get", "EINVAL", "1 entries, .*flags 0x0: vfu_setup_device_dma", lambda x: x.sgl_get((dma_sg * 1)())),
    ("vfu_irq_trigger", "EINVAL", "vector 0: .*vfu_realize_ctx", lambda x: realized_later(x, "vfu_irq_trigger", 0)),
    ("vfux_irq_trigger", "EINVAL", "type 2, vector 0: ", lambda x: realized_later(x, "vfux_irq_trigger", MSIX, 0)),
    ("vfu_setup_device_dma", "EINVAL", "has been disregarded", disregarded),
    ("vfux_setup_dma_policy", "EINVAL", "no such policy", lambda x: call("vfux_setup_dma_policy", x.p, 7)),
    ("vfux_get_client_credentials", "ENOTCONN", "no client is attached", lambda x: call(
        "vfux_get_client_credentials", x.p, ctypes.byref(ext.credentials()))),
    ("vfux_get_client_credentials", "EINVAL", "NULL", lambda x: call("vfux_get_client_credentials", x.p, None)),
    ("vfux_setup_hand_over_callbacks", "EINVAL", "another version", lambda x: hand_over_callbacks(x, version=7)),
    ("vfux_setup_hand_over_callbacks", "EINVAL", "one of save_state and load_state", lambda x: hand_over_callbacks(x, one=True)),
    ("vfux_put_state", "EINVAL", "not asked for its state", lambda x: call("vfux_put_state", x.p, b"x", 1)),
    ("vfux_put_state", "EINVAL", "NULL", lambda x: call("vfux_put_state", x.p, None, 1)),
    ("vfux_add_hand_over_fd", "EBADF", "negative", lambda x: call("vfux_add_hand_over_fd", x.p, b"disk", -1)),
    ("vfux_add_hand_over_fd", "EEXIST", "of this name already", lambda x: [call("vfux_add_hand_over_fd", x.p, b"disk", 0) for _ in range(2)]),
    ("vfux_add_hand_over_fd", "EINVAL", "NULL", lambda x: call("vfux_add_hand_over_fd", x.p, None, 0)),
    ("vfux_add_hand_over_fd", "EINVAL", "without a name", lambda x: call("vfux_add_hand_over_fd", x.p, b"", 0)),
    ("vfux_setup_hand_over", "EADDRINUSE", "no stale socket", occupied),
    ("vfux_setup_hand_over", "EEXIST", "a socket for taking over already", lambda x: [control_at(x, x.path + ".upgrade") for _ in range(2)]),
    ("vfux_setup_hand_over", "EINVAL", "NULL", lambda x: call("vfux_setup_hand_over", x.p, None)),
    ("vfux_setup_hand_over", "ENAMETOOLONG", "too long", lambda x: control_at(x, x.path + "x" * 103)),
    ("vfux_setup_hand_over_fd", "EBADF", "no open descriptor", lambda x: call("vfux_setup_hand_over_fd", x.p, -1)),
    ("vfux_setup_hand_over_fd", "EEXIST", "a socket for taking over already", lambda x: (
        control_at(x, x.path + ".upgrade"), call("vfux_setup_hand_over_fd", x.p, -1))),
    ("vfux_setup_hand_over_fd", "ENOTSOCK", "no socket", no_control(lambda: os.eventfd(0))),
    ("vfux_setup_hand_over_fd", "ENOTSUP", "another type", no_control(lambda: socket.socket(socket.AF_UNIX).detach())),
    ("vfux_setup_hand_over_fd", "ENOTCONN", "neither listens", no_control(
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach())),
    ("vfux_hand_over", "ENOENT", "not handed over: no socket", lambda x: call("vfux_hand_over", x.p, 1)),
    ("vfux_hand_over", "EINVAL", "timeout", lambda x: call("vfux_hand_over", x.p, 0)),
    ("vfux_take_over", "EINVAL", "vfu_realize_ctx", lambda x: call("vfux_take_over", x.p, 1)),
    ("vfux_take_over", "EINVAL", "no process", lambda x: realized_before(x, "vfux_take_over", 1)),
    ("vfux_take_over", "EINVAL", "timeout", lambda x: realized_before(x, "vfux_take_over", -1)),
    ("vfux_get_old_region", "EINVAL", "no process", lambda x: old_region(x)),
    ("vfux_get_old_ioeventfd", "EINVAL", "no process", lambda x: old_ioeventfd(x)),
    ("vfux_get_old_irq_count", "EINVAL", "no process", lambda x: call("vfux_get_old_irq_count", x.p, MSIX)),
    ("vfux_get_old_config_space", "EINVAL", "no process", lambda x: old_config_space(x, 4, 0)),
    ("vfux_get_old_fd", "EINVAL", "no process", lambda x: call("vfux_get_old_fd", x.p, b"disk")),
]

RUNNING = [
    ("vfu_attach_ctx", "EINVAL", "a client already", lambda d: d.ctx.attach()),
    ("vfu_attach_ctx", "EINVAL", "a client already", in_a_callback("vfu_attach_ctx")),
    ("vfu_run_ctx", "EBUSY", "callback", in_a_callback("vfu_run_ctx")),
    ("vfu_device_quiesced", "EINVAL", "nothing waits", nothing_asked),
    ("vfu_setup_device_dma", "EEXIST", "regions already", lambda d: call("vfu_setup_device_dma", d.p, 1, None, None)),
    ("vfux_setup_dma_policy", "EEXIST", "DMA regions", lambda d: call("vfux_setup_dma_policy", d.p, 1)),
    ("vfux_setup_pending_irqs", "EINVAL", "vfu_realize_ctx", lambda d: call("vfux_setup_pending_irqs", d.p)),
    ("vfux_refuse_dma_region", "EINVAL", "no register callback", lambda d: call("vfux_refuse_dma_region", d.p, 1)),
    ("vfux_refuse_dma_region", "EINVAL", "1 to 4095", lambda d: call("vfux_refuse_dma_region", d.p, 0)),
    ("vfu_irq_trigger", "EINVAL", "vector 77: no type of interrupt", lambda d: call("vfu_irq_trigger", d.p, 77)),
    ("vfux_irq_trigger", "EINVAL", "type 2, vector 77: ", lambda d: call("vfux_irq_trigger", d.p, MSIX, 77)),
    ("vfux_irq_trigger", "EINVAL", "type 9, vector 0: ", lambda d: call("vfux_irq_trigger", d.p, 9, 0)),
    ("vfux_irq_clear_pending", "EINVAL", "type 2, vector 77: ", lambda d: call("vfux_irq_clear_pending", d.p, MSIX, 77)),
    ("vfux_irq_clear_pending", "EINVAL", "type 9, vector 0: ", lambda d: call("vfux_irq_clear_pending", d.p, 9, 0)),
    ("vfux_read_pba", "EINVAL", "0x8 bytes at 0x10: ", lambda d: call("vfux_read_pba", d.p, d.data, 8, 16)),
    ("vfux_read_pba", "EINVAL", "0x8 bytes at 0x0: ", lambda d: call("vfux_read_pba", d.p, None, 8, 0)),
    ("vfu_addr_to_sgl", "EINVAL", "NULL", lambda d: call("vfu_addr_to_sgl", d.p, BASE, 64, None, 1, 3)),
    ("vfu_sgl_get", "EINVAL", "0x40 bytes at 0x0 of the region at 0x101000, flags 0x1: flags is not 0", lambda d: d.ctx.sgl_get(d.mapped, flags=1)),
    ("vfu_sgl_get", "EINVAL", "has not filled the entry in", lambda d: d.ctx.sgl_get(d.stale)),
    ("vfu_sgl_get", "EINVAL", "NULL", lambda d: call("vfu_sgl_get", d.p, None, (iovec * 1)(), 1, 0)),
    ("vfu_sgl_get", "EINVAL", "NULL", lambda d: call("vfu_sgl_get", d.p, d.mapped, None, 1, 0)),
    ("vfu_sgl_get", "EINVAL", "0x40 bytes at 0x0 of the region at 0x100000, flags 0x1: ", lambda d: d.ctx.sgl_get(d.message, flags=1)),
    ("vfu_sgl_put", None, "1 entries: .*NULL", null_sgl("vfu_sgl_put")),
    ("vfu_sgl_mark_dirty", None, "1 entries: .*NULL", null_sgl("vfu_sgl_mark_dirty")),
    ("vfu_sg_is_mappable", None, "NULL", no_pointer("vfu_sg_is_mappable")),
    ("vfux_sg_is_lost", None, "NULL", no_pointer("vfux_sg_is_lost")),
] + [entry for name in ("vfu_sgl_read", "vfu_sgl_write") for entry in transfers(name)]


# --- two processes, of which one has the device and the other is to have it ----------------------
class WithMemory(hand_over.Device):
    """A device with an eventfd for writes, a region that the client maps, and a descriptor of its own."""

    def setup_all(self, *args):
        super().setup_all(*args)
        self.fds = [memfd(PAGE), os.eventfd(0)]
        memory, bell = self.fds
        self.setup_region(BAR2, PAGE, None, RW | MEM, fd=memory)
        call("vfu_create_ioeventfd", self.p, BAR0, bell, 0, 4, 0, 0, -1, 0)
        call("vfux_add_hand_over_fd", self.p, b"disk", memory)

    def destroy(self):
        super().destroy()
        while self.fds:
            os.close(self.fds.pop())


class Old:
    """The side that has the device, which nobody has asked for yet."""

    def __init__(self):
        self.ctx = hand_over.Device(dma=True)

    def hand_over(self, timeout=hand_over.TIMEOUT):
        call("vfux_hand_over", self.ctx.p, timeout)

    def destroy(self):
        self.ctx.destroy()


class New:
    """The side that is to have it: it has asked what the device is, and is not set up yet."""

    def __init__(self):
        self.old = WithMemory().serve_upgrades()
        asking = threading.Thread(target=self.make, daemon=True)
        asking.start()
        while asking.is_alive():
            self.old.hand_over()
        asking.join()

    def make(self):
        self.ctx = Ctx(path=self.old.path, create=hand_over.taking_over(self.old.control), realize=False)

    def destroy(self):
        self.ctx.destroy()
        self.old.destroy()


class Asked:
    """The side that is to have it, and one that only plays the other: it says what it is told to."""

    def __init__(self):
        with hand_over.device() as old:
            stranger = others.Stranger(old)
            stranger.say(others.HELLO)
            old.hand_over()
            self.image = stranger.hear()[2]
            stranger.close()
        self.dir = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.dir.name, "s")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(self.path)
        self.sock.listen(1)
        asking = threading.Thread(target=self.make, daemon=True)
        asking.start()
        self.peer = self.sock.accept()[0]
        others.with_image(others.DEVICE, self.image)(self.peer)
        asking.join()

    def make(self):
        self.ctx = hand_over.Device(path=self.path, create=hand_over.taking_over(self.path))

    def destroy(self):
        self.ctx.destroy()
        self.peer.close()
        self.sock.close()
        self.dir.cleanup()


def answered(*args, timeout=hand_over.TIMEOUT, **kw):
    """The new process asks for the state, and this is what it hears; nothing: no answer."""
    def calls(x):
        if args:
            x.peer.send(others.text(*args, **kw))
        call("vfux_take_over", x.ctx.p, timeout)
    return calls


def left(x):
    x.peer.close()
    call("vfux_take_over", x.ctx.p, hand_over.TIMEOUT)


def other_interrupts(x):
    call("vfu_setup_device_nr_irqs", x.ctx.p, MSIX, 4)
    x.ctx.realize()
    call("vfux_take_over", x.ctx.p, hand_over.TIMEOUT)


def over_socketpair(says, user=None, closes=False, timeout=hand_over.TIMEOUT):
    """A process that says all of that at once, perhaps as another user, and then nothing."""
    def calls(x):
        if user is not None and os.geteuid() != 0:
            pytest.skip("only root can be another user")
        if user is not None:
            os.seteuid(user)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        finally:
            if user is not None:
                os.seteuid(0)
        with ours:
            call("vfux_setup_hand_over_fd", x.ctx.p, theirs.detach())
            for args, kw in says:
                ours.send(others.text(*args, **kw))
            if closes:
                ours.shutdown(socket.SHUT_WR)
            x.hand_over(timeout)
    return calls


def inside_a_callback(x):
    failed = []
    x.ctx.on_dma_register = lambda _info: failed.append(called("vfux_hand_over", x.ctx.p, 1))
    with x.ctx.connect() as client:
        client.map(BASE, PAGE)
    raise failed[0]


def without_room(asks):
    """As many descriptors as there may be; the limit is not below those that a duplicate never gets."""
    def calls(x):
        free = os.eventfd(0)
        os.close(free)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        try:
            asks(x.ctx)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return calls


HELLO, READY, REFUSAL = ((others.HELLO,), {}), ((others.READY,), {}), ((others.NO,), {"error": errno.EINVAL})

# The same; what breaks the rule is given an Old, a New, or an Asked.
HAND_OVER = [
    ("vfux_hand_over", "EBUSY", "inside a callback", Old, inside_a_callback),
    ("vfux_hand_over", "EPERM", "the same user, or root", Old, over_socketpair([HELLO], user=65534)),
    ("vfux_hand_over", "ETIMEDOUT", "takes too long", Old, over_socketpair([HELLO, READY], timeout=20)),
    ("vfux_hand_over", "ECONNRESET", "has gone", Old, over_socketpair([HELLO, READY], closes=True)),
    ("vfux_hand_over", "EINVAL", "the other process refuses", Old, over_socketpair([HELLO, REFUSAL])),
    ("vfux_hand_over", "others", "does not speak this protocol", Old, over_socketpair([((others.HELLO,), {"magic": b"what"})])),
    ("vfux_take_over", "EBUSY", "", Asked, answered(others.NO, error=errno.EBUSY)),
    ("vfux_take_over", "ETIMEDOUT", "", Asked, answered(timeout=20)),
    ("vfux_take_over", "ECONNRESET", "has gone", Asked, left),
    ("vfux_take_over", "EPROTO", "", Asked, answered(others.TAKEN)),
    ("vfux_take_over", "EPROTONOSUPPORT", "", Asked, answered(others.YOURS, version=2)),
    ("vfux_take_over", "EINVAL", "other numbers of interrupts", New, other_interrupts),
    ("vfux_get_old_region", "EINVAL", "NULL", New, lambda x: call("vfux_get_old_region", x.ctx.p, BAR0, None)),
    ("vfux_get_old_region", "EMFILE", "no descriptors left", New, without_room(lambda ctx: old_region(ctx, BAR2))),
    ("vfux_get_old_ioeventfd", "EINVAL", "NULL", New, lambda x: call("vfux_get_old_ioeventfd", x.ctx.p, BAR0, 0, None)),
    ("vfux_get_old_ioeventfd", "EMFILE", "no descriptors left", New, without_room(old_ioeventfd)),
    ("vfux_get_old_irq_count", "EINVAL", "interrupt type", New, lambda x: call("vfux_get_old_irq_count", x.ctx.p, 9)),
    ("vfux_get_old_config_space", "EINVAL", "not within", New, lambda x: old_config_space(x.ctx, 16, 250)),
    ("vfux_get_old_config_space", "EINVAL", "NULL", New, lambda x: call("vfux_get_old_config_space", x.ctx.p, None, 4, 0)),
    ("vfux_get_old_fd", "EINVAL", "NULL", New, lambda x: call("vfux_get_old_fd", x.ctx.p, None)),
    ("vfux_get_old_fd", "EMFILE", "no descriptors left", New, without_room(lambda ctx: call("vfux_get_old_fd", ctx.p, b"disk"))),
]

# What the headers list and is no refusal: what it is instead.
ANSWERS = {
    ("vfu_attach_ctx", "EAGAIN"): "no client yet: call again",
    ("vfu_attach_ctx", "EINTR"): "a signal",
    ("vfu_run_ctx", "ENOTCONN"): "the loss of the client, which is logged once, at LOG_INFO",
    ("vfu_run_ctx", "EINTR"): "a signal",
    ("vfu_device_quiesced", "EBUSY"): "call again",
    ("vfu_sgl_read", "EINTR"): "a signal",
    ("vfu_sgl_read", "ENOTCONN"): "the client is lost, see below",
    ("vfu_addr_to_sgl", "ENOENT"): "the guest's address is not memory",
    ("vfu_addr_to_sgl", "EACCES"): "the guest's address is not for that",
    ("vfu_sgl_get", "EFAULT"): "the memory is reached by messages",
    ("vfu_pci_find_capability", "ENOENT"): "there is none",
    ("vfu_pci_find_next_capability", "ENOENT"): "there is none",
    ("vfu_irq_trigger", "ENOENT"): "the client has not enabled the vector",
    ("vfu_irq_trigger", "EAGAIN"): "the client does not read",
    ("vfux_irq_trigger", "ENOENT"): "the client has not enabled the vector",
    ("vfux_irq_trigger", "EAGAIN"): "the client does not read",
    ("vfu_irq_trigger", "others"): "what the client's descriptor does",
    ("vfux_irq_trigger", "others"): "what the client's descriptor does",
    ("vfux_get_dma_access", "ENOENT"): "the guest's address is not memory",
    ("vfux_get_hand_over_fd", "ENOENT"): "nobody may take over",
    ("vfux_get_old_region", "ENOENT"): "there is none",
    ("vfux_get_old_ioeventfd", "ENOENT"): "there are no more",
    ("vfux_get_old_fd", "ENOENT"): "there is none",
}
# What signal handlers may call.
FOR_HANDLERS = {"vfu_irq_trigger", "vfux_irq_trigger", "vfux_irq_clear_pending", "vfux_read_pba"}
# Where there is no context there is no log.
WITHOUT_LOG = {"vfu_create_ctx", "vfux_create_ctx_over_fd", "vfux_create_ctx_replacing", "vfux_create_ctx_taking_over",
               "vfux_create_ctx_taking_over_fd", "vfux_guard_dma"}
# Those that refuse nothing but a context that is NULL or broken.
NEVER = {"dma_sg_size", "vfu_destroy_ctx", "vfu_get_private", "vfu_log", "vfu_pci_get_config_space", "vfu_pci_set_class", "vfu_pci_set_id",
         "vfu_setup_device_quiesce_cb", "vfu_setup_device_reset_cb", "vfux_setup_dma_lost_cb"}
# The system fails: the fault tests make it; the line is that of every failure that says nothing itself.
SYSTEM = {"ENOMEM", "ENFILE", "others"}


def found(name, *args):
    return call(name, *args, ok=lambda offset: offset != 0)


def realized_later(ctx, *args):
    try:
        call(*args[:1], ctx.p, *args[1:])
    finally:
        ctx.realize()


def expect_one_line(ctx, name, number, words):
    lines = [text for level, text in ctx.lines if level <= LOG_ERR]
    assert len(lines) == 1, lines
    assert re.match(rf"{name}\b.*{words}.*: {re.escape(os.strerror(number))}", lines[0]), lines[0]


def named(table):
    return [pytest.param(*entry, id=f"{entry[0]}-{entry[1]}-{n}") for n, entry in enumerate(table)]


def refused(ctx, name, code, words, breaks, given):
    with pytest.raises(Failed) as failed:
        breaks(given)
    number = failed.value.errno
    if code not in (None, "others"):
        assert number == getattr(errno, code)
    # What may not be logged by a signal handler is logged here.
    if name in FOR_HANDLERS:
        assert not [text for level, text in ctx.lines if level <= LOG_ERR]
        try:
            ctx.run()
        except Failed as e:
            assert e.errno == errno.ENOTCONN
    expect_one_line(ctx, name, number, words)


@pytest.mark.parametrize("name, code, words, breaks", named(SETUP))
def test_a_call_that_is_refused_while_a_device_is_set_up(name, code, words, breaks):
    with Ctx(realize=False) as ctx:
        refused(ctx, name, code, words, breaks, ctx)


def running():
    ctx = Ctx(dma=True, migration=True, quiesce=True, realize=False)
    ctx.memory_region(BAR0, 0x1000)
    call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 2)
    ctx.realize()
    return ctx


@pytest.mark.parametrize("name, code, words, breaks", named(RUNNING))
def test_a_call_that_is_refused_while_a_device_runs(name, code, words, breaks):
    with running() as ctx, ctx.connect() as client:
        device = Device(ctx, client)
        del ctx.lines[:]
        refused(ctx, name, code, words, breaks, device)


@pytest.mark.parametrize("name, code, words, side, breaks", named(HAND_OVER))
def test_a_call_that_is_refused_while_a_device_changes_hands(name, code, words, side, breaks):
    given = side()
    try:
        del given.ctx.lines[:]
        refused(given.ctx, name, code, words, breaks, given)
    finally:
        given.destroy()


@pytest.mark.parametrize("name", ["vfu_sgl_read", "vfu_sgl_write"])
def test_memory_of_no_client(name):
    """Regions go with their client, but a register callback of the next one may ask too early."""
    with running() as ctx, ctx.connect() as client:
        device = Device(ctx, client)
        client.close()
        failed = []
        ctx.on_dma_unregister = lambda _info: failed.append(called(name, ctx.p, device.message, 1, device.data, 0))
        fails(errno.ENOTCONN, ctx.run)
        assert [e.errno for e in failed[:1]] == [errno.ENOTCONN]
        assert not [text for level, text in ctx.lines if level <= LOG_ERR and name in text and "lost" in text]


def test_functions_for_any_thread_say_it_once_and_again_in_the_next_context():
    for _ in range(2):
        with running() as ctx, ctx.connect() as client:
            device = Device(ctx, client)
            del ctx.lines[:]
            for _ in range(50):
                fails(errno.EINVAL, ctx.sgl_get, device.message, flags=1)
                fails(errno.EPERM, device.move, "vfu_sgl_write", ctx.sgl(BASE, 8, prot=PROT_READ)[1])
                fails(errno.EINVAL, call, "vfu_irq_trigger", ctx.p, 99)
                ctx.run()
            lines = [text for level, text in ctx.lines if level <= LOG_ERR]
            assert sorted(line.split(":")[0] for line in lines) == ["vfu_irq_trigger", "vfu_sgl_get", "vfu_sgl_write"]


def test_answers_log_nothing():
    with running() as ctx, ctx.connect() as client:
        device = Device(ctx, client)
        del ctx.lines[:]
        fails(errno.EFAULT, ctx.sgl_get, device.message)
        fails(errno.ENOENT, ctx.sgl, BASE + 100 * PAGE, 64)
        fails(errno.EACCES, ctx.sgl, BASE + 2 * PAGE, 64, prot=PROT_WRITE)
        fails(errno.ENOENT, call, "vfu_irq_trigger", ctx.p, 0)
        fails(errno.ENOENT, call, "vfux_irq_trigger", ctx.p, MSIX, 0)
        fails(errno.ENOENT, call, "vfux_get_dma_access", ctx.p, BASE + 100 * PAGE)
        fails(errno.ENOENT, found, "vfu_pci_find_capability", ctx.p, False, 1)
        fails(errno.ENOENT, found, "vfu_pci_find_next_capability", ctx.p, False, 0, 1)
        ctx.run()
        assert not [text for level, text in ctx.lines if level <= 4]


def test_what_the_other_process_does_not_have_logs_nothing():
    new = New()
    try:
        del new.ctx.lines[:]
        fails(errno.ENOENT, call, "vfux_get_hand_over_fd", new.ctx.p)
        fails(errno.ENOENT, old_region, new.ctx, BAR3)
        fails(errno.ENOENT, old_ioeventfd, new.ctx, 1)
        fails(errno.ENOENT, call, "vfux_get_old_fd", new.ctx.p, b"other")
        assert not [text for level, text in new.ctx.lines if level <= 4]
    finally:
        new.destroy()


def test_nobody_listens():
    with running() as ctx, ctx.connect() as client:
        device = Device(ctx, client)
        listen = ctx.cb(LOG_CB, ctx._log)
        call("vfu_setup_log", ctx.p, None, 7)
        del ctx.lines[:]
        for _ in range(2):
            fails(errno.EINVAL, ctx.sgl_get, device.message, flags=1)
            fails(errno.EINVAL, call, "vfu_irq_trigger", ctx.p, 99)
        call("vfu_setup_log", ctx.p, listen, 3)
        ctx.run()
        assert ctx.lines == [], "of what nobody heard nothing is left"
        fails(errno.EINVAL, ctx.sgl_get, device.message, flags=1)
        expect_one_line(ctx, "vfu_sgl_get", errno.EINVAL, "flags is not 0")


# --- the tables are whole ---------------------------------------------------------------------
def test_the_headers_are_read():
    listed = documented()
    assert set(listed) == exported()
    assert listed["vfu_sgl_get"] == {"EINVAL", "EFAULT"} and "EADDRINUSE" in listed["vfu_create_ctx"]


def test_every_errno_of_every_function_has_its_line():
    refusals = SETUP + RUNNING + HAND_OVER
    tried = {entry[:2] for entry in refusals}
    tried |= {(name, code) for name, code in ANSWERS}
    missing = []
    for name, codes in documented().items():
        if name in WITHOUT_LOG:
            continue
        if name in NEVER:
            assert codes <= SYSTEM | {"EINVAL"}, name
            assert name not in {entry[0] for entry in refusals}
            continue
        missing += [(name, code) for code in codes - SYSTEM if (name, code) not in tried]
        assert codes or name in {entry[0] for entry in refusals}, f"{name}: what does it refuse?"
    assert missing == []


def test_nothing_is_in_the_tables_that_the_headers_do_not_list():
    listed = documented()
    for name, code in {entry[:2] for entry in SETUP + RUNNING + HAND_OVER} | set(ANSWERS):
        # vfu_sgl_write fails as vfu_sgl_read does.
        assert code is None or code in listed["vfu_sgl_read" if name == "vfu_sgl_write" else name], (name, code)
