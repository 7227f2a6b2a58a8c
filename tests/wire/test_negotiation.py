"""The version message: what is refused, what is agreed on, and that nobody waits for a slow client."""
import json

import pytest
from peer import *

QEMU = ('{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
        '"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, '
        '"write_multiple": true}}')
TWIN = {"twin_socket": {"supported": True}}


@pytest.fixture(params=[True, False], ids=["nonblocking", "blocking"])
def ctx(request):
    with Ctx(nonblocking=request.param, migration=True) as ctx:
        yield ctx


def refused(ctx, data, number=errno.EINVAL, reply=None, fds=(), half_close=False):
    """Asserts that these bytes end the negotiation, and that the context takes the next client."""
    before = open_fds()
    client = ctx.connect(attach=False)
    client.send_raw(data, fds) if data else None
    if half_close:
        client.sock.shutdown(socket.SHUT_WR)
    fails(number, ctx.attach)
    if reply is not None:
        assert client.recv().raw == header(*reply, 16, F_REPLY | F_ERROR, number)
    assert end_of_file(client.sock), "a reply that should not be, or a connection left open"
    client.close()
    assert open_fds() == before
    with ctx.connect() as client:
        assert client.minor == 2
        if ctx.nonblocking:
            alive(client)


@pytest.fixture(autouse=True)
def mode(request):
    if "ctx" in request.fixturenames:
        ctx = request.getfixturevalue("ctx")
        ctx.nonblocking = request.node.callspec.params["ctx"]


# --- failures -----------------------------------------------------------------

VERSION_MESSAGE = message(7, VERSION, version_payload({}))


def test_end_of_file_before_a_header_is_enomsg(ctx):
    refused(ctx, b"", errno.ENOMSG, half_close=True)


@pytest.mark.parametrize("length", [1, 8, 15])
def test_end_of_file_inside_the_header_is_econnreset(ctx, length):
    refused(ctx, VERSION_MESSAGE[:length], errno.ECONNRESET, half_close=True)


def test_end_of_file_before_the_announced_body_is_enomsg(ctx):
    refused(ctx, VERSION_MESSAGE[:16], errno.ENOMSG, half_close=True)


@pytest.mark.parametrize("length", [17, 20, len(VERSION_MESSAGE) - 1])
def test_end_of_file_inside_the_body_is_econnreset(ctx, length):
    refused(ctx, VERSION_MESSAGE[:length], errno.ECONNRESET, half_close=True)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_descriptors_with_the_version_message_are_closed_and_it_is_refused(ctx, count):
    fd = memfd(PAGE)
    refused(ctx, VERSION_MESSAGE, reply=(7, VERSION), fds=[fd] * count)
    os.close(fd)


@pytest.mark.parametrize("free", [0, 1])
def test_descriptors_with_the_version_message_that_the_process_cannot_take(ctx, free):
    """None, or fewer than were sent: refused all the same, and the next client is taken on."""
    fd = memfd(PAGE)
    with ctx.connect(attach=False) as client:
        client.send(VERSION, version_payload(), [fd, fd])
        before = open_fds()
        with Room(free + 1):  # and one for the connection
            fails(errno.EINVAL, ctx.attach)
        assert open_fds() == before
        assert client.recv().error == errno.EINVAL
        assert end_of_file(client.sock)
    os.close(fd)
    with ctx.connect() as client:
        assert client.minor == 2


@pytest.mark.parametrize("kind", [1, 2, 3, 15])
def test_a_message_that_is_no_command_is_refused_without_reply(ctx, kind):
    refused(ctx, header(7, VERSION, 20, kind) + b"\0\0\2\0")


@pytest.mark.parametrize("size", [0, 1, 15, MAX_MSG + 1, 0xffffffff])
def test_a_size_that_cannot_be_is_refused_without_reply_and_without_waiting(ctx, size):
    refused(ctx, header(7, VERSION, size))


