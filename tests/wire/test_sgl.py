"""The scatter-gather API: translation, memory, and access without messages."""
from sgl_device import *


# --- layout -----------------------------------------------------------------------
def test_an_entry_has_40_bytes():
    assert lib.dma_sg_size() == 40 == c.sizeof(dma_sg)


@pytest.mark.parametrize("prot, writeable", [(READ_ONLY, 0), (WRITE_ONLY, 1), (BOTH, 1)])
def test_layout_of_an_entry(device, fd, prot, writeable):
    ctx, client = device
    client.map(BASE, 2 * PAGE, fd)
    n, sg = ctx.sgl(BASE + 0x123, 0x456, prot=prot)
    raw = bytes(sg[0])
    assert len(raw) == 40
    start, region, length, offset, flag = struct.unpack_from("<QQQQB", raw)
    assert (n, start, length, offset, flag) == (1, BASE, 0x456, 0x123, writeable)
    assert region != 0 and region & 0xffffffff != 0


def test_entries_are_written_whole_whatever_the_memory_held(device, fd):
    ctx, client = device
    map_three(client, fd)
    sg = (dma_sg * 4)()
    c.memset(sg, 0xff, 160)
    assert lib.vfu_addr_to_sgl(ctx.p, BASE + 1, 3 * PAGE - 1, sg, 3, READ_ONLY) == 3
    assert [bytes(sg[i])[32] for i in range(3)] == [0, 0, 0]
    assert [entry(sg[i]) for i in range(3)] == [
        (BASE, PAGE - 1, 1, False), (BASE + PAGE, PAGE, 0, False), (BASE + 2 * PAGE, PAGE, 0, False)]
    assert bytes(sg[3]) == b"\xff" * 40, "beyond the array"
    assert [i.len for i in ctx.sgl_get(sg, 3)[:3]] == [PAGE - 1, PAGE, PAGE]


@pytest.mark.parametrize("shift", range(1, 8))
def test_an_array_at_an_odd_address(device, fd, shift):
    ctx, client = device
    map_three(client, fd)
    client.map(BASE + 3 * PAGE, PAGE)
    raw = c.create_string_buffer(40 * 4 + 8)
    at = c.addressof(raw)
    at += (shift - at) % 8
    assert at % 8 == shift
    assert lib.vfu_addr_to_sgl(ctx.p, BASE + 5, 3 * PAGE, c.c_void_p(at), 4, BOTH) == 4
    words = [struct.unpack("<QQQQB", c.string_at(at + 40 * i, 33)) for i in range(4)]
    assert [(w[0], w[2], w[3], w[4]) for w in words] == [
        (BASE, PAGE - 5, 5, 1), (BASE + PAGE, PAGE, 0, 1), (BASE + 2 * PAGE, PAGE, 0, 1), (BASE + 3 * PAGE, 5, 0, 1)]
    iov = (iovec * 3)()
    call("vfu_sgl_get", ctx.p, c.c_void_p(at), iov, 3, 0)
    assert b"".join(peek(i.base, i.len) for i in iov) == os.pread(fd, 3 * PAGE - 5, 5)
    client.log_start()
    lib.vfu_sgl_put(ctx.p, c.c_void_p(at + 40), iov, 1)
    lib.vfu_sgl_mark_dirty(ctx.p, c.c_void_p(at + 80), 2)
    assert client.report(BASE, 3 * PAGE) == 0b110
    assert lib.vfu_sg_is_mappable(ctx.p, c.c_void_p(at))
    assert not lib.vfu_sg_is_mappable(ctx.p, c.c_void_p(at + 120))
    sgl_write(ctx, c.c_void_p(at + 40), pattern(PAGE), DIRECT)
    assert sgl_read(ctx, c.c_void_p(at + 40), PAGE, DIRECT) == pattern(PAGE) == os.pread(fd, PAGE, PAGE)


