#!/bin/bash
# portalbd and portalctl as a user meets them: exports, snapshots and clones while a volume is in use, growing, who may
# have a volume, ends of every kind, and the exit codes that say so.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdinfo nbdcopy qemu-io jq

store=(--store "file://$WORK/pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@"; }
uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$WORK/sock"; }
connects() { # a socket file may be a dead process's
    /usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"
}
serve() { # more arguments; the pid is in $DAEMON
    start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock" "$@"
    DAEMON=$PID
    wait_for 10 connects "$WORK/sock"
}
io() { # export, qemu-io commands
    local commands=() command
    [[ $1 != *@* ]] || commands=(-r)
    for command in "${@:2}"; do commands+=(-c "$command"); done
    qemu-io -f raw "$(uri "$1")" "${commands[@]}" >"$WORK/io" || { cat "$WORK/io"; return 1; }
    ! grep -qiE 'fail|error|mismatch' "$WORK/io" || { cat "$WORK/io"; return 1; }
}
exits() { # code, command: it must end with this code
    local status=0
    "${@:2}" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/err")"
}

step "portalctl on the store alone"
exits 1 ctl volume list
grep -q 'does not exist' "$WORK/err" || fail "$(cat "$WORK/err")"
exits 0 ctl pool create
exits 0 ctl pool create
exits 0 ctl pool check
exits 0 ctl volume create a --size 64M
exits 0 ctl volume create a --size 64M
exits 4 ctl volume create a --size 32M
exits 2 ctl volume create b
exits 2 ctl volume create
exits 2 ctl volume make
exits 2 ctl volume create b --size lots
exits 3 ctl volume show none
exits 3 ctl volume delete none
exits 3 ctl snapshot show none
exits 3 ctl status a
[ "$(ctl -o json volume list | jq -r '.[].name')" = a ] || fail "volume list"
[ "$(ctl -o json volume show a | jq .size_bytes)" = $((64 << 20)) ] || fail "volume show"
ctl volume show a | grep -q '^size_bytes  *64Mi$' || fail "the table of volume show"

