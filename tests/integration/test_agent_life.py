#!/usr/bin/python3
"""The node agent's attachments, with a stand-in for the daemon: what is joined, refused, adopted,
given up; which daemon dies when.

Needs root, /dev/fuse and loop devices.
timeout: 240
"""
import contextlib
import itertools
import mmap
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import unittest

import testlib

testlib.need_fuse()

from agent_client import BUILD, Agent, agent_pb2, alive, mounted, read, sh, wait_for  # noqa: E402

FAKE = os.path.join(BUILD, "tools", "fake_portalbd")
VOLUME = "pv-0123456789abcdef0123456789abcdef-1.fast"
KERNEL = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
needs_resend = unittest.skipIf(KERNEL < (6, 9), "a FUSE device ends with its daemon before Linux 6.9")
OTHER = "pv-0123456789abcdef0123456789abcdef-2.fast"


class AgentLife(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="pbd-")
        pools = os.path.join(self.dir.name, "pools.conf")
        with open(pools, "w", encoding="utf-8") as f:
            f.write(f"[fast]\nurl = file://{self.dir.name}/store\n")
        os.chmod(pools, 0o600)
        self.agent = Agent(pools, daemon=FAKE, call_wait="1s").start()

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
