"""A context from creation to destruction, its setters, and what it logs."""
import fcntl
import stat

import pytest
from peer import *

LOST, DEVICE = ("reset", RESET_LOST_CONN), ("reset", RESET_DEVICE)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


def create(path, trans=0, flags=ATTACH_NB, pvt=None, dev_type=0):
    return call("vfu_create_ctx", trans, path, flags, pvt, dev_type)


# --- vfu_create_ctx -----------------------------------------------------------

@pytest.mark.parametrize("flags", [2, 3, 4, 1 << 30, -1])
def test_unknown_flags_are_einval_and_nothing_is_created(folder, flags):
    path = folder + "/s"
    fails(errno.EINVAL, create, path.encode(), flags=flags)
    assert not os.path.exists(path)


@pytest.mark.parametrize("trans", [1, 2, 0xffffffff])
def test_a_transport_other_than_the_socket_is_enotsup(folder, trans):
    fails(errno.ENOTSUP, create, (folder + "/s").encode(), trans=trans)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("dev_type", [1, 2, 0xffffffff])
def test_a_device_type_other_than_pci_is_enotsup(folder, dev_type):
    fails(errno.ENOTSUP, create, (folder + "/s").encode(), dev_type=dev_type)
    assert os.listdir(folder) == []


def test_flags_are_judged_before_transport_and_device_type(folder):
    fails(errno.EINVAL, create, (folder + "/s").encode(), trans=7, flags=2, dev_type=7)


def test_no_path_is_einval():
    before = open_fds()
    fails(errno.EINVAL, create, None)
    assert open_fds() == before


@pytest.mark.parametrize("length", [108, 109, 5000])
def test_a_path_of_108_characters_or_more_is_enametoolong(length):
    before = open_fds()
    fails(errno.ENAMETOOLONG, create, b"/tmp/" + b"x" * (length - 5))
    assert open_fds() == before


def test_a_path_of_107_characters_works(folder):
    path = folder + "/" + "x" * (106 - len(folder))
    assert len(path) == 107
    with Ctx(path=path) as ctx, ctx.connect() as client:
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        alive(client)
    assert not os.path.exists(path)


def test_a_path_that_exists_is_eaddrinuse_and_left_alone(folder):
    path = folder + "/s"
    with open(path, "w") as f:
        f.write("someone's")
    before = open_fds()
    fails(errno.EADDRINUSE, create, path.encode())
    assert open_fds() == before
    assert open(path).read() == "someone's"


def test_a_stale_socket_is_not_removed_for_the_caller(folder):
    path = folder + "/s"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
    inode = os.stat(path).st_ino
    fails(errno.EADDRINUSE, create, path.encode())
    assert os.stat(path).st_ino == inode


def test_a_missing_folder_is_enoent(folder):
    fails(errno.ENOENT, create, (folder + "/no/s").encode())


def test_the_path_is_copied(folder):
    path = (folder + "/s").encode()
    buf = c.create_string_buffer(path)
    p = create(c.cast(buf, c.c_char_p))
    c.memset(buf, ord("y"), len(path))
    assert os.path.exists(path)
    lib.vfu_destroy_ctx(p)
    assert not os.path.exists(path)


def test_an_empty_path_is_an_abstract_name():
    with Ctx(path="") as ctx, ctx.connect() as client:
        alive(client)
        fails(errno.EADDRINUSE, create, b"")


def test_the_listening_socket_is_there_at_once(folder):
    p = create((folder + "/s").encode())
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(folder + "/s")
    lib.vfu_destroy_ctx(p)


@pytest.mark.parametrize("pvt", [None, 0x1234, (1 << 64) - 1])
def test_private_data_comes_back_unchanged(folder, pvt):
    p = create((folder + "/s").encode(), pvt=pvt)
    assert lib.vfu_get_private(p) == pvt
    lib.vfu_destroy_ctx(p)


