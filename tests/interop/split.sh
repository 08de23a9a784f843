#!/usr/bin/env bash
# A tenant is split while stock clients write to it and watch it, and is one etcd as before: one
# sequence of revisions, transactions and leases over all its groups. It is brought together on one
# group under the same load, and split again. Then everything is killed and started again. Starts its
# own:
#
#   ATOLL_BIN=target/release/atoll tests/interop/split.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
WRITES=${WRITES:-150}
# It wants one port, some above it, and some for its tenants, at several addresses.
read -r PORT <<<"$(free_ports 1 20)"
export ATOLL_ADMIN=http://127.0.0.1:$((PORT + 2))
atoll() { "$ATOLL_BIN" "$@"; }
acme() { "$ETCDCTL" --endpoints "127.0.0.1:$((PORT + 10))" --command-timeout 20s "$@"; }
field() { acme get "${@:2}" -w json | jq "$1"; }

play() {
  exec 7>&- || true
  rm -f "$TMP/typed" && mkfifo "$TMP/typed"
  "$ATOLL_BIN" playground --port "$PORT" --data-dir "$TMP/play" <"$TMP/typed" >"$TMP/play.out" 2>"$TMP/play.err" &
  PLAYGROUND=$!
  exec 7>"$TMP/typed"
  eventually 40 "it says what to type next" grep -q 'atoll env acme' "$TMP/play.out"
}
play

for n in $(seq 1 10); do
  acme put "/registry/pods/p$n" one >/dev/null
  acme put "/registry/events/e$n" one >/dev/null
done
acme watch --prefix /registry/ --rev 2 -w json >"$TMP/all.out" 2>"$TMP/all.err" &
WATCHES=$!
acme watch --prefix /registry/events/ --rev 2 -w json >"$TMP/events.out" 2>"$TMP/events.err" &
WATCHES="$WATCHES $!"
write() {
  local n
  for n in $(seq 1 "$WRITES"); do
    acme put "/registry/$1/$2$n" "$n" >/dev/null || return 1
  done
}
write pods q & PODS=$!
write events q & EVENTS=$!
sleep 1
eventually 20 "it can be split" atoll tenant split acme --at-prefix /registry/events/
split_is_done() { [ "$(atoll op list -w json | jq '[.. | objects | select(.state? == "done")] | length')" -ge 1 ]; }
eventually 30 "the tenant is split" split_is_done
like "its groups are shown" "from /registry/events/ to below /registry/events0" "$(atoll tenant show acme)"
wait "$PODS" || die "a put failed while the tenant was split"
wait "$EVENTS" || die "a put failed while the tenant was split"
passed "no put failed"
LAST=$((1 + 20 + 2 * WRITES))
same "the revisions have no gap" "$LAST" "$(field .header.revision /registry/)"
same "all keys are listed" "$((20 + 2 * WRITES))" "$(field .count --prefix /registry/ --limit 3)"
same "the newest of both groups" "\"$(printf %s "$WRITES" | base64)\" \"$(printf %s "$WRITES" | base64)\"" \
  "$(field '.kvs[0].value' "/registry/pods/q$WRITES") $(field '.kvs[0].value' "/registry/events/q$WRITES")"
same "the past is what it was" 20 "$(field '.kvs | length' --prefix /registry/ --rev 21)"

printf 'mod("/registry/pods/p1") > "0"\n\nput /registry/pods/p1 two\nput /registry/events/e1 two\n\n\n' |
  acme txn -i >/dev/null
same "a transaction over both groups has one revision" "$((LAST + 1)) $((LAST + 1))" \
  "$(field '.kvs[0].mod_revision' /registry/pods/p1) $(field '.kvs[0].mod_revision' /registry/events/e1)"
LEASE=$(acme lease grant 60 | awk '{print $2}')
acme put /registry/pods/leased x --lease "$LEASE" >/dev/null
acme put /registry/events/leased x --lease "$LEASE" >/dev/null
like "a lease knows its keys of both groups" "events/leased /registry/pods/leased" "$(acme lease timetolive "$LEASE" --keys)"
acme lease revoke "$LEASE" >/dev/null
same "and takes them along" 0 "$(field '[.kvs[]?.key | @base64d | select(endswith("leased"))] | length' --prefix /registry/)"
BEFORE=$(field .header.revision /)
same "keys of both groups are deleted" "$((WRITES + 12))" "$(acme del --range /registry/events/e2 /registry/pods/p4)"
same "in one revision" "$((BEFORE + 1))" "$(field .header.revision /)"

