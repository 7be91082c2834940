#!/bin/bash
# What `portalbd serve` hands out under a name: what the name means now, only while the store is away what it meant, never
# a volume that is out of use.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdinfo qemu-io jq

RUN=$WORK/run
store=(--store "file://$WORK/pool" --run-dir "$RUN" --state-dir "$WORK/state")
ctl() { portalctl "${store[@]:0:4}" --timeout 20s "$@"; }
uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$WORK/sock"; }
connects() { /usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"; }
serve() { # more arguments; the pid is in $DAEMON
    start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock" "$@"
    DAEMON=$PID
    wait_for 10 connects "$WORK/sock"
}
io() { # export, qemu-io commands
    local commands=() command
    [[ $1 != *@* ]] || commands=(-r)
    for command in "${@:2}"; do commands+=(-c "$command"); done
    timeout 30 qemu-io -f raw "$(uri "$1")" "${commands[@]}" >"$WORK/io" 2>&1 || { cat "$WORK/io"; return 1; }
    ! grep -qiE 'fail|error|mismatch' "$WORK/io" || { cat "$WORK/io"; return 1; }
}
hold() { # export: a client that has it and says nothing; ends by itself when the server closes the connection
    rm -f "$WORK/held"
    start holder /usr/bin/python3 -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 0)
open(sys.argv[2], "w").close()
while not (h.aio_is_closed() or h.aio_is_dead()):
    try:
        h.poll(1000)
    except nbd.Error:
        break
' "$(uri "$1")" "$WORK/held"
    HOLDER=$PID
    wait_for 10 test -e "$WORK/held"
}
id_of() { nbdinfo --json "$(uri "$1")" | jq -r '.exports[0].description'; }
has_ended() { ! kill -0 "$1" 2>/dev/null; }

ctl pool create >/dev/null
ctl volume create v --size 8M >/dev/null
serve

step "a snapshot that was made again under its name, while a client has the old one"
io v 'write -P 1 0 1M' flush
ctl snapshot create v s >/dev/null
hold v@s
io v 'write -P 2 0 1M' flush
ctl snapshot delete v@s >/dev/null
! nbdinfo "$(uri v@s)" >"$WORK/out" 2>&1 || fail "a deleted snapshot is served"
id=$(ctl -o json snapshot create v s | jq -r .id)
[ "$(id_of v@s)" = "$id" ] || fail "v@s is $(id_of v@s), not $id"
io v@s 'read -P 2 0 1M'
! has_ended "$HOLDER" || fail "the client of the old snapshot was cut off"
stop "$HOLDER"
io v@s 'read -P 2 0 1M'

step "a volume that was made again under its name, while a client has the old one"
hold v
ctl volume delete v --force >/dev/null
! nbdinfo "$(uri v)" >"$WORK/out" 2>&1 || fail "a deleted volume is served"
id=$(ctl -o json volume create v --size 16M | jq -r .id)
[ "$(id_of v)" = "$id" ] || fail "v is $(id_of v), not $id"
[ "$(nbdinfo --size "$(uri v)")" = $((16 << 20)) ] || fail "the size is the deleted volume's"
io v 'read -P 0 0 1M' 'write -P 3 0 64k' flush
io v 'read -P 3 0 64k'
[ "$(ctl -o json volume show v | jq -r .id)" = "$id" ] || fail "another volume"
stop "$HOLDER"

step "a volume that is fenced: its clients are disconnected, the next gets it as it is now"
ctl volume create w --size 8M >/dev/null
hold w
idle=$HOLDER
thief=(--store "file://$WORK/pool" --run-dir "$WORK/run2" --state-dir "$WORK/state2" --node-id thief)
start thief portalbd serve "${thief[@]}" --steal --listen "unix:$WORK/thief"
wait_for 10 connects "$WORK/thief"
qemu-io -f raw "nbd+unix:///w?socket=$WORK/thief" -c 'write -P 5 0 64k' -c flush >/dev/null
stop "$PID"
[ "$STATUS" -eq 0 ] || fail "the thief ended with $STATUS"
! has_ended "$idle" || fail "an idle client was disconnected before anybody knew"
! io w 'write -P 6 0 64k' flush >"$WORK/out" || fail "a fenced daemon acknowledged a flush"
wait_for 10 has_ended "$idle"
io w 'read -P 5 0 64k' 'write -P 7 0 64k' flush
io w 'read -P 7 0 64k'
stop "$DAEMON"
[ "$STATUS" -eq 4 ] || fail "ended with $STATUS"

