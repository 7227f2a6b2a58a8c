"""Of every command and every reply, what a trace shows and what Wireshark shows of the file."""
import dataclasses
import os
import re
import shutil
import subprocess

import pytest

from between import F_ERROR, F_NO_REPLY, F_REPLY, TOP, Conversation, lines, message
from messages import ALL, FEATURE, messages

DISSECTOR = os.path.join(TOP, "tools", "wireshark", "vfio-user.lua")
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="no tshark here (scripts/install-deps test)")


def converse(said, *options):
    """Lets the two sides say all this; returns what the trace prints."""
    conversation = Conversation(*options)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x42000)
    ident = 0
    for one in said:
        ident += not one.flags & F_REPLY
        conversation.says(one.sender, message(ident, one.command, one.payload, one.flags, one.error), [fd] * one.fds)
    os.close(fd)
    return conversation.end()


def tshark(path, *options):
    done = subprocess.run(["tshark", "-X", f"lua_script:{DISSECTOR}", "-r", path, *options],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    wrong = [line for line in (done.stdout + done.stderr).splitlines() if "Lua" in line]
    assert not wrong, wrong[:3]
    return done.stdout


def columns(path, names):
    """For each packet {name: [values]}."""
    rows = tshark(path, "-T", "fields", "-E", "separator=/t", "-E", "aggregator=;", *(word for name in names for word in ("-e", name)))
    rows = [row.split("\t") for row in rows.splitlines()]
    assert all(len(row) == len(names) for row in rows)
    return [{name: cell.split(";") if cell else [] for name, cell in zip(names, row)} for row in rows]


def test_every_command_and_reply_is_among_the_messages():
    for flags in (0, F_REPLY):
        assert {one.command for one in messages if one.flags & (F_REPLY | F_ERROR) == flags} >= set(ALL)


def test_the_lines_say_what_is_in_the_messages():
    shown = lines(converse(messages, "--json"))
    assert len(shown) == len(messages)
    for one, line in zip(messages, shown):
        assert line["fields"] == one.fields, line
        kind = "reply" if one.flags & F_REPLY else "command"
        assert (line["from"], line["type"], line["size"], line["socket"]) == (one.sender, kind, 16 + len(one.payload), "main")
        assert line.get("errno") == (one.error or None)
        assert line.get("no_reply") == (None if kind == "reply" else bool(one.flags & F_NO_REPLY))
        assert ("latency" in line) == (kind == "reply")
        assert line.get("descriptors", []) == [{"kind": "memfd", "name": "guest", "size": 0x42000}] * one.fds


def value(text):
    """What tshark prints, as a number where it is one."""
    if text in ("True", "False"):
        return int(text == "True")
    return int(text, 0) if re.fullmatch(r"0x[0-9a-f]+|[0-9]+", text) else text


@needs_tshark
def test_wireshark_shows_every_field(tmp_path):
    path = str(tmp_path / "trace.pcapng")
    converse(messages, "--write", path)
    names = sorted({f"vfio_user.{name}" for one in messages for name in one.shark})
    shown = columns(path, names + ["vfio_user.command", "vfio_user.from_server", "vfio_user.request_in", "_ws.expert.message"])
    assert len(shown) == len(messages)
    asked = None
    for number, (one, packet) in enumerate(zip(messages, shown), 1):
        assert packet["vfio_user.command"] == [str(one.command)]
        assert value(packet["vfio_user.from_server"][0]) == (one.sender == "server")
        for name, wanted in one.shark.items():
            # Data of digits only are data all the same.
            got = [text if isinstance(wanted, str) or isinstance(wanted, list) and isinstance(wanted[0], str) else value(text)
                   for text in packet[f"vfio_user.{name}"]]
            assert got == (wanted if isinstance(wanted, list) else [wanted]), (number, one, name)
        reply = one.flags & F_REPLY
        assert packet["vfio_user.request_in"] == ([str(asked)] if reply else [])
        assert packet["_ws.expert.message"] == (["An error reply"] if one.flags & F_ERROR else [])
        asked = asked if reply else number


@needs_tshark
def test_nothing_of_a_message_is_left_over(tmp_path):
    """All bytes of each payload belong to some field: that nobody knows is only in messages that nobody knows."""
    path = str(tmp_path / "trace.pcapng")
    converse(messages, "--write", path)
    for one, packet in zip(messages, columns(path, ["vfio_user.payload"])):
        assert (packet["vfio_user.payload"] != []) == (one.command == 99 and one.payload != b""), one


@needs_tshark
def test_messages_that_are_too_short_are_said_to_be(tmp_path):
    """Each message with each shorter payload: no error in the dissector, and a word about it where a field is missing."""
    path = str(tmp_path / "trace.pcapng")
    short = [dataclasses.replace(one, payload=one.payload[:size], fds=0) for one in messages if not one.flags & F_ERROR
             for size in range(len(one.payload))]
    shown = lines(converse(short, "--json", "--write", path))
    assert len(shown) == len(short)
    told = columns(path, ["_ws.expert.message"])
    missing = 0
    for one, line, packet in zip(short, shown, told):
        malformed = "malformed" in line["fields"]
        missing += malformed
        if malformed and one.command != FEATURE and not line["fields"]["malformed"].endswith("are promised"):
            assert "The message is shorter than what it says is in it" in packet["_ws.expert.message"], (one, packet)
    assert missing > len(short) // 3


@needs_tshark
def test_the_dissector_takes_what_is_not_vfio_user(tmp_path):
    path = str(tmp_path / "trace.pcapng")
    conversation = Conversation("--write", path)
    for _ in range(2):
        conversation.client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert conversation.server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
    conversation.end()
    shown = columns(path, ["vfio_user.payload", "vfio_user.no_message", "_ws.col.Info"])
    assert b"".join(bytes.fromhex(packet["vfio_user.payload"][0]) for packet in shown) == 2 * b"GET / HTTP/1.1\r\n\r\n"
    assert all(packet["_ws.col.Info"] == ["not vfio-user"] for packet in shown)
