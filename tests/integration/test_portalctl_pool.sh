#!/bin/bash
# portalctl pool delete: only where there is a pool, only what is ours, not under those who use it; cut off, it can be
# repeated.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands nbdinfo jq

store=(--store "file://$WORK/pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@" </dev/null; }
exits() { # code, command: it must end with this code
    local status=0
    "${@:2}" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/err")"
}
says() { grep -q -- "$1" "$WORK/err" || fail "it says '$(cat "$WORK/err")', not '$1'"; }
files() { (cd "$WORK/pool" && find . -type f ! -path './.tmp/*' | sort); }
serve() { # name, more arguments
    start "$1" portalbd serve "${store[@]}" --state-dir "$WORK/state" --listen "unix:$WORK/$1.sock" "${@:2}"
    DAEMON=$PID
    wait_for 10 test -S "$WORK/$1.sock"
}

step "no pool: nothing is deleted"
hash=0123456789abcdef0123456789abcdef
key=pv-$hash-1
number=fffffffffffffffe
strangers=(volumes/photos/2024/a.jpg "volumes/snap-$hash-1/log/1" "volumes/$key.default/log/1"
    records/x/b records/c.txt "records/$hash/readme.json" "snapshots/x/$number.json" "snapshots/$hash/x/$number.json"
    "snapshots/${hash}0/$number.json" "snapshots/$hash/$number.txt" nodes/d.txt nodes/n/notes.json
    probe/x "probe/${hash%f}/x" "probe/a/$hash" portalbd-notes.txt portalbd portalbd.json.bak "other/$hash/$number.json")
ours=("volumes/$key/anything/new" "records/$hash/$number.json" "snapshots/$hash/$number.json" "nodes/n/$number.json"
    "probe/$hash")
make() {
    local path
    for path; do
        mkdir -p "$WORK/pool/$(dirname "$path")"
        echo mine >"$WORK/pool/$path"
    done
}
rm -rf "$WORK/pool"
mkdir "$WORK/pool"
make "${strangers[@]}"
files >"$WORK/theirs"
make "${ours[@]}"
files >"$WORK/all"
exits 3 ctl pool delete --yes
says 'there is no pool'
exits 3 ctl pool delete --yes --force
exits 3 ctl pool delete
files | diff "$WORK/all" - || fail "without a pool something was deleted"

step "a pool among strangers: their objects stay, and are counted"
exits 0 ctl pool create
exits 0 ctl volume create v --size 16M
exits 0 ctl snapshot create v s
rm "$WORK/pool/records/$hash/$number.json" "$WORK/pool/snapshots/$hash/$number.json" # records that are none
exits 2 ctl pool delete
says '--yes'
exits 0 ctl -o json pool delete --yes
jq -e ".foreign_objects == $(wc -l <"$WORK/theirs") and .objects_deleted > 6" "$WORK/out" >/dev/null || fail "$(cat "$WORK/out")"
files | diff "$WORK/theirs" - || fail "not exactly ours was deleted"
exits 3 ctl pool delete --yes
rm -rf "$WORK/pool"

step "a volume that a node has, or that is served here"
exits 0 ctl pool create
exits 0 ctl volume create v --size 16M
serve far --node-id far --run-dir "$WORK/far"
nbdinfo --size "nbd+unix:///v?socket=$WORK/far.sock" >/dev/null
files >"$WORK/all"
exits 5 ctl pool delete --yes
says "volume 'v'.*node 'far'"
files | diff "$WORK/all" - || fail "of a pool in use something was deleted"
stop "$DAEMON"
run=$WORK/run id=$(ctl -o json volume show v | jq -r .id)
mkdir -p "$run"
start listener /usr/bin/python3 -c 'import os, socket, sys, time
os.chdir(sys.argv[1])
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[2] + ".sock")
s.listen()
time.sleep(60)' "$run" "$id"
listener=$PID
wait_for 10 test -S "$run/$id.sock"
ctl -o json volume show v | jq -e '.node == ""' >/dev/null || fail "it is still published"
exits 5 ctl pool delete --yes
says "volume 'v'.*served on this node"
stop "$listener"
serve near
nbdinfo --size "nbd+unix:///v?socket=$WORK/near.sock" >/dev/null
exits 5 ctl pool delete --yes
says "volume 'v'"
exits 0 ctl pool delete --yes --force
[ -z "$(files)" ] || fail "left: $(files)"
stop "$DAEMON"

step "more than one page of a list, on S3"
start_s3
many() { # folder, suffix
    mkdir -p "$S3_DIR/bucket/p/$1"
    (cd "$S3_DIR/bucket/p/$1" && seq -f "%016.0f${2-}" 1101 | xargs touch)
}
s3() { portalctl --store s3://bucket/p --run-dir "$WORK/run" --timeout 20s "$@" </dev/null; }
exits 0 s3 pool create
exits 0 s3 volume create v --size 16M
many "volumes/$key/log"
many records/photos .jpg
exits 0 s3 -o json pool delete --yes
jq -e '.foreign_objects == 1101 and .objects_deleted > 1101' "$WORK/out" >/dev/null || fail "$(cat "$WORK/out")"
[ "$(find "$S3_DIR/bucket" -type f | grep -c jpg)" -eq 1101 ] || fail "others' objects are gone"
[ -z "$(find "$S3_DIR/bucket" -type f ! -name '*.jpg')" ] || fail "left: $(find "$S3_DIR/bucket" -type f ! -name '*.jpg')"

step "records that cannot be read"
exits 0 ctl pool create
exits 0 ctl volume create v --size 16M
record=$(find "$WORK/pool/records" -type f)
echo rubbish >"$record"
exits 7 ctl pool delete --yes
says '--force'
echo rubbish >"$WORK/pool/portalbd.json"
exits 7 ctl pool check
exits 0 ctl pool delete --yes --force
[ -z "$(files)" ] || fail "left: $(files)"
exits 0 ctl pool create
sed -i 's/"format": *[0-9]*/"format": 99/' "$WORK/pool/portalbd.json"
exits 1 ctl pool check
exits 0 ctl pool delete --yes
[ -z "$(files)" ] || fail "left: $(files)"

if [ "$(id -u)" -ne 0 ]; then
    printf 'skipped: cut-off: needs root, for a folder that refuses\n'
    exit 0
fi
step "cut off: the pool's record is still there, and it is repeated"
exits 0 ctl pool create
exits 0 ctl volume create v --size 16M
folder=$WORK/pool/records
mount --bind "$folder" "$folder"
mount -o remount,bind,ro "$folder"
exits 1 ctl --timeout 1s pool delete --yes
[ -e "$WORK/pool/portalbd.json" ] || fail "the pool's record went before others"
[ -z "$(find "$WORK/pool/volumes" -type f)" ] || fail "records go before volumes"
umount "$folder"
exits 0 ctl pool delete --yes
[ -z "$(files)" ] || fail "left: $(files)"
