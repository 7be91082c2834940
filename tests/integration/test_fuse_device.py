#!/usr/bin/python3
"""The FUSE front end under a loop device, over memory: filesystems, verification by fio, discard,
exact zeroes, growing, and what detaching does while somebody still uses the device.

Needs root, /dev/fuse and loop devices. PORTALBD_BUILD names the build folder (build).
"""
import atexit
import ctypes
import fcntl
import mmap
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import testlib
from testlib import BUILD, mounted, read, sh

TOOL = os.path.join(BUILD, "tools", "fuse_ram")
MIB = 1 << 20

PUNCH_HOLE, ZERO_RANGE, KEEP_SIZE = 2, 16, 1
BLKDISCARD, BLKZEROOUT, BLKSSZGET = 0x1277, 0x127F, 0x1268


class RamDisk:
    """fuse_ram and what has to go away again afterwards."""

    live = set()  # what an interrupted test leaves behind

    def __init__(self, size, mode="later"):
        self.live.add(self)
        self.dir = tempfile.mkdtemp(prefix="portalbd-fuse-")
        self.process = subprocess.Popen([TOOL, self.dir, str(size), mode], stdout=subprocess.PIPE,
                                        text=True)
        self.device = self.process.stdout.readline().strip()
        self.file = os.path.join(os.path.realpath(self.dir), "devices", "ram")
        if not self.device.startswith("/dev/loop"):
            self.close()
            raise AssertionError(f"no device: {self.device!r}")

    def grow(self):
        self.process.send_signal(signal.SIGHUP)
        return self.process.stdout.readline().strip()

    def close(self):
        """Ends the tool, by force after a while; returns its exit code and last line."""
        tail, code = "", None
        self.live.discard(self)
        if self.process.poll() is None:
            self.process.terminate()
        try:
            tail, _ = self.process.communicate(timeout=20)
            code = self.process.returncode
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        if code is None and self.device.startswith("/dev/loop"):
            subprocess.run(["losetup", "-d", self.device], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["umount", "-l", self.file], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
        return code, tail.strip()


def stats_of(line):
    return dict(field.split("=") for field in line.splitlines()[-1].split())


@atexit.register
def close_all():
    for disk in list(RamDisk.live):
        disk.close()


class FuseDevice(unittest.TestCase):
    def setUp(self):
        self.disks = []

    def tearDown(self):
        for disk in self.disks:
            disk.close()

    def disk(self, size=512 * MIB, mode="later"):
        d = RamDisk(size, mode)
        self.disks.append(d)
        return d

    def end(self, disk):
        """Closes a disk that nobody uses: clean, and nothing of it is left."""
        self.disks.remove(disk)
        code, tail = disk.close()
        self.assertEqual(code, 0, tail)
        self.assertNotIn(disk.file, read("/proc/self/mountinfo"))
        name = os.path.basename(disk.device)
        try:
            backing = read(f"/sys/block/{name}/loop/backing_file")
        except OSError:
            backing = ""
        self.assertNotIn(disk.file, backing)
        return stats_of(tail)

    def test_geometry(self):
        disk = self.disk(64 * MIB)
        with open(disk.device, "rb") as f:
            size = fcntl.ioctl(f, BLKSSZGET, struct.pack("i", 0))
            self.assertEqual(struct.unpack("i", size)[0], 4096)
            self.assertEqual(f.seek(0, 2), 64 * MIB)
        name = os.path.basename(disk.device)
        self.assertEqual(read(f"/sys/block/{name}/loop/dio").strip(), "1")
        self.assertEqual(os.stat(disk.file).st_size, 64 * MIB)
        self.assertEqual(os.statvfs(disk.file).f_bsize, 4096)
        with open(disk.file, "r+b", buffering=0) as f:  # truncating changes nothing
            f.truncate(0)
        self.assertEqual(os.stat(disk.file).st_size, 64 * MIB)
        stats = self.end(disk)
        self.assertEqual(stats["errors"], "0")
        self.assertEqual(stats["malformed"], "0")

    def filesystem(self, mkfs, fsck, mode):
        disk = self.disk(512 * MIB, mode)
        sh(*mkfs, disk.device)
        with mounted(disk.device, "-o", "discard") as point:
            sh("fio", "--name=verify", f"--directory={point}", "--rw=randwrite",
               "--bsrange=512-128k", "--bs_unaligned=1", "--size=96M", "--ioengine=libaio",
               "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64", "--end_fsync=1",
               timeout=180)
            data = os.urandom(3 * MIB + 17)
            with open(f"{point}/file", "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.unlink(f"{point}/verify.0.0")
            sh("fstrim", point)
        sh(*fsck, disk.device)
        with mounted(disk.device) as point:
            with open(f"{point}/file", "rb") as f:
                self.assertEqual(f.read(), data)
        sh(*fsck, disk.device)
        stats = self.end(disk)
        self.assertGreater(int(stats["flushes"]), 3)
        self.assertGreater(int(stats["trims"]), 0)
        self.assertEqual(stats["errors"], "0")
        self.assertEqual(stats["malformed"], "0")

    def test_ext4(self):
        self.filesystem(["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"], "later")

    def test_ext4_inline(self):
        self.filesystem(["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"], "inline")

    def test_xfs(self):
        self.filesystem(["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n"], "later")

    def test_deep_random_io(self):
        """Mixed sizes, up to 1 MiB, 64 deep, on the device itself."""
        disk = self.disk(512 * MIB)
        sh("fio", "--name=deep", f"--filename={disk.device}", "--direct=1", "--ioengine=libaio",
           "--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k", "--size=256M", "--iodepth=64",
           "--serialize_overlap=1", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", timeout=180)
        self.assertEqual(self.end(disk)["errors"], "0")

    def test_zeroes_are_exact(self):
        """BLKZEROOUT, BLKDISCARD and fallocate zero their range and no byte beside it."""
        disk = self.disk(64 * MIB)
        pattern = bytes(range(1, 256)) * 4113
        aligned = mmap.mmap(-1, MIB)  # the kernel splits a large direct write at its memory's pages
        aligned.write(pattern[:MIB])
        with open(disk.file, "r+b", buffering=0) as f:
            f.write(aligned)
        fd = os.open(disk.device, os.O_RDWR | os.O_DIRECT)
        try:
            fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", 8192, 4096))
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 65536, 131072))
        finally:
            os.close(fd)
        expected = bytearray(pattern[:MIB])
        expected[8192:12288] = bytes(4096)
        expected[65536:65536 + 131072] = bytes(131072)
        with open(disk.file, "r+b", buffering=0) as f:
            self.fallocate(f, ZERO_RANGE, 512, 512)
            expected[512:1024] = bytes(512)
            self.fallocate(f, PUNCH_HOLE | KEEP_SIZE, 300032, 1536)
            expected[300032:301568] = bytes(1536)
            for off, length in ((100, 512), (512, 100)):
                with self.assertRaises(OSError):
                    self.fallocate(f, ZERO_RANGE, off, length)
            with self.assertRaises(OSError):
                self.fallocate(f, 0, 0, 4096)
            # An operation that is not there must not have cost the others.
            self.fallocate(f, PUNCH_HOLE | KEEP_SIZE, 400384, 512)
            expected[400384:400896] = bytes(512)
            got = f.read(MIB)
            self.assertEqual(got, bytes(expected))
            f.seek(777)
            self.assertEqual(f.read(1000), bytes(expected[777:1777]))
            with self.assertRaises(OSError):
                os.pwrite(f.fileno(), b"x", 5)
        self.end(disk)

    def fallocate(self, f, mode, off, length):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if libc.fallocate(f.fileno(), mode, off, length) < 0:
            raise OSError(ctypes.get_errno(), "fallocate")

    def test_grow_mounted_xfs(self):
        disk = self.disk(512 * MIB)
        sh("mkfs.xfs", "-q", "-f", disk.device)
        with mounted(disk.device) as point:
            before = os.statvfs(point).f_blocks
            self.assertEqual(disk.grow(), f"grown {1024 * MIB}")
            sh("xfs_growfs", point)
            self.assertGreater(os.statvfs(point).f_blocks, before * 1.8)
        sh("xfs_repair", "-n", disk.device)
        self.end(disk)

    def test_detach_refuses_while_mounted(self):
        disk = self.disk(64 * MIB)
        sh("mkfs.ext4", "-q", "-F", disk.device)
        with mounted(disk.device):
            code, _ = disk.close()  # refused, then by force: it must end
            self.disks.remove(disk)
            self.assertEqual(code, 1)

    def test_killed_server_means_errors_at_once(self):
        disk = self.disk(64 * MIB)
        fd = os.open(disk.device, os.O_RDWR | os.O_DIRECT)
        try:
            disk.process.kill()
            disk.process.wait()
            result = []

            def read():
                try:
                    os.preadv(fd, [memoryview(mmap.mmap(-1, 4096))], 0)
                    result.append("read")
                except OSError as e:
                    result.append(e.errno)
            start = time.monotonic()
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            thread.join(10)
            self.assertEqual(len(result), 1, "the read hangs")
            self.assertNotEqual(result[0], "read")
            self.assertLess(time.monotonic() - start, 2)
        finally:
            os.close(fd)
            sh("losetup", "-d", disk.device, check=False)
            disk.close()
            self.disks.remove(disk)


def on_term(_signum, _frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    testlib.need_fuse()
    signal.signal(signal.SIGTERM, on_term)
    testlib.main()
