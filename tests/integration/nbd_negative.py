"""What an NBD server must refuse, and with which error: the rules of the protocol, asked by libnbd with
its own checks turned off. Run by test_nbd_clients.sh with the URI of a writable export (and one that is
read-only, if there is one); it destroys what the first 8 MiB hold.
"""
import errno
import os
import socket
import struct
import sys
import unittest

import nbd

URI, URI_RO = os.environ["NBD_URI"], os.environ.get("NBD_URI_RO")
ALL_FLAGS = 0xFFFF


def connect(uri, structured=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


class Negative(unittest.TestCase):
    structured = True

    def setUp(self):
        self.h = connect(URI, self.structured)
        self.size = self.h.get_size()

    def tearDown(self):
        # Whatever was refused, the stream is in step: the connection still works.
        self.h.pwrite(b"\x5a" * 512, 0)
        self.assertEqual(self.h.pread(512, 0), b"\x5a" * 512)
        self.h.shutdown()

    def refused(self, name, call, *args):
        with self.assertRaises(nbd.Error) as caught:
            call(*args)
        self.assertEqual(caught.exception.errno, name, str(caught.exception))

    def test_bounds(self):
        h, size = self.h, self.size
        for off in (size, size + 512, size - 512, 2**63, 2**64 - 512, 2**64 - 1024):
            self.refused("EINVAL", h.pread, 1024, off)
            self.refused("ENOSPC", h.pwrite, b"x" * 1024, off)
            self.refused("ENOSPC", h.zero, 1024, off)
            self.refused("EINVAL", h.trim, 1024, off)
            self.refused("EINVAL", h.cache, 1024, off)
            if self.structured:
                self.refused("EINVAL", h.block_status, 1024, off, lambda *_: 0)
        self.assertEqual(len(h.pread(512, size - 512)), 512)

    def test_alignment_and_length(self):
        h = self.h
        for length, off in ((511, 0), (512, 1), (1, 512), (1000, 24), (0, 0)):
            self.refused("EINVAL", h.pread, length, off)
            self.refused("EINVAL", h.pwrite, b"x" * length, off)
            self.refused("EINVAL", h.trim, length, off)
            self.refused("EINVAL", h.zero, length, off)

    def test_flags(self):
        h = self.h
        for flags in (2, 8, 16, 32, 64, 0x8000):
            self.refused("EINVAL", h.pwrite, b"x" * 512, 0, flags)
            self.refused("EINVAL", h.trim, 512, 0, flags)
        for flags in (4, 8, 32):
            self.refused("EINVAL", h.zero, 512, 0, flags)
        for flags in (2, 4, 8, 16):
            self.refused("EINVAL", h.flush, flags)

    def test_largest(self):
        """Requests up to 64 MiB are no attack."""
        n = min(self.size, 64 << 20) if not os.environ.get("NBD_QUICK") else 8 << 20
        data = os.urandom(1 << 20) * (n >> 20)
        self.h.pwrite(data, 0)
        self.assertEqual(self.h.pread(n, 0), data)

    def test_read_only(self):
        if not URI_RO:
            self.skipTest("no read-only export")
        h = connect(URI_RO, self.structured)
        self.assertTrue(h.is_read_only())
        self.refused("EPERM", h.pwrite, b"x" * 512, 0)
        self.refused("EPERM", h.pwrite, b"x" * 512, self.size)
        self.refused("EPERM", h.trim, 512, 0)
        self.refused("EPERM", h.zero, 512, 0)
        self.assertEqual(len(h.pread(512, 0)), 512)
        h.flush()
        h.shutdown()

    def test_status(self):
        if not self.structured:
            self.skipTest("needs structured replies")
        h, seen = self.h, []
        h.zero(8 << 20, 0)
        h.pwrite(b"x" * 4096, 4096)
        h.block_status(1 << 20, 0, lambda ctx, off, ext, err: seen.append(ext) and 0)
        self.assertTrue(all(n > 0 for n in seen[0][::2]))
        self.assertLessEqual(sum(seen[0][::2]), 1 << 20)
        seen.clear()
        h.block_status(1 << 20, 0, lambda ctx, off, ext, err: seen.append(ext) and 0,
                       nbd.CMD_FLAG_REQ_ONE)
        self.assertEqual(len(seen[0]), 2)
        seen.clear()
        n = min(self.size, 2**32 - 512)
        h.block_status(n, 0, lambda ctx, off, ext, err: seen.append(ext) and 0)
        self.assertLessEqual(sum(seen[0][::2]), n)


class NegativeSimple(Negative):
    structured = False

    def test_needs_negotiation(self):
        self.refused("EINVAL", self.h.pread_structured, 512, 0, lambda *_: 0, nbd.CMD_FLAG_DF)


REQUEST = struct.Struct(">IHHQQI")


class Wire(unittest.TestCase):
    """What libnbd cannot say."""

    def setUp(self):
        path, sep = URI.partition("socket=")[2], URI.partition("socket=")[1]
        if not sep:
            self.skipTest("not a unix socket")
        self.name = URI.partition("://")[2].partition("?")[0].lstrip("/").encode()
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(20)
        self.s.connect(path)

    def tearDown(self):
        self.s.close()

    def recv(self, n):
        data = b""
        while len(data) < n:
            piece = self.s.recv(n - len(data))
            if not piece:
                raise EOFError(f"{len(data)} of {n} bytes")
            data += piece
        return data

    def negotiate(self):
        self.recv(18)
        self.s.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, len(self.name)) + self.name)
        return struct.unpack(">QH", self.recv(10))

    def closed(self):
        try:
            return self.s.recv(1) == b""
        except ConnectionResetError:
            return True

    def test_wrong_magic_disconnects(self):
        self.negotiate()
        self.s.sendall(bytes(28))
        self.assertTrue(self.closed())

    def test_unknown_command_is_refused(self):
        self.negotiate()
        for command in (8, 9, 77, 0xFFFF):
            self.s.sendall(REQUEST.pack(0x25609513, 0, command, 42, 0, 512))
            self.assertEqual(struct.unpack(">IIQ", self.recv(16)),
                             (0x67446698, errno.EINVAL, 42))

    def test_write_beyond_all_limits_disconnects(self):
        self.negotiate()
        self.s.sendall(REQUEST.pack(0x25609513, 0, 1, 42, 0, 0xFFFFFE00))
        self.assertEqual(struct.unpack(">IIQ", self.recv(16))[1], errno.EINVAL)
        self.assertTrue(self.closed())

    def test_refused_payload_is_read_over(self):
        size, _ = self.negotiate()
        payload = REQUEST.pack(0x25609513, 0, 2, 7, 0, 0) * 40  # looks like requests
        payload += bytes(-len(payload) % 512)
        self.s.sendall(REQUEST.pack(0x25609513, 0, 1, 42, size, len(payload)) + payload)
        self.s.sendall(REQUEST.pack(0x25609513, 0, 0, 43, 0, 512))
        self.assertEqual(struct.unpack(">IIQ", self.recv(16))[1:], (errno.ENOSPC, 42))
        self.assertEqual(struct.unpack(">IIQ", self.recv(16))[1:], (0, 43))
        self.recv(512)

    def test_too_large(self):
        """One sector more than the limit: refused, and its payload read over."""
        size, _ = self.negotiate()
        if size < 80 << 20:
            self.skipTest("the export is too small")
        length = (64 << 20) + 512
        self.s.sendall(REQUEST.pack(0x25609513, 0, 0, 41, 0, length))
        self.s.sendall(REQUEST.pack(0x25609513, 0, 1, 42, 0, length) + bytes(length))
        self.s.sendall(REQUEST.pack(0x25609513, 0, 0, 43, 0, 512))
        for cookie in (41, 42):
            self.assertEqual(struct.unpack(">IIQ", self.recv(16))[1:], (errno.EINVAL, cookie))
        self.assertEqual(struct.unpack(">IIQ", self.recv(16))[1:], (0, 43))
        self.recv(512)

    def test_disconnect_finishes_what_is_under_way(self):
        self.negotiate()
        reads = b"".join(REQUEST.pack(0x25609513, 0, 0, i, 0, 4096) for i in range(100))
        self.s.sendall(reads + REQUEST.pack(0x25609513, 0, 2, 0, 0, 0))
        cookies = set()
        for _ in range(100):
            _, error, cookie = struct.unpack(">IIQ", self.recv(16))
            self.assertEqual(error, 0)
            self.recv(4096)
            cookies.add(cookie)
        self.assertEqual(cookies, set(range(100)))
        self.assertTrue(self.closed())

    def test_a_reader_that_sleeps_stops_us_reading(self):
        """More replies than anybody buffers: the server must stop reading, then go on."""
        self.negotiate()
        count, length = 256, 1 << 20
        reads = b"".join(REQUEST.pack(0x25609513, 0, 0, i, 0, length) for i in range(count))
        self.s.sendall(reads)
        cookies = set()
        for _ in range(count):
            _, error, cookie = struct.unpack(">IIQ", self.recv(16))
            self.assertEqual(error, 0)
            self.recv(length)
            cookies.add(cookie)
        self.assertEqual(len(cookies), count)

    def test_one_byte_at_a_time(self):
        self.recv(18)
        hello = struct.pack(">IQII", 3, 0x49484156454F5054, 1, len(self.name)) + self.name
        for b in hello + REQUEST.pack(0x25609513, 0, 1, 9, 0, 512) + bytes(512):
            self.s.sendall(bytes([b]))
        self.recv(10)
        self.assertEqual(struct.unpack(">IIQ", self.recv(16)), (0x67446698, 0, 9))

    def test_half_a_write_is_never_done(self):
        h = connect(URI)
        h.pwrite(b"\x11" * 4096, 0)
        self.negotiate()
        self.s.sendall(REQUEST.pack(0x25609513, 0, 1, 9, 0, 4096) + b"\x22" * 4095)
        self.s.close()
        for _ in range(3):
            self.assertEqual(h.pread(4096, 0), b"\x11" * 4096)
        h.shutdown()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"])