# --- vfu_addr_to_sgl ----------------------------------------------------------------
@pytest.mark.parametrize("at, length, pieces", [
    (0, 1, [(0, 0, 1)]), (0, PAGE, [(0, 0, PAGE)]), (PAGE - 1, 1, [(0, PAGE - 1, 1)]),
    (PAGE - 1, 2, [(0, PAGE - 1, 1), (1, 0, 1)]), (PAGE, PAGE, [(1, 0, PAGE)]),
    (0, 3 * PAGE, [(0, 0, PAGE), (1, 0, PAGE), (2, 0, PAGE)]),
    (7, 3 * PAGE - 8, [(0, 7, PAGE - 7), (1, 0, PAGE), (2, 0, PAGE - 1)])])
def test_one_entry_for_each_region_touched_in_order(device, fd, at, length, pieces):
    ctx, client = device
    map_three(client, fd)
    n, sg = ctx.sgl(BASE + at, length, 3)
    assert n == len(pieces)
    assert [entry(s) for s in sg[:n]] == [(BASE + r * PAGE, size, offset, True) for r, offset, size in pieces]
    iov = ctx.sgl_get(sg, n)
    assert b"".join(peek(iov[i].base, iov[i].len) for i in range(n)) == os.pread(fd, length, at)
    ctx.sgl_put(sg, n)


@pytest.mark.parametrize("addr", [0, 1, BASE, BASE + PAGE - 1, BASE + PAGE, TOP - 1])
@pytest.mark.parametrize("max_sgs", [0, 1])
def test_length_0_needs_no_entry(device, fd, addr, max_sgs):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    assert ctx.sgl(addr, 0, max_sgs)[0] == 0


@pytest.mark.parametrize("addr, length", [
    (0, 1), (BASE - 1, 1), (BASE - 1, 2), (BASE + PAGE, 1), (BASE + PAGE - 1, 2), (BASE, PAGE + 1), (BASE, 3 * PAGE),
    (BASE + 2 * PAGE - 1, 2), (BASE + 3 * PAGE - 1, 2), (BASE, TOP - BASE), (BASE, TOP - 1), (0, TOP - 1), (TOP - 1, 1)])
@pytest.mark.parametrize("max_sgs", [0, 1, 4])
def test_a_byte_in_no_region(device, fd, addr, length, max_sgs):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + 2 * PAGE, PAGE, fd)
    for warm in (0, BASE, BASE + 2 * PAGE):
        if warm:
            ctx.sgl(warm, 1)
        fails(errno.ENOENT, ctx.sgl, addr, length, max_sgs)


def test_no_region_at_all(device):
    ctx, client = device
    fails(errno.ENOENT, ctx.sgl, 0, 1)


@pytest.mark.parametrize("addr, length", [
    (BASE, TOP - 1), (BASE + 8, TOP - 8), (BASE + 8, TOP - 1), (TOP - 16, BASE + 32), (TOP - 1, BASE + 2), (TOP - 1, 2),
    (TOP - PAGE, TOP - 1), (TOP - PAGE, 2 * PAGE)])
def test_a_range_that_wraps_is_in_no_region(device, fd, addr, length):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for _ in range(2):
        assert ctx.sgl(BASE, PAGE)[0] == 1
        fails(errno.ENOENT, ctx.sgl, addr, length, 4)
    client.map(TOP - PAGE, PAGE, fd, offset=PAGE)
    for _ in range(2):
        assert ctx.sgl(TOP - PAGE, PAGE)[0] == 1
        fails(errno.ENOENT, ctx.sgl, addr, length, 4)


def test_the_topmost_page_is_translated_to_its_last_byte(device, fd):
    ctx, client = device
    client.map(TOP - PAGE, PAGE, fd)
    for _ in range(2):
        n, sg = ctx.sgl(TOP - PAGE, PAGE)
        assert (n, entry(sg[0])) == (1, (TOP - PAGE, PAGE, 0, True))
        n, sg = ctx.sgl(TOP - 1, 1)
        assert (n, entry(sg[0])) == (1, (TOP - PAGE, 1, PAGE - 1, True))
    assert peek(ctx.sgl_get(sg)[0].base, 1) == os.pread(fd, 1, PAGE - 1)
    client.map(TOP - 2 * PAGE, PAGE, fd)
    assert ctx.sgl(TOP - 2 * PAGE, 2 * PAGE, 2)[0] == 2


