#!/bin/bash
# P1, P2, P3, P8 after kill -9 at random moments, on a real S3 server behind a proxy that delays, answers 500/503/429,
# drops answers and cuts connections: with a journal in shared memory every acknowledged write is there, with one in
# memory every flushed one and a prefix. And the proof that the test can fail: deliberate bugs are found.
# ROUNDS=100 for the long form (default 8). timeout: 300
# shellcheck disable=SC2119
set -euo pipefail
. "$(dirname "$0")/lib.sh"

start_s3
start_faultproxy --delay 2ms --jitter 15ms --error 0.02 --drop 0.02 --cut 0.01
store=(--store s3://bucket/kill)
portalctl "${store[@]}" pool create >/dev/null

# kill_rounds VOLUME ROUNDS PROGRAM JOURNAL STAMP-ARGUMENTS...: exit code of stamp.
kill_rounds() {
    local volume=$1 rounds=$2 program=$3 journal=$4
    shift 4
    portalctl "${store[@]}" volume create "$volume" --size 64M >/dev/null
    stamp --uri "nbd+unix:///$volume?socket=$WORK/$volume.sock" --rounds "$rounds" --seconds 0.8 --seed "${SEED:-$RANDOM}" \
        "$@" -- "$program" serve "${store[@]}" --listen "unix:$WORK/$volume.sock" --run-dir "$WORK/run-$volume" \
        --journal "$journal" --state-dir "$WORK/state" --log-level error 2>>"$WORK/$volume.log"
}

step "${ROUNDS:-8} times kill -9: nothing is lost"
kill_rounds shm "${ROUNDS:-8}" portalbd shm --nothing-lost
step "${ROUNDS:-8} times kill -9, nothing was flushed: nothing is lost"
kill_rounds unflushed "${ROUNDS:-8}" portalbd shm --nothing-lost --flush-percent 0
step "${ROUNDS:-8} times kill -9, with a journal in memory: what was flushed, and a prefix"
kill_rounds memory "${ROUNDS:-8}" portalbd memory

mutants=$BUILD/mutants/bin/portalbd
[ -x "$mutants" ] || fail "no build with deliberate bugs at $mutants"

# found BUG JOURNAL STAMP-ARGUMENTS...
found() {
    local bug=$1 journal=$2 status=0
    shift 2
    step "the deliberate bug $bug is found"
    PORTALBD_MUTANT=$bug kill_rounds "bug-$bug" 60 "$mutants" "$journal" "$@" || status=$?
    [ $status -eq 1 ] || fail "$bug was not found (exit code $status)"
}
found ack-before-frontier memory
found trim-rounded-outward shm --nothing-lost
found skip-replay shm --nothing-lost --flush-percent 0
found replay-off-by-one shm --nothing-lost --flush-percent 0
[ ! -e "$WORK/state" ] || fail "a journal was set aside"
