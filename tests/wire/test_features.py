"""DEVICE_FEATURE: probe, get and set of the device's features."""
import errno
import os
import struct

import pytest

from libvfu import *
from guest import *

GET, SET, PROBE = FEATURE_GET, FEATURE_SET, FEATURE_PROBE
OPERATIONS = {F_MIGRATION: GET, F_STATE: GET | SET, F_LOG_START: SET, F_LOG_STOP: SET, F_LOG_REPORT: GET}
UNKNOWN = [0, 3, 4, 5, 9, 10, 11, 255, 256 + F_STATE, 0xffff]


@pytest.fixture
def device():
    with attached(dma=True, migration=True) as pair:
        yield pair


@pytest.fixture
def quiescing():
    with attached(dma=True, migration=True, quiesce=True) as pair:
        yield pair


@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize("flags", [F_MIGRATION | GET, F_LOG_STOP | SET, F_STATE | PROBE])
def test_a_payload_below_8_bytes(device, n, flags):
    ctx, client = device
    client.request(DEVICE_FEATURE, struct.pack("<II", 64, flags)[:n], expect=errno.EINVAL)
    assert ctx.events == []


# --- probe -----------------------------------------------------------------------
@pytest.mark.parametrize("op", [0, GET, SET, GET | SET])
@pytest.mark.parametrize("feature", OPERATIONS)
def test_probe_succeeds_if_all_operations_named_are_there_and_echoes_the_request(device, feature, op):
    ctx, client = device
    if op & ~OPERATIONS[feature]:
        client.feature(feature | op | PROBE, expect=errno.EINVAL)
        return
    for data in (b"", b"\x01\x02\x03", bytes(range(200))):
        for argsz in (8 + len(data), 0xffffffff):
            p = client.feature(feature | op | PROBE, data, argsz=argsz)
            assert p == struct.pack("<II", argsz, feature | op | PROBE) + data
    assert ctx.events == []
    assert client.get_state() == S_RUNNING


@pytest.mark.parametrize("argsz, data", [(2, b""), (0, b""), (7, b""), (8, b"x"), (11, b"1234")])
def test_probe_with_argsz_below_the_payload(device, argsz, data):
    ctx, client = device
    client.feature(F_STATE | PROBE, data, argsz=argsz, expect=errno.EINVAL)


def test_probe_changes_nothing(device):
    ctx, client = device
    client.feature(F_STATE | SET | PROBE, struct.pack("<II", S_STOP, 0))
    assert client.get_state() == S_RUNNING
    client.feature(F_LOG_START | SET | PROBE, struct.pack("<QII", PAGE, 0, 0))
    client.log_start(2 * PAGE)
    assert ctx.events == []


# --- which operations there are ----------------------------------------------------
@pytest.mark.parametrize("op", [0, GET, SET, GET | SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET])
@pytest.mark.parametrize("feature", UNKNOWN)
def test_an_unknown_feature(device, feature, op):
    ctx, client = device
    client.feature(feature | op, b"\0" * 64, expect=errno.EINVAL)


@pytest.mark.parametrize("feature, op", [(F_MIGRATION, SET), (F_LOG_START, GET), (F_LOG_STOP, GET), (F_LOG_REPORT, SET)])
def test_an_operation_that_the_feature_has_not(device, feature, op):
    ctx, client = device
    client.feature(feature | op, b"\0" * 64, expect=errno.EINVAL)
    client.feature(feature | op, expect=errno.EINVAL)


@pytest.mark.parametrize("feature", OPERATIONS)
def test_no_operation_and_get_and_set_together(device, feature):
    ctx, client = device
    for op in (0, GET | SET):
        client.feature(feature | op, struct.pack("<QQQ", 2, 0, 0), argsz=64, expect=errno.EINVAL)
    assert client.get_state() == S_RUNNING
    assert ctx.events == []


@pytest.mark.parametrize("bit", range(19, 32))
@pytest.mark.parametrize("flags", [F_STATE | GET, F_LOG_STOP | SET, F_MIGRATION | PROBE])
def test_unknown_operations(device, bit, flags):
    ctx, client = device
    client.feature(flags | 1 << bit, argsz=64, expect=errno.EINVAL)


@pytest.mark.parametrize("op", [GET, SET, PROBE, PROBE | GET, PROBE | SET])
@pytest.mark.parametrize("feature", OPERATIONS)
def test_without_migration_callbacks_there_is_no_feature(feature, op):
    with attached(dma=True) as (ctx, client):
        client.feature(feature | op, struct.pack("<QQQ", PAGE, 0, 0), argsz=64, expect=errno.EINVAL)


# --- get ----------------------------------------------------------------------------
def test_migration_is_stop_copy_and_pre_copy(device):
    ctx, client = device
    p = client.feature(F_MIGRATION | GET, argsz=16)
    assert p == struct.pack("<IIQ", 16, F_MIGRATION | GET, 5)


def test_the_state_is_running_at_first(device):
    ctx, client = device
    p = client.feature(F_STATE | GET, argsz=16)
    assert p == struct.pack("<IIII", 16, F_STATE | GET, S_RUNNING, 0)


@pytest.mark.parametrize("feature", [F_MIGRATION, F_STATE])
@pytest.mark.parametrize("argsz", [0, 8, 15])
def test_get_with_argsz_below_16(device, feature, argsz):
    ctx, client = device
    client.feature(feature | GET, argsz=argsz, expect=errno.EINVAL)
    client.feature(feature | GET, b"\0" * 8, argsz=argsz, expect=errno.EINVAL)