def test_the_topmost_page_by_messages(device):
    ctx, client = device
    memory = bytearray(pattern(PAGE))
    client.map(TOP - PAGE, PAGE)
    n, sg = ctx.sgl(TOP - 64, 64)
    with Guest(client, memory, TOP - PAGE) as guest:
        assert sgl_read(ctx, sg, 64) == memory[-64:]
    assert guest.messages == [(DMA_READ, TOP - 64, 64)]


@pytest.mark.parametrize("max_sgs", [0, 1, 2])
def test_too_few_entries_tell_how_many_are_needed_and_fill_those_that_fit(device, fd, max_sgs):
    ctx, client = device
    map_three(client, fd)
    sg = (dma_sg * 4)()
    c.set_errno(errno.EXDEV)
    assert lib.vfu_addr_to_sgl(ctx.p, BASE, 3 * PAGE, sg, max_sgs, BOTH) == -3 - 1
    assert c.get_errno() == 0
    assert [entry(s) for s in sg[:max_sgs]] == [(BASE + i * PAGE, PAGE, 0, True) for i in range(max_sgs)]
    assert bytes(sg)[40 * max_sgs:] == bytes(160 - 40 * max_sgs)
    if max_sgs:
        ctx.sgl_get(sg, max_sgs)


def test_no_entry_for_one_region(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for _ in range(2):
        c.set_errno(errno.EXDEV)
        assert lib.vfu_addr_to_sgl(ctx.p, BASE, 1, None, 0, BOTH) == -2
        assert c.get_errno() == 0


def test_a_hole_counts_more_than_too_few_entries(device, fd):
    ctx, client = device
    map_three(client, fd)
    fails(errno.ENOENT, ctx.sgl, BASE, 3 * PAGE + 1, 1)
    fails(errno.ENOENT, ctx.sgl, BASE, 3 * PAGE + 1, 0)


def test_hundreds_of_regions_in_one_range():
    with attached(dma=True, max_regions=500) as (ctx, client):
        for i in range(500):
            client.map(BASE + i * PAGE, PAGE)
        n, sg = ctx.sgl(BASE + 1, 500 * PAGE - 2, 500)
        assert n == 500
        assert [entry(s) for s in sg[1:499]] == [(BASE + i * PAGE, PAGE, 0, True) for i in range(1, 499)]
        assert (entry(sg[0]), entry(sg[499])) == ((BASE, PAGE - 1, 1, True), (BASE + 499 * PAGE, PAGE - 1, 0, True))
        assert ctx.sgl(BASE, 500 * PAGE, 499)[0] == -501


def test_max_is_a_whole_size_t(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    for max_sgs in (1 << 32, (1 << 32) + 1, (1 << 31), 1 << 40):
        sg = (dma_sg * 1)()
        assert lib.vfu_addr_to_sgl(ctx.p, BASE, PAGE, sg, max_sgs, BOTH) == 1
        assert entry(sg[0]) == (BASE, PAGE, 0, True)


@pytest.mark.parametrize("flags, prot, number", [
    (MAP_READ, READ_ONLY, 0), (MAP_READ, WRITE_ONLY, errno.EACCES), (MAP_READ, BOTH, errno.EACCES),
    (MAP_WRITE, READ_ONLY, errno.EACCES), (MAP_WRITE, WRITE_ONLY, 0), (MAP_WRITE, BOTH, errno.EACCES),
    (0, READ_ONLY, errno.EACCES), (0, WRITE_ONLY, errno.EACCES), (0, BOTH, errno.EACCES),
    (RWF, READ_ONLY, 0), (RWF, WRITE_ONLY, 0), (RWF, BOTH, 0)])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_permissions_of_the_region(device, fd, flags, prot, number, kind):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=flags | (MAP_FILE_IO if kind == "file io" else 0))
    for _ in range(2):
        if number:
            fails(number, ctx.sgl, BASE, 1, prot=prot)
        else:
            assert ctx.sgl(BASE, 1, prot=prot)[0] == 1


def test_permissions_are_looked_at_for_entries_that_fit_only(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd, flags=MAP_READ)
    assert ctx.sgl(BASE, 2 * PAGE, 1)[0] == -3
    assert ctx.sgl(BASE + PAGE, 1, 0)[0] == -2
    fails(errno.EACCES, ctx.sgl, BASE, 2 * PAGE, 2)
    assert ctx.sgl(BASE, 2 * PAGE, 2, READ_ONLY)[0] == 2


def test_without_dma_translation_and_memory_are_refused():
    with attached(dma=False) as (ctx, client):
        fails(errno.EINVAL, ctx.sgl, BASE, 1)
        fails(errno.EINVAL, ctx.sgl, BASE, 0)
        fails(errno.EINVAL, ctx.sgl_get, (dma_sg * 1)())


def test_translation_before_a_client_came_finds_nothing():
    with Ctx(dma=True) as ctx:
        fails(errno.ENOENT, ctx.sgl, 0, 1)


def test_what_one_context_has_the_other_does_not_see(fd):
    with attached(dma=True) as (ctx, client), attached(dma=True) as (other, client2):
        client.map(BASE, PAGE, fd)
        for _ in range(3):
            assert ctx.sgl(BASE, 1)[0] == 1
            fails(errno.ENOENT, other.sgl, BASE, 1)
        client2.map(BASE, 2 * PAGE, fd, offset=PAGE)
        for _ in range(3):
            assert ctx.sgl(BASE, 1)[1][0].length == 1
            n, sg = ctx.sgl(BASE, PAGE)
            assert peek(ctx.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, 0)
            n, sg = other.sgl(BASE, PAGE)
            assert peek(other.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, PAGE)
            fails(errno.ENOENT, ctx.sgl, BASE, PAGE + 1)


def test_a_region_just_used_is_forgotten_when_it_goes(device, fd):
    ctx, client = device
    for i in range(5):
        client.map(BASE, PAGE, fd, offset=i * PAGE)
        for _ in range(2):
            n, sg = ctx.sgl(BASE, PAGE)
        assert peek(ctx.sgl_get(sg)[0].base, 4) == os.pread(fd, 4, i * PAGE)
        client.unmap(BASE, PAGE)
        fails(errno.ENOENT, ctx.sgl, BASE, PAGE)


# --- vfu_sgl_get --------------------------------------------------------------------
def test_a_zeroed_entry(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    sg = (dma_sg * 1)()
    fails(errno.EINVAL, ctx.sgl_get, sg)
    fails(errno.EINVAL, sgl_read, ctx, sg, 8)
    fails(errno.EINVAL, sgl_read, ctx, sg, 8, DIRECT)
    fails(errno.EPERM, sgl_write, ctx, sg, b"x")
    sg[0].writeable = True
    fails(errno.EINVAL, sgl_write, ctx, sg, b"x")
    fails(errno.EINVAL, sgl_write, ctx, sg, b"x", DIRECT)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    assert not is_mappable(ctx, sg)


def test_an_entry_that_is_no_entry(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.log_start()
    for region in (1, 8, 0x1000, TOP - 1, TOP - 8, 0x7fffffffffff, 1 << 63):
        sg = (dma_sg * 1)(dma_sg(BASE, region, PAGE, 0, True))
        fails(errno.EINVAL, ctx.sgl_get, sg)
        fails(errno.EINVAL, sgl_read, ctx, sg, PAGE, DIRECT)
        ctx.sgl_put(sg)
        assert not is_mappable(ctx, sg)
    assert client.report(BASE, PAGE) == 0


@pytest.mark.parametrize("offset, length", [
    (PAGE - 7, 8), (PAGE, 1), (0, PAGE + 1), (1, PAGE), (PAGE + 1, 0), (TOP - 8, 8), (8, TOP - 8), (1 << 63, 1 << 63)])
def test_an_entry_that_was_changed_to_reach_beyond_its_region(device, fd, offset, length):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd, offset=PAGE)
    client.log_start()
    n, sg = ctx.sgl(BASE, 8)
    sg[0].offset, sg[0].length = offset, length
    fails(errno.EINVAL, ctx.sgl_get, sg)
    assert is_mappable(ctx, sg) is False
    ctx.sgl_put(sg)
    buf = c.create_string_buffer(2 * PAGE)
    for flags in (0, DIRECT):
        fails(errno.EINVAL, call, "vfu_sgl_read", ctx.p, sg, 1, buf, flags)
        fails(errno.EINVAL, call, "vfu_sgl_write", ctx.p, sg, 1, buf, flags)
    assert client.report(BASE, 2 * PAGE) == 0


@pytest.mark.parametrize("kind", ["message", "file io"])
def test_an_entry_of_a_region_that_is_not_mapped(device, fd, kind):
    ctx, client = device
    client.map(BASE, PAGE, *(() if kind == "message" else (fd,)), flags=RWF | (0 if kind == "message" else MAP_FILE_IO))
    n, sg = ctx.sgl(BASE, PAGE)
    fails(errno.EFAULT, ctx.sgl_get, sg)
    assert is_mappable(ctx, sg) is False
    ctx.sgl_put(sg)


@pytest.mark.parametrize("flags", [RWF, RWF | MAP_MMAP])
def test_an_entry_of_a_mapped_region_is_mappable(device, fd, flags):
    ctx, client = device
    client.map(BASE, PAGE, fd, flags=flags)
    assert is_mappable(ctx, ctx.sgl(BASE, 1)[1]) is True


def test_one_unmapped_region_among_three(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE)
    client.map(BASE + 2 * PAGE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 3 * PAGE, 3)
    fails(errno.EFAULT, ctx.sgl_get, sg, 3)
    assert [is_mappable(ctx, c.byref(sg[i])) for i in range(3)] == [True, False, True]
    ctx.sgl_get(sg, 1)


@pytest.mark.parametrize("flags", [1, 2, -1, 1 << 30])
def test_flags_of_get(device, fd, flags):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, PAGE)
    fails(errno.EINVAL, ctx.sgl_get, sg, 1, flags)
    ctx.sgl_get(sg)


def test_get_of_nothing(device):
    ctx, client = device
    ctx.sgl_get((dma_sg * 1)(), 0)


def test_get_without_an_unregister_callback_works_and_warns_once(fd):
    def warnings():
        return [text for level, text in ctx.lines if level == 4 and "unregister" in text]
    with Ctx(realize=False, migration=True) as ctx:
        call("vfu_setup_device_dma", ctx.p, 64, None, None)
        ctx.realize()
        with ctx.connect() as client:
            client.map(BASE, PAGE, fd)
            client.log_start()
            n, sg = ctx.sgl(BASE, 8)
            assert n == 1 and warnings() == []
            for flags in (1, -1, 1 << 31):
                fails(errno.EINVAL, call, "vfu_sgl_get", ctx.p, sg, (iovec * 1)(), 1, c.c_int(flags).value)
            assert warnings() == []
            for _ in range(3):
                iov = ctx.sgl_get(sg)[0]
                assert peek(iov.base, 8) == os.pread(fd, 8, 0)
                assert len(warnings()) == 1
            ctx.sgl_put(sg)
            assert client.report(BASE, PAGE) == 1
            mark_dirty(ctx, sg)
            assert client.report(BASE, PAGE) == 1
            client.unmap(BASE, PAGE)
            fails(errno.EINVAL, ctx.sgl_get, sg)
            for callback in (None, ctx.cb(DMA_CB, lambda _c, _i: None), None):
                call("vfu_setup_device_dma", ctx.p, 64, None, callback)
                client.map(BASE, PAGE, fd)
                ctx.sgl_get(ctx.sgl(BASE, 8)[1])
                client.unmap(BASE, PAGE)
            assert len(warnings()) == 1
            answers(client)


def test_the_memory_is_the_client_s(device, fd):
    ctx, client = device
    client.map(BASE, 2 * PAGE, fd, offset=PAGE)
    n, sg = ctx.sgl(BASE + 100, 200)
    iov = ctx.sgl_get(sg)[0]
    c.memmove(iov.base, b"from the device", 15)
    assert os.pread(fd, 15, PAGE + 100) == b"from the device"
    os.pwrite(fd, b"from the client", PAGE + 100)
    assert c.string_at(iov.base, 15) == b"from the client"


# --- direct access --------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mmap", "file io"])
@pytest.mark.parametrize("at, length", [(0, 64), (5, 1), (PAGE - 3, 7), (17, 2 * PAGE + 42), (0, 4 * PAGE)])
def test_direct_access_sends_no_message(device, fd, kind, at, length):
    ctx, client = device
    client.map(BASE + 9, 4 * PAGE, fd, offset=9, flags=RWF | (MAP_FILE_IO if kind == "file io" else MAP_MMAP))
    n, sg = ctx.sgl(BASE + 9 + at, length)
    old = os.pread(fd, 8 * PAGE, 0)
    assert sgl_read(ctx, sg, length, DIRECT) == old[9 + at:9 + at + length]
    data = pattern(length, 99)
    sgl_write(ctx, sg, data, DIRECT)
    assert os.pread(fd, 8 * PAGE, 0) == old[:9 + at] + data + old[9 + at + length:]
    assert client.nothing()


@pytest.mark.parametrize("length", [MIB, 3 * MIB + 5])
def test_direct_file_access_of_more_than_one_message_could_carry(device, length):
    ctx, client = device
    f = memfd(4 * MIB)
    client.map(BASE, 4 * MIB, f, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE, length)
    sgl_write(ctx, sg, pattern(length), DIRECT)
    assert os.pread(f, length, 0) == pattern(length)
    assert sgl_read(ctx, sg, length, DIRECT) == pattern(length)
    os.close(f)


@pytest.mark.parametrize("size, at, length", [(PAGE, PAGE - 4, 8), (PAGE, PAGE, 1), (0, 0, 1), (100, 0, 101)])
def test_the_end_of_the_file_is_eio(device, size, at, length):
    ctx, client = device
    f = memfd(size)
    client.map(BASE, 4 * PAGE, f, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE + at, length)
    fails(errno.EIO, sgl_read, ctx, sg, length, DIRECT)
    os.close(f)


def test_an_error_of_the_file_is_eio(device, fd):
    ctx, client = device
    ro = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    wo = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    client.map(BASE, PAGE, ro, flags=RWF | MAP_FILE_IO)
    client.map(BASE + PAGE, PAGE, wo, flags=RWF | MAP_FILE_IO)
    n, sg = ctx.sgl(BASE, 8)
    assert sgl_read(ctx, sg, 8, DIRECT) == os.pread(fd, 8, 0)
    fails(errno.EIO, sgl_write, ctx, sg, b"12345678", DIRECT)
    n, sg = ctx.sgl(BASE + PAGE, 8)
    sgl_write(ctx, sg, b"12345678", DIRECT)
    fails(errno.EIO, sgl_read, ctx, sg, 8, DIRECT)
    os.close(ro)
    os.close(wo)


@pytest.mark.parametrize("flags", [0, DIRECT], ids=["by message", "direct"])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_reading_a_region_without_read_permission(device, fd, kind, flags):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=MAP_WRITE | (MAP_FILE_IO if kind == "file io" else 0))
    n, sg = ctx.sgl(BASE, 8, prot=WRITE_ONLY)
    fails(errno.EPERM, sgl_read, ctx, sg, 8, flags)
    assert client.nothing()


