#!/bin/bash
# Deliberate bugs, each of which the simulator must find within so many seeds; without one it must
# find nothing. Those that no run can see unit tests must find. The programs are built by `make mutants`.
# timeout: 600
set -u
cd "$(dirname "$0")/../.." || exit 2
sim_build=${PORTALBD_BUILD:-build}/mutants
sim=$sim_build/tests/sim/sim
if [ ! -x "$sim" ]; then
    echo "$sim is not built: make mutants"
    exit 1
fi

passed=0
failed=0
count() {
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
}

# Name, and the seeds within which it must be found: about ten times what it took when it was added,
# and 60 at least.
while read -r mutant seeds; do
    count "$sim" --seeds "$seeds" --mutant "$mutant" --expect-finding
done <<'LIST'
ack-before-frontier 60
no-fence 60
trim-rounded-outward 60
snapshot-ignores-fence-jump 60
replay-foreign-journal 60
skip-replay 60
replay-off-by-one 60
replay-below-last-write 400
header-rewritten-at-restart 60
journal-decided-once 60
resume-as-first 60
fill-what-changed 60
gc-condemns-nothing 60
gc-no-manifest-check 100
gc-ignores-claims 60
gc-ignores-pins 60
gc-deletes-before-pins 60
gc-no-wait-for-reads 100
gc-above-next-seq 60
gc-forgets-tail 60
scrub-blind 60
evacuated-dropped-early 60
moved-run-on-top 60
merge-across-move 60
merge-drops-holes 80
merge-discharges-reused 200
merge-keeps-usage 60
merge-reuses-touched 60
restore-keeps-condemned 60
restore-replays-the-tail 60
held-pin-ignores-pins 60
restore-reads-root-first 400
flatten-on-top 200
window-unbounded 60
LIST

# What no run can see (it costs space only, or takes a disk cache that is full), or one in hundreds at
# most: this unit test must fail with it, and not without.
fails_with() {
    local mutant=$1 test=$sim_build/tests/$2 rc
    if ! timeout 120 "$test" >/dev/null 2>&1; then
        echo "FAILED: $2 fails without a mutant, too"
        return 1
    fi
    PORTALBD_MUTANT=$mutant timeout 120 "$test" >/dev/null 2>&1
    rc=$?
    case $rc in
    0) echo "FAILED: $2 does not find $mutant" && return 1 ;;
    124) echo "FAILED: $2 hangs with $mutant" && return 1 ;;
    esac
}
while read -r mutant test; do
    count fails_with "$mutant" "$test"
done <<'LIST'
disk-cache-overwritten unit/portalbd/cache/test_disk_cache
pin-named-by-first unit/portalbd/volume/test_sweep
no-manifest-check-after-fence unit/portalbd/volume/test_takeover
gc-one-pin-listing unit/portalbd/volume/test_gc_hand_over
held-pin-ignores-claims unit/portalbd/catalog/test_held_pins
moves-newer-data unit/portalbd/volume/test_gc
move-evacuates-nothing unit/portalbd/volume/test_gc
restore-reads-root-first unit/portalbd/catalog/test_restore
merge-reuses-touched unit/portalbd/volume/test_run_merge_bottom
LIST
# What a finding was made to is found again by the command that was printed with it.
# shellcheck disable=SC2086 # a command line is words
is_found_when_small() {
    local command
    command=$("$sim" --mutant trim-rounded-outward 2>/dev/null | sed -n 's/^  replay: //p' | tail -n 1)
    case $command in
    *--steps*) env ${command% --trace} --no-shrink 2>/dev/null | grep -q '^FOUND' && return 0 ;;
    esac
    echo "FAILED: a finding made small is not found again: $command"
    return 1
}
count is_found_when_small

if ! "$sim" --seeds 5 >"${TMPDIR:-/tmp}/sim-without-mutant.txt" 2>&1; then
    cat "${TMPDIR:-/tmp}/sim-without-mutant.txt"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
rm -f "${TMPDIR:-/tmp}/sim-without-mutant.txt"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
