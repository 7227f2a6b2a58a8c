"""PCI capabilities: where they go, how they are linked and found."""
from capabilities import *


# --- adding: what is refused ------------------------------------------------------------

@pytest.mark.parametrize("flags", [8, 999, 1 << 30, -1])
def test_unknown_flags_are_refused(ctx, flags):
    fails(EINVAL, ctx.add_cap, pm(), 0, flags)
    assert chain(ctx) == []


def test_callback_flag_without_a_config_callback_is_refused(ctx):
    fails(EINVAL, ctx.add_cap, pm(), 0, CAP_CALLBACK)
    ctx.memory_region(CFG, 4096)
    assert ctx.add_cap(pm(), 0, CAP_CALLBACK) == 0x40


@pytest.mark.parametrize("kind, ok", [(CONVENTIONAL, False), (PCI_X_1, False), (PCI_X_2, True), (EXPRESS, True)])
def test_extended_capabilities_need_an_extended_space(kind, ok):
    with make(kind) as ctx:
        if ok:
            assert ctx.add_cap(serial(), 0, CAP_EXTENDED) == 0x100
        else:
            fails(EINVAL, ctx.add_cap, serial(), 0, CAP_EXTENDED)


STANDARD_IDS = {PM, MSI, VENDOR, EXP, MSIX}
EXTENDED_IDS = {EXT_SERIAL, EXT_VENDOR}


def test_every_unknown_standard_id_is_refused(ctx):
    for cap_id in set(range(256)) - STANDARD_IDS:
        fails(ENOTSUP, ctx.add_cap, bytes([cap_id, 0]) + bytes(254))
    assert chain(ctx) == []


def test_every_unknown_extended_id_is_refused(ctx):
    for cap_id in [*(set(range(256)) - EXTENDED_IDS), 0x1003, 0x100b, 0xffff]:
        fails(ENOTSUP, ctx.add_cap, struct.pack("<HH", cap_id, 1) + bytes(252), 0, CAP_EXTENDED)
    assert ext_chain(ctx) == []


@pytest.mark.parametrize("pos", [1, 0x3c, 0x3f])
def test_position_in_the_header_is_refused(ctx, pos):
    fails(EINVAL, ctx.add_cap, pm(), pos)


@pytest.mark.parametrize("kind, pos, data", [
    (CONVENTIONAL, 256, pm()), (CONVENTIONAL, 252, pm()), (CONVENTIONAL, 1 << 32, pm()),
    (CONVENTIONAL, (1 << 64) - 4, pm()), (EXPRESS, 0x100, pm()), (EXPRESS, 0x200, pm()),
    (EXPRESS, 0xfc, pm()), (EXPRESS, 4096, pm()), (EXPRESS, 0xc8, express()),
])
def test_standard_capability_has_to_end_in_the_first_256_bytes(kind, pos, data):
    with make(kind) as ctx:
        fails(EINVAL, ctx.add_cap, data, pos)
        assert chain(ctx) == []


@pytest.mark.parametrize("pos", [4094, 4096, 4088, 1 << 32, (1 << 64) - 8])
def test_extended_capability_has_to_end_in_the_space(ctx, pos):
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    fails(EINVAL, ctx.add_cap, serial(), pos, CAP_EXTENDED)
    assert ext_chain(ctx) == [0x100]


@pytest.mark.parametrize("pos, data", [(0xf8, pm()), (0xc4, express()), (0xe8, msi())])
@pytest.mark.parametrize("kind", [CONVENTIONAL, EXPRESS])
def test_capability_may_end_exactly_at_the_end_of_its_room(kind, pos, data):
    with make(kind) as ctx:
        assert ctx.add_cap(data, pos) == pos
        assert peek(ctx, pos, len(data)) == data


def test_extended_capability_may_end_exactly_at_the_end(ctx):
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    assert ctx.add_cap(serial(7), 4096 - 12, CAP_EXTENDED) == 4084
    assert peek(ctx, 4084, 12) == serial(7)


@pytest.mark.parametrize("pos", [0x41, 0x42, 0x43, 0x4a])
def test_misaligned_position_is_refused(ctx, pos):
    fails(EINVAL, ctx.add_cap, pm(), pos)


