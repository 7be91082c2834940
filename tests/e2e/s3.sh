#!/bin/bash
# The store of the cluster: a real S3 server in the node's network.    s3.sh start|stop
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

answers() {
    in_node curl -s -o /dev/null --max-time 2 "$S3_URL/"
}

silent() {
    ! answers
}

case ${1-} in
start)
    mkdir -p "$CLUSTER/s3/volumes" "$LOGS"
    ROOT_ACCESS_KEY=$S3_KEY ROOT_SECRET_KEY=$S3_SECRET in_node setsid "$PORTALBD_BUILD/tools/versitygw" \
        --port "$NODE_IP:$S3_PORT" --quiet --keep-alive posix "$CLUSTER/s3" >>"$LOGS/s3.log" 2>&1 </dev/null 9>&- &
    disown
    within 15 answers || die "the S3 server does not answer; see $LOGS/s3.log"
    ;;
stop)
    # By the socket it listens on: its number in here is of the node's PID namespace.
    pid=$(in_node ss -Hltnp "sport = :$S3_PORT" | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -n 1)
    [ -n "$pid" ] || die "no S3 server listens"
    in_node kill "$pid"
    within 15 silent || die "the S3 server does not end"
    ;;
*) die "start or stop?" ;;
esac
