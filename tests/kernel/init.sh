#!/bin/bash
# The first process of a test machine (see vm): the host's root folder, which is mounted read-only, gets a
# layer in memory over it; then the job runs, says how it went, and the machine is switched off.
#
# From the kernel's command line, as environment: PBD_JOB, a script; PBD_MODULES, its /lib/modules.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/dev/shm PYTHONDONTWRITEBYTECODE=1

off() {
    echo "vm-exit: $1"
    sync
    echo o >/proc/sysrq-trigger
    sleep 10
}

prepare() {
    local release new=/mnt/new
    mount -t proc proc /proc
    mount -t tmpfs -o size=90% tmpfs /mnt
    mkdir /mnt/up /mnt/work $new
    release=$(uname -r)
    insmod "$PBD_MODULES/$release/kernel/fs/overlayfs/overlay.ko"
    mount -t overlay -o "lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work" overlay $new || return
    mount -t proc proc $new/proc
    mount -t sysfs sysfs $new/sys
    mount -t devtmpfs dev $new/dev
    mkdir -p $new/dev/shm $new/dev/pts
    mount -t devpts devpts $new/dev/pts
    mount -t tmpfs tmpfs $new/dev/shm
    mount -t tmpfs tmpfs $new/run
    mkdir -p $new/lib/modules
    cp -r "$PBD_MODULES/$release" $new/lib/modules/
    chroot $new modprobe -a ext4 xfs # the kernel itself would look for them outside of the layer
    ln -sf /proc/self/fd $new/dev/fd
    ip link set lo up
    echo 1 >/proc/sys/kernel/printk # the console is for the job's words; dmesg has the kernel's
}

prepare || off 1
echo "vm-begin: Linux $(uname -r), $(nproc) CPUs, up $(cut -d' ' -f1 /proc/uptime) s"
chroot /mnt/new /bin/bash "$PBD_JOB" </dev/null
off $?