@pytest.mark.parametrize("cmd", [0, 2, 3, 4, 13, 16, 999, 0xffff])
def test_another_command_is_answered_with_its_own_id_and_number(ctx, cmd):
    refused(ctx, message(0xfedc, cmd, b"\0\0\2\0"), reply=(0xfedc, cmd))


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0", b"\0\0\2"])
def test_a_payload_shorter_than_the_two_numbers_is_refused(ctx, payload):
    refused(ctx, message(7, VERSION, payload), reply=(7, VERSION))


@pytest.mark.parametrize("major", [1, 2, 999, 0xffff])
def test_a_major_version_other_than_0_is_refused(ctx, major):
    refused(ctx, message(7, VERSION, version_payload({}, major=major)), reply=(7, VERSION))


@pytest.mark.parametrize("text", [b"{}", b"{", b" ", b'{"capabilities": {}}'])
def test_text_without_a_nul_at_its_end_is_refused(ctx, text):
    refused(ctx, message(7, VERSION, version_payload(text=text)), reply=(7, VERSION))


def test_the_no_reply_bit_has_no_meaning_in_a_version_message(ctx):
    refused(ctx, message(7, VERSION, version_payload({}, major=1), F_NO_REPLY), reply=(7, VERSION))
    lost(ctx, 1) if ctx.nonblocking else None
    with Ctx() as other:
        client = other.connect(attach=False)
        client.send(VERSION, version_payload({}), flags=F_NO_REPLY, msg_id=8)
        other.attach()
        reply = client.recv()
        assert (reply.msg_id, reply.cmd, reply.flags) == (8, VERSION, F_REPLY)


UNPARSABLE = [
    "", " ", "{", '"', "}", "{]", "{'capabilities': {}}", '{"capabilities": {},}', '{"capabilities": }',
    '{"capabilities": {"max_msg_fds": 8,}}', '{"capabilities": {"max_msg_fds": 08}}', "nonsense",
    # text after the first value, comments, top-level values that are no object
    "{} {}", "{}x", "{},", "// c\n{}", "{/* c */}", "[]", "[{}]", "1", '"text"', "null", "true",
    # NULs before the end
    "{}\0", "\0{}", "{\0}", '{"a": "\0"}', "{}\0\0",
    "[" * 20000, '{"a":' * 20000, '{"capabilities": {"migration": ' + "[" * 20000,
]


@pytest.mark.parametrize("text", UNPARSABLE, ids=lambda text: repr(text[:20]))
def test_text_that_is_no_strict_json_object_is_refused(ctx, text):
    refused(ctx, message(7, VERSION, version_payload(text=text.encode() + b"\0")), reply=(7, VERSION))


@pytest.mark.parametrize("text", ['{"a":' * 20000 + "1" + "}" * 20000, '{"a":' + "[" * 50000 + "]" * 50000 + "}"],
                         ids=["objects", "arrays"])
def test_nesting_too_deep_for_the_parser_is_refused_and_never_a_crash(text):
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload(text=text.encode() + b"\0"), msg_id=7)
        try:  # a parser that can skip it may
            ctx.attach()
        except Failed as e:
            assert e.errno == errno.EINVAL
            assert is_error(client.recv(), 7, VERSION, errno.EINVAL)
            client = ctx.connect()
        else:
            assert client.recv().flags == F_REPLY
        alive(client)


NO_INTEGERS = ['"8"', '""', "null", "1.0", "1e3", "true", "[]", "[1]", "{}", "-1.5"]
NO_OBJECTS = ['"text"', "null", "1", "[]", "true", "[{}]"]
NO_BOOLEANS = ['"true"', "null", "1", "0", "[]", "{}"]
WRONG = (
    ['{"capabilities": %s}' % v for v in NO_OBJECTS]
    + ['{"capabilities": {"%s": %s}}' % (name, v)
       for name in ("max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps") for v in NO_INTEGERS]
    + ['{"capabilities": {"migration": {"pgsize": %s}}}' % v for v in NO_INTEGERS]
    + ['{"capabilities": {"%s": %s}}' % (name, v) for name in ("migration", "twin_socket") for v in NO_OBJECTS]
    + ['{"capabilities": {"twin_socket": {"supported": %s}}}' % v for v in NO_BOOLEANS]
    + ['{"capabilities": {"write_multiple": %s}}' % v for v in NO_BOOLEANS]
)


