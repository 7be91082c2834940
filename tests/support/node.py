"""A node as tests see it: an agent with a run folder of its own, talked to over its control socket, so that nothing but
Python is needed: on a host as well as in a virtual machine."""
import json
import os
import socket
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("PORTALBD_BUILD", os.path.join(ROOT, "build")))
MIB = 1 << 20
LIMIT_S = 120  # for a device to serve again, whatever happened


class Failed(Exception):
    pass


def need(condition, text):
    if not condition:
        raise Failed(text)


def say(text):
    print(f"-- {text}", flush=True)


def program(name):
    return os.path.join(BUILD, "bin", name)


def sh(*args, check=True, timeout=120):
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    need(not check or r.returncode == 0, f"{' '.join(args)}: exit code {r.returncode}\n{r.stdout[-4000:]}")
    return r.stdout


def wait_for(condition, what, seconds=LIMIT_S):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        need(time.monotonic() < end, f"waited {seconds} s for {what}")
        time.sleep(0.02)


class Node:
    """The agent, its run folder and its pool "p". `pool` is the pool's lines in the pool file."""

    def __init__(self, folder, backend, pool, *options, node_id="node"):
        self.folder, self.backend, self.options, self.node_id = folder, backend, options, node_id
        os.makedirs(folder, exist_ok=True)
        self.run_dir = os.path.join(folder, "run")
        self.log = open(os.path.join(folder, "agent.log"), "ab")
        self.pools = os.path.join(folder, "pools.conf")
        with open(os.open(self.pools, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
            f.write("\n".join(["[p]", *pool]) + "\n")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [program("node-agent"), "--run-dir", self.run_dir, "--endpoint", os.path.join(self.folder, "agent.sock"),
             "--state-dir", os.path.join(self.folder, "state"), "--node-id", self.node_id, "--pools", self.pools,
             "--backend", self.backend, *self.options], stdout=self.log, stderr=self.log)
        wait_for(self.answers, "the agent", 30)

    def answers(self):
        need(self.process.poll() is None, f"the agent ended with {self.process.returncode}\n{self.tail()}")
        try:
            return self.call("info")
        except OSError:
            return None

    def call(self, verb, timeout=60, **args):
        answer = self.ask(verb, timeout, args)
        need("result" in answer, f"{verb}: {answer.get('error')}")
        return answer["result"]

    def refusal(self, verb, timeout=60, **args):
        """Why the agent does not do it."""
        answer = self.ask(verb, timeout, args)
        need("error" in answer, f"{verb} was done: {answer.get('result')}")
        return answer["error"]["text"]

    def ask(self, verb, timeout, args):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(os.path.join(self.run_dir, "node-agent.sock"))
            s.sendall(json.dumps({"v": 1, "id": 1, "verb": verb, "args": args}).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                more = s.recv(65536)
                need(more, f"{verb}: the agent closed the connection")
                line += more
        return json.loads(line)

    def device(self, volume):
        for d in self.devices():
            if d["volume"] == volume:
                return d
        return None

    def devices(self):
        """All of them, page by page."""
        found, after = [], ""
        while True:
            page = self.call("devices", after=after)
            found += page["devices"]
            after = page["next"]
            if not after:
                return found

    def create(self, name, size):
        """A volume; its id."""
        out = self.portalctl("volume", "create", "-o", "json", "--size", size, name)
        return json.loads(out[out.index("{"):])["id"]

    def portalctl(self, *args):
        return sh(program("portalctl"), "--pools", self.pools, "--run-dir", self.run_dir, *args)

    def tail(self):
        with open(os.path.join(self.folder, "agent.log"), encoding="utf-8", errors="replace") as f:
            return f.read()[-6000:]

    def end(self):
        """Nothing of ours is left, whatever state it was in."""
        if self.process and self.process.poll() is None:
            try:
                for d in self.devices():
                    self.call("detach", volume=d["volume"], force=True)
            except (OSError, Failed) as e:
                print(e)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
