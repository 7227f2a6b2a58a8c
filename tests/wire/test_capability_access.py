"""PCI capabilities: what a client may do to each."""
from capabilities import *


# --- access: in general ---------------------------------------------------------------------

@pytest.mark.parametrize("data, flags, length", [
    (pm(), 0, 2), (msi(), 0, 2), (msix(), 0, 2), (vendor(b"abcdef"), 0, 3), (express(), 0, 2),
    (serial(), CAP_EXTENDED, 4), (ext_vendor(b"abcd"), CAP_EXTENDED, 8)])
def test_write_that_starts_in_the_header_of_a_capability_is_refused(attached, data, flags, length):
    ctx, client = attached
    at = ctx.add_cap(data, 0, flags)
    for i in range(length):
        for n in (1, 2, 4, len(data) - i):
            client.write(CFG, at + i, b"\xff" * min(n, len(data) - i), expect=EPERM)
    assert client.read(CFG, at, len(data)) == data
    alive(client)


def test_reading_gives_the_live_bytes(attached):
    ctx, client = attached
    ctx.add_cap(vendor(b"abcdef"))
    assert client.read(CFG, 0x43, 6) == b"abcdef"
    poke(ctx, 0x43, b"ABC")
    assert client.read(CFG, 0x40, 9) == b"\x09\0\x09ABCdef"


def test_vendor_payload_is_stored(attached):
    ctx, client = attached
    ctx.add_cap(vendor(b"abcdef"))
    for at in range(3, 9):
        client.write(CFG, 0x40 + at, bytes([0x80 + at]))
    assert client.read(CFG, 0x43, 6) == b"\x83\x84\x85\x86\x87\x88"
    client.write(CFG, 0x43, b"uvwxyz")
    assert client.read(CFG, 0x40, 9) == b"\x09\0\x09uvwxyz"


def test_extended_vendor_payload_is_stored(attached):
    ctx, client = attached
    data = ext_vendor(b"abcde")
    assert ctx.add_cap(data, 0, CAP_EXTENDED) == 0x100
    client.write(CFG, 0x104, b"\0\0\0\0", expect=EPERM)
    client.write(CFG, 0x108, b"vwxyz")
    assert client.read(CFG, 0x100, 13) == data[:8] + b"vwxyz"


@pytest.mark.parametrize("callback", [False, True])
def test_read_only_capability_refuses_every_write(callback):
    with make() as ctx:
        if callback:
            ctx.memory_region(CFG, 4096)
        flags = CAP_READONLY | (CAP_CALLBACK if callback else 0)
        ctx.add_cap(vendor(b"abcdef"), 0, flags)
        ctx.add_cap(serial(), 0, flags | CAP_EXTENDED)
        ctx.realize()
        with ctx.connect() as client:
            for at in (*range(0x40, 0x49), *range(0x100, 0x10c)):
                client.write(CFG, at, b"\xff", expect=EPERM)
            client.write(CFG, 0x42, b"\xff" * 4, expect=EPERM)
            assert ctx.events == []
            assert peek(ctx, 0x40, 9) == vendor(b"abcdef")
            client.read(CFG, 0x40, 9)
            assert ctx.events == ([("read", CFG, 0x40, 9)] if callback else [])


def test_callback_capability_is_read_and_written_through_the_callback():
    with make() as ctx:
        mem = ctx.memory_region(CFG, 4096)
        assert ctx.add_cap(vendor(b"abcdef"), 0, CAP_CALLBACK) == 0x40
        assert ctx.add_cap(ext_vendor(b"abcd"), 0, CAP_CALLBACK | CAP_EXTENDED) == 0x100
        ctx.realize()
        with ctx.connect() as client:
            assert client.read(CFG, 0x43, 3) == b"\0\0\0"
            client.write(CFG, 0x43, b"xyz")
            assert client.read(CFG, 0x43, 3) == b"xyz" == mem[0x43:0x46]
            client.write(CFG, 0x40, b"\1")
            client.write(CFG, 0x104, b"\2\3")
            assert client.read(CFG, 0x104, 2) == b"\2\3"
            assert ctx.events == [("read", CFG, 0x43, 3), ("write", CFG, 0x43, 3), ("read", CFG, 0x43, 3),
                                  ("write", CFG, 0x40, 1), ("write", CFG, 0x104, 2), ("read", CFG, 0x104, 2)]
        assert peek(ctx, 0x40, 9) == vendor(b"abcdef"), "the buffer is the device's business"