@pytest.mark.parametrize("text", WRONG)
def test_members_of_a_wrong_type_are_refused(text):
    with Ctx(migration=True) as ctx:
        ctx.nonblocking = True
        refused(ctx, message(7, VERSION, version_payload(text=text.encode() + b"\0")), reply=(7, VERSION))


# The whole number is judged, not what is left of it in 32 bits.
@pytest.mark.parametrize("name,number", [
    *[("max_msg_fds", n) for n in (-1, 1025, -(1 << 31), 1 << 31, 1 << 32, (1 << 32) + 8, (1 << 63) - 1, -(1 << 63))],
    *[("max_data_xfer_size", n) for n in (0, -1, -4096, -(1 << 32) + 4096, -(1 << 63))]])
def test_numbers_out_of_range_are_refused(ctx, name, number):
    refused(ctx, message(7, VERSION, version_payload({name: number})), reply=(7, VERSION))


TWICE = [
    ('"capabilities": {"twin_socket": {"supported": true}}, "capabilities": {}', {}),
    ('"capabilities": 1, "capabilities": {"write_multiple": true}', {"write_multiple": True}),
    ('"capabilities": {"twin_socket": {"supported": true}, "twin_socket": {"supported": false}}', {}),
    ('"capabilities": {"twin_socket": {"supported": true}, "twin_socket": {}}', {}),
    ('"capabilities": {"twin_socket": {"supported": false, "supported": true}}',
     {"twin_socket": {"supported": True, "fd_index": 0}}),
    ('"capabilities": {"max_msg_fds": 1025, "max_msg_fds": 8}', {}),
    ('"capabilities": {"max_dma_maps": null, "max_dma_maps": 7}', {"max_dma_maps": 7}),
    ('"capabilities": {"migration": {"pgsize": 1}, "migration": {"pgsize": 2, "pgsize": %d}}' % PAGE, {}),
]


@pytest.mark.parametrize("text,answer", TWICE)
def test_of_a_member_that_is_given_twice_the_last_counts(text, answer):
    with Ctx(migration=True) as ctx:
        with ctx.connect(version=version_payload(text=b"{%s}\0" % text.encode())) as client:
            always = ("max_msg_fds", "max_data_xfer_size", "migration")
            assert {name: value for name, value in client.server.items() if name not in always} == answer
            alive(client)


@pytest.mark.parametrize("members", ['"max_fds": 4, "max_fds": "4"', '"max_msg_fds": 4, "max_fds": 1025',
                                     '"twin_socket": {}, "twin_socket": true'])
def test_the_last_of_two_members_is_judged(ctx, members):
    text = b'{"capabilities": {%s}}\0' % members.encode()
    refused(ctx, message(7, VERSION, version_payload(text=text)), reply=(7, VERSION))


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE + 1, 2 * PAGE, (1 << 32) + PAGE])
def test_a_migration_page_size_that_is_not_the_hosts_is_refused(ctx, size):
    refused(ctx, message(7, VERSION, version_payload({"migration": {"pgsize": size}})), reply=(7, VERSION))


# --- what is accepted ---------------------------------------------------------

@pytest.mark.parametrize("text", [
    b"", b"{}\0", b" {}\0", b"\t\r\n {} \n\r\t\0", b'{"capabilities": {}}\0', b'{"else": [1, {"a": null}]}\0',
    b'{"capabilities": {"else": 1, "migration": {"else": 1}, "twin_socket": {"else": 1}}}\0',
    b'{"capabilities": {"max_msg_fds": 0}}\0', b'{"capabilities": {"max_msg_fds": 1024}}\0',
    b'{"capabilities": {"max_data_xfer_size": 1}}\0',
    b'{"capabilities": {"max_data_xfer_size": 4294967296}}\0',
    b'{"capabilities": {"max_data_xfer_size": 9223372036854775807}}\0',
    b'{"capabilities": {"migration": {}}}\0', b'{"capabilities": {"migration": {"pgsize": 0}}}\0',
    b'{"capabilities": {"migration": {"pgsize": %d}}}\0' % PAGE,
    b'{"capabilities": {"max_msg_fds": 1024, "max_data_xfer_size": 1048576}}\0',
    b'{"capabilities": {"twin_socket": {}}}\0', b'{"capabilities": {"twin_socket": {"supported": false}}}\0',
])
def test_accepted(ctx, text):
    client = ctx.connect(version=version_payload(text=text))
    assert client.server == {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "migration": {"pgsize": PAGE}}
    assert client.twin is None
    if ctx.nonblocking:
        alive(client)
    client.close()


