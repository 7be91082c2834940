#!/bin/bash
# P4: a second daemon takes a volume over while the first has clients with flushes under way. Nothing that the first ever
# acknowledged as flushed, also after the second came, is missing from the second. A deliberate bug (no fence) is found.
# ROUNDS=50 for the long form (default 6).
# shellcheck disable=SC2119
set -euo pipefail
. "$(dirname "$0")/lib.sh"

start_s3
start_faultproxy --delay 1ms --jitter 8ms
store=(--store s3://bucket/takeover)
portalctl "${store[@]}" pool create >/dev/null

# takeover_rounds VOLUME ROUNDS PROGRAM: exit code of stamp.
takeover_rounds() {
    local volume=$1 rounds=$2 program=$3
    portalctl "${store[@]}" volume create "$volume" --size 64M >/dev/null
    local serve=("$program" serve "${store[@]}" --steal --log-level error)
    stamp --uri "nbd+unix:///$volume?socket=$WORK/$volume.a" --rounds "$rounds" --seconds 0.6 --seed "${SEED:-$RANDOM}" \
        --flush-percent 30 --second-uri "nbd+unix:///$volume?socket=$WORK/$volume.b" \
        --second "exec ${serve[*]} --node-id b --listen unix:$WORK/$volume.b --run-dir $WORK/b-$volume" \
        -- "${serve[@]}" --node-id a --listen "unix:$WORK/$volume.a" --run-dir "$WORK/a-$volume" 2>>"$WORK/$volume.log"
}

step "${ROUNDS:-6} takeovers"
takeover_rounds disk "${ROUNDS:-6}" portalbd

mutants=$BUILD/mutants/bin/portalbd
[ -x "$mutants" ] || fail "no build with deliberate bugs at $mutants"
step "the deliberate bug no-fence is found"
export PORTALBD_MUTANT=no-fence
status=0
takeover_rounds bug "${ROUNDS:-40}" "$mutants" || status=$?
[ $status -eq 1 ] || fail "no-fence was not found (exit code $status)"
