#!/usr/bin/env python3
"""The other ways to install, each once with a volume that is written to: one file and kubectl apply; the chart with its
own S3 server to try things out. Wants the cluster of cluster-up.sh, without claims."""
import os

from kube import (CHART, ENV, NAMESPACE, Failure, Steps, claim, delete, get, helm, install, kubectl, name_services, phase,
                  pod, registered, sh, start, uninstall, values, wait_for)

MANIFESTS = os.path.join(ENV["TREE"], "deploy", "manifests")
POOL_FILE = f"""[main]
url = s3://volumes/manifest
endpoint = {ENV["S3_URL"]}
region = us-east-1
access_key_id = {ENV["S3_KEY"]}
secret_access_key = {ENV["S3_SECRET"]}
"""


def write_and_clean_up():
    start(claim("try"), pod("try", ["try"]))
    sh("try", "echo fine >/try/file; sync; grep -q fine /try/file")
    delete("pod", "try")
    delete("pvc", "try")
    wait_for("no PersistentVolume is left", lambda: not get("pv"), 90)


def roll_out():
    for what in ("deployment/portalbd-controller", "daemonset/portalbd-csi-node"):
        kubectl("rollout", "status", what, "-n", NAMESPACE, "--timeout=120s", limit=140)
    wait_for("the kubelet knows the driver", registered, 60)


def manifest():
    """As the file's first comment says."""
    uninstall()
    wait_for("nothing is left of another", lambda: not registered(), 60)
    kubectl("create", "namespace", NAMESPACE, check=False)
    kubectl("create", "secret", "generic", "portalbd-pools", "-n", NAMESPACE, "--from-file=pools.conf=/dev/stdin",
            data=POOL_FILE)
    kubectl("apply", "-f", os.path.join(MANIFESTS, "portalbd.yaml"))
    roll_out()
    write_and_clean_up()


def with_snapshots():
    kubectl("apply", "-f", os.path.join(CHART, "charts", "snapshot-controller", "crds"))
    kubectl("apply", "-f", os.path.join(MANIFESTS, "portalbd-snapshots.yaml"))
    roll_out()
    if not get("volumesnapshotclass", "portalbd"):
        raise Failure("there is no VolumeSnapshotClass portalbd")
    write_and_clean_up()


def away():
    kubectl("delete", "--wait", "--timeout=120s", "-f", os.path.join(MANIFESTS, "portalbd-snapshots.yaml"), limit=140)
    wait_for("the kubelet has forgotten the driver", lambda: not registered(), 60)


def demo():
    wanted = values(demo={"s3": {"enabled": True, "pullPolicy": "Never"}}, pools=[], clusterId="",
                    storageClasses=[{"name": "portalbd"}])
    install(wanted)
    name_services()
    text = helm("test", "portalbd", "--namespace", NAMESPACE, "--logs", "--timeout", "180s", limit=200)
    if "portalbd works" not in text:
        raise Failure(f"helm test says: {text}")
    write_and_clean_up()


def example():
    path = os.path.join(ENV["TREE"], "deploy", "k3s", "example.yaml")
    kubectl("apply", "-f", path)
    wait_for("the pod writes", lambda: phase("writer") == "Running" and "2" in sh("writer", "cat /data/log 2>/dev/null || true"), 90)
    kubectl("delete", "--wait", "--grace-period=1", "--timeout=90s", "-f", path)
    wait_for("no PersistentVolume is left", lambda: not get("pv"), 90)


def second_controller():
    text = helm("install", "second", CHART, "--namespace", "second", "--create-namespace", "--set",
                "snapshotController.enabled=true,pools[0].name=a,pools[0].url=s3://a/b", check=False, limit=60)
    if get("deployment", "second-snapshot-controller", "second"):
        raise Failure(f"there are two snapshot controllers now: {text}")
    kubectl("delete", "namespace", "second", "--ignore-not-found")


def main():
    steps = Steps("installs")
    steps.run("kubectl apply -f portalbd.yaml, a volume", manifest)
    steps.run("CRDs and portalbd-snapshots.yaml over it, a volume", with_snapshots)
    steps.run("kubectl delete -f", away)
    steps.run("the chart with demo.s3.enabled, helm test, a volume", demo)
    steps.run("the claim and the pod of deploy/k3s/example.yaml", example)
    steps.run("a second snapshot controller is refused", second_controller)
    steps.run("helm uninstall", uninstall)
    steps.end()


if __name__ == "__main__":
    main()
