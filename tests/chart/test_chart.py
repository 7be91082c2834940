#!/usr/bin/python3
"""The Helm chart: lint, what its schema and its templates refuse, what it renders, what was made from it.

    tests/chart/test_chart.py              compares with golden/<case>.yaml, for each values/<case>.yaml
    tests/chart/test_chart.py --update     writes them; read the difference before it is committed
"""
import difflib
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
CHART = os.path.join(TREE, "deploy", "helm", "portalbd")
HELM = os.path.join(os.environ.get("PORTALBD_BUILD", os.path.join(TREE, "build")), "tools", "helm")
SUMMARY = {"passed": 0, "failed": 0}

# What is wrong, as it stands in a values file beside a good pool, and what the message has to contain.
REFUSED = {
    "a word that nobody knows": ("controler: {replicas: 2}", ["additional properties 'controler' not allowed"]),
    "... further inside": ("controller: {replica: 2}", ["/controller", "'replica' not allowed"]),
    "a number as text": ("controller: {replicas: two}", ["/controller/replicas", "want integer"]),
    "too many replicas": ("controller: {replicas: 100}", ["/controller/replicas", "maximum"]),
    "a relative path": ("kubeletDir: var/lib/kubelet", ["/kubeletDir"]),
    "a size without unit": ("nodeAgent: {journalSize: 64}", ["/nodeAgent/journalSize", "want string"]),
    "a size in MB": ("nodeAgent: {cacheSize: 64MB}", ["/nodeAgent/cacheSize", "(Mi|Gi)"]),
    "a cgroup above": ("nodeAgent: {cgroup: ../other}", ["/nodeAgent/cgroup"]),
    "a disk cache at a relative path": ("nodeAgent: {diskCache: {path: nvme}}", ["/nodeAgent/diskCache/path"]),
    "a disk cache for all": ("nodeAgent: {diskCache: {size: 1Gi}}", ["/nodeAgent/diskCache", "'size' not allowed"]),
    "a class with half a disk cache": ("storageClasses: [{name: a, diskCacheSize: some}]", ["diskCacheSize", "none|"]),
    "a backend that is none": ("nodeAgent: {backends: [iscsi]}", ["/nodeAgent/backends/0", "'nbd', 'fuse'"]),
    "a filesystem that is none": ("storageClasses: [{name: a, fsType: btrfs}]", ["fsType", "'ext4', 'xfs'"]),
    "a class without name": ("storageClasses: [{fsType: xfs}]", ["/storageClasses/0", "missing property 'name'"]),
    "a log level": ("logLevel: verbose", ["/logLevel", "'debug', 'info', 'warn', 'error'"]),
    "an image without tag": ("sidecars: {attacher: {image: csi-attacher}}", ["/sidecars/attacher/image"]),
    "a pull secret as text": ("imagePullSecrets: [mine]", ["/imagePullSecrets/0", "want object"]),
    "a value of the subchart": ("snapshotController: {enabled: true, replica: 2}", ["snapshotController:", "'replica' not allowed"]),
    "a pool's name in capitals": ("pools: [{name: Main, url: s3://b/p}]", ["/pools/0/name", "[a-z0-9-]{1,10}"]),
    "a pool without url": ("pools: [{name: main}]", ["/pools/0", "missing property 'url'"]),
    "a pool's url of the web": ("pools: [{name: main, url: 'https://s3/b'}]", ["/pools/0/url", "s3://"]),
    "a key with a line's end": ('pools: [{name: main, url: s3://b/p, accessKeyId: "a\\nb", secretAccessKey: x}]',
                                ["/pools/0/accessKeyId"]),
    # What a schema cannot see.
    "no pool": ("pools: []", ["no pool: set pools[0].name"]),
    "one pool twice": ("pools: [{name: a, url: s3://b/p}, {name: a, url: s3://c/p}]", ["two pools called 'a'"]),
    "half a key": ("pools: [{name: a, url: s3://b/p, accessKeyId: x}]", ["accessKeyId and secretAccessKey come together"]),
    "keys twice": ("pools: [{name: a, url: s3://b/p, accessKeyId: me, secretAccessKey: sesame, existingSecret: mine}]",
                   ["either existingSecret or the keys"]),
    "two sources of pools": ("existingPoolsSecret: x", ["either pools or existingPoolsSecret"]),
    "a disk cache that is too small": ("nodeAgent: {diskCache: {path: /mnt/a, sizePerVolume: 63Mi}}", ["63Mi is not from 64Mi"]),
    "a disk cache that is too large": ("nodeAgent: {diskCache: {path: /mnt/a, sizePerVolume: 4097Gi}}", ["not from 64Mi to 4096Gi"]),
    "a class of no pool": ("storageClasses: [{name: a, pool: other}]", ["wants pool 'other'"]),
    "a class of any pool": ("pools: [{name: a, url: s3://b/p}, {name: b, url: s3://c/p}]", ["has to name one of the 2 pools"]),
}
GOOD_POOL = "pools: [{name: main, url: s3://bucket/prefix}]\n"


