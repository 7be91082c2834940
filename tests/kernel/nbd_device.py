#!/usr/bin/python3
"""An nbd device of a volume, on a real kernel, by agent and daemon: what reaches the daemon, growing under a mounted
filesystem, the time that discarding takes, and letting go.

Needs root and a kernel that can load the module nbd (tests/kernel/vm).
"""
import array
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import testlib  # noqa: E402  pylint: disable=wrong-import-position
from agent_client import Agent  # noqa: E402  pylint: disable=wrong-import-position
from testlib import BUILD, mounted, read, sh, wait_for  # noqa: E402  pylint: disable=wrong-import-position

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
BLKDISCARD = 0x1277


def nbd_disconnect(index):
    """What `nbd-client -d` does: netlink, the family nbd."""
    def attribute(number, value):
        return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)

    def call(family, command, attributes):
        body = struct.pack("=BBH", command, 1, 0) + attributes
        s.send(struct.pack("=IHHII", 16 + len(body), family, 5, 1, 0) + body)  # NLM_F_REQUEST | NLM_F_ACK
        return s.recv(65536)

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as s:  # NETLINK_GENERIC
        answer = call(16, 3, attribute(2, b"nbd\0"))  # CTRL_CMD_GETFAMILY, by name
        family = struct.unpack_from("=H", answer, answer.index(struct.pack("=HH", 6, 1)) + 4)[0]
        s.recv(65536)
        answer = call(family, 2, attribute(1, struct.pack("=I", index)))  # NBD_CMD_DISCONNECT
        error = struct.unpack_from("=i", answer, 16)[0]
        assert error == 0, os.strerror(-error)


class NbdDevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="nbd-", dir="/dev/shm")
        cls.pools = os.path.join(cls.folder, "pools.conf")
        os.mkdir(os.path.join(cls.folder, "store"))
        with open(os.open(cls.pools, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as f:
            f.write(f"[p]\nurl = file://{cls.folder}/store\n")
        cls.agent = Agent(cls.pools, call_wait="20s", args=["--backend", "nbd", "--state-dir", cls.folder + "/state"])
        cls.portalctl("pool", "create")
        cls.agent.start()

    @classmethod
    def tearDownClass(cls):
        cls.agent.clean()
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def portalctl(cls, *args):
        return sh(os.path.join(BUILD, "bin", "portalctl"), "--pools", cls.pools, "--run-dir", cls.agent.run_dir, *args)

    def attach(self, name, size):
        """A new volume's id and its device."""
        out = self.portalctl("volume", "create", "-o", "json", "--size", str(size), name)
        volume = json.loads(out[out.index("{"):])["id"]
        device = self.agent.attach(volume, publish_epoch=1)
        self.addCleanup(self.detach_whatever, volume)
        return volume, device

    def detach_whatever(self, volume):
        if self.agent.attachment(volume):
            self.agent.call("DetachVolume", volume_id=volume, force=True)

    def counters(self, volume):
        """Requests of each kind that the daemon has had, FUA among them."""
        out = self.portalctl("stats", "-o", "json", volume)
        stats = json.loads(out[out.index("{"):])
        counts = {name: op["requests"] for name, op in stats["device"].items()}
        counts["fua"] = stats["engine"]["flushes"] - counts["flush"]
        counts["trim_bytes"] = stats["device"]["trim"]["bytes"]
        return counts

    def test_module_and_device(self):
        volume, device = self.attach("basics", GIB)
        name = os.path.basename(device)
        self.assertRegex(device, r"^/dev/nbd\d+$")
        self.assertEqual(read("/sys/module/nbd/parameters/nbds_max").strip(), "0")
        self.assertEqual(read("/sys/module/nbd/parameters/max_part").strip(), "0")
        self.assertEqual(read(f"/sys/block/{name}/backend").strip(), f"portalbd:{volume}:1")
        for attribute, value in (("logical_block_size", "4096"), ("write_cache", "write back"), ("fua", "1"),
                                 ("io_timeout", "2000")):
            self.assertEqual(read(f"/sys/block/{name}/queue/{attribute}").strip(), value, attribute)
        self.assertNotEqual(read(f"/sys/block/{name}/queue/discard_max_bytes").strip(), "0")
        self.agent.detach(volume)
        self.assertFalse(os.path.exists(f"/sys/block/{name}/backend"))

    def test_what_reaches_the_daemon(self):
        volume, device = self.attach("counts", GIB)
        before = self.counters(volume)
        block = memoryview(array.array("B", bytes(4096)))
        with open(device, "r+b", buffering=0) as f:
            for i in range(7):
                os.pwrite(f.fileno(), block, i * 4096)
                os.fsync(f.fileno())
        after = self.counters(volume)
        self.assertEqual(after["flush"] - before["flush"], 7)
        self.assertEqual(after["fua"], before["fua"])
        before, page = after, mmap.mmap(-1, 4096)
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        for i in range(5):
            os.pwritev(fd, [page], i * 4096, os.RWF_DSYNC)
        os.close(fd)
        after = self.counters(volume)
        self.assertEqual(after["fua"] - before["fua"], 5)
        sh("mkfs.ext4", "-q", "-F", device)
        before = self.counters(volume)
        with mounted(device) as point:
            with open(f"{point}/a", "wb") as f:
                for i in range(10):
                    f.write(b"x" * 100000)
                    f.flush()
                    os.fsync(f.fileno())
            mid = self.counters(volume)
            self.assertGreaterEqual(mid["flush"] - before["flush"], 10)
            self.assertGreaterEqual(mid["fua"] - before["fua"], 5)  # the journal's commit blocks
            os.unlink(f"{point}/a")
            sh("sync", "-f", point)
            sh("fstrim", "-v", point)
            after = self.counters(volume)
        self.assertGreater(after["trim"], mid["trim"])
        self.assertGreater(after["trim_bytes"] - mid["trim_bytes"], 512 * MIB)
        self.agent.detach(volume)

    def grow(self, name, mkfs, growfs, fsck):
        volume, device = self.attach(name, 512 * MIB)
        sh(*mkfs, device)
        with mounted(device) as point:
            before = os.statvfs(point)
            answer = self.agent.call("GrowVolume", volume_id=volume, size_bytes=GIB)
            self.assertEqual(answer.size_bytes, GIB)
            self.assertEqual(int(read(f"/sys/block/{os.path.basename(device)}/size")) * 512, GIB)
            sh(*growfs, point if mkfs[0] == "mkfs.xfs" else device)
            after = os.statvfs(point)
            self.assertGreater(after.f_blocks * after.f_frsize, before.f_blocks * before.f_frsize + 400 * MIB)
            sh("fio", "--name=v", f"--filename={point}/v", "--size=64M", "--rw=write", "--bs=1M", "--direct=1",
               "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--end_fsync=1")
        sh(*fsck, device)
        self.agent.detach(volume)

    def test_grow_ext4(self):
        self.grow("grow-ext4", ["mkfs.ext4", "-q", "-F"], ["resize2fs"], ["e2fsck", "-fn"])

    def test_grow_xfs(self):
        self.grow("grow-xfs", ["mkfs.xfs", "-q", "-f"], ["xfs_growfs"], ["xfs_repair", "-n"])

    def test_discard_takes_no_time(self):
        volume, device = self.attach("large", TIB)
        seconds = {}
        for size in (GIB, TIB):
            with open(device, "r+b", buffering=0) as f:
                started = time.monotonic()
                fcntl.ioctl(f, BLKDISCARD, struct.pack("QQ", 0, size))
                seconds[size] = time.monotonic() - started
        print(f"discard: 1 GiB in {seconds[GIB]:.3f} s, 1 TiB in {seconds[TIB]:.3f} s")
        self.assertLess(seconds[TIB], seconds[GIB] + 1)
        self.agent.detach(volume)

    def test_detach_in_use(self):
        volume, device = self.attach("in-use", GIB)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device):
            self.assertEqual(self.agent.code("DetachVolume", volume_id=volume), "ABORTED")
            self.assertEqual(self.agent.state(volume), "ATTACHED")
        self.agent.detach(volume)
        self.assertIsNone(self.agent.attachment(volume))

    def test_forced_detach_ends_who_waits(self):
        """The daemon stands still, a process sleeps in the kernel until its write is answered."""
        volume, device = self.attach("forced", GIB)
        os.kill(self.agent.attachment(volume).daemon_pid, signal.SIGSTOP)
        with subprocess.Popen(["dd", "if=/dev/zero", f"of={device}", "bs=1M", "count=4", "oflag=direct"],
                              stderr=subprocess.DEVNULL) as dd:
            wait_for(lambda: read(f"/proc/{dd.pid}/stat").split()[2] == "D", "dd to wait")
            started = time.monotonic()
            self.agent.detach(volume, force=True)
            self.assertNotEqual(dd.wait(10), 0)
        took = time.monotonic() - started
        print(f"forced detach: {took:.2f} s")
        self.assertLess(took, 10)
        self.assertFalse(os.path.exists(f"/sys/block/{os.path.basename(device)}/backend"))

    def test_force_ends_a_detach_that_waits(self):
        """The daemon stands still, the first detach waits for it to flush."""
        volume, _ = self.attach("waits", GIB)
        daemon = self.agent.attachment(volume).daemon_pid
        os.kill(daemon, signal.SIGSTOP)
        codes = []
        first = threading.Thread(target=lambda: codes.append(self.agent.code("DetachVolume", volume_id=volume)))
        first.start()
        wait_for(lambda: self.agent.state(volume) == "DETACHING", "the detach to begin")
        time.sleep(1)
        self.assertEqual(codes, [])
        started = time.monotonic()
        self.agent.detach(volume, force=True)
        self.assertLess(time.monotonic() - started, 10)
        first.join()
        self.assertIsNone(self.agent.attachment(volume))
        self.assertFalse(os.path.exists(f"/proc/{daemon}"))

    def test_taken_away_by_somebody_else(self):
        volume, device = self.attach("taken", GIB)
        with open(device, "rb", buffering=0):  # it stays, and is dead
            nbd_disconnect(int(device.removeprefix("/dev/nbd")))
            wait_for(lambda: self.agent.state(volume) == "FAILED", "the agent to notice")
        self.assertIn("took the device away", self.agent.attachment(volume).message)
        self.agent.detach(volume)
        self.assertIsNone(self.agent.attachment(volume))
        self.agent.attach(volume, publish_epoch=1)
        self.agent.detach(volume)

    def another_serves(self, volume, pid):
        a = self.agent.attachment(volume)
        return a.daemon_pid not in (0, pid) and self.agent.state(volume) == "ATTACHED"

    def test_daemon_dies_under_load(self):
        volume, device = self.attach("dies", GIB)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            with subprocess.Popen(["fio", "--name=v", f"--filename={point}/v", "--size=16M", "--rw=randwrite", "--bs=4k",
                                   "--direct=1", "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--fsync=32",
                                   "--verify_fatal=1", "--verify_state_save=0", "--loops=2"], stdout=subprocess.DEVNULL) as fio:
                for _ in range(3):
                    time.sleep(0.5)
                    pid = self.agent.attachment(volume).daemon_pid
                    os.kill(pid, signal.SIGKILL)
                    wait_for(lambda p=pid: self.another_serves(volume, p), "the next daemon")
                self.assertEqual(fio.wait(100), 0)
        sh("e2fsck", "-fn", device)
        self.assertGreaterEqual(self.agent.attachment(volume).restarts, 3)
        self.agent.detach(volume)


if __name__ == "__main__":
    if os.geteuid() != 0:
        testlib.skip_all("needs root")
    testlib.main()
