# Sourced by the scripts of this folder: where things are, and small helpers that they share.
# shellcheck shell=bash

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$E2E/../.." && pwd)
: "${PORTALBD_BUILD:=$TREE/build}"
# What was built once, by version, and the state of the cluster: a disk is wanted, not a tmpfs.
: "${E2E_CACHE:=${XDG_CACHE_HOME:-${HOME:?}/.cache}/portalbd/e2e}"
LINKS=$PORTALBD_BUILD/e2e/bin
CLUSTER=$E2E_CACHE/cluster
export E2E TREE PORTALBD_BUILD E2E_CACHE LINKS CLUSTER

KUBERNETES=v1.34.4
ETCD=v3.6.16
PROVISIONER=v6.3.0
ATTACHER=v4.13.0
RESIZER=v2.3.0
SNAPSHOTTER=v8.7.0
HELM=v4.3.1
AGNHOST=2.56
BUSYBOX=1.37.0-1
PAUSE=3.10.1
export KUBERNETES ETCD PROVISIONER ATTACHER RESIZER SNAPSHOTTER HELM AGNHOST BUSYBOX PAUSE

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}
