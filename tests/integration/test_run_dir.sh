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
    local words
    serving "$1" "${@:3}"
    exits 1 "${COMMAND[@]}"
    for words in "file://$WORK/one" "file://$WORK/two" "--pool" "$2"; do
        grep -qF -e "$words" "$WORK/err" || fail "unclear, without $words: $(cat "$WORK/err")"
    done
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
[ "$(stat -c %a "$run/pool-default") $(owner "$run")" = "644 $(uuid one)" ] || fail "whose is $run?"
refused two 'a daemon of it runs'
die_with_write one
refused two "$id.journal"
exits 1 portalbd attach --store "file://$WORK/two" --run-dir "$run" --state-dir "$WORK/state" --volume "$id"
[ -e "$run/journals/$id.journal" ] || fail "the journal was taken away"
[ ! -e "$WORK/state/set-aside" ] || fail "the journal was set aside"

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
ctl one pool delete --yes --force >/dev/null
ctl one pool create >/dev/null
ctl one volume create v --size 4M >/dev/null
serve one
[ "$(owner "$run")" = "$(uuid one)" ] || fail "$run is still the old pool's"
io one v 'read -P 0 0 4M'
stop "$DAEMON"

step "commands for a pool whose run folder this is not: the store is enough"
json() { ctl "$@" -o json; }
for pool in one two; do ctl $pool volume create x --size 4M >/dev/null; done
serve one
io one x 'write -P 7 0 64k' flush
ctl_exits 0 two snapshot create x s
[ "$(json two snapshot list | jq -c '[.[].name]')" = '["x@s"]' ] || fail "the snapshot is not in the second pool"
[ "$(json one snapshot list)" = '[]' ] || fail "the snapshot is in the first pool"
ctl_exits 0 two volume grow x 8M
[ "$(json two volume show x | jq .size_bytes)/$(json one volume show x | jq .size_bytes)" = 8388608/4194304 ] ||
    fail "the wrong volume grew"
ctl_exits 0 two volume clone x copy
ctl_exits 0 two gc x
ctl_exits 0 two snapshot restore x@s --yes
ctl_exits 0 two volume delete x
[ "$(json two volume list | jq -c '[.[].name] | sort')" = '["copy","v"]' ] || fail "the volume was not deleted"
ctl_exits 5 one volume delete x # its own is served
ctl_exits 0 one snapshot create x own

step "commands that only a daemon can answer, or attach: refused with both stores' names"
for command in "status x" "stats x" "flush x" "attach copy"; do
    # shellcheck disable=SC2086
    ctl_exits 5 two $command
    grep -q "file://$WORK/one.*file://$WORK/two" "$WORK/err" || fail "unclear: $(cat "$WORK/err")"
done
[ ! -e "$run/pools.conf" ] || fail "an agent was told of the second pool"
ctl_exits 0 one status x
ctl_exits 0 one flush x
exits 0 portalctl --run-dir "$run" flush x # nothing is said of a store
ln -s one "$WORK/same"
ctl_exits 0 same flush x # the same pool by another path
ctl_exits 3 none flush none
mv "$WORK/one" "$WORK/away"
ctl_exits 0 one status x # the store need not answer
mv "$WORK/away" "$WORK/one"
stop "$DAEMON"

step "daemons of two pools of different names, one run folder, volumes of one name"
serve one
serving two --pool other
start two "${COMMAND[@]}"
wait_for 10 connects "$WORK/two.sock"
for pool in one two; do io $pool v 'read 0 4k'; done
status() { portalctl --run-dir "$run" -o json "$@" status v | jq -r .volume; }
[[ $(status --pool other) == *.other && $(status --pool default) == *.default ]] || fail "--pool does not tell them apart"
[[ $(status --store "file://$WORK/one") == *.default ]] || fail "--store does not tell them apart"
stop "$PID"
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
