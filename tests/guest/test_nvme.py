"""The NVMe disk in a Linux guest: the kernel's own driver, an ext4 file system, and the backing file on the host."""
import hashlib
import os
import re
import subprocess

import pytest

from lab import Guest, Server, Trace, initramfs, program

SIZE = 96 << 20
# 20 is what is promised.
UPGRADES = min(20, int(os.environ.get("VFU_UPGRADES", 3)))
MOUNT = "mount -t ext4 /dev/nvme0n1 /mnt"


@pytest.fixture(scope="session")
def image(root, tmp_path_factory):
    return initramfs(root, tmp_path_factory.mktemp("image"), ["nvme", "ext4"], programs=["mkfs.ext4"])


@pytest.fixture(scope="session")
def monitored_image(root, tmp_path_factory):
    return initramfs(root, tmp_path_factory.mktemp("monitored"), ["nvme", "ext4"], programs=["mkfs.ext4", "smartd"])


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "disk.img"


@pytest.fixture
def serve(examples):
    servers = []

    def start(disk, *options):
        servers.append(Server(examples / "nvme", f"--file={disk}", f"--size={SIZE}", *options))
        return servers[-1]

    yield start
    assert [server.end() for server in servers] == [0] * len(servers)


def sums(text):
    """What sha256sum said: {path: sum}."""
    return {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M)}


def read_back(guest, before):
    """The files are what they were, read from the disk and not from the guest's memory."""
    guest.does("echo 3 > /proc/sys/vm/drop_caches")
    assert before and sums(guest.does("sha256sum /mnt/data/*")) == before


def write_files(guest):
    guest.does("mkdir /mnt/data; for i in 1 2 3; do dd if=/dev/urandom of=/mnt/data/f$i bs=1M count=$i || exit 1; done")
    guest.does("dd if=/dev/urandom of=/mnt/data/odd bs=1 count=4097; dd if=/dev/urandom of=/mnt/data/sparse bs=4k count=3 seek=1000")
    guest.does("sync")
    return sums(guest.does("sha256sum /mnt/data/*"))