def test_initial_interrupt_counts_regions_and_config_space():
    with Ctx(realize=False) as ctx:
        assert ctx.config() is None
        ctx.realize()
        assert ctx.config() is not None
        client = ctx.connect()
        for index, count in enumerate([0, 0, 0, 1, 1]):
            p = client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
            assert p == struct.pack("<IIII", 16, 1, index, count)
        for index in [BAR0, BAR1, BAR2, BAR3, BAR4, BAR5, ROM, VGA]:
            p = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
            assert p == struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)


def test_initially_there_is_no_dma_and_no_migration():
    with Ctx() as ctx, ctx.connect() as client:
        assert client.map(0, 3) == b""  # succeeds and does nothing
        fails(errno.EINVAL, ctx.sgl, 0, 1)
        client.feature(F_STATE | FEATURE_GET, argsz=16, expect=errno.EINVAL)
        assert "migration" not in client.server


# --- close-on-exec ------------------------------------------------------------

@pytest.mark.parametrize("nonblocking", [True, False])
def test_every_descriptor_of_the_library_is_close_on_exec(nonblocking):
    """Made, accepted or received, by either way of waiting."""
    before = {n for n in open_fds() if os.path.exists(f"/proc/self/fd/{n}")}  # not the listing itself
    with Ctx(nonblocking=nonblocking, dma=True, realize=False) as ctx:
        call("vfu_setup_device_nr_irqs", ctx.p, INTX, 1)
        ctx.realize()
        ctx.poll_fd()
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload({"twin_socket": {"supported": True}}))
        ctx.attach()
        twin = client.recv().fds[0]
        run = None if nonblocking else Background(ctx.run)
        file, mapped, ev = memfd(PAGE), memfd(PAGE), eventfd()
        for data, fd in ((dma_map(1, 0, PAGE, MAP_READ | MAP_FILE_IO), file), (dma_map(2, PAGE, PAGE), mapped),
                         (message(3, SET_IRQS, struct.pack("<IIIII", 20, DATA_EVENTFD | ACTION_TRIGGER, INTX, 0, 1)),
                          ev)):
            client.send_raw(data, [fd])
            if nonblocking:
                assert ctx.run() == 1
            assert client.recv().flags == F_REPLY
            os.close(fd)
        mine = {str(client.sock.fileno()), str(twin)}
        theirs = [int(n) for n in open_fds() - before - mine]
        # listening, epoll and its eventfd, connection, twin, the files and the client's eventfd
        theirs = [fd for fd in theirs if os.path.exists(f"/proc/self/fd/{fd}")]
        assert len(theirs) == 8
        for fd in theirs:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, os.readlink(f"/proc/self/fd/{fd}")
        os.close(twin)
        client.close()
        if run:
            fails(errno.ENOTCONN, run.result)


# --- vfu_realize_ctx ----------------------------------------------------------

def test_realizing_twice_is_success_and_does_nothing():
    with Ctx(realize=False) as ctx:
        assert ctx.realize() == 0
        p = ctx.config()
        before = c.string_at(p, 256)
        assert ctx.realize() == 0
        assert ctx.config() == p
        assert c.string_at(p, 256) == before


def test_without_pci_init_the_config_region_is_256_bytes_readable_and_writable():
    with Ctx() as ctx, ctx.connect() as client:
        p = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, CFG, 0, 0, 0))
        assert p == struct.pack("<IIIIQQ", 32, 3, CFG, 0, 256, 0)
        assert len(client.read(CFG, 0, 256)) == 256
        client.read(CFG, 0, 257, expect=errno.EINVAL)


def test_realize_puts_bar_types_interrupt_pin_and_capability_bit_into_the_header():
    with Ctx(realize=False) as ctx:
        ctx.pci_init()
        ctx.setup_region(BAR0, 4096, flags=RW)
        ctx.setup_region(BAR1, 4096, flags=RW | MEM)
        ctx.setup_region(BAR2, 4096, flags=RW | MEM | BITS_64)
        ctx.setup_region(BAR4, 4096, flags=RW | MEM | BITS_64 | PREFETCH)
        call("vfu_setup_device_nr_irqs", ctx.p, INTX, 1)
        assert ctx.add_cap(b"\x01\0" + bytes(6)) == 0x40
        ctx.realize()
        config = c.string_at(ctx.config(), 4096)
        bars = struct.unpack("<6I", config[0x10:0x28])
        assert bars == (1, 0, 4, 0, 0xc, 0)
        assert config[0x3d] == 1
        assert config[0x06:0x08] == b"\x10\x00"


