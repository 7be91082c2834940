#!/usr/bin/python3
"""The node agent's attachments, with a stand-in for the daemon: what is joined, refused, adopted,
given up; which daemon dies when.

Needs root, /dev/fuse and loop devices.
timeout: 400
"""
import contextlib
import itertools
import json
import mmap
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest

import grpc

import testlib

testlib.need_fuse()

from agent_client import BUILD, Agent, agent_pb2, alive, mounted, read, sh, wait_for  # noqa: E402

FAKE = os.path.join(BUILD, "tools", "fake_portalbd")
VOLUME = "pv-0123456789abcdef0123456789abcdef-1.fast"
KERNEL = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
needs_resend = unittest.skipIf(KERNEL < (6, 9), "a FUSE device ends with its daemon before Linux 6.9")
OTHER = "pv-0123456789abcdef0123456789abcdef-2.fast"


class Refused(Exception):
    """An error of the agent's control socket: "CODE: text"."""


def cgroup_mounts():
    """Of version 2 and, where there are any, of version 1."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        points = [line.split()[4] for line in f if " - cgroup2 " in line or " - cgroup " in line]
    return points if all(os.access(p, os.W_OK) for p in points) else []


class AgentLife(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="pbd-")
        pools = os.path.join(self.dir.name, "pools.conf")
        with open(pools, "w", encoding="utf-8") as f:
            f.write(f"[fast]\nurl = file://{self.dir.name}/store\n")
        os.chmod(pools, 0o600)
        self.program = os.path.join(self.dir.name, "portalbd")
        self.install(FAKE)
        self.agent = Agent(pools, daemon=self.program, call_wait="1s").start()

    def install(self, program):
        """What the agent starts from now on."""
        os.symlink(program, self.program + ".new")
        os.rename(self.program + ".new", self.program)

    def tearDown(self):
        log = self.agent.log_text
        failed = any(t is self for t, _ in self._outcome.result.failures + self._outcome.result.errors)
        if failed:
            sys.stderr.write(log())
        self.addCleanup(self.dir.cleanup)
        for a in self.agent.call("ListAttachments").attachments:
            self.agent.code("DetachVolume", volume_id=a.volume_id, force=True)
        code = self.agent.stop()
        text = log()
        self.agent.clean()
        self.assertEqual(code, 0, text)  # also: no leak, under the sanitizers

    def tell(self, *words):
        with open(os.path.join(self.agent.run_dir, "fake.new"), "w", encoding="utf-8") as f:
            f.write("".join(w + "\n" for w in words))
        os.rename(f.name, os.path.join(self.agent.run_dir, "fake"))

    def nothing_left(self, *volumes):
        run_dir = self.agent.run_dir
        for volume in volumes or (VOLUME,):
            self.assertIsNone(self.agent.attachment(volume))
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            self.assertNotIn(run_dir, f.read())
        self.assertNotIn(run_dir, sh("losetup", "-l"))
        self.assertEqual(os.listdir(os.path.join(run_dir, "attachments")), [])
        self.assertEqual(os.listdir(os.path.join(run_dir, "devices")), [])
        for pid in self.agent.pids:
            wait_for(lambda p=pid: not alive(p), f"the end of daemon {pid}")

    def test_info(self):
        info = self.agent.call("GetInfo")
        self.assertEqual(info.node_id, "node-1")
        self.assertEqual(list(info.backends), ["fuse"])
        self.assertEqual(info.default_backend, "fuse")
        self.assertRegex(info.version, r"^\d+\.\d+")

    def test_attach_use_detach(self):
        device = self.agent.attach(VOLUME, publish_epoch=3)
        self.assertEqual(self.agent.attach(VOLUME, publish_epoch=3), device)
        a = self.agent.attachment(VOLUME)
        self.assertEqual((a.device_path, a.publish_epoch, a.size_bytes), (device, 3, 256 << 20))
        for name in (f"{VOLUME}.json", f"{VOLUME}.pool"):
            mode = os.stat(os.path.join(self.agent.run_dir, "attachments", name)).st_mode
            self.assertEqual(mode & 0o777, 0o600)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            with open(f"{point}/x", "w", encoding="utf-8") as f:
                f.write("x")
            self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
            self.assertEqual(self.agent.state(VOLUME), "ATTACHED")
        sh("e2fsck", "-fn", device)
        self.agent.detach(VOLUME)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_refusals(self):
        for code, fields in (
                ("NOT_FOUND", {"volume_id": "nonsense"}),
                ("NOT_FOUND", {"volume_id": "../../etc/passwd"}),
                ("NOT_FOUND", {"volume_id": VOLUME.replace(".fast", ".slow")}),
                ("INVALID_ARGUMENT", {"volume_id": VOLUME.replace("pv-", "snap-")}),
                ("INVALID_ARGUMENT", {"volume_id": ""}),
                ("INVALID_ARGUMENT", {"volume_id": VOLUME, "backend": "nbd"}),
                ("INVALID_ARGUMENT", {"volume_id": VOLUME, "publish_epoch": 1 << 32}),
                ("INVALID_ARGUMENT", {"volume_id": VOLUME, "secrets": {"access_key_id": "a"}}),
                ("INVALID_ARGUMENT", {"volume_id": VOLUME, "secrets": {
                    "access_key_id": "a", "secret_access_key": "b\nurl = file:///tmp"}}),
        ):
            self.assertEqual(self.agent.code("AttachVolume", **fields), code, fields)
        self.assertEqual(self.agent.code("DetachVolume", volume_id="nonsense"), "OK")
        self.assertEqual(self.agent.code("GetVolumeHealth", volume_id=VOLUME), "NOT_FOUND")
        self.assertEqual(self.agent.code("GrowVolume", volume_id=VOLUME, size_bytes=1), "NOT_FOUND")
        self.agent.attach(VOLUME, publish_epoch=2)
        for fields in ({"publish_epoch": 1}, {"publish_epoch": 3},
                       {"publish_epoch": 2, "read_only": True}):
            self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME, **fields),
                             "FAILED_PRECONDITION")
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_daemon_that_does_not_come_up(self):
        self.tell("refuse")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "FAILED_PRECONDITION")
        self.nothing_left()
        self.tell("die")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "INTERNAL")
        self.nothing_left()
        self.tell()
        self.agent.attach(VOLUME)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_slow_attach_is_joined(self):
        self.tell("wait")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.assertEqual(self.agent.state(VOLUME), "ATTACHING")
        first = self.agent.attachment(VOLUME).daemon_pid
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(
            self.agent.call("AttachVolume", volume_id=VOLUME).device_path)) for _ in range(8)]
        for t in threads:
            t.start()
        self.tell()
        for t in threads:
            t.join()
        self.assertEqual(len(set(answers)), 1)
        self.assertEqual(self.agent.attachment(VOLUME).daemon_pid, first)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_detach_ends_an_attach(self):
        self.tell("wait")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_detach_waits_for_the_upload(self):
        self.agent.attach(VOLUME)
        self.tell("linger")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        self.assertEqual(self.agent.state(VOLUME), "DETACHING")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.tell()
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_force_gives_up(self):
        device = self.agent.attach(VOLUME)
        self.tell("linger")
        fd = os.open(device, os.O_RDWR)
        try:
            self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
            start = time.monotonic()
            self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
            wait_for(lambda: self.agent.code("DetachVolume", volume_id=VOLUME, force=True) == "OK",
                     "the forced detach")
            self.assertLess(time.monotonic() - start, 15)
        finally:
            os.close(fd)
        self.nothing_left()

    def test_unclean_close_is_told_once(self):
        """Where the journal is gone with the daemon, nothing is left to repeat."""
        self.tell("memory")
        self.agent.attach(VOLUME)
        self.tell("fail-close")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "INTERNAL")
        self.assertEqual(self.agent.state(VOLUME), "FAILED")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "OK")
        self.nothing_left()

    def starts(self):
        """What each daemon that was started was told: "", "resume", "resume upload"."""
        path = os.path.join(self.agent.run_dir, "starts")
        return [" ".join(line.split()[1:]) for line in read(path).splitlines()]

    def pid_or_none(self, volume=VOLUME):
        return self.agent.attachment(volume).daemon_pid or None

    def pid(self, volume=VOLUME):
        pid = self.agent.attachment(volume).daemon_pid
        self.assertGreater(pid, 0)
        return pid

    def metric(self, series):
        for line in self.agent.http("/metrics").splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        return None

    def wait_state(self, state, volume=VOLUME):
        wait_for(lambda: self.agent.state(volume) == state, f"the state {state}")

    def wait_served(self, other_than, volume=VOLUME):
        """By a daemon that is not the one of this pid."""
        def done():
            a = self.agent.attachment(volume)
            return a.state == agent_pb2.ATTACHED and a.daemon_pid != other_than
        wait_for(done, "another daemon")

    @contextlib.contextmanager
    def writer(self, device):
        """Somebody who writes and reads back all the time; any error ends the test."""
        stop, failed = threading.Event(), []

        def work():
            fd = os.open(device, os.O_RDWR | os.O_DIRECT)
            block = mmap.mmap(-1, 4096)
            try:
                for n in itertools.count():
                    if stop.is_set():
                        return
                    block[:] = n.to_bytes(8, "little") * 512
                    os.pwritev(fd, [block], n % 64 * 4096)
                    os.preadv(fd, [block], n % 64 * 4096)
                    if block[:8] != n.to_bytes(8, "little"):
                        failed.append(f"write {n} is lost")
                    if n % 32 == 0:
                        os.fsync(fd)
            except OSError as e:
                failed.append(e)
            finally:
                os.close(fd)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield
        stop.set()
        thread.join(30)
        self.assertFalse(thread.is_alive(), "a request hangs")
        self.assertEqual(failed, [])

    def test_killed_daemon_with_a_memory_journal(self):
        self.tell("memory")
        device = self.agent.attach(VOLUME)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device):
            os.kill(self.pid(), signal.SIGKILL)
            self.wait_state("FAILED")
            health = self.agent.call("GetVolumeHealth", volume_id=VOLUME)
            self.assertTrue(health.abnormal)
            self.assertIn("signal 9", health.message)
            r = threading.Thread(target=lambda: sh("dd", f"if={device}", "of=/dev/null", "bs=4k",
                                                   "count=1", "iflag=direct", check=False),
                                 daemon=True)
            r.start()
            r.join(10)
            self.assertFalse(r.is_alive(), "a read hangs")
            self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
            self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        # What is left of it is taken away by the next attach.
        self.agent.attach(VOLUME)
        self.assertEqual(self.agent.state(VOLUME), "ATTACHED")
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_killed_daemons_are_followed(self):
        """To who uses the device a death is a pause, as often as it happens."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            for _ in range(6):
                pid = self.pid()
                os.kill(pid, signal.SIGKILL)
                self.wait_served(pid)
                time.sleep(0.1)
        self.assertEqual(self.agent.attachment(VOLUME).restarts, 6)
        self.assertEqual(self.agent.attachment(VOLUME).device_path, device)
        self.assertEqual(self.starts(), [""] + 6 * ["resume"])
        self.assertEqual(self.metric("portalbd_agent_daemon_restarts_total"), 6)
        self.assertEqual(self.metric("portalbd_agent_daemon_deaths_total"), 6)
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_killed_daemon_and_a_full_run_folder(self):
        """It may be full of the journal that the next daemon is there to empty."""
        attachments = os.path.join(self.agent.run_dir, "attachments")
        self.agent.stop()
        sh("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", attachments)
        try:
            self.agent.start()
            device = self.agent.attach(VOLUME)
            self.assertIn("No space", sh("dd", "if=/dev/zero", f"of={attachments}/.full", "bs=4k", check=False))
            with self.writer(device):
                for _ in range(2):
                    pid = self.pid()
                    os.kill(pid, signal.SIGKILL)
                    self.wait_served(pid)
                pid = self.pid()
                self.agent.stop(signal.SIGKILL)
                self.agent.start()  # which finds a daemon that could not be noted
                self.wait_state("ATTACHED")
                self.assertEqual(self.pid(), pid)
            os.unlink(f"{attachments}/.full")
            self.agent.detach(VOLUME)
        finally:
            sh("umount", "-l", attachments)
        self.nothing_left()

    @needs_resend
    def test_next_daemon_dies_at_its_start(self):
        """Tried again and again, further and further apart, for all to see; then it heals."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            self.tell("die")
            os.kill(self.pid(), signal.SIGKILL)
            wait_for(lambda: len(self.starts()) >= 5, "five tries")
            a = self.agent.attachment(VOLUME)
            self.assertEqual(self.agent.state(VOLUME), "RECOVERING")
            self.assertRegex(a.message, "^recovering: .*exited with code 1")
            self.assertEqual(
                self.metric('portalbd_agent_attachments{state="recovering"}'), 1)
            self.assertFalse(self.agent.call("GetVolumeHealth", volume_id=VOLUME).abnormal)
            # Neither is there anything to do for others.
            self.assertEqual(self.agent.attach(VOLUME), device)
            self.assertEqual(self.agent.code("GrowVolume", volume_id=VOLUME, size_bytes=1), "ABORTED")
            wait_for(lambda: self.agent.call("GetVolumeHealth", volume_id=VOLUME).abnormal,
                     "abnormal health")
            self.assertLess(len(self.starts()), 12)
            self.tell()
            self.wait_state("ATTACHED")
        self.assertEqual(self.metric('portalbd_agent_attachments{state="recovering"}'), 0)
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_next_daemon_takes_its_time(self):
        """The store may be away: waiting is no reason to start another."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            self.tell("wait-opened")
            os.kill(self.pid(), signal.SIGKILL)
            self.wait_state("RECOVERING")
            time.sleep(1)
            self.assertEqual(self.agent.state(VOLUME), "RECOVERING")
            self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
            self.assertEqual(self.agent.state(VOLUME), "RECOVERING")
            self.assertEqual(len(self.starts()), 2)
            self.tell()
            self.wait_state("ATTACHED")
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_fenced_is_the_end(self):
        self.agent.attach(VOLUME)
        self.tell("fence")
        self.wait_state("FAILED")
        self.assertRegex(self.agent.attachment(VOLUME).message, "^fenced: another writer")
        self.assertEqual(len(self.starts()), 1)
        self.agent.detach(VOLUME)
        self.nothing_left()
        self.tell()
        self.agent.attach(VOLUME)
        self.tell("refuse")
        os.kill(self.pid(), signal.SIGKILL)
        self.wait_state("FAILED")
        self.assertRegex(self.agent.attachment(VOLUME).message, "^fenced: another writer")
        self.assertEqual(len(self.starts()), 3)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_health_waits_for_what_an_end_means(self):
        """A daemon that is silent and not yet gone: no guess, but the truth of a moment later."""
        self.agent.attach(VOLUME)
        self.tell("fence", "fade")
        socket_path = os.path.join(self.agent.run_dir, VOLUME + ".sock")
        wait_for(lambda: not os.path.exists(socket_path), "a silent daemon")
        found = []
        thread = threading.Thread(
            target=lambda: found.append(self.agent.call("GetVolumeHealth", volume_id=VOLUME)))
        thread.start()
        time.sleep(0.3)  # so that it asks before the end
        self.tell()
        thread.join()
        self.assertTrue(found[0].abnormal)
        self.assertRegex(found[0].message, "^fenced: another writer")
        self.agent.detach(VOLUME)
        self.nothing_left()

    def fuse_descriptors(self):
        folder = f"/proc/{self.agent.process.pid}/fd"
        return sum(os.path.realpath(os.path.join(folder, n)) == "/dev/fuse" for n in os.listdir(folder))

    def test_before_linux_6_9(self):
        """Where the kernel sends nothing again, a dead daemon is an error at once, and no hang: the
        agent, however it came by it, keeps no descriptor of a connection that a daemon serves."""
        older = ["setarch", "--uname-2.6"]
        if not sh(*older, "uname", "-r", check=False).startswith("2.6."):
            self.skipTest("setarch cannot show another kernel version here")
        self.agent.stop()
        self.agent.wrapper = older
        self.agent.start()
        notes = {b["name"]: b["note"] for b in self.ask("info")["backends"]}
        self.assertIn("ends with its daemon", notes["fuse"])
        device = self.agent.attach(VOLUME)
        self.assertEqual(self.fuse_descriptors(), 0)
        with self.writer(device):
            for _ in range(2):
                self.ask("upgrade", volume=VOLUME)
                self.assertEqual(self.fuse_descriptors(), 0)
            self.agent.stop(signal.SIGKILL)
            self.agent.start()
            self.wait_state("ATTACHED")
            self.assertEqual(self.fuse_descriptors(), 0)
        os.kill(self.pid(), signal.SIGKILL)
        self.wait_state("FAILED")
        start = time.monotonic()
        self.assertIn("error", sh("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1",
                                  "iflag=direct", check=False, timeout=testlib.WAIT_S))
        self.assertLess(time.monotonic() - start, 5)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_stopped_daemon_is_not_dead(self):
        device = self.agent.attach(VOLUME)
        pid = self.pid()
        with self.writer(device):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1)
            self.assertEqual(self.agent.state(VOLUME), "ATTACHED")
            self.assertTrue(self.agent.call("GetVolumeHealth", volume_id=VOLUME).abnormal)
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(self.pid(), pid)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_daemon_that_dies_while_it_replays(self):
        """It owned the volume, so another goes on; before that an attach fails at once."""
        self.tell("die-opened")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.assertIn("exited with code 1", self.agent.attachment(VOLUME).message)
        self.tell()
        wait_for(lambda: self.agent.code("AttachVolume", volume_id=VOLUME) == "OK", "the attach")
        self.assertEqual(self.starts()[1], "resume")
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_daemon_told_to_end(self):
        """It closes everything; the next one goes on with the device that stays."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            pid = self.pid()
            os.kill(pid, signal.SIGTERM)
            self.wait_served(pid)
        self.assertEqual(self.starts(), ["", "resume"])
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_adopted_daemon_told_to_end(self):
        """Of one that is no child of ours nobody learns how it ended; the journal shows it."""
        device = self.agent.attach(VOLUME)
        self.agent.stop()
        self.agent.start()
        self.wait_state("ATTACHED")
        with self.writer(device):
            pid = self.pid()
            os.kill(pid, signal.SIGTERM)
            self.wait_served(pid)
        self.assertEqual(self.starts(), ["", "resume"])
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_device_taken_away(self):
        """By somebody else: the volume is closed, and that is said."""
        device = self.agent.attach(VOLUME)
        sh("losetup", "-d", device)
        sh("umount", os.path.join(self.agent.run_dir, "devices", VOLUME))
        self.wait_state("FAILED")
        self.assertIn("took the device away", self.agent.attachment(VOLUME).message)
        self.agent.detach(VOLUME)
        self.nothing_left()

    # --- detaching, whatever the phase ---

    def test_detach_says_what_is_not_uploaded(self):
        self.agent.attach(VOLUME)
        self.tell("linger")
        with self.assertRaises(grpc.RpcError) as failed:
            self.agent.call("DetachVolume", volume_id=VOLUME)
        self.assertEqual(failed.exception.code().name, "ABORTED")
        self.assertIn("writes 3 to 5 are not in the store", failed.exception.details())
        self.assertIn("the store is away", failed.exception.details())
        self.tell()
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_daemon_that_dies_while_it_uploads(self):
        """Others upload what is left, without a device, until it is done."""
        self.agent.attach(VOLUME)
        self.tell("linger")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        pid = self.pid()
        self.tell("die")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(self.starts()) >= 3, "two that upload")
        self.assertEqual(self.agent.state(VOLUME), "DETACHING")
        self.assertIn("exited with code 1", self.agent.attachment(VOLUME).message)
        self.tell("fail-close")
        count = len(self.starts())
        wait_for(lambda: len(self.starts()) > count + 1, "more that upload")
        self.tell()
        self.agent.detach(VOLUME)
        self.assertEqual(set(self.starts()[1:]), {"resume upload"})
        self.nothing_left()

    def test_forced_detach_keeps_the_journal(self):
        """... of a daemon that does not get its uploads through; the next attach finds it."""
        self.agent.attach(VOLUME)
        self.tell("linger")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        start = time.monotonic()
        self.agent.detach(VOLUME, force=True)
        self.assertLess(time.monotonic() - start, 10)
        journal = os.path.join(self.agent.run_dir, "journals", f"{VOLUME}.journal")
        self.assertTrue(os.path.exists(journal))
        self.assertIn("stays in the journal", self.agent.log_text())
        self.nothing_left()
        self.tell()
        self.agent.attach(VOLUME)
        self.assertEqual(self.starts(), ["", ""])
        self.agent.detach(VOLUME)
        self.assertFalse(os.path.exists(journal))
        self.nothing_left()

    @needs_resend
    def test_detach_while_recovering(self):
        """A graceful one waits for the next daemon, which has to get what was written."""
        self.agent.attach(VOLUME)
        self.tell("wait")
        os.kill(self.pid(), signal.SIGKILL)
        self.wait_state("RECOVERING")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        self.assertEqual(self.agent.state(VOLUME), "RECOVERING")
        self.tell()
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_forced_detach_while_recovering(self):
        for word in ("die", "wait", "wait-opened"):
            device = self.agent.attach(VOLUME)
            self.tell(word)
            fd = os.open(device, os.O_RDWR | os.O_DIRECT)
            try:
                os.kill(self.pid(), signal.SIGKILL)
                self.wait_state("RECOVERING")
                reader = threading.Thread(target=lambda f=fd: self.assertRaises(
                    OSError, os.preadv, f, [mmap.mmap(-1, 4096)], 0))
                reader.start()
                start = time.monotonic()
                wait_for(lambda: self.agent.code("DetachVolume", volume_id=VOLUME, force=True) == "OK",
                         "the forced detach")
                self.assertLess(time.monotonic() - start, 10)
                reader.join(10)
                self.assertFalse(reader.is_alive(), "a read hangs")
            finally:
                os.close(fd)
            self.nothing_left()
            self.tell()

    def test_detach_of_what_replays(self):
        """Before there was a device: what it had opened is closed, not killed."""
        self.tell("wait-opened")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.agent.call("ListAttachments")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        self.tell()
        self.agent.detach(VOLUME)
        self.assertFalse(os.listdir(os.path.join(self.agent.run_dir, "journals")))
        self.nothing_left()

    # --- the next agent ---

    @needs_resend
    def test_next_agent_keeps_devices_alive(self):
        """It has asked the daemon for the descriptor, so the device outlives that too."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            for how in (signal.SIGKILL, signal.SIGTERM):
                self.agent.stop(how)
                self.agent.start()
                self.wait_state("ATTACHED")
                pid = self.pid()
                os.kill(pid, signal.SIGKILL)
                self.wait_served(pid)
        self.assertEqual(self.agent.attachment(VOLUME).restarts, 2)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_next_agent_and_a_dead_daemon(self):
        """Nobody had the FUSE connection: the device is over, what it had written is uploaded."""
        self.agent.attach(VOLUME)
        pid = self.pid()
        self.agent.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        self.agent.start()
        self.wait_state("FAILED")
        self.assertRegex(self.agent.attachment(VOLUME).message,
                         "died while no agent ran, and the FUSE connection with it")
        self.agent.detach(VOLUME)
        self.assertEqual(self.starts(), ["", "resume upload"])
        self.nothing_left()

    @needs_resend
    def test_next_agent_and_a_daemon_that_replays(self):
        """It cannot give its descriptor yet, so it is asked again: the device outlives it, too."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            pid = self.pid()
            self.tell("wait-opened")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self.pid_or_none() not in (None, pid), "a daemon that replays")
            pid = self.pid()
            self.agent.stop()
            self.agent.start()
            self.wait_state("ATTACHED")
            self.assertEqual((self.pid(), self.fuse_descriptors()), (pid, 0))
            self.tell()
            wait_for(lambda: self.fuse_descriptors() == 1, "a copy of its descriptor")
            os.kill(pid, signal.SIGKILL)
            self.wait_served(pid)
        self.assertEqual(self.starts(), [""] + 2 * ["resume"])
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_agent_ends_while_a_device_waits(self):
        """It has the last descriptor of it, and leaves it to a daemon."""
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            pid = self.pid()
            self.install("/bin/false")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self.agent.log_text().count("no daemon took the device over yet") >= 5,
                     "some tries")
            self.install(FAKE)
            self.assertEqual(self.agent.stop(), 0)
            self.agent.start()
            self.wait_served(pid)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_next_agent_lets_upload(self):
        self.agent.attach(VOLUME)
        self.tell("linger")
        self.assertEqual(self.agent.code("DetachVolume", volume_id=VOLUME), "ABORTED")
        pid = self.pid()
        self.agent.stop(signal.SIGKILL)
        self.agent.start()
        self.wait_state("DETACHING")
        self.assertEqual(self.pid(), pid)
        self.tell()
        wait_for(lambda: self.agent.attachment(VOLUME) is None, "the end of the upload")
        self.nothing_left()

    def test_deaf_daemon_is_adopted(self):
        device = self.agent.attach(VOLUME)
        self.tell("deaf")
        self.agent.stop()
        self.agent.start()
        self.wait_state("ATTACHED")
        self.assertEqual(self.agent.attach(VOLUME), device)
        self.tell()
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_many_are_adopted(self):
        volumes = [f"pv-{'1' * 32}-{n:x}.fast" for n in range(1, 65)]
        for i in range(0, len(volumes), 8):
            threads = [threading.Thread(target=self.agent.attach, args=(v,)) for v in volumes[i:i + 8]]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        pids = {a.volume_id: a.daemon_pid for a in self.agent.call("ListAttachments").attachments}
        self.assertEqual(len(pids), 64)
        self.agent.stop(signal.SIGKILL)
        start = time.monotonic()
        self.agent.start()

        def adopted():
            rows = self.agent.call("ListAttachments").attachments
            return [r for r in rows if r.state == agent_pb2.ATTACHED]
        wait_for(lambda: len(adopted()) == 64, "64 attachments")
        took = time.monotonic() - start
        print(f"64 adopted in {took:.2f} s", file=sys.stderr)
        self.assertLess(took, 5 if not testlib.SANITIZED else 30)
        self.assertEqual({a.volume_id: a.daemon_pid for a in adopted()}, pids)
        for v in volumes:
            self.agent.detach(v)
        self.nothing_left(*volumes)

    # --- upgrades ---

    def test_upgrade(self):
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            for _ in range(5):
                pid = self.pid()
                pause_ms = self.ask("upgrade", volume=VOLUME)["pause_ms"]
                self.assertLess(pause_ms, 5000)
                self.assertNotEqual(self.pid(), pid)
                self.assertEqual(self.agent.state(VOLUME), "ATTACHED")
                wait_for(lambda p=pid: not alive(p), "the old daemon's end")
        self.assertEqual(self.starts(), [""] + 5 * ["resume"])
        self.assertEqual(self.metric("portalbd_agent_upgrades_total"), 5)
        self.assertEqual(self.metric("portalbd_agent_daemon_deaths_total"), 0)
        with self.assertRaisesRegex(Refused, "NOT_FOUND"):
            self.ask("upgrade", volume=OTHER)
        self.agent.detach(VOLUME)
        self.nothing_left()

    @needs_resend
    def test_upgrade_to_a_broken_program_and_back(self):
        device = self.agent.attach(VOLUME)
        with self.writer(device):
            for broken in ("/bin/false", "/nowhere/portalbd", "/etc/passwd"):
                pid = self.pid()
                self.install(broken)
                with self.assertRaisesRegex(Refused, "BUSY"):
                    self.ask("upgrade", volume=VOLUME, wait_ms=700)
                self.assertEqual(self.agent.state(VOLUME), "RECOVERING")
                self.install(FAKE)
                self.wait_served(pid)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_upgrade_that_is_refused(self):
        device = self.agent.attach(VOLUME)
        self.tell("deaf")
        with self.writer(device):
            pid = self.pid()
            with self.assertRaisesRegex(Refused, "UNSUPPORTED"):
                self.ask("upgrade", volume=VOLUME)
            self.assertEqual(self.pid(), pid)
        self.tell()
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_next_agent_upgrades(self):
        """Daemons of another version, and no others."""
        self.tell("old")
        device = self.agent.attach(VOLUME)
        self.agent.attach(OTHER)
        self.tell()
        pids = [self.pid(v) for v in (VOLUME, OTHER)]
        self.agent.stop()
        self.agent.args += ["--upgrade", "no"]
        self.agent.start()
        self.wait_state("ATTACHED", OTHER)
        self.assertEqual([self.pid(v) for v in (VOLUME, OTHER)], pids)
        self.agent.stop()
        self.agent.args[-1] = "yes"
        with self.writer(device):
            self.agent.start()
            self.wait_served(pids[0])
            self.wait_served(pids[1], OTHER)
        pids = [self.pid(v) for v in (VOLUME, OTHER)]
        self.agent.stop()
        self.agent.start()
        self.wait_state("ATTACHED")
        self.wait_state("ATTACHED", OTHER)
        self.assertEqual([self.pid(v) for v in (VOLUME, OTHER)], pids)
        self.agent.detach(VOLUME)
        self.agent.detach(OTHER)
        self.nothing_left(VOLUME, OTHER)

    # --- the agent's end ---

    def test_drain(self):
        """What is mounted stays, the rest goes."""
        self.agent.stop()
        self.agent.args += ["--drain", "--drain-limit", "5s"]
        self.agent.start()
        device = self.agent.attach(VOLUME)
        self.agent.attach(OTHER)
        sh("mkfs.ext4", "-q", "-F", device)
        with mounted(device) as point:
            self.assertEqual(self.agent.stop(), 0)
            self.assertEqual(os.listdir(os.path.join(self.agent.run_dir, "devices")), [VOLUME])
            with open(f"{point}/x", "w", encoding="utf-8") as f:
                f.write("x")
            self.agent.start()
            self.wait_state("ATTACHED")
            self.assertIsNone(self.agent.attachment(OTHER))
        self.agent.detach(VOLUME)
        self.nothing_left(VOLUME, OTHER)

    def test_exit_when_idle(self):
        self.agent.stop()
        self.agent.args += ["--exit-when-idle"]
        self.agent.start()
        self.agent.attach(VOLUME)
        time.sleep(12)
        self.assertIsNone(self.agent.process.poll())
        self.agent.detach(VOLUME)
        self.nothing_left()
        self.assertEqual(self.agent.process.wait(20), 0)
        self.agent.args.pop()
        self.agent.start()

    # --- its control socket ---

    def ask(self, verb, **args):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(os.path.join(self.agent.run_dir, "node-agent.sock"))
            s.sendall(json.dumps({"v": 1, "id": 1, "verb": verb, "args": args}).encode() + b"\n")
            with s.makefile() as f:
                answer = json.loads(f.readline())
        if "error" in answer:
            raise Refused(f"{answer['error']['code']}: {answer['error']['text']}")
        return answer["result"]

    def test_control_socket(self):
        path = os.path.join(self.agent.run_dir, "node-agent.sock")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        info = self.ask("info")
        self.assertEqual((info["node_id"], info["default_backend"]), ("node-1", "fuse"))
        self.assertIn({"name": "fuse", "usable": True, "note": info["backends"][1]["note"]},
                      info["backends"])
        nbd = info["backends"][0]
        self.assertEqual(nbd["name"], "nbd")
        self.assertTrue(nbd["usable"] or "nbd" in nbd["note"])
        answer = self.ask("attach", volume=VOLUME, publish_epoch=4)
        self.assertEqual((answer["size_bytes"], answer["backend"]), (256 << 20, "fuse"))
        row, = self.ask("devices")["devices"]
        self.agent.call("ListAttachments")
        self.assertEqual(
            {k: row[k] for k in ("volume", "state", "device", "backend", "publish_epoch", "size_bytes",
                                 "read_only", "restarts", "message", "daemon_pid")},
            {"volume": VOLUME, "state": "attached", "device": answer["device"], "backend": "fuse",
             "publish_epoch": 4, "size_bytes": 256 << 20, "read_only": False, "restarts": 0,
             "message": "attached", "daemon_pid": self.pid()})
        self.assertEqual(self.ask("devices", after=VOLUME)["devices"], [])
        for verb, args, code in (("attach", {}, "INVALID"),
                                 ("attach", {"volume": VOLUME, "publish_epoch": 5}, "IN_USE"),
                                 ("attach", {"volume": VOLUME, "publish_epoch": 4, "read_only": 1},
                                  "INVALID"),
                                 ("detach", {"volume": VOLUME, "wait_ms": -1}, "INVALID"),
                                 ("nonsense", {}, "UNSUPPORTED")):
            with self.assertRaisesRegex(Refused, code):
                self.ask(verb, **args)
        self.tell("linger")
        with self.assertRaisesRegex(Refused, "BUSY.*writes 3 to 5"):
            self.ask("detach", volume=VOLUME, wait_ms=500)
        self.tell()
        self.assertEqual(self.ask("detach", volume=VOLUME), {})
        self.assertEqual(self.ask("devices"), {"devices": [], "next": ""})
        self.assertNotIn('volume="node-agent"', self.agent.http("/metrics"))
        self.nothing_left()

    def test_backends_are_shown(self):
        rows = {b.name: b for b in self.agent.call("GetInfo").all_backends}
        self.assertEqual(list(rows), ["nbd", "fuse"])
        self.assertTrue(rows["fuse"].usable)
        for name, row in rows.items():
            usable = "yes" if row.usable else "no"
            self.assertEqual(self.metric(
                f'portalbd_agent_backend{{backend="{name}",usable="{usable}"}}'), int(row.usable))
        self.agent.attach(VOLUME)
        self.assertEqual(self.metric('portalbd_agent_backend_attachments{backend="fuse"}'), 1)
        self.agent.detach(VOLUME)

    # --- room of its own ---

    def test_journal_space(self):
        journals = os.path.join(self.agent.run_dir, "journals")
        self.agent.stop()
        self.agent.args += ["--journal-space", "8Mi"]
        try:
            for _ in range(2):  # the second finds it
                self.agent.start()
                st = os.statvfs(journals)
                self.assertEqual(st.f_blocks * st.f_frsize, 8 << 20)
                with open("/proc/self/mountinfo", encoding="utf-8") as f:
                    self.assertEqual(f.read().count(f" {journals} "), 1)
                self.agent.attach(VOLUME)
                self.agent.detach(VOLUME)
                self.assertEqual(self.agent.stop(), 0)
        finally:
            sh("umount", journals)
        self.agent.args = []
        self.agent.start()

    def test_cgroups(self):
        mounts = cgroup_mounts()
        if not mounts:
            self.skipTest("no cgroups that can be written to")
        path = f"pbd-test-{os.getpid()}"
        self.agent.stop()
        self.agent.args += ["--cgroup", path]
        self.agent.start()
        try:
            self.agent.attach(VOLUME)
            groups = read(f"/proc/{self.pid()}/cgroup").split()
            self.assertEqual(len(groups), len(mounts))
            for group in groups:
                self.assertTrue(group.endswith(f":/{path}/{VOLUME}"), group)
            self.agent.detach(VOLUME)
            for mount in mounts:
                self.assertFalse(os.path.exists(f"{mount}/{path}/{VOLUME}"))
        finally:
            for mount in mounts:
                with contextlib.suppress(OSError):
                    os.rmdir(f"{mount}/{path}")

    def test_cgroup_that_cannot_be(self):
        self.agent.stop()
        self.agent.args += ["--cgroup", "../escape"]
        self.agent.start()
        self.agent.attach(VOLUME)
        self.agent.detach(VOLUME)
        self.assertEqual(self.agent.log_text().count("daemons stay in the agent's cgroup"), 1)

    def test_next_agent_finds_everything(self):
        for how in (signal.SIGTERM, signal.SIGKILL):
            device = self.agent.attach(VOLUME, publish_epoch=7)
            self.agent.attach(OTHER)
            pid = self.agent.attachment(VOLUME).daemon_pid
            dead = self.agent.attachment(OTHER).daemon_pid
            self.agent.stop(how)
            self.assertTrue(alive(pid))
            os.kill(dead, signal.SIGKILL)
            with open(device, "rb") as f:
                self.assertEqual(len(f.read(4096)), 4096)  # served without an agent
            self.agent.start()
            self.assertEqual(self.agent.attach(VOLUME, publish_epoch=7), device)
            self.assertEqual(self.agent.state(VOLUME), "ATTACHED")
            self.assertEqual(self.agent.attachment(VOLUME).daemon_pid, pid)
            self.assertEqual(self.agent.attachment(VOLUME).size_bytes, 256 << 20)
            wait_for(lambda: self.agent.state(OTHER) == "FAILED", "the dead one to be seen")
            self.agent.detach(VOLUME)
            self.agent.detach(OTHER)
            self.nothing_left(VOLUME, OTHER)

    def test_next_agent_undoes_half_an_attach(self):
        self.tell("wait")
        self.assertEqual(self.agent.code("AttachVolume", volume_id=VOLUME), "ABORTED")
        self.agent.stop(signal.SIGKILL)
        self.agent.start()
        wait_for(lambda: self.agent.state(VOLUME) is None, "the half attachment to go")
        self.tell()
        self.agent.attach(VOLUME)
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_agent_killed_at_any_point(self):
        """Attaching and detaching go on where a killed agent left off, wherever that was."""
        for round_ in range(24):
            def churn():
                with contextlib.suppress(Exception):
                    self.agent.call("AttachVolume", volume_id=VOLUME)
                    self.agent.call("DetachVolume", volume_id=VOLUME)
            threads = [threading.Thread(target=churn)]
            for t in threads:
                t.start()
            time.sleep(round_ * 0.0007)
            self.agent.process.kill()
            self.agent.process.wait()
            for t in threads:
                t.join()
            self.agent.channel.close()
            self.agent.start()

            def attached():
                return self.agent.code("AttachVolume", volume_id=VOLUME) == "OK"
            wait_for(attached, f"the attach of round {round_}")
            device = self.agent.attachment(VOLUME).device_path
            with open(device, "r+b", buffering=0) as f:
                self.assertEqual(f.write(bytes(4096)), 4096)
        self.agent.detach(VOLUME)
        self.nothing_left()
        ours = [p for p in os.listdir("/proc") if p.isdigit() and self.is_ours(p)]
        self.assertEqual(ours, [str(self.agent.process.pid)], "daemons that nobody knows")

    def is_ours(self, pid):
        with contextlib.suppress(OSError):
            return alive(pid) and self.agent.run_dir in read(f"/proc/{pid}/cmdline").split("\0")
        return False

    def test_second_agent_is_refused(self):
        second = Agent(self.agent.pools, daemon=FAKE)
        own, second.run_dir = second.run_dir, self.agent.run_dir
        try:
            with self.assertRaisesRegex(AssertionError, "the agent ended with 1"):
                second.start()
        finally:
            second.run_dir = own
            second.clean()
        self.assertEqual(self.agent.code("GetInfo"), "OK")

    def test_many_at_once(self):
        volumes = [f"pv-{'0' * 32}-{n:x}.fast" for n in range(1, 13)]
        devices = {}

        def life(volume):
            devices[volume] = self.agent.call("AttachVolume", volume_id=volume,
                                              timeout=60).device_path
        threads = [threading.Thread(target=life, args=(v,)) for v in volumes]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(len(set(devices.values())), len(volumes))
        self.agent.call("ListAttachments")
        threads = [threading.Thread(target=self.agent.detach, args=(v,)) for v in volumes]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.nothing_left(*volumes)


def on_term(_signum, _frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_term)
    testlib.main()