def helm(*args, values=None, kubeconfig=None):
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.environ["PATH"], "HOME": home, "HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home,
               "HELM_DATA_HOME": home, "KUBECONFIG": kubeconfig or os.path.join(home, "none")}
        return subprocess.run([HELM, *args], input=values, env=env, capture_output=True, text=True, timeout=60)


def template(values, *args, **kw):
    return helm("template", "portalbd", CHART, "--namespace", "portalbd", "--values", "-", *args, values=values, **kw)


def check(name, trouble):
    """Counts a check; trouble is what is wrong, or nothing."""
    SUMMARY["failed" if trouble else "passed"] += 1
    if trouble:
        print(f"FAILED {name}: {trouble}")


def read(*path):
    with open(os.path.join(*path)) as f:
        return f.read()


def lint():
    result = helm("lint", "--strict", CHART)
    check("lint", result.returncode and result.stdout + result.stderr)
    result = helm("lint", "--strict", CHART, "--values", os.path.join(HERE, "values", "everything.yaml"))
    check("lint, everything on", result.returncode and result.stdout + result.stderr)


def refused():
    for name, (values, words) in REFUSED.items():
        result = template((GOOD_POOL if "pools: " not in values else "") + values)
        missing = [w for w in words if w not in result.stderr]
        check(name, "it is taken" if result.returncode == 0 else
              missing and f"the message lacks {missing}:\n{result.stderr}")


def golden(update):
    for file in sorted(os.listdir(os.path.join(HERE, "values"))):
        case, path = os.path.splitext(file)[0], os.path.join(HERE, "golden", file)
        result = template(read(HERE, "values", file))
        if result.returncode:
            check(case, result.stderr)
            continue
        rendered = result.stdout.rstrip("\n") + "\n"
        if update:
            with open(path, "w") as f:
                f.write(rendered)
        want = read(path) if os.path.exists(path) else ""
        diff = difflib.unified_diff(want.splitlines(), rendered.splitlines(), f"golden/{file}", "rendered", lineterm="")
        check(case, want != rendered and "\n".join(diff) + "\nif this is right: tests/chart/test_chart.py --update")
        check(f"{case}: notes", notes_trouble(read(HERE, "values", file)))


def notes_trouble(values):
    """`helm template` does not render the notes; a dry installation does."""
    result = helm("install", "portalbd", CHART, "--namespace", "portalbd", "--dry-run=client", "--values", "-", values=values)
    return result.stderr if result.returncode else \
        "StorageClasses: " not in result.stdout and f"no notes:\n{result.stdout[-2000:]}"


def versions():
    """The chart is of the version that the tree builds, and it names images as its documents do."""
    version = read(TREE, "VERSION").strip() if os.path.exists(os.path.join(TREE, "VERSION")) else "0.1.0"
    chart = read(CHART, "Chart.yaml")
    check("appVersion", f"\nappVersion: {version}\n" not in chart and f"Chart.yaml is not of version {version}")


def options():
    """Every option that the chart gives to a program of ours is one."""
    rendered = "".join(read(HERE, "golden", f) for f in sorted(os.listdir(os.path.join(HERE, "golden"))))
    for program in ("portalbd-csi", "node-agent"):
        known = set(re.findall(r"^\| `(--[a-z-]+)`", read(TREE, "docs", "options", f"{program}.md"), re.M))
        given = set()
        for args in re.findall(rf"command: \[{program}\]\n +args:\n((?: +- .*\n)+)", rendered):
            given |= set(re.findall(r"(--[a-z-]+)", args))
        check(f"options of {program}", not given and "none found" or given - known and f"unknown: {sorted(given - known)}")


