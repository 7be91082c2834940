#!/bin/bash
# Starts a Kubernetes cluster of one node on this machine (root), and an S3 server beside it. Takes about 30 seconds
# once everything is built; does nothing if it is there. Everything runs in namespaces of its own (node-init.sh);
# cluster-down.sh takes it away. State and logs: E2E_CACHE/cluster (env.sh).
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

P=$CLUSTER/pki

# Starts a process in the node; it ends with the node.
start() { # name, command...
    local name=$1
    shift
    in_node setsid "$@" >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
    disown
}

fail() { # what, log
    echo "cluster-up: $1; the end of $LOGS/$2.log:" >&2
    tail -n 15 "$LOGS/$2.log" >&2 || true
    exit 1
}

start_node() {
    rm -f "$CLUSTER/node.pid"
    exec 8>"$NODE_LOCK"
    flock -n 8 || die "something of a node is left; see $LOGS/node.log"
    setsid unshare --net --mount "$E2E/node-keeper.sh" >"$LOGS/node.log" 2>&1 </dev/null 9>&- &
    disown
    exec 8>&-
    within 10 node_pid >/dev/null || fail "no node" node
}

start_containerd() {
    mkdir -p "$CLUSTER/cni"
    cat >"$CLUSTER/containerd.toml" <<T
version = 2
root = "$CLUSTER/containerd/root"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$REGISTRY/pause:$PAUSE"
  # Without CAP_SYS_RESOURCE a negative score cannot be set.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$CLUSTER/cni"
T
    cat >"$CLUSTER/cni/10-e2e.conflist" <<T
{"cniVersion": "0.4.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_NET"}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/cni"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
    start containerd containerd -c "$CLUSTER/containerd.toml"
    within 20 in_node ctr --connect-timeout 1s version >/dev/null 2>&1 || fail "containerd does not answer" containerd
}

make_key() { # name
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$P/$1.key" 2>/dev/null
}

make_certificate() { # name, subject, extension
    make_key "$1"
    openssl req -new -key "$P/$1.key" -subj "$2" | openssl x509 -req -CA "$P/ca.crt" -CAkey "$P/ca.key" \
        -CAcreateserial -days 3650 -extfile <(printf '%s\n' "$3") -out "$P/$1.crt" 2>/dev/null
}

make_user() { # name, subject
    local config=("$LINKS/kubectl" --kubeconfig "$CLUSTER/$1.kubeconfig" config)
    make_certificate "$1" "$2" extendedKeyUsage=clientAuth
    {
        "${config[@]}" set-cluster e2e --server "https://$NODE_IP:6443" --certificate-authority "$P/ca.crt" --embed-certs
        "${config[@]}" set-credentials user --client-certificate "$P/$1.crt" --client-key "$P/$1.key" --embed-certs
        "${config[@]}" set-context e2e --cluster e2e --user user
        "${config[@]}" use-context e2e
    } >/dev/null
}

make_pki() {
    local names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
    [ ! -f "$P/complete" ] || return 0
    mkdir -p "$P"
    make_key ca
    openssl req -x509 -new -key "$P/ca.key" -subj /CN=e2e-ca -days 3650 -out "$P/ca.crt"
    make_certificate apiserver /CN=kube-apiserver "subjectAltName=$names,IP:127.0.0.1,IP:$NODE_IP,IP:$SERVICE_IP"
    make_certificate kubelet-serving "/CN=$NODE" "subjectAltName=DNS:$NODE,IP:$NODE_IP,IP:127.0.0.1"
    openssl genrsa -out "$P/service-accounts.key" 2048 2>/dev/null
    make_user admin /O=system:masters/CN=admin
    make_user controller-manager /CN=system:kube-controller-manager
    make_user scheduler /CN=system:kube-scheduler
    make_user proxy /CN=system:kube-proxy
    make_user kubelet "/O=system:nodes/CN=system:node:$NODE"
    touch "$P/complete"
}