@pytest.mark.parametrize("flags", [0, DIRECT], ids=["by message", "direct"])
@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_writing_through_an_entry_for_reading(device, fd, kind, flags):
    ctx, client = device
    client.map(BASE, PAGE, None if kind == "message" else fd, flags=RWF | (MAP_FILE_IO if kind == "file io" else 0))
    n, sg = ctx.sgl(BASE, 8, prot=READ_ONLY)
    old = os.pread(fd, 8, 0)
    fails(errno.EPERM, sgl_write, ctx, sg, b"12345678", flags)
    assert client.nothing()
    assert os.pread(fd, 8, 0) == old


@pytest.mark.parametrize("access", [sgl_read, sgl_write])
@pytest.mark.parametrize("flags, n, number", [
    (0x42, 1, errno.EINVAL), (2, 1, errno.EINVAL), (3, 1, errno.EINVAL), (-1, 1, errno.EINVAL), (0x42, 2, errno.EINVAL),
    (0, 2, errno.ENOTSUP), (DIRECT, 2, errno.ENOTSUP), (0, 0, errno.ENOTSUP), (DIRECT, 0, errno.ENOTSUP)])
def test_flags_then_the_number_of_entries(device, fd, access, flags, n, number):
    ctx, client = device
    map_three(client, fd)
    _, sg = ctx.sgl(BASE, 2 * PAGE, 2)
    arg = b"x" * 2 * PAGE if access is sgl_write else 2 * PAGE
    fails(number, access, ctx, sg, arg, flags, n)
    fails(number, access, ctx, (dma_sg * 2)(), arg, flags, n)
    assert client.nothing()


