#!/usr/bin/python3
# timeout: 300
"""A volume's whole life through CSI while portalbd-csi is killed (-9) again and again: every call is
repeated until it succeeds, as Kubernetes does, and what it finds half done it finishes. Nothing may be
lost, made twice or left over. Between two kills the driver gets a little longer each time a call fails,
so that the slowest call (mkfs) comes to its end."""

import contextlib
import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("PORTALBD_BUILD", os.path.join(ROOT, "build")))
LIVES = 4
MIB = 1 << 20

if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
    print("needs root and /dev/fuse")
    sys.exit(77)

WORK = tempfile.mkdtemp(prefix="killed-", dir=os.environ.get("TMPDIR", "/tmp"))
SOCKET = os.path.join(WORK, "csi.sock")
AGENT = os.path.join(WORK, "agent.sock")
stubs = os.path.join(WORK, "stubs")
os.mkdir(stubs)
subprocess.run(["protoc", f"-I{ROOT}/proto", "-I/usr/include", f"--python_out={stubs}", "csi.proto"], check=True)
sys.path.insert(0, stubs)
import csi_pb2 as csi  # noqa: E402  pylint: disable=wrong-import-position,import-error


def spawn(name, *command):
    with open(os.path.join(WORK, f"{name}.log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


class Driver:
    """portalbd-csi, killed and started again by a thread of its own."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.generator = random.Random(int(os.environ.get("SEED", "1")))
        self.patience = 0.02
        self.kills = 0
        self.process = self.start()
        self.thread = threading.Thread(target=self.kill_again_and_again, daemon=True)
        self.thread.start()

    @staticmethod
    def start():
        return spawn("csi", f"{BUILD}/bin/portalbd-csi", "--endpoint", f"unix://{SOCKET}", "--pools",
                     f"{WORK}/pools.conf", "--agent", f"unix://{AGENT}")

    def kill_again_and_again(self):
        while not self.stopping.wait(0.03 + self.generator.random() * self.patience):
            with self.lock:
                self.process.kill()
                self.process.wait()
                self.kills += 1
                self.process = self.start()

    def stop(self):
        self.stopping.set()
        self.thread.join()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


driver = None
failures = 0


def call(service, method, limit=60, **fields):
    """Repeats a call until it succeeds."""
    global failures
    request = getattr(csi, method + "Request")(**fields)
    answer = getattr(csi, method + "Response")
    deadline = time.monotonic() + limit
    while True:
        channel = grpc.insecure_channel(f"unix:{SOCKET}", options=[("grpc.use_local_subchannel_pool", 1)])
        stub = channel.unary_unary(f"/csi.v1.{service}/{method}", request_serializer=lambda m: m.SerializeToString(),
                                   response_deserializer=answer.FromString)
        try:
            response = stub(request, timeout=30)
            driver.patience = 0.02
            return response
        except grpc.RpcError as e:
            failures += 1
            driver.patience = min(driver.patience * 1.3, 3)
            final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED,
                     grpc.StatusCode.DEADLINE_EXCEEDED)
            if e.code() not in final or time.monotonic() > deadline:
                raise RuntimeError(f"{method}: {e.code().name}: {e.details()}") from e
            time.sleep(0.01)
        finally:
            channel.close()


def path(*names):
    return os.path.join(WORK, *names)


class Volume:
    def __init__(self, name, fstype, source=None):
        self.name, self.fstype = name, fstype
        self.staging, self.target = path(name + ".staging"), path(name + ".target")
        self.capability = {"mount": {"fs_type": fstype}, "access_mode": {"mode": 7}}
        self.context = {}
        os.makedirs(self.staging, exist_ok=True)
        fields = {"volume_content_source": {"snapshot": {"snapshot_id": source}}} if source else {}
        self.id = call("Controller", "CreateVolume", name=name, volume_capabilities=[self.capability],
                       capacity_range={"required_bytes": 320 * MIB}, **fields).volume.volume_id

    def attach(self):
        self.context = dict(call("Controller", "ControllerPublishVolume", volume_id=self.id, node_id="node-1",
                                 volume_capability=self.capability).publish_context)
        call("Node", "NodeStageVolume", volume_id=self.id, publish_context=self.context,
             staging_target_path=self.staging, volume_capability=self.capability)
        call("Node", "NodePublishVolume", volume_id=self.id, publish_context=self.context, target_path=self.target,
             staging_target_path=self.staging, volume_capability=self.capability)

    def detach(self):
        call("Node", "NodeUnpublishVolume", volume_id=self.id, target_path=self.target)
        call("Node", "NodeUnstageVolume", volume_id=self.id, staging_target_path=self.staging)
        call("Controller", "ControllerUnpublishVolume", volume_id=self.id, node_id="node-1")

    def delete(self):
        call("Controller", "DeleteVolume", volume_id=self.id)

    def write(self, text):
        with open(os.path.join(self.target, "file"), "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.sync()

    def read(self):
        with open(os.path.join(self.target, "file"), encoding="utf-8") as f:
            return f.read()


def life(number):
    fstype = ("ext4", "xfs")[number % 2]
    text = f"life {number}"
    volume = Volume(f"volume-{number}", fstype)
    volume.attach()
    volume.write(text)
    snapshot = call("Controller", "CreateSnapshot", source_volume_id=volume.id, name=f"snapshot-{number}").snapshot
    restored = Volume(f"restored-{number}", fstype, snapshot.snapshot_id)
    restored.attach()
    assert restored.read() == text, "the restored volume holds something else"
    call("Controller", "ControllerExpandVolume", volume_id=restored.id, capacity_range={"required_bytes": 400 * MIB})
    restored.detach()
    restored.attach()  # both filesystems have grown by now
    assert os.statvfs(restored.target).f_blocks * os.statvfs(restored.target).f_frsize > 330 * MIB, "it has not grown"
    assert restored.read() == text
    volume.detach()
    volume.attach()
    assert volume.read() == text, "the volume lost what was written"
    for each in (volume, restored):
        each.detach()
        each.delete()
    call("Controller", "DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


def mounts_of(device):
    with open("/proc/mounts", encoding="utf-8") as f:
        return [line.split()[1] for line in f if line.split()[0] == device]


def main():
    global driver
    os.makedirs(path("pool"))
    os.makedirs(path("run"))
    with open(path("pools.conf"), "w", encoding="ascii") as f:
        f.write(f"[main]\nurl = file://{WORK}/pool\n")
    agent = spawn("agent", f"{BUILD}/bin/node-agent", "--endpoint", f"unix://{AGENT}", "--node-id", "node-1",
                  "--pools", path("pools.conf"), "--run-dir", path("run"))
    failed = None
    try:
        deadline = time.monotonic() + 30
        while not os.path.isdir(path("pool", "nodes")):
            assert time.monotonic() < deadline, "the agent does not register"
            time.sleep(0.05)
        driver = Driver()
        for number in range(LIVES):
            life(number)
        status = driver.stop()
        assert status == 0, f"the driver ended with {status}"
        with open("/proc/mounts", encoding="ascii") as f:
            left = [line.split()[1] for line in f if WORK in line and "/run/" not in line]
        assert not left, f"mounts are left: {left}"
        assert not [n for n in os.listdir(WORK) if n.endswith(".target")], "targets are left"
    except (AssertionError, RuntimeError, OSError) as e:
        failed = e
    finally:
        if driver and driver.process.poll() is None:
            driver.stopping.set()
            driver.thread.join()
            driver.process.kill()
            driver.process.wait()
        agent.terminate()
        agent.wait()
        if failed:
            for name in ("csi.log", "agent.log"):
                with contextlib.suppress(OSError), open(path(name), encoding="utf-8", errors="replace") as f:
                    print(f"--- {name}\n{f.read()[-6000:]}")
        for device in glob.glob("/sys/block/loop*"):
            with contextlib.suppress(OSError), open(device + "/loop/backing_file", encoding="utf-8") as f:
                if f.read().startswith(WORK):
                    subprocess.run(["umount", "-l", *mounts_of("/dev/" + os.path.basename(device))], check=False)
                    subprocess.run(["losetup", "-d", "/dev/" + os.path.basename(device)], check=False)
        subprocess.run(f"grep -o ' {WORK}/[^ ]* ' /proc/mounts | sort -r | xargs -r umount -l", shell=True, check=False)
        shutil.rmtree(WORK, ignore_errors=True)
    if failed:
        print(f"FAILED: {failed}")
        return 1
    print(f"{LIVES} lives, {driver.kills} kills, {failures} calls failed and were repeated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
