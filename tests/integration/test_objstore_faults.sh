#!/bin/bash
# The conformance suite on a real S3 server behind a proxy that answers errors, drops answers and
# cuts connections: the retry layer must make all of it invisible.
# timeout: 300
set -euo pipefail
. "$(dirname "$0")/lib.sh"

start_s3
start_faultproxy --jitter 2ms --error 0.03 --drop 0.03 --cut 0.03
step "conformance through the proxy"
PORTALBD_TEST_S3=s3://bucket/faulty PORTALBD_TEST_S3_FAULTY=1 \
    "$BUILD/tests/conformance/objstore/test_objstore" >"$WORK/suite.log" 2>&1 ||
    fail "the suite does not pass behind the proxy"
grep -q 'OK.*s3' "$WORK/suite.log" || fail "the suite did not run on the S3 server"
proxy_counts >"$WORK/counts.json"
for fault in error drop cut; do
    grep -q "\"$fault\":[1-9]" "$WORK/counts.json" || fail "the proxy never did: $fault"
done
left=$(find "$S3_DIR/bucket/faulty" -type f 2>/dev/null | head -n 5 || true)
[ -z "$left" ] || fail "objects were left behind: $left"
