#!/bin/bash
# portalctl fsck, inspect and gc as a user meets them, on the folder that is the store: a healthy pool in use and at
# rest, objects that are damaged or lost by hand, the exit codes that say so.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands qemu-io jq

pool=$WORK/pool
store=(--store "file://$pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@" </dev/null; }
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
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/out" "$WORK/err")"
}
io() { # volume, qemu-io commands
    local commands=() command
    for command in "${@:2}"; do commands+=(-c "$command"); done
    qemu-io -f raw "nbd+unix:///$1?socket=$WORK/sock" "${commands[@]}" >"$WORK/io" || { cat "$WORK/io"; return 1; }
}
result() { jq -e "$1" "$WORK/out" >/dev/null || fail "not $1: $(cat "$WORK/out")"; }

step "a pool with snapshots, clones, a chained clone, deleted things"
exits 0 ctl pool create
exits 0 ctl fsck
for name in v w; do exits 0 ctl volume create $name --size 32M; done
serve
io v 'write -P 1 0 4M' 'write -P 2 8M 64k' flush
exits 0 ctl snapshot create v one
io v 'write -P 3 1M 4M' 'write -z -u 8M 1M' flush
exits 0 ctl snapshot create v two
exits 0 ctl volume clone v@one c
io c 'write -P 4 2M 1M' flush
exits 0 ctl volume clone c d
io w 'write -P 5 0 1M' flush
exits 0 ctl snapshot create w last

step "healthy while it is in use, and afterwards"
exits 0 ctl fsck --json
result '.damaged == 0 and .leaked == 0 and .garbage == 0 and .volumes == 4 and .snapshots == 3 and .objects > 4 and .unsettled == 0'
stop "$DAEMON"
exits 0 ctl snapshot delete v@two
exits 0 ctl volume delete w
exits 0 ctl fsck
exits 0 ctl gc
exits 0 ctl fsck --garbage
exits 0 ctl fsck --quick
exits 0 ctl fsck d
exits 0 ctl fsck d --json
result '.volumes == 1 and .read_bytes > 0 and .findings == []'
exits 3 ctl fsck none

step "inspect: every object there is, by its key and as a file"
(cd "$pool" && find . -type f -not -name '.*' -printf '%P\n') | grep -E '^(portalbd.json|records/|volumes/|snapshots/)' >"$WORK/keys"
while read -r key; do
    exits 0 ctl inspect "$key" --json
    result 'type == "object" and (.type | length) > 2'
done <"$WORK/keys"
segment=$(grep '/log/' "$WORK/keys" | while read -r key; do stat -c '%s %n' "$pool/$key"; done | sort -n | tail -1 | cut -d' ' -f2)
exits 0 ctl inspect "$segment"
grep -q '^sector  *count  *kind  *off  *stored_bytes  *frames$' "$WORK/out" || fail "$(cat "$WORK/out")"
exits 3 ctl inspect volumes/none
exits 2 ctl inspect /etc/passwd

step "a bit that turned: fsck names the object, quick does not read it"
cp "$segment" "$WORK/segment"
exits 0 ctl inspect "$segment" --json # a byte of the first frame's content, whatever was cut where
off=$(jq '[.extents[] | select(.kind == "data")][0].off + 20' "$WORK/out")
byte=$(od -An -tu1 -j "$off" -N 1 "$segment")
printf '%b' "\\x$(printf %02x $((byte ^ 16)))" | dd of="$segment" bs=1 seek="$off" conv=notrunc status=none
exits 7 ctl fsck
grep -q "^damaged  ${segment#"$pool"/}: .*checksum" "$WORK/out" || fail "$(cat "$WORK/out")"
exits 0 ctl fsck --quick
exits 7 ctl inspect "$segment"
grep -q 'checksum' "$WORK/out" || fail "$(cat "$WORK/out")"
exits 7 ctl inspect "${segment#"$pool"/}" --json
result '.type == "segment" and (.extents | length) > 0'
cp "$WORK/segment" "$segment"
exits 0 ctl fsck

