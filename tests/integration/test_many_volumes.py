#!/usr/bin/python3
"""Many volumes on one node: all attached, I/O on all, memory and threads of what serves them, and an agent that starts
anew finds all of them. VOLUMES=64 for the long form.

Needs root, /dev/fuse and loop devices.
timeout: 240
"""
import concurrent.futures
import glob
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

VOLUMES = int(os.environ.get("VOLUMES", 12))
IDLE_MAX = 24 * MIB  # of one daemon: design.md's numbers
ADOPT_S_MAX = 5


def memory(pid, field="Pss"):
    """Bytes: proportional share, so that the program's own pages count once."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as f:
        return sum(int(line.split()[1]) * 1024 for line in f if line.startswith(f"{field}:"))


def report(node, what):
    pids = [d["daemon_pid"] for d in node.devices()]
    each = [memory(pid) for pid in pids]
    threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    say(f"{what}: {len(pids)} daemons, {sum(each) // MIB} MiB in all, {max(each) / MIB:.1f} MiB the largest, "
        f"{threads / len(pids):.0f} threads and {files / len(pids):.0f} files each; "
        f"the agent {memory(node.process.pid) / MIB:.1f} MiB")
    return max(each)


def attach_all(node):
    volumes = [node.create(f"v{i}", "64Mi") for i in range(VOLUMES)]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda v: node.call("attach", volume=v, publish_epoch=1)["device"], volumes))
    say(f"attaching {VOLUMES} volumes, 8 at a time: {time.monotonic() - begin:.1f} s")
    need(len(set(found)) == VOLUMES, "each volume has a device of its own")
    return found


def io_on_all(devices):
    jobs = []
    for i, device in enumerate(devices):
        jobs += [f"--name=v{i}", f"--filename={device}"]
    sh("fio", "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=4", "--size=4M", "--verify=crc32c",
       "--verify_fatal=1", "--verify_state_save=0", "--fsync=256", "--end_fsync=1", "--thread", *jobs, timeout=200)


def adopt(node):
    before = {d["volume"]: (d["device"], d["daemon_pid"]) for d in node.devices()}
    node.process.kill()
    node.process.wait()
    begin = time.monotonic()
    node.start()
    while True:
        now = {d["volume"]: (d["device"], d["daemon_pid"]) for d in node.devices() if d["state"] == "attached"}
        took = time.monotonic() - begin
        if len(now) == VOLUMES:
            break
        need(took < ADOPT_S_MAX * 4, f"only {len(now)} of {VOLUMES} were adopted")
        time.sleep(0.02)
    need(now == before, "the same devices, the same daemons")
    say(f"a new agent adopted all of them in {took:.2f} s")
    need(testlib.SANITIZED or took < ADOPT_S_MAX, f"adoption took {took:.1f} s")


def main():
    folder = tempfile.mkdtemp(prefix="many-", dir=os.environ.get("TMPDIR"))
    os.mkdir(f"{folder}/store")
    node = Node(folder, "fuse", [f"url = file://{folder}/store"])
    failed = 0
    try:
        node.portalctl("pool", "create")
        node.start()
        devices = attach_all(node)
        idle = report(node, "idle")
        need(testlib.SANITIZED or idle <= IDLE_MAX, f"an idle daemon needs {idle // MIB} MiB")
        io_on_all(devices)
        report(node, "after I/O on all")
        adopt(node)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda d: node.call("detach", volume=d["volume"]), node.devices()))
        need(not node.devices(), "nothing is attached at the end")
        need(not glob.glob(f"{node.run_dir}/journals/*"), "no journal is left")
    except (Failed, subprocess.TimeoutExpired) as e:
        failed = 1
        print(f"FAILED: {e}\n--- agent\n{node.tail()}")
    finally:
        node.end()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


main()