# --- entries that outlive their region ----------------------------------------------------
def is_stale(ctx, sg, flags=(0, DIRECT)):
    fails(errno.EINVAL, ctx.sgl_get, sg)
    for f in flags:
        fails(errno.EINVAL, sgl_read, ctx, sg, 64, f)
        fails(errno.EINVAL, sgl_write, ctx, sg, b"z" * 64, f)
    ctx.sgl_put(sg)
    mark_dirty(ctx, sg)
    assert is_mappable(ctx, sg) is False


@pytest.mark.parametrize("kind", ["message", "mmap", "file io"])
def test_an_entry_of_a_region_that_has_gone(device, fd, kind):
    ctx, client = device
    client.log_start()
    map_kind(client, kind, fd, PAGE)
    n, sg = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    is_stale(ctx, sg)
    assert client.nothing()


def test_a_new_region_in_its_place_is_another_region(device, fd):
    ctx, client = device
    client.log_start()
    client.map(BASE, PAGE, fd)
    n, old = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    before = os.pread(fd, PAGE, 0)
    for i in range(50):
        client.map(BASE, PAGE, fd)
        is_stale(ctx, old)
        assert client.report(BASE, PAGE) == 0, "a stale entry marked a page"
        n, sg = ctx.sgl(BASE, 64)
        assert is_mappable(ctx, sg)
        client.unmap(BASE, PAGE)
        is_stale(ctx, sg)
    assert os.pread(fd, PAGE, 0) == before


