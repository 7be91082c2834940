#!/bin/bash
# The conformance suite over TLS, with a certificate that only AWS_CA_BUNDLE makes valid.
# timeout: 200
set -euo pipefail
. "$(dirname "$0")/lib.sh"

need_commands openssl
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$WORK/key.pem" -out "$WORK/cert.pem" \
    >"$WORK/openssl.log" 2>&1
start_s3 --cert "$WORK/cert.pem" --key "$WORK/key.pem"
export AWS_ENDPOINT_URL=https://127.0.0.1:$PORT AWS_CA_BUNDLE=$WORK/cert.pem
PORTALBD_TEST_S3=s3://bucket/tls PORTALBD_TEST_S3_FAULTY=1 \
    "$BUILD/tests/conformance/objstore/test_objstore" >"$WORK/suite.log" 2>&1 ||
    fail "the suite does not pass over TLS"
grep -q 'OK.*s3' "$WORK/suite.log" || fail "the suite did not run on the S3 server"
