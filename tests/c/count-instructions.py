#!/usr/bin/env python3
"""Counts the instructions that the frequent calls of the library take.

usage: count-instructions.py PROGRAM

Runs the program (instructions.c) under valgrind's callgrind, which counts what is done in the
functions named. Counts repeat exactly; what comes first only (that symbols are bound, say) is
left out by running it twice, more often the second time. Ends with status 77 (skipped) where
there is no valgrind, or it knows no such processor.
"""
import os
import platform
import re
import shutil
import subprocess
import sys

RUN = ["vfu_run_ctx"]
SGL = ["vfu_addr_to_sgl", "vfu_sgl_get", "vfu_sgl_put"]
# What the program is told to do, which functions it takes, and at most how many instructions,
# those of the C library's part included: what it is plus some per cent, as compilers differ.
LIMITS = {
    "read": (RUN, 546),
    "write": (RUN, 546),
    "posted": (RUN, 486),
    "idle": (RUN, 200),
    "same": (SGL, 101),
    "logging": (SGL, 155),
    "random": (SGL, 260),
    # A request that is not among the frequent ones; and a page by a message.
    "info": (RUN, 1240),
    "dma-read": (["vfu_sgl_read"], 1540),
    "dma-write": (["vfu_sgl_write"], 1480),
    "trigger": (["vfu_irq_trigger"], 60),
}
FEW, MANY = 20, 120


def count(program, what, functions, rounds):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]
    command += [f"--toggle-collect={function}" for function in functions]
    command += [program, what, str(rounds)]
    environment = dict(os.environ, LD_BIND_NOW="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        sys.exit(f"{what}: {done.stderr}")
    return int(found[1])


def main():
    program = sys.argv[1]
    if shutil.which("valgrind") is None:
        print("there is no valgrind")
        return 77
    if platform.machine() != "x86_64":
        print(f"the numbers are those of x86-64, not of {platform.machine()}")
        return 77
    wrong = 0
    for what, (functions, limit) in LIMITS.items():
        many, few = (count(program, what, functions, rounds) for rounds in (MANY, FEW))
        each = (many - few) / (MANY - FEW)
        wrong += not 0 < each <= limit
        print(f"{what}: {each:.1f} instructions, at most {limit}")
    if wrong:
        print("not as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
