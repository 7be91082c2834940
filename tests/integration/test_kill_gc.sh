#!/bin/bash
# kill -9 at random moments with everything going on in the store: checkpoints, merges, garbage collection; and by others
# snapshots, clones, clones of clones, deletions. On a real S3 server behind a proxy that
# delays, answers 500/503/429, drops answers and cuts connections. After each round every acknowledged write is there, and
# fsck finds nothing, beside the daemon and whoever cuts and deletes. In the end, with nobody there, gc leaves nothing
# that nothing needs, and when all is deleted only what stays for ever does.
# ROUNDS=200 for the long form (default 4), SEED=n for the writes of an earlier one. timeout: 300
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands jq

start_s3
direct=$AWS_ENDPOINT_URL # fsck and churn read and write beside the proxy
start_faultproxy --delay 1ms --jitter 5ms --error 0.02 --drop 0.01 --cut 0.005
store=(--store s3://bucket/kill)
ctl() { AWS_ENDPOINT_URL=$direct portalctl "${store[@]}" --run-dir "$WORK/none" --timeout 60s "$@" </dev/null; }
ctl pool create >/dev/null
ctl volume create v --size 64M >/dev/null

# Snapshots come and go; some get a clone, and some clones one of their own. The same names again and again; a
# deleted clone leaves a few small objects for ever, so they are fewer.
churn() {
    local i=0 n
    while [ ! -e "$WORK/enough" ]; do
        i=$((i + 1)) n=$((i % 5))
        ! ctl snapshot show "v@s$n" >/dev/null 2>&1 || ctl snapshot delete "v@s$n"
        ctl snapshot create v "s$n" >/dev/null
        if [ $((i % 7)) -eq 0 ]; then
            n=$((i / 7 % 3))
            for name in "d$n" "c$n"; do
                ! ctl volume show $name >/dev/null 2>&1 || ctl volume delete $name
            done
            ctl volume clone "v@s$((i % 5))" "c$n" >/dev/null
            [ $((i % 2)) -ne 0 ] || ctl volume clone "c$n" "d$n" >/dev/null
        fi
        sleep 0.5
    done
}
start churn churn
CHURN=$PID

cat >"$WORK/fsck" <<END
#!/bin/bash
AWS_ENDPOINT_URL=$direct portalctl ${store[*]} --run-dir "$WORK/none" --timeout 60s fsck --json >"$WORK/found" && exit
cat "$WORK/found"
exit 1
END
chmod +x "$WORK/fsck"

step "${ROUNDS:-4} times kill -9 and fsck"
stamp --uri "nbd+unix:///v?socket=$WORK/sock" --rounds "${ROUNDS:-4}" --seconds 7 --seed "${SEED:-$RANDOM}" \
    --flush-percent 30 --nothing-lost --after-round "$WORK/fsck" \
    -- portalbd serve "${store[@]}" --listen "unix:$WORK/sock" --run-dir "$WORK/run" --state-dir "$WORK/state" \
    --log-level error 2>>"$WORK/portalbd.log"
kill -0 "$CHURN" || fail "snapshots: $(tail -3 "$WORK/churn.log")"
touch "$WORK/enough"
wait "$CHURN" || fail "snapshots: $(tail -3 "$WORK/churn.log")"
proxy_counts >"$WORK/counts"
jq -e '[.. | objects | to_entries[] | select(.key | ascii_downcase | startswith("delete")) | .value |
    if type == "number" then . else (.. | numbers) end] | add > 0' "$WORK/counts" >/dev/null ||
    fail "nothing was collected: $(cat "$WORK/counts")"

step "nobody there: gc leaves nothing that nothing needs"
ctl gc >/dev/null
clean() { ctl fsck --garbage >"$WORK/found" || fail "fsck: exit code $?: $(tail -20 "$WORK/found")"; }
clean

step "all deleted: nothing is left but what stays for ever"
for name in $(ctl -o json snapshot list | jq -r '.[].name'); do ctl snapshot delete "$name"; done
for name in $(ctl -o json volume list | jq -r '.[].name'); do ctl volume delete "$name"; done
ctl gc >/dev/null
ctl -o json gc | jq -e '.volumes_waiting == 0 and .objects_deleted == 0' >/dev/null || fail "$(ctl gc)"
clean
left=$(find "$S3_DIR/bucket" -type f \( -path '*/log/*' -o -path '*/map/*' -o -path '*/moved/*' \) ! -size 512c | head -3)
[ -z "$left" ] || fail "left: $left"
[ ! -e "$WORK/state" ] || fail "a journal was set aside"
