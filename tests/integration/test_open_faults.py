#!/usr/bin/python3
"""A daemon that is killed between every two steps of open, and its successor, too, loses nothing: at every fault point
twice in a row, and at pairs of them. After another writer the same: what is set aside is there, what is not is not
replayed. timeout: 240"""
import os
import random
import sys
import tempfile

import testlib

sys.path.insert(0, os.path.join(testlib.ROOT, "tests", "support"))
from attached import Attached, Place  # pylint: disable=wrong-import-position

MUTANTS = os.path.join(testlib.BUILD, "mutants", "bin", "portalbd")
PAIRS = int(os.environ.get("PAIRS", "25"))
POINTS_MAX = 200
BLOCK = 4096


class Volume:
    """The volume, and what must be in it."""

    def __init__(self, folder):
        self.place = Place(folder)
        self.content = {}
        self.number = 0
        self.resume = ()  # as the agent does it: once a daemon has reported that the volume is its own

    def start(self, **kw):
        """A daemon, and whether it came to serve."""
        daemon = Attached(self.place, *self.resume, program=MUTANTS, **kw)
        line = daemon.line()
        if line == {"opened": True}:
            self.resume = ("--resume",)
            line = daemon.line()
        if line is not None and not line.get("ready"):
            sys.exit(f"a daemon does not start: {line}")
        return daemon, line is not None

    def serve(self):
        daemon, ready = self.start()
        assert ready
        return daemon

    def leave_unflushed(self, daemon, count=3):
        """Acknowledged writes that only the journal has, and the death of who took them."""
        for i in range(count):
            self.number += 1
            block, data = self.number * 7 % 512, self.number.to_bytes(8, "little") * (BLOCK // 8)
            daemon.client.write(block * BLOCK, data)
            self.content[block] = data
            if i == 0:
                daemon.client.flush()
        daemon.kill()

    def die_at(self, point):
        """False: it opened without coming that far; then it is killed."""
        daemon, ready = self.start(env={"PORTALBD_FAULT_AT": str(point)})
        daemon.kill()
        return not ready

    def check(self, daemon, what):
        for block, data in self.content.items():
            found = daemon.client.read(block * BLOCK, BLOCK)
            if found != data:
                sys.exit(f"LOST after {what}: block {block} has write {int.from_bytes(found[:8], 'little')}, "
                         f"not {int.from_bytes(data[:8], 'little')}\n{self.place.logged()[-3000:]}")

    def round(self, *points):
        """True: each of the deaths happened."""
        self.leave_unflushed(self.serve())
        all_died = all([self.die_at(point) for point in points])
        daemon = self.serve()
        self.check(daemon, f"deaths at {points}")
        daemon.kill()
        return all_died


def first_open_after_another_writer(folder):
    """The first open of an attachment, after another writer, is killed at every point: the journal is set aside once,
    nothing of it comes back, and the store's content is served in the end."""
    for point in range(1, POINTS_MAX):
        os.mkdir(os.path.join(folder, f"w{point}"))
        place = Place(os.path.join(folder, f"w{point}"))
        daemon = Attached(place)
        daemon.ready()
        daemon.client.write(0, b"\x01" * BLOCK)
        daemon.client.flush()
        daemon.client.write(0, b"\x02" * BLOCK)
        daemon.kill()
        place.another_writer()
        died = False
        for _ in range(2):
            daemon = Attached(place, "--steal", program=MUTANTS, env={"PORTALBD_FAULT_AT": str(point)})
            line = daemon.line()
            if line == {"opened": True}:
                line = daemon.line()
            died = died or line is None
            daemon.kill()
        daemon = Attached(place, "--steal")
        daemon.ready()
        assert daemon.client.read(0, BLOCK) == b"\x01" * BLOCK, f"point {point}: a lost write came back"
        assert os.path.getsize(place.aside) > 0
        assert daemon.stop() == 0
        if not died:
            return point - 1
    raise AssertionError("fault points without end")


def main():
    if not os.access(MUTANTS, os.X_OK):
        sys.exit(f"no build with deliberate bugs at {MUTANTS}")
    with tempfile.TemporaryDirectory(prefix="f.") as folder:
        os.mkdir(os.path.join(folder, "v"))
        volume = Volume(os.path.join(folder, "v"))
        points = 0
        while volume.round(points + 1, points + 1):
            points += 1
            assert points < POINTS_MAX
        print(f"killed twice in a row at each of {points} points: nothing is lost")
        assert points >= 12, "the fault points are not compiled in"
        rng = random.Random(int(os.environ.get("SEED", "1")))
        for _ in range(PAIRS):
            volume.round(rng.randint(1, points), rng.randint(1, points), rng.randint(1, points))
        print(f"killed three times in a row at {PAIRS} triples: nothing is lost")
        volume.place.end()
        os.environ["PORTALBD_MUTANT"] = "skip-replay"
        try:
            volume.round(1, 1)
            raise AssertionError("a daemon that does not replay was not found")
        except SystemExit as e:
            print(f"the deliberate bug is found: {str(e).splitlines()[0]}")
        del os.environ["PORTALBD_MUTANT"]
        volume.place.end()
        points = first_open_after_another_writer(folder)
        print(f"after another writer: killed at each of {points} points, its writes stay")


main()