def test_without_intx_and_capabilities_pin_and_status_stay_zero():
    with Ctx() as ctx:
        config = c.string_at(ctx.config(), 256)
        assert config[0x3d] == 0
        assert config[0x06:0x08] == b"\0\0"
        assert struct.unpack("<6I", config[0x10:0x28]) == (1,) * 6


def test_setting_up_remains_possible_with_a_client_attached():
    with Ctx(dma=True, quiesce=True, realize=False) as ctx:
        ctx.pci_init()
        ctx.realize()
        client = ctx.connect()
        mem = ctx.memory_region(BAR0, 64)
        client.write(BAR0, 3, b"abc")
        assert mem[3:6] == b"abc"
        assert ctx.add_cap(b"\x01\0" + bytes(6)) == 0x40
        assert client.read(CFG, 0x40, 1) == b"\x01"
        call("vfu_create_ioeventfd", ctx.p, BAR0, -1, 0, 8, 0, 0, -1, 0)
        p = client.request(GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, BAR0, 0))
        assert p == struct.pack("<IIII", 64, 0, BAR0, 1)
        assert ctx.setup_migration() == 0
        assert client.get_state() == S_RUNNING
        other = []
        call("vfu_setup_device_reset_cb", ctx.p, ctx.cb(RESET_CB, lambda _ctx, kind: other.append(kind) or 0))
        client.request(DEVICE_RESET)
        assert other == [RESET_DEVICE]
        assert ctx.events.count("quiesce") == 1


# --- vfu_attach_ctx -----------------------------------------------------------

def test_attaching_twice_is_einval_and_leaves_the_connection():
    with Ctx() as ctx, ctx.connect() as client:
        fails(errno.EINVAL, ctx.attach)
        alive(client)


def test_a_nonblocking_attach_without_a_client_is_eagain():
    with Ctx() as ctx:
        for _ in range(3):
            fails(errno.EAGAIN, ctx.attach)
        with ctx.connect() as client:
            alive(client)


def test_a_blocking_attach_waits_for_a_client():
    with Ctx(nonblocking=False) as ctx:
        attach = Background(ctx.attach)
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload())
        assert client.recv().flags == F_REPLY
        assert attach.result() == 0
        client.close()
        lost(ctx)


def test_a_signal_ends_waiting_for_a_client_with_eintr():
    with Ctx(nonblocking=False) as ctx:
        attach = Background(ctx.attach)
        attach.interrupt()
        fails(errno.EINTR, attach.result)
        client = ctx.connect()  # nothing is broken
        client.close()


def test_a_signal_ends_waiting_for_the_version_message_with_eintr_and_keeps_what_arrived():
    with Ctx(nonblocking=False) as ctx:
        client = ctx.connect(attach=False)
        version = message(9, VERSION, version_payload({}))
        client.send_raw(version[:21])
        attach = Background(ctx.attach)
        attach.interrupt()
        fails(errno.EINTR, attach.result)
        client.send_raw(version[21:])
        assert ctx.attach() == 0
        reply = client.recv()
        assert (reply.msg_id, reply.flags) == (9, F_REPLY)
        client.close()


def test_a_failed_attach_closes_that_connection_and_the_next_client_is_taken():
    with Ctx() as ctx:
        before = open_fds()
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload(major=1))
        fails(errno.EINVAL, ctx.attach)
        client.recv()
        assert end_of_file(client.sock)
        client.close()
        assert open_fds() == before
        with ctx.connect() as client:
            alive(client)


# --- vfu_destroy_ctx ----------------------------------------------------------

def test_destroying_nothing_is_accepted():
    lib.vfu_destroy_ctx(None)


