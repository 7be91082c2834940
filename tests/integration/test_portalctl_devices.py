#!/usr/bin/python3
"""portalctl attach, detach, devices and upgrade against a stand-in of the node agent: what is asked of
it, how it is started, who has the volume afterwards, which pool file it reads, the exit codes and the
words. No devices: needs neither root nor /dev/fuse.
"""
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import unittest

import testlib
from testlib import BUILD, read

HERE = os.path.dirname(os.path.abspath(__file__))


class Devices(unittest.TestCase):
    def setUp(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="pbd-"))
        self.addCleanup(shutil.rmtree, self.dir, True)
        os.mkdir(f"{self.dir}/bin")
        # The program beside portalctl is the one that it starts.
        shutil.copy(f"{BUILD}/bin/portalctl", f"{self.dir}/bin/portalctl")
        shutil.copy(f"{HERE}/standin_agent.py", f"{self.dir}/bin/node-agent")
        os.chmod(f"{self.dir}/bin/node-agent", 0o755)
        self.run_dir = f"{self.dir}/run"
        self.store = ["--store", f"file://{self.dir}/store"]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        self.environment |= {"STANDIN": f"{self.dir}/standin", "NODE_ID": "here"}
        self.addCleanup(self.end_agents)
        self.ok("pool", "create")
        self.ok("volume", "create", "v", "--size", "64M")

    def agents(self):
        """Stand-ins of this run folder: a pid for each."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if self.run_dir.encode() in words and b"--exit-when-idle" in words:
                found.append(int(pid))
        return found

    def end_agents(self):
        for pid in self.agents():
            os.kill(pid, signal.SIGKILL)

    def ctl(self, *args, store=None, run_dir=None, **environment):
        r = subprocess.run(
            [f"{self.dir}/bin/portalctl", *(self.store if store is None else store), "--run-dir",
             run_dir or self.run_dir, "--timeout", "20s", *args], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
            env=self.environment | environment)
        r.stderr = re.sub("^==.*==WARNING: ASan doesn't fully support .*\n", "", r.stderr, flags=re.M)
        return r

    def ok(self, *args, **kw):
        r = self.ctl(*args, **kw)
        self.assertEqual(r.returncode, 0, f"{args}: {r.stderr}")
        return r.stdout

    def fails(self, code, words, *args, **kw):
        r = self.ctl(*args, **kw)
        self.assertEqual(r.returncode, code, f"{args}: {r.stdout}{r.stderr}")
        for word in words.split("|"):
            self.assertIn(word, r.stderr)
        self.assertEqual(r.stdout, "")
        return r

    def behave(self, **how):
        with open(f"{self.dir}/standin.new", "w", encoding="utf-8") as f:
            json.dump(how, f)
        os.rename(f"{self.dir}/standin.new", f"{self.dir}/standin")

    def asked(self, verb=None):
        lines = [json.loads(line) for line in read(f"{self.dir}/standin.log").splitlines()]
        return [e["args"] for e in lines if e.get("verb") == verb] if verb else \
            [e for e in lines if "start" in e]

    def volume(self, name="v"):
        return json.loads(self.ok("-o", "json", "volume", "show", name))

    def test_attach_starts_the_agent(self):
        r = self.ctl("attach", "v")
        self.assertEqual((r.returncode, r.stdout, r.stderr), (0, "/dev/none0\n", ""))
        start, = self.asked()
        self.assertEqual(start["start"], [
            "--exit-when-idle", "--run-dir", self.run_dir, "--pools", f"{self.run_dir}/pools.conf",
            "--endpoint", f"unix://{self.run_dir}/agent.sock"])
        self.assertEqual((start["stdin"], start["cwd"], start["leader"]), ("/dev/null", "/", True))
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.run_dir}/node-agent.log").st_mode), 0o600)
        volume = self.volume()
        self.assertEqual((volume["node"], volume["publish_epoch"]), ("here", 1))
        request = self.asked("attach")[0]
        self.assertEqual((request["volume"], request["publish_epoch"], request["read_only"]),
                         (volume["id"], 1, False))
        self.assertNotIn("backend", request)
        self.assertEqual(os.readlink(f"{self.run_dir}/by-name/v"), "/dev/none0")

        self.assertEqual(self.ok("attach", "v"), "/dev/none0\n")  # again: the same
        self.assertEqual(len(self.asked()), 1)
        self.assertEqual(self.volume()["publish_epoch"], 1)
        self.ok("detach", "v")
        self.assertEqual(self.volume()["node"], "")
        self.assertEqual(os.listdir(f"{self.run_dir}/by-name"), [])

    def test_options_and_json(self):
        self.ok("snapshot", "create", "v", "s")
        out = json.loads(self.ok("-o", "json", "attach", "--backend", "nbd", "--read-only", "--cache-size",
                                 "8M", "--journal-size", "16M", "--disk-cache-size", "1G", "v"))
        self.assertEqual((out["device"], out["name"], out["backend"]), ("/dev/none0", "v", "nbd"))
        request = self.asked("attach")[0]
        self.assertEqual((request["backend"], request["read_only"], request["cache_bytes"],
                          request["journal_bytes"], request["disk_cache_bytes"]), ("nbd", True, 8 << 20, 16 << 20, 1 << 30))
        self.assertNotIn("no_disk_cache", request)
        self.ok("attach", "v@s")  # nobody's: it is not published
        request = self.asked("attach")[-1]
        self.assertEqual((request["publish_epoch"], request["read_only"]), (0, True))
        self.ok("volume", "create", "w", "--size", "64M")
        self.ok("attach", "w", "--no-disk-cache")
        self.assertIs(self.asked("attach")[-1]["no_disk_cache"], True)
        rows = json.loads(self.ok("devices", "--json", store=[]))
        self.assertEqual(sorted(r["name"] for r in rows), ["v", "v@s", "w"])  # of two pages
        table = self.ok("devices", store=[])
        self.assertRegex(table, r"volume +device +size_bytes +backend +state +restarts +message\n")
        self.assertRegex(table, r"\nw +/dev/none2 +64Mi +fuse +attached +0 +-\n")
        self.ok("detach", "v@s", store=[])
        self.assertEqual(self.ok("upgrade", "w", "-o", "json"),
                         '[\n  {\n    "volume": "w",\n    "pause_ms": 7\n  }\n]\n')
        self.assertEqual(len(json.loads(self.ok("upgrade", "--all", "-o", "json"))), 2)
        self.fails(2, "--all", "upgrade")
        self.fails(3, "not attached", "upgrade", "none")

    def test_no_device(self):
        """Nothing is attached: no agent is started to say so."""
        self.assertEqual(self.ok("devices", "--json"), "[]\n")
        self.ok("detach", "v")
        self.fails(1, "none", "detach", "none")
        self.fails(3, "none", "attach", "none")
        self.assertFalse(os.path.exists(f"{self.dir}/standin.log"))

    def test_agent_that_does_not_start(self):
        self.behave(refuse="no kernel here")
        self.fails(1, "did not start|no kernel here|node-agent.log", "attach", "v")
        self.assertEqual(self.volume()["node"], "")
        os.unlink(f"{self.dir}/bin/node-agent")
        self.fails(1, "no program node-agent", "attach", "v", PATH="/nonexistent")

    def test_agent_of_somebody_else(self):
        """--no-start-agent waits for it."""
        command = subprocess.Popen(
            [f"{self.dir}/bin/portalctl", *self.store, "--run-dir", self.run_dir, "attach",
             "--no-start-agent", "v"], env=self.environment, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        self.assertEqual(self.agents(), [])
        agent = subprocess.Popen(
            [f"{self.dir}/bin/node-agent", "--exit-when-idle", "--run-dir", self.run_dir, "--pools",
             f"{self.run_dir}/pools.conf", "--endpoint", "none"], env=self.environment)
        self.assertEqual(command.communicate(timeout=60)[0], "/dev/none0\n")
        agent.kill()
        agent.wait()

    def test_many_start_one(self):
        self.behave(slow_start=1.5)
        commands = [subprocess.Popen(
            [f"{self.dir}/bin/portalctl", *self.store, "--run-dir", self.run_dir, "attach", "v"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(4)]
        for command in commands:
            out, err = command.communicate(timeout=60)
            self.assertEqual((command.returncode, out), (0, "/dev/none0\n"), err)
        self.assertEqual(len(self.asked()), 1)

    def test_agent_that_ends(self):
        self.behave(attach={"end": True})
        self.assertEqual(self.ok("attach", "v"), "/dev/none0\n")
        self.assertEqual(len(self.asked()), 2)

    def test_progress(self):
        self.behave(attach={"busy": 3, "text": "the volume opens", "sleep": 1})
        r = self.ctl("attach", "v")
        self.assertEqual((r.returncode, r.stdout), (0, "/dev/none0\n"))
        self.assertEqual(r.stderr, "portalctl: the volume opens\n")

    def test_slow_attach(self):
        """Its time is over: it goes on, and nothing is undone."""
        self.behave(attach={"busy": 10, "text": "the volume opens", "sleep": 1})
        self.fails(6, "goes on|the volume opens", "--timeout", "2s", "attach", "v")
        self.assertEqual(self.volume()["node"], "here")

    def test_attach_that_fails(self):
        self.behave(attach={"code": "UNSUPPORTED", "text": "no such backend"})
        self.fails(1, "no such backend", "attach", "v")
        volume = self.volume()
        self.assertEqual((volume["node"], volume["closed"]), ("", True))
        self.behave()
        self.ok("attach", "v")  # was attached before: stays so
        self.behave(attach={"code": "UNSUPPORTED", "text": "no such backend"})
        self.fails(1, "no such backend", "attach", "v")
        self.assertEqual(self.volume()["node"], "here")

    def test_of_another_node(self):
        self.ok("attach", "v")
        there = {"run_dir": f"{self.dir}/run2", "NODE_ID": "there"}
        self.addCleanup(lambda: setattr(self, "run_dir", f"{self.dir}/run2") or self.end_agents())
        self.fails(5, "here|--steal", "attach", "v", **there)
        self.assertEqual(self.volume()["node"], "here")
        self.ok("attach", "--steal", "v", **there)
        volume = self.volume()
        self.assertEqual(volume["node"], "there")
        self.assertEqual(self.asked("attach")[-1]["publish_epoch"], volume["publish_epoch"])
        self.assertGreater(volume["publish_epoch"], 1)
        self.ok("detach", "v")  # what is left of it here
        self.assertEqual(self.volume()["node"], "there")

    def test_detach_in_use(self):
        self.ok("attach", "v")
        self.behave(detach={"busy": 1000, "text": "it is mounted"})
        started = time.monotonic()
        self.fails(5, "it is mounted", "detach", "v")
        self.assertLess(time.monotonic() - started, 10)
        self.assertEqual(self.volume()["node"], "here")

    def test_detach_not_uploaded(self):
        self.ok("attach", "v")
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        self.behave(detach={"busy": 1000, "text": "5 MiB are not uploaded", "state": "detaching",
                            "sleep": 1})
        started = time.monotonic()
        self.fails(3, "5 MiB are not uploaded|nothing is lost|--force", "detach", "--limit", "3s", "v",
                   store=[])
        self.assertLess(time.monotonic() - started, 10)
        self.assertIn("wait_ms", self.asked("detach")[0])
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        self.behave()
        self.ok("detach", "v", store=[])  # the pool: the run folder's
        self.assertEqual(self.volume()["node"], "")

    def test_force(self):
        """Of a volume that is not closed: it stays published, the journal is good for it alone."""
        self.ok("attach", "v")
        os.mkdir(f"{self.run_dir}/journals")
        journal = f"{self.run_dir}/journals/{self.volume()['id']}.journal"
        with open(journal, "wb"):
            pass
        os.rename(f"{self.dir}/store", f"{self.dir}/away")
        started = time.monotonic()
        r = self.ctl("detach", "--force", "v", store=[])
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertLess(time.monotonic() - started, 15)
        for word in ("forced", journal, "stays published"):
            self.assertIn(word, r.stderr)
        self.assertTrue(self.asked("detach")[-1]["force"])
        os.rename(f"{self.dir}/away", f"{self.dir}/store")
        self.assertEqual(self.volume()["node"], "here")
        self.ok("attach", "v")
        self.ok("detach", "--force", "v")  # closed, and the store is there
        self.assertEqual(self.volume()["node"], "")

    def test_pool_files(self):
        """The agent's pool and ours are one store, or nothing happens."""
        pools = f"{self.dir}/pools.conf"
        with open(pools, "w", encoding="utf-8") as f:
            f.write(f"[default]\nurl = file://{self.dir}/other\n")
        self.behave(pools=pools)
        self.fails(1, "default|other|--run-dir", "attach", "v")
        self.assertEqual(self.volume()["node"], "")
        with open(pools, "w", encoding="utf-8") as f:
            f.write(f"[fast]\nurl = file://{self.dir}/store\n")
        self.fails(3, "no pool 'default'", "attach", "v")
        self.assertEqual(self.ok("attach", "v", store=["--pool", "fast", *self.store]), "/dev/none0\n")
        self.assertEqual(self.ok("attach", "v", store=["--pools", pools]), "/dev/none0\n")
        self.assertEqual(len({r["volume"] for r in self.asked("attach")}), 1)

    def test_two_stores(self):
        """By one name: only while nothing of the first is attached."""
        other = ["--store", f"file://{self.dir}/other"]
        self.ok("pool", "create", store=other)
        self.ok("volume", "create", "o", "--size", "64M", store=other)
        self.ok("attach", "v")
        self.assertIn(f"{self.dir}/store", read(f"{self.run_dir}/pools.conf"))
        os.mkdir(f"{self.run_dir}/attachments")  # as the agent does
        attach_file = f"{self.run_dir}/attachments/{self.volume()['id']}.json"
        with open(attach_file, "w", encoding="utf-8"):
            pass
        self.fails(5, "--pool", "attach", "o", store=other)
        self.ok("attach", "o", store=["--pool", "second", *other])
        both = read(f"{self.run_dir}/pools.conf")
        self.assertIn("[default]", both)
        self.assertIn("[second]", both)
        self.ok("detach", "v", store=[])
        os.unlink(attach_file)
        self.ok("attach", "o", store=other)

    def test_pool_file_of_a_user(self):
        pools = f"{self.dir}/pools.conf"
        with open(pools, "w", encoding="utf-8") as f:
            f.write(f"[mine]\nurl = file://{self.dir}/store\n")
        self.ok("attach", "v", store=["--pools", pools])
        self.assertIn(pools, self.asked()[0]["start"])
        self.assertFalse(os.path.exists(f"{self.run_dir}/pools.conf"))


if __name__ == "__main__":
    testlib.main()