def test_stale_entries_of_many_regions(fd):
    with attached(dma=True, max_regions=100) as (ctx, client):
        for i in range(100):
            client.map(BASE + i * PAGE, PAGE, fd)
        n, sg = ctx.sgl(BASE, 100 * PAGE, 100)
        for i in range(0, 100, 2):
            client.unmap(BASE + i * PAGE, PAGE)
        for i in range(0, 100, 2):
            client.map(BASE + i * PAGE, PAGE, fd)
        for i in range(100):
            one = c.byref(sg[i])
            assert is_mappable(ctx, one) == (i % 2 == 1)
            if i % 2:
                call("vfu_sgl_get", ctx.p, one, (iovec * 1)(), 1, 0)
            else:
                fails(errno.EINVAL, call, "vfu_sgl_get", ctx.p, one, (iovec * 1)(), 1, 0)
        fails(errno.EINVAL, ctx.sgl_get, sg, 100)


def test_an_entry_is_good_until_the_unregister_callback_has_returned(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 64)
    seen = []

    def unregister(_info):
        seen.append((peek(ctx.sgl_get(sg)[0].base, 64), sgl_read(ctx, sg, 64, DIRECT), is_mappable(ctx, sg)))
        sgl_write(ctx, sg, b"0" * 64, DIRECT)
        ctx.sgl_put(sg)
    old = os.pread(fd, 64, 0)
    ctx.on_dma_unregister = unregister
    client.unmap(BASE, PAGE)
    assert seen == [(old, old, True)]
    assert os.pread(fd, 64, 0) == b"0" * 64
    is_stale(ctx, sg)


