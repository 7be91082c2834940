# Sourced by the scripts of this folder: where things are, and small helpers that they share.
# shellcheck shell=bash

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$E2E/../.." && pwd)
: "${PORTALBD_BUILD:=$TREE/build}"
# What was built once, by version, and the state of the cluster: a disk is wanted, not a tmpfs.
: "${E2E_CACHE:=${XDG_CACHE_HOME:-${HOME:?}/.cache}/portalbd/e2e}"
LINKS=$PORTALBD_BUILD/e2e/bin
RESULTS=$PORTALBD_BUILD/e2e/results
CLUSTER=$E2E_CACHE/cluster
LOGS=$CLUSTER/log
# Held by node-keeper.sh as long as there is something of the node.
NODE_LOCK=$E2E_CACHE/node.lock
export E2E TREE PORTALBD_BUILD E2E_CACHE LINKS RESULTS CLUSTER LOGS NODE_LOCK

KUBERNETES=v1.34.4
ETCD=v3.6.16
PROVISIONER=v6.3.0
ATTACHER=v4.13.0
RESIZER=v2.3.0
SNAPSHOTTER=v8.7.0
HELM=v4.3.1
# What the storage suite of that Kubernetes asks for, and what our pods run.
AGNHOST=2.56
BUSYBOX=1.37.0-1
DNSUTILS=1.7
NGINX=1.14-4
PAUSE=3.10.1
export KUBERNETES ETCD PROVISIONER ATTACHER RESIZER SNAPSHOTTER HELM AGNHOST BUSYBOX DNSUTILS NGINX PAUSE

# What the tests write at most, and then some.
DISK_GIB=20
export DISK_GIB

# The node, and the one S3 server in its network.
NODE=node1
NODE_IP=10.250.0.1
POD_NET=10.42.0.0/24
SERVICE_NET=10.43.0.0/24
SERVICE_IP=10.43.0.1
S3_PORT=7070
S3_URL=http://$NODE_IP:$S3_PORT
S3_KEY=e2e-access
: "${S3_SECRET:=e2e-secret-of-the-e2e-store}"
REGISTRY=localhost/e2e
IMAGE=localhost/portalbd:e2e
export NODE NODE_IP POD_NET SERVICE_NET SERVICE_IP S3_PORT S3_URL S3_KEY S3_SECRET REGISTRY IMAGE

KUBECONFIG=$CLUSTER/admin.kubeconfig
export KUBECONFIG

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The process id of the node's PID 1, if it runs.
node_pid() {
    local pid
    pid=$(cat "$CLUSTER/node.pid" 2>/dev/null) || return
    # Another process may have that number by now: ours is "pause" and number 1 of a PID namespace.
    grep -qx pause "/proc/$pid/comm" 2>/dev/null && grep -qE "^NSpid:\s+$pid\s+1\$" "/proc/$pid/status" && echo "$pid"
}

# Runs a command in the node's namespaces.
in_node() {
    local pid
    pid=$(node_pid) || die "there is no cluster; make e2e-up makes one"
    nsenter -t "$pid" --net --mount --pid --wd="$PWD" "$@"
}

# The node's namespaces have kubectl and helm too: the API server is at an address of theirs only.
kubectl() {
    in_node "$LINKS/kubectl" "$@"
}

helm() {
    HELM_CACHE_HOME=$CLUSTER/helm HELM_CONFIG_HOME=$CLUSTER/helm HELM_DATA_HOME=$CLUSTER/helm in_node "$LINKS/helm" "$@"
}

# An image that the chart asks for, by a part of its name.
chart_image() {
    grep -F "$1" "$TREE/deploy/manifests/images.txt"
}

# Tries a command until it succeeds, twice a second, for so many seconds.
within() { # seconds, command...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.5
    done
}
