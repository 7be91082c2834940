#!/bin/bash
# portalctl attach with a store and keys that only the shell knows: they are in the run folder's pool file, for
# the agent and for commands of other shells, and nowhere else. (The agent is a stand-in: no device is made.)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands jq
start_s3
unset AWS_CA_BUNDLE AWS_ENDPOINT_URL_S3 AWS_DEFAULT_REGION

mkdir "$WORK/bin"
cp "$BIN/portalctl" "$WORK/bin/portalctl"
cp "$LIB_ROOT/tests/integration/standin_agent.py" "$WORK/bin/node-agent"
chmod +x "$WORK/bin/node-agent"
export STANDIN=$WORK/standin NODE_ID=here PORTALBD_RUN_DIR=$WORK/run PORTALBD_TIMEOUT=20s
ctl() { "$WORK/bin/portalctl" "$@"; }
another_shell() {
    env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_SESSION_TOKEN -u AWS_REGION -u AWS_ENDPOINT_URL \
        "$WORK/bin/portalctl" "$@"
}
end_agent() {
    local pid
    for pid in $(jq -r '.pid // empty' "$STANDIN.log"); do
        kill -KILL "$pid" 2>/dev/null || true
    done
}
trap 'status=$?; end_agent; (exit $status); lib_cleanup' EXIT

step "attach"
ctl --store s3://bucket/p pool create >/dev/null
ctl --store s3://bucket/p volume create v --size 64M >/dev/null
[ "$(ctl --store s3://bucket/p attach v)" = /dev/none0 ] || fail "no device"
pools=$WORK/run/pools.conf
[ "$(stat -c %a "$pools")" = 600 ] || fail "$(stat -c %a "$pools")"
cat >"$WORK/expected" <<POOL
[default]
url = s3://bucket/p
endpoint = $AWS_ENDPOINT_URL
region = us-east-1
addressing = auto
access_key_id = portalbd-test
secret_access_key = portalbd-test-secret
POOL
diff "$WORK/expected" "$pools" || fail "the pool file"

step "nowhere else"
! grep -rlF portalbd-test-secret "$WORK/run" "$STANDIN.log" | grep -v pools.conf || fail "a secret in another file"
! ctl --log-level debug devices 2>&1 | grep -F portalbd-test-secret || fail "a secret is printed"

step "another shell"
another_shell -o json devices | jq -e '.[0].name == "v"' >/dev/null || fail "devices"
another_shell detach v
ctl --store s3://bucket/p -o json volume show v | jq -e '.node == ""' >/dev/null || fail "it is published still"
another_shell attach v >/dev/null
another_shell detach v

step "a file of a key that is missing: not \"no pool file\", and nothing is written over it"
printf '[other]\nurl = s3://bucket/q\nsession_token_file = %s/no\n' "$WORK" >>"$pools"
cp "$pools" "$WORK/before"
refused() { # command: it ends with 1 and says which file
    local status=0
    "$@" >"$WORK/out" 2>"$WORK/err" || status=$?
    [ "$status" -eq 1 ] || fail "exit code $status: $*: $(cat "$WORK/err")"
    grep -q "session_token_file $WORK/no: No such file" "$WORK/err" || fail "$(cat "$WORK/err")"
}
refused ctl --pools "$pools" --pool default volume list
refused ctl --store s3://bucket/p attach v
diff "$WORK/before" "$pools" || fail "the other pool is lost"

step "a password in an endpoint is not repeated"
! ctl --store s3://bucket/p --endpoint http://me:sesame@127.0.0.1:1 volume list 2>"$WORK/err" || fail "it works"
grep -q "before '@'" "$WORK/err" || fail "$(cat "$WORK/err")"
! grep sesame "$WORK/err" || fail "the password is printed"
