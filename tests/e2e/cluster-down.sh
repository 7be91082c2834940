#!/bin/bash
# Ends the cluster, in whatever state it is, and removes what it left:
#     cluster-down.sh [--quiet] [--keep-logs]
# The end of the node's PID 1 takes every process along; node-keeper.sh then removes loop devices and lets go of the
# mounts. Cgroups are left to be removed here.
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

if pid=$(node_pid); then
    kill -KILL "$pid"
    [ -n "$quiet" ] || echo "cluster-down: the cluster is gone"
fi
mkdir -p "$E2E_CACHE"
exec 8>"$NODE_LOCK"
flock -w 120 8 || die "something of the node is left; see $LOGS/node.log"
exec 8>&-
left=$(cat "$CLUSTER/left" 2>/dev/null || true)
rm -f "$CLUSTER/node.pid"
for group in /sys/fs/cgroup/{,*/}{kubepods,k8s.io,portalbd}; do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
done
[ ! -d "$CLUSTER" ] || find "$CLUSTER" -mindepth 1 -maxdepth 1 ${keep_logs:+-not -name log} -exec rm -rf {} +
# Mount points on the machine's disk that the node needed; empty ones only.
rmdir /var/lib/kubelet /var/lib/portalbd 2>/dev/null || true
[ -z "$left" ] || die "cannot be removed: $left"
