#!/usr/bin/python3
"""The node agent's attachments, with a stand-in for the daemon: what is attached, joined, refused, given up;
its settings and its sockets.

Needs root, /dev/fuse and loop devices.
timeout: 200
"""
import contextlib
import os
import threading
import time

import grpc

import testlib

testlib.need_fuse()

from agent_client import Agent, mounted, read, sh, wait_for  # noqa: E402
from agent_fixture import FAKE, OTHER, VOLUME, AgentTest, Refused, cgroup_mounts  # noqa: E402


class AgentLife(AgentTest):
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


if __name__ == "__main__":
    testlib.main()
