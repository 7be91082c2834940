#!/bin/bash
# timeout: 480
#
# csi-sanity (github.com/kubernetes-csi/csi-test v5) against the whole: portalbd-csi, node-agent and
# portalbd on a file:// pool; volumes as filesystems and as block devices, with one CSI endpoint and
# with the controller on one of its own. 0 specs may fail, and exactly those of sanity-skips.txt may
# be skipped. SANITY_ONLY=mount-one (...) runs one of the four.
set -euo pipefail
. "$(dirname "$0")/../integration/lib.sh"

need_fuse
need_commands mkfs.ext4 mkfs.xfs losetup
[ -x "$TOOLS/csi-sanity" ] || skip "needs $TOOLS/csi-sanity (make deps gets it)"

CAP_SYS_RESOURCE=$((1 << 24))
effective=$((16#$(sed -n 's/^CapEff:\s*//p' /proc/self/status)))
# A mounted ext4 can be grown with CAP_SYS_RESOURCE only; xfs wants no more than root.
if ((effective & CAP_SYS_RESOURCE)); then FSTYPE=ext4; else FSTYPE=xfs; fi

# serve NAME MODE: a driver on $WORK/run/NAME.sock.
serve() {
    start "$1" portalbd-csi --mode "$2" --endpoint "unix://$RUN/$1.sock" --pools "$RUN/pools.conf" \
        --cluster-id sanity --agent "unix://$RUN/agent.sock"
    wait_for 20 test -S "$RUN/$1.sock"
}

# shellcheck disable=SC2317 # called by wait_for
registered() {
    compgen -G "$RUN/pool/nodes/*/*.json"
}

# run_sanity NAME mount|block one|split
run_sanity() {
    local name=$1 access=$2 endpoints=$3 pids=() arguments pid
    RUN=$WORK/$name
    mkdir -p "$RUN/pool" "$RUN/agent"
    printf '[main]\nurl = file://%s/pool\n' "$RUN" >"$RUN/pools.conf"
    chmod 600 "$RUN/pools.conf"
    printf 'pool: main\ncsi.storage.k8s.io/fstype: %s\n' "$FSTYPE" >"$RUN/class.yaml"

    if [ "$endpoints" = one ]; then
        serve "$name" all
        pids+=("$PID")
        arguments=("--csi.endpoint=unix://$RUN/$name.sock")
    else
        serve "$name-ctl" controller
        pids+=("$PID")
        serve "$name-node" node
        pids+=("$PID")
        arguments=("--csi.endpoint=unix://$RUN/$name-node.sock"
            "--csi.controllerendpoint=unix://$RUN/$name-ctl.sock")
    fi
    start "$name-agent" node-agent --endpoint "unix://$RUN/agent.sock" --node-id "node-$name" \
        --pools "$RUN/pools.conf" --run-dir "$RUN/agent"
    pids+=("$PID")
    wait_for 20 test -S "$RUN/agent.sock"
    wait_for 20 registered

    step "$name: $access, $endpoints endpoint(s), $FSTYPE"
    csi-sanity "${arguments[@]}" --csi.mountdir="$RUN/mount" --csi.stagingdir="$RUN/staging" \
        --csi.testvolumesize=$((1 << 30)) --csi.testvolumeexpandsize=$((2 << 30)) \
        --csi.testvolumeaccesstype="$access" --csi.testvolumeparameters="$RUN/class.yaml" \
        --ginkgo.v --ginkgo.no-color --ginkgo.junit-report="$RUN/report.xml" \
        >"$WORK/$name-sanity.log" 2>&1 || SANITY_FAILED=1
    for pid in "${pids[@]}"; do
        stop "$pid"
        [ "$STATUS" -eq 0 ] || fail "$name: a server ended with $STATUS"
    done
    ! grep -q " $RUN/" /proc/mounts || fail "$name: mounts are left"
    ! grep -qs "^$RUN/" /sys/block/loop*/loop/backing_file || fail "$name: loop devices are left"
    REPORTS+=("$RUN/report.xml")
}

SANITY_FAILED=0
REPORTS=()
for access in mount block; do
    for endpoints in one split; do
        [ "${SANITY_ONLY:-$access-$endpoints}" = "$access-$endpoints" ] || continue
        run_sanity "$access-$endpoints" "$access" "$endpoints"
    done
done
"$(dirname "$0")/sanity_report.py" "$(dirname "$0")/sanity-skips.txt" "${REPORTS[@]}" ||
    SANITY_FAILED=1
exit $SANITY_FAILED
