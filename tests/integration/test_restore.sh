#!/bin/bash
# portalctl snapshot restore as a user meets it: who is asked, who is refused, what the volume holds afterwards, and
# that later snapshots are still there to go forward again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdcopy qemu-io jq script

store=(--store "file://$WORK/pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@" </dev/null; }
uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$WORK/sock"; }
connects() {
    /usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"
}
serve() {
    start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock" "$@"
    DAEMON=$PID
    wait_for 10 connects "$WORK/sock"
}
exits() { # code, command: it must end with this code
    local status=0
    "${@:2}" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/err")"
}
io() {
    local commands=() command
    for command in "$@"; do commands+=(-c "$command"); done
    qemu-io -f raw "$(uri v)" "${commands[@]}" >"$WORK/io" || { cat "$WORK/io"; return 1; }
    ! grep -qiE 'fail|error|mismatch' "$WORK/io" || { cat "$WORK/io"; return 1; }
}
holds() { # snapshot: the volume holds what it does
    serve
    nbdcopy "$(uri v)" "$WORK/v.raw"
    nbdcopy "$(uri "v@$1")" "$WORK/s.raw"
    stop "$DAEMON"
    cmp "$WORK/v.raw" "$WORK/s.raw" || fail "the volume does not hold what v@$1 does"
}

step "a volume with two snapshots and more behind them"
exits 0 ctl pool create
exits 0 ctl volume create v --size 32M
exits 0 ctl volume create w --size 32M
serve
io 'write -P 0x11 0 4M' 'write -P 0x12 8M 64k' flush
exits 0 ctl snapshot create v early
io 'write -P 0x21 1M 4M' 'write -z -u 8M 1M' 'write -P 0x22 30M 1M' flush
exits 0 ctl snapshot create v late
io 'write -P 0x31 0 16M' flush

step "refused: in use, nobody to ask, no such thing"
exits 5 ctl snapshot restore v@early --yes
grep -q "published to node" "$WORK/err" || fail "$(cat "$WORK/err")"
stop "$DAEMON"
exits 2 ctl snapshot restore v@early
grep -q -- "what was written since is lost.*--yes" "$WORK/err" || fail "$(cat "$WORK/err")"
exits 3 ctl snapshot restore v@none --yes
exits 3 ctl snapshot restore v --yes
exits 2 ctl snapshot restore

step "asked on a terminal"
asked() { # answer, exit code
    local status=0
    printf '%s\n' "$1" | script -qec "portalctl --store file://$WORK/pool --run-dir $WORK/run snapshot restore v@early" \
        /dev/null >"$WORK/out" || status=$?
    [ "$status" -eq "$2" ] || fail "exit code $status, not $2: $(cat "$WORK/out")"
    grep -q "'v' goes back to 'v@early' of 20" "$WORK/out" || fail "$(cat "$WORK/out")"
}
asked n 2
asked y 0
holds early

step "forward to the later one, and back"
exits 0 ctl snapshot restore v@late --yes
holds late
[ "$(ctl -o json snapshot list v | jq length)" = 2 ] || fail "a snapshot went"
exits 0 ctl -o json snapshot restore v@early --yes
jq -e '.name == "v" and .state == "ready" and .closed and .node == ""' "$WORK/out" >/dev/null || fail "$(cat "$WORK/out")"
holds early

step "writes go on behind it, also over a daemon that is killed"
serve
io 'write -P 0x41 0 1M' flush 'write -P 0x42 20M 1M'
stop "$DAEMON" KILL
serve
io 'read -P 0x41 0 1M' 'read -P 0x11 1M 3M' 'read -P 0 4M 4M' 'read -P 0x12 8M 64k' 'read -P 0x42 20M 1M' \
    'read -P 0 30M 1M'
stop "$DAEMON"
exits 0 ctl snapshot delete v@early
exits 0 ctl snapshot restore v@late --yes
exits 0 ctl snapshot delete v@late
exits 0 ctl gc
serve
io 'read -P 0x11 0 1M' 'read -P 0x21 1M 4M' 'read -P 0 5M 25M' 'read -P 0x22 30M 1M'
stop "$DAEMON"

step "a snapshot outlives its volume, but has nothing to go back into"
exits 0 ctl snapshot create v last
exits 0 ctl volume delete v
exits 3 ctl snapshot restore v@last --yes
grep -q "volume clone" "$WORK/err" || fail "$(cat "$WORK/err")"
