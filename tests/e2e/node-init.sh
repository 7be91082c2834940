#!/bin/bash
# PID 1 of the node, in net, mount and PID namespaces of its own (node-keeper.sh is in the first two as well): prepares
# them, says so, and becomes "pause".
#   mounts: / is shared here, as propagation to pods wants it, and the machine's own mounts stay untouched; /run is a
#           tmpfs, and what nodes keep on their disk lies in the cluster's folder;
#   net:    no way out; a node address on a veth pair (not every kernel has dummy devices).
# All of it ends with this process.
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

# /proc is still the machine's: this is our number out there, which exec keeps.
read -r pid _ </proc/self/stat
mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
for folder in kubelet portalbd; do
    mkdir -p "$CLUSTER/var-lib/$folder" "/var/lib/$folder"
    mount --bind "$CLUSTER/var-lib/$folder" "/var/lib/$folder"
    mount --make-private "/var/lib/$folder"
    mount --make-shared "/var/lib/$folder"
done
ip link set lo up
ip link add node0 type veth peer name node0p
ip addr add "$NODE_IP/24" dev node0
ip link set node0 up
ip link set node0p up
ip route add default dev node0
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
echo "$pid" >"$CLUSTER/node.pid"
exec "$LINKS/pause"
