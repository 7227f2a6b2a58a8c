"""What a guest is made of.

QEMU, its firmware, a kernel, busybox, e2fsprogs and smartmontools come from Debian's unstable suite,
by package name, and are unpacked into a cache folder: nothing is installed on the
host, and a second run needs no network. The guest is an initramfs of busybox, the
kernel modules that are asked for, and programs; its shell takes commands over the
serial line.
"""
import fcntl
import glob
import gzip
import lzma
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("VFU_GUEST_CACHE") or TOP / ".cache" / "guest")
PACKAGES = ["qemu-system-x86", "seabios", "linux-image-amd64", "busybox-static", "e2fsprogs", "smartmontools", "zstd"]

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /sbin /mnt
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


# --- packages -----------------------------------------------------------------

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
    """Fills the cache, unless it holds these packages; says where the unpacked files are."""
    root, mark, wanted = CACHE / "root", CACHE / "complete", " ".join(PACKAGES)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may share a cache
        if mark.exists() and mark.read_text() == wanted:
            return root
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("no apt-get and dpkg-deb here")
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            folder = pathlib.Path(folder)
            apt(folder, "update", "--error-on=any")
            apt(folder, "install", "--yes", "--download-only", *PACKAGES)
            mark.unlink(missing_ok=True)
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            for package in sorted((folder / "cache" / "archives").glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", package, root], check=True)
            unpack_kernel(root)
        mark.write_text(wanted)
    return root


def find(root, pattern):
    found = sorted(root.glob(pattern))
    if not found:
        raise Unavailable(f"no {pattern} in the packages")
    return found[0]


def program(root, name):
    """The command that runs an unpacked program on this machine, with the libraries that it was built for."""
    loader = find(root, "usr/lib64/ld-linux-x86-64.so.2")
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib"
    return [str(loader), "--library-path", libraries, str(find(root, f"usr/*bin/{name}"))]


def emulator(root):
    """The command that starts the unpacked QEMU on this machine."""
    return program(root, "qemu-system-x86_64") + ["-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"]


def unpack_kernel(root):
    """Takes the kernel proper out of the package's bzImage: QEMU can start that too, and an emulated
    processor takes as long to unpack it as for the rest of the start. The layout is the boot
    protocol's (the kernel's Documentation/arch/x86/boot.rst)."""
    image = find(root, "usr/lib/modules/*/vmlinuz").read_bytes()
    setup_sects = image[0x1f1] or 4
    payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sects + 1) * 512 + payload_offset
    payload = image[start:start + payload_length - 4]  # its size when unpacked stands behind it
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        with open(root / "vmlinux", "wb") as kernel:
            subprocess.run(program(root, "zstd") + ["-dcq"], input=payload, stdout=kernel, check=True)


def kernel(root):
    unpacked = root / "vmlinux"
    return unpacked if unpacked.exists() else find(root, "usr/lib/modules/*/vmlinuz")


# --- the guest's file system --------------------------------------------------

def in_order(root, modules):
    """These modules and what they depend on, in the order in which they can be loaded: (name, contents).

    depmod runs when the kernel's package is installed, so there is no modules.dep; it is made of
    what each module says of itself in its section .modinfo."""
    name_of = lambda path: path.split("/")[-1].split(".ko")[0].replace("-", "_")
    files = {name_of(str(path)): path for path in root.glob("usr/lib/modules/*/kernel/**/*.ko*")}
    built_in = {name_of(line) for line in find(root, "usr/lib/modules/*/modules.builtin").read_text().split()}
    loaded = {}  # keeps the order

    def load(name):
        name = name.replace("-", "_")
        if name in loaded or name in built_in:
            return
        if name not in files:
            raise Unavailable(f"no module {name} in the kernel's package")
        contents = files[name].read_bytes()
        if files[name].suffix == ".xz":
            contents = lzma.decompress(contents)
        for depends in re.findall(rb"\0depends=([^\0]*)\0", contents):
            for other in filter(None, depends.decode().split(",")):
                load(other)
        loaded[name] = contents

    for module in modules:
        load(module)
    return loaded.items()


def add_program(root, tree, name):
    """Puts an unpacked program into /bin, with its dynamic loader and libraries where that looks for them."""
    command = program(root, name)
    shutil.copy(command[-1], tree / "bin" / name)
    (tree / "lib64").mkdir(exist_ok=True)
    (tree / "lib").mkdir(exist_ok=True)
    shutil.copy(command[0], tree / "lib64" / pathlib.Path(command[0]).name)
    listed = subprocess.run([*command[:-1], "--list", command[-1]], stdout=subprocess.PIPE, text=True, check=True).stdout
    for library in re.findall(r"=> (/\S+) \(", listed):
        shutil.copy(library, tree / "lib" / pathlib.Path(library).name)


def initramfs(root, folder, modules=(), sources=(), programs=()):
    """Builds an initramfs that loads these modules and has in /bin what these C sources make, and these
    programs of the packages."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy(find(root, "usr/bin/busybox"), tree / "bin" / "busybox")
    order = []
    for name, contents in in_order(root, modules):
        (tree / "modules" / name).write_bytes(contents)
        order.append(name)
    (tree / "modules" / "order").write_text("\n".join(order) + "\n")
    for source in map(pathlib.Path, sources):
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-static", "-o", tree / "bin" / source.stem, source], check=True)
    for name in programs:
        add_program(root, tree, name)
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
    packed = subprocess.run([tree / "bin" / "busybox", "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(),
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    image = folder / "initramfs.gz"
    image.write_bytes(gzip.compress(packed, 1))
    return image