def fill_and_trim(guest, disk):
    """The disk gets full, and gives back what is deleted."""
    status, output = guest.run("dd if=/dev/zero of=/mnt/full bs=1M")
    assert status != 0 and "No space left" in output
    guest.does("sync")
    full = os.stat(disk).st_blocks
    guest.does("rm /mnt/full; sync; fstrim -v /mnt")
    assert os.stat(disk).st_blocks < full - (SIZE // 2 >> 9)


def no_complaint(guest):
    """The kernel has not had to time out, abort, or report an I/O error."""
    said = guest.does("dmesg")
    assert not re.search(r"nvme.*(timeout|abort|I/O error|Device not ready|CSTS)|EXT4-fs error|I/O error", said), said


def power_off(guest):
    no_complaint(guest)
    assert guest.power_off() == 0
    assert "shutdown incomplete" not in guest.text


def inspect(root, disk, before, folder):
    """The backing file is a good file system, and has the files."""
    done = subprocess.run(program(root, "e2fsck") + ["-fn", disk], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    for path, digest in before.items():
        path = path.removeprefix("/mnt")
        copy = folder / os.path.basename(path)
        subprocess.run(program(root, "debugfs") + ["-R", f"dump {path} {copy}", disk], check=True, stderr=subprocess.PIPE)
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == digest, path


@pytest.mark.parametrize("doorbells", [[], ["--poll-doorbells"]], ids=["trapped", "polled"])
def test_a_file_system_survives(root, image, serve, disk, doorbells, tmp_path):
    server = serve(disk, *doorbells)
    with Guest(root, image, [server.path]) as guest:
        guest.appears("/dev/nvme0n1")
        guest.does(f"mkfs.ext4 -q /dev/nvme0n1 && {MOUNT}")
        before = write_files(guest)
        read_back(guest, before)
        assert re.search(r"nvme0q1$", guest.does("cat /proc/interrupts"), re.M)

        guest.reset()  # with the file system mounted: its journal is replayed
        guest.appears("/dev/nvme0n1")
        guest.does(MOUNT)
        read_back(guest, before)
        fill_and_trim(guest, disk)

        guest.does("echo 1 > /sys/class/nvme/nvme0/reset_controller")
        read_back(guest, before)
        guest.does("cd /sys/class/nvme/nvme0/device && grep -w flr reset_method && echo flr > reset_method && echo 1 > reset")
        read_back(guest, before)

        guest.does("umount /mnt")
        power_off(guest)

    # A cold boot, in which the disk comes later, goes and comes again. QEMU 11.1 itself can't let it go:
    # it aborts at the unplugging of any vfio-user-pci device that has MSI-X.
    with Guest(root, image) as guest:
        guest.plug("d0", server.path)
        guest.appears("/dev/nvme0n1")
        guest.does(MOUNT)
        read_back(guest, before)
        guest.does("umount /mnt")
        guest.does("echo 1 > /sys/class/nvme/nvme0/device/remove; test ! -e /dev/nvme0n1")
        guest.does("echo 1 > /sys/bus/pci/rescan")
        guest.appears("/dev/nvme0n1")
        guest.does(MOUNT)
        read_back(guest, before)
        guest.does("umount /mnt")
        power_off(guest)
    inspect(root, disk, before, tmp_path)


@pytest.mark.parametrize("doorbells", [[], ["--poll-doorbells"]], ids=["trapped", "polled"])
def test_a_file_system_behind_an_iommu(root, image, serve, disk, doorbells, tmp_path):
    """Each page that the guest gives the disk is a region of its own, queues and data alike, and comes and goes; at
    the guest's reset all of them go."""
    server = serve(disk, *doorbells)
    with Guest(root, image, [server.path], iommu=True) as guest:
        guest.appears("/dev/nvme0n1")
        assert "translated" in guest.does("dmesg | grep -i 'default domain type'").lower()
        guest.does(f"mkfs.ext4 -q /dev/nvme0n1 && {MOUNT}")
        before = write_files(guest)
        read_back(guest, before)
        for _ in range(2):
            no_complaint(guest)
            guest.reset()
            guest.appears("/dev/nvme0n1")
            guest.does(MOUNT)
            read_back(guest, before)
        guest.does("umount /mnt")
        power_off(guest)
    inspect(root, disk, before, tmp_path)


def test_a_guest_whose_memory_is_not_shared_is_told_at_once(root, image, serve, disk):
    server = serve(disk)
    with Guest(root, image, [server.path], shared=False) as guest:
        guest.does("for i in $(seq 600); do dmesg | grep 'CSTS=0x2' && exit 0; usleep 100000; done; dmesg; exit 1")
        assert not re.search(r"nvme.*timeout", guest.does("dmesg"))
        assert guest.power_off() == 0
    server.says("share=on")


def neighbours(folder):
    """Two new files, of many the two whose inodes' numbers are next to each other."""
    files = [folder / f"disk{n}" for n in range(32)]
    for file in files:
        file.touch()
    files.sort(key=lambda file: file.stat().st_ino)
    pairs = zip(files, files[1:])
    return min(pairs, key=lambda pair: pair[1].stat().st_ino - pair[0].stat().st_ino)


def smartd(guest):
    """What smartd says of all disks, looking once; what it saw it keeps for the next time."""
    said = guest.does("mkdir -p /state && smartd -d -q onecheck -c /smartd.conf -s /state/ -A - 2>&1 && cat /state/*.state")
    assert "Monitoring 0 ATA/SATA, 0 SCSI/SAS and 2 NVMe devices" in said, said
    assert said.count("nvme-available-spare = 100") == 2, "the states of both"
    assert not re.search("(?i)error count increased|err-log-entries = [1-9]|failed|critical|unable|cannot|warning", said), said
    return said


def test_two_disks_of_one_guest_are_two_and_a_monitor_is_content_with_both(root, monitored_image, serve, tmp_path):
    servers = [serve(disk) for disk in neighbours(tmp_path)]
    with Guest(root, monitored_image, [server.path for server in servers]) as guest:
        for disk in ("nvme0n1", "nvme1n1"):
            guest.appears(f"/dev/{disk}")
        # From these udev makes the links of /dev/disk/by-id.
        for name in ("nvme*n1/wwid", "nvme*n1/uuid", "nvme*n1/device/serial", "nvme*n1/device/subsysnqn"):
            values = guest.does(f"cat /sys/block/{name}").split("\n")[:-1]
            assert len(values) == 2 and len(set(values)) == 2 and all(values), (name, values)
        guest.does("printf '/dev/nvme0 -a -d nvme\\n/dev/nvme1 -a -d nvme\\n' > /smartd.conf")
        smartd(guest)
        # Each start of a controller asks again for all that there may be.
        for n in (0, 1):
            guest.does(f"echo 1 > /sys/class/nvme/nvme{n}/reset_controller")
        for disk in ("nvme0n1", "nvme1n1"):
            guest.does(f"mkfs.ext4 -q /dev/{disk} && mkdir -p /mnt/{disk} && mount -t ext4 /dev/{disk} /mnt/{disk}")
            guest.does(f"echo {disk} > /mnt/{disk}/name && sync")
        assert "state read" in smartd(guest)
        guest.does("echo 3 > /proc/sys/vm/drop_caches")
        assert guest.does("cat /mnt/*/name") == "nvme0n1\nnvme1n1\n"
        guest.does("umount /mnt/*")
        said = guest.does("dmesg")
        assert not re.search(r"(?i)nvme.*(duplicate|globally|identify|invalid|error|fail)", said), said
        power_off(guest)


def test_a_disk_that_is_not_to_be_written(root, image, serve, disk, tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "from-the-host").write_bytes(content)
    subprocess.run(program(root, "mke2fs") + ["-q", "-t", "ext4", "-d", tmp_path / "files", disk, f"{SIZE >> 10}k"], check=True)
    before = hashlib.sha256(disk.read_bytes()).digest()
    server = serve(disk, "--readonly")
    with Guest(root, image, [server.path]) as guest:
        guest.appears("/dev/nvme0n1")
        guest.does("mount -t ext4 -o ro /dev/nvme0n1 /mnt")
        read = sums(guest.does("sha256sum /mnt/from-the-host"))
        assert read == {"/mnt/from-the-host": hashlib.sha256(content).hexdigest()}
        assert guest.run("touch /mnt/new")[0] != 0
        guest.does("umount /mnt")
        assert guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=1 conv=fsync")[0] != 0
        assert guest.power_off() == 0
    assert hashlib.sha256(disk.read_bytes()).digest() == before


def test_nothing_is_leaked_over_five_boots_of_one_server(root, image, serve, disk):
    server, before = serve(disk), None
    for boot in range(5):
        with Guest(root, image, [server.path], memory="256M") as guest:
            guest.appears("/dev/nvme0n1")
            guest.does("dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=64 conv=fsync && dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64")
            if boot % 2 == 0:
                power_off(guest)
            else:  # killed in the middle of writing
                guest.does("dd if=/dev/zero of=/dev/nvme0n1 bs=64k & true")
        now = server.holds()
        before = before or now
        assert now == before, f"boot {boot}"


# Writes files and their sums, drops what the kernel has in memory, and checks files; says in /progress how often.
WORK = """
i=0; mkdir /mnt/data /mnt/sums; echo 0 > /progress
while test ! -e /stop; do
  f=$((i % 40))
  dd if=/dev/urandom of=/mnt/data/$f bs=16k count=$((1 + i % 9)) conv=fsync && sha256sum /mnt/data/$f > /mnt/sums/$f || break
  echo 3 > /proc/sys/vm/drop_caches
  sha256sum -c /mnt/sums/$((i * 7 % (f + 1))) || break
  i=$((i + 1)); echo $i > /progress
done
test -e /stop && touch /stopped
"""


def works_on(guest):
    """Waits until the guest has done some work more."""
    guest.does("n=$(($(cat /progress) + 1)); for i in $(seq 9000); do test $(cat /progress) -ge $n && exit 0; usleep 20000; done; exit 1")


@pytest.mark.parametrize("doorbells, iommu", [(["--poll-doorbells"], False), ([], True)], ids=["polled", "iommu"])
def test_the_server_is_replaced_while_files_are_written(root, image, serve, disk, examples, doorbells, iommu, tmp_path):
    control = f"--take-over={tmp_path}/upgrade"
    server = serve(disk, *doorbells, f"--hand-over={tmp_path}/upgrade")
    with Guest(root, image, [server.path], iommu=iommu) as guest:
        guest.appears("/dev/nvme0n1")
        guest.does(f"mkfs.ext4 -q /dev/nvme0n1 && {MOUNT}")
        # What the kernel says by itself it has said then: that it has random numbers; and 4: that it drops something.
        guest.does("dd if=/dev/random of=/dev/null bs=1 count=1; echo 4 > /proc/sys/vm/drop_caches")
        said = guest.does("dmesg")
        guest.does("{ " + "; ".join(WORK.strip().split("\n")).replace("do;", "do") + "; } < /dev/null > /output 2>&1 & true")
        for _ in range(UPGRADES):
            works_on(guest)
            assert server.replace(examples / "nvme", control) == 0
        works_on(guest)
        guest.does("touch /stop; for i in $(seq 9000); do test -e /stopped && exit 0; usleep 20000; done; cat /output; exit 1")
        guest.does("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/sums/* > /all; sha256sum -c /all")
        before = sums(guest.does("cat /all"))
        assert len(before) > UPGRADES
        assert guest.does("dmesg") == said
        guest.does("umount /mnt")
        power_off(guest)
    inspect(root, disk, before, tmp_path)


def what_the_guest_sees(root, image, path):
    """A boot with the disk at this path, at work: all that the guest can tell of it, and of its contents."""
    with Guest(root, image, [path], memory="256M") as guest:
        guest.appears("/dev/nvme0n1")
        guest.does(f"mkfs.ext4 -F -q -U 6ba7b810-9dad-11d1-80b4-00c04fd430c8 /dev/nvme0n1 && {MOUNT}")
        guest.does("yes something | head -c 5000000 > /mnt/file; sync; echo 3 > /proc/sys/vm/drop_caches")
        device = "/sys/class/nvme/nvme0/device"
        shown = {
            "contents": sums(guest.does("sha256sum /mnt/file")),
            "configuration": guest.does(f"od -A x -t x1 {device}/config"),
            "resources": guest.does(f"cat {device}/resource {device}/irq; ls {device} {device}/msi_irqs"),
            "controller": guest.does("cd /sys/class/nvme/nvme0; cat model serial firmware_rev cntlid transport state queue_count sqsize"),
            "disk": guest.does("cd /sys/block/nvme0n1; cat size wwid queue/logical_block_size queue/max_hw_sectors_kb queue/discard_max_bytes"),
            "said": re.findall(r"\] ((?:nvme|pci 0000).*)", guest.does("dmesg")),
            "interrupts": re.findall(r"(\S+MSI\S*) .*(nvme0q\d+)$", guest.does("cat /proc/interrupts"), re.M),
        }
        guest.does("umount /mnt")
        power_off(guest)
    return shown


def test_a_trace_in_between_is_not_seen_by_the_guest(root, image, serve, disk):
    server = serve(disk)
    direct = what_the_guest_sees(root, image, server.path)
    trace = Trace(server)
    try:
        traced = what_the_guest_sees(root, image, trace.path)
    finally:
        lines = trace.end()
    assert traced == direct
    *messages, summary = lines
    counts = {row["command"]: row for row in summary["summary"]["commands"]}
    assert counts["REGION_READ"]["count"] > 100 and counts["DMA_MAP"]["count"] > 1, counts
    assert not any("note" in line or "malformed" in line["fields"] for line in messages)
    registers = {name for line in messages for name in line["fields"].get("registers", [])}
    assert {"Vendor ID", "Command", "BAR0", "MSI-X Message Control"} <= registers
    kinds = {fd["kind"] for line in messages for fd in line.get("descriptors", [])}
    assert kinds >= {"memfd", "eventfd"}
