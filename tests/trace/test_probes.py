"""The USDT probes: what tracers find in the library, and what they are told when one fires."""
import collections
import os
import pathlib
import re
import select
import shutil
import subprocess

import pytest

from engine import FILL, DST_LOCAL, IRQ, IRQ_ENABLE, descriptor, enable_msix, finish, ring_bell
from peer import (DMA_MAP, DMA_UNMAP, DEVICE_FEATURE, EXAMPLES, MSIX, RUNNING, STOP, STOP_COPY, Client, Device,
                  refused)

TOP = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = pathlib.Path(EXAMPLES).resolve().parent / "libvfio-user.so.0"
PAGE = (TOP / "docs/tracing.md").read_text()
PROVIDER = "vfio_user"
pytestmark = pytest.mark.skipif(os.uname().machine.startswith("ppc"), reason="there are no probes on POWER")
NOP = 0x90


def output(*command, **more):
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def documented():
    """Each probe of the page's table, with the number of its arguments."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE.split("## In a running server")[1], re.M)
    return {name: arguments.count(",") + 1 for name, arguments in rows}


def lines():
    """The page's lines for bpftrace, as the shell is given them."""
    block = re.search(r"```bpftrace\n(.*?)```", PAGE, re.S)[1]
    return [line for line in block.splitlines() if not line.startswith("#")]


Note = collections.namedtuple("Note", "provider name address arguments")


def notes(binary):
    """The probes that a file's notes tell of, with their addresses in that file."""
    sections = output("readelf", "--sections", "--wide", binary)
    base = int(re.search(r"\s\.stapsdt\.base\s+PROGBITS\s+(\w+)", sections)[1], 16)
    found = re.findall(
        r"Provider: (\S+)\s+Name: (\S+)\s+Location: (\w+), Base: (\w+), Semaphore: (\w+)\s+Arguments:(.*)",
        output("readelf", "--notes", "--wide", binary))
    # As tracers work it out: what an address was when the note was made is known by its base.
    return [Note(provider, name, int(location, 16) + base - int(was, 16), arguments.split())
            for provider, name, location, was, semaphore, arguments in found
            if int(semaphore, 16) == 0 or provider != PROVIDER]


def byte_at(binary, address):
    text = output("objdump", "--full-contents", f"--start-address={address}", f"--stop-address={address + 1}", binary)
    return int(re.search(rf"^ {address:x} (\w\w)", text, re.M)[1], 16)


def check_probes(binary):
    ours = [note for note in notes(binary) if note.provider == PROVIDER]
    assert {note.name for note in ours} == set(documented())
    for note in ours:
        assert len(note.arguments) == documented()[note.name], note
        if os.uname().machine == "x86_64":
            assert byte_at(binary, note.address) == NOP, note


def test_the_page_lists_probes():
    assert len(documented()) == 7 and documented()["message_received"] == 4


def test_the_library_has_them():
    check_probes(LIBRARY)


def test_a_stripped_library_has_them(tmp_path):
    shutil.copy(LIBRARY.resolve(), tmp_path / "stripped.so")
    output("strip", "--strip-all", tmp_path / "stripped.so")
    check_probes(tmp_path / "stripped.so")


# A probe as the macros of <sys/sdt.h> make it.
OTHER = r"""
__asm__(".text; 990: nop\n"
        ".pushsection .note.stapsdt, \"\", \"note\"\n"
        ".balign 4; .4byte 992f-991f, 994f-993f, 3\n"
        "991: .asciz \"stapsdt\"\n"
        "992: .balign 4\n"
        "993: .8byte 990b, _.stapsdt.base, 0; .asciz \"other\"; .asciz \"one\"; .asciz \"\"\n"
        "994: .balign 4; .popsection\n"
        ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"
        ".weak _.stapsdt.base; .hidden _.stapsdt.base\n"
        "_.stapsdt.base: .space 1; .size _.stapsdt.base, 1; .popsection");
"""


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_static_program_has_them_beside_those_of_others(tmp_path, ours_first):
    """What places are relative to is one for all of a program, whoever comes first in it."""
    archive = LIBRARY.with_name("libvfio-user.a")
    if not archive.exists():
        pytest.skip("built without the static library (-Ddefault_library=both)")
    if os.uname().machine != "x86_64":
        pytest.skip("what a probe looks like is known for x86-64")
    (tmp_path / "other.c").write_text(OTHER)
    output("cc", "-c", tmp_path / "other.c", "-o", tmp_path / "other.o")
    program, other = tmp_path / "program", tmp_path / "other.o"
    objects = [archive, other] if ours_first else [other, archive]
    output("cc", "-static", f"-I{archive.parent}/include", TOP / "tests/packaging/consumer.c", *objects, "-lm", "-o",
           program)
    check_probes(program)
    [note] = [note for note in notes(program) if note.provider == "other"]
    assert byte_at(program, note.address) == NOP


