#!/usr/bin/python3
"""Volumes through the node agent, real daemons and the fuse device: filesystems that survive a detach,
the loss of all local state and a move to another node; on a real S3 server and on a file store.

Needs root, /dev/fuse and loop devices.
timeout: 300
"""
import json
import mmap
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

import testlib

testlib.need_fuse()

from agent_client import BUILD, WAIT_S, Agent, agent_pb2, alive, mounted, sh, wait_for  # noqa: E402

MIB = 1 << 20
KERNEL = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
needs_resend = unittest.skipIf(KERNEL < (6, 9), "a FUSE device ends with its daemon before Linux 6.9")
SECRET = "portalbd-test-secret"
FIO = ("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--size=48M", "--ioengine=libaio",
       "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64",
       "--end_fsync=1", "--randseed=7")


class S3:
    """The S3 server of the tests, with a bucket."""

    def __init__(self, folder):
        self.program, self.folder, self.port = os.path.join(BUILD, "tools", "versitygw"), folder, None
        if not os.path.exists(self.program):
            raise unittest.SkipTest(f"needs {self.program} (make deps gets it)")
        os.makedirs(os.path.join(folder, "bucket"))
        self.start(SECRET)

    def start(self, secret):
        """At the port that it had, if it had one."""
        with open(os.path.join(self.folder, "..", "s3.log"), "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--access", "portalbd-test", "--secret", secret, "--port",
                 f"127.0.0.1:{self.port or 0}", "--quiet", "--keep-alive", "posix", self.folder], stdout=log, stderr=log)
        wait_for(self.find_port, "the S3 server")

    def find_port(self):
        for line in sh("ss", "-Hltnp").splitlines():
            if f"pid={self.process.pid}," in line:
                self.port = re.search(r":(\d+) ", line).group(1)
        return self.port

    def close(self):
        self.process.kill()
        self.process.wait()


