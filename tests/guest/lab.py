"""A Linux guest in QEMU, to see what a device looks like from there."""
import json
import os
import pathlib
import select
import socket
import struct
import subprocess
import tempfile
import time

from parts import CACHE, TOP, emulator, initramfs, kernel, program

# Bounds only what would otherwise hang; a guest under TCG on a busy machine is slow.
PATIENCE = 180
# The kernel uses the IOMMU for all devices, and takes back at once what is not used any more.
TRANSLATED = " intel_iommu=on iommu.passthrough=0 iommu.strict=1"
# The vfio-user message that opens a connection: id, command, size, flags, error, and version 0.2.
VERSION = struct.pack("<HHIIIHH", 1, 1, 20, 0, 0, 0, 2)


# --- a running guest ----------------------------------------------------------

class Guest:
    """QEMU with a guest that waits for commands; as a context, it is gone at the end, however that comes."""

    def __init__(self, root, image, devices=(), memory="512M", accelerator=None, iommu=False, shared=True):
        """With iommu, the guest gives its devices addresses of their own, page by page; shared: it can share its
        memory with them."""
        self.folder = tempfile.TemporaryDirectory()
        serial, qmp = f"{self.folder.name}/serial", f"{self.folder.name}/qmp"
        self.text = ""
        self.sockets = []
        accelerator = accelerator or best_accelerator(root)
        command = emulator(root) + [
            "-machine", "q35,memory-backend=m,kernel-irqchip=split" if iommu else "pc,memory-backend=m", "-accel", accelerator,
            # What a newer processor can do costs time to emulate.
            "-cpu", "max" if accelerator == "kvm" else "qemu64",
            "-m", memory, "-object", f"memory-backend-memfd,id=m,size={memory},share=on" if shared else f"memory-backend-ram,id=m,size={memory}",
            "-kernel", str(kernel(root)), "-initrd", str(image),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0" + (TRANSLATED if iommu else ""), "-nodefaults", "-display", "none",
            "-chardev", f"socket,id=s,path={serial},server=on,wait=on", "-serial", "chardev:s",
            "-qmp", f"unix:{qmp},server=on,wait=off",
        ]
        if iommu:
            # Which has to come before the devices; caching-mode tells QEMU of what the guest maps.
            command += ["-device", "intel-iommu,caching-mode=on,intremap=on"]
        for number, device in enumerate(devices):
            command += ["-device", json.dumps(vfio_user(f"d{number}", device))]
        self.log = open(f"{self.folder.name}/log", "w+")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        try:
            self.serial = self.connect(serial)
            self.qmp = self.connect(qmp)
            self.replies = self.qmp.makefile("r")
            json.loads(self.replies.readline())
            self.command("qmp_capabilities")
            self.expect("GUEST-READY\n")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def connect(self, path):
        deadline = time.monotonic() + PATIENCE
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                sock.settimeout(PATIENCE)
                self.sockets.append(sock)
                return sock
            except OSError:
                sock.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("QEMU did not start: " + self.messages())
                time.sleep(0.01)

    def messages(self):
        self.log.flush()
        return open(self.log.name).read()

    def expect(self, words):
        """Waits until the guest has printed these words; returns what came before them."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            if not self.receive(deadline):
                raise RuntimeError(f"no {words!r} from the guest, but: {self.text[-2000:]}\n{self.messages()}")
        before, self.text = self.text.split(words, 1)
        return before

    def receive(self, deadline):
        ready, _, _ = select.select([self.serial], [], [], max(0, deadline - time.monotonic()))
        got = self.serial.recv(65536) if ready else b""
        self.text += got.decode(errors="replace").replace("\r", "")
        return bool(got)

    def run(self, command):
        """Runs a shell command in the guest: its exit status and what it printed."""
        self.serial.sendall(command.encode() + b"\n")
        output = self.expect("GUEST-EXIT ")
        status = self.expect("\n")
        return int(status), output.split("\n", 1)[-1]  # the terminal has echoed the command

    def does(self, command):
        """Runs a shell command that has to succeed; returns what it printed."""
        status, output = self.run(command)
        assert status == 0, f"{command}: {status}\n{output}"
        return output

    def appears(self, path):
        """Waits until the guest has this file."""
        self.does(f"for i in $(seq {10 * PATIENCE}); do test -e {path} && exit 0; usleep 100000; done; dmesg | tail; exit 1")

    def command(self, name, **arguments):
        """A QMP command; events that come before its answer are kept by nobody."""
        self.qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self.message()
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def event(self, name):
        while True:
            answer = self.message()
            if answer.get("event") == name:
                return answer["data"]

    def message(self):
        line = self.replies.readline()
        if not line:
            raise RuntimeError(f"QEMU is gone: {self.messages()}")
        return json.loads(line)

    def reset(self):
        """The reset button; the guest has started again when this returns."""
        self.command("system_reset")
        self.expect("GUEST-READY\n")

    def plug(self, name, path):
        self.command("device_add", **vfio_user(name, path))

    def unplug(self, name):
        """Asks the guest to let the device go, and waits until it has."""
        self.command("device_del", id=name)
        while self.event("DEVICE_DELETED").get("device") != name:
            pass

    def power_off(self):
        """Ends the guest in good order; returns QEMU's exit status. What the kernel said last is in text."""
        self.serial.sendall(b"poweroff -f\n")
        deadline = time.monotonic() + PATIENCE
        while self.receive(deadline):
            pass
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for sock in self.sockets:
            sock.close()
        self.log.close()
        self.folder.cleanup()


