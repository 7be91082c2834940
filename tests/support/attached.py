"""`portalbd attach` as its parent and the kernel see it: the ready pipe, and an NBD client on a socketpair."""
import array
import json
import mmap
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import threading
import time

from testlib import BUILD, WAIT_S

READ, WRITE, DISC, FLUSH, TRIM = 0, 1, 2, 3, 4
ESHUTDOWN = 108
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


class Gone(Exception):
    """The other end of the socket has closed it."""


class Client:
    """The kernel's client: simple replies, many requests in flight, one thread at a time in each of send and receive."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self.cookie = 0

    def send(self, command, off=0, length=0, data=b"", flags=0):
        self.cookie += 1
        self.sock.sendall(REQUEST.pack(0x25609513, flags, command, self.cookie, off, length) + data)
        return self.cookie

    def _exactly(self, n):
        data = b""
        while len(data) < n:
            piece = self.sock.recv(n - len(data))
            if not piece:
                raise Gone
            data += piece
        return data

    def reply(self):
        magic, error, cookie = REPLY.unpack(self._exactly(REPLY.size))
        assert magic == 0x67446698, hex(magic)
        return cookie, error

    def request(self, command, off=0, length=0, data=b""):
        sent = self.send(command, off, length, data)
        cookie, error = self.reply()
        assert cookie == sent
        return error, self._exactly(length) if command == READ and not error else b""

    def write(self, off, data):
        error, _ = self.request(WRITE, off, len(data), data)
        assert error == 0, error

    def read(self, off, length):
        error, data = self.request(READ, off, length)
        assert error == 0, error
        return data

    def flush(self):
        error, _ = self.request(FLUSH)
        assert error == 0, error


class Attached:
    """One daemon. sock: None gives it no device (upload only); `True` a new socketpair, whose other end is .client;
    a socket: that one. fuse_fd: its device instead."""

    def __init__(self, place, *more, sock=True, fuse_fd=None, program="portalbd", env=None):
        self.place = place
        self.client = None
        fds = []
        if fuse_fd is not None:
            sock = None
            fds.append(fuse_fd)
            more += ("--fuse-fd", str(fuse_fd))
        elif sock is True:
            ours, sock = socket.socketpair()
            self.client = Client(ours)
        r, w = os.pipe()
        fds.append(w)
        command = [program if "/" in program else os.path.join(BUILD, "bin", program), "attach", "--volume", place.id,
                   *place.store, "--run-dir", place.run_dir, "--state-dir", place.state_dir,
                   "--ready-fd", str(w), *more]
        if sock is not None:
            fds.append(sock.fileno())
            command += ["--nbd-fd", str(sock.fileno())]
        with open(place.log, "ab") as log:
            self.process = subprocess.Popen(command, pass_fds=fds, stderr=log, env=env and dict(os.environ, **env))
        os.close(w)
        if self.client:
            sock.close()
        self.lines = os.fdopen(r)
        place.daemons.append(self)

    def line(self):
        """The next line of the ready pipe; None: there is none any more."""
        text = self.lines.readline()
        return json.loads(text) if text else None

    def ready(self):
        line = self.line()
        if line == {"opened": True}:
            line = self.line()
        assert line and line.get("ready"), line
        return line

    def control(self, verb, args=None):
        """The result and the descriptor (or None); an error raises its code and text."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(WAIT_S)
            folder = os.open(self.place.run_dir, os.O_RDONLY)
            try:
                s.connect(f"/proc/self/fd/{folder}/{self.place.id}.sock")
            finally:
                os.close(folder)
            s.sendall((json.dumps({"v": 1, "id": 1, "verb": verb, "args": args or {}}) + "\n").encode())
            data, fds = b"", []
            while not data.endswith(b"\n"):
                piece, ancillary, _, _ = s.recvmsg(65536, socket.CMSG_SPACE(4))
                assert piece, "no answer"
                data += piece
                for level, kind, bytes_ in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        fds += array.array("i", bytes_)
        answer = json.loads(data)
        if "error" in answer:
            raise RuntimeError(answer["error"]["code"], answer["error"]["text"])
        return answer["result"], (fds[0] if fds else None)

    def hand_over(self):
        """What the next daemon is started with: sock= or fuse_fd=."""
        answer, fd = self.control("handover")
        if answer["kind"] == "fuse":
            return {"fuse_fd": fd}
        return {"sock": socket.socket(fileno=fd)}

    def status(self):
        return self.control("status")[0]

    def kill(self):
        self.process.kill()
        self.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        code = self.process.wait(WAIT_S)
        self.lines.close()
        return code


