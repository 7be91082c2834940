#!/bin/bash
# make install: everything is where it belongs, and systemd has nothing to say against the units.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_commands make systemd-analyze

step "install"
env -u MAKEFLAGS -u MAKELEVEL make -s -C "$LIB_ROOT" install-files BUILD="$BUILD" DESTDIR="$WORK/root" PREFIX=/usr \
    >"$WORK/install.log" 2>&1 || fail "make install: $(cat "$WORK/install.log")"
for program in portalbd portalctl node-agent portalbd-csi; do
    "$WORK/root/usr/bin/$program" --version >/dev/null || fail "$program"
    [ -s "$WORK/root/usr/share/man/man8/$program.8" ] || fail "no manual page of $program"
done
[ -s "$WORK/root/etc/udev/rules.d/60-portalbd.rules" ] || fail "no udev rule"
[ -s "$WORK/root/etc/modprobe.d/portalbd.conf" ] || fail "no module options"
[ "$(stat -c %a "$WORK/root/etc/portalbd")" = 700 ] || fail "/etc/portalbd is open to others"

step "units"
units=("$WORK"/root/usr/lib/systemd/system/*)
[ ${#units[@]} -eq 4 ] || fail "${#units[@]} units"
grep -q '^ExecStart=/usr/bin/node-agent' "$WORK/root/usr/lib/systemd/system/portalbd-agent.service" ||
    fail "the units do not know PREFIX"
mkdir "$WORK/units"
for unit in "${units[@]}"; do # verify looks for the programs
    sed "s|/usr/bin/|$WORK/root/usr/bin/|" "$unit" >"$WORK/units/${unit##*/}"
done
cd "$WORK/units"
systemd-analyze verify --man=no ./portalbd-agent.service ./portalbd-volume@disk.service \
    ./portalbd-serve@fast.service ./portalbd-serve@fast.socket >"$WORK/verify" 2>&1 || fail "$(cat "$WORK/verify")"
[ ! -s "$WORK/verify" ] || fail "$(cat "$WORK/verify")"

step "what they expose"
while read -r unit limit; do
    # "→ Overall exposure level for x: 4.5 OK": ten is everything.
    score=$(systemd-analyze security --offline=true --no-pager "./$unit" | sed -n 's/.*: \([0-9.]*\) .*/\1/p' | tail -n 1)
    printf '%s %s\n' "$unit" "$score"
    awk -v s="$score" -v l="$limit" 'BEGIN { exit !(s != "" && s <= l) }' || fail "$unit exposes $score, more than $limit"
done <<'UNITS'
portalbd-agent.service 4.8
portalbd-volume@disk.service 2.5
portalbd-serve@fast.service 1.5
UNITS
