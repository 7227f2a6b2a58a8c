#!/usr/bin/env python3
"""What a trace in between costs: a client's round trips, of the example dma-engine on the other side.

  meson compile -C target/meson && cargo build --release -p vfu
  VFU_TOOL=target/release/vfu python3 tests/trace/cost.py

Prints the median and the lowest tenth of the times, directly and through a trace, by turns. The client, in Python,
takes some microseconds of each itself.
"""
import os
import socket
import struct
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "migration"))
from between import Trace, message, receive, send
from peer import Client, Device

ROUNDS, BATCH = 10, 1000


def connect(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    send(sock, message(1, 1, struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_data_xfer_size":1048576}}\0'))
    receive(sock)
    return sock


def times(sock, count, batch):
    """Nanoseconds of reads of so many bytes of BAR2."""
    request = message(2, 9, struct.pack("<QII", 0x1000, 2, count))
    size, took = 32 + count, []
    buffer = bytearray(size)
    for _ in range(batch):
        start = time.perf_counter_ns()
        sock.sendall(request)
        have = 0
        while have < size:
            have += sock.recv_into(memoryview(buffer)[have:])
        took.append(time.perf_counter_ns() - start)
    return took


def main():
    folder = tempfile.TemporaryDirectory()
    ways = {"directly": None, "trace --quiet": ["--quiet"], "trace >file": [], "trace --quiet --write": ["--quiet", "--write", f"{folder.name}/f"]}
    for count, batch in ((4, BATCH), (1 << 20, BATCH // 20)):
        took = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, options in ways.items():
                device = Device()
                Client(device).close()  # it listens
                if options is None:
                    with connect(device.path) as sock:
                        took[way] += times(sock, count, batch)
                else:
                    with Trace(device.path, *options) as trace, connect(trace.path) as sock:
                        took[way] += times(sock, count, batch)
                device.end()
        print(f"read of {count} bytes")
        for way, all in took.items():
            all.sort()
            print(f"  {way:22} median {all[len(all) // 2] / 1000:8.1f} µs, lowest tenth {all[len(all) // 10] / 1000:8.1f} µs")


main()
