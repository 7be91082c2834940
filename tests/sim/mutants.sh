#!/bin/bash
# Deliberate bugs, each of which the simulator must find within 200 seeds; without one it must find
# nothing. The program is built by `make mutants`.
# timeout: 600
set -u
cd "$(dirname "$0")/../.." || exit 2
sim=${PORTALBD_BUILD:-build}/mutants/tests/sim/sim
seeds=200
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

for mutant in ack-before-frontier no-fence no-manifest-check-after-fence trim-rounded-outward \
    snapshot-ignores-fence-jump replay-foreign-journal skip-replay replay-off-by-one \
    replay-below-last-write header-rewritten-at-restart journal-decided-once resume-as-first \
    gc-condemns-nothing gc-no-manifest-check gc-ignores-claims gc-ignores-pins gc-deletes-before-pins \
    gc-no-wait-for-reads gc-above-next-seq gc-forgets-tail scrub-blind moved-run-on-top \
    merge-across-move evacuated-dropped-early; do
    count "$sim" --seeds $seeds --mutant $mutant --expect-finding
done
if ! "$sim" --seeds 5 >"${TMPDIR:-/tmp}/sim-without-mutant.txt" 2>&1; then
    cat "${TMPDIR:-/tmp}/sim-without-mutant.txt"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
rm -f "${TMPDIR:-/tmp}/sim-without-mutant.txt"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