def test_errno_of_the_callback_is_the_accesss():
    with make() as ctx:
        def access(p, buf, count, offset, is_write):
            c.set_errno(0xbeef)
            return -1
        ctx.setup_region(CFG, 0, access, RW)
        ctx.add_cap(vendor(b"abcdef"), 0, CAP_CALLBACK)
        ctx.realize()
        with ctx.connect() as client:
            client.read(CFG, 0x44, 2, expect=0xbeef)
            client.write(CFG, 0x44, b"ab", expect=0xbeef)
            alive(client)


@pytest.mark.parametrize("count", [2, 4, 8, 32, 0x60])
def test_write_past_the_end_of_a_capability_leaves_what_follows(attached, count):
    ctx, client = attached
    ctx.add_cap(msi(), 0x40)
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    poke(ctx, 0x58, b"\xee" * 0xa8)
    client.write(CFG, 0x50, b"\x11" * 8 + b"\x22" * count, expect=EINVAL)
    assert peek(ctx, 0x58, 0xa8) == b"\xee" * 0xa8
    assert peek(ctx, 0x50, 4) == b"\x11\x11\x11\x11"
    alive(client)


@pytest.mark.parametrize("first, second", [(0x40, 0x4c), (0x4c, 0x40)])
def test_access_across_capabilities_goes_by_offset_not_by_age(attached, first, second):
    ctx, client = attached
    ctx.add_cap(vendor(bytes(9)), first)
    ctx.add_cap(vendor(bytes(9)), second)
    # Bytes 0x43 to 0x4b are stored, then the header of the second refuses.
    client.write(CFG, 0x43, bytes(range(1, 18)), expect=EPERM)
    assert peek(ctx, 0x43, 9) == bytes(range(1, 10))
    assert peek(ctx, 0x4f, 9) == bytes(9)


# --- power management --------------------------------------------------------------------

@pytest.fixture
def power(attached):
    ctx, client = attached
    assert ctx.add_cap(pm(pmc=0x0203, pmcsr=0xc008, bridge=0x40, data=0x17)) == 0x40
    return ctx, client


@pytest.mark.parametrize("value", [b"\1\2", b"\0\0", b"\xff\xff", b"\3\x80"])
def test_pmcsr_is_replaced_literally(power, value):
    ctx, client = power
    client.write(CFG, 0x44, value)
    assert client.read(CFG, 0x44, 2) == value == peek(ctx, 0x44, 2)
    assert client.read(CFG, 0x40, 8) == b"\1\0\3\2" + value + b"\x40\x17"


def test_four_bytes_at_pmcsr_are_accepted(power):
    ctx, client = power
    client.write(CFG, 0x44, b"\1\2\3\4")
    assert client.read(CFG, 0x44, 2) == b"\1\2"
    assert client.read(CFG, 0x46, 2) == b"\x40\x17"


@pytest.mark.parametrize("at, count, errno", [
    (2, 2, ENOTSUP), (2, 1, EINVAL), (2, 4, EINVAL), (3, 1, EINVAL), (3, 2, EINVAL), (4, 1, EINVAL), (4, 3, EINVAL),
    (5, 1, EINVAL), (5, 2, EINVAL), (6, 1, ENOTSUP), (6, 2, EINVAL), (7, 1, ENOTSUP)])
