"""The tool that drives a migration as a VMM would, between two processes of the example."""
import json
import os
import signal
import subprocess
import xml.etree.ElementTree

import pytest

from peer import *

TOOL = os.environ.get("VFU_TOOL") or os.path.join(
    os.path.dirname(__file__), "..", "..", "target", "debug", "vfu")


@pytest.fixture
def devices():
    made = []

    def make(name="dma-engine"):
        device = Device(name)
        Client(device).close()  # it listens
        made.append(device)
        return device
    yield make
    for device in made:
        if device.process.poll() is None:
            device.end()


# A machine that is busy with other tests may take long to answer.
PATIENT = [TOOL, "--timeout", "60"]


def vfu(*arguments, check=0):
    done = subprocess.run([*PATIENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == check, done.stderr
    return done


def state(device):
    return json.loads(vfu("state", device.path, "--json").stdout)


@pytest.mark.parametrize("run", range(5))
def test_a_device_moves_under_load_and_nothing_differs(devices, run):
    source, destination = devices(), devices()
    done = vfu("migrate", source.path, destination.path, "--load", "--verify", "--json", "--memory", "16M")
    summary = json.loads(done.stdout)
    assert summary["verified"] is True, summary


@pytest.mark.parametrize("run", range(3))
def test_resets_while_a_device_moves_under_load_and_nothing_differs(devices, run):
    source, destination = devices(), devices()
    done = vfu("migrate", source.path, destination.path, "--load", "--verify", "--json", "--memory", "16M",
               "--reset-during", "5")
    summary = json.loads(done.stdout)
    assert summary["resets"] == 5 and summary["verified"] is True, summary


def test_rounds_end_at_their_limit_however_much_is_left(devices):
    source, destination = devices(), devices()
    done = vfu("migrate", source.path, destination.path, "--load", "--verify", "--json", "--memory", "16M",
               "--max-downtime", "0", "--rounds", "4")
    assert json.loads(done.stdout)["rounds"] == 4


def migrate_and_kill(source, destination, victim):
    """Kills one side once the first round is over; returns the tool's exit code and last words."""
    tool = subprocess.Popen([*PATIENT, "migrate", source.path, destination.path, "--load", "--memory", "16M",
                             "--max-downtime", "0", "--rounds", "1000"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    words = []
    for line in tool.stderr:
        words.append(line)
        if line.startswith("vfu: round 1:"):
            victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    return tool.wait(120), words[-1]


def test_the_destination_dies_and_the_source_runs_on(devices):
    source, destination = devices(), devices()
    code, words = migrate_and_kill(source, destination, destination)
    assert code == 5, words
    assert state(source)["state"] == "RUNNING"
    vfu("dma", source.path, "copy", "--verify")


def test_the_source_dies_and_the_destination_is_as_new(devices):
    source, destination = devices(), devices()
    code, words = migrate_and_kill(source, destination, source)
    assert code == 5, words
    assert state(destination)["state"] == "RUNNING"
    vfu("dma", destination.path, "copy", "--verify")


def test_a_saved_device_is_loaded_elsewhere_and_by_its_own_kind_only(devices, tmp_path):
    source, destination, other = devices(), devices(), devices("gpio-idio-16")
    file = str(tmp_path / "saved")
    vfu("write", source.path, "BAR2", "0x2000", "0x12345678")
    vfu("save", source.path, file)
    vfu("load", destination.path, file)
    assert state(destination)["state"] == "RUNNING"
    vfu("load", other.path, file, check=1)
    damaged = bytearray(open(file, "rb").read())
    damaged[len(damaged) // 2] ^= 1
    open(file, "wb").write(damaged)
    refused = vfu("load", destination.path, file, check=1)
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("converges", [True, False], ids=["converged", "not converged"])
def test_a_report_adds_up_and_says_why_the_rounds_ended(devices, tmp_path, converges):
    limits = ["--max-downtime", "1000"] if converges else ["--max-downtime", "0", "--rounds", "3"]
    shown = {}
    for kind in ("json", "svg"):
        source, destination = devices(), devices()
        path = str(tmp_path / f"report.{kind}")
        vfu("migrate", source.path, destination.path, "--load", "--memory", "16M", "--report", path, *limits)
        with open(path) as file:
            shown[kind] = file.read()
    report = json.loads(shown["json"])
    history, stop = report["history"], report["stop"]
    assert (report["converged"], len(history)) == (converges, report["rounds"])
    for kind in ("memory", "device"):
        assert sum(part["moved"][kind] for part in [*history, stop]) == report["moved"][kind]
    ends = [(part["start_seconds"], part["start_seconds"] + part["seconds"]) for part in [*history, stop]]
    assert all(begin < end for begin, end in ends) and all(a[1] <= b[0] for a, b in zip(ends, ends[1:])), ends
    assert stop["seconds"] == report["downtime_seconds"]
    assert [part["left_bytes"] <= part["fitting_bytes"] for part in history] == (len(history) - 1) * [False] + [converges]
    assert all(part["left_bytes"] == part["dirty_pages"] * report["page_size"] + part["moved"]["device"] for part in history)

    picture = xml.etree.ElementTree.fromstring(shown["svg"])
    text = " ".join(" ".join(picture.itertext()).split())
    assert ("not converged in 3 rounds: " in text) != converges and ("converged after 1 round: " in text) == converges, text
    for words in ("downtime, ", "left to be moved", "fits into the downtime allowed", "device data", "seconds"):
        assert words in text, text


def test_a_report_has_a_name_that_says_what_it_is(tmp_path):
    done = subprocess.run([TOOL, "migrate", "a", "b", "--report", str(tmp_path / "report.png")], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "the name has to end in .svg or .json" in done.stderr
