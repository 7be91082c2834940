#!/usr/bin/python3
"""The disk cache of a node: which daemons get one, how large, that it serves reads, and that nothing of it is left.

Needs root, /dev/fuse and loop devices.
timeout: 120
"""
import json
import mmap
import os
import re
import shutil
import signal
import sys
import tempfile
import unittest

import testlib

testlib.need_fuse()

from agent_client import BUILD, Agent, agent_pb2, open_files, sh, wait_for  # noqa: E402

MIB = 1 << 20
DATA = 24 * MIB


def read_device(device):
    """Past the page cache, so that it is the daemon that answers."""
    sh("blockdev", "--flushbufs", device)
    out, buffer = b"", mmap.mmap(-1, MIB)
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        for at in range(0, DATA, MIB):
            os.preadv(fd, [buffer], at)
            out += buffer[:]
    finally:
        os.close(fd)
    return out


class DiskCache(unittest.TestCase):
    def setUp(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="pbd-"))
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.pools, self.folder = f"{self.dir}/pools.conf", f"{self.dir}/cache"
        os.mkdir(f"{self.dir}/store")
        with open(os.open(self.pools, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as f:
            f.write(f"[fast]\nurl = file://{self.dir}/store\n")
        self.ctl("pool", "create")
        self.volume = self.answer("volume", "create", "--size", "64Mi", "v")["id"]
        self.agent = Agent(self.pools, args=["--disk-cache", self.folder, "--disk-cache-size", "100Mi", "--cache-size", "1Mi"])

    def tearDown(self):
        if any(t is self for t, _ in self._outcome.result.failures + self._outcome.result.errors):
            sys.stderr.write(self.agent.log_text())
        self.agent.clean()

    def ctl(self, *args):
        return sh(os.path.join(BUILD, "bin", "portalctl"), "--pools", self.pools, *args)

    def answer(self, *args):
        """What it prints beside it may be a warning."""
        return json.loads(re.search(r"^[\[{].*", self.ctl("-o", "json", *args), re.M | re.S)[0])

    def of_agent(self, *args):
        return self.answer("--run-dir", self.agent.run_dir, *args)

    def pid(self):
        return self.agent.attachment(self.volume).daemon_pid

    def given(self):
        """What the daemon was told: a folder and a size in bytes, or nothing."""
        with open(f"/proc/{self.pid()}/cmdline", encoding="utf-8") as f:
            words = f.read().split("\0")
        found = [words[words.index(o) + 1] for o in ("--disk-cache", "--disk-cache-size") if o in words]
        return (found[0], int(found[1])) if found else None

    def files(self):
        """Of the folder, that the daemon has open."""
        return [name for name in open_files(self.pid()) if name.startswith(self.folder + "/")]

    def disk(self):
        return self.of_agent("stats", self.volume)["cache"].get("disk")

    def serves_from_disk(self, device, data):
        """Reads until the disk has it all: what comes while too much waits to be written is kept another time."""
        def once_more():
            before = self.of_agent("stats", self.volume)
            self.assertEqual(read_device(device), data)
            after = self.of_agent("stats", self.volume)
            return after["cache"]["disk"]["hits"] > before["cache"]["disk"]["hits"] and \
                after["store"]["get"]["requests"] - before["store"]["get"]["requests"] <= 4
        wait_for(once_more, "reads from the disk", 30)

    def next_daemon(self, last):
        a = self.agent.attachment(self.volume)
        return a.state == agent_pb2.ATTACHED and a.daemon_pid != last

    def test_life(self):
        """Each daemon has a cache of its own that begins empty; the folder shows none of it at any time."""
        data = os.urandom(DATA)
        self.agent.start()
        device = self.agent.attach(self.volume, publish_epoch=1)
        with open(device, "wb") as f:
            f.write(data)
            os.fsync(f.fileno())
        self.serves_from_disk(device, data)
        self.assertEqual(self.given(), (self.folder, 100 * MIB))
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(os.stat(self.folder).st_mode & 0o777, 0o700)
        self.assertEqual(os.listdir(self.folder), [])

        self.agent.detach(self.volume)
        self.assertEqual(os.listdir(self.folder), [])
        device = self.agent.attach(self.volume, publish_epoch=1)
        self.assertLess(self.disk()["bytes"], 4 * MIB)  # what opening the volume has read, at most
        self.serves_from_disk(device, data)

        last = self.pid()
        self.of_agent("upgrade", "--no-start-agent", self.volume)
        self.assertTrue(self.next_daemon(last))
        self.assertEqual(self.given(), (self.folder, 100 * MIB))
        self.assertLess(self.disk()["bytes"], 4 * MIB)
        self.serves_from_disk(device, data)

        self.agent.detach(self.volume)
        self.assertEqual(os.listdir(self.folder), [])

    def test_wishes(self):
        """A size of one's own, none, one that cannot be; the wish is the attachment's, the folder the agent's."""
        self.agent.start()
        for size in (64 * MIB - 1, (1 << 42) + 1):
            self.assertEqual(self.agent.code("AttachVolume", volume_id=self.volume, publish_epoch=1, disk_cache_bytes=size),
                             "INVALID_ARGUMENT")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=self.volume, publish_epoch=1, disk_cache_bytes=64 * MIB,
                                         no_disk_cache=True), "INVALID_ARGUMENT")
        self.agent.attach(self.volume, publish_epoch=1, no_disk_cache=True)
        self.assertIsNone(self.given())
        self.assertIsNone(self.disk())
        self.agent.detach(self.volume)

        self.agent.attach(self.volume, publish_epoch=1, disk_cache_bytes=72 * MIB)
        self.assertEqual(self.given(), (self.folder, 72 * MIB))
        self.assertEqual(self.agent.stop(), 0)
        self.agent.start()  # it has learnt the size from the attach file
        last = self.pid()
        self.of_agent("upgrade", "--no-start-agent", self.volume)
        self.assertTrue(self.next_daemon(last))
        self.assertEqual(self.given(), (self.folder, 72 * MIB))
        self.assertEqual(self.agent.stop(), 0)
        self.agent.args = []
        self.agent.start()
        self.of_agent("upgrade", "--no-start-agent", self.volume)
        self.assertIsNone(self.given())
        self.agent.detach(self.volume)

    def test_node_without(self):
        """A StorageClass may ask for what not every node has; a person is told."""
        self.agent.args = []
        self.agent.start()
        self.agent.attach(self.volume, publish_epoch=1, disk_cache_bytes=64 * MIB)
        self.assertIsNone(self.given())
        self.agent.detach(self.volume)
        with self.assertRaisesRegex(AssertionError, "this node has no disk cache"):
            self.of_agent("attach", "--no-start-agent", "--disk-cache-size", "64Mi", "v")

    def test_disk_that_is_not_there(self):
        """The agent and its volumes do without, and say so; the disk that comes back is used by the next daemon."""
        os.symlink(f"{self.dir}/disk/cache", self.folder)
        self.agent.start()
        self.assertIn("volumes have no disk cache until its folder is there", self.agent.log_text())
        self.agent.attach(self.volume, publish_epoch=1)
        self.assertIsNone(self.disk())
        os.makedirs(f"{self.dir}/disk/cache")
        last = self.pid()
        os.kill(last, signal.SIGKILL)
        wait_for(lambda: self.next_daemon(last), "the next daemon")
        self.assertEqual(self.disk()["failed"], False)
        self.agent.detach(self.volume)


if __name__ == "__main__":
    testlib.main()
