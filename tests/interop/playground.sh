#!/usr/bin/env bash
# The playground as its first user meets it: two tenants with the same key, one moved and a node
# drained and another killed for good while a watch runs. Starts its own:
#
#   ATOLL_BIN=target/release/atoll tests/interop/playground.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
# It wants one port, two above it, and two for its tenants, at several addresses.
read -r PORT <<<"$(free_ports 1 20)"
export ATOLL_ADMIN=http://127.0.0.1:$((PORT + 2))
atoll() { "$ATOLL_BIN" "$@"; }
acme() { "$ETCDCTL" --endpoints "127.0.0.1:$((PORT + 10)),127.0.0.2:$((PORT + 10)),127.0.0.3:$((PORT + 10))" --command-timeout 20s "$@"; }
beta() { "$ETCDCTL" --endpoints "127.0.0.1:$((PORT + 11))" --command-timeout 20s "$@"; }
revision() { "$@" get nothing -w json | jq .header.revision; }
nodes_of() { atoll tenant show "$1" -w json | jq -r '.tenants[0].nodes | sort | join(",")'; }
is_on() { [ "$(nodes_of "$1")" = "$2" ]; }
says() { atoll status | head -n 1 | grep -qE "$1"; }

mkfifo "$TMP/typed"
"$ATOLL_BIN" playground --port "$PORT" --data-dir "$TMP/play" <"$TMP/typed" >"$TMP/play.out" 2>"$TMP/play.err" &
PLAYGROUND=$!
exec 7>"$TMP/typed"
eventually 30 "it says what to type next" grep -q 'atoll env acme' "$TMP/play.out"
like "etcdctl is set up for a tenant" "ETCDCTL_ENDPOINTS=.*$((PORT + 10))" "$(atoll env acme)"

acme put hello acme >/dev/null
beta put hello beta >/dev/null
beta put hello again >/dev/null
same "the same key is two" "acme again" "$(acme get hello --print-value-only) $(beta get hello --print-value-only)"
same "each with its revisions" "2 3" "$(revision acme) $(revision beta)"
acme watch hello -w json >"$TMP/watch.out" 2>"$TMP/watch.err" &
WATCH=$!

echo add >&7
eventually 30 "a node joins" says '^All well: 3 tenants on 4 nodes'
atoll tenant move acme --to n1,n2,n4 >/dev/null
eventually 40 "a tenant is moved" is_on acme n1,n2,n4
acme put hello moved >/dev/null
atoll node drain n2 >/dev/null
eventually 60 "a node is drained" is_on acme n1,n3,n4
acme put hello drained >/dev/null
atoll node uncordon n2 >/dev/null
atoll node repair-after 10s >/dev/null
echo "kill n3" >&7
eventually 60 "what was on a node that is dead is repaired" is_on acme n1,n2,n4
acme put hello repaired >/dev/null
heard() { [ "$(jq -r '.Events[].kv.value | @base64d' "$TMP/watch.out" | paste -sd' ')" = "moved drained repaired" ]; }
eventually 10 "the watch went on over all of it" heard
same "and no revision is missing" 5 "$(revision acme)"
kill "$WATCH"
kill -TERM "$PLAYGROUND"
wait "$PLAYGROUND" || die "the playground failed: $(tail -n 3 "$TMP/play.err")"
passed "it ends when it is told to"
echo "ok $CHECKS checks"