# --- on one group again
LAST=$(field .header.revision /)
write pods m & PODS=$!
write events m & EVENTS=$!
LEASE=$(acme lease grant 60 | awk '{print $2}')
acme put /registry/pods/leased x --lease "$LEASE" >/dev/null
acme put /registry/events/leased x --lease "$LEASE" >/dev/null
eventually 20 "it can be merged" atoll tenant merge acme --all
is_whole() { ! atoll tenant show acme | grep -q 'split over'; }
eventually 60 "it is on one group again" is_whole
wait "$PODS" || die "a put failed while the tenant was merged"
wait "$EVENTS" || die "a put failed while the tenant was merged"
passed "no put failed"
same "the revisions have no gap" "$((LAST + 2 + 2 * WRITES))" "$(field .header.revision /registry/)"
like "the lease knows its keys" "events/leased /registry/pods/leased" "$(acme lease timetolive "$LEASE" --keys)"
acme lease revoke "$LEASE" >/dev/null
same "all keys are listed" "$((2 * WRITES))" "$(field '[.kvs[].key | @base64d | select(test("/m[0-9]+$"))] | length' --prefix /registry/)"
same "the past is what it was" 20 "$(field '.kvs | length' --prefix /registry/ --rev 21)"
eventually 20 "it can be split again" atoll tenant split acme --at-prefix /registry/events/
is_split() { atoll tenant show acme | grep -q 'split over 3 groups'; }
eventually 30 "it is split again" is_split
acme put /registry/events/again x >/dev/null

NOW=$(field .header.revision /registry/)
told() { [ "$(jq -r '.Events[].kv.mod_revision' "$1" | tail -n 1)" -ge "$2" ]; }
eventually 20 "the watch over both groups has heard all" told "$TMP/all.out" "$NOW"
same "each revision once, in order" "" \
  "$(diff <(jq -r '.Events[].kv.mod_revision' "$TMP/all.out" | uniq) <(seq 2 "$NOW") | head -n 5)"
same "and the watch of one group its own" "" \
  "$(diff <(jq -r '.Events[].kv | select(.key | @base64d | startswith("/registry/events/")) | "\(.mod_revision) \(.key)"' "$TMP/all.out" | sort) \
    <(jq -r '.Events[].kv | "\(.mod_revision) \(.key)"' "$TMP/events.out" | sort) | head -n 5)"

before() { acme get --prefix / -w json | jq -c '[.kvs[] | [.key, .mod_revision, .version, .value]]'; }
BEFORE=$(before)
# shellcheck disable=SC2086
kill $WATCHES
kill -KILL "$PLAYGROUND"
wait "$PLAYGROUND" 2>/dev/null || true
play
eventually 30 "it answers again" acme get / -w json
same "after kill -9 everything is there" "$BEFORE" "$(before)"
acme put /registry/pods/new x >/dev/null
acme put /registry/events/new x >/dev/null
[ "$(field '.kvs[0].mod_revision' /registry/events/new)" -gt "$NOW" ] || die "a revision was given twice"
passed "and revisions go on above"
like "still split" "split over 3 groups" "$(atoll tenant show acme)"

# --- killed in the middle of a merge, which goes on afterwards
BEFORE=$(before)
eventually 20 "it can be merged" atoll tenant merge acme --all
kill -KILL "$PLAYGROUND"
wait "$PLAYGROUND" 2>/dev/null || true
play
eventually 30 "it answers again" acme get / -w json
same "after kill -9 everything is there" "$BEFORE" "$(before)"
eventually 60 "it is on one group" is_whole
same "and there still" "$BEFORE" "$(before)"
NOW=$(field .header.revision /)
acme put /registry/events/last x >/dev/null
same "revisions have no gap from then on" "$((NOW + 1))" "$(field .header.revision /)"
kill -TERM "$PLAYGROUND"
wait "$PLAYGROUND" || die "the playground failed: $(tail -n 3 "$TMP/play.err")"
passed "it ends when it is told to"
echo "ok $CHECKS checks"
