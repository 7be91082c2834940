#!/bin/bash
# portalbd serve --disk-cache: what does not fit into memory is read from the disk and not from the store; a disk that
# does not work costs nothing but that; nothing stays in the folder.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdcopy jq cmp

store=(--store "file://$WORK/pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@"; }
uri="nbd+unix:///disk?socket=$WORK/sock"
connects() { # a socket file may be a dead process's
    /usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"
}
serve() { # more arguments; the pid is in $DAEMON
    start portalbd portalbd serve "${store[@]}" --listen "unix:$WORK/sock" --cache-size 4Mi "$@" disk
    DAEMON=$PID
    wait_for 10 connects "$WORK/sock"
}
gets() { ctl -o json stats disk | jq .store.get.requests; }
disk() { ctl -o json stats disk | jq ".cache.disk.$1"; }
read_all() { nbdcopy "$uri" "$WORK/out" && cmp "$WORK/image" "$WORK/out"; }
from_disk() { # 4: other reads of the volume's own
    local before
    before=$(gets)
    read_all || return 1
    [ $(($(gets) - before)) -le 4 ]
}

head -c 48M /dev/urandom >"$WORK/image"
ctl pool create
ctl volume create disk --size 48M

step "read again, from the disk"
serve --disk-cache "$WORK/cache" --disk-cache-size 128Mi
nbdcopy "$WORK/image" "$uri"
stop "$DAEMON"
serve --disk-cache "$WORK/cache" --disk-cache-size 128Mi
read_all
# what came while too much waited to be written is not kept the first time
wait_for 60 from_disk
[ "$(disk bytes)" -ge $((47 << 20)) ] || fail "only $(disk bytes) bytes are on the disk"
[ "$(disk failed)" = false ] || fail "the disk failed"
[ -z "$(ls -A "$WORK/cache")" ] || fail "$(ls "$WORK/cache")"

step "kill -9 leaves nothing"
kill -9 "$DAEMON"
stop "$DAEMON"
[ -z "$(ls -A "$WORK/cache")" ] || fail "$(ls "$WORK/cache")"

step "a folder that cannot be"
touch "$WORK/file"
serve --disk-cache "$WORK/file/cache"
read_all
grep -q 'there is no disk cache' "$WORK/portalbd.log" || fail "nothing was said"
[ "$(ctl -o json stats disk | jq .cache.disk)" = null ] || fail "a disk cache nevertheless"
stop "$DAEMON"

if [ "$(id -u)" -eq 0 ] && mkdir "$WORK/small" && mount -t tmpfs -o size=16M none "$WORK/small" 2>/dev/null; then
    step "a disk that gets full"
    serve --disk-cache "$WORK/small" --disk-cache-size 64Mi
    read_all
    read_all
    [ "$(disk failed)" = true ] || fail "a full disk went unnoticed"
    [ "$(grep -c 'the disk cache failed' "$WORK/portalbd.log")" = 1 ] || fail "said once"
    [ "$(ctl -o json status disk | jq -r .health)" = ok ] || fail "$(ctl status disk)"
    stop "$DAEMON"
else
    echo "skipped: a disk that gets full (needs root and a tmpfs)"
fi
