#!/bin/bash
# Names and sizes that portalctl refuses: of volumes that nothing could name afterwards, of snapshots that would be
# another volume's, of clones smaller than what they hold.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands jq

store=(--store "file://$WORK/pool" --run-dir "$WORK/run")
ctl() { portalctl "${store[@]}" --timeout 20s "$@" </dev/null; }
exits() { # code, command: it must end with this code
    local status=0
    "${@:2}" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq "$1" ] || fail "exit code $status, not $1: ${*:2}: $(cat "$WORK/err")"
}
refused() { # what it says, command
    exits 2 "${@:2}"
    grep -q -- "$1" "$WORK/err" || fail "it says '$(cat "$WORK/err")', not '$1': ${*:2}"
    # (Lines with == are a sanitizer's.)
    [ "$(grep -vc '^==' "$WORK/err")" -eq 1 ] || fail "more than a line: $(cat "$WORK/err")"
}
exits 0 ctl pool create
exits 0 ctl volume create v --size 8M
exits 0 ctl volume create w --size 8M
volume=$(ctl -o json volume show v | jq -r .id)

step "names of volumes"
refused 'a@b.*@name is a snapshot' ctl volume create a@b --size 4M
refused '@name is a snapshot' ctl volume clone v a@b
refused 'form of an id' ctl volume create "$volume" --size 4M
refused 'form of an id' ctl volume clone v "snap-${volume#pv-}"
[ "$(ctl -o json volume list | jq -r '.[].name' | sort | paste -sd ' ')" = "v w" ] || fail "$(ctl volume list)"
exits 0 ctl volume create "${volume%.*}" --size 4M # without a pool it is no id
exits 0 ctl volume show "${volume%.*}"

step "names of snapshots"
refused "volume 'v' cannot be called 'w@x'" ctl snapshot create v w@x
refused 'cannot be called' ctl snapshot create v v@x@y
refused 'needs a name' ctl snapshot create v v@
refused 'needs a name' ctl snapshot create v ''
exits 0 ctl snapshot create v v@x
exits 0 ctl snapshot create "$volume" y
exits 0 ctl snapshot create w x
[ "$(ctl -o json snapshot list v | jq -r '.[].name' | sort | paste -sd ' ')" = "v@x v@y" ] || fail "$(ctl snapshot list)"
long=$(printf 'a%.0s' {1..126})
exits 0 ctl volume create "$long" --size 4M
exits 0 ctl snapshot create "$long" s
refused 'at most 128' ctl snapshot create "$long" st
exits 0 ctl volume create "a$long" --size 4M
refused "name of volume 'a$long' is too long" ctl snapshot create "a$long" s

step "sizes"
refused '--size of more than 0' ctl volume create k
refused '--size of more than 0' ctl volume create k --size 0
snapshot=$(ctl -o json snapshot show v@x | jq -r .id)
refused 'v@x.* 8388608 bytes.*not smaller' ctl volume clone v@x k --size 4M
refused 'not smaller' ctl volume clone v k --size 8384512
refused 'not smaller' ctl volume create k --source "$snapshot" --size 4M
refused 'not smaller' ctl volume create k --source "$volume" --size 4M
exits 3 ctl volume show k
exits 0 ctl volume clone v k --size 8388607 # is rounded up
exits 0 ctl volume clone v@x l --size 16M
exits 0 ctl volume create m --source "$snapshot" --size 8M
exits 0 ctl volume create n --source "$snapshot"
