#!/usr/bin/python3
"""A journal in shared memory: what it carries over a daemon's death, what it must not, a device in other hands, and no
room. timeout: 180"""
import ctypes
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import testlib

sys.path.insert(0, os.path.join(testlib.ROOT, "tests", "support"))
from attached import ESHUTDOWN, FLUSH, READ, WRITE, Attached, FileLoad, Gone, Load, Place  # pylint: disable=wrong-import-position

MIB = 1 << 20


def can_fuse():
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


def resends():
    """The kernel sends requests that a dead daemon had not answered again: Linux 6.9."""
    return tuple(int(n) for n in os.uname().release.split(".")[:2]) >= (6, 9)


class JournalTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="j.")
        self.place = Place(self.folder.name)
        self.mounts = []

    def tearDown(self):
        self.place.end()
        for point in self.mounts:
            subprocess.run(["umount", "-l", point], check=False)
        result = self._outcome.result
        if any(test is self for test, _ in result.failures + result.errors):
            print(self.place.logged()[-6000:])
        self.folder.cleanup()

    def serving(self, *more, **kw):
        daemon = Attached(self.place, *more, **kw)
        daemon.ready()
        return daemon

    # --- a daemon's death ---

    def test_death_loses_nothing(self):
        a = self.serving()
        for i in range(16):
            a.client.write(i * 4096, bytes([i + 1]) * 4096)
        a.kill()
        for _ in range(3):  # nothing is flushed in between
            a = self.serving("--resume")
            status = a.status()
            self.assertTrue(status["resumed"])
            self.assertEqual(status["journal"]["kind"], "shm")
            for i in range(16):
                self.assertEqual(a.client.read(i * 4096, 4096), bytes([i + 1]) * 4096)
            a.kill()
        a = self.serving("--resume")
        self.assertEqual(a.stop(), 0)
        self.assertTrue(self.place.is_closed())
        self.assertFalse(os.path.exists(self.place.journal))

    def test_told_to_end_under_a_device(self):
        """It closes the volume and keeps its journal, empty: by that the next one knows that nobody else came."""
        published = ("--publish-epoch", "1")
        a = self.serving(*published)
        for i in range(3):
            a.client.write(i * 4096, bytes([i + 1]) * 4096)
            self.assertEqual(a.stop(), 0)
            self.assertTrue(self.place.is_closed())
            self.assertLess(os.stat(self.place.journal).st_blocks * 512, MIB)
            a = self.serving("--resume", *published)
            self.assertEqual(a.client.read(i * 4096, 4096), bytes([i + 1]) * 4096)
        a.client.write(0, b"\x09" * 4096)
        a.kill()
        a = self.serving("--resume", *published)
        self.assertEqual(a.client.read(0, 8192), b"\x09" * 4096 + b"\x02" * 4096)
        a.kill()
        os.unlink(self.place.journal)  # somebody else did that: the volume is not closed
        a = Attached(self.place, "--resume", *published)
        self.assertEqual(a.line()["code"], "fenced")
        self.assertEqual(a.wait(), 4)

    def test_ready_pipe(self):
        a = Attached(self.place)
        self.assertEqual(a.line(), {"opened": True})
        self.assertEqual(a.line(), {"ready": True, "size_bytes": 64 * MIB, "nbd_flags": 0xd6d, "journal": "shm"})
        self.assertIsNone(a.line())
        self.assertEqual(a.stop(), 0)
        a = Attached(self.place, "--journal", "memory", "--read-only")
        self.assertEqual(a.line(), {"opened": True})
        self.assertEqual(a.line(), {"ready": True, "size_bytes": 64 * MIB, "nbd_flags": 0x507, "journal": "memory"})
        self.assertFalse(os.path.exists(self.place.journal))
        self.assertEqual(a.stop(), 0)

    def test_journal_in_memory_dies_with_its_daemon(self):
        a = self.serving("--journal", "memory")
        a.client.write(0, b"\x01" * 4096)
        a.client.flush()
        a.client.write(0, b"\x02" * 4096)
        a.kill()
        a = self.serving("--journal", "memory")
        self.assertIn(a.client.read(0, 512)[:1], (b"\x01", b"\x02"))
        a.kill()

    def test_upload_only(self):
        a = self.serving()
        a.client.write(0, b"\x07" * 4096)
        a.kill()
        a = Attached(self.place, "--resume", sock=None)
        self.assertEqual(a.line(), {"opened": True})
        self.assertEqual(a.wait(), 0)
        self.assertTrue(self.place.is_closed())
        self.assertFalse(os.path.exists(self.place.journal))
        a = self.serving("--run-dir", self.place.run_dir + "-empty")
        self.assertEqual(a.client.read(0, 4096), b"\x07" * 4096)
        a.kill()

    def test_sizes(self):
        a = self.serving("--journal-size", "8Mi")
        self.assertEqual(os.stat(self.place.journal).st_mode & 0o7777, 0o600)
        self.assertEqual(os.path.getsize(self.place.journal), 8 * MIB)
        a.kill()
        a = self.serving("--journal-size", "16Mi", "--resume")
        self.assertEqual(a.status()["journal"]["size_bytes"], 8 * MIB)
        a.kill()

    # --- another writer ---

    def test_set_aside_after_another_writer(self):
        a = self.serving()
        a.client.write(0, b"\x01" * 4096)
        a.client.flush()
        a.client.write(4096, b"\x02" * 8192)
        a.kill()
        kept = os.stat(self.place.journal)
        self.place.another_writer()
        a = self.serving("--steal")
        self.assertIn("a copy of their journal is kept", self.place.logged())
        self.assertEqual(os.path.getsize(self.place.aside), kept.st_size)
        self.assertLess(os.stat(self.place.aside).st_blocks * 512, MIB)
        self.assertEqual(a.client.read(0, 4096), b"\x01" * 4096)
        self.assertEqual(a.client.read(4096, 8192), bytes(8192))
        a.client.write(4096, b"\x03" * 4096)
        a.kill()
        os.remove(self.place.aside)
        a = self.serving()
        self.assertEqual(a.client.read(4096, 4096), b"\x03" * 4096)
        self.assertEqual(a.stop(), 0)
        self.place.another_writer()
        self.assertEqual(self.serving("--steal").stop(), 0)
        self.assertFalse(os.path.exists(self.place.aside), "an empty journal was set aside")

    def test_resume_after_another_writer(self):
        a = self.serving()
        a.client.write(0, b"\x01" * 4096)
        a.kill()
        self.place.another_writer()
        for _ in range(2):
            a = Attached(self.place, "--resume", "--steal")
            self.assertEqual(a.line()["code"], "fenced")
            self.assertEqual(a.wait(), 4)
        self.assertTrue(os.path.exists(self.place.journal))

    def test_fenced_daemon_ends_itself(self):
        a = self.serving()
        a.client.write(0, b"\x01" * 4096)
        a.client.flush()
        self.place.another_writer()
        a.client.send(WRITE, 0, 4096, b"\x02" * 4096)
        a.client.send(FLUSH)
        answers = []
        try:
            while True:
                answers.append(a.client.reply()[1])
        except Gone:
            pass
        self.assertEqual(a.wait(), 4)
        self.assertIn(ESHUTDOWN, answers)

    # --- other hands ---

    def test_handover(self):
        a = self.serving()
        kernel = a.client
        load = Load(kernel)
        for _ in range(5):
            before = load.done
            testlib.wait_for(lambda: load.done > before + 100, "the load goes on")
            device = a.hand_over()
            self.assertEqual(a.wait(), 5)
            a = self.serving("--resume", **device)
            device["sock"].close()
        load.end()
        load.check()
        print(f"longest pause of 5 hand-overs: {load.longest_s * 1000:.0f} ms")
        self.assertFalse(self.place.is_closed())
        self.assertEqual(a.stop(), 0)

    def test_device(self):
        a = self.serving()
        answer, fd = a.control("device")
        self.assertEqual(answer, {"kind": "nbd"})
        self.assertEqual(stat.S_IFMT(os.fstat(fd).st_mode), stat.S_IFSOCK)
        os.close(fd)
        a.client.write(0, b"\x01" * 4096)  # it serves on
        with self.assertRaises(RuntimeError) as unknown:
            a.control("nonsense")
        self.assertEqual(unknown.exception.args[0], "UNSUPPORTED")
        b = Attached(self.place, "--run-dir", self.place.run_dir + "2", "--journal-dir", self.place.run_dir + "/journals")
        self.assertEqual(b.line()["code"], "IN_USE")  # the journal's own lock
        self.assertEqual(b.wait(), 1)
        a.kill()
        self.assertEqual(Attached(self.place, "--resume", sock=None).wait(), 0)

    def test_no_handover_from_memory_without_the_store(self):
        a = self.serving("--journal", "memory")
        a.client.write(0, b"\x01" * 4096)
        self.place.store_goes_away()
        with self.assertRaises(RuntimeError) as busy:
            a.control("handover")
        self.assertEqual(busy.exception.args[0], "BUSY")
        a.client.write(0, b"\x02" * 4096)
        self.place.store_comes_back()
        testlib.wait_for(lambda: a.status()["unsaved"] == "", "everything in the store")
        device = a.hand_over()
        self.assertEqual(a.wait(), 5)
        b = self.serving("--journal", "memory", **device)
        device["sock"].close()
        self.assertEqual(a.client.read(0, 4096), b"\x02" * 4096)
        self.assertEqual(b.stop(), 0)

    def test_handover_taken_back(self):
        a = self.serving()
        a.client.write(0, b"\x01" * 4096)
        a.client.flush()
        self.assertEqual(a.stop(), 0)
        a = self.serving()
        self.place.store_goes_away()
        a.client.send(READ, 0, 4096)  # waits for the store
        with self.assertRaises(RuntimeError) as busy:
            a.control("handover")
        self.assertEqual(busy.exception.args[0], "BUSY")
        write = a.client.send(WRITE, 8192, 4096, b"\x02" * 4096)
        self.assertEqual(a.client.reply(), (write, 0))
        self.place.store_comes_back()
        self.assertEqual(a.client.reply()[1], 0)
        self.assertEqual(a.client._exactly(4096), b"\x01" * 4096)
        device = a.hand_over()
        self.assertEqual(a.wait(), 5)
        b = self.serving("--resume", **device)
        device["sock"].close()
        self.assertEqual(a.client.read(8192, 4096), b"\x02" * 4096)
        self.assertEqual(b.stop(), 0)

    @unittest.skipUnless(can_fuse(), "needs root and /dev/fuse")
    def test_fuse(self):
        """A file of a FUSE mount that somebody writes all the time, without an error."""
        point = os.path.join(self.folder.name, "device")
        open(point, "wb").close()
        fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fd},rootmode=100000,user_id=0,group_id=0,max_read={MIB}".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        self.assertEqual(libc.mount(b"test", point.encode(), b"fuse.test", 0, options), 0, ctypes.get_errno())
        self.mounts.append(point)
        a = self.serving(fuse_fd=fd)
        load = FileLoad(point)
        for i in range(6):
            before = load.done
            testlib.wait_for(lambda: load.done > before + 50, "the load goes on")
            if i % 2:
                device = a.hand_over()
                self.assertEqual(a.wait(), 5)
                a = self.serving("--resume", **device)
                os.close(device["fuse_fd"])
            elif resends():
                a.kill()
                a = self.serving("--resume", fuse_fd=fd)
        load.end()
        print(f"longest pause of 3 deaths and 3 hand-overs: {load.longest_s * 1000:.0f} ms")
        self.assertEqual(a.stop(), 0)
        os.close(fd)

    # --- no room ---

    def tmpfs(self, size):
        point = os.path.join(self.folder.name, "tmpfs")
        os.mkdir(point)
        testlib.sh("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point)
        self.mounts.append(point)
        return point

    @unittest.skipIf(os.geteuid() != 0, "needs root to mount a tmpfs")
    def test_full_tmpfs(self):
        point = self.tmpfs("6m")
        options = ("--journal-dir", point, "--journal-size", "16Mi")
        filler = os.path.join(point, "filler")
        open(filler, "wb").close()
        a = self.serving(*options)
        for i in range(48):
            a.client.write(i * MIB, bytes([i + 1]) * MIB)
        self.assertIn("no room for the journal", self.place.logged())
        a.client.flush()
        with open(filler, "wb", buffering=0) as f:  # takes what the journal gives back
            try:
                for _ in range(100):
                    f.write(bytes(65536))
            except OSError:
                pass
        a.kill()
        a = self.serving(*options, "--resume")
        for i in range(48):
            self.assertEqual(a.client.read(i * MIB, MIB), bytes([i + 1]) * MIB, i)
        for i in range(6):
            a.client.send(WRITE, i * MIB, MIB, b"\xee" * MIB)
        testlib.wait_for(lambda: a.status()["journal"]["starved"], "writes wait for memory")
        os.remove(filler)
        for _ in range(6):
            self.assertEqual(a.client.reply()[1], 0)
        for i in range(6):
            self.assertEqual(a.client.read(i * MIB, MIB), b"\xee" * MIB)
        self.assertEqual(a.stop(), 0)

    def test_memory_is_bounded_without_the_store(self):
        a = self.serving("--journal-size", "8Mi", "--cache-size", "8Mi")
        self.place.store_goes_away()
        acknowledged = threading.Semaphore(0)

        def answers():
            try:
                while True:
                    a.client.reply()
                    acknowledged.release()
            except (Gone, OSError, TimeoutError):
                pass

        reader = threading.Thread(target=answers, daemon=True)
        reader.start()
        sent = 0
        a.client.sock.setblocking(True)
        a.client.sock.settimeout(1)
        try:
            while sent < 200:
                a.client.send(WRITE, sent % 60 * MIB, MIB, bytes([sent % 251]) * MIB)
                sent += 1
        except (TimeoutError, OSError):
            pass
        self.assertLess(sent, 64, "writes are not paced")
        time.sleep(1)
        with open(f"/proc/{a.process.pid}/status", encoding="utf-8") as f:
            rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024
        limit = (8 + 2 * 8 + 64) * MIB * (4 if testlib.SANITIZED else 1)
        print(f"resident without the store: {rss / MIB:.0f} MiB of {limit / MIB:.0f}")
        self.assertLess(rss, limit)
        status = a.status()
        self.assertIn("are not in the store", status["unsaved"])
        a.kill()
        self.place.store_comes_back()


if __name__ == "__main__":
    testlib.main()