def test_power_management_writes_that_are_refused(power, at, count, errno):
    ctx, client = power
    before = peek(ctx, 0x40, 8)
    client.write(CFG, 0x40 + at, b"\xff" * count, expect=errno)
    assert peek(ctx, 0x40, 8) == before
    alive(client)


# --- MSI ----------------------------------------------------------------------------------

CAPABLE_8 = 3 << 1
WHOLE_MSI = CAPABLE_8 | 1 << 7 | 1 << 8


@pytest.fixture
def message_signalled(attached):
    ctx, client = attached
    assert ctx.add_cap(msi(control=WHOLE_MSI, pending=0xa5a5a5a5, extended_data=0x5a5a)) == 0x40
    return ctx, client


@pytest.mark.parametrize("enable", range(8))
@pytest.mark.parametrize("capable", range(6))
def test_multiple_message_enable_is_bound_by_what_the_device_can(enable, capable):
    with make() as ctx:
        ctx.add_cap(msi(control=capable << 1))
        ctx.realize()
        with ctx.connect() as client:
            ok = enable <= min(capable, 5)
            client.write(CFG, 0x42, struct.pack("<H", enable << 4 | 1), expect=0 if ok else EINVAL)
            want = capable << 1 | (enable << 4 | 1 if ok else 0)
            assert peek16(ctx, 0x42) == want, "all or nothing"


def test_no_more_than_32_messages_even_if_the_device_says_so(attached):
    ctx, client = attached
    ctx.add_cap(msi(control=7 << 1))
    client.write(CFG, 0x42, b"\x50")
    for enable in (6, 7):
        client.write(CFG, 0x42, bytes([enable << 4 | 1]), expect=EINVAL)
        assert peek16(ctx, 0x42) == 7 << 1 | 5 << 4


def test_multiple_message_enable_that_does_not_change_is_not_judged(attached):
    ctx, client = attached
    ctx.add_cap(msi(control=1 << 1 | 6 << 4))
    client.write(CFG, 0x42, bytes([6 << 4 | 1]))
    assert peek16(ctx, 0x42) == 1 << 1 | 6 << 4 | 1


def test_refused_msi_write_changes_nothing_at_all(message_signalled):
    ctx, client = message_signalled
    before = peek(ctx, 0x40, 24)
    client.write(CFG, 0x42, struct.pack("<HIIHHI", 1 | 5 << 4, 0xfffffffc, 1, 2, 0, 3), expect=EINVAL)
    assert peek(ctx, 0x40, 24) == before


def test_msi_registers(message_signalled):
    ctx, client = message_signalled
    client.write(CFG, 0x42, struct.pack("<HIIHHII", 0xffff & ~0x70 | 0x30, *[0xffffffff] * 2, 0xffff, 0xffff,
                                        *[0xffffffff] * 2))
    assert peek(ctx, 0x40, 24) == msi(control=WHOLE_MSI | 1 | 0x30, address=0xfffffffc, upper=0xffffffff,
                                      data=0xffff, extended_data=0x5a5a, mask=0xffffffff, pending=0xa5a5a5a5)


def test_zeros_over_all_of_msi_leave_what_is_fixed(message_signalled):
    ctx, client = message_signalled
    client.write(CFG, 0x44, b"\xff" * 16)
    client.write(CFG, 0x42, b"\1")
    client.write(CFG, 0x42, bytes(22))
    assert peek(ctx, 0x40, 24) == msi(control=WHOLE_MSI, extended_data=0x5a5a, pending=0xa5a5a5a5)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7])
def test_msi_takes_any_width_at_any_offset(message_signalled, width):
    ctx, client = message_signalled
    want = bytearray(peek(ctx, 0x40, 24))
    for at in range(4, 16 - width):
        data = bytes(0x10 * i + at for i in range(width))
        client.write(CFG, 0x40 + at, data)
        for i, byte in enumerate(data):
            want[at + i] = byte if at + i not in (14, 15) else 0x5a
        want[4] &= 0xfc
        assert peek(ctx, 0x40, 24) == want


