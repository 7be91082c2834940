#!/usr/bin/python3
"""P4 with devices: a volume is forced from one node to the other while its old device takes fsyncs. The old device gives
errors within 10 s of its next flush, the new one serves, and nothing that was flushed is missing there. ROUNDS=50 for the
long form.

Needs root, /dev/fuse and loop devices.
timeout: 240
"""
import mmap
import os
import random
import shutil
import sys
import tempfile
import threading
import time

import testlib

testlib.need_fuse()
sys.path.insert(0, os.path.join(testlib.ROOT, "tests", "support"))
from node import Failed, Node, need, say, wait_for  # noqa: E402  pylint: disable=wrong-import-position

ROUNDS = int(os.environ.get("ROUNDS", 4))
SLOTS = 256  # blocks that are written in turn
ERROR_S = 10 * (4 if testlib.SANITIZED else 1)


class Writer(threading.Thread):
    """Numbered blocks, an fsync after a few of them, until the device gives an error."""

    def __init__(self, device, first):
        super().__init__()
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self.number = first  # the next
        self.flushed = first - 1
        self.error = None
        self.last_try = None  # when the call that failed began
        self.ended = None
        self.stopping = False
        self.start()

    def run(self):
        block = mmap.mmap(-1, 4096)
        try:
            while not self.stopping:
                for _ in range(random.randrange(1, 8)):
                    self.last_try = time.monotonic()
                    block[:8] = self.number.to_bytes(8, "little")
                    os.pwrite(self.fd, block, self.number % SLOTS * 4096)
                    self.number += 1
                self.last_try = time.monotonic()
                os.fsync(self.fd)
                self.flushed = self.number - 1
        except OSError as e:
            self.error = e
        self.ended = time.monotonic()

    def close(self):
        self.stopping = True
        self.join(60)
        need(not self.is_alive(), "I/O on the old device hangs")
        os.close(self.fd)


def newest(device, sent):
    """The number of the newest block that is there; all before it must be, and nothing that was never sent."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    data = mmap.mmap(-1, SLOTS * 4096)
    need(os.preadv(fd, [data], 0) == SLOTS * 4096, "a short read")
    os.close(fd)
    numbers = [int.from_bytes(data[i * 4096:i * 4096 + 8], "little") for i in range(SLOTS)]
    last = max(numbers)
    need(last <= sent, f"block {last} was never written")
    for number in range(max(1, last - SLOTS + 1), last + 1):
        need(numbers[number % SLOTS] == number, f"block {last} is there and block {number} is not")
    return last


def one_round(volume, old, new, epoch, first):
    device = old.device(volume)["device"]
    writer = Writer(device, first)
    try:
        wait_for(lambda: writer.flushed >= first + 20 or writer.error, "fsyncs on the old device")
        need(not writer.error, f"the old device failed before it was taken: {writer.error}")
        time.sleep(random.uniform(0, 0.1))
        taken = new.call("attach", volume=volume, publish_epoch=epoch)["device"]
        served = time.monotonic()
        wait_for(lambda: writer.error, "an error on the old device", 4 * ERROR_S)
        late = writer.ended - max(served, writer.last_try)
        need(late <= ERROR_S, f"the old device took {late:.1f} s to say that it is fenced")
    finally:
        writer.close()
    there = newest(taken, writer.number)
    need(there >= writer.flushed, f"flushed up to {writer.flushed}, there up to {there}")
    wait_for(lambda: old.device(volume)["state"] == "failed", "the state failed")
    need("fenced" in old.device(volume)["message"] or "another writer" in old.device(volume)["message"],
         f"the message says why: {old.device(volume)['message']}")
    old.call("detach", volume=volume)
    need(old.device(volume) is None, "the old device is gone")
    return there + 1, late


def main():
    folder = tempfile.mkdtemp(prefix="two-", dir=os.environ.get("TMPDIR"))
    os.mkdir(f"{folder}/store")
    pool = [f"url = file://{folder}/store"]
    nodes = [Node(f"{folder}/{name}", "fuse", pool, node_id=name) for name in ("a", "b")]
    failed = 0
    try:
        nodes[0].portalctl("pool", "create")
        volume = nodes[0].create("v", "64Mi")
        for node in nodes:
            node.start()
        nodes[0].call("attach", volume=volume, publish_epoch=1)
        first, slowest = 1, 0.0
        for i in range(ROUNDS):
            first, late = one_round(volume, nodes[i % 2], nodes[(i + 1) % 2], i + 2, first)
            slowest = max(slowest, late)
        say(f"{ROUNDS} moves, {first - 1} writes; the slowest old device gave its error after {slowest:.2f} s")
        nodes[ROUNDS % 2].call("detach", volume=volume)
    except Failed as e:
        failed = 1
        print(f"FAILED: {e}")
        for node in nodes:
            print(f"--- {node.node_id}\n{node.tail()}")
    finally:
        for node in nodes:
            node.end()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


main()
