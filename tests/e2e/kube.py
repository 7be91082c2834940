"""The cluster of cluster-up.sh, for tests: kubectl, helm, objects, waiting with a limit, steps."""
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
NAMESPACE = "portalbd"
DRIVER = "csi.portalbd.dev"


def _environment():
    """What env.sh says."""
    text = subprocess.run(["bash", "-c", 'source "$1/env.sh"; env -0', "bash", HERE], check=True,
                          stdout=subprocess.PIPE).stdout.decode()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


ENV = _environment()
CHART = os.path.join(ENV["TREE"], "deploy", "helm", "portalbd")


class Failure(Exception):
    """A step that did not do what it should; the text says what happened instead."""


def in_node(*args, data=None, check=True, limit=120):
    """Runs a program in the node's namespaces; its standard output."""
    command = ["bash", "-c", 'source "$1/env.sh"; shift; in_node "$@"', "bash", HERE, *args]
    try:
        done = subprocess.run(command, input=data, timeout=limit, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as e:
        raise Failure(f"{' '.join(args)}: not done after {limit} s") from e
    if check and done.returncode:
        raise Failure(f"{' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def kubectl(*args, **kw):
    return in_node(os.path.join(ENV["LINKS"], "kubectl"), *args, **kw)


def helm(*args, **kw):
    folder = os.path.join(ENV["CLUSTER"], "helm")
    return in_node("env", *(f"HELM_{kind}_HOME={folder}" for kind in ("CACHE", "CONFIG", "DATA")),
                   os.path.join(ENV["LINKS"], "helm"), *args, **kw)


def apply(*objects):
    kubectl("apply", "-f", "-", data=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def get(kind, name=None, namespace="default"):
    """An object, None if there is none; without a name all of them, of all namespaces."""
    if name is None:
        return json.loads(kubectl("get", kind, "-A", "-o", "json"))["items"]
    text = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text else None


def delete(kind, name, namespace="default", limit=120):
    kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", f"--timeout={limit}s", limit=limit + 10)


def wait_for(what, condition, limit=60):
    """Waits until the condition returns something true, and returns that."""
    deadline = time.monotonic() + limit
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise Failure(f"waited {limit} s for: {what}")
        time.sleep(0.5)


def events(kind, name, namespace="default"):
    """What the events of an object say, the newest last."""
    text = kubectl("get", "events", "-n", namespace, "-o", "json", "--field-selector",
                   f"involvedObject.name={name},involvedObject.kind={kind}")
    found = sorted(json.loads(text)["items"], key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    return [f"{e['type']} {e['reason']}: {e['message']}" for e in found]


# --- objects ----------------------------------------------------------------------------------------


def claim(name, size="512Mi", storage_class="portalbd", source=None, mode="Filesystem"):
    spec = {"storageClassName": storage_class, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
            "resources": {"requests": {"storage": size}}}
    if source:
        kind, source_name = source
        spec["dataSource"] = {"kind": kind, "name": source_name}
        if kind == "VolumeSnapshot":
            spec["dataSource"]["apiGroup"] = "snapshot.storage.k8s.io"
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
            "spec": spec}


def snapshot(name, of):
    return {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"volumeSnapshotClassName": "portalbd", "source": {"persistentVolumeClaimName": of}}}


def pod(name, claims, command="exec sleep 100000", block=False):
    """A pod with each claim at /<claim>, as a device at /dev/<claim> if block; ends at once when told to."""
    where = {"volumeDevices": [{"name": c, "devicePath": f"/dev/{c}"} for c in claims]} if block else \
        {"volumeMounts": [{"name": c, "mountPath": f"/{c}"} for c in claims]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                     "containers": [{"name": "main", "image": f"{ENV['REGISTRY']}/tools:1",
                                     "command": ["sh", "-c", command], **where}],
                     "volumes": [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims]}}


def phase(name):
    found = get("pod", name)
    return found["status"].get("phase", "") if found else ""


def start(*objects):
    """Applies objects and waits until the pods among them run."""
    apply(*objects)
    for name in (o["metadata"]["name"] for o in objects if o["kind"] == "Pod"):
        wait_for(f"pod {name} runs", lambda n=name: phase(n) == "Running", 120)


def sh(pod_name, script, **kw):
    """Runs a shell script in a pod."""
    return kubectl("exec", pod_name, "--", "sh", "-ec", script, **kw)


def bound_volume(claim_name):
    """The PersistentVolume of a claim."""
    return get("pv", get("pvc", claim_name)["spec"]["volumeName"])


# --- portalbd ---------------------------------------------------------------------------------------


def values(**changes):
    """Values for the chart: one pool on the cluster's S3 server, a class for each filesystem."""
    pool = {"name": "e2e", "url": "s3://volumes/pool", "endpoint": ENV["S3_URL"], "region": "us-east-1",
            "accessKeyId": ENV["S3_KEY"], "secretAccessKey": ENV["S3_SECRET"]}
    repository, tag = ENV["IMAGE"].rsplit(":", 1)
    return {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}, "clusterId": "e2e",
            "snapshotController": {"enabled": True}, "pools": [pool], "csiNode": {"volumesMax": 32},
            "storageClasses": [{"name": "portalbd", "pool": "e2e"}, {"name": "portalbd-xfs", "pool": "e2e", "fsType": "xfs"}],
            **changes}


