#!/bin/bash
# Devices of the nbd backend on a real kernel, in a machine of its own (vm, timeout: 7200):
#
#     tests/kernel/test_kernel.sh uml|qemu suite      the attach backend by itself: tests/conformance/attach
#     tests/kernel/test_kernel.sh uml|qemu devices    volumes, by agent and daemon: nbd_device.py
#     tests/kernel/test_kernel.sh uml|qemu survival   a mounted filesystem while everything of ours dies: survive.py
#
# How often what dies: KILLS, UPGRADES, AGENT_KILLS, ALL_KILLS, STOP_S (2, 1, 1, 1, 2). Needs root, apt-get and, once,
# Debian's packages.
set -euo pipefail

kind=$1 what=$2
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "${PORTALBD_BUILD:-$here/../../build}")
export PORTALBD_BUILD=$build

skip() {
    echo "$*"
    exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root"
command -v apt-get >/dev/null || skip "needs Debian's packages, and there is no apt-get"
if [ "$kind" = uml ] && ldd "$build/bin/portalbd" | grep -q 'lib[at]san'; then
    skip "user-mode Linux has not the address space that sanitizers want"
fi
memory_kib=$((2 * 1024 * 1024))
[ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -ge $memory_kib ] || skip "needs 2 GiB of memory"
if [ "$kind" = uml ] && [ "$(df --output=avail /dev/shm | tail -n 1)" -lt $memory_kib ]; then
    skip "needs 2 GiB in /dev/shm"
fi
why=$("$here/get-kernels.sh" "$kind" 2>&1 >/dev/null | tail -n 1) || skip "the packages for $kind cannot be had: $why"

# Emulation is slower than this machine by so much.
declare -A slower=([uml]=1 [qemu]=3)
case $what in
suite)
    seconds=240
    # shellcheck disable=SC2016  # for the machine's shell
    command=(bash -c 'cd "$1" && ./test_attach nbd && ./test_attach_together nbd' bash "$build/tests/conformance/attach")
    ;;
devices)
    seconds=200
    command=(python3 "$here/nbd_device.py")
    ;;
survival)
    events=$((${KILLS:-2} + ${UPGRADES:-1} + ${AGENT_KILLS:-1} + ${ALL_KILLS:-1}))
    seconds=$((150 + 2 * (events * 8 + ${STOP_S:-2})))
    command=(python3 "$here/survive.py" --backend nbd)
    ;;
esac
status=0
"$here/vm" "$kind" $((seconds * slower[$kind])) "${command[@]}" || status=$?
[ $status != 125 ] || skip "no machine starts here; tests/kernel/vm $kind 60 true shows why"
exit $status
