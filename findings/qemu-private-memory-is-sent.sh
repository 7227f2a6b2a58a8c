#!/usr/bin/env bash
# QEMU: guest memory that is mapped privately is offered to a vfio-user server all the same.
#
# One would guess: with `-object memory-backend-memfd,share=off` the guest's memory is a private
# mapping that no other process can see, so QEMU's vfio-user client sends DMA_MAP for it without a
# descriptor (the server then has to ask by DMA_READ and DMA_WRITE), or refuses the device.
# What happens: DMA_MAP carries the memfd as with share=on, with the same flags and offsets, and
# nothing is said. A server maps it and finds zeroes: what the guest wrote is in QEMU's private
# copies of the pages, and what the server writes the guest never sees.
#
# Takes QEMU from Debian's unstable suite, in the version below, into a temporary folder. The server
# is the few lines of Python at the end; the firmware is the guest.
set -euo pipefail
version=1:11.1.3+ds-1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{state/lists,cache/archives}/partial "$work/root"
touch "$work/apt/status"
archive=$(grep -hoP '^(URIs:|deb)\s+(\[[^]]*\]\s+)?\K\S+/debian/?(?=\s|$)' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sed -n 1p || true)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive sid main" >"$work/apt/sources.list"
cat >"$work/apt/apt.conf" <<EOF
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/nowhere";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
EOF
export APT_CONFIG=$work/apt/apt.conf
apt-get -qq update
apt-get -qq install --yes --download-only "qemu-system-x86=$version" seabios
for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
unset APT_CONFIG

cat >"$work/server.py" <<'EOF'
"""A vfio-user server with a device of no BARs: notes how memory is mapped, and looks into it."""
import array, json, mmap, os, socket, struct, subprocess, sys, threading

root, folder, share = sys.argv[1:4]
path, monitor = f"{folder}/device-{share}", f"{folder}/monitor-{share}"
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(path)
listener.listen(1)
qemu = subprocess.Popen([
    f"{root}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib",
    f"{root}/usr/bin/qemu-system-x86_64", "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios",
    "-nodefaults", "-display", "none", "-machine", "pc,accel=tcg,memory-backend=m", "-m", "64M",
    "-object", f"memory-backend-memfd,id=m,size=64M,share={share}", "-qmp", f"unix:{monitor},server,wait=off",
    "-device", json.dumps({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}})])
connection, _ = listener.accept()
config = bytearray(256)
config[0:4], config[0x0e], config[0x0a:0x0c] = b"\x34\x12\x01\x00", 0, b"\x00\xff"
maps = []


def exactly(count, fds):
    data = b""
    while len(data) < count:
        part, ancillary, _, _ = connection.recvmsg(count - len(data), socket.CMSG_SPACE(4 * 16))
        if not part:
            raise EOFError
        data += part
        for _, _, numbers in ancillary:
            fds.extend(array.array("i", numbers[:len(numbers) // 4 * 4]))
    return data


def serve():
    while True:
        fds = []
        try:
            ident, command, size, flags, _ = struct.unpack("<HHIII", exactly(16, fds))
            body = exactly(size - 16, fds)
        except (EOFError, OSError):
            return
        reply, error = b"", 0
        if command == 1:
            caps = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576}}
            reply = struct.pack("<HH", 0, 0) + json.dumps(caps, separators=(",", ":")).encode() + b"\0"
        elif command == 2:
            _, map_flags, offset, address, length = struct.unpack("<IIQQQ", body[:32])
            maps.append((address, length, offset, map_flags, fds[0] if fds else None))
        elif command == 3:
            reply = body[:24]
        elif command == 4:
            reply = struct.pack("<IIII", 16, 3, 9, 5)
        elif command == 5:
            index = struct.unpack_from("<I", body, 8)[0]
            reply = struct.pack("<IIIIQQ", 32, 3 if index == 7 else 0, index, 0, 256 if index == 7 else 0, 0)
        elif command == 7:
            reply = struct.pack("<IIII", 16, 1, struct.unpack_from("<I", body, 8)[0], 0)
        elif command in (9, 10):
            offset, region, count = struct.unpack("<QII", body[:16])
            if region != 7 or offset + count > 256:
                error = 22
            elif command == 9:
                reply = body[:16] + bytes(config[offset:offset + count])
            else:
                reply = body[:16]
                if offset == 4:
                    config[4:4 + count] = body[16:16 + count]
        elif command not in (8, 13):
            error = 22
        if not flags & 0x10:
            payload = b"" if error else reply
            head = struct.pack("<HHIII", ident, command, 16 + len(payload), 0x21 if error else 1, error)
            connection.sendall(head + payload)


threading.Thread(target=serve, daemon=True).start()
control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
while True:
    try:
        control.connect(monitor)
        break
    except (FileNotFoundError, ConnectionRefusedError):
        if qemu.poll() is not None:
            sys.exit(f"QEMU ended with {qemu.returncode}")
lines = control.makefile("rw")
lines.readline()


def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while True:
        answer = json.loads(lines.readline())
        if "return" in answer or "error" in answer:
            return answer


# The firmware writes the size of the memory below 1 MiB, in KiB, to address 0x413: 639.
ask("qmp_capabilities")
for _ in range(100000):
    ask("pmemsave", val=0x413, size=2, filename=f"{folder}/guest")
    in_guest = int.from_bytes(open(f"{folder}/guest", "rb").read(), "little")
    if in_guest == 639:
        break
low = [one for one in maps if one[0] <= 0x413 < one[0] + one[1]][-1]
address, length, offset, map_flags, fd = low
seen = None
if fd is not None:
    with mmap.mmap(fd, length, offset=offset) as memory:
        seen = int.from_bytes(memory[0x413 - address:0x415 - address], "little")
print(f"share={share}: DMA_MAP flags {map_flags:#x}, descriptor {'yes' if fd is not None else 'no'}; "
      f"the guest's memory at 0x413 is {in_guest}, the server reads {seen}")
ask("quit")
qemu.wait()
EOF

echo "qemu-system-x86 $version"
python3 "$work/server.py" "$work/root" "$work" on | tee "$work/on"
python3 "$work/server.py" "$work/root" "$work" off | tee "$work/off"
grep -q 'descriptor yes; the guest.s memory at 0x413 is 639, the server reads 639$' "$work/on"
grep -q 'descriptor yes; the guest.s memory at 0x413 is 639, the server reads 0$' "$work/off"
echo "as described"
