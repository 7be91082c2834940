"""A node agent with a stand-in for the daemon (tests/tools/fake_portalbd.c): what its tests share. Needs
root, /dev/fuse and loop devices."""
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
import unittest

from agent_client import BUILD, Agent, agent_pb2, alive, open_files, read, sh, wait_for

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


class AgentTest(unittest.TestCase):
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

    def fuse_descriptors(self):
        return open_files(self.agent.process.pid).count("/dev/fuse")

    def ask(self, verb, **args):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(os.path.join(self.agent.run_dir, "node-agent.sock"))
            s.sendall(json.dumps({"v": 1, "id": 1, "verb": verb, "args": args}).encode() + b"\n")
            with s.makefile() as f:
                answer = json.loads(f.readline())
        if "error" in answer:
            raise Refused(f"{answer['error']['code']}: {answer['error']['text']}")
        return answer["result"]


def on_term(_signum, _frame):
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, on_term)  # what a test has made is taken away all the same