step "a node that cannot have a volume does not take it"
ctl volume create x --size 8M >/dev/null
ctl snapshot create x s >/dev/null
is_free() { # nobody has it, and the store knows
    ctl -o json volume show "$1" | jq -e '.node == "" and .closed' >/dev/null || fail "$(ctl -o json volume show "$1")"
    ctl snapshot restore "$1@s" --yes >/dev/null || fail "restore"
}
for folders in "--run-dir /proc/nope" "--run-dir $RUN --journal-dir /proc"; do
    status=0
    # shellcheck disable=SC2086
    timeout 20 portalbd serve --store "file://$WORK/pool" $folders --listen "unix:$WORK/sock" 2>"$WORK/err" || status=$?
    [ "$status" -eq 1 ] || fail "$folders: exit code $status"
    grep -c 'level=error.*does not start.*/proc' "$WORK/err" | grep -qx 1 || fail "$(cat "$WORK/err")"
done
serve
rm -rf "$RUN"
ln -s nowhere "$RUN" # ENOENT
! nbdinfo "$(uri x)" >"$WORK/out" 2>"$WORK/err" || fail "served without a lock"
! grep -q 'no export named' "$WORK/err" || fail "$(cat "$WORK/err")"
rm "$RUN"
is_free x
io x 'write -P 1 0 64k' flush
control=$(find "$RUN" -name '*.sock')
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"
mkdir -p "$control/in-the-way"
serve
! nbdinfo "$(uri x)" >"$WORK/out" 2>&1 || fail "served without a control socket"
is_free x
rm -r "$control"
io x 'read -P 0 0 64k' # restored
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"

step "the store is away: who comes back gets its volume"
start_s3
start_faultproxy
RUN=$WORK/run-s3
store=(--store s3://bucket/p --run-dir "$RUN" --state-dir "$WORK/state")
ctl pool create >/dev/null
ctl volume create a --size 8M >/dev/null
serve --stop-limit 1s
hold a
io a 'write -P 1 0 64k' flush
proxy_set error=1
io a 'read -P 1 0 64k'
io a 'read -P 1 0 64k'
proxy_set error=0
io a 'write -P 2 0 64k' flush
ctl volume delete a --force >/dev/null
! nbdinfo "$(uri a)" >"$WORK/out" 2>&1 || fail "a store that says there is no such volume is not believed"
stop "$HOLDER"
stop "$DAEMON"

step "a daemon that died: the next one stores what was acknowledged, without being asked"
unsaved() { # byte: acknowledged, and in the journal alone; the daemon is killed afterwards, by $2
    start writer /usr/bin/python3 -c '
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(bytes([int(sys.argv[2])]) * 65536, 65536)
open(sys.argv[3], "w").close()
time.sleep(60)
' "$(uri a)" "$1" "$WORK/written"
    wait_for 10 test -e "$WORK/written"
    rm "$WORK/written"
    stop "$DAEMON" "${2:-KILL}"
    ENDED=$STATUS
    stop "$PID"
}
is_stored() { # byte
    [ -z "$(find "$RUN" -name 'pv-*')" ] || fail "left in the run folder: $(find "$RUN")"
    ctl -o json volume show a | jq -e '.node == "" and .closed' >/dev/null || fail "$(ctl -o json volume show a)"
    serve
    io a "read -P $1 64k 64k"
    stop "$DAEMON"
}
rm -rf "$RUN"
ctl volume create a --size 8M >/dev/null
ctl volume create b --size 8M >/dev/null
serve
unsaved 3
find "$RUN" -name '*.journal' | grep -q . || fail "there is no journal"
serve b # a daemon of other volumes leaves it alone
io b 'read 0 4k'
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"
find "$RUN" -name '*.journal' | grep -q . || fail "another daemon took it"
serve
wait_for 10 bash -c "portalctl ${store[*]:0:4} -o json status a | jq -e '.unflushed_bytes == 0'"
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"
is_stored 3

step "... and says so when it could not"
serve
unsaved 4
proxy_set error=1
start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock" # it finds no pool
sleep 0.5
stop "$PID"
[ "$STATUS" -eq 3 ] || fail "ended with $STATUS"
proxy_set error=0 delay=1s
: >"$WORK/portalbd.log"
serve --stop-limit 1s
proxy_set error=1 delay=0s
stop "$DAEMON"
[ "$STATUS" -eq 3 ] || fail "ended with $STATUS"
id=$(proxy_set error=0 && ctl -o json volume show a | jq -r .id)
grep -q "level=error .*the volume is not closed.*volume=$id" "$WORK/portalbd.log" || fail "$(cat "$WORK/portalbd.log")"
serve
stop "$DAEMON" # at once: the end waits for it
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"
is_stored 4

step "... also what a daemon could not store at its end"
serve --stop-limit 1s
io a 'read -P 4 64k 64k'
proxy_set error=1
unsaved 5 TERM
[ "$ENDED" -eq 3 ] || fail "ended with $ENDED"
proxy_set error=0
serve
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS"
is_stored 5