# --- MSI-X --------------------------------------------------------------------------------

@pytest.fixture
def extended_messages(attached):
    ctx, client = attached
    assert ctx.add_cap(msix(control=0x07ff, table=0x2003, pba=0x3003)) == 0x40
    return ctx, client


def test_only_mask_and_enable_of_msix_change(extended_messages):
    ctx, client = extended_messages
    client.write(CFG, 0x42, b"\xff" * 10)
    assert peek(ctx, 0x40, 12) == msix(control=0xc7ff, table=0x2003, pba=0x3003)
    client.write(CFG, 0x42, bytes(10))
    assert peek(ctx, 0x40, 12) == msix(control=0x07ff, table=0x2003, pba=0x3003)


def test_worked_values_of_msix(attached):
    ctx, client = attached
    ctx.add_cap(msix())
    client.write(CFG, 0x42, b"\xff\xff")
    assert client.read(CFG, 0x42, 2) == b"\x00\xc0"
    client.write(CFG, 0x42, b"\0\0")
    client.write(CFG, 0x43, b"\xc0\xff")
    assert client.read(CFG, 0x42, 10) == b"\0\xc0" + bytes(8)
    client.write(CFG, 0x44, b"\xff")
    assert client.read(CFG, 0x42, 10) == b"\0\xc0" + bytes(8)


@pytest.mark.parametrize("value", [0x00, 0x40, 0x80, 0xc0])
def test_mask_and_enable_of_msix_by_one_byte(extended_messages, value):
    ctx, client = extended_messages
    client.write(CFG, 0x43, bytes([value | 0x3f]))
    assert peek16(ctx, 0x42) == value << 8 | 0x7ff


# --- serial number ------------------------------------------------------------------------

@pytest.mark.parametrize("at, count", [(0, 1), (0, 4), (0, 12), (4, 4), (8, 4), (4, 8), (11, 1)])
def test_serial_number_refuses_every_write(attached, at, count):
    ctx, client = attached
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    client.write(CFG, 0x100 + at, b"\xff" * count, expect=EPERM)
    assert client.read(CFG, 0x100, 12) == serial()
    alive(client)


# --- Express --------------------------------------------------------------------------------

@pytest.fixture
def pcie():
    with make(quiesce=True) as ctx:
        ctx.realize()
        with ctx.connect() as client:
            assert ctx.add_cap(express(flr=True)) == 0x40
            yield ctx, client


DEVCTL = 0x48


@pytest.mark.parametrize("at", [0x28, 0x30])
@pytest.mark.parametrize("value", [0x0000, 0xffff, 0x8001, 0x1234])
def test_second_control_registers_are_stored_as_written(pcie, at, value):
    ctx, client = pcie
    client.write(CFG, 0x40 + at, struct.pack("<H", value))
    assert client.read(CFG, 0x40 + at, 2) == struct.pack("<H", value)
    assert ctx.events == []


@pytest.mark.parametrize("at", [0x10, 0x18, 0x1c])
def test_link_slot_and_root_control_are_stored(pcie, at):
    ctx, client = pcie
    client.write(CFG, 0x40 + at, b"\x43\x21")
    assert client.read(CFG, 0x40 + at, 2) == b"\x43\x21"


def test_slot_control_2_is_accepted_and_dropped(pcie):
    ctx, client = pcie
    client.write(CFG, 0x78, b"\xff\xff")
    assert client.read(CFG, 0x78, 2) == b"\0\0"


@pytest.mark.parametrize("value", [0x0000, 0x7fff, 0x2810])
def test_device_control_is_stored_without_a_quiesce(pcie, value):
    ctx, client = pcie
    client.write(CFG, DEVCTL, struct.pack("<H", value))
    assert peek16(ctx, DEVCTL) == value
    assert ctx.events == []


@pytest.mark.parametrize("at, data", [
    (0x40 + 7, b"\0\xff"), (0x40 + 9, b"\x7f\xff"), (0x4a, b"\xff\xff"), (0x3c, b"\xff")])
