"""Between a client and our server: what the client sees is what it sees without, and the trace has all of it."""
import json
import os
import socket
import struct
import subprocess

import pytest

from between import TOOL, Trace, lines, message, receive, send
from peer import Client, Device

VERSION, DMA_MAP, GET_INFO, GET_REGION_INFO, REGION_READ, RESET = 1, 2, 4, 5, 9, 13
TWIN = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"twin_socket":{"supported":true}}}\0'


@pytest.fixture
def devices():
    """Makes examples that listen."""
    made = []

    def make():
        made.append(Device())
        Client(made[-1]).close()
        return made[-1]
    yield make
    for device in made:
        device.end()


@pytest.fixture
def device(devices):
    return devices()


# A machine that is busy with other tests may take long to answer.
PATIENT = [TOOL, "--timeout", "60"]


def vfu(*arguments):
    done = subprocess.run([*PATIENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kinds(fds):
    """What descriptors are of; they are closed."""
    shown = []
    for fd in fds:
        shown.append((os.readlink(f"/proc/self/fd/{fd}").split(":")[0], os.fstat(fd).st_mode, os.get_blocking(fd)))
        os.close(fd)
    return shown


def transcript(path):
    """A client's session, to the byte, with what each of its replies brought; requests one by one, together, and in pieces."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(path)
    heard = []

    def hear(count=1):
        for _ in range(count):
            data, fds = receive(sock)
            heard.append((data, kinds(fds)))

    with sock:
        send(sock, message(1, VERSION, struct.pack("<HH", 0, 1) + TWIN))
        hear()
        together = b"".join(message(2 + index, GET_REGION_INFO, struct.pack("<IIIIQQ", 256, 0, index, 0, 0, 0)) for index in range(9))
        send(sock, together)
        hear(9)
        for byte in message(20, GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)):
            send(sock, bytes([byte]))
        hear()
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 1 << 20)
        # A read and a map, of which only the second brings a descriptor, right behind each other.
        send(sock, message(21, REGION_READ, struct.pack("<QII", 0, 7, 256)))
        send(sock, message(22, DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x100000, 1 << 20)), [memory])
        send(sock, message(23, DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x100000, 1 << 20)), [memory])  # refused
        send(sock, message(24, RESET))
        hear(4)
        os.close(memory)
    return heard


def test_a_client_sees_the_same_bytes_and_descriptors(device):
    direct = transcript(device.path)
    with Trace(device.path, "--json") as trace:
        assert transcript(trace.path) == direct
        shown = lines(trace.end())
    assert [line["command"] for line in shown if line["type"] == "command"] == \
        ["VERSION"] + 9 * ["DEVICE_GET_REGION_INFO"] + ["DEVICE_GET_INFO", "REGION_READ", "DMA_MAP", "DMA_MAP", "DEVICE_RESET"]
    maps = [line for line in shown if line["command"] == "DMA_MAP" and line["type"] == "command"]
    assert [[fd["kind"] for fd in line["descriptors"]] for line in maps] == [["memfd"], ["memfd"]]
    assert all("malformed" not in line["fields"] and ("latency" in line) == (line["type"] == "reply") for line in shown)


@pytest.mark.parametrize("twin", [[], ["--twin-socket"]], ids=["one socket", "twin socket"])
def test_the_engine_moves_memory_by_messages(device, twin):
    arguments = ["copy", "--bytes", "64K", "--memory", "message", "--verify", "--json", *twin]
    direct = json.loads(vfu("dma", device.path, *arguments))
    with Trace(device.path, "--json") as trace:
        traced = json.loads(vfu("dma", trace.path, *arguments))
        shown = lines(trace.end())
    for volatile in ("seconds", "bytes_per_second", "microseconds"):
        direct.pop(volatile, None), traced.pop(volatile, None)
    assert traced == direct
    moved = [line for line in shown if line["command"] in ("DMA_READ", "DMA_WRITE")]
    assert moved and {(line["socket"], line["from"]) for line in moved if line["type"] == "command"} == \
        {("twin" if twin else "main", "server")}
    assert sum(line["fields"]["count"] for line in moved if line["type"] == "reply" and line["command"] == "DMA_WRITE") >= 64 << 10
    [given] = [line for line in shown if line["command"] == "VERSION" and line["type"] == "reply"]
    assert [fd["kind"] for fd in given.get("descriptors", [])] == (["socket"] if twin else [])


def test_the_engine_moves_memory_through_a_mapping(device):
    with Trace(device.path, "--json") as trace:
        vfu("dma", trace.path, "copy", "--bytes", "1M", "--verify")
        shown = lines(trace.end())
    assert not any(line["command"].startswith("DMA_READ") for line in shown)
    [armed] = [line for line in shown if line["command"] == "DEVICE_SET_IRQS" and line.get("descriptors")]
    assert {fd["kind"] for fd in armed["descriptors"]} == {"eventfd"}
    written = [line["fields"] for line in shown if line["command"] == "REGION_WRITE" and line["type"] == "command"]
    assert any("MSI-X Message Control" in fields.get("registers", []) for fields in written), written


def test_a_device_moves_between_two_traces(devices):
    source, destination = devices(), devices()
    with Trace(source.path, "--json") as first, Trace(destination.path, "--json") as second:
        done = json.loads(vfu("migrate", first.path, second.path, "--load", "--verify", "--json", "--memory", "16M"))
        assert done["verified"] is True, done
        shown = {"source": lines(first.end()), "destination": lines(second.end())}
    states = {side: [line["fields"]["device_state"] for line in all if line["type"] == "command" and
                     line["command"] == "DEVICE_FEATURE" and "device_state" in line["fields"]] for side, all in shown.items()}
    assert states["source"][:2] == ["PRE_COPY", "STOP_COPY"], states
    assert states["destination"][0] == "RESUMING" and states["destination"][-1] == "RUNNING", states
    moved = [line["fields"]["size"] for line in shown["source"] if line["command"] == "MIG_DATA_READ" and line["type"] == "reply"]
    put = [line["fields"]["size"] for line in shown["destination"] if line["command"] == "MIG_DATA_WRITE" and line["type"] == "command"]
    assert sum(moved) == sum(put) > 0
    assert any("dirty_pages" in line["fields"] for line in shown["source"])
