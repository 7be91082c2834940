#!/bin/busybox sh
# shellcheck shell=dash
#
# The first process under qemu: mounts the host's root folder, read-only, and goes on there with
# init.sh, whose path the kernel was given as PBD_INIT.
/bin/busybox mkdir -p /proc /root
/bin/busybox mount -t proc proc /proc
while read -r module; do
    /bin/busybox insmod "/modules/$module"
done </modules/order
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /root
exec /bin/busybox switch_root /root "$PBD_INIT"
