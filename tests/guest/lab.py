"""A Linux guest in QEMU, to see what a device looks like from there.

QEMU, its firmware, a kernel and busybox come from Debian's unstable suite, by
package name, and are unpacked into a cache folder: nothing is installed on the
host, and a second run needs no network. The guest is an initramfs of busybox, the
kernel modules that are asked for, and static programs; its shell takes commands
over the serial line.
"""
import glob
import gzip
import json
import lzma
import os
import pathlib
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("VFU_GUEST_CACHE") or TOP / ".cache" / "guest")
PACKAGES = ["qemu-system-x86", "seabios", "busybox-static", "linux-image-amd64"]
# Bounds only what would otherwise hang; a guest under TCG on a busy machine is slow.
PATIENCE = 180

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "cannot load $module"; done
echo GUEST-READY
while read -r command; do
    sh -c "$command"
    echo "GUEST-EXIT $?"
done
"""


class Unavailable(Exception):
    """What a guest is made of cannot be had here."""


# --- what a guest is made of --------------------------------------------------

def archive_uri():
    """Where this machine gets Debian's packages from."""
    for name in glob.glob("/etc/apt/sources.list.d/*.sources") + glob.glob("/etc/apt/sources.list.d/*.list") \
            + ["/etc/apt/sources.list"]:
        try:
            text = open(name).read()
        except OSError:
            continue
        for uri in re.findall(r"^(?:URIs:|deb)\s+(?:\[[^]]*\]\s+)?(\S+/debian/?)(?:\s|$)", text, re.M):
            return uri
    raise Unavailable("apt knows no Debian archive")