step "an object that is gone"
mv "$segment" "$WORK/segment"
exits 7 ctl fsck --quick --json
result ".damaged >= 1 and (.findings[0].key == \"${segment#"$pool"/}\")"
mv "$WORK/segment" "$segment"

step "what nothing can be read of is damaged all the same"
: >"$WORK/empty"
swap() { mv "$1" "$WORK/aside"; cp "$2" "$1"; }
back() { mv "$WORK/aside" "$1"; }
swap "$pool/portalbd.json" "$WORK/empty"
exits 7 ctl fsck
grep -q '^damaged  portalbd.json: ' "$WORK/out" || fail "$(cat "$WORK/out")"
exits 7 ctl inspect portalbd.json
rm "$pool/portalbd.json"
exits 7 ctl fsck --json
result '[.findings[].key] == ["portalbd.json"] and .volumes == 4'
back "$pool/portalbd.json"
volume=$(ctl -o json volume show v | jq -r '.id | sub("\\..*"; "")')
for key in "$pool/volumes/$volume/manifest" "$pool/records/$(printf v | sha256sum | cut -c1-32)"; do
    newest=$(find "$key" -type f | sort | head -1)
    swap "$newest" "$WORK/empty"
    exits 7 ctl fsck v
    grep -q "^damaged  ${newest#"$pool"/}: " "$WORK/out" || fail "$(cat "$WORK/out" "$WORK/err")"
    exits 7 ctl volume show v
    grep -q "${newest#"$pool"/}: " "$WORK/err" || fail "$(cat "$WORK/err")"
    exits 7 ctl inspect "${newest#"$pool"/}"
    exits 7 ctl -o json volume list # the others, and what is wrong
    result '[.[].name] | sort == ["c", "d"]'
    grep -q "${newest#"$pool"/}: " "$WORK/err" || fail "$(cat "$WORK/err")"
    back "$newest"
done
newest=$(find "$pool/snapshots/$(printf v@one | sha256sum | cut -c1-32)" -type f | sort | head -1)
exits 0 ctl -o json snapshot list
result '[.[].name] | sort == ["v@one", "w@last"]'
swap "$newest" "$WORK/empty"
exits 7 ctl -o json snapshot list
result '[.[].name] == ["w@last"]'
back "$newest"
exits 3 ctl --store "file://$WORK" fsck
exits 0 ctl fsck

step "a result that does not arrive is no success; nor are words that mean nothing"
full() { ctl "$@" >/dev/full; }
closed() { ctl "$@" >&-; }
exits 1 full fsck
exits 1 full volume list
exits 1 closed fsck
exits 1 closed inspect portalbd.json
exits 2 ctl inspect ''
exits 2 ctl snapshot create v ''
exits 3 ctl fsck ''

step "an object that nothing needs"
cp "$segment" "$pool/volumes/$volume/map/0123456789abcdef0123456789abcdef"
exits 0 ctl fsck
exits 8 ctl fsck --garbage
grep -q '^garbage  .*/map/0123456789abcdef0123456789abcdef' "$WORK/out" || fail "$(cat "$WORK/out")"
exits 0 ctl gc v --json
result '.objects_deleted == 1'
exits 0 ctl fsck --garbage
[ ! -e "$pool/volumes/$volume/map/0123456789abcdef0123456789abcdef" ] || fail "it is still there"

step "gc where a daemon has the volume, and where another node does"
serve
io v 'write -P 9 0 1M' flush
exits 0 ctl gc v --json
result '.volumes_collected == 1'
exits 0 ctl gc --json
result '.volumes_collected == 3 and .volumes_in_use == 0 and .failures == 0'
exits 5 portalctl --store "file://$pool" --run-dir "$WORK/elsewhere" gc v
grep -q "published to node" "$WORK/err" || fail "$(cat "$WORK/err")"
stop "$DAEMON"
exits 0 ctl gc v
exits 0 ctl fsck --garbage
