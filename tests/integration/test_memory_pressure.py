#!/usr/bin/python3
"""Writeback goes through us: buffered writes of four times the limit of the writer's memory cgroup, while agent and daemon
are in a limited one of their own, end; no deadlock, nobody is killed, the data is right.

Needs root, /dev/fuse, loop devices and a memory cgroup.
timeout: 240
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time

import testlib

testlib.need_fuse()
sys.path.insert(0, os.path.join(testlib.ROOT, "tests", "support"))
from memory_cgroup import MemoryCgroup, parent  # noqa: E402  pylint: disable=wrong-import-position
from node import MIB, Failed, Node, need, say, sh, wait_for  # noqa: E402  pylint: disable=wrong-import-position

if not parent():
    testlib.skip_all("needs a memory cgroup below which others can be made")
if testlib.SANITIZED:
    testlib.skip_all("the sanitizers' own memory is beyond every limit")

WRITER, OURS = 96 * MIB, 192 * MIB
CACHE, JOURNAL = 16 * MIB, 8 * MIB


def write_much(point, cgroup):
    """4 x the limit, buffered, and its checksum."""
    script = """
import hashlib, os, sys
h = hashlib.sha256()
with open(sys.argv[1], "wb", buffering=0) as f:
    for i in range(int(sys.argv[2])):
        block = os.urandom(4096) * 256
        h.update(block)
        f.write(block)
    os.fsync(f.fileno())
print(h.hexdigest())
"""
    process = subprocess.Popen([sys.executable, "-c", f"import sys; sys.stdin.readline()\n{script}", f"{point}/much",
                                str(4 * WRITER // MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    cgroup.add(process.pid)
    begin = time.monotonic()
    out, _ = process.communicate("go\n", timeout=180)
    need(process.returncode == 0, f"the writer ended with {process.returncode}")
    say(f"{4 * WRITER // MIB} MiB buffered under a limit of {WRITER // MIB} MiB: {time.monotonic() - begin:.1f} s")
    return out.strip()


def pressure(node, writer, ours):
    volume = node.create("v", "1Gi")
    device = node.call("attach", volume=volume, publish_epoch=1)["device"]
    pid = node.device(volume)["daemon_pid"]
    need(str(pid) in ours.read("cgroup.procs").split(), "the daemon is in our cgroup")
    sh("mkfs.ext4", "-q", "-F", device)
    point = os.path.join(node.folder, "mnt")
    os.mkdir(point)
    sh("mount", device, point)
    try:
        want = write_much(point, writer)
        sh("umount", point)
        sh("mount", device, point)
        h = hashlib.sha256()
        with open(f"{point}/much", "rb") as f:
            while block := f.read(MIB):
                h.update(block)
        need(h.hexdigest() == want, "the file is another one than was written")
    finally:
        sh("umount", point, check=False)
    sh("e2fsck", "-fn", device)
    now = node.device(volume)
    need((now["daemon_pid"], now["restarts"]) == (pid, 0), f"the daemon is another one: {now}")
    need(writer.limit_hits() > 0, "the writer's limit was never met: this test proves nothing")
    need(ours.oom_kills() == 0 and writer.oom_kills() == 0, "somebody was killed")
    say(f"agent and daemon: at most {ours.peak_bytes() // MIB} of {OURS // MIB} MiB, met their limit {ours.limit_hits()} times")
    node.call("detach", volume=volume)


def main():
    folder = tempfile.mkdtemp(prefix="pressure-", dir=os.environ.get("TMPDIR"))
    os.mkdir(f"{folder}/store")
    node = Node(folder, "fuse", [f"url = file://{folder}/store"], "--cache-size", str(CACHE), "--journal-size", str(JOURNAL))
    failed, groups = 0, []
    try:
        node.portalctl("pool", "create")
        node.start()
        groups = [MemoryCgroup("writer", WRITER), MemoryCgroup("ours", OURS)]
        groups[1].add(node.process.pid)
        pressure(node, *groups)
    except (Failed, subprocess.TimeoutExpired) as e:
        failed = 1
        print(f"FAILED: {e}\n--- agent\n{node.tail()}")
    finally:
        node.end()
        for group in groups:
            wait_for(lambda g=group: not g.read("cgroup.procs").split(), "an empty cgroup", 10)
            group.end()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


main()
