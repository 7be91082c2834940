#!/usr/bin/python3
"""P6, P7 with a device: the S3 server goes away under load, hanging and then refusing connections. No error, bounded
memory, and it goes on by itself. Meanwhile `detach` fails in its time and says what is not uploaded; `detach` by force
ends, keeps the journal, and the next attach on the node replays it. AWAY_S=300 for the long form.

Needs root, /dev/fuse and loop devices.
timeout: 240
"""
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time

import testlib

testlib.need_fuse()
sys.path.insert(0, os.path.join(testlib.ROOT, "tests", "support"))
from node import MIB, Failed, Node, need, say, sh  # noqa: E402  pylint: disable=wrong-import-position
from s3_server import S3Server  # noqa: E402  pylint: disable=wrong-import-position

AWAY_S = int(os.environ.get("AWAY_S", 8))
CACHE, JOURNAL = 32 * MIB, 16 * MIB
MEMORY_MAX = (CACHE + 2 * JOURNAL + 64 * MIB) * (4 if testlib.SANITIZED else 1)  # design: cache + 2 x journal + 64 MiB
# What the address sanitizer keeps of freed memory is 256 MiB by itself, which says nothing of ours.
os.environ["ASAN_OPTIONS"] = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "quarantine_size_mb=16")))


def memory_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        for line in f:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    raise Failed(f"process {pid} has no VmHWM")


def load_goes_on(node, s3, volume):
    device = node.device(volume)
    fio = subprocess.Popen(
        ["fio", "--name=load", f"--filename={device['device']}", "--ioengine=libaio", "--direct=1", "--rw=randrw",
         "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=16", "--size=192M", "--verify=crc32c", "--verify_fatal=1",
         "--verify_state_save=0", "--fsync=64", "--end_fsync=1", "--loops=2"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(1)
    for what in (s3.hang, s3.refuse):
        need(fio.poll() is None, "the load is over before the store went away")
        what()
        time.sleep(AWAY_S / 2)
        now = node.device(volume)
        need(now["daemon_pid"] == device["daemon_pid"] and now["state"] == "attached", f"while the store is away: {now}")
        s3.back()
        time.sleep(1)
    out, _ = fio.communicate(timeout=180)
    need(fio.returncode == 0, f"fio: {fio.returncode}\n{out[-3000:]}")
    used = memory_bytes(device["daemon_pid"])
    say(f"the load went on after {AWAY_S} s without the store; the daemon's peak memory was {used // MIB} MiB")
    need(used <= MEMORY_MAX, f"the daemon needed {used // MIB} MiB, more than {MEMORY_MAX // MIB} MiB")


def write_unstored(device, seed):
    """Direct writes, each of them acknowledged, without a flush."""
    block = bytes(4096 - 8)
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    for i in range(200):
        buffer[:] = (seed + i).to_bytes(8, "little") + block
        os.pwrite(fd, buffer, i * 8192)
    os.close(fd)


def read_unstored(device, seed):
    with open(device, "rb") as f:
        for i in range(200):
            f.seek(i * 8192)
            number = int.from_bytes(f.read(8), "little")
            need(number == seed + i, f"block {i}: {number}, not {seed + i}")


def letting_go(node, s3, volume):
    device = node.device(volume)["device"]
    s3.refuse()
    write_unstored(device, 1000)
    start = time.monotonic()
    text = node.refusal("detach", volume=volume, wait_ms=3000)
    need(time.monotonic() - start < 3 + testlib.WAIT_S, "the detach took longer than it was given")
    need("not in the store" in text and "bytes" in text, f"the detach says what is not uploaded: {text}")
    say(f"detach: {text}")
    start = time.monotonic()
    node.call("detach", volume=volume, force=True)
    say(f"detach by force took {time.monotonic() - start:.1f} s")
    need(node.device(volume) is None, "nothing is attached after a forced detach")
    journal = os.path.join(node.run_dir, "journals", f"{volume}.journal")
    need(os.path.exists(journal), f"{journal} is kept")
    s3.back()
    device = node.call("attach", volume=volume, publish_epoch=1)["device"]
    read_unstored(device, 1000)
    say("the next attach replayed the journal")
    sh("blockdev", "--flushbufs", device)
    node.call("detach", volume=volume)
    need(not os.path.exists(journal), "a clean detach leaves no journal")


def another_writer(node, other, s3, volume):
    """What was not stored when another node took the volume is set aside, and never mixed in."""
    device = node.call("attach", volume=volume, publish_epoch=2)["device"]
    s3.refuse()
    write_unstored(device, 5000)
    node.call("detach", volume=volume, force=True)
    s3.back()
    taken = other.call("attach", volume=volume, publish_epoch=3)["device"]
    read_unstored(taken, 1000)
    other.call("detach", volume=volume)
    device = node.call("attach", volume=volume, publish_epoch=4)["device"]
    read_unstored(device, 1000)
    kept = os.path.join(node.folder, "state", "set-aside", f"{volume}.journal")
    need(os.path.exists(kept), f"{kept} is kept for people")
    need("set aside" in node.tail() or "set-aside" in node.tail(), "the log says so")
    node.call("detach", volume=volume)
    say("another writer's volume is not touched by an old journal")


def main():
    folder = tempfile.mkdtemp(prefix="away-", dir=os.environ.get("TMPDIR"))
    failed, nodes, s3 = 0, [], None
    try:
        s3 = S3Server(folder)
        options = ["--cache-size", str(CACHE), "--journal-size", str(JOURNAL)]
        nodes = [Node(f"{folder}/{name}", "fuse", s3.pool("p"), *options, node_id=name) for name in ("a", "b")]
        nodes[0].portalctl("pool", "create")
        for node in nodes:
            node.start()
        volume = nodes[0].create("v", "256Mi")
        nodes[0].call("attach", volume=volume, publish_epoch=1)
        load_goes_on(nodes[0], s3, volume)
        letting_go(nodes[0], s3, volume)
        another_writer(nodes[0], nodes[1], s3, volume)
    except Failed as e:
        failed = 1
        print(f"FAILED: {e}")
        for node in nodes:
            print(f"--- {node.node_id}\n{node.tail()}")
    finally:
        for node in nodes:
            node.end()
        if s3:
            s3.end()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


main()