def manifests():
    result = subprocess.run([os.path.join(TREE, "deploy", "manifests", "render"), "--check"], capture_output=True, text=True,
                            env={**os.environ, "HELM": HELM}, check=False)
    check("deploy/manifests", result.returncode and result.stdout + result.stderr + "make manifests writes them")


def k3s():
    """The values in the HelmChart resource are values of the chart, and its chart is of this version."""
    text = read(TREE, "deploy", "k3s", "portalbd.yaml")
    values = re.sub(r"^    ", "", text.split("valuesContent: |-\n")[1], flags=re.M)
    result = template(values.replace("CHANGE-ME", "bucket"))
    check("deploy/k3s: values", result.returncode and result.stderr)
    version = re.search(r"^version: (.*)$", read(CHART, "Chart.yaml"), re.M)[1]
    check("deploy/k3s: version", f"charts/portalbd-{version}.tgz\n  target" not in text and f"not of chart {version}")


# --- a cluster that has a snapshot-controller ------------------------------------------------------


class FakeCluster(http.server.BaseHTTPRequestHandler):
    """As much of an API server as helm needs to render for it: discovery, and a list of Deployments."""
    deployments = []
    kinds = {}  # "apps/v1" -> {"Deployment", ...}

    def answer(self, path):
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.4"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            versions = {g: {"groupVersion": g, "version": g.split("/")[1]} for g in self.kinds if "/" in g}
            return {"kind": "APIGroupList", "apiVersion": "v1",
                    "groups": [{"name": g.split("/")[0], "versions": [v], "preferredVersion": v} for g, v in versions.items()]}
        if path == "/apis/apps/v1/deployments":
            return {"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {}, "items": self.deployments}
        version = re.sub("^/apis?/", "", path)
        if version in self.kinds:
            return {"kind": "APIResourceList", "groupVersion": version,
                    "resources": [{"name": f"{k.lower()}s", "kind": k, "namespaced": True, "verbs": ["get", "list"]}
                                  for k in sorted(self.kinds[version])]}
        return None

    def do_GET(self):
        answer = self.answer(self.path.split("?")[0])
        body = json.dumps(answer or {"kind": "Status", "status": "Failure", "code": 404}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def deployment(name, namespace, image, release):
    annotations = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace} if release else {}
    return {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}


def another_controller():
    """snapshotController refuses to stand beside another one, and does not mistake itself for one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeCluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for version, kind in re.findall(r"^apiVersion: (.*)\nkind: (.*)$", read(HERE, "golden", "everything.yaml"), re.M):
        FakeCluster.kinds.setdefault(version, set()).add(kind)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        address = f"http://127.0.0.1:{server.server_port}"
        json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "fake",
                   "clusters": [{"name": "fake", "cluster": {"server": address}}],
                   "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                   "users": [{"name": "fake", "user": {}}]}, config)
        config.flush()

        def render(more=""):
            return template(GOOD_POOL + "snapshotController: {enabled: true" + more + "}", "--dry-run=server",
                            "--disable-openapi-validation", kubeconfig=config.name)

        other = deployment("snapshot-controller", "kube-system", "registry.k8s.io/sig-storage/snapshot-controller:v8.2.0", "")
        own = deployment("portalbd-snapshot-controller", "portalbd", "mirror/snapshot-controller:v8.7.0", "portalbd")
        FakeCluster.deployments = [deployment("web", "default", "nginx:1", ""), own]
        result = render()
        check("snapshotController, upgraded", result.returncode and result.stderr)
        FakeCluster.deployments = [own, other]
        result = render()
        check("snapshotController beside another", "it installs" if result.returncode == 0 else
              "Deployment snapshot-controller in namespace kube-system" not in result.stderr and result.stderr)
        result = render(", force: true")
        check("snapshotController, forced", result.returncode and result.stderr)
    server.shutdown()


def main():
    if not os.access(HELM, os.X_OK):
        print(f"there is no helm at {HELM}: make deps gets it")
        return 77
    lint()
    refused()
    golden("--update" in sys.argv)
    versions()
    options()
    manifests()
    k3s()
    another_controller()
    print(f"{SUMMARY['passed']} passed, {SUMMARY['failed']} failed, 0 skipped")
    return 1 if SUMMARY["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