@pytest.mark.parametrize("pos", [0x201, 0x202, 0x203])
def test_misaligned_extended_position_is_refused(ctx, pos):
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    fails(EINVAL, ctx.add_cap, serial(), pos, CAP_EXTENDED)


@pytest.mark.parametrize("pos", [1, 0x40, 0xfc])
def test_extended_capability_below_0x100_is_refused(ctx, pos):
    fails(EINVAL, ctx.add_cap, serial(), pos, CAP_EXTENDED)


@pytest.mark.parametrize("pos", [0x104, 0x200, 0x800])
def test_first_extended_capability_has_to_be_at_0x100(ctx, pos):
    fails(EINVAL, ctx.add_cap, serial(), pos, CAP_EXTENDED)
    assert ctx.add_cap(serial(), 0x100, CAP_EXTENDED) == 0x100


@pytest.mark.parametrize("size", [0, 1, 2])
def test_vendor_capability_smaller_than_its_header_is_refused(ctx, size):
    fails(EINVAL, ctx.add_cap, vendor(b"abc", size=size))
    assert chain(ctx) == []
    assert ctx.add_cap(vendor(b"")) == 0x40


@pytest.mark.parametrize("size", [0, 4, 7])
def test_extended_vendor_capability_smaller_than_its_header_is_refused(ctx, size):
    fails(EINVAL, ctx.add_cap, ext_vendor(b"abcd", size=size), 0, CAP_EXTENDED)
    assert ext_chain(ctx) == []
    assert ctx.add_cap(ext_vendor(b""), 0, CAP_EXTENDED) == 0x100


def test_context_without_config_space_is_refused():
    with make(None) as ctx:
        fails(EINVAL, ctx.add_cap, pm())
        fails(EINVAL, ctx.add_cap, pm(), 0x40)


def overlaps(start, size, other, other_size):
    return start < other + other_size and other < start + size


@pytest.mark.parametrize("pos", range(0x40, 0xf8, 4))
def test_overlap_is_refused_and_touching_is_not(pos):
    with make() as ctx:
        ctx.add_cap(vendor(bytes(17)), 0x80)  # 20 bytes
        if overlaps(pos, 8, 0x80, 20):
            fails(EINVAL, ctx.add_cap, pm(), pos)
            assert chain(ctx) == [0x80]
        else:
            assert ctx.add_cap(pm(), pos) == pos
            assert chain(ctx) == [0x80, pos]


@pytest.mark.parametrize("pos", range(0x100, 0x240, 4))
def test_extended_overlap_is_refused_and_touching_is_not(pos):
    with make() as ctx:
        ctx.add_cap(serial(), 0x100, CAP_EXTENDED)
        ctx.add_cap(ext_vendor(bytes(20)), 0x200, CAP_EXTENDED)  # 28 bytes
        if overlaps(pos, 12, 0x100, 12) or overlaps(pos, 12, 0x200, 28):
            fails(EINVAL, ctx.add_cap, serial(), pos, CAP_EXTENDED)
        else:
            assert ctx.add_cap(serial(), pos, CAP_EXTENDED) == pos


# --- placement and links ---------------------------------------------------------------

def test_automatic_places_then_given_ones(ctx):
    """The layout of which most of the search cases speak."""
    assert ctx.add_cap(pm()) == 0x40
    assert ctx.add_cap(vendor(b"abc")) == 0x48
    assert ctx.add_cap(vendor(b"def")) == 0x50
    assert ctx.add_cap(vendor(b"ghi"), 0x80) == 0x80
    assert ctx.add_cap(vendor(b"jkl"), 0x90) == 0x90
    assert chain(ctx) == [0x40, 0x48, 0x50, 0x80, 0x90]
    assert peek(ctx, 0x48, 6) == b"\x09\x50\x06abc"
    assert peek(ctx, 0x90, 6) == b"\x09\x00\x06jkl"