def test_a_migration_page_size_is_ignored_when_migration_is_not_enabled():
    with Ctx() as ctx, ctx.connect(caps={"migration": {"pgsize": PAGE - 1}}) as client:
        assert client.server == {"max_msg_fds": 8, "max_data_xfer_size": 1048576}
        alive(client)


# --- the reply ----------------------------------------------------------------

@pytest.mark.parametrize("theirs,agreed", [(0, 0), (1, 1), (2, 2), (3, 2), (999, 2), (0xffff, 2)])
def test_the_minor_version_is_the_smaller_one(theirs, agreed):
    with Ctx() as ctx, ctx.connect(version=version_payload({}, minor=theirs)) as client:
        assert client.minor == agreed
        alive(client)


def reply_text(ctx, version):
    client = ctx.connect(attach=False)
    client.send(VERSION, version, msg_id=0xabcd)
    ctx.attach()
    reply = client.recv()
    assert (reply.msg_id, reply.cmd, reply.flags, reply.error) == (0xabcd, VERSION, F_REPLY, 0)
    assert reply.payload[:4] == struct.pack("<HH", 0, 2)
    text = reply.payload[4:]
    assert text.endswith(b"\0") and text.count(b"\0") == 1
    fds = reply.fds
    for fd in fds:
        os.close(fd)
    client.close()
    return reply, text[:-1], len(fds)


def members(text):
    """The names of the capabilities in their order."""
    return list(json.loads(text)["capabilities"])


def test_members_come_in_order_and_the_reply_ends_with_one_nul():
    with Ctx(migration=True) as ctx:
        _, text, fds = reply_text(ctx, version_payload(TWIN))
        assert json.loads(text) == {"capabilities": {
            "max_msg_fds": 8, "max_data_xfer_size": 1048576, "migration": {"pgsize": PAGE},
            "twin_socket": {"supported": True, "fd_index": 0}}}
        assert members(text) == ["max_msg_fds", "max_data_xfer_size", "migration", "twin_socket"]
        assert list(json.loads(text)["capabilities"]["twin_socket"]) == ["supported", "fd_index"]
        assert fds == 1


@pytest.mark.parametrize("version", [version_payload(), version_payload({}), version_payload({"migration": {}})])
@pytest.mark.parametrize("migration", [True, False])
def test_migration_is_offered_if_and_only_if_callbacks_are_set(version, migration):
    with Ctx(migration=migration) as ctx:
        _, text, _ = reply_text(ctx, version)
        assert ("migration" in members(text)) == migration


@pytest.mark.parametrize("proposal,answer", [
    ({"pgsizes": 4096}, {"pgsizes": PAGE}),
    ({"pgsizes": 0xfffffffffffff000 >> 1}, {"pgsizes": PAGE}),
    ({"write_multiple": True}, {"write_multiple": True}),
    ({"max_dma_maps": 1}, {"max_dma_maps": 1}),
    ({"max_dma_maps": 63}, {"max_dma_maps": 63}),
    ({"max_dma_maps": 65}, {"max_dma_maps": 64}),
    ({"max_dma_maps": 1 << 40}, {"max_dma_maps": 64}),
])
def test_of_the_other_members_only_those_that_were_proposed_come_back(proposal, answer):
    with Ctx(dma=True, max_regions=64) as ctx:
        _, text, _ = reply_text(ctx, version_payload(proposal))
        assert json.loads(text)["capabilities"] == {"max_msg_fds": 8, "max_data_xfer_size": 1048576, **answer}


