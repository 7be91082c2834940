#!/usr/bin/python3
"""How the kubelet learns of the driver: it asks on the registration socket, and says whether it took the driver; what it says
shows in /healthz and in the metrics; the socket goes with the driver."""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import grpc

import testlib
from testlib import BUILD, ROOT, read, wait_for

with tempfile.TemporaryDirectory(prefix="stubs-") as stubs:
    subprocess.run(["protoc", f"-I{ROOT}/proto", f"--python_out={stubs}", "pluginregistration.proto"], check=True)
    sys.path.insert(0, stubs)
    import pluginregistration_pb2 as pb  # pylint: disable=import-error


class Registration(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="reg-")
        self.addCleanup(self.dir.cleanup)
        self.socket = os.path.join(self.dir.name, "portalbd-reg.sock")
        self.csi = os.path.join(self.dir.name, "csi.sock")
        self.log = os.path.join(self.dir.name, "log")

    def start(self, *options):
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [f"{BUILD}/bin/portalbd-csi", "--mode", "node", "--endpoint", f"unix://{self.csi}", "--agent",
                 f"unix://{self.dir.name}/agent.sock", "--registration-socket", self.socket, "--http-address", "127.0.0.1",
                 "--http-port", "0", *options], stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_for(lambda: "waiting for the kubelet" in read(self.log) or process.poll() is not None, "the driver")
        self.assertIsNone(process.poll(), read(self.log))
        return process

    def call(self, method, request, answer):
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            return channel.unary_unary(f"/pluginregistration.Registration/{method}",
                                       request_serializer=type(request).SerializeToString,
                                       response_deserializer=answer.FromString)(request, timeout=10)

    def notify(self, **fields):
        self.call("NotifyRegistrationStatus", pb.RegistrationStatus(**fields), pb.RegistrationStatusResponse)

    def http(self, path):
        port = re.findall(r"metrics are served.* port=(\d+)", read(self.log))[-1]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def test_life(self):
        process = self.start("--kubelet-endpoint", "/var/lib/kubelet/plugins/x/csi.sock")
        info = self.call("GetInfo", pb.InfoRequest(), pb.PluginInfo)
        self.assertEqual((info.type, info.endpoint, list(info.supported_versions)),
                         ("CSIPlugin", "/var/lib/kubelet/plugins/x/csi.sock", ["1.0.0"]))
        self.assertRegex(info.name, r"^[a-z.]+$")
        self.assertEqual(self.http("/healthz")[0], 200)
        before = os.stat(self.socket)
        self.notify(plugin_registered=False, error="no such plugin handler")
        # A kubelet asks again when the socket appears once more, the same one under its old name.
        after = os.stat(self.socket)
        self.assertEqual(before.st_ino, after.st_ino)
        self.assertGreater(after.st_ctime_ns, before.st_ctime_ns)
        self.assertEqual([n for n in os.listdir(self.dir.name) if n.startswith(".")], [])
        status, text = self.http("/healthz")
        self.assertEqual(status, 503)
        self.assertIn("no such plugin handler", text)
        self.assertIn("portalbd_csi_registered 0", self.http("/metrics")[1])
        self.notify(plugin_registered=True)
        self.assertEqual(self.http("/healthz")[0], 200)
        self.assertIn("portalbd_csi_registered 1", self.http("/metrics")[1])
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 0, read(self.log))
        self.assertFalse(os.path.exists(self.socket))

    def test_endpoint_is_the_default_and_a_dead_socket_is_replaced(self):
        process = self.start()
        process.kill()
        process.wait()
        self.assertTrue(os.path.exists(self.socket))
        time.sleep(0.1)
        os.truncate(self.log, 0)
        self.start()
        info = self.call("GetInfo", pb.InfoRequest(), pb.PluginInfo)
        self.assertEqual(info.endpoint, self.csi)


testlib.main()