def test_automatic_extended_places_then_given_ones(ctx):
    add = lambda data, pos=0: ctx.add_cap(data, pos, CAP_EXTENDED)
    assert add(serial(0x1122334455667788)) == 0x100
    assert add(ext_vendor(b"abcde")) == 0x10c
    assert add(ext_vendor(b"abcde")) == 0x11c
    assert add(ext_vendor(b"abcde"), 0x200) == 0x200
    assert add(ext_vendor(b"abcde"), 0x258) == 0x258
    assert ext_chain(ctx) == [0x100, 0x10c, 0x11c, 0x200, 0x258]
    assert peek(ctx, 0x100, 12) == struct.pack("<IQ", 0x10c << 20 | 1 << 16 | 3, 0x1122334455667788)
    assert peek(ctx, 0x258, 13) == struct.pack("<II", 1 << 16 | 0xb, 13 << 20 | 0x1234) + b"abcde"


def test_new_capability_is_linked_at_the_end_of_the_chain_not_by_offset(ctx):
    ctx.add_cap(pm(), 0xa0)
    ctx.add_cap(vendor(b"abc"), 0x60)
    ctx.add_cap(msix(), 0xc0)
    ctx.add_cap(vendor(b"def"), 0x40)
    assert chain(ctx) == [0xa0, 0x60, 0xc0, 0x40]


def test_new_extended_capability_is_linked_at_the_end_of_the_chain(ctx):
    for pos in (0x100, 0x400, 0x200, 0x300):
        ctx.add_cap(serial(), pos, CAP_EXTENDED)
    assert ext_chain(ctx) == [0x100, 0x400, 0x200, 0x300]


def test_link_of_the_new_capability_is_zero_whatever_the_data_held(ctx):
    ctx.add_cap(pm(link=0x77))
    assert peek(ctx, 0x40, 2) == b"\1\0"
    ctx.add_cap(struct.pack("<IQ", 0xfff << 20 | 1 << 16 | 3, 0), 0, CAP_EXTENDED)
    assert peek32(ctx, 0x100) == 1 << 16 | 3


def test_the_version_of_an_extended_capability_stays(ctx):
    ctx.add_cap(struct.pack("<IQ", 0xf << 16 | 3, 0), 0, CAP_EXTENDED)
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    assert peek32(ctx, 0x100) == 0x10c << 20 | 0xf << 16 | 3


def test_both_lists_are_independent(ctx):
    assert ctx.add_cap(serial(), 0, CAP_EXTENDED) == 0x100
    assert ctx.add_cap(pm()) == 0x40
    assert ctx.add_cap(serial(), 0, CAP_EXTENDED) == 0x10c
    assert (chain(ctx), ext_chain(ctx)) == ([0x40], [0x100, 0x10c])


@pytest.mark.parametrize("name, data", [("pm", pm(1, 2, 3, 4)), ("msi", msi(2, 4, 5, 6, 7, 8, 9)),
                                        ("msix", msix(1, 2, 3)), ("vendor", vendor(b"0123456789")),
                                        ("express", express(registers=[(8, bytes(range(1, 53)))]))])
def test_the_full_size_of_the_capability_is_copied(ctx, name, data):
    poke(ctx, 0x40, b"\xee" * 0xc0)
    assert ctx.add_cap(data + b"\xdd" * 8) == 0x40
    assert peek(ctx, 0x40, len(data) + 8) == data + b"\xee" * 8


def test_automatic_place_finds_a_gap_behind_the_last_of_the_chain(ctx):
    """The last of the chain lies below another capability."""
    ctx.add_cap(pm(), 0x60)
    ctx.add_cap(vendor(b"abc"), 0x50)
    at = ctx.add_cap(express())
    assert at % 4 == 0 and not overlaps(at, 60, 0x60, 8) and not overlaps(at, 60, 0x50, 6)
    assert 0x40 <= at <= 0x100 - 60
    assert chain(ctx) == [0x60, 0x50, at]


def test_automatic_place_finds_a_gap_below_when_nothing_is_left_above(ctx):
    ctx.add_cap(pm(), 0xf8)
    at = ctx.add_cap(msi())
    assert at % 4 == 0 and 0x40 <= at <= 0xf8 - 24
    assert chain(ctx) == [0xf8, at]


def test_standard_room_can_be_filled_completely(ctx):
    for i in range(24):
        assert ctx.add_cap(pm()) == 0x40 + 8 * i
    fails(ENOSPC, ctx.add_cap, pm())
    fails(ENOSPC, ctx.add_cap, vendor(b""))
    assert chain(ctx) == list(range(0x40, 0x100, 8))


