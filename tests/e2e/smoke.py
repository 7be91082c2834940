#!/usr/bin/env python3
"""The life of volumes on Kubernetes, as users live it: a line for each step. Wants the cluster of cluster-up.sh."""
import time

from kube import (DRIVER, NAMESPACE, Failure, Steps, apply, bound_volume, claim, delete, get, helm, in_agent, in_node,
                  install, kubectl, memory_of, metrics, phase, pod, pods_of, sh, snapshot, start, uninstall, values, wait_for)

# Rounds of random writes, each verified; fio ends with an error at the first wrong or failed request. If nobody says
# stop, it stops all the same, before the store fills the disk.
FIO = """
round=0
while [ ! -e /stop ]; do
    [ $round -lt 400 ] || exit 1
    fio --name=verify --filename=/{claim}/fio --size=16m --rw=randwrite --bs=4k --direct=1 --ioengine=psync --fsync=32 \\
        --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=$round --minimal >/out 2>&1 || {{ cat /out; exit 1; }}
    round=$((round + 1))
    echo $round >/rounds
done
"""


def text_of(path):
    return f"dd if=/dev/urandom of={path} bs=1M count=8 2>/dev/null; sync; sha256sum {path} | cut -c 1-64"


def digest(pod_name, path):
    return sh(pod_name, f"sha256sum {path} | cut -c 1-64").strip()


def expect(actual, wanted, what):
    if actual != wanted:
        raise Failure(f"{what}: {actual!r}, not {wanted!r}")