step "serve: listening"
exits 1 portalbd serve "${store[@]}"
exits 1 portalbd serve "${store[@]}" --listen tcp:0.0.0.0:0
exits 1 portalbd serve --store "file://$WORK/pool" --run-dir "$WORK/run" --listen "unix:/nonexistent/x"
exits 2 portalbd serve --no-such-option
exits 2 portalbd attach --fuse-fd 3
exits 2 portalbd attach --volume x --fuse-fd 3 --nbd-fd 4
serve --http-address 127.0.0.1 --http-port 0 --listen tcp:localhost:0
HTTP=$(sed -n 's/.*healthz.* port=\([0-9]*\).*/\1/p' "$WORK/portalbd.log")
TCP=$(sed -n 's/.*address=tcp:localhost:0 port=\([0-9]*\).*/\1/p' "$WORK/portalbd.log")
[ "$(nbdinfo --size "nbd://localhost:$TCP/a")" = $((64 << 20)) ] || fail "over TCP"
nbdinfo --list "nbd://localhost:$TCP" >"$WORK/list"
grep -q 'export="a"' "$WORK/list" || fail "LIST"
! nbdinfo "$(uri none)" >"$WORK/out" 2>"$WORK/err" || fail "a volume that does not exist"
curl -fsS "http://127.0.0.1:$HTTP/healthz" | grep -q ok || fail "/healthz"

step "status, stats, flush through the control socket"
io a 'write -P 0x11 0 1M' flush 'write -P 0x12 1M 1M'
ctl -o json status a | jq -e '.health == "ok" and .name == "a" and .size_bytes == 67108864 and .last_write == 2' \
    >/dev/null || fail "$(ctl -o json status a)"
ctl flush a >/dev/null
ctl -o json status a | jq -e '.unflushed_bytes == 0 and .durable_write == .last_write' >/dev/null || fail "flush"
ctl status | grep -q ' a  *ok ' || fail "$(ctl status)"
ctl -o json stats a | jq -e '.device.write.requests == 2 and .device.write.bytes == 2097152 and .store.put.requests > 0' \
    >/dev/null || fail "$(ctl -o json stats a)"
curl -fsS "http://127.0.0.1:$HTTP/metrics" >"$WORK/metrics"
grep -q 'portalbd_device_bytes_total{.*op="write".*} 2097152' "$WORK/metrics" ||
    fail "/metrics"

step "snapshot, clone, grow while it is in use"
exits 0 ctl snapshot create a one
exits 0 ctl snapshot create a one
io a 'write -P 0x21 0 1M' flush
io a@one 'read -P 0x11 0 1M' 'read -P 0x12 1M 1M' 'read -P 0 2M 1M'
nbdinfo --is read-only "$(uri a@one)" || fail "a snapshot is not read-only"
exits 0 ctl volume clone a@one c --size 128M
exits 0 ctl volume clone a d
io c 'read -P 0x11 0 1M' 'read -P 0 100M 1M' 'write -P 0x31 0 64k' 'read -P 0x31 0 64k' 'read -P 0x11 64k 64k'
io d 'read -P 0x21 0 1M' 'read -P 0x12 1M 1M'
io a 'read -P 0x21 0 1M'
exits 0 ctl volume grow a 96M
[ "$(nbdinfo --size "$(uri a)")" = $((96 << 20)) ] || fail "grown"
io a 'write -P 0x41 95M 1M' flush 'read -P 0x41 95M 1M'
[ "$(ctl -o json snapshot list a | jq -r '.[].name')" = a@one ] || fail "snapshot list"
exits 2 ctl volume grow a 64M
grep -q 'do not shrink' "$WORK/err" || fail "$(cat "$WORK/err")"
exits 0 ctl volume grow a 96M
exits 5 ctl volume delete a
grep -q 'served on this node' "$WORK/err" || fail "$(cat "$WORK/err")"
exits 0 ctl snapshot delete a@one
exits 3 ctl snapshot show a@one

step "one daemon of a node has it: the lock"
exits 0 nbdinfo --size "$(uri a)"
start second portalbd serve "${store[@]}" --listen "unix:$WORK/second"
second=$PID
wait_for 10 connects "$WORK/second"
! nbdinfo --size "nbd+unix:///a?socket=$WORK/second" 2>"$WORK/err" || fail "two daemons served one volume"
grep -q 'another daemon of this node' "$WORK/err" "$WORK/second.log" || fail "$(cat "$WORK/err")"
stop "$second"
[ "$STATUS" -eq 0 ] || fail "the second daemon ended with $STATUS"

step "SIGTERM: clean end, all is there afterwards, and free for others"
io a 'write -P 0x51 8M 1M'
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "exit code $STATUS"
[ ! -e "$WORK/sock" ] || fail "the socket is left behind"
[ "$(find "$WORK/run" -type f)" = "$WORK/run/pool-default" ] || fail "left in the run folder: $(find "$WORK/run")"
ctl -o json volume show a | jq -e '.closed and .node == ""' >/dev/null || fail "$(ctl -o json volume show a)"
exits 0 ctl volume grow a 100M
serve a
io a 'read -P 0x51 8M 1M' 'read -P 0x41 95M 1M' 'read -P 0 99M 1M'
nbdinfo --list "nbd+unix:///?socket=$WORK/sock" | grep -c export= | grep -qx 1 || fail "LIST names others"
[ "$(nbdinfo --size "nbd+unix:///?socket=$WORK/sock")" = $((100 << 20)) ] || fail "the only volume is the default"
! nbdinfo "$(uri c)" >"$WORK/out" 2>&1 || fail "a volume that was not named is served"

step "kill -9: what was flushed is there, lock and socket are taken over"
io a 'write -P 0x61 9M 1M' flush
stop "$DAEMON" KILL
[ "$STATUS" -ne 0 ]
serve
io a 'read -P 0x61 9M 1M'

step "another node: refused, then --steal fences the first"
other=(--store "file://$WORK/pool" --run-dir "$WORK/run2" --node-id other)
start other portalbd serve "${other[@]}" --listen "unix:$WORK/other"
wait_for 10 connects "$WORK/other"
! nbdinfo --size "nbd+unix:///a?socket=$WORK/other" 2>/dev/null || fail "two nodes have it"
grep -q -- '--steal' "$WORK/other.log" || fail "$(cat "$WORK/other.log")"
stop "$PID"
/usr/bin/python3 - "$(uri a)" "$WORK" "${other[@]}" <<'PY'
import nbd, subprocess, sys, time, os, errno
uri, work, other = sys.argv[1], sys.argv[2], sys.argv[3:]
h = nbd.NBD()
h.connect_uri(uri)
h.pwrite(b"\x71" * 4096, 0)
h.flush()
thief = subprocess.Popen(["portalbd", "serve", *other, "--steal", "--listen", f"unix:{work}/thief"],
                         stderr=open(f"{work}/thief.log", "w"))
try:
    for _ in range(100):
        if os.path.exists(f"{work}/thief"):
            break
        time.sleep(0.05)
    t = nbd.NBD()
    t.connect_uri(f"nbd+unix:///a?socket={work}/thief")
    assert t.pread(4096, 0) == b"\x71" * 4096
    t.pwrite(b"\x72" * 4096, 0)
    t.flush()
    try:
        h.pwrite(b"\x73" * 4096, 0)
        h.flush()
        raise AssertionError("a fenced daemon acknowledged a flush")
    except nbd.Error as e:
        assert e.errno in ("ESHUTDOWN", "ENOTCONN"), e
    assert t.pread(4096, 0) == b"\x72" * 4096
    t.shutdown()
finally:
    thief.terminate()
    assert thief.wait(20) == 0, thief.returncode
PY
stop "$DAEMON"
[ "$STATUS" -eq 4 ] || fail "a fenced daemon ended with $STATUS"

step "inherited sockets: systemd's, and one client on stdin"
/usr/bin/python3 - "${store[@]}" <<'PY'
import nbd, sys
h = nbd.NBD()
h.set_export_name("a")
h.connect_systemd_socket_activation(["portalbd", "serve", *sys.argv[1:]])
assert h.pread(4096, 0) == b"\x72" * 4096
h.shutdown()
h = None
h = nbd.NBD()
h.set_export_name("c")
h.connect_command(["portalbd", "serve", *sys.argv[1:], "--single"])
assert h.pread(4096, 0) == b"\x31" * 4096
h.shutdown()
PY
wait_for 10 bash -c "[ -z \"\$(find '$WORK/run' -type f ! -name pool-default)\" ]"

step "attach on an inherited socket, as the kernel's client has it"
id=$(ctl -o json volume show d | jq -r .id)
/usr/bin/python3 - "$id" "${store[@]}" <<'PY'
import json, os, signal, socket, struct, subprocess, sys
REQUEST = struct.Struct(">IHHQQI")
def attach(*more):
    ours, theirs = socket.socketpair()
    r, w = os.pipe()
    p = subprocess.Popen(["portalbd", "attach", "--volume", sys.argv[1], *sys.argv[2:], "--nbd-fd",
                          str(theirs.fileno()), "--ready-fd", str(w), *more],
                         pass_fds=[theirs.fileno(), w], stderr=subprocess.DEVNULL)
    os.close(w)
    theirs.close()
    ours.settimeout(20)
    lines = os.fdopen(r)
    line = json.loads(lines.readline())
    return p, ours, json.loads(lines.readline()) if line == {"opened": True} else line
def recv(s, n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        assert piece, "closed"
        data += piece
    return data
def request(s, command, off=0, length=0, data=b""):
    s.sendall(REQUEST.pack(0x25609513, 0, command, 7, off, length) + data)
    magic, error, cookie = struct.unpack(">IIQ", recv(s, 16))
    assert (magic, cookie) == (0x67446698, 7)
    return error, recv(s, length) if command == 0 and not error else b""
p, s, ready = attach()
assert ready == {"ready": True, "size_bytes": 64 << 20, "nbd_flags": 0xd6d, "journal": "shm"}, ready
assert request(s, 0, 0, 4096) == (0, b"\x21" * 4096)
assert request(s, 1, 0, 4096, b"\x81" * 4096)[0] == 0
q, _, failed = attach()
assert failed["code"] == "IN_USE" and q.wait(10) == 1, failed
s.sendall(REQUEST.pack(0x25609513, 0, 2, 0, 0, 0))  # the kernel disconnects: a clean end
assert p.wait(20) == 0
p, s, ready = attach("--read-only")
assert request(s, 0, 0, 4096) == (0, b"\x81" * 4096)
assert request(s, 1, 0, 512, b"x" * 512)[0] == 1
p.send_signal(signal.SIGTERM)
assert p.wait(20) == 0
PY

step "with the store away: SIGTERM while it starts; --stop-limit names what is lost; a second signal"
start_s3
start_faultproxy
store=(--store s3://bucket/p --run-dir "$WORK/run")
exits 0 ctl pool create
exits 0 ctl volume create a --size 64M
proxy_set error=1
start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock"
sleep 0.5
stop "$PID"
[ "$STATUS" -eq 0 ] || fail "ended with $STATUS while it was starting"
proxy_set error=0
for limit in 1s 0s; do
    serve --stop-limit "$limit"
    io a 'write -P 0x91 0 1M' flush
    proxy_set error=1
    io a 'write -P 0x92 0 1M' >"$WORK/io-lost" 2>&1 &
    wait_for 10 bash -c "portalctl ${store[*]} -o json status a | jq -e '.unflushed_bytes > 0'"
    [ "$limit" = 1s ] || kill "$DAEMON"
    [ "$limit" = 1s ] || sleep 0.3
    stop "$DAEMON"
    [ "$STATUS" -eq 3 ] || fail "ended with $STATUS and unsaved data"
    grep -q 'unsaved="writes .* are not in the store"' "$WORK/portalbd.log" || fail "the log does not name what is lost"
    proxy_set error=0
done
