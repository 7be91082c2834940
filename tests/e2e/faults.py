#!/usr/bin/env python3
"""What users see when something is wrong: events say what, and once it is right, everything goes on without anybody
deleting anything. Wants the cluster of cluster-up.sh."""
import os
import re
import subprocess

from kube import (ENV, HERE, NAMESPACE, Failure, Steps, apply, claim, delete, events, get, in_agent, in_node, install,
                  phase, pod, pods_of, sh, values, wait_for)

# A kubelet takes up to a minute and a half to bring a changed Secret into a pod, and sidecars pause between tries.
HEALS_S = 300
ROTATED = "another-secret-of-the-e2e-store"
HIDDEN = os.path.join(ENV["CLUSTER"], "no-fuse")


def pools(good, secret=ENV["S3_SECRET"]):
    """The pool of values(), and one for each thing that can be wrong, unless it is good."""
    pool = {**values()["pools"][0], "secretAccessKey": secret}
    return [pool,
            {**pool, "name": "keys", "url": "s3://volumes/keys",
             "secretAccessKey": pool["secretAccessKey"] if good else "wrong"},
            {**pool, "name": "bucket", "url": f"s3://{'volumes' if good else 'missing'}/bucket"},
            {**pool, "name": "endpoint", "url": "s3://volumes/endpoint",
             "endpoint": pool["endpoint"] if good else f"http://{ENV['NODE_IP']}:7999"}]


def with_pools(good, **which):
    """Values with a class for each pool."""
    classes = values()["storageClasses"] + [{"name": f"faults-{name}", "pool": name}
                                            for name in ("keys", "bucket", "endpoint")]
    return values(pools=pools(good, **which), storageClasses=classes)


def store(what, **environment):
    subprocess.run([os.path.join(HERE, "s3.sh"), what], check=True, timeout=60, env={**os.environ, **environment})


def says(kind, name, *patterns):
    """Waits until one event of an object matches all patterns; returns it."""
    def matching():
        for text in events(kind, name):
            if all(re.search(p, text, re.I) for p in patterns):
                return text
        return None
    return wait_for(f"an event of {kind} {name} that says {' and '.join(patterns)}; there are:\n" +
                    "\n".join(events(kind, name)), matching, 120)


def shown(text):
    return " ".join(text.split())[:400]


class Faults:
    def begin_wrong(self):
        install(with_pools(False))
        for name in ("keys", "bucket", "endpoint"):
            apply(claim(name, storage_class=f"faults-{name}"), pod(name, [name]))

    def wrong_keys(self):
        return shown(says("PersistentVolumeClaim", "keys", r"credentials|access key|signature|denied"))

    def missing_bucket(self):
        return shown(says("PersistentVolumeClaim", "bucket", r"bucket", r"missing|no such|not exist"))

    def unreachable(self):
        return shown(says("PersistentVolumeClaim", "endpoint", r"7999", r"refused|reach|connect"))

    def mend(self):
        install(with_pools(True))
        for name in ("keys", "bucket", "endpoint"):
            wait_for(f"pod {name} runs", lambda n=name: phase(n) == "Running", HEALS_S)
            sh(name, f"echo fine >/{name}/file; sync")

    # --- the store goes away ---

    def store_away(self):
        delete("pod", "keys")
        wait_for("nothing is attached to it", lambda: len(get("volumeattachments")) == 2, 60)
        store("stop")
        apply(pod("keys", ["keys"]))
        return shown(says("Pod", "keys", r"refused|reach|connect"))

    def store_back(self):
        store("start")
        wait_for("pod keys runs", lambda: phase("keys") == "Running", HEALS_S)
        sh("keys", "grep -q fine /keys/file")

    # --- other keys, while volumes are attached ---

    def rotated(self):
        """A pod that writes, and one that starts: neither has the new keys."""
        delete("pod", "bucket")
        wait_for("its volume is detached", lambda: len(get("volumeattachments")) == 2, 60)
        store("stop")
        store("start", S3_SECRET=ROTATED)
        sh("keys", "(echo rotated >/keys/file; sync; touch /synced) >/dev/null 2>&1 &")
        apply(pod("bucket", ["bucket"]))
        told = shown(says("Pod", "bucket", r"403|credentials|signature|denied"))
        wait_for("the agent says it of the volume that is attached", lambda: "403" in in_agent("portalctl", "status"), 60)
        if "synced" in sh("keys", "ls /"):
            raise Failure("a store that refuses the keys has acknowledged a flush")
        return told

    def keys_mended(self):
        install(with_pools(True, secret=ROTATED))
        wait_for("what was written is stored", lambda: "synced" in sh("keys", "ls /"), HEALS_S)
        wait_for("pod bucket runs", lambda: phase("bucket") == "Running", HEALS_S)
        sh("bucket", "grep -q fine /bucket/file")
        store("stop")
        store("start")
        install(with_pools(True))

    # --- a node that can make no devices ---

    def no_backend(self):
        for name in ("keys", "bucket", "endpoint"):
            delete("pod", name)
        wait_for("nothing is attached", lambda: not get("volumeattachments"), 90)
        # A read-only file in the place of the device: present to nobody who wants to write to it.
        in_node("sh", "-ec", 'echo >"$1"; mount --bind "$1" /dev/fuse; mount -o remount,bind,ro /dev/fuse', "sh", HIDDEN)
        for found in pods_of("node-agent"):
            delete("pod", found["metadata"]["name"], NAMESPACE)
        apply(pod("keys", ["keys"]))
        told = says("Pod", "keys", r"node agent", r"kubectl")
        return shown(told + " / " + wait_for("the agent's pod says why it ended", self.last_words, 60))

    @staticmethod
    def last_words():
        for found in pods_of("node-agent"):
            for status in found["status"].get("containerStatuses", []):
                text = status.get("lastState", {}).get("terminated", {}).get("message", "")
                if "/dev/fuse" in text and "modprobe nbd" in text:
                    return text[text.index("backend=fuse"):]
        return None

    def backend_again(self):
        in_node("umount", "/dev/fuse")
        wait_for("pod keys runs", lambda: phase("keys") == "Running", HEALS_S)
        sh("keys", "grep -q rotated /keys/file")

    def clean_up(self):
        delete("pod", "keys")
        for name in ("keys", "bucket", "endpoint"):
            delete("pvc", name)
        wait_for("no PersistentVolume is left", lambda: not get("pv"), 90)
        install()


def main():
    faults, steps = Faults(), Steps("faults")
    steps.run("pools that cannot be used, a claim and a pod for each", faults.begin_wrong)
    steps.run("wrong credentials: the claim's event says so", faults.wrong_keys)
    steps.run("a missing bucket: the claim's event says so", faults.missing_bucket)
    steps.run("an unreachable endpoint: the claim's event says so", faults.unreachable)
    steps.run("the pools are mended: all pods run", faults.mend)
    steps.run("the store goes away: the pod's event says so", faults.store_away)
    steps.run("the store comes back: the pod runs", faults.store_back)
    steps.run("keys are changed under volumes that are attached: events and portalctl say so", faults.rotated)
    steps.run("the Secret has the new keys: everything goes on", faults.keys_mended)
    steps.run("a node without nbd and fuse: the pod's event says so", faults.no_backend)
    steps.run("fuse comes back: the pod runs", faults.backend_again)
    steps.run("claims are deleted", faults.clean_up)
    steps.end()


if __name__ == "__main__":
    main()
