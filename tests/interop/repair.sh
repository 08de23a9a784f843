#!/usr/bin/env bash
# Nodes that are lost while their tenants are written to and watched: what was on them is replaced
# by itself, without a client's error, a lost write or a gap in the watch, and `atoll status` says
# so. A node that comes back late, and a damaged log, do no harm. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/repair.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
read -r C1 C2 C3 C4 P1 P2 P3 P4 A1 A2 <<<"$(free_ports 10)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$A1

atoll() { "$ATOLL_BIN" "$@"; }
acme() { "$ETCDCTL" --endpoints "127.0.0.1:$C1" --user root@acme:none --command-timeout 20s "$@"; }
revision() { acme get nothing -w json | jq .header.revision; }
verdict() {
  local told
  told=$(trap - ERR; atoll status "$@") || true
  echo "${told%%$'\n'*}"
}
# says REGEX [FLAGS]: the verdict matches.
says() { [[ $(verdict "${@:2}") =~ $1 ]]; }
replicas_on() { atoll node list -w json | jq --arg name "$1" '[.nodes[] | select(.name == $name) | .replicas] | add // "gone"'; }
nodes_of() { atoll tenant show "$1" -w json | jq -r '.tenants[0].nodes | sort | join(",")'; }
are_on() { # NODES: all tenants are there
  local name
  for name in acme beta gamma; do [ "$(nodes_of $name)" = "$1" ] || return 1; done
}

