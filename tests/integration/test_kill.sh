#!/bin/bash
# P1, P2, P8 after kill -9 at random moments, on a real S3 server behind a proxy that delays, answers 500/503/429, drops
# answers and cuts connections; and the proof that the test can fail: two deliberate bugs are found.
# ROUNDS=100 for the long form (default 12).
# shellcheck disable=SC2119
set -euo pipefail
. "$(dirname "$0")/lib.sh"

start_s3
start_faultproxy --delay 2ms --jitter 15ms --error 0.02 --drop 0.02 --cut 0.01
store=(--store s3://bucket/kill)
portalctl "${store[@]}" pool create >/dev/null

# kill_rounds VOLUME ROUNDS PROGRAM: exit code of stamp.
kill_rounds() {
    local volume=$1 rounds=$2 program=$3
    portalctl "${store[@]}" volume create "$volume" --size 64M >/dev/null
    stamp --uri "nbd+unix:///$volume?socket=$WORK/$volume.sock" --rounds "$rounds" --seconds 0.8 --seed "${SEED:-$RANDOM}" \
        -- "$program" serve "${store[@]}" --listen "unix:$WORK/$volume.sock" --run-dir "$WORK/run-$volume" \
        --log-level error 2>>"$WORK/$volume.log"
}

step "${ROUNDS:-12} times kill -9"
kill_rounds disk "${ROUNDS:-12}" portalbd

mutants=$BUILD/mutants/bin/portalbd
if [ -x "$mutants" ]; then
    for bug in ack-before-frontier trim-rounded-outward; do
        step "the deliberate bug $bug is found"
        export PORTALBD_MUTANT=$bug
        status=0
        kill_rounds "bug-${bug%%-*}" 60 "$mutants" || status=$?
        unset PORTALBD_MUTANT
        [ $status -eq 1 ] || fail "$bug was not found (exit code $status)"
    done
else
    fail "no build with deliberate bugs at $mutants"
fi