def test_every_probe_has_a_line_that_uses_what_it_has():
    used = set()
    for line in lines():
        for names, body in re.findall(r"((?:usdt:\$LIB:vfio_user:\w+ ?)+)(?:/.*?/ )?(\{.*?\}(?= usdt:| interval:|\"$))", line):
            for name in re.findall(r"vfio_user:(\w+)", names):
                used.add(name)
                assert all(int(n) < documented()[name] for n in re.findall(r"\barg(\d)", body)), line
    assert used == set(documented())


def needs_bpftrace():
    if shutil.which("bpftrace") is None:
        pytest.skip("there is no bpftrace")
    # What comes before the first probe of a script is itself one, in bpftrace.
    done = subprocess.run(["bpftrace", "-e", "BEGIN { exit(); }"], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"bpftrace does not run here: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def test_bpftrace_takes_each_line():
    needs_bpftrace()
    for line in lines():
        done = subprocess.run(["bash", "-c", line.replace("bpftrace -e", "bpftrace -d -e")], text=True, timeout=60,
                              capture_output=True, env={**os.environ, "LIB": str(LIBRARY)})
        assert done.returncode == 0, f"{line}\n{done.stderr}"


SCRIPT = " ".join(
    'usdt:%s:vfio_user:%s { printf("%%lu %s%s\\n", nsecs, %s); }' % (
        LIBRARY, name, name, " %lu" * count, ", ".join(f"arg{n}" for n in range(count)))
    for name, count in documented().items())


class Tracer:
    """A bpftrace that listens to a process, and what it has told: (time, name, argument...)."""

    def __init__(self, pid):
        self.told = []
        self.process = subprocess.Popen(["bpftrace", "-B", "line", "-p", str(pid), "-e", SCRIPT], bufsize=0,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def hear(self, seconds):
        """Waits for a line; whether there was one."""
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return False
        line = self.process.stdout.readline()
        assert line, f"bpftrace has ended, status {self.process.wait()}"
        if event := re.fullmatch(rb"(\d+) (\w+_\w+)((?: \d+)+)\n", line):
            self.told.append((int(event[1]), event[2].decode(), *map(int, event[3].split())))
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def device():
    device = Device()
    yield device
    device.end()


def one_of_each(client, number):
    """Makes every probe fire. Returns the ids of an unmap that succeeds and of one that fails."""
    address = number << 32
    client.map_dma(address, 0x2000)
    ring_bell(client, descriptor(FILL, DST_LOCAL | IRQ, dst=0, length=64, value=1, vector=0))
    finish(client)
    client.set_state(STOP_COPY)
    client.set_state(RUNNING)
    unmap = b"".join(n.to_bytes(size, "little") for n, size in [(24, 4), (0, 4), (address, 8), (0x2000, 8)])
    client.request(DMA_UNMAP, unmap)
    good = client.next_id
    assert refused(client.request, DMA_UNMAP, unmap) == 2
    return good, client.next_id


def test_bpftrace_is_told_what_happens(device):
    needs_bpftrace()
    with Client(device) as client:
        enable_msix(client)
        client.assign_irq(MSIX, 0)
        client.write_u32(IRQ_ENABLE, 0xffffffff)
        with Tracer(device.process.pid) as tracer:
            # It attaches to one after the other, and does not say when: until all have been seen.
            number = 0
            while {event[1] for event in tracer.told} != set(documented()):
                number += 1
                one_of_each(client, number)
                while tracer.hear(0.1):
                    pass
            number += 1
            first = client.next_id + 1
            good, bad = one_of_each(client, number)
            while ("message_replied", bad) not in [(event[1], event[3]) for event in tracer.told]:
                assert tracer.hear(60), "nothing more comes"
    # By their time, for each processor has a buffer of its own.
    told = [event[1:] for event in sorted(tracer.told)]
    context = told[0][1]
    assert context and all(event[1] == context for event in told)
    begin = told.index(("message_received", context, first, DMA_MAP, 16 + 32))
    end = told.index(("message_replied", context, bad, DMA_UNMAP, 2))
    last = told[begin:end + 1]
    messages = [event for event in last if event[0].startswith("message_")]
    assert [(event[0], event[2]) for event in messages] == [
        (what, msg_id) for msg_id in range(first, bad + 1)
        for what in ("message_received", "message_executed", "message_replied")]
    # What happens in between does so while the message that brings it about is executed.
    def within(msg_id):
        ids = [event[2] if event[0].startswith("message_") else None for event in last]
        return [event[0:1] + event[2:] for event in last[ids.index(msg_id) + 1:][:ids[ids.index(msg_id):].index(msg_id, 1) - 1]]
    address = number << 32
    assert within(first) == [("dma_mapped", address, 0x2000, 0)]
    assert within(good) == [("dma_unmapped", address, 0x2000)]
    assert [event[2:] for event in last if event[0] == "irq_triggered"] == [(0, 0)]
    changes = [event[2:] for event in last if event[0] == "state_changed"]
    assert changes == [(RUNNING, STOP), (STOP, STOP_COPY), (STOP_COPY, STOP), (STOP, RUNNING)]
    assert ("message_executed", context, bad, DMA_UNMAP, 2) in last
    assert {event[3] for event in messages} >= {DMA_MAP, DMA_UNMAP, DEVICE_FEATURE}
