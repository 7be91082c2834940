#!/usr/bin/python3
"""What a mounted filesystem notices when processes of ours die, are upgraded, or stop: a pause.

One volume, one node agent, ext4 and xfs under fio with verification all the time, and meanwhile, again and again: the
daemon is killed, upgraded in place, stopped for a while; the agent is killed; everything of ours is killed at once and
started again (nbd). At the end: fio's exit code 0, no I/O error in the kernel's log, fsck clean, also after a detach and
an attach; and a table of the pause that each event caused, seen by a loop of direct 4 KiB reads and writes.

    survive.py --backend fuse|nbd [--kills 20] [--upgrades 5] [--agent-kills 5] [--all-kills 5] [--stop 60]

Needs root and the backend. The agent is talked to over its control socket, so that nothing but Python is needed: this
runs on a host as well as in a virtual machine (tests/kernel/README.md).
"""
import argparse
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from node import Failed, Node, need, say, sh, wait_for  # noqa: E402  pylint: disable=wrong-import-position

FS = {"ext4": (["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"]), "xfs": (["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n"])}


class Fio(threading.Thread):
    """fio over and over, each time with new data, each time verified."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.stopping, self.runs, self.error = folder, False, 0, None
        self.start()

    def run(self):
        jobs = {"direct": ["--direct=1", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=8", "--ioengine=libaio", "--fsync=32"],
                "buffered": ["--direct=0", "--bsrange=512-32k", "--bs_unaligned=1", "--ioengine=psync", "--fdatasync=16"]}
        while not self.stopping and not self.error:
            for name, options in jobs.items():
                out = subprocess.run(
                    ["fio", f"--name={name}", f"--filename={self.folder}/{name}", "--size=12M", "--rw=randwrite",
                     f"--randseed={self.runs + 1}", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                     "--end_fsync=1", *options],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
                if out.returncode:
                    self.error = f"fio {name}: exit code {out.returncode}\n{out.stdout[-3000:]}"
            self.runs += 1

    def end(self):
        self.stopping = True
        self.join()
        need(not self.error, self.error)


class Meter(threading.Thread):
    """Direct 4 KiB writes and reads, one at a time: how long does the longest one take?"""

    def __init__(self, folder):
        super().__init__()
        self.fd = os.open(f"{folder}/meter", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        self.buffer = mmap.mmap(-1, 4096)
        os.pwrite(self.fd, self.buffer, 0)
        self.stopping, self.error, self.calls = False, None, []  # (begin, end)
        self.start()

    def run(self):
        number = 0
        try:
            while not self.stopping:
                begin = time.monotonic()
                number += 1
                self.buffer[:8] = number.to_bytes(8, "little")
                os.pwrite(self.fd, self.buffer, 0)
                os.preadv(self.fd, [self.buffer], 0)
                if int.from_bytes(self.buffer[:8], "little") != number:
                    self.error = f"write {number} was answered and is not there"
                    return
                self.calls.append((begin, time.monotonic()))
                time.sleep(0.002)
        except OSError as e:
            self.error = f"the meter: {e}"

    def longest(self, since):
        """Waits for two calls that began after now, then: the longest that ended after `since`."""
        now = time.monotonic()
        wait_for(lambda: self.error or (len(self.calls) > 1 and self.calls[-2][0] > now), "I/O to go on")
        need(not self.error, self.error)
        return max(end - begin for begin, end in self.calls if end >= since)

    def end(self):
        self.stopping = True
        self.join()
        os.close(self.fd)
        need(not self.error, self.error)


def kernel_log_mark():
    """The kernel's log from now on."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(fd, 0, os.SEEK_END)
        return fd
    except OSError as e:
        print(f"the kernel's log cannot be read here ({e}): it is not looked at")
        return -1


def kernel_errors(fd, device):
    lines = []
    name = os.path.basename(device)
    while fd >= 0:
        try:
            line = os.read(fd, 8192).decode(errors="replace").split(";", 1)[-1].split("\n")[0]
        except BlockingIOError:
            break
        except BrokenPipeError:  # it has run over
            continue
        if name in line and any(word in line for word in ("I/O error", "Buffer I/O", "lost", "Corruption", "shutting down")):
            lines.append(line)
    return lines


