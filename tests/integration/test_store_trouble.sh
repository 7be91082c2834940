#!/bin/bash
# P6: trouble of the store is a pause, not an error; what cannot get better by waiting is said in one sentence; proven
# corruption, and nothing else, is EIO, and the log names the object. Secrets show nowhere.
# timeout: 180
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands fio jq nbdinfo curl

start_s3
s3_endpoint=$AWS_ENDPOINT_URL
store=(--store s3://bucket/trouble --run-dir "$WORK/run")
sock=$WORK/sock
ctl() { portalctl "${store[@]}" --timeout 20s "$@"; }
uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$sock"; }
# serve OPTION...: the daemon, with a log of its own, $LOG; its pid is in $DAEMON, its metrics at $METRICS.
served=0
serve() {
    served=$((served + 1))
    LOG=$WORK/portalbd-$served.log
    start "portalbd-$served" portalbd serve "${store[@]}" --listen "unix:$sock" --http-address 127.0.0.1 --http-port 0 "$@"
    DAEMON=$PID
    listen_port "$PID"
    METRICS=http://127.0.0.1:$PORT/metrics
    wait_for 20 nbdinfo --size "$(uri disk)"
}
serve_end() { # the exit code that SIGTERM must lead to
    stop "$DAEMON"
    [ "$STATUS" -eq "$1" ] || fail "portalbd ended with code $STATUS, not $1"
}

# refused CODES SECONDS PATTERN COMMAND...: it ends in time with one of the codes, and says what is wrong in one line.
refused() {
    local codes=$1 limit=$2 pattern=$3 status=0 began=$SECONDS
    shift 3
    timeout "$((limit + 5))" "$@" >"$WORK/out" 2>"$WORK/err.all" || status=$?
    # Under the address sanitizer every program begins with a line about fibers.
    grep -v "WARNING: ASan doesn't fully support makecontext" "$WORK/err.all" >"$WORK/err" || true
    [[ " $codes " == *" $status "* ]] || fail "exit code $status, not $codes: $*: $(cat "$WORK/err")"
    [ $((SECONDS - began)) -le "$limit" ] || fail "it took $((SECONDS - began)) s: $*"
    grep -qiE "$pattern" "$WORK/err" || fail "it does not say '$pattern': $*: $(cat "$WORK/err")"
    [ "$(wc -l <"$WORK/err")" -eq 1 ] || fail "more than a line: $*: $(cat "$WORK/err")"
    cat "$WORK/out" "$WORK/err" >>"$WORK/said.log"
}
# waits PATTERN [VARIABLE=VALUE]...: portalbd goes on trying, says so, and ends at once when it is told to.
waits() {
    local pattern=$1
    shift
    : >"$WORK/waits.log"
    start waits env "$@" portalbd serve "${store[@]}" --listen "unix:$WORK/waits"
    wait_for 10 grep -qiE "the store does not answer.*$pattern" "$WORK/waits.log"
    kill -0 "$PID" || fail "portalbd ended instead of waiting: $(cat "$WORK/waits.log")"
    stop "$PID"
    [ "$STATUS" -eq 0 ] || fail "portalbd ended with code $STATUS while it was waiting"
    cat "$WORK/waits.log" >>"$WORK/said.log"
}

step "refusals: credentials, bucket, endpoint, pool"
refused 3 5 'empty.*pool create' portalctl "${store[@]}" pool check
ctl pool create >/dev/null
wrong="wrong-secret-of-the-test"
refused 1 5 'SignatureDoesNotMatch' env AWS_SECRET_ACCESS_KEY=$wrong portalctl "${store[@]}" volume list
refused 1 5 'no S3 credentials' env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY HOME="$WORK" \
    portalctl "${store[@]}" volume list
refused 1 5 'NoSuchBucket' portalctl --store s3://nobody/trouble pool check
refused 1 5 'NoSuchBucket' portalctl --store s3://nobody/trouble pool create
refused 6 5 'connect' env AWS_ENDPOINT_URL=http://127.0.0.1:1 portalctl "${store[@]}" --timeout 2s volume list
refused 6 5 'resolve' env AWS_ENDPOINT_URL=http://nowhere.invalid portalctl "${store[@]}" --timeout 2s volume list
refused 1 5 'not a pool.s URL' portalctl --store bucket/trouble pool check
waits SignatureDoesNotMatch AWS_SECRET_ACCESS_KEY=$wrong
waits connect AWS_ENDPOINT_URL=http://127.0.0.1:1
refused 1 5 'pool create' portalbd serve --store s3://bucket/empty --listen "unix:$WORK/x" \
    --run-dir "$WORK/run" --log-level warn

step "fio goes on through 503, a closed port and ten seconds without an answer"
start_faultproxy
ctl volume create disk --size 128M >/dev/null
serve --cache-size 4M
job=(--name=trouble --ioengine=nbd "--uri=$(uri disk)" --rw=randwrite --bsrange=4k-64k --blockalign=4k --size=64M
    --randseed=5 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0)
start fio fio "${job[@]}" --rate=8M --fsync=64 --end_fsync=1
fio=$PID
status_is() { ctl -o json status disk | jq -e "$1" >/dev/null; }
answers_again() { [ "$(grep -c 'the store answers again' "$LOG")" -ge "$1" ]; }
sleep 1
proxy_set error=1 codes=503
sleep 3
proxy_set error=0
wait_for 15 answers_again 1
proxy_set down=true
sleep 3
proxy_set down=false
wait_for 15 answers_again 2
status_is '.health == "ok"' || fail "not ok between troubles: $(ctl status disk)"
proxy_set hang=true
sleep 1
kill -0 "$fio" || fail "fio ended before the store hung"
wait_for 9 status_is '.health == "waiting" and (.why | length) > 10 and .unflushed_bytes > 0'
kill -0 "$fio" || fail "fio ended while the store hung"
sleep 3
proxy_set hang=false
wait_for 10 status_is '.health == "ok"'
status=0
wait "$fio" || status=$?
[ $status -eq 0 ] || fail "fio met an error (exit code $status)"
curl -fsS "$METRICS" >"$WORK/metrics"
[ "$(grep -E "^portalbd_objstore_requests_total.*TRANSIENT" "$WORK/metrics" | awk "{ n += \$NF } END { print n + 0 }")" -ge 3 ] ||
    fail "metrics do not count the trouble"
grep -q 'the store does not answer.*code=TRANSIENT' "$LOG" || fail "the log does not speak of the trouble"
[ "$(grep -c . "$LOG")" -lt 60 ] || fail "$(grep -c . "$LOG") lines of log"

step "reads go on too"
serve_end 0
serve --cache-size 4M
proxy_set error=0.3 codes=503,500,429
fio "${job[@]}" --verify_only=1 >>"$WORK/fio.log" || fail "reads met an error"
proxy_set error=0

# unflushed: a write that is acknowledged and cannot be stored.
unflushed() {
    proxy_set hang=true
    /usr/bin/python3 -c 'import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b"\xa7" * 65536, 1 << 20)' \
        "$(uri disk)"
    status_is '.unflushed_bytes > 0' || fail "nothing is unflushed"
}

step "SIGTERM while the store hangs: it ends in time and says what is lost"
serve_end 0
serve --stop-limit 3s
unflushed
began=$SECONDS
serve_end 3
[ $((SECONDS - began)) -le 6 ] || fail "it took $((SECONDS - began)) s with --stop-limit 3s"
grep -qE 'unsaved="writes [0-9]+ to [0-9]+ \([0-9]+ bytes.* are not in the store"' "$LOG" || fail "nothing is named"
proxy_set hang=false

step "... and goes on by itself when the store comes back in time"
serve --stop-limit 60s
unflushed
kill "$DAEMON"
sleep 2
kill -0 "$DAEMON" || fail "it did not wait for the store"
proxy_set hang=false
wait "$DAEMON" || fail "portalbd ended with code $? although the store came back"
[ "$(ctl -o json volume show disk | jq .closed)" = true ] || fail "the volume was not closed"
serve
/usr/bin/python3 -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.pread(65536, 1 << 20) == b"\xa7" * 65536, "the last write is lost"' "$(uri disk)"
serve_end 0

step "a flipped byte, then a missing segment: EIO there, and nowhere else"
ctl volume create rot --size 64M >/dev/null
serve
cat >"$WORK/rot.py" <<'PY'
"""rot.py URI write | rot.py URI read OBJECT: which of 64 pieces cannot be read; no piece may be wrong."""
import hashlib, nbd, sys
PIECE, PIECES = 256 << 10, 64
def piece(i):
    return hashlib.shake_128(b"%d" % i).digest(PIECE)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
if sys.argv[2] == "write":
    for i in range(PIECES):
        h.pwrite(piece(i), i * PIECE)
        if i % 8 == 7:
            h.flush()
    sys.exit(0)
bad = []
for i in range(PIECES):
    try:
        assert h.pread(PIECE, i * PIECE) == piece(i), f"piece {i} reads back differently"
    except nbd.Error as e:
        assert e.errno == "EIO", e
        bad.append(i)
print(len(bad))
PY
rot() { /usr/bin/python3 "$WORK/rot.py" "$(uri rot)" "$@"; }
rot write
[ "$(rot read)" = 0 ] || fail "what was just written does not read back"
serve_end 0
# The largest object of the log: data, surely.
segment=$(find "$S3_DIR/bucket/trouble/volumes" -path '*/log/*' -type f -printf '%s %T@ %p\n' |
    grep "/$(ctl -o json volume show rot | jq -r .id | sed 's/\.[^.]*$//')/" | sort -n | tail -n 1 | cut -d ' ' -f 3)
key=${segment#"$S3_DIR/bucket/trouble/"}
cp --preserve=all "$segment" "$WORK/segment"
flip() { # file, offset
    /usr/bin/python3 -c '
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    b = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([b ^ 0x10]))' "$1" "$2"
}
flip "$segment" $(($(stat -c %s "$segment") / 2))
serve
bad=$(rot read)
[ "$bad" = 1 ] || fail "$bad pieces cannot be read after one byte was flipped"
grep -q "level=error.*$key" "$LOG" || fail "the log does not name $key"
status_is '.health == "ok"' || fail "one bad byte made the volume unhealthy: $(ctl status)"
serve_end 0
mv "$segment" "$WORK/flipped"
serve
bad=$(rot read)
if [ "$bad" -lt 1 ] || [ "$bad" -gt 9 ]; then
    fail "$bad pieces cannot be read without one segment"
fi
grep -q "level=error.*$key" "$LOG" || fail "the log does not name the missing $key"
serve_end 0
cp --preserve=all "$WORK/segment" "$segment"
serve
[ "$(rot read)" = 0 ] || fail "the segment is back, and does not read"

step "secrets show nowhere"
for secret in "$AWS_SECRET_ACCESS_KEY" "$wrong"; do
    ! grep -rlF -- "$secret" "$WORK"/*.log "$WORK/run" "$WORK/metrics" || fail "a secret is in a log"
done
! tr '\0' '\n' <"/proc/$DAEMON/cmdline" | grep -qF "$AWS_SECRET_ACCESS_KEY" || fail "a secret is in argv"
[ "$AWS_ENDPOINT_URL" != "$s3_endpoint" ] || fail "the proxy was not used"
serve_end 0