def test_write_that_initiates_no_reset_asks_for_no_quiesce(pcie, at, data):
    ctx, client = pcie
    client.write(CFG, at, data)
    assert ctx.events == []


def test_refused_write_below_device_control_asks_for_no_quiesce(pcie):
    ctx, client = pcie
    client.write(CFG, 0x47, b"\xff", expect=EINVAL)
    assert ctx.events == []


def test_without_the_capability_no_write_asks_for_a_quiesce():
    """In particular not one at offset 7, eight above a capability that isn't there."""
    with make(quiesce=True) as ctx:
        ctx.realize()
        with ctx.connect() as client:
            for at in range(0x40):
                client.write(CFG, at, b"\xff")
            client.write(CFG, 7, b"\xff\xff")
            client.write(CFG, 8, b"\xff\xff")
            assert ctx.events == []


@pytest.mark.parametrize("at, data", [
    (DEVCTL, b"\x00\x80"), (DEVCTL, b"\x5f\xa8"), (DEVCTL + 1, b"\x80"), (DEVCTL, b"\x00\x80\x00\x00"),
    (DEVCTL - 1, b"\0\0\x80"), (DEVCTL + 1, b"\x80\0\0")])
def test_function_level_reset_quiesces_once_then_resets(pcie, at, data):
    ctx, client = pcie
    client.write(CFG, at, data)
    assert ctx.events == ["quiesce", ("reset", RESET_FLR)]
    assert peek16(ctx, DEVCTL) & 0x8000 == 0, "the bit never reads 1"
    ctx.events.clear()
    client.write(CFG, DEVCTL, b"\x10\x28")
    assert ctx.events == []


def test_other_bits_of_device_control_are_stored_before_the_reset(pcie):
    ctx, client = pcie
    seen = []
    ctx.on_reset = lambda kind: seen.append(peek16(ctx, DEVCTL))
    client.write(CFG, DEVCTL, b"\x5f\xa8")
    ctx.on_reset = lambda kind: None
    assert seen == [0x285f] and peek16(ctx, DEVCTL) == 0x285f


def test_failure_of_the_reset_is_the_writes(pcie):
    ctx, client = pcie
    ctx.reset_errno = 0xbeef
    client.write(CFG, DEVCTL, b"\x00\x80", expect=0xbeef)
    assert ctx.events == ["quiesce", ("reset", RESET_FLR)]
    ctx.reset_errno = 0
    alive(client)


def test_failure_of_the_quiesce_refuses_the_write(pcie):
    ctx, client = pcie
    ctx.quiesce_errno = ENOTTY
    client.write(CFG, DEVCTL, b"\x01\x80", expect=ENOTTY, count=0)
    ctx.quiesce_errno = 0
    assert ctx.events == ["quiesce"] and peek16(ctx, DEVCTL) == 0
    alive(client)


def test_function_level_reset_with_an_asynchronous_quiesce(pcie):
    ctx, client = pcie
    ctx.quiesce_errno = EBUSY
    msg_id = client.send(REGION_WRITE, struct.pack("<QII", DEVCTL, CFG, 2) + b"\x01\x80")
    fails(EBUSY, ctx.run)
    fails(EBUSY, ctx.run)
    assert ctx.events == ["quiesce"] and client.nothing() and peek16(ctx, DEVCTL) == 0
    ctx.quiesced()
    reply = client.recv()
    assert (reply.msg_id, reply.flags, reply.payload) == (msg_id, F_REPLY, struct.pack("<QII", DEVCTL, CFG, 2))
    assert ctx.events == ["quiesce", ("reset", RESET_FLR)] and peek16(ctx, DEVCTL) == 1
    alive(client)


