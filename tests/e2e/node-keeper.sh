#!/bin/bash
# Keeps the node's net and mount namespaces, in which cluster-up.sh starts it, until the node's PID 1 (node-init.sh) has
# ended, whoever ended it; then removes what belongs to no namespace: portalbd's loop devices, and those that the kubelet
# has over devices of mode Block. What it cannot remove stands in the file "left". Who wants to wait for it waits for the
# lock on file descriptor 8.
#
# Other tests of the machine have loop devices too. The sequence number of a disk says whether it is still the same.
set -uo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

sequence_of() { # loop device
    cat "/sys/block/$1/diskseq" 2>/dev/null || echo 0
}

newest_sequence() {
    cat /sys/block/*/diskseq | sort -n | tail -n 1
}

# Is this loop device one over a file of the node? The kubelet's are over its mount points. A daemon's file was opened in
# its agent's mount namespace, which is gone: its name is "/"; and so is the daemon, so that nothing can be said of it.
is_ours() { # loop device
    local file
    file=$(cat "/sys/block/$1/loop/backing_file" 2>/dev/null) || return 1
    if [ "$file" = / ]; then
        [ -z "$(losetup --noheadings --output BACK-INO "/dev/$1" 2>/dev/null | tr -d ' ')" ]
    else
        [[ $file = /var/lib/kubelet/* ]] && grep -qF " $file " /proc/self/mountinfo
    fi
}

# Those of the node, made after a sequence number: a line with name and number for each.
loops_since() { # sequence number
    local device
    for device in /sys/block/loop*; do
        device=${device##*/}
        if [ "$(sequence_of "$device")" -gt "$1" ] && is_ours "$device"; then
            echo "$device $(sequence_of "$device")"
        fi
    done
}

unmount_all_of() { # loop device
    awk -v source="/dev/$1" '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 2) == source) print $5 }' \
        /proc/self/mountinfo | tac | while read -r point; do umount -l "$point"; done
}

# One may lie over another: in any order, until none is left.
# shellcheck disable=SC2317  # "within" calls it
all_detached() { # lines of loops_since
    local device sequence left=0
    while read -r device sequence; do
        if [ -d "/sys/block/$device/loop" ] && [ "$(sequence_of "$device")" = "$sequence" ]; then
            left=1
            losetup -d "/dev/$device" 2>/dev/null
        fi
    done <<<"$1"
    return "$left"
}

main() {
    local begin loops device sequence
    begin=$(newest_sequence)
    unshare --pid --fork --kill-child "$E2E/node-init.sh" 8>&-
    # What lies there is of a PID namespace that is gone.
    mount -t proc proc /proc
    loops=$(loops_since "$begin")
    while read -r device sequence; do
        [ -z "$device" ] || unmount_all_of "$device"
    done <<<"$loops"
    [ -z "$loops" ] || within 20 all_detached "$loops" || echo "$loops" >"$CLUSTER/left"
}

# Read to its end before it begins: it runs for long.
main
exit