class Smoke:
    def __init__(self):
        self.old = self.new = ""

    def helm_install(self):
        install()

    def helm_test(self):
        text = helm("test", "portalbd", "--namespace", NAMESPACE, "--logs", "--timeout", "120s", limit=140)
        if "portalbd works" not in text:
            raise Failure(f"helm test says: {text}")

    def backend(self):
        """Where there is no module nbd, fuse without being asked; metrics and log say so."""
        has_nbd = in_node("sh", "-c", "test -d /sys/module/nbd && echo yes || echo no").strip()
        wanted = "nbd" if has_nbd == "yes" else "fuse"
        found = {name: number for name, number in metrics().items() if name.startswith("portalbd_agent_backend{")}
        expect(found.get(f'portalbd_agent_backend{{backend="nbd",usable="{has_nbd}"}}'), float(has_nbd == "yes"),
               f"nbd in {found}")
        expect(found.get('portalbd_agent_backend{backend="fuse",usable="yes"}'), 1.0, f"fuse in {found}")
        if wanted == "fuse" and "backend=nbd" not in kubectl("logs", "-n", NAMESPACE, "-l",
                                                             "app.kubernetes.io/component=node-agent", "--tail=-1"):
            raise Failure("the agent's log does not say why nbd was left out")
        return wanted

    def write(self):
        start(claim("data"), pod("writer", ["data"]))
        self.old = sh("writer", text_of("/data/file")).strip()

    def again(self):
        delete("pod", "writer")
        start(pod("writer", ["data"]))
        expect(digest("writer", "/data/file"), self.old, "the file after the pod's second start")

    def take_snapshot(self):
        apply(snapshot("before", "data"))
        wait_for("the snapshot is ready",
                 lambda: (get("volumesnapshot", "before").get("status") or {}).get("readyToUse"), 60)

    def overwrite(self):
        self.new = sh("writer", text_of("/data/file")).strip()

    def restore(self):
        start(claim("restored", source=("VolumeSnapshot", "before")), pod("restorer", ["restored"]))
        expect(digest("restorer", "/restored/file"), self.old, "the restored file")

    def clone(self):
        start(claim("cloned", source=("PersistentVolumeClaim", "data")), pod("cloner", ["cloned"]))
        expect(digest("cloner", "/cloned/file"), self.new, "the cloned file")

    @staticmethod
    def grow(name, size):
        kubectl("patch", "pvc", name, "-p", f'{{"spec": {{"resources": {{"requests": {{"storage": "{size}"}}}}}}}}')

    @staticmethod
    def mebibytes(pod_name, path):
        return int(sh(pod_name, f"df -m {path} | tail -n 1 | awk '{{ print $2 }}'"))

    def grow_ext4(self):
        before = self.mebibytes("writer", "/data")
        delete("pod", "writer")
        self.grow("data", "1Gi")
        start(pod("writer", ["data"]))
        wait_for("ext4 is larger", lambda: self.mebibytes("writer", "/data") > before + 300, 60)
        expect(digest("writer", "/data/file"), self.new, "the file after growing")

    def grow_xfs(self):
        start(claim("xfs", storage_class="portalbd-xfs"), pod("grower", ["xfs"]))
        before = self.mebibytes("grower", "/xfs")
        total = sh("grower", text_of("/xfs/file")).strip()
        self.grow("xfs", "1Gi")
        wait_for("xfs is larger, while mounted", lambda: self.mebibytes("grower", "/xfs") > before + 300, 120)
        expect(digest("grower", "/xfs/file"), total, "the file after growing")

    def block(self):
        start(claim("raw", mode="Block"), pod("blocker", ["raw"], block=True))
        sh("blocker", "yes portalbd | dd of=/dev/raw bs=1M count=4 seek=100 iflag=fullblock conv=fsync 2>/dev/null")
        delete("pod", "blocker")
        start(pod("blocker", ["raw"], block=True))
        line = sh("blocker", "dd if=/dev/raw bs=1M count=1 skip=100 2>/dev/null | head -n 1").strip()
        expect(line, "portalbd", "what the device holds")

    # --- under fio ---

    def fio_begins(self):
        start(claim("busy"), pod("fio", ["busy"], FIO.format(claim="busy")))
        self.fio_goes_on()

    @staticmethod
    def rounds():
        if phase("fio") != "Running":
            raise Failure(f"the pod with fio is {phase('fio')}: {kubectl('logs', 'fio', check=False)}")
        return int(sh("fio", "cat /rounds 2>/dev/null || echo 0"))

    def fio_goes_on(self):
        """At least two rounds begin and end from now on."""
        now = self.rounds()
        wait_for("fio goes on", lambda: self.rounds() >= now + 3, 120)

    def helm_upgrade(self):
        before = {p["metadata"]["uid"] for p in pods_of("csi-node")}
        install(values(logLevel="debug"))
        wait_for("new csi node pods", lambda: before.isdisjoint(p["metadata"]["uid"] for p in pods_of("csi-node")), 60)
        self.fio_goes_on()

    def csi_node_deleted(self):
        for found in pods_of("csi-node"):
            delete("pod", found["metadata"]["name"], NAMESPACE)
        kubectl("rollout", "status", "daemonset", "-n", NAMESPACE, "--timeout=90s",
                "-l", "app.kubernetes.io/component=csi-node")
        self.fio_goes_on()

    @staticmethod
    def daemons(claim_name):
        """Process ids of the daemons of a claim's volume: one, but for moments."""
        volume = bound_volume(claim_name)["spec"]["csi"]["volumeHandle"]
        return in_node("pgrep", "-f", f"portalbd attach .*{volume}", check=False).split()

    def portalbd_killed(self):
        before = self.daemons("busy")
        began = time.monotonic()
        in_node("kill", "-KILL", *before)
        wait_for("another daemon", lambda: set(self.daemons("busy")) - set(before), 60)
        self.fio_goes_on()
        return f"two rounds later after {time.monotonic() - began:.1f} s"

    def agent_deleted(self):
        """What brings a new version to a node (OnDelete). Daemons go on, and hand over when they are told to."""
        before = self.daemons("busy")
        for found in pods_of("node-agent"):
            delete("pod", found["metadata"]["name"], NAMESPACE)
        wait_for("the next agent is ready", lambda: [p for p in pods_of("node-agent") if any(
            c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))], 90)
        self.fio_goes_on()
        expect(self.daemons("busy"), before, "the daemon under the next agent")
        in_agent("portalctl", "upgrade", "--all")
        after = self.daemons("busy")
        if len(after) != 1 or after == before:
            raise Failure(f"the daemon after its upgrade: {after}, before: {before}")
        self.fio_goes_on()

    def memory(self):
        """Inside what values.yaml promises, for the volumes of this node and for the busiest of them."""
        volumes_max, mib = values()["csiNode"]["volumesMax"], 1 << 20
        each = (64 + 2 * 64 + 64) * mib
        limit, used = memory_of("portalbd")
        expect(limit, volumes_max * each, "the limit of all daemons")
        most = 0
        for volume in (bound_volume(name)["spec"]["csi"]["volumeHandle"] for name in ("data", "xfs", "raw", "busy")):
            most = max(most, memory_of(f"portalbd/{volume}")[1])
        if most > each:
            raise Failure(f"a volume took {most >> 20} MiB, not at most {each >> 20} MiB")
        size = in_node("findmnt", "-bno", "SIZE", "/run/portalbd/journals").strip()
        expect(int(size), volumes_max * 65 * mib, "the size of the journals' tmpfs")
        agent = pods_of("node-agent")[0]
        expect(agent["spec"]["containers"][0]["resources"]["limits"]["memory"],
               f"{volumes_max * each // mib + 256}Mi", "the limit of the agent's pod")
        group = in_node("sh", "-c", "grep -E '^[0-9]+:(memory)?:' /proc/$(pgrep -of '^node-agent')/cgroup | sort -r | head -n 1")
        agent_used = memory_of(group.strip().split(":")[2].lstrip("/"))[1]
        if agent_used > 256 * mib:
            raise Failure(f"the agent took {agent_used >> 20} MiB, not at most 256 MiB")
        return (f"all daemons {used >> 20} of {limit >> 20} MiB, the largest {most >> 20} of {each >> 20}, "
                f"the agent {agent_used >> 20} of 256")

    def fio_ends(self):
        sh("fio", "touch /stop")
        wait_for("fio ends", lambda: phase("fio") not in ("Running", "Pending"), 60)
        expect(phase("fio"), "Succeeded", "the pod with fio")

    # --- uninstall ---

    def uninstall(self):
        for name in ("writer", "restorer", "cloner", "grower", "blocker", "fio"):
            delete("pod", name)
        wait_for("no volume is attached", lambda: not get("volumeattachments"), 60)
        uninstall()
        expect(get("pvc", "data")["status"]["phase"], "Bound", "the claim without a driver")
        expect(bool(get("csidriver", DRIVER)), False, "a CSIDriver is left")

    def install_again(self):
        install()
        start(pod("writer", ["data"]), pod("blocker", ["raw"], block=True))
        expect(digest("writer", "/data/file"), self.new, "the file after installing again")

    def clean_up(self):
        for name in ("writer", "blocker"):
            delete("pod", name)
        kubectl("delete", "volumesnapshot", "before", "--timeout=60s")
        for found in get("pvc"):
            delete("pvc", found["metadata"]["name"], found["metadata"]["namespace"])
        wait_for("no PersistentVolume is left", lambda: not get("pv"), 90)