@pytest.mark.parametrize("feature", [F_MIGRATION, F_STATE])
@pytest.mark.parametrize("data, argsz", [(b"", 17), (b"", 0xffffffff), (b"\xff" * 8, 16), (b"\xff" * 100, 108)])
def test_the_reply_of_get_is_16_bytes_whatever_the_request_had(device, feature, data, argsz):
    ctx, client = device
    p = client.feature(feature | GET, data, argsz=argsz)
    assert len(p) == 16 and p[:8] == struct.pack("<II", 16, feature | GET)
    assert struct.unpack("<Q", p[8:])[0] == (5 if feature == F_MIGRATION else S_RUNNING)


# --- set ----------------------------------------------------------------------------
SETTABLE = [(F_STATE, struct.pack("<II", S_STOP, 77)), (F_LOG_START, struct.pack("<QII", PAGE, 0, 0)),
            (F_LOG_STOP, b""), (F_LOG_STOP, b"data")]


@pytest.mark.parametrize("feature, data", SETTABLE)
def test_the_reply_of_set_repeats_the_request(device, feature, data):
    ctx, client = device
    for argsz in (8 + len(data), 0xffffffff):
        assert client.feature(feature | SET, data, argsz=argsz) == struct.pack("<II", argsz, feature | SET) + data


def test_the_reply_of_set_repeats_more_than_the_feature_needs(device):
    ctx, client = device
    data = struct.pack("<II", S_STOP, 0xffffffff) + bytes(range(100))
    assert client.feature(F_STATE | SET, data) == struct.pack("<II", 108 + 8, F_STATE | SET) + data
    assert client.get_state() == S_STOP


@pytest.mark.parametrize("feature, data", SETTABLE)
def test_set_with_argsz_below_the_payload(device, feature, data):
    ctx, client = device
    for argsz in (0, 7, 7 + len(data)):
        client.feature(feature | SET, data, argsz=argsz, expect=errno.EINVAL)
    assert client.get_state() == S_RUNNING
    assert ctx.events == []


@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_set_state_needs_8_bytes(device, n):
    ctx, client = device
    data = struct.pack("<II", S_STOP, 0)[:n]
    client.feature(F_STATE | SET, data, expect=errno.EINVAL)
    client.feature(F_STATE | SET, data, argsz=16, expect=errno.EINVAL)
    assert ctx.events == []
    assert client.get_state() == S_RUNNING


# --- quiesce -------------------------------------------------------------------------
@pytest.mark.parametrize("flags, data", [
    (F_STATE | GET, b""), (F_MIGRATION | GET, b""), (F_STATE | SET | PROBE, b""), (F_LOG_START | SET | PROBE, b""),
    (F_LOG_STOP | PROBE, b"")])
def test_gets_and_probes_do_not_ask_for_quiesce(quiescing, flags, data):
    ctx, client = quiescing
    client.feature(flags, data, argsz=64)
    assert ctx.events == []


@pytest.mark.parametrize("feature", [3, 6, 7, 0xffff])
def test_gets_of_other_features_do_not_ask_for_quiesce(quiescing, feature):
    ctx, client = quiescing
    client.feature(feature | GET, argsz=64, expect=errno.EINVAL)
    assert ctx.events == []


def test_a_report_does_not_ask_for_quiesce(quiescing):
    ctx, client = quiescing
    fd = memfd(PAGE)
    client.map(0, PAGE, fd)
    client.log_start()
    ctx.events.clear()
    client.report(0, PAGE)
    assert ctx.events == []
    os.close(fd)


@pytest.mark.parametrize("feature, data, after", [
    (F_STATE, struct.pack("<II", S_STOP, 0), [("state", CB_STOP)]), (F_LOG_START, struct.pack("<QII", PAGE, 0, 0), []),
    (F_LOG_STOP, b"", [])])
def test_sets_ask_for_quiesce_once(quiescing, feature, data, after):
    ctx, client = quiescing
    client.feature(feature | SET, data)
    assert ctx.events == ["quiesce"] + after


@pytest.mark.parametrize("feature, data", SETTABLE[:3])
def test_a_failing_quiesce_refuses_the_set(quiescing, feature, data):
    ctx, client = quiescing
    ctx.quiesce_errno = errno.ENOTTY
    client.feature(feature | SET, data, expect=errno.ENOTTY, count=0)
    assert ctx.events == ["quiesce"]
    ctx.quiesce_errno = 0
    assert client.get_state() == S_RUNNING
    client.log_start(2 * PAGE)


def test_a_set_waits_for_an_asynchronous_quiesce(quiescing):
    ctx, client = quiescing
    ctx.quiesce_errno = errno.EBUSY
    msg_id = client.send(DEVICE_FEATURE, struct.pack("<IIII", 16, F_STATE | SET, S_PRE_COPY, 0))
    for _ in range(3):
        fails(errno.EBUSY, ctx.run)
    assert ctx.events == ["quiesce"] and client.nothing()
    ctx.quiesced()
    reply = client.recv()
    assert (reply.msg_id, reply.flags) == (msg_id, F_REPLY)
    assert reply.payload == struct.pack("<IIII", 16, F_STATE | SET, S_PRE_COPY, 0)
    assert ctx.events == ["quiesce", ("state", CB_PRE_COPY)]
    assert ctx.run() == 0
    assert client.get_state() == S_PRE_COPY