def test_destroy_removes_regions_in_order_then_resets_once_and_never_quiesces():
    ctx = Ctx(dma=True, quiesce=True)
    client = ctx.connect()
    for addr in (3 * PAGE, PAGE, 7 * PAGE):
        client.map(addr, PAGE)
    del ctx.events[:]
    ctx.destroy()
    assert ctx.events == [("unregister", PAGE, PAGE), ("unregister", 3 * PAGE, PAGE),
                          ("unregister", 7 * PAGE, PAGE), LOST]
    assert end_of_file(client.sock)
    assert not os.path.exists(ctx.path)
    client.close()


def test_destroy_resets_even_if_no_client_ever_attached_and_ignores_the_result():
    ctx = Ctx(quiesce=True)
    ctx.reset_errno = errno.EIO
    ctx.destroy()
    assert ctx.events == [LOST]


def test_destroy_of_a_context_that_was_never_realized():
    ctx = Ctx(realize=False)
    ctx.destroy()
    assert ctx.events == [LOST]
    assert not os.path.exists(ctx.path)


def test_destroy_closes_every_descriptor_of_the_library():
    before = open_fds()
    ctx = Ctx(dma=True, realize=False)
    call("vfu_setup_device_nr_irqs", ctx.p, MSIX, 4)
    ctx.realize()
    ctx.poll_fd()
    client = ctx.connect(caps={"twin_socket": {"supported": True}})
    for i in range(3):
        file = memfd(PAGE)
        client.map(i * PAGE, PAGE, fd=file)
        os.close(file)
    events = [eventfd() for _ in range(4)]
    client.set_irqs(MSIX, DATA_EVENTFD | ACTION_TRIGGER, 0, 4, fds=events)
    [os.close(fd) for fd in events]
    ctx.destroy()
    assert end_of_file(client.twin)
    client.close()
    assert open_fds() == before


def test_destroy_leaves_the_callers_descriptors_alone():
    region, event = memfd(PAGE), eventfd()
    ctx = Ctx()
    ctx.setup_region(BAR0, PAGE, flags=RW, fd=region)
    call("vfu_create_ioeventfd", ctx.p, BAR0, event, 0, 8, 0, 0, -1, 0)
    ctx.destroy()
    os.fstat(region), os.fstat(event)
    os.close(region), os.close(event)


def test_destroy_releases_a_message_that_waits_for_the_device_to_quiesce():
    before = open_fds()
    ctx = Ctx(dma=True, quiesce=True)
    client = ctx.connect()
    ctx.quiesce_errno = errno.EBUSY
    file = memfd(PAGE)
    client.send_raw(dma_map(1, 0, PAGE), [file])
    os.close(file)
    fails(errno.EBUSY, ctx.run)
    ctx.destroy()
    assert ctx.events == ["quiesce", LOST]
    assert end_of_file(client.sock)
    client.close()
    assert open_fds() == before


def test_destroy_with_dirty_logging_active_and_regions_mapped():
    before = open_fds()
    ctx = Ctx(dma=True, migration=True)
    client = ctx.connect()
    file = memfd(4 * PAGE)
    client.map(0, 4 * PAGE, fd=file)
    os.close(file)
    client.log_start()
    ctx.destroy()
    assert ctx.events == [("register", 0, 4 * PAGE), ("unregister", 0, 4 * PAGE), LOST]
    client.close()
    assert open_fds() == before


def test_destroy_takes_out_unread_messages_so_the_client_sees_end_of_file_and_no_reset():
    before = open_fds()
    ctx = Ctx(dma=True)
    client = ctx.connect()
    file = memfd(PAGE)
    for i in range(50):
        client.send_raw(dma_map(i, i * PAGE, PAGE), [file])
    os.close(file)
    ctx.destroy()
    assert ctx.events == [LOST]
    assert end_of_file(client.sock)
    client.close()
    assert open_fds() == before


