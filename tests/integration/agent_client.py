"""What tests of the node agent share: the agent as a process with a run folder, its calls over gRPC
(stubs made by protoc into a temporary folder).

The agent's processes are in the caller's process group and namespaces; clean() ends what is left.
"""
import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc

from testlib import BUILD, ROOT, WAIT_S, alive, mounted, read, sh, wait_for  # noqa: F401

_stubs = tempfile.mkdtemp(prefix="portalbd-stubs-")
subprocess.run(["protoc", f"-I{ROOT}/proto", f"--python_out={_stubs}", "agent.proto"], check=True)
sys.path.insert(0, _stubs)
import agent_pb2  # noqa: E402  pylint: disable=wrong-import-position,import-error
shutil.rmtree(_stubs)


def open_files(pid):
    """What its descriptors are open to; one that is closed while we look may be missing."""
    folder, names = f"/proc/{pid}/fd", []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(os.path.join(folder, name)))
    return names


class Agent:
    """One node: an agent with a run folder of its own."""

    live = set()  # what an interrupted test leaves behind

    def __init__(self, pools, node_id="node-1", daemon=None, call_wait="5s", args=()):
        self.run_dir = os.path.realpath(tempfile.mkdtemp(prefix="pbd-run-"))
        self.log = open(os.path.join(self.run_dir, "log"), "ab")
        self.pools, self.node_id, self.daemon, self.call_wait = pools, node_id, daemon, call_wait
        self.args = list(args)
        self.wrapper = []  # a program, with arguments, that becomes the agent
        self.socket = os.path.join(self.run_dir, "agent.sock")
        self.process = None
        self.channel = None
        self.pids = set()  # of daemons that we have seen
        self.live.add(self)

    def start(self):
        args = [*self.wrapper, os.path.join(BUILD, "bin", "node-agent"), "--run-dir", self.run_dir, "--endpoint",
                self.socket, "--node-id", self.node_id, "--pools", self.pools, "--call-wait",
                self.call_wait]
        args += ["--http-address", "127.0.0.1", "--http-port", "0"]
        if self.daemon:
            args += ["--daemon", self.daemon]
        args += self.args
        self.process = subprocess.Popen(args, stdout=self.log, stderr=self.log)

        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the agent ended with {self.process.returncode}\n"
                                     + self.log_text())
            with socket.socket(socket.AF_UNIX) as s:  # gRPC itself would wait for seconds
                return s.connect_ex(self.socket) == 0
        wait_for(ready, "the agent")
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        return self

    def call(self, method, timeout=30, **fields):
        request = getattr(agent_pb2, method + "Request")(**fields)
        reply = getattr(agent_pb2, method + "Response")
        stub = self.channel.unary_unary(f"/portalbd.agent.v1.Agent/{method}",
                                        request_serializer=type(request).SerializeToString,
                                        response_deserializer=reply.FromString)
        answer = stub(request, timeout=timeout)
        if method == "ListAttachments":
            self.pids |= {a.daemon_pid for a in answer.attachments if a.daemon_pid}
        return answer

    def code(self, method, **fields):
        """The name of the status that a call ends with."""
        try:
            self.call(method, **fields)
            return "OK"
        except grpc.RpcError as e:
            return e.code().name

    def attach(self, volume, **fields):
        answer = self.call("AttachVolume", volume_id=volume, **fields)
        self.call("ListAttachments")
        return answer.device_path

    def detach(self, volume, **fields):
        """Until it is not ABORTED any more."""
        def done():
            code = self.code("DetachVolume", volume_id=volume, **fields)
            if code not in ("OK", "ABORTED"):
                raise AssertionError(f"detach: {code}\n{self.log_text()}")
            return code == "OK"
        wait_for(done, f"detach of {volume}", 60)

    def attachment(self, volume):
        for a in self.call("ListAttachments").attachments:
            if a.volume_id == volume:
                return a
        return None

    def state(self, volume):
        a = self.attachment(volume)
        return agent_pb2.AttachmentState.Name(a.state) if a else None

    def stop(self, how=signal.SIGTERM):
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(20)
        return self.process.returncode

    def http(self, path):
        port = re.findall(r"metrics are served.* port=(\d+)", self.log_text())[-1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def log_text(self):
        return read(os.path.join(self.run_dir, "log"))[-20000:]

    def clean(self):
        """Ends everything, by force where needed; returns how the agent ended."""
        code = None
        self.live.discard(self)
        if self.process and self.process.poll() is None:
            with contextlib.suppress(Exception):
                for a in self.call("ListAttachments").attachments:
                    self.call("DetachVolume", volume_id=a.volume_id, force=True)
            with contextlib.suppress(Exception):
                code = self.stop()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for pid in self.pids:
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    if self.run_dir.encode() in f.read():
                        os.kill(pid, signal.SIGKILL)
        devices = os.path.join(self.run_dir, "devices")
        for name in os.listdir(devices) if os.path.isdir(devices) else []:
            path = os.path.join(devices, name)
            for line in sh("losetup", "-n", "-O", "NAME", "-j", path, check=False).split():
                if line.startswith("/dev/"):
                    sh("losetup", "-d", line, check=False)
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False)
        self.log.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return code


@atexit.register
def clean_all():
    for agent in list(Agent.live):
        agent.clean()