def main():
    smoke, steps = Smoke(), Steps("smoke")
    steps.run("helm install", smoke.helm_install)
    steps.run("the node agent's metrics say how devices are made", smoke.backend)
    steps.run("helm test", smoke.helm_test)
    steps.run("a claim, and a pod that writes to it", smoke.write)
    steps.run("pod deleted and started again: the data is there", smoke.again)
    steps.run("a VolumeSnapshot becomes ready", smoke.take_snapshot)
    steps.run("the data is overwritten", smoke.overwrite)
    steps.run("a claim from the snapshot has the old data", smoke.restore)
    steps.run("a clone of the claim has the new data", smoke.clone)
    steps.run("ext4 grows at the pod's next start", smoke.grow_ext4)
    steps.run("xfs grows while it is mounted", smoke.grow_xfs)
    steps.run("a claim of mode Block", smoke.block)
    steps.run("fio begins in a pod", smoke.fio_begins)
    steps.run("helm upgrade under fio: no I/O error", smoke.helm_upgrade)
    steps.run("csi node pod deleted under fio: nothing is noticed", smoke.csi_node_deleted)
    steps.run("portalbd killed under fio: a pause", smoke.portalbd_killed)
    steps.run("node agent pod deleted under fio, daemons upgraded: no I/O error", smoke.agent_deleted)
    steps.run("memory is inside the stated limits", smoke.memory)
    steps.run("fio ends, everything verified", smoke.fio_ends)
    steps.run("helm uninstall with claims still there", smoke.uninstall)
    steps.run("helm install again finds them", smoke.install_again)
    steps.run("claims and snapshots are deleted", smoke.clean_up)
    steps.end()


if __name__ == "__main__":
    main()