@pytest.mark.parametrize("how", ["destroy", "loss"])
@pytest.mark.parametrize("at_a_time", [1, 128, 32768])
def test_a_client_that_sends_all_the_time_sees_end_of_file_and_no_reset(how, at_a_time):
    """Nothing comes in between what was taken out last and the close."""
    for _ in range(20):
        ctx = Ctx()
        client = ctx.connect()
        sent = []

        def send():
            data = info(1) * at_a_time
            try:
                while True:
                    client.sock.sendall(data)
                    sent.append(1)
            except BrokenPipeError:
                return "no more"
        if how == "loss":
            client.send_raw(header(1, GET_INFO, 7))
        sender = Background(send)
        if at_a_time == 1:
            while not sent:
                pass
        if how == "loss":
            while ctx.run() != 0:
                pass
            assert client.recv().error == errno.EINVAL
        else:
            ctx.destroy()
        assert sender.result() == "no more"
        assert end_of_file(client.sock)
        client.close()
        ctx.destroy()


@pytest.mark.parametrize("nonblocking", [True, False])
def test_a_client_that_is_still_waiting_sees_end_of_file_and_no_reset(nonblocking):
    before = open_fds()
    ctx = Ctx(nonblocking=nonblocking)
    client = ctx.connect(attach=False)
    client.send(VERSION, version_payload(), [ctx.poll_fd()])
    ctx.destroy()
    assert end_of_file(client.sock)
    client.close()
    assert open_fds() == before


@pytest.mark.parametrize("length", [0, 5, 16, 25])
def test_destroy_of_a_context_whose_client_is_still_negotiating(length):
    before = open_fds()
    ctx = Ctx(quiesce=True, dma=True)
    ctx.poll_fd()
    client = ctx.connect(attach=False)
    version = message(1, VERSION, version_payload({}))
    if length:
        client.send_raw(version[:length], [ctx.poll_fd()])
    fails(errno.EAGAIN, ctx.attach)
    client.send_raw(version[length:] + info(2))  # comes too late to be looked at
    ctx.destroy()
    assert ctx.events == [LOST]
    assert end_of_file(client.sock)
    client.close()
    assert open_fds() == before


def test_destroy_unlinks_only_the_socket_it_made(folder):
    path = folder + "/s"
    ctx = Ctx(path=path)
    os.unlink(path)
    other = Ctx(path=path)
    ctx.destroy()
    assert os.path.exists(path)
    with other.connect() as client:
        alive(client)
    other.destroy()
    assert not os.path.exists(path)


def test_destroy_when_the_path_has_gone_already(folder):
    ctx = Ctx(path=folder + "/s")
    os.unlink(folder + "/s")
    ctx.destroy()
    assert ctx.events == [LOST]


# --- setters ------------------------------------------------------------------

@pytest.mark.parametrize("level", [-1, 8, 1000, -(1 << 31)])
def test_a_log_level_outside_0_to_7_is_einval(level):
    with Ctx(log=False) as ctx:
        fails(errno.EINVAL, call, "vfu_setup_log", ctx.p, ctx.cb(LOG_CB, ctx._log), level)


@pytest.mark.parametrize("level", range(8))
def test_log_levels_0_to_7_are_taken(level):
    with Ctx(log=False) as ctx:
        assert call("vfu_setup_log", ctx.p, ctx.cb(LOG_CB, ctx._log), level) == 0


def test_no_log_function_turns_logging_off():
    with Ctx() as ctx:
        lib.vfu_log(c.c_void_p(ctx.p), 3, b"one")
        assert ctx.lines[-1] == (3, "one")
        call("vfu_setup_log", ctx.p, None, 7)
        del ctx.lines[:]
        lib.vfu_log(c.c_void_p(ctx.p), 3, b"two")
        with ctx.connect() as client:
            alive(client)
        assert ctx.lines == []


def test_without_a_reset_callback_a_reset_succeeds():
    with Ctx(reset=False) as ctx, ctx.connect() as client:
        assert client.request(DEVICE_RESET) == b""
        assert call("vfu_setup_device_reset_cb", ctx.p, None) == 0
        assert client.request(DEVICE_RESET) == b""
        assert ctx.events == []