start_control_plane() {
    # The data dies with the cluster: no fsync.
    start etcd "$LINKS/etcd" --data-dir "$CLUSTER/etcd" --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
        --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380 \
        --unsafe-no-fsync --log-level warn
    start apiserver "$LINKS/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
        --service-cluster-ip-range "$SERVICE_NET" --advertise-address "$NODE_IP" --bind-address 0.0.0.0 \
        --secure-port 6443 --client-ca-file "$P/ca.crt" --tls-cert-file "$P/apiserver.crt" \
        --tls-private-key-file "$P/apiserver.key" --service-account-key-file "$P/service-accounts.key" \
        --service-account-signing-key-file "$P/service-accounts.key" \
        --service-account-issuer https://kubernetes.default.svc --authorization-mode Node,RBAC --allow-privileged \
        --enable-admission-plugins NodeRestriction --kubelet-client-certificate "$P/admin.crt" \
        --kubelet-client-key "$P/admin.key" --kubelet-certificate-authority "$P/ca.crt" \
        --kubelet-preferred-address-types InternalIP --endpoint-reconciler-type lease --v 1
    within 90 kubectl get --raw /readyz >/dev/null 2>&1 || fail "the API server does not become ready" apiserver
    start controller-manager "$LINKS/kube-controller-manager" --kubeconfig "$CLUSTER/controller-manager.kubeconfig" \
        --service-account-private-key-file "$P/service-accounts.key" --root-ca-file "$P/ca.crt" \
        --use-service-account-credentials --leader-elect=false --bind-address 127.0.0.1 --v 1
    start scheduler "$LINKS/kube-scheduler" --kubeconfig "$CLUSTER/scheduler.kubeconfig" --leader-elect=false \
        --bind-address 127.0.0.1 --v 1
}

start_kubelet() {
    mkdir -p "$CLUSTER/manifests"
    cat >"$CLUSTER/kubelet.yaml" <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $P/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $P/kubelet-serving.crt
tlsPrivateKeyFile: $P/kubelet-serving.key
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
staticPodPath: $CLUSTER/manifests
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: [$NODE_IP]
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
evictionHard: {memory.available: "100Mi", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
maxPods: 110
# Mounted volumes grow when the kubelet looks at their pods again; the default is a minute.
syncFrequency: 10s
T
    start kubelet "$LINKS/kubelet" --config "$CLUSTER/kubelet.yaml" --kubeconfig "$CLUSTER/kubelet.kubeconfig" \
        --root-dir /var/lib/kubelet --hostname-override "$NODE" --node-ip "$NODE_IP" --v 2
}

start_proxy() {
    cat >"$CLUSTER/proxy.yaml" <<T
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $NODE
clusterCIDR: $POD_NET
clientConnection: {kubeconfig: $CLUSTER/proxy.kubeconfig}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
healthzBindAddress: 127.0.0.1:10256
T
    kubectl create clusterrolebinding e2e-node-proxier --clusterrole system:node-proxier --user system:kube-proxy \
        --dry-run=client -o yaml | kubectl apply -f - >/dev/null
    start proxy "$LINKS/kube-proxy" --config "$CLUSTER/proxy.yaml" --v 1
}

# Names of services, as kube.py writes them down (name_services); no others.
start_dns() {
    mkdir -p "$CLUSTER/dns"
    start dns dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --pid-file= --no-resolv --no-hosts \
        --hostsdir="$CLUSTER/dns" --local=/cluster.local/ --listen-address="$NODE_IP" --bind-interfaces
}

node_ready() {
    kubectl wait --for condition=Ready "node/$NODE" --timeout 10s >/dev/null 2>&1
}

s3_answers() {
    in_node curl -s -o /dev/null --max-time 2 "$S3_URL/"
}

[ "$(id -u)" = 0 ] || die "namespaces, mounts and cgroups want root"
mkdir -p "$LOGS"
[ "$(df --output=avail -BG "$E2E_CACHE" | tail -n 1 | tr -dc 0-9)" -ge "$DISK_GIB" ] ||
    die "less than $DISK_GIB GiB are free at $E2E_CACHE: everything that volumes write lies there"
exec 9>"$E2E_CACHE/lock"
flock -n 9 || die "another one is at it"
if node_pid >/dev/null; then
    node_ready || die "there is a cluster whose node is not ready: cluster-down.sh first"
    echo "cluster-up: it is there"
    exit 0
fi
# What a cluster before left, if it ended by force.
"$E2E/cluster-down.sh" --quiet
mkdir -p "$LOGS"
trap '[ $? = 0 ] || [ -n "${KEEP-}" ] || "$E2E/cluster-down.sh" --quiet --keep-logs' EXIT
start_node
"$E2E/s3.sh" start
start_containerd
make_pki
start_control_plane
"$E2E/images.sh" basic
start_kubelet
start_proxy
start_dns
within 60 node_ready || fail "the node does not become ready" kubelet
echo "cluster-up: Kubernetes $KUBERNETES is ready after $SECONDS s; tests/e2e/kubectl speaks to it"