def apt(folder, *arguments):
    """apt-get with a state of its own, for the unstable suite."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [signed-by={keyring}] {archive_uri()} sid main\n")
    (folder / "apt.conf").write_text(
        f'Dir::State "{folder}/state";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}/cache";\n'
        f'Dir::Etc::SourceList "{folder}/sources.list";\nDir::Etc::SourceParts "/nowhere";\n'
        'APT::Install-Recommends "false";\nAPT::Sandbox::User "root";\n')
    done = subprocess.run(["apt-get", "-qq", *arguments], env={**os.environ, "APT_CONFIG": str(folder / "apt.conf")},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Unavailable(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "apt-get failed")


def fetch():
    """Fills the cache, if it is not filled yet; says where the unpacked files are."""
    root, mark = CACHE / "root", CACHE / "complete"
    if mark.exists():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("no apt-get and dpkg-deb here")
    shutil.rmtree(CACHE, ignore_errors=True)
    root.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        folder = pathlib.Path(folder)
        apt(folder, "update")
        apt(folder, "install", "--yes", "--download-only", *PACKAGES)
        for package in sorted((folder / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    mark.touch()
    return root


def find(root, pattern):
    found = sorted(root.glob(pattern))
    if not found:
        raise Unavailable(f"no {pattern} in the packages")
    return found[0]


def emulator(root):
    """The command that starts the unpacked QEMU on this machine."""
    loader = find(root, "usr/lib64/ld-linux-x86-64.so.2")
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib"
    return [str(loader), "--library-path", libraries, f"{root}/usr/bin/qemu-system-x86_64",
            "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"]


# --- the guest's file system --------------------------------------------------

def initramfs(root, folder, modules=(), programs=()):
    """Builds an initramfs with these modules, loaded in this order, and these C programs, in /bin."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy(find(root, "usr/bin/busybox"), tree / "bin" / "busybox")
    for module in modules:
        packed = find(root, f"usr/lib/modules/*/kernel/**/{module}.ko.xz")
        (tree / "modules" / module).write_bytes(lzma.decompress(packed.read_bytes()))
    (tree / "modules" / "order").write_text("\n".join(modules) + "\n")
    for source in programs:
        source = pathlib.Path(source)
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-static", "-o", tree / "bin" / source.stem, source], check=True)
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
    packed = subprocess.run([tree / "bin" / "busybox", "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(),
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    image = folder / "initramfs.gz"
    image.write_bytes(gzip.compress(packed, 1))
    return image


# --- a running guest ----------------------------------------------------------

class Guest:
    """QEMU with a guest that waits for commands."""

    def __init__(self, root, image, devices=(), memory="512M", accelerator=None):
        self.folder = tempfile.TemporaryDirectory()
        serial, qmp = f"{self.folder.name}/serial", f"{self.folder.name}/qmp"
        self.text = ""
        command = emulator(root) + [
            "-machine", "pc,memory-backend=m", "-accel", accelerator or best_accelerator(root), "-cpu", "max",
            "-m", memory, "-object", f"memory-backend-memfd,id=m,size={memory},share=on",
            "-kernel", str(find(root, "usr/lib/modules/*/vmlinuz")), "-initrd", str(image),
            "-append", "console=ttyS0 quiet panic=-1", "-nodefaults", "-display", "none",
            "-chardev", f"socket,id=s,path={serial},server=on,wait=on", "-serial", "chardev:s",
            "-qmp", f"unix:{qmp},server=on,wait=off",
        ]
        for number, device in enumerate(devices):
            command += ["-device", json.dumps(vfio_user(f"d{number}", device))]
        self.log = open(f"{self.folder.name}/log", "w+")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.serial = self.connect(serial)
        self.qmp = self.connect(qmp)
        self.replies = self.qmp.makefile("r")
        json.loads(self.replies.readline())
        self.command("qmp_capabilities")
        self.expect("GUEST-READY")

    def connect(self, path):
        deadline = time.monotonic() + PATIENCE
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                sock.settimeout(PATIENCE)
                return sock
            except OSError:
                sock.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("QEMU did not start: " + self.messages())

    def messages(self):
        self.log.flush()
        return open(self.log.name).read()

    def expect(self, words):
        """Waits until the guest has printed these words; returns what came before them."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            ready, _, _ = select.select([self.serial], [], [], max(0, deadline - time.monotonic()))
            got = self.serial.recv(65536) if ready else b""
            if not got:
                raise RuntimeError(f"no {words!r} from the guest, but: {self.text[-2000:]}\n{self.messages()}")
            self.text += got.decode(errors="replace").replace("\r", "")
        before, self.text = self.text.split(words, 1)
        return before

    def run(self, command):
        """Runs a shell command in the guest: its exit status and what it printed."""
        self.serial.sendall(command.encode() + b"\n")
        output = self.expect("GUEST-EXIT ")
        status = self.expect("\n")
        return int(status), output

    def command(self, name, **arguments):
        """A QMP command; events that come before its answer are kept by nobody."""
        self.qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.replies.readline())
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def event(self, name):
        while True:
            answer = json.loads(self.replies.readline())
            if answer.get("event") == name:
                return answer["data"]

    def plug(self, name, path):
        self.command("device_add", **vfio_user(name, path))

    def power_off(self):
        """Ends the guest in good order; returns QEMU's exit status."""
        self.serial.sendall(b"poweroff -f\n")
        return self.finish()

    def finish(self):
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.serial.close()
        self.replies.close()
        self.qmp.close()
        self.log.close()
        self.folder.cleanup()


def vfio_user(name, path):
    return {"driver": "vfio-user-pci", "id": name, "socket": {"path": path, "type": "unix"}}


_accelerator = None


def best_accelerator(root):
    """kvm where an unmodified guest really runs on it, else tcg."""
    global _accelerator
    if _accelerator is None:
        _accelerator = "tcg"
        if os.access("/dev/kvm", os.R_OK | os.W_OK) and os.environ.get("VFU_GUEST_ACCEL") != "tcg":
            with tempfile.TemporaryDirectory() as folder:
                # A probe: a guest without anything, which has to come to its shell quickly.
                global PATIENCE
                patience, PATIENCE = PATIENCE, 20
                try:
                    Guest(root, initramfs(root, pathlib.Path(folder)), accelerator="kvm").power_off()
                    _accelerator = "kvm"
                except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired):
                    pass
                finally:
                    PATIENCE = patience
    return _accelerator


class Server:
    """A device server as a process."""

    def __init__(self, program, *options):
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/s"
        self.process = subprocess.Popen([str(program), *options, self.path], stderr=subprocess.DEVNULL)
        while True:
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(self.path)
                break
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{program} has ended")
                os.sched_yield()
            finally:
                probe.close()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def mappings(self):
        return len(open(f"/proc/{self.process.pid}/maps").readlines())

    def end(self):
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        self.folder.cleanup()
        return status