def test_max_dma_maps_is_never_more_than_65535_though_the_device_takes_more():
    with Ctx(dma=True, max_regions=1000000) as ctx:
        _, text, _ = reply_text(ctx, version_payload({"max_dma_maps": 1000000}))
        assert json.loads(text)["capabilities"]["max_dma_maps"] == 65535


def test_what_qemu_sends_is_answered_in_the_room_qemu_has():
    with Ctx(dma=True, migration=True, max_regions=1000000) as ctx:
        version = version_payload(text=QEMU.encode() + b"\0", minor=0)
        assert 16 + len(version) == 214
        client = ctx.connect(attach=False)
        client.send(VERSION, version)
        ctx.attach()
        reply = client.recv()
        assert reply.size <= 214
        assert reply.payload[:4] == struct.pack("<HH", 0, 0)
        assert json.loads(reply.payload[4:-1])["capabilities"] == {
            "max_msg_fds": 8, "max_data_xfer_size": 1048576, "migration": {"pgsize": PAGE},
            "pgsizes": PAGE, "max_dma_maps": 65535, "write_multiple": True}


# --- the twin socket ----------------------------------------------------------

@pytest.mark.parametrize("caps,minor", [
    (TWIN, 2), (TWIN, 1), ({**TWIN, "max_msg_fds": 1}, 2), ({**TWIN, "max_msg_fds": 1024}, 2),
    ({"twin_socket": {"supported": True, "fd_index": 5}}, 2)])
def test_a_twin_socket_is_granted(caps, minor):
    with Ctx() as ctx, ctx.connect(version=version_payload(caps, minor=minor)) as client:
        assert client.server["twin_socket"] == {"supported": True, "fd_index": 0}
        assert (client.twin.family, client.twin.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        # The server has closed its copy of the client's end.
        assert names_of(client.twin.fileno()) == [client.twin.fileno()]
        alive(client)


@pytest.mark.parametrize("caps", [
    None, {}, {"twin_socket": {}}, {"twin_socket": {"supported": False}}, {**TWIN, "max_msg_fds": 0}])
def test_no_twin_socket(caps):
    with Ctx() as ctx:
        before = len(open_fds())
        with ctx.connect(caps=caps) as client:
            assert "twin_socket" not in client.server
            assert client.twin is None
            assert len([n for n in open_fds()]) <= before + 3  # both ends of the connection, and the poll descriptors
            alive(client)


# --- the client's limit of descriptors ----------------------------------------

def region_info(client, index, argsz):
    p = client.request(GET_REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))
    for fd in client.fds:
        os.close(fd)
    return p, len(client.fds)


def test_a_client_that_takes_no_descriptors_sees_a_region_without_mmap():
    fd = memfd(4 * PAGE)
    with Ctx() as ctx:
        ctx.setup_region(BAR0, 4 * PAGE, flags=RW | MEM, areas=[(0, PAGE), (2 * PAGE, PAGE)], fd=fd)
        client = ctx.connect(caps={"max_msg_fds": 0})
        assert region_info(client, BAR0, 80) == (struct.pack("<IIIIQQ", 32, 3, BAR0, 0, 4 * PAGE, 0), 0)
        client.close()
        lost(ctx, 1)
        client = ctx.connect(caps={"max_msg_fds": 1})
        p, fds = region_info(client, BAR0, 80)
        assert (len(p), fds) == (80, 1)
        assert struct.unpack("<IIII", p[:16]) == (80, 3 | 4 | 8, BAR0, 32)
    os.close(fd)


@pytest.mark.parametrize("caps,sent", [({"max_msg_fds": 0}, 0), (None, 3), ({"max_msg_fds": 2}, 2),
                                       ({"max_msg_fds": 8}, 3), ({"max_fds": 2}, 2), ({"max_fds": 0}, 0),
                                       ({"max_fds": 1, "max_msg_fds": 2}, 2), ({"max_msg_fds": 1, "max_fds": 2}, 2)])
