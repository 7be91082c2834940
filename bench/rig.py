"""What the benchmarks stand on: a store, a daemon, fio, and a list of results that ends up as JSON."""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("PORTALBD_BUILD") or os.path.join(ROOT, "build")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write_results(name, results):
    path = os.path.join(BUILD, name)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
        f.write("\n")
    print(f"written to {path}")


class Rig:
    """Sockets, journals and logs are in a folder on tmpfs, the store's objects in objects_dir (by default there, too).
    close() takes everything away."""

    def __init__(self, objects_dir=None):
        self.dir = tempfile.mkdtemp(prefix="portalbd-bench.", dir="/dev/shm")
        self.objects_dir = objects_dir or self.dir
        self.env = dict(os.environ, AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench-secret",
                        AWS_REGION="us-east-1")
        self.store_args = ["--store", "s3://bucket/bench"]
        self.programs = {}
        for name in ("portalbd", "portalctl"):  # copies: a build may come between
            self.programs[name] = shutil.copy2(f"{BUILD}/bin/{name}", self.path(name))
        self.processes = []
        self.results = []
        self.daemon = None

    def path(self, name):
        return os.path.join(self.dir, name)

    def start(self, name, *args):
        with open(self.path(name + ".log"), "ab") as log:
            process = subprocess.Popen(args, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env)
        self.processes.append(process)
        return process

    def wait_for(self, what, condition):
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline or any(p.poll() is not None for p in self.processes):
                sys.exit(f"{what} did not come:\n" + self.logs())
            time.sleep(0.02)

    def logs(self):
        text = ""
        for name in sorted(os.listdir(self.dir)):
            if name.endswith(".log"):
                with open(self.path(name), errors="replace", encoding="utf-8") as log:
                    text += f"--- {name}\n{log.read()[-2000:]}"
        return text

    def stop(self, process):
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)

    def close(self):
        for process in list(reversed(self.processes)):
            self.stop(process)
        shutil.rmtree(self.dir, ignore_errors=True)

    def start_server(self):
        """A real S3 server; returns its port."""
        root = os.path.join(self.objects_dir, "s3")
        os.makedirs(os.path.join(root, "bucket"))
        port = free_port()
        self.start("versitygw", f"{BUILD}/tools/versitygw", "--access", self.env["AWS_ACCESS_KEY_ID"], "--secret",
                   self.env["AWS_SECRET_ACCESS_KEY"], "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive",
                   "posix", root)
        return port

    def ctl(self, *args):
        out = subprocess.run([self.programs["portalctl"], *self.store_args, "--run-dir", self.path("run"), *args],
                             env=self.env, check=False, capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f"portalctl {' '.join(args)} failed:\n{out.stdout}{out.stderr}\n{self.logs()}")
        return out.stdout

    def start_daemon(self, cache="256M", *options):
        self.daemon = self.start("portalbd", self.programs["portalbd"], "serve", *self.store_args, "--listen",
                                 "unix:" + self.path("sock"), "--cache-size", cache, "--run-dir", self.path("run"),
                                 *options)
        self.wait_for("the daemon's socket", lambda: os.path.exists(self.path("sock")))

    def restart_daemon(self):
        self.stop(self.daemon)
        if os.path.exists(self.path("sock")):
            os.unlink(self.path("sock"))
        self.start_daemon()

    def memory_mib(self, field="VmRSS"):
        """Resident: with its journal, whose pages count once, and with the libraries that it shares with others."""
        with open(f"/proc/{self.daemon.pid}/status", encoding="utf-8") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(field)) / 1024

    def cpu_us(self):
        with open(f"/proc/{self.daemon.pid}/stat", encoding="utf-8") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")

    def fio(self, *args, volume="disk", meanwhile=None):
        """Runs fio and returns its job; meanwhile is called again and again until it has ended."""
        with open(self.path("fio.out"), "w+", encoding="utf-8") as out:
            process = subprocess.Popen(["fio", "--name=b", "--ioengine=nbd",
                                        f"--uri=nbd+unix:///{volume}?socket={self.path('sock')}", "--thread",
                                        "--group_reporting", "--output-format=json", "--randrepeat=1", *args],
                                       env=self.env, stdout=out, stderr=out)
            self.processes.append(process)
            while meanwhile and process.poll() is None:
                meanwhile()
            process.wait()
            self.processes.remove(process)
            out.seek(0)
            text = out.read()
        if process.returncode != 0:
            sys.exit(f"fio {' '.join(args)} failed:\n{text}\n{self.logs()}")
        return json.loads(text[text.index("{"):])["jobs"][0]
