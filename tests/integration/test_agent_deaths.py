#!/usr/bin/python3
"""Daemons of the node agent that die, hang or are told to end, at any moment of an attachment; the daemon is a
stand-in.

Needs root, /dev/fuse and loop devices.
timeout: 200
"""
import mmap
import os
import signal
import threading
import time

import testlib

testlib.need_fuse()

from agent_client import mounted, read, sh, wait_for  # noqa: E402
from agent_fixture import VOLUME, AgentTest, needs_resend  # noqa: E402


class AgentDeaths(AgentTest):
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

    def follow_told_to_end(self, device):
        with self.writer(device):
            pid = self.pid()
            os.kill(pid, signal.SIGTERM)
            self.wait_served(pid)
        self.assertEqual(self.starts(), ["", "resume"])
        self.agent.detach(VOLUME)
        self.nothing_left()

    def test_daemon_told_to_end(self):
        """It closes everything; the next one goes on with the device that stays."""
        self.follow_told_to_end(self.agent.attach(VOLUME))

    def test_adopted_daemon_told_to_end(self):
        """Of one that is no child of ours nobody learns how it ended; the journal shows it."""
        device = self.agent.attach(VOLUME)
        self.agent.stop()
        self.agent.start()
        self.wait_state("ATTACHED")
        self.follow_told_to_end(device)

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


if __name__ == "__main__":
    testlib.main()