class Survival:
    def __init__(self, args, node, fs):
        self.args, self.node, self.fs = args, node, fs
        self.pauses = {}
        self.volume = node.create(fs, f"{args.size}Mi")
        self.path = None
        self.fio = self.meter = None

    def attached(self, other_than=0):
        d = self.node.device(self.volume)
        return d if d and d["state"] == "attached" and d["daemon_pid"] not in (0, other_than) else None

    def pid(self):
        return wait_for(self.attached, "the state attached")["daemon_pid"]

    def kill_daemon(self):
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.attached(pid), "another daemon")

    def upgrade(self):
        pid = self.pid()
        self.node.call("upgrade", volume=self.volume)
        wait_for(lambda: self.attached(pid), "the upgraded daemon")

    def kill_agent(self):
        pid = self.pid()
        self.node.process.kill()
        self.node.process.wait()
        time.sleep(0.5)
        self.node.start()
        need(self.pid() == pid, "a new agent must adopt the daemon that runs")

    def kill_all(self):
        pid = self.pid()
        self.node.process.kill()
        os.kill(pid, signal.SIGKILL)
        self.node.process.wait()
        time.sleep(0.5)
        self.node.start()
        wait_for(lambda: self.attached(pid), "another daemon")

    def stop_daemon(self):
        pid = self.pid()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.args.stop)
        need(self.pid() == pid, "a daemon that stands still is not dead")
        os.kill(pid, signal.SIGCONT)

    def event(self, name, what):
        time.sleep(random.uniform(0.3, 1.2))
        need(not self.fio.error, self.fio.error)
        begin = time.monotonic()
        what()
        pause = self.meter.longest(begin)
        self.pauses.setdefault(name, []).append(pause)

    def events(self):
        a = self.args
        plan = [("daemon killed", self.kill_daemon)] * a.kills + [("daemon upgraded", self.upgrade)] * a.upgrades + \
            [("agent killed", self.kill_agent)] * a.agent_kills + [(f"daemon stopped {a.stop} s", self.stop_daemon)] * bool(a.stop)
        if self.args.backend == "nbd":
            plan += [("everything killed", self.kill_all)] * a.all_kills
        elif a.all_kills:
            print("skipped: everything killed: a fuse connection ends with its last descriptor")
        random.shuffle(plan)
        for name, what in plan:
            self.event(name, what)

    def check(self):
        out = sh(*FS[self.fs][1], self.path, timeout=300)
        return out

    def run(self):
        mark = kernel_log_mark()
        self.path = self.node.call("attach", volume=self.volume, publish_epoch=1)["device"]
        sh(*FS[self.fs][0], self.path)
        point = os.path.join(self.node.folder, "mnt")
        os.makedirs(point, exist_ok=True)
        sh("mount", self.path, point)
        try:
            self.fio, self.meter = Fio(point), Meter(point)
            try:
                self.events()
            finally:
                self.meter.stopping = self.fio.stopping = True
            self.meter.end()
            self.fio.end()
            say(f"{self.fs}: fio wrote and verified everything {self.fio.runs} times")
        finally:
            print(sh("umount", point, check=False), end="")
        self.check()
        errors = kernel_errors(mark, self.path)
        need(not errors, "the kernel's log:\n" + "\n".join(errors))
        self.node.call("detach", volume=self.volume)
        self.path = self.node.call("attach", volume=self.volume, publish_epoch=1)["device"]
        self.check()
        self.node.call("detach", volume=self.volume)


def print_table(results):
    print(f"\n{'fs':6}{'event':24}{'times':>6}{'median pause':>15}{'longest':>10}")
    for fs, pauses in results.items():
        for name, values in sorted(pauses.items()):
            print(f"{fs:6}{name:24}{len(values):6}{statistics.median(values):13.2f} s{max(values):8.2f} s")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--backend", default="fuse", choices=("fuse", "nbd"))
    parser.add_argument("--fs", action="append", choices=sorted(FS))
    parser.add_argument("--kills", type=int, default=int(os.environ.get("KILLS", 2)))
    parser.add_argument("--upgrades", type=int, default=int(os.environ.get("UPGRADES", 1)))
    parser.add_argument("--agent-kills", type=int, default=int(os.environ.get("AGENT_KILLS", 1)))
    parser.add_argument("--all-kills", type=int, default=int(os.environ.get("ALL_KILLS", 1)))
    parser.add_argument("--stop", type=int, default=int(os.environ.get("STOP_S", 2)), help="seconds of SIGSTOP; 0: none")
    parser.add_argument("--size", type=int, default=512, help="of the volume, MiB")
    parser.add_argument("--store", help="URL of the store; a folder without it")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    random.seed(args.seed)
    folder = tempfile.mkdtemp(prefix="survive-", dir="/dev/shm")
    os.mkdir(f"{folder}/store")
    node = Node(folder, args.backend, [f"url = {args.store or f'file://{folder}/store'}"])
    results, failed = {}, 0
    try:
        node.portalctl("pool", "create")
        node.start()
        for fs in args.fs or sorted(FS):
            say(f"{fs} on {args.backend}")
            survival = Survival(args, node, fs)
            results[fs] = survival.pauses
            survival.run()
    except Failed as e:
        failed = 1
        print(f"FAILED: {e}\n--- agent\n{node.tail()}")
    finally:
        node.end()
        print_table(results)
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
