"""What the Python tests share: programs with time limits, waiting, mounts that go away again, and the
summary that tests/run reads."""
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("PORTALBD_BUILD", os.path.join(ROOT, "build")))


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


SANITIZED = os.path.exists(os.path.join(BUILD, "flags")) and \
    "-fsanitize" in read(os.path.join(BUILD, "flags"))
WAIT_S = 60 if SANITIZED else 20


def sh(*args, timeout=120, check=True, **kw):
    """Runs a program with a time limit; its output is in the error when it fails."""
    r = subprocess.run(args, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, **kw)
    if check and r.returncode:
        raise AssertionError(f"{' '.join(args)}: {r.returncode}\n{r.stdout}")
    return r.stdout


def wait_for(condition, what, seconds=WAIT_S):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for: {what}")
        time.sleep(0.02)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def mounted(device, *options):
    point = tempfile.mkdtemp(prefix="pbd-mnt-")
    try:
        sh("mount", *options, device, point)
        try:
            yield point
        finally:
            for _ in range(50):
                if subprocess.run(["umount", point], stderr=subprocess.DEVNULL,
                                  check=False).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                subprocess.run(["umount", "-l", point], check=False)
    finally:
        os.rmdir(point)


def skip_all(why):
    print(why)
    sys.exit(77)


def need_fuse():
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        skip_all("needs root and /dev/fuse")


def main():
    """unittest.main, and what tests/run wants to know."""
    result = unittest.main(exit=False, verbosity=2).result
    failed = len(result.failures) + len(result.errors)
    for test, why in result.skipped:
        print(f"skipped: {test.id()}: {why}")
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{passed} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(1 if failed else 0)
