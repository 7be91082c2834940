#!/bin/bash
# Two pools of one name and one run folder: ids are equal, so sockets, locks and journals would be. The folder belongs to
# one of them as long as something of it is alive there.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands qemu-io jq
/usr/bin/python3 -c "import nbd" 2>/dev/null || skip "needs Python's libnbd"

run=$WORK/run
ctl() { portalctl --store "file://$WORK/$1" --run-dir "$run" --timeout 20s "${@:2}" </dev/null; }
serving() { # pool, more options: the command
    COMMAND=(portalbd serve --store "file://$WORK/$1" --run-dir "$run" --state-dir "$WORK/state"
        --listen "unix:$WORK/$1.sock" "${@:2}")
}
connects() {
    /usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1" 2>/dev/null
}
serve() {
    serving "$@"
    start "$1" "${COMMAND[@]}"
    DAEMON=$PID
    wait_for 10 connects "$WORK/$1.sock"
}
exits() { # code, command: it must end with this code
    local status=0
    timeout 20 "${@:2}" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/out" "$WORK/err")"
}
ctl_exits() { # code, pool, arguments of portalctl
    exits "$1" portalctl --store "file://$WORK/$2" --run-dir "$run" --timeout 20s "${@:3}" </dev/null
}
refused() { # pool, what stands in the way, more options: it does not start, and names both stores
    serving "$1" "${@:3}"
    exits 1 "${COMMAND[@]}"
    grep -q "file://$WORK/one.*file://$WORK/two\|file://$WORK/two.*file://$WORK/one" "$WORK/err" &&
        grep -q -- "--pool" "$WORK/err" && grep -q "$2" "$WORK/err" || fail "unclear: $(cat "$WORK/err")"
}
io() { # pool, volume, qemu-io commands
    local commands=() command
    for command in "${@:3}"; do commands+=(-c "$command"); done
    qemu-io -f raw "nbd+unix:///$2?socket=$WORK/$1.sock" "${commands[@]}" >"$WORK/io" || { cat "$WORK/io"; return 1; }
    ! grep -qi 'fail\|error' "$WORK/io" || { cat "$WORK/io"; return 1; }
}
# A daemon that is killed with a write in its journal that its store does not have: while its client is there, because a
# last client that goes has everything stored.
die_with_write() { # pool
    io "$1" v 'write -P 1 0 64k' flush
    /usr/bin/python3 - "$WORK/$1.sock" "$DAEMON" <<'END'
import os, signal, sys
import nbd
client = nbd.NBD()
client.connect_uri(f"nbd+unix:///v?socket={sys.argv[1]}")
client.pwrite(b"\x33" * 65536, 65536)
os.kill(int(sys.argv[2]), signal.SIGKILL)
END
    stop "$DAEMON" KILL
}
owner() { jq -r .uuid "$1/pool-default"; }
uuid() { ctl "$1" -o json pool check | jq -r .uuid; }

for pool in one two; do
    ctl $pool pool create >/dev/null
    ctl $pool volume create v --size 4M >/dev/null
done
id=$(ctl one -o json volume show v | jq -r .id)
[ "$id" = "$(ctl two -o json volume show v | jq -r .id)" ] || fail "the ids differ: this tests nothing"

step "a write in the journal of a daemon that was killed: the other pool does not get there"
serve one
[ "$(stat -c %a "$run/pool-default")" = 644 ] && [ "$(owner "$run")" = "$(uuid one)" ] || fail "whose is $run?"
refused two 'a daemon of it runs'
die_with_write one
refused two "$id.journal"
exits 1 portalbd attach --store "file://$WORK/two" --run-dir "$run" --state-dir "$WORK/state" --volume "$id"
[ -e "$run/journals/$id.journal" ] && [ ! -e "$WORK/state/set-aside" ] || fail "the journal was taken away"

step "another name is in nobody's way"
serve two --pool other
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "exit code $STATUS"

step "the first has its write, and makes room when it has ended"
serve one
io one v 'read -P 51 64k 64k'
stop "$DAEMON"
serve two
[ "$(owner "$run")" = "$(uuid two)" ] || fail "$run is still the first pool's"
refused one 'a daemon of it runs'
io two v 'write -P 2 0 64k' flush
stop "$DAEMON" KILL # nothing that is not in the store: an empty journal is no obstacle
serve one
io one v 'read -P 1 0 64k'
stop "$DAEMON"

step "a folder of journals that two run folders share"
serve one --journal-dir "$WORK/journals"
die_with_write one
refused two "$id.journal" --run-dir "$WORK/run2" --journal-dir "$WORK/journals"
serve one --journal-dir "$WORK/journals"
io one v 'read -P 51 64k 64k'
stop "$DAEMON"

step "a pool that is deleted and made again"
serve one
die_with_write one
ctl one pool delete --yes >/dev/null
ctl one pool create >/dev/null
ctl one volume create v --size 4M >/dev/null
serve one
[ "$(owner "$run")" = "$(uuid one)" ] || fail "$run is still the old pool's"
io one v 'read -P 0 0 4M'
stop "$DAEMON"

step "two at once: one of them"
for round in 1 2 3 4 5 6; do
    run=$WORK/both$round
    rm -f "$WORK"/*.sock
    pids=()
    for pool in one two; do
        serving $pool
        start $pool-$round "${COMMAND[@]}"
        pids+=("$PID")
    done
    wait_for 10 eval "[ \$(jobs -rp | grep -c '^${pids[0]}\$\|^${pids[1]}\$') -eq 1 ]"
    winner=one
    [ "$(owner "$run")" = "$(uuid one)" ] || winner=two
    wait_for 10 connects "$WORK/$winner.sock"
    for PID in "${pids[@]}"; do stop "$PID"; done
done