class Place:
    """A pool in a folder, a volume in it, and where its daemons live."""

    def __init__(self, folder, size="64M"):
        self.pool = os.path.join(folder, "pool")
        self.run_dir = os.path.join(folder, "run")
        self.state_dir = os.path.join(folder, "state")
        self.log = os.path.join(folder, "daemon.log")
        self.store = ["--store", f"file://{self.pool}"]
        self.daemons = []
        self.ctl("pool", "create")
        self.ctl("volume", "create", "v", "--size", size)
        self.id = json.loads(self.ctl("-o", "json", "volume", "show", "v"))["id"]
        self.journal = os.path.join(self.run_dir, "journals", f"{self.id}.journal")
        self.aside = os.path.join(self.state_dir, "set-aside", f"{self.id}.journal")

    def ctl(self, *args):
        command = [os.path.join(BUILD, "bin", "portalctl"), *self.store, "--run-dir", self.run_dir, *args]
        return subprocess.run(command, timeout=WAIT_S, stdout=subprocess.PIPE, text=True, check=True).stdout

    def is_closed(self):
        return json.loads(self.ctl("-o", "json", "volume", "show", "v"))["closed"]

    def store_goes_away(self):
        os.rename(self.pool, self.pool + ".away")

    def store_comes_back(self):
        os.rename(self.pool + ".away", self.pool)

    def another_writer(self):
        """Another node takes the volume, and lets it go again."""
        other = Attached(self, "--node-id", "other", "--steal", "--run-dir", self.run_dir + "2", sock=None)
        assert other.wait() == 0

    def logged(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read()

    def end(self):
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()


class Load(threading.Thread):
    """Writes block after block, each with its number, as long as it may; an error is in .error."""

    BLOCK = 4096
    BLOCKS = 512

    def __init__(self, client):
        super().__init__(daemon=True)
        self.client = client
        self.going, self.error, self.done, self.longest_s = True, None, 0, 0
        self.content = {}
        self.start()

    def write(self, off, data):
        self.client.write(off, data)

    def flush(self):
        self.client.flush()

    def read(self, off):
        return self.client.read(off, self.BLOCK)

    def run(self):
        try:
            while self.going:
                block = self.done % self.BLOCKS
                data = struct.pack("<Q", self.done + 1) * (self.BLOCK // 8)
                began = time.monotonic()
                self.write(block * self.BLOCK, data)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.content[block] = data
                self.done += 1
                if self.done % 64 == 0:
                    self.flush()
        except Exception as e:  # pylint: disable=broad-except
            self.error = repr(e)

    def end(self):
        self.going = False
        self.join(WAIT_S)
        assert not self.is_alive(), "a request is not answered"
        assert self.error is None, self.error

    def check(self):
        for block, data in self.content.items():
            assert self.read(block * self.BLOCK) == data, f"block {block}"


class FileLoad:
    """The same on a file, past the page cache, in a process of its own: who starts daemons must not hold the file open,
    because a child that closes it on its way to exec() waits for the very daemon that it becomes."""

    def __init__(self, path):
        context = multiprocessing.get_context("fork")
        self._done, self._longest_s, self._going = context.Value("Q"), context.Value("d"), context.Value("b", 1)
        self.process = context.Process(target=self._run, args=(path,), daemon=True)
        self.process.start()

    def _run(self, path):
        load = _FileWrites(path)
        while self._going.value and load.error is None:
            time.sleep(0.005)
            self._done.value, self._longest_s.value = load.done, load.longest_s
        load.end()
        self._done.value, self._longest_s.value = load.done, load.longest_s
        load.check()

    @property
    def done(self):
        return self._done.value

    @property
    def longest_s(self):
        return self._longest_s.value

    def end(self):
        """And everything that was written is read back."""
        self._going.value = 0
        self.process.join(WAIT_S)
        assert self.process.exitcode == 0, f"the load ended with {self.process.exitcode}"


class _FileWrites(Load):
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.page = mmap.mmap(-1, self.BLOCK)  # aligned
        super().__init__(None)

    def write(self, off, data):
        self.page[:] = data
        assert os.pwrite(self.fd, self.page, off) == len(data)

    def flush(self):
        os.fsync(self.fd)

    def read(self, off):
        assert os.preadv(self.fd, [self.page], off) == self.BLOCK
        return self.page[:]
