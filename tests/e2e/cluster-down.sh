#!/bin/bash
# Ends the cluster, in whatever state it is, and removes what it left:
#     cluster-down.sh [--quiet] [--keep-logs]
# The end of the node's PID 1 takes every process and mount along; loop devices and cgroups belong to no namespace.
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

keep_logs='' quiet=''
for option in "$@"; do
    case $option in
    --keep-logs) keep_logs=1 ;;
    --quiet) quiet=1 ;;
    *) die "no such option: $option" ;;
    esac
done

# Every process in the node's PID namespace, by its number out here.
processes() { # namespace
    local folder
    for folder in /proc/[0-9]*; do
        [ "$(readlink "$folder/ns/pid" 2>/dev/null)" = "$1" ] && echo "${folder#/proc/}"
    done
    true
}

# Loop devices whose files lie on FUSE mounts that only this node has; other tests of the machine have loop devices too.
loops() { # namespace
    local pid own
    own=$(for pid in $(processes "$1"); do
        awk '/ - fuse\.portalbd / { print $3 }' "/proc/$pid/mountinfo" 2>/dev/null || true
    done | sort -u)
    [ -z "$own" ] || losetup --noheadings --output NAME,BACK-MAJ:MIN | awk -v own="$own" '
        BEGIN { split(own, list, "\n"); for (i in list) mine[list[i]] = 1 } mine[$2] { print $1 }'
}

all_gone() { # namespace
    [ -z "$(processes "$1")" ]
}

detached() { # device
    losetup -d "$1" 2>/dev/null || true
    ! losetup "$1" >/dev/null 2>&1
}

if pid=$(node_pid); then
    namespace=$(readlink "/proc/$pid/ns/pid")
    devices=$(loops "$namespace")
    kill -KILL "$pid"
    within 30 all_gone "$namespace" || die "processes of the node do not end: $(processes "$namespace" | tr '\n' ' ')"
    for device in $devices; do
        within 15 detached "$device" || die "$device stays"
    done
    [ -n "$quiet" ] || echo "cluster-down: the cluster is gone"
fi
rm -f "$CLUSTER/node.pid"
for group in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/k8s.io /sys/fs/cgroup/*/k8s.io; do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
done
[ ! -d "$CLUSTER" ] || find "$CLUSTER" -mindepth 1 -maxdepth 1 ${keep_logs:+-not -name log} -exec rm -rf {} +
# Mount points on the machine's disk that the node needed; empty ones only.
rmdir /var/lib/kubelet /var/lib/portalbd 2>/dev/null || true