def test_a_quiesce_callback_can_be_taken_away():
    with Ctx(quiesce=True) as ctx, ctx.connect() as client:
        client.request(DEVICE_RESET)
        lib.vfu_setup_device_quiesce_cb(ctx.p, None)
        client.request(DEVICE_RESET)
        assert ctx.events == ["quiesce", DEVICE, DEVICE]


@pytest.mark.parametrize("kind", [5, 6, 0xffffffff])
def test_an_unknown_interrupt_type_is_einval(kind):
    with Ctx(realize=False) as ctx:
        fails(errno.EINVAL, call, "vfu_setup_device_nr_irqs", ctx.p, kind, 1)
        fails(errno.EINVAL, call, "vfu_setup_irq_state_callback", ctx.p, kind, None)


@pytest.mark.parametrize("kind", range(5))
def test_the_number_of_interrupts_is_stored(kind):
    with Ctx(realize=False) as ctx:
        assert call("vfu_setup_device_nr_irqs", ctx.p, kind, 17) == 0
        assert call("vfu_setup_irq_state_callback", ctx.p, kind, None) == 0
        ctx.realize()
        with ctx.connect() as client:
            p = client.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, kind, 0))
            assert p == struct.pack("<IIII", 16, 1, kind, 17)


def test_dma_callbacks_may_be_missing():
    with Ctx() as ctx, ctx.connect() as client:
        assert call("vfu_setup_device_dma", ctx.p, 4, None, None) == 0
        client.map(0, PAGE)
        client.map(0, 2 * PAGE, expect=errno.EEXIST)  # it is there
        client.unmap(0, PAGE)
        client.unmap(0, PAGE, expect=errno.ENOENT)


def test_no_migration_callbacks_is_einval():
    with Ctx() as ctx:
        fails(errno.EINVAL, call, "vfu_setup_device_migration_callbacks", ctx.p, None)


def test_ids_and_class_before_pci_init_are_ignored():
    with Ctx(realize=False) as ctx:
        lib.vfu_pci_set_id(ctx.p, 1, 2, 3, 4)
        lib.vfu_pci_set_class(ctx.p, 5, 6, 7)
        assert ctx.config() is None
        ctx.pci_init()
        assert c.string_at(ctx.config(), 64) == bytes(64)
        lib.vfu_pci_set_id(ctx.p, 0x1111, 0x2222, 0x3333, 0x4444)
        lib.vfu_pci_set_class(ctx.p, 5, 6, 7)
        config = c.string_at(ctx.config(), 64)
        assert config[:4] == b"\x11\x11\x22\x22"
        assert config[9:12] == bytes([7, 6, 5])
        assert config[0x2c:0x30] == b"\x33\x33\x44\x44"


# --- logging ------------------------------------------------------------------

def log(ctx, level, fmt, *args):
    lib.vfu_log(c.c_void_p(ctx.p), level, fmt, *args)


@pytest.fixture
def logging():
    with Ctx() as ctx:
        del ctx.lines[:]
        yield ctx


@pytest.mark.parametrize("configured", range(8))
def test_only_levels_up_to_the_configured_one_are_logged(logging, configured):
    call("vfu_setup_log", logging.p, logging.cb(LOG_CB, logging._log), configured)
    del logging.lines[:]
    for level in range(8):
        log(logging, level, b"%d", level)
    assert logging.lines == [(level, str(level)) for level in range(configured + 1)]


def test_before_a_log_function_is_set_nothing_is_logged():
    with Ctx(log=False) as ctx:
        log(ctx, 0, b"lost")
        assert ctx.lines == []


def test_the_format_is_that_of_printf(logging):
    log(logging, 7, b"%s-%d-%#x-%%", b"one", -2, 3)
    assert logging.lines == [(7, "one--2-0x3-%")]


@pytest.mark.parametrize("length,kept", [(0, 0), (1, 1), (8190, 8190), (8191, 8191), (8192, 8191), (100000, 8191)])
def test_a_message_is_cut_to_8191_characters(logging, length, kept):
    log(logging, 7, b"%s", b"x" * length)
    assert logging.lines == [(7, "x" * kept)]