def test_io_fds_are_sent_up_to_the_clients_limit_and_the_rest_has_no_index(caps, sent):
    with Ctx() as ctx:
        ctx.memory_region(BAR0, 64)
        fds = [eventfd() for _ in range(3)]
        for i, fd in enumerate(fds + fds[:1]):
            call("vfu_create_ioeventfd", ctx.p, BAR0, fd, 8 * i, 8, 0, 0, -1, 0)
        client = ctx.connect(caps=caps)
        p = client.request(GET_REGION_IO_FDS, struct.pack("<IIII", 16 + 4 * 48, 0, BAR0, 0))
        assert struct.unpack("<IIII", p[:16]) == (16 + 4 * 48, 0, BAR0, 4)
        indexes = [struct.unpack_from("<I", p, 16 + 48 * i + 16)[0] for i in range(4)]
        # newest first: the first descriptor again, then the third, the second, the first
        assert indexes == [i if i < sent else 0xffffffff for i in (0, 1, 2, 0)]
        assert len(client.fds) == sent
        for fd, original in zip(client.fds, [fds[0], fds[2], fds[1]]):
            os.write(original, struct.pack("<Q", 5 + original))
            assert os.read(fd, 8) == struct.pack("<Q", 5 + original)
            os.close(fd)
        alive(client)
        [os.close(fd) for fd in fds]


# --- the client's transfer size -----------------------------------------------

@pytest.mark.parametrize("limit", [1 << 20, (1 << 20) + 1, 1 << 32, (1 << 32) + 1, (1 << 63) - 1])
def test_a_transfer_size_above_one_mebibyte_counts_as_one_mebibyte(limit):
    with Ctx(migration=True) as ctx, ctx.connect(caps={"max_data_xfer_size": limit}) as client:
        client.set_state(S_PRE_COPY)
        ctx.read_data = lambda count: b"x" * 10
        size = (1 << 20) + 1
        client.request(MIG_DATA_READ, struct.pack("<II", 8 + size, size), expect=errno.EINVAL)
        size = 1 << 20
        p = client.request(MIG_DATA_READ, struct.pack("<II", 8 + size, size))
        assert p == struct.pack("<II", 18, 10) + b"x" * 10


def test_a_smaller_transfer_size_is_honoured():
    with Ctx(migration=True) as ctx, ctx.connect(caps={"max_data_xfer_size": 4}) as client:
        client.set_state(S_PRE_COPY)
        ctx.read_data = lambda count: b"x" * count
        client.request(MIG_DATA_READ, struct.pack("<II", 13, 5), expect=errno.EINVAL)
        assert client.request(MIG_DATA_READ, struct.pack("<II", 12, 4)) == struct.pack("<II", 12, 4) + b"xxxx"


# --- nobody waits for a slow client -------------------------------------------

SPLIT_MESSAGE = message(7, VERSION, version_payload({"max_msg_fds": 8}))


@pytest.mark.parametrize("first", range(0, len(SPLIT_MESSAGE)))
def test_a_version_message_in_two_pieces(first):
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        client.send_raw(SPLIT_MESSAGE[:first]) if first else None
        for _ in range(2):
            fails(errno.EAGAIN, ctx.attach)
            fails(errno.ENOTCONN, ctx.run)
        assert not ctx.readable(), "nothing to do, and the caller would spin"
        client.send_raw(SPLIT_MESSAGE[first:])
        assert ctx.readable()
        assert ctx.attach() == 0
        reply = client.recv()
        assert (reply.msg_id, reply.cmd, reply.flags) == (7, VERSION, F_REPLY)
        alive(client)


def test_a_version_message_byte_by_byte_driven_by_the_poll_descriptor():
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        for byte in SPLIT_MESSAGE[:-1]:
            client.send_raw(bytes([byte]))
            assert ctx.readable()
            fails(errno.EAGAIN, ctx.attach)
            assert not ctx.readable()
        client.send_raw(SPLIT_MESSAGE[-1:])
        assert ctx.readable()
        ctx.attach()
        assert client.recv().flags == F_REPLY
        alive(client)


