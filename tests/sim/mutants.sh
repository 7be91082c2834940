#!/bin/bash
# Deliberate bugs, each of which the simulator must find within so many seeds; without one it must
# find nothing. The program is built by `make mutants`.
# timeout: 600
set -u
cd "$(dirname "$0")/../.." || exit 2
sim=${PORTALBD_BUILD:-build}/mutants/tests/sim/sim
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

# Name, and the seeds within which it must be found: about ten times what it took when it was added.
while read -r mutant seeds; do
    count "$sim" --seeds "$seeds" --mutant "$mutant" --expect-finding
done <<'LIST'
ack-before-frontier 20
no-fence 20
no-manifest-check-after-fence 150
trim-rounded-outward 20
snapshot-ignores-fence-jump 50
replay-foreign-journal 20
skip-replay 30
replay-off-by-one 30
replay-below-last-write 50
header-rewritten-at-restart 50
journal-decided-once 30
resume-as-first 50
fill-what-changed 60
gc-condemns-nothing 20
gc-no-manifest-check 100
gc-ignores-claims 50
gc-ignores-pins 50
gc-deletes-before-pins 50
gc-no-wait-for-reads 100
gc-above-next-seq 20
gc-forgets-tail 20
scrub-blind 30
evacuated-dropped-early 30
moved-run-on-top 50
merge-across-move 60
merge-drops-holes 80
merge-discharges-reused 30
merge-keeps-usage 20
merge-reuses-touched 20
restore-keeps-condemned 60
restore-replays-the-tail 60
restore-reads-root-first 600
held-pin-ignores-pins 20
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
