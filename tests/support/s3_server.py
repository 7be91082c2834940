"""A real S3 server on loopback, with an empty bucket, that can go away and come back."""
import os
import signal
import socket
import subprocess
import time

from node import BUILD, need, wait_for

ACCESS_KEY, SECRET_KEY = "portalbd-test", "portalbd-test-secret"


class S3Server:
    def __init__(self, folder, bucket="bucket"):
        self.program = os.path.join(BUILD, "tools", "versitygw")
        need(os.access(self.program, os.X_OK), f"{self.program} is missing: make deps gets it")
        self.folder, self.bucket = folder, bucket
        os.makedirs(os.path.join(folder, "objects", bucket))
        with socket.socket() as s:  # a port of its own, which it has again when it comes back
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process = None
        self.start()

    def start(self):
        with open(os.path.join(self.folder, "s3.log"), "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", f"127.0.0.1:{self.port}",
                 "--quiet", "--keep-alive", "posix", os.path.join(self.folder, "objects")], stdout=log, stderr=log)
        wait_for(self.answers, "the S3 server", 30)

    def answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def pool(self, prefix):
        """Its lines in a pool file."""
        return [f"url = s3://{self.bucket}/{prefix}", f"endpoint = http://127.0.0.1:{self.port}", "region = us-east-1",
                f"access_key_id = {ACCESS_KEY}", f"secret_access_key = {SECRET_KEY}"]

    def hang(self):
        """Takes connections and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def refuse(self):
        self.process.kill()
        self.process.wait()

    def back(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        else:
            self.start()

    def end(self):
        self.process.kill()
        self.process.wait()
