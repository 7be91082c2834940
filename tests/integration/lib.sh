# Helpers of the integration tests: servers with ports from the kernel, waiting, cleaning up. A test
# begins with
#
#     set -euo pipefail
#     . "$(dirname "$0")/lib.sh"
#
# and ends by falling off its end (pass), `skip WHY` or `fail WHY`. tests/run gives it TMPDIR,
# PORTALBD_BUILD and, as root, namespaces of its own; by hand it works without them too.
# shellcheck shell=bash disable=SC2034

LIB_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${PORTALBD_BUILD:-$LIB_ROOT/build}
BIN=$BUILD/bin
TOOLS=$BUILD/tools
WORK=$(mktemp -d "${TMPDIR:-/tmp}/t.XXXX") # everything a test writes; gone at its end
LIB_PIDS=()
export PATH=$BIN:$TOOLS:$PATH

# Ends servers, newest first, then unmounts and detaches whatever lies in our folder.
lib_cleanup() {
    local status=$? i path device
    trap - EXIT INT TERM
    for ((i = ${#LIB_PIDS[@]} - 1; i >= 0; i--)); do
        stop "${LIB_PIDS[i]}"
    done
    while read -r path; do
        umount -l "$path" 2>/dev/null || true
    done < <(awk -v dir="$WORK/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | tac)
    for path in /sys/block/loop*/loop/backing_file; do
        if [ -e "$path" ] && grep -q "^$WORK/" "$path"; then
            device=${path#/sys/block/}
            losetup -d "/dev/${device%%/*}" || true
        fi
    done
    if [ $status -ne 0 ] && [ $status -ne 77 ]; then
        for path in "$WORK"/*.log; do
            [ -s "$path" ] && printf -- '--- %s\n' "${path##*/}" && tail -n 60 "$path"
        done
    fi
    rm -rf "$WORK"
    exit $status
}
trap lib_cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() {
    printf -- '-- %s\n' "$*"
}
fail() {
    printf 'FAILED: %s\n' "$*"
    exit 1
}
skip() {
    printf '%s\n' "$*"
    exit 77
}
need_root() {
    [ "$(id -u)" -eq 0 ] || skip "needs root"
}
need_fuse() {
    need_root
    [ -c /dev/fuse ] || skip "needs /dev/fuse"
}
need_commands() {
    local name
    for name; do
        command -v "$name" >/dev/null || skip "needs the command $name"
    done
}

# wait_for SECONDS COMMAND...: until it succeeds; fails after that time.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -le $deadline ] || fail "waited too long for: $*"
        sleep 0.05
    done
}

# start NAME COMMAND...: in the background, with its output in $WORK/NAME.log; its pid is in $PID.
start() {
    local name=$1
    shift
    "$@" >>"$WORK/$name.log" 2>&1 &
    PID=$!
    LIB_PIDS+=("$PID")
}

# stop PID [SIGNAL]: and waits until it has gone; after 10 s it is killed. Exit code in $STATUS.
stop() {
    local i
    kill -s "${2:-TERM}" "$1" 2>/dev/null || true
    for ((i = 0; i < 200; i++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.05
    done
    kill -s KILL "$1" 2>/dev/null || true
    STATUS=0
    wait "$1" 2>/dev/null || STATUS=$?
}

listening() {
    PORT=$(ss -Hltnp | sed -n "s/^[A-Z]* *[0-9]* *[0-9]* *[^ ]*:\([0-9]*\) .*pid=$1,.*/\1/p" | head -n 1)
    [ -n "$PORT" ]
}

# listen_port PID: waits until the process listens on TCP; the port is in $PORT.
listen_port() {
    local i
    for ((i = 0; i < 300; i++)); do
        listening "$1" && return
        kill -0 "$1" 2>/dev/null || fail "a server ended instead of listening, see its log"
        sleep 0.05
    done
    fail "process $1 does not listen"
}

# A real S3 server with an empty bucket "bucket": the AWS_* variables lead to it, its objects lie as
# files below $S3_DIR/bucket. Arguments are versitygw's own.
start_s3() {
    [ -x "$TOOLS/versitygw" ] || skip "needs $TOOLS/versitygw (make deps gets it)"
    S3_DIR=$WORK/s3
    mkdir -p "$S3_DIR/bucket"
    export AWS_ACCESS_KEY_ID=portalbd-test AWS_SECRET_ACCESS_KEY=portalbd-test-secret
    export AWS_REGION=us-east-1
    unset AWS_SESSION_TOKEN AWS_PROFILE AWS_SHARED_CREDENTIALS_FILE AWS_WEB_IDENTITY_TOKEN_FILE
    # Without --keep-alive every answer closes its connection.
    start s3 versitygw --access "$AWS_ACCESS_KEY_ID" --secret "$AWS_SECRET_ACCESS_KEY" \
        --port 127.0.0.1:0 --quiet --keep-alive "$@" posix "$S3_DIR"
    S3_PID=$PID
    listen_port "$PID"
    export AWS_ENDPOINT_URL=http://127.0.0.1:$PORT
}

# start_faultproxy ARGUMENTS...: between us and the S3 server; AWS_ENDPOINT_URL leads to it
# afterwards, $FAULT_CONTROL to its control endpoint (curl -s "$FAULT_CONTROL/counts"; settings:
# curl -s -X POST "$FAULT_CONTROL/config?drop=0.1"). Its arguments: tests/tools/faultproxy/main.go.
start_faultproxy() {
    [ -x "$TOOLS/faultproxy" ] || skip "needs $TOOLS/faultproxy (make test builds it)"
    local addresses=$WORK/faultproxy.$RANDOM.addr proxy='' control=''
    start faultproxy faultproxy --target "$AWS_ENDPOINT_URL" --addr-file "$addresses" "$@"
    PROXY_PID=$PID
    wait_for 10 test -s "$addresses"
    # shellcheck source=/dev/null
    . "$addresses"
    export AWS_ENDPOINT_URL=$proxy FAULT_CONTROL=$control
}
# proxy_set drop=0.1 delay=20ms ...: from now on.
proxy_set() {
    local query
    query=$(printf '%s&' "$@")
    curl -fsS -X POST "$FAULT_CONTROL/config?${query%&}" >/dev/null
}
# Requests and bytes by kind since the start or proxy_reset, as JSON.
proxy_counts() {
    curl -fsS "$FAULT_CONTROL/counts"
}
proxy_reset() {
    curl -fsS -X POST "$FAULT_CONTROL/reset" >/dev/null
}
