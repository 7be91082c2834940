#!/bin/bash
# Other people's NBD clients against our server: libnbd (nbdinfo, nbdcopy, nbdsh), qemu (qemu-io,
# qemu-img), fio.
#
# Without variables it starts a server over memory of its own. With them it tests what they name:
#   NBD_URI      a writable export of at least 64 MiB whose content may go
#   NBD_URI_RO   a read-only one (optional)
#   NBD_URI_SLOW a writable one that answers late and out of order (optional)
#   NBD_FRESH=1  NBD_URI was never written: it must read as zeroes and be one hole
# PORTALBD_BUILD names the build folder (build).
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${PORTALBD_BUILD:-build}
dir=$(mktemp -d "${TMPDIR:-/tmp}/portalbd-nbd.XXXXXX")
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" || true
    rm -rf "$dir"
}
trap cleanup EXIT

say() { printf '%s\n' "- $*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

if [ -z "${NBD_URI:-}" ]; then
    "$build/tools/nbd_memory" --size $((96 << 20)) --delay-us 2000 "$dir/sock" > "$dir/ready" &
    server=$!
    for _ in $(seq 100); do
        grep -qs ready "$dir/ready" && break
        sleep 0.05
    done
    [ "$(stat -c %a "$dir/sock")" = 600 ] || fail "the socket's mode is not 600"
    NBD_URI="nbd+unix:///mem?socket=$dir/sock"
    NBD_URI_RO="nbd+unix:///ro?socket=$dir/sock"
    NBD_URI_SLOW="nbd+unix:///slow?socket=$dir/sock"
    NBD_FRESH=1
fi
export NBD_URI NBD_URI_RO="${NBD_URI_RO:-}"

say "nbdinfo"
nbdinfo --json "$NBD_URI" > "$dir/info"
/usr/bin/python3 - "$dir/info" << 'PY'
import json, sys
x = json.load(open(sys.argv[1]))
assert x["protocol"] == "newstyle-fixed" and x["structured"], x
e = x["exports"][0]
for can in "can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero".split():
    assert e[can], can
assert not e["is_read_only"] and not e["is_rotational"]
assert (e["block_size_minimum"], e["block_size_preferred"]) == (512, 4096), e
assert e["contexts"] == ["base:allocation"], e
assert e["export-size"] % 4096 == 0
PY
nbdinfo --list "${NBD_URI/"$(sed -E 's,[^/]*//([^?]*).*,\1,' <<< "$NBD_URI")"//}" > "$dir/list"
grep -q 'export=' "$dir/list" || fail "LIST names nothing"
if [ -n "$NBD_URI_RO" ]; then
    nbdinfo --is read-only "$NBD_URI_RO" || fail "the read-only export does not say so"
    ! nbdinfo --can fua "$NBD_URI_RO" || fail "a read-only export offers FUA"
fi
if nbdinfo "${NBD_URI/"$(sed -E 's,[^/]*//([^?]*).*,\1,' <<< "$NBD_URI")"//no-such-export}" \
    > /dev/null 2> "$dir/none"; then
    fail "an export that does not exist was opened"
fi

size=$(nbdinfo --size "$NBD_URI")
if [ "${NBD_FRESH:-}" = 1 ]; then
    say "a fresh export is one hole of zeroes"
    [ "$(nbdinfo --map "$NBD_URI" | awk '{print $1, $2, $3}')" = "0 $size 3" ] ||
        fail "$(nbdinfo --map "$NBD_URI" | head -3)"
    nbdcopy "$NBD_URI" - | cmp -n "$size" - /dev/zero
fi

say "nbdcopy in and out"
head -c $((24 << 20)) /dev/urandom > "$dir/image"
truncate -s "$size" "$dir/image"
head -c $((3 << 20)) /dev/urandom | dd of="$dir/image" bs=1M seek=40 conv=notrunc status=none
nbdcopy --flush "$dir/image" "$NBD_URI"
nbdcopy "$NBD_URI" - | cmp - "$dir/image"
nbdcopy --synchronous "$NBD_URI" "$dir/copy"
cmp "$dir/copy" "$dir/image"
rm "$dir/copy"
nbdinfo --map --totals "$NBD_URI" > "$dir/map"

say "qemu-img convert and compare"
qemu-img compare -f raw -F raw "$dir/image" "$NBD_URI" > /dev/null
qemu-img convert -f raw -O raw "$NBD_URI" "$dir/copy"
cmp "$dir/copy" "$dir/image"
truncate -s 0 "$dir/image"
truncate -s "$size" "$dir/image"
head -c $((9 << 20)) /dev/urandom | dd of="$dir/image" bs=1M seek=2 conv=notrunc status=none
qemu-img convert -n -f raw -O raw "$dir/image" "$NBD_URI"
nbdcopy "$NBD_URI" - | cmp - "$dir/image"
rm "$dir/copy" "$dir/image"

say "qemu-io"
qemu-io -f raw "$NBD_URI" -c 'write -P 0xab 1M 64k' -c 'read -P 0xab 1M 64k' \
    -c 'write -z -u 1M 32k' -c 'read -P 0 1M 32k' -c 'read -P 0xab 1056k 32k' \
    -c 'discard 1088k 64k' -c 'write -f -P 0xcd 2M 512' -c 'read -P 0xcd 2M 512' \
    -c 'aio_write -P 1 4M 1M' -c aio_flush -c flush -c 'read -P 1 4M 1M' > "$dir/qemu-io"
! grep -iE 'fail|error|mismatch' "$dir/qemu-io" || fail "qemu-io"

say "what must be refused"
/usr/bin/python3 tests/integration/nbd_negative.py > "$dir/negative" 2>&1 ||
    { cat "$dir/negative"; fail "nbd_negative.py"; }

verify() { # uri, more arguments
    local uri=$1
    shift
    fio --name=v --ioengine=nbd --uri="$uri" --iodepth=32 --size=32M --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0 --serialize_overlap=1 --thread --output="$dir/fio" "$@" ||
        { cat "$dir/fio"; fail "fio $*"; }
}
say "fio with verification, 32 in flight"
verify "$NBD_URI" --rw=randwrite --bsrange=512-128k --bs_unaligned=0 --blockalign=512
verify "$NBD_URI" --rw=randwrite --bs=4k --fsync=16
verify "$NBD_URI" --rw=randtrimwrite --bs=4k
if [ -n "${NBD_URI_SLOW:-}" ]; then
    say "fio with verification, answers out of order"
    verify "$NBD_URI_SLOW" --rw=randwrite --bsrange=4k-64k --fsync=64
fi

if [ -n "$server" ]; then
    say "a client without a handshake is dropped after ten seconds, others are served meanwhile"
    /usr/bin/python3 - "$dir/sock" << 'PY'
import socket, sys, time
idle = [socket.socket(socket.AF_UNIX) for _ in range(150)]
start = time.monotonic()
for s in idle:
    s.connect(sys.argv[1])
for s in idle[:100]:
    s.settimeout(20)
    s.recv(18)
    assert s.recv(1) == b"", "still open"
assert 8 < time.monotonic() - start < 15, time.monotonic() - start
PY
    nbdinfo --size "$NBD_URI" > /dev/null
    say "another server does not take the socket; a stale one is replaced"
    ! "$build/tools/nbd_memory" "$dir/sock" > /dev/null 2> "$dir/err" || fail "two servers at one socket"
    grep -q 'another process listens' "$dir/err" || fail "$(cat "$dir/err")"
    ! "$build/tools/nbd_memory" 0.0.0.0:0 2> "$dir/err" || fail "TCP beyond the loopback"
    grep -q loopback "$dir/err" || fail "$(cat "$dir/err")"
    kill -9 "$server"
    wait "$server" || true
    rm "$dir/ready" # what the first one said must not be taken for the second one's
    "$build/tools/nbd_memory" "$dir/sock" > "$dir/ready" &
    server=$!
    for _ in $(seq 100); do
        grep -qs ready "$dir/ready" && break
        sleep 0.05
    done
    nbdinfo --size "$NBD_URI" > /dev/null
    say "SIGTERM ends it"
    kill "$server"
    wait "$server" || fail "exit status $?"
    server=
    [ ! -e "$dir/sock" ] || fail "the socket is left behind"
    say "one client on stdin"
    /usr/bin/python3 - "$build" << 'PY'
import nbd, sys
h = nbd.NBD()
h.connect_command([sys.argv[1] + "/tools/nbd_memory", "--single"])
h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == b"x" * 4096
h.shutdown()
PY
fi
say "all passed"
