#!/bin/bash
# The conformance suite of object stores on a real S3 server, and what it leaves there: nothing.
# timeout: 300
set -euo pipefail
. "$(dirname "$0")/lib.sh"

start_s3
PORTALBD_TEST_S3=s3://bucket/conformance "$BUILD/tests/conformance/objstore/test_objstore" 2>&1 |
    tee "$WORK/out.txt"
if grep -q '\[  SKIPPED \].*s3' "$WORK/out.txt"; then
    fail "the suite did not run on the S3 server"
fi
left=$(find "$S3_DIR/bucket/conformance" -type f 2>/dev/null | head -n 5 || true)
[ -z "$left" ] || fail "objects were left behind: $left"