def test_capability_that_fits_nowhere(ctx):
    ctx.add_cap(vendor(bytes(0x68 - 3)), 0x60)
    fails(ENOSPC, ctx.add_cap, express())
    assert ctx.add_cap(msi()) == 0xc8


def test_extended_room_ends(ctx):
    add = lambda size: ctx.add_cap(ext_vendor(bytes(size - 8)), 0, CAP_EXTENDED)
    assert add(0xe00) == 0x100
    fails(ENOSPC, add, 0x104)
    assert add(0x100) == 0xf00
    fails(ENOSPC, add, 8)


def test_128_extended_capabilities_at_the_most(ctx):
    for i in range(128):
        assert ctx.add_cap(ext_vendor(b""), 0, CAP_EXTENDED) == 0x100 + 8 * i
    fails(ENOSPC, ctx.add_cap, ext_vendor(b""), 0, CAP_EXTENDED)
    fails(ENOSPC, ctx.add_cap, ext_vendor(b""), 0x800, CAP_EXTENDED)
    assert ctx.add_cap(pm()) == 0x40, "the limit is each list's own"


def test_refused_capability_changes_nothing(ctx):
    ctx.add_cap(pm())
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    before = peek(ctx, 0, 4096)
    fails(EINVAL, ctx.add_cap, msix(), 0x44)
    fails(EINVAL, ctx.add_cap, serial(), 0x104, CAP_EXTENDED)
    fails(ENOTSUP, ctx.add_cap, b"\x0d\0" + bytes(60))
    assert peek(ctx, 0, 4096) == before


def test_status_says_at_realize_that_there_are_capabilities(ctx):
    ctx.add_cap(pm())
    assert peek16(ctx, STATUS) == 0
    ctx.realize()
    assert peek16(ctx, STATUS) == 0x10


def test_extended_capabilities_don_t_show_in_status(ctx):
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    ctx.realize()
    assert peek16(ctx, STATUS) == 0


def test_capability_added_after_realize_shows_in_status_too(attached):
    ctx, client = attached
    assert client.read(CFG, STATUS, 2) == b"\0\0"
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    assert client.read(CFG, STATUS, 2) == b"\0\0"
    poke(ctx, STATUS, b"\x08\x01")
    assert ctx.add_cap(pm()) == 0x40
    assert client.read(CFG, STATUS, 2) == b"\x18\x01"
    assert client.read(CFG, CAP_POINTER, 1) == b"\x40"
    assert client.read(CFG, 0x40, 2) == b"\1\0"


# --- finding ------------------------------------------------------------------------------

@pytest.fixture
def full(ctx):
    """PM 0x40, vendor 0x48, 0x50, 0x80, 0x90; serial 0x100, vendor 0x10c, 0x11c, 0x200, 0x258."""
    ctx.add_cap(pm())
    for pos in (0, 0, 0x80, 0x90):
        ctx.add_cap(vendor(b"abc"), pos)
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    for pos in (0, 0, 0x200, 0x258):
        ctx.add_cap(ext_vendor(b"abcde"), pos, CAP_EXTENDED)
    return ctx


def test_finding_the_first(full):
    assert find(full, False, PM) == find(full, False, PM, pos=0) == 0x40
    assert find(full, False, VENDOR) == 0x48
    assert find(full, True, EXT_SERIAL) == find(full, True, EXT_SERIAL, pos=0) == 0x100
    assert find(full, True, EXT_VENDOR) == 0x10c


@pytest.mark.parametrize("extended, cap_id, steps", [
    (False, VENDOR, [0, 0x48, 0x50, 0x80, 0x90]), (True, EXT_VENDOR, [0, 0x10c, 0x11c, 0x200, 0x258])])
def test_walking_to_the_end(full, extended, cap_id, steps):
    for pos, following in zip(steps, steps[1:]):
        assert find(full, extended, cap_id, pos) == following
    fails(ENOENT, find, full, extended, cap_id, steps[-1])