def test_an_entry_of_a_lost_connection(fd):
    with Ctx(dma=True) as ctx:
        client = ctx.connect()
        client.map(BASE, PAGE, fd)
        n, sg = ctx.sgl(BASE, 64)
        client.close()
        fails(errno.ENOTCONN, ctx.run)
        is_stale(ctx, sg)
        with ctx.connect() as client:
            client.map(BASE, PAGE, fd)
            is_stale(ctx, sg)
            answers(client)


def test_a_region_that_an_unregister_callback_asks_about_after_it_went(device, fd):
    ctx, client = device
    client.map(BASE, PAGE, fd)
    client.map(BASE + PAGE, PAGE, fd)
    n, first = ctx.sgl(BASE, 64)
    n, second = ctx.sgl(BASE + PAGE, 64)
    seen = []

    def unregister(i):
        seen.append((i.iova.base, is_mappable(ctx, first), is_mappable(ctx, second)))
    ctx.on_dma_unregister = unregister
    client.unmap(0, 0, UNMAP_ALL)
    assert seen == [(BASE, True, True), (BASE + PAGE, False, True)]


def test_an_entry_that_outlived_its_region_inside_the_callback_of_the_request_in_progress(device, fd):
    """A stale entry is found out from inside callbacks, too."""
    ctx, client = device
    client.map(BASE, PAGE, fd)
    n, sg = ctx.sgl(BASE, 64)
    client.unmap(BASE, PAGE)
    seen = []
    ctx.on_dma_register = lambda i: seen.append(is_mappable(ctx, sg))
    client.map(BASE, PAGE, fd)
    assert seen == [False]


