"""Reading and writing."""
import os
import random

from driver import *


def test_what_is_written_can_be_read(attach, backing, doorbells):
    d = attach(*backing, *doorbells)
    assert (d.doorbells is not None) == bool(doorbells)
    d.create_queues()
    data = random.Random(1).randbytes(2 * PAGE)
    d.write_blocks(8, data)
    assert d.read_blocks(8, 16) == data
    assert d.read_blocks(7, 2) == bytes(BLOCK) + data[:BLOCK]
    assert d.read_blocks(24, 1) == bytes(BLOCK)
