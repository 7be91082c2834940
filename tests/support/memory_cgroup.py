"""A memory cgroup with a limit, of either version of the kernel's interface."""
import os

from node import need


def parent():
    """(version, folder) below which memory cgroups can be made here, or None."""
    one = "/sys/fs/cgroup/memory"
    if os.path.exists(f"{one}/memory.limit_in_bytes") and os.access(one, os.W_OK):
        return 1, one
    two = "/sys/fs/cgroup"
    try:
        with open(f"{two}/cgroup.subtree_control", encoding="utf-8") as f:
            if "memory" in f.read().split() and os.access(two, os.W_OK):
                return 2, two
    except OSError:
        pass
    return None


class MemoryCgroup:
    def __init__(self, name, limit):
        self.version, folder = parent()
        self.path = os.path.join(folder, f"portalbd-test-{os.getpid()}-{name}")
        os.mkdir(self.path)
        self.write("memory.limit_in_bytes" if self.version == 1 else "memory.max", str(limit))

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w", encoding="ascii") as f:
            f.write(value)

    def read(self, name):
        with open(os.path.join(self.path, name), encoding="ascii") as f:
            return f.read()

    def add(self, pid):
        self.write("cgroup.procs", str(pid))

    def count(self, name, word):
        for line in self.read(name).splitlines():
            if line.split()[0] == word:
                return int(line.split()[1])
        need(False, f"{self.path}/{name} has no {word}")
        return 0

    def oom_kills(self):
        return self.count("memory.oom_control" if self.version == 1 else "memory.events", "oom_kill")

    def limit_hits(self):
        return int(self.read("memory.failcnt")) if self.version == 1 else self.count("memory.events", "max")

    def peak_bytes(self):
        return int(self.read("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"))

    def end(self):
        os.rmdir(self.path)