def test_a_message_cut_inside_a_character_is_still_utf8(logging):
    log(logging, 7, b"%s", ("x" * 8190 + "\u00e4" * 9).encode())
    (_, text), = logging.lines  # the callback decodes it
    assert text.startswith("x" * 8190)
    assert len(text.encode()) <= 8191


def test_no_format_is_ignored(logging):
    log(logging, 0, None)
    assert logging.lines == []


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EAGAIN, 0])
def test_m_is_the_text_of_errno_and_errno_is_preserved_around_the_callback(logging, number):
    def clobber(_ctx, _level, text):
        logging.lines.append(text)
        c.set_errno(errno.EDOM)
    call("vfu_setup_log", logging.p, logging.cb(LOG_CB, clobber), 7)
    del logging.lines[:]
    c.set_errno(number)
    log(logging, 7, b"%m")
    assert c.get_errno() == number
    assert logging.lines == [os.strerror(number).encode()]


def test_an_empty_poll_is_not_logged():
    with Ctx() as ctx, ctx.connect():
        del ctx.lines[:]
        for _ in range(3):
            assert ctx.run() == 0
        assert ctx.lines == []


def test_the_clients_json_is_never_logged():
    with Ctx() as ctx:
        secret = "Zanzibar"
        ctx.connect(version=version_payload({secret: secret, "max_msg_fds": 3})).close()
        lost(ctx, 1)
        for text in ('{"capabilities": {"max_msg_fds": "Zanzibar"}}\0', '{"Zanzibar"\0', 'Zanzibar'):
            client = ctx.connect(attach=False)
            client.send(VERSION, version_payload(text=text.encode()))
            fails(errno.EINVAL, ctx.attach)
            client.close()
        assert ctx.lines
        assert not any(secret in text for _, text in ctx.lines)


def test_no_message_ends_with_a_line_feed():
    with Ctx(dma=True, quiesce=True) as ctx:
        client = ctx.connect()
        client.map(0, PAGE)
        client.map(0, 2 * PAGE, expect=errno.EEXIST)
        client.request(DEVICE_RESET)
        client.request(99, b"x", expect=errno.EINVAL)
        client.close()
        lost(ctx)
        assert ctx.lines
        assert not [text for _, text in ctx.lines if text.endswith("\n")]


LEVELS = {
    "a refused command": (3, lambda client: client.request(99, b"x", expect=errno.EINVAL)),
    "a refused header": (3, lambda client: client.request(GET_INFO, expect=errno.EINVAL, count=0)),
    "a bad region": (3, lambda client: client.read(BAR5, 0, 1, expect=errno.EINVAL)),
    "unmap of an unknown region": (4, lambda client: client.unmap(0, PAGE, expect=errno.ENOENT)),
    "a device reset": (6, lambda client: client.request(DEVICE_RESET)),
    "a region access": (7, lambda client: client.read(BAR0, 0, 1)),
    "a DMA map": (7, lambda client: client.map(0, PAGE)),
}


@pytest.mark.parametrize("what", LEVELS)
def test_levels(what):
    level, request = LEVELS[what]
    with Ctx(dma=True) as ctx:
        ctx.memory_region(BAR0, 16)
        client = ctx.connect()
        del ctx.lines[:]
        request(client)
        assert level in [seen for seen, _ in ctx.lines]


def test_requests_that_succeed_log_nothing_at_the_default_level():
    with Ctx(dma=True, quiesce=True) as ctx:
        ctx.memory_region(BAR0, 16)
        client = ctx.connect()
        call("vfu_setup_log", ctx.p, ctx.cb(LOG_CB, ctx._log), 3)
        del ctx.lines[:]
        client.read(BAR0, 0, 4)
        client.write(BAR0, 0, b"abcd")
        client.map(0, PAGE)
        client.unmap(0, PAGE)
        client.request(DEVICE_RESET)
        alive(client)
        assert ctx.lines == []


def test_a_lost_connection_is_logged_as_information():
    with Ctx() as ctx:
        ctx.connect().close()
        del ctx.lines[:]
        lost(ctx, 1)
        assert 6 in [level for level, _ in ctx.lines]