def vfio_user(name, path):
    return {"driver": "vfio-user-pci", "id": name, "socket": {"path": path, "type": "unix"}}


def best_accelerator(root):
    """kvm where an unmodified guest really runs on it, else tcg; found out once after a start of the machine.

    VFU_GUEST_ACCEL=tcg or kvm decides it."""
    if os.environ.get("VFU_GUEST_ACCEL"):
        return os.environ["VFU_GUEST_ACCEL"]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    known = CACHE / "accelerator"
    start = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if known.exists() and known.read_text().startswith(start + " "):
        return known.read_text().split()[1]
    accelerator = "tcg"
    with tempfile.TemporaryDirectory() as folder:
        # A probe: a guest without anything, which has to come to its shell quickly.
        global PATIENCE
        patience, PATIENCE = PATIENCE, 20
        try:
            with Guest(root, initramfs(root, pathlib.Path(folder)), accelerator="kvm") as guest:
                guest.power_off()
            accelerator = "kvm"
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired):
            pass
        finally:
            PATIENCE = patience
    known.write_text(f"{start} {accelerator}")
    return accelerator


class Server:
    """A device server as a process."""

    def __init__(self, program, *options):
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/s"
        self.log = f"{self.folder.name}/log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([str(program), *options, self.path], stderr=log)
        while not self.listens():
            if self.process.poll() is not None:
                raise RuntimeError(f"{program} has ended")
            time.sleep(0.01)

    def listens(self):
        """Asks the kernel rather than the server, for which a client that only looks would be one that fails."""
        accepts = "00010000"  # the flag __SO_ACCEPTCON
        sockets = [line.split() for line in open("/proc/net/unix")]
        return any(words[3] == accepts and words[-1] == self.path for words in sockets)

    def says(self, words):
        """It has said that, to standard error."""
        with open(self.log) as log:
            said = log.read()
        assert words in said, said

    def holds(self):
        """Its descriptors and mappings, once it has seen that the last client is gone: when it has taken the
        next one, and told it its version."""
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(PATIENCE)
        with probe:
            probe.connect(self.path)
            probe.sendall(VERSION)
            assert probe.recv(16)
            folder = f"/proc/{self.process.pid}"
            return len(os.listdir(f"{folder}/fd")), len(open(f"{folder}/maps").readlines())

    def replace(self, program, *options):
        """By another process, which takes over from it; the status with which it has ended."""
        with open(self.log, "ab") as log:
            old, self.process = self.process, subprocess.Popen([str(program), *options], stderr=log)
        return old.wait(PATIENCE)

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(PATIENCE)
        self.folder.cleanup()
        return status


class Trace:
    """`vfu trace` in front of a server, for one client; what it printed is JSON, in `log`."""

    def __init__(self, server):
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.log = f"{self.folder.name}/t", f"{self.folder.name}/log"
        tool = os.environ.get("VFU_TOOL") or TOP / "target" / "debug" / "vfu"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([tool, "trace", self.path, server.path, "--json", "--once"], stdout=log, stderr=subprocess.PIPE)
        said = self.process.stderr.readline()
        if not said.startswith(b"vfu: listening at "):
            raise RuntimeError(f"no trace: {said.decode()}")

    def end(self):
        """Once the client has gone: the lines."""
        try:
            said = self.process.communicate(timeout=PATIENCE)[1]
            if self.process.returncode or said:
                raise RuntimeError(f"the trace ended with {self.process.returncode}: {said.decode()}")
            with open(self.log) as log:
                return [json.loads(line) for line in log]
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stderr.close()
            self.folder.cleanup()
