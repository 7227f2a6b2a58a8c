#!/usr/bin/env python3
"""Counts the system calls between the marks that tests/c/counts.c makes.

usage: count-syscalls.py PROGRAM

Runs the program under strace. Ends with status 77 (skipped) where strace cannot
trace.
"""
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

# What tells that two descriptors are of the same open file: F_DUPFD_QUERY since Linux 6.10.
KERNEL = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
SAME_FILE = "fcntl" if KERNEL >= (6, 10) else "kcmp"

# Mark -> what may lie between it and the next mark, at the most. The numbers are
# those of the enumeration in counts.c.
END = 1
LIMITS = {
    2: ("region read", ["recvmsg", "sendto"]),
    3: ("region write", ["recvmsg", "sendto"]),
    4: ("64 posted writes", ["recvmsg"]),
    5: ("idle call", ["recvmsg"]),
    6: ("region read of 32 KiB", ["recvmsg", "sendto"]),
    7: ("map with a descriptor", ["recvmsg", SAME_FILE, "close", "mmap", "madvise", "sendto"]),
    8: ("unmap of one", ["recvmsg", "munmap", "sendto"]),
    9: ("map without", ["recvmsg", "sendto"]),
    10: ("unmap of one without", ["recvmsg", "sendto"]),
    11: ("DMA message that reads", ["sendmsg", "recvmsg"]),
    12: ("DMA message that writes", ["sendmsg", "recvmsg"]),
    13: ("region read of 1 MiB, blocking", ["sendto", "recvmsg"]),
    14: ("create", ["socket", "bind", "listen", "newfstatat"]),
    15: ("set up and realize", []),
    16: ("attach", ["accept4", "recvmsg", "sendto"]),
    17: ("attach with a second socket", ["accept4", "recvmsg", "socketpair", "sendmsg", "close"]),
    18: ("destroy", ["newfstatat", "unlink", "poll", "close"]),
}
MARK = re.compile(r"^(?:\d+ +)?getpriority\((?:-(\d+)|(\d+) /\*|(0x[0-9a-f]+))")
THREAD = re.compile(r"^\d+ ")
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


def mark_number(line):
    match = MARK.match(line)
    if not match:
        return None
    if match[1]:
        return int(match[1])
    number = int(match[2] or match[3], 0)
    return 2**32 - number if number >= 2**31 else None


def thread_of(line):
    match = THREAD.match(line)
    return match and match[0]


def main():
    program = sys.argv[1]
    if shutil.which("strace") is None:
        print("no strace")
        return 77
    if subprocess.run(["strace", "-o", "/dev/null", "true"], check=False).returncode != 0:
        print("strace cannot trace here")
        return 77
    with tempfile.NamedTemporaryFile("r") as trace:
        subprocess.run(["strace", "-f", "-s0", "-o", trace.name, program], check=True)
        lines = trace.read().splitlines()
    seen, current, wrong = collections.Counter(), None, 0
    calls, thread = [], None
    for line in lines:
        number = mark_number(line)
        if number is None:
            found = CALL.match(line)
            if current is not None and found and thread_of(line) == thread:
                calls.append(found[1])
            continue
        if number == END and current is None:
            continue
        if number == END:
            name, limit = LIMITS[current]
            seen[name] += 1
            if calls != limit:
                wrong += 1
                print(f"{name}: {' '.join(calls) or 'nothing'}, not {' '.join(limit)}")
            current = None
        else:
            current, calls, thread = number, [], thread_of(line)
    for name, limit in LIMITS.values():
        print(f"{name}: {len(limit)} system calls, {seen[name]} times")
    if wrong or any(seen[name] == 0 for name, _ in LIMITS.values()):
        print("not as it should be" if wrong else "a mark was not seen")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
