"""Every refusal of every public function is one line at LOG_ERR, which names the function and the rule.

What there is to refuse is read from the public headers: an errno that a function's description lists, and a function
that fails in no way, have to be in one of the tables here. So none can be added without its line.
"""
import ctypes
import pathlib
import re

import pytest
import ext
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
    tried = {entry[:2] for entry in SETUP + RUNNING}
    tried |= {(name, code) for name, code in ANSWERS}
    missing = []
    for name, codes in documented().items():
        if name in WITHOUT_LOG:
            continue
        if name in NEVER:
            assert codes <= SYSTEM | {"EINVAL"}, name
            assert name not in {entry[0] for entry in SETUP + RUNNING}
            continue
        missing += [(name, code) for code in codes - SYSTEM if (name, code) not in tried]
        assert codes or name in {entry[0] for entry in SETUP + RUNNING}, f"{name}: what does it refuse?"
    assert missing == []


def test_nothing_is_in_the_tables_that_the_headers_do_not_list():
    listed = documented()
    for name, code in {entry[:2] for entry in SETUP + RUNNING} | set(ANSWERS):
        # vfu_sgl_write fails as vfu_sgl_read does.
        assert code is None or code in listed["vfu_sgl_read" if name == "vfu_sgl_write" else name], (name, code)
