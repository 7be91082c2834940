#!/usr/bin/python3
"""The next agent, which goes on with what it finds, and the next version of the daemon, under a device in use; the
daemon is a stand-in.

Needs root, /dev/fuse and loop devices.
timeout: 200
"""
import contextlib
import os
import signal
import sys
import threading
import time

import testlib

testlib.need_fuse()

from agent_client import agent_pb2, alive, read, wait_for  # noqa: E402
from agent_fixture import FAKE, OTHER, VOLUME, AgentTest, Refused, needs_resend  # noqa: E402


class NextAgent(AgentTest):
    def pid_or_none(self, volume=VOLUME):
        return self.agent.attachment(volume).daemon_pid or None

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


if __name__ == "__main__":
    testlib.main()