class Base(unittest.TestCase):
    def setUp(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="pbd-"))
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.agents = []
        self.pools = os.path.join(self.dir, "pools.conf")
        self.environment = dict(os.environ)
        lines = ["[fast]"] + self.store()
        with open(os.open(self.pools, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
        self.portalctl("pool", "create")

    def store(self):
        os.mkdir(f"{self.dir}/store")
        return [f"url = file://{self.dir}/store"]

    def tearDown(self):
        failed = any(t is self for t, _ in self._outcome.result.failures + self._outcome.result.errors)
        for agent in self.agents:
            if failed:
                sys.stderr.write(f"--- {agent.node_id}\n{agent.log_text()}")
            agent.clean()

    def portalctl(self, *args):
        return sh(os.path.join(BUILD, "bin", "portalctl"), "--pools", self.pools, *args)

    def volume(self, name, size="512Mi"):
        out = self.portalctl("volume", "create", "-o", "json", "--size", size, name)
        return json.loads(out[out.index("{"):])["id"]

    def agent(self, node_id):
        agent = Agent(self.pools, node_id=node_id)
        self.agents.append(agent)
        return agent.start()

    def life(self, mkfs, fsck, *mount_options):
        """A filesystem, its clean restart, the loss of local state, the move to another node."""
        volume = self.volume("v")
        one = self.agent("node-1")
        device = one.attach(volume, publish_epoch=1)
        self.assertEqual(sh("blockdev", "--getss", device).strip(), "4096")
        sh(*mkfs, device)
        data = os.urandom(3 * MIB + 5)
        with mounted(device, *mount_options) as point:
            sh("fio", "--name=v", f"--directory={point}", *FIO, timeout=180)
            with open(f"{point}/data", "wb") as f:
                f.write(data)
            sh("fstrim", point)
        one.detach(volume)

        def check(device):
            sh(*fsck, device)
            with mounted(device, *mount_options) as point:
                with open(f"{point}/data", "rb") as f:
                    self.assertEqual(f.read(), data)
                sh("fio", "--name=v", f"--directory={point}", *FIO, "--verify_only", timeout=180)
            sh(*fsck, device)

        check(one.attach(volume, publish_epoch=1))  # again on this node
        one.detach(volume)
        self.assertEqual(one.stop(), 0, one.log_text())
        for name in os.listdir(one.run_dir):  # all local state gone
            path = os.path.join(one.run_dir, name)
            if name != "log":
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        one.start()
        check(one.attach(volume, publish_epoch=1))
        one.detach(volume)
        two = self.agent("node-2")
        check(two.attach(volume, publish_epoch=2))
        two.detach(volume)
        for agent in (one, two):
            self.assertEqual(agent.call("ListAttachments").attachments[:], [])
            self.assertEqual(agent.stop(), 0, agent.log_text())


class OnS3(Base):
    def store(self):
        self.s3 = S3(f"{self.dir}/s3")
        self.addCleanup(self.s3.close)
        return ["url = s3://bucket/p", f"endpoint = http://127.0.0.1:{self.s3.port}",
                "region = us-east-1", "access_key_id = portalbd-test",
                f"secret_access_key = {SECRET}"]

    def test_ext4(self):
        self.life(["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"], "-o", "discard")

    def test_xfs(self):
        self.life(["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n"])

    def test_secrets_of_a_call(self):
        """Beat the pool file's, and show nowhere but in the daemon's own file."""
        volume = self.volume("v", "64Mi")
        sh("sed", "-i", f"s/{SECRET}/wrong/", self.pools)
        agent = self.agent("node-1")
        agent.attach(volume, publish_epoch=1, secrets={
            "access_key_id": "portalbd-test", "secret_access_key": SECRET})
        pid = agent.attachment(volume).daemon_pid
        for path in (f"/proc/{pid}/cmdline", f"/proc/{pid}/environ"):
            with open(path, "rb") as f:
                self.assertNotIn(SECRET.encode(), f.read())
        self.assertNotIn(SECRET, agent.log_text())
        agent.detach(volume)


    def test_credentials_are_mended(self):
        """Wrong ones, and ones that were good: the pool file is mended, and nothing else has to be done."""
        volume = self.volume("v", "64Mi")
        sh("sed", "-i", f"s/{SECRET}/wrong/", self.pools)
        agent = self.agent("node-1")
        self.assertEqual(agent.code("AttachVolume", volume_id=volume, publish_epoch=1), "ABORTED")
        self.assertIn("403", agent.attachment(volume).message)
        sh("sed", "-i", f"s/wrong/{SECRET}/", self.pools)
        wait_for(lambda: agent.code("AttachVolume", volume_id=volume, publish_epoch=1) == "OK", "the attachment", 60)
        device = agent.attach(volume, publish_epoch=1)
        self.s3.close()
        self.s3.start("another-secret")
        with open(device, "r+b", buffering=0) as f:
            f.write(b"x" * MIB)
            sync = threading.Thread(target=os.fsync, args=(f.fileno(),))
            sync.start()
            wait_for(lambda: "403" in agent.call("GetVolumeHealth", volume_id=volume).message, "the refusal", 60)
            self.assertTrue(sync.is_alive())
            sh("sed", "-i", f"s/{SECRET}/another-secret/", self.pools)
            sync.join(60)
            self.assertFalse(sync.is_alive())
        agent.detach(volume)


class OnFiles(Base):
    def test_ext4(self):
        self.life(["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"])

    def test_health_and_grow(self):
        volume = self.volume("v", "512Mi")
        agent = self.agent("node-1")
        device = agent.attach(volume, publish_epoch=1)
        health = agent.call("GetVolumeHealth", volume_id=volume)
        self.assertEqual((health.abnormal, health.message), (False, "ok"))
        sh("mkfs.xfs", "-q", "-f", device)
        with mounted(device) as point:
            before = os.statvfs(point).f_blocks
            self.assertEqual(agent.call("GrowVolume", volume_id=volume,
                                        size_bytes=1024 * MIB).size_bytes, 1024 * MIB)
            self.assertEqual(agent.call("GrowVolume", volume_id=volume,
                                        size_bytes=256 * MIB).size_bytes, 1024 * MIB)
            sh("xfs_growfs", point)
            self.assertGreater(os.statvfs(point).f_blocks, before * 1.8)
        self.assertEqual(agent.attachment(volume).size_bytes, 1024 * MIB)
        self.assertEqual(agent.code("GrowVolume", volume_id=volume, size_bytes=1 << 61),
                         "INVALID_ARGUMENT")
        agent.detach(volume)

    def test_snapshot_read_only(self):
        """A snapshot as a device, on another node, while the volume is written to."""
        volume = self.volume("v", "128Mi")
        one, two = self.agent("node-1"), self.agent("node-2")
        device = one.attach(volume, publish_epoch=1)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            with open(f"{point}/x", "w", encoding="utf-8") as f:
                f.write("before")
        sh("blockdev", "--flushbufs", device)
        out = self.portalctl("snapshot", "create", "-o", "json", "v", "s")
        snapshot = json.loads(out[out.index("{"):])["id"]
        self.assertEqual(two.code("AttachVolume", volume_id=snapshot), "INVALID_ARGUMENT")
        copy = two.attach(snapshot, read_only=True)
        out = sh(os.path.join(BUILD, "bin", "portalctl"), "--pools", self.pools, "--run-dir", two.run_dir,
                 "-o", "json", "status", snapshot)
        self.assertEqual(json.loads(out[out.index("{"):])["journal"]["kind"], "none")
        self.assertEqual(sh("blockdev", "--getro", copy).strip(), "1")
        with mounted(device) as point, mounted(copy, "-o", "ro") as frozen:
            with open(f"{point}/x", "w", encoding="utf-8") as f:
                f.write("after")
                f.flush()
                os.fsync(f.fileno())
            with open(f"{frozen}/x", encoding="utf-8") as f:
                self.assertEqual(f.read(), "before")
        two.detach(snapshot)
        one.detach(volume)

    def test_node_is_registered(self):
        self.agent("node-7")
        nodes = f"{self.dir}/store/nodes"
        wait_for(lambda: os.path.isdir(nodes) and any("node-7" in n for n in os.listdir(nodes)),
                 "the node's record")

    def test_metrics(self):
        """The agent's own and every daemon's, each metric once, each series once."""
        agent = self.agent("node-1")
        volumes = [self.volume(name, "64Mi") for name in ("v", "w")]
        for volume in volumes:
            device = agent.attach(volume, publish_epoch=1)
            sh("dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=8", "oflag=direct",
               "conv=fsync")
        self.assertEqual(agent.http("/healthz"), "ok\n")
        lines = agent.http("/metrics").splitlines()
        heads = [line.split()[2] for line in lines if line.startswith("# TYPE")]
        self.assertEqual(len(heads), len(set(heads)))
        series = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
        self.assertEqual(len(series), len(set(series)))
        self.assertIn('portalbd_agent_attachments{state="attached"} 2', lines)
        for volume in volumes:
            for name in ("portalbd_objstore_requests_total", "portalbd_device_requests_total",
                         "portalbd_journal_used_bytes", "portalbd_cache_hits_total"):
                self.assertTrue(any(s.startswith(name + "{") and f'volume="{volume}"' in s
                                    for s in series), f"{name} of {volume}")
            agent.detach(volume)

    def test_older_epoch_and_unknown_volume(self):
        volume = self.volume("v", "64Mi")
        agent = self.agent("node-1")
        agent.attach(volume, publish_epoch=5)
        agent.detach(volume)
        self.assertEqual(agent.code("AttachVolume", volume_id=volume, publish_epoch=4),
                         "FAILED_PRECONDITION")
        unknown = f"pv-{'0' * 32}-1.fast"
        self.assertEqual(agent.code("AttachVolume", volume_id=unknown, publish_epoch=1), "NOT_FOUND")
        self.assertEqual(agent.call("ListAttachments").attachments[:], [])

    def test_newer_writer_elsewhere(self):
        """The old node learns that it is fenced, says so, and detaching does not hang."""
        volume = self.volume("v", "64Mi")
        one, two = self.agent("node-1"), self.agent("node-2")
        old = one.attach(volume, publish_epoch=1)
        new = two.attach(volume, publish_epoch=2)
        result = sh("dd", "if=/dev/urandom", f"of={old}", "bs=4k", "count=8", "oflag=direct",
                    "conv=fsync", check=False)
        self.assertIn("error", result)
        told = []  # whenever somebody asks: the same truth

        def failed():
            told.append(one.call("GetVolumeHealth", volume_id=volume))
            return one.state(volume) == "FAILED"
        wait_for(failed, "the state FAILED")
        told.append(one.call("GetVolumeHealth", volume_id=volume))
        for health in told:
            self.assertTrue(health.abnormal)
            self.assertRegex(health.message, "^fenced: .*[a-z]{3}")
        one.detach(volume)
        sh("dd", "if=/dev/urandom", f"of={new}", "bs=4k", "count=8", "oflag=direct", "conv=fsync")
        self.assertFalse(two.call("GetVolumeHealth", volume_id=volume).abnormal)
        two.detach(volume)

    @needs_resend
    def test_killed_daemons_under_io(self):
        """To fio a daemon's death is a pause; so is one of agent and daemon, and an upgrade."""
        volume = self.volume("v", "256Mi")
        agent = self.agent("node-1")
        device = agent.attach(volume, publish_epoch=1)
        sh("mkfs.ext4", "-q", "-F", device)

        def next_daemon(last):
            a = agent.attachment(volume)
            return a.state == agent_pb2.ATTACHED and a.daemon_pid != last
        with mounted(device) as point:
            fio = subprocess.Popen(["fio", "--name=v", f"--directory={point}", *FIO],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for round_ in range(4):
                time.sleep(0.3)
                pid = agent.attachment(volume).daemon_pid
                if round_ == 2:
                    agent.stop(signal.SIGKILL)
                    agent.start()
                    wait_for(lambda: agent.state(volume) == "ATTACHED", "the adoption")
                if round_ == 3:
                    self.upgrade(agent, volume)
                else:
                    os.kill(pid, signal.SIGKILL)
                wait_for(lambda p=pid: next_daemon(p), "another daemon")
            out, _ = fio.communicate(timeout=180)
            self.assertEqual(fio.returncode, 0, out)
        sh("e2fsck", "-fn", device)
        self.assertEqual(agent.attachment(volume).restarts, 4)
        self.assertEqual(agent.attachment(volume).device_path, device)
        self.assertFalse(agent.call("GetVolumeHealth", volume_id=volume).abnormal)
        agent.detach(volume)
        self.assertEqual(os.listdir(os.path.join(agent.run_dir, "journals")), [])

    def upgrade(self, agent, volume):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(os.path.join(agent.run_dir, "node-agent.sock"))
            s.sendall(json.dumps({"v": 1, "id": 1, "verb": "upgrade",
                                  "args": {"volume": volume}}).encode() + b"\n")
            with s.makefile() as f:
                self.assertIn("pause_ms", f.readline())

    @needs_resend
    def test_daemons_told_to_end_under_io(self):
        """SIGTERM stores and closes everything; the device goes on, also when its daemon was adopted."""
        volume = self.volume("v", "256Mi")
        agent = self.agent("node-1")
        device = agent.attach(volume, publish_epoch=1)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            fio = subprocess.Popen(["fio", "--name=v", f"--directory={point}", *FIO],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for round_ in range(4):
                time.sleep(0.3)
                pid = agent.attachment(volume).daemon_pid
                if round_ % 2:
                    agent.stop()
                    agent.start()
                    wait_for(lambda: agent.state(volume) == "ATTACHED", "the adoption")
                os.kill(pid, signal.SIGTERM)
                wait_for(lambda p=pid: agent.attachment(volume).daemon_pid != p
                         and agent.state(volume) == "ATTACHED", "another daemon")
            out, _ = fio.communicate(timeout=180)
            self.assertEqual(fio.returncode, 0, out)
        sh("e2fsck", "-fn", device)
        self.assertEqual(agent.attachment(volume).device_path, device)
        agent.detach(volume)

    def test_killed_agent_and_daemon(self):
        """Nobody has the FUSE connection any more: errors, FAILED, cleared by detach, which uploads;
        every write that was acknowledged is there afterwards."""
        volume = self.volume("v", "128Mi")
        agent = self.agent("node-1")
        device = agent.attach(volume, publish_epoch=1)
        data = os.urandom(MIB)
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, MIB)
        block[:] = data
        os.pwrite(fd, block, 0)  # and no flush
        pid = agent.attachment(volume).daemon_pid
        agent.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        thread = threading.Thread(target=lambda: self.assertRaises(
            OSError, os.preadv, fd, [block], 0), daemon=True)
        thread.start()
        thread.join(WAIT_S)
        self.assertFalse(thread.is_alive(), "a read hangs")
        self.assertLess(time.monotonic() - start, 5)
        agent.start()
        wait_for(lambda: agent.state(volume) == "FAILED", "the state FAILED")
        self.assertTrue(agent.call("GetVolumeHealth", volume_id=volume).abnormal)
        os.close(fd)
        agent.detach(volume)
        self.assertEqual(os.listdir(os.path.join(agent.run_dir, "journals")), [])
        two = self.agent("node-2")
        with open(two.attach(volume, publish_epoch=2), "rb") as f:
            self.assertEqual(f.read(MIB), data)
        two.detach(volume)

    def test_agent_restarts_under_io(self):
        volume = self.volume("v", "256Mi")
        agent = self.agent("node-1")
        device = agent.attach(volume, publish_epoch=1)
        pid = agent.attachment(volume).daemon_pid
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            fio = subprocess.Popen(["fio", "--name=v", f"--directory={point}", *FIO],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for how in (signal.SIGKILL, signal.SIGTERM):
                time.sleep(0.3)
                agent.stop(how)
                time.sleep(0.3)
                agent.start()
                self.assertEqual(agent.attach(volume, publish_epoch=1), device)
            out, _ = fio.communicate(timeout=120)
            self.assertEqual(fio.returncode, 0, out)
        self.assertEqual(agent.attachment(volume).daemon_pid, pid)
        sh("e2fsck", "-fn", device)
        self.assertFalse(agent.call("GetVolumeHealth", volume_id=volume).abnormal)
        agent.detach(volume)
        self.assertFalse(alive(pid))

    def test_store_away(self):
        """Attach and detach answer ABORTED as long as the store is away; force gives up."""
        volume = self.volume("v", "64Mi")
        agent = self.agent("node-1")
        agent.call_wait = "1s"
        agent.stop()
        agent.start()
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        self.assertEqual(agent.code("AttachVolume", volume_id=volume, publish_epoch=1), "ABORTED")
        self.assertEqual(agent.state(volume), "ATTACHING")
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        device = []

        def attached():
            if agent.code("AttachVolume", volume_id=volume, publish_epoch=1) != "OK":
                return False
            device.append(agent.attachment(volume).device_path)
            return True
        wait_for(attached, "the attach to go on")
        with open(device[0], "r+b", buffering=0) as f:
            f.write(os.urandom(MIB))
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        self.assertEqual(agent.code("DetachVolume", volume_id=volume), "ABORTED")
        self.assertEqual(agent.state(volume), "DETACHING")
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        agent.detach(volume)

        # Force gives up, and keeps what it cannot upload: the next attach here has it.
        device = agent.attach(volume, publish_epoch=1)
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        data = os.urandom(MIB)
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, MIB)
        block[:] = data
        os.pwrite(fd, block, 0)
        os.close(fd)
        with self.assertRaises(grpc.RpcError) as failed:
            agent.call("DetachVolume", volume_id=volume)
        self.assertRegex(failed.exception.details(), r"writes \d+ to \d+ .*are not in the store")
        start = time.monotonic()
        agent.detach(volume, force=True)
        self.assertLess(time.monotonic() - start, WAIT_S)
        self.assertEqual(os.listdir(os.path.join(agent.run_dir, "journals")), [f"{volume}.journal"])
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        device = agent.attach(volume, publish_epoch=1)
        with open(device, "rb") as f:
            self.assertEqual(f.read(MIB), data)
        agent.detach(volume)


del Base  # not a test by itself


def on_term(_signum, _frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_term)
    testlib.main()