# --- threads -----------------------------------------------------------------------------
def test_other_threads_translate_get_and_put_while_requests_are_handled(fd):
    with attached(dma=True, migration=True) as (ctx, client):
        client.map(BASE, 64 * PAGE, fd)
        client.log_start()
        failures, barrier = [], threading.Barrier(5)

        def device_thread(t):
            try:
                barrier.wait()
                for page in range(t, 64, 4):
                    for _ in range(20):
                        n, sg = ctx.sgl(BASE + page * PAGE, 8, prot=READ_ONLY)
                        assert n == 1 and peek(ctx.sgl_get(sg)[0].base, 8) == os.pread(fd, 8, page * PAGE)
                        ctx.sgl_put(sg)
                    put(ctx, BASE + page * PAGE, 8)
            except BaseException as e:  # noqa: B902
                failures.append(e)
        threads = [threading.Thread(target=device_thread, args=(t,)) for t in range(4)]
        for t in threads:
            t.start()
        barrier.wait()
        found = 0
        while any(t.is_alive() for t in threads):
            bits = client.report(BASE, 64 * PAGE)
            assert found & bits == 0, "a page was reported twice but written once"
            found |= bits
        for t in threads:
            t.join()
        assert not failures
        found |= client.report(BASE, 64 * PAGE)
        assert found == (1 << 64) - 1, "a written page was never reported"
