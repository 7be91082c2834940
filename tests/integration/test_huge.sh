#!/bin/bash
# Size costs nothing: a volume of 1 EiB keeps its last sector; mkfs.ext4 and a TRIM of 1 TiB take a handful of requests.
# shellcheck disable=SC2119
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdsh mkfs.ext4 jq

start_s3
start_faultproxy
store=(--store s3://bucket/huge)
portalctl "${store[@]}" pool create >/dev/null
portalctl "${store[@]}" volume create eib --size 1024P >/dev/null
portalctl "${store[@]}" volume create tib --size 1T >/dev/null
start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/s" --run-dir "$WORK/run"
DAEMON=$PID
wait_for 20 nbdinfo --size "nbd+unix:///eib?socket=$WORK/s"
requests() {
    proxy_counts | jq .total.requests
}
# nbd NAME SCRIPT: python with the export open as h.
nbd() {
    /usr/bin/python3 - "nbd+unix:///$1?socket=$WORK/s" <<PYTHON
import os, sys, urllib.request, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
urllib.request.urlopen(os.environ['FAULT_CONTROL'] + '/reset', b'')  # to connect costs what it costs
$2
h.shutdown()
PYTHON
}

step "the last sector of 1 EiB"
nbd eib "
size = h.get_size()
assert size == 1 << 60, size
h.pwrite(b'last' * 128, size - 512)
h.pwrite(b'half' * 128, size // 2)
h.flush()"
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "portalbd ended with code $STATUS"
start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/s" --run-dir "$WORK/run"
DAEMON=$PID
wait_for 20 nbdinfo --size "nbd+unix:///eib?socket=$WORK/s"
nbd eib "
size = h.get_size()
assert h.pread(512, size - 512) == b'last' * 128
assert h.pread(512, size // 2) == b'half' * 128
assert h.pread(1024, size - 1024) == bytes(512) + b'last' * 128
try:
    h.set_strict_mode(0)
    h.pwrite(bytes(512), size)
    raise SystemExit('a write behind the end was accepted')
except nbd.Error as e:
    assert e.errno == 'ENOSPC', e.errno"

step "a TRIM of 1 TiB"
nbd tib "h.pwrite(b'x' * 4096, 1 << 39); h.flush()"
nbd tib "
end = 1 << 40
for off in range(0, end, 1 << 31):
    h.trim(1 << 31, off)
h.flush()
assert h.pread(4096, 1 << 39) == bytes(4096)"
n=$(requests)
printf '%s requests\n' "$n"
[ "$n" -le 2 ] || fail "a TRIM of 1 TiB took $n requests"

step "mkfs.ext4 on 1 TiB"
need_fuse
modprobe -q fuse 2>/dev/null || true
mkdir "$WORK/fuse"
start nbdfuse nbdfuse "$WORK/fuse/disk" "nbd+unix:///tib?socket=$WORK/s"
wait_for 20 test -e "$WORK/fuse/disk"
proxy_reset
mkfs.ext4 -q -F "$WORK/fuse/disk"
sync "$WORK/fuse/disk"
n=$(requests)
printf '%s requests\n' "$n"
umount "$WORK/fuse" 2>/dev/null || fusermount3 -u "$WORK/fuse"
[ "$n" -lt 10 ] || fail "mkfs.ext4 on 1 TiB took $n requests"
