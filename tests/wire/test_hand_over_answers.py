"""Live upgrade: what is due. Answers to commands of the server's that nobody waits for any longer, on either socket; and a
reply that is made while it is sent."""
import pytest
from dma_peer import *
from guest import Guest, put
from guest import sgl_read as guest_read
from hand_over import Device, Upgrade, device
from test_long_reports import PART, report_request, runs

LENGTH = 4096
SOCKETS = pytest.mark.parametrize("caps", [None, TWIN], ids=["one socket", "twin socket"])


def idle(ctx):
    """Has it receive what is there."""
    while ctx.readable():
        assert ctx.run() == 0


@SOCKETS
@pytest.mark.parametrize("cut", [0, 1, 16, 17, 32, 33, 4000, LENGTH + 32])
def test_an_answer_that_comes_late_is_dropped_by_the_new_process(caps, cut):
    """A part of it, or all, has been received by the old one, or lies in its socket."""
    with device(dma=True) as old, attach(old, caps) as client:
        late = good(*interrupted(client, read, old, LENGTH))
        client.send_raw(late[:cut], sock=client.dma)
        idle(old)
        new = old.upgrade(client)
        client.send_raw(late[cut:], sock=client.dma)
        idle(new)
        assert client.nothing(), "nobody is told of it"
        client.write(BAR0, 0, b"in step.")
        assert client.read(BAR0, 0, 8) == b"in step."
        server = peer(client, good)
        assert read(new, 64) == contents(BASE, 64)
        server.result()


@SOCKETS
def test_an_answer_that_lies_in_the_socket_is_dropped_by_the_new_process(caps):
    with device(dma=True) as old, attach(old, caps) as client:
        late = [good(*interrupted(client, read, old, LENGTH)) for _ in range(3)]
        client.send_raw(b"".join(late), sock=client.dma)
        new = old.upgrade(client)
        idle(new)
        # An id that is due no more is none of an answer.
        server = peer(client, good)
        assert read(new, 64) == contents(BASE, 64)
        server.result()
        if caps is None:
            client.send_raw(late[0])
            new.run()
            reply = client.recv()
            assert reply.flags == F_REPLY | F_ERROR and reply.error == errno.EINVAL


class Asks(Device):
    """It wants to know something of the client before it is its device."""

    def _load(self, *args):
        try:
            guest_read(self, self.sgl(0, 8)[1], 8)
        except Failed as e:
            self.events.append(("refused", e.errno))
        return super()._load(*args)


@pytest.mark.parametrize("caps", [None, {"twin_socket": {"supported": True}}], ids=["one socket", "twin socket"])
@pytest.mark.parametrize("stays", [True, False])
def test_the_client_is_asked_nothing_before_the_device_is_the_new_ones(caps, stays):
    """What it says meanwhile would be received by a process that may not go on."""
    with device(dma=True) as old, old.connect(caps=caps) as client:
        client.map(0, PAGE)
        msg_id = client.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))

        def spoil(new):
            new.load_errno = errno.EILSEQ if stays else 0
        with Guest(client, bytearray(PAGE), sock=client.twin) as guest:
            upgrade = Upgrade(old, make=Asks, dma=True, before=spoil)
        assert ("refused", errno.ENOTCONN) in upgrade.new.events and guest.messages == []
        if stays:
            upgrade.failed(errno.EILSEQ)
        else:
            assert upgrade.answers == [1]
            client.ctx = upgrade.new
        client.ctx.executes(1)
        assert client.recv().msg_id == msg_id
        with Guest(client, bytearray(b"12345678"), sock=client.twin):
            assert guest_read(client.ctx, client.ctx.sgl(0, 8)[1], 8) == b"12345678"
        if not stays:
            upgrade.new.destroy()


def test_a_report_of_dirty_pages_is_made_to_its_end_by_the_new_process():
    """Of which a part is sent, a part lies in the old process, and the rest is not made yet."""
    page, fine = 2 << 20, 64
    size = 3 * PART * 8 * fine
    guest = memfd(size)
    with device(dma=True, migration=True) as old, old.connect() as client:
        client.map(0, size, guest)
        client.log_start(page=page)
        pages = [0, 1, size // page // 2, size // page - 1]
        for number in pages:
            put(old, number * page, 1)
        request, length = report_request(0, size, fine)
        assert length > 32 + 2 * PART
        client.send(DEVICE_FEATURE, request)
        old.run()
        assert not old.readable(), "it is not stuck"
        data, ctx = b"", old
        client.sock.settimeout(0)
        while len(data) < 16 + length:
            try:
                data += client.sock.recv(16 + length - len(data))
            except BlockingIOError:
                # All is read that was sent: what is ready goes out before the old one is left, the rest is the new one's.
                ctx = old.upgrade(client)
                if ctx.readable():
                    ctx.run()
        client.sock.settimeout(20)
        reply = Reply(data, [])
        assert (reply.size, reply.flags) == (16 + length, F_REPLY)
        expected = []
        for number in pages:
            first, end = number * page // fine, (number + 1) * page // fine
            if expected and expected[-1][1] == first:
                expected[-1] = expected[-1][0], end
            else:
                expected.append((first, end))
        assert runs(reply.payload[32:]) == expected
        assert client.report(0, size, page=page) == 0, "what was reported is clean"
    os.close(guest)
