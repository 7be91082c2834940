#!/bin/bash
# Kubernetes' External Storage suite on the cluster of cluster-up.sh, with each definition of drivers/:
#     suite.sh [--write] [ext4|xfs]...
# What passed and what was skipped is compared with external-storage.txt, which --write writes. Logs and JUnit files:
# build/e2e/results.    FOCUS, SKIP: regular expressions    PROCS: specs at a time    (with FOCUS or SKIP: not compared)
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

expected=$E2E/external-storage.txt
write=
[ "${1-}" != --write ] || { write=1 && shift; }
# Specs that stop the kubelet want ssh to the node; the one about populators wants two programs that are not to be had
# as Go modules, and creates no volume of ours but through them.
: "${SKIP_ALWAYS:=\[Disruptive\]|any volume data source}"

# Runs the suite; its exit code tells little, the JUnit file tells all.
run_suite() { # driver, folder for results
    mkdir -p "$2"
    rm -f "$2"/junit_*.xml
    KUBE_TEST_REPO_LIST=$E2E/drivers/images.yaml in_node "$LINKS/ginkgo" -procs="${PROCS:-6}" -timeout=80m -no-color \
        -focus "${FOCUS:-External.Storage}" -skip "$SKIP_ALWAYS${SKIP:+|$SKIP}" "$LINKS/storage-e2e.test" -- \
        -kubeconfig "$KUBECONFIG" -provider local -num-nodes 1 -kubectl-path "$LINKS/kubectl" \
        -storage.testdriver "$E2E/drivers/$1.yaml" -report-dir "$2" -system-pods-startup-timeout 1m \
        >"$2/log" 2>&1 || true
    [ -f "$2/junit_01.xml" ] || {
        tail -n 20 "$2/log" >&2
        die "the suite left no results; see $2/log"
    }
}

"$E2E/images.sh" suite
python3 -c 'import sys; sys.path.insert(0, sys.argv[1]); import kube; kube.install()' "$E2E"
drivers=("$@")
[ $# -gt 0 ] || drivers=(ext4 xfs)
failed=0
for driver in "${drivers[@]}"; do
    results=$RESULTS/$driver
    began=$SECONDS
    echo "suite: $driver"
    run_suite "$driver" "$results"
    "$E2E/report.py" "$driver" "$results/junit_01.xml" >"$results/list" || failed=1
    echo "suite: $driver: $(cut -d ' ' -f 2 "$results/list" | sort | uniq -c | tr -s ' \n' ' ')in $((SECONDS - began)) s"
    if [ -n "$write" ]; then
        { grep -v "^$driver " "$expected" 2>/dev/null || true; cat "$results/list"; } | sort >"$expected.new"
        mv "$expected.new" "$expected"
    elif [ -z "${FOCUS-}${SKIP-}" ]; then
        diff -u --label expected --label actual <(grep "^$driver " "$expected") "$results/list" || failed=1
    fi
done
[ "$failed" = 0 ] || die "failed; logs are in $RESULTS"