def test_a_blocking_attach_takes_a_version_message_in_pieces():
    with Ctx(nonblocking=False) as ctx:
        client = ctx.connect(attach=False)
        attach = Background(ctx.attach)
        for byte in SPLIT_MESSAGE:
            client.send_raw(bytes([byte]))
        assert client.recv().flags == F_REPLY
        assert attach.result() == 0
        client.close()


@pytest.mark.parametrize("first", [1, 15, 16, 17, 30])
def test_a_descriptor_with_the_second_piece_is_closed_and_refused(first):
    with Ctx() as ctx:
        before = open_fds()
        client = ctx.connect(attach=False)
        fd = memfd(PAGE)
        client.send_raw(SPLIT_MESSAGE[:first])
        fails(errno.EAGAIN, ctx.attach)
        client.send_raw(SPLIT_MESSAGE[first:], [fd])
        os.close(fd)
        fails(errno.EINVAL, ctx.attach)
        assert is_error(client.recv(), 7, VERSION, errno.EINVAL)
        assert end_of_file(client.sock)
        client.close()
        assert open_fds() == before


@pytest.mark.parametrize("first,number", [(0, errno.ENOMSG), (5, errno.ECONNRESET), (16, errno.ENOMSG),
                                          (17, errno.ECONNRESET)])
def test_a_client_that_gives_up_half_way_makes_room_for_the_next(first, number):
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        client.send_raw(SPLIT_MESSAGE[:first]) if first else None
        fails(errno.EAGAIN, ctx.attach)
        client.close()
        assert ctx.readable()
        fails(number, ctx.attach)
        with ctx.connect() as client:
            alive(client)


def test_a_client_that_is_gone_before_its_reply_has_never_been_attached():
    with Ctx() as ctx:
        before = open_fds()
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload(TWIN))
        client.close()
        fails(errno.ECONNRESET, ctx.attach)
        assert ctx.events == [], "no device is reset for a client that never was"
        assert open_fds() == before
        with ctx.connect() as client:
            alive(client)


def test_what_comes_right_behind_the_version_message_is_executed_after_the_attach():
    with Ctx() as ctx:
        client = ctx.connect(attach=False)
        client.send_raw(message(1, VERSION, version_payload()) + info(2) + info(3) + info(4)[:20])
        ctx.attach()
        assert client.recv().cmd == VERSION
        assert client.nothing()
        assert ctx.readable(), "messages were received and not executed"
        ctx.executes(2)
        assert is_info(client.recv(), 2) and is_info(client.recv(), 3)
        client.send_raw(info(4)[20:])
        assert ctx.run() == 1
        assert is_info(client.recv(), 4)


def test_descriptors_behind_the_version_message_belong_to_their_message():
    with Ctx(dma=True) as ctx:
        client = ctx.connect(attach=False)
        client.send(VERSION, version_payload())
        fd = memfd(PAGE, b"here")
        client.send_raw(dma_map(5, 0, PAGE), [fd])
        ctx.attach()
        assert client.recv().flags == F_REPLY
        assert ctx.run() == 1
        assert client.recv().raw == header(5, DMA_MAP, 16, F_REPLY)
        _, sg = ctx.sgl(0, 4)
        assert c.string_at(ctx.sgl_get(sg)[0].base, 4) == b"here"
        os.close(fd)


def test_closing_the_client_makes_the_next_run_return_enotconn():
    with Ctx() as ctx:
        ctx.connect().close()
        lost(ctx)
        with ctx.connect() as client:
            alive(client)


def test_a_second_client_waits_until_the_first_has_gone():
    with Ctx() as ctx:
        first = ctx.connect()
        second = ctx.connect(attach=False)
        second.send(VERSION, version_payload())
        fails(errno.EINVAL, ctx.attach)
        alive(first)
        first.close()
        lost(ctx)
        assert ctx.readable(), "a client is waiting"
        ctx.attach()
        assert second.recv().flags == F_REPLY
        alive(second)
