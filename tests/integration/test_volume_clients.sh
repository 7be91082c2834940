#!/bin/bash
# Other people's NBD clients on a real volume on a real S3 server: everything of test_nbd_clients.sh, then the same content
# after a clean restart of the daemon, and through a snapshot.
# shellcheck disable=SC2119
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands qemu-img nbdcopy nbdinfo fio

start_s3
store=(--store s3://bucket/clients)
portalctl "${store[@]}" pool create >/dev/null
portalctl "${store[@]}" volume create disk --size 96M >/dev/null

# serve_start: the daemon on $SOCK; its pid is in $DAEMON.
SOCK=$WORK/s
serve_start() {
    start portalbd portalbd serve "${store[@]}" --listen "unix:$SOCK" --run-dir "$WORK/run"
    DAEMON=$PID
    wait_for 20 nbdinfo --size "$(uri disk)"
}
uri() {
    printf 'nbd+unix:///%s?socket=%s' "$1" "$SOCK"
}

serve_start
step "all clients"
NBD_URI=$(uri disk) NBD_FRESH=1 PORTALBD_BUILD=$BUILD bash "$(dirname "$0")/test_nbd_clients.sh"

step "qemu-img convert in, compare, nbdcopy out"
dd if=/dev/urandom of="$WORK/image" bs=1M count=24 status=none
truncate -s 96M "$WORK/image"
dd if=/dev/urandom of="$WORK/image" bs=1M seek=60 count=8 conv=notrunc status=none
qemu-img convert -n -f raw -O raw "$WORK/image" "$(uri disk)"
qemu-img compare -f raw -F raw "$WORK/image" "$(uri disk)" >/dev/null
nbdcopy "$(uri disk)" "$WORK/copy"
cmp "$WORK/image" "$WORK/copy"

step "a snapshot keeps it while the volume changes"
portalctl "${store[@]}" --run-dir "$WORK/run" snapshot create disk before >/dev/null
fio --name=w --ioengine=nbd --uri="$(uri disk)" --rw=write --bs=1M --size=96M --end_fsync=1 >/dev/null
qemu-img compare -f raw -F raw "$WORK/image" "$(uri disk)" >/dev/null && fail "the volume did not change"
qemu-img compare -f raw -F raw "$WORK/image" "$(uri disk@before)" >/dev/null
nbdinfo --is read-only "$(uri disk@before)" || fail "a snapshot is served writable"

step "the same after a clean restart"
nbdcopy "$(uri disk)" "$WORK/copy"
stop "$DAEMON"
[ "$STATUS" -eq 0 ] || fail "portalbd ended with code $STATUS after SIGTERM"
rm -rf "$WORK/run"
serve_start
qemu-img compare -f raw -F raw "$WORK/copy" "$(uri disk)" >/dev/null
qemu-img compare -f raw -F raw "$WORK/image" "$(uri disk@before)" >/dev/null
