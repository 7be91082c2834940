"""What drives whole programs through the CSI sockets, as Kubernetes would: nodes (node-agent and portalbd-csi as
processes), CSI calls (stubs made by protoc), volumes that are published, mounted, written and checked. For tools/run and
for tests.

Whatever was started, mounted or created is noted in a Run, whose clean_up() takes it away again, newest first.
"""
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("PORTALBD_BUILD") or os.path.join(ROOT, "build"))
MIB, GIB = 1 << 20, 1 << 30
LOG_SHOWN_MAX = 6000  # bytes


class Failed(Exception):
    pass


def need(condition, text):
    if not condition:
        raise Failed(text)


def program(name):
    path = os.path.join(BUILD, "bin", name)
    need(os.access(path, os.X_OK), f"{path} is missing: run `make` first")
    return path


def content(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Run:
    """A folder, and everything that has to end before it can go."""

    def __init__(self, prefix, parent=None):
        # Short: socket paths are limited to 107 bytes.
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self.processes = []
        self.undo = []  # functions

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def start(self, name, path, *args):
        with open(self.path(name + ".log"), "ab") as log:
            process = subprocess.Popen([path, *args], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       start_new_session=True)
        self.processes.append((name, process))
        return process

    def check_alive(self):
        for name, process in self.processes:
            need(process.poll() is None, f"{name} ended with code {process.returncode}")

    def wait_for(self, what, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            self.check_alive()
            need(time.monotonic() < deadline, f"{what} did not come within {seconds} s")
            time.sleep(0.02)
        return result

    def stop(self, process, seconds=30):
        """Ends one politely, then not; its exit code."""
        name = next(n for n, p in self.processes if p is process)
        self.processes.remove((name, process))
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"     {name} did not end within {seconds} s and is killed", flush=True)
            process.kill()
            return process.wait()

    def stop_processes(self):
        for _, process in reversed(self.processes[:]):
            self.stop(process)

    def clean_up(self):
        while self.undo:
            try:
                self.undo.pop()()
            except Exception as error:  # the rest of the clean-up must still happen
                print(f"     while cleaning up: {error}", flush=True)
        self.stop_processes()
        self.end_daemons()
        devices = loop_devices_below(self.dir)  # found by a path that ends with its mount
        for path in sorted(mounts_below(self.dir), reverse=True):
            print(f"     still mounted, detached: {path}", flush=True)
            subprocess.run(["umount", "-l", path], check=False)
        for device in devices:
            print(f"     still there, detached: {device}", flush=True)
            subprocess.run(["losetup", "-d", device], check=False)

    def end_daemons(self):
        """Daemons outlive their agent; ours name our folder."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
                if words[0].endswith(b"/portalbd") and any(self.dir.encode() + b"/" in w for w in words):
                    print(f"     still running, killed: portalbd {pid}", flush=True)
                    os.kill(int(pid), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass

    def show_logs(self):
        for name in sorted(os.listdir(self.dir)):
            if name.endswith(".log"):
                print(f"--- {name}\n{content(self.path(name))[-LOG_SHOWN_MAX:]}", flush=True)

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def mounts_below(folder):
    return [line.split()[1] for line in content("/proc/self/mounts").splitlines()
            if line.split()[1].startswith(folder + "/")]


def loop_devices_below(folder):
    found = []
    for name in os.listdir("/sys/block"):
        try:
            if content(f"/sys/block/{name}/loop/backing_file").startswith(folder + "/"):
                found.append("/dev/" + name)
        except OSError:
            pass
    return found


def s3_server(run, bucket="bucket"):
    """A real S3 server with an empty bucket, its objects as files below run.path("s3"); the AWS_* variables lead to it."""
    server = os.path.join(BUILD, "tools", "versitygw")
    need(os.access(server, os.X_OK), f"{server} is missing: make deps gets it")
    os.makedirs(run.path("s3", bucket))
    os.environ.update(AWS_ACCESS_KEY_ID="portalbd-test", AWS_SECRET_ACCESS_KEY="portalbd-test-secret",
                      AWS_REGION="us-east-1")
    process = run.start("s3", server, "--access", os.environ["AWS_ACCESS_KEY_ID"], "--secret",
                        os.environ["AWS_SECRET_ACCESS_KEY"], "--port", "127.0.0.1:0", "--quiet", "--keep-alive", "posix",
                        run.path("s3"))

    def port():
        text = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
        found = re.search(rf"127\.0\.0\.1:(\d+) .*pid={process.pid},", text)
        return found and found.group(1)
    os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:" + run.wait_for("the S3 server", port)


def pool_file(run, name, url):
    """A pool file with one pool; of s3:// stores with the AWS_* variables of this process."""
    lines = [f"[{name}]", f"url = {url}"]
    if url.startswith("s3://"):
        env = os.environ
        need(env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"),
             f"{url} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
        lines += [f"endpoint = {endpoint}"] if endpoint else []
        lines += [f"region = {env.get('AWS_REGION') or env.get('AWS_DEFAULT_REGION') or 'us-east-1'}"]
        lines += [f"access_key_id = {env['AWS_ACCESS_KEY_ID']}", f"secret_access_key = {env['AWS_SECRET_ACCESS_KEY']}"]
        lines += [f"session_token = {env['AWS_SESSION_TOKEN']}"] if env.get("AWS_SESSION_TOKEN") else []
    path = run.path("pools.conf")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    return path


class Csi:
    """The three CSI services on one socket, as sidecars and kubelet call them."""

    def __init__(self, address):
        import grpc
        if "csi_pb2" not in sys.modules:
            with tempfile.TemporaryDirectory(prefix="portalbd-stubs-") as stubs:
                subprocess.run(["protoc", f"-I{ROOT}/proto", "-I/usr/include", f"--python_out={stubs}", "csi.proto"],
                               check=True)
                sys.path.insert(0, stubs)
                import csi_pb2
                sys.path.remove(stubs)
        self.grpc, self.pb = grpc, sys.modules["csi_pb2"]
        self.channel = grpc.insecure_channel(f"unix://{address}")

    def call(self, service, method, wait=True, **fields):
        """Repeats a call that answers ABORTED or UNAVAILABLE, as every caller of CSI does."""
        request = getattr(self.pb, method + "Request")(**fields)
        answer = getattr(self.pb, method + "Response")
        stub = self.channel.unary_unary(f"/csi.v1.{service}/{method}",
                                        request_serializer=type(request).SerializeToString,
                                        response_deserializer=answer.FromString)
        deadline = time.monotonic() + 120
        while True:
            try:
                return stub(request, timeout=60)
            except self.grpc.RpcError as error:
                again = error.code() in (self.grpc.StatusCode.ABORTED, self.grpc.StatusCode.UNAVAILABLE)
                if not (wait and again and time.monotonic() < deadline):
                    raise Failed(f"{method}: {error.code().name}: {error.details()}") from None
                time.sleep(0.1)

    def capability(self, block=False, fstype="ext4"):
        c = self.pb.VolumeCapability()
        c.access_mode.mode = self.pb.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER
        if block:
            c.block.SetInParent()
        else:
            c.mount.fs_type = fstype
        return c


class Node:
    """A node: its agent with a run folder, and a CSI driver with both services."""

    def __init__(self, run, node_id, pools):
        self.run, self.id, self.pools = run, node_id, pools
        self.run_dir = run.path(node_id)
        self.agent = self.driver = self.csi = None

    def start(self):
        run, agent, csi = self.run, self.run.path(self.id + ".agent"), self.run.path(self.id + ".csi")
        self.agent = run.start(f"{self.id}-agent", program("node-agent"), "--endpoint", "unix://" + agent, "--node-id",
                               self.id, "--pools", self.pools, "--run-dir", self.run_dir, "--http-address", "127.0.0.1",
                               "--http-port", "0")
        run.wait_for("the agent", lambda: listens(agent))
        self.driver = run.start(f"{self.id}-csi", program("portalbd-csi"), "--endpoint", "unix://" + csi, "--mode", "all",
                                "--pools", self.pools, "--agent", "unix://" + agent, "--http-address", "127.0.0.1",
                                "--http-port", "0")
        run.wait_for("the CSI driver", lambda: listens(csi))
        self.csi = Csi(csi)
        return self

    def stop(self):
        self.csi.channel.close()
        for process in (self.driver, self.agent):
            code = self.run.stop(process)
            need(code == 0, f"{self.id}: {process.args[0]} ended with code {code}")

    def create(self, name, size, fstype="ext4", source=None, wait=True):
        fields = {"volume_content_source": source} if source else {}
        pool = re.search(r"^\[(.*)\]", content(self.pools)).group(1)
        answer = self.csi.call("Controller", "CreateVolume", wait=wait, name=name, capacity_range={"required_bytes": size},
                               volume_capabilities=[self.csi.capability(fstype=fstype)],
                               parameters={"pool": pool, "csi.storage.k8s.io/fstype": fstype}, **fields)
        volume = Volume(self, name, answer, fstype)
        self.run.undo.append(volume.delete)
        return volume


def listens(path):
    with socket.socket(socket.AF_UNIX) as s:  # gRPC itself would wait for seconds
        return s.connect_ex(path) == 0


class Volume:
    """A volume, and where it is published."""

    def __init__(self, node, name, answer, fstype):
        self.node, self.run, self.name, self.fstype = node, node.run, name, fstype
        self.id = answer.volume.volume_id
        self.context = dict(answer.volume.volume_context)
        self.staging = self.run.path("stage-" + name)
        self.target = self.run.path("pods", name)
        self.published = self.staged = self.mounted = False

    def call(self, service, method, **fields):
        return self.node.csi.call(service, method, volume_id=self.id, **fields)

    def mount(self):
        cap = self.node.csi.capability(fstype=self.fstype)
        publish = self.call("Controller", "ControllerPublishVolume", node_id=self.node.id, volume_capability=cap,
                            volume_context=self.context)
        if not self.published:
            self.run.undo.append(self.unpublish)
        self.published = True
        os.makedirs(self.staging, exist_ok=True)
        os.makedirs(os.path.dirname(self.target), exist_ok=True)
        common = dict(publish_context=dict(publish.publish_context), volume_capability=cap,
                      staging_target_path=self.staging, volume_context=self.context)
        self.call("Node", "NodeStageVolume", **common)
        self.staged = True
        self.call("Node", "NodePublishVolume", target_path=self.target, **common)
        self.mounted = True

    def unmount(self):
        if self.mounted:
            self.call("Node", "NodeUnpublishVolume", target_path=self.target)
            self.mounted = False
        if self.staged:
            self.call("Node", "NodeUnstageVolume", staging_target_path=self.staging)
            self.staged = False

    def unpublish(self):
        self.unmount()
        if self.published:
            self.call("Controller", "ControllerUnpublishVolume", node_id=self.node.id)
            self.published = False

    def delete(self):
        self.unpublish()
        self.call("Controller", "DeleteVolume")

    def device(self):
        """Of the mounted volume."""
        for line in content("/proc/self/mounts").splitlines():
            if line.split()[1] == self.staging:
                return line.split()[0]
        raise Failed(f"{self.name} is not mounted")

    def size(self):
        stats = os.statvfs(self.target)
        return stats.f_blocks * stats.f_frsize

    def write(self, name, mib, seed):
        """A file of random bytes, synced; its checksum."""
        digest = hashlib.sha256()
        state = hashlib.sha256(seed.encode()).digest()
        with open(os.path.join(self.target, name), "wb") as f:
            for i in range(mib):
                block = hashlib.shake_128(state + i.to_bytes(4, "little")).digest(MIB)
                digest.update(block)
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        return digest.hexdigest()

    def read(self, name):
        digest = hashlib.sha256()
        with open(os.path.join(self.target, name), "rb") as f:
            while block := f.read(MIB):
                digest.update(block)
        return digest.hexdigest()

    def names(self):
        return {n for n in os.listdir(self.target) if n != "lost+found"}

    def check(self, wanted):
        """The files that it holds, and their checksums."""
        need(self.names() == set(wanted), f"{self.name} holds {sorted(self.names())}, not {sorted(wanted)}")
        for name, digest in wanted.items():
            need(self.read(name) == digest, f"{self.name}: {name} does not read back as it was written")