start() { # NAME CLIENT PEER [ADMIN]
  ATOLL_LISTEN_ADMIN_URLS=${4:+http://127.0.0.1:$4} serve_member "$1" "$2" "$3" "$CLUSTER"
}
start_fourth() {
  local url=http://127.0.0.1:$P4
  spawn n4 "$ATOLL_BIN" start --name n4 --data-dir "$TMP/n4.data" \
    --listen-client-urls "http://127.0.0.1:$C4" --advertise-client-urls "http://127.0.0.1:$C4" \
    --listen-peer-urls "$url" --initial-advertise-peer-urls "$url" \
    --initial-cluster "$CLUSTER,n4=$url" --initial-cluster-state existing
}
start n1 "$C1" "$P1" "$A1"
FIRST=$SPAWNED
start n2 "$C2" "$P2" "$A2"
SECOND=$SPAWNED
start n3 "$C3" "$P3"
THIRD=$SPAWNED
up n1 "$FIRST"
up n2 "$SECOND"
up n3 "$THIRD"

eventually 20 "a tenant is created" atoll tenant create acme
for name in beta gamma; do atoll tenant create $name >/dev/null; done
eventually 10 "all is well" says '^All well: 4 tenants on 3 nodes\.$'
atoll status >/dev/null && holds "and the exit code says so" true
"$ATOLL_BIN" member --endpoint "http://127.0.0.1:$C1" add "http://127.0.0.1:$P4" >/dev/null
start_fourth
FOURTH=$SPAWNED
up n4 "$FOURTH"
eventually 20 "so it is with four" says '^All well: 4 tenants on 4 nodes\.$'
refused "a time that is too short" 'say more' atoll node repair-after 1s
atoll node repair-after 10s >/dev/null

# === a node dies for good, under load

eventually 10 "it can be written to" acme put count 0
FROM=$(($(revision) + 1))
spawn watch "$ETCDCTL" --endpoints "127.0.0.1:$C1" --user root@acme:none watch count --rev "$FROM" -w json
writer() {
  local n=0
  until [ -e "$TMP/enough" ]; do
    n=$((n + 1))
    # A put that was on its way to a leader that died may have been done: then it is done twice.
    acme put count "$n" || { sleep 0.1 && acme put count "$n"; } || { echo "put $n failed" && return 1; }
  done
  echo "$n" >"$TMP/written"
}
writer >"$TMP/writer.log" 2>&1 &
WRITER=$!
refused "a node that answers is not given up" 'atoll node drain' atoll node remove n3 --force
kill -9 "$THIRD"
wait "$THIRD" 2>/dev/null || true
mv "$TMP/n3.data" "$TMP/n3.aside"
eventually 20 "status says what is missing" says '^1 node is silent: n3 since [0-9]+ s; .* of 3 replicas'
CODE=0
atoll status >/dev/null || CODE=$?
same "its exit code as well" 2 "$CODE"
like "a node that does not lead placement says the same" 'n3 since' "$(verdict --admin "http://127.0.0.1:$A2")"
eventually 40 "the tenants are on the others" are_on n1,n2,n4
eventually 20 "nothing is left on it" test "$(replicas_on n3)" = 0
eventually 20 "only its silence is to be told" says '^1 node is silent: n3 since [0-9]+ s\.$'

# === it comes back late, with all it had

mv "$TMP/n3.aside" "$TMP/n3.data"
start n3 "$C3" "$P3"
THIRD=$SPAWNED
up n3 "$THIRD"
eventually 20 "all is well again" says '^All well: 4 tenants on 4 nodes\.$'
holds "the tenants stay where they are" are_on n1,n2,n4
eventually 20 "it answers for them like any other" \
  "$ETCDCTL" --endpoints "127.0.0.1:$C3" --user root@acme:none --command-timeout 5s put third there

# === another one dies, is emptied, and is given up by its operator

atoll node repair-after 1h >/dev/null
kill -9 "$FOURTH"
wait "$FOURTH" 2>/dev/null || true
rm -rf "$TMP/n4.data"
eventually 20 "it is waited for" says 'repair begins in [0-9]+ min'
start_fourth
ended "$SPAWNED" "the emptied node"
like "an emptied node does not take part" 'has been running before' "$(cat "$TMP/n4.err")"
holds "a node is given up" atoll node remove n4 --force
eventually 40 "the tenants are on the others" are_on n1,n2,n3
eventually 20 "the node is forgotten" says '^All well: 4 tenants on 3 nodes\.$'

# === the log of one of three is damaged

touch "$TMP/enough"
wait "$WRITER" || die "a writer failed: $(tail -n 3 "$TMP/writer.log")"
WRITTEN=$(cat "$TMP/written")
MARK=damaged-$RANDOM$RANDOM-
# Written until the kill: what a checkpoint has already taken in would not be read again.
marks() {
  local n=1000
  until [ -e "$TMP/marked" ]; do
    n=$((n + 1))
    # The kill may leave one without an answer.
    acme put "$MARK$n" "$MARK" >/dev/null || true
  done
}
marks >"$TMP/marks.log" 2>&1 &
MARKER=$!
applied() { "$ETCDCTL" --endpoints "127.0.0.1:$C2" --user root@acme:none get "${MARK}1040" --consistency s --print-value-only | grep -q .; }
eventually 20 "the second has what will be damaged" applied
kill -9 "$SECOND"
wait "$SECOND" 2>/dev/null || true
touch "$TMP/marked"
wait "$MARKER"
# Not the last ones: a torn end is no damage.
LAST=$(grep -aho "${MARK}[0-9]*" "$TMP"/n2.data/log/* | sort | tail -n 1)
MARKED=$MARK$((${LAST#"$MARK"} - 10))
FILE=$(grep -l "$MARKED" "$TMP"/n2.data/log/* | head -n 1)
OFFSET=$(grep -abo "$MARKED" "$FILE" | head -n 1 | cut -d : -f 1)
printf '\001\002\003' | dd of="$FILE" bs=1 seek="$OFFSET" conv=notrunc status=none
start n2 "$C2" "$P2" "$A2"
SECOND=$SPAWNED
up n2 "$SECOND"
eventually 10 "damage is found" grep -q "a replica is quarantined" "$TMP/n2.err"
eventually 40 "and repaired" says '^All well: 4 tenants on 3 nodes\.$'
by_repair() { [ "$(atoll op list -w json | jq '[.operators[] | select(.why | test("on n2 is quarantined")) | .state] | length > 0 and all(. == "done")')" = true ]; }
eventually 10 "by a repair" by_repair
eventually 10 "the second has all of it" applied

# === nothing is lost

seen() { jq -r '.Events[].kv.value | @base64d' "$TMP/watch.out" | uniq; }
all_seen() { [ "$(seen | tail -n 1)" = "$WRITTEN" ]; }
eventually 20 "the watch saw the last write" all_seen
same "and every one before, in order" "$(seq "$WRITTEN" | sha256sum)" "$(seen | sha256sum)"
same "the last one is what is read" "$WRITTEN" "$(acme get count --print-value-only)"
kill -9 "$SECOND"
wait "$SECOND" 2>/dev/null || true
start n2 "$C2" "$P2" "$A2"
up n2 "$SPAWNED"
eventually 20 "what was repaired survives a kill" says '^All well'
echo "$WRITTEN writes, ok $CHECKS checks"
