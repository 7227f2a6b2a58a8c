"""A Debian system of the least packages, made by debootstrap, to do in it what a new user does."""
import os
import pathlib
import shutil
import subprocess

TOP = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("VFU_CHROOT_CACHE") or TOP / ".cache" / "chroots")

# The mounts are of one command only, and go with it, however it ends; so do all processes that it started.
ENTER = """
root=$1 command=$2
shift 2
for folder in "$@"; do
    mkdir -p "$root$folder" && mount --bind "$folder" "$root$folder" || exit 125
done
mount -t proc proc "$root/proc" || exit 125
exec chroot "$root" /bin/sh -ec "$command"
"""
ALONE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]


class Unavailable(Exception):
    """Why there can be no such system here."""


def last_line(text):
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def make(suite):
    """The system as debootstrap makes it, made once."""
    if os.geteuid() != 0:
        raise Unavailable("a chroot takes root")
    if shutil.which("debootstrap") is None:
        raise Unavailable("debootstrap is not installed")
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0:
        raise Unavailable("no mount namespaces here")
    system, begun = CACHE / suite, CACHE / f"{suite}.begun"
    if not system.is_dir():
        shutil.rmtree(begun, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", suite, begun]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if made.returncode != 0:
            raise Unavailable(f"debootstrap {suite}: {last_line(made.stdout)}")
        shutil.rmtree(begun / "var/cache/apt/archives")
        (begun / "var/cache/apt/archives/partial").mkdir(parents=True)
        begun.rename(system)
    return system


class Chroot:
    """A copy of such a system, with a copy of this source tree at the same place."""

    def __init__(self, suite, folder):
        self.root = pathlib.Path(folder) / suite
        subprocess.run(["cp", "-a", make(suite), self.root], check=True)
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        # No package needs to survive a power failure here.
        (self.root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        listed = subprocess.run(["git", "-C", TOP, "ls-files", "-z"], stdout=subprocess.PIPE, check=True).stdout
        (self.root / TOP.relative_to("/")).mkdir(parents=True)
        # With their times: Cargo compares those with the times of what it has made.
        copy = ["cp", "-a", "--parents", "-t", self.root / TOP.relative_to("/")]
        subprocess.run([*copy, *os.fsdecode(listed).strip("\0").split("\0")], cwd=TOP, check=True)
        self.environment = {"HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        self.folders = []
        self.path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if (update := self.try_out("apt-get update -qq")).returncode != 0:
            raise Unavailable(f"no packages for {suite}: {last_line(update.stdout)}")

    def offer_rust(self, target):
        """Puts this machine's Rust into PATH there, with its crates, and what it has compiled in `target`."""
        sysroot = pathlib.Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip())
        if sysroot.is_relative_to("/usr"):
            raise Unavailable("Rust is a package of this machine's and cannot be lent")
        home = os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo"
        self.folders += [sysroot, pathlib.Path(home), target]
        self.environment |= {"CARGO_HOME": str(home), "CARGO_TARGET_DIR": str(target)}
        # What of cargo's profiles is another there would be compiled again.
        self.environment |= {name: value for name, value in os.environ.items() if name.startswith("CARGO_PROFILE_")}
        self.path = f"{sysroot}/bin:{self.path}"

    def try_out(self, command):
        """Runs a shell's commands there, up to the first that fails, in the source tree."""
        inside = f"cd '{TOP}'\n{command}"
        return subprocess.run(
            [*ALONE, "sh", "-c", ENTER, "sh", self.root, inside, *self.folders],
            env={**self.environment, "PATH": self.path},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def run(self, command):
        """The same for commands that succeed; returns what they print."""
        result = self.try_out(command)
        assert result.returncode == 0, f"status {result.returncode}\n{command}\n{result.stdout}"
        return result.stdout

    def write(self, name, text):
        (self.root / TOP.relative_to("/") / name).write_text(text)
