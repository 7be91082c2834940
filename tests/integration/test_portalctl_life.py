#!/usr/bin/python3
"""A machine without Kubernetes: portalctl alone, which starts the agent. A file system lives through the
death of its daemon, of the agent, and an upgrade; what is detached here is served elsewhere; a store that
is away delays a detach, and costs nothing when it is forced.

Needs root, /dev/fuse and loop devices.
timeout: 300
"""
import glob
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import testlib
from testlib import BUILD, WAIT_S, alive, mounted, read, sh, wait_for

testlib.need_fuse()

MIB = 1 << 20
IDLE_S = 10  # the agent's --exit-when-idle


class Life(unittest.TestCase):
    def setUp(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="pbd-"))
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.run_dir = f"{self.dir}/run"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PORTALBD_"))}
        self.environment |= {"PORTALBD_RUN_DIR": self.run_dir, "NODE_ID": "here",
                             "PORTALBD_AGENT_STATE_DIR": f"{self.dir}/state",
                             "PORTALBD_AGENT_BACKEND": "fuse"}
        self.store = f"file://{self.dir}/store"
        self.addCleanup(self.end)
        self.ok("pool", "create")
        self.ok("volume", "create", "v", "--size", "256M")

    def processes(self, word):
        """Ours with this word on their command line: pids."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if word.encode() in words and self.run_dir.encode() in words:
                found.append(int(pid))
        return found

    def agents(self):
        return self.processes("--exit-when-idle")

    def end(self):
        """Everything goes away, however the test ended."""
        if any(test is self for test, _ in self._outcome.result.failures + self._outcome.result.errors) and \
                os.path.exists(f"{self.run_dir}/node-agent.log"):
            print(read(f"{self.run_dir}/node-agent.log")[-12000:])
        if os.path.exists(f"{self.dir}/away"):
            os.rename(f"{self.dir}/away", f"{self.dir}/store")
        if self.agents() or glob.glob(f"{self.run_dir}/attachments/*.json"):
            for row in json.loads(self.ctl("devices", "--json").stdout or "[]"):
                self.ctl("detach", "--force", row["volume"])
        for pid in self.agents() + self.processes("attach"):
            os.kill(pid, signal.SIGKILL)
        for path in glob.glob(f"{self.run_dir}/devices/*"):
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False)

    def ctl(self, *args, store=True, **environment):
        more = {"PORTALBD_STORE": self.store} if store else {}
        return subprocess.run([f"{BUILD}/bin/portalctl", *args], stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, timeout=120, check=False,
                              env=self.environment | more | environment)

    def ok(self, *args, **kw):
        r = self.ctl(*args, **kw)
        self.assertEqual(r.returncode, 0, f"{args}: {r.stderr}")
        return r.stdout

    def device(self):
        rows = json.loads(self.ok("devices", "--json", store=False))
        return rows[0] if rows else None

    def wait_attached(self, restarts):
        wait_for(lambda: (self.device()["state"].lower(), self.device()["restarts"]) ==
                 ("attached", restarts), f"restart {restarts}")

    def volume(self):
        return json.loads(self.ok("-o", "json", "volume", "show", "v"))

    def test_life(self):
        """One agent from the first command to ten seconds after the last."""
        path = self.ok("attach", "v").rstrip("\n")
        self.assertTrue(os.path.exists(path), path)
        self.assertEqual(os.path.realpath(f"{self.run_dir}/by-name/v"), path)
        agent, = self.agents()
        sh("mkfs.ext4", "-q", "-F", path)
        data = [os.urandom(3 * MIB + 7) for _ in range(4)]
        with mounted(f"{self.run_dir}/by-name/v") as point:
            def write(i):
                with open(f"{point}/{i}", "wb") as f:
                    f.write(data[i])
                    f.flush()
                    os.fsync(f.fileno())
            write(0)
            if self.survives():
                os.kill(self.device()["daemon_pid"], signal.SIGKILL)
                write(1)
                self.wait_attached(1)
                self.assertIn("attached", self.ok("devices", store=False))
            else:
                write(1)
            os.kill(agent, signal.SIGKILL)
            write(2)
            daemon = self.device()["daemon_pid"]  # by the next agent, which this starts
            wait_for(lambda: len(self.agents()) == 1, "the next agent")
            out = self.ok("-o", "json", "upgrade", "v", store=False)
            self.assertGreaterEqual(json.loads(out)[0]["pause_ms"], 0)
            self.assertNotEqual(self.device()["daemon_pid"], daemon)
            self.assertFalse(alive(daemon))
            self.ok("upgrade", "--all", store=False)
            write(3)
            self.assertEqual(self.ctl("detach", "v", store=False).returncode, 5)  # it is mounted
            for i, expected in enumerate(data):
                with open(f"{point}/{i}", "rb") as f:
                    self.assertEqual(f.read(), expected)
        self.ok("detach", "v", store=False)
        volume = self.volume()
        self.assertEqual((volume["node"], volume["closed"]), ("", True))
        self.assertEqual(glob.glob(f"{self.run_dir}/journals/*"), [])
        self.assertIsNone(self.device())

        self.served_elsewhere(data)
        wait_for(lambda: not self.agents(), "the end of the idle agent", IDLE_S + WAIT_S)
        self.assertIsNone(self.device())
        self.assertEqual(self.agents(), [])  # nothing to say: none is started for it

    @staticmethod
    def survives():
        """fuse: a device goes on after its daemon's death (FUSE_NOTIFY_RESEND)."""
        return tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 9)

    def served_elsewhere(self, data):
        """What was written is what another machine serves."""
        there = {"PORTALBD_RUN_DIR": f"{self.dir}/there", "NODE_ID": "there"}
        socket = f"{self.dir}/sock"
        image = f"{self.dir}/image"
        with open(f"{self.dir}/serve.log", "wb") as log:
            server = subprocess.Popen(
                [f"{BUILD}/bin/portalbd", "serve", "--store", self.store, "--state-dir",
                 f"{self.dir}/there-state", "--listen", f"unix:{socket}"],
                env=self.environment | there, stdout=log, stderr=log)
        try:
            wait_for(lambda: os.path.exists(socket), "portalbd serve")
            sh("nbdcopy", f"nbd+unix:///v?socket={socket}", image)
        finally:
            server.terminate()
            self.assertEqual(server.wait(60), 0, read(f"{self.dir}/serve.log"))
        sh("e2fsck", "-fn", image)
        for i, expected in enumerate(data):
            copy = f"{self.dir}/copy"
            sh("debugfs", "-R", f"dump /{i} {copy}", image)
            with open(copy, "rb") as f:
                self.assertEqual(f.read(), expected)

    def write_unstored(self, path, what):
        """Straight to the device, and not flushed; the store is away from before."""
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            import mmap  # its memory is aligned
            with mmap.mmap(-1, len(what)) as buffer:
                buffer.write(what)
                self.assertEqual(os.pwrite(fd, buffer, 0), len(what))
        finally:
            os.close(fd)

    def test_store_away(self):
        """Detach says what is not stored; it goes on when the store is back."""
        path = self.ok("attach", "v").rstrip("\n")
        what = os.urandom(MIB)
        self.write_unstored(path, what)
        started = time.monotonic()
        r = self.ctl("detach", "--limit", "4s", "v", store=False)
        self.assertEqual(r.returncode, 3, r.stderr)
        self.assertLess(time.monotonic() - started, 4 + WAIT_S)
        self.assertRegex(r.stderr, r"[1-9][0-9]* (bytes|writes|MiB)|1(\.0)?Mi|writes")
        self.assertIn("nothing is lost", r.stderr)
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        self.ok("detach", "--limit", "60s", "v", store=False)
        self.assertEqual(self.volume()["node"], "")
        path = self.ok("attach", "v").rstrip("\n")
        with open(path, "rb") as f:
            self.assertEqual(f.read(MIB), what)
        self.ok("detach", "v")

    def test_force(self):
        """It ends; the journal stays, and the next attach here stores it."""
        path = self.ok("attach", "v").rstrip("\n")
        daemon = self.device()["daemon_pid"]
        what = os.urandom(MIB)
        self.write_unstored(path, what)
        started = time.monotonic()
        r = self.ctl("detach", "--force", "v", store=False)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertLess(time.monotonic() - started, 20 + WAIT_S)
        self.assertFalse(alive(daemon))
        journal, = glob.glob(f"{self.run_dir}/journals/*.journal")
        self.assertIn(journal, r.stderr)
        self.assertIn("stays published", r.stderr)
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        self.assertEqual(self.volume()["node"], "here")
        path = self.ok("attach", "v").rstrip("\n")
        with open(path, "rb") as f:
            self.assertEqual(f.read(MIB), what)
        self.ok("detach", "v")
        self.assertEqual(glob.glob(f"{self.run_dir}/journals/*"), [])

    def test_grow(self):
        """While it is a device."""
        path = self.ok("attach", "v").rstrip("\n")
        self.ok("volume", "grow", "v", "512M")
        self.assertEqual(int(sh("blockdev", "--getsize64", path)), 512 * MIB)
        self.assertEqual(self.device()["size_bytes"], 512 * MIB)
        self.ok("detach", "v")

    def test_snapshot_and_steal(self):
        path = self.ok("attach", "v").rstrip("\n")
        sh("mkfs.ext4", "-q", "-F", path)
        self.ok("snapshot", "create", "v", "s")
        snapshot = self.ok("attach", "v@s").rstrip("\n")
        self.assertEqual(sh("blockdev", "--getro", snapshot).strip(), "1")
        sh("e2fsck", "-fn", snapshot)
        self.ok("detach", "v@s", store=False)
        there = {"PORTALBD_RUN_DIR": f"{self.dir}/there", "NODE_ID": "there"}
        self.assertEqual(self.ctl("attach", "v", **there).returncode, 5)
        self.addCleanup(lambda: setattr(self, "run_dir", f"{self.dir}/there") or self.end())
        stolen = self.ok("attach", "--steal", "v", **there).rstrip("\n")
        sh("e2fsck", "-fn", stolen)
        self.ok("detach", "v", **there)


if __name__ == "__main__":
    testlib.main()