def test_the_search_goes_on_behind_a_capability_of_another_id(full):
    assert find(full, False, VENDOR, 0x40) == 0x48
    assert find(full, True, EXT_VENDOR, 0x100) == 0x10c


@pytest.mark.parametrize("extended, cap_id, pos", [
    (False, PM, 0x40), (False, MSIX, None), (False, MSIX, 0x48), (False, 0x1001, None),
    (True, EXT_SERIAL, 0x100), (True, 0x0004, None), (True, 0, None), (False, 0, None), (False, -1, None)])
def test_no_match(full, extended, cap_id, pos):
    fails(ENOENT, find, full, extended, cap_id, pos)


@pytest.mark.parametrize("pos", [0x49, 0x41, 0x60, 0xfe])
def test_search_from_where_no_capability_starts(full, pos):
    fails(ENOENT, find, full, False, VENDOR, pos)


@pytest.mark.parametrize("pos", [0x10d, 0x104, 0x108, 0x300, 4091])
def test_extended_search_from_where_no_capability_starts(full, pos):
    fails(ENOENT, find, full, True, EXT_VENDOR, pos)


@pytest.mark.parametrize("pos", [255, 256, 8192, (1 << 64) - 1])
def test_search_from_outside_a_small_space(pos):
    with make(CONVENTIONAL) as ctx:
        ctx.add_cap(pm())
        fails(EINVAL, find, ctx, False, PM, pos)
        assert find(ctx, False, PM) == 0x40


@pytest.mark.parametrize("pos", [4095, 4096, 8192, (1 << 64) - 1])
@pytest.mark.parametrize("extended", [False, True])
def test_search_from_outside_a_large_space(full, pos, extended):
    fails(EINVAL, find, full, extended, EXT_VENDOR, pos)


@pytest.mark.parametrize("pos", [4092, 4093, 4094])
def test_extended_header_has_to_lie_in_the_space(full, pos):
    fails(EINVAL, find, full, True, EXT_VENDOR, pos)


@pytest.mark.parametrize("kind", [CONVENTIONAL, PCI_X_1])
def test_extended_search_on_a_small_space_finds_nothing(kind):
    with make(kind) as ctx:
        ctx.add_cap(pm())
        fails(ENOENT, find, ctx, True, EXT_VENDOR)
        fails(ENOENT, find, ctx, True, EXT_VENDOR, 0x40)


def test_search_in_empty_lists(ctx):
    fails(ENOENT, find, ctx, False, PM)
    fails(ENOENT, find, ctx, True, EXT_SERIAL)


def test_extended_search_never_walks_into_the_header(ctx):
    """Behind the last entry the device's ids would look like a capability."""
    lib.vfu_pci_set_id(ctx.p, EXT_VENDOR, 0x0001, 0, 0)
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    fails(ENOENT, find, ctx, True, EXT_VENDOR)
    fails(ENOENT, find, ctx, True, EXT_VENDOR, 0x100)


def test_link_that_leads_out_of_the_space():
    with make(CONVENTIONAL) as ctx:
        ctx.add_cap(pm())
        poke(ctx, 0x41, b"\xff")
        fails(EINVAL, find, ctx, False, VENDOR)
        assert find(ctx, False, PM) == 0x40


def test_extended_link_that_leads_out_of_the_space(ctx):
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    poke(ctx, 0x102, struct.pack("<H", 0xffe << 4 | 1))
    fails(EINVAL, find, ctx, True, EXT_VENDOR)


def test_links_in_a_circle_end(ctx):
    ctx.add_cap(pm())
    ctx.add_cap(vendor(b"abc"))
    poke(ctx, 0x49, b"\x40")
    with pytest.raises(Failed):
        find(ctx, False, MSIX)
    ctx.add_cap(serial(), 0, CAP_EXTENDED)
    poke(ctx, 0x102, struct.pack("<H", 0x100 << 4 | 1))
    with pytest.raises(Failed):
        find(ctx, True, EXT_VENDOR)


def test_capabilities_that_the_device_wrote_itself_are_found(ctx):
    poke(ctx, CAP_POINTER, b"\x60")
    poke(ctx, 0x60, b"\x0d\x00")
    assert find(ctx, False, 0x0d) == 0x60