def install(wanted=None, limit=240):
    """helm install, or upgrade, until all pods are ready and the kubelet knows the driver. (Helm 4's own way to wait
    wants new pods also of a DaemonSet that is updated OnDelete.)"""
    helm("upgrade", "--install", "portalbd", CHART, "--namespace", NAMESPACE, "--create-namespace", "--values", "-",
         "--wait=legacy", "--timeout", f"{limit}s", data=json.dumps(wanted or values()), limit=limit + 20)
    wait_for("the kubelet knows the driver", registered, 60)


def uninstall():
    helm("uninstall", "portalbd", "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "120s",
         limit=140)


def name_services():
    """Tells the cluster's DNS of all services that there are now."""
    lines = [f"{s['spec']['clusterIP']} {s['metadata']['name']}.{s['metadata']['namespace']}.svc"
             for s in get("services") if s["spec"].get("clusterIP", "None") != "None"]
    with open(os.path.join(ENV["CLUSTER"], "dns", "services"), "w", encoding="utf-8") as f:
        f.write("".join(f"{line} {line.split()[1]}.cluster.local\n" for line in lines))


def registered():
    node = get("csinode", ENV["NODE"])
    return node and any(d["name"] == DRIVER for d in node["spec"].get("drivers") or [])


def pods_of(component):
    return [p for p in get("pods") if p["metadata"]["namespace"] == NAMESPACE and
            p["metadata"]["labels"].get("app.kubernetes.io/component") == component]


def in_agent(*args, **kw):
    """Runs a program in the node agent's container."""
    name = pods_of("node-agent")[0]["metadata"]["name"]
    return kubectl("exec", "-n", NAMESPACE, name, "-c", "node-agent", "--", *args, **kw)


def metrics(port=9810):
    """The node agent's (or another's of the node's network): name with labels -> number."""
    lines = in_node("curl", "-sf", f"http://{ENV['NODE_IP']}:{port}/metrics").splitlines()
    return {name: float(number) for name, _, number in
            (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def memory_of(group):
    """Limit and highest use, in bytes, of a cgroup of the node, by its path; whatever the version of cgroups."""
    text = in_node("sh", "-c", """
        cd "/sys/fs/cgroup/memory/$1" 2>/dev/null && cat memory.limit_in_bytes memory.max_usage_in_bytes && exit
        cd "/sys/fs/cgroup/$1" && cat memory.max memory.peak""", "sh", group)
    return [int(word) for word in text.replace("max", str(1 << 63)).split()]


# --- steps ------------------------------------------------------------------------------------------


class Steps:
    """Runs the steps of a test in order, a line for each; the first that fails ends it."""

    def __init__(self, title):
        self.title, self.count, self.began = title, 0, time.monotonic()

    def run(self, words, function, *args):
        began = time.monotonic()
        try:
            note = function(*args)
        except (Failure, subprocess.SubprocessError, KeyError, ValueError) as e:
            print(f"FAIL {time.monotonic() - began:6.1f} s  {words}\n{type(e).__name__}: {e}", flush=True)
            diagnose()
            print(f"{self.title}: {self.count} passed, 1 failed")
            sys.exit(1)
        self.count += 1
        print(f"ok   {time.monotonic() - began:6.1f} s  {words}{f' ({note})' if note else ''}", flush=True)

    def end(self):
        print(f"{self.title}: {self.count} passed, 0 failed in {time.monotonic() - self.began:.0f} s")


def diagnose():
    """Prints what somebody wants to know about a cluster in which something failed."""
    print("--- pods, claims, volumes")
    print(kubectl("get", "pods,pvc,pv,volumesnapshots,volumeattachments", "-A", "-o", "wide", check=False))
    print("--- warnings")
    lines = kubectl("get", "events", "-A", "--field-selector", "type=Warning", "--sort-by=.lastTimestamp",
                    check=False).splitlines()
    # The cluster has no DNS, which is said for every pod.
    print("\n".join([line for line in lines if "MissingClusterDNS" not in line][-25:]))
    for found in get("pods"):
        if found["metadata"]["namespace"] != NAMESPACE:
            continue
        name = found["metadata"]["name"]
        print(f"--- {name}")
        print(kubectl("logs", "-n", NAMESPACE, name, "--all-containers", "--prefix", "--tail=15", check=False))