def test_without_a_reset_callback_the_reset_succeeds():
    with make(reset=False) as ctx:
        ctx.add_cap(express(flr=True))
        ctx.realize()
        with ctx.connect() as client:
            client.write(CFG, DEVCTL, b"\x01\x80")
            assert peek16(ctx, DEVCTL) == 1


def test_function_that_can_not_be_reset_by_itself_refuses_but_stores_the_other_bits():
    with make() as ctx:
        ctx.add_cap(express(flr=False))
        ctx.realize()
        with ctx.connect() as client:
            client.write(CFG, DEVCTL, b"\x5f\xa8", expect=EINVAL)
            assert peek16(ctx, DEVCTL) == 0x285f
            assert ctx.events == []
            alive(client)


@pytest.mark.parametrize("at", [7, 9])
@pytest.mark.parametrize("count, length", [(1, 2), (1, 0), (3, 2), (3, 4)])
def test_odd_write_around_device_control_whose_data_is_not_count_is_refused(pcie, at, count, length):
    ctx, client = pcie
    client.request(REGION_WRITE, struct.pack("<QII", 0x40 + at, CFG, count) + bytes(length), expect=EINVAL)
    assert ("reset", RESET_FLR) not in ctx.events and peek16(ctx, DEVCTL) == 0
    alive(client)


STATUS_BITS = {0x0a: 0x4f, 0x12: 0xc000, 0x1a: 0x11f, 0x32: 0x8020}


@pytest.mark.parametrize("at", STATUS_BITS)
def test_status_registers_are_write_one_to_clear(pcie, at):
    ctx, client = pcie
    for bit in range(16):
        poke(ctx, 0x40 + at, b"\xff\xff")
        client.write(CFG, 0x40 + at, struct.pack("<H", 1 << bit))
        assert peek16(ctx, 0x40 + at) == 0xffff & ~(1 << bit & STATUS_BITS[at])
    poke(ctx, 0x40 + at, b"\xff\xff")
    client.write(CFG, 0x40 + at, b"\0\0")
    assert peek16(ctx, 0x40 + at) == 0xffff


def test_control_and_status_in_one_write(pcie):
    ctx, client = pcie
    poke(ctx, 0x4a, b"\x2f\0")
    client.write(CFG, DEVCTL, b"\x10\x20\x05\0")
    assert peek(ctx, DEVCTL, 4) == b"\x10\x20\x2a\0"
    poke(ctx, 0x52, b"\0\xc0")
    client.write(CFG, 0x50, b"\x03\0\0\x40")
    assert peek(ctx, 0x50, 4) == b"\x03\0\0\x80"


def test_root_status_clears_pme(pcie):
    ctx, client = pcie
    poke(ctx, 0x60, b"\xff\xff\xff\xff")
    client.write(CFG, 0x60, b"\xff\xff\xff\xff")
    assert peek32(ctx, 0x60) == 0xfffeffff


@pytest.mark.parametrize("at", [2, 4, 6, 0x0c, 0x0e, 0x14, 0x16, 0x1e, 0x24, 0x26, 0x2c, 0x34])
def test_express_registers_that_are_no_control_or_status_refuse_writes(pcie, at):
    ctx, client = pcie
    before = peek(ctx, 0x40, 60)
    client.write(CFG, 0x40 + at, b"\xff\xff", expect=EINVAL)
    assert peek(ctx, 0x40, 60) == before
    alive(client)


# --- with a client attached ---------------------------------------------------------------

def test_capabilities_added_with_a_client_attached_work_at_once(attached):
    ctx, client = attached
    client.write(CFG, 0x44, b"\1\2", expect=EINVAL)
    ctx.add_cap(pm())
    client.write(CFG, 0x44, b"\1\2")
    assert client.read(CFG, 0x44, 2) == b"\1\2"
    client.write(CFG, 0x108, b"a", expect=EINVAL)
    ctx.add_cap(ext_vendor(b"z"), 0, CAP_EXTENDED)
    client.write(CFG, 0x108, b"a")
    assert client.read(CFG, 0x108, 1) == b"a"
